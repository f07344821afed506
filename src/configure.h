/*
 * configure.h
 *		Settings of queues: the table, and the functions that change it.
 */
#ifndef JQ_CONFIGURE_H
#define JQ_CONFIGURE_H

#include "jobtable.h"
#include "queue.h"

/* all rows of jobqueue_queue, in the current context; a snapshot is active */
extern JqQueueRow *jq_settings_read(JqTable *t, int *n);
/* of one queue, as the table has them; a snapshot is active */
extern void jq_settings_of_queue(JqTable *t, const char *queue,
								 JqQueueSettings *out);

#endif /* JQ_CONFIGURE_H */
