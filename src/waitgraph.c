/*
 * waitgraph.c
 *		Cycles of waits that PostgreSQL cannot see.
 *
 * The nodes are processes.  From one that waits an edge leads to each process
 * that it waits for, by a lock of PostgreSQL or by a wait of ours.  Who sleeps
 * in a wait of ours searches the graph for a way back to himself, first after
 * deadlock_timeout, as PostgreSQL does.
 *
 * The edges are read one after the other, so what looks like a cycle may never
 * have been one.  But if a second search, begun after the first one ended, finds
 * the same processes in the same waits, all of them have been asleep in between:
 * whoever sleeps gives nothing free, so they wait for each other.
 *
 * One of them is to give way, not all.  So only one process at a time makes the
 * second search, and stops waiting if it is right; those that search after it do
 * not find it any more.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "jobedges.h"
#include "keywait.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "waitgraph.h"

#define AGAIN_MS 20 /* between the two searches */
#define SPARE 50	/* times as long as a search it does nothing */

/*
 * The processes that this one waits for; *since as in JqWaitStep.  *pids is
 * palloc'd, with room for MaxBackends.
 */
typedef int (*Edges)(PGPROC *proc, int pid, uint64 *since, int *pids);

static int
key_edges(PGPROC *proc, int pid, uint64 *since, int *pids)
{
	return jq_keywait_blockers(jq_procno_of(proc), pid, since, pids,
							   MaxBackends);
}

static int
job_edges(PGPROC *proc, int pid, uint64 *since, int *pids)
{
	(void) pid;
	return jq_job_blockers(proc, since, pids, MaxBackends);
}

/* locks of PostgreSQL; of the members of its lock group, too */
static int
lock_edges(PGPROC *proc, int pid, uint64 *since, int *pids)
{
	ArrayType *a;
	Datum *d;
	int n;
	int i;

	/* nearly always; the answer would cost all locks of the lock table */
	if (proc->waitLock == NULL && proc->lockGroupLeader == NULL)
		return 0;
	a = DatumGetArrayTypeP(
		DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(pid)));
	*since = pg_atomic_read_u64(&proc->waitStart);
	deconstruct_array(a, INT4OID, sizeof(int32), true, TYPALIGN_INT, &d, NULL,
					  &n);
	n = Min(n, MaxBackends);
	for (i = 0; i < n; i++)
		pids[i] = DatumGetInt32(d[i]); /* 0: a prepared transaction */
	return n;
}

static const struct
{
	Edges edges;
	const char *what;
} kinds[] = {{key_edges, "a key"}, {job_edges, "jobs"}, {lock_edges, "a lock"}};

typedef struct Search
{
	int *seen; /* processes from which there is no way, or that were met */
	int nseen;
	JqWaitStep *path;
	int npath; /* in the end, of the cycle */
} Search;

static bool
was_seen(const Search *s, int pid)
{
	int i;

	for (i = 0; i < s->nseen; i++)
		if (s->seen[i] == pid)
			return true;
	return false;
}

/* is there a way from that process to this one? */
static bool
find_way(Search *s, int pid, int depth)
{
	PGPROC *proc = BackendPidGetProc(pid);
	size_t kind;

	check_stack_depth();
	if (proc == NULL || s->nseen == MaxBackends)
		return false;
	s->seen[s->nseen++] = pid;
	for (kind = 0; kind < lengthof(kinds); kind++)
	{
		int *pids = palloc(MaxBackends * sizeof(int));
		uint64 since = 0;
		int n = kinds[kind].edges(proc, pid, &since, pids);
		int i;

		s->path[depth].pid = pid;
		s->path[depth].kind = (int) kind;
		s->path[depth].since = since;
		for (i = 0; i < n; i++)
		{
			if (pids[i] == MyProcPid)
			{
				s->npath = depth + 1;
				return true;
			}
			if (pids[i] != 0 && !was_seen(s, pids[i]) &&
				find_way(s, pids[i], depth + 1))
				return true;
		}
		pfree(pids);
	}
	return false;
}

/* search; is it the cycle that was seen last? */
static bool
search(JqWaitLook *look, bool *same)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "jobqueue waits",
							  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Search s;
	bool found;
	int n;

	s.seen = palloc(MaxBackends * sizeof(int));
	s.nseen = 0;
	s.path = palloc(MaxBackends * sizeof(JqWaitStep));
	s.npath = 0;
	found = find_way(&s, MyProcPid, 0);
	n = Min(s.npath, JQ_WAIT_CYCLE);
	*same = found && n == look->nsteps;
	if (*same)
	{
		int i;

		for (i = 0; i < n; i++)
			if (s.path[i].pid != look->steps[i].pid ||
				s.path[i].kind != look->steps[i].kind ||
				s.path[i].since != look->steps[i].since)
				*same = false;
	}
	look->nsteps = n;
	memcpy(look->steps, s.path, n * sizeof(JqWaitStep));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return found;
}

/*
 * -------------------------------------------------- one process at a time
 *
 * jq_shared->breaks_cycle names who is at it.  It is set for a search, which may
 * run out of memory, and from there to the error that follows; nobody ends in
 * between without that error, but by signal 9.
 */

static bool
begin_second(void)
{
	uint32 who = 0;

	if (pg_atomic_compare_exchange_u32(&jq_shared->breaks_cycle, &who,
									   (uint32) MyProcPid))
		return true;
	/* it ended nevertheless: the next one is not to wait for it for ever */
	return BackendPidGetProc((int) who) == NULL &&
		   pg_atomic_compare_exchange_u32(&jq_shared->breaks_cycle, &who,
										  (uint32) MyProcPid);
}

static void
end_second(void)
{
	uint32 me = (uint32) MyProcPid;

	(void) pg_atomic_compare_exchange_u32(&jq_shared->breaks_cycle, &me, 0);
}

static bool key_wanted;

bool
jq_waitgraph_key_wanted(void)
{
	return key_wanted;
}

void
jq_waitgraph_forget(void)
{
	key_wanted = false;
}

void
jq_waitgraph_begin(JqWaitLook *look)
{
	look->nsteps = 0;
	look->next =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), DeadlockTimeout);
}

bool
jq_waitgraph_look(JqWaitLook *look)
{
	TimestampTz now = GetCurrentTimestamp();
	bool same = false;
	bool found = false;
	int64 took;

	if (now < look->next)
		return false;
	if (look->nsteps == 0)
		found = search(look, &same);
	else if (!begin_second())
		found = true; /* somebody else is at it */
	else
	{
		PG_TRY();
		{
			found = search(look, &same);
		}
		PG_CATCH();
		{
			end_second();
			PG_RE_THROW();
		}
		PG_END_TRY();
		if (same)
			return true;
		end_second();
	}
	took = GetCurrentTimestamp() - now;
	now += took;
	look->next =
		TimestampTzPlusMilliseconds(now, found ? AGAIN_MS : DeadlockTimeout);
	/* a long one, over many jobs, is not to be all that this process does */
	look->next = Max(look->next, now + SPARE * took);
	return false;
}

void
jq_waitgraph_error(const JqWaitLook *look, const char *what)
{
	StringInfoData detail;
	int i;

	end_second();
	key_wanted = look->nsteps == JQ_WAIT_CYCLE ||
				 kinds[look->steps[look->nsteps - 1].kind].edges != lock_edges;
	pgstat_report_deadlock();
	initStringInfo(&detail);
	for (i = 0; i < look->nsteps; i++)
		appendStringInfo(&detail,
						 "%sProcess %d waits for %s; blocked by process %d.",
						 i > 0 ? "\n" : "", look->steps[i].pid,
						 i == 0 ? what : kinds[look->steps[i].kind].what,
						 i + 1 < look->nsteps ? look->steps[i + 1].pid :
												MyProcPid);
	ereport(ERROR, (errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
					errmsg("deadlock detected"),
					errdetail_internal("%s", detail.data)));
}
