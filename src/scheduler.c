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
 *		reads settings		of the queues; until then nothing is taken from lanes
 *		discovers lanes		which (queue, owner) have ready rows
 *		refills lanes		see lane.c
 *		publishes due rows	whose run_at has come
 *		ends expired rows	that were not started in time
 *		records failures	of jobs whose worker is gone
 *		gives up roles		that are dropped or may not connect
 *		counts				rows that memory cannot know
 *		prunes				the archive
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "compat.h"
#include "configure.h"
#include "database.h"
#include "executor/spi.h"
#include "failure.h"
#include "guc.h"
#include "inflight.h"
#include "jobtable.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "publish.h"
#include "queue.h"
#include "recent.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "worker.h"

#define IDLE_MS 10000
#define BATCH 500
#define PRUNE_INTERVAL_MS (5 * 60 * 1000)
#define SHUTDOWN_GRACE_MS 200

static int dbix;
static TimestampTz look_again; /* something is to be tried again then */
static TimestampTz due_seen;   /* rows due up to here have been looked at */
static MemoryContext work_context;

static void
try_again_in(int ms)
{
	look_again =
		Min(look_again, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms));
}

/* ----------------------------------------------------------- transactions */

static JqTable *
begin(void)
{
	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(work_context);
	return jq_table();
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(work_context);
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
		HOLD_INTERRUPTS();
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
		jq_db_request_quietly(dbix, request);
		try_again_in(1000);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(work_context);
	MemoryContextReset(work_context);
}

/* a row that a query returned: id, queue, owner, priority, key, ctid, run_at */
#define ROW_COLUMNS "id, queue, owner::oid, priority, key, ctid, run_at"

typedef struct FoundRow
{
	JqItem item;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid owner;
	TimestampTz run_at;
} FoundRow;

static FoundRow *
found_rows(int *n)
{
	MemoryContext old = MemoryContextSwitchTo(work_context);
	FoundRow *rows = palloc(Max(SPI_processed, 1) * sizeof(FoundRow));
	uint64 i;

	*n = (int) SPI_processed;
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		FoundRow *r = &rows[i];
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
	}
	MemoryContextSwitchTo(old);
	return rows;
}

/* ---------------------------------------------------------------- suspects */

static void
settle_suspects(TimestampTz unused)
{
	int n, i;
	JqSuspect *list = jq_inflight_suspects(MyDatabaseId, &n);

	(void) unused;
	for (i = 0; i < n; i++)
	{
		JqTable *t = begin();
		bool dead = false;

		if (t != NULL)
			dead = jq_record_crash(t, list[i].id, list[i].alone);
		/* must be on disk before the next crash can come */
		ForceSyncCommit();
		commit();
		jq_inflight_settled(MyDatabaseId, list[i].id);
		if (dead)
			ereport(LOG,
					(errmsg("job " INT64_FORMAT
							" is dead: the server crashed twice while it ran",
							list[i].id)));
	}
}

/* ---------------------------------------------------------------- settings */

static void
read_settings(TimestampTz unused)
{
	JqQueueRow *rows;
	int n;
	JqQueueSeen *seen = jq_queue_load_begin(dbix);
	JqTable *t = begin();

	(void) unused;
	if (t == NULL)
	{
		commit();
		return;
	}
	rows = jq_settings_read(t, &n);
	commit();
	JQ_PAUSE("settings-after-snapshot");
	if (!jq_queue_load(dbix, seen, rows, n))
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

/* ------------------------------------------------------- discover, refill */

static void
discover(TimestampTz unused)
{
	static const char *const sql =
		"WITH RECURSIVE lanes AS ("
		" (SELECT queue, owner::oid AS owner FROM %s.jobqueue_job"
		"   WHERE run_at IS NULL ORDER BY queue, owner LIMIT 1)"
		" UNION ALL"
		" SELECT n.queue, n.owner FROM lanes l, LATERAL ("
		"  SELECT j.queue, j.owner::oid AS owner FROM %s.jobqueue_job j"
		"   WHERE j.run_at IS NULL AND (j.queue, j.owner::oid) > (l.queue, l.owner)"
		"   ORDER BY j.queue, j.owner LIMIT 1) n)"
		" SELECT queue, owner FROM lanes";
	uint32 overflows = jq_db_overflows(dbix); /* before the snapshot */
	JqTable *t = begin();
	bool complete = true;
	uint64 i;
	JqOwnerState state;

	(void) unused;
	if (t == NULL)
	{
		commit();
		return;
	}
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 0, NULL, NULL, NULL);
	for (i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		char *queue = TextDatumGetCString(SPI_getbinval(SPI_tuptable->vals[i],
														SPI_tuptable->tupdesc,
														1, &isnull));
		Oid owner =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 2, &isnull));

		if (jq_dir_lane(MyDatabaseId, owner, queue, true) < 0)
			complete = false;
	}
	jq_owner_end(&state);
	commit();
	if (complete)
		jq_db_set_loaded(dbix, overflows);
	else
	{
		/* when lanes have emptied there may be place */
		static TimestampTz warned;

		if (GetCurrentTimestamp() - warned > 5 * USECS_PER_MINUTE)
			ereport(
				WARNING,
				(errmsg(
					 "more queues and roles have jobs than memory has lanes for"),
				 errhint("Increase jobqueue.max_lanes (now %d).",
						 jobqueue_max_lanes)));
		warned = GetCurrentTimestamp();
		jq_db_request_quietly(dbix, JQ_REQ_DISCOVER);
		try_again_in(100);
	}
	jq_db_request_quietly(dbix, JQ_REQ_REFILL);
}

static void
refill_lane(int lane)
{
	JqPos from, upto;
	int room, n;
	JqItem *items;
	JqTable *t;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid owner;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	strlcpy(queue, jq_lanes[lane].queue, sizeof(queue));
	owner = jq_lanes[lane].role;
	LWLockRelease(jq_lane_lock(lane));
	if (!jq_lane_refill_begin(lane, &from, &room))
		return;
	PG_TRY();
	{
		t = begin();
		if (t == NULL || t->meta_database != MyDatabaseId)
		{
			n = 0;
			items = NULL;
			upto = JQ_POS_ALL; /* nothing here is to run */
		}
		else
		{
			items = MemoryContextAllocHuge(work_context, room * sizeof(JqItem));
			n = jq_rows_ready(t, queue, owner, from, items, room, &upto);
		}
		commit();
	}
	PG_CATCH();
	{
		jq_lane_refill_abandon(lane);
		PG_RE_THROW();
	}
	PG_END_TRY();
	JQ_PAUSE("refill-after-snapshot");
	jq_lane_refill_add(lane, items, n);
	jq_lane_refill_end(lane, upto);
}

static void
refill(TimestampTz unused)
{
	int *list = palloc(jq_shared->nlanes * sizeof(int));
	int n = jq_dir_lanes_of(MyDatabaseId, list);
	int i;

	(void) unused;
	for (i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		refill_lane(list[i]);
	}
}

/* --------------------------------------------------------- due and expired */

/* rows that found no room in memory become ready in the table */
static void
make_ready(JqTable *t, FoundRow *rows, int n)
{
	Datum *ids = palloc(n * sizeof(Datum));
	int nids = 0;
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	JqOwnerState state;
	int i;

	for (i = 0; i < n; i++)
		if (rows[i].item.flags & JQ_E_REFUSED)
			ids[nids++] = Int64GetDatum(rows[i].item.id);
	if (nids == 0)
		return;
	values[0] = PointerGetDatum(
		construct_array(ids, nids, INT8OID, 8, true, TYPALIGN_DOUBLE));
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_job SET run_at = NULL WHERE id IN ("
					 " SELECT id FROM %s.jobqueue_job WHERE id = ANY($1)"
					 " AND run_at <= clock_timestamp() FOR UPDATE SKIP LOCKED)",
					 1, types, values, NULL);
	if (SPI_processed < (uint64) nids)
	{
		/* somebody has a row locked: look at all of them once more */
		jq_db_request_quietly(dbix, JQ_REQ_DUE);
		try_again_in(1000);
	}
	jq_owner_end(&state);
}

static void
publish_due(TimestampTz from)
{
	static const char *const sql =
		"SELECT " ROW_COLUMNS " FROM %s.jobqueue_job"
		" WHERE run_at <= $1 AND (run_at, id) > ($2, $3) AND home = $4"
		" ORDER BY run_at, id LIMIT 500";
	Oid types[4] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum values[4];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz last = from == DT_NOBEGIN ? DT_NOBEGIN : from - 1;
	int64 last_id = from == DT_NOBEGIN ? PG_INT64_MIN : PG_INT64_MAX;
	int n;

	due_seen = now;

	do
	{
		JqTable *t = begin();
		JqOwnerState state;
		FoundRow *rows;
		int i, j;

		if (t == NULL || t->meta_database != MyDatabaseId)
		{
			commit();
			return;
		}
		values[0] = TimestampTzGetDatum(now);
		values[1] = TimestampTzGetDatum(last);
		values[2] = Int64GetDatum(last_id);
		values[3] = Int64GetDatum(t->home);
		jq_owner_begin(t, &state);
		jq_owner_execute(t, sql, 4, types, values, NULL);
		rows = found_rows(&n);
		jq_owner_end(&state);
		for (i = 0; i < n; i = j)
		{
			JqItem items[BATCH];
			int src[BATCH];
			int m = 0;

			for (j = i; j < n && rows[j].owner == rows[i].owner &&
						strcmp(rows[j].queue, rows[i].queue) == 0;
				 j++)
				if (!jq_claim_is_out(MyDatabaseId, rows[j].item.id))
				{
					src[m] = j;
					items[m++] = rows[j].item;
				}
			if (m == 0)
				continue;
			jq_lane_publish_due(MyDatabaseId, rows[i].owner, rows[i].queue,
								items, m);
			while (m-- > 0)
				rows[src[m]].item.flags = items[m].flags;
		}
		make_ready(t, rows, n);
		commit();
		/* those are found by refill now; until then the lane does not know */
		for (i = 0; i < n; i++)
			if (rows[i].item.flags & JQ_E_REFUSED)
			{
				rows[i].item.flags = 0;
				jq_lane_publish(MyDatabaseId, rows[i].owner, rows[i].queue,
								&rows[i].item, 1);
			}
		if (n > 0)
		{
			last = rows[n - 1].run_at;
			last_id = rows[n - 1].item.id;
		}
		MemoryContextReset(work_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == BATCH);
}

/* the end of a job that no worker had, in the ring */
static void
note_end(int64 id, Oid role, const char *queue, JqOutcome outcome, int attempt,
		 TimestampTz started_at, TimestampTz ended_at, const char *error)
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

static void
end_expired(TimestampTz unused)
{
	int n;

	(void) unused;
	do
	{
		JqTable *t = begin();
		JqOwnerState state;
		FoundRow *rows;
		Oid types[1] = {INT8OID};
		Datum values[1];
		Interval week;
		int i;
		int ended = 0;

		if (t == NULL)
		{
			commit();
			return;
		}
		memset(&week, 0, sizeof(week));
		week.day = 7;
		values[0] = Int64GetDatum(t->home);
		jq_owner_begin(t, &state);
		jq_owner_execute(
			t,
			"SELECT " ROW_COLUMNS " FROM %s.jobqueue_job"
			" WHERE expires_at <= clock_timestamp() AND home = $1"
			" ORDER BY expires_at LIMIT 500 FOR UPDATE SKIP LOCKED",
			1, types, values, NULL);
		rows = found_rows(&n);
		jq_owner_end(&state);
		for (i = 0; i < n; i++)
		{
			/* what runs was started in time */
			if (jq_claim_hold(MyDatabaseId, rows[i].owner, rows[i].queue,
							  rows[i].item.id) != JQ_HOLD_DONE)
				continue;
			jq_publish_held(rows[i].owner, rows[i].queue, &rows[i].item,
							rows[i].run_at);
			jq_archive(t, rows[i].item.id, "cancelled", "expired", 0, (Datum) 0,
					   &week);
			rows[i].run_at = DT_NOEND; /* to be noted below */
			ended++;
		}
		commit();
		for (i = 0; i < n; i++)
			if (rows[i].run_at == DT_NOEND)
				note_end(rows[i].item.id, rows[i].owner, rows[i].queue,
						 JQ_CANCELLED, 0, 0, GetCurrentTimestamp(), "expired");
		if (ended == 0)
			break;
		MemoryContextReset(work_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == BATCH);
}

/* when is the next row due, or expired? */
static void
find_next_due(TimestampTz unused)
{
	Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1];
	JqTable *t = begin();
	JqOwnerState state;
	TimestampTz next = DT_NOEND;
	bool isnull;

	(void) unused;
	if (t == NULL)
	{
		commit();
		return;
	}
	/* not what is due by now: what became due since then is not published */
	values[0] = TimestampTzGetDatum(due_seen);
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "SELECT least("
					 "(SELECT min(run_at) FROM %s.jobqueue_job"
					 "  WHERE run_at > $1),"
					 "(SELECT min(expires_at) FROM %s.jobqueue_job"
					 "  WHERE expires_at > $1))",
					 1, types, values, NULL);
	if (SPI_processed == 1)
	{
		Datum d = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
								&isnull);

		if (!isnull)
			next = DatumGetTimestampTz(d);
	}
	jq_owner_end(&state);
	commit();
	if (next != DT_NOEND)
		jq_db_due(dbix, next);
}

/* ------------------------------------------------- failing, doubtful claims */

static void
publish_row(JqRow *row, JqTable *t)
{
	JqItem item;
	TimestampTz run_at = DT_NOBEGIN;
	char *key = jq_row_cstring(row, JQ_COL_KEY);

	if (DatumGetInt64(JQ_ROW(row, JQ_COL_HOME)) != t->home)
		return;
	memset(&item, 0, sizeof(item));
	item.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	item.priority = DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY));
	item.tid = row->tid;
	if (key != NULL)
	{
		item.key = key;
		item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
	{
		item.flags = JQ_E_DUE;
		run_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
		if (run_at <= GetCurrentTimestamp())
			run_at = DT_NOBEGIN;
	}
	jq_publish_now(MyDatabaseId, DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)),
				   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
}

static void
settle_doubtful(JqHeld *h)
{
	JqTable *t;
	JqRow row;
	TransactionId xid;
	JqFetch fetch = JQ_FETCH_GONE;

	if (TransactionIdIsValid(h->xid) ?
			TransactionIdIsInProgress(h->xid) :
			h->since + USECS_PER_SEC > GetCurrentTimestamp())
	{
		/* the longer it lasts, the more seldom we look */
		int64 age = (GetCurrentTimestamp() - h->since) / 1000;

		jq_db_request_quietly(dbix, JQ_REQ_FAILED);
		try_again_in(age < 1000 ? 20 : age < 10000 ? 100 : 1000);
		return;
	}
	t = begin();
	if (t != NULL)
		fetch = jq_row_fetch(t, h->id, NULL, NULL, &row, &xid, NULL);
	commit();
	if (fetch == JQ_FETCH_DOUBTFUL)
	{
		jq_db_request_quietly(dbix, JQ_REQ_FAILED);
		try_again_in(100);
		return;
	}
	HOLD_INTERRUPTS();
	jq_claim_unhold(MyDatabaseId, h->id);
	if (fetch == JQ_FETCH_FOUND)
		publish_row(&row, t);
	RESUME_INTERRUPTS();
}

static void
settle_failing(JqHeld *h)
{
	JqTable *t;
	JqFailure f;
	JqRecorded recorded = JQ_RECORD_GONE;
	TimestampTz run_at = DT_NOEND;
	bool cancelled = strcmp(h->sqlstate, "CANCL") == 0;

	/*
	 * A server that shuts down terminates workers too, and a job is not to be
	 * charged for that.  If it does, this process is gone before the time is
	 * over.
	 */
	if (h->since + SHUTDOWN_GRACE_MS * INT64CONST(1000) > GetCurrentTimestamp())
	{
		jq_db_request_quietly(dbix, JQ_REQ_FAILED);
		try_again_in(SHUTDOWN_GRACE_MS);
		return;
	}
	JQ_PAUSE("scheduler-before-record");
	memset(&f, 0, sizeof(f));
	f.sqlstate = h->sqlstate;
	f.message = h->error;
	f.started_at = h->started_at;
	t = begin();
	if (t != NULL && cancelled)
	{
		Interval week;

		memset(&week, 0, sizeof(week));
		week.day = 7;
		jq_archive(t, h->id, "cancelled", "cancelled while it ran",
				   h->started_at, (Datum) 0, &week);
	}
	else if (t != NULL)
		recorded = jq_record_failure(t, h->id, &f, &run_at);
	HOLD_INTERRUPTS();
	commit();
	jq_claim_unhold(MyDatabaseId, h->id);
	if (recorded == JQ_RECORD_RETRY)
		jq_db_due(dbix, run_at);
	RESUME_INTERRUPTS();
	if (recorded != JQ_RECORD_GONE || cancelled)
		note_end(h->id, h->role, h->queue,
				 cancelled					? JQ_CANCELLED :
				 recorded == JQ_RECORD_DEAD ? JQ_DEAD :
											  JQ_FAILED,
				 h->attempt, h->started_at, h->since, h->error);
}

static void
settle_held(TimestampTz unused)
{
	int n, i;
	JqHeld *list = jq_claim_list(MyDatabaseId, &n);

	(void) unused;
	for (i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (list[i].kind == JQ_HELD_FAILING)
			settle_failing(&list[i]);
		else
			settle_doubtful(&list[i]);
	}
}

/* ---------------------------------------------------- roles without rights */

/* memory has nothing of that role any more but hints about rows that are gone */
static void
forget_role(Oid role)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		char queue[JQ_QUEUE_NAME_MAX + 1];
		bool mine;

		LWLockAcquire(jq_lane_lock(i), LW_SHARED);
		mine = jq_lanes[i].db == MyDatabaseId && jq_lanes[i].role == role;
		strlcpy(queue, jq_lanes[i].queue, sizeof(queue));
		LWLockRelease(jq_lane_lock(i));
		if (mine)
			jq_lane_spill(MyDatabaseId, role, queue, JQ_POS_NOTHING, 0);
	}
}

/*
 * All waiting jobs of a role that cannot run any go dead.
 */
static void
give_up_role(Oid role, const char *sqlstate, const char *message)
{
	int n;
	int ended;

	do
	{
		JqTable *t = begin();
		Oid types[1] = {OIDOID};
		Datum values[1];
		JqOwnerState state;
		FoundRow *rows;
		int i;

		ended = 0;
		if (t == NULL)
		{
			commit();
			return;
		}
		values[0] = ObjectIdGetDatum(role);
		jq_owner_begin(t, &state);
		jq_owner_execute(t,
						 "SELECT " ROW_COLUMNS " FROM %s.jobqueue_job"
						 " WHERE owner::oid = $1 LIMIT 500",
						 1, types, values, NULL);
		rows = found_rows(&n);
		jq_owner_end(&state);
		for (i = 0; i < n; i++)
		{
			JqFailure f;
			TimestampTz run_at;

			if (jq_claim_hold(MyDatabaseId, rows[i].owner, rows[i].queue,
							  rows[i].item.id) != JQ_HOLD_DONE)
				continue;
			jq_publish_held(rows[i].owner, rows[i].queue, &rows[i].item,
							rows[i].run_at);
			memset(&f, 0, sizeof(f));
			f.sqlstate = sqlstate;
			f.message = message;
			f.reason = message;
			f.final = true;
			jq_record_failure(t, rows[i].item.id, &f, &run_at);
			ended++;
		}
		commit();
		MemoryContextReset(work_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == BATCH && ended > 0);
	forget_role(role);
}

static void
check_roles(TimestampTz unused)
{
	int *list = palloc(jq_shared->nlanes * sizeof(int));
	int n = jq_dir_lanes_of(MyDatabaseId, list);
	Oid *roles = palloc(Max(n, 1) * sizeof(Oid));
	int i;

	(void) unused;
	for (i = 0; i < n; i++)
		roles[i] = jq_lanes[list[i]].role;
	for (i = 0; i < n; i++)
	{
		Oid role = roles[i];
		char message[256];
		int j;
		bool exists, connects = true;

		for (j = 0; j < i; j++)
			if (roles[j] == role)
				break;
		if (j < i)
			continue;
		(void) begin();
		exists = SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
		if (exists)
			connects = jq_database_aclcheck(MyDatabaseId, role, ACL_CONNECT) ==
					   ACLCHECK_OK;
		commit();
		if (exists && connects)
			continue;
		if (!exists)
			snprintf(message, sizeof(message),
					 "role with OID %u does not exist", role);
		else
			snprintf(message, sizeof(message),
					 "the role has no CONNECT privilege on the database");
		/* give_up_role resets the context */
		{
			Oid *copy = MemoryContextAlloc(TopMemoryContext, n * sizeof(Oid));

			memcpy(copy, roles, n * sizeof(Oid));
			give_up_role(role, exists ? "42501" : "42704", message);
			roles = MemoryContextAlloc(work_context, n * sizeof(Oid));
			memcpy(roles, copy, n * sizeof(Oid));
			pfree(copy);
		}
	}
}

/* --------------------------------------------------------- count and prune */

static void
count_rows(TimestampTz unused)
{
	static const char *const sql =
		"SELECT queue, owner::oid,"
		" count(*) FILTER (WHERE run_at IS NULL AND home = $1),"
		" count(*) FILTER (WHERE home <> $1)"
		" FROM %s.jobqueue_job GROUP BY 1, 2 ORDER BY 1, 2";
	JqTable *t = begin();
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	uint64 i;

	(void) unused;
	if (t == NULL)
	{
		commit();
		return;
	}
	for (i = 0; i < (uint64) jq_shared->nqueues; i++)
		if (jq_queues[i].db == MyDatabaseId)
			pg_atomic_write_u64(&jq_queues[i].held, 0);
	values[0] =
		Int64GetDatum(t->meta_database == MyDatabaseId ? t->home : t->home + 1);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 1, types, values, NULL);
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;
		char *queue = TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull));
		Oid owner = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
		int64 ready = DatumGetInt64(SPI_getbinval(tup, desc, 3, &isnull));
		int64 held = DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull));
		int lane = jq_dir_lane(MyDatabaseId, owner, queue, true);
		JqLane *l;

		if (lane < 0)
			continue;
		l = &jq_lanes[lane];
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (jq_lane_is(l, MyDatabaseId, owner, queue))
		{
			int64 known = (int64) l->nready + l->nparked + l->nclaimed;

			l->spilled = jq_pos_is_all(l->frontier) ? 0 : Max(ready - known, 0);
			l->spilled_counted = true;
			pg_atomic_fetch_add_u64(&jq_queues[l->queue_ix].held, held);
		}
		LWLockRelease(jq_lane_lock(lane));
	}
	jq_owner_end(&state);
	commit();
}

static void
prune(TimestampTz unused)
{
	uint64 n;

	(void) unused;
	do
	{
		JqTable *t = begin();
		JqOwnerState state;

		if (t == NULL)
		{
			commit();
			return;
		}
		jq_owner_begin(t, &state);
		jq_owner_execute(
			t,
			"DELETE FROM %s.jobqueue_archive WHERE id IN ("
			" SELECT id FROM %s.jobqueue_archive"
			" WHERE expires_at <= clock_timestamp()"
			" ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED)",
			0, NULL, NULL, NULL);
		n = SPI_processed;
		jq_owner_end(&state);
		commit();
		CHECK_FOR_INTERRUPTS();
	} while (n == 1000);
}

/* ------------------------------------------------------------------- loop */

static void
scheduler_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_db_sched_detach(dbix);
}

static void
serve(uint32 requests, TimestampTz due_from)
{
	if (requests & JQ_REQ_SETTINGS)
	{
		guarded(read_settings, 0, JQ_REQ_SETTINGS);
		requests |= JQ_REQ_REFILL; /* of lanes that may run now */
	}
	if (requests & JQ_REQ_DISCOVER)
		guarded(discover, 0, JQ_REQ_DISCOVER);
	if (requests & (JQ_REQ_REFILL | JQ_REQ_DISCOVER))
		guarded(refill, 0, JQ_REQ_REFILL);
	if (requests & JQ_REQ_DUE)
	{
		guarded(publish_due, due_from, JQ_REQ_DUE);
		guarded(end_expired, 0, JQ_REQ_DUE);
		guarded(find_next_due, 0, JQ_REQ_DUE);
	}
	if (requests & JQ_REQ_FAILED)
		guarded(settle_held, 0, JQ_REQ_FAILED);
	if (requests & JQ_REQ_GROUP)
		guarded(check_roles, 0, JQ_REQ_GROUP);
	if (requests & JQ_REQ_COUNT)
		guarded(count_rows, 0, JQ_REQ_COUNT);
}

/* is the extension here, and is this a place to stay? */
static bool
look_around(bool *template)
{
	JqTable *t;
	HeapTuple tup;

	t = begin();
	tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	*template = HeapTupleIsValid(tup) &&
				((Form_pg_database) GETSTRUCT(tup))->datistemplate;
	if (HeapTupleIsValid(tup))
		ReleaseSysCache(tup);
	commit();
	return t != NULL;
}

void
jq_scheduler_main(Datum arg)
{
	static uint32 wait_event;
	TimestampTz idle_since;
	TimestampTz last_prune = 0;
	bool template;
	int *list;
	int n, i;

	dbix = DatumGetInt32(arg);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (dbix < 0 || dbix >= jq_shared->ndbs || !jq_db_sched_attach(dbix))
		proc_exit(0);
	on_shmem_exit(scheduler_exit, (Datum) 0);
	BackgroundWorkerInitializeConnectionByOid(jq_dbs[dbix].oid, InvalidOid, 0);
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET,
					PGC_S_OVERRIDE);
	SetConfigOption("enable_seqscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_bitmapscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	work_context = AllocSetContextCreate(TopMemoryContext, "jobqueue scheduler",
										 ALLOCSET_DEFAULT_SIZES);
	jq_publish_init();
	jq_keylock_prepare();

	if (!look_around(&template))
	{
		jq_dir_purge_db(MyDatabaseId);
		jq_db_set_absent(dbix, true);
		(void) jq_db_sched_leave(dbix, DT_NOBEGIN);
		proc_exit(0);
	}
	jq_db_set_absent(dbix, false);
	guarded(settle_suspects, 0, 0);
	list =
		MemoryContextAlloc(TopMemoryContext, jq_shared->nlanes * sizeof(int));
	n = jq_dir_lanes_of(MyDatabaseId, list);
	for (i = 0; i < n; i++)
		jq_lane_refill_abandon(list[i]);

	idle_since = GetCurrentTimestamp();
	for (;;)
	{
		uint32 requests;
		TimestampTz due_from;
		TimestampTz now;
		TimestampTz wake;
		long timeout;

		CHECK_FOR_INTERRUPTS();
		jq_reload_config();
		look_again = DT_NOEND;
		requests = jq_db_take_requests(dbix, &due_from);
		if (requests != 0)
		{
			pgstat_report_activity(STATE_RUNNING, "jobqueue scheduler");
			serve(requests, due_from);
			idle_since = GetCurrentTimestamp();
		}
		now = GetCurrentTimestamp();
		if (now - last_prune > PRUNE_INTERVAL_MS * INT64CONST(1000))
		{
			guarded(prune, 0, 0);
			last_prune = now;
		}
		pgstat_report_stat(false);
		pgstat_report_activity(STATE_IDLE, NULL);
		if (*(volatile bool *) &jq_dbs[dbix].leave)
			break; /* what is owed is left to the next one */
		if (look_again == DT_NOEND)
		{
			/* a request that came meanwhile is served before we think of leaving */
			bool stop =
				template || now - idle_since >= IDLE_MS * INT64CONST(1000);

			if (stop &&
				jq_db_sched_leave(dbix, template ?
											now + USECS_PER_SEC :
											now + IDLE_MS * INT64CONST(1000)))
				break;
		}
		wake = TimestampTzPlusMilliseconds(idle_since, IDLE_MS);
		if (look_again == DT_NOEND)
		{
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
			if (jq_dbs[dbix].requests != 0)
				wake = now;
			else
				wake = Min(now < wake ? wake : now + IDLE_MS * INT64CONST(1000),
						   jq_dbs[dbix].next_due);
			LWLockRelease(jq_lock(JQ_LOCK_DB));
		}
		else
		{
			/* requests put back for later must not be taken at once */
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
			wake = Min(look_again, jq_dbs[dbix].next_due);
			LWLockRelease(jq_lock(JQ_LOCK_DB));
		}
		timeout = TimestampDifferenceMilliseconds(now, wake);
		if (timeout > 0)
		{
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Min(timeout, 60000L),
							 jq_wait_event(&wait_event,
										   "JobqueueSchedulerMain"));
			ResetLatch(MyLatch);
			QueryCancelPending = false;
		}
	}
	proc_exit(0);
}
