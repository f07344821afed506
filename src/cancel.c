/*
 * cancel.c
 *		jobqueue_cancel_where(): cancel many jobs by what they have in common.
 *
 * What waits is moved to the history by one statement; what runs is left out of
 * it and interrupted.
 */
#include "postgres.h"

#include "claim.h"
#include "executor/spi.h"
#include "failure.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "publish.h"
#include "quota.h"
#include "where.h"

/* so many rows of an owner have gone */
static void
add_gone(HeapTuple tup, TupleDesc desc, void *arg)
{
	bool isnull;
	Oid owner = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
	int64 n = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));

	jq_quota_gone(owner, n);
	*(int64 *) arg += n;
}

PG_FUNCTION_INFO_V1(jq_cancel_where);
Datum
jq_cancel_where(PG_FUNCTION_ARGS)
{
	static const char *const before =
		"WITH gone AS (DELETE FROM %s.jobqueue_job j";
	static const char *const after =
		" RETURNING *), kept AS (INSERT INTO %s.jobqueue_archive (id, enqueued_at,"
		" ended_at, expires_at, home, owner, func_owner, priority, attempt,"
		" max_attempts, kind, state, queue, command, args, key, search_path,"
		" settings, timeout, keep, tags, errors, reason, unique_key,"
		" unique_until, unique_for, on_conflict, after)"
		" SELECT id, enqueued_at, clock_timestamp(), " JQ_EXPIRES_DEAD ", home,"
		" owner, func_owner, priority, attempt, max_attempts, kind, 'cancelled',"
		" queue, command, args, key, search_path, settings, timeout, keep, tags,"
		" errors, 'cancelled', unique_key, unique_until, unique_for, on_conflict,"
		" after FROM gone" JQ_ARCHIVED_AGAIN " RETURNING owner)"
		" SELECT owner::oid, count(*) FROM kept GROUP BY 1";
	JqWhere w;
	int64 n = 0;

	jq_where_begin(&w, fcinfo, "jobqueue_cancel_where()", 2, 3,
				   JQ_WHERE_WAITING | JQ_WHERE_RUNNING);
	jq_where_freeze(&w);
	if (w.waiting)
		(void) jq_where_waiting(&w, before, after, add_gone, &n);
	if (n > 0)
	{
		jq_publish_after_unknown(); /* who waits for them? */
		jq_publish_count_anew();	/* some may have been held */
		/* when the first of them leaves it is looked up at the next pruning */
		jq_publish_prune(GetCurrentTimestamp());
	}
	if (w.running)
	{
		int nrunning, i;
		int64 *ids = jq_where_running(&w, &nrunning);

		for (i = 0; i < nrunning; i++)
			if (jq_claim_cancel(MyDatabaseId, ids[i]))
				n++;
	}
	PG_RETURN_INT64(n);
}
