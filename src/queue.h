/*
 * queue.h
 *		Settings of queues in memory.
 *
 * The table jobqueue_queue has them; memory has those that are in force.  Each
 * change of a row has a version, and of two versions memory takes the higher
 * one, whoever comes first.
 */
#ifndef JQ_QUEUE_H
#define JQ_QUEUE_H

#include "directory.h"

/* a row of jobqueue_queue; what has no row has the defaults */
typedef struct JqQueueRow
{
	char name[JQ_QUEUE_NAME_MAX + 1];
	int64 version;
	bool paused;
	JqQueueSettings settings;
} JqQueueRow;

/*
 * The settings of a queue in memory that are in force now, all of one version.
 * Takes no lock and does not wait, so it may be called under any; the place must
 * not be reused meanwhile: a lane of it is claimed from, or held, or JQ_LOCK_DIR.
 */
extern void jq_queue_settings(int queue_ix, JqQueueSettings *out);

/*
 * After the commit of a change: from the return of this on no job of a paused
 * queue is taken; a queue that may run again is served.  Never fails.
 */
extern void jq_queue_apply(Oid db, const JqQueueRow *row);

/*
 * Somebody has changed rows in a way that we do not know: nothing of the
 * database is taken until the scheduler has read the table.  Never fails.
 */
extern void jq_queue_forget(Oid db);

/* ---- scheduler ---- */

/* what memory knew before the table was read */
typedef struct JqQueueSeen
{
	uint32 forgotten;
	int64 versions[FLEXIBLE_ARRAY_MEMBER]; /* -1: not of this database */
} JqQueueSeen;

/* before the snapshot; palloc'd */
extern JqQueueSeen *jq_queue_load_begin(int dbix);
/* all rows, as the snapshot shows them; false: some found no place */
extern bool jq_queue_load(int dbix, const JqQueueSeen *seen,
						  const JqQueueRow *rows, int n);

#endif /* JQ_QUEUE_H */
