/*
 * cronnext.c
 *		Expressions and zones that users give; jobqueue_cron_next().
 */
#include "postgres.h"

#include "access/xact.h"
#include "cronnext.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

void
jq_cron_of_text(const char *text, JqCron *cron)
{
	JqCronError error;

	if (jq_cron_parse(text, cron, &error))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid cron expression: %s", error.message),
			 errhint("%s", error.hint),
			 internalerrposition(pg_mbstrlen_with_len(text, error.at) + 1),
			 internalerrquery(text)));
}

pg_tz *
jq_zone_find(const char *name)
{
	pg_tz *zone = pg_tzset(name);

	/* not those that count leap seconds */
	return zone != NULL && pg_tz_acceptable(zone) ? zone : NULL;
}

pg_tz *
jq_zone_of_text(const char *name)
{
	pg_tz *zone = name == NULL ? session_timezone : jq_zone_find(name);

	if (zone == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("time zone \"%s\" not recognized", name),
				 errhint("View pg_timezone_names has their names, for example "
						 "\"Europe/Berlin\" or \"UTC\".")));
	return zone;
}

PG_FUNCTION_INFO_V1(jq_cron_next_sql);
Datum
jq_cron_next_sql(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	TimestampTz after;
	JqCron cron;
	pg_tz *zone;
	int n, i;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("cron must not be null"),
						errhint("It is an expression such as '0 3 * * *'.")));
	jq_cron_of_text(text_to_cstring(PG_GETARG_TEXT_PP(0)), &cron);
	after = PG_ARGISNULL(1) ? GetCurrentTransactionStartTimestamp() :
							  PG_GETARG_TIMESTAMPTZ(1);
	zone = jq_zone_of_text(
		PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)));
	n = PG_ARGISNULL(3) ? 1 : PG_GETARG_INT32(3);
	if (n < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("n must not be negative"),
						errhint("It is how many instants are wanted.")));
	if (TIMESTAMP_NOT_FINITE(after))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("after is out of range"),
						errhint("It must not be infinite.")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	for (i = 0; i < n; i++)
	{
		Datum d;
		bool isnull = false;
		TimestampTz next;

		CHECK_FOR_INTERRUPTS();
		if (!jq_cron_next(&cron, after, after, zone, &next))
			break;
		d = TimestampTzGetDatum(next);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &d, &isnull);
		after = next;
	}
	return (Datum) 0;
}
