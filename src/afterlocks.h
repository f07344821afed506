/*
 * afterlocks.h
 *		What the end of a transaction does once PostgreSQL's locks are released.
 *
 * Whoever gets a key, or a job, of this transaction must not meet its locks: it
 * may ask for them without waiting.  And of what jobqueue itself lets go, nothing
 * may be in the way of what comes after it.  So there is one order for all of it,
 * whichever part of the library was used first in this process.
 */
#ifndef JQ_AFTERLOCKS_H
#define JQ_AFTERLOCKS_H

typedef enum JqAfterLocks
{
	JQ_AFTER_LOCKS_KEYS,	  /* those of jobqueue_lock() */
	JQ_AFTER_LOCKS_TELL,	  /* whoever waits for what has run here */
	JQ_AFTER_LOCKS_FETCHED,	  /* claims of consumers */
	JQ_AFTER_LOCKS_HELD,	  /* claims of sessions, and the keys with them */
	JQ_AFTER_LOCKS_EXECUTING, /* the unique_key of a worker's job */
	JQ_AFTER_LOCKS_PUBLISH,	  /* what has been enqueued */
	JQ_AFTER_LOCKS_STEPS
} JqAfterLocks;

/*
 * The transaction (top) has ended, or a subtransaction was rolled back.  Or neither:
 * a portal that failed may be all that has, so the step has to know by itself what
 * there is to do.  It must not fail.
 */
typedef void (*JqAfterLocksStep)(bool commit, bool top);

extern void jq_after_locks(JqAfterLocks place, JqAfterLocksStep step);

#endif
