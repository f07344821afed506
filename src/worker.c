/*
 * worker.c
 *		The worker process: takes jobs of one (database, role) and runs them.
 *
 * It goes round the lanes of its group that have ready jobs, one job from each
 * in turn.  With nothing to do it flushes what it has committed and sleeps on
 * its latch; it leaves after jobqueue.worker_idle_timeout, when it is asked to,
 * when it has run jobqueue.worker_max_jobs, or when it has grown too large.
 *
 * When the server is short of transaction ids (xids.h), it sleeps between jobs.
 *
 * Durability.  Jobs commit asynchronously.  Between jobs a worker flushes when
 * flush_interval, or ten times the duration of the last flush, has passed since
 * any worker did: a flush covers all that has been committed before.  With
 * nothing to do it gives others as long as flush_interval, or a flush, to do it
 * for it; the next commit of a client usually does, and would have to wait for
 * ours.  Then it flushes and sleeps.
 *
 * Exit.  The exit hook puts jobs that were taken and not begun back into their
 * lane, leaves one that had begun to the scheduler as failing, frees the keys
 * and the slot.  It is an on_shmem_exit callback: by then the transaction has
 * been aborted, and shared memory is still there.  model: EXIT_FAILING,
 * EXIT_PUBLISH, EXIT_KEY
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "batch.h"
#include "claim.h"
#include "compat.h"
#include "conflict.h"
#include "database.h"
#include "guc.h"
#include "inflight.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "publish.h"
#include "runjob.h"
#include "session.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "weight.h"
#include "worker.h"
#include "xids.h"

#define MAX_FLUSH_US 1000000
#define MAX_LANES 4096 /* of one role in one database, at a time */

bool jq_is_worker = false;
volatile sig_atomic_t jq_worker_interrupted = false;

static JqWorkerArgs args;
static int *my_lanes;
static int n_my_lanes;
static uint32 my_lanes_generation;
static int next_lane;
static bool weights_differ;
static int64 jobs_done;
static int64 look_at_memory = 255; /* after so many */

static XLogRecPtr flushed;

static void
interrupt_handler(SIGNAL_ARGS)
{
	jq_worker_interrupted = true;
	StatementCancelHandler(postgres_signal_arg);
}

void
jq_reload_config(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* the role, or what it is a member of, has changed */
static volatile bool role_changed;

static void
role_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	(void) arg;
	(void) cacheid;
	/* then all is discarded at each look, and no worker would run a job */
	if (hashvalue == 0 && debug_discard_caches > 0)
		return;
	role_changed = true;
}

bool
jq_worker_role_changed(void)
{
	return role_changed;
}

/* ------------------------------------------------------------------- exit */

/* the job in hand goes to the scheduler, who records a cancel as such; false: there
 * is no room for that */
static bool
leave_failed(void)
{
	return jq_claim_to_held(
		JQ_HELD_FAILING, InvalidTransactionId,
		jq_run_timed_out() ? "57014" : "57P01",
		jq_run_timed_out() ?
			"job timed out, and did not end when it was cancelled" :
			"the worker was terminated while it ran the job");
}

static void
worker_exit(int code, Datum arg)
{
	JqSlot *s;

	(void) code;
	(void) arg;
	LWLockReleaseAll();
	if (jq_my_slot < 0)
		return;
	s = &jq_slots[jq_my_slot];
	jq_batch_give_back();
	if (s->claim_lane >= 0)
	{
		char queue[JQ_QUEUE_NAME_MAX + 1];
		bool left;
		int queue_ix = jq_lanes[s->claim_lane].queue_ix;
		JqQueueSettings settings;

		jq_queue_settings(queue_ix, &settings);
		strlcpy(queue, jq_lanes[s->claim_lane].queue, sizeof(queue));
		/* until that is recorded nothing may overtake it */
		if ((settings.ordered ||
			 jq_key_is_service(s->claim_key, s->claim_keylen)) &&
			s->claim_state == JQ_CLAIM_RUNNING &&
			jq_keylock_mine(args.db, s->claim_key, s->claim_keylen))
			jq_keylock_order_begin(args.db, s->claim_key, s->claim_keylen,
								   queue, s->claim_pos, DT_NOEND);

		left = s->claim_state == JQ_CLAIM_RUNNING && leave_failed();
		if (!left)
		{
			/* before the claim: whoever takes the job now must not meet it */
			jq_unique_let_go();
			left = !jq_claim_end_uncancelled() && leave_failed();
		}
		if (!left)
		{
			JqItem item;
			uint64 orders = jq_keylock_order_number();

			/* not begun, or no room to note the failure: as if never taken */
			memset(&item, 0, sizeof(item));
			item.id = s->claim_pos.id;
			item.priority = s->claim_pos.priority;
			item.tid = s->claim_tid;
			/* nobody may have looked at the row: it may have a run_at by now,
			 * and a due scan has passed over it while it was claimed.
			 * model: EXIT_DUE */
			item.flags = jq_flags_perhaps_due(s->claim_flags);
			item.key = s->claim_key;
			item.keylen = s->claim_keylen;
			/* its key goes last, so that no later one passes it */
			jq_claim_end();
			jq_lane_publish(args.db, args.role, queue, &item, 1);
			if (jq_claim_was_passed())
				jq_publish_unsure(args.db, item.id);
			jq_keylock_order_recorded(args.db, s->claim_key, s->claim_keylen,
									  item.id, orders);
		}
	}
	jq_keylock_release_all();
	jq_inflight_clear();
	jq_slot_detach();
}

/* ------------------------------------------------------------------ lanes */

static void
refresh_lanes(void)
{
	uint32 now = pg_atomic_read_u32(&jq_groups[args.group].lanes_generation);

	if (now == my_lanes_generation)
		return;
	my_lanes_generation = now;
	n_my_lanes = jq_dir_lanes_of_group(args.group, my_lanes,
									   Min(MAX_LANES, jq_shared->nlanes));
	weights_differ = jq_weights_differ(my_lanes, n_my_lanes);
}

/* may anything be taken? */
static bool
anything_ready(void)
{
	int i;

	refresh_lanes();
	for (i = 0; i < n_my_lanes; i++)
		if (*(volatile uint32 *) &jq_lanes[my_lanes[i]].nready > 0 &&
			jq_lane_has_first(my_lanes[i]))
			return true;
	return false;
}

static bool
may_have_job(int lane)
{
	return jq_lane_may_have(&jq_lanes[lane], jq_slots[jq_my_slot].place.queue);
}

/* called for a job of a limited queue: take one, or let others have the place */
static bool
take_called(JqClaimed *job)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int i;

	if (s->claim_lane >= 0 || s->place.queue < 0)
		return false;
	JQ_PAUSE("worker-called");
	for (i = 0; i < n_my_lanes; i++)
		if (jq_lanes[my_lanes[i]].queue_ix == s->place.queue &&
			jq_claim_next(my_lanes[i], args.db, args.role, job))
		{
			if (weights_differ)
				jq_weight_charge(args.group, job->lane, 1);
			return true;
		}
	jq_claim_end();
	return false;
}

/* take a job from the lane that is owed most, of those that have one */
static bool
take_weighted(JqClaimed *job)
{
	static uint32 round;
	int lane;

	round++;
	while ((lane = jq_weight_choose(args.group, my_lanes, n_my_lanes,
									jq_slots[jq_my_slot].place.queue,
									&next_lane, round)) >= 0)
		if (jq_claim_next(lane, args.db, args.role, job))
		{
			jq_weight_charge(args.group, lane, 1);
			return true;
		}
	return false;
}

/* take a job from the next lane that has one */
static bool
take_job(JqClaimed *job)
{
	int i;

	refresh_lanes();
	if (take_called(job))
		return true;
	if (weights_differ)
		return take_weighted(job);
	for (i = 0; i < n_my_lanes; i++)
	{
		int lane = my_lanes[(next_lane + i) % n_my_lanes];

		if (!may_have_job(lane))
			continue;
		if (jq_claim_next(lane, args.db, args.role, job))
		{
			next_lane = (next_lane + i + 1) % n_my_lanes;
			return true;
		}
	}
	return false;
}

/* more to do than this worker can: ask for another one */
static void
call_for_help(int lane)
{
	int n;

	if (!may_have_job(lane) || jq_group_is_awake(args.group))
		return;
	/* a job of it is claimed, so it stays what it is */
	n = jq_limit_wakes(lane, 1);
	jq_limit_wake();
	if (n > 0)
		jq_group_wake(args.group, n);
}

/* others may be waiting for a worker's place */
static void
call_launcher(void)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
		if (i != args.group && OidIsValid(jq_groups[i].db) &&
			*(volatile bool *) &jq_groups[i].wanted)
		{
			jq_launcher_wake();
			return;
		}
}

/* ------------------------------------------------------------------ flush */

/* has a job of ours committed that is not on disk? */
static bool
unflushed(void)
{
	if (XactLastCommitEnd == InvalidXLogRecPtr || XactLastCommitEnd <= flushed)
		return false;
	flushed = GetFlushRecPtr(NULL);
	return XactLastCommitEnd > flushed;
}

static void
flush_commits(void)
{
	instr_time start, end;

	if (!unflushed())
		return;
	INSTR_TIME_SET_CURRENT(start);
	XLogFlush(XactLastCommitEnd);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	flushed = XactLastCommitEnd;
	pg_atomic_write_u32(&jq_shared->flush_cost,
						(uint32) Min(INSTR_TIME_GET_MICROSEC(end),
									 (uint64) MAX_FLUSH_US));
	pg_atomic_write_u64(&jq_shared->last_flush, (uint64) GetCurrentTimestamp());
}

static void
maybe_flush(void)
{
	int64 interval = (int64) jobqueue_flush_interval * 1000;
	uint64 last;
	TimestampTz now;

	if (XactLastCommitEnd <= flushed)
		return;
	if (interval == 0)
	{
		flush_commits();
		return;
	}
	interval =
		Max(interval, 10 * (int64) pg_atomic_read_u32(&jq_shared->flush_cost));
	last = pg_atomic_read_u64(&jq_shared->last_flush);
	/* when the last transaction ended is near enough to now */
	now = GetCurrentTransactionStopTimestamp();
	if (now - (TimestampTz) last >= interval &&
		pg_atomic_compare_exchange_u64(&jq_shared->last_flush, &last,
									   (uint64) now))
		flush_commits();
}

/* how long an idle worker leaves its flush to others */
static int64
linger_us(void)
{
	if (jobqueue_flush_interval == 0)
		return 0;
	return Max((int64) jobqueue_flush_interval * 1000,
			   (int64) pg_atomic_read_u32(&jq_shared->flush_cost));
}

/* ------------------------------------------------------------------- loop */

/* so many jobs may follow before this worker leaves */
static int
most_jobs(void)
{
	if (jobqueue_worker_max_jobs == 0)
		return JQ_BATCH_MAX;
	return (int) Min(jobqueue_worker_max_jobs - jobs_done, JQ_BATCH_MAX);
}

static bool
should_leave(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];

	if (*(volatile bool *) &s->stop || role_changed)
		return true;
	if (jobqueue_worker_max_jobs > 0 && jobs_done >= jobqueue_worker_max_jobs)
		return true;
	if (jobs_done >= look_at_memory && jobqueue_worker_max_memory > 0 &&
		MemoryContextMemAllocated(TopMemoryContext, true) >
			(Size) jobqueue_worker_max_memory * 1024)
		return true;
	if (jobs_done >= look_at_memory)
		look_at_memory = jobs_done + 256;
	return false;
}

/*
 * Transaction ids may have run short: sleep until a job may be started, or
 * there is something else to do (false).
 */
static bool
wait_for_ids(void)
{
	static uint32 wait_event;
	JqSlot *s = &jq_slots[jq_my_slot];
	JqXidState state;
	long ms;

	while ((ms = jq_xids_look(&state)) > 0)
	{
		jq_claim_end();
		if (should_leave() || !jobqueue_enabled ||
			jq_db_is_quiesced(jq_groups[args.group].dbix) || !anything_ready())
			break;
		flush_commits();
		if (!s->held_back)
			pgstat_report_activity(STATE_IDLE, NULL);
		s->held_back = state;
		pgstat_report_stat(false);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
						 jq_wait_event(&wait_event, "JobqueueTransactionIds"));
		ResetLatch(MyLatch);
		/* nobody cancels a worker without a job */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		jq_reload_config();
	}
	s->held_back = JQ_XIDS_PLENTY;
	return ms == 0;
}

/* sleep until woken; false: idle for too long */
static bool
wait_for_work(void)
{
	static uint32 wait_event;
	TimestampTz idle_since = GetCurrentTimestamp();
	TimestampTz flush_at = idle_since + linger_us();

	jq_run_idle();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	jq_xids_set_due();
	for (;;)
	{
		TimestampTz now;
		TimestampTz wake;
		int rc;

		if (!jq_slot_set_idle())
			return true; /* called, while the latch was reset */
		/* model: LOOK_BEFORE_SLEEP */
		if (jobqueue_enabled &&
			!jq_db_is_quiesced(jq_groups[args.group].dbix) && anything_ready())
		{
			jq_slot_set_busy();
			return true;
		}
		if (should_leave())
			return false;
		call_launcher();
		now = GetCurrentTimestamp();
		wake = TimestampTzPlusMilliseconds(idle_since,
										   jobqueue_worker_idle_timeout *
											   INT64CONST(1000));
		if (now >= wake)
			return false;
		if (unflushed())
		{
			if (now < flush_at)
				wake = Min(wake, flush_at);
			else
				flush_commits();
		}
		rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					   TimestampDifferenceMilliseconds(now, wake),
					   jq_wait_event(&wait_event, "JobqueueWorkerMain"));
		ResetLatch(MyLatch);
		/* nobody cancels an idle worker */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		jq_reload_config();
		if (rc & WL_LATCH_SET)
		{
			jq_slot_set_busy();
			return true;
		}
	}
}

void
jq_worker_main(Datum arg)
{
	(void) arg;
	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, interrupt_handler);
	BackgroundWorkerUnblockSignals();

	if (!jq_slot_attach(args.slot, args.generation))
		proc_exit(0);
	on_shmem_exit(worker_exit, (Datum) 0);
	jq_inflight_attach(args.slot);
	jq_is_worker = true;

	jq_session_connect(args.db, args.role, args.nobody);
	my_lanes =
		MemoryContextAlloc(TopMemoryContext,
						   Min(MAX_LANES, jq_shared->nlanes) * sizeof(int));
	jq_publish_init();
	jq_keylock_prepare();
	role_changed = false;
	CacheRegisterSyscacheCallback(AUTHOID, role_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, role_callback, (Datum) 0);
	jq_xids_attach();
	jq_slot_ready();

	for (;;)
	{
		JqClaimed job;

		/* what was meant for the last job must not hit this loop */
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		jq_reload_config();
		if (should_leave())
			break;
		if (jobqueue_enabled && (!jq_xids_due() || wait_for_ids()) &&
			take_job(&job))
		{
			char queue[JQ_QUEUE_NAME_MAX + 1];
			int n;

			strlcpy(queue, jq_lanes[job.lane].queue, sizeof(queue));
			call_for_help(job.lane);
			n = jq_run_batch(&job, args.role, queue,
							 jq_lanes[job.lane].queue_ix, most_jobs());
			jobs_done += n;
			if (weights_differ && n > 1)
				jq_weight_charge(args.group, job.lane, n - 1);
			jq_slots[jq_my_slot].jobs = jobs_done;
			maybe_flush();
			continue;
		}
		jq_claim_end();
		if (!wait_for_work())
		{
			jq_slot_set_busy(); /* from here on nobody gives it a place */
			break;
		}
	}
	jq_claim_end();
	flush_commits();
	proc_exit(0);
}
