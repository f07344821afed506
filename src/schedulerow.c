/*
 * schedulerow.c
 *		The row of a schedule in jobqueue_schedule, and the jobs that it makes.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "command.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "cronnext.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "publish.h"
#include "rowguard.h"
#include "schedulerow.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* first those of the schedule, then those of its jobs */
#define OWN_COLUMNS 13

const char *const jq_schedule_columns =
	"s.ctid, s.id, s.name::text, s.owner::oid, s.cron, s.timezone,"
	" s.started_at, s.seen_to, s.next_run, s.overlap, s.catch_up, s.paused,"
	" s.last_job, s.kind, s.queue::text, s.command, s.args, s.key::text,"
	" s.priority, s.max_attempts, s.timeout, s.keep, s.tags, s.func_owner,"
	" s.search_path, s.settings";

static const int job_columns[] = {JQ_COL_KIND,		   JQ_COL_QUEUE,
								  JQ_COL_COMMAND,	   JQ_COL_ARGS,
								  JQ_COL_KEY,		   JQ_COL_PRIORITY,
								  JQ_COL_MAX_ATTEMPTS, JQ_COL_TIMEOUT,
								  JQ_COL_KEEP,		   JQ_COL_TAGS,
								  JQ_COL_FUNC_OWNER,   JQ_COL_SEARCH_PATH,
								  JQ_COL_SETTINGS};

static Datum
column(int row, int n, MemoryContext context, bool *isnull)
{
	TupleDesc desc = SPI_tuptable->tupdesc;
	Form_pg_attribute att = TupleDescAttr(desc, n - 1);
	Datum d = SPI_getbinval(SPI_tuptable->vals[row], desc, n, isnull);
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

void
jq_schedule_of_row(int n, MemoryContext context, JqSchedule *s)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	bool isnull;
	Datum tid = column(n, 1, context, &isnull);
	int i;

	Assert(!isnull && tid != (Datum) 0);
	memset(s, 0, sizeof(*s));
	s->tid = *(ItemPointer) DatumGetPointer(tid);
	s->id = DatumGetInt64(column(n, 2, context, &isnull));
	s->name = TextDatumGetCString(column(n, 3, context, &isnull));
	s->owner = DatumGetObjectId(column(n, 4, context, &isnull));
	s->cron = TextDatumGetCString(column(n, 5, context, &isnull));
	s->timezone = TextDatumGetCString(column(n, 6, context, &isnull));
	s->started_at = DatumGetTimestampTz(column(n, 7, context, &isnull));
	s->seen_to = DatumGetTimestampTz(column(n, 8, context, &isnull));
	s->next_run = DatumGetTimestampTz(column(n, 9, context, &isnull));
	s->overlap = TextDatumGetCString(column(n, 10, context, &isnull))[0];
	s->catch_up = TextDatumGetCString(column(n, 11, context, &isnull))[0];
	s->paused = DatumGetBool(column(n, 12, context, &isnull));
	s->last_job = DatumGetInt64(column(n, 13, context, &isnull));
	for (i = 0; i < JQ_NCOLS; i++)
		s->nulls[i] = true;
	for (i = 0; i < (int) lengthof(job_columns); i++)
		s->values[job_columns[i] - 1] = column(n, OWN_COLUMNS + 1 + i, context,
											   &s->nulls[job_columns[i] - 1]);
	MemoryContextSwitchTo(old);
}

bool
jq_schedule_when(const JqSchedule *s, JqCron *cron, pg_tz **zone, char **error)
{
	JqCronError e;

	if (!jq_cron_parse(s->cron, cron, &e))
	{
		*error = psprintf("invalid cron expression: %s", e.message);
		return false;
	}
	*zone = jq_zone_find(s->timezone);
	if (*zone == NULL)
	{
		*error = psprintf("time zone \"%s\" not recognized", s->timezone);
		return false;
	}
	return true;
}

#define SET(col, datum) (values[(col) -1] = (datum), nulls[(col) -1] = false)

/*
 * The settings that hold in the job: those that were captured, and
 * jobqueue.scheduled_for, which no DateStyle reads otherwise.
 */
static Datum
settings_of_job(const JqSchedule *s, TimestampTz instant)
{
	char text[MAXDATELEN + 1];
	Datum *elems;
	Datum *all;
	struct pg_tm tm;
	fsec_t fsec;
	int tz;
	const char *zone;
	int n = 0;

	if (timestamp2tm(instant, &tz, &tm, &fsec, &zone, pg_tzset("GMT")) != 0)
		elog(ERROR, "timestamp out of range");
	EncodeDateTime(&tm, fsec, true, tz, NULL, USE_ISO_DATES, text);
	if (!s->nulls[JQ_COL_SETTINGS - 1])
		deconstruct_array(DatumGetArrayTypeP(s->values[JQ_COL_SETTINGS - 1]),
						  TEXTOID, -1, false, TYPALIGN_INT, &elems, NULL, &n);
	all = palloc((n + 1) * sizeof(Datum));
	if (n > 0)
		memcpy(all, elems, n * sizeof(Datum));
	all[n++] = CStringGetTextDatum(psprintf("jobqueue.scheduled_for=%s", text));
	return PointerGetDatum(
		construct_array(all, n, TEXTOID, -1, false, TYPALIGN_INT));
}

int64
jq_schedule_write_job(JqTable *t, const JqSchedule *s, TimestampTz instant,
					  bool in_turn, bool publish)
{
	Datum values[JQ_NCOLS];
	bool nulls[JQ_NCOLS];
	JqItem item;

	memcpy(values, s->values, sizeof(values));
	memcpy(nulls, s->nulls, sizeof(nulls));
	memset(&item, 0, sizeof(item));
	item.id = nextval_internal(t->sequence, false);
	item.priority = DatumGetInt16(values[JQ_COL_PRIORITY - 1]);
	SET(JQ_COL_ID, Int64GetDatum(item.id));
	SET(JQ_COL_ENQUEUED_AT, TimestampTzGetDatum(GetCurrentTimestamp()));
	SET(JQ_COL_HOME, Int64GetDatum(t->home));
	SET(JQ_COL_OWNER, ObjectIdGetDatum(s->owner));
	SET(JQ_COL_ATTEMPT, Int16GetDatum(0));
	SET(JQ_COL_CRASHES, Int16GetDatum(0));
	if (!nulls[JQ_COL_COMMAND - 1])
		SET(JQ_COL_SETTINGS, settings_of_job(s, instant));
	if (in_turn && nulls[JQ_COL_KEY - 1])
		SET(JQ_COL_KEY,
			CStringGetTextDatum(psprintf(JQ_SCHEDULE_KEY INT64_FORMAT, s->id)));
	if (!nulls[JQ_COL_KEY - 1])
	{
		text *key = DatumGetTextPP(values[JQ_COL_KEY - 1]);

		item.key = VARDATA_ANY(key);
		item.keylen = VARSIZE_ANY_EXHDR(key);
	}
	jq_row_insert(t, values, nulls, &item.tid);
	if (publish)
	{
		char *queue = TextDatumGetCString(values[JQ_COL_QUEUE - 1]);

		jq_publish_row(nulls[JQ_COL_COMMAND - 1] ? JQ_CONSUMER_ROLE : s->owner,
					   queue, &item, DT_NOBEGIN);
	}
	return item.id;
}

/*
 * Rows that do not come through jobqueue_schedule(): may their writer act for the
 * owner?  When they are due is looked at after the commit.
 */
PG_FUNCTION_INFO_V1(jq_schedule_trigger);
Datum
jq_schedule_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	HeapTuple new;
	bool update;
	bool isnull;
	JqTable *t;
	int owner, next_run;
	Datum value = TimestampTzGetDatum(DT_NOBEGIN);

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		!TRIGGER_FIRED_BEFORE(data->tg_event))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(
				 "jobqueue_schedule_trigger() is a row trigger of the tables of jobqueue")));
	update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	new = update ? data->tg_newtuple : data->tg_trigtuple;
	t = jq_table();
	if (jq_bookkeeping && t != NULL && GetUserId() == t->owner)
		return PointerGetDatum(new);

	desc = RelationGetDescr(data->tg_relation);
	owner = SPI_fnumber(desc, "owner");
	next_run = SPI_fnumber(desc, "next_run");
	if (owner <= 0 || next_run <= 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("columns of \"%s\" are missing",
							   RelationGetRelationName(data->tg_relation)),
						errhint("Drop and create the extension.")));
	jq_row_check_owner(
		DatumGetObjectId(SPI_getbinval(new, desc, owner, &isnull)));
	if (update)
		jq_row_check_owner(DatumGetObjectId(
			SPI_getbinval(data->tg_trigtuple, desc, owner, &isnull)));
	/* its jobs are not looked at once more */
	jq_row_check_schedule(new, desc);
	if (t != NULL)
		new = jq_row_number(update ? data->tg_trigtuple : NULL, new, desc, t);
	isnull = false;
	new = heap_modify_tuple_by_cols(new, desc, 1, &next_run, &value, &isnull);
	if (jq_shmem_ready())
		jq_publish_schedule(DT_NOBEGIN);
	return PointerGetDatum(new);
}
