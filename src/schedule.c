/*
 * schedule.c
 *		Schedules: jobqueue_schedule() and what else is done to them.
 *
 * A schedule is a row of jobqueue_schedule: an expression, and the job that is
 * enqueued whenever it is due, with the rights, the search_path and the captured
 * settings of the role that made it.  cron.c: when that is; fire.c: what happens
 * then; schedulerow.c: the row.
 *
 * Names are unique among the schedules of a role.  A name means that of the
 * current user, or else the only one of that name among those of roles whose
 * privileges one has (an administrator: of all).
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "clock.h"
#include "command.h"
#include "control.h"
#include "cronnext.h"
#include "enqueue.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "grant.h"
#include "miscadmin.h"
#include "publish.h"
#include "quota.h"
#include "runhere.h"
#include "schedulerow.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define NAME_MAX_BYTES 255

/* arguments of jobqueue_schedule() */
enum
{
	ARG_NAME,
	ARG_CRON,
	ARG_COMMAND,
	ARG_ARGS,
	ARG_QUEUE,
	ARG_KEY,
	ARG_PRIORITY,
	ARG_MAX_ATTEMPTS,
	ARG_TIMEOUT,
	ARG_KEEP,
	ARG_TAGS,
	ARG_TIMEZONE,
	ARG_OVERLAP,
	ARG_CATCH_UP
};

static text *
name_argument(FunctionCallInfo fcinfo)
{
	text *name;
	int len;

	if (PG_ARGISNULL(ARG_NAME))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("name of a schedule must not be null"),
						errhint("It has 1 to %d bytes.", NAME_MAX_BYTES)));
	name = PG_GETARG_TEXT_PP(ARG_NAME);
	len = VARSIZE_ANY_EXHDR(name);
	if (len < 1 || len > NAME_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 len < 1 ? errmsg("name of a schedule must not be empty") :
						   errmsg("name of a schedule is too long"),
				 errhint("It has 1 to %d bytes.", NAME_MAX_BYTES)));
	return name;
}

/* one of three words */
static Datum
word_argument(FunctionCallInfo fcinfo, int arg, const char *what,
			  const char *const *words, int otherwise)
{
	const char *word = words[otherwise];
	int i;

	if (!PG_ARGISNULL(arg))
		word = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	for (i = 0; i < 3; i++)
		if (pg_strcasecmp(word, words[i]) == 0)
			return CStringGetTextDatum(words[i]);
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("unknown %s \"%s\"", what, word),
					errhint("It is \"%s\", \"%s\" or \"%s\".", words[0],
							words[1], words[2])));
}

/* what is checked, and goes into the row as it is */
static void
check_arguments(FunctionCallInfo fcinfo)
{
	if (!PG_ARGISNULL(ARG_ARGS))
		jq_check_args_size(PG_GETARG_DATUM(ARG_ARGS));
	if (!PG_ARGISNULL(ARG_QUEUE))
		jq_check_queue_name(text_to_cstring(PG_GETARG_TEXT_PP(ARG_QUEUE)));
	if (!PG_ARGISNULL(ARG_KEY))
	{
		text *key = PG_GETARG_TEXT_PP(ARG_KEY);

		jq_check_user_key(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	}
	if (!PG_ARGISNULL(ARG_PRIORITY))
		jq_check_priority(PG_GETARG_INT32(ARG_PRIORITY));
	if (!PG_ARGISNULL(ARG_MAX_ATTEMPTS))
		jq_check_max_attempts(PG_GETARG_INT32(ARG_MAX_ATTEMPTS));
	if (!PG_ARGISNULL(ARG_TIMEOUT))
		jq_check_interval("timeout", PG_GETARG_INTERVAL_P(ARG_TIMEOUT));
	if (!PG_ARGISNULL(ARG_KEEP))
		jq_check_interval("keep", PG_GETARG_INTERVAL_P(ARG_KEEP));
	if (!PG_ARGISNULL(ARG_TAGS))
		jq_check_tags(PG_GETARG_ARRAYTYPE_P(ARG_TAGS));
}

PG_FUNCTION_INFO_V1(jq_schedule);
Datum
jq_schedule(PG_FUNCTION_ARGS)
{
	/* the same expression again goes on where it was */
#define KEPT                                                    \
	"s.cron = excluded.cron AND s.timezone = excluded.timezone" \
	" AND s.home = excluded.home AND s.next_run <> '-infinity'" \
	" AND s.seen_to < excluded.seen_to + interval '1 day'"
	/* another expression may have been dealt with up to a moment after ours: it
	 * has fired while we waited for the row, or the clock was set back */
#define AHEAD                                                       \
	"s.home = excluded.home AND s.seen_to BETWEEN excluded.seen_to" \
	" AND excluded.seen_to + interval '1 day'"
	static const char *const sql =
		"INSERT INTO %s.jobqueue_schedule AS s (owner, name, cron, args, queue,"
		" key, priority, max_attempts, timeout, keep, tags, timezone, overlap,"
		" catch_up, kind, command, func_owner, search_path, settings, home,"
		" started_at, seen_to, next_run)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
		" $15, $16, $17, $18, $19, $20, $21, $21, $22)"
		" ON CONFLICT (name, NULLIF(owner::oid, 0::oid)) DO UPDATE SET cron = excluded.cron,"
		" args = excluded.args, queue = excluded.queue, key = excluded.key,"
		" priority = excluded.priority, max_attempts = excluded.max_attempts,"
		" timeout = excluded.timeout, keep = excluded.keep,"
		" tags = excluded.tags, timezone = excluded.timezone,"
		" overlap = excluded.overlap, catch_up = excluded.catch_up,"
		" kind = excluded.kind, command = excluded.command,"
		" func_owner = excluded.func_owner, search_path = excluded.search_path,"
		" settings = excluded.settings, home = excluded.home,"
		" started_at = CASE WHEN " KEPT
		"  THEN s.started_at ELSE excluded.started_at END,"
		" seen_to = CASE WHEN " KEPT " OR " AHEAD
		"  THEN s.seen_to ELSE excluded.seen_to END,"
		" next_run = CASE WHEN " KEPT "  THEN s.next_run"
		"  WHEN " AHEAD "  THEN '-infinity' ELSE excluded.next_run END"
		" RETURNING id, next_run";
#undef KEPT
#undef AHEAD
	static JqKept kept;
	static const char *const overlaps[] = {"skip", "queue", "allow"};
	static const char *const catch_ups[] = {"none", "one", "all"};
	static const JqCommand no_command = {JQ_KIND_NONE, NULL, InvalidOid};
	const JqCommand *command = &no_command;
	Oid types[22] = {OIDOID,		 TEXTOID,		TEXTOID,	  JSONBOID,
					 TEXTOID,		 TEXTOID,		INT2OID,	  INT2OID,
					 INTERVALOID,	 INTERVALOID,	TEXTARRAYOID, TEXTOID,
					 TEXTOID,		 TEXTOID,		CHAROID,	  TEXTOID,
					 OIDOID,		 TEXTOID,		TEXTARRAYOID, INT8OID,
					 TIMESTAMPTZOID, TIMESTAMPTZOID};
	JqTable *t = jq_enqueue_begin("jobqueue_schedule()");
	text *name = name_argument(fcinfo);
	TimestampTz now = jq_clock_now();
	TimestampTz next;
	Datum values[22];
	char nulls[22];
	JqOwnerState state;
	const char *path;
	JqCron cron;
	pg_tz *zone;
	bool isnull;
	int64 id;
	int i;

	if (PG_ARGISNULL(ARG_CRON))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("cron must not be null"),
						errhint("It is an expression such as '0 3 * * *'.")));
	jq_cron_of_text(text_to_cstring(PG_GETARG_TEXT_PP(ARG_CRON)), &cron);
	zone =
		jq_zone_of_text(PG_ARGISNULL(ARG_TIMEZONE) ?
							NULL :
							text_to_cstring(PG_GETARG_TEXT_PP(ARG_TIMEZONE)));
	check_arguments(fcinfo);
	if (!PG_ARGISNULL(ARG_COMMAND))
		command =
			jq_command_resolve(text_to_cstring(PG_GETARG_TEXT_PP(ARG_COMMAND)));
	if (!jq_cron_next(&cron, now, now, zone, &next))
		next = DT_NOEND;

	memset(nulls, ' ', sizeof(nulls));
	values[0] = ObjectIdGetDatum(GetUserId());
	values[1] = PointerGetDatum(name);
	/* cron, then args to tags, which may be null */
	values[2] = PG_GETARG_DATUM(ARG_CRON);
	for (i = ARG_ARGS; i <= ARG_TAGS; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	if (PG_ARGISNULL(ARG_QUEUE))
		values[ARG_QUEUE] = CStringGetTextDatum("default");
	values[ARG_PRIORITY] = Int16GetDatum(
		PG_ARGISNULL(ARG_PRIORITY) ? 0 : PG_GETARG_INT32(ARG_PRIORITY));
	nulls[ARG_QUEUE] = nulls[ARG_PRIORITY] = ' ';
	if (!PG_ARGISNULL(ARG_MAX_ATTEMPTS))
		values[ARG_MAX_ATTEMPTS] =
			Int16GetDatum(PG_GETARG_INT32(ARG_MAX_ATTEMPTS));
	values[ARG_TIMEZONE] = CStringGetTextDatum(pg_get_timezone_name(zone));
	values[ARG_OVERLAP] =
		word_argument(fcinfo, ARG_OVERLAP, "overlap", overlaps, 0);
	values[ARG_CATCH_UP] =
		word_argument(fcinfo, ARG_CATCH_UP, "catch_up", catch_ups, 1);
	values[14] = CharGetDatum(command->kind);
	nulls[15] = command->stored == NULL ? 'n' : ' ';
	if (command->stored != NULL)
		values[15] = CStringGetTextDatum(command->stored);
	values[16] = ObjectIdGetDatum(command->func_owner);
	nulls[16] = OidIsValid(command->func_owner) ? ' ' : 'n';
	path = command->stored == NULL ? NULL : jq_captured_search_path();
	nulls[17] = path == NULL ? 'n' : ' ';
	if (path != NULL)
		values[17] = CStringGetTextDatum(path);
	isnull = true;
	if (command->stored != NULL)
		values[18] = jq_captured_settings(&isnull);
	nulls[18] = isnull ? 'n' : ' ';
	values[19] = Int64GetDatum(t->home);
	values[20] = TimestampTzGetDatum(now);
	values[21] = TimestampTzGetDatum(next);

	jq_owner_begin(t, &state);
	jq_owner_execute_kept(t, &kept, sql, 22, types, values, nulls);
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									 SPI_tuptable->tupdesc, 1, &isnull));
	next =
		DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
										  SPI_tuptable->tupdesc, 2, &isnull));
	jq_owner_end(&state);
	if (next != DT_NOEND)
		jq_publish_schedule(next);
	PG_RETURN_INT64(id);
}

/* ------------------------------------------------------ what there is already */

static bool
may_act_for(Oid owner)
{
	return superuser() ||
		   (OidIsValid(owner) && has_privs_of_role(GetUserId(), owner)) ||
		   jq_is_admin();
}

/* whose schedule does the name mean? false: there is none for the caller */
static bool
find_owner(JqTable *t, text *name, Oid *owner)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {PointerGetDatum(name)};
	JqOwnerState state;
	Oid user = GetUserId();
	Oid *owners;
	uint64 n, i;
	int found = 0;
	MemoryContext context = CurrentMemoryContext;

	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT owner::oid FROM %s.jobqueue_schedule WHERE name = $1",
				  1, types, values, NULL);
	n = SPI_processed;
	owners = MemoryContextAlloc(context, Max(n, 1) * sizeof(Oid));
	for (i = 0; i < n; i++)
	{
		bool isnull;

		owners[i] =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
										   SPI_tuptable->tupdesc, 1, &isnull));
	}
	jq_owner_end(&state);
	for (i = 0; i < n; i++)
	{
		if (owners[i] == user)
		{
			*owner = user;
			return true;
		}
		if (!may_act_for(owners[i]))
			continue;
		*owner = owners[i];
		found++;
	}
	if (found > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("several roles have a schedule \"%s\"",
						text_to_cstring(name)),
				 errhint(
					 "Run SET ROLE to the owner of the one that is meant.")));
	return found == 1;
}

/*
 * The schedule that the first argument names, locked until the end of the
 * transaction.  false: the caller has none of that name.
 */
static bool
find_schedule(JqTable *t, FunctionCallInfo fcinfo, JqSchedule *s)
{
	const char *sql =
		psprintf("SELECT %s FROM %%s.jobqueue_schedule s"
				 " WHERE name = $1 AND owner::oid = $2 FOR UPDATE",
				 jq_schedule_columns);
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {TEXTOID, OIDOID};
	Datum values[2];
	JqOwnerState state;
	text *name = name_argument(fcinfo);
	Oid owner;
	bool found;

	if (!find_owner(t, name, &owner))
		return false;
	values[0] = PointerGetDatum(name);
	values[1] = ObjectIdGetDatum(owner);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 2, types, values, NULL);
	found = SPI_processed == 1;
	if (found)
		jq_schedule_of_row(0, context, s);
	jq_owner_end(&state);
	return found;
}

static void
need_schedule(JqTable *t, FunctionCallInfo fcinfo, JqSchedule *s)
{
	if (!find_schedule(t, fcinfo, s))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("schedule \"%s\" does not exist",
						text_to_cstring(PG_GETARG_TEXT_PP(ARG_NAME))),
				 errhint(
					 "View jobqueue_schedules shows those that there are.")));
}

/* a statement about the row, which is locked: $1 is its place */
static void
change(JqTable *t, const JqSchedule *s, const char *sql, int nargs, Oid *types,
	   Datum *values)
{
	JqOwnerState state;

	types[0] = TIDOID;
	values[0] = PointerGetDatum(&s->tid);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, nargs, types, values, NULL);
	jq_owner_end(&state);
}

PG_FUNCTION_INFO_V1(jq_unschedule);
Datum
jq_unschedule(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_unschedule()");
	Oid types[1];
	Datum values[1];
	JqSchedule s;

	if (!find_schedule(t, fcinfo, &s))
		PG_RETURN_BOOL(false);
	change(t, &s, "DELETE FROM %s.jobqueue_schedule WHERE ctid = $1", 1, types,
		   values);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(jq_schedule_pause);
Datum
jq_schedule_pause(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_schedule_pause()");
	Oid types[1];
	Datum values[1];
	JqSchedule s;

	need_schedule(t, fcinfo, &s);
	if (!s.paused)
		change(t, &s,
			   "UPDATE %s.jobqueue_schedule SET paused = true WHERE ctid = $1",
			   1, types, values);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_schedule_resume);
Datum
jq_schedule_resume(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_schedule_resume()");
	TimestampTz now = jq_clock_now();
	Oid types[2];
	Datum values[2];
	JqSchedule s;

	need_schedule(t, fcinfo, &s);
	if (!s.paused)
		PG_RETURN_VOID();
	/* nothing was due while it was paused; when it is next is looked at then */
	types[1] = TIMESTAMPTZOID;
	values[1] = TimestampTzGetDatum(Max(now, s.seen_to));
	change(t, &s,
		   "UPDATE %s.jobqueue_schedule SET paused = false, seen_to = $2,"
		   " next_run = '-infinity' WHERE ctid = $1",
		   2, types, values);
	jq_publish_schedule(DT_NOBEGIN);
	PG_RETURN_VOID();
}

static bool
is_alive(JqTable *t, int64 job)
{
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(job)};
	JqOwnerState state;
	bool alive;

	jq_owner_begin(t, &state);
	jq_owner_read(t, "SELECT FROM %s.jobqueue_job WHERE id = $1", 1, types,
				  values, NULL);
	alive = SPI_processed > 0;
	jq_owner_end(&state);
	return alive;
}

PG_FUNCTION_INFO_V1(jq_schedule_run);
Datum
jq_schedule_run(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_enqueue_begin("jobqueue_schedule_run()");
	TimestampTz now = jq_clock_now();
	Oid types[3] = {TIDOID, INT8OID, TIMESTAMPTZOID};
	Datum values[3];
	JqSchedule s;
	bool here;
	int64 id;

	need_schedule(t, fcinfo, &s);
	if (s.overlap == 's' && s.last_job != 0 && is_alive(t, s.last_job))
	{
		ereport(
			NOTICE,
			(errmsg(
				"schedule \"%s\" has a run that has not ended, job " INT64_FORMAT,
				s.name, s.last_job)));
		PG_RETURN_NULL();
	}
	/* jobqueue.inline; not as somebody else */
	here = jq_inline_here() && s.owner == GetUserId() &&
		   !s.nulls[JQ_COL_COMMAND - 1];
	if (here)
		jq_quota_written(s.owner, 1);
	else
		jq_quota_take(t, s.owner, 1);
	id = jq_schedule_write_job(t, &s, now, s.overlap == 'q', !here);
	values[1] = Int64GetDatum(id);
	values[2] = TimestampTzGetDatum(now);
	change(t, &s,
		   "UPDATE %s.jobqueue_schedule SET last_job = $2, last_run = $3,"
		   " last_outcome = 'enqueued', last_error = NULL, runs = runs + 1"
		   " WHERE ctid = $1",
		   3, types, values);
	if (here)
		jq_run_inline(t, id);
	PG_RETURN_INT64(id);
}
