/*
 * batch.c
 *		Several jobs of a lane in one transaction.
 *
 * A transaction of its own is most of what a tiny job costs.  So, where the
 * queue's "batch" allows it, the worker does not commit after a job but claims
 * the next one of the lane, as long as the batch is shorter than BATCH_US and
 * the session is clean; then it commits for all of them, and notes their ends in
 * order.  Each has its own claim, key, snapshot (taken after its key), timeout
 * and level of settings.  Until the commit all stay claimed and hold their keys.
 *
 *		claimed -> run (jq_attempt_in_batch) -> next one claimed -> ... -> commit
 *		any error	-> all is rolled back; each is run alone, in order
 *		a job that is not for a batch	-> commit; that job is run alone
 *
 * What becomes of a job is decided when it runs alone: the batch charges
 * nothing, records nothing, and a cancel that was meant for one of its jobs
 * waits for that job's turn.  An error in the first job, before there is a second
 * one, is simply that job's.
 *
 * A batch that fails costs a rollback, so the next jobs of the queue, as many as
 * a batch may have, are run alone.  That also finds the job that ends its worker
 * at the commit, which is charged to nobody in a batch.
 *
 * Only at READ COMMITTED: at the other levels a later job would not see what the
 * last holder of its key has done.
 */
#include "postgres.h"

#include "access/xact.h"
#include "attempt.h"
#include "batch.h"
#include "database.h"
#include "guc.h"
#include "inflight.h"
#include "keylock.h"
#include "lane.h"
#include "lockkey.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "queue.h"
#include "runjob.h"
#include "session.h"
#include "slot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* a batch older than this takes no more jobs */
#ifdef JQ_TESTING
#define BATCH_US 1000000 /* tests want to know which jobs are together */
#else
#define BATCH_US 10000
#endif

static JqClaimed *jobs; /* room for JQ_BATCH_MAX, as the next one */
static JqAttempt *attempts;
static int njobs; /* claimed by the batch that is open */

/* how many jobs may share a transaction now */
static int
size_now(int queue_ix, int most)
{
	JqQueue *q = &jq_queues[queue_ix];
	JqQueueSettings settings;
	int size;
	uint32 singly;

	jq_queue_settings(queue_ix, &settings);
	size = Min(settings.batch, most);
	if (size <= 1 || DefaultXactIsoLevel > XACT_READ_COMMITTED)
		return 1;
	singly = pg_atomic_read_u32(&q->singly);
	while (singly > 0)
		if (pg_atomic_compare_exchange_u32(&q->singly, &singly, singly - 1))
			return 1;
	return Min(size, JQ_BATCH_MAX);
}

static void
slow_down(int queue_ix)
{
	JqQueueSettings settings;

	jq_queue_settings(queue_ix, &settings);
	pg_atomic_write_u32(&jq_queues[queue_ix].singly, settings.batch);
}

/* may another job come into the transaction? */
static bool
may_go_on(int size)
{
	return njobs < size && jq_session_is_clean() &&
		   attempts[njobs - 1].ended_at - attempts[0].started_at < BATCH_US &&
		   !*(volatile bool *) &jq_slots[jq_my_slot].stop;
}

/*
 * Run jobs into the open transaction.  Returns how many; if less than njobs, the
 * last one is claimed, and to be run alone.
 */
static int
gather(int size)
{
	JqAttempt *a = &attempts[0];

	for (;;)
	{
		if (!jq_attempt_in_batch(a))
			return njobs - 1;
		if (!may_go_on(size))
			return njobs;
		JQ_PAUSE("batch-between-jobs");
		CHECK_FOR_INTERRUPTS();
		/* here, since under the locks nothing can be allocated */
		jq_keylock_prepare();
		if (!jq_claim_more(a->job->lane, MyDatabaseId, a->role, &jobs[njobs]))
			return njobs;
		jq_attempt_init(&attempts[njobs], &jobs[njobs], a->role, a->queue,
						a->queue_ix);
		a = &attempts[njobs++];
	}
}

/* the first jobs are to commit: as one of them has asked for */
static void
set_commit_level(int done)
{
	int level = synchronous_commit;
	int i;

	for (i = 0; i < done; i++)
		level = Max(level, attempts[i].commit_level);
	if (level != synchronous_commit)
		jq_session_set_commit(level, false);
}

/*
 * The claims of snoozed jobs end, before these are due: what is claimed would be
 * passed over then.  Not of those whose cancel came too late to interrupt them,
 * which are flagged.  Nothing is in hand afterwards.
 */
static void
end_snoozed(int done, bool *cancelled)
{
	TimestampTz due = DT_NOEND;
	int i;

	jq_claim_put_aside();
	for (i = 0; i < done; i++)
	{
		if (attempts[i].snoozed_until == 0 || cancelled[i])
			continue;
		jq_claim_pick(&jobs[i]);
		cancelled[i] = !jq_claim_end_uncancelled();
		if (cancelled[i])
		{
			jq_claim_put_aside();
			continue;
		}
		if (jq_claim_was_passed())
			jq_publish_unsure(MyDatabaseId, jobs[i].id);
		due = Min(due, attempts[i].snoozed_until);
	}
	if (due != DT_NOEND)
	{
		int dbix = jq_dir_db(MyDatabaseId, true);

		if (dbix >= 0)
			jq_db_due(dbix, due);
	}
}

/* the first jobs have committed */
static void
note_committed(int done)
{
	bool snoozed = false;
	bool cancelled[JQ_BATCH_MAX];
	int i;

	jq_lockkey_end_of_job();
	for (i = 0; i < done; i++)
	{
		snoozed |= attempts[i].snoozed_until != 0;
		cancelled[i] =
			attempts[i].snoozed_until != 0 && jq_claim_cancel_asked(jobs[i].id);
		if (cancelled[i])
			continue;
		jq_attempt_note_completed(&attempts[i]);
		if (jobs[i].keylen > 0)
			jq_keylock_release(MyDatabaseId, jobs[i].key, jobs[i].keylen);
	}
	JQ_PAUSE("batch-noted-ends");
	if (snoozed)
		end_snoozed(done, cancelled);
	jq_publish_told();
	if (snoozed)
	{
		/* what they have done stays, but they are not to run again */
		for (i = 0; i < done; i++)
			if (cancelled[i])
			{
				jq_claim_pick(&jobs[i]);
				jq_attempt_cancelled(&attempts[i]);
			}
		/* the one that is to be run alone is in hand again */
		if (done < njobs)
			jq_claim_pick(&jobs[njobs - 1]);
	}
	jq_claim_end_others(jobs[0].lane);
}

/* the job in hand, alone, unless it has been cancelled while it waited */
static void
run_in_hand(JqAttempt *a)
{
	if (jq_claim_cancel_wanted())
	{
		(void) jq_attempt_context();
		a->error = NULL;
		a->result = NULL;
		a->ended_at = 0;
		jq_attempt_cancelled(a);
		jq_attempt_done();
		return;
	}
	jq_attempt_init(a, a->job, a->role, a->queue, a->queue_ix);
	jq_attempt_alone(a);
}

/* may jobs that wait for their turn still begin? */
static bool
may_begin(void)
{
	JqLane *l = &jq_lanes[jobs[0].lane];

	return jobqueue_enabled && !jq_lane_stopped(l) &&
		   !jq_db_is_quiesced(l->dbix) &&
		   !*(volatile bool *) &jq_slots[jq_my_slot].stop;
}

/*
 * All has been rolled back: one after the other.  Those that may not begin any
 * more go back to where they came from.
 */
static void
run_alone_each(int n)
{
	int i;

	jq_claim_put_aside();
	for (i = 0; i < n; i++)
	{
		JqAttempt a = attempts[i];

		if ((i > 0 && !may_begin()) ||
			!jq_claim_may_repeat(&jobs[i], MyDatabaseId))
		{
			jq_claim_end();
			jq_batch_give_back();
			for (; i < n; i++)
				if (jobs[i].keylen > 0)
					jq_keylock_release(MyDatabaseId, jobs[i].key,
									   jobs[i].keylen);
			return;
		}
		jq_claim_pick(&jobs[i]);
		a.job = &jobs[i];
		run_in_hand(&a);
	}
}

int
jq_run_batch(JqClaimed *job, Oid role, const char *queue, int queue_ix,
			 int most)
{
	int size = size_now(queue_ix, most);
	volatile int done = 0;
	volatile bool failed = false;
	volatile JqVerdict verdict = COMPLETED;
	int n;

	if (size == 1)
	{
		jq_run_claimed(job, role, queue, queue_ix);
		return 1;
	}
	if (jobs == NULL)
	{
		jobs = MemoryContextAlloc(TopMemoryContext,
								  JQ_BATCH_MAX * sizeof(JqClaimed));
		attempts = MemoryContextAlloc(TopMemoryContext,
									  JQ_BATCH_MAX * sizeof(JqAttempt));
	}
	jobs[0] = *job;
	jq_attempt_init(&attempts[0], &jobs[0], role, queue, queue_ix);
	njobs = 1;
	jq_session_check();
	(void) jq_attempt_context();
	jq_attempt_begin();
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		done = gather(size);
		JQ_PAUSE("batch-before-commit");
		if (done > 0 && jq_claim_any_cancel_wanted())
			ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
							errmsg("canceling a job of a batch")));
		attempts[0].committing = done > 0;
		set_commit_level(done);
		if (done > 0)
			jq_publish_will_tell(true);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		failed = true;
		verdict = jq_attempt_caught(&attempts[njobs == 1 ? 0 : njobs - 1],
									njobs == 1 && attempts[0].running);
	}
	PG_END_TRY();
	jq_inflight_clear();
	n = njobs;
	if (!failed)
	{
		JQ_PAUSE("worker-after-commit");
		note_committed(done);
		njobs = 0;
		jq_attempt_done();
		if (done < n)
		{
			/* it is in hand, and its look has changed nothing */
			jq_attempt_init(&attempts[n - 1], &jobs[n - 1], role, queue,
							queue_ix);
			run_in_hand(&attempts[n - 1]);
		}
		return n;
	}
	if (n == 1 && verdict != RERUN)
	{
		njobs = 0;
		jq_attempt_settle(&attempts[0], verdict);
		jq_attempt_done();
		return 1;
	}
	slow_down(queue_ix);
	if (verdict == RERUN && attempts[n - 1].running)
		jq_attempt_count_rerun(&jobs[n - 1]);
	jq_attempt_done();
	run_alone_each(n);
	njobs = 0;
	return n;
}

void
jq_batch_give_back(void)
{
	int lane;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid db, role;
	int64 open[JQ_BATCH_MAX];
	int nopen;
	int i, j;

	if (njobs == 0)
		return;
	lane = jobs[0].lane;
	db = jq_lanes[lane].db;
	role = jq_lanes[lane].role;
	strlcpy(queue, jq_lanes[lane].queue, sizeof(queue));
	slow_down(jq_lanes[lane].queue_ix);
	nopen = jq_claim_leave_others(lane, open);
	for (i = 0; i < njobs; i++)
	{
		JqItem item;

		for (j = 0; j < nopen && open[j] != jobs[i].id; j++)
			;
		if (j == nopen)
			continue;
		memset(&item, 0, sizeof(item));
		item.id = jobs[i].id;
		item.priority = jobs[i].pos.priority;
		item.tid = jobs[i].tid;
		/* as in the exit hook of worker.c.  model: EXIT_DUE */
		item.flags = jq_flags_perhaps_due(jobs[i].flags & ~JQ_E_UNPARKED);
		item.key = jobs[i].key;
		item.keylen = jobs[i].keylen;
		/* it finds its key held until the exit hook has let go of all */
		jq_lane_publish(db, role, queue, &item, 1);
		if (jq_claim_was_passed())
			jq_publish_unsure(db, jobs[i].id);
	}
	njobs = 0;
}
