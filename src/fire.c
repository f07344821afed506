/*
 * fire.c
 *		Part of a scheduler: schedules that are due.
 *
 * A schedule has dealt with all instants up to "seen_to"; "next_run", which is
 * indexed, says when to look at it again.  What is due then follows from the
 * expression, and not from next_run: so rows that come from elsewhere, zones that
 * have changed and clocks that have been set need nothing special.
 *
 *		nothing due after seen_to		only next_run is set
 *		the last instant is on time		it fires; what was due before it was missed
 *		the last instant is late		it was missed as well
 *
 * What was missed, while the server was down or the clock jumped, is made up for
 * as catch_up says.  An instant is on time for a minute, if the server was there.
 *
 * The jobs and the new seen_to are one transaction, so no instant fires twice.  A
 * clock that is set back makes no difference: what it shows again is not after
 * seen_to.
 *
 * What keeps a schedule from firing (its function is gone, its owner may not call
 * it, the owner's quota is reached) is written into the row, and it fires again
 * at the next instant.  One whose time zone is unknown is looked at again in an
 * hour.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "cronnext.h"
#include "database.h"
#include "executor/spi.h"
#include "failure.h"
#include "grant.h"
#include "miscadmin.h"
#include "pause.h"
#include "quota.h"
#include "runjob.h"
#include "scheduler.h"
#include "schedulerow.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define FIRE_BATCH 100	  /* schedules in one transaction */
#define MAX_CATCH_UP 1000 /* jobs of one that missed more */
#define ON_TIME_US USECS_PER_MINUTE

static TimestampTz fired_at; /* when the last look was */

/* what becomes of a schedule */
typedef struct Verdict
{
	int n;				   /* jobs to be enqueued */
	TimestampTz *instants; /* that they are for, the last one first */
	bool apart;			   /* one of them is not to run beside another */
	bool pause;
	TimestampTz seen_to;
	TimestampTz next_run;
	TimestampTz last_run; /* DT_NOBEGIN: as it was */
	int64 last_job;		  /* 0: as it was */
	const char *outcome;  /* NULL: as it was */
	const char *error;
} Verdict;

/* ---------------------------------------------------------------- verdict */

/* is it there on time for what is due then? */
static bool
on_time(TimestampTz instant, TimestampTz now)
{
	return now - instant <= ON_TIME_US &&
		   jq_clock_to_real(instant) >= jq_shared->start_time;
}

/* the instants of (seen_to, last], at most MAX_CATCH_UP */
static void
find_due(const JqSchedule *s, const JqCron *cron, pg_tz *zone, TimestampTz last,
		 Verdict *v)
{
	int size = 1;

	v->instants = palloc(sizeof(TimestampTz));
	do
	{
		CHECK_FOR_INTERRUPTS();
		if (v->n == size)
			v->instants =
				repalloc(v->instants, (size *= 2) * sizeof(TimestampTz));
		v->instants[v->n++] = last;
	} while (s->catch_up == 'a' && v->n < MAX_CATCH_UP &&
			 jq_cron_previous(cron, s->started_at, s->seen_to, last - 1, zone,
							  &last));
}

static void
judge(const JqSchedule *s, TimestampTz now, Verdict *v)
{
	JqCron cron;
	pg_tz *zone;
	char *error;
	TimestampTz last;

	memset(v, 0, sizeof(*v));
	v->seen_to = s->seen_to;
	v->next_run = DT_NOEND;
	v->last_run = DT_NOBEGIN;
	if (!jq_schedule_when(s, &cron, &zone, &error))
	{
		/* a zone comes back with a package of the system */
		v->next_run = now + USECS_PER_HOUR;
		v->error = error;
		return;
	}
	if (!jq_cron_next(&cron, s->started_at, s->seen_to, zone, &v->next_run))
	{
		v->next_run = DT_NOEND;
		return;
	}
	if (v->next_run > now)
		return;
	last = v->next_run;
	if (!jq_cron_next(&cron, s->started_at, last, zone, &v->next_run))
		v->next_run = DT_NOEND;
	if (v->next_run <= now)
	{
		(void) jq_cron_previous(&cron, s->started_at, s->seen_to, now, zone,
								&last);
		if (!jq_cron_next(&cron, s->started_at, last, zone, &v->next_run))
			v->next_run = DT_NOEND;
	}
	v->seen_to = last;
	if (s->catch_up != 'n' || on_time(last, now))
		find_due(s, &cron, zone, last, v);
	v->apart = s->overlap == 'q' || (s->overlap == 's' && v->n > 1);
	v->outcome = v->n > 0 ? "enqueued" : "missed";
	if (v->n > 0)
		v->last_run = last;
}

/* in a subtransaction: why the jobs cannot be enqueued; NULL: they can */
static char *
check(JqTable *t, const JqSchedule *s, int n)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (!jq_may_schedule(s->owner))
			ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
							errmsg("its owner may not make schedules any more"),
							errhint("Give the role the level \"use\".")));
		if (DatumGetChar(s->values[JQ_COL_KIND - 1]) == JQ_KIND_FUNCTION)
		{
			Oid user;
			int sec_context;

			GetUserIdAndSecContext(&user, &sec_context);
			SetUserIdAndSecContext(s->owner,
								   sec_context | SECURITY_LOCAL_USERID_CHANGE);
			jq_execute_check(TextDatumGetCString(s->values[JQ_COL_COMMAND - 1]),
							 DatumGetObjectId(
								 s->values[JQ_COL_FUNC_OWNER - 1]));
			SetUserIdAndSecContext(user, sec_context);
		}
		jq_quota_take(t, s->owner, n);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *e;

		MemoryContextSwitchTo(context);
		e = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		/* somebody has cancelled what we do, which is not its fault */
		if (e->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(e);
		error = e->message;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* which of the schedules have a job that has not ended? */
static void
find_alive(JqTable *t, const JqSchedule *s, int n, bool *alive)
{
	static JqKept kept;
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	Datum *ids = palloc(n * sizeof(Datum));
	JqOwnerState state;
	uint64 i;
	int m = 0, j;

	memset(alive, false, n);
	for (j = 0; j < n; j++)
		if (s[j].overlap == 's' && s[j].last_job != 0)
			ids[m++] = Int64GetDatum(s[j].last_job);
	if (m == 0)
		return;
	values[0] = PointerGetDatum(
		construct_array(ids, m, INT8OID, 8, true, TYPALIGN_DOUBLE));
	jq_owner_begin(t, &state);
	jq_owner_execute_kept(t, &kept,
						  "SELECT id FROM %s.jobqueue_job WHERE id = ANY($1)",
						  1, types, values, NULL);
	for (i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		int64 id =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));

		for (j = 0; j < n; j++)
			if (s[j].last_job == id && s[j].overlap == 's')
				alive[j] = true;
	}
	jq_owner_end(&state);
}

static void
refused(const JqSchedule *s, Verdict *v, const char *error)
{
	v->n = 0;
	v->last_run = DT_NOBEGIN;
	v->outcome = "error";
	v->error = error;
	ereport(LOG, (errmsg("schedule \"%s\" of role with OID %u did not fire: %s",
						 s->name, s->owner, error)));
}

/* the jobs of a schedule that is due, or why there are none */
static void
carry_out(JqTable *t, const JqSchedule *s, bool alive, Verdict *v)
{
	int n = v->n;
	char *error;

	if (v->error != NULL)
		refused(s, v, v->error);
	if (v->n > 0 && alive)
	{
		v->n = 0;
		v->last_run = DT_NOBEGIN;
		v->outcome = "skipped";
	}
	if (v->n == 0)
		return;
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(s->owner)))
	{
		refused(s, v, "its owner does not exist any more");
		v->pause = true;
		return;
	}
	error = check(t, s, v->n);
	if (error != NULL)
	{
		refused(s, v, error);
		return;
	}
	while (n > 0)
		v->last_job =
			jq_schedule_write_job(t, s, v->instants[--n], v->apart, true);
}

/* ------------------------------------------------------------------- rows */

/*
 * A schedule of a paused role waits as if the server were down; when the role is
 * resumed all are looked at.
 */
static const char *
not_of_paused_role(JqTable *t)
{
	return OidIsValid(t->paused_role) ?
			   " AND NOT EXISTS (SELECT FROM %s.jobqueue_paused_role p"
			   " WHERE p.role::oid = s.owner::oid)" :
			   "";
}

/* those that are due from a place in the index on */
static JqSchedule *
read_due(JqTable *t, TimestampTz now, TimestampTz from, int64 from_id,
		 int limit, bool lock, int *n)
{
	static JqKept locking;
	static JqKept looking;
	const char *sql = psprintf(
		"SELECT %s FROM %%s.jobqueue_schedule s WHERE NOT paused"
		" AND next_run <= $1 AND (next_run, id) > ($2, $3) AND home = $4%s"
		" ORDER BY next_run, id LIMIT $5%s",
		jq_schedule_columns, not_of_paused_role(t),
		lock ? " FOR UPDATE SKIP LOCKED" : "");
	MemoryContext context = CurrentMemoryContext;
	Oid types[5] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID};
	Datum values[5];
	JqOwnerState state;
	JqSchedule *s;
	int i;

	values[0] = TimestampTzGetDatum(now);
	values[1] = TimestampTzGetDatum(from);
	values[2] = Int64GetDatum(from_id);
	values[3] = Int64GetDatum(t->home);
	values[4] = Int64GetDatum(limit);
	jq_owner_begin(t, &state);
	jq_owner_execute_kept(t, lock ? &locking : &looking, sql, 5, types, values,
						  NULL);
	*n = (int) SPI_processed;
	s = MemoryContextAlloc(context, Max(*n, 1) * sizeof(JqSchedule));
	for (i = 0; i < *n; i++)
		jq_schedule_of_row(i, context, &s[i]);
	jq_owner_end(&state);
	return s;
}

static Datum
array_of(Datum *elems, bool *nulls, int n, Oid type)
{
	int dims[1] = {n};
	int lower[1] = {1};
	bool byval = type != TIDOID && type != TEXTOID;

	return PointerGetDatum(
		construct_md_array(elems, nulls, 1, dims, lower, type,
						   type == TEXTOID ? -1 :
						   type == TIDOID  ? (int) sizeof(ItemPointerData) :
						   type == BOOLOID ? 1 :
											 8,
						   byval,
						   type == TEXTOID ? TYPALIGN_INT :
						   type == TIDOID  ? TYPALIGN_SHORT :
						   type == BOOLOID ? TYPALIGN_CHAR :
											 TYPALIGN_DOUBLE));
}

static void
write_verdicts(JqTable *t, const JqSchedule *s, const Verdict *v, int n)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_schedule s SET seen_to = u.seen_to,"
		" next_run = u.next_run, paused = u.pause,"
		" last_run = coalesce(u.last_run, s.last_run),"
		" last_job = coalesce(u.last_job, s.last_job),"
		" last_outcome = coalesce(u.outcome, s.last_outcome),"
		" last_error = CASE WHEN u.outcome IS NULL THEN s.last_error"
		"  ELSE u.error END,"
		" runs = s.runs + u.n FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)"
		" AS u (tid, seen_to, next_run, pause, last_run, last_job, outcome,"
		"  error, n) WHERE s.ctid = u.tid";
	static JqKept kept;
	static const Oid elem[9] = {TIDOID,	 TIMESTAMPTZOID, TIMESTAMPTZOID,
								BOOLOID, TIMESTAMPTZOID, INT8OID,
								TEXTOID, TEXTOID,		 INT8OID};
	Oid types[9] = {TIDARRAYOID,  TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
					BOOLARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID,
					TEXTARRAYOID, TEXTARRAYOID,		   INT8ARRAYOID};
	Datum *d = palloc(9 * n * sizeof(Datum));
	bool *nulls = palloc0(9 * n * sizeof(bool));
	Datum values[9];
	JqOwnerState state;
	int i;

#define CELL(column) ((column) *n + i)
	for (i = 0; i < n; i++)
	{
		d[CELL(0)] = PointerGetDatum(&s[i].tid);
		d[CELL(1)] = TimestampTzGetDatum(v[i].seen_to);
		d[CELL(2)] = TimestampTzGetDatum(v[i].next_run);
		d[CELL(3)] = BoolGetDatum(v[i].pause);
		d[CELL(4)] = TimestampTzGetDatum(v[i].last_run);
		nulls[CELL(4)] = v[i].last_run == DT_NOBEGIN;
		d[CELL(5)] = Int64GetDatum(v[i].last_job);
		nulls[CELL(5)] = v[i].last_job == 0;
		nulls[CELL(6)] = v[i].outcome == NULL;
		if (v[i].outcome != NULL)
			d[CELL(6)] = CStringGetTextDatum(v[i].outcome);
		nulls[CELL(7)] = v[i].error == NULL;
		if (v[i].error != NULL)
			d[CELL(7)] = CStringGetTextDatum(v[i].error);
		d[CELL(8)] = Int64GetDatum(v[i].n);
	}
#undef CELL
	for (i = 0; i < 9; i++)
		values[i] = array_of(&d[i * n], &nulls[i * n], n, elem[i]);
	jq_owner_begin(t, &state);
	jq_owner_execute_kept(t, &kept, sql, 9, types, values, NULL);
	jq_owner_end(&state);
}

/* ------------------------------------------------------------------- fire */

typedef struct Place
{
	TimestampTz next_run;
	int64 id;
} Place;

/*
 * Fire up to limit schedules after that place in the index; returns how many were
 * there.  blame: instead of firing, note that the first one cannot.
 */
static int
fire_some(TimestampTz now, Place *place, int limit, const char *blame)
{
	JqTable *t = jq_sched_begin();
	JqSchedule *s;
	Verdict *v;
	bool *alive;
	int n, i;

	if (t == NULL || t->meta_database != MyDatabaseId)
	{
		jq_sched_commit();
		return 0;
	}
	s = read_due(t, now, place->next_run, place->id, limit, true, &n);
	if (n > 0)
	{
		JQ_PAUSE("schedule-locked");
		v = palloc(n * sizeof(Verdict));
		alive = palloc(n * sizeof(bool));
		find_alive(t, s, n, alive);
		for (i = 0; i < n; i++)
		{
			judge(&s[i], now, &v[i]);
			if (blame != NULL)
				refused(&s[i], &v[i], blame);
			else
				carry_out(t, &s[i], alive[i], &v[i]);
		}
		write_verdicts(t, s, v, n);
		JQ_PAUSE("schedule-before-commit");
	}
	jq_sched_commit();
	if (n > 0)
	{
		place->next_run = s[n - 1].next_run;
		place->id = s[n - 1].id;
	}
	MemoryContextReset(jq_sched_context);
	return n;
}

/* the same; false: an error, of which *error is the text, for a while */
static bool
fire_safely(TimestampTz now, Place *place, int limit, int *n, char **error)
{
	Place at = *place;
	volatile bool ok = true;

	PG_TRY();
	{
		*n = fire_some(now, &at, limit, NULL);
		*place = at;
	}
	PG_CATCH();
	{
		ErrorData *e;

		MemoryContextSwitchTo(jq_sched_context);
		e = CopyErrorData();
		jq_abort_bookkeeping();
		RESUME_INTERRUPTS();
		MemoryContextSwitchTo(jq_sched_context);
		*error = e->message;
		ok = false;
	}
	PG_END_TRY();
	return ok;
}

void
jq_sched_fire(TimestampTz from)
{
	TimestampTz now = jq_clock_now();
	Place place;
	char *error;
	int n, i;

	fired_at = now;
	place.next_run = from == DT_NOBEGIN ? DT_NOBEGIN : from - 1;
	place.id = from == DT_NOBEGIN ? PG_INT64_MIN : PG_INT64_MAX;
	do
	{
		if (!fire_safely(now, &place, FIRE_BATCH, &n, &error))
		{
			/* one of them is to blame */
			for (i = 0; i < FIRE_BATCH; i++)
			{
				if (!fire_safely(now, &place, 1, &n, &error))
					n = fire_some(now, &place, 1, pstrdup(error));
				if (n == 0)
					return;
			}
			n = FIRE_BATCH;
		}
		CHECK_FOR_INTERRUPTS();
	} while (n == FIRE_BATCH);
}

/*
 * A process that has just been started for an instant needs some milliseconds for
 * plans, zones and the catalogs' caches.  So it does beforehand what it will do
 * then, as far as that changes nothing.
 */
void
jq_sched_rehearse(TimestampTz next)
{
	JqTable *t = jq_sched_begin();
	JqSchedule *s;
	Verdict v;
	bool *alive;
	int n, i;

	if (t != NULL && t->meta_database == MyDatabaseId)
	{
		/* of that there is none */
		(void) read_due(t, DT_NOBEGIN, DT_NOEND, 0, 1, true, &n);
		s = read_due(t, next, next - 1, PG_INT64_MAX, FIRE_BATCH, false, &n);
		alive = palloc(Max(n, 1) * sizeof(bool));
		find_alive(t, s, n, alive);
		for (i = 0; i < n; i++)
		{
			judge(&s[i], next, &v);
			(void) check(t, &s[i], 0);
		}
		write_verdicts(t, NULL, NULL, 0);
	}
	jq_sched_commit();
}

/* when is one due, from then on? */
static TimestampTz
next_from(JqTable *t, TimestampTz from)
{
	static JqKept kept;
	Oid types[2] = {TIMESTAMPTZOID, INT8OID};
	Datum values[2];
	JqOwnerState state;
	TimestampTz next = DT_NOEND;

	values[0] = TimestampTzGetDatum(from);
	values[1] = Int64GetDatum(t->home);
	jq_owner_begin(t, &state);
	jq_owner_execute_kept(
		t, &kept,
		psprintf("SELECT min(next_run) FROM %%s.jobqueue_schedule s"
				 " WHERE NOT paused AND next_run >= $1 AND home = $2%s",
				 not_of_paused_role(t)),
		2, types, values, NULL);
	if (SPI_processed == 1)
	{
		bool isnull;
		Datum d = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
								&isnull);

		if (!isnull)
			next = DatumGetTimestampTz(d);
	}
	jq_owner_end(&state);
	return next;
}

/*
 * When is the next one due?  What should have fired by now, but did not as
 * somebody has the row locked, is looked at again in a while; the others do not
 * wait for that.
 */
void
jq_sched_find_next_schedule(TimestampTz from)
{
	JqTable *t = jq_sched_begin();
	TimestampTz next = DT_NOEND;
	bool locked = false;

	if (t != NULL && t->meta_database == MyDatabaseId)
	{
		next = next_from(t, from);
		locked = next <= fired_at;
		if (locked)
			next = next_from(t, fired_at + 1);
	}
	jq_sched_commit();
	if (locked)
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_SCHEDULES);
		jq_sched_again_in(1000);
	}
	if (next != DT_NOEND)
		jq_db_schedule(jq_sched_dbix, next);
}
