/*
 * wait.h
 *		jobqueue_wait(): sleep until jobs have ended.
 */
#ifndef JQ_WAIT_H
#define JQ_WAIT_H

/*
 * Called by whoever sleeps in jobqueue_wait(), without any lock, each time that
 * deadlock_timeout has passed: an ERROR ends the wait.  For cycles that go through
 * such a wait: jq_waiter_of() has its edges.
 */
extern void (*jq_wait_cycle_hook)(void);

#endif /* JQ_WAIT_H */
