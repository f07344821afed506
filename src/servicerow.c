/*
 * servicerow.c
 *		The rows of a service, and who may use it.
 *
 * jobqueue_service has what a service is, and jobqueue_service_current what each
 * message changes: the state.  That row is never updated in place, so to speak: its
 * index has how many messages have been handled, so that the newest version is the
 * first that a look from the end finds.  Else whoever looks would pass by all that
 * somebody's old snapshot keeps; and senders look by name.
 *
 * Statements of services are few and go through SPI, as the extension's owner.
 * Each is parsed and planned once in a process; four of them handle a message.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "keylock.h"
#include "miscadmin.h"
#include "servicerow.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* ------------------------------------------------------------- statements */

#define PLANS 16 /* more than there are statements */

typedef struct Statement
{
	const char *sql; /* its address, NULL: free */
	Oid extension;
	char schema_name[JQ_QUOTED_MAX];
	SPIPlanPtr plan;
} Statement;

static Statement plans[PLANS];

/* the plan of a statement, which is a constant; made when it is not there */
static SPIPlanPtr
plan_of(JqTable *t, const char *sql, int nargs, Oid *types)
{
	Statement *p = plans;

	while (p->sql != NULL && p->sql != sql)
		if (++p == plans + PLANS)
			elog(ERROR, "too many statements of services");
	/* another extension, or moved to another schema */
	if (p->plan != NULL && (p->extension != t->extension ||
							strcmp(p->schema_name, jq_table_schema(t)) != 0))
	{
		SPIPlanPtr old = p->plan;

		p->plan = NULL;
		SPI_freeplan(old);
	}
	if (p->plan == NULL)
	{
		SPIPlanPtr plan = SPI_prepare_cursor(jq_owner_statement(t, sql), nargs,
											 types, CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", sql,
				 SPI_result_code_string(SPI_result));
		p->sql = sql;
		p->extension = t->extension;
		strlcpy(p->schema_name, t->schema_name, sizeof(p->schema_name));
		p->plan = plan;
	}
	return p->plan;
}

void
jq_service_run(JqTable *t, const char *sql, int nargs, Oid *types,
			   Datum *values, const char *nulls, bool latest)
{
	SPIPlanPtr plan;
	int rc;

	/* a plan outlives the size that a table has; rows are found by index */
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	plan = plan_of(t, sql, nargs, types);
	if (latest)
	{
		CommandCounterIncrement();
		PushActiveSnapshot(GetLatestSnapshot());
	}
	rc = SPI_execute_plan(plan, values, nulls, latest, 0);
	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(rc));
	if (latest)
		PopActiveSnapshot();
}

/* ---------------------------------------------------------------- the row */

#define COLUMNS                                                          \
	"SELECT id, name::text, owner::oid, status, queue::text, handler,"   \
	" func_owner, coalesce(down_job, 0), timeout, search_path, settings" \
	", home"                                                             \
	" FROM %s.jobqueue_service WHERE "

char *
jq_service_key(int64 id)
{
	return psprintf(JQ_SERVICE_KEY INT64_FORMAT, id);
}

int64
jq_service_id(const char *key)
{
	if (key == NULL || !jq_key_is_service(key, strlen(key)))
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("a message has no key of a service"),
						errhint("Messages are sent with jobqueue_send().")));
	return strtoll(key + strlen(JQ_SERVICE_KEY), NULL, 10);
}

/* column n of the row that a statement has found, copied to the context */
Datum
jq_service_column(int n, MemoryContext context, bool *isnull)
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

char *
jq_service_text(int n, MemoryContext context)
{
	bool isnull;
	Datum d =
		SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, &isnull);

	return isnull ? NULL : MemoryContextStrdup(context, TextDatumGetCString(d));
}

/* what COLUMNS has found; false: nothing */
static bool
service_of_result(JqService *s, MemoryContext context)
{
	bool isnull;
	int i;

	if (SPI_processed == 0)
		return false;
	s->id = DatumGetInt64(jq_service_column(1, context, &isnull));
	s->name = jq_service_text(2, context);
	s->owner = DatumGetObjectId(jq_service_column(3, context, &isnull));
	s->status = jq_service_text(4, context);
	s->queue = jq_service_text(5, context);
	s->handler = jq_service_text(6, context);
	s->func_owner = DatumGetObjectId(jq_service_column(7, context, &isnull));
	if (isnull)
		s->func_owner = InvalidOid;
	s->down_job = DatumGetInt64(jq_service_column(8, context, &isnull));
	s->timeout = jq_service_column(9, context, &isnull);
	s->has_timeout = !isnull;
	s->home = DatumGetInt64(jq_service_column(12, context, &isnull));
	for (i = 0; i < JQ_NCOLS; i++)
		s->environment.nulls[i] = true;
	s->environment.values[JQ_COL_SEARCH_PATH - 1] =
		jq_service_column(10, context,
						  &s->environment.nulls[JQ_COL_SEARCH_PATH - 1]);
	s->environment.values[JQ_COL_SETTINGS - 1] =
		jq_service_column(11, context,
						  &s->environment.nulls[JQ_COL_SETTINGS - 1]);
	return true;
}

/* as it is now, whatever the transaction's snapshot */
bool
jq_service_find(JqTable *t, text *name, JqService *s)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {TEXTOID};
	Datum values[1] = {PointerGetDatum(name)};
	JqOwnerState state;
	bool found;

	jq_owner_begin(t, &state);
	jq_service_run(t, COLUMNS "name = $1", 1, types, values, NULL, true);
	found = service_of_result(s, context);
	jq_owner_end(&state);
	return found;
}

bool
jq_service_find_by_id(JqTable *t, int64 id, JqService *s)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(id)};
	JqOwnerState state;
	bool found;

	jq_owner_begin(t, &state);
	jq_service_run(t, COLUMNS "id = $1", 1, types, values, NULL, false);
	found = service_of_result(s, context);
	jq_owner_end(&state);
	return found;
}

/* ------------------------------------------------------------- the state */

#define CURRENT "jobqueue_service_current"

/* the newest version of the row that a snapshot sees, copied; NULL: none */
static HeapTuple
newest(JqTable *t, Relation rel, int64 id, Snapshot snapshot)
{
	Oid pk = get_relname_relid(CURRENT "_pkey", t->schema);
	Relation index = index_open(pk, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tup;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
	tup = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tup))
		tup = heap_copytuple(tup);
	systable_endscan_ordered(scan);
	index_close(index, NoLock);
	return tup;
}

/*
 * Whoever has the key of the service reads what is there: nobody else writes it.  No
 * snapshot of the transaction is used, so that serializable handlers of different
 * services do not meet in the index.  Others need one: they could miss the version
 * before a commit and the one after.
 */
bool
jq_service_read_state(JqTable *t, int64 id, bool has_key, Datum *state)
{
	Relation rel =
		table_open(get_relname_relid(CURRENT, t->schema), AccessShareLock);
	Snapshot snapshot =
		has_key ? SnapshotSelf : RegisterSnapshot(GetLatestSnapshot());
	HeapTuple tup = newest(t, rel, id, snapshot);
	bool isnull;

	if (tup != NULL)
	{
		Datum d = heap_getattr(tup, 3, RelationGetDescr(rel), &isnull);

		*state = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
	}
	if (!has_key)
		UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return tup != NULL;
}

bool
jq_service_write_state(JqTable *t, int64 id, Datum state)
{
	Relation rel =
		table_open(get_relname_relid(CURRENT, t->schema), RowExclusiveLock);
	HeapTuple tup = newest(t, rel, id, SnapshotSelf);
	Datum values[3];
	bool nulls[3];
	bool replace[3] = {false, true, true};

	if (tup != NULL)
	{
		heap_deform_tuple(tup, RelationGetDescr(rel), values, nulls);
		values[1] = Int64GetDatum(DatumGetInt64(values[1]) + 1);
		values[2] = state;
		CatalogTupleUpdate(rel, &tup->t_self,
						   heap_modify_tuple(tup, RelationGetDescr(rel), values,
											 nulls, replace));
		CommandCounterIncrement();
	}
	table_close(rel, NoLock);
	return tup != NULL;
}

void
jq_service_execute(JqTable *t, const char *sql, int nargs, Oid *types,
				   Datum *values, const char *nulls, uint64 *n)
{
	JqOwnerState state;

	jq_owner_begin(t, &state);
	jq_service_run(t, sql, nargs, types, values, nulls, false);
	*n = SPI_processed;
	jq_owner_end(&state);
}

text *
jq_service_name(FunctionCallInfo fcinfo)
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

void
jq_service_check_owner(const JqService *s)
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
void
jq_service_argument(JqTable *t, FunctionCallInfo fcinfo, JqService *s)
{
	text *name = jq_service_name(fcinfo);

	if (!jq_service_find(t, name, s))
		no_such_service(name);
	jq_service_check_owner(s);
}

void
jq_service_is_stopping(const JqService *s)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("service \"%s\" is being stopped", s->name),
			 errhint("It is gone when its last messages have been handled.")));
}
