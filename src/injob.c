/*
 * injob.c
 *		jobqueue_progress(), jobqueue_snooze(), jobqueue_discard().
 *
 * Progress goes to shared memory at once.
 *
 * Snooze is a wish that is part of the transaction: a subtransaction that is
 * rolled back takes it with it.  What is in force stands on top of a list, with
 * the nesting level that said it; level 0 is what a procedure that commits has
 * committed.  At the job's end its row is not deleted but waits for its new
 * time, in the same transaction:
 *
 *		running -> scheduled : the worker, by the commit of the job
 *
 * Discard is an error.  A job may catch it, and then goes on; if it ends the
 * job, the failure is final.  An error of that SQLSTATE alone is no discard: it
 * may have come from somewhere else.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "injob.h"
#include "mb/pg_wchar.h"
#include "progress.h"
#include "runjob.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

struct JqSnooze
{
	JqSnooze *below;
	int nest;
	Interval delay;
};

/* the row of the claimed job waits for a new time when we commit */
static bool claim_taken_at_commit;

static void
check_in_job(const char *function)
{
	jq_shmem_check();
	if (jq_current_job.id == 0)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("%s can only be called in a job", function),
						errhint("A job is what jobqueue_enqueue() enqueues; "
								"jobqueue_current() tells whether one runs.")));
}

/* -------------------------------------------------------------- progress */

PG_FUNCTION_INFO_V1(jq_progress);
Datum
jq_progress(PG_FUNCTION_ARGS)
{
	float8 fraction;
	char message[JQ_PROGRESS_MESSAGE] = "";

	check_in_job("jobqueue_progress()");
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("fraction must not be null"),
						errhint("It must be between 0 and 1.")));
	fraction = PG_GETARG_FLOAT8(0);
	if (isnan(fraction) || fraction < 0 || fraction > 1)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("fraction is out of range"),
						errhint("It must be between 0 and 1.")));
	if (!PG_ARGISNULL(1))
	{
		text *t = PG_GETARG_TEXT_PP(1);
		const char *s = VARDATA_ANY(t);
		int len = VARSIZE_ANY_EXHDR(t);

		len = pg_mbcliplen(s, len, sizeof(message) - 1);
		memcpy(message, s, len);
		message[len] = '\0';
	}
	/* a job that is run by jobqueue_run() is in no view */
	if (jq_my_slot >= 0 && jq_claim_cells[jq_my_slot].id == jq_current_job.id)
		jq_progress_set(jq_current_job.id, fraction, message);
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------- snooze */

static void
pop_snooze(void)
{
	JqSnooze *top = jq_current_job.snooze;

	jq_current_job.snooze = top->below;
	pfree(top);
}

/* what was said at a level is now said at this one */
static void
join_level(int nest)
{
	JqSnooze *top = jq_current_job.snooze;

	if (top == NULL || top->nest <= nest)
		return;
	top->nest = nest;
	while (top->below != NULL && top->below->nest >= nest)
	{
		JqSnooze *old = top->below;

		top->below = old->below;
		pfree(old);
	}
}

static void
forget_level(int nest)
{
	while (jq_current_job.snooze != NULL && jq_current_job.snooze->nest >= nest)
		pop_snooze();
}

static void
snooze_xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (claim_taken_at_commit)
				jq_claim_set_taken();
			claim_taken_at_commit = false;
			join_level(0);
			break;
		case XACT_EVENT_ABORT:
			claim_taken_at_commit = false;
			forget_level(1);
			break;
		default:
			break;
	}
}

static void
snooze_subxact_callback(SubXactEvent event, SubTransactionId mine,
						SubTransactionId parent, void *arg)
{
	int nest = GetCurrentTransactionNestLevel();

	(void) mine;
	(void) parent;
	(void) arg;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		join_level(nest - 1);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_level(nest);
}

PG_FUNCTION_INFO_V1(jq_snooze);
Datum
jq_snooze(PG_FUNCTION_ARGS)
{
	static bool registered;
	int nest = GetCurrentTransactionNestLevel();
	JqSnooze *s;
	Interval *delay;
	Interval zero;

	check_in_job("jobqueue_snooze()");
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("delay must not be null"),
						errhint("0 means at once.")));
	delay = PG_GETARG_INTERVAL_P(0);
	memset(&zero, 0, sizeof(zero));
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp,
										  IntervalPGetDatum(delay),
										  IntervalPGetDatum(&zero))) < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("delay must not be negative"),
						errhint("0 means at once.")));
	if (delay->month > 12 * 100 || delay->day > 36600 ||
		delay->time > INT64CONST(36600) * USECS_PER_DAY)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("delay is out of range"),
						errhint("It must be at most 100 years.")));
	if (!registered)
	{
		RegisterXactCallback(snooze_xact_callback, NULL);
		RegisterSubXactCallback(snooze_subxact_callback, NULL);
		registered = true;
	}
	s = jq_current_job.snooze;
	if (s == NULL || s->nest < nest)
	{
		s = MemoryContextAlloc(TopMemoryContext, sizeof(JqSnooze));
		s->below = jq_current_job.snooze;
		s->nest = nest;
		jq_current_job.snooze = s;
	}
	s->delay = *delay;
	PG_RETURN_VOID();
}

bool
jq_snooze_wanted(Interval *delay)
{
	if (jq_current_job.snooze == NULL)
		return false;
	*delay = jq_current_job.snooze->delay;
	return true;
}

bool
jq_snooze_row(JqTable *t, int64 id, Interval *delay, TimestampTz *run_at,
			  ItemPointer tid)
{
	/* it has not crashed the server, so far */
	static const char *const sql =
		"UPDATE %s.jobqueue_job SET run_at = $2, crashes = 0,"
		" keeps_order = CASE WHEN key IS NOT NULL THEN true END WHERE id = $1"
		" RETURNING ctid";
	Oid types[2] = {INT8OID, TIMESTAMPTZOID};
	Datum values[2];
	JqOwnerState state;
	bool done;
	bool isnull;

	*run_at = DatumGetTimestampTz(
		DirectFunctionCall2(timestamptz_pl_interval,
							TimestampTzGetDatum(GetCurrentTimestamp()),
							IntervalPGetDatum(delay)));
	values[0] = Int64GetDatum(id);
	values[1] = TimestampTzGetDatum(*run_at);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 2, types, values, NULL);
	done = SPI_processed == 1;
	if (done)
		*tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						  &isnull));
	jq_owner_end(&state);
	return done;
}

void
jq_snooze_at_commit(void)
{
	claim_taken_at_commit = true;
}

/* --------------------------------------------------------------- discard */

PG_FUNCTION_INFO_V1(jq_discard);
Datum
jq_discard(PG_FUNCTION_ARGS)
{
	const char *reason = "discarded";

	check_in_job("jobqueue_discard()");
	if (!PG_ARGISNULL(0))
		reason = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (jq_current_job.discarded != NULL)
		pfree(jq_current_job.discarded);
	jq_current_job.discarded = NULL;
	jq_current_job.discarded = MemoryContextStrdup(TopMemoryContext, reason);
	ereport(ERROR, (errcode(JQ_ERRCODE_DISCARDED), errmsg("%s", reason)));
	PG_RETURN_VOID();
}

const char *
jq_discard_reason(const ErrorData *error)
{
	if (error->sqlerrcode != JQ_ERRCODE_DISCARDED ||
		jq_current_job.discarded == NULL || error->message == NULL ||
		strcmp(error->message, jq_current_job.discarded) != 0)
		return NULL; /* not ours; one of ours may have been caught before it */
	return jq_current_job.discarded;
}

void
jq_injob_forget(void)
{
	forget_level(0);
	if (jq_current_job.discarded != NULL)
		pfree(jq_current_job.discarded);
	jq_current_job.discarded = NULL;
	claim_taken_at_commit = false;
}
