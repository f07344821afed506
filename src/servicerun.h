/*
 * servicerun.h
 *		A message is handled.  See servicerun.c.
 */
#ifndef JQ_SERVICERUN_H
#define JQ_SERVICERUN_H

#include "jobtable.h"

/* what a message finds when it would be handled */
typedef enum JqServiceLook
{
	JQ_SERVICE_GO,
	JQ_SERVICE_FAILED, /* it waits until the service is started again */
	JQ_SERVICE_GONE,
	JQ_SERVICE_FOREIGN /* the service has another owner: jq_service_hand_over() */
} JqServiceLook;

extern JqServiceLook jq_service_look(JqTable *t, const JqRow *row);

/*
 * The message becomes one of the owner of its service, who is returned.  It was
 * sent by a transaction that had not ended when the service was given to that
 * role (or a superuser has written it).
 */
extern Oid jq_service_hand_over(JqTable *t, const JqRow *row);

/*
 * Handle a message in the open transaction, as the owner of its service, and
 * write the new state.  Returns the reply (*isnull: there is none).
 */
extern Datum jq_service_handle(JqRow *row, bool *isnull);

/* is it handling a message in this process, inline ones included? */
extern bool jq_service_is_handling(int64 service);

#endif /* JQ_SERVICERUN_H */
