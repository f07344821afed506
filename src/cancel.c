/*
 * cancel.c
 *		jobqueue_cancel_where(): cancel many jobs by what they have in common.
 *
 * One statement moves the rows, however many.  Memory cannot claim them one by
 * one: the lanes that they are in are held back until the transaction ends, so
 * that nothing of them is taken meanwhile.  After a commit those lanes are read
 * anew; after a rollback they are as they were.
 *
 * What runs is left out of the statement and interrupted.  A lane is held back
 * before we look who runs, so whoever has taken a job of it is seen.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "command.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "grant.h"
#include "jobtable.h"
#include "miscadmin.h"
#include "publish.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* $1 queue, $2 tag, $3 whoever asks, $4 may act on all, $5 home, $6 running */
#define WHICH                                                           \
	" ($1 IS NULL OR queue = $1) AND ($2 IS NULL OR tags @> ARRAY[$2])" \
	" AND ($4 OR owner::oid IN (SELECT oid FROM pg_catalog.pg_authid"   \
	"  WHERE pg_catalog.pg_has_role($3, oid, 'USAGE')))"

/* as jobqueue_jobs has it */
#define BLOCKED                                                                     \
	"(id IN (SELECT b.id FROM %s.jobqueue_blocked_jobs() b WHERE b.id IS NOT NULL)" \
	" OR EXISTS (SELECT FROM %s.jobqueue_blocked_jobs() k WHERE k.key = j.key"      \
	"  AND (j.priority::int, j.id) >= (k.from_priority, k.from_id)))"

typedef struct State
{
	const char *name;
	const char *condition; /* NULL: no row is in that state */
} State;

static const State states[] = {
	{"held", "home <> $5"},
	{"scheduled", "home = $5 AND run_at > clock_timestamp()"},
	{"ready", "home = $5 AND (run_at IS NULL OR run_at <= clock_timestamp())"
			  " AND NOT " BLOCKED},
	{"blocked", "home = $5 AND (run_at IS NULL OR run_at <= clock_timestamp())"
				" AND " BLOCKED},
	{"running", NULL}};

static const State *
find_state(const char *name)
{
	size_t i;

	for (i = 0; i < lengthof(states); i++)
		if (strcmp(states[i].name, name) == 0)
			return &states[i];
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
		 errmsg("invalid state \"%s\"", name),
		 errhint(
			 "It must be one of: scheduled, ready, blocked, running, held.")));
}

/* the filter, as arguments of a statement */
typedef struct Filter
{
	Oid types[6];
	Datum values[6];
	char nulls[6];
} Filter;

static void
set_filter(Filter *f, int i, Oid type, Datum value, bool isnull)
{
	f->types[i] = type;
	f->values[i] = value;
	f->nulls[i] = isnull ? 'n' : ' ';
}

static void
set_running(Filter *f, const int64 *ids, int n)
{
	Datum *d = palloc(Max(n, 1) * sizeof(Datum));
	int i;

	for (i = 0; i < n; i++)
		d[i] = Int64GetDatum(ids[i]);
	set_filter(f, 5, INT8ARRAYOID,
			   PointerGetDatum(
				   construct_array(d, n, INT8OID, 8, true, TYPALIGN_DOUBLE)),
			   false);
}

/* hold back the lanes that have such rows */
static void
freeze_lanes(JqTable *t, Filter *f)
{
	static const char *const sql =
		"SELECT DISTINCT queue, owner::oid FROM %s.jobqueue_job j WHERE" WHICH
		" AND $5 IS NOT NULL AND $6 IS NOT NULL";
	JqOwnerState state;
	uint64 i;

	set_running(f, NULL, 0);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 6, f->types, f->values, f->nulls);
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;
		char *queue = TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull));

		jq_publish_freeze(DatumGetObjectId(
							  SPI_getbinval(tup, desc, 2, &isnull)),
						  queue);
	}
	jq_owner_end(&state);
}

static int64
move_rows(JqTable *t, Filter *f, const char *condition)
{
	JqOwnerState state;
	char *sql;
	int64 moved;

	sql = psprintf(
		"WITH gone AS (DELETE FROM %%s.jobqueue_job j WHERE" WHICH
		" AND $5 IS NOT NULL AND id <> ALL ($6) AND %s RETURNING *)"
		" INSERT INTO %%s.jobqueue_archive (id, enqueued_at, ended_at,"
		" expires_at, home, owner, func_owner, priority, attempt, max_attempts,"
		" kind, state, queue, command, args, key, search_path, settings, timeout,"
		" keep, tags, errors, reason, unique_key, unique_until, unique_for,"
		" on_conflict)"
		" SELECT id, enqueued_at, clock_timestamp(),"
		" clock_timestamp() + interval '7 days', home, owner, func_owner,"
		" priority, attempt, max_attempts, kind, 'cancelled', queue, command,"
		" args, key, search_path, settings, timeout, keep, tags, errors,"
		" 'cancelled', unique_key, unique_until, unique_for, on_conflict"
		" FROM gone"
		" ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
		" ended_at = excluded.ended_at, expires_at = excluded.expires_at,"
		" attempt = excluded.attempt, result = excluded.result,"
		" errors = excluded.errors, reason = excluded.reason",
		condition);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 6, f->types, f->values, f->nulls);
	moved = (int64) SPI_processed;
	jq_owner_end(&state);
	return moved;
}

/* those of the running jobs that the filter means */
static int64
interrupt_running(JqTable *t, Filter *f)
{
	static const char *const sql =
		"SELECT id FROM %s.jobqueue_job j WHERE" WHICH
		" AND $5 IS NOT NULL AND id = ANY ($6)";
	JqOwnerState state;
	int64 *ids;
	int64 n = 0;
	uint64 i, found;
	MemoryContext context = CurrentMemoryContext;

	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 6, f->types, f->values, f->nulls);
	found = SPI_processed;
	ids = MemoryContextAlloc(context, Max(found, 1) * sizeof(int64));
	for (i = 0; i < found; i++)
	{
		bool isnull;

		ids[i] =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));
	}
	jq_owner_end(&state);
	for (i = 0; i < found; i++)
		if (jq_claim_cancel(MyDatabaseId, ids[i]))
			n++;
	return n;
}

PG_FUNCTION_INFO_V1(jq_cancel_where);
Datum
jq_cancel_where(PG_FUNCTION_ARGS)
{
	bool everything = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	const State *state = NULL;
	JqTable *t;
	Filter f;
	int64 *running;
	int nrunning;
	int64 n = 0;

	jq_shmem_check();
	PreventCommandIfParallelMode("jobqueue_cancel_where()");
	PreventCommandDuringRecovery("jobqueue_cancel_where()");
	PreventCommandIfReadOnly("jobqueue_cancel_where()");
	t = jq_table_required();
	if (!PG_ARGISNULL(0))
		jq_check_queue_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (!PG_ARGISNULL(1))
		state = find_state(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	if (PG_ARGISNULL(0) && PG_ARGISNULL(1) && PG_ARGISNULL(2) && !everything)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("no filter was given"),
			 errhint(
				 "Give a queue, a state or a tag, or everything => true.")));
	/* see what this transaction has enqueued */
	CommandCounterIncrement();
	set_filter(&f, 0, TEXTOID, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	set_filter(&f, 1, TEXTOID, PG_GETARG_DATUM(2), PG_ARGISNULL(2));
	set_filter(&f, 2, OIDOID, ObjectIdGetDatum(GetUserId()), false);
	set_filter(&f, 3, BOOLOID, BoolGetDatum(jq_is_admin()), false);
	set_filter(&f, 4, INT8OID,
			   Int64GetDatum(t->meta_database == MyDatabaseId ? t->home :
																t->home + 1),
			   false);
	freeze_lanes(t, &f);
	running = jq_claim_running(MyDatabaseId, &nrunning);
	set_running(&f, running, nrunning);
	if (state == NULL)
		n += move_rows(t, &f, "true");
	else if (state->condition != NULL)
		n += move_rows(t, &f, state->condition);
	if (state == NULL || state->condition == NULL)
		n += interrupt_running(t, &f);
	PG_RETURN_INT64(n);
}
