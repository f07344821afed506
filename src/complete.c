/*
 * complete.c
 *		How outside consumers end what they have fetched.
 *
 * Each function pins the claim for the caller's transaction, does to the row what
 * is to be done, and says what becomes of the claim when that has committed
 * (fetchxact.h).  Until then nobody takes the job or its key, even if the lease
 * ends meanwhile; after an abort the claim is as it was.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "control.h"
#include "executor/spi.h"
#include "failure.h"
#include "fetch.h"
#include "fetchxact.h"
#include "fmgr.h"
#include "grant.h"
#include "lane.h"
#include "lease.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "queue.h"
#include "unique.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static JqTable *
begin(const char *function)
{
	JqTable *t = jq_control_begin(function);

	jq_control_not_restricted(function);
	return t;
}

static const pg_uuid_t *
token_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_UUID_P(n);
}

static bool
is_cancelled(JqTable *t, int64 id)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	bool cancelled;
	bool isnull;

	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT queue FROM %s.jobqueue_archive WHERE id = $1"
				  " AND state = 'cancelled' AND command IS NULL",
				  1, types, values, NULL);
	cancelled = SPI_processed > 0;
	if (cancelled)
		strlcpy(queue,
				TextDatumGetCString(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1,
												  &isnull)),
				sizeof(queue));
	jq_owner_end(&state);
	/* to others nothing is told of it */
	return cancelled && jq_may_consume(queue);
}

/* pin the claim for this transaction; whoever has lost it is told why */
static void
pin(JqTable *t, int64 id, const pg_uuid_t *token, bool extend, JqFetched *f)
{
	if (!jq_fetched_has(MyDatabaseId, id) && is_cancelled(t, id))
		jq_fetch_cancelled(id);
	jq_fetchxact_pin(id, token, extend, f);
}

static void
row_gone(int64 id)
{
	ereport(ERROR, (errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					errmsg("the row of job " INT64_FORMAT " was deleted", id),
					errhint("Roll back, and call jobqueue_release().")));
}

/* it leaves the queue, completed; false: it had left */
static bool
finish_row(JqTable *t, const JqFetched *f, Datum result)
{
	JqQueueSettings settings;
	JqRow row;
	TransactionId xid;
	Snapshot snapshot = NULL;
	JqFetch found;

	/* the lane stays what it is while a job of it is claimed */
	jq_queue_settings(jq_lanes[f->lane].queue_ix, &settings);
	found = jq_row_fetch(t, f->id, &JQ_ENTRY(f->entry)->tid, NULL, &row, &xid,
						 &snapshot);
	if (found == JQ_FETCH_GONE)
		return false;
	if (found == JQ_FETCH_FOUND && !jq_row_wants_keep(&row, &settings))
	{
		jq_publish_ended(f->id);
		if (!jq_row_delete(t, f->id, &row, snapshot))
			return false;
		jq_unique_ended(t, &row);
		return true;
	}
	/* kept; or somebody changes the row just now, for whom this waits */
	if (snapshot != NULL)
		UnregisterSnapshot(snapshot);
	if (jq_row_wants_keep(&row, &settings))
		return jq_archive(t, f->id, "completed", NULL, f->started_at, result);
	jq_publish_ended(f->id);
	if (!jq_row_delete(t, f->id, &row, NULL))
		return false;
	jq_unique_ended(t, &row);
	return true;
}

PG_FUNCTION_INFO_V1(jq_complete);
Datum
jq_complete(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_complete()");
	int64 id = jq_control_id(fcinfo);
	Datum result = PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1);
	JqFetched f;

	pin(t, id, token_argument(fcinfo, 2), false, &f);
	if (f.leased)
		jq_lease_delete(t, id);
	if (!finish_row(t, &f, result))
	{
		jq_row_must_be_gone(t, id);
		row_gone(id);
	}
	jq_fetchxact_end(id, JQ_FETCH_COMPLETED, 0,
					 PG_ARGISNULL(1) ?
						 NULL :
						 JsonbToCString(NULL, &DatumGetJsonbP(result)->root,
										0));
	JQ_PAUSE("complete-before-commit");
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_fail);
Datum
jq_fail(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_fail()");
	int64 id = jq_control_id(fcinfo);
	JqFailure failure;
	JqRecorded recorded;
	TimestampTz run_at = DT_NOEND;
	JqFetched f;
	char *error = PG_ARGISNULL(1) ? "failed, said its consumer" :
									text_to_cstring(PG_GETARG_TEXT_PP(1));

	memset(&failure, 0, sizeof(failure));
	failure.message = error;
	if (!PG_ARGISNULL(2))
	{
		int64 us = jq_interval_us(PG_GETARG_INTERVAL_P(2));

		if (us < 0)
			ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
							errmsg("retry_in must not be negative"),
							errhint("0 tries it again at once.")));
		failure.retry_at = GetCurrentTimestamp() + us;
	}
	pin(t, id, token_argument(fcinfo, 3), false, &f);
	failure.started_at = f.started_at;
	if (f.leased)
		jq_lease_delete(t, id);
	recorded = jq_record_failure(t, id, &failure, &run_at);
	if (recorded == JQ_RECORD_GONE)
	{
		jq_row_must_be_gone(t, id);
		row_gone(id);
	}
	jq_fetchxact_end(id,
					 recorded == JQ_RECORD_DEAD ? JQ_FETCH_DEAD :
												  JQ_FETCH_RETRY,
					 run_at, error);
	if (recorded == JQ_RECORD_DEAD)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(run_at);
}

PG_FUNCTION_INFO_V1(jq_release);
Datum
jq_release(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_release()");
	int64 id = jq_control_id(fcinfo);
	JqFetched f;

	pin(t, id, token_argument(fcinfo, 1), false, &f);
	if (f.leased)
		jq_lease_delete(t, id);
	jq_fetchxact_end(id, JQ_FETCH_RELEASED, 0, NULL);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_extend);
Datum
jq_extend(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_extend()");
	int64 id = jq_control_id(fcinfo);
	TimestampTz until;
	JqFetched f;
	int64 us = PG_ARGISNULL(1) ? 0 : jq_interval_us(PG_GETARG_INTERVAL_P(1));

	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("lease must be more than 0"),
				 errhint("Give the time from now that is still needed.")));
	pin(t, id, token_argument(fcinfo, 2), true, &f);
	until = GetCurrentTimestamp() + us;
	jq_lease_write(t, &id, 1, &f.token, until);
	jq_fetchxact_end(id, JQ_FETCH_EXTENDED, until, NULL);
	PG_RETURN_TIMESTAMPTZ(until);
}
