/*
 * shmem.c
 *		Sizing and start of the shared memory.
 *
 * The start-up hook runs in the postmaster once for each life of shared memory:
 * at server start and again after a crash restart.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "after.h"
#include "claim.h"
#include "consumer.h"
#include "directory.h"
#include "fetched.h"
#include "fmgr.h"
#include "guc.h"
#include "inflight.h"
#include "keylock.h"
#include "looks.h"
#include "miscadmin.h"
#include "pause.h"
#include "pausedrole.h"
#include "pool.h"
#include "prepared.h"
#include "progress.h"
#include "quota.h"
#include "recent.h"
#include "shmem.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "structbench.h"
#include "utils/builtins.h"
#include "waiter.h"
#include "xids.h"

JqShared *jq_shared;

static LWLockPadded *locks;
static LWLockPadded *lane_locks;
static LWLockPadded *key_locks;
static LWLockPadded *recent_locks;
static LWLockPadded *limit_locks;

static shmem_request_hook_type prev_request_hook;
static shmem_startup_hook_type prev_startup_hook;

LWLock *
jq_lock(JqLockId id)
{
	return &locks[id].lock;
}

LWLock *
jq_lane_lock(int lane)
{
	return &lane_locks[lane].lock;
}

LWLock *
jq_key_lock(int partition)
{
	return &key_locks[partition].lock;
}

LWLock *
jq_recent_lock(int cell)
{
	return &recent_locks[cell % JQ_RECENT_LOCKS].lock;
}

LWLock *
jq_limit_lock(int queue_ix)
{
	return &limit_locks[queue_ix % JQ_LIMIT_LOCKS].lock;
}

static void
shmem_request(void)
{
	Size size = MAXALIGN(sizeof(JqShared));

	if (prev_request_hook)
		prev_request_hook();
	size = add_size(size, jq_pool_size());
	size = add_size(size, jq_directory_size());
	size = add_size(size, jq_slot_size());
	size = add_size(size, jq_claim_size());
	size = add_size(size, jq_keylock_size());
	size = add_size(size, jq_recent_size());
	size = add_size(size, jq_inflight_size());
	size = add_size(size, jq_looks_size());
	size = add_size(size, jq_prepared_size());
	size = add_size(size, jq_xids_size());
	size = add_size(size, jq_after_size());
	size = add_size(size, jq_progress_size());
	size = add_size(size, jq_quota_size());
	size = add_size(size, jq_waiter_size());
	size = add_size(size, jq_fetched_size());
	size = add_size(size, jq_consumer_size());
	size = add_size(size, jq_paused_role_size());
#ifdef JQ_TESTING
	size = add_size(size, jq_pause_size());
	size = add_size(size, jq_bench_size());
#endif
#ifdef JQ_LOCKSTAT
	size = add_size(size, jq_lockstat_size());
#endif
	RequestAddinShmemSpace(size);
	RequestNamedLWLockTranche("jobqueue", JQ_NUM_LOCKS);
	RequestNamedLWLockTranche("jobqueue_lane", jobqueue_max_lanes);
	RequestNamedLWLockTranche("jobqueue_key", JQ_KEY_PARTITIONS);
	RequestNamedLWLockTranche("jobqueue_recent", JQ_RECENT_LOCKS);
	RequestNamedLWLockTranche("jobqueue_limit", JQ_LIMIT_LOCKS);
}

static void
shmem_startup(void)
{
	bool found;

	if (prev_startup_hook)
		prev_startup_hook();

	jq_shared = NULL;
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	locks = GetNamedLWLockTranche("jobqueue");
	lane_locks = GetNamedLWLockTranche("jobqueue_lane");
	key_locks = GetNamedLWLockTranche("jobqueue_key");
	recent_locks = GetNamedLWLockTranche("jobqueue_recent");
	limit_locks = GetNamedLWLockTranche("jobqueue_limit");
	jq_shared = ShmemInitStruct("jobqueue", sizeof(JqShared), &found);
	if (!found)
	{
		memset(jq_shared, 0, sizeof(JqShared));
		jq_shared->abi = JQ_ABI;
		jq_shared->start_time = GetCurrentTimestamp();
		pg_atomic_init_u64(&jq_shared->start_xid, 0);
		jq_shared->nlanes = jobqueue_max_lanes;
		jq_shared->nqueues = 2 * jobqueue_max_lanes;
		jq_shared->ndbs = jobqueue_max_databases;
		jq_shared->launcher_procno = -1;
		pg_atomic_init_u32(&jq_shared->starved, 0);
		pg_atomic_init_u32(&jq_shared->nheld, 0);
		pg_atomic_init_u32(&jq_shared->nfetched, 0);
		pg_atomic_init_u32(&jq_shared->fetched_keys, 0);
		pg_atomic_init_u32(&jq_shared->fetched_full, 0);
		pg_atomic_init_u32(&jq_shared->spilled_keys, 0);
		pg_atomic_init_u64(&jq_shared->last_flush, 0);
		pg_atomic_init_u32(&jq_shared->flush_cost, 0);
		pg_atomic_init_u32(&jq_shared->keys_full, 0);
		pg_atomic_init_u64(&jq_shared->limits_due, 0);
		pg_atomic_init_u32(&jq_shared->key_orders, 0);
		pg_atomic_init_u64(&jq_shared->order_number, 0);
		pg_atomic_init_u32(&jq_shared->breaks_cycle, 0);
#ifdef JQ_TESTING
		pg_atomic_init_u64(&jq_shared->clock_offset, 0);
#endif
	}
	jq_pool_init();
	jq_directory_init();
	jq_slot_init();
	jq_claim_init();
	jq_keylock_init();
	jq_recent_init();
	jq_inflight_init();
	jq_looks_init();
	jq_prepared_init();
	jq_xids_init();
	jq_after_init();
	jq_progress_init();
	jq_quota_init();
	jq_waiter_init();
	jq_fetched_init();
	jq_consumer_init();
	jq_paused_role_init();
#ifdef JQ_TESTING
	jq_pause_init();
	jq_bench_init();
#endif
#ifdef JQ_LOCKSTAT
	jq_lockstat_init();
#endif
	LWLockRelease(AddinShmemInitLock);
}

void
jq_shmem_init_hooks(void)
{
	prev_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

bool
jq_shmem_ready(void)
{
	return jq_shared != NULL && jq_shared->abi == JQ_ABI;
}

void
jq_shmem_check(void)
{
	if (jq_shared == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("jobqueue is not loaded"),
						errhint("Add jobqueue to shared_preload_libraries and "
								"restart the server.")));
	if (jq_shared->abi != JQ_ABI)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the server runs another version of jobqueue"),
						errhint("Restart the server.")));
}

void
jq_check_primary(const char *function)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s during recovery", function),
				 errhint(
					 "This server is a standby: connect to the primary, for "
					 "example with target_session_attrs=read-write.")));
}

#ifdef JQ_TESTING
/* what is in use, by all databases: for tests that look for what is left over */
PG_FUNCTION_INFO_V1(jq_memory_use);
Datum
jq_memory_use(PG_FUNCTION_ARGS)
{
	int nlanes = 0, nqueues = 0;
	int i;

	(void) fcinfo;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	for (i = 0; i < jq_shared->nlanes; i++)
		nlanes += jq_lanes[i].nclaimed > 0 || jq_lanes[i].nready > 0 ||
				  pg_atomic_read_u32(&jq_lanes[i].nparked) > 0;
	for (i = 0; i < jq_shared->nqueues; i++)
		nqueues += OidIsValid(jq_queues[i].db) && jq_queues[i].pinned;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(
		"entries %d, lanes %d, queues %d, held %u, fetched %u, spilled keys %u, orders %u",
		jq_shared->nentries - (int) pg_atomic_read_u32(&jq_shared->pool_nfree),
		nlanes, nqueues, pg_atomic_read_u32(&jq_shared->nheld),
		pg_atomic_read_u32(&jq_shared->nfetched),
		pg_atomic_read_u32(&jq_shared->spilled_keys),
		pg_atomic_read_u32(&jq_shared->key_orders))));
}
#endif
