/*
 * jobtable.h
 *		The tables: their columns, reading and writing rows.
 *
 * Knows no shared memory.  All functions need a transaction.
 */
#ifndef JQ_JOBTABLE_H
#define JQ_JOBTABLE_H

#include "postgres.h"

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "pool.h"
#include "utils/relcache.h"

/* columns of jobqueue_job */
enum
{
	JQ_COL_ID = 1,
	JQ_COL_ENQUEUED_AT,
	JQ_COL_HOME,
	JQ_COL_RUN_AT,
	JQ_COL_EXPIRES_AT,
	JQ_COL_OWNER,
	JQ_COL_FUNC_OWNER,
	JQ_COL_PRIORITY,
	JQ_COL_ATTEMPT,
	JQ_COL_MAX_ATTEMPTS,
	JQ_COL_CRASHES,
	JQ_COL_KIND,
	JQ_COL_QUEUE,
	JQ_COL_COMMAND,
	JQ_COL_ARGS,
	JQ_COL_KEY,
	JQ_COL_SEARCH_PATH,
	JQ_COL_SETTINGS,
	JQ_COL_TIMEOUT,
	JQ_COL_KEEP,
	JQ_COL_TAGS,
	JQ_COL_ERRORS
};
#define JQ_NCOLS 22

/* kinds of commands, as stored */
#define JQ_KIND_FUNCTION 'f' /* called directly, or by SELECT or CALL */
#define JQ_KIND_SQL 's'		 /* text, in the job's transaction */
#define JQ_KIND_OUTSIDE 'x'	 /* one statement outside a transaction block */

#define JQ_DEFAULT_MAX_ATTEMPTS 10

typedef struct JqTable
{
	Oid extension;
	Oid schema;
	char schema_name[NAMEDATALEN]; /* quoted */
	Oid owner;					   /* of the extension */
	Oid job;
	Oid pk;
	Oid ready;
	Oid due;
	Oid expiry;
	Oid key;
	Oid sequence;
	Oid archive;
	Oid queue_version; /* sequence */
	int64 home;
	Oid meta_database;
	bool plain; /* no columns, triggers, indexes of others:
								 * rows may be written without the executor */
} JqTable;

/* a row as the caller needs it; pointers are into the tuple */
typedef struct JqRow
{
	HeapTuple tuple; /* a copy, in the caller's context */
	ItemPointerData tid;
	Datum values[JQ_NCOLS];
	bool nulls[JQ_NCOLS];
} JqRow;

#define JQ_ROW(row, col) ((row)->values[(col) -1])
#define JQ_ROW_NULL(row, col) ((row)->nulls[(col) -1])

struct SnapshotData;

typedef enum JqFetch
{
	JQ_FETCH_FOUND,
	JQ_FETCH_GONE,	  /* proven: no row exists */
	JQ_FETCH_DOUBTFUL /* being deleted or moved by xid */
} JqFetch;

/* the tables of this database, or NULL: the extension is not here */
extern JqTable *jq_table(void);
/* ERROR if the extension is not here */
extern JqTable *jq_table_required(void);

/* write a new row; sets its TID */
extern void jq_row_insert(JqTable *t, Datum *values, bool *nulls,
						  ItemPointer tid);

/*
 * Read the row with that id, with the snapshot given or (NULL) one taken now: at
 * the TID if it is there, else by primary key.  The table's lock is released again.  If keep is
 * not NULL the snapshot stays registered and is stored there, for
 * jq_row_delete.
 */
extern JqFetch jq_row_fetch(JqTable *t, int64 id, ItemPointer tid,
							struct SnapshotData *given, JqRow *row,
							TransactionId *xid, struct SnapshotData **keep);

/*
 * Delete the row that jq_row_fetch found; waits for whoever has it locked.
 * false: it does not exist any more.  Unregisters the snapshot.
 */
extern bool jq_row_delete(JqTable *t, int64 id, JqRow *row,
						  struct SnapshotData *snapshot);

/* is a row due (and not expired), and where does it stand */
extern JqPos jq_row_pos(const JqRow *row);
extern char *jq_row_cstring(const JqRow *row, int col); /* palloc'd, or NULL */
/* is its result to stay in the history? */
extern bool jq_row_wants_keep(const JqRow *row);
extern int jq_row_max_attempts(const JqRow *row);

/*
 * Reading what is ready, past the planner.  A reader says what it has room for
 * and what it does not want; keys are palloc'd.
 */
typedef struct JqReader
{
	JqItem *items; /* result, in order; rows of another home are left out */
	int n;
	int max;
	int max_visits; /* live rows looked at */
	/* is the row to be left out (not 0), and counted in npassed (2)? */
	int (*pass)(const JqItem *item);
	int npassed;
	JqPos upto; /* everything before it has been read; ALL: to the end */
} JqReader;

/*
 * Ready rows of a lane from a position on, with the latest snapshot.  None of
 * them has an id below low_id, so that what lies below it is not even touched:
 * it may be millions of index entries of jobs that are done, and that somebody's
 * old snapshot keeps there.
 */
extern void jq_rows_ready(JqTable *t, const char *queue, Oid owner, JqPos from,
						  int64 low_id, JqReader *r);

/*
 * Count ready rows from a position on, at most max_visits of them: those not
 * before first that pass() does not leave out, and those of another home.
 * *upto as above.
 */
extern int64 jq_rows_count(JqTable *t, const char *queue, Oid owner, JqPos from,
						   JqPos first, int max_visits,
						   int (*pass)(const JqItem *item), int64 *held,
						   JqPos *upto);

/* does the lane have a ready row, of whatever home? */
extern bool jq_lane_has_rows(JqTable *t, const char *queue, Oid owner);

/*
 * Rows of a key from a position on, over all queues and owners: those that are
 * ready or due.
 */
typedef struct JqKeyRow
{
	JqItem item;
	Oid owner;
	char *queue;
} JqKeyRow;

extern int jq_rows_of_key(JqTable *t, const char *key, int keylen, JqPos from,
						  JqKeyRow *rows, int max, JqPos *upto);

/*
 * The lanes that the table has or had, in order, beginning after the one given
 * (queue NULL: with the first).  false: there are no more.  queue has
 * NAMEDATALEN bytes or more.
 */
extern bool jq_next_lane(JqTable *t, char *queue, Oid *owner, bool first);

/* ---- statements run as the extension's owner, on a safe search_path ---- */

/* between these two, SPI statements run as the owner */
typedef struct JqOwnerState
{
	Oid user;
	int sec_context;
	int nest;
	bool read_only;
} JqOwnerState;

extern void jq_owner_begin(JqTable *t, JqOwnerState *state);
extern void jq_owner_end(JqOwnerState *state);

/* "%s" in sql stands for the quoted schema, any number of times */
extern int jq_owner_execute(JqTable *t, const char *sql, int nargs, Oid *types,
							Datum *values, const char *nulls);

/* do statements of ours touch the tables just now? (for the row trigger) */
extern bool jq_bookkeeping;

#endif /* JQ_JOBTABLE_H */
