/*
 * lockstat.h
 *		How often each kind of lock is taken, for how long, and who had to wait.
 *		Compiled in with -DJQ_LOCKSTAT only; included by shmem.h, so that every
 *		LWLockAcquire() and LWLockRelease() of ours is counted.
 */
#ifndef JQ_LOCKSTAT_H
#define JQ_LOCKSTAT_H

#ifdef JQ_LOCKSTAT
#include "storage/lwlock.h"

/* the single locks come first, as in JqLockId */
typedef enum JqLockKind
{
	JQ_KIND_LANE = JQ_NUM_LOCKS,
	JQ_KIND_KEY,
	JQ_KIND_RECENT,
	JQ_KIND_LIMIT,
	JQ_KIND_OTHER, /* not of jobqueue */
	JQ_NUM_LOCK_KINDS
} JqLockKind;

/*
 * Written by the process that takes the locks.  Times in nanoseconds, without
 * the cost of reading the clock.  What is held for longer than JQ_LONG_HOLD_NS
 * counts as interrupted (its process lost the processor) and stands apart; it
 * is contained in held, held_ns and the maximum.
 */
#define JQ_LONG_HOLD_NS 50000

typedef struct JqLockCount
{
	uint64 held;
	uint64 held_ns;
	uint64 held_max;
	uint64 long_held;
	uint64 long_ns;
	uint64 waits; /* acquisitions that did not succeed at once */
	uint64 wait_ns;
	uint64 wait_max;
} JqLockCount;

extern Size jq_lockstat_size(void);
extern void jq_lockstat_init(void);

extern const char *jq_lockstat_name(int kind);
/* this process's own counts, one for each kind */
extern JqLockCount *jq_lockstat_mine(void);
/* what reading the clock adds to a hold and has been subtracted */
extern uint64 jq_lockstat_clock_ns(void);
extern uint64 jq_lockstat_now(void); /* nanoseconds since some moment */

extern bool jq_lockstat_acquire(LWLock *lock, LWLockMode mode);
extern void jq_lockstat_release(LWLock *lock);
extern void jq_lockstat_release_all(void);

#ifndef JQ_LOCKSTAT_C
#define LWLockAcquire(lock, mode) jq_lockstat_acquire(lock, mode)
#define LWLockRelease(lock) jq_lockstat_release(lock)
#define LWLockReleaseAll() jq_lockstat_release_all()
#endif
#endif /* JQ_LOCKSTAT */

#endif /* JQ_LOCKSTAT_H */
