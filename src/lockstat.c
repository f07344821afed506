/*
 * lockstat.c
 *		Counts of locks, for measuring.
 *
 * The counts lie in shared memory, one set a process number, each written by
 * its process alone; a process that comes later goes on with the counts of one
 * that has gone.  Readers add them up and may see one acquisition half counted.
 *
 * The clock is the processor's cycle counter where there is one (it costs about
 * ten nanoseconds), calibrated against the system's clock.  An empty section,
 * measured at the start of each process, tells what measuring itself adds to
 * the time a lock is held; that is subtracted.
 */
#include "postgres.h"

#define JQ_LOCKSTAT_C
#include "shmem.h"

#ifdef JQ_LOCKSTAT

#include <time.h>

#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"

#define MAX_HELD 128

typedef struct JqLockCounts
{
	JqLockCount kind[JQ_NUM_LOCK_KINDS];
} JqLockCounts;

typedef struct Held
{
	LWLock *lock;
	uint64 since; /* ticks */
} Held;

static JqLockCounts *counts;
static JqLockCounts nobodys; /* without a process number */

static Held held[MAX_HELD];
static int nheld;

static double ns_per_tick; /* 0 = not calibrated yet */
static uint64 clock_ticks; /* in an empty section */

static int
nprocs(void)
{
	return MaxBackends + NUM_AUXILIARY_PROCS;
}

Size
jq_lockstat_size(void)
{
	return MAXALIGN(mul_size(nprocs(), sizeof(JqLockCounts)));
}

void
jq_lockstat_init(void)
{
	bool found;

	counts =
		ShmemInitStruct("jobqueue lock counts", jq_lockstat_size(), &found);
	if (!found)
		memset(counts, 0, jq_lockstat_size());
}

/* ----------------------------------------------------------------- clock */

static uint64
system_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64CONST(1000000000) + t.tv_nsec;
}

static inline uint64
ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return system_ns();
#endif
}

/* both clocks at one moment: nothing came between */
static void
read_both(uint64 *t, uint64 *ns)
{
	uint64 before;
	int tries;

	for (tries = 0; tries < 1000; tries++)
	{
		before = system_ns();
		*t = ticks();
		*ns = system_ns();
		if (*ns - before < 500)
			break;
	}
}

static int
cmp_ticks(const void *a, const void *b)
{
	uint64 x = *(const uint64 *) a;
	uint64 y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

static void
calibrate(void)
{
	static uint64 sample[1001];
	uint64 t0;
	uint64 t1;
	uint64 s0;
	uint64 s1;
	LWLock lock;
	JqLockCounts saved = nobodys;
	int i;

	read_both(&t0, &s0);
	do
		read_both(&t1, &s1);
	while (s1 - s0 < 2000000);
	ns_per_tick = (double) (s1 - s0) / (t1 - t0);

	/* sections with nothing in them, on a lock that nobody else knows */
	LWLockInitialize(&lock, jq_lock(JQ_LOCK_DIR)->tranche);
	for (i = 0; i < (int) lengthof(sample); i++)
	{
		jq_lockstat_acquire(&lock, LW_EXCLUSIVE);
		sample[i] = held[nheld - 1].since;
		sample[i] = ticks() - sample[i];
		LWLockRelease(&lock);
		nheld--;
	}
	qsort(sample, lengthof(sample), sizeof(uint64), cmp_ticks);
	clock_ticks = sample[lengthof(sample) / 2];
	nobodys = saved;
}

uint64
jq_lockstat_clock_ns(void)
{
	if (ns_per_tick == 0)
		calibrate();
	return (uint64) (clock_ticks * ns_per_tick + 0.5);
}

uint64
jq_lockstat_now(void)
{
	if (ns_per_tick == 0)
		calibrate();
	return (uint64) (ticks() * ns_per_tick);
}

/* ---------------------------------------------------------------- counts */

JqLockCount *
jq_lockstat_mine(void)
{
	if (counts == NULL || MyProc == NULL)
		return nobodys.kind;
	return counts[jq_my_procno()].kind;
}

static bool
is_of(LWLock *lock, LWLock *first, int n)
{
	return (char *) lock >= (char *) first &&
		   (char *) lock < (char *) first + n * sizeof(LWLockPadded);
}

static int
lock_kind(LWLock *lock)
{
	if (jq_shared == NULL)
		return JQ_KIND_OTHER;
	if (is_of(lock, jq_lane_lock(0), jq_shared->nlanes))
		return JQ_KIND_LANE;
	if (is_of(lock, jq_recent_lock(0), JQ_RECENT_LOCKS))
		return JQ_KIND_RECENT;
	if (is_of(lock, jq_limit_lock(0), JQ_LIMIT_LOCKS))
		return JQ_KIND_LIMIT;
	if (is_of(lock, jq_key_lock(0), JQ_KEY_PARTITIONS))
		return JQ_KIND_KEY;
	if (is_of(lock, jq_lock(0), JQ_NUM_LOCKS))
		return ((char *) lock - (char *) jq_lock(0)) / sizeof(LWLockPadded);
	return JQ_KIND_OTHER;
}

const char *
jq_lockstat_name(int kind)
{
	static const char *const names[] = {
		[JQ_LOCK_DIR] = "directory",	 [JQ_LOCK_CLAIM] = "claim",
		[JQ_LOCK_SLOT] = "slot",		 [JQ_LOCK_DB] = "database",
		[JQ_LOCK_PREPARED] = "prepared", [JQ_LOCK_PAUSE] = "pause",
		[JQ_LOCK_AFTER] = "after",		 [JQ_LOCK_QUOTA] = "quota",
		[JQ_KIND_LANE] = "lane",		 [JQ_KIND_KEY] = "key",
		[JQ_KIND_RECENT] = "recent",	 [JQ_KIND_LIMIT] = "limit",
		[JQ_KIND_OTHER] = "other"};

	StaticAssertStmt(lengthof(names) == JQ_NUM_LOCK_KINDS,
					 "each kind of lock has a name");
	return names[kind];
}

bool
jq_lockstat_acquire(LWLock *lock, LWLockMode mode)
{
	bool at_once = true;

	if (ns_per_tick == 0 && jq_shared != NULL)
	{
		ns_per_tick = 1; /* calibrate() takes a lock itself */
		calibrate();
	}
	if (nheld == MAX_HELD)
		nheld = 0; /* errors have released what was noted here */
	if (!LWLockConditionalAcquire(lock, mode))
	{
		JqLockCount *c = &jq_lockstat_mine()[lock_kind(lock)];
		uint64 since = ticks();
		uint64 waited;

		at_once = LWLockAcquire(lock, mode);
		waited = (uint64) ((ticks() - since) * ns_per_tick);
		c->waits++;
		c->wait_ns += waited;
		c->wait_max = Max(c->wait_max, waited);
	}
	held[nheld].lock = lock;
	held[nheld++].since = ticks();
	return at_once;
}

void
jq_lockstat_release(LWLock *lock)
{
	uint64 now = ticks();
	uint64 ns = 0;
	int i;

	LWLockRelease(lock);
	for (i = nheld - 1; i >= 0; i--)
		if (held[i].lock == lock)
		{
			JqLockCount *c = &jq_lockstat_mine()[lock_kind(lock)];
			uint64 t = now - held[i].since;

			ns = t > clock_ticks ? (t - clock_ticks) * ns_per_tick : 0;
			held[i] = held[--nheld];
			c->held++;
			c->held_ns += ns;
			c->held_max = Max(c->held_max, ns);
			if (ns > JQ_LONG_HOLD_NS)
			{
				c->long_held++;
				c->long_ns += ns;
			}
			return;
		}
}

void
jq_lockstat_release_all(void)
{
	nheld = 0;
	LWLockReleaseAll();
}

/* ------------------------------------------------------------------- SQL */

/* jq_lockstat() -> (kind, held, ...): of all processes since the last reset */
PG_FUNCTION_INFO_V1(jq_lockstat);
Datum
jq_lockstat(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int kind;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (kind = 0; kind < JQ_NUM_LOCK_KINDS; kind++)
	{
		JqLockCount sum;
		Datum values[9];
		bool nulls[9] = {false};
		int i;

		memset(&sum, 0, sizeof(sum));
		for (i = 0; i < nprocs(); i++)
		{
			JqLockCount *c = &counts[i].kind[kind];

			sum.held += c->held;
			sum.held_ns += c->held_ns;
			sum.held_max = Max(sum.held_max, c->held_max);
			sum.long_held += c->long_held;
			sum.long_ns += c->long_ns;
			sum.waits += c->waits;
			sum.wait_ns += c->wait_ns;
			sum.wait_max = Max(sum.wait_max, c->wait_max);
		}
		values[0] = CStringGetTextDatum(jq_lockstat_name(kind));
		values[1] = Int64GetDatum(sum.held);
		values[2] = Int64GetDatum(sum.held_ns);
		values[3] = Int64GetDatum(sum.held_max);
		values[4] = Int64GetDatum(sum.long_held);
		values[5] = Int64GetDatum(sum.long_ns);
		values[6] = Int64GetDatum(sum.waits);
		values[7] = Int64GetDatum(sum.wait_ns);
		values[8] = Int64GetDatum(sum.wait_max);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* jq_lockstat_reset(): all counts start at zero again */
PG_FUNCTION_INFO_V1(jq_lockstat_reset);
Datum
jq_lockstat_reset(PG_FUNCTION_ARGS)
{
	jq_shmem_check();
	memset(counts, 0, jq_lockstat_size());
	PG_RETURN_VOID();
}

#endif /* JQ_LOCKSTAT */
