/*
 * history.c
 *		Jobs that have ended, many at once: jobqueue_retry_where(),
 *		jobqueue_purge().
 *
 * Rows of the history are nothing that memory knows.  Two who act on a row at a
 * time find it one after the other: the second one finds it gone.
 */
#include "postgres.h"

#include "control.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "publish.h"
#include "utils/builtins.h"
#include "where.h"

/* a lane that has got rows */
static void
publish_lane(HeapTuple tup, TupleDesc desc, int64 *n)
{
	bool isnull;

	jq_publish_unknown(DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull)),
					   TextDatumGetCString(
						   SPI_getbinval(tup, desc, 1, &isnull)));
	*n += DatumGetInt64(SPI_getbinval(tup, desc, 3, &isnull));
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
		" tags, errors)"
		" SELECT id, enqueued_at, home, owner, func_owner, priority, 0,"
		" max_attempts, 0, kind, queue, command, args, key, search_path, settings,"
		" timeout, keep, tags, errors FROM back RETURNING queue, owner)"
		" SELECT queue, owner::oid, count(*) FROM again GROUP BY 1, 2";
	JqWhere w;
	int64 n = 0;
	int64 *ids;
	int nclaimed, i;

	jq_where_begin(&w, fcinfo, "jobqueue_retry_where()", 2, 3, JQ_WHERE_FAILED);
	(void) jq_where_ended(&w, before, after, publish_lane, &n);
	ids = jq_where_claimed(&w, &nclaimed);
	for (i = 0; i < nclaimed; i++)
		jq_control_await(w.table, ids[i]);
	PG_RETURN_INT64(n);
}

PG_FUNCTION_INFO_V1(jq_purge);
Datum
jq_purge(PG_FUNCTION_ARGS)
{
	JqWhere w;

	jq_where_begin(&w, fcinfo, "jobqueue_purge()", -1, 2,
				   JQ_WHERE_COMPLETED | JQ_WHERE_FAILED);
	PG_RETURN_INT64(jq_where_ended(&w, "DELETE FROM %s.jobqueue_archive j", "",
								   NULL, NULL));
}
