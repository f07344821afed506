/*
 * configure.c
 *		Settings of queues: jobqueue_configure(), jobqueue_pause(),
 *		jobqueue_resume(queue), jobqueue_drop_queue().
 *
 * A change is an ordinary write to jobqueue_queue; publish.c applies it to
 * memory once it has committed.  The row trigger gives each row written a new
 * version while the row is locked, so that of two changes of a queue the later
 * one has the higher version; where no row is there yet, or not any more, a lock
 * on the name sees to that.  Rows written past these functions are announced by
 * the statement trigger: then the scheduler reads the whole table.
 *
 * A setting more: a column of the table and the view, an argument of
 * jobqueue_configure(), a field of JqQueueSettings, and its place in settings.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "compat.h"
#include "configure.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "ondead.h"
#include "publish.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define ROW_COLUMNS 3

/* what row_of wants to see */
static const char *
columns(void)
{
	return psprintf("name, version, paused, %s", jq_settings_columns());
}

/* row i of the result of a statement that returns columns() */
static void
row_of(uint64 i, JqQueueRow *row)
{
	HeapTuple tup = SPI_tuptable->vals[i];
	TupleDesc desc = SPI_tuptable->tupdesc;
	bool isnull;

	memset(row, 0, sizeof(*row));
	strlcpy(row->name,
			TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull)),
			sizeof(row->name));
	row->version = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));
	row->paused = DatumGetBool(SPI_getbinval(tup, desc, 3, &isnull));
	jq_settings_of_row(tup, desc, ROW_COLUMNS + 1, &row->settings);
}

JqQueueRow *
jq_settings_read(JqTable *t, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	JqOwnerState state;
	JqQueueRow *rows;
	int i;

	jq_owner_begin(t, &state);
	jq_owner_read(t, psprintf("SELECT %s FROM %%s.jobqueue_queue", columns()),
				  0, NULL, NULL, NULL);
	*n = (int) SPI_processed;
	rows = MemoryContextAllocHuge(context, Max(*n, 1) * sizeof(JqQueueRow));
	for (i = 0; i < *n; i++)
		row_of(i, &rows[i]);
	jq_owner_end(&state);
	return rows;
}

void
jq_settings_of_queue(JqTable *t, const char *queue, JqQueueSettings *out)
{
	Oid types[1] = {TEXTOID};
	Datum values[1];
	JqOwnerState state;

	jq_settings_default(out);
	values[0] = CStringGetTextDatum(queue);
	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  psprintf("SELECT %s FROM %%s.jobqueue_queue"
						   " WHERE name = $1",
						   jq_settings_columns()),
				  1, types, values, NULL);
	if (SPI_processed == 1)
		jq_settings_of_row(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						   out);
	jq_owner_end(&state);
}

/* ------------------------------------------------------------- functions */

/*
 * Check the call and its first argument, a queue's name, and let nobody else
 * change the settings of that queue until the end of the transaction.
 */
static JqTable *
begin_change(FunctionCallInfo fcinfo, const char *function, char **queue)
{
	JqTable *t;
	LOCKTAG tag;

	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	jq_check_primary(function);
	PreventCommandIfReadOnly(function);
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("queue must not be null"),
						errhint("Give the name of a queue.")));
	*queue = text_to_cstring(PG_GETARG_TEXT_PP(0));
	jq_check_queue_name(*queue);
	t = jq_table_required();
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, t->extension,
					   hash_bytes((unsigned char *) *queue, strlen(*queue)), 0);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	return jq_table_required();
}

/*
 * Run the statement, which changes one row, and have it applied at commit.
 * false: there was no row to change.
 */
static bool
change(JqTable *t, const char *sql, int nargs, Oid *types, Datum *values,
	   const char *nulls, bool dropped)
{
	JqOwnerState state;
	JqQueueRow row;
	bool done;

	jq_owner_begin(t, &state);
	jq_owner_execute(t, psprintf("%s RETURNING %s", sql, columns()), nargs,
					 types, values, nulls);
	done = SPI_processed == 1;
	if (done)
		row_of(0, &row);
	jq_owner_end(&state);
	if (done && dropped)
	{
		/* later than what was dropped, and what has no row has the defaults */
		row.version = nextval_internal(t->queue_version, false);
		row.paused = false;
		jq_settings_default(&row.settings);
	}
	if (done)
		jq_publish_settings(&row);
	return done;
}

/* the function is looked up now; with it goes who has named it */
static int
set_on_dead(const char *queue, int n, const char **given, Oid *types,
			Datum *values, char *nulls)
{
	bool none = nulls[n - 1] == 'n';
	Oid func_owner = InvalidOid;

	if (!none)
		values[n - 1] = CStringGetTextDatum(
			jq_on_dead_resolve(queue, TextDatumGetCString(values[n - 1]),
							   &func_owner));
	given[n] = "on_dead_owner";
	types[n] = OIDOID;
	values[n] = ObjectIdGetDatum(GetUserId());
	nulls[n] = nulls[n - 1];
	given[n + 1] = "on_dead_func_owner";
	types[n + 1] = OIDOID;
	values[n + 1] = ObjectIdGetDatum(func_owner);
	nulls[n + 1] = nulls[n - 1];
	return n + 2;
}

PG_FUNCTION_INFO_V1(jq_configure);
Datum
jq_configure(PG_FUNCTION_ARGS)
{
	const char *given[JQ_NSETTINGS + 2];
	Oid types[JQ_NSETTINGS + 3] = {TEXTOID};
	Datum values[JQ_NSETTINGS + 3];
	char nulls[JQ_NSETTINGS + 4] = " ";
	char *queue;
	JqTable *t = begin_change(fcinfo, "jobqueue_configure()", &queue);
	int n =
		jq_settings_of_args(fcinfo, 1, given, &types[1], &values[1], &nulls[1]);
	StringInfoData sql;
	int i;

	values[0] = CStringGetTextDatum(queue);
	/* the last one of the arguments */
	if (n > 0 && strcmp(given[n - 1], "on_dead") == 0)
		n = set_on_dead(queue, n, given, &types[1], &values[1], &nulls[1]);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "INSERT INTO %s.jobqueue_queue (name");
	for (i = 0; i < n; i++)
		appendStringInfo(&sql, ", %s", given[i]);
	appendStringInfoString(&sql, ") VALUES ($1");
	for (i = 0; i < n; i++)
		appendStringInfo(&sql, ", $%d", i + 2);
	appendStringInfoString(&sql, ") ON CONFLICT (name) DO UPDATE SET"
								 " name = excluded.name");
	for (i = 0; i < n; i++)
		appendStringInfo(&sql, ", %s = excluded.%s", given[i], given[i]);
	(void) change(t, sql.data, n + 1, types, values, nulls, false);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_pause_queue);
Datum
jq_pause_queue(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_queue (name, paused) VALUES ($1, true)"
		" ON CONFLICT (name) DO UPDATE SET paused = true";
	char *queue;
	JqTable *t = begin_change(fcinfo, "jobqueue_pause()", &queue);
	Oid types[1] = {TEXTOID};
	Datum values[1];

	values[0] = CStringGetTextDatum(queue);
	(void) change(t, sql, 1, types, values, NULL, false);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_resume_queue);
Datum
jq_resume_queue(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_queue SET paused = false WHERE name = $1";
	char *queue;
	JqTable *t = begin_change(fcinfo, "jobqueue_resume()", &queue);
	Oid types[1] = {TEXTOID};
	Datum values[1];

	values[0] = CStringGetTextDatum(queue);
	/* a queue without settings is not paused */
	(void) change(t, sql, 1, types, values, NULL, false);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_drop_queue);
Datum
jq_drop_queue(PG_FUNCTION_ARGS)
{
	static const char *const drop =
		"DELETE FROM %s.jobqueue_queue WHERE name = $1";
	/* each part has an index of its own */
	static const char *const live =
		"SELECT WHERE EXISTS (SELECT FROM %s.jobqueue_job"
		"  WHERE queue = $1 AND run_at IS NULL AND command IS NOT NULL)"
		" OR EXISTS (SELECT FROM %s.jobqueue_job"
		"  WHERE queue = $1 AND run_at IS NULL AND command IS NULL)"
		" OR EXISTS (SELECT FROM %s.jobqueue_job"
		"  WHERE queue = $1 AND run_at IS NOT NULL)";
	char *queue;
	JqTable *t = begin_change(fcinfo, "jobqueue_drop_queue()", &queue);
	JqOwnerState state;
	Oid types[1] = {TEXTOID};
	Datum values[1];
	bool busy;

	values[0] = CStringGetTextDatum(queue);
	if (!change(t, drop, 1, types, values, NULL, true))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" has no settings", queue),
				 errhint("View jobqueue_queues shows those that have.")));
	jq_owner_begin(t, &state);
	jq_owner_execute(t, live, 1, types, values, NULL);
	busy = SPI_processed > 0;
	jq_owner_end(&state);
	if (busy)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("queue \"%s\" has jobs", queue),
				 errhint("Wait until they have ended, or cancel them first.")));
	PG_RETURN_VOID();
}

/* --------------------------------------------------------------- triggers */

PG_FUNCTION_INFO_V1(jq_queue_trigger);
Datum
jq_queue_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	HeapTuple new;
	JqTable *t;
	Datum value;
	bool isnull = false;
	int column;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(
				 "jobqueue_queue_trigger() is a trigger of jobqueue_queue")));
	if (TRIGGER_FIRED_FOR_STATEMENT(data->tg_event))
	{
		/* our own statements say more */
		if (!jq_bookkeeping && jq_shmem_ready())
			jq_publish_settings_unknown();
		return PointerGetDatum(NULL);
	}
	/* row by row, as replication fires no others, and so that a statement that
	 * policies keep from all rows does nothing */
	if (!jq_bookkeeping && jq_shmem_ready())
		jq_publish_settings_unknown();
	if (TRIGGER_FIRED_BY_DELETE(data->tg_event))
		return PointerGetDatum(data->tg_trigtuple);
	new = TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple :
													data->tg_trigtuple;
	desc = RelationGetDescr(data->tg_relation);
	t = jq_table_required();
	value = SPI_getbinval(new, desc, SPI_fnumber(desc, "name"), &isnull);
	if (!isnull)
		jq_check_queue_name(TextDatumGetCString(value));
	column = SPI_fnumber(desc, "version");
	value = Int64GetDatum(nextval_internal(t->queue_version, false));
	isnull = false;
	return PointerGetDatum(
		heap_modify_tuple_by_cols(new, desc, 1, &column, &value, &isnull));
}
