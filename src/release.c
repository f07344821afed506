/*
 * release.c
 *		Part of a scheduler: jobs that wait for others are let go, or cancelled.
 *
 *		waiting -> ready, scheduled	: none of the jobs it names lives, or is dead
 *									  or cancelled
 *		waiting -> cancelled		: one of them is dead or cancelled
 *
 * There is one scheduler in a database and nobody else does this, so that two
 * jobs that end at once cannot miss each other.  It is asked to look at rows that
 * have just come, and at jobs that have just ended; each time it looks anew, with
 * a snapshot taken after the request, so nothing depends on the order in which
 * the two arrive.
 *
 * The row's "after" is what counts.  jobqueue_dependency has an edge for each job
 * that a row still waits for; it exists to find the rows that wait for a job, and
 * is made and unmade here.  An edge goes when its job has ended, and a row of
 * which no edge is left is looked at.  Edges of rows that are gone go with the
 * jobs they point to.
 *
 * All is done in transactions of some hundred rows, also where one end cancels
 * one job after the other.  They are not flushed: what a crash takes back is
 * found again, as after a start all rows that wait are looked at.
 */
#include "postgres.h"

#include "access/xact.h"
#include "after.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "comeback.h"
#include "database.h"
#include "dependency.h"
#include "executor/spi.h"
#include "failure.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "scheduler.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define RETRY_MS 100	/* somebody has a row locked */
#define MAX_LOOKS 20000 /* ids looked up in one transaction */
#define MAX_REASON 400	/* bytes of the reason of another job */
#define SCAN_SHARE 10	/* looks at all rows take a tenth of the time */
#define SCAN_WAIT_MAX (2 * USECS_PER_SEC) /* but none waits longer for one */

/* a row that waits */
typedef struct Waiting
{
	JqFoundRow row;
	int64 *after;
	int nafter;
	int nlive;	  /* of these */
	int64 failed; /* one that is dead or cancelled; 0 = none */
	char *reason; /* of the end that follows */
	bool held;	  /* by us */
	bool done;
	bool cancelled;
} Waiting;

/* ids of jobs that have ended, whose edges are to be looked at */
typedef struct Ended
{
	int64 *ids;
	int n;
	int max;
} Ended;

static Ended ended; /* that are looked at */
/* requests that were taken, as they have little room where they are left */
static Ended asked;
static JqAfterRange asked_ranges[JQ_AFTER_RANGES];
static int nasked_ranges;
/* rows that somebody has locked, for when we look again */
static JqAfterRange later_ranges[JQ_AFTER_RANGES];
static int nlater_ranges;
static int64 useless; /* requests that found no edge, since the last rebuild */
static int64 waited_for; /* ids noted at the last rebuild */
static TimestampTz scan_not_before;

static void
make_room(Ended *e, int more)
{
	int max;

	if (e->ids != NULL && e->n + more <= e->max)
		return;
	max = Max(Max(1024, 2 * e->max), e->n + more);
	e->ids = e->ids == NULL ?
				 MemoryContextAlloc(TopMemoryContext, max * sizeof(int64)) :
				 repalloc_huge(e->ids, max * sizeof(int64));
	e->max = max;
}

static void
add_ended(int64 id)
{
	make_room(&ended, 1);
	ended.ids[ended.n++] = id;
}

static void
take_requests(void)
{
	JqAfterRange ranges[JQ_AFTER_RANGES];
	int nids, nranges;
	int i;

	make_room(&asked, JQ_AFTER_ENDED);
	jq_after_take(jq_sched_dbix, asked.ids + asked.n, &nids, ranges, &nranges);
	asked.n += nids;
	for (i = 0; i < nranges; i++)
		jq_after_add_range(asked_ranges, &nasked_ranges, ranges[i].first,
						   ranges[i].last);
}

static Datum
int8_array(const int64 *ids, int n)
{
	Datum *d = palloc(Max(n, 1) * sizeof(Datum));
	Datum result;
	int i;

	for (i = 0; i < n; i++)
		d[i] = Int64GetDatum(ids[i]);
	result = PointerGetDatum(
		construct_array(d, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	pfree(d);
	return result;
}

static int64
int8_column(uint64 row, int col)
{
	bool isnull;
	Datum d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col,
							&isnull);

	return isnull ? 0 : DatumGetInt64(d);
}

static bool
bool_column(uint64 row, int col)
{
	bool isnull;
	Datum d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col,
							&isnull);

	return !isnull && DatumGetBool(d);
}

static char *
text_column(uint64 row, int col)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col);
}

/*
 * A statement of this file, as jq_owner_execute() runs one, from a plan that is
 * kept: most of them look at a row or two.
 */
static void
execute(JqTable *t, const char *sql, int nargs, Oid *types, Datum *values)
{
	typedef struct KeptPlan
	{
		const char *sql; /* as it stands here */
		char schema[JQ_QUOTED_MAX];
		SPIPlanPtr plan;
	} KeptPlan;
	static KeptPlan plans[16];
	KeptPlan *p;
	int rc;

	for (p = plans; p->sql != sql && p->sql != NULL; p++)
		Assert(p < &plans[lengthof(plans) - 1]);
	if (p->plan != NULL && strcmp(p->schema, jq_table_schema(t)) != 0)
	{
		SPI_freeplan(p->plan);
		p->plan = NULL;
	}
	if (p->plan == NULL)
	{
		SPIPlanPtr plan = SPI_prepare(jq_owner_statement(t, sql), nargs, types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", sql,
				 SPI_result_code_string(SPI_result));
		p->plan = plan;
		p->sql = sql;
		strlcpy(p->schema, t->schema_name, sizeof(p->schema));
	}
	rc = SPI_execute_plan(p->plan, values, NULL, false, 0);
	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(rc));
}

/* a transaction of this file */
static JqTable *
begin(void)
{
	JqTable *t = jq_sched_begin();

	(void) set_config_option("synchronous_commit", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	return t != NULL && t->meta_database == MyDatabaseId ? t : NULL;
}

/*
 * Between two of them.  There may be many, and jobs that wait for nothing are
 * not to wait for all of them.
 */
static void
between(void)
{
	bool no_ends = jq_publish_no_ends;

	MemoryContextReset(jq_sched_context);
	take_requests();
	jq_publish_no_ends = false;
	jq_sched_serve_others(JQ_REQ_AFTER | JQ_REQ_AFTER_ALL);
	jq_publish_no_ends = no_ends;
}

/* ------------------------------------------------------------ what it takes */

/* the rows that a statement returned: JQ_SCHED_COLUMNS, after */
static Waiting *
waiting_rows(int *n)
{
	JqFoundRow *rows = jq_sched_rows(n);
	MemoryContext old = MemoryContextSwitchTo(jq_sched_context);
	Waiting *w = palloc0(Max(*n, 1) * sizeof(Waiting));
	int i;

	for (i = 0; i < *n; i++)
	{
		bool isnull;
		Datum d = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
								JQ_SCHED_NCOLUMNS + 1, &isnull);

		w[i].row = rows[i];
		if (!isnull)
			w[i].after = jq_after_ids(d, &w[i].nafter);
	}
	MemoryContextSwitchTo(old);
	return w;
}

/*
 * Why the job is cancelled.  What ended first stands in all that follow from it.
 * Roles that may not see a job are not told why it ended.
 */
static char *
reason_of(Oid role, int64 dep, Oid dep_owner, const char *state,
		  const char *reason)
{
	char *what =
		psprintf("job " INT64_FORMAT " that it waited for %s", dep,
				 strcmp(state, "dead") == 0 ? "is dead" : "was cancelled");
	int len;

	if (reason == NULL || !OidIsValid(dep_owner) ||
		!has_privs_of_role(role, dep_owner))
		return what;
	if (strncmp(reason, "job ", 4) == 0 &&
		strstr(reason, " that it waited for ") != NULL)
		return pstrdup(reason);
	if (strcmp(reason, "cancelled") == 0)
		return what;
	len = strlen(reason);
	return psprintf("%s: %.*s", what, pg_mbcliplen(reason, len, MAX_REASON),
					reason);
}

/* others may wait for the jobs that they name; before a look, see after.h */
static void
note_all(Waiting *w, int n)
{
	int i, k;

	for (i = 0; i < n; i++)
		for (k = 0; k < w[i].nafter; k++)
			jq_after_note(jq_sched_dbix, w[i].after[k]);
	pg_memory_barrier();
}

/* which of the jobs that they name live, are dead or cancelled? */
static void
look_up(JqTable *t, Waiting *w, int n)
{
	static const char *const sql =
		"SELECT x.i, x.dep, d.id IS NOT NULL, a.state, a.reason, a.owner::oid"
		" FROM unnest($1::int[], $2::bigint[]) x(i, dep)"
		" LEFT JOIN %s.jobqueue_job d ON d.id = x.dep"
		" LEFT JOIN %s.jobqueue_archive a"
		"  ON a.id = x.dep AND a.state <> 'completed'"
		" WHERE d.id IS NOT NULL OR a.id IS NOT NULL";
	Oid types[2] = {INT4ARRAYOID, INT8ARRAYOID};
	Datum values[2];
	JqOwnerState state;
	Datum *places;
	int64 *deps;
	int total = 0;
	int i, k;
	uint64 r;

	for (i = 0; i < n; i++)
		total += w[i].nafter;
	places = palloc(Max(total, 1) * sizeof(Datum));
	deps = palloc(Max(total, 1) * sizeof(int64));
	total = 0;
	for (i = 0; i < n; i++)
		for (k = 0; k < w[i].nafter; k++)
		{
			places[total] = Int32GetDatum(i);
			deps[total++] = w[i].after[k];
		}
	note_all(w, n);
	JQ_PAUSE("after-before-look");
	values[0] = PointerGetDatum(
		construct_array(places, total, INT4OID, 4, true, TYPALIGN_INT));
	values[1] = int8_array(deps, total);
	jq_owner_begin(t, &state);
	execute(t, sql, 2, types, values);
	JQ_PAUSE("after-looked");
	for (i = 0; i < n; i++)
		w[i].nlive = 0;
	for (r = 0; r < SPI_processed; r++)
	{
		bool isnull;
		Waiting *one =
			&w[DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[r],
										   SPI_tuptable->tupdesc, 1, &isnull))];
		int64 dep = int8_column(r, 2);

		if (bool_column(r, 3))
			one->after[one->nlive++] = dep; /* those before are not needed */
		else if (one->failed == 0)
		{
			Datum owner = SPI_getbinval(SPI_tuptable->vals[r],
										SPI_tuptable->tupdesc, 6, &isnull);
			MemoryContext old = MemoryContextSwitchTo(jq_sched_context);

			one->failed = dep;
			one->reason =
				reason_of(one->row.owner, dep, DatumGetObjectId(owner),
						  text_column(r, 4), text_column(r, 5));
			MemoryContextSwitchTo(old);
		}
	}
	jq_owner_end(&state);
}

/* -------------------------------------------------------------- what it does */

/* the row is ours until the transaction ends; false: somebody acts on it */
static bool
hold(Waiting *w)
{
	if (!w->held && jq_claim_hold(MyDatabaseId, w->row.lane_role, w->row.queue,
								  w->row.item.id) == JQ_HOLD_DONE)
	{
		jq_publish_held(w->row.lane_role, w->row.queue, &w->row.item,
						w->row.run_at);
		w->held = true;
	}
	return w->held;
}

/* look at the row again, presently */
static void
again(int64 id)
{
	jq_after_add_range(later_ranges, &nlater_ranges, id, id);
	/* whoever asks himself and is woken by that never sleeps */
	jq_db_request_quietly(jq_sched_dbix, JQ_REQ_AFTER);
	jq_sched_again_in(RETRY_MS);
}

static void
add_edges(JqTable *t, Waiting *w, int n)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_dependency (dep, job)"
		" SELECT d, j FROM unnest($1, $2) x(d, j)"
		" ON CONFLICT DO NOTHING";
	Oid types[2] = {INT8ARRAYOID, INT8ARRAYOID};
	Datum values[2];
	JqOwnerState state;
	int64 *jobs;
	int64 *deps;
	int total = 0;
	int i, k;

	for (i = 0; i < n; i++)
		total += w[i].failed == 0 ? w[i].nlive : 0;
	if (total == 0)
		return;
	jobs = palloc(total * sizeof(int64));
	deps = palloc(total * sizeof(int64));
	total = 0;
	for (i = 0; i < n; i++)
		for (k = 0; w[i].failed == 0 && k < w[i].nlive; k++)
		{
			jobs[total] = w[i].row.item.id;
			deps[total++] = w[i].after[k];
		}
	values[0] = int8_array(deps, total);
	values[1] = int8_array(jobs, total);
	jq_owner_begin(t, &state);
	execute(t, sql, 2, types, values);
	jq_owner_end(&state);
}

/* the row with that id, which is there */
static Waiting *
find(Waiting *w, int n, int64 id)
{
	static int at; /* mostly they come in order */
	int i;

	for (i = 0; i < n; i++)
	{
		at = at + 1 < n ? at + 1 : 0;
		if (w[at].row.item.id == id)
			return &w[at];
	}
	elog(ERROR, "row of job " INT64_FORMAT " was not asked for", id);
}

/* those that somebody else has locked are not waited for, here and below */
static void
let_go(JqTable *t, Waiting *w, int n)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_job SET after_run_at = $2,"
		" run_at = CASE WHEN after_run_at > $2 THEN after_run_at END"
		" WHERE id IN (SELECT id FROM %s.jobqueue_job WHERE id = ANY ($1)"
		"  AND " JQ_ROW_WAITS " FOR UPDATE SKIP LOCKED)"
		" RETURNING " JQ_SCHED_COLUMNS;
	Oid types[2] = {INT8ARRAYOID, TIMESTAMPTZOID};
	Datum values[2];
	JqOwnerState state;
	JqFoundRow *rows;
	int64 *ids = palloc(n * sizeof(int64));
	int m = 0;
	int i;

	for (i = 0; i < n; i++)
		if (w[i].failed == 0 && w[i].nlive == 0 && hold(&w[i]))
			ids[m++] = w[i].row.item.id;
	if (m == 0)
		return;
	values[0] = int8_array(ids, m);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	jq_owner_begin(t, &state);
	execute(t, sql, 2, types, values);
	rows = jq_sched_rows(&m);
	jq_owner_end(&state);
	for (i = 0; i < m; i++)
	{
		jq_publish_row(rows[i].lane_role, rows[i].queue, &rows[i].item,
					   rows[i].run_at);
		find(w, n, rows[i].item.id)->done = true;
	}
}

static void
cancel(JqTable *t, Waiting *w, int n)
{
	static const char *const sql =
		"SELECT id FROM %s.jobqueue_job WHERE id = ANY ($1)"
		" AND " JQ_ROW_WAITS " FOR UPDATE SKIP LOCKED";
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	JqOwnerState state;
	int64 *ids = palloc(n * sizeof(int64));
	int m = 0;
	int i;

	for (i = 0; i < n; i++)
		if (w[i].failed != 0 && hold(&w[i]))
			ids[m++] = w[i].row.item.id;
	if (m == 0)
		return;
	values[0] = int8_array(ids, m);
	jq_owner_begin(t, &state);
	execute(t, sql, 1, types, values);
	m = (int) SPI_processed;
	for (i = 0; i < m; i++)
		ids[i] = int8_column(i, 1);
	jq_owner_end(&state);
	for (i = 0; i < m; i++)
	{
		Waiting *one = find(w, n, ids[i]);

		if (!jq_archive(t, ids[i], "cancelled", one->reason, 0, (Datum) 0))
			continue;
		one->done = one->cancelled = true;
		add_ended(ids[i]);
	}
}

/* let go, cancel or leave these rows; edges: they may lack some */
static void
settle(JqTable *t, Waiting *w, int n, bool edges)
{
	int i;

	if (n == 0)
		return;
	look_up(t, w, n);
	if (edges)
		add_edges(t, w, n);
	let_go(t, w, n);
	cancel(t, w, n);
	for (i = 0; i < n; i++)
		if (!w[i].done && (w[i].failed != 0 || w[i].nlive == 0))
			again(w[i].row.item.id);
}

/* what is held and does not wait any more is not ours, and may be nobody's */
static void
give_back(JqTable *t, const Waiting *w, int n)
{
	int i;

	for (i = 0; i < n; i++)
	{
		if (!w[i].held || w[i].done)
			continue;
		jq_look_prepare(t);
		HOLD_INTERRUPTS();
		jq_publish_not_held(w[i].row.item.id);
		jq_look_again(t, w[i].row.item.id, false);
		RESUME_INTERRUPTS();
	}
}

/* the transaction has committed */
static void
note_cancelled(const Waiting *w, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (w[i].cancelled)
			jq_sched_note_end(w[i].row.item.id, w[i].row.owner, w[i].row.queue,
							  JQ_CANCELLED, 0, 0, GetCurrentTimestamp(),
							  w[i].reason);
}

/* ------------------------------------------------------- jobs that have ended */

#define SELECT_WAITING                                          \
	"SELECT " JQ_SCHED_COLUMNS ", after FROM %s.jobqueue_job j" \
	" WHERE " JQ_ROW_WAITS " AND home = "

/*
 * Edges to these jobs go, in order of the ids, as far as the jobs have ended; at
 * most a batch of them.  Returns how many; the rows that are to be looked at now,
 * with them.
 */
static int
take_edges(JqTable *t, const int64 *ids, int n, int64 *last_dep,
		   int64 *last_job, Waiting **rows, int *nrows)
{
	static const char *const take =
		/* in order of the array; not a sort of all that there are */
		"WITH e AS MATERIALIZED (SELECT x.dep, x.job FROM unnest($1) d,"
		"  LATERAL (SELECT dep, job FROM %s.jobqueue_dependency"
		"   WHERE dep = d AND (dep, job) > ($2, $3)"
		"   ORDER BY dep, job LIMIT 500) x WHERE d >= $2 LIMIT 500),"
		" gone AS (DELETE FROM %s.jobqueue_dependency x USING e"
		"  WHERE x.dep = e.dep AND x.job = e.job AND NOT EXISTS"
		"   (SELECT FROM %s.jobqueue_job d WHERE d.id = e.dep)"
		"  RETURNING x.dep, x.job)"
		" SELECT e.dep, e.job, gone.job IS NOT NULL,"
		"  EXISTS (SELECT FROM %s.jobqueue_archive a"
		"   WHERE a.id = gone.dep AND a.state <> 'completed')"
		" FROM e LEFT JOIN gone ON gone.dep = e.dep AND gone.job = e.job"
		" ORDER BY e.dep, e.job";
	static const char *const look =
		/* the last one, as what is at the front of the index has just gone */
		SELECT_WAITING "$1 AND id = ANY ($2) AND (id = ANY ($3) OR"
					   " (SELECT max(e.dep) FROM %s.jobqueue_dependency e"
					   "  WHERE e.job = j.id) IS NULL)";
	Oid types[3] = {INT8ARRAYOID, INT8OID, INT8OID};
	Oid look_types[3] = {INT8OID, INT8ARRAYOID, INT8ARRAYOID};
	Datum values[3];
	JqOwnerState state;
	int64 *jobs = palloc(JQ_SCHED_BATCH * sizeof(int64));
	int64 *failed = palloc(JQ_SCHED_BATCH * sizeof(int64));
	int njobs = 0, nfailed = 0;
	int found;
	int i;

	*nrows = 0;
	values[0] = int8_array(ids, n);
	values[1] = Int64GetDatum(*last_dep);
	values[2] = Int64GetDatum(*last_job);
	jq_owner_begin(t, &state);
	execute(t, take, 3, types, values);
	found = (int) SPI_processed;
	for (i = 0; i < found; i++)
	{
		*last_dep = int8_column(i, 1);
		*last_job = int8_column(i, 2);
		if (!bool_column(i, 3))
			continue; /* it lives, after all: a retry */
		if (bool_column(i, 4))
			failed[nfailed++] = *last_job;
		jobs[njobs++] = *last_job;
	}
	if (njobs > 0)
	{
		values[0] = Int64GetDatum(t->home);
		values[1] = int8_array(jobs, njobs);
		values[2] = int8_array(failed, nfailed);
		execute(t, look, 3, look_types, values);
		*rows = waiting_rows(nrows);
	}
	jq_owner_end(&state);
	return found;
}

static int
compare_ids(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/*
 * Look at all rows that wait for jobs of the list, which grows while we cancel.
 * One transaction does several steps if they are small.
 */
static void
settle_ended(void)
{
	int first = 0;
	int part = 0; /* of the list, until all of its edges were looked at */
	bool more = ended.n > 0;
	/* edges of one that lives after all are passed over */
	int64 last_dep = PG_INT64_MIN;
	int64 last_job = PG_INT64_MIN;

	while (more)
	{
		JqTable *t = begin();
		Waiting *lists[64];
		int counts[64];
		int nlists = 0;
		int rows = 0;
		int i;

		if (t == NULL)
		{
			jq_sched_commit();
			return;
		}
		while (first < ended.n && nlists < 64 && rows < JQ_SCHED_BATCH)
		{
			int n = part > 0 ? part : Min(ended.n - first, JQ_SCHED_BATCH);
			int found;
			int64 *ids = palloc(n * sizeof(int64));

			part = n;
			memcpy(ids, &ended.ids[first], n * sizeof(int64));
			qsort(ids, n, sizeof(int64), compare_ids);
			found = take_edges(t, ids, n, &last_dep, &last_job, &lists[nlists],
							   &counts[nlists]);
			if (found < JQ_SCHED_BATCH)
			{
				first += n; /* that was all of them */
				part = 0;
				last_dep = last_job = PG_INT64_MIN;
				useless += found == 0 ? n : 0;
			}
			rows += found;
			if (counts[nlists] > 0)
			{
				settle(t, lists[nlists], counts[nlists], true);
				rows += counts[nlists];
				nlists++;
				CommandCounterIncrement();
			}
		}
		JQ_PAUSE("after-before-commit");
		for (i = 0; i < nlists; i++)
			give_back(t, lists[i], counts[i]);
		jq_sched_commit();
		for (i = 0; i < nlists; i++)
			note_cancelled(lists[i], counts[i]);
		between();
		more = first < ended.n;
	}
	ended.n = 0;
}

/* --------------------------------------------------------- rows that have come */

/* Rows of these ids that wait.  Returns how many ids they wait for, at most. */
static int64
settle_range(int64 first, int64 last, bool all)
{
	static const char *const sql =
		SELECT_WAITING "$1 AND run_at = 'infinity' AND id >= $2 AND id <= $3"
					   " ORDER BY id LIMIT $4";
	static const char *const clean =
		"DELETE FROM %s.jobqueue_dependency e WHERE e.job = ANY ($1)"
		" AND NOT EXISTS (SELECT FROM %s.jobqueue_job d WHERE d.id = e.dep)";
	int64 noted = 0;
	int limit = JQ_SCHED_BATCH; /* rows read; what is left was read in vain */
	bool more;

	do
	{
		JqTable *t = begin();
		Oid types[4] = {INT8OID, INT8OID, INT8OID, INT8OID};
		Datum values[4];
		JqOwnerState state;
		Waiting *w;
		int64 *ids;
		int n, m, looks = 0;
		int i;

		if (t == NULL)
		{
			jq_sched_commit();
			return noted;
		}
		values[0] = Int64GetDatum(t->home);
		values[1] = Int64GetDatum(first);
		values[2] = Int64GetDatum(last);
		values[3] = Int64GetDatum(limit);
		jq_owner_begin(t, &state);
		execute(t, sql, 4, types, values);
		w = waiting_rows(&n);
		jq_owner_end(&state);
		for (m = 0; m < n && (m == 0 || looks + w[m].nafter <= MAX_LOOKS); m++)
			looks += w[m].nafter;
		noted += looks;
		ids = palloc(Max(m, 1) * sizeof(int64));
		for (i = 0; i < m; i++)
			ids[i] = w[i].row.item.id;
		/*
		 * Before the look: an edge to a job that ends after it is what its end
		 * finds the row by.  That it asks for, as the filter has its bits by
		 * then; what ended before, when it may have lacked them, is cleaned.
		 */
		if (all && m > 0)
		{
			Oid clean_types[1] = {INT8ARRAYOID};

			note_all(w, m);
			values[0] = int8_array(ids, m);
			jq_owner_begin(t, &state);
			execute(t, clean, 1, clean_types, values);
			jq_owner_end(&state);
			JQ_PAUSE("after-cleaned");
		}
		settle(t, w, m, true);
		JQ_PAUSE("after-before-commit");
		give_back(t, w, m);
		jq_sched_commit();
		note_cancelled(w, m);
		if (m > 0)
			first = w[m - 1].row.item.id + 1;
		more = m < n || n == limit;
		limit = m < n ? m + 1 : Min(2 * limit, JQ_SCHED_BATCH);
		between();
	} while (more);
	return noted;
}

/* edges whose row waits no more */
static void
drop_stale_edges(void)
{
	static const char *const sql =
		"WITH e AS MATERIALIZED (SELECT dep, job FROM %s.jobqueue_dependency"
		"  WHERE (dep, job) > ($1, $2) ORDER BY dep, job LIMIT 5000),"
		" gone AS (DELETE FROM %s.jobqueue_dependency x USING e"
		"  WHERE x.dep = e.dep AND x.job = e.job AND NOT EXISTS"
		"   (SELECT FROM %s.jobqueue_job j WHERE j.id = e.job"
		"    AND " JQ_ROW_WAITS "))"
		" SELECT dep, job, count(*) OVER () FROM e"
		" ORDER BY dep DESC, job DESC LIMIT 1";
	Oid types[2] = {INT8OID, INT8OID};
	int64 last_dep = PG_INT64_MIN;
	int64 last_job = PG_INT64_MIN;
	int64 n;

	do
	{
		JqTable *t = begin();
		Datum values[2];
		JqOwnerState state;

		n = 0;
		if (t != NULL)
		{
			values[0] = Int64GetDatum(last_dep);
			values[1] = Int64GetDatum(last_job);
			jq_owner_begin(t, &state);
			execute(t, sql, 2, types, values);
			if (SPI_processed > 0)
			{
				last_dep = int8_column(0, 1);
				last_job = int8_column(0, 2);
				n = int8_column(0, 3);
			}
			jq_owner_end(&state);
		}
		jq_sched_commit();
		between();
	} while (n == 5000);
}

/* ------------------------------------------------------------------- requests */

/* whoever is cancelled here is looked at here */
static void
without_ends(void (*part)(void))
{
	jq_publish_no_ends = true;
	PG_TRY();
	{
		part();
	}
	PG_FINALLY();
	{
		jq_publish_no_ends = false;
	}
	PG_END_TRY();
}

static void
serve_requests(void)
{
	JqAfterRange ranges[JQ_AFTER_RANGES];
	int nranges;
	int i;

	take_requests();
	for (i = 0; i < nlater_ranges; i++)
		jq_after_add_range(asked_ranges, &nasked_ranges, later_ranges[i].first,
						   later_ranges[i].last);
	nlater_ranges = 0;
	ended.n = 0;
	make_room(&ended, asked.n);
	if (asked.n > 0)
		memcpy(ended.ids, asked.ids, asked.n * sizeof(int64));
	ended.n = asked.n;
	nranges = nasked_ranges;
	memcpy(ranges, asked_ranges, nranges * sizeof(JqAfterRange));
	asked.n = nasked_ranges = 0;
	settle_ended();
	for (i = 0; i < nranges; i++)
	{
		(void) settle_range(ranges[i].first, ranges[i].last, false);
		settle_ended();
	}
	/* what has come meanwhile, when others have had their turn */
	if (asked.n > 0 || nasked_ranges > 0)
		jq_db_request(jq_sched_dbix, JQ_REQ_AFTER);
	/* the filter says yes too often */
	if (useless > 1000 + waited_for)
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_AFTER_ALL);
}

static void
look_at_all(void)
{
	TimestampTz start = GetCurrentTimestamp();

	jq_after_rebuild(jq_sched_dbix);
	ended.n = 0;
	waited_for = settle_range(PG_INT64_MIN, PG_INT64_MAX, true);
	settle_ended();
	drop_stale_edges();
	jq_after_rebuilt(jq_sched_dbix, waited_for > 0);
	useless = 0;
	scan_not_before =
		GetCurrentTimestamp() +
		Min(SCAN_SHARE * (GetCurrentTimestamp() - start), SCAN_WAIT_MAX);
	if (asked.n > 0 || nasked_ranges > 0)
		jq_db_request(jq_sched_dbix, JQ_REQ_AFTER);
}

void
jq_sched_release(TimestampTz unused)
{
	(void) unused;
	without_ends(serve_requests);
}

void
jq_sched_release_all(TimestampTz unused)
{
	TimestampTz now = GetCurrentTimestamp();

	(void) unused;
	if (now < scan_not_before)
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_AFTER_ALL);
		jq_sched_again_in((int) ((scan_not_before - now) / 1000) + 1);
		return;
	}
	without_ends(look_at_all);
}
