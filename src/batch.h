/*
 * batch.h
 *		Several jobs of a lane in one transaction.
 */
#ifndef JQ_BATCH_H
#define JQ_BATCH_H

#include "claim.h"

/*
 * Worker: run the job in hand, and with it, if its queue says so, others of the
 * lane, all in all at most so many.  At return all is as after jq_run_claimed.
 * Returns how many it were.
 */
extern int jq_run_batch(JqClaimed *job, Oid role, const char *queue,
						int queue_ix, int most);

/* exit hook: what has not been committed goes back, all but the job in hand */
extern void jq_batch_give_back(void);

#endif /* JQ_BATCH_H */
