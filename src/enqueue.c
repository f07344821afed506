/*
 * enqueue.c
 *		jobqueue_enqueue() and jobqueue_enqueue_many().
 *
 * The arguments are checked, the command resolved, the row written, and the
 * transaction told to publish it at its commit.
 *
 * A job with a unique_key asks for its lock first; see conflict.h for what
 * becomes of it.  Many at once ask in the order of their keys, so that two calls
 * with the same keys do not wait for each other, and are written in the order
 * given.  One whose key stands in the list before asks when that one is there.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/sequence.h"
#include "compat.h"
#include "conflict.h"
#include "dependency.h"
#include "enqueue.h"
#include "failure.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "jobtable.h"
#include "publish.h"
#include "quota.h"
#include "replication/logicalworker.h"
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

void
jq_check_interval(const char *what, Interval *i)
{
	Interval zero;

	memset(&zero, 0, sizeof(zero));
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(i),
										  IntervalPGetDatum(&zero))) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("%s must not be negative", what),
				 strcmp(what, "unique_for") == 0 ?
					 errhint("It must be more than 0.") :
					 errhint("0 means %s.", strcmp(what, "timeout") == 0 ?
												"no limit" :
												"not at all")));
	/* far beyond what a timer can do is a mistake, too */
	if (i->month > 12 * 100 || i->day > 36600 ||
		i->time > INT64CONST(36600) * USECS_PER_DAY)
		out_of_range(what, "at most 100 years");
}

void
jq_check_args_size(Datum args)
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

void
jq_check_priority(int priority)
{
	if (priority < PG_INT16_MIN || priority > PG_INT16_MAX)
		out_of_range("priority", "between -32768 and 32767");
}

void
jq_check_max_attempts(int n)
{
	if (n < 1 || n > PG_INT16_MAX)
		out_of_range("max_attempts", "between 1 and 32767");
}

void
jq_check_tags(ArrayType *tags)
{
	if (ARR_NDIM(tags) > 1 || array_contains_nulls(tags))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("tags must be a one-dimensional array without nulls"),
				 errhint("For example ARRAY['mail', 'urgent'].")));
}

JqTable *
jq_enqueue_begin(const char *function)
{
	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	jq_check_primary(function);
	PreventCommandIfReadOnly(function);
	/* from PostgreSQL 16 on, triggers of an apply worker run in one, too; the
	 * job will have no other rights than they have */
	if (InSecurityRestrictedOperation() && !IsLogicalWorker())
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
	return jq_table_required();
}

/* what is the same for all jobs of a call */
typedef struct Template
{
	JqTable *table;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	JqItem item;
	TimestampTz run_at;
	bool waits; /* for other jobs */
	bool here;	/* to be run in this session */
	Oid owner;
	Oid lane_role;
	char until; /* of those with a unique_key */
	char on_conflict;
	Datum unique_for; /* 0 = none */
	Datum values[JQ_NCOLS];
	bool nulls[JQ_NCOLS];
} Template;

#define SET(t, col, datum) \
	((t)->values[(col) -1] = (datum), (t)->nulls[(col) -1] = false)

/*
 * unique_key or unique_keys, unique_until, unique_for, on_conflict, from argument
 * number first on.
 */
static void
fill_unique(Template *t, FunctionCallInfo fcinfo, int first)
{
	char until = JQ_UNTIL_EXECUTED;
	char on_conflict = JQ_CONFLICT_SKIP;
	Interval zero;

	t->unique_for = (Datum) 0;
	if (!PG_ARGISNULL(first + 1))
		until =
			jq_unique_until_code(text_to_cstring(PG_GETARG_TEXT_PP(first + 1)));
	if (!PG_ARGISNULL(first + 3))
		on_conflict =
			jq_on_conflict_code(text_to_cstring(PG_GETARG_TEXT_PP(first + 3)));
	if (PG_ARGISNULL(first))
	{
		if (until != JQ_UNTIL_EXECUTED || on_conflict != JQ_CONFLICT_SKIP ||
			!PG_ARGISNULL(first + 2))
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(
					 "unique_until, unique_for and on_conflict need a unique_key"),
				 errhint("Give a unique_key, or leave them out.")));
		return;
	}
	if (!PG_ARGISNULL(first + 2))
	{
		memset(&zero, 0, sizeof(zero));
		jq_check_interval("unique_for", PG_GETARG_INTERVAL_P(first + 2));
		if (DatumGetInt32(DirectFunctionCall2(interval_cmp,
											  PG_GETARG_DATUM(first + 2),
											  IntervalPGetDatum(&zero))) == 0)
			out_of_range("unique_for", "more than 0");
		t->unique_for = PG_GETARG_DATUM(first + 2);
	}
	else if (until == JQ_UNTIL_EXPIRED)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unique_until \"expired\" needs unique_for"),
				 errhint(
					 "Say for how long, for example unique_for => '1 hour'.")));
	t->until = until;
	t->on_conflict = on_conflict;
}

/*
 * Arguments from number first on: queue, [key,] priority, run_at,
 * max_attempts, timeout, expires_at, keep, those of fill_unique, after, tags.
 */
static void
fill_template(Template *t, FunctionCallInfo fcinfo, int queue_arg, int first)
{
	static const JqCommand no_command = {JQ_KIND_NONE, NULL, InvalidOid};
	const JqCommand *command = &no_command;
	char *name;
	int priority = PG_ARGISNULL(first) ? 0 : PG_GETARG_INT32(first);
	const char *path;
	bool isnull;
	Datum d;
	TimestampTz now = GetCurrentTimestamp();

	t->table = jq_enqueue_begin("jobqueue_enqueue()");
	t->here = jq_inline_here();
	memset(t->nulls, true, sizeof(t->nulls));
	/* without one it waits for an outside consumer */
	if (!PG_ARGISNULL(0))
		command = jq_command_resolve(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	strcpy(t->queue, "default");
	if (!PG_ARGISNULL(queue_arg))
	{
		name = text_to_cstring(PG_GETARG_TEXT_PP(queue_arg));
		jq_check_queue_name(name);
		strlcpy(t->queue, name, sizeof(t->queue));
	}
	jq_check_priority(priority);

	t->owner = GetUserId();
	t->lane_role = command->stored == NULL ? JQ_CONSUMER_ROLE : t->owner;
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

		jq_check_max_attempts(n);
		SET(t, JQ_COL_MAX_ATTEMPTS, Int16GetDatum(n));
	}
	if (!PG_ARGISNULL(first + 3))
	{
		jq_check_interval("timeout", PG_GETARG_INTERVAL_P(first + 3));
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
		jq_check_interval("keep", PG_GETARG_INTERVAL_P(first + 5));
		SET(t, JQ_COL_KEEP, PG_GETARG_DATUM(first + 5));
	}
	fill_unique(t, fcinfo, first + 6);
	t->waits = false;
	if (!PG_ARGISNULL(first + 10))
	{
		Datum after =
			jq_after_argument(t->table, PG_GETARG_ARRAYTYPE_P(first + 10));

		if (after != (Datum) 0)
		{
			t->waits = true;
			SET(t, JQ_COL_AFTER, after);
			SET(t, JQ_COL_AFTER_RUN_AT, TimestampTzGetDatum(t->run_at));
			t->run_at = DT_NOEND;
			SET(t, JQ_COL_RUN_AT, TimestampTzGetDatum(t->run_at));
		}
	}
	if (!PG_ARGISNULL(first + 11))
	{
		ArrayType *tags = PG_GETARG_ARRAYTYPE_P(first + 11);

		jq_check_tags(tags);
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
	if (command->stored != NULL)
	{
		/* what it runs with */
		SET(t, JQ_COL_COMMAND, CStringGetTextDatum(command->stored));
		path = jq_captured_search_path();
		if (path != NULL)
			SET(t, JQ_COL_SEARCH_PATH, CStringGetTextDatum(path));
		d = jq_captured_settings(&isnull);
		if (!isnull)
			SET(t, JQ_COL_SETTINGS, d);
	}
	memset(&t->item, 0, sizeof(t->item));
	t->item.priority = priority;
	if (t->run_at != DT_NOBEGIN)
		t->item.flags = JQ_E_DUE;
}

/* one job of the template */
typedef struct Job
{
	Datum args;
	bool args_null;
	text *key;		  /* or NULL */
	text *unique_key; /* or NULL */
	int64 id;		  /* 0 = not yet */
	bool asked;		  /* for its unique_key */
	JqAdmission admission;
	int64 holder;
} Job;

/* the row of a job, as far as it is not that of all */
static void
set_job(Template *t, const Job *job)
{
	t->nulls[JQ_COL_ARGS - 1] = job->args_null;
	if (!job->args_null)
	{
		jq_check_args_size(job->args);
		t->values[JQ_COL_ARGS - 1] = job->args;
	}
	t->nulls[JQ_COL_KEY - 1] = job->key == NULL;
	t->item.keylen = 0;
	if (job->key != NULL)
	{
		jq_check_user_key(VARDATA_ANY(job->key), VARSIZE_ANY_EXHDR(job->key));
		t->values[JQ_COL_KEY - 1] = PointerGetDatum(job->key);
		t->item.keylen = VARSIZE_ANY_EXHDR(job->key);
		t->item.key = VARDATA_ANY(job->key);
	}
	t->nulls[JQ_COL_UNIQUE_KEY - 1] = job->unique_key == NULL;
	t->nulls[JQ_COL_UNIQUE_UNTIL - 1] = job->unique_key == NULL;
	t->nulls[JQ_COL_ON_CONFLICT - 1] = job->unique_key == NULL;
	t->nulls[JQ_COL_UNIQUE_FOR - 1] =
		job->unique_key == NULL || t->unique_for == (Datum) 0;
	if (job->unique_key != NULL)
	{
		t->values[JQ_COL_UNIQUE_KEY - 1] = PointerGetDatum(job->unique_key);
		t->values[JQ_COL_UNIQUE_UNTIL - 1] = CharGetDatum(t->until);
		t->values[JQ_COL_UNIQUE_FOR - 1] = t->unique_for;
		t->values[JQ_COL_ON_CONFLICT - 1] = CharGetDatum(t->on_conflict);
	}
	SET(t, JQ_COL_ID, Int64GetDatum(job->id));
}

static void
check_unique_key(text *key)
{
	int len = VARSIZE_ANY_EXHDR(key);

	if (len < 1 || len > JQ_KEY_MAX)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 len < 1 ? errmsg("unique_key must not be empty") :
					   errmsg("unique_key is too long"),
			 len < 1 ?
				 errhint("Leave it out if the job may be there twice.") :
				 errhint(
					 "It has 1 to %d bytes; hash what is longer, for instance with md5().",
					 JQ_KEY_MAX)));
}

static void
get_id(Template *t, Job *job)
{
	job->id = nextval_internal(t->table->sequence, false);
}

/* what is to become of a job with a unique_key */
static void
ask(Template *t, Job *job)
{
	set_job(t, job);
	job->admission =
		jq_unique_admit(t->table, t->values, t->nulls, &job->holder);
	job->asked = true;
}

/* it goes to the archive at once */
static void
write_dead(Template *t, Job *job)
{
	ItemPointerData tid;

	jq_row_insert(t->table, t->values, t->nulls, &tid);
	jq_quota_written(t->owner, 1);
	CommandCounterIncrement();
	(void) jq_archive(t->table, job->id, "dead",
					  jq_unique_reason(t->values, job->holder), 0, (Datum) 0);
}

/*
 * jobqueue.inline: what has to wait for another job is enqueued.  Its row has
 * been written.
 */
static bool
runs_inline(Template *t, const Job *job)
{
	int64 dep;

	if (job->admission == JQ_ADMIT_LATER || t->nulls[JQ_COL_COMMAND - 1])
		return false;
	if (!t->waits)
		return true;
	CommandCounterIncrement();
	return jq_after_open(t->table, job->id, &dep, 1) == 0;
}

/* the row of the job as set_job() left it */
static void
write_job(Template *t, Job *job, TimestampTz run_at)
{
	jq_row_insert(t->table, t->values, t->nulls, &t->item.tid);
	t->item.id = job->id;
	if (t->here)
	{
		jq_quota_written(t->owner, 1);
		if (runs_inline(t, job))
		{
			jq_run_inline(t->table, job->id);
			return;
		}
		jq_quota_take_written(t->table, t->owner, 1);
	}
	jq_publish_row(t->lane_role, t->queue, &t->item, run_at);
	if (t->waits)
		jq_publish_waiting(job->id);
	if (!t->nulls[JQ_COL_EXPIRES_AT - 1])
		jq_publish_expiry(
			DatumGetTimestampTz(t->values[JQ_COL_EXPIRES_AT - 1]));
}

/* returns its id, or that of another job, or 0: none was enqueued */
static int64
enqueue_unique(Template *t, Job *job)
{
	Datum run_at = t->values[JQ_COL_RUN_AT - 1];
	bool run_at_null = t->nulls[JQ_COL_RUN_AT - 1];
	Datum after_run_at = t->values[JQ_COL_AFTER_RUN_AT - 1];

	if (!job->asked)
		ask(t, job);
	else
		set_job(t, job);
	switch (job->admission)
	{
		case JQ_ADMIT:
			if (!t->here)
				jq_quota_take(t->table, t->owner, 1);
			write_job(t, job, t->run_at);
			return job->id;
		case JQ_ADMIT_LATER:
			t->item.flags = JQ_E_DUE;
			if (!t->here)
				jq_quota_take(t->table, t->owner, 1);
			write_job(t, job, jq_unique_postpone(t->values, t->nulls));
			/* for the next one */
			t->item.flags = t->run_at != DT_NOBEGIN ? JQ_E_DUE : 0;
			t->values[JQ_COL_RUN_AT - 1] = run_at;
			t->nulls[JQ_COL_RUN_AT - 1] = run_at_null;
			t->values[JQ_COL_AFTER_RUN_AT - 1] = after_run_at;
			return job->id;
		case JQ_ADMIT_DEAD:
			write_dead(t, job);
			return job->id;
		case JQ_ADMIT_OTHER:
			return job->holder;
		case JQ_ADMIT_NONE:
			break;
	}
	return 0;
}

static int64
enqueue_one(Template *t, Job *job)
{
	if (job->id == 0)
		get_id(t, job);
	set_job(t, job);
	write_job(t, job, t->run_at);
	return job->id;
}

PG_FUNCTION_INFO_V1(jq_enqueue);
Datum
jq_enqueue(PG_FUNCTION_ARGS)
{
	Template t;
	Job job;

	fill_template(&t, fcinfo, 2, 4);
	memset(&job, 0, sizeof(job));
	job.args_null = PG_ARGISNULL(1);
	if (!job.args_null)
		job.args = PG_GETARG_DATUM(1);
	if (!PG_ARGISNULL(3))
		job.key = PG_GETARG_TEXT_PP(3);
	if (!PG_ARGISNULL(10))
	{
		int64 id;

		job.unique_key = PG_GETARG_TEXT_PP(10);
		check_unique_key(job.unique_key);
		get_id(&t, &job);
		id = enqueue_unique(&t, &job);
		if (id == 0)
			PG_RETURN_NULL();
		PG_RETURN_INT64(id);
	}
	if (!t.here)
		jq_quota_take(t.table, t.owner, 1);
	PG_RETURN_INT64(enqueue_one(&t, &job));
}

/* elements of an array that has one for each job; false: it is null */
static bool
keys_argument(FunctionCallInfo fcinfo, int arg, const char *name, int njobs,
			  Datum **keys, bool **nulls)
{
	int n;

	if (PG_ARGISNULL(arg))
		return false;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false,
					  TYPALIGN_INT, keys, nulls, &n);
	if (n != njobs)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("args has %d elements, but %s has %d", njobs, name, n),
				 errhint("Give one key a job; a null element means no key.")));
	return true;
}

static int
compare_jobs(const void *a, const void *b)
{
	const Job *x = *(Job *const *) a;
	const Job *y = *(Job *const *) b;
	int xlen = VARSIZE_ANY_EXHDR(x->unique_key);
	int ylen = VARSIZE_ANY_EXHDR(y->unique_key);
	int c = memcmp(VARDATA_ANY(x->unique_key), VARDATA_ANY(y->unique_key),
				   Min(xlen, ylen));

	if (c == 0)
		c = xlen - ylen;
	return c != 0 ? c : x->id < y->id ? -1 : x->id > y->id;
}

static bool
same_unique_key(const Job *x, const Job *y)
{
	return VARSIZE_ANY_EXHDR(x->unique_key) ==
			   VARSIZE_ANY_EXHDR(y->unique_key) &&
		   memcmp(VARDATA_ANY(x->unique_key), VARDATA_ANY(y->unique_key),
				  VARSIZE_ANY_EXHDR(x->unique_key)) == 0;
}

/* all first jobs of a unique_key ask for it, in the order of the keys */
static void
ask_all(Template *t, Job *jobs, int n, MemoryContext each)
{
	Job **sorted =
		MemoryContextAllocHuge(CurrentMemoryContext, Max(n, 1) * sizeof(Job *));
	MemoryContext old = MemoryContextSwitchTo(each);
	int m = 0;
	int i;

	for (i = 0; i < n; i++)
		if (jobs[i].unique_key != NULL)
		{
			check_unique_key(jobs[i].unique_key);
			get_id(t, &jobs[i]);
			sorted[m++] = &jobs[i];
		}
		else
			get_id(t, &jobs[i]);
	qsort(sorted, m, sizeof(Job *), compare_jobs);
	for (i = 0; i < m; i++)
		if (i == 0 || !same_unique_key(sorted[i - 1], sorted[i]))
		{
			ask(t, sorted[i]);
			MemoryContextReset(each);
		}
	MemoryContextSwitchTo(old);
	pfree(sorted);
}

/* element i of the arrays */
static void
set_element(Job *job, int i, Datum *args, bool *args_nulls, Datum *keys,
			bool *keys_nulls)
{
	job->args = args[i];
	job->args_null = args_nulls[i];
	if (keys != NULL && !keys_nulls[i])
		job->key = DatumGetTextPP(keys[i]);
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
	Datum *unique_keys;
	bool *keys_nulls = NULL;
	bool *unique_nulls;
	bool have_unique;
	int nunique = 0;
	Job one;
	Job *jobs = NULL;
	MemoryContext each = NULL;
	int n, i;

	fill_template(&t, fcinfo, 3, 4);
	if (PG_ARGISNULL(1))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("args must not be null"),
			 errhint(
				 "Give an array with one element a job; elements may be null.")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), JSONBOID, -1, false,
					  TYPALIGN_INT, &args, &args_nulls, &n);
	(void) keys_argument(fcinfo, 2, "keys", n, &keys, &keys_nulls);
	have_unique = keys_argument(fcinfo, 10, "unique_keys", n, &unique_keys,
								&unique_nulls);
	if (have_unique)
	{
		jobs = MemoryContextAllocHuge(CurrentMemoryContext,
									  Max(n, 1) * sizeof(Job));
		for (i = 0; i < n; i++)
		{
			memset(&jobs[i], 0, sizeof(Job));
			set_element(&jobs[i], i, args, args_nulls, keys, keys_nulls);
			if (!unique_nulls[i])
			{
				jobs[i].unique_key = DatumGetTextPP(unique_keys[i]);
				nunique++;
			}
		}
		/* what is needed for one is not kept until the last one is there */
		each =
			AllocSetContextCreate(CurrentMemoryContext, "jobqueue unique job",
								  ALLOCSET_DEFAULT_SIZES);
		ask_all(&t, jobs, n, each);
	}
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	if (!t.here)
		jq_quota_take(t.table, t.owner, n - nunique);
	for (i = 0; i < n; i++)
	{
		Job *job = have_unique ? &jobs[i] : &one;
		Datum id;
		bool isnull = false;

		CHECK_FOR_INTERRUPTS();
		if (!have_unique)
		{
			memset(job, 0, sizeof(Job));
			set_element(job, i, args, args_nulls, keys, keys_nulls);
		}
		if (job->unique_key != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(each);

			id = Int64GetDatum(enqueue_unique(&t, job));
			isnull = DatumGetInt64(id) == 0;
			MemoryContextSwitchTo(old);
			MemoryContextReset(each);
		}
		else
			id = Int64GetDatum(enqueue_one(&t, job));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &id, &isnull);
	}
	return (Datum) 0;
}
