/*
 * grant.c
 *		Levels of rights.
 *
 * A level is a set of privileges on functions and views of the extension, given
 * with PostgreSQL's own GRANT, so that \\dp, pg_dump and DROP OWNED know them.
 * To have EXECUTE on jobqueue_monitors() is to have the level "monitor", to have
 * it on jobqueue_resume() is to have "admin".
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/extension.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "grant.h"
#include "jobtable.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#define VIEWS                                                                  \
	"jobqueue_status", "jobqueue_jobs", "jobqueue_running", "jobqueue_recent", \
		"jobqueue_history", "jobqueue_keys", "jobqueue_workers",               \
		"jobqueue_queues", "jobqueue_services", "jobqueue_schedules",          \
		"jobqueue_paused_roles"
#define VIEW_FUNCTIONS                                                         \
	"jobqueue_home", "jobqueue_at_home", "jobqueue_sight",                     \
		"jobqueue_queue_stats", "jobqueue_counts", "jobqueue_running_jobs",    \
		"jobqueue_blocked_jobs", "jobqueue_recent_jobs", "jobqueue_held_keys", \
		"jobqueue_processes", "jobqueue_explain", "jobqueue_whereis"

#define ACT_ON_JOBS                                           \
	"jobqueue_retry_where", "jobqueue_reschedule",            \
		"jobqueue_reschedule_where", "jobqueue_reprioritize", \
		"jobqueue_reprioritize_where", "jobqueue_purge"

#define ACT_ON_SCHEDULES                                                       \
	"jobqueue_unschedule", "jobqueue_schedule_run", "jobqueue_schedule_pause", \
		"jobqueue_schedule_resume", "jobqueue_cron_next"

/* names of functions and views; what is not there is not granted */
static const char *const use_members[] = {"jobqueue_enqueue",
										  "jobqueue_enqueue_many",
										  "jobqueue_current",
										  "jobqueue_cancel",
										  "jobqueue_cancel_where",
										  "jobqueue_retry",
										  "jobqueue_run",
										  ACT_ON_JOBS,
										  "jobqueue_progress",
										  "jobqueue_snooze",
										  "jobqueue_discard",
										  "jobqueue_start_service",
										  "jobqueue_stop_service",
										  "jobqueue_send",
										  "jobqueue_call",
										  "jobqueue_service_state",
										  "jobqueue_whereis_service",
										  "jobqueue_schedule",
										  ACT_ON_SCHEDULES,
										  "jobqueue_wait",
										  "jobqueue_reassign",
										  VIEW_FUNCTIONS,
										  VIEWS,
										  NULL};

static const char *const lock_members[] = {
	"jobqueue_lock",   "jobqueue_try_lock", "jobqueue_xact_lock",
	"jobqueue_unlock", "jobqueue_whereis",	NULL};

static const char *const monitor_members[] = {"jobqueue_monitors",
											  VIEW_FUNCTIONS, VIEWS, NULL};

static const char *const admin_members[] = {"jobqueue_cancel",
											"jobqueue_cancel_where",
											"jobqueue_retry",
											"jobqueue_adopt",
											"jobqueue_sweep",
											"jobqueue_quiesce",
											"jobqueue_resume",
											"jobqueue_configure",
											"jobqueue_pause",
											"jobqueue_drop_queue",
											"jobqueue_pause_role",
											"jobqueue_resume_role",
											"jobqueue_reassign",
											"jobqueue_grant",
											"jobqueue_revoke",
											"jobqueue_monitors",
											ACT_ON_SCHEDULES,
											"jobqueue_wait",
											ACT_ON_JOBS,
											VIEW_FUNCTIONS,
											VIEWS,
											NULL};

/* besides, jobqueue_consumer names the queues */
static const char *const consume_members[] = {"jobqueue_fetch",
											  "jobqueue_fetch_wait",
											  "jobqueue_complete",
											  "jobqueue_fail",
											  "jobqueue_extend",
											  "jobqueue_release",
											  NULL};

static bool
is_listed(const char *const *list, const char *name)
{
	for (; *list; list++)
		if (strcmp(*list, name) == 0)
			return true;
	return false;
}

/* was EXECUTE given to the role itself, not to one that it is a member of? */
static bool
is_granted(Oid function, Oid role)
{
	HeapTuple tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool granted = false;
	bool isnull;
	Datum d;

	if (!HeapTupleIsValid(tup))
		return false;
	d = SysCacheGetAttr(PROCOID, tup, Anum_pg_proc_proacl, &isnull);
	if (!isnull)
	{
		Acl *acl = DatumGetAclP(d);
		int i;

		for (i = 0; i < ACL_NUM(acl); i++)
			if (ACL_DAT(acl)[i].ai_grantee == role &&
				(ACLITEM_GET_PRIVS(ACL_DAT(acl)[i]) & ACL_EXECUTE) != 0)
				granted = true;
		if ((Pointer) acl != DatumGetPointer(d))
			pfree(acl);
	}
	ReleaseSysCache(tup);
	return granted;
}

/*
 * EXECUTE on a function of the extension; without arguments, if there are two.
 * itself: not by memberships.
 */
static bool
role_may_execute(const char *name, Oid role, bool itself)
{
	JqTable *t = jq_table();
	CatCList *list;
	bool ok = false;
	int i;

	if (t == NULL)
		return false;
	list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	for (i = 0; i < list->n_members; i++)
	{
		Form_pg_proc p = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (p->pronamespace == t->schema &&
			(p->pronargs == 0 || strcmp(name, "jobqueue_resume") != 0) &&
			getExtensionOfObject(ProcedureRelationId, p->oid) == t->extension &&
			(itself ?
				 is_granted(p->oid, role) :
				 jq_proc_aclcheck(p->oid, role, ACL_EXECUTE) == ACLCHECK_OK))
			ok = true;
	}
	ReleaseSysCacheList(list);
	return ok;
}

bool
jq_role_may_enqueue(Oid role)
{
	return role_may_execute("jobqueue_enqueue", role, false);
}

static bool
may_execute(const char *name)
{
	return role_may_execute(name, GetUserId(), false);
}

bool
jq_is_admin(void)
{
	return superuser() || may_execute("jobqueue_resume");
}

bool
jq_may_schedule(Oid role)
{
	return superuser_arg(role) ||
		   role_may_execute("jobqueue_schedule", role, false);
}

void
jq_check_owner(Oid owner, int64 id, const char *what)
{
	if (jq_is_admin() ||
		(OidIsValid(owner) && has_privs_of_role(GetUserId(), owner)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for job " INT64_FORMAT, id),
			 errhint("One may %s the jobs of roles whose privileges one has.",
					 what)));
}

int
jq_sight_of(Oid owner)
{
	Oid user = GetUserId();

	if (superuser() || (OidIsValid(owner) && has_privs_of_role(user, owner)))
		return 2;
	if (has_privs_of_role(user, ROLE_PG_MONITOR) ||
		may_execute("jobqueue_monitors"))
		return 1;
	return 0;
}

PG_FUNCTION_INFO_V1(jq_sight);
Datum
jq_sight(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(
		jq_sight_of(PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0)));
}

PG_FUNCTION_INFO_V1(jq_monitors);
Datum
jq_monitors(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_BOOL(true);
}

/* oids of functions and relations of the extension */
List *
jq_grant_members(void)
{
	Oid extension = get_extension_oid("jobqueue", true);
	Relation rel;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple tup;
	List *oids = NIL;

	if (!OidIsValid(extension))
		return NIL;
	rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
		oids = lappend_oid(oids, ((Form_pg_depend) GETSTRUCT(tup))->objid);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return oids;
}

/*
 * GRANT or REVOKE each member of the list that the extension has, but for those
 * of except.
 */
static void
change_members(JqTable *t, const char *const *list, const char *role,
			   bool grant, const List *except)
{
	Relation rel = table_open(DependRelationId, AccessShareLock);
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple tup;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, grant ? "GRANT USAGE ON SCHEMA %s TO %s;" : "",
					 jq_table_schema(t), role);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(t->extension));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tup = systable_getnext(scan)))
	{
		Form_pg_depend d = (Form_pg_depend) GETSTRUCT(tup);
		const char *what = NULL;
		const char *right = NULL;

		if (d->deptype != DEPENDENCY_EXTENSION ||
			list_member_oid(except, d->objid))
			continue;
		if (d->classid == ProcedureRelationId)
		{
			char *name = get_func_name(d->objid);

			if (name != NULL && is_listed(list, name))
			{
				right = "EXECUTE ON ROUTINE";
				what = format_procedure_qualified(d->objid);
			}
		}
		else if (d->classid == RelationRelationId)
		{
			char *name = get_rel_name(d->objid);

			if (name != NULL && get_rel_relkind(d->objid) == RELKIND_VIEW &&
				is_listed(list, name))
			{
				right = "SELECT ON";
				what = psprintf("%s.%s", jq_table_schema(t),
								quote_identifier(name));
			}
		}
		if (what != NULL)
			appendStringInfo(&buf, "%s %s %s %s %s;",
							 grant ? "GRANT" : "REVOKE", right, what,
							 grant ? "TO" : "FROM", role);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (SPI_execute(buf.data, false, 0) < 0)
		elog(ERROR, "could not change privileges");
}

/* ------------------------------------------------------------- consumers */

#define ALL_QUEUES "" /* as no queue is called */
/* rows of a role from which this was taken (DROP OWNED, REVOKE) are void */
#define CONSUME_MARKER "jobqueue_fetch"

typedef struct Consumer
{
	Oid role;
	char queue[JQ_QUEUE_NAME_MAX + 1];
} Consumer;

/* rows of jobqueue_consumer, as of a generation */
static Consumer *consumers;
static int nconsumers;
static uint32 consumers_generation;

static void
read_consumers(JqTable *t)
{
	uint32 generation = jq_table_consumers_generation;
	JqOwnerState state;
	Consumer *list;
	int n, i;

	jq_owner_begin(t, &state);
	jq_owner_read(t, "SELECT role::oid, queue FROM %s.jobqueue_consumer", 0,
				  NULL, NULL, NULL);
	n = (int) SPI_processed;
	list = MemoryContextAlloc(TopMemoryContext, (n + 1) * sizeof(Consumer));
	for (i = 0; i < n; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		list[i].role = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
		strlcpy(list[i].queue,
				TextDatumGetCString(SPI_getbinval(tup, desc, 2, &isnull)),
				sizeof(list[i].queue));
	}
	jq_owner_end(&state);
	if (consumers != NULL)
		pfree(consumers);
	consumers = list;
	nconsumers = n;
	consumers_generation = generation;
}

bool
jq_may_consume(const char *queue)
{
	JqTable *t;
	int i;

	if (superuser())
		return true;
	t = jq_table_required();
	if (consumers == NULL ||
		consumers_generation != jq_table_consumers_generation)
		read_consumers(t);
	for (i = 0; i < nconsumers; i++)
		if ((strcmp(consumers[i].queue, queue) == 0 ||
			 strcmp(consumers[i].queue, ALL_QUEUES) == 0) &&
			OidIsValid(consumers[i].role) &&
			has_privs_of_role(GetUserId(), consumers[i].role) &&
			role_may_execute(CONSUME_MARKER, consumers[i].role, true))
			return true;
	return false;
}

/* the rows of a role; returns whether it has any then */
static bool
change_consumer(JqTable *t, Oid role, const char *queue, bool grant)
{
	Oid types[2] = {OIDOID, TEXTOID};
	Datum values[2];
	bool any;

	values[0] = ObjectIdGetDatum(role);
	values[1] = CStringGetTextDatum(queue != NULL ? queue : ALL_QUEUES);
	if (grant && !role_may_execute(CONSUME_MARKER, role, true))
		jq_owner_execute(
			t, "DELETE FROM %s.jobqueue_consumer WHERE role::oid = $1", 1,
			types, values, NULL);
	jq_owner_execute(
		t,
		grant ?
			"INSERT INTO %s.jobqueue_consumer (role, queue)"
			" SELECT $1, $2 WHERE NOT EXISTS (SELECT"
			"  FROM %s.jobqueue_consumer WHERE role::oid = $1 AND queue = $2)" :
		queue != NULL ? "DELETE FROM %s.jobqueue_consumer"
						" WHERE role::oid = $1 AND queue = $2" :
						"DELETE FROM %s.jobqueue_consumer"
						" WHERE role::oid = $1",
		2, types, values, NULL);
	jq_owner_execute(
		t, "SELECT FROM %s.jobqueue_consumer WHERE role::oid = $1 LIMIT 1", 1,
		types, values, NULL);
	any = SPI_processed > 0;
	CacheInvalidateRelcacheByRelid(t->consumer);
	return any;
}

/* to have this function is to have the level */
static const struct
{
	const char *marker;
	const char *const *list;
} levels[] = {{"jobqueue_enqueue", use_members},
			  {"jobqueue_unlock", lock_members},
			  {"jobqueue_monitors", monitor_members},
			  {"jobqueue_resume", admin_members}};

/* all roles that have EXECUTE on such a function themselves */
static List *
roles_with(JqTable *t, const char *marker)
{
	static const char *const sql =
		"SELECT DISTINCT a.grantee FROM pg_catalog.pg_proc p,"
		" LATERAL pg_catalog.aclexplode(p.proacl) a"
		" WHERE p.proname = $1 AND p.pronamespace = $2"
		" AND a.privilege_type = 'EXECUTE' AND a.grantee <> 0"
		" AND a.grantee <> p.proowner";
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {TEXTOID, OIDOID};
	Datum values[2];
	JqOwnerState state;
	List *list = NIL;
	uint64 i;

	values[0] = CStringGetTextDatum(marker);
	values[1] = ObjectIdGetDatum(t->schema);
	jq_owner_begin(t, &state);
	jq_owner_read(t, sql, 2, types, values, NULL);
	for (i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		Oid role =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);

		list = lappend_oid(list, role);
		MemoryContextSwitchTo(old);
	}
	jq_owner_end(&state);
	return list;
}

void
jq_grant_complete(const List *before)
{
	JqTable *t = jq_table();
	int i;

	for (i = 0; i < (int) lengthof(levels) && t != NULL; i++)
	{
		ListCell *lc;

		foreach(lc, roles_with(t, levels[i].marker))
		{
			Oid role = lfirst_oid(lc);
			JqOwnerState state;

			/* its members may execute it, but of jobqueue_resume there are two */
			if (!role_may_execute(levels[i].marker, role, true) ||
				!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
				continue;
			jq_owner_begin(t, &state);
			change_members(t, levels[i].list,
						   quote_identifier(GetUserNameFromId(role, false)),
						   true, before);
			jq_owner_end(&state);
		}
	}
}

static void
grant_or_revoke(FunctionCallInfo fcinfo, bool grant)
{
	char *queue = NULL;
	JqTable *t;
	Oid role;
	char *level;
	const char *name;
	const char *const *list;
	JqOwnerState state;

	jq_check_primary(grant ? "jobqueue_grant()" : "jobqueue_revoke()");
	PreventCommandIfReadOnly(grant ? "jobqueue_grant()" : "jobqueue_revoke()");
	t = jq_table_required();
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("role and level must not be null"),
						errhint("For example jobqueue_grant('app', 'use').")));
	role = PG_GETARG_OID(0);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("role with OID %u does not exist", role),
						errhint("Levels are given to roles, not to PUBLIC.")));
	level = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(level, "use") == 0)
		list = use_members;
	else if (strcmp(level, "lock") == 0)
		list = lock_members;
	else if (strcmp(level, "monitor") == 0)
		list = monitor_members;
	else if (strcmp(level, "admin") == 0)
		list = admin_members;
	else if (strcmp(level, "consume") == 0)
		list = consume_members;
	else
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown level \"%s\"", level),
			 errhint(
				 "Levels are \"use\", \"consume\", \"lock\", \"monitor\" and \"admin\".")));
	if (!PG_ARGISNULL(2))
	{
		queue = text_to_cstring(PG_GETARG_TEXT_PP(2));
		jq_check_queue_name(queue);
		if (list != consume_members)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("level \"%s\" is not given for a queue", level),
					 errhint("Only \"consume\" is.")));
	}
	jq_owner_begin(t, &state);
	name = quote_identifier(GetUserNameFromId(role, false));
	/* whoever may consume another queue keeps the functions */
	if (list != consume_members || !change_consumer(t, role, queue, grant) ||
		grant)
		change_members(t, list, name, grant, NIL);
	if (!grant)
	{
		/* levels share members: what others still need is given back */
		int i;

		CommandCounterIncrement();
		for (i = 0; i < (int) lengthof(levels); i++)
			if (levels[i].list != list &&
				role_may_execute(levels[i].marker, role, true))
				change_members(t, levels[i].list, name, true, NIL);
	}
	jq_owner_end(&state);
}

PG_FUNCTION_INFO_V1(jq_grant);
Datum
jq_grant(PG_FUNCTION_ARGS)
{
	grant_or_revoke(fcinfo, true);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_revoke);
Datum
jq_revoke(PG_FUNCTION_ARGS)
{
	grant_or_revoke(fcinfo, false);
	PG_RETURN_VOID();
}
