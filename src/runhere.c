/*
 * runhere.c
 *		Running a job in the caller's session and transaction, for the tests of
 *		applications: jobqueue_run() and jobqueue.inline.
 *
 * The job's key is held to the end of the transaction, as its effects are not
 * seen before.  Its error is the caller's, and charges no attempt: its row is as
 * it was, or has never been.
 */
#include "postgres.h"

#include "access/xact.h"
#include "configure.h"
#include "conflict.h"
#include "directory.h"
#include "failure.h"
#include "keylock.h"
#include "miscadmin.h"
#include "publish.h"
#include "quota.h"
#include "runhere.h"
#include "runjob.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static void
take_key(int64 id, const char *key, int len, int lane)
{
	bool ask = false;
	uint32 next;

	jq_publish_reserve_key();
	jq_keylock_prepare();
	switch (
		jq_keylock_take(MyDatabaseId, key, len, id, lane, JQ_NIL, &ask, &next))
	{
		case JQ_KEY_TAKEN:
			jq_publish_key(key, len);
			break;
		case JQ_KEY_BUSY:
		case JQ_KEY_GONE:
			ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
							errmsg("key \"%s\" of job " INT64_FORMAT " is held",
								   key, id),
							errhint("View jobqueue_keys tells by whom.")));
			break;
		case JQ_KEY_FULL:
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
							errmsg("too many keys are held")));
	}
}

/* jq_current_job becomes this one; what the job around it has said stays */
static void
set_current(const JqRow *row, const JqQueueSettings *settings)
{
	memset(&jq_current_job, 0, sizeof(jq_current_job));
	jq_current_job.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	jq_current_job.queue = jq_row_cstring(row, JQ_COL_QUEUE);
	jq_current_job.key = jq_row_cstring(row, JQ_COL_KEY);
	jq_current_job.attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_current_job.max_attempts = jq_row_max_attempts(row, settings);
	jq_current_job.enqueued_at =
		DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
}

/* it is to run again, after that time */
static bool
snooze(JqTable *t, JqRow *row, Interval *delay)
{
	char *key = jq_row_cstring(row, JQ_COL_KEY);
	TimestampTz run_at;
	JqItem item;

	memset(&item, 0, sizeof(item));
	item.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	item.priority = DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY));
	item.flags = JQ_E_DUE;
	if (key != NULL)
	{
		item.key = key;
		item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
	if (!jq_snooze_row(t, item.id, delay, &run_at, &item.tid))
		return false;
	jq_publish_row(DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)),
				   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
	return true;
}

/* it is completed */
static bool
end(JqTable *t, JqRow *row, const JqQueueSettings *settings, Datum result,
	bool isnull)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));

	if (jq_row_wants_keep(row, settings))
		return jq_archive(t, id, "completed", NULL,
						  GetCurrentStatementStartTimestamp(),
						  isnull ? (Datum) 0 : result);
	jq_publish_ended(id);
	if (!jq_row_delete(t, id, row, NULL))
		return false;
	jq_unique_ended(t, row);
	return true;
}

/* fresh: it has not been counted among the jobs of its role */
static Datum
run_here(JqTable *t, JqRow *row, bool *isnull, bool fresh)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	char *key = jq_row_cstring(row, JQ_COL_KEY);
	int keylen = key != NULL ? Min(strlen(key), JQ_KEY_MAX) : 0;
	volatile Datum result = (Datum) 0;
	JqCurrent outer = jq_current_job;
	Oid owner = DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER));
	char *queue = jq_row_cstring(row, JQ_COL_QUEUE);
	JqQueueSettings settings;
	Interval delay;
	volatile bool snoozed = false;
	bool done;
	int nest;

	/* jobs that enqueue jobs, inline */
	check_stack_depth();
	if (DatumGetChar(JQ_ROW(row, JQ_COL_KIND)) == JQ_KIND_OUTSIDE)
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("the command of job " INT64_FORMAT
							   " cannot run in a transaction block",
							   id),
						errhint("Only a worker can run it.")));
	if (keylen > 0 && !jq_keylock_mine(MyDatabaseId, key, keylen))
		take_key(id, key, keylen,
				 jq_dir_lane(MyDatabaseId, owner, queue, false));
	if (!JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY))
		jq_unique_run_here(t, row);
	jq_settings_of_queue(t, queue, &settings);
	set_current(row, &settings);
	nest = NewGUCNestLevel();
	PG_TRY();
	{
		jq_apply_environment_nested(row);
		PushActiveSnapshot(GetTransactionSnapshot());
		result = jq_execute(row, isnull);
		PopActiveSnapshot();
		snoozed = jq_snooze_wanted(&delay);
	}
	PG_FINALLY();
	{
		jq_injob_forget();
		jq_current_job = outer;
	}
	PG_END_TRY();
	/* what it has set ends with it, SET LOCAL or not, as in a worker */
	AtEOXact_GUC(false, nest);
	if (snoozed)
	{
		done = snooze(t, row, &delay);
		if (done && fresh)
			jq_quota_take_present(t, owner, 1);
	}
	else
		done = end(t, row, &settings, result, *isnull);
	if (!done)
	{
		jq_row_must_be_gone(t, id);
		ereport(ERROR, (errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
						errmsg("the row of the job was deleted while it ran"),
						errhint("Nothing of it has been done.")));
	}
	return result;
}

Datum
jq_run_here(JqTable *t, JqRow *row, bool *isnull)
{
	return run_here(t, row, isnull, false);
}

void
jq_run_inline(JqTable *t, int64 id)
{
	JqRow row;
	TransactionId xid;
	bool isnull;

	/* nobody else sees the row, so that there is nothing to claim */
	CommandCounterIncrement();
	if (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL) != JQ_FETCH_FOUND)
		elog(ERROR, "job " INT64_FORMAT " was not found after its enqueue", id);
	(void) run_here(t, &row, &isnull, true);
}
