/*
 * comeback.c
 *		Jobs that come back under their number while somebody has it claimed.
 *
 * jobqueue_retry() waits until nobody has the job claimed, and commits.  In
 * between, what memory still had of the job from before may be taken, by somebody
 * who finds no row yet.  Then the job is published, is met by a second one, who
 * takes it for a duplicate of what is claimed (or by the scheduler, who passes over
 * it), and nobody has it.  So whoever ends a claim without having found a row looks
 * once more, when nobody can take it for claimed any more.  model: COME_BACK
 */
#include "postgres.h"

#include "comeback.h"
#include "miscadmin.h"
#include "publish.h"
#include "storage/lmgr.h"
#include "utils/timestamp.h"

static void
publish_found(JqTable *t, JqRow *row, bool counted)
{
	JqItem item;
	TimestampTz run_at = DT_NOBEGIN;

	if (DatumGetInt64(JQ_ROW(row, JQ_COL_HOME)) != t->home)
		return;
	jq_row_item(&item, row);
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
	{
		run_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
		if (run_at <= GetCurrentTimestamp())
			run_at = DT_NOBEGIN;
	}
	if (counted)
		jq_publish_counted(MyDatabaseId, jq_row_lane_role(row),
						   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
	else
		jq_publish_now(MyDatabaseId, jq_row_lane_role(row),
					   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
}

void
jq_publish_found(JqTable *t, JqRow *row)
{
	publish_found(t, row, false);
}

void
jq_look_prepare(JqTable *t)
{
	LockRelationOid(t->job, AccessShareLock);
	LockRelationOid(t->pk, AccessShareLock);
}

void
jq_look_again(JqTable *t, int64 id, bool counted)
{
	Assert(InterruptHoldoffCount > 0);
	PG_TRY();
	{
		JqRow row;
		TransactionId xid;

		/* if somebody is about to change it, whoever takes it will see that */
		if (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL) != JQ_FETCH_GONE)
			publish_found(t, &row, counted);
	}
	PG_CATCH();
	{
		/* if it is there, it is found: whatever it is by now */
		jq_publish_forget(MyDatabaseId);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
