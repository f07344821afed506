/*
 * servicerun.c
 *		A message is handled: in the transaction of its job, the handler is called
 *		with the state, and what it returns is the new one.
 *
 * Only the worker that has the key writes the state, so it reads it without a lock:
 * the row is locked from its UPDATE to the commit only.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "command.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "quota.h"
#include "recent.h"
#include "runjob.h"
#include "servicerow.h"
#include "servicerun.h"
#include "supervise.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"

/* a service that is handling a message in this process, inline ones included */
typedef struct Handling
{
	int64 service;
	const struct Handling *outer;
} Handling;

static const Handling *handling;

bool
jq_service_is_handling(int64 service)
{
	const Handling *h;

	for (h = handling; h != NULL; h = h->outer)
		if (h->service == service)
			return true;
	return false;
}

JqServiceLook
jq_service_look(JqTable *t, const JqRow *row)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	JqServiceLook look = JQ_SERVICE_GONE;
	bool isnull;

	values[0] = Int64GetDatum(jq_service_id(jq_row_cstring(row, JQ_COL_KEY)));
	jq_owner_begin(t, &state);
	jq_service_run(t,
				   "SELECT status = 'failed', owner::oid"
				   " FROM %s.jobqueue_service WHERE id = $1",
				   1, types, values, NULL, true);
	if (SPI_processed > 0)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;

		if (DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull)) !=
			DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)))
			look = JQ_SERVICE_FOREIGN;
		else
			look = DatumGetBool(SPI_getbinval(tup, desc, 1, &isnull)) ?
					   JQ_SERVICE_FAILED :
					   JQ_SERVICE_GO;
	}
	jq_owner_end(&state);
	return look;
}

Oid
jq_service_hand_over(JqTable *t, const JqRow *row)
{
	Oid types[2] = {INT8OID, INT8OID};
	Datum values[2];
	JqOwnerState state;
	Oid was = DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER));
	Oid owner = was;
	bool isnull;

	values[0] = JQ_ROW(row, JQ_COL_ID);
	values[1] = Int64GetDatum(jq_service_id(jq_row_cstring(row, JQ_COL_KEY)));
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_job j SET owner = s.owner"
					 " FROM %s.jobqueue_service s WHERE j.id = $1"
					 " AND s.id = $2 RETURNING s.owner::oid",
					 2, types, values, NULL);
	if (SPI_processed > 0)
		owner =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	if (owner != was)
	{
		jq_quota_gone(was, 1);
		jq_quota_note(owner, 1);
	}
	return owner;
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
finish_message(JqTable *t, const JqService *s, int64 id, Datum new_state)
{
	if (!jq_service_write_state(t, s->id, new_state))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("service \"%s\" ended while it handled the message",
						s->name)));
	if (s->down_job == id)
		jq_service_end(t, s->id, s->name, id);
}

Datum
jq_service_handle(JqRow *row, bool *isnull)
{
	JqTable *t = jq_table_required();
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	int64 service = jq_service_id(jq_row_cstring(row, JQ_COL_KEY));
	Handling this = {service, handling};
	volatile Datum result = (Datum) 0;
	Datum reply = (Datum) 0;
	Datum old_state;
	Datum new_state;
	bool has_reply;
	JqService s;
	bool found;
	int nest;

	found = jq_service_find_by_id(t, service, &s) &&
			jq_service_read_state(t, service, true, &old_state);
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
	if (jq_service_is_handling(service))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
						errmsg("service \"%s\" is handling a message already",
							   s.name)));
	nest = NewGUCNestLevel();
	jq_apply_environment_nested(&s.environment);
	handling = &this;
	PG_TRY();
	{
		result = jq_execute_handler(s.handler, s.func_owner, old_state,
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
