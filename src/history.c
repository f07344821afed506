/*
 * history.c
 *		Jobs that have ended, many at once: jobqueue_retry_where(),
 *		jobqueue_purge().
 *
 * Rows of the history are nothing that memory knows.  Two who act on a row at a
 * time find it one after the other: the second one finds it gone.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "control.h"
#include "dependency.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "publish.h"
#include "quota.h"
#include "unique.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "where.h"

/* what came back, in the context of the call */
typedef struct Back
{
	MemoryContext context;
	int64 n;
	List *lanes;   /* of BackLane */
	int64 *waited; /* those that waited for others */
	int nwaited;
} Back;

typedef struct BackLane
{
	Oid owner; /* of the rows */
	int64 n;
} BackLane;

/* a lane that has got rows */
static void
add_lane(HeapTuple tup, TupleDesc desc, void *arg)
{
	Back *b = arg;
	MemoryContext old = MemoryContextSwitchTo(b->context);
	BackLane *lane = palloc(sizeof(BackLane));
	bool isnull;
	Datum d;

	lane->owner = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
	lane->n = DatumGetInt64(SPI_getbinval(tup, desc, 3, &isnull));
	b->lanes = lappend(b->lanes, lane);
	b->n += lane->n;
	jq_publish_unknown(DatumGetObjectId(SPI_getbinval(tup, desc, 5, &isnull)),
					   TextDatumGetCString(
						   SPI_getbinval(tup, desc, 1, &isnull)));
	d = SPI_getbinval(tup, desc, 4, &isnull);
	if (!isnull)
	{
		int more, i;
		int64 *ids = jq_after_ids(d, &more);

		b->waited = b->waited == NULL ?
						palloc(more * sizeof(int64)) :
						repalloc_huge(b->waited, (Size) (b->nwaited + more) *
													 sizeof(int64));
		for (i = 0; i < more; i++)
			b->waited[b->nwaited++] = ids[i];
	}
	MemoryContextSwitchTo(old);
}

/* jobs that must have their unique_key before they come back */
typedef struct WantedKey
{
	int64 id;
	Datum queue;
	Datum key;
	char until;
	TimestampTz expires_at;
} WantedKey;

typedef struct WantedKeys
{
	MemoryContext context;
	WantedKey *list;
	int n;
	int room;
} WantedKeys;

static void
add_unique(HeapTuple tup, TupleDesc desc, void *arg)
{
	WantedKeys *u = arg;
	MemoryContext old = MemoryContextSwitchTo(u->context);
	WantedKey *x;
	bool isnull;

	if (u->n == u->room)
	{
		u->room = Max(2 * u->room, 64);
		u->list =
			u->list == NULL ?
				palloc(u->room * sizeof(WantedKey)) :
				repalloc_huge(u->list, (Size) u->room * sizeof(WantedKey));
	}
	x = &u->list[u->n++];
	x->id = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
	x->queue = PointerGetDatum(
		PG_DETOAST_DATUM_COPY(SPI_getbinval(tup, desc, 2, &isnull)));
	x->key = PointerGetDatum(
		PG_DETOAST_DATUM_COPY(SPI_getbinval(tup, desc, 3, &isnull)));
	x->until = DatumGetChar(SPI_getbinval(tup, desc, 4, &isnull));
	x->expires_at = DatumGetTimestampTz(SPI_getbinval(tup, desc, 5, &isnull));
	MemoryContextSwitchTo(old);
}

/*
 * Their rows are locked, so they come back if nothing happens to this
 * transaction.  In order of the keys, so that two who do this at a time do not
 * wait for each other.  Returns the ids of those that have got their key.
 */
static Datum *
take_unique_keys(JqWhere *w, int *n)
{
	static const char *const before =
		"SELECT id, queue, unique_key, unique_until,"
		" coalesce(clock_timestamp() + unique_for, 'infinity')"
		" FROM %s.jobqueue_archive j";
	static const char *const after =
		" AND j.unique_key IS NOT NULL AND j.unique_until <> 'w'"
		" ORDER BY j.queue, j.unique_key, j.id FOR UPDATE";
	WantedKeys u = {CurrentMemoryContext, NULL, 0, 0};
	Datum *ids;
	int i;

	(void) jq_where_ended(w, before, after, add_unique, &u);
	ids = palloc_extended(Max(u.n, 1) * sizeof(Datum), MCXT_ALLOC_HUGE);
	*n = 0;
	for (i = 0; i < u.n; i++)
	{
		const WantedKey *x = &u.list[i];
		JqUniqueLock lock;

		CHECK_FOR_INTERRUPTS();
		if (jq_unique_take(w->table, x->queue, x->key, x->id, x->until,
						   x->expires_at, true, &lock))
			ids[(*n)++] = Int64GetDatum(x->id);
	}
	if (*n < u.n)
		ereport(NOTICE, (errmsg_plural("%d job stays in the history, another "
									   "one has its unique_key",
									   "%d jobs stay in the history, others "
									   "have their unique_key",
									   u.n - *n, u.n - *n)));
	return ids;
}

PG_FUNCTION_INFO_V1(jq_retry_where);
Datum
jq_retry_where(PG_FUNCTION_ARGS)
{
	static const char *const before =
		"WITH back AS (DELETE FROM %s.jobqueue_archive j";
	static const char *const after =
		" AND (j.unique_key IS NULL OR j.unique_until = 'w' OR j.id = ANY ($9))"
		" RETURNING *), again AS (INSERT INTO %s.jobqueue_job (id, enqueued_at,"
		" home, owner, func_owner, priority, attempt, max_attempts, crashes,"
		" kind, queue, command, args, key, search_path, settings, timeout, keep,"
		" tags, errors, unique_key, unique_until, unique_for, on_conflict,"
		" after)"
		" SELECT id, enqueued_at, home, owner, func_owner, priority, 0,"
		" max_attempts, 0, kind, queue, command, args, key, search_path, settings,"
		" timeout, keep, tags, errors, unique_key, unique_until, unique_for,"
		" CASE on_conflict WHEN 'R' THEN 'r' ELSE on_conflict END,"
		" after FROM back RETURNING queue, owner, id, after, command)"
		" SELECT queue, owner::oid, count(*),"
		"  array_agg(id) FILTER (WHERE after IS NOT NULL),"
		"  min(" JQ_LANE_ROLE ")"
		" FROM again GROUP BY 1, 2, command IS NULL";
	JqWhere w;
	Datum *unique;
	int nunique;
	int64 *claimed;
	int nclaimed, i;
	Back b = {CurrentMemoryContext, 0, NIL, NULL, 0};
	ListCell *lc;

	jq_where_begin(&w, fcinfo, "jobqueue_retry_where()", 2, 3, JQ_WHERE_FAILED);
	unique = take_unique_keys(&w, &nunique);
	(void) jq_where_add(&w, INT8ARRAYOID,
						PointerGetDatum(construct_array(unique, nunique,
														INT8OID, 8, true,
														TYPALIGN_DOUBLE)),
						false);
	(void) jq_where_ended(&w, before, after, add_lane, &b);
	foreach(lc, b.lanes)
	{
		const BackLane *lane = lfirst(lc);

		jq_quota_take(w.table, lane->owner, lane->n);
	}
	if (b.nwaited > 0)
	{
		int waiting;
		int64 *ids =
			jq_after_wait_again(w.table, b.waited, b.nwaited, &waiting);

		for (i = 0; i < waiting; i++)
			jq_publish_waiting(ids[i]);
	}
	claimed = jq_where_claimed(&w, &nclaimed);
	for (i = 0; i < nclaimed; i++)
		jq_control_await(w.table, claimed[i]);
	PG_RETURN_INT64(b.n);
}

PG_FUNCTION_INFO_V1(jq_purge);
Datum
jq_purge(PG_FUNCTION_ARGS)
{
	JqWhere w;

	jq_where_begin(&w, fcinfo, "jobqueue_purge()", -1, 2,
				   JQ_WHERE_COMPLETED | JQ_WHERE_FAILED);
	/* nor what rows wait for that the scheduler has not seen yet */
	PG_RETURN_INT64(jq_where_ended(
		&w, "DELETE FROM %s.jobqueue_archive j",
		" AND NOT " JQ_AWAITED
		" AND NOT EXISTS (SELECT FROM %s.jobqueue_job k, unnest(k.after) x"
		"  WHERE k.run_at = 'infinity' AND k.after_run_at IS NOT NULL"
		"  AND x = j.id)",
		NULL, NULL));
}
