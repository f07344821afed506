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
#include "settings.h"
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
	JQ_COL_ERRORS,
	JQ_COL_KEEPS_ORDER,
	JQ_COL_UNIQUE_KEY,
	JQ_COL_UNIQUE_UNTIL,
	JQ_COL_UNIQUE_FOR,
	JQ_COL_ON_CONFLICT,
	JQ_COL_AFTER,
	JQ_COL_AFTER_RUN_AT
};
#define JQ_NCOLS 29

/* kinds of commands, as stored */
#define JQ_KIND_FUNCTION 'f' /* called directly, or by SELECT or CALL */
#define JQ_KIND_SQL 's'		 /* text, in the job's transaction */
#define JQ_KIND_OUTSIDE 'x'	 /* one statement outside a transaction block */
#define JQ_KIND_MESSAGE 'm'	 /* to a service; see service.c */
#define JQ_KIND_NONE 'n'	 /* no command: outside consumers fetch it */

/* SQL: the role of its lane */
#define JQ_LANE_ROLE "CASE WHEN command IS NULL THEN 1::oid ELSE owner::oid END"

#define JQ_DEFAULT_MAX_ATTEMPTS 10
#define JQ_DEFAULT_TIMEOUT_US USECS_PER_HOUR

/* a name, quoted, and its end */
#define JQ_QUOTED_MAX (2 * NAMEDATALEN + 2)

typedef struct JqTable
{
	Oid extension;
	Oid schema;
	char schema_name[JQ_QUOTED_MAX]; /* quoted; see jq_table_schema */
	Oid owner;						 /* of the extension */
	Oid meta;
	Oid job;
	Oid pk;
	Oid ready;
	Oid fetch;
	Oid due;
	Oid expiry;
	Oid key;
	Oid tried;
	Oid sequence;
	Oid archive;
	Oid queue_version; /* sequence */
	Oid consumer;
	Oid paused_role; /* InvalidOid: the SQL objects are of 1.0 */
	Oid unique;
	Oid unique_pk;
	Oid unique_expiry;
	char version[16]; /* of the SQL objects */
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
/*
 * Are the SQL objects newer than this library?  Then jq_table() is an ERROR.
 * Their version is copied to buf.
 */
extern bool jq_table_is_newer(char *buf, Size size);
/* the extension was updated: whatever processes know of it is looked up anew */
extern void jq_table_changed(void);
/* moves when jobqueue_consumer may have changed */
extern uint32 jq_table_consumers_generation;
/* is it one of the tables that jobs are in?  Looks nothing up. */
extern bool jq_table_is_queue(Oid relid);
/* ERROR if the extension is not here */
extern JqTable *jq_table_required(void);

/* the id that was given last; 0: none */
extern int64 jq_last_job_id(JqTable *t);

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

/* ---- jobrow.c ---- */

/* the role of its lane */
extern Oid jq_row_lane_role(const JqRow *row);
/* is a row due (and not expired), and where does it stand */
extern JqPos jq_row_pos(const JqRow *row);
extern char *jq_row_cstring(const JqRow *row, int col); /* palloc'd, or NULL */
/* what holds for the job: its own value, or that of its queue */
extern bool jq_row_wants_keep(const JqRow *row, const JqQueueSettings *q);
extern int jq_row_max_attempts(const JqRow *row, const JqQueueSettings *q);
extern int64 jq_row_timeout_us(const JqRow *row, const JqQueueSettings *q);
/* its key is not copied */
extern void jq_row_item(JqItem *item, const JqRow *row);
/*
 * Is the row what was said of it, and due?  *item and *run_at (DT_NOBEGIN: due)
 * are what it is.
 */
extern bool jq_row_is(const JqRow *row, Oid lane_role, const char *queue,
					  int priority, const char *key, int keylen, JqItem *item,
					  TimestampTz *run_at);

/* ---- jobtable.c ---- */

/*
 * A slot for rows of jobqueue_job, for one read at a time; begin and end go
 * together unless there is an error.
 */
extern struct TupleTableSlot *jq_read_begin(void);
extern void jq_read_end(void);

/* as the index on keys has it */
extern Datum jq_key_hash(Datum key);

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
/*
 * The same with a plan that is made once in a process, and again if the text is
 * another one, for what has to be quick; what is kept of it is in *kept, static and
 * zero at first.
 */
typedef struct JqKept
{
	char *text;
	void *plan; /* SPIPlanPtr */
} JqKept;

extern void jq_owner_execute_kept(JqTable *t, JqKept *kept, const char *sql,
								  int nargs, Oid *types, Datum *values,
								  const char *nulls);
/* the text that they run */
extern char *jq_owner_statement(JqTable *t, const char *sql);
/* the name of our schema as it is now, quoted; good until the next call */
extern const char *jq_table_schema(JqTable *t);

/*
 * The same for a query, with the latest snapshot: it sees what has committed,
 * and what this transaction has written, at whatever isolation level.
 */
extern void jq_owner_read(JqTable *t, const char *sql, int nargs, Oid *types,
						  Datum *values, const char *nulls);

/*
 * A statement with the transaction's snapshot has not found the row.  If it is
 * there, the transaction cannot go on: ERROR; its abort lets the job run.
 */
extern void jq_row_must_be_gone(JqTable *t, int64 id);

/* do statements of ours touch the tables just now? (for the row trigger) */
extern bool jq_bookkeeping;

#endif /* JQ_JOBTABLE_H */
