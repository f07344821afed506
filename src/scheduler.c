/*
 * scheduler.c
 *		The scheduler of a database: what needs to read the tables and is not
 *		running jobs.
 *
 * Started by the launcher when something is asked of it or soon due; leaves
 * when there has been nothing to do for a while.  It connects as a superuser and
 * runs only statements of ours.  In this order it
 *
 *		settles suspects	jobs that ran in a process that died by itself
 *		reads leases, once	and settings of the queues; until then nothing is taken
 *							from lanes
 *		discovers lanes		which (queue, owner) have ready rows
 *		makes ready			rows that were due and had to leave memory
 *		refills keys, lanes	see keylock.c, lane.c
 *		fires schedules		that are due
 *		publishes due rows	whose run_at has come
 *		ends expired rows	that were not started in time
 *		releases			jobs that waited for others
 *		ends leases			that are over
 *		records failures	of jobs whose worker or consumer is gone
 *		gives up roles		that are dropped or may not connect
 *		counts				rows that memory cannot know
 *		prunes				the archive
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "configure.h"
#include "database.h"
#include "executor/spi.h"
#include "failure.h"
#include "fetched.h"
#include "guc.h"
#include "inflight.h"
#include "jobtable.h"
#include "keylock.h"
#include "lane.h"
#include "lease.h"
#include "miscadmin.h"
#include "pause.h"
#include "pausedrole.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "publish.h"
#include "queue.h"
#include "recent.h"
#include "role.h"
#include "scheduler.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "version.h"
#include "worker.h"

#define IDLE_MS 10000
#define TURN_MS 3000 /* then others come first, where schedulers are few */
#define LATCH_EARLY_US 2000
#define PRUNE_INTERVAL_MS (5 * 60 * 1000)

int jq_sched_dbix;
static TimestampTz look_again; /* something is to be tried again then */
static bool came_up;		   /* connected, and the catalogs can be read */
MemoryContext jq_sched_context;

void
jq_sched_again_in(int ms)
{
	look_again =
		Min(look_again, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms));
}

/* ----------------------------------------------------------- transactions */

JqTable *
jq_sched_begin(void)
{
	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(jq_sched_context);
	return jq_table();
}

void
jq_sched_commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(jq_sched_context);
}

/* run one part of the work; an error ends that part, and it is tried again */
static void
guarded(void (*part)(TimestampTz), TimestampTz arg, uint32 request)
{
	PG_TRY();
	{
		part(arg);
	}
	PG_CATCH();
	{
		jq_abort_bookkeeping();
		RESUME_INTERRUPTS();
		jq_db_request_quietly(jq_sched_dbix, request);
		jq_sched_again_in(1000);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(jq_sched_context);
	MemoryContextReset(jq_sched_context);
}

JqFoundRow *
jq_sched_rows(int *n)
{
	MemoryContext old = MemoryContextSwitchTo(jq_sched_context);
	JqFoundRow *rows = palloc(Max(SPI_processed, 1) * sizeof(JqFoundRow));
	uint64 i;

	*n = (int) SPI_processed;
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		JqFoundRow *r = &rows[i];
		bool isnull;
		Datum d;

		memset(r, 0, sizeof(*r));
		r->item.id = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
		strlcpy(r->queue,
				TextDatumGetCString(SPI_getbinval(tup, desc, 2, &isnull)),
				sizeof(r->queue));
		r->owner = DatumGetObjectId(SPI_getbinval(tup, desc, 3, &isnull));
		r->item.priority = DatumGetInt16(SPI_getbinval(tup, desc, 4, &isnull));
		d = SPI_getbinval(tup, desc, 5, &isnull);
		if (!isnull)
		{
			char *key = TextDatumGetCString(d);

			r->item.key = key;
			r->item.keylen = Min(strlen(key), JQ_KEY_MAX);
		}
		r->item.tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(tup, desc, 6, &isnull));
		d = SPI_getbinval(tup, desc, 7, &isnull);
		r->run_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(d);
		if (!isnull)
			r->item.flags = JQ_E_DUE;
		r->lane_role = DatumGetObjectId(SPI_getbinval(tup, desc, 8, &isnull));
	}
	MemoryContextSwitchTo(old);
	return rows;
}

/* ---------------------------------------------------------------- settings */

static void
read_settings(TimestampTz unused)
{
	JqQueueRow *rows;
	int n;
	JqQueueSeen *seen;
	uint32 seen_roles;
	Oid *roles;
	int nroles;
	JqTable *t;

	(void) unused;
	/* until then nothing is taken from a lane, so nobody takes their keys */
	jq_sched_read_leases();
	seen = jq_queue_load_begin(jq_sched_dbix);
	seen_roles = jq_role_load_begin();
	t = jq_sched_begin();
	if (t == NULL)
	{
		jq_sched_commit();
		return;
	}
	rows = jq_settings_read(t, &n);
	roles = jq_paused_roles_read(t, &nroles);
	jq_sched_commit();
	JQ_PAUSE("settings-after-snapshot");
	/* first, as what is known of queues lets lanes go on */
	if (!jq_role_load(jq_sched_dbix, seen_roles, roles, nroles))
	{
		ereport(WARNING,
				(errmsg("more roles are paused than memory has place for"),
				 errdetail("No job of database with OID %u is started.",
						   MyDatabaseId),
				 errhint("Increase jobqueue.max_lanes (now %d).",
						 jobqueue_max_lanes)));
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_SETTINGS);
		jq_sched_again_in(60000);
		return;
	}
	if (!jq_queue_load(jq_sched_dbix, seen, rows, n))
	{
		static TimestampTz warned;

		if (GetCurrentTimestamp() - warned > 5 * USECS_PER_MINUTE)
			ereport(WARNING,
					(errmsg(
						 "more queues have settings than memory has place for"),
					 errhint("Increase jobqueue.max_lanes (now %d).",
							 jobqueue_max_lanes)));
		warned = GetCurrentTimestamp();
	}
}

/* the end of a job that no worker had, in the ring */
void
jq_sched_note_end(int64 id, Oid role, const char *queue, JqOutcome outcome,
				  int attempt, TimestampTz started_at, TimestampTz ended_at,
				  const char *error)
{
	JqRecent r;

	memset(&r, 0, offsetof(JqRecent, text));
	r.id = id;
	r.db = MyDatabaseId;
	r.role = role;
	r.outcome = outcome;
	r.attempt = attempt;
	r.started_at = started_at;
	r.ended_at = ended_at;
	strlcpy(r.queue, queue, sizeof(r.queue));
	r.is_error = true;
	jq_recent_add(&r, error, strlen(error));
}

/* ------------------------------------------------------------------- loop */

static void
scheduler_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_keylock_release_all();
	jq_db_sched_detach(jq_sched_dbix, came_up);
}

/*
 * Rows that are due and had to leave memory, or just had to be looked for anew: what
 * is to be served then.  With room for them they are published again, together with
 * all others.
 */
static uint32
serve_lost(uint32 requests, JqFrom *from)
{
	bool all = (requests & JQ_REQ_DUE) && from->due == DT_NOBEGIN;

	if (all || jq_pool_is_half_free())
	{
		jq_lane_lost_begin(MyDatabaseId, false);
		from->due = DT_NOBEGIN;
		return requests | JQ_REQ_DUE | JQ_REQ_REFILL;
	}
	if (requests & JQ_REQ_DUE)
		guarded(jq_sched_publish_due, from->due, JQ_REQ_DUE);
	guarded(jq_sched_find_lost, from->taken, JQ_REQ_LOST);
	guarded(jq_sched_find_next_due, 0, JQ_REQ_DUE);
	return (requests & ~JQ_REQ_DUE) | JQ_REQ_REFILL;
}

static void
serve(uint32 requests, JqFrom *from)
{
	/* on time, to a few milliseconds */
	if ((requests & JQ_REQ_SCHEDULES) && !jobqueue_enabled)
		jq_db_put_off_schedules(jq_sched_dbix);
	else if (requests & JQ_REQ_SCHEDULES)
	{
		guarded(jq_sched_fire, from->schedule, JQ_REQ_SCHEDULES);
		guarded(jq_sched_find_next_schedule, from->schedule, JQ_REQ_SCHEDULES);
	}
	if (requests & JQ_REQ_SETTINGS)
	{
		guarded(read_settings, 0, JQ_REQ_SETTINGS);
		requests |= JQ_REQ_REFILL; /* of lanes that may run now */
	}
	if (requests & JQ_REQ_DISCOVER)
		guarded(jq_sched_discover, 0, JQ_REQ_DISCOVER);
	if (requests & JQ_REQ_LOST)
		requests = serve_lost(requests, from);
	if (requests & JQ_REQ_KEYS)
		guarded(jq_sched_refill_keys, 0, JQ_REQ_KEYS);
	if (requests & (JQ_REQ_REFILL | JQ_REQ_DISCOVER))
		guarded(jq_sched_refill, 0, JQ_REQ_REFILL);
	if (requests & JQ_REQ_DUE)
	{
		guarded(jq_sched_publish_due, from->due, JQ_REQ_DUE);
		guarded(jq_sched_find_next_due, 0, JQ_REQ_DUE);
	}
	if (requests & JQ_REQ_EXPIRY)
	{
		guarded(jq_sched_end_expired, from->expiry, JQ_REQ_EXPIRY);
		guarded(jq_sched_find_next_expiry, 0, JQ_REQ_EXPIRY);
	}
	if (requests & JQ_REQ_AFTER_ALL)
		guarded(jq_sched_release_all, 0, JQ_REQ_AFTER_ALL);
	if (requests & JQ_REQ_AFTER)
		guarded(jq_sched_release, 0, JQ_REQ_AFTER_ALL);
	if (requests & JQ_REQ_LEASES)
		guarded(jq_sched_end_leases, 0, JQ_REQ_LEASES);
	if (requests & JQ_REQ_FAILED)
		guarded(jq_sched_settle_held, 0, JQ_REQ_FAILED);
	if (requests & JQ_REQ_GROUP)
		guarded(jq_sched_check_roles, 0, JQ_REQ_GROUP);
	if (requests & JQ_REQ_COUNT)
		guarded(jq_sched_count_anew, 0, JQ_REQ_COUNT);
	if (requests & JQ_REQ_RECOUNT)
		guarded(jq_sched_count, 0, JQ_REQ_RECOUNT);
}

void
jq_sched_serve_others(uint32 later)
{
	JqFrom from;
	uint32 requests;

	CHECK_FOR_INTERRUPTS();
	if (jq_db_is_left(jq_sched_dbix))
		proc_exit(0);
	requests = jq_db_take_requests(jq_sched_dbix, &from);
	if (requests & later)
		jq_db_request_quietly(jq_sched_dbix, requests & later);
	if (requests & ~later)
		serve(requests & ~later, &from);
}

/* what comes first is rehearsed; returns when that is to be, DT_NOEND: it was */
static TimestampTz
rehearse_in_time(void)
{
	static bool done;
	TimestampTz next, when;

	if (done)
		return DT_NOEND;
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	next = jq_dbs[jq_sched_dbix].next_schedule;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (next == DT_NOEND || !jobqueue_enabled)
		return DT_NOEND;
	when = TimestampTzPlusMilliseconds(jq_clock_to_real(next),
									   -JQ_SCHED_LEAD_MAX_MS);
	if (when > GetCurrentTimestamp())
		return when;
	done = true;
	guarded(jq_sched_rehearse, next, 0);
	return DT_NOEND;
}

/*
 * Sleep until then.  A latch waits for whole milliseconds, and then some; so it is
 * left somewhat before, and the rest is slept without it.
 */
static void
sleep_until(TimestampTz wake)
{
	static uint32 wait_event;
	int64 us = wake - GetCurrentTimestamp();

	if (us <= 0)
		return;
	if (us <= LATCH_EARLY_US)
		pg_usleep(us);
	else
	{
		us = Min(us - LATCH_EARLY_US / 2, 60 * USECS_PER_SEC);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 us / 1000,
						 jq_wait_event(&wait_event, "JobqueueSchedulerMain"));
	}
	ResetLatch(MyLatch);
	QueryCancelPending = false;
}

/* once in the life of the server: it is served, without what is new */
static void
say_old(JqTable *t)
{
	bool told;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	told = jq_dbs[jq_sched_dbix].told_version;
	jq_dbs[jq_sched_dbix].told_version = true;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (!told)
		ereport(
			LOG,
			(errmsg(
				 "the SQL objects of extension \"jobqueue\" in database \"%s\" are of version %s, the library is of version %s",
				 get_database_name(MyDatabaseId), t->version, jq_version()),
			 errhint(
				 "Run ALTER EXTENSION jobqueue UPDATE there to have what is new.")));
}

/* is the extension here, and is this a place to stay? */
static bool
look_around(bool *template)
{
	char version[16];
	JqTable *t = NULL;
	HeapTuple tup;

	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	/* said once: the database then counts as one without the extension, until
	 * somebody enqueues there, which is an error */
	if (jq_table_is_newer(version, sizeof(version)))
		ereport(
			WARNING,
			(errmsg(
				 "no job of database \"%s\" runs: the SQL objects of extension \"jobqueue\" are of version %s, the server runs the library of version %s",
				 get_database_name(MyDatabaseId), version, jq_version()),
			 errhint(
				 "Install the library of version %s or later, and restart the server.",
				 version)));
	else
		t = jq_table();
	if (t != NULL && jq_version_compare(t->version, jq_version()) < 0)
		say_old(t);
	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	*template = HeapTupleIsValid(tup) &&
				((Form_pg_database) GETSTRUCT(tup))->datistemplate;
	if (HeapTupleIsValid(tup))
		ReleaseSysCache(tup);
	jq_sched_commit();
	return t != NULL;
}

void
jq_scheduler_main(Datum arg)
{
	TimestampTz idle_since;
	TimestampTz last_prune = 0;
	bool template;
	int *list;
	int n, i;

	jq_sched_dbix = DatumGetInt32(arg);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (jq_sched_dbix < 0 || jq_sched_dbix >= jq_shared->ndbs ||
		!jq_db_sched_attach(jq_sched_dbix))
		proc_exit(0);
	on_shmem_exit(scheduler_exit, (Datum) 0);
	BackgroundWorkerInitializeConnectionByOid(jq_dbs[jq_sched_dbix].oid,
											  InvalidOid, 0);
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET,
					PGC_S_OVERRIDE);
	SetConfigOption("enable_seqscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_bitmapscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	/* its queries look at few rows, whatever the planner thinks */
	SetConfigOption("jit", "off", PGC_USERSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	jq_no_transaction_timeout();
	jq_sched_context =
		AllocSetContextCreate(TopMemoryContext, "jobqueue scheduler",
							  ALLOCSET_DEFAULT_SIZES);
	jq_publish_init();
	jq_keylock_prepare();

	if (!look_around(&template))
	{
		came_up = true;
		jq_dir_purge_db(MyDatabaseId);
		jq_db_set_absent(jq_sched_dbix, true);
		(void) jq_db_sched_leave(jq_sched_dbix, DT_NOBEGIN);
		proc_exit(0);
	}
	came_up = true;
	jq_db_set_absent(jq_sched_dbix, false);
	guarded(jq_sched_settle_suspects, 0, 0);
	list =
		MemoryContextAlloc(TopMemoryContext, jq_shared->nlanes * sizeof(int));
	n = jq_dir_lanes_of(MyDatabaseId, list);
	for (i = 0; i < n; i++)
		jq_lane_refill_abandon(list[i]);
	jq_keylock_refill_abandon(MyDatabaseId);
	jq_db_request_quietly(jq_sched_dbix, JQ_REQ_REFILL | JQ_REQ_KEYS);

	idle_since = GetCurrentTimestamp();
	for (;;)
	{
		uint32 requests;
		JqFrom from;
		TimestampTz now;
		TimestampTz wake;
		TimestampTz rehearsal;
		bool crowded, turn_is_over;

		CHECK_FOR_INTERRUPTS();
		/* who has always something to do does not sleep, and would not see it */
		if (!PostmasterIsAlive())
			proc_exit(1);
		jq_reload_config();
		look_again = DT_NOEND;
		requests = jq_db_take_requests(jq_sched_dbix, &from);
		if (requests != 0)
		{
			pgstat_report_activity(STATE_RUNNING, "jobqueue scheduler");
			serve(requests, &from);
			idle_since = GetCurrentTimestamp();
		}
		now = GetCurrentTimestamp();
		if (jq_sched_prune_more || jq_db_prune_is_due(jq_sched_dbix) ||
			now - last_prune > PRUNE_INTERVAL_MS * INT64CONST(1000))
		{
			guarded(jq_sched_prune, 0, 0);
			last_prune = now;
		}
		rehearsal = rehearse_in_time();
		now = GetCurrentTimestamp();
		pgstat_report_stat(false);
		pgstat_report_activity(STATE_IDLE, NULL);
		if (jq_db_is_left(jq_sched_dbix))
			break; /* what is owed is left to the next one */
		crowded = *(volatile bool *) &jq_shared->schedulers_wanted;
		turn_is_over = crowded && now - jq_dbs[jq_sched_dbix].sched_since >
									  TURN_MS * INT64CONST(1000);
		if (look_again != DT_NOEND && turn_is_over)
			break; /* what we wait for may need the others */
		if (look_again == DT_NOEND)
		{
			/* a request that came meanwhile is served before we think of leaving */
			int64 rest = IDLE_MS * INT64CONST(1000);
			bool stop = template || crowded ||
						(now - idle_since >= rest &&
						 jq_fetched_count(MyDatabaseId) == 0);

			/* a turn of each, if there is no place for all */
			if (template || crowded)
				rest = turn_is_over ? 0 : USECS_PER_SEC;
			if (stop && jq_db_sched_leave(jq_sched_dbix, now + rest))
				break;
		}
		wake = TimestampTzPlusMilliseconds(idle_since, IDLE_MS);
		if (look_again == DT_NOEND)
		{
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
			if (jq_dbs[jq_sched_dbix].requests != 0)
				wake = now;
			else
				wake =
					Min(now < wake ? wake : now + IDLE_MS * INT64CONST(1000),
						jq_db_next(&jq_dbs[jq_sched_dbix], jobqueue_enabled));
			LWLockRelease(jq_lock(JQ_LOCK_DB));
		}
		else
		{
			/* requests put back for later must not be taken at once */
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
			wake = Min(look_again,
					   jq_db_next(&jq_dbs[jq_sched_dbix], jobqueue_enabled));
			LWLockRelease(jq_lock(JQ_LOCK_DB));
		}
		sleep_until(Min(wake, rehearsal));
	}
	proc_exit(0);
}
