/*
 * servicecall.c
 *		CALL jobqueue_call(): send a message, commit, wait for the reply.
 *
 * The reply is the result of the message's job, and is waited for as any other
 * job's end; see wait.c.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "control.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/parsenodes.h"
#include "servicesend.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* SQLSTATE: there is no reply in time */
#define ERRCODE_NO_REPLY MAKE_SQLSTATE('J', 'Q', '0', '0', '2')

/* how long a long reply can be fetched, beyond the time that it is waited for */
#define KEEP_REPLY_US (10 * USECS_PER_MINUTE)

static void
check_top_level(FunctionCallInfo fcinfo)
{
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!((CallContext *) fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("jobqueue_call() cannot run inside a transaction block"),
			 errdetail("The message is sent when its transaction commits."),
			 errhint("In a transaction, or a function, use jobqueue_send().")));
}

/* the end of the job, as jobqueue_wait() tells it; the reply is copied */
static Datum
wait_for_reply(const char *name, int64 id, Interval *timeout, bool *isnull,
			   MemoryContext context)
{
	Oid types[2] = {INT8OID, INTERVALOID};
	Datum values[2] = {Int64GetDatum(id), IntervalPGetDatum(timeout)};
	JqTable *t = jq_table_required();
	char *state;
	char *error;

	if (SPI_execute_with_args(
			jq_owner_statement(t, "SELECT w.state, w.error, w.result"
								  " FROM %s.jobqueue_wait($1, $2) w"),
			2, types, values, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not wait for the reply of service \"%s\"", name);
	state = jq_service_text(1, context);
	error = jq_service_text(2, context);
	if (state == NULL)
		ereport(ERROR, (errcode(ERRCODE_NO_REPLY),
						errmsg("service \"%s\" has not replied in time", name),
						errdetail("The message, job " INT64_FORMAT
								  ", has been sent, and may still be handled.",
								  id),
						errhint("jobqueue_explain() says what it waits for.")));
	if (strcmp(state, "completed") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("service \"%s\" has not handled the message: %s", name,
						error != NULL ? error : state),
				 errhint("It was rolled back; the message is %s.", state)));
	return jq_service_column(3, context, isnull);
}

PG_FUNCTION_INFO_V1(jq_call);
Datum
jq_call(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	JqTable *t;
	TupleDesc desc;
	Interval *timeout = palloc0(sizeof(Interval));
	Interval *keep = palloc0(sizeof(Interval));
	JqService s;
	Datum reply;
	bool isnull;
	int64 id;

	check_top_level(fcinfo);
	t = jq_enqueue_begin("jobqueue_call()");
	jq_service_check_message(fcinfo);
	timeout->time = 5 * USECS_PER_SEC;
	if (!PG_ARGISNULL(3))
		*timeout = *PG_GETARG_INTERVAL_P(3);
	jq_check_interval("timeout of a call", timeout);
	*keep = *timeout;
	keep->time += KEEP_REPLY_US;
	jq_service_argument(t, fcinfo, &s);
	if (strcmp(s.status, "stopping") == 0)
		jq_service_is_stopping(&s);
	if (strcmp(s.status, "failed") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("service \"%s\" has failed", s.name),
				 errhint("Start it again with jobqueue_start_service(); "
						 "jobqueue_send() leaves it a message until then.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(CreateTupleDescCopy(desc));
	id = jq_service_send(t, &s, PG_GETARG_DATUM(1), DT_NOBEGIN, keep);

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();
	reply = wait_for_reply(s.name, id, timeout, &isnull, context);
	SPI_finish();
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, &reply, &isnull)));
}
