/*
 * waiter.c
 *		The table of those who wait for jobs; see waiter.h.
 *
 * Chains by hash of the id.  All changes are made under JQ_LOCK_WAITER.  Who ends
 * a job looks at the head of the chain without the lock: as a rule nobody waits.
 */
#include "postgres.h"

#include "compat.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "waiter.h"

#define BUCKETS 4096
#define NONE (-1)
#define WAKE_MAX 64

/* all under JQ_LOCK_WAITER, but for "called", which its owner reads without */
typedef struct Cell
{
	int next;	/* in its chain, or of the free ones */
	int procno; /* of its owner; -1 = free */
	Oid db;
	int64 id;
	bool needed;
	TimestampTz since;
	bool called;
	bool told;
	JqRecent end;
} Cell;

typedef struct Table
{
	int free;
	volatile int heads[BUCKETS];
	Cell cells[JQ_WAITERS];
} Table;

static Table *table;

/* those of this process, so that the exit hook finds them */
static int mine = 0;

Size
jq_waiter_size(void)
{
	return MAXALIGN(sizeof(Table));
}

void
jq_waiter_init(void)
{
	bool found;
	int i;

	table = ShmemInitStruct("jobqueue waiters", sizeof(Table), &found);
	if (found)
		return;
	memset(table, 0, sizeof(Table));
	for (i = 0; i < BUCKETS; i++)
		table->heads[i] = NONE;
	for (i = 0; i < JQ_WAITERS; i++)
	{
		table->cells[i].procno = -1;
		table->cells[i].next = i + 1 < JQ_WAITERS ? i + 1 : NONE;
	}
	table->free = 0;
}

/* ids come one after the other: neighbours are in different chains */
static int
bucket_of(int64 id)
{
	return (int) ((uint64) id % BUCKETS);
}

/* ------------------------------------------------------------ the waiter */

static void
exit_hook(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_waiter_drop_all();
}

int
jq_waiter_add(int64 id, bool needed, TimestampTz since)
{
	static bool registered;
	int bucket = bucket_of(id);
	int i;

	if (!registered)
		on_shmem_exit(exit_hook, (Datum) 0);
	registered = true;
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
	i = table->free;
	if (i != NONE)
	{
		Cell *c = &table->cells[i];

		table->free = c->next;
		c->procno = jq_my_procno();
		c->db = MyDatabaseId;
		c->id = id;
		c->needed = needed;
		c->since = since;
		c->called = true; /* to look for the first time */
		c->told = false;
		c->next = table->heads[bucket];
		table->heads[bucket] = i;
		mine++;
	}
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
	/* the look at the row comes after this */
	pg_memory_barrier();
	return i;
}

void
jq_waiter_drop_all(void)
{
	int me;
	int i;

	if (mine == 0)
		return;
	me = jq_my_procno();
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
	for (i = 0; i < JQ_WAITERS && mine > 0; i++)
	{
		Cell *c = &table->cells[i];
		volatile int *link;

		if (c->procno != me)
			continue;
		for (link = &table->heads[bucket_of(c->id)]; *link != i;
			 link = &table->cells[*link].next)
			;
		*link = c->next;
		c->procno = -1;
		c->next = table->free;
		table->free = i;
		mine--;
	}
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
}

bool
jq_waiter_is_called(int cell)
{
	volatile Cell *c = &table->cells[cell];

	if (!c->called)
		return false;
	/* what happens from now on calls again */
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
	c->called = false;
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
	return true;
}

bool
jq_waiter_told(int cell, JqRecent *r)
{
	Cell *c = &table->cells[cell];
	bool told;

	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_SHARED);
	told = c->told;
	if (told)
		*r = c->end;
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
	return told;
}

int
jq_waiter_of(int procno, uint64 *since, int64 *ids, int max)
{
	int n = 0;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_SHARED);
	for (i = 0; i < JQ_WAITERS && n < max; i++)
	{
		const Cell *c = &table->cells[i];

		if (c->procno != procno || c->db != MyDatabaseId || !c->needed ||
			c->told)
			continue;
		*since = (uint64) c->since;
		ids[n++] = c->id;
	}
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
	return n;
}

/* -------------------------------------------------- those who end jobs */

static void
wake(const int *procnos, int n)
{
	int i;

	for (i = 0; i < n; i++)
		SetLatch(&GetPGProcByNumber(procnos[i])->procLatch);
}

void
jq_waiter_tell(const JqRecent *r, const char *text, int len)
{
	volatile int *head = &table->heads[bucket_of(r->id)];
	int procnos[WAKE_MAX];
	int n;

	/* the commit comes before the look at the chain */
	pg_memory_barrier();
	if (*head == NONE)
		return;
	do
	{
		int i;

		n = 0;
		LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
		for (i = *head; i != NONE && n < WAKE_MAX; i = table->cells[i].next)
		{
			Cell *c = &table->cells[i];

			if (c->id != r->id || c->db != r->db || c->told)
				continue;
			jq_recent_fill(&c->end, r, text, len);
			c->told = c->called = true;
			procnos[n++] = c->procno;
		}
		LWLockRelease(jq_lock(JQ_LOCK_WAITER));
		wake(procnos, n);
	} while (n == WAKE_MAX);
}

void
jq_waiter_call(Oid db, int64 id)
{
	volatile int *head = &table->heads[bucket_of(id)];
	int procnos[WAKE_MAX];
	int n;

	pg_memory_barrier();
	if (*head == NONE)
		return;
	do
	{
		int i;

		n = 0;
		LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
		for (i = *head; i != NONE && n < WAKE_MAX; i = table->cells[i].next)
		{
			Cell *c = &table->cells[i];

			if (c->id != id || c->db != db || c->called)
				continue;
			c->called = true;
			procnos[n++] = c->procno;
		}
		LWLockRelease(jq_lock(JQ_LOCK_WAITER));
		wake(procnos, n);
	} while (n == WAKE_MAX);
}

void
jq_waiter_call_all(Oid db)
{
	int from = 0;

	while (from < JQ_WAITERS)
	{
		int procnos[WAKE_MAX];
		int n = 0;

		LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
		for (; from < JQ_WAITERS && n < WAKE_MAX; from++)
		{
			Cell *c = &table->cells[from];

			if (c->procno < 0 || c->db != db || c->called)
				continue;
			c->called = true;
			procnos[n++] = c->procno;
		}
		LWLockRelease(jq_lock(JQ_LOCK_WAITER));
		wake(procnos, n);
	}
}
