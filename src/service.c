/*
 * service.c
 *		Services: named, durable actors.
 *
 * A service is a row of jobqueue_service: a name, a handler, a state.  A message
 * to it is a job of kind 'm' on the service's key, and so it goes the way of all
 * jobs: one at a time, by any worker that is free, the effects of the handler,
 * the new state and the end of the message in one transaction.  An idle service
 * is its row and nothing else.
 *
 * Key.  "jobqueue_service:" and the number of the service, which is new each time
 * a service of that name is started after it had ended.  Users cannot have keys
 * that begin so (jq_check_user_key), whatever the name of a service is, and what
 * was sent to an earlier service of the name does not reach the next one.  On
 * such a key jobs run one by one and in order (a message that failed goes before
 * all later ones), whatever the settings of its queue say; see jq_key_rules().
 *
 * State machine:
 *
 *		running  -> failed   : a message failed too often; by who records that
 *		failed   -> running  : jobqueue_start_service()
 *		running  -> stopping : jobqueue_stop_service(); {"down": ...} was sent
 *		stopping -> no row   : the down message has been handled, or given up
 *		running  -> no row   : a message of a temporary service failed
 *		failed   -> no row   : jobqueue_stop_service()
 *
 * Messages of a failed service wait in the table: the first one that is met has
 * run_at = infinity, and by the order of the key all later ones wait for it.  To
 * start the service again is to let the few such rows go.
 *
 * Only the worker that has the key writes "state", so it reads it without a lock:
 * the row is locked from its UPDATE to the commit only.
 *
 * Lock order of rows: a job, then its service.  Whoever starts a service again
 * has the service first, but waits for no job that is being recorded: those do
 * not have run_at = infinity.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "control.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "grant.h"
#include "guc.h"
#include "keylock.h"
#include "keylook.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "publish.h"
#include "quota.h"
#include "recent.h"
#include "runhere.h"
#include "runjob.h"
#include "service.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#define MAX_RESTARTS 1000

/* a service, as far as the caller needs it; strings are palloc'd */
typedef struct Service
{
	int64 id;
	char *name;
	Oid owner;
	char *status;
	char *queue;
	Datum state;
	char *handler;
	Oid func_owner;
	int64 down_job; /* 0 = none */
	Datum timeout;
	bool has_timeout;
	/* where they come from when the handler runs */
	JqRow environment;
} Service;

#define COLUMNS                                                               \
	"SELECT id, name::text, owner::oid, status, queue::text, state, handler," \
	" func_owner, coalesce(down_job, 0), timeout, search_path, settings"      \
	" FROM %s.jobqueue_service WHERE "

/* a service that is handling a message in this process, inline ones included */
typedef struct Handling
{
	int64 service;
	const struct Handling *outer;
} Handling;

static const Handling *handling;

static char *
key_of(int64 id)
{
	return psprintf(JQ_SERVICE_KEY INT64_FORMAT, id);
}

static int64
id_of_key(const char *key)
{
	if (key == NULL || !jq_key_is_service(key, strlen(key)))
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("a message has no key of a service"),
						errhint("Messages are sent with jobqueue_send().")));
	return strtoll(key + strlen(JQ_SERVICE_KEY), NULL, 10);
}

/* column n of the row that a statement has found, copied to the context */
static Datum
copy_column(int n, MemoryContext context, bool *isnull)
{
	HeapTuple tup = SPI_tuptable->vals[0];
	TupleDesc desc = SPI_tuptable->tupdesc;
	Form_pg_attribute att = TupleDescAttr(desc, n - 1);
	Datum d = SPI_getbinval(tup, desc, n, isnull);
	MemoryContext old;

	if (*isnull)
		return (Datum) 0;
	old = MemoryContextSwitchTo(context);
	if (att->attlen == -1)
		d = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
	else
		d = datumCopy(d, att->attbyval, att->attlen);
	MemoryContextSwitchTo(old);
	return d;
}

static char *
copy_text(int n, MemoryContext context)
{
	bool isnull;
	Datum d =
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, &isnull);

	return isnull ? NULL : MemoryContextStrdup(context, TextDatumGetCString(d));
}

/* what COLUMNS has found; false: nothing */
static bool
service_of_result(Service *s, MemoryContext context)
{
	bool isnull;
	int i;

	if (SPI_processed == 0)
		return false;
	s->id = DatumGetInt64(copy_column(1, context, &isnull));
	s->name = copy_text(2, context);
	s->owner = DatumGetObjectId(copy_column(3, context, &isnull));
	s->status = copy_text(4, context);
	s->queue = copy_text(5, context);
	s->state = copy_column(6, context, &isnull);
	s->handler = copy_text(7, context);
	s->func_owner = DatumGetObjectId(copy_column(8, context, &isnull));
	if (isnull)
		s->func_owner = InvalidOid;
	s->down_job = DatumGetInt64(copy_column(9, context, &isnull));
	s->timeout = copy_column(10, context, &isnull);
	s->has_timeout = !isnull;
	for (i = 0; i < JQ_NCOLS; i++)
		s->environment.nulls[i] = true;
	s->environment.values[JQ_COL_SEARCH_PATH - 1] =
		copy_column(11, context, &s->environment.nulls[JQ_COL_SEARCH_PATH - 1]);
	s->environment.values[JQ_COL_SETTINGS - 1] =
		copy_column(12, context, &s->environment.nulls[JQ_COL_SETTINGS - 1]);
	return true;
}

/* as it is now, whatever the transaction's snapshot */
static bool
find_by_name(JqTable *t, text *name, Service *s)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {TEXTOID};
	Datum values[1] = {PointerGetDatum(name)};
	JqOwnerState state;
	bool found;

	jq_owner_begin(t, &state);
	jq_owner_read(t, COLUMNS "name = $1", 1, types, values, NULL);
	found = service_of_result(s, context);
	jq_owner_end(&state);
	return found;
}

/* ------------------------------------------------------------- arguments */

static text *
name_argument(FunctionCallInfo fcinfo)
{
	text *name;
	int len;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("name of a service must not be null"),
						errhint("It has 1 to %d bytes.", JQ_KEY_MAX)));
	name = PG_GETARG_TEXT_PP(0);
	len = VARSIZE_ANY_EXHDR(name);
	if (len < 1 || len > JQ_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 len < 1 ? errmsg("name of a service must not be empty") :
						   errmsg("name of a service is too long"),
				 errhint("It has 1 to %d bytes.", JQ_KEY_MAX)));
	return name;
}

static void
no_such_service(text *name)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_UNDEFINED_OBJECT),
		 errmsg("service \"%s\" does not exist", text_to_cstring(name)),
		 errhint(
			 "Start it with jobqueue_start_service(); one that was stopped is gone.")));
}

static void
check_service_owner(const Service *s)
{
	if (superuser() ||
		(OidIsValid(s->owner) && has_privs_of_role(GetUserId(), s->owner)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for service \"%s\"", s->name),
			 errhint(
				 "It is for its owner, and roles with the privileges of its "
				 "owner.")));
}

/* the service that the first argument names; ERROR if the caller has none */
static void
service_argument(JqTable *t, FunctionCallInfo fcinfo, Service *s)
{
	text *name = name_argument(fcinfo);

	if (!find_by_name(t, name, s))
		no_such_service(name);
	check_service_owner(s);
}

static void
is_stopping(const Service *s)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("service \"%s\" is being stopped", s->name),
			 errhint("It is gone when its last messages have been handled.")));
}

/* -------------------------------------------------------------- messages */

static bool
is_handling(int64 service)
{
	const Handling *h;

	for (h = handling; h != NULL; h = h->outer)
		if (h->service == service)
			return true;
	return false;
}

/*
 * A job for the service; run_at DT_NOBEGIN: at once.  keep, or NULL: somebody waits
 * for a reply, which may be too long for the ring.  Returns the id.
 */
static int64
send_message(JqTable *t, const Service *s, Datum message, TimestampTz run_at,
			 Interval *keep)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_job (owner, kind, queue, command, args, key,"
		" timeout, max_attempts, run_at, keep) VALUES ($1, 'm', $2, $3, $4, $5,"
		" $6, 32767, $7, $8) RETURNING id, ctid";
	Oid types[8] = {OIDOID,	 TEXTOID,	  TEXTOID,		  JSONBOID,
					TEXTOID, INTERVALOID, TIMESTAMPTZOID, INTERVALOID};
	Datum values[8];
	char nulls[8] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	char *key = key_of(s->id);
	JqOwnerState state;
	JqItem item;
	bool isnull;
	/* not inside itself: its state is in use; nor as somebody else */
	bool here = jobqueue_inline && run_at == DT_NOBEGIN &&
				s->owner == GetUserId() && !is_handling(s->id) &&
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
	memset(&item, 0, sizeof(item));
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 8, types, values, nulls);
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
	else
		jq_publish_row(s->owner, s->queue, &item, run_at);
	return item.id;
}

static Datum
one_pair(const char *name, const char *value)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "{\"%s\": ", name);
	escape_json(&buf, value);
	appendStringInfoChar(&buf, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(buf.data));
}

static void
check_message(FunctionCallInfo fcinfo)
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
	Service s;

	check_message(fcinfo);
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
	service_argument(t, fcinfo, &s);
	if (strcmp(s.status, "stopping") == 0)
		is_stopping(&s);
	PG_RETURN_INT64(send_message(t, &s, PG_GETARG_DATUM(1), run_at, NULL));
}

/* ------------------------------------------------------------------ call */

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
	state = copy_text(1, context);
	error = copy_text(2, context);
	if (state == NULL)
		ereport(ERROR, (errcode(JQ_ERRCODE_NO_REPLY),
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
	return copy_column(3, context, isnull);
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
	Service s;
	Datum reply;
	bool isnull;
	int64 id;

	check_top_level(fcinfo);
	t = jq_enqueue_begin("jobqueue_call()");
	check_message(fcinfo);
	timeout->time = 5 * USECS_PER_SEC;
	if (!PG_ARGISNULL(3))
		*timeout = *PG_GETARG_INTERVAL_P(3);
	jq_check_interval("timeout", timeout);
	*keep = *timeout;
	keep->time += KEEP_REPLY_US;
	service_argument(t, fcinfo, &s);
	if (strcmp(s.status, "stopping") == 0)
		is_stopping(&s);
	if (strcmp(s.status, "failed") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("service \"%s\" has failed", s.name),
				 errhint("Start it again with jobqueue_start_service(); "
						 "jobqueue_send() leaves it a message until then.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(CreateTupleDescCopy(desc));
	id = send_message(t, &s, PG_GETARG_DATUM(1), DT_NOBEGIN, keep);

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_commit();
	reply = wait_for_reply(s.name, id, timeout, &isnull, context);
	SPI_finish();
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, &reply, &isnull)));
}

/* --------------------------------------------------------- start and stop */

static Datum
opt_argument(FunctionCallInfo fcinfo, int arg, Datum otherwise)
{
	return PG_ARGISNULL(arg) ? otherwise : PG_GETARG_DATUM(arg);
}

/* values $3 to $11 of the statements: all but name and state, and the queue */
static void
fill_settings(FunctionCallInfo fcinfo, Datum *values, char *nulls)
{
	char *restart =
		PG_ARGISNULL(3) ? "permanent" : text_to_cstring(PG_GETARG_TEXT_PP(3));
	int max_restarts = PG_ARGISNULL(4) ? 3 : PG_GETARG_INT32(4);
	char *queue =
		PG_ARGISNULL(6) ? "default" : text_to_cstring(PG_GETARG_TEXT_PP(6));
	Interval *within = palloc0(sizeof(Interval));
	Interval zero;
	const char *path;
	Oid func_owner;
	bool isnull;

	memset(&zero, 0, sizeof(zero));
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("handler must not be null"),
						errhint("It is the name of a function f(state jsonb, "
								"message jsonb) that returns jsonb.")));
	if (strcmp(restart, "permanent") != 0 &&
		strcmp(restart, "transient") != 0 && strcmp(restart, "temporary") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("unknown restart \"%s\"", restart),
						errhint("It is \"permanent\", \"transient\" or "
								"\"temporary\".")));
	if (max_restarts < 0 || max_restarts > MAX_RESTARTS)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("max_restarts is out of range"),
						errhint("It must be between 0 and %d.", MAX_RESTARTS)));
	within->time = 5 * USECS_PER_SEC;
	if (!PG_ARGISNULL(5))
		within = PG_GETARG_INTERVAL_P(5);
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp,
										  IntervalPGetDatum(within),
										  IntervalPGetDatum(&zero))) <= 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("within must be more than 0"),
						errhint("It is the period that max_restarts is about, "
								"for example '5 s'.")));
	jq_check_interval("within", within);
	jq_check_queue_name(queue);
	if (!PG_ARGISNULL(7))
		jq_check_interval("timeout", PG_GETARG_INTERVAL_P(7));

	values[2] = CStringGetTextDatum(
		jq_command_handler(text_to_cstring(PG_GETARG_TEXT_PP(1)), &func_owner));
	values[3] = ObjectIdGetDatum(func_owner);
	values[4] = CStringGetTextDatum(restart);
	values[5] = Int32GetDatum(max_restarts);
	values[6] = IntervalPGetDatum(within);
	values[7] = CStringGetTextDatum(queue);
	values[8] = opt_argument(fcinfo, 7, (Datum) 0);
	nulls[8] = PG_ARGISNULL(7) ? 'n' : ' ';
	path = jq_captured_search_path();
	values[9] = path != NULL ? CStringGetTextDatum(path) : (Datum) 0;
	nulls[9] = path != NULL ? ' ' : 'n';
	values[10] = jq_captured_settings(&isnull);
	nulls[10] = isnull ? 'n' : ' ';
}

static void
execute_and_count(JqTable *t, const char *sql, int nargs, Oid *types,
				  Datum *values, const char *nulls, uint64 *n)
{
	JqOwnerState state;

	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, nargs, types, values, nulls);
	*n = SPI_processed;
	jq_owner_end(&state);
}

/* ids of jobs that a statement finds; palloc'd */
static int64 *
list_jobs(JqTable *t, const char *sql, int64 service, int64 but, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {TEXTOID, INT8OID};
	Datum values[2];
	JqOwnerState state;
	int64 *ids;
	bool isnull;
	int i;

	values[0] = CStringGetTextDatum(key_of(service));
	values[1] = Int64GetDatum(but);
	jq_owner_begin(t, &state);
	jq_owner_read(t, sql, 2, types, values, NULL);
	*n = (int) SPI_processed;
	ids = MemoryContextAllocHuge(context, Max(*n, 1) * sizeof(int64));
	for (i = 0; i < *n; i++)
		ids[i] =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	return ids;
}

#define OF_KEY                                                        \
	"SELECT id FROM %s.jobqueue_job WHERE hashtextextended(key, 0) =" \
	" hashtextextended($1, 0) AND key = $1 AND id <> $2"

/* the row goes, and what still waits for it is cancelled */
static void
end_service(JqTable *t, int64 id, const char *name, int64 but)
{
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(id)};
	uint64 done;
	int64 *ids;
	int n, i;

	execute_and_count(t, "DELETE FROM %s.jobqueue_service WHERE id = $1", 1,
					  types, values, NULL, &done);
	ids = list_jobs(t, OF_KEY " ORDER BY id", id, but, &n);
	for (i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) jq_archive(t, ids[i], "cancelled",
						  psprintf("service \"%s\" has ended", name), 0,
						  (Datum) 0);
	}
}

/* a failed service goes on, with other settings and the state that it has */
static bool
start_again(JqTable *t, Service *s, Oid *types, Datum *values, char *nulls)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_service SET status = 'running', handler = $3,"
		" func_owner = $4, restart = $5, max_restarts = $6, within = $7,"
		" timeout = $9, search_path = $10, settings = $11, failures = '{}'"
		" WHERE name = $1 AND status = 'failed' AND $2 IS NOT NULL"
		" AND $8 IS NOT NULL RETURNING id";
	uint64 done;
	int64 *ids;
	int n, i;

	execute_and_count(t, sql, 11, types, values, nulls, &done);
	if (done == 0)
		return false;
	ids = list_jobs(t, OF_KEY " AND run_at = 'infinity' ORDER BY id", s->id, 0,
					&n);
	for (i = 0; i < n; i++)
		(void) jq_job_run_now(t, ids[i]);
	return true;
}

PG_FUNCTION_INFO_V1(jq_start_service);
Datum
jq_start_service(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_service (name, state, handler, func_owner,"
		" restart, max_restarts, within, queue, timeout, search_path, settings,"
		" owner) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
		" ON CONFLICT (name) DO NOTHING";
	Oid types[12] = {TEXTOID,	  JSONBOID, TEXTOID,	  OIDOID,
					 TEXTOID,	  INT4OID,	INTERVALOID,  TEXTOID,
					 INTERVALOID, TEXTOID,	TEXTARRAYOID, OIDOID};
	JqTable *t = jq_enqueue_begin("jobqueue_start_service()");
	text *name = name_argument(fcinfo);
	Datum values[12];
	char nulls[12];
	uint64 done;
	Service s;

	memset(nulls, ' ', sizeof(nulls));
	if (PG_ARGISNULL(2))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("state must not be null"),
						errhint("A state without content can be '{}'.")));
	jq_check_args_size(PG_GETARG_DATUM(2));
	values[0] = PointerGetDatum(name);
	values[1] = PG_GETARG_DATUM(2);
	fill_settings(fcinfo, values, nulls);
	values[11] = ObjectIdGetDatum(GetUserId());
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (!find_by_name(t, name, &s))
		{
			execute_and_count(t, sql, 12, types, values, nulls, &done);
			if (!find_by_name(t, name, &s))
				continue; /* somebody else's, and gone again */
			if (done > 0)
			{
				(void) send_message(t, &s, one_pair("init", s.name), DT_NOBEGIN,
									NULL);
				break;
			}
		}
		check_service_owner(&s);
		if (strcmp(s.status, "stopping") == 0)
			is_stopping(&s);
		if (strcmp(s.status, "failed") == 0)
		{
			if (!start_again(t, &s, types, values, nulls))
				continue;
			break;
		}
		ereport(NOTICE, (errmsg("service \"%s\" is running already", s.name)));
		break;
	}
	PG_RETURN_INT64(s.id);
}

static bool
has_last_message(JqTable *t, const Service *s)
{
	JqRow row;
	TransactionId xid;

	return jq_row_fetch(t, s->down_job, NULL, NULL, &row, &xid, NULL) !=
		   JQ_FETCH_GONE;
}

PG_FUNCTION_INFO_V1(jq_stop_service);
Datum
jq_stop_service(PG_FUNCTION_ARGS)
{
	static const char *const stop =
		"UPDATE %s.jobqueue_service SET status = 'stopping'"
		" WHERE id = $1 AND status = 'running'";
	static const char *const note =
		"UPDATE %s.jobqueue_service SET down_job = $2 WHERE id = $1";
	JqTable *t = jq_enqueue_begin("jobqueue_stop_service()");
	Oid types[2] = {INT8OID, INT8OID};
	Datum values[2];
	uint64 done;
	Service s;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		service_argument(t, fcinfo, &s);
		if (strcmp(s.status, "stopping") == 0 && has_last_message(t, &s))
			PG_RETURN_BOOL(false);
		values[0] = Int64GetDatum(s.id);
		if (strcmp(s.status, "stopping") == 0)
		{
			/* it was cancelled, or has crashed the server */
			end_service(t, s.id, s.name, 0);
			PG_RETURN_BOOL(true);
		}
		if (strcmp(s.status, "failed") == 0)
		{
			/* nobody is there to handle anything */
			execute_and_count(t,
							  "SELECT FROM %s.jobqueue_service WHERE id = $1"
							  " AND status = 'failed' FOR UPDATE",
							  1, types, values, NULL, &done);
			if (done == 0)
				continue;
			end_service(t, s.id, s.name, 0);
			PG_RETURN_BOOL(true);
		}
		execute_and_count(t, stop, 1, types, values, NULL, &done);
		if (done > 0)
			break;
	}
	values[1] = Int64GetDatum(
		send_message(t, &s, one_pair("down", "stopped"), DT_NOBEGIN, NULL));
	execute_and_count(t, note, 2, types, values, NULL, &done);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(jq_service_state);
Datum
jq_service_state(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_table_required();
	Service s;

	service_argument(t, fcinfo, &s);
	PG_RETURN_DATUM(s.state);
}

PG_FUNCTION_INFO_V1(jq_whereis_service);
Datum
jq_whereis_service(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_table_required();
	JqKeyLook look;
	Service s;
	char *key;

	jq_shmem_check();
	service_argument(t, fcinfo, &s);
	key = key_of(s.id);
	memset(&look, 0, sizeof(look));
	jq_keylock_look(MyDatabaseId, key, strlen(key), -1, JQ_POS_ALL, &look);
	if (!look.known || look.holders == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(look.pid);
}

/* -------------------------------------------------------------- handling */

JqServiceLook
jq_service_look(JqTable *t, const JqRow *row)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	JqServiceLook look = JQ_SERVICE_GONE;
	bool isnull;

	values[0] = Int64GetDatum(id_of_key(jq_row_cstring(row, JQ_COL_KEY)));
	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT status = 'failed' FROM %s.jobqueue_service"
				  " WHERE id = $1",
				  1, types, values, NULL);
	if (SPI_processed > 0)
		look = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 1, &isnull)) ?
				   JQ_SERVICE_FAILED :
				   JQ_SERVICE_GO;
	jq_owner_end(&state);
	return look;
}

bool
jq_service_put_off(JqTable *t, int64 id, const char *key)
{
	/* a new version of the row: who starts it at a higher isolation level than
	 * read committed has to see what waits */
	static const char *const lock =
		"UPDATE %s.jobqueue_service SET status = 'failed'"
		" WHERE id = $1 AND status = 'failed'";
	static const char *const put_off =
		"UPDATE %s.jobqueue_job SET run_at = 'infinity', keeps_order = true"
		" WHERE id = $1";
	Oid types[1] = {INT8OID};
	Datum values[1];
	uint64 done;

	values[0] = Int64GetDatum(id_of_key(key));
	execute_and_count(t, lock, 1, types, values, NULL, &done);
	if (done == 0)
		return false;
	values[0] = Int64GetDatum(id);
	execute_and_count(t, put_off, 1, types, values, NULL, &done);
	return true;
}

static JsonbValue *
member(Jsonb *jb, const char *name)
{
	return getKeyJsonValueFromContainer(&jb->root, name, strlen(name), NULL);
}

/*
 * What the handler has returned: the new state, or {"state": ..., "reply": ...}.
 */
static Datum
split_result(Datum result, Datum *reply, bool *has_reply)
{
	Jsonb *jb = DatumGetJsonbP(result);
	JsonbValue *state;
	JsonbValue *answer;

	*has_reply = false;
	if (!JB_ROOT_IS_OBJECT(jb) || JB_ROOT_COUNT(jb) != 2)
		return result;
	state = member(jb, "state");
	answer = member(jb, "reply");
	if (state == NULL || answer == NULL)
		return result;
	*has_reply = true;
	*reply = JsonbPGetDatum(JsonbValueToJsonb(answer));
	return JsonbPGetDatum(JsonbValueToJsonb(state));
}

/* the state is written; was it the last message? */
static void
finish_message(JqTable *t, const Service *s, int64 id, Datum new_state)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_service SET state = $2, handled = handled + 1"
		" WHERE id = $1 AND status <> 'failed'"
		" RETURNING coalesce(down_job, 0)";
	Oid types[2] = {INT8OID, JSONBOID};
	Datum values[2];
	JqOwnerState state;
	int64 down_job = 0;
	bool found;
	bool isnull;

	values[0] = Int64GetDatum(s->id);
	values[1] = new_state;
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 2, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
		down_job =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("service \"%s\" failed or ended while it handled "
						"the message",
						s->name)));
	if (down_job == id)
		end_service(t, s->id, s->name, id);
}

Datum
jq_service_handle(JqRow *row, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	JqTable *t = jq_table_required();
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	int64 service = id_of_key(jq_row_cstring(row, JQ_COL_KEY));
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	Handling this = {service, handling};
	volatile Datum result = (Datum) 0;
	Datum reply = (Datum) 0;
	Datum new_state;
	bool has_reply;
	Service s;
	bool found;
	int nest;

	values[0] = Int64GetDatum(service);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, COLUMNS "id = $1", 1, types, values, NULL);
	found = service_of_result(&s, context);
	jq_owner_end(&state);
	if (!found || strcmp(s.status, "failed") == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						found ? errmsg("service \"%s\" has failed", s.name) :
								errmsg("the service of the message has ended"),
						found ? errhint("Start it again with "
										"jobqueue_start_service().") :
								0));
	/* the row may have been written by hand */
	if (s.owner != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("service \"%s\" belongs to another role than the "
						"message",
						s.name)));
	if (is_handling(service))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
						errmsg("service \"%s\" is handling a message already",
							   s.name)));
	nest = NewGUCNestLevel();
	jq_apply_environment_nested(&s.environment);
	handling = &this;
	PG_TRY();
	{
		result = jq_execute_handler(s.handler, s.func_owner, s.state,
									JQ_ROW(row, JQ_COL_ARGS),
									JQ_ROW_NULL(row, JQ_COL_ARGS), isnull);
	}
	PG_FINALLY();
	{
		handling = this.outer;
	}
	PG_END_TRY();
	AtEOXact_GUC(false, nest);
	if (*isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the handler of service \"%s\" returned null", s.name),
				 errhint("It returns the new state, which is the old one if "
						 "nothing has changed.")));
	new_state = split_result(result, &reply, &has_reply);
	/* whoever waits for it finds what is short in the ring */
	if (!JQ_ROW_NULL(row, JQ_COL_KEEP) &&
		(!has_reply || strlen(JsonbToCString(NULL, &DatumGetJsonbP(reply)->root,
											 0)) <= JQ_RECENT_TEXT))
		row->nulls[JQ_COL_KEEP - 1] = true;
	/* so that the update, and what it may wait for, is part of the attempt */
	finish_message(t, &s, id, new_state);
	*isnull = !has_reply;
	return reply;
}

/* --------------------------------------------------------------- failures */

JqServiceFailure
jq_service_failed(JqTable *t, int64 id, const char *key, const JqFailure *f,
				  const char **reason)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_service s SET failures = n.list,"
		" failed = s.failed + 1, last_error = $2,"
		" status = CASE WHEN s.status = 'running' AND s.restart <> 'temporary'"
		"  AND cardinality(n.list) > s.max_restarts THEN 'failed'"
		"  ELSE s.status END"
		" FROM (SELECT x.id, coalesce((SELECT array_agg(f) FROM"
		"   unnest(x.failures) f WHERE f > clock_timestamp() - x.within), '{}')"
		"   || clock_timestamp() AS list"
		"  FROM %s.jobqueue_service x WHERE x.id = $1 FOR UPDATE) n"
		" WHERE s.id = n.id"
		" RETURNING s.name::text, s.restart, s.status,"
		" cardinality(s.failures) > s.max_restarts, coalesce(s.down_job, 0),"
		" s.within::text";
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {INT8OID, TEXTOID};
	Datum values[2];
	JqOwnerState state;
	int64 service = id_of_key(key);
	char *name;
	char *restart;
	char *status;
	char *within;
	bool often;
	bool down;
	bool isnull;

	values[0] = Int64GetDatum(service);
	values[1] = CStringGetTextDatum(f->message ? f->message : "");
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 2, types, values, NULL);
	if (SPI_processed == 0)
	{
		jq_owner_end(&state);
		*reason = "its service has ended";
		return JQ_SERVICE_DROP;
	}
	name = copy_text(1, context);
	restart = copy_text(2, context);
	status = copy_text(3, context);
	often = DatumGetBool(copy_column(4, context, &isnull));
	down = DatumGetInt64(copy_column(5, context, &isnull)) == id;
	within = copy_text(6, context);
	jq_owner_end(&state);
	if (strcmp(restart, "temporary") == 0 ||
		(strcmp(status, "stopping") == 0 && often) ||
		(down && (f->final || strcmp(restart, "transient") == 0)))
	{
		end_service(t, service, name, id);
		*reason = psprintf("service \"%s\" ended with it", name);
		return JQ_SERVICE_DROP;
	}
	if (strcmp(status, "failed") == 0 && often)
		ereport(WARNING,
				(errmsg("service \"%s\" has failed", name),
				 errdetail("Messages failed more often than max_restarts "
						   "allows within %s; the last error was: %s",
						   within, f->message),
				 errhint("Start it again with jobqueue_start_service().")));
	if (f->final)
	{
		*reason = f->reason;
		return JQ_SERVICE_DROP;
	}
	if (strcmp(restart, "transient") == 0)
	{
		*reason = psprintf("service \"%s\" dropped it", name);
		return JQ_SERVICE_DROP;
	}
	return strcmp(status, "failed") == 0 ? JQ_SERVICE_STALL : JQ_SERVICE_RETRY;
}
