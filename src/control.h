/*
 * control.h
 *		What functions that act on one job have in common.
 */
#ifndef JQ_CONTROL_H
#define JQ_CONTROL_H

#include "fmgr.h"
#include "jobtable.h"

/* a waiting job, found and held for this transaction */
typedef struct JqHeldJob
{
	JqRow row;
	Oid owner;
	Oid lane_role; /* of its lane */
	char *queue;
	JqItem item;
	TimestampTz run_at; /* DT_NOBEGIN: it is ready */
} JqHeldJob;

/* may this session call such a function? */
extern JqTable *jq_control_begin(const char *function);
/*
 * ERROR: a role whose function an index or a materialized view calls is not to use
 * the keys and the claims of the session that builds it.
 */
extern void jq_control_not_restricted(const char *function);
/* the first argument */
extern int64 jq_control_id(FunctionCallInfo fcinfo);

/*
 * Find the row and claim it for the transaction, which gives it back at its end;
 * if it commits, what is still to run is for the caller to publish.  A job that
 * is claimed by somebody else is left to him; *running tells whether by a
 * worker.  false: not claimed.  ERROR if the caller may not act on it.
 */
extern bool jq_control_hold(JqTable *t, int64 id, JqHeldJob *h, bool *running);

/* a waiting job gets its run_at taken away; see alter.c */
extern bool jq_job_run_now(JqTable *t, int64 id);

/*
 * The row has come back into the table in this transaction.  Whoever had claimed
 * the job that ended may have the claim still, and what is published while he has
 * it is dropped as a duplicate: wait until he has let it go.
 */
extern void jq_control_await(JqTable *t, int64 id);

#endif /* JQ_CONTROL_H */
