/*
 * shmem.h
 *		The fixed shared memory of jobqueue: what it consists of, in which
 *		order its locks are taken.
 *
 * Lock order, from first to last.  Nobody waits for a lock that stands before
 * one he holds; two locks of one line are never held together, except where a
 * comment says so.
 *
 *		JQ_LOCK_DIR			directory of databases, lanes, groups, queues
 *		lane locks			one a lane
 *		key locks			one a partition of the key table
 *		limit locks			limits of queues
 *		JQ_LOCK_CLAIM		claims that no worker slot stands for
 *		JQ_LOCK_FETCHED		claims of outside consumers
 *		JQ_LOCK_SLOT		worker slots, idle lists of groups, consumers that wait
 *		JQ_LOCK_DB			requests to schedulers, due times
 *		JQ_LOCK_PREPARED	prepared transactions that enqueued
 *		recent locks		cells of the ring of ended jobs
 *		JQ_LOCK_PAUSE		pause points (test builds)
 *		JQ_LOCK_AFTER		jobs that others wait for
 *		JQ_LOCK_QUOTA		quotas of roles
 *		JQ_LOCK_WAITER		who waits for which job
 *
 * Under these locks nothing allocates, raises an error, touches a catalog or
 * waits.  Latches are set after they are released.
 */
#ifndef JQ_SHMEM_H
#define JQ_SHMEM_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "utils/timestamp.h"

#define JQ_QUEUE_NAME_MAX 63 /* bytes of a queue's name */
#define JQ_KEY_MAX 255		 /* bytes of a key */
#define JQ_BATCH_MAX 100	 /* jobs that may share a transaction */

typedef enum JqLockId
{
	JQ_LOCK_DIR,
	JQ_LOCK_CLAIM,
	JQ_LOCK_SLOT,
	JQ_LOCK_DB,
	JQ_LOCK_PREPARED,
	JQ_LOCK_PAUSE,
	JQ_LOCK_AFTER,
	JQ_LOCK_QUOTA,
	JQ_LOCK_WAITER,
	JQ_LOCK_FETCHED,
	JQ_NUM_LOCKS
} JqLockId;

#define JQ_KEY_PARTITIONS 16
#define JQ_RECENT_LOCKS 16
#define JQ_LIMIT_LOCKS 16

/*
 * Fields without a lock named are set once, before anybody else looks.
 */
typedef struct JqShared
{
	uint32 abi;				/* JQ_ABI of the library that made this */
	TimestampTz start_time; /* when jobs could run first, see launcher.c */
	int nentries;			/* size of the pool */
	int nlanes;				/* size of each directory */
	int nqueues;			/* more: some stand there for their settings */
	int ndbs;
	int nslots;

	/* full transaction id that was next then; 0: the launcher was not there yet */
	pg_atomic_uint64 start_xid;

	pg_atomic_uint64 pool_head; /* free entries: (tag << 32) | index */
	pg_atomic_uint32 pool_nfree;
	pg_atomic_uint32 starved;	   /* a lane wanted entries and got none */
	pg_atomic_uint32 nheld;		   /* entries of the claim table */
	pg_atomic_uint32 nfetched;	   /* claims of consumers, or about to be */
	pg_atomic_uint32 fetched_keys; /* keys of theirs */
	pg_atomic_uint32 fetched_full; /* a consumer found no room for a claim */
	pg_atomic_uint64
		last_flush; /* TimestampTz: when a worker flushed the WAL */
	pg_atomic_uint32 flush_cost;   /* us: how long that took */
	pg_atomic_uint64 recent_next;  /* next cell of the ring */
	pg_atomic_uint32 spilled_keys; /* keys that have rows in the table only */
	pg_atomic_uint32 keys_full;	   /* a worker found no place for a key */
	pg_atomic_uint64 limits_due;   /* earliest wake_at of all; see limit.c */
	pg_atomic_uint32 key_orders;   /* orders noted in keys; see keyorder.c */
	pg_atomic_uint64 order_number; /* of the last one */
	pg_atomic_uint32 breaks_cycle; /* pid that is at it; see waitgraph.c */
#ifdef JQ_TESTING
	pg_atomic_uint64 clock_offset; /* us; see clock.h */
#endif

	int launcher_procno;	/* JQ_LOCK_SLOT; -1 = none */
	int launcher_pid;		/* JQ_LOCK_SLOT */
	uint64 next_generation; /* JQ_LOCK_SLOT */
	bool scan_databases;	/* JQ_LOCK_DB: the launcher is to look */
	bool schedulers_wanted; /* JQ_LOCK_DB: there are too few, see launcher.c */
	TimestampTz slots_full_warned; /* launcher only */
	TimestampTz slots_full_at;	   /* launcher writes: no slot was left then */
} JqShared;

extern JqShared *jq_shared;

#define JQ_ABI 2

extern void jq_shmem_init_hooks(void);
extern bool jq_shmem_ready(void);

/* ERROR with a hint unless the library was preloaded */
extern void jq_shmem_check(void);
/* ERROR with a hint on a standby, for what writes or acts on jobs and keys */
extern void jq_check_primary(const char *function);

extern LWLock *jq_lock(JqLockId id);
extern LWLock *jq_lane_lock(int lane);
extern LWLock *jq_key_lock(int partition);
extern LWLock *jq_recent_lock(int cell);
extern LWLock *jq_limit_lock(int queue_ix);

#include "lockstat.h"

#endif /* JQ_SHMEM_H */
