/*
 * alter.c
 *		Other times and priorities for jobs that wait: jobqueue_reschedule(),
 *		jobqueue_reprioritize(), and for many at once, ..._where().
 *
 * One job is claimed for the transaction, as by jobqueue_cancel(), and its new
 * row is published at commit.  Of many jobs the lanes are held back.  What else
 * memory has of the old rows (who waits for a key, what is due) is a hint that
 * turns out wrong when it is taken: then the row is published as it is.
 *
 * A row whose time has come becomes one that is ready, whichever is changed: it
 * is found by refills then.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "control.h"
#include "dependency.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "publish.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "where.h"

/* one that waits for others gets its time when they are completed */
#define SET_RUN_AT(n)                                               \
	" run_at = CASE WHEN " JQ_ROW_WAITS " THEN run_at"              \
	" WHEN $" n " > clock_timestamp() THEN $" n " END"              \
	", after_run_at = CASE WHEN " JQ_ROW_WAITS " THEN coalesce($" n \
	", '-infinity') ELSE after_run_at END"
#define SET_PRIORITY(n) \
	" priority = $" n   \
	", run_at = CASE WHEN run_at > clock_timestamp() THEN run_at END"

/* ---------------------------------------------------------- the arguments */

/* NULL: at once */
static void
run_at_argument(FunctionCallInfo fcinfo, int arg, Datum *value, bool *isnull)
{
	*isnull = PG_ARGISNULL(arg);
	*value = PG_GETARG_DATUM(arg);
	if (!*isnull && TIMESTAMP_IS_NOEND(DatumGetTimestampTz(*value)))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("run_at is out of range"),
						errhint("It must be a moment that will come.")));
}

static Datum
priority_argument(FunctionCallInfo fcinfo, int arg)
{
	int priority;

	if (PG_ARGISNULL(arg))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("priority must not be null"),
						errhint("The priority of jobs that have been given "
								"none is 0.")));
	priority = PG_GETARG_INT32(arg);
	if (priority < PG_INT16_MIN || priority > PG_INT16_MAX)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("priority is out of range"),
						errhint("It must be between -32768 and 32767.")));
	return Int16GetDatum(priority);
}

/* --------------------------------------------------------------- one job */

/* the statement changes row $1 */
static bool
alter_one(JqTable *t, int64 id, const char *set, Oid type, Datum value,
		  bool isnull)
{
	JqHeldJob h;
	JqOwnerState state;
	Oid types[2] = {INT8OID, type};
	Datum values[2];
	char nulls[2] = {' ', isnull ? 'n' : ' '};
	bool running;
	bool done;

	/* see what this transaction has enqueued */
	CommandCounterIncrement();
	if (!jq_control_hold(t, id, &h, &running))
		return false;
	values[0] = Int64GetDatum(id);
	values[1] = value;
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 psprintf("UPDATE %%s.jobqueue_job SET %s WHERE id = $1"
							  " RETURNING priority, ctid, run_at, home",
							  set),
					 2, types, values, nulls);
	done = SPI_processed == 1;
	if (done)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		TimestampTz run_at = DT_NOBEGIN;
		int64 home;
		Datum d;

		h.item.priority = DatumGetInt16(SPI_getbinval(tup, desc, 1, &isnull));
		h.item.tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(tup, desc, 2, &isnull));
		home = DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull));
		d = SPI_getbinval(tup, desc, 3, &isnull);
		h.item.flags = 0;
		if (!isnull)
		{
			h.item.flags = JQ_E_DUE;
			run_at = DatumGetTimestampTz(d);
		}
		if (home == t->home)
			jq_publish_row(h.lane_role, h.queue, &h.item, run_at);
	}
	jq_owner_end(&state);
	if (!done)
		jq_row_must_be_gone(t, id);
	return done;
}

bool
jq_job_run_now(JqTable *t, int64 id)
{
	return alter_one(t, id, SET_RUN_AT("2"), TIMESTAMPTZOID, (Datum) 0, true);
}

PG_FUNCTION_INFO_V1(jq_reschedule);
Datum
jq_reschedule(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_reschedule()");
	int64 id = jq_control_id(fcinfo);
	Datum value;
	bool isnull;

	run_at_argument(fcinfo, 1, &value, &isnull);
	PG_RETURN_BOOL(
		alter_one(t, id, SET_RUN_AT("2"), TIMESTAMPTZOID, value, isnull));
}

PG_FUNCTION_INFO_V1(jq_reprioritize);
Datum
jq_reprioritize(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_reprioritize()");
	int64 id = jq_control_id(fcinfo);
	Datum value = priority_argument(fcinfo, 1);

	PG_RETURN_BOOL(alter_one(t, id, SET_PRIORITY("2"), INT2OID, value, false));
}

/* -------------------------------------------------------------- many jobs */

PG_FUNCTION_INFO_V1(jq_reschedule_where);
Datum
jq_reschedule_where(PG_FUNCTION_ARGS)
{
	JqWhere w;
	Datum value;
	bool isnull;
	int64 n;

	jq_where_begin(&w, fcinfo, "jobqueue_reschedule_where()", 2, 4,
				   JQ_WHERE_WAITING);
	run_at_argument(fcinfo, 3, &value, &isnull);
	(void) jq_where_add(&w, TIMESTAMPTZOID, value, isnull);
	jq_where_freeze(&w);
	n = jq_where_waiting(&w, "UPDATE %s.jobqueue_job j SET" SET_RUN_AT("9"), "",
						 NULL, NULL);
	if (n > 0 && !isnull)
		jq_publish_due(DatumGetTimestampTz(value));
	PG_RETURN_INT64(n);
}

PG_FUNCTION_INFO_V1(jq_reprioritize_where);
Datum
jq_reprioritize_where(PG_FUNCTION_ARGS)
{
	JqWhere w;

	jq_where_begin(&w, fcinfo, "jobqueue_reprioritize_where()", 2, 4,
				   JQ_WHERE_WAITING);
	(void) jq_where_add(&w, INT2OID, priority_argument(fcinfo, 3), false);
	jq_where_freeze(&w);
	PG_RETURN_INT64(
		jq_where_waiting(&w, "UPDATE %s.jobqueue_job j SET" SET_PRIORITY("9"),
						 "", NULL, NULL));
}
