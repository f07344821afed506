/*
 * runjob.h
 *		Running one job.
 */
#ifndef JQ_RUNJOB_H
#define JQ_RUNJOB_H

#include "claim.h"
#include "injob.h"
#include "jobtable.h"

/* the job that runs in this process, for jobqueue_current() */
typedef struct JqCurrent
{
	int64 id; /* 0 = none */
	char *queue;
	char *key;
	int attempt;
	int max_attempts;
	TimestampTz enqueued_at;
	JqSnooze *snooze; /* see injob.c; both in TopMemoryContext */
	char *discarded;
} JqCurrent;

extern JqCurrent jq_current_job;

/*
 * Execute the command of a row in the open transaction, with the current user's
 * rights.  The result, as jsonb, is allocated in the current context (*isnull:
 * there is none).  Kind JQ_KIND_OUTSIDE is not for this function.
 */
extern Datum jq_execute(JqRow *row, bool *isnull);

/*
 * The same of the handler of a service, whose signature it is; NULL is for the
 * caller to judge.
 */
extern Datum jq_execute_handler(const char *handler, Oid func_owner,
								Datum state, Datum message, bool message_null,
								bool *isnull);

/* let the search_path and settings of the row hold to the transaction's end */
extern void jq_apply_environment(JqRow *row);
/* the same until the present nesting level of settings ends */
extern void jq_apply_environment_nested(JqRow *row);

/* has the job in hand passed its timeout? */
extern bool jq_run_timed_out(void);

/*
 * Worker: run the job in hand, whatever comes.  At return no transaction is
 * open, the key is free, and the claim is ended or in the table of held claims.
 */
extern void jq_run_claimed(JqClaimed *job, Oid role, const char *queue,
						   int queue_ix);

/* no job for a while: no timer either */
extern void jq_run_idle(void);

#endif /* JQ_RUNJOB_H */
