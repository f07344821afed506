/*
 * due.c
 *		Part of a scheduler: rows whose time has come, or has run out.
 *
 * Where an old snapshot is held, the index entries of what was due before are
 * still there, dead.  So a look goes on where the last one ended, unless all of
 * it is asked for.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "claim.h"
#include "database.h"
#include "dependency.h"
#include "executor/spi.h"
#include "failure.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "scheduler.h"
#include "unique.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

static TimestampTz due_seen; /* rows due up to here have been looked at */
static TimestampTz expiry_seen = DT_NOBEGIN;   /* and those that expire */
static TimestampTz expiry_looked = DT_NOBEGIN; /* when the last look was */
static TimestampTz prune_seen = DT_NOBEGIN;	   /* and those of the archive */
static int64 prune_seen_id = PG_INT64_MIN;
static TimestampTz locks_seen = DT_NOBEGIN; /* and of unique_keys */

#define PRUNE_ROWS 1000 /* rows of the archive in one transaction */
#define PRUNE_BATCHES 5

bool jq_sched_prune_more;

/* is one of them due still, and claimed by nobody?  Then somebody had it locked. */
static bool
any_is_left(JqTable *t, Datum ids)
{
	Oid types[1] = {INT8ARRAYOID};
	JqOwnerState state;
	bool left = false;
	uint64 i;

	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "SELECT id FROM %s.jobqueue_job WHERE id = ANY($1)"
					 " AND run_at <= clock_timestamp()",
					 1, types, &ids, NULL);
	for (i = 0; i < SPI_processed && !left; i++)
	{
		bool isnull;

		left = !jq_claim_pass_over(
			MyDatabaseId,
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull)));
	}
	jq_owner_end(&state);
	return left;
}

/*
 * Rows that memory has no room for become ready in the table; which have, is
 * returned.  model: MAKE_READY
 */
static JqFoundRow *
make_ready(JqTable *t, const JqFoundRow *rows, const bool *refused, int n,
		   int *nready)
{
	Datum *ids = palloc(n * sizeof(Datum));
	int nids = 0;
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	JqOwnerState state;
	JqFoundRow *ready;
	int i;

	for (i = 0; i < n; i++)
		if (refused[i])
			ids[nids++] = Int64GetDatum(rows[i].item.id);
	*nready = 0;
	if (nids == 0)
		return NULL;
	values[0] = PointerGetDatum(
		construct_array(ids, nids, INT8OID, 8, true, TYPALIGN_DOUBLE));
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_job SET run_at = NULL WHERE id IN ("
					 " SELECT id FROM %s.jobqueue_job WHERE id = ANY($1)"
					 " AND run_at <= clock_timestamp() FOR UPDATE SKIP LOCKED)"
					 " RETURNING " JQ_SCHED_COLUMNS,
					 1, types, values, NULL);
	ready = jq_sched_rows(nready);
	jq_owner_end(&state);
	if (*nready < nids && any_is_left(t, values[0]))
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_LOST);
		jq_sched_again_in(1000);
	}
	return ready;
}

static void
tell_lanes(const JqFoundRow *rows, int n, bool committed)
{
	int i;

	for (i = 0; i < n; i++)
		jq_lane_made_ready(MyDatabaseId, rows[i].lane_role, rows[i].queue,
						   jq_pos_make(rows[i].item.priority, rows[i].item.id),
						   committed);
}

/* offer them to memory, or ask which it has lost; what it does not have is flagged */
typedef void (*OfferFunc)(Oid db, Oid role, const char *queue,
						  const JqItem *items, int n, bool *refused);

static void
offer_due(TimestampTz from, TimestampTz upto, OfferFunc offer)
{
	static const char *const sql =
		"SELECT " JQ_SCHED_COLUMNS " FROM %s.jobqueue_job"
		" WHERE run_at <= $1 AND (run_at, id) > ($2, $3) AND home = $4"
		" ORDER BY run_at, id LIMIT 500";
	Oid types[4] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum values[4];
	TimestampTz last = from == DT_NOBEGIN ? DT_NOBEGIN : from - 1;
	int64 last_id = from == DT_NOBEGIN ? PG_INT64_MIN : PG_INT64_MAX;
	int n;

	do
	{
		JqTable *t = jq_sched_begin();
		JqOwnerState state;
		JqFoundRow *rows, *ready;
		bool refused[JQ_SCHED_BATCH] = {false};
		int nready;
		int i, j;

		if (t == NULL || t->meta_database != MyDatabaseId)
		{
			jq_sched_commit();
			return;
		}
		values[0] = TimestampTzGetDatum(upto);
		values[1] = TimestampTzGetDatum(last);
		values[2] = Int64GetDatum(last_id);
		values[3] = Int64GetDatum(t->home);
		jq_owner_begin(t, &state);
		jq_owner_execute(t, sql, 4, types, values, NULL);
		rows = jq_sched_rows(&n);
		jq_owner_end(&state);
		JQ_PAUSE("due-after-look");
		for (i = 0; i < n; i = j)
		{
			JqItem items[JQ_SCHED_BATCH];
			bool flags[JQ_SCHED_BATCH] = {false};
			int src[JQ_SCHED_BATCH];
			int m = 0;

			for (j = i; j < n && rows[j].lane_role == rows[i].lane_role &&
						strcmp(rows[j].queue, rows[i].queue) == 0;
				 j++)
				if (!jq_claim_pass_over(MyDatabaseId, rows[j].item.id) &&
					/* one that was offered before may be a spilled key's by now, and
					 * would be counted once more */
					!(from == DT_NOBEGIN &&
					  jq_keylock_answers(
						  MyDatabaseId, rows[j].item.key, rows[j].item.keylen,
						  jq_pos_make(rows[j].item.priority, rows[j].item.id))))
				{
					src[m] = j;
					items[m++] = rows[j].item;
				}
			if (m == 0)
				continue;
			offer(MyDatabaseId, rows[i].lane_role, rows[i].queue, items, m,
				  flags);
			while (m-- > 0)
				refused[src[m]] = flags[m];
		}
		ready = make_ready(t, rows, refused, n, &nready);
		tell_lanes(ready, nready, false);
		JQ_PAUSE("due-made-ready");
		jq_sched_commit();
		tell_lanes(ready, nready, true);
		if (n > 0)
		{
			last = rows[n - 1].run_at;
			last_id = rows[n - 1].item.id;
		}
		MemoryContextReset(jq_sched_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == JQ_SCHED_BATCH);
}

void
jq_sched_publish_due(TimestampTz from)
{
	due_seen = GetCurrentTimestamp();
	offer_due(from, due_seen, jq_lane_publish_due);
}

/*
 * Rows that had to leave memory: those due up to there (some were published as they
 * were enqueued), and whatever was published since.  What is due later than that,
 * and has left memory by now, is found by jq_sched_find_next_due after this.
 */
void
jq_sched_find_lost(TimestampTz upto)
{
	due_seen = Max(due_seen, upto);
	jq_lane_lost_begin(MyDatabaseId, true);
	JQ_PAUSE("lost-begun");
	offer_due(DT_NOBEGIN, due_seen, jq_lane_which_lost);
}

/* running or not */
static int64
count_expired(TimestampTz from, TimestampTz to)
{
	Oid types[3] = {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum values[3];
	JqTable *t = jq_sched_begin();
	JqOwnerState state;
	int64 n = 0;

	if (t != NULL)
	{
		bool isnull;

		values[0] = Int64GetDatum(t->home);
		values[1] = TimestampTzGetDatum(from);
		values[2] = TimestampTzGetDatum(to);
		jq_owner_begin(t, &state);
		jq_owner_execute(t,
						 "SELECT count(*) FROM %s.jobqueue_job"
						 " WHERE expires_at >= $2 AND expires_at <= $3"
						 " AND home = $1",
						 3, types, values, NULL);
		n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
		jq_owner_end(&state);
	}
	jq_sched_commit();
	return n;
}

void
jq_sched_end_expired(TimestampTz from)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz begin = Min(from, expiry_seen);
	TimestampTz last = begin;
	int64 last_id = PG_INT64_MIN;
	int64 running = 0;
	int64 left;
	int n;

	expiry_looked = now;
	do
	{
		JqTable *t = jq_sched_begin();
		JqOwnerState state;
		JqFoundRow *rows;
		Oid types[4] = {INT8OID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID};
		Datum values[4];
		int i;

		if (t == NULL)
		{
			jq_sched_commit();
			return;
		}
		values[0] = Int64GetDatum(t->home);
		values[1] = TimestampTzGetDatum(last);
		values[2] = Int64GetDatum(last_id);
		values[3] = TimestampTzGetDatum(now);
		jq_owner_begin(t, &state);
		jq_owner_execute(
			t,
			"SELECT " JQ_SCHED_COLUMNS ", expires_at FROM %s.jobqueue_job"
			" WHERE (expires_at, id) > ($2, $3) AND expires_at <= $4"
			" AND home = $1"
			" ORDER BY expires_at, id LIMIT 500 FOR UPDATE SKIP LOCKED",
			4, types, values, NULL);
		rows = jq_sched_rows(&n);
		if (n > 0)
		{
			bool isnull;

			last_id = rows[n - 1].item.id;
			last = DatumGetTimestampTz(
				SPI_getbinval(SPI_tuptable->vals[n - 1], SPI_tuptable->tupdesc,
							  JQ_SCHED_NCOLUMNS + 1, &isnull));
		}
		jq_owner_end(&state);
		for (i = 0; i < n; i++)
		{
			JqHoldResult held = jq_claim_hold(MyDatabaseId, rows[i].lane_role,
											  rows[i].queue, rows[i].item.id);

			/* what runs was started in time */
			if (held == JQ_HOLD_RUNNING)
				running++;
			if (held != JQ_HOLD_DONE)
				continue;
			jq_publish_held(rows[i].lane_role, rows[i].queue, &rows[i].item,
							rows[i].run_at);
			jq_archive(t, rows[i].item.id, "cancelled", "expired", 0,
					   (Datum) 0);
			rows[i].run_at = DT_NOEND; /* to be noted below */
		}
		jq_sched_commit();
		for (i = 0; i < n; i++)
			if (rows[i].run_at == DT_NOEND)
				jq_sched_note_end(rows[i].item.id, rows[i].owner, rows[i].queue,
								  JQ_CANCELLED, 0, 0, GetCurrentTimestamp(),
								  "expired");
		MemoryContextReset(jq_sched_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == JQ_SCHED_BATCH);
	left = count_expired(begin, now);
	if (left == 0)
		expiry_seen = now;
	/* rows that others have locked, or act on, are looked at again in a while */
	else if (left > running)
		jq_db_expiry(jq_sched_dbix, now + USECS_PER_SEC);
}

static TimestampTz
find_next(const char *sql, TimestampTz after)
{
	Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1];
	JqTable *t = jq_sched_begin();
	JqOwnerState state;
	TimestampTz next = DT_NOEND;

	if (t != NULL)
	{
		values[0] = TimestampTzGetDatum(after);
		jq_owner_begin(t, &state);
		jq_owner_execute(t, sql, 1, types, values, NULL);
		if (SPI_processed == 1)
		{
			bool isnull;
			Datum d = SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 1, &isnull);

			if (!isnull)
				next = DatumGetTimestampTz(d);
		}
		jq_owner_end(&state);
	}
	jq_sched_commit();
	return next;
}

/* after those that have been looked at, when is the next row due? */
void
jq_sched_find_next_due(TimestampTz unused)
{
	/* not after now: what became due since the look is not published yet.  But
	 * where the clock was put back, what was due before that comes once more */
	TimestampTz next =
		find_next("SELECT min(run_at) FROM %s.jobqueue_job WHERE run_at > $1",
				  Min(due_seen, GetCurrentTimestamp()));

	(void) unused;
	if (next != DT_NOEND)
		jq_db_due(jq_sched_dbix, next);
}

/*
 * And when does one expire?  Apart from the other, as it goes over the entries of
 * all jobs that ended before they would have expired and that an old snapshot
 * keeps.
 */
void
jq_sched_find_next_expiry(TimestampTz unused)
{
	TimestampTz next = find_next(
		"SELECT min(expires_at) FROM %s.jobqueue_job WHERE expires_at > $1",
		expiry_looked);

	(void) unused;
	if (next != DT_NOEND)
		jq_db_expiry(jq_sched_dbix, next);
}

/* and when is there something to leave the archive? */
static void
find_next_prune(void)
{
	TimestampTz next;

	/* whoever adds to it from now on says so himself */
	jq_db_forget_prune(jq_sched_dbix);
	next = find_next(
		"SELECT min(expires_at) FROM %s.jobqueue_archive WHERE expires_at > $1",
		prune_seen);
	if (next != DT_NOEND)
		jq_db_prune(jq_sched_dbix, next);
	next = find_next(
		"SELECT min(expires_at) FROM %s.jobqueue_unique WHERE expires_at > $1",
		GetCurrentTimestamp());
	if (next != DT_NOEND)
		jq_db_prune(jq_sched_dbix, next + JQ_UNIQUE_LINGERS_US);
}

/*
 * What is in the archive for long enough.  A part of it at a time, as jobs wait
 * for what else a scheduler does.
 */
void
jq_sched_prune(TimestampTz unused)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz last = prune_seen;
	int64 last_id = prune_seen_id;
	int batches = 0;
	TimestampTz last_lock = locks_seen;
	int64 n;

	(void) unused;
	jq_sched_prune_more = false;
	/* if this fails, then once more */
	jq_db_forget_prune(jq_sched_dbix);
	jq_db_prune(jq_sched_dbix, now);
	do
	{
		JqTable *t = jq_sched_begin();
		Oid types[4] = {TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID};
		Datum values[4];
		JqOwnerState state;
		bool isnull;

		if (t == NULL)
		{
			jq_sched_commit();
			return;
		}
		values[0] = TimestampTzGetDatum(last);
		values[1] = Int64GetDatum(last_id);
		values[2] = TimestampTzGetDatum(now);
		values[3] = Int64GetDatum(PRUNE_ROWS);
		jq_owner_begin(t, &state);
		jq_owner_execute(
			t,
			"WITH gone AS (DELETE FROM %s.jobqueue_archive WHERE id IN ("
			"  SELECT id FROM %s.jobqueue_archive"
			"  WHERE (expires_at, id) > ($1, $2) AND expires_at <= $3"
			"  AND NOT " JQ_AWAITED
			"  ORDER BY expires_at, id LIMIT $4 FOR UPDATE SKIP LOCKED)"
			" RETURNING expires_at, id)"
			" SELECT expires_at, id, count(*) OVER () FROM gone"
			" ORDER BY expires_at DESC, id DESC LIMIT 1",
			4, types, values, NULL);
		n = 0;
		if (SPI_processed > 0)
		{
			HeapTuple tup = SPI_tuptable->vals[0];
			TupleDesc desc = SPI_tuptable->tupdesc;

			last = DatumGetTimestampTz(SPI_getbinval(tup, desc, 1, &isnull));
			last_id = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));
			n = DatumGetInt64(SPI_getbinval(tup, desc, 3, &isnull));
		}
		jq_owner_end(&state);
		jq_sched_commit();
		CHECK_FOR_INTERRUPTS();
	} while (n == PRUNE_ROWS && ++batches < PRUNE_BATCHES);
	jq_sched_prune_more = n == PRUNE_ROWS;
	if (jq_sched_prune_more)
	{
		prune_seen = last;
		prune_seen_id = last_id;
		jq_sched_again_in(0);
		JQ_PAUSE("prune-part");
		return;
	}
	/* a transaction may commit an end that is older than it */
	prune_seen = now - USECS_PER_HOUR;
	prune_seen_id = PG_INT64_MIN;
	do
	{
		JqTable *t = jq_sched_begin();

		n = t == NULL ? 0 : jq_unique_prune(t, &last_lock, now, 1000);
		jq_sched_commit();
		CHECK_FOR_INTERRUPTS();
	} while (n == 1000);
	locks_seen = now - USECS_PER_HOUR;
	find_next_prune();
}
