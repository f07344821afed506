/*
 * service.h
 *		Services: named, durable actors.  See service.c.
 */
#ifndef JQ_SERVICE_H
#define JQ_SERVICE_H

#include "failure.h"
#include "jobtable.h"

/* SQLSTATE of jobqueue_call() when there is no reply in time */
#define JQ_ERRCODE_NO_REPLY MAKE_SQLSTATE('J', 'Q', '0', '0', '2')

/* what a message finds when it would be handled */
typedef enum JqServiceLook
{
	JQ_SERVICE_GO,
	JQ_SERVICE_FAILED, /* it waits until the service is started again */
	JQ_SERVICE_GONE
} JqServiceLook;

extern JqServiceLook jq_service_look(JqTable *t, const JqRow *row);

/*
 * In a transaction of its own: the message waits as long as its service has
 * failed.  false: it was started again meanwhile, and nothing has been done.
 */
extern bool jq_service_put_off(JqTable *t, int64 id, const char *key);

/*
 * Handle a message in the open transaction, as the owner of its service, and
 * write the new state.  Returns the reply (*isnull: there is none).
 */
extern Datum jq_service_handle(JqRow *row, bool *isnull);

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

#endif /* JQ_SERVICE_H */
