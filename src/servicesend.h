/*
 * servicesend.h
 *		A message to a service.  See servicesend.c.
 */
#ifndef JQ_SERVICESEND_H
#define JQ_SERVICESEND_H

#include "datatype/timestamp.h"
#include "servicerow.h"

/*
 * A job for the service; run_at DT_NOBEGIN: at once.  keep, or NULL: somebody waits
 * for a reply, which may be too long for the ring.  Returns the id.
 */
extern int64 jq_service_send(JqTable *t, const JqService *s, Datum message,
							 TimestampTz run_at, Interval *keep);

/* ERROR if the second argument of a function is null */
extern void jq_service_check_message(FunctionCallInfo fcinfo);

#endif /* JQ_SERVICESEND_H */
