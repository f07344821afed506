/*
 * where.c
 *		Many jobs by what they have in common.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "command.h"
#include "dependency.h"
#include "executor/spi.h"
#include "grant.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "publish.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "where.h"

/* numbers of the arguments, from 0 */
enum
{
	QUEUE,
	TAG,
	ASKER,
	MAY_ALL,
	HOME,
	RUNNING,
	LANE_QUEUES,
	LANE_OWNERS
};

#define WHICH                                                           \
	" WHERE ($1 IS NULL OR j.queue = $1)"                               \
	" AND ($2 IS NULL OR j.tags @> ARRAY[$2])"                          \
	" AND ($4 OR j.owner::oid IN (SELECT oid FROM pg_catalog.pg_authid" \
	"  WHERE pg_catalog.pg_has_role($3, oid, 'USAGE')))"

#define IN_LANES \
	" AND (j.queue, " JQ_LANE_ROLE ") IN (SELECT * FROM unnest($7, $8))"

/* as jobqueue_jobs has it */
#define BLOCKED                                                                                                     \
	"(j.id IN (SELECT b.id FROM %s.jobqueue_blocked_jobs() b WHERE b.id IS NOT NULL)"                               \
	" OR EXISTS (SELECT FROM %s.jobqueue_blocked_jobs() k WHERE k.key_hash = pg_catalog.hashtextextended(j.key, 0)" \
	"  AND (j.priority::int, j.id) >= (k.from_priority, k.from_id)))"

#define MAY_RUN \
	"j.home = $5 AND (j.run_at IS NULL OR j.run_at <= clock_timestamp())"

typedef struct State
{
	const char *name;
	int kind;
	const char *condition;
} State;

static const State states[] = {
	{"scheduled", JQ_WHERE_WAITING,
	 "j.home = $5 AND j.run_at > clock_timestamp() AND NOT " JQ_ROW_WAITS},
	{"ready", JQ_WHERE_WAITING, MAY_RUN " AND NOT " BLOCKED},
	{"blocked", JQ_WHERE_WAITING,
	 "(j.home = $5 AND " JQ_ROW_WAITS " OR " MAY_RUN " AND " BLOCKED ")"},
	{"running", JQ_WHERE_RUNNING, "true"},
	{"held", JQ_WHERE_WAITING, "j.home <> $5"},
	{"completed", JQ_WHERE_COMPLETED, "j.state = 'completed'"},
	{"cancelled", JQ_WHERE_FAILED, "j.state = 'cancelled'"},
	{"dead", JQ_WHERE_FAILED, "j.state = 'dead'"}};

static void
set_state(JqWhere *w, const char *name, int allowed)
{
	StringInfoData words;
	size_t i;

	if (name == NULL)
	{
		w->waiting = (allowed & JQ_WHERE_WAITING) != 0;
		w->running = (allowed & JQ_WHERE_RUNNING) != 0;
		w->state = allowed == JQ_WHERE_FAILED ?
					   "j.state IN ('dead', 'cancelled')" :
					   "true";
		return;
	}
	initStringInfo(&words);
	for (i = 0; i < lengthof(states); i++)
	{
		if (!(states[i].kind & allowed))
			continue;
		if (strcmp(states[i].name, name) == 0)
		{
			w->waiting = states[i].kind == JQ_WHERE_WAITING;
			w->running = states[i].kind == JQ_WHERE_RUNNING;
			w->state = states[i].condition;
			return;
		}
		appendStringInfo(&words, "%s%s", words.len > 0 ? ", " : "",
						 states[i].name);
	}
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid state \"%s\"", name),
					errhint("It must be one of: %s.", words.data)));
}

static void
set_arg(JqWhere *w, int i, Oid type, Datum value, bool isnull)
{
	w->types[i] = type;
	w->values[i] = value;
	w->nulls[i] = isnull ? 'n' : ' ';
}

static void
set_array(JqWhere *w, int i, Oid type, Datum *d, int n)
{
	ArrayType *a =
		type == INT8ARRAYOID ?
			construct_array(d, n, INT8OID, 8, true, TYPALIGN_DOUBLE) :
		type == OIDARRAYOID ?
			construct_array(d, n, OIDOID, 4, true, TYPALIGN_INT) :
			construct_array(d, n, TEXTOID, -1, false, TYPALIGN_INT);

	set_arg(w, i, type, PointerGetDatum(a), false);
}

void
jq_where_begin(JqWhere *w, FunctionCallInfo fcinfo, const char *function,
			   int tag_arg, int everything_arg, int allowed)
{
	bool everything =
		!PG_ARGISNULL(everything_arg) && PG_GETARG_BOOL(everything_arg);
	bool tagged = tag_arg >= 0 && !PG_ARGISNULL(tag_arg);
	JqTable *t;

	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	jq_check_primary(function);
	PreventCommandIfReadOnly(function);
	t = jq_table_required();
	memset(w, 0, sizeof(*w));
	w->table = t;
	w->nargs = JQ_WHERE_ARGS;
	if (!PG_ARGISNULL(0))
		jq_check_queue_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	set_state(w, PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)),
			  allowed);
	if (PG_ARGISNULL(0) && PG_ARGISNULL(1) && !tagged && !everything)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("no filter was given"),
			 tag_arg >= 0 ?
				 errhint(
					 "Give a queue, a state or a tag, or everything => true.") :
				 errhint("Give a queue or a state, or everything => true.")));
	/* see what this transaction has enqueued */
	CommandCounterIncrement();
	set_arg(w, QUEUE, TEXTOID, PG_GETARG_DATUM(0), PG_ARGISNULL(0));
	set_arg(w, TAG, TEXTOID, tagged ? PG_GETARG_DATUM(tag_arg) : (Datum) 0,
			!tagged);
	set_arg(w, ASKER, OIDOID, ObjectIdGetDatum(GetUserId()), false);
	set_arg(w, MAY_ALL, BOOLOID, BoolGetDatum(jq_is_admin()), false);
	/* in a copy of a database all are of another home */
	set_arg(w, HOME, INT8OID,
			Int64GetDatum(t->meta_database == MyDatabaseId ? t->home :
															 t->home + 1),
			false);
	set_array(w, RUNNING, INT8ARRAYOID, NULL, 0);
	set_array(w, LANE_QUEUES, TEXTARRAYOID, NULL, 0);
	set_array(w, LANE_OWNERS, OIDARRAYOID, NULL, 0);
}

int
jq_where_add(JqWhere *w, Oid type, Datum value, bool isnull)
{
	Assert(w->nargs < (int) lengthof(w->types));
	set_arg(w, w->nargs, type, value, isnull);
	return ++w->nargs;
}

static void
execute(JqWhere *w, const char *before, const char *more, const char *after)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, before);
	appendStringInfoString(&sql, WHICH);
	appendStringInfoString(&sql, more);
	appendStringInfoString(&sql, after);
	jq_owner_execute(w->table, sql.data, w->nargs, w->types, w->values,
					 w->nulls);
}

static void
set_running(JqWhere *w, const int64 *ids, int n)
{
	Datum *d = palloc(Max(n, 1) * sizeof(Datum));
	int i;

	for (i = 0; i < n; i++)
		d[i] = Int64GetDatum(ids[i]);
	set_array(w, RUNNING, INT8ARRAYOID, d, n);
}

void
jq_where_freeze(JqWhere *w)
{
	JqOwnerState state;
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	Datum *queues;
	Datum *owners;
	int64 *running;
	uint64 n, i;
	int nrunning;

	jq_owner_begin(w->table, &state);
	execute(w, "SELECT DISTINCT queue, " JQ_LANE_ROLE " FROM %s.jobqueue_job j",
			"", "");
	n = SPI_processed;
	old = MemoryContextSwitchTo(context);
	queues = palloc(Max(n, 1) * sizeof(Datum));
	owners = palloc(Max(n, 1) * sizeof(Datum));
	for (i = 0; i < n; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;
		char *queue = TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull));

		queues[i] = CStringGetTextDatum(queue);
		owners[i] = SPI_getbinval(tup, desc, 2, &isnull);
		jq_publish_freeze(DatumGetObjectId(owners[i]), queue);
	}
	MemoryContextSwitchTo(old);
	jq_owner_end(&state);
	set_array(w, LANE_QUEUES, TEXTARRAYOID, queues, (int) n);
	set_array(w, LANE_OWNERS, OIDARRAYOID, owners, (int) n);

	running = jq_claim_running(MyDatabaseId, &nrunning);
	set_running(w, running, nrunning);
}

/* run it, and show each row that it returns; returns their number */
static int64
run(JqWhere *w, const char *before, const char *more, const char *after,
	JqWhereEach each, void *arg)
{
	JqOwnerState state;
	uint64 i;
	int64 rows;

	jq_owner_begin(w->table, &state);
	execute(w, before, more, after);
	rows = (int64) SPI_processed;
	for (i = 0; i < SPI_processed && each != NULL; i++)
		each(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, arg);
	jq_owner_end(&state);
	return rows;
}

int64
jq_where_waiting(JqWhere *w, const char *before, const char *after,
				 JqWhereEach each, void *arg)
{
	return run(w, before,
			   psprintf(IN_LANES " AND j.id <> ALL ($6) AND %s", w->state),
			   after, each, arg);
}

int64
jq_where_ended(JqWhere *w, const char *before, const char *after,
			   JqWhereEach each, void *arg)
{
	return run(w, before, psprintf(" AND %s", w->state), after, each, arg);
}

/* ids of those that are among RUNNING; mine: and written by this transaction */
static int64 *
find_running(JqWhere *w, bool mine, int *n)
{
	JqOwnerState state;
	MemoryContext context = CurrentMemoryContext;
	int64 *ids;
	uint64 i;

	*n = 0;
	jq_owner_begin(w->table, &state);
	execute(w, "SELECT id, xmin FROM %s.jobqueue_job j", " AND j.id = ANY ($6)",
			"");
	ids = MemoryContextAlloc(context, Max(SPI_processed, 1) * sizeof(int64));
	for (i = 0; i < SPI_processed; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		if (!mine || TransactionIdIsCurrentTransactionId(DatumGetTransactionId(
						 SPI_getbinval(tup, desc, 2, &isnull))))
			ids[(*n)++] = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
	}
	jq_owner_end(&state);
	return ids;
}

int64 *
jq_where_running(JqWhere *w, int *n)
{
	return find_running(w, false, n);
}

int64 *
jq_where_claimed(JqWhere *w, int *n)
{
	int64 *ids = jq_claim_ids(MyDatabaseId, n);

	set_running(w, ids, *n);
	return find_running(w, true, n);
}
