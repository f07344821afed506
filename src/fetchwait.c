/*
 * fetchwait.c
 *		jobqueue_fetch_wait(): a procedure, which commits before it sleeps.
 *
 * So no snapshot is held while it waits, and vacuum can clean up what has ended
 * meanwhile.  A procedure returns one row: the jobs are an array of objects.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fetch.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static void
put_key(JsonbParseState **state, const char *name)
{
	JsonbValue v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, name);
	v.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &v);
}

static void
put_string(JsonbParseState **state, JsonbIteratorToken where, char *s)
{
	JsonbValue v;

	v.type = s != NULL ? jbvString : jbvNull;
	if (s != NULL)
	{
		v.val.string.val = s;
		v.val.string.len = strlen(s);
	}
	pushJsonbValue(state, where, &v);
}

static void
put_number(JsonbParseState **state, int64 n)
{
	JsonbValue v;

	v.type = jbvNumeric;
	v.val.numeric = int64_to_numeric(n);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static void
put_tags(JsonbParseState **state, const JqRow *row)
{
	Datum *tags;
	int n, i;

	if (JQ_ROW_NULL(row, JQ_COL_TAGS))
	{
		put_string(state, WJB_VALUE, NULL);
		return;
	}
	deconstruct_array(DatumGetArrayTypeP(JQ_ROW(row, JQ_COL_TAGS)), TEXTOID, -1,
					  false, TYPALIGN_INT, &tags, NULL, &n);
	pushJsonbValue(state, WJB_BEGIN_ARRAY, NULL);
	for (i = 0; i < n; i++)
		put_string(state, WJB_ELEM, TextDatumGetCString(tags[i]));
	pushJsonbValue(state, WJB_END_ARRAY, NULL);
}

/* the columns of jobqueue_fetch(), by name */
static void
put_job(JsonbParseState **state, const JqFetchRequest *r, const JqGiven *g)
{
	const JqRow *row = &g->row;

	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	put_key(state, "id");
	put_number(state, g->id);
	put_key(state, "args");
	if (JQ_ROW_NULL(row, JQ_COL_ARGS))
		put_string(state, WJB_VALUE, NULL);
	else
	{
		Jsonb *args = DatumGetJsonbP(JQ_ROW(row, JQ_COL_ARGS));
		JsonbValue v;

		if (!JB_ROOT_IS_SCALAR(args) || !JsonbExtractScalar(&args->root, &v))
		{
			v.type = jbvBinary;
			v.val.binary.data = &args->root;
			v.val.binary.len = VARSIZE(args) - VARHDRSZ;
		}
		pushJsonbValue(state, WJB_VALUE, &v);
	}
	put_key(state, "key");
	put_string(state, WJB_VALUE, jq_row_cstring(row, JQ_COL_KEY));
	put_key(state, "attempt");
	put_number(state, g->attempt);
	put_key(state, "priority");
	put_number(state, DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY)));
	put_key(state, "tags");
	put_tags(state, row);
	put_key(state, "enqueued_at");
	/* no buffer of ours: the text is only taken when all is put together */
	put_string(state, WJB_VALUE,
			   JsonEncodeDateTime(NULL, JQ_ROW(row, JQ_COL_ENQUEUED_AT),
								  TIMESTAMPTZOID, NULL));
	put_key(state, "token");
	put_string(state, WJB_VALUE,
			   r->leased ? DatumGetCString(
							   DirectFunctionCall1(uuid_out,
												   UUIDPGetDatum(&r->token))) :
						   NULL);
	pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

static Jsonb *
jobs_as_jsonb(const JqFetchRequest *r, const JqGiven *given, int n)
{
	JsonbParseState *state = NULL;
	int i;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (i = 0; i < n; i++)
		put_job(&state, r, &given[i]);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* the transaction that comes now takes its snapshots as it needs them */
static void
begin_anew(void)
{
	SPI_commit();
	XactIsoLevel = XACT_READ_COMMITTED;
}

PG_FUNCTION_INFO_V1(jq_fetch_wait);
Datum
jq_fetch_wait(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;
	JqFetchRequest r;
	TimestampTz until;
	TimestampTz next;
	JqGiven *given;
	TupleDesc desc;
	Jsonb *jobs;
	Datum value;
	bool isnull = false;
	int n = 0;

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(
			ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg(
				 "jobqueue_fetch_wait() cannot be called in a transaction block"),
			 errdetail("It commits before it waits."),
			 errhint("Call it by itself, or use jobqueue_fetch().")));
	jq_fetch_request(fcinfo, &r, "jobqueue_fetch_wait()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	until = GetCurrentTimestamp() + r.wait_us;
	given = palloc(r.max * sizeof(JqGiven));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	begin_anew();
	for (;;)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		old = MemoryContextSwitchTo(caller);
		n = jq_fetch_now(jq_table_required(), &r, given);
		MemoryContextSwitchTo(old);
		PopActiveSnapshot();
		if (n > 0)
			break;
		if (!jq_fetch_again(&r, until, &next))
			break;
		begin_anew();
		r.ends = false;
		jq_fetch_await(&r, next);
	}
	SPI_finish();
	MemoryContextSwitchTo(caller);
	/* args may be out of line */
	PushActiveSnapshot(GetTransactionSnapshot());
	jobs = jobs_as_jsonb(&r, given, n);
	PopActiveSnapshot();
	value = JsonbPGetDatum(jobs);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, &value, &isnull)));
}
