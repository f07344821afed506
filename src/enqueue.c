/*
 * enqueue.c
 *		jobqueue_enqueue() and jobqueue_enqueue_many().
 *
 * The arguments are checked, the command resolved, the row written, and the
 * transaction told to publish it at its commit.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/sequence.h"
#include "compat.h"
#include "enqueue.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "jobtable.h"
#include "publish.h"
#include "quota.h"
#include "runhere.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

/* ---------------------------------------------------- what comes with it */

const char *
jq_captured_search_path(void)
{
	static struct config_generic *setting;

	if (setting == NULL)
		setting = jq_guc_find("search_path");

	/*
	 * What a worker of the role will have anyway need not be stored.  Inside a
	 * function of another role this session's settings say nothing about that
	 * role.
	 */
	if (setting != NULL && setting->source <= PGC_S_DATABASE_USER &&
		GetUserId() == GetSessionUserId())
		return NULL;
	return namespace_search_path;
}

Datum
jq_captured_settings(bool *isnull)
{
	char *list;
	List *names;
	ListCell *lc;
	Datum *elems;
	int n = 0;

	*isnull = true;
	if (jobqueue_capture_settings == NULL ||
		jobqueue_capture_settings[0] == '\0')
		return (Datum) 0;
	list = pstrdup(jobqueue_capture_settings);
	if (!SplitIdentifierString(list, ',', &names) || names == NIL)
		return (Datum) 0;
	elems = palloc(list_length(names) * sizeof(Datum));
	foreach(lc, names)
	{
		const char *name = lfirst(lc);
		const char *value = GetConfigOption(name, true, true);

		if (value != NULL)
			elems[n++] = CStringGetTextDatum(psprintf("%s=%s", name, value));
	}
	if (n == 0)
		return (Datum) 0;
	*isnull = false;
	return PointerGetDatum(
		construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* --------------------------------------------------------------- checks */

static void
out_of_range(const char *what, const char *range)
{
	ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					errmsg("%s is out of range", what),
					errhint("It must be %s.", range)));
}

static void
check_interval(const char *what, Interval *i)
{
	Interval zero;

	memset(&zero, 0, sizeof(zero));
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(i),
										  IntervalPGetDatum(&zero))) < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("%s must not be negative", what),
						errhint("0 means %s.", strcmp(what, "timeout") == 0 ?
												   "no limit" :
												   "not at all")));
	/* far beyond what a timer can do is a mistake, too */
	if (i->month > 12 * 100 || i->day > 36600 ||
		i->time > INT64CONST(36600) * USECS_PER_DAY)
		out_of_range(what, "at most 100 years");
}

static void
check_args_size(Datum args)
{
	Size size = toast_raw_datum_size(args);

	if (size > (Size) jobqueue_max_args_size * 1024)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("args of %zu bytes exceed the limit of %d kB", size,
					jobqueue_max_args_size),
			 errhint(
				 "Store the data in a table and enqueue its key, or raise jobqueue.max_args_size.")));
}

static void
check_session(void)
{
	jq_shmem_check();
	PreventCommandIfParallelMode("jobqueue_enqueue()");
	PreventCommandDuringRecovery("jobqueue_enqueue()");
	PreventCommandIfReadOnly("jobqueue_enqueue()");
	if (InSecurityRestrictedOperation())
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg(
				 "cannot enqueue a job within security-restricted operation"),
			 errhint(
				 "Such operations are index builds, ANALYZE and REFRESH MATERIALIZED VIEW.")));
	if (jq_dir_db(MyDatabaseId, true) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg(
					 "there are more databases than jobqueue can look after"),
				 errhint("Increase jobqueue.max_databases.")));
}

/* what is the same for all jobs of a call */
typedef struct Template
{
	JqTable *table;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	JqItem item;
	TimestampTz run_at;
	Oid owner;
	Datum values[JQ_NCOLS];
	bool nulls[JQ_NCOLS];
} Template;

#define SET(t, col, datum) \
	((t)->values[(col) -1] = (datum), (t)->nulls[(col) -1] = false)

/*
 * Arguments from number first on: queue, [key,] priority, run_at,
 * max_attempts, timeout, expires_at, keep, tags.
 */
static void
fill_template(Template *t, FunctionCallInfo fcinfo, int queue_arg, int first)
{
	const JqCommand *command;
	char *name;
	int priority = PG_ARGISNULL(first) ? 0 : PG_GETARG_INT32(first);
	const char *path;
	bool isnull;
	Datum d;
	TimestampTz now = GetCurrentTimestamp();

	check_session();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null"),
				 errhint("A command is the name of a function, or SQL text.")));
	t->table = jq_table_required();
	memset(t->nulls, true, sizeof(t->nulls));
	command = jq_command_resolve(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	strcpy(t->queue, "default");
	if (!PG_ARGISNULL(queue_arg))
	{
		name = text_to_cstring(PG_GETARG_TEXT_PP(queue_arg));
		jq_check_queue_name(name);
		strlcpy(t->queue, name, sizeof(t->queue));
	}
	if (priority < PG_INT16_MIN || priority > PG_INT16_MAX)
		out_of_range("priority", "between -32768 and 32767");

	t->owner = GetUserId();
	t->run_at = DT_NOBEGIN;
	if (!PG_ARGISNULL(first + 1))
	{
		TimestampTz run_at = PG_GETARG_TIMESTAMPTZ(first + 1);

		if (TIMESTAMP_IS_NOEND(run_at))
			out_of_range("run_at", "a moment that will come");
		if (run_at > now)
		{
			t->run_at = run_at;
			SET(t, JQ_COL_RUN_AT, TimestampTzGetDatum(run_at));
		}
	}
	if (!PG_ARGISNULL(first + 2))
	{
		int n = PG_GETARG_INT32(first + 2);

		if (n < 1 || n > PG_INT16_MAX)
			out_of_range("max_attempts", "between 1 and 32767");
		SET(t, JQ_COL_MAX_ATTEMPTS, Int16GetDatum(n));
	}
	if (!PG_ARGISNULL(first + 3))
	{
		check_interval("timeout", PG_GETARG_INTERVAL_P(first + 3));
		SET(t, JQ_COL_TIMEOUT, PG_GETARG_DATUM(first + 3));
	}
	if (!PG_ARGISNULL(first + 4))
	{
		TimestampTz expires = PG_GETARG_TIMESTAMPTZ(first + 4);

		if (TIMESTAMP_IS_NOBEGIN(expires))
			out_of_range("expires_at", "a moment");
		if (!TIMESTAMP_IS_NOEND(expires))
			SET(t, JQ_COL_EXPIRES_AT, TimestampTzGetDatum(expires));
	}
	if (!PG_ARGISNULL(first + 5))
	{
		check_interval("keep", PG_GETARG_INTERVAL_P(first + 5));
		SET(t, JQ_COL_KEEP, PG_GETARG_DATUM(first + 5));
	}
	if (!PG_ARGISNULL(first + 6))
	{
		ArrayType *tags = PG_GETARG_ARRAYTYPE_P(first + 6);

		if (ARR_NDIM(tags) > 1 || array_contains_nulls(tags))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg(
						 "tags must be a one-dimensional array without nulls"),
					 errhint("For example ARRAY['mail', 'urgent'].")));
		SET(t, JQ_COL_TAGS, PointerGetDatum(tags));
	}

	SET(t, JQ_COL_ENQUEUED_AT, TimestampTzGetDatum(now));
	SET(t, JQ_COL_HOME, Int64GetDatum(t->table->home));
	SET(t, JQ_COL_OWNER, ObjectIdGetDatum(t->owner));
	if (OidIsValid(command->func_owner))
		SET(t, JQ_COL_FUNC_OWNER, ObjectIdGetDatum(command->func_owner));
	SET(t, JQ_COL_PRIORITY, Int16GetDatum(priority));
	SET(t, JQ_COL_ATTEMPT, Int16GetDatum(0));
	SET(t, JQ_COL_CRASHES, Int16GetDatum(0));
	SET(t, JQ_COL_KIND, CharGetDatum(command->kind));
	SET(t, JQ_COL_QUEUE, CStringGetTextDatum(t->queue));
	SET(t, JQ_COL_COMMAND, CStringGetTextDatum(command->stored));
	path = jq_captured_search_path();
	if (path != NULL)
		SET(t, JQ_COL_SEARCH_PATH, CStringGetTextDatum(path));
	d = jq_captured_settings(&isnull);
	if (!isnull)
		SET(t, JQ_COL_SETTINGS, d);
	memset(&t->item, 0, sizeof(t->item));
	t->item.priority = priority;
	if (t->run_at != DT_NOBEGIN)
		t->item.flags = JQ_E_DUE;
}

/* one job of the template */
static int64
enqueue_one(Template *t, Datum args, bool args_null, text *key)
{
	int64 id;

	t->nulls[JQ_COL_ARGS - 1] = args_null;
	if (!args_null)
	{
		check_args_size(args);
		t->values[JQ_COL_ARGS - 1] = args;
	}
	t->nulls[JQ_COL_KEY - 1] = key == NULL;
	t->item.keylen = 0;
	if (key != NULL)
	{
		jq_check_key(VARSIZE_ANY_EXHDR(key));
		t->values[JQ_COL_KEY - 1] = PointerGetDatum(key);
		t->item.keylen = VARSIZE_ANY_EXHDR(key);
		t->item.key = VARDATA_ANY(key);
	}
	id = nextval_internal(t->table->sequence, false);
	SET(t, JQ_COL_ID, Int64GetDatum(id));
	jq_row_insert(t->table, t->values, t->nulls, &t->item.tid);
	t->item.id = id;
	if (jobqueue_inline)
	{
		jq_run_inline(t->table, id);
		return id;
	}
	jq_publish_row(t->owner, t->queue, &t->item, t->run_at);
	if (!t->nulls[JQ_COL_EXPIRES_AT - 1])
		jq_publish_expiry(
			DatumGetTimestampTz(t->values[JQ_COL_EXPIRES_AT - 1]));
	return id;
}

PG_FUNCTION_INFO_V1(jq_enqueue);
Datum
jq_enqueue(PG_FUNCTION_ARGS)
{
	Template t;

	fill_template(&t, fcinfo, 2, 4);
	if (!jobqueue_inline)
		jq_quota_take(t.table, t.owner, 1);
	PG_RETURN_INT64(
		enqueue_one(&t, PG_ARGISNULL(1) ? (Datum) 0 : PG_GETARG_DATUM(1),
					PG_ARGISNULL(1),
					PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3)));
}

PG_FUNCTION_INFO_V1(jq_enqueue_many);
Datum
jq_enqueue_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Template t;
	Datum *args;
	bool *args_nulls;
	Datum *keys = NULL;
	bool *keys_nulls = NULL;
	int nargs, nkeys, i;

	fill_template(&t, fcinfo, 3, 4);
	if (PG_ARGISNULL(1))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("args must not be null"),
			 errhint(
				 "Give an array with one element a job; elements may be null.")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false,
					  TYPALIGN_INT, &args, &args_nulls, &nargs);
	if (!PG_ARGISNULL(2))
	{
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false,
						  TYPALIGN_INT, &keys, &keys_nulls, &nkeys);
		if (nkeys != nargs)
			ereport(
				ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("args has %d elements, but keys has %d", nargs, nkeys),
				 errhint("Give one key a job; a null element means no key.")));
	}
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (!jobqueue_inline)
		jq_quota_take(t.table, t.owner, nargs);
	for (i = 0; i < nargs; i++)
	{
		Datum id;
		bool isnull = false;

		CHECK_FOR_INTERRUPTS();
		id = Int64GetDatum(enqueue_one(&t, args[i], args_nulls[i],
									   keys != NULL && !keys_nulls[i] ?
										   DatumGetTextPP(keys[i]) :
										   NULL));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &id, &isnull);
	}
	return (Datum) 0;
}
