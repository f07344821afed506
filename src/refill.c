/*
 * refill.c
 *		Part of a scheduler: bringing rows into memory; see lane.c and keylock.c.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "claim.h"
#include "database.h"
#include "executor/spi.h"
#include "guc.h"
#include "jobscan.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "pausedrole.h"
#include "scheduler.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define COUNT_AT_ONCE 20000 /* rows counted in one go */
/* rows of another home may come all the time: nine tenths of it are for others */
#define COUNT_REST 10
#define PLACES_AT_ONCE 64	  /* lanes taken from others in one discovery */
#define VISITS_AT_ONCE 200000 /* rows passed over in one refill */

/* --------------------------------------------------------------- discover */

/* lanes of paused queues give up what they have: somebody needs their places */
static void
empty_paused_lanes(void)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];

		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (l->db == MyDatabaseId && l->nready > 0 && !l->filling &&
			l->nclaimed == 0 && l->held_back == 0 &&
			pg_atomic_read_u32(&jq_queues[l->queue_ix].stopped) &
				JQ_STOPPED_PAUSED)
			jq_lane_clear(i, JQ_POS_NOTHING);
		LWLockRelease(jq_lane_lock(i));
	}
}

void
jq_sched_discover(TimestampTz unused)
{
	uint32 overflows = jq_db_overflows(jq_sched_dbix); /* before we look */
	JqTable *t = jq_sched_begin();
	char queue[NAMEDATALEN];
	Oid owner;
	bool complete = true;
	bool first = true;
	int tries = 0;

	(void) unused;
	if (t == NULL)
	{
		jq_sched_commit();
		return;
	}
	for (; jq_next_lane(t, queue, &owner, first); first = false)
	{
		CHECK_FOR_INTERRUPTS();
		jq_dir_forget(); /* the place it remembers may be another lane's now */
		if (jq_dir_lane(MyDatabaseId, owner, queue, false) >= 0)
			continue;
		/* no place for lanes whose entries are all dead: they may be many */
		if (!jq_lane_has_rows(t, queue, owner) ||
			jq_dir_lane(MyDatabaseId, owner, queue, true) >= 0 ||
			jq_dir_leave_unseen(jq_sched_dbix, queue))
			continue;
		if (tries++ < PLACES_AT_ONCE && jq_dir_make_place(MyDatabaseId, owner))
			(void) jq_dir_lane(MyDatabaseId, owner, queue, true);
		complete = false;
	}
	jq_sched_commit();
	if (complete)
		jq_db_set_loaded(jq_sched_dbix, overflows);
	else
	{
		/* when lanes have emptied there may be place */
		static TimestampTz warned;

		empty_paused_lanes();

		if (GetCurrentTimestamp() - warned > 5 * USECS_PER_MINUTE)
			ereport(
				WARNING,
				(errmsg(
					 "more queues and roles have jobs than memory has lanes for"),
				 errhint("Increase jobqueue.max_lanes (now %d).",
						 jobqueue_max_lanes)));
		warned = GetCurrentTimestamp();
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_DISCOVER);
		jq_sched_again_in(100);
	}
	jq_db_request_quietly(jq_sched_dbix, JQ_REQ_REFILL);
}

/* ----------------------------------------------------------------- lanes */

static void
lane_name(int lane, char *queue, Oid *owner)
{
	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	strlcpy(queue, jq_lanes[lane].queue, JQ_QUEUE_NAME_MAX + 1);
	*owner = jq_lanes[lane].role;
	LWLockRelease(jq_lane_lock(lane));
}

/* the lane that is being refilled */
static int this_lane;
static JqPos this_passed;

/* 2: and the lane has counted it as its own */
static int
answered_for(const JqItem *item)
{
	bool fresh =
		jq_pos_cmp(jq_pos_make(item->priority, item->id), this_passed) >= 0;

	if (!jq_keylock_answers_for(MyDatabaseId, item, this_lane, fresh))
		return 0;
	return fresh ? 2 : 1;
}

static bool
is_of_paused_role(Oid owner)
{
	return jq_role_is_paused(MyDatabaseId, owner);
}

static void
refill_lane(int lane)
{
	JqRefill refill;
	JqReader r;
	JqTable *t;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid owner;

	lane_name(lane, queue, &owner);
	if (!jq_lane_refill_begin(lane, &refill))
		return;
	memset(&r, 0, sizeof(r));
	PG_TRY();
	{
		t = jq_sched_begin();
		if (t == NULL || t->meta_database != MyDatabaseId)
			r.upto = JQ_POS_ALL; /* nothing here is to run */
		else
		{
			r.items = MemoryContextAllocHuge(jq_sched_context,
											 refill.room * sizeof(JqItem));
			r.max = refill.room;
			r.max_visits = VISITS_AT_ONCE;
			r.pass = answered_for;
			r.skip = is_of_paused_role;
			this_lane = lane;
			this_passed = refill.passed;
			jq_rows_ready(t, queue, owner, refill.from, refill.low_id, &r);
		}
		jq_sched_commit();
	}
	PG_CATCH();
	{
		jq_lane_refill_abandon(lane);
		PG_RE_THROW();
	}
	PG_END_TRY();
	JQ_PAUSE("refill-after-snapshot");
	jq_lane_refill_add(lane, r.items, r.n);
	jq_lane_refill_end(lane, r.upto, r.npassed);
}

void
jq_sched_refill(TimestampTz unused)
{
	int *list =
		MemoryContextAlloc(TopMemoryContext, jq_shared->nlanes * sizeof(int));
	int n = jq_dir_lanes_of(MyDatabaseId, list);
	int i;

	(void) unused;
	PG_TRY();
	{
		for (i = 0; i < n; i++)
		{
			CHECK_FOR_INTERRUPTS();
			refill_lane(list[i]);
			MemoryContextReset(jq_sched_context);
		}
	}
	PG_FINALLY();
	{
		pfree(list);
	}
	PG_END_TRY();
	jq_db_request_quietly(jq_sched_dbix, JQ_REQ_RECOUNT);
}

/* ------------------------------------------------------------------ keys */

/*
 * Returns how many went to lanes from which jobs are taken.  Those that memory
 * had already were counted as rows in the table all the same.
 */
static int
publish_rows(const JqKeyWant *k, JqKeyRow *rows, const int *lanes, int n)
{
	int run = 0;
	int i;

	for (i = 0; i < n; i++)
	{
		bool runs = !jq_lane_stopped(&jq_lanes[lanes[i]]);
		bool known;
		bool accepted;

		if (runs)
			rows[i].item.flags |= JQ_E_BROUGHT;
		accepted = jq_lane_publish_one(MyDatabaseId, rows[i].lane_role,
									   rows[i].queue, &rows[i].item, &known);
		if (known)
			jq_keylock_was_known(MyDatabaseId, k, lanes[i]);
		if (runs && accepted)
			run++;
	}
	return run;
}

/* those that are claimed are not for memory; whoever has one publishes it */
static int
leave_out_claimed(JqKeyRow *rows, int n)
{
	int kept = 0;
	int i;

	for (i = 0; i < n; i++)
		if (!jq_claim_pass_over(MyDatabaseId, rows[i].item.id))
			rows[kept++] = rows[i];
	return kept;
}

static JqKeyRow *
read_key(JqKeyWant *k, JqPos from, int64 low_id, int room, int *n, JqPos *upto)
{
	JqKeyRow *rows = palloc(room * sizeof(JqKeyRow));
	JqTable *t = jq_sched_begin();

	*n = 0;
	*upto = JQ_POS_ALL;
	if (t != NULL && t->meta_database == MyDatabaseId)
		*n = jq_rows_of_key(t, k->key, k->len, from, low_id, is_of_paused_role,
							rows, room, upto);
	jq_sched_commit();
	return rows;
}

static void
refill_key(JqKeyWant *k)
{
	JqPos from, upto;
	int64 low_id;
	int room, n, run, i;
	int *lanes;
	JqKeyRow *rows;

	jq_keylock_prepare();
	if (!jq_keylock_refill_begin(MyDatabaseId, k, &from, &low_id, &room))
		return;
	/* nothing fails after this */
	PG_TRY();
	{
		rows = read_key(k, from, low_id, room, &n, &upto);
		lanes = palloc(Max(n, 1) * sizeof(int));
	}
	PG_CATCH();
	{
		jq_keylock_refill_abandon(MyDatabaseId);
		PG_RE_THROW();
	}
	PG_END_TRY();
	JQ_PAUSE("key-refill-after-snapshot");
	n = leave_out_claimed(rows, n);
	for (i = 0; i < n; i++)
		/* without a place for the lane, it does not matter which */
		lanes[i] = Max(jq_dir_lane(MyDatabaseId, rows[i].lane_role,
								   rows[i].queue, true),
					   0);
	jq_keylock_refill_read(MyDatabaseId, k, upto, lanes, n);
	run = publish_rows(k, rows, lanes, n);
	jq_keylock_refill_end(MyDatabaseId, k, n - run);
}

void
jq_sched_refill_keys(TimestampTz unused)
{
	int n, i;
	JqKeyWant *list = jq_keylock_wanting(MyDatabaseId, &n);

	(void) unused;
	jq_keylock_wake();
	for (i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		refill_key(&list[i]);
	}
	if (n > 0)
		jq_db_request(jq_sched_dbix, JQ_REQ_KEYS); /* are there more? */
}

/* -------------------------------------------------------------- counting */

/* rows of another home that wait for a time: up to here they are counted */
static TimestampTz counted_run_at = DT_NOEND;
static int64 counted_id;

static bool counting;
static TimestampTz count_begun;
static TimestampTz count_next; /* not before that */

static bool
count_lane(int lane)
{
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid owner;
	JqPos from, frontier, passed;
	JqPos upto = JQ_POS_ALL;
	int64 n = 0;
	int64 held = 0;
	JqTable *t;

	if (!jq_lane_count_from(lane, &from, &frontier, &passed))
		return false;
	lane_name(lane, queue, &owner);
	t = jq_sched_begin();
	if (t != NULL)
	{
		this_lane = lane;
		this_passed = passed;
		n = jq_rows_count(t, queue, owner, from, frontier, COUNT_AT_ONCE,
						  answered_for, &held, &upto);
	}
	jq_sched_commit();
	jq_lane_counted(lane, from, upto, n, held);
	return true;
}

/* false: there are no more */
static bool
count_held_due(void)
{
	static const char *const sql =
		"WITH c AS (SELECT queue, home, run_at, id FROM %s.jobqueue_job"
		"  WHERE run_at IS NOT NULL AND (run_at, id) > ($1, $2)"
		"  ORDER BY run_at, id LIMIT 20000)"
		" SELECT queue, count(*) FILTER (WHERE home <> $3),"
		"  (SELECT run_at FROM c ORDER BY run_at DESC, id DESC LIMIT 1),"
		"  (SELECT id FROM c ORDER BY run_at DESC, id DESC LIMIT 1)"
		" FROM c GROUP BY queue";
	JqTable *t = jq_sched_begin();
	Oid types[3] = {TIMESTAMPTZOID, INT8OID, INT8OID};
	Datum values[3];
	JqOwnerState state;
	uint64 i;
	bool more;

	if (t == NULL)
	{
		jq_sched_commit();
		return false;
	}
	values[0] = TimestampTzGetDatum(counted_run_at);
	values[1] = Int64GetDatum(counted_id);
	values[2] =
		Int64GetDatum(t->meta_database == MyDatabaseId ? t->home : t->home + 1);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 3, types, values, NULL);
	more = SPI_processed > 0;
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;
		char *queue = TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull));
		int64 held = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));

		if (held > 0)
		{
			int ix;

			LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
			ix = jq_dir_queue(jq_sched_dbix, queue, true);
			LWLockRelease(jq_lock(JQ_LOCK_DIR));
			if (ix >= 0)
				pg_atomic_fetch_add_u64(&jq_queues[ix].held, held);
		}
		counted_run_at =
			DatumGetTimestampTz(SPI_getbinval(tup, desc, 3, &isnull));
		counted_id = DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull));
	}
	jq_owner_end(&state);
	jq_sched_commit();
	return more;
}

/* forget all numbers, and begin */
void
jq_sched_count_anew(TimestampTz unused)
{
	TimestampTz now = GetCurrentTimestamp();
	int i;

	(void) unused;
	if (counting || now < count_next)
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_COUNT);
		jq_sched_again_in(
			counting ? 1 :
					   TimestampDifferenceMilliseconds(now, count_next) + 1);
		return;
	}
	jq_sched_discover(0); /* they did not tell whose they are */
	counting = true;
	count_begun = now;
	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_lanes[i].db == MyDatabaseId)
			jq_lane_uncount(i);
	for (i = 0; i < jq_shared->nqueues; i++)
		if (jq_queues[i].db == MyDatabaseId)
			pg_atomic_write_u64(&jq_queues[i].held, 0);
	counted_run_at = DT_NOBEGIN;
	counted_id = PG_INT64_MIN;
	jq_db_request_quietly(jq_sched_dbix, JQ_REQ_RECOUNT);
}

/* some rows more; whatever else is asked for comes first, then the next */
void
jq_sched_count(TimestampTz unused)
{
	int *list = palloc(jq_shared->nlanes * sizeof(int));
	int n = jq_dir_lanes_of(MyDatabaseId, list);
	bool more = false;
	int i;

	(void) unused;
	for (i = 0; i < n && !more; i++)
		more = count_lane(list[i]);
	if (!more && counted_run_at != DT_NOEND)
	{
		more = count_held_due();
		if (!more)
			counted_run_at = DT_NOEND;
	}
	if (more)
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_RECOUNT);
	else if (counting)
	{
		TimestampTz now = GetCurrentTimestamp();

		counting = false;
		count_next =
			now + Max((now - count_begun) * COUNT_REST, 100 * INT64CONST(1000));
	}
}
