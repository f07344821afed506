/*
 * fetch.c
 *		jobqueue_fetch() and jobqueue_fetch_wait().
 *
 * A consumer takes jobs from the lane of its queue, with their keys and places,
 * as a worker does; then the row of each is looked at, which says whether it is
 * what the entry said and may start.  What comes in between is undone by the
 * abort of the transaction (fetchxact.h), so anything may fail from the moment
 * they are taken.
 *
 * With a lease, one row a job is written to jobqueue_lease in the same
 * transaction, which commits synchronously; see lease.c.
 *
 * Who waits does so on his latch, in the list of consumer.c.  The procedure
 * commits before it sleeps, so that it holds back no snapshot meanwhile.
 */
#include "postgres.h"

#include "access/xact.h"
#include "after.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "command.h"
#include "compat.h"
#include "consumer.h"
#include "database.h"
#include "executor/spi.h"
#include "fetch.h"
#include "fetchxact.h"
#include "funcapi.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pause.h"
#include "publish.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

#define MAX_WAIT_US USECS_PER_MINUTE
#define TAKE_AT_ONCE 64

/* what is asked for */
typedef struct Request
{
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int max;
	int64 wait_us;
	bool leased;
	int64 lease_us;
	pg_uuid_t token;
} Request;

/* a job that is given to the consumer */
typedef struct Given
{
	int64 id;
	JqRow row;
	int attempt;
} Given;

/* -------------------------------------------------------------- arguments */

static int64
interval_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	Interval *i = PG_GETARG_INTERVAL_P(n);
	int64 us = jq_interval_us(i);

	if (us < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("%s must not be negative", what),
						errhint("0 does not wait.")));
	return us;
}

/* arguments queue, max, wait, lease */
static void
get_request(FunctionCallInfo fcinfo, Request *r)
{
	char *queue;

	memset(r, 0, sizeof(*r));
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("queue must not be null"),
						errhint("Name the queue to fetch from.")));
	queue = text_to_cstring(PG_GETARG_TEXT_PP(0));
	jq_check_queue_name(queue);
	strlcpy(r->queue, queue, sizeof(r->queue));
	r->max = PG_ARGISNULL(1) ? 1 : PG_GETARG_INT32(1);
	if (r->max < 1 || r->max > JQ_FETCH_MAX)
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("max is out of range"),
						errhint("It must be between 1 and %d.", JQ_FETCH_MAX)));
	if (!PG_ARGISNULL(2))
		r->wait_us = Min(interval_argument(fcinfo, 2, "wait"), MAX_WAIT_US);
	r->leased = !PG_ARGISNULL(3);
	if (r->leased)
	{
		r->lease_us = jq_interval_us(PG_GETARG_INTERVAL_P(3));
		if (r->lease_us <= 0)
			ereport(
				ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("lease must be more than 0"),
				 errhint(
					 "Give the time that the consumer needs for the jobs, for example '5 minutes'.")));
	}
}

static JqTable *
check_session(const Request *r, const char *function)
{
	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	PreventCommandDuringRecovery(function);
	if (r->leased)
		PreventCommandIfReadOnly(function);
	else if (jq_is_worker)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a job cannot fetch jobs for its session"),
			 errhint(
				 "Its session goes on to other jobs; give a lease to fetch with.")));
	return jq_table_required();
}

/* ------------------------------------------------------------------- look */

static void
item_of_row(JqItem *item, const JqRow *row)
{
	memset(item, 0, sizeof(*item));
	item->id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	item->priority = DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY));
	item->tid = row->tid;
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
		item->flags = JQ_E_DUE;
	if (!JQ_ROW_NULL(row, JQ_COL_KEY))
	{
		text *key = DatumGetTextPP(JQ_ROW(row, JQ_COL_KEY));

		item->key = VARDATA_ANY(key);
		item->keylen = Min(VARSIZE_ANY_EXHDR(key), JQ_KEY_MAX);
	}
}

/* is the row what the entry said?  *run_at: DT_NOBEGIN if it is due */
static bool
matches(const JqTaken *job, const JqRow *row, const JqItem *item,
		TimestampTz *run_at)
{
	char *queue = jq_row_cstring(row, JQ_COL_QUEUE);

	*run_at = DT_NOBEGIN;
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
	{
		*run_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
		if (*run_at <= GetCurrentTimestamp())
			*run_at = DT_NOBEGIN;
	}
	return *run_at == DT_NOBEGIN && jq_row_lane_role(row) == JQ_CONSUMER_ROLE &&
		   strcmp(queue, jq_lanes[job->lane].queue) == 0 &&
		   item->priority == job->pos.priority && item->keylen == job->keylen &&
		   (item->keylen == 0 ||
			memcmp(item->key, job->key, item->keylen) == 0);
}

JqLook
jq_fetch_look(JqTable *t, const JqTaken *job, JqRow *row)
{
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int dbix = jq_lanes[job->lane].dbix;
	TransactionId xid = InvalidTransactionId;
	TimestampTz run_at;
	JqItem item;
	ItemPointerData tid = job->tid;

	/* the lane stays what it is while the job is claimed */
	strlcpy(queue, jq_lanes[job->lane].queue, sizeof(queue));
	switch (jq_row_fetch(t, job->id, &tid, NULL, row, &xid, NULL))
	{
		case JQ_FETCH_GONE:
			pg_atomic_fetch_add_u64(
				&jq_queues[jq_lanes[job->lane].queue_ix].wasted, 1);
			jq_fetchxact_drop(job->id, false);
			jq_after_ended(dbix, job->id);
			return JQ_LOOK_DROPPED;
		case JQ_FETCH_DOUBTFUL:
			/* without room to note it, its turn comes again */
			if (jq_claim_hold_doubtful(MyDatabaseId, JQ_CONSUMER_ROLE, queue,
									   job->id, xid))
			{
				jq_fetchxact_drop(job->id, false);
				jq_db_request(dbix, JQ_REQ_FAILED);
			}
			else
				jq_fetchxact_drop(job->id, true);
			return JQ_LOOK_DROPPED;
		case JQ_FETCH_FOUND:
			break;
	}
	if (DatumGetInt64(JQ_ROW(row, JQ_COL_HOME)) != t->home ||
		t->meta_database != MyDatabaseId)
	{
		jq_fetchxact_drop(job->id, false); /* held: adopt publishes it */
		return JQ_LOOK_DROPPED;
	}
	item_of_row(&item, row);
	if (!matches(job, row, &item, &run_at))
	{
		jq_fetchxact_drop(job->id, false);
		jq_publish_now(MyDatabaseId, jq_row_lane_role(row),
					   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
		return JQ_LOOK_DROPPED;
	}
	if (!JQ_ROW_NULL(row, JQ_COL_EXPIRES_AT) &&
		DatumGetTimestampTz(JQ_ROW(row, JQ_COL_EXPIRES_AT)) <=
			GetCurrentTimestamp())
	{
		/* the scheduler ends it */
		jq_fetchxact_drop(job->id, false);
		jq_db_expiry(dbix,
					 Max(DatumGetTimestampTz(JQ_ROW(row, JQ_COL_EXPIRES_AT)),
						 DT_NOBEGIN + 1));
		return JQ_LOOK_DROPPED;
	}
	return JQ_LOOK_GIVE;
}

/* ----------------------------------------------------------------- taking */

static TimestampTz
ready_at(const JqRow *row)
{
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
		return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
	if (!JQ_ROW_NULL(row, JQ_COL_AFTER_RUN_AT))
		return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_AFTER_RUN_AT));
	return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
}

static void
describe(const Request *r, Given *g)
{
	JqRow *row = &g->row;

	g->attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_fetched_describe(g->id, DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)),
						g->attempt,
						DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT)),
						ready_at(row), r->leased ? &r->token : NULL,
						r->leased ? GetCurrentTimestamp() + r->lease_us : 0);
}

/* take what there is, up to max jobs, with the place that was given to us */
static int
take(JqTable *t, const Request *r, JqPlace *place, Given *given)
{
	JqTaken taken[TAKE_AT_ONCE];
	bool full = false;
	int got = 0;
	int n, i;

	do
	{
		jq_fetchxact_reserve(TAKE_AT_ONCE);
		n = jq_fetched_take(r->queue, Min(r->max - got, TAKE_AT_ONCE), place,
							taken, &full);
		JQ_PAUSE("fetch-taken");
		for (i = 0; i < n; i++)
		{
			Given *g = &given[got];

			if (jq_fetch_look(t, &taken[i], &g->row) != JQ_LOOK_GIVE)
				continue;
			g->id = taken[i].id;
			describe(r, g);
			got++;
		}
		CHECK_FOR_INTERRUPTS();
	} while (n > 0 && got < r->max);
	if (full && got == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("too many jobs are fetched"),
			 errdetail("There may be %d at a time.", jq_fetched_max()),
			 errhint(
				 "Complete some first, or increase jobqueue.max_ready_jobs.")));
	return got;
}

static bool
may_take(const Request *r)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	return jobqueue_enabled && dbix >= 0 && !jq_db_is_quiesced(dbix) &&
		   jq_consumer_may_have(r->queue);
}

/* sleep until there may be a job, or it is that late */
static void
await(const Request *r, TimestampTz until, JqPlace *place)
{
	static uint32 wait_event;

	if (!jq_consumer_wait(r->queue))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there are more queues than jobqueue can look after"),
				 errhint("Increase jobqueue.max_lanes.")));
	PG_TRY();
	{
		JQ_PAUSE("fetch-before-sleep");
		while (!jq_consumer_called() && !may_take(r))
		{
			TimestampTz now = GetCurrentTimestamp();

			if (now >= until)
				break;
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 TimestampDifferenceMilliseconds(now, until),
							 jq_wait_event(&wait_event, "JobqueueFetch"));
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
	PG_CATCH();
	{
		jq_consumer_leave();
		PG_RE_THROW();
	}
	PG_END_TRY();
	(void) jq_consumer_stop(place);
}

/* others wait, and there is more: whoever was woken takes what it wants alone */
static void
call_for_help(const Request *r)
{
	int lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, r->queue, false);

	if (lane >= 0 && jq_lane_may_have(&jq_lanes[lane], -1))
		jq_lane_call(lane, 1);
}

static int
fetch(JqTable *t, Request *r, Given *given)
{
	TimestampTz until = GetCurrentTimestamp() + r->wait_us;
	JqPlace place = JQ_NO_PLACE;
	int n = 0;

	if (r->leased)
	{
		if (!pg_strong_random(r->token.data, UUID_LEN))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
							errmsg("could not generate random values")));
		/* as gen_random_uuid() does */
		r->token.data[6] = (r->token.data[6] & 0x0f) | 0x40;
		r->token.data[8] = (r->token.data[8] & 0x3f) | 0x80;
	}
	for (;;)
	{
		if (jobqueue_enabled)
			n = take(t, r, &place, given);
		if (n > 0 || GetCurrentTimestamp() >= until)
			break;
		await(r, until, &place);
	}
	if (n > 0)
		call_for_help(r);
	return n;
}

/* ---------------------------------------------------------- the functions */

PG_FUNCTION_INFO_V1(jq_fetch);
Datum
jq_fetch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Request r;
	JqTable *t;
	Given *given;
	int n, i;

	get_request(fcinfo, &r);
	t = check_session(&r, "jobqueue_fetch()");
	/*
	 * The snapshot of such a transaction is older than what is fetched now: it
	 * would not see what the jobs, and those before them of their keys, are
	 * about.
	 */
	if (IsolationUsesXactSnapshot())
		ereport(
			ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg(
				 "cannot fetch jobs in a transaction whose snapshot is older than they are"),
			 errhint(
				 "Fetch in a transaction of isolation level READ COMMITTED.")));
	InitMaterializedSRF(fcinfo, 0);
	given = palloc(r.max * sizeof(Given));
	n = fetch(t, &r, given);
	for (i = 0; i < n; i++)
	{
		JqRow *row = &given[i].row;
		Datum values[8];
		bool nulls[8] = {false};

		values[0] = Int64GetDatum(given[i].id);
		values[1] = JQ_ROW(row, JQ_COL_ARGS);
		nulls[1] = JQ_ROW_NULL(row, JQ_COL_ARGS);
		values[2] = JQ_ROW(row, JQ_COL_KEY);
		nulls[2] = JQ_ROW_NULL(row, JQ_COL_KEY);
		values[3] = Int32GetDatum(given[i].attempt);
		values[4] = Int32GetDatum(DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY)));
		values[5] = JQ_ROW(row, JQ_COL_TAGS);
		nulls[5] = JQ_ROW_NULL(row, JQ_COL_TAGS);
		values[6] = JQ_ROW(row, JQ_COL_ENQUEUED_AT);
		nulls[7] = !r.leased;
		values[7] = UUIDPGetDatum(&r.token);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
