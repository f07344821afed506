/*
 * structbench.c
 *		The shared structures by themselves: no table, no transaction a job.
 *
 * Sessions call jq_bench_structures() at the same time and do to the structures
 * what publishers, workers and the scheduler do, on jobs of a database that
 * does not exist.  Where a worker's slot is needed the session reserves one and
 * gives it back at the end.  The server must not run jobs (jobqueue.enabled =
 * off), so that nobody else touches them.
 *
 * Sessions that measure together meet twice: before the clocks start and after
 * the last one has ended, so that nobody cleans up under the others.
 */
#include "postgres.h"

#include "structbench.h"

#ifdef JQ_TESTING

#include <time.h>

#include "claim.h"
#include "common/pg_prng.h"
#include "database.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "publish.h"
#include "recent.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"

#define BENCH_DB ((Oid) 4294967290U)
#define BENCH_ROLE ((Oid) 4294900000U) /* and the numbers after it */
#define BENCH_QUEUE "bench"
#define BENCH_BULK 64

typedef struct JqBench
{
	pg_atomic_uint32 arrived;
	pg_atomic_uint32 number; /* of the next session */
	pg_atomic_uint64 next_id;
} JqBench;

/* what one session needs */
typedef struct Bench
{
	int procs;
	int number; /* of this session */
	int64 n;
	int nkeys;
	Oid role;
	int lane; /* -1 = none yet */
	int dbix;
	int64 done;
	int64 failed; /* found the key held, or the lane empty */
} Bench;

static JqBench *bench_shared;
static Bench bench; /* of this session */

Size
jq_bench_size(void)
{
	return MAXALIGN(sizeof(JqBench));
}

void
jq_bench_init(void)
{
	bool found;

	bench_shared = ShmemInitStruct("jobqueue bench", jq_bench_size(), &found);
	if (!found)
	{
		pg_atomic_init_u32(&bench_shared->arrived, 0);
		pg_atomic_init_u32(&bench_shared->number, 0);
		pg_atomic_init_u64(&bench_shared->next_id, 1);
	}
}

static uint64
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64CONST(1000000000) + t.tv_nsec;
}

/* wait until all sessions are here */
static void
meet(const Bench *b)
{
	uint32 mine = pg_atomic_fetch_add_u32(&bench_shared->arrived, 1);
	uint32 all = (mine / b->procs + 1) * b->procs;

	while (pg_atomic_read_u32(&bench_shared->arrived) < all)
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(200);
	}
}

/* ----------------------------------------------------------------- set up */

/* the lane of the role, which knows all its jobs: it has none in a table */
static void
open_lane(Bench *b)
{
	int dbix = jq_dir_db(BENCH_DB, true);

	if (dbix < 0)
		elog(ERROR, "no place for a database");
	jq_db_set_loaded(dbix, jq_db_overflows(dbix));
	b->dbix = dbix;
	b->lane = jq_dir_lane(BENCH_DB, b->role, BENCH_QUEUE, true);
	if (b->lane < 0)
		elog(ERROR, "no place for a lane");
}

static void
take_slot(Bench *b)
{
	uint64 generation;
	int group = jq_lanes[b->lane].group;
	int slot = jq_slot_reserve(group, &generation);

	if (slot < 0 || !jq_slot_attach(slot, generation))
		elog(ERROR, "no slot left: increase max_worker_processes");
	jq_slot_ready();
}

/* nothing of this session stays; also its exit hook */
static void
leave(int code, Datum arg)
{
	Bench *b = &bench;

	(void) code;
	(void) arg;
	jq_keylock_release_all();
	if (jq_my_slot >= 0)
	{
		jq_claim_end();
		jq_slot_detach();
	}
	if (b->lane < 0)
		return;
	LWLockAcquire(jq_lane_lock(b->lane), LW_EXCLUSIVE);
	if (jq_lane_is(&jq_lanes[b->lane], BENCH_DB, b->role, BENCH_QUEUE))
		jq_lane_clear(b->lane, JQ_POS_ALL);
	LWLockRelease(jq_lane_lock(b->lane));
	/* nobody is to start a scheduler for it */
	jq_db_set_absent(b->dbix, true);
	b->lane = -1;
}

static void
make_item(JqItem *item, int64 id)
{
	memset(item, 0, sizeof(*item));
	item->id = id;
	ItemPointerSet(&item->tid, 0, 1);
}

/* n jobs, in chunks as a bulk enqueue brings them */
static void
publish(Bench *b, int64 n, int chunk)
{
	JqItem items[BENCH_BULK];

	while (n > 0)
	{
		int k = Min(n, chunk);
		uint64 id = pg_atomic_fetch_add_u64(&bench_shared->next_id, k);
		int i;

		CHECK_FOR_INTERRUPTS();
		for (i = 0; i < k; i++)
			make_item(&items[i], id + i);
		b->done += jq_lane_publish(BENCH_DB, b->role, BENCH_QUEUE, items, k);
		n -= k;
	}
}

/* ------------------------------------------------------------ what is done */

static void
bench_publish(Bench *b)
{
	publish(b, b->n, 1);
}

static void
bench_bulk(Bench *b)
{
	publish(b, b->n, BENCH_BULK);
}

static void
bench_take(Bench *b)
{
	JqClaimed job;
	int64 i;

	for (i = 0; i < b->n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (jq_claim_next(b->lane, BENCH_DB, b->role, &job))
			b->done++;
		else
			b->failed++;
	}
	jq_claim_end();
}

/* in turn, so that the lane is never long */
static void
bench_lane(Bench *b)
{
	JqClaimed job;
	int64 i;

	for (i = 0; i < b->n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		publish(b, 1, 1);
		if (!jq_claim_next(b->lane, BENCH_DB, b->role, &job))
			b->failed++;
	}
	jq_claim_end();
}

static void
bench_lock(Bench *b)
{
	LWLock *lock = jq_lane_lock(b->lane);

	/* not counted: the lock itself is what is measured */
	for (; b->done < b->n; b->done++)
	{
		CHECK_FOR_INTERRUPTS();
		(LWLockAcquire)(lock, LW_EXCLUSIVE);
		(LWLockRelease)(lock);
	}
}

static void
bench_key(Bench *b)
{
	char key[32];
	bool ask = false;
	uint32 next;
	int64 i;

	for (i = 0; i < b->n; i++)
	{
		int len = snprintf(key, sizeof(key), "user:%d",
						   (int) (pg_prng_uint32(&pg_global_prng_state) %
								  (uint32) b->nkeys));

		CHECK_FOR_INTERRUPTS();
		jq_keylock_prepare();
		if (jq_keylock_take(BENCH_DB, key, len, i + 1, -1, JQ_NIL, &ask,
							&next) == JQ_KEY_TAKEN)
		{
			jq_keylock_release(BENCH_DB, key, len);
			b->done++;
		}
		else
			b->failed++;
	}
}

static void
bench_out(Bench *b)
{
	for (; b->done < b->n; b->done++)
	{
		CHECK_FOR_INTERRUPTS();
		if (jq_claim_is_out(BENCH_DB, b->done + 1))
			b->failed++;
	}
}

static void
bench_pool(Bench *b)
{
	JqItem item;
	int64 i;

	make_item(&item, 1);
	for (i = 0; i < b->n; i++)
	{
		uint32 ix;

		CHECK_FOR_INTERRUPTS();
		ix = jq_entry_new(&item, b->lane);
		if (ix == JQ_NIL)
			b->failed++;
		else
		{
			jq_entry_free(ix);
			b->done++;
		}
	}
}

static void
bench_recent(Bench *b)
{
	JqRecent r;

	memset(&r, 0, sizeof(r));
	r.id = 1;
	r.db = BENCH_DB;
	r.role = b->role;
	r.outcome = JQ_COMPLETED;
	for (; b->done < b->n; b->done++)
	{
		CHECK_FOR_INTERRUPTS();
		jq_recent_add(&r, NULL, 0);
	}
}

static void
bench_count(Bench *b)
{
	int queue_ix = jq_lanes[b->lane].queue_ix;
	TimestampTz now = GetCurrentTimestamp();

	for (; b->done < b->n; b->done++)
	{
		CHECK_FOR_INTERRUPTS();
		jq_queue_count(queue_ix, true, now, now + 50, now + 53);
	}
}

typedef struct Kind
{
	const char *name;
	void (*run)(Bench *b);
	bool own_lane;
	bool slot;
	bool backlog; /* n jobs are there before */
} Kind;

static const Kind kinds[] = {
	{"lock", bench_lock, false, false, false},
	{"own_lock", bench_lock, true, false, false},
	{"publish", bench_publish, false, false, false},
	{"bulk", bench_bulk, false, false, false},
	{"take", bench_take, false, true, true},
	{"own_take", bench_take, true, true, true},
	{"lane", bench_lane, false, true, false},
	{"own_lane", bench_lane, true, true, false},
	{"key", bench_key, false, false, false},
	{"out", bench_out, false, true, false},
	{"pool", bench_pool, false, false, false},
	{"recent", bench_recent, false, false, false},
	{"count", bench_count, false, false, false},
};

/* -------------------------------------------------------------------- SQL */

static void
put_row(ReturnSetInfo *rsinfo, const Bench *b, uint64 ns, const char *lock,
		const int64 *v)
{
	Datum values[13];
	bool nulls[13] = {false};
	int i;

	values[0] = Int32GetDatum(b->number);
	values[1] = Int64GetDatum(b->done);
	values[2] = Int64GetDatum(b->failed);
	values[3] = Int64GetDatum(ns);
	values[4] = CStringGetTextDatum(lock);
	for (i = 0; i < 8; i++)
		values[5 + i] = Int64GetDatum(v[i]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * jq_bench_structures(what, n, keys, procs) -> (session, done, failed, ns,
 * lock, held, held_ns, held_max, long_held, long_ns, waits, wait_ns, wait_max).
 * procs sessions call it at once.  One row for the kind of lock "clock", whose
 * held_ns is the cost of measuring a hold, and one for each that was taken.
 */
PG_FUNCTION_INFO_V1(jq_bench_structures);
Datum
jq_bench_structures(PG_FUNCTION_ARGS)
{
	char *what = text_to_cstring(PG_GETARG_TEXT_PP(0));
	static bool hooked = false;
	const Kind *kind = NULL;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Bench *b = &bench;
	uint64 ns;
	int64 zero[8] = {0};
	int i;

	jq_shmem_check();
	if (!superuser())
		elog(ERROR, "must be superuser");
	if (jobqueue_enabled)
		elog(ERROR, "set jobqueue.enabled = off");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (i = 0; i < (int) lengthof(kinds); i++)
		if (strcmp(kinds[i].name, what) == 0)
			kind = &kinds[i];
	memset(b, 0, sizeof(*b));
	b->lane = -1;
	b->n = PG_GETARG_INT64(1);
	b->nkeys = PG_GETARG_INT32(2);
	b->procs = PG_GETARG_INT32(3);
	if (kind == NULL || b->n < 0 || b->nkeys < 1 || b->procs < 1)
		elog(ERROR, "cannot measure that");
	if (!hooked)
	{
		before_shmem_exit(leave, (Datum) 0);
		hooked = true;
	}

	b->number = pg_atomic_fetch_add_u32(&bench_shared->number, 1) % b->procs;
	b->role = BENCH_ROLE + (kind->own_lane ? b->number : 0);
	PG_TRY();
	{
#ifdef JQ_LOCKSTAT
		JqLockCount before[JQ_NUM_LOCK_KINDS];
		JqLockCount after[JQ_NUM_LOCK_KINDS];
		JqLockCount *mine = jq_lockstat_mine();
#endif

		open_lane(b);
		if (kind->slot)
			take_slot(b);
		if (kind->backlog)
			publish(b, b->n, BENCH_BULK);
		b->done = 0;
		meet(b);
#ifdef JQ_LOCKSTAT
		/* maxima are of this run alone, counts are compared */
		for (i = 0; i < JQ_NUM_LOCK_KINDS; i++)
			mine[i].held_max = mine[i].wait_max = 0;
		memcpy(before, mine, sizeof(before));
		zero[0] = 1;
		zero[1] = jq_lockstat_clock_ns();
#endif
		ns = now_ns();
		kind->run(b);
		ns = now_ns() - ns;
#ifdef JQ_LOCKSTAT
		memcpy(after, mine, sizeof(after));
#endif
		meet(b);
		put_row(rsinfo, b, ns, "clock", zero);
#ifdef JQ_LOCKSTAT
		for (i = 0; i < JQ_NUM_LOCK_KINDS; i++)
		{
			int64 v[8] = {after[i].held - before[i].held,
						  after[i].held_ns - before[i].held_ns,
						  after[i].held_max,
						  after[i].long_held - before[i].long_held,
						  after[i].long_ns - before[i].long_ns,
						  after[i].waits - before[i].waits,
						  after[i].wait_ns - before[i].wait_ns,
						  after[i].wait_max};

			if (v[0] > 0)
				put_row(rsinfo, b, ns, jq_lockstat_name(i), v);
		}
#endif
	}
	PG_FINALLY();
	{
		leave(0, (Datum) 0);
	}
	PG_END_TRY();
	return (Datum) 0;
}

/* jq_bench_reset(): whoever waits for others that never came is forgotten */
PG_FUNCTION_INFO_V1(jq_bench_reset);
Datum
jq_bench_reset(PG_FUNCTION_ARGS)
{
	jq_shmem_check();
	pg_atomic_write_u32(&bench_shared->arrived, 0);
	pg_atomic_write_u32(&bench_shared->number, 0);
	PG_RETURN_VOID();
}

#endif /* JQ_TESTING */
