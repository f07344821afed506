/*
 * ondead.h
 *		on_dead: a function that is called with each dead job of a queue.
 */
#ifndef JQ_ONDEAD_H
#define JQ_ONDEAD_H

#include "jobtable.h"

/* the queue of these calls; it has no on_dead of its own */
#define JQ_ON_DEAD_QUEUE "on_dead"

/* what is stored of a function that the current user names; ERROR if it is none */
extern const char *jq_on_dead_resolve(const char *queue, const char *function,
									  Oid *func_owner);

/*
 * The job is in the archive, dead, in this transaction: enqueue the call that its
 * queue asks for, if it does.
 */
extern void jq_on_dead(JqTable *t, int64 id);

#endif /* JQ_ONDEAD_H */
