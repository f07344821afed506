/*
 * servicesend.c
 *		A message to a service: a job of kind 'm' on the service's key.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "publish.h"
#include "quota.h"
#include "runhere.h"
#include "servicerun.h"
#include "servicesend.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

int64
jq_service_send(JqTable *t, const JqService *s, Datum message,
				TimestampTz run_at, Interval *keep)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_job (owner, kind, queue, command, args, key,"
		" timeout, max_attempts, run_at, keep, home) VALUES ($1, 'm', $2, $3, $4,"
		" $5, $6, 32767, $7, $8, $9) RETURNING id, ctid";
	Oid types[9] = {OIDOID,		 TEXTOID,		 TEXTOID,	  JSONBOID, TEXTOID,
					INTERVALOID, TIMESTAMPTZOID, INTERVALOID, INT8OID};
	Datum values[9];
	char nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	char *key = jq_service_key(s->id);
	JqOwnerState state;
	JqItem item;
	bool isnull;
	/* of another home: it stands in line behind those that are held */
	bool at_home = s->home == t->home;
	/* not inside itself: its state is in use; nor as somebody else */
	bool here = jq_inline_here() && at_home && run_at == DT_NOBEGIN &&
				s->owner == GetUserId() && !jq_service_is_handling(s->id) &&
				strcmp(s->status, "failed") != 0;

	jq_check_args_size(message);
	if (!here)
		jq_quota_take(t, s->owner, 1);
	values[0] = ObjectIdGetDatum(s->owner);
	values[1] = CStringGetTextDatum(s->queue);
	values[2] = CStringGetTextDatum(s->name);
	values[3] = message;
	values[4] = CStringGetTextDatum(key);
	values[5] = s->timeout;
	if (!s->has_timeout)
		nulls[5] = 'n';
	values[6] = TimestampTzGetDatum(run_at);
	if (run_at == DT_NOBEGIN)
		nulls[6] = 'n';
	values[7] = IntervalPGetDatum(keep);
	if (keep == NULL)
		nulls[7] = 'n';
	values[8] = Int64GetDatum(s->home);
	memset(&item, 0, sizeof(item));
	jq_owner_begin(t, &state);
	jq_service_run(t, sql, 9, types, values, nulls, false);
	item.id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1, &isnull));
	item.tid = *(ItemPointer) DatumGetPointer(
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2,
					  &isnull));
	jq_owner_end(&state);
	item.key = key;
	item.keylen = strlen(key);
	if (run_at != DT_NOBEGIN)
		item.flags = JQ_E_DUE;
	if (here)
	{
		jq_quota_written(s->owner, 1);
		jq_run_inline(t, item.id);
	}
	else if (!at_home)
		jq_publish_count_anew();
	else
		jq_publish_row(s->owner, s->queue, &item, run_at);
	return item.id;
}

void
jq_service_check_message(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("message must not be null"),
						errhint("A message without content can be '{}'.")));
}

PG_FUNCTION_INFO_V1(jq_send);
Datum
jq_send(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_enqueue_begin("jobqueue_send()");
	TimestampTz run_at = DT_NOBEGIN;
	JqService s;

	jq_service_check_message(fcinfo);
	if (!PG_ARGISNULL(2))
	{
		run_at = PG_GETARG_TIMESTAMPTZ(2);
		if (TIMESTAMP_IS_NOEND(run_at))
			ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
							errmsg("run_at is out of range"),
							errhint("It must be a moment that will come.")));
		if (run_at <= GetCurrentTimestamp())
			run_at = DT_NOBEGIN;
	}
	jq_service_argument(t, fcinfo, &s);
	if (strcmp(s.status, "stopping") == 0)
		jq_service_is_stopping(&s);
	PG_RETURN_INT64(jq_service_send(t, &s, PG_GETARG_DATUM(1), run_at, NULL));
}
