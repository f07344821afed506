/*
 * servicecall.c
 *		CALL jobqueue_call(): send a message, commit, wait for the reply.
 *
 * The reply is the result of the message's job, and is waited for as any other
 * job's end; see wait.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "control.h"
#include "enqueue.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/parsenodes.h"
#include "parser/parse_func.h"
#include "servicesend.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
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

static char *
row_text(HeapTupleHeader row, const char *name)
{
	bool isnull;
	Datum d = GetAttributeByName(row, name, &isnull);

	return isnull ? NULL : TextDatumGetCString(d);
}

/*
 * jobqueue_wait(), called without a statement around it: that would hold a snapshot
 * as long as it waits.  Returns its row.
 */
static HeapTupleHeader
wait_for_end(JqTable *t, int64 id, Interval *timeout)
{
	Oid types[2] = {INT8OID, INTERVALOID};
	List *name = list_make2(makeString(get_namespace_name(t->schema)),
							makeString("jobqueue_wait"));
	LOCAL_FCINFO(fcinfo, 2);
	FmgrInfo flinfo;

	fmgr_info(LookupFuncName(name, 2, types, false), &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = Int64GetDatum(id);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = IntervalPGetDatum(timeout);
	fcinfo->args[1].isnull = false;
	return DatumGetHeapTupleHeader(FunctionCallInvoke(fcinfo));
}

/* the end of the job, as jobqueue_wait() tells it */
static Datum
wait_for_reply(const char *name, int64 id, Interval *timeout, bool *isnull)
{
	HeapTupleHeader row = wait_for_end(jq_table_required(), id, timeout);
	char *state = row_text(row, "state");
	char *error = row_text(row, "error");

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
	return GetAttributeByName(row, "result", isnull);
}

PG_FUNCTION_INFO_V1(jq_call);
Datum
jq_call(PG_FUNCTION_ARGS)
{
	JqTable *t;
	TupleDesc desc;
	Interval *timeout = palloc0(sizeof(Interval));
	Interval *keep = palloc0(sizeof(Interval));
	MemoryContext context = CurrentMemoryContext;
	JqService s;
	Datum reply;
	bool isnull;
	int64 id;
	int level;

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
	/* a snapshot of the whole transaction would be held as long as it waits */
	level = XactIsoLevel;
	XactIsoLevel = XACT_READ_COMMITTED;
	MemoryContextSwitchTo(context);
	reply = wait_for_reply(s.name, id, timeout, &isnull);
	if (level != XACT_READ_COMMITTED)
		SPI_commit(); /* what comes after it has the level that it asked for */
	SPI_finish();
	MemoryContextSwitchTo(context);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, &reply, &isnull)));
}
