/*
 * control.h
 *		What functions that act on a waiting job have in common.
 */
#ifndef JQ_CONTROL_H
#define JQ_CONTROL_H

#include "jobtable.h"

/* a waiting job, found and held for this transaction */
typedef struct JqHeldJob
{
	JqRow row;
	Oid owner;
	char *queue;
	JqItem item;
	TimestampTz run_at;
} JqHeldJob;

/*
 * Find the row and claim it to the end of the transaction.  A job that is claimed
 * by a worker is left to him (*running).  false: not claimed.  ERROR if the
 * current user may not act on it.
 */
extern bool jq_hold_waiting(JqTable *t, int64 id, JqHeldJob *h, bool *running);

/*
 * The row was not found by a statement with the transaction's snapshot: ERROR
 * (serialization failure) if it is there.
 */
extern void jq_must_be_gone(JqTable *t, int64 id);

#endif /* JQ_CONTROL_H */
