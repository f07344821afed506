/*
 * service.c
 *		Services: named, durable actors.
 *
 * A service is a row in two tables: a name, a handler, a state.  A message
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
 * This file has the functions that start and stop services.  servicerow.c: the
 * row; servicesend.c and servicecall.c: messages; servicerun.c: how one is
 * handled; supervise.c: what becomes of it, and of the service, when it fails.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "compat.h"
#include "control.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "keylock.h"
#include "keylook.h"
#include "miscadmin.h"
#include "publish.h"
#include "runjob.h"
#include "servicesend.h"
#include "supervise.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#define MAX_RESTARTS 1000

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

/*
 * The service is not what it was a moment ago: look again.  What a transaction with
 * one snapshot changes is what that snapshot has, however often it looks.
 */
static void
changed_meanwhile(void)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errhint("The service has changed after this transaction's "
						 "snapshot; retry the transaction.")));
	CHECK_FOR_INTERRUPTS();
}

/* a failed service goes on, with other settings and the state that it has */
static bool
start_again(JqTable *t, JqService *s, Oid *types, Datum *values, char *nulls)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_service SET status = 'running', handler = $3,"
		" func_owner = $4, restart = $5, max_restarts = $6, within = $7,"
		" timeout = $9, search_path = $10, settings = $11, failures = '{}'"
		" WHERE name = $1 AND status = 'failed' AND $2 IS NOT NULL"
		" AND $8 IS NOT NULL RETURNING id";
	uint64 done;

	/* the handler is given anew, and runs as the owner */
	if (!superuser() && !jq_can_set_role(GetUserId(), s->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to start service \"%s\" again",
						s->name),
				 errhint("Its handler runs as its owner; one must be able to "
						 "SET ROLE to that role.")));
	jq_service_execute(t, sql, 11, types, values, nulls, &done);
	if (done == 0)
		return false;
	jq_service_resume(t, s->id);
	return true;
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

PG_FUNCTION_INFO_V1(jq_start_service);
Datum
jq_start_service(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH s AS (INSERT INTO %s.jobqueue_service (name, handler, func_owner,"
		" restart, max_restarts, within, queue, timeout, search_path, settings,"
		" owner) VALUES ($1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
		" ON CONFLICT (name) DO NOTHING RETURNING id)"
		" INSERT INTO %s.jobqueue_service_current (service, state)"
		" SELECT id, $2 FROM s";
	Oid types[12] = {TEXTOID,	  JSONBOID, TEXTOID,	  OIDOID,
					 TEXTOID,	  INT4OID,	INTERVALOID,  TEXTOID,
					 INTERVALOID, TEXTOID,	TEXTARRAYOID, OIDOID};
	JqTable *t = jq_enqueue_begin("jobqueue_start_service()");
	text *name = jq_service_name(fcinfo);
	Datum values[12];
	char nulls[12];
	uint64 done;
	JqService s;

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
	for (;; changed_meanwhile())
	{
		if (!jq_service_find(t, name, &s))
		{
			jq_service_execute(t, sql, 12, types, values, nulls, &done);
			if (!jq_service_find(t, name, &s))
				continue; /* somebody else's, and gone again */
			if (done > 0)
			{
				(void) jq_service_send(t, &s, one_pair("init", s.name),
									   DT_NOBEGIN, NULL);
				break;
			}
		}
		jq_service_check_owner(&s);
		if (strcmp(s.status, "stopping") == 0)
			jq_service_is_stopping(&s);
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
has_last_message(JqTable *t, const JqService *s)
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
	JqService s;

	for (;; changed_meanwhile())
	{
		jq_service_argument(t, fcinfo, &s);
		if (strcmp(s.status, "stopping") == 0 && has_last_message(t, &s))
			PG_RETURN_BOOL(false);
		values[0] = Int64GetDatum(s.id);
		if (strcmp(s.status, "stopping") == 0)
		{
			/* it was cancelled, or has crashed the server */
			jq_service_end(t, s.id, s.name, 0);
			PG_RETURN_BOOL(true);
		}
		if (strcmp(s.status, "failed") == 0)
		{
			/* nobody is there to handle anything */
			jq_service_execute(t,
							   "SELECT FROM %s.jobqueue_service WHERE id = $1"
							   " AND status = 'failed' FOR UPDATE",
							   1, types, values, NULL, &done);
			if (done == 0)
				continue;
			jq_service_end(t, s.id, s.name, 0);
			PG_RETURN_BOOL(true);
		}
		jq_service_execute(t, stop, 1, types, values, NULL, &done);
		if (done > 0)
			break;
	}
	values[1] = Int64GetDatum(
		jq_service_send(t, &s, one_pair("down", "stopped"), DT_NOBEGIN, NULL));
	jq_service_execute(t, note, 2, types, values, NULL, &done);
	s.down_job = DatumGetInt64(values[1]);
	/* inline, it has been handled already */
	if (!has_last_message(t, &s))
		jq_service_end(t, s.id, s.name, 0);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(jq_service_state);
Datum
jq_service_state(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_table_required();
	JqService s;
	Datum state;

	jq_shmem_check();
	jq_service_argument(t, fcinfo, &s);
	if (!jq_service_read_state(t, s.id, false, &state))
		PG_RETURN_NULL(); /* it has ended just now */
	PG_RETURN_DATUM(state);
}

PG_FUNCTION_INFO_V1(jq_whereis_service);
Datum
jq_whereis_service(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_table_required();
	JqKeyLook look;
	JqService s;
	char *key;

	jq_shmem_check();
	jq_service_argument(t, fcinfo, &s);
	key = jq_service_key(s.id);
	memset(&look, 0, sizeof(look));
	jq_keylock_look(MyDatabaseId, key, strlen(key), -1, JQ_POS_ALL, &look);
	if (!look.known || look.holders == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(look.pid);
}
