/*
 * injob.h
 *		What a job may say about itself while it runs: progress, snooze, discard.
 */
#ifndef JQ_INJOB_H
#define JQ_INJOB_H

#include "jobtable.h"
#include "utils/elog.h"

/* SQLSTATE of jobqueue_discard() */
#define JQ_ERRCODE_DISCARDED MAKE_SQLSTATE('J', 'Q', '0', '0', '1')

/* a wish of the job, by nesting level of transactions */
typedef struct JqSnooze JqSnooze;

/*
 * jq_current_job becomes another job, or none: it has said nothing yet.  Frees
 * what the one before has said, unless that has been copied away.
 */
extern void jq_injob_forget(void);

/* has the present job asked to be run again, and after what time? */
extern bool jq_snooze_wanted(Interval *delay);

/*
 * Write the row so that it waits for now + delay, in the open transaction.  Sets
 * its run_at and new TID.  false: it is gone.
 */
extern bool jq_snooze_row(JqTable *t, int64 id, Interval *delay,
						  TimestampTz *run_at, ItemPointer tid);

/*
 * Worker: the open transaction has written the row of the job in hand so.  From
 * its commit on the loss of this process costs the job nothing.
 */
extern void jq_snooze_at_commit(void);

/* is this error the discard of the present job? its reason, or NULL */
extern const char *jq_discard_reason(const ErrorData *error);

#endif /* JQ_INJOB_H */
