/*
 * waiter.c
 *		The table of those who wait for jobs; see waiter.h.
 *
 * Chains by hash of the id.  All changes are made under JQ_LOCK_WAITER.  Who ends
 * a job looks at the head of the chain without the lock: as a rule nobody waits.
 *
 * Each process has a cell of its own, the last ones of the table, so that nobody
 * can keep others from waiting for one job.  It is the first that the process
 * takes, and its others hang on it.
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
	int prev;	/* in its chain */
	int more;	/* the next one of its owner */
	int procno; /* of its owner; -1 = free */
	Oid db;
	int64 id;
	bool needed;
	TimestampTz since;
	bool called;
	bool told;
	uint64 telling; /* which one that was */
	JqRecent end;
} Cell;

typedef struct Table
{
	int free;
	int used; /* read without the lock */
	uint64 tellings;
	volatile int heads[BUCKETS];
	Cell cells[FLEXIBLE_ARRAY_MEMBER]; /* JQ_WAITERS, one for each process */
} Table;

static Table *table;

/* does this process have cells? */
static bool any_mine = false;

static int
ncells(void)
{
	return JQ_WAITERS + MaxBackends;
}

static int
cell_of(int procno)
{
	return JQ_WAITERS + procno;
}

Size
jq_waiter_size(void)
{
	return MAXALIGN(
		add_size(offsetof(Table, cells), mul_size(ncells(), sizeof(Cell))));
}

void
jq_waiter_init(void)
{
	bool found;
	int i;

	table = ShmemInitStruct("jobqueue waiters", jq_waiter_size(), &found);
	if (found)
		return;
	memset(table, 0, jq_waiter_size());
	for (i = 0; i < BUCKETS; i++)
		table->heads[i] = NONE;
	for (i = 0; i < ncells(); i++)
	{
		table->cells[i].procno = -1;
		table->cells[i].more = NONE;
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

/* JQ_LOCK_WAITER held */
static void
link_cell(int i, int bucket)
{
	Cell *c = &table->cells[i];

	c->prev = NONE;
	c->next = table->heads[bucket];
	if (c->next != NONE)
		table->cells[c->next].prev = i;
	table->heads[bucket] = i;
}

/* JQ_LOCK_WAITER held */
static void
unlink_cell(int i)
{
	Cell *c = &table->cells[i];

	if (c->prev != NONE)
		table->cells[c->prev].next = c->next;
	else
		table->heads[bucket_of(c->id)] = c->next;
	if (c->next != NONE)
		table->cells[c->next].prev = c->prev;
}

int
jq_waiter_add(int64 id, bool needed, TimestampTz since)
{
	static bool registered;
	int own = cell_of(jq_my_procno());
	int i;

	Assert(own < ncells());
	if (!registered)
		on_shmem_exit(exit_hook, (Datum) 0);
	registered = true;
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
	if (table->cells[own].procno < 0)
		i = own;
	else
	{
		i = table->free;
		if (i != NONE)
		{
			table->free = table->cells[i].next;
			table->cells[i].more = table->cells[own].more;
			table->cells[own].more = i;
		}
	}
	if (i != NONE)
	{
		Cell *c = &table->cells[i];

		c->procno = jq_my_procno();
		c->db = MyDatabaseId;
		c->id = id;
		c->needed = needed;
		c->since = since;
		c->called = true; /* to look for the first time */
		c->told = false;
		c->telling = 0;
		link_cell(i, bucket_of(id));
		table->used++;
		any_mine = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_WAITER));
	/* the look at the row comes after this */
	pg_memory_barrier();
	return i;
}

void
jq_waiter_drop_all(void)
{
	int i;
	int more;

	if (!any_mine)
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
	for (i = cell_of(jq_my_procno()); i != NONE; i = more)
	{
		Cell *c = &table->cells[i];

		Assert(c->procno == jq_my_procno());
		more = c->more;
		unlink_cell(i);
		c->procno = -1;
		c->more = NONE;
		table->used--;
		if (i < JQ_WAITERS)
		{
			c->next = table->free;
			table->free = i;
		}
	}
	any_mine = false;
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

	if (procno < 0 || procno >= MaxBackends)
		return 0;
	LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_SHARED);
	for (i = cell_of(procno); i != NONE && n < max; i = table->cells[i].more)
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
	uint64 telling = 0;
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
		if (telling == 0)
			telling = ++table->tellings;
		for (i = *head; i != NONE && n < WAKE_MAX; i = table->cells[i].next)
		{
			Cell *c = &table->cells[i];

			if (c->id != r->id || c->db != r->db || c->telling >= telling)
				continue;
			/* it may have ended before, and come back since */
			jq_recent_fill(&c->end, r, text, len);
			c->telling = telling;
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

	pg_memory_barrier();
	if (*(volatile int *) &table->used == 0)
		return;
	while (from < ncells())
	{
		int procnos[WAKE_MAX];
		int n = 0;

		LWLockAcquire(jq_lock(JQ_LOCK_WAITER), LW_EXCLUSIVE);
		for (; from < ncells() && n < WAKE_MAX; from++)
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
