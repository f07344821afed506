/*
 * outcome.c
 *		What becomes of a job when an attempt is over.
 *
 * Its transaction has committed or rolled back.  The end is noted in the ring and
 * the counters, the keys become free, a failure is recorded in a transaction of
 * its own, and the claim ends last, or goes to the scheduler.
 */
#include "postgres.h"

#include "access/xact.h"
#include "after.h"
#include "attempt.h"
#include "comeback.h"
#include "compat.h"
#include "database.h"
#include "failure.h"
#include "keylock.h"
#include "lane.h"
#include "lockkey.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "queue.h"
#include "recent.h"
#include "runjob.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

static void
note_end(JqAttempt *a, JqOutcome outcome, const char *error)
{
	JqRecent r;

	if (a->ended_at == 0)
		a->ended_at = outcome == JQ_COMPLETED || outcome == JQ_SNOOZED ?
						  GetCurrentTransactionStopTimestamp() :
						  GetCurrentTimestamp();
	memset(&r, 0, offsetof(JqRecent, text));
	r.id = a->job->id;
	r.db = MyDatabaseId;
	r.role = a->role;
	r.outcome = outcome;
	r.attempt = a->attempt;
	r.pid = MyProcPid;
	r.enqueued_at = a->enqueued_at;
	r.started_at = a->started_at;
	r.ended_at = a->ended_at;
	r.lsn = outcome == JQ_COMPLETED || outcome == JQ_SNOOZED ?
				XactLastCommitEnd :
				InvalidXLogRecPtr;
	strlcpy(r.queue, a->queue, sizeof(r.queue));
	r.is_error = error != NULL;
	if (error != NULL)
		jq_recent_add(&r, error, strlen(error));
	else
		jq_recent_add(&r, a->result, a->result_len);
	if (outcome != JQ_FAILED && outcome != JQ_SNOOZED)
		jq_after_ended(jq_lanes[a->job->lane].dbix, a->job->id);
	if (outcome != JQ_CANCELLED && outcome != JQ_SNOOZED)
		jq_queue_count(a->queue_ix, outcome == JQ_COMPLETED, a->ready_at,
					   a->started_at, a->ended_at);
}

static void
free_keys(JqAttempt *a)
{
	jq_lockkey_end_of_job();
	if (a->job->keylen > 0)
		jq_keylock_release(MyDatabaseId, a->job->key, a->job->keylen);
	jq_keylock_release(JQ_SUSPECT_DB, JQ_SUSPECT_KEY, strlen(JQ_SUSPECT_KEY));
	jq_unique_let_go();
}

/* it has ended: an order of it that was merged with one that has no end, too */
static void
end_order(const JqAttempt *a)
{
	if (a->job->keylen > 0)
		jq_keylock_order_recorded(MyDatabaseId, a->job->key, a->job->keylen,
								  a->job->id, PG_UINT64_MAX);
}

/* the claim goes to the scheduler, who looks at the row later;
 * model: DOUBTFUL, CLAIM_UNTIL_RECORD */
static void
leave_to_scheduler(JqHeldKind kind, TransactionId xid, const char *sqlstate,
				   const char *error)
{
	char text[JQ_HELD_ERROR] = "";

	if (jq_slots[jq_my_slot].claim_lane < 0)
		return; /* the claim had ended already */
	if (error != NULL)
		strlcpy(text, error,
				pg_mbcliplen(error, strlen(error), sizeof(text) - 1) + 1);
	while (!jq_claim_to_held(kind, xid, sqlstate, text))
	{
		/* thousands of failures wait to be recorded: wait with them */
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * It could not be started, and is looked at later.  order: where that is kept, later
 * ones of its key wait for that; but not for a transaction that has its row, which
 * may wait for one of them.
 */
static void
leave_doubtful(JqAttempt *a, TransactionId xid, bool order)
{
	if (order && jq_slots[jq_my_slot].claim_lane >= 0 &&
		jq_attempt_is_ordered(a))
		jq_keylock_order_begin(MyDatabaseId, a->job->key, a->job->keylen,
							   a->queue, a->job->pos, DT_NOEND);
	free_keys(a);
	leave_to_scheduler(JQ_HELD_DOUBTFUL, xid, a->soon ? JQ_HELD_SOON : NULL,
					   NULL);
}

static void
record_cancel(JqAttempt *a)
{
	JqTable *t;

	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	t = jq_table();
	if (t != NULL)
		jq_archive(t, a->job->id, "cancelled", "cancelled while it ran",
				   a->started_at, (Datum) 0);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static JqRecorded
record_failure(JqAttempt *a, TimestampTz *run_at)
{
	JqTable *t;
	JqFailure f;
	JqRecorded recorded = JQ_RECORD_GONE;
	ErrorData *e = a->error;

	MemoryContextSwitchTo(jq_job_context);
	memset(&f, 0, sizeof(f));
	f.sqlstate = unpack_sql_state(e->sqlerrcode);
	f.message = e->message;
	if (jq_run_timed_out() && e->sqlerrcode == ERRCODE_QUERY_CANCELED)
		f.message = "job timed out";
	if (a->committing)
		f.message = psprintf("at commit: %s", f.message);
	f.detail = e->detail;
	f.hint = e->hint;
	f.context = e->context;
	f.started_at = a->started_at;
	f.reason = jq_discard_reason(e);
	f.final = f.reason != NULL;
	jq_begin_bookkeeping();
	PushActiveSnapshot(GetTransactionSnapshot());
	t = jq_table();
	if (t != NULL)
		recorded = jq_record_failure(t, a->job->id, &f, run_at);
	PopActiveSnapshot();
	/* between this commit and the publication nothing may come;
	 * model: HOLD_INTERRUPTS */
	HOLD_INTERRUPTS();
	CommitTransactionCommand();
	return recorded;
}

/*
 * The row says when it goes on, and nobody has it claimed by then: what is claimed
 * would be passed over.  false: it is claimed still, as it has been cancelled since.
 */
bool
jq_attempt_ends_until(const JqAttempt *a, TimestampTz run_at)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	if (!jq_claim_end_uncancelled())
		return false;
	if (dbix >= 0)
		jq_db_due(dbix, run_at);
	if (jq_claim_was_passed())
		jq_publish_unsure(MyDatabaseId, a->job->id);
	return true;
}

/* the job did not complete: write down why, then let the claim go */
static void
end_failed(JqAttempt *volatile a, bool asked)
{
	volatile bool cancelled = asked;
	volatile bool written = false;
	TimestampTz run_at = DT_NOEND;
	volatile JqRecorded recorded = JQ_RECORD_GONE;
	char *message;
	int code;
	bool ordered = jq_attempt_is_ordered(a);

	/* later ones of its key are to see what becomes of it;
	 * model: ORDER_FIRST, ORDER_RECORDED */
	if (ordered)
		jq_keylock_order_begin(MyDatabaseId, a->job->key, a->job->keylen,
							   a->queue, a->job->pos, DT_NOEND);
	free_keys(a);
	JQ_PAUSE("fail-before-record");
	PG_TRY();
	{
		if (cancelled)
		{
			record_cancel(a);
			HOLD_INTERRUPTS();
		}
		else
			recorded = record_failure(a, &run_at);
		written = true;
	}
	PG_CATCH();
	{
		jq_abort_bookkeeping();
	}
	PG_END_TRY();

	MemoryContextSwitchTo(jq_job_context);
	message = a->error ? a->error->message : NULL;
	code = a->error ? a->error->sqlerrcode : ERRCODE_QUERY_CANCELED;
	if (!written)
	{
		RESUME_INTERRUPTS();
		leave_to_scheduler(JQ_HELD_FAILING, InvalidTransactionId,
						   cancelled ? "CANCL" :
						   a->error && jq_discard_reason(a->error) ?
									   "DISCD" :
									   unpack_sql_state(code),
						   message);
		return;
	}
	JQ_PAUSE("fail-after-record");
	if (!cancelled && recorded == JQ_RECORD_GONE)
		cancelled = true; /* somebody deleted the row */
	/* first, as after success: whoever sees it end can read how it ended */
	note_end(a,
			 cancelled					? JQ_CANCELLED :
			 recorded == JQ_RECORD_DEAD ? JQ_DEAD :
										  JQ_FAILED,
			 cancelled			? "cancelled" :
			 jq_run_timed_out() ? "job timed out" :
								  message);
	if (recorded != JQ_RECORD_RETRY)
		jq_claim_end();
	else if (!jq_attempt_ends_until(a, run_at))
	{
		RESUME_INTERRUPTS();
		end_failed(a, true);
		return;
	}
	end_order(a);
	RESUME_INTERRUPTS();
}

/* another job has its unique_key: as its on_conflict says */
static void
end_refused(JqAttempt *volatile a)
{
	volatile JqRefused refused = JQ_REFUSED_GONE;
	volatile bool written = false;
	bool ordered = jq_attempt_is_ordered(a);

	/* as in end_failed: it may have to be left to the scheduler */
	if (ordered)
		jq_keylock_order_begin(MyDatabaseId, a->job->key, a->job->keylen,
							   a->queue, a->job->pos, DT_NOEND);
	free_keys(a);
	PG_TRY();
	{
		JqTable *t;

		MemoryContextSwitchTo(jq_job_context);
		jq_begin_bookkeeping();
		PushActiveSnapshot(GetTransactionSnapshot());
		t = jq_table();
		if (t != NULL)
			refused = jq_unique_refuse(t, a->job->id, &a->refusal);
		PopActiveSnapshot();
		/* between this commit and the publication nothing may come */
		HOLD_INTERRUPTS();
		CommitTransactionCommand();
		written = true;
	}
	PG_CATCH();
	{
		jq_abort_bookkeeping();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(jq_job_context);
	if (!written)
	{
		RESUME_INTERRUPTS();
		leave_to_scheduler(JQ_HELD_DOUBTFUL, InvalidTransactionId, NULL, NULL);
		return;
	}
	a->attempt = 0; /* it was never started */
	if (refused == JQ_REFUSED_DEAD)
		note_end(a, JQ_DEAD, a->refusal.reason);
	else if (refused == JQ_REFUSED_CANCELLED)
	{
		a->started_at = 0;
		note_end(a, JQ_CANCELLED, a->refusal.reason);
	}
	if (refused != JQ_REFUSED_LATER)
		jq_claim_end();
	else if (!jq_attempt_ends_until(a, a->refusal.run_at))
	{
		RESUME_INTERRUPTS();
		end_failed(a, true);
		return;
	}
	end_order(a);
	RESUME_INTERRUPTS();
}

/* there is no row; there may be one by now, see comeback.c */
static void
end_without_row(JqAttempt *volatile a)
{
	volatile bool looked = false;
	volatile bool cancelled = false;

	pg_atomic_fetch_add_u64(&jq_queues[a->queue_ix].wasted, 1);
	jq_after_ended(jq_lanes[a->job->lane].dbix, a->job->id);
	end_order(a);
	free_keys(a);
	JQ_PAUSE("worker-found-none");
	PG_TRY();
	{
		JqTable *t;

		MemoryContextSwitchTo(jq_job_context);
		jq_begin_bookkeeping();
		t = jq_table();
		if (t != NULL)
			jq_look_prepare(t);
		/* nobody else knows that it may have come back */
		HOLD_INTERRUPTS();
		looked = true;
		cancelled = !jq_claim_end_uncancelled();
		if (t != NULL && !cancelled)
			jq_look_again(t, a->job->id, false);
		RESUME_INTERRUPTS();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		jq_abort_bookkeeping();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(jq_job_context);
	if (cancelled)
		end_failed(a, true);
	else if (!looked)
		leave_to_scheduler(JQ_HELD_DOUBTFUL, InvalidTransactionId, NULL, NULL);
}

void
jq_attempt_note_completed(JqAttempt *a)
{
	note_end(a, a->snoozed_until != 0 ? JQ_SNOOZED : JQ_COMPLETED, NULL);
	end_order(a);
}

/* after errors: was a cancel meant for the job in hand? */
bool
jq_attempt_was_cancelled(JqVerdict verdict)
{
	return verdict != COMPLETED && verdict != DROPPED && verdict != NO_ROW &&
		   verdict != PARKED && verdict != EXPIRED && jq_claim_cancel_wanted();
}

void
jq_attempt_cancelled(JqAttempt *a)
{
	end_failed(a, true);
}

void
jq_attempt_settle(JqAttempt *a, JqVerdict verdict)
{
	if (jq_attempt_was_cancelled(verdict))
	{
		end_failed(a, true);
		return;
	}
	switch (verdict)
	{
		case COMPLETED:
			JQ_PAUSE("worker-after-commit");
			if (a->snoozed_until != 0 && jq_claim_cancel_wanted())
			{
				/* it came too late to interrupt it, but it is not to run again */
				jq_publish_told();
				end_failed(a, true);
				break;
			}
			jq_attempt_note_completed(a);
			free_keys(a); /* model: KEY_UNTIL_COMMIT */
			JQ_PAUSE("worker-noted-end");
			if (a->snoozed_until != 0 &&
				!jq_attempt_ends_until(a, a->snoozed_until))
			{
				jq_publish_told();
				end_failed(a, true);
				break;
			}
			jq_publish_told();
			break;
		case EXPIRED:
			a->attempt = 0; /* it was never started */
			a->started_at = 0;
			note_end(a, JQ_CANCELLED,
					 a->reason != NULL ? a->reason : "expired");
			end_order(a);
			free_keys(a);
			break;
		case DROPPED:
			pg_atomic_fetch_add_u64(&jq_queues[a->queue_ix].wasted, 1);
			jq_after_ended(jq_lanes[a->job->lane].dbix, a->job->id);
			/* if not, it goes on elsewhere, and its order may be of there */
			if (jq_slots[jq_my_slot].claim_lane >= 0)
				end_order(a);
			free_keys(a);
			jq_claim_end();
			/* it was held for jobqueue_adopt(), which may have come */
			if (jq_claim_was_passed())
				jq_publish_unsure(MyDatabaseId, a->job->id);
			break;
		case NO_ROW:
			end_without_row(a);
			break;
		case PARKED:
		case AGAIN:
			break;
		case REFUSED:
			end_refused(a);
			break;
		case DOUBTFUL_ROW:
			leave_doubtful(a, a->xid, a->keeps_order);
			break;
		case TROUBLE:
			ereport(WARNING,
					(errmsg("job " INT64_FORMAT " could not be started: %s",
							a->job->id, a->error->message)));
			leave_doubtful(a, InvalidTransactionId, true);
			break;
		case FAILED:
		case RERUN:
			end_failed(a, false);
			break;
	}
}
