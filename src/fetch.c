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

#include "access/htup_details.h"
#include "access/xact.h"
#include "after.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "command.h"
#include "compat.h"
#include "conflict.h"
#include "consumer.h"
#include "control.h"
#include "database.h"
#include "executor/spi.h"
#include "fetch.h"
#include "fetchxact.h"
#include "funcapi.h"
#include "grant.h"
#include "guc.h"
#include "jobscan.h"
#include "keylock.h"
#include "keywait.h"
#include "lane.h"
#include "lease.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pause.h"
#include "publish.h"
#include "queue.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

/* libpq/libpq.h says it too, but cannot be read without headers of Kerberos */
extern PGDLLIMPORT WaitEventSet *FeBeWaitSet;
#define JQ_CLIENT_SOCKET_POS 0

#define MAX_WAIT_US USECS_PER_MINUTE
/* how much longer while the table is read, and how often that is looked at */
#define MAX_READ_US (5 * USECS_PER_SEC)
#define READ_STEP_US 2000
#define TAKE_AT_ONCE 64

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
get_request(FunctionCallInfo fcinfo, JqFetchRequest *r)
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

static void
make_token(JqFetchRequest *r)
{
	if (r->leased)
	{
		if (!pg_strong_random(r->token.data, UUID_LEN))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
							errmsg("could not generate random values")));
		/* as gen_random_uuid() does */
		r->token.data[6] = (r->token.data[6] & 0x0f) | 0x40;
		r->token.data[8] = (r->token.data[8] & 0x3f) | 0x80;
	}
}

void
jq_fetch_request(FunctionCallInfo fcinfo, JqFetchRequest *r,
				 const char *function)
{
	jq_shmem_check();
	get_request(fcinfo, r);
	PreventCommandIfParallelMode(function);
	jq_check_primary(function);
	jq_control_not_restricted(function);
	if (r->leased)
		PreventCommandIfReadOnly(function);
	else if (jq_is_worker)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a job cannot fetch jobs for its session"),
			 errhint(
				 "Its session goes on to other jobs; give a lease to fetch with.")));
	(void) jq_table_required();
	if (!jq_may_consume(r->queue))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to fetch from queue \"%s\"", r->queue),
			 errhint(
				 "An administrator gives it by jobqueue_grant(role, 'consume', queue).")));
	make_token(r);
}

/* ----------------------------------------------------------------- taking */

static void
describe(JqFetchRequest *r, JqGiven *g)
{
	JqRow *row = &g->row;

	if (r->leased && r->until == 0)
		r->until = GetCurrentTimestamp() + r->lease_us;
	g->attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_fetched_describe(g->id, DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)),
						g->attempt,
						DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT)),
						jq_fetch_ready_at(row), r->leased ? &r->token : NULL,
						r->until);
}

/* take what there is, up to max jobs */
static int
take(JqTable *t, JqFetchRequest *r, JqGiven *given)
{
	JqTaken taken[TAKE_AT_ONCE];
	XLogRecPtr lsn = InvalidXLogRecPtr;
	int got = 0;
	int n, i;

	r->full = false;
	/* from now on an abort ends a wait that may follow */
	jq_fetchxact_reserve(TAKE_AT_ONCE);
	if (!jobqueue_enabled)
	{
		jq_consumer_leave();
		return 0;
	}
	do
	{
		JqPlace place;

		jq_fetchxact_reserve(TAKE_AT_ONCE);
		/* the place that we were given while we slept, if any */
		(void) jq_consumer_stop(&place);
		n = jq_fetched_take(r->queue, Min(r->max - got, TAKE_AT_ONCE),
							r->leased, &place, taken, &r->full);
		JQ_PAUSE("fetch-taken");
		for (i = 0; i < n; i++)
		{
			JqGiven *g = &given[got];
			JqLook look = jq_fetch_look(t, &taken[i], r->leased, &g->row);

			if (look == JQ_LOOK_FULL)
			{
				/* those behind it are not to pass it */
				while (++i < n)
					jq_fetchxact_drop(taken[i].id, JQ_THEN_LANE);
				break;
			}
			r->ends |= look == JQ_LOOK_ENDS;
			if (look != JQ_LOOK_GIVE)
				continue;
			g->id = taken[i].id;
			describe(r, g);
			got++;
			/* with a lease the commit is to be flushed, after those */
			if (taken[i].keylen > 0 && !r->leased)
				lsn = Max(lsn, jq_keywait_lsn(MyDatabaseId, taken[i].key,
											  taken[i].keylen));
		}
		CHECK_FOR_INTERRUPTS();
	} while (n > 0 && got < r->max);
	jq_keywait_flush(lsn);
	return got;
}

static void
complain_of_nothing(const JqFetchRequest *r)
{
	int dbix = jq_dir_db(MyDatabaseId, false);
	int ix = dbix >= 0 ? jq_dir_queue(dbix, r->queue, false) : -1;

	if (ix >= 0 &&
		(pg_atomic_read_u32(&jq_queues[ix].stopped) & JQ_STOPPED_PAUSED))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("queue \"%s\" is paused", r->queue),
				 errhint("It gives jobs again after jobqueue_resume('%s').",
						 r->queue)));
	/* its commit makes room, and ends what was in the way */
	if (r->full && !r->ends)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("too many jobs are fetched"),
			 errdetail(
				 "There may be %d at a time, with %d keys, of one queue as many as it leaves to others.",
				 jq_fetched_max(), jq_fetched_max_keys()),
			 errhint(
				 "Complete some first, or increase jobqueue.max_ready_jobs.")));
}

static bool
is_open(void)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	return jobqueue_enabled && dbix >= 0 && !jq_db_is_quiesced(dbix);
}

/* if there was no room for us: not before there may be some */
static bool
may_take(const JqFetchRequest *r)
{
	return is_open() && !(r->full && jq_fetched_full()) &&
		   jq_consumer_may_have(r->queue);
}

bool
jq_fetch_again(const JqFetchRequest *r, TimestampTz until, TimestampTz *next)
{
	TimestampTz now = GetCurrentTimestamp();

	*next = until;
	if (now < until)
		return true;
	/* what was enqueued long ago must not seem to be missing */
	*next = now + READ_STEP_US;
	if (now < until + MAX_READ_US && is_open() &&
		(r->behind || jq_consumer_is_behind(r->queue)))
		return true;
	complain_of_nothing(r);
	return false;
}

/*
 * Sleep on the latch.  A client that has gone is noticed here, where it would
 * still be given jobs otherwise; elsewhere PostgreSQL notices it when the
 * statement has ended.
 */
static void
sleep_until(TimestampTz now, TimestampTz until)
{
	static uint32 wait_event;
	long timeout = TimestampDifferenceMilliseconds(now, until);
	uint32 info = jq_wait_event(&wait_event, "JobqueueFetch");
	WaitEvent event;

	if (MyProcPort == NULL || !WaitEventSetCanReportClosed())
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, info);
	else
	{
		/* whoever uses the set next says anew what of the socket he waits for */
		ModifyWaitEvent(FeBeWaitSet, JQ_CLIENT_SOCKET_POS, WL_SOCKET_CLOSED,
						NULL);
		event.events = 0;
		(void) WaitEventSetWait(FeBeWaitSet, timeout, &event, 1, info);
		if (event.events & WL_POSTMASTER_DEATH)
			proc_exit(1);
		if (event.events & WL_SOCKET_CLOSED)
		{
			/* as the server's own check does it */
			ClientConnectionLost = true;
			InterruptPending = true;
		}
	}
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* sleep until there may be a job, or it is that late */
void
jq_fetch_await(const JqFetchRequest *r, TimestampTz until)
{
	JQ_PAUSE("fetch-before-list");
	if (!jq_consumer_wait(r->queue))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there are more queues than jobqueue can look after"),
				 errhint("Increase jobqueue.max_lanes.")));
	JQ_PAUSE("fetch-before-sleep");
	while (!jq_consumer_called() && !may_take(r))
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= until)
			break;
		sleep_until(now, until);
	}
}

/* others wait, and there is more: whoever was woken takes what it wants alone */
static void
call_for_help(const JqFetchRequest *r)
{
	int lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, r->queue, false);

	if (lane >= 0 && jq_lane_may_have(&jq_lanes[lane], -1))
		jq_lane_call(lane, 1);
}

/* one statement for all; model: LEASE_ROW */
static void
write_leases(JqTable *t, const JqFetchRequest *r, const JqGiven *given, int n)
{
	int64 *ids = palloc(n * sizeof(int64));
	int i;

	for (i = 0; i < n; i++)
		ids[i] = given[i].id;
	jq_lease_write(t, ids, n, &r->token, r->until);
	JQ_PAUSE("fetch-leased");
}

int
jq_fetch_now(JqTable *t, JqFetchRequest *r, JqGiven *given)
{
	int n;

	/* what is read while we look may be there a moment later */
	r->behind = jq_consumer_is_behind(r->queue);
	n = take(t, r, given);
	if (n > 0)
		call_for_help(r);
	if (n > 0 && r->leased)
		write_leases(t, r, given, n);
	return n;
}

static int
fetch(JqFetchRequest *r, JqGiven *given)
{
	TimestampTz until = GetCurrentTimestamp() + r->wait_us;
	TimestampTz next;
	int n;

	for (;;)
	{
		/* it may have been rebuilt while we slept */
		n = jq_fetch_now(jq_table_required(), r, given);
		/* what ends is to end now, and not when the wait is over */
		if (n > 0 || r->ends)
			return n;
		if (!jq_fetch_again(r, until, &next))
			return 0;
		jq_fetch_await(r, next);
	}
}

/* ---------------------------------------------------------- the functions */

PG_FUNCTION_INFO_V1(jq_fetch);
Datum
jq_fetch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	JqFetchRequest r;
	JqGiven *given;
	int n, i;

	jq_fetch_request(fcinfo, &r, "jobqueue_fetch()");
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
	given = palloc(r.max * sizeof(JqGiven));
	n = fetch(&r, given);
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
