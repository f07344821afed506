/*
 * runjob.c
 *		Running one job: look, run, delete the row, commit; or fail.
 *
 * The claim and the key are held when this begins.  Order of things:
 *
 *		StartTransaction, look at the row under a snapshot taken now: is it still
 *		there, is it what the entry said, is its time come? (model: LOOK, LOOK_DUE)
 *		run the command under the job's timeout
 *		delete the row (or move it to the archive) and commit
 *		note the end in the ring, free the key, end the claim
 *
 * An error rolls everything back; the key is free at once, the failure is
 * recorded in a transaction of its own, and only then the claim ends.  If this
 * process dies in between, its exit hook leaves the claim to the scheduler.
 *
 * Not charged as an attempt: serialization failures and deadlocks, and a cancel
 * that was not meant for this job; such a job is run again at once, a bounded
 * number of times.  Each run is a start to the rates of its queue and its key:
 * without a token it goes back into its lane, and its entry knows how often it
 * has been run.
 *
 * A statement that cannot run in a transaction block commits by itself; the row
 * is deleted in a transaction after it.  A crash between the two runs it again:
 * at least once.
 *
 * A unique_key that is held until the job executes is given free in a
 * transaction of its own, between the look and the command: nobody who wants it
 * waits for the job.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "attempt.h"
#include "command.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "compat.h"
#include "database.h"
#include "failure.h"
#include "inflight.h"
#include "jobscan.h"
#include "keylock.h"
#include "lane.h"
#include "lockkey.h"
#include "parser/analyze.h"
#include "pause.h"
#include "pgstat.h"
#include "progress.h"
#include "publish.h"
#include "recent.h"
#include "runjob.h"
#include "servicerun.h"
#include "session.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "supervise.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "waitgraph.h"
#include "worker.h"

#define MAX_RERUNS 10
#define TIMEOUT_REPEATS 5 /* seconds of cancelling before FATAL */

StaticAssertDecl(MAX_RERUNS <= JQ_E_RERUNS >> JQ_E_RERUN_SHIFT,
				 "no room for the number of reruns in an entry");

JqCurrent jq_current_job;

MemoryContext jq_job_context;

/* ---------------------------------------------------------------- timeout */

/*
 * Arming a timer for each job would cost more than many a job.  One that is
 * armed for an earlier moment is left alone: when it fires before the job's
 * deadline it goes on firing each second, which is near enough for a timeout
 * that is long.
 */
#define LONG_TIMEOUT_MS 10000

static TimeoutId timeout_id = MAX_TIMEOUTS;
static TimestampTz timeout_armed; /* for when; 0 = not */
static volatile TimestampTz deadline;
static volatile sig_atomic_t timeouts_fired;

static void
timeout_handler(void)
{
	if (deadline == 0 || GetCurrentTimestamp() < deadline)
		return; /* it was armed for a job that is over */
	timeouts_fired++;
	InterruptPending = true;
	if (timeouts_fired <= TIMEOUT_REPEATS)
		QueryCancelPending = true;
	else
		ProcDiePending = true;
	SetLatch(MyLatch);
}

bool
jq_run_timed_out(void)
{
	return timeouts_fired > 0;
}

/* 0: none */
static int64
timeout_ms(const JqAttempt *a, const JqRow *row)
{
	int64 us = jq_row_timeout_us(row, &a->settings);

	return us <= 0 ? 0 : Min((us + 999) / 1000, INT64CONST(100000000000000));
}

static void
start_timeout(TimestampTz start, int64 ms)
{
	TimestampTz at = TimestampTzPlusMilliseconds(start, ms);

	timeouts_fired = 0;
	if (ms <= 0)
		return;
	if (timeout_id == MAX_TIMEOUTS)
		timeout_id = RegisterTimeout(USER_TIMEOUT, timeout_handler);
	if (timeout_armed == 0 || timeout_armed > at || ms < LONG_TIMEOUT_MS)
	{
		enable_timeout_every(timeout_id, at, 1000);
		timeout_armed = at;
	}
	deadline = at;
}

static void
stop_timeout(void)
{
	deadline = 0;
}

void
jq_run_idle(void)
{
	if (timeout_armed == 0)
		return;
	disable_timeout(timeout_id, false);
	timeout_armed = 0;
}

/* ------------------------------------------------------------------- look */

/*
 * Is the row what the claim says?  Whether it has a run_at the row knows better:
 * the entry may be older.  model: FLAG_OF_ROW
 */
static bool
matches(JqAttempt *a, JqRow *row, JqItem *item, TimestampTz *run_at)
{
	bool same = jq_row_is(row, a->role, a->queue, a->job->pos.priority,
						  a->job->key, a->job->keylen, item, run_at);

	a->job->flags =
		(a->job->flags & ~(JQ_E_DUE | JQ_E_UNSURE)) | (item->flags & JQ_E_DUE);
	return same;
}

static bool
at_home(JqTable *t, JqRow *row)
{
	return DatumGetInt64(JQ_ROW(row, JQ_COL_HOME)) == t->home &&
		   t->meta_database == MyDatabaseId;
}

/*
 * The claim ends, and the job is published, as what it is now.  Its key goes last:
 * a later job that waits for it would pass this one, were it not there yet.  Its
 * unique_key goes first: whoever takes the job now must not meet it.  false: it
 * is to be cancelled, and still claimed.
 */
static bool
publish_claimed(JqAttempt *a, Oid role, const char *queue, const JqItem *item,
				TimestampTz run_at)
{
	jq_unique_let_go();
	/* nobody else knows of it until it is published */
	HOLD_INTERRUPTS();
	/* before, or the entry would be dropped */
	if (!jq_claim_end_uncancelled())
	{
		RESUME_INTERRUPTS();
		return false;
	}
	jq_publish_now(MyDatabaseId, role, queue, item, run_at);
	if (jq_claim_was_passed())
		jq_publish_unsure(MyDatabaseId, item->id);
	JQ_PAUSE("worker-gave-back");
	if (a->job->keylen > 0)
		jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
	jq_keylock_release(JQ_SUSPECT_DB, JQ_SUSPECT_KEY, strlen(JQ_SUSPECT_KEY));
	RESUME_INTERRUPTS();
	return true;
}

/*
 * Is the row what the entry said?  If not, it belongs elsewhere: publish it
 * there.
 */
static bool
as_expected(JqAttempt *a, JqTable *t, JqRow *row)
{
	JqItem item;
	TimestampTz run_at;
	char *queue;

	if (!at_home(t, row))
		return false; /* held: adopt publishes it */
	if (matches(a, row, &item, &run_at))
		return true;
	queue = jq_row_cstring(row, JQ_COL_QUEUE);
	publish_claimed(a, jq_row_lane_role(row), queue, &item, run_at);
	return false;
}

/* ------------------------------------------------------------------ order */

bool
jq_attempt_is_ordered(const JqAttempt *a)
{
	JqQueueSettings s;

	if (a->job->keylen == 0)
		return false;
	if (jq_key_is_service(a->job->key, a->job->keylen))
		return true;
	jq_queue_settings(a->queue_ix, &s);
	return s.ordered;
}

/* is there a job of the same queue and key that is to run again before? */
static bool
tried_before(const JqAttempt *a, JqTable *t, JqPos *pos, TimestampTz *run_at)
{
	return jq_row_tried_before(t, a->queue, a->job->key, a->job->keylen,
							   a->job->pos, pos, run_at);
}

/*
 * Has the job to wait for another one of its key that failed?  Then the key
 * knows, so that it is parked when it is given back.
 */
static bool
waits_for_order(JqAttempt *a, JqTable *t, TimestampTz *put_off)
{
	JqPos pos, again;
	TimestampTz run_at;

	*put_off = DT_NOBEGIN;
	if (!jq_attempt_is_ordered(a))
		return false;
	while (tried_before(a, t, &pos, &run_at))
	{
		if (jq_keylock_crowded())
		{
			*put_off = jq_keylock_order_put_off(run_at);
			return true;
		}
		/* not for ever: that is for one whose failure is to be recorded */
		if (run_at == DT_NOEND)
			run_at = GetCurrentTimestamp() + USECS_PER_DAY;
		jq_keylock_order_begin(MyDatabaseId, a->job->key, a->job->keylen,
							   a->queue, pos, run_at);
		JQ_PAUSE("order-noted");
		/* it may have ended before the key knew of it: nobody would say so;
		 * model: ORDER_LOOK */
		if (tried_before(a, t, &again, &run_at) && jq_pos_cmp(again, pos) == 0)
			return true;
		jq_keylock_order_recorded(MyDatabaseId, a->job->key, a->job->keylen,
								  pos.id, PG_UINT64_MAX);
	}
	return false;
}

/* ---------------------------------------------------------------- running */

static void
set_current(const JqAttempt *a, const JqRow *row)
{
	jq_injob_forget();
	jq_progress_clear();
	jq_current_job.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	jq_current_job.queue = jq_row_cstring(row, JQ_COL_QUEUE);
	jq_current_job.key = jq_row_cstring(row, JQ_COL_KEY);
	jq_current_job.attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_current_job.max_attempts = jq_row_max_attempts(row, &a->settings);
	jq_current_job.enqueued_at =
		DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
}

/*
 * One statement outside a transaction block, the way a session runs it.  A
 * transaction is open before and after.
 */
static void
run_outside(JqRow *row)
{
	char *text = jq_row_cstring(row, JQ_COL_COMMAND);
	ParamListInfo params = makeParamList(1);
	Oid types[1] = {JSONBOID};
	List *parsed;
	RawStmt *raw;
	List *queries;
	List *plans;
	Portal portal;
	bool snapshot = false;

	params->params[0].isnull = JQ_ROW_NULL(row, JQ_COL_ARGS);
	params->params[0].value =
		params->params[0].isnull ?
			(Datum) 0 :
			PointerGetDatum(PG_DETOAST_DATUM_COPY(JQ_ROW(row, JQ_COL_ARGS)));
	params->params[0].ptype = JSONBOID;
	params->params[0].pflags = PARAM_FLAG_CONST;
	/* the row may have been written by hand */
	parsed = pg_parse_query(text);
	if (list_length(parsed) != 1 || !jq_command_is(text, JQ_KIND_OUTSIDE))
		ereport(
			ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg(
				 "the command is not one statement that runs outside a transaction block"),
			 errhint("Enqueue the job with jobqueue_enqueue().")));
	raw = linitial_node(RawStmt, parsed);
	if (analyze_requires_snapshot(raw))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		snapshot = true;
	}
	queries = pg_analyze_and_rewrite_fixedparams(raw, text, types, 1, NULL);
	plans = pg_plan_queries(queries, text, CURSOR_OPT_PARALLEL_OK, params);
	if (snapshot)
		PopActiveSnapshot();
	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, text, CreateCommandTag(raw->stmt), plans,
					  NULL);
	PortalStart(portal, params, 0, InvalidSnapshot);
	(void) jq_portal_run(portal, None_Receiver);
	PortalDrop(portal, false);
}

/* the row leaves the queue, or waits for the time the job has asked for, in the
 * open transaction; false: it had left */
static bool
finish_row(JqAttempt *a, JqTable *t, JqRow *row, Snapshot snapshot,
		   Datum result)
{
	Interval delay;

	if (jq_snooze_wanted(&delay))
	{
		ItemPointerData tid;

		if (snapshot)
			UnregisterSnapshot(snapshot);
		if (!jq_snooze_row(t, a->job->id, &delay, &a->snoozed_until, &tid))
			return false;
		jq_snooze_at_commit();
		return true;
	}
	if (!jq_row_wants_keep(row, &a->settings))
	{
		if (!jq_row_delete(t, a->job->id, row, snapshot))
			return false;
		jq_unique_ended(t, row);
		return true;
	}
	if (snapshot)
		UnregisterSnapshot(snapshot);
	return jq_archive(t, a->job->id, "completed", NULL, a->started_at, result);
}

static bool
has_expired(JqAttempt *a, JqRow *row)
{
	return !JQ_ROW_NULL(row, JQ_COL_EXPIRES_AT) &&
		   DatumGetTimestampTz(JQ_ROW(row, JQ_COL_EXPIRES_AT)) <= a->started_at;
}

static char
kind_of(JqRow *row)
{
	return JQ_ROW_NULL(row, JQ_COL_KIND) ?
			   '?' :
			   DatumGetChar(JQ_ROW(row, JQ_COL_KIND));
}

/* since when could it run, as far as others are concerned? */
static TimestampTz
after_others(JqAttempt *a, JqRow *row)
{
	return JQ_ROW_NULL(row, JQ_COL_AFTER_RUN_AT) ?
			   a->enqueued_at :
			   DatumGetTimestampTz(JQ_ROW(row, JQ_COL_AFTER_RUN_AT));
}

static void
note_start(JqAttempt *a, JqRow *row)
{
	a->enqueued_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
	a->ready_at = JQ_ROW_NULL(row, JQ_COL_RUN_AT) ?
					  after_others(a, row) :
					  DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
	a->started_at = GetCurrentStatementStartTimestamp();
	a->attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_queue_settings(a->queue_ix, &a->settings);
}

/* from here on the job is to blame */
static void
begin_running(JqAttempt *a, JqRow *row)
{
	int64 timeout = timeout_ms(a, row);

	a->running = true;
	set_current(a, row);
	debug_query_string = jq_row_cstring(row, JQ_COL_COMMAND);
	jq_slot_show(a->attempt, a->started_at,
				 timeout > 0 ?
					 TimestampTzPlusMilliseconds(a->started_at, timeout) :
					 0,
				 debug_query_string);
	pgstat_report_activity(STATE_RUNNING, debug_query_string);
	jq_inflight_mark(MyDatabaseId, a->job->id);
	jq_keylock_use(MyDatabaseId, a->job->key, a->job->keylen);
	jq_claim_set_running();
	if (a->settings.synchronous_commit >= 0)
		jq_session_set_commit(a->settings.synchronous_commit,
							  kind_of(row) == JQ_KIND_OUTSIDE);
	start_timeout(a->started_at, timeout);
}

/* the command, then the row; the snapshot is that of the row */
static void
run_and_finish(JqAttempt *a, JqTable *t, JqRow *row, Snapshot snapshot,
			   bool shared)
{
	bool isnull = true;
	Datum result;

	PushActiveSnapshot(snapshot);
	if (shared)
		jq_apply_environment_nested(row);
	else
		jq_apply_environment(row);
	if (kind_of(row) == JQ_KIND_SQL)
	{
		/* many statements, many snapshots: ours would hold back vacuum */
		UnregisterSnapshot(snapshot);
		snapshot = NULL;
	}
	result = jq_execute(row, &isnull);
	if (!isnull)
	{
		a->result = JsonbToCString(NULL, &DatumGetJsonbP(result)->root, 0);
		a->result_len = strlen(a->result);
	}
	/* who wants its unique_key waits from now on: only for the commit */
	if (!JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY))
		AfterTriggerFireDeferred();
	JQ_PAUSE("worker-before-delete");
	if (!finish_row(a, t, row, snapshot, isnull ? (Datum) 0 : result))
		ereport(ERROR, (errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
						errmsg("the row of the job was deleted while it ran")));
	PopActiveSnapshot();
}

bool
jq_attempt_in_batch(JqAttempt *a)
{
	JqTable *t;
	JqRow row;
	Snapshot snapshot = NULL;
	JqItem item;
	TimestampTz run_at;
	char kind;
	int nest;
	/* before the row: what it says of crashes may be recorded just now */
	bool suspect = jq_inflight_is_suspect(MyDatabaseId, a->job->id);

	/* as at the start of a transaction: a lock that an earlier job has left
	 * would keep what others have committed from being noticed */
	AcceptInvalidationMessages();
	t = jq_table();
	MemoryContextSwitchTo(jq_job_context);
	if (t == NULL ||
		jq_row_fetch(t, a->job->id, &a->job->tid, GetTransactionSnapshot(),
					 &row, &a->xid, &snapshot) != JQ_FETCH_FOUND)
		return false;
	SetCurrentStatementStartTimestamp();
	note_start(a, &row);
	kind = kind_of(&row);
	if (jq_worker_role_changed() || !at_home(t, &row) ||
		!matches(a, &row, &item, &run_at) || has_expired(a, &row) ||
		(jq_attempt_is_ordered(a) &&
		 tried_before(a, t, &(JqPos){0}, &(TimestampTz){0})) ||
		DatumGetInt16(JQ_ROW(&row, JQ_COL_CRASHES)) > 0 || suspect ||
		!JQ_ROW_NULL(&row, JQ_COL_UNIQUE_KEY) ||
		(kind != JQ_KIND_FUNCTION && kind != JQ_KIND_SQL))
	{
		UnregisterSnapshot(snapshot);
		return false;
	}
	begin_running(a, &row);
	nest = NewGUCNestLevel();
	run_and_finish(a, t, &row, snapshot, true);
	/*
	 * What a commit would do for it: deferred triggers run and constraints are
	 * checked as part of this job, under its settings and its timeout, and
	 * cursors are closed.
	 */
	AfterTriggerFireDeferred();
	PortalHashTableDeleteAll();
	/* the commit is as strict as the strictest of the jobs asks for */
	a->commit_level = synchronous_commit;
	/* what it has set ends with it, SET LOCAL or not */
	AtEOXact_GUC(false, nest);
	ResetSequenceCaches();
	stop_timeout();
	CommandCounterIncrement();
	jq_current_job.id = 0;
	a->ended_at = GetCurrentTimestamp();
	jq_claim_set_taken();
	return true;
}

/* back into its lane, as it was; the verdict */
static JqVerdict
give_back(JqAttempt *a, JqRow *row)
{
	JqItem item;

	jq_row_item(&item, row);
	item.flags |= a->job->flags & JQ_E_RERUNS;
	return publish_claimed(a, a->role, a->queue, &item, DT_NOBEGIN) ? PARKED :
																	  RERUN;
}

/* it was rolled back, and is to be run again when it gets a token for that */
static JqVerdict
give_back_for_rerun(JqAttempt *a)
{
	JqItem item;

	memset(&item, 0, sizeof(item));
	item.id = a->job->id;
	item.priority = a->job->pos.priority;
	item.tid = a->job->tid;
	item.flags = a->job->flags & (JQ_E_DUE | JQ_E_UNSURE | JQ_E_RERUNS);
	if (!a->running) /* perhaps nobody has looked at the row */
		item.flags = jq_flags_perhaps_due(item.flags);
	item.key = a->job->key;
	item.keylen = a->job->keylen;
	return publish_claimed(a, a->role, a->queue, &item, DT_NOBEGIN) ? PARKED :
																	  RERUN;
}

/* it waits for the job before it in the table, not in memory; the verdict */
static JqVerdict
put_off_row(JqAttempt *a, TimestampTz until)
{
	bool cancelled;
	Oid types[2] = {INT8OID, TIMESTAMPTZOID};
	Datum values[2];
	JqOwnerState state;
	JqTable *t;

	values[0] = Int64GetDatum(a->job->id);
	values[1] = TimestampTzGetDatum(until);
	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	t = jq_table();
	if (t != NULL)
	{
		jq_owner_begin(t, &state);
		jq_owner_execute(t,
						 "UPDATE %s.jobqueue_job SET run_at = $2,"
						 " keeps_order = true WHERE id = $1",
						 2, types, values, NULL);
		jq_owner_end(&state);
	}
	PopActiveSnapshot();
	/* between this commit and the publication nothing may come */
	HOLD_INTERRUPTS();
	CommitTransactionCommand();
	JQ_PAUSE("order-put-off");
	jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
	jq_unique_let_go();
	cancelled = !jq_attempt_ends_until(a, until);
	RESUME_INTERRUPTS();
	return cancelled ? RERUN : PARKED;
}

/*
 * Its service has failed: it waits in the table until that is started again, and
 * later ones of the key wait for it.
 */
static JqVerdict
put_off_message(JqAttempt *a, JqRow *row)
{
	JqTable *t;
	bool done = false;
	bool cancelled = false;

	jq_begin_bookkeeping();
	MemoryContextSwitchTo(jq_job_context);
	PushActiveSnapshot(GetTransactionSnapshot());
	t = jq_table();
	if (t != NULL)
		done =
			jq_service_put_off(t, a->job->id, jq_row_cstring(row, JQ_COL_KEY));
	PopActiveSnapshot();
	JQ_PAUSE("message-before-put-off");
	/* between this commit and the end of the claim nothing may come */
	HOLD_INTERRUPTS();
	CommitTransactionCommand();
	if (done)
	{
		jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
		jq_unique_let_go();
		/* not before it is started again, which tells what it is then */
		cancelled = !jq_attempt_ends_until(a, DT_NOEND);
	}
	RESUME_INTERRUPTS();
	return cancelled ? RERUN : done ? PARKED : give_back(a, row);
}

/* the transaction of the attempt; errors are caught by the caller */
static JqVerdict
attempt_it(JqAttempt *a)
{
	JqTable *t;
	JqRow row;
	Snapshot snapshot = NULL;
	JqFetch fetch;
	char kind;
	TimestampTz put_off;
	bool suspect;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(jq_job_context);
	t = jq_table();
	if (t == NULL)
	{
		/* the extension is gone, and with it all that memory knows */
		CommitTransactionCommand();
		jq_dir_purge_db(MyDatabaseId);
		return DROPPED;
	}
	/* before the row: what it says of crashes may be recorded just now */
	suspect = jq_inflight_is_suspect(MyDatabaseId, a->job->id);
	fetch = jq_row_fetch(t, a->job->id, &a->job->tid, GetTransactionSnapshot(),
						 &row, &a->xid, &snapshot);
	if (fetch != JQ_FETCH_FOUND)
	{
		CommitTransactionCommand();
		return fetch == JQ_FETCH_GONE ? NO_ROW : DOUBTFUL_ROW;
	}
	if (jq_worker_role_changed())
	{
		/* this session may not be what the role is now: a new one is */
		UnregisterSnapshot(snapshot);
		CommitTransactionCommand();
		return give_back(a, &row);
	}
	if (!as_expected(a, t, &row))
	{
		UnregisterSnapshot(snapshot);
		CommitTransactionCommand();
		return jq_claim_cancel_wanted() ? RERUN : DROPPED;
	}
	note_start(a, &row);
	if (has_expired(a, &row))
	{
		PushActiveSnapshot(snapshot);
		UnregisterSnapshot(snapshot);
		jq_archive(t, a->job->id, "cancelled", "expired", 0, (Datum) 0);
		PopActiveSnapshot();
		CommitTransactionCommand();
		return EXPIRED;
	}
	if (waits_for_order(a, t, &put_off))
	{
		UnregisterSnapshot(snapshot);
		CommitTransactionCommand();
		if (put_off == DT_NOBEGIN)
			return give_back(a, &row);
		return put_off_row(a, put_off);
	}
	if (suspect)
	{
		/* the scheduler records its crash before it can crash the server again */
		UnregisterSnapshot(snapshot);
		CommitTransactionCommand();
		a->xid = InvalidTransactionId;
		a->keeps_order = true;
		return DOUBTFUL_ROW;
	}
	if (DatumGetInt16(JQ_ROW(&row, JQ_COL_CRASHES)) > 0 &&
		!jq_keylock_mine(JQ_SUSPECT_DB, JQ_SUSPECT_KEY, strlen(JQ_SUSPECT_KEY)))
	{
		/*
		 * It keeps its key meanwhile, and the token that it had with it; whoever
		 * has the turn has his key, so nobody waits for the other.
		 */
		if (!jq_claim_take_turn(a->job))
		{
			if (jq_claim_was_passed())
				jq_publish_unsure(MyDatabaseId, a->job->id);
			/* model: TURN_FREES */
			jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
			jq_unique_let_go();
			UnregisterSnapshot(snapshot);
			CommitTransactionCommand();
			return jq_claim_cancel_wanted() ? RERUN : PARKED;
		}
	}

	if (!JQ_ROW_NULL(&row, JQ_COL_UNIQUE_KEY) && !a->admitted)
	{
		JqUniqueStart start = jq_unique_start(t, &row, &a->refusal);

		if (start != JQ_UNIQUE_GO)
		{
			UnregisterSnapshot(snapshot);
			CommitTransactionCommand();
			JQ_PAUSE("worker-unique-released");
			a->admitted = true;
			a->xid = InvalidTransactionId;
			a->soon = start == JQ_UNIQUE_SOON;
			a->keeps_order = a->soon || start == JQ_UNIQUE_LATER;
			return start == JQ_UNIQUE_AGAIN ? AGAIN :
				   a->keeps_order			? DOUBTFUL_ROW :
											  REFUSED;
		}
	}

	kind = kind_of(&row);
	if (kind == JQ_KIND_MESSAGE)
	{
		JqServiceLook look;

		JQ_PAUSE("message-before-look");
		PushActiveSnapshot(snapshot);
		look = jq_service_look(t, &row);
		if (look == JQ_SERVICE_FOREIGN)
		{
			JqItem item;
			TimestampTz run_at;
			Oid owner;

			UnregisterSnapshot(snapshot);
			(void) matches(a, &row, &item, &run_at);
			owner = jq_service_hand_over(t, &row);
			PopActiveSnapshot();
			CommitTransactionCommand();
			(void) publish_claimed(a, owner, a->queue, &item, run_at);
			return jq_claim_cancel_wanted() ? RERUN : DROPPED;
		}
		if (look == JQ_SERVICE_GONE)
		{
			UnregisterSnapshot(snapshot);
			a->reason = "its service has ended";
			jq_archive(t, a->job->id, "cancelled", a->reason, 0, (Datum) 0);
			PopActiveSnapshot();
			CommitTransactionCommand();
			return EXPIRED;
		}
		PopActiveSnapshot();
		if (look == JQ_SERVICE_FAILED)
		{
			UnregisterSnapshot(snapshot);
			CommitTransactionCommand();
			return put_off_message(a, &row);
		}
	}

	begin_running(a, &row);
	if (kind == JQ_KIND_OUTSIDE)
	{
		a->outside = true;
		UnregisterSnapshot(snapshot);
		jq_apply_environment(&row);
		run_outside(&row);
		JQ_PAUSE("worker-before-commit");
		CommitTransactionCommand();
		/* the statement has committed; now the row */
		stop_timeout();
		jq_begin_bookkeeping();
		MemoryContextSwitchTo(jq_job_context);
		PushActiveSnapshot(GetTransactionSnapshot());
		t = jq_table();
		if (t != NULL)
			(void) finish_row(a, t, &row, NULL, (Datum) 0);
		PopActiveSnapshot();
		jq_unique_ends_with_commit();
		jq_publish_will_tell(true);
		CommitTransactionCommand();
		return COMPLETED;
	}
	if (kind != JQ_KIND_FUNCTION && kind != JQ_KIND_SQL &&
		kind != JQ_KIND_MESSAGE)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("job has unknown kind \"%c\"", kind)));
	run_and_finish(a, t, &row, snapshot, false);
	jq_unique_ends_with_commit();
	JQ_PAUSE("worker-before-commit");
	a->committing = true;
	jq_publish_will_tell(true);
	CommitTransactionCommand();
	return COMPLETED;
}

/*
 * After an error: whose fault was it?
 */
static JqVerdict
judge(JqAttempt *a)
{
	int code = a->error->sqlerrcode;

	if (!a->running)
		return code == ERRCODE_QUERY_CANCELED && jq_worker_interrupted ?
				   RERUN :
				   TROUBLE;
	if (a->outside)
		return FAILED; /* it may have done part of its work */
	if (code == ERRCODE_T_R_SERIALIZATION_FAILURE ||
		code == ERRCODE_T_R_DEADLOCK_DETECTED)
		return RERUN;
	if (code == ERRCODE_QUERY_CANCELED && jq_worker_interrupted &&
		timeouts_fired == 0)
		return RERUN; /* not meant for this job */
	return FAILED;
}

void
jq_attempt_begin(void)
{
	jq_worker_interrupted = false;
	timeouts_fired = 0;
	jq_waitgraph_forget();
	/* one that is pending may have been for a job before this one */
	if (QueryCancelPending)
	{
		QueryCancelPending = false;
		if (jq_claim_cancel_wanted())
		{
			jq_worker_interrupted = true;
			QueryCancelPending = InterruptPending = true;
		}
	}
}

JqVerdict
jq_attempt_caught(JqAttempt *a, bool report)
{
	jq_publish_will_tell(false);
	HOLD_INTERRUPTS();
	stop_timeout();
	MemoryContextSwitchTo(jq_job_context);
	a->error = CopyErrorData();
	if (report)
		EmitErrorReport();
	FlushErrorState();
	AbortCurrentTransaction();
	PortalErrorCleanup();
	QueryCancelPending = false;
	RESUME_INTERRUPTS();
	return judge(a);
}

static JqVerdict
try_attempt(JqAttempt *volatile a)
{
	volatile JqVerdict verdict;

	jq_attempt_begin();
	PG_TRY();
	{
		do
			verdict = attempt_it(a);
		while (verdict == AGAIN);
		stop_timeout();
	}
	PG_CATCH();
	{
		verdict = jq_attempt_caught(a, a->running);
	}
	PG_END_TRY();
	jq_inflight_clear();
	jq_progress_clear();
	return verdict;
}

/* ------------------------------------------------------------- attempts */

MemoryContext
jq_attempt_context(void)
{
	if (jq_job_context == NULL)
		jq_job_context = AllocSetContextCreate(TopMemoryContext, "jobqueue job",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(jq_job_context);
	return jq_job_context;
}

void
jq_attempt_init(JqAttempt *a, JqClaimed *job, Oid role, const char *queue,
				int queue_ix)
{
	memset(a, 0, sizeof(*a));
	a->job = job;
	a->role = role;
	a->queue = queue;
	a->queue_ix = queue_ix;
}

void
jq_attempt_done(void)
{
	jq_injob_forget();
	jq_current_job.id = 0;
	debug_query_string = NULL;
	jq_unique_let_go();
	MemoryContextSwitchTo(TopMemoryContext);
	/* what was meant for this job must not hit the cleaning */
	QueryCancelPending = false;
	jq_session_clean();
}

/*
 * After a deadlock: who was waiting for us has to wake up first, or he finds
 * things as they were.
 */
static void
let_others_go(int reruns)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													Min(1 << reruns, 200));
	TimestampTz now;

	while ((now = GetCurrentTimestamp()) < until && !InterruptPending)
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 TimestampDifferenceMilliseconds(now, until),
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

static int
reruns_of(const JqClaimed *job)
{
	return (job->flags & JQ_E_RERUNS) >> JQ_E_RERUN_SHIFT;
}

void
jq_attempt_count_rerun(JqClaimed *job)
{
	if (reruns_of(job) < MAX_RERUNS)
		job->flags += 1 << JQ_E_RERUN_SHIFT;
}

void
jq_attempt_alone(JqAttempt *a)
{
	JqAttempt first = *a;
	JqVerdict verdict;
	bool wanted;

	for (;;)
	{
		jq_session_check();
		(void) jq_attempt_context();
		*a = first;
		verdict = try_attempt(a);
		if (verdict != RERUN || reruns_of(a->job) >= MAX_RERUNS ||
			jq_attempt_was_cancelled(verdict))
			break;
		jq_attempt_count_rerun(a->job);
		jq_lockkey_end_of_job();
		/* it gave way to somebody who waits for its key: he has it first */
		wanted = a->job->keylen > 0 && jq_waitgraph_key_wanted();
		if (wanted)
		{
			jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
			/* he may be a job behind this one, on his way to a worker */
			let_others_go(reruns_of(a->job));
		}
		/* nor does who is asked to leave go on with it */
		if (wanted || *(volatile bool *) &jq_slots[jq_my_slot].stop ||
			!jq_claim_may_repeat(a->job, MyDatabaseId))
		{
			verdict = give_back_for_rerun(a);
			break;
		}
		jq_session_clean();
		if (a->error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
			let_others_go(reruns_of(a->job));
	}
	jq_attempt_settle(a, verdict);
	jq_attempt_done();
}

void
jq_run_claimed(JqClaimed *job, Oid role, const char *queue, int queue_ix)
{
	JqAttempt a;

	JQ_PAUSE("worker-claimed");
	jq_attempt_init(&a, job, role, queue, queue_ix);
	jq_attempt_alone(&a);
}
