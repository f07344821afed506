/*
 * failure.c
 *		Records of failures, ends and crashes.
 *
 * All statements here run as the extension's owner.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "failure.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "ondead.h"
#include "publish.h"
#include "quota.h"
#include "supervise.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define MAX_ERRORS 25		 /* kept with a job */
#define MAX_ERROR_TEXT 16384 /* bytes of each text of one of them */

void
jq_begin_bookkeeping(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
}

void
jq_abort_bookkeeping(void)
{
	HOLD_INTERRUPTS();
	EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	QueryCancelPending = false;
}

int64
jq_backoff(int attempt, const JqQueueSettings *q)
{
	double wait = q->backoff_base_us;
	int i;

	if (q->backoff == 'l')
		wait *= attempt;
	else if (q->backoff == 'e')
		for (i = 1; i < attempt && wait < q->backoff_max_us; i++)
			wait *= 2;
	wait = Min(wait, q->backoff_max_us);
	/* within 20 percent, so that what failed together does not come together */
	return (int64) (wait * (0.8 + 0.4 * pg_prng_double(&pg_global_prng_state)));
}

static Datum
opt_text(const char *s, char *flag)
{
	*flag = s != NULL ? ' ' : 'n';
	return s != NULL ? CStringGetTextDatum(s) : (Datum) 0;
}

/* many long ones would not fit into one jsonb: no failure could be recorded */
static Datum
cut_text(const char *s, char *flag)
{
	int len;

	*flag = s != NULL ? ' ' : 'n';
	if (s == NULL)
		return (Datum) 0;
	len = (int) Min(strlen(s), MAX_ERROR_TEXT + 1);
	return PointerGetDatum(
		cstring_to_text_with_len(s, pg_mbcliplen(s, len, MAX_ERROR_TEXT)));
}

bool
jq_archive(JqTable *t, int64 id, const char *state, const char *reason,
		   TimestampTz started_at, Datum result)
{
	static const char *const sql =
		"WITH gone AS (DELETE FROM %s.jobqueue_job WHERE id = $1 RETURNING *)"
		" INSERT INTO %s.jobqueue_archive (id, enqueued_at, started_at, ended_at,"
		" expires_at, home, owner, func_owner, priority, attempt, max_attempts,"
		" kind, state, queue, command, args, key, search_path, settings, timeout,"
		" keep, tags, result, errors, reason, unique_key, unique_until,"
		" unique_for, on_conflict, after)"
		" SELECT id, enqueued_at, $4, clock_timestamp(), CASE $2"
		"  WHEN 'completed' THEN clock_timestamp() + coalesce(keep,"
		"   (SELECT q.keep FROM %s.jobqueue_queue q WHERE q.name = gone.queue),"
		"   '0')"
		"  ELSE " JQ_EXPIRES_DEAD " END,"
		" home, owner, func_owner, priority, attempt, max_attempts, kind, $2,"
		" queue, command, args, key, search_path, settings, timeout, keep, tags,"
		" $5, errors, $3, unique_key, unique_until, unique_for, on_conflict,"
		" after FROM gone" JQ_ARCHIVED_AGAIN
		" RETURNING expires_at, owner::oid";
	Oid types[5] = {INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, JSONBOID};
	Datum values[5];
	char flags[5] = {' ', ' ', ' ', ' ', ' '};
	JqOwnerState state_;
	Oid owner = InvalidOid;
	bool done;

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(state);
	values[2] = opt_text(reason, &flags[2]);
	values[3] = TimestampTzGetDatum(started_at);
	if (started_at == 0)
		flags[3] = 'n';
	values[4] = result;
	if (result == (Datum) 0)
		flags[4] = 'n';
	jq_owner_begin(t, &state_);
	jq_owner_execute(t, sql, 5, types, values, flags);
	done = SPI_processed > 0;
	if (done)
	{
		bool isnull;
		Datum expires_at = SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			jq_publish_prune(DatumGetTimestampTz(expires_at));
		owner =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 2, &isnull));
	}
	jq_owner_end(&state_);
	if (!done)
		return false;
	jq_quota_gone(owner, 1);
	jq_publish_ended(id);
	if (strcmp(state, "dead") == 0)
		jq_on_dead(t, id);
	return true;
}

/* a row that is locked now, and what holds for its failures */
typedef struct Locked
{
	int attempt;
	int max_attempts;
	int crashes;
	char *service;			  /* key of a message, else NULL; palloc'd */
	JqQueueSettings settings; /* backoff only */
} Locked;

static bool
lock_row(JqTable *t, int64 id, Locked *l)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	bool found;
	bool isnull;
	MemoryContext context = CurrentMemoryContext;

	values[0] = Int64GetDatum(id);
	l->service = NULL;
	jq_owner_begin(t, &state);
	jq_owner_execute(
		t,
		"SELECT j.attempt::int, coalesce(j.max_attempts, q.max_attempts,"
		" CASE j.kind WHEN 'x' THEN 1 ELSE 10 END)::int, j.crashes::int,"
		" q.backoff, q.backoff_base, q.backoff_max,"
		" CASE j.kind WHEN 'm' THEN j.key END"
		" FROM %s.jobqueue_job j LEFT JOIN %s.jobqueue_queue q ON q.name = j.queue"
		" WHERE j.id = $1 FOR UPDATE OF j",
		1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		Datum backoff = SPI_getbinval(tup, desc, 4, &isnull);

		jq_settings_default(&l->settings);
		if (!isnull)
		{
			l->settings.backoff = TextDatumGetCString(backoff)[0];
			l->settings.backoff_base_us = jq_interval_us(
				DatumGetIntervalP(SPI_getbinval(tup, desc, 5, &isnull)));
			l->settings.backoff_max_us = jq_interval_us(
				DatumGetIntervalP(SPI_getbinval(tup, desc, 6, &isnull)));
		}
		l->attempt = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
		l->max_attempts = DatumGetInt32(SPI_getbinval(tup, desc, 2, &isnull));
		l->crashes = DatumGetInt32(SPI_getbinval(tup, desc, 3, &isnull));
		backoff = SPI_getbinval(tup, desc, 7, &isnull);
		if (!isnull)
			l->service =
				MemoryContextStrdup(context, TextDatumGetCString(backoff));
	}
	jq_owner_end(&state);
	return found;
}

JqRecorded
jq_record_failure(JqTable *t, int64 id, const JqFailure *f, TimestampTz *run_at)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_job SET attempt = $2, run_at = $3, crashes = 0,"
		" errors = (SELECT jsonb_agg(e ORDER BY n) FROM"
		"  jsonb_array_elements(coalesce(errors, '[]') || jsonb_strip_nulls("
		"   jsonb_build_object('attempt', $2, 'at', clock_timestamp(),"
		"    'sqlstate', $4::text, 'error', $5::text, 'detail', $6::text,"
		"    'hint', $7::text, 'context', $8::text)))"
		"  WITH ORDINALITY AS x(e, n)"
		"  WHERE n > jsonb_array_length(coalesce(errors, '[]')) + 1 - $9)"
		" WHERE id = $1";
	Oid types[9] = {INT8OID, INT2OID, TIMESTAMPTZOID, TEXTOID, TEXTOID,
					TEXTOID, TEXTOID, TEXTOID,		  INT4OID};
	Datum values[9];
	char flags[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	JqOwnerState state;
	Locked l;
	int attempt;
	bool dead;
	const char *reason = f->reason;

	if (!lock_row(t, id, &l))
		return JQ_RECORD_GONE;
	attempt = Min(l.attempt + 1, PG_INT16_MAX);
	dead = f->final || attempt >= l.max_attempts;
	*run_at = f->retry_at != 0 ?
				  f->retry_at :
				  GetCurrentTimestamp() + jq_backoff(attempt, &l.settings);
	if (l.service != NULL)
		switch (jq_service_failed(t, id, l.service, f, &reason))
		{
			case JQ_SERVICE_RETRY:
				*run_at = GetCurrentTimestamp();
				dead = false;
				break;
			case JQ_SERVICE_STALL:
				*run_at = DT_NOEND;
				dead = false;
				break;
			case JQ_SERVICE_DROP:
				dead = true;
				break;
		}

	values[0] = Int64GetDatum(id);
	values[1] = Int16GetDatum(attempt);
	values[2] = TimestampTzGetDatum(*run_at);
	values[3] = opt_text(f->sqlstate, &flags[3]);
	values[4] = cut_text(f->message, &flags[4]);
	values[5] = cut_text(f->detail, &flags[5]);
	values[6] = cut_text(f->hint, &flags[6]);
	values[7] = cut_text(f->context, &flags[7]);
	values[8] = Int32GetDatum(MAX_ERRORS);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 9, types, values, flags);
	jq_owner_end(&state);
	if (!dead)
		return JQ_RECORD_RETRY;
	jq_archive(t, id, "dead",
			   reason != NULL ?
				   reason :
				   psprintf("attempt %d of %d failed", attempt, l.max_attempts),
			   f->started_at, (Datum) 0);
	return JQ_RECORD_DEAD;
}

bool
jq_record_crash(JqTable *t, int64 id, bool alone)
{
	Oid types[2] = {INT8OID, INT2OID};
	Datum values[2];
	JqOwnerState state;
	Locked l;
	int crashes;
	JqFailure f;

	if (!lock_row(t, id, &l))
		return false;
	crashes = Min(l.crashes + 1, PG_INT16_MAX);
	values[0] = Int64GetDatum(id);
	values[1] = Int16GetDatum(crashes);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, "UPDATE %s.jobqueue_job SET crashes = $2 WHERE id = $1",
					 2, types, values, NULL);
	jq_owner_end(&state);
	if (crashes < 2 || !alone)
		return false;
	memset(&f, 0, sizeof(f));
	f.message = f.reason = "the server crashed twice while it ran this job";
	f.final = true;
	if (l.service != NULL)
		(void) jq_service_failed(t, id, l.service, &f, &f.reason);
	return jq_archive(t, id, "dead", f.reason, 0, (Datum) 0);
}
