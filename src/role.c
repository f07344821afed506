/*
 * role.c
 *		jobqueue_pause_role(), jobqueue_resume_role(), jobqueue_reassign().
 *
 * A pause is a row of jobqueue_paused_role, whose trigger has it told to memory
 * when it has committed; see pausedrole.c.
 *
 * To give somebody's jobs to another role is to have code run as that one.  So
 * the caller must be both already: have the privileges of both, as for REASSIGN
 * OWNED, and be able to become the one who gets them; and that one must be
 * allowed to enqueue.  What runs goes on as who it was; the row says as whom the
 * next attempt runs.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "control.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "grant.h"
#include "miscadmin.h"
#include "pausedrole.h"
#include "publish.h"
#include "quota.h"
#include "role.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

Oid *
jq_paused_roles_read(JqTable *t, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	JqOwnerState state;
	Oid *roles;
	int i;

	*n = 0;
	if (!OidIsValid(t->paused_role))
		return NULL;
	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT DISTINCT role::oid FROM %s.jobqueue_paused_role"
				  " WHERE role::oid <> 0",
				  0, NULL, NULL, NULL);
	*n = (int) SPI_processed;
	roles = MemoryContextAlloc(context, Max(*n, 1) * sizeof(Oid));
	for (i = 0; i < *n; i++)
	{
		bool isnull;

		roles[i] =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1, &isnull));
	}
	jq_owner_end(&state);
	return roles;
}

static JqTable *
begin(const char *function)
{
	JqTable *t = jq_control_begin(function);

	/* cannot be: the function came with it */
	if (!OidIsValid(t->paused_role))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("the SQL objects of extension \"jobqueue\" are "
							   "of version %s",
							   t->version),
						errhint("Run ALTER EXTENSION jobqueue UPDATE.")));
	return t;
}

static Oid
role_argument(FunctionCallInfo fcinfo, int n)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("role must not be null"),
						errhint("Give the name of a role.")));
	return PG_GETARG_OID(n);
}

static void
must_exist(Oid role)
{
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("role with OID %u does not exist", role),
						errhint("Give the name of a role.")));
}

/* ------------------------------------------------------- pause and resume */

PG_FUNCTION_INFO_V1(jq_pause_role);
Datum
jq_pause_role(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_pause_role()");
	Oid types[2] = {OIDOID, OIDOID};
	Datum values[2];
	JqOwnerState state;
	bool isnull;
	int64 n;

	values[0] = ObjectIdGetDatum(role_argument(fcinfo, 0));
	values[1] = ObjectIdGetDatum(GetUserId());
	must_exist(DatumGetObjectId(values[0]));
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "LOCK TABLE %s.jobqueue_paused_role"
					 " IN SHARE ROW EXCLUSIVE MODE",
					 0, NULL, NULL, NULL);
	/* what is left of roles that were dropped, here or before a restore */
	jq_owner_execute(t,
					 "DELETE FROM %s.jobqueue_paused_role p WHERE NOT EXISTS"
					 " (SELECT FROM pg_catalog.pg_roles r"
					 "  WHERE r.oid = p.role::oid)",
					 0, NULL, NULL, NULL);
	jq_owner_execute(t,
					 "INSERT INTO %s.jobqueue_paused_role (role, paused_by)"
					 " SELECT $1, $2 WHERE NOT EXISTS (SELECT"
					 "  FROM %s.jobqueue_paused_role WHERE role::oid = $1)",
					 2, types, values, NULL);
	jq_owner_read(t, "SELECT count(*) FROM %s.jobqueue_paused_role", 0, NULL,
				  NULL, NULL);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	if (n > jq_paused_role_max())
		ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						errmsg("too many roles are paused"),
						errhint("Increase jobqueue.max_lanes (now %d).",
								jq_paused_role_max())));
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_resume_role);
Datum
jq_resume_role(PG_FUNCTION_ARGS)
{
	JqTable *t = begin("jobqueue_resume_role()");
	Oid types[1] = {OIDOID};
	Datum values[1];
	JqOwnerState state;

	values[0] = ObjectIdGetDatum(role_argument(fcinfo, 0));
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "LOCK TABLE %s.jobqueue_paused_role"
					 " IN SHARE ROW EXCLUSIVE MODE",
					 0, NULL, NULL, NULL);
	jq_owner_execute(t,
					 "DELETE FROM %s.jobqueue_paused_role WHERE role::oid = $1",
					 1, types, values, NULL);
	jq_owner_end(&state);
	PG_RETURN_VOID();
}

/* rows of ours, by hand, by a restore, by replication */
PG_FUNCTION_INFO_V1(jq_paused_role_trigger);
Datum
jq_paused_role_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	bool isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(data->tg_event))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(
				 "jobqueue_paused_role_trigger() is a trigger of jobqueue_paused_role")));
	if (!jq_shmem_ready())
		return PointerGetDatum(NULL);
	if (TRIGGER_FIRED_FOR_STATEMENT(data->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(data->tg_event))
		jq_publish_roles_unknown();
	if (TRIGGER_FIRED_FOR_ROW(data->tg_event) &&
		!TRIGGER_FIRED_BY_DELETE(data->tg_event))
	{
		TupleDesc desc = RelationGetDescr(data->tg_relation);
		HeapTuple new = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ?
							data->tg_newtuple :
							data->tg_trigtuple;
		Oid role = DatumGetObjectId(
			SPI_getbinval(new, desc, SPI_fnumber(desc, "role"), &isnull));

		if (!isnull && OidIsValid(role))
			jq_publish_paused_role(role);
	}
	return PointerGetDatum(NULL);
}

/* --------------------------------------------------------------- reassign */

static void
check_rights(Oid from, Oid to)
{
	if (!has_privs_of_role(GetUserId(), from) ||
		!has_privs_of_role(GetUserId(), to))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to reassign jobs"),
			 errhint(
				 "One needs the privileges of both roles, as for REASSIGN OWNED.")));
	/* his jobs run as he */
	if (!jq_can_set_role(GetUserId(), to))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to give jobs to role \"%s\"",
					GetUserNameFromId(to, false)),
			 errhint(
				 "They would run as that role; one must be able to SET ROLE to it.")));
	if (!jq_role_may_enqueue(to))
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						errmsg("role \"%s\" may not have jobs",
							   GetUserNameFromId(to, false)),
						errhint("An administrator gives it that right by "
								"jobqueue_grant('%s', 'use').",
								GetUserNameFromId(to, false))));
}

/* the lanes in which rows of the role stand */
static void
each_lane(JqTable *t, Oid role, void (*act)(Oid lane_role, const char *queue))
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(role)};
	JqOwnerState state;
	char(*queues)[NAMEDATALEN];
	Oid *roles;
	uint64 n, i;

	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT DISTINCT queue, " JQ_LANE_ROLE
				  " FROM %s.jobqueue_job WHERE owner::oid = $1",
				  1, types, values, NULL);
	n = SPI_processed;
	queues = MemoryContextAllocHuge(context, Max(n, 1) * NAMEDATALEN);
	roles = MemoryContextAllocHuge(context, Max(n, 1) * sizeof(Oid));
	for (i = 0; i < n; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		text_to_cstring_buffer(DatumGetTextPP(
								   SPI_getbinval(tup, desc, 1, &isnull)),
							   queues[i], NAMEDATALEN);
		roles[i] = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
	}
	jq_owner_end(&state);
	for (i = 0; i < n; i++)
		act(roles[i], queues[i]);
	pfree(queues);
	pfree(roles);
}

/* two schedules of a role have different names */
static void
check_schedules(JqTable *t, int nargs, Oid *types, Datum *values)
{
	MemoryContext context = CurrentMemoryContext;
	JqOwnerState state;
	char *name = NULL;

	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT a.name::text FROM %s.jobqueue_schedule a,"
				  " %s.jobqueue_schedule b WHERE a.owner::oid = $1"
				  " AND b.owner::oid = $2 AND a.name = b.name"
				  " ORDER BY 1 LIMIT 1",
				  nargs, types, values, NULL);
	if (SPI_processed > 0)
	{
		bool isnull;
		Datum d = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
								&isnull);
		MemoryContext old = MemoryContextSwitchTo(context);

		name = TextDatumGetCString(d);
		MemoryContextSwitchTo(old);
	}
	jq_owner_end(&state);
	if (name != NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 errmsg("both roles have a schedule \"%s\"", name),
			 errhint(
				 "Remove one of the two by jobqueue_unschedule(), or give it another name.")));
}

PG_FUNCTION_INFO_V1(jq_reassign);
Datum
jq_reassign(PG_FUNCTION_ARGS)
{
	static const char *const others[] = {
		"UPDATE %s.jobqueue_service SET owner = $2 WHERE owner::oid = $1",
		"UPDATE %s.jobqueue_archive SET owner = $2 WHERE owner::oid = $1"};
	JqTable *t = begin("jobqueue_reassign()");
	Oid from = role_argument(fcinfo, 0);
	Oid to = role_argument(fcinfo, 1);
	Oid types[2] = {OIDOID, OIDOID};
	Datum values[2] = {ObjectIdGetDatum(from), ObjectIdGetDatum(to)};
	JqOwnerState state;
	int64 n;
	int i;

	/* the one who had them may be gone, if a superuser asks */
	if (!superuser())
		must_exist(from);
	must_exist(to);
	check_rights(from, to);
	if (from == to)
		PG_RETURN_INT64(0);
	check_schedules(t, 2, types, values);
	/* none is taken while its row is being changed; at the end all is read anew */
	each_lane(t, from, jq_publish_freeze);
	jq_owner_begin(t, &state);
	/* first: one that is firing is waited for, and its job then seen */
	jq_owner_execute(
		t, "UPDATE %s.jobqueue_schedule SET owner = $2 WHERE owner::oid = $1",
		2, types, values, NULL);
	jq_owner_execute(
		t, "UPDATE %s.jobqueue_job SET owner = $2 WHERE owner::oid = $1", 2,
		types, values, NULL);
	n = (int64) SPI_processed;
	for (i = 0; i < (int) lengthof(others); i++)
		jq_owner_execute(t, others[i], 2, types, values, NULL);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_queue SET on_dead_owner = $2"
					 " WHERE on_dead_owner::oid = $1",
					 2, types, values, NULL);
	if (SPI_processed > 0)
		jq_publish_settings_unknown();
	jq_owner_end(&state);
	each_lane(t, to, jq_publish_unknown);
	if (n > 0)
	{
		jq_quota_gone(from, n);
		jq_quota_note(to, n);
	}
	PG_RETURN_INT64(n);
}
