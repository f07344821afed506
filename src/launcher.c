/*
 * launcher.c
 *		The launcher: one per server, starts schedulers and workers.
 *
 * Connected to the shared catalogs only, so that it is in no database's way.  It
 * sleeps on its latch until a publisher finds no idle worker, a request or a due
 * moment waits for a scheduler, or a process of ours ends.
 *
 * Slots are given to the group that wants one and was served least recently, up
 * to max_workers_per_role for a role.  When all are taken, the worker of another
 * group that has been idle longest is asked to leave.
 *
 * A process that was registered is watched until it has attached.  If it ends
 * before, its slot (or scheduler state) is taken back and the next try waits,
 * longer each time.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "compat.h"
#include "database.h"
#include "directory.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "worker.h"
#include "xids.h"

#define SLEEP_MAX_MS 60000 /* so that a step of the clock is noticed */
#define MAX_STARTS 64
#define START_MS 60	   /* that each of several schedulers takes to start */
#define STUCK_MS 15000 /* past its deadline: written off */
#define MAX_SCHEDULERS 4

StaticAssertDecl(sizeof(JqWorkerArgs) <= BGW_EXTRALEN,
				 "worker arguments do not fit");

typedef struct Start
{
	BackgroundWorkerHandle *handle; /* NULL = unused */
	bool scheduler;
	int index; /* slot or database */
	int group;
	uint64 generation;
} Start;

static Start starts[MAX_STARTS];
static TimestampTz wake_at;
static Oid nobody;

static void
wake_by(TimestampTz when)
{
	wake_at = Min(wake_at, when);
}

static void
launcher_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (jq_shared->launcher_pid == MyProcPid)
	{
		jq_shared->launcher_pid = 0;
		jq_shared->launcher_procno = -1;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

/*
 * Jobs run from now on.  On a standby that was promoted, that is long after this
 * shared memory came to be.  What is prepared before its ids are read here
 * counts as older than the server, which does no harm.
 */
static void
note_start_of_jobs(void)
{
	uint64 next = U64FromFullTransactionId(ReadNextFullTransactionId());

	if (pg_atomic_read_u64(&jq_shared->start_xid) != 0)
		return; /* the launcher alone has started anew */
	jq_shared->start_time = GetCurrentTimestamp();
	pg_atomic_write_u64(&jq_shared->start_xid, next);
}

/* --------------------------------------------------------------- starting */

static Start *
new_start(void)
{
	int i;

	for (i = 0; i < MAX_STARTS; i++)
		if (starts[i].handle == NULL)
			return &starts[i];
	return NULL;
}

/*
 * No process could be registered for this group, or (-1) a scheduler.  An idle
 * worker of another group gives up its place; besides, try again soon.
 */
static void
warn_no_slot(int group)
{
	TimestampTz now = GetCurrentTimestamp();

	if (jq_slot_evict_idle(group, InvalidOid))
		return; /* its exit wakes us */

	jq_shared->slots_full_at = now;
	jq_slot_wake_waiting();
	wake_by(TimestampTzPlusMilliseconds(now, 1000));
	if (now - jq_shared->slots_full_warned < 5 * USECS_PER_MINUTE)
		return;
	jq_shared->slots_full_warned = now;
	ereport(
		WARNING,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg("no background worker slot is left for jobqueue"),
		 errhint(
			 "Increase max_worker_processes (now %d); jobqueue needs %d for itself with jobqueue.max_workers = %d.",
			 max_worker_processes, jobqueue_max_workers + 1 + MAX_SCHEDULERS,
			 jobqueue_max_workers)));
}

/* in a buffer of its own: the memory context of the moment may live for ever */
static const char *
process_name(const char *format, Oid a, Oid b)
{
	static char name[BGW_MAXLEN];
	int n = snprintf(name, sizeof(name), "jobqueue ");

	snprintf(name + n, sizeof(name) - n, format, a, b);
	return name;
}

static bool
start_process(Start *s, const char *function, const char *type,
			  const char *name, Datum arg, const JqWorkerArgs *extra)
{
	BackgroundWorker w;
	MemoryContext old;
	bool ok;

	memset(&w, 0, sizeof(w));
	w.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	w.bgw_start_time = BgWorkerStart_RecoveryFinished;
	w.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(w.bgw_library_name, "jobqueue", sizeof(w.bgw_library_name));
	strlcpy(w.bgw_function_name, function, sizeof(w.bgw_function_name));
	strlcpy(w.bgw_type, type, sizeof(w.bgw_type));
	strlcpy(w.bgw_name, name, sizeof(w.bgw_name));
	w.bgw_main_arg = arg;
	if (extra)
		memcpy(w.bgw_extra, extra, sizeof(*extra));
	w.bgw_notify_pid = MyProcPid;
	old = MemoryContextSwitchTo(TopMemoryContext);
	ok = RegisterDynamicBackgroundWorker(&w, &s->handle);
	MemoryContextSwitchTo(old);
	if (!ok)
		s->handle = NULL;
	return ok;
}

static void
forget_start(Start *s)
{
	pfree(s->handle);
	s->handle = NULL;
}

/* did the processes that were registered come up? */
static void
check_starts(void)
{
	int i;

	for (i = 0; i < MAX_STARTS; i++)
	{
		Start *s = &starts[i];
		pid_t pid;
		BgwHandleStatus status;

		if (s->handle == NULL)
			continue;
		status = GetBackgroundWorkerPid(s->handle, &pid);
		if (status == BGWH_NOT_YET_STARTED)
			continue;
		if (status == BGWH_STARTED)
		{
			bool up;

			if (s->scheduler)
				up = *(volatile JqSchedState *) &jq_dbs[s->index].sched_state !=
					 JQ_SCHED_STARTING;
			else
				up = *(volatile JqSlotState *) &jq_slots[s->index].state !=
						 JQ_SLOT_STARTING ||
					 *(volatile uint64 *) &jq_slots[s->index].generation !=
						 s->generation;
			if (!up)
				continue; /* connecting */
			forget_start(s);
			continue;
		}
		/* it has ended: perhaps without ever attaching */
		if (s->scheduler)
		{
			JqDb *d = &jq_dbs[s->index];

			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
			if (d->sched_state == JQ_SCHED_STARTING)
			{
				d->sched_state = JQ_SCHED_NONE;
				d->sched_not_before = GetCurrentTimestamp() + USECS_PER_SEC;
			}
			LWLockRelease(jq_lock(JQ_LOCK_DB));
		}
		else
		{
			jq_slot_unreserve(s->index, s->generation, true);
		}
		forget_start(s);
	}
}

/* ------------------------------------------------------------- schedulers */

static Oid scan_from;		   /* the scan goes on after this one */
static TimestampTz scan_again; /* then; DT_NOEND = there is nothing left */
static bool scan_ended_early;  /* or when there is a place */

static int
compare_oids(const void *a, const void *b)
{
	Oid x = *(const Oid *) a;
	Oid y = *(const Oid *) b;

	return x < y ? -1 : x > y;
}

/* is there a place, or will there be one when a database has been looked at? */
static bool
place_may_come(void)
{
	bool may = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	for (i = 0; i < jq_shared->ndbs && !may; i++)
		may = jq_dbs[i].sched_state != JQ_SCHED_NONE || jq_dbs[i].absent ||
			  jq_dbs[i].requests & JQ_REQ_DISCOVER;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return may;
}

/* a database has gone, or the extension from it */
static bool
place_is_free(void)
{
	bool is_free = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	for (i = 0; i < jq_shared->ndbs && !is_free; i++)
		is_free = jq_dbs[i].absent;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return is_free;
}

/* connections are allowed again, or are not any more */
static void
note_closed(Oid db, bool closed)
{
	int dbix = jq_dir_db(db, false);
	int i;

	if (dbix < 0)
		return;
	if (!closed && *(volatile bool *) &jq_dbs[dbix].closed)
	{
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		jq_dbs[dbix].sched_not_before = 0;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
		for (i = 0; i < jq_shared->nlanes; i++)
			if (jq_groups[i].db == db)
				jq_groups[i].not_before = 0;
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	}
	jq_db_set_closed(dbix, closed);
}

/*
 * Have each database looked at that is not known yet.  Those without the
 * extension lose their place to others, so where there are more databases than
 * places this goes on, in the order of their OIDs, as places become free.
 */
static void
scan_databases(void)
{
	Relation rel;
	TableScanDesc scan;
	HeapTuple tup;
	Oid *list;
	int n = 0, max = 64;
	int i;

	scan_again = DT_NOEND;
	scan_ended_early = false;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	list = palloc(max * sizeof(Oid));
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tup = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tup);

		note_closed(db->oid, !db->datallowconn);
		if (!db->datallowconn || db->datistemplate || jq_database_invalid(db) ||
			db->oid <= scan_from)
			continue;
		if (n == max)
			list = repalloc(list, (max *= 2) * sizeof(Oid));
		list[n++] = db->oid;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	qsort(list, n, sizeof(Oid), compare_oids);
	for (i = 0; i < n && jq_dir_db(list[i], true) >= 0; i++)
		scan_from = list[i];
	CommitTransactionCommand();
	if (i == n)
		scan_from = InvalidOid;
	else if (place_may_come())
		scan_again = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	else
	{
		scan_from = InvalidOid;
		scan_ended_early = true;
		ereport(WARNING,
				(errmsg(
					 "there are more databases than jobqueue can look after"),
				 errhint("Increase jobqueue.max_databases.")));
	}
}

typedef enum DbState
{
	DB_OPEN,
	DB_CLOSED, /* it takes no connections; it may again */
	DB_GONE	   /* dropped, perhaps half */
} DbState;

static DbState
database_state(Oid db)
{
	HeapTuple tup;
	DbState state = DB_GONE;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	if (HeapTupleIsValid(tup))
	{
		Form_pg_database row = (Form_pg_database) GETSTRUCT(tup);

		if (!jq_database_invalid(row))
			state = row->datallowconn ? DB_OPEN : DB_CLOSED;
		ReleaseSysCache(tup);
	}
	CommitTransactionCommand();
	return state;
}

/* may a process be started in the database?  false: forget it, or wait */
static bool
may_start_in(int dbix, Oid db)
{
	DbState state = database_state(db);

	jq_db_set_closed(dbix, state == DB_CLOSED);
	if (state == DB_GONE)
	{
		jq_dir_purge_db(db);
		jq_db_set_absent(dbix, true);
	}
	return state == DB_OPEN;
}

/*
 * Where many databases have something due at the same moment each needs one; so
 * those are used that neither workers nor parallel queries are meant for.
 */
static int
max_schedulers(void)
{
	return Max(MAX_SCHEDULERS, max_worker_processes - jobqueue_max_workers -
								   max_parallel_workers - 2);
}

/* those that have nothing to do for a second are to make place */
static void
call_for_place(void)
{
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_shared->schedulers_wanted = true;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	for (i = 0; i < jq_shared->ndbs; i++)
	{
		int procno = -1;

		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
		if (jq_dbs[i].sched_state == JQ_SCHED_RUNNING)
			procno = jq_dbs[i].sched_procno;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		if (procno >= 0)
			SetLatch(&GetPGProcByNumber(procno)->procLatch);
	}
}

/* JQ_LOCK_DB held: a database that has no scheduler, but may need one */
static bool
may_need_scheduler(const JqDb *d)
{
	return OidIsValid(d->oid) && !d->absent && d->leave == 0 &&
		   d->sched_state == JQ_SCHED_NONE;
}

/*
 * How long before the next due moment a scheduler is started: where several are
 * for about the same moment, each takes longer.  Where there is no place for all
 * of them, those that come early would be in the way of others.
 */
static int
start_lead_ms(TimestampTz now, int places)
{
	TimestampTz first = DT_NOEND;
	int n = 0;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	for (i = 0; i < jq_shared->ndbs; i++)
		if (may_need_scheduler(&jq_dbs[i]))
			first = Min(first, jq_db_next(&jq_dbs[i], true));
	if (first != DT_NOEND)
		first = TimestampTzPlusMilliseconds(Max(first, now), JQ_SCHED_LEAD_MS);
	for (i = 0; i < jq_shared->ndbs; i++)
		if (may_need_scheduler(&jq_dbs[i]) &&
			jq_db_next(&jq_dbs[i], true) <= first && first != DT_NOEND)
			n++;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (n > places)
		return JQ_SCHED_LEAD_MS;
	return Min(JQ_SCHED_LEAD_MS + n * START_MS, JQ_SCHED_LEAD_MAX_MS);
}

static void
start_schedulers(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int running = 0;
	static int first; /* whose turn it is, where there are too few for all */
	int lead;
	bool called = false;
	int n;
	int i;

	for (i = 0; i < jq_shared->ndbs; i++)
		if (*(volatile JqSchedState *) &jq_dbs[i].sched_state != JQ_SCHED_NONE)
			running++;
	lead = start_lead_ms(now, max_schedulers() - running);
	for (n = 0, i = first; n < jq_shared->ndbs;
		 n++, i = (i + 1) % jq_shared->ndbs)
	{
		JqDb *d = &jq_dbs[i];
		bool want = false;
		Start *s;
		Oid db = InvalidOid;

		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
		if (may_need_scheduler(d))
		{
			TimestampTz when = DT_NOEND;

			if (d->requests != 0)
				when = now;
			else if (jq_db_next(d, true) != DT_NOEND)
				when = TimestampTzPlusMilliseconds(jq_db_next(d, true), -lead);
			when = Max(when, d->sched_not_before);
			want = when <= now;
			if (!want)
				wake_by(when);
			db = d->oid;
		}
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		if (!want)
			continue;
		if (running >= max_schedulers())
		{
			/* one that leaves wakes us; who is busy now may have time soon */
			if (!called)
				call_for_place();
			called = true;
			wake_by(TimestampTzPlusMilliseconds(now, 1000));
			continue;
		}
		s = new_start();
		if (s == NULL)
			return;
		if (!may_start_in(i, db))
		{
			/* who lets connections in again tells us, mostly */
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
			d->sched_not_before =
				TimestampTzPlusMilliseconds(now, SLEEP_MAX_MS);
			LWLockRelease(jq_lock(JQ_LOCK_DB));
			continue;
		}
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		d->sched_state = JQ_SCHED_STARTING;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		s->scheduler = true;
		s->index = i;
		if (start_process(s, "jq_scheduler_main", "jobqueue scheduler",
						  process_name("scheduler for database %u", db, 0),
						  Int32GetDatum(i), NULL))
		{
			running++;
			first = (i + 1) % jq_shared->ndbs;
		}
		else
		{
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
			d->sched_state = JQ_SCHED_NONE;
			LWLockRelease(jq_lock(JQ_LOCK_DB));
			warn_no_slot(-1);
			return;
		}
	}
}

/* ---------------------------------------------------------------- workers */

/* lane ready counts are hints; a worker that finds nothing goes idle */
static bool
group_has_work(int group)
{
	int lanes[256];
	int n = jq_dir_lanes_of_group(group, lanes, lengthof(lanes));
	int i;

	for (i = 0; i < n; i++)
	{
		JqLane *l = &jq_lanes[lanes[i]];

		if (*(volatile uint32 *) &l->nready == 0 || jq_lane_stopped(l))
			continue;
		/* at a limit: somebody is to wait there for his role's turn */
		if (!jq_limited(&jq_queues[l->queue_ix].limit) ||
			*(volatile bool *) &jq_groups[group].called ||
			jq_lane_has_first(lanes[i]))
			return true;
	}
	return n == (int) lengthof(lanes);
}

typedef enum RoleState
{
	ROLE_LOGIN,
	ROLE_NOLOGIN,
	ROLE_NO_CONNECT,
	ROLE_GONE
} RoleState;

static RoleState
role_state(Oid db, Oid role)
{
	HeapTuple tup;
	RoleState state = ROLE_GONE;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (HeapTupleIsValid(tup))
	{
		state = ((Form_pg_authid) GETSTRUCT(tup))->rolcanlogin ? ROLE_LOGIN :
																 ROLE_NOLOGIN;
		ReleaseSysCache(tup);
		if (jq_database_aclcheck(db, role, ACL_CONNECT) != ACLCHECK_OK)
			state = ROLE_NO_CONNECT;
	}
#ifdef JQ_NEEDS_NOBODY
	if (state == ROLE_NOLOGIN)
	{
		tup = SearchSysCache1(AUTHNAME, CStringGetDatum("jobqueue_nobody"));
		nobody = InvalidOid;
		if (HeapTupleIsValid(tup))
		{
			Form_pg_authid r = (Form_pg_authid) GETSTRUCT(tup);

			if (r->rolcanlogin && !r->rolsuper)
				nobody = r->oid;
			ReleaseSysCache(tup);
		}
	}
#endif
	CommitTransactionCommand();
	return state;
}

static int
workers_of_role(Oid role)
{
	int n = 0;
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_groups[i].role == role && OidIsValid(jq_groups[i].db))
			n += jq_groups[i].nworkers - jq_groups[i].nwaiting;
	return n;
}

/* start one worker for the group; false: not now */
static bool
start_worker(int group)
{
	JqGroup *g = &jq_groups[group];
	JqWorkerArgs args;
	RoleState state;
	Start *s;
	TimestampTz now = GetCurrentTimestamp();

	if (!may_start_in(g->dbix, g->db))
	{
		g->not_before = TimestampTzPlusMilliseconds(now, SLEEP_MAX_MS);
		wake_by(g->not_before);
		return false;
	}
	state = role_state(g->db, g->role);
	memset(&args, 0, sizeof(args));
	if (state == ROLE_GONE || state == ROLE_NO_CONNECT)
	{
		jq_db_request(g->dbix, JQ_REQ_GROUP);
		g->not_before = TimestampTzPlusMilliseconds(now, 5000);
		wake_by(g->not_before);
		return false;
	}
	if (state == ROLE_NOLOGIN && !OidIsValid(nobody) &&
		BGWORKER_BYPASS_ROLELOGINCHECK == 0)
	{
		ereport(
			WARNING,
			(errmsg("jobs of role with OID %u cannot run", g->role),
			 errdetail(
				 "The role cannot log in, and role \"jobqueue_nobody\", as which its workers connect, does not exist or has been changed."),
			 errhint(
				 "Run CREATE ROLE (or ALTER ROLE) jobqueue_nobody LOGIN NOSUPERUSER CONNECTION LIMIT 0.")));
		g->not_before = TimestampTzPlusMilliseconds(now, 60000);
		wake_by(g->not_before);
		return false;
	}
	s = new_start();
	if (s == NULL)
		return false;
	args.db = g->db;
	args.role = g->role;
	args.nobody = state == ROLE_NOLOGIN && BGWORKER_BYPASS_ROLELOGINCHECK == 0 ?
					  nobody :
					  InvalidOid;
	args.group = group;
	args.slot = jq_slot_reserve(group, &args.generation);
	if (args.slot < 0)
	{
		warn_no_slot(group);
		return false;
	}
	s->scheduler = false;
	s->index = args.slot;
	s->group = group;
	s->generation = args.generation;
	if (!start_process(s, "jq_worker_main", "jobqueue worker",
					   process_name("worker for role %u in database %u",
									g->role, g->db),
					   Int32GetDatum(args.slot), &args))
	{
		jq_slot_unreserve(args.slot, args.generation, false);
		warn_no_slot(group);
		return false;
	}
	return true;
}

static void
set_wanted(int group, bool wanted)
{
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	jq_groups[group].wanted = wanted;
	if (!wanted)
		jq_groups[group].called = false;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

/*
 * All places are taken (those of the role, if it is valid): a worker of another
 * group leaves for this one, an idle one at once; a busy one after its job, if
 * this group has none at all.  Its exit wakes us.
 */
static void
make_place(int group, Oid role)
{
	TimestampTz when = DT_NOEND;

	/* it could do no more than the one that leaves */
	if (jq_xids_stopped())
	{
		wake_by(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000));
		return;
	}
	if (!jq_slot_evict_idle(group, role) &&
		jq_groups[group].nworkers == jq_groups[group].nwaiting &&
		!jq_slot_evict_busy(group, role, &when))
		wake_by(when);
}

static void
start_workers(void)
{
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		int best = -1;
		bool best_none = false;
		bool none;
		int total = 0;
		int i;

		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
		for (i = 0; i < jq_shared->nslots; i++)
			if (jq_slots[i].state != JQ_SLOT_FREE && !jq_slots[i].written_off &&
				!jq_slots[i].waiting)
				total++;
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		for (i = 0; i < jq_shared->nlanes; i++)
		{
			JqGroup *g = &jq_groups[i];

			if (!OidIsValid(g->db) || !*(volatile bool *) &g->wanted)
				continue;
			if (jq_db_is_quiesced(g->dbix) ||
				*(volatile int *) &jq_dbs[g->dbix].leave > 0)
				continue;
			if (g->not_before > now)
			{
				wake_by(g->not_before);
				continue;
			}
			if (!group_has_work(i))
			{
				/* publishers rely on the flag: look once more after it fell;
				 * model: WANTED_LOOK */
				set_wanted(i, false);
				if (!group_has_work(i))
					continue;
				set_wanted(i, true);
			}
			if (workers_of_role(g->role) >= jq_workers_per_role())
			{
				make_place(i, g->role);
				continue;
			}
			/* who has none comes first, then who has waited longest */
			none = g->nworkers == g->nwaiting;
			if (best < 0 || (none && !best_none) ||
				(none == best_none &&
				 g->last_served < jq_groups[best].last_served))
			{
				best = i;
				best_none = none;
			}
		}
		if (best < 0)
			return;
		if (total >= jobqueue_max_workers)
		{
			/* the slot is free when that one has left, which wakes us */
			make_place(best, InvalidOid);
			return;
		}
		/* before it can run and want another one */
		set_wanted(best, false);
		if (!start_worker(best))
		{
			set_wanted(best, true);
			if (jq_groups[best].not_before > now)
				continue; /* others may do better */
			return;
		}
	}
}

/* tokens of limited queues that have come, and the next one */
static void
call_limited(void)
{
	int64 us = jq_limit_serve_due();

	if (us >= 0)
		wake_by(GetCurrentTimestamp() + us);
}

/* workers whose job does not react to its timeout do not count any more */
static void
check_stuck(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		TimestampTz deadline = *(volatile TimestampTz *) &s->deadline;
		int64 job = jq_claim_cells[i].id;
		bool stuck = false;

		if (s->state != JQ_SLOT_BUSY || s->written_off || job == 0 ||
			deadline == 0)
			continue;
		deadline = TimestampTzPlusMilliseconds(deadline, STUCK_MS);
		if (deadline > now)
		{
			wake_by(deadline);
			continue;
		}
		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
		if (s->state == JQ_SLOT_BUSY && !s->written_off &&
			jq_claim_cells[i].id == job)
		{
			s->written_off = true;
			jq_groups[s->group].wanted = true;
			stuck = true;
		}
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		if (stuck)
			ereport(
				WARNING,
				(errmsg(
					 "worker with PID %d does not react to the timeout of job " INT64_FORMAT,
					 s->pid, job),
				 errdetail(
					 "Another worker is started in its place; the job still holds its key."),
				 errhint(
					 "The code it runs does not check for interrupts; ending the process by force restarts the server.")));
	}
}

/* what failed may do better now, say those who reload the configuration */
static void
try_at_once(void)
{
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->ndbs; i++)
		if (jq_dbs[i].nfailed > 0)
			jq_dbs[i].sched_not_before = 0;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_groups[i].nfailed > 0)
			jq_groups[i].not_before = 0;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

/* ------------------------------------------------------------------- loop */

void
jq_launcher_main(Datum arg)
{
	static uint32 wait_event;
	MemoryContext context;

	(void) arg;
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	on_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	jq_shared->launcher_pid = MyProcPid;
	jq_shared->launcher_procno = jq_my_procno();
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	BackgroundWorkerInitializeConnectionByOid(InvalidOid, InvalidOid, 0);
	note_start_of_jobs();
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	jq_no_transaction_timeout();
	SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_SUSET,
					PGC_S_OVERRIDE);
	context = AllocSetContextCreate(TopMemoryContext, "jobqueue launcher",
									ALLOCSET_DEFAULT_SIZES);
	if (max_worker_processes < jobqueue_max_workers + 2)
		ereport(
			LOG,
			(errmsg(
				 "max_worker_processes = %d leaves fewer than jobqueue.max_workers = %d workers to jobqueue",
				 max_worker_processes, jobqueue_max_workers),
			 errhint("Set max_worker_processes to at least %d.",
					 jobqueue_max_workers + 1 + MAX_SCHEDULERS)));

	scan_again = DT_NOEND;
	jq_shared->scan_databases = true;
	for (;;)
	{
		bool scan;
		long timeout;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			int workers = jobqueue_max_workers;
			int per_role = jq_workers_per_role();

			jq_reload_config();
			try_at_once();
			/* fewer may be allowed now: all start anew, within the limits */
			if (jobqueue_max_workers < workers ||
				jq_workers_per_role() < per_role)
				jq_slot_stop_idle(InvalidOid, InvalidOid);
		}
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		wake_at =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLEEP_MAX_MS);
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		scan = jq_shared->scan_databases;
		jq_shared->scan_databases = false;
		LWLockRelease(jq_lock(JQ_LOCK_DB));

		if (scan)
			scan_from = InvalidOid;
		PG_TRY();
		{
			if (scan || scan_again <= GetCurrentTimestamp() ||
				(scan_ended_early && place_is_free()))
				scan_databases();
			wake_by(scan_again);
			MemoryContextSwitchTo(context);
			check_starts();
			jq_keylock_look_due(&wake_at);
			if (jobqueue_enabled)
			{
				start_schedulers();
				MemoryContextSwitchTo(context);
				start_workers();
			}
			call_limited();
			check_stuck();
			jq_slot_repeat_cancels(&wake_at);
		}
		PG_CATCH();
		{
			HOLD_INTERRUPTS();
			EmitErrorReport();
			FlushErrorState();
			AbortCurrentTransaction();
			QueryCancelPending = false;
			RESUME_INTERRUPTS();
			wake_by(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000));
		}
		PG_END_TRY();

		timeout =
			TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake_at);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(timeout, 1),
						 jq_wait_event(&wait_event, "JobqueueLauncherMain"));
		ResetLatch(MyLatch);
		QueryCancelPending = false;
	}
}
