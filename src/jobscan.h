/*
 * jobscan.h
 *		Reading rows of jobqueue_job in the order of an index.
 */
#ifndef JQ_JOBSCAN_H
#define JQ_JOBSCAN_H

#include "jobtable.h"

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
	/* jobs without a command whose owner is one of those are left out */
	bool (*skip)(Oid owner);
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
 * ready or due.  low_id and skip as above.
 */
typedef struct JqKeyRow
{
	JqItem item;
	Oid lane_role;
	char *queue;
} JqKeyRow;

extern int jq_rows_of_key(JqTable *t, const char *key, int keylen, JqPos from,
						  int64 low_id, bool (*skip)(Oid owner), JqKeyRow *rows,
						  int max, JqPos *upto);

/*
 * Ordered queues: the first row of the queue and key before pos that was started
 * before, and is to run again.  false: there is none.
 */
extern bool jq_row_tried_before(JqTable *t, const char *queue, const char *key,
								int keylen, JqPos pos, JqPos *found,
								TimestampTz *run_at);

/*
 * The lanes that the table has or had, in order, beginning after the one given
 * (queue NULL: with the first).  false: there are no more.  queue has
 * NAMEDATALEN bytes or more.
 */
extern bool jq_next_lane(JqTable *t, char *queue, Oid *owner, bool first);

#endif /* JQ_JOBSCAN_H */
