/*
 * consumer.h
 *		Sessions that wait for jobs to fetch.
 */
#ifndef JQ_CONSUMER_H
#define JQ_CONSUMER_H

#include "directory.h"

extern Size jq_consumer_size(void);
extern void jq_consumer_init(void);

/*
 * This session waits for jobs of that queue, from now on until it calls
 * jq_consumer_stop.  So what comes after this wakes it; what came before it has
 * to look for.  false: there is no place for the queue.
 */
extern bool jq_consumer_wait(const char *queue);
/*
 * It does not wait any more; *place is what it was given, or none.  Was it woken
 * for a job?
 */
extern bool jq_consumer_stop(JqPlace *place);
/* was it woken?  It waits no more then, but is to call jq_consumer_stop. */
extern bool jq_consumer_called(void);
/* the same when it does not want a job after all: another one is woken */
extern void jq_consumer_leave(void);
/* might there be a job in its lane? */
extern bool jq_consumer_may_have(const char *queue);
/* memory has none, and is about to be told what the table has */
extern bool jq_consumer_is_behind(const char *queue);

/* ---- of consumers of a group, for those who wake workers; see slot.c ---- */

/* wake up to n of them */
extern void jq_consumer_wake(int group, int n);
/*
 * The one that has waited longest gets the place; its procno, whose latch the
 * caller sets; -1: nobody waits.
 */
extern int jq_consumer_call(int group, const JqPlace *place);

#endif /* JQ_CONSUMER_H */
