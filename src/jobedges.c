/*
 * jobedges.c
 *		Who keeps the jobs from ending that a process waits for.
 *
 * A job needs whoever runs it, has fetched it, or acts on it in a transaction
 * that is open; the holder of its key; and the jobs after which it is to run.
 * Where one of several would do there is no edge: a wait for any of some jobs, a
 * key with more than one holder, a place in a queue.
 */
#include "postgres.h"

#include "access/subtrans.h"
#include "claim.h"
#include "compat.h"
#include "configure.h"
#include "dependency.h"
#include "fetched.h"
#include "jobedges.h"
#include "jobtable.h"
#include "keywait.h"
#include "miscadmin.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "views.h"
#include "waiter.h"

#define MAX_JOBS 4096 /* looked at in one call, dependencies included */

typedef struct Edges
{
	int *pids;
	int n;
	int max;
	int64 *jobs; /* to be looked at, or looked at already */
	int njobs;
} Edges;

static void
add_process(Edges *e, int pid)
{
	int i;

	for (i = 0; i < e->n; i++)
		if (e->pids[i] == pid)
			return;
	if (pid != 0 && e->n < e->max)
		e->pids[e->n++] = pid;
}

static void
add_job(Edges *e, int64 id)
{
	int i;

	for (i = 0; i < e->njobs; i++)
		if (e->jobs[i] == id)
			return;
	if (e->njobs < MAX_JOBS)
		e->jobs[e->njobs++] = id;
}

static void
add_transaction(Edges *e, TransactionId xid)
{
	/* of one that runs still; else it blocks nobody any more */
	if (TransactionIdIsNormal(xid) &&
		TransactionIdFollowsOrEquals(xid, TransactionXmin))
		add_process(e, BackendXidGetPid(SubTransGetTopmostTransaction(xid)));
}

/* has a process, or a consumer, got it in hand? */
static bool
is_taken(Edges *e, int64 id)
{
	JqHeld held;
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqShown shown;

		if (jq_show_slot(i, &shown) && jq_shows_job(&shown, id))
		{
			add_process(e, shown.pid);
			return true;
		}
	}
	if (jq_fetched_has(MyDatabaseId, id))
	{
		add_process(e, jq_fetched_process(MyDatabaseId, id));
		return true;
	}
	if (!jq_claim_find_held(MyDatabaseId, id, &held))
		return false;
	if (held.kind == JQ_HELD_SESSION)
		add_process(e, GetPGProcByNumber(held.procno)->pid);
	else if (held.kind == JQ_HELD_DOUBTFUL)
		add_transaction(e, held.xid);
	return held.kind != JQ_HELD_DOUBTFUL;
}

static void
look_at(Edges *e, JqTable *t, int64 id)
{
	int64 *deps;
	TransactionId xid;
	JqRow row;
	int n;
	int i;

	if (is_taken(e, id))
		return;
	switch (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL))
	{
		case JQ_FETCH_GONE:
			return;
		case JQ_FETCH_DOUBTFUL:
			add_transaction(e, xid);
			return;
		case JQ_FETCH_FOUND:
			break;
	}
	if (!JQ_ROW_NULL(&row, JQ_COL_KEY))
	{
		text *key = DatumGetTextPP(JQ_ROW(&row, JQ_COL_KEY));
		JqQueueSettings settings;
		int pid;

		/* one holder that does not share it; of several, any would do */
		jq_settings_of_queue(t, TextDatumGetCString(JQ_ROW(&row, JQ_COL_QUEUE)),
							 &settings);
		if (jq_keywait_only_holder(MyDatabaseId, VARDATA_ANY(key),
								   VARSIZE_ANY_EXHDR(key), settings.key_limit,
								   &pid))
			add_process(e, pid);
	}
	if (!jq_row_waits(&row))
		return;
	deps = palloc(MAX_JOBS * sizeof(int64));
	n = Min(jq_after_open(t, id, deps, MAX_JOBS), MAX_JOBS);
	for (i = 0; i < n; i++)
		add_job(e, deps[i]);
	pfree(deps);
}

int
jq_job_blockers(PGPROC *proc, uint64 *since, int *pids, int max)
{
	Edges e;
	JqTable *t;
	int i;

	e.jobs = palloc(MAX_JOBS * sizeof(int64));
	e.njobs = jq_waiter_of(jq_procno_of(proc), since, e.jobs, MAX_JOBS);
	e.pids = pids;
	e.n = 0;
	e.max = max;
	if (e.njobs > 0)
	{
		t = jq_table_required();
		/* transactions are looked up that are not older than some snapshot */
		PushActiveSnapshot(GetLatestSnapshot());
		for (i = 0; i < e.njobs; i++)
		{
			CHECK_FOR_INTERRUPTS();
			look_at(&e, t, e.jobs[i]);
		}
		PopActiveSnapshot();
	}
	pfree(e.jobs);
	return e.n;
}
