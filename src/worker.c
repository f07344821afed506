/*
 * worker.c
 *		The worker process: takes jobs of one (database, role) and runs them.
 *
 * It goes round the lanes of its group that have ready jobs, one job from each
 * in turn.  With nothing to do it flushes what it has committed and sleeps on
 * its latch; it leaves after jobqueue.worker_idle_timeout, when it is asked to,
 * when it has run jobqueue.worker_max_jobs, or when it has grown too large.
 *
 * Durability.  Jobs commit asynchronously.  Between jobs the worker flushes when
 * flush_interval, or ten times the duration of the last flush, has passed since
 * the last one; it never sleeps with unflushed commits.
 *
 * Exit.  The exit hook puts jobs that were taken and not begun back into their
 * lane, leaves one that had begun to the scheduler as failing, frees the keys
 * and the slot.  It is an on_shmem_exit callback: by then the transaction has
 * been aborted, and shared memory is still there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "batch.h"
#include "claim.h"
#include "compat.h"
#include "database.h"
#include "guc.h"
#include "inflight.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
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
#include "worker.h"

#define MAX_LANES 4096 /* of one role in one database, at a time */

bool jq_is_worker = false;
volatile sig_atomic_t jq_worker_interrupted = false;

static JqWorkerArgs args;
static int *my_lanes;
static int n_my_lanes;
static uint32 my_lanes_generation;
static int next_lane;
static int64 jobs_done;
static int64 look_at_memory = 255; /* after so many */

static XLogRecPtr flushed;
static TimestampTz last_flush;
static int64 flush_cost; /* us */

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
	(void) hashvalue;
	role_changed = true;
}

bool
jq_worker_role_changed(void)
{
	return role_changed;
}

/* ------------------------------------------------------------------- exit */

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

		bool cancelled = s->cancel_for == s->claim_pos.id;

		strlcpy(queue, jq_lanes[s->claim_lane].queue, sizeof(queue));

		if (s->claim_state == JQ_CLAIM_RUNNING &&
			jq_claim_to_held(
				JQ_HELD_FAILING, InvalidTransactionId,
				cancelled		   ? "CANCL" :
				jq_run_timed_out() ? "57014" :
									 "57P01",
				jq_run_timed_out() ?
					"job timed out, and did not end when it was cancelled" :
					"the worker was terminated while it ran the job"))
			;
		else
		{
			JqItem item;

			/* not begun, or no room to note the failure: as if never taken */
			memset(&item, 0, sizeof(item));
			item.id = s->claim_pos.id;
			item.priority = s->claim_pos.priority;
			item.tid = s->claim_tid;
			item.flags = s->claim_flags;
			item.key = s->claim_key;
			item.keylen = s->claim_keylen;
			jq_claim_end();
			jq_keylock_release_all();
			jq_lane_publish(args.db, args.role, queue, &item, 1);
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

/* take a job from the next lane that has one */
static bool
take_job(JqClaimed *job)
{
	int i;

	refresh_lanes();
	for (i = 0; i < n_my_lanes; i++)
	{
		int lane = my_lanes[(next_lane + i) % n_my_lanes];

		if (*(volatile uint32 *) &jq_lanes[lane].nready == 0 ||
			jq_lane_stopped(&jq_lanes[lane]))
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
	if (*(volatile uint32 *) &jq_lanes[lane].nready > 0 &&
		!jq_lane_stopped(&jq_lanes[lane]))
		jq_group_wake(args.group, 1);
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

static void
flush_commits(void)
{
	instr_time start, end;

	if (XactLastCommitEnd == InvalidXLogRecPtr || XactLastCommitEnd <= flushed)
		return;
	INSTR_TIME_SET_CURRENT(start);
	XLogFlush(XactLastCommitEnd);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	flush_cost = INSTR_TIME_GET_MICROSEC(end);
	flushed = XactLastCommitEnd;
	last_flush = GetCurrentTimestamp();
}

static void
maybe_flush(void)
{
	int64 interval = (int64) jobqueue_flush_interval * 1000;

	if (XactLastCommitEnd <= flushed)
		return;
	interval = interval == 0 ? 0 : Max(interval, 10 * flush_cost);
	if (GetCurrentTimestamp() - last_flush >= interval)
		flush_commits();
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

/* sleep until woken; false: idle for too long */
static bool
wait_for_work(void)
{
	static uint32 wait_event;
	TimestampTz idle_since = GetCurrentTimestamp();

	flush_commits();
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	for (;;)
	{
		long timeout;
		int rc;

		jq_slot_set_idle();
		if (jobqueue_enabled &&
			!jq_db_is_quiesced(jq_groups[args.group].dbix) && anything_ready())
		{
			jq_slot_set_busy();
			return true;
		}
		if (should_leave())
			return false;
		call_launcher();
		timeout = TimestampDifferenceMilliseconds(
			GetCurrentTimestamp(),
			TimestampTzPlusMilliseconds(idle_since,
										jobqueue_worker_idle_timeout *
											INT64CONST(1000)));
		if (timeout <= 0)
			return false;
		rc = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					   timeout,
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
		if (jobqueue_enabled && take_job(&job))
		{
			char queue[JQ_QUEUE_NAME_MAX + 1];

			strlcpy(queue, jq_lanes[job.lane].queue, sizeof(queue));
			call_for_help(job.lane);
			jobs_done += jq_run_batch(&job, args.role, queue,
									  jq_lanes[job.lane].queue_ix, most_jobs());
			jq_slots[jq_my_slot].jobs = jobs_done;
			maybe_flush();
			continue;
		}
		jq_claim_end();
		if (!wait_for_work())
			break;
	}
	jq_claim_end();
	flush_commits();
	proc_exit(0);
}
