/*
 * history.c
 *		Jobs that have ended, many at once: jobqueue_retry_where(),
 *		jobqueue_purge().
 *
 * Rows of the history are nothing that memory knows.  Two who act on a row at a
 * time find it one after the other: the second one finds it gone.
 */
#include "postgres.h"

#include "dependency.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "publish.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "where.h"

/* those that waited for others */
static int64 *waited;
static int nwaited;

/* a lane that has got rows */
static void
publish_lane(HeapTuple tup, TupleDesc desc, int64 *n)
{
	bool isnull;
	Datum d;

	jq_publish_unknown(DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull)),
					   TextDatumGetCString(
						   SPI_getbinval(tup, desc, 1, &isnull)));
	*n += DatumGetInt64(SPI_getbinval(tup, desc, 3, &isnull));
	d = SPI_getbinval(tup, desc, 4, &isnull);
	if (!isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(CurTransactionContext);
		int more, i;
		int64 *ids = jq_after_ids(d, &more);

		waited =
			waited == NULL ?
				palloc(more * sizeof(int64)) :
				repalloc_huge(waited, (Size) (nwaited + more) * sizeof(int64));
		for (i = 0; i < more; i++)
			waited[nwaited++] = ids[i];
		MemoryContextSwitchTo(old);
	}
}

PG_FUNCTION_INFO_V1(jq_retry_where);
Datum
jq_retry_where(PG_FUNCTION_ARGS)
{
	static const char *const before =
		"WITH back AS (DELETE FROM %s.jobqueue_archive j";
	static const char *const after =
		" RETURNING *), again AS (INSERT INTO %s.jobqueue_job (id, enqueued_at,"
		" home, owner, func_owner, priority, attempt, max_attempts, crashes,"
		" kind, queue, command, args, key, search_path, settings, timeout, keep,"
		" tags, errors, after)"
		" SELECT id, enqueued_at, home, owner, func_owner, priority, 0,"
		" max_attempts, 0, kind, queue, command, args, key, search_path, settings,"
		" timeout, keep, tags, errors, after FROM back"
		" RETURNING queue, owner, id, after)"
		" SELECT queue, owner::oid, count(*),"
		"  array_agg(id) FILTER (WHERE after IS NOT NULL)"
		" FROM again GROUP BY 1, 2";
	JqWhere w;
	int64 n = 0;

	jq_where_begin(&w, fcinfo, "jobqueue_retry_where()", 2, 3, JQ_WHERE_FAILED);
	waited = NULL;
	nwaited = 0;
	(void) jq_where_ended(&w, before, after, publish_lane, &n);
	if (nwaited > 0)
	{
		int i, waiting;
		int64 *ids = jq_after_wait_again(w.table, waited, nwaited, &waiting);

		for (i = 0; i < waiting; i++)
			jq_publish_waiting(ids[i]);
	}
	PG_RETURN_INT64(n);
}

PG_FUNCTION_INFO_V1(jq_purge);
Datum
jq_purge(PG_FUNCTION_ARGS)
{
	JqWhere w;

	jq_where_begin(&w, fcinfo, "jobqueue_purge()", -1, 2,
				   JQ_WHERE_COMPLETED | JQ_WHERE_FAILED);
	PG_RETURN_INT64(jq_where_ended(&w, "DELETE FROM %s.jobqueue_archive j",
								   " AND NOT " JQ_AWAITED, NULL, NULL));
}
