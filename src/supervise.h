/*
 * supervise.h
 *		What becomes of a service and its messages when one of them fails.
 *		See supervise.c.
 */
#ifndef JQ_SUPERVISE_H
#define JQ_SUPERVISE_H

#include "failure.h"
#include "jobtable.h"

/*
 * In a transaction of its own: the message waits as long as its service has
 * failed.  false: it was started again meanwhile, and nothing has been done.
 */
extern bool jq_service_put_off(JqTable *t, int64 id, const char *key);

/* what becomes of a message that failed, in the transaction that records it */
typedef enum JqServiceFailure
{
	JQ_SERVICE_RETRY, /* at once */
	JQ_SERVICE_STALL, /* when the service is started again */
	JQ_SERVICE_DROP	  /* *reason says why */
} JqServiceFailure;

extern JqServiceFailure jq_service_failed(JqTable *t, int64 id, const char *key,
										  const JqFailure *f,
										  const char **reason);

/*
 * The row of the service goes, and what still waits for it is cancelled, except
 * for one job, which its caller ends.
 */
extern void jq_service_end(JqTable *t, int64 id, const char *name, int64 but);

/* what waits for it to be started again may go */
extern void jq_service_resume(JqTable *t, int64 service);

#endif /* JQ_SUPERVISE_H */
