/*
 * slot.c
 *		Worker slots.
 *
 * The launcher reserves a slot, gives it a generation and starts a process for
 * it; the process attaches if the slot still is of that generation.  So a start
 * that failed or came too late harms nobody.
 *
 * Sleeping and waking: a worker marks its slot idle, then looks at its lanes a
 * last time, then sleeps; a publisher puts the entry into the lane, then looks
 * for idle slots.  One of the two sees the other.
 */
#include "postgres.h"

#include <signal.h>

#include "compat.h"
#include "consumer.h"
#include "database.h"
#include "guc.h"
#include "lane.h"
#include "miscadmin.h"
#include "slot.h"
#include "storage/latch.h"
#include "storage/shmem.h"

JqSlot *jq_slots;
JqClaimCell *jq_claim_cells;
JqOther *jq_claim_others;
int jq_my_slot = -1;

static uint64 my_generation;

static Size
others_size(void)
{
	return MAXALIGN(
		mul_size(max_worker_processes, JQ_BATCH_MAX * sizeof(JqOther)));
}

Size
jq_slot_size(void)
{
	Size size = MAXALIGN(mul_size(max_worker_processes, sizeof(JqSlot)));

	size =
		add_size(size,
				 MAXALIGN(mul_size(max_worker_processes, sizeof(JqClaimCell))));
	return add_size(size, others_size());
}

void
jq_slot_init(void)
{
	bool found;
	int i;

	jq_slots = ShmemInitStruct("jobqueue slots",
							   MAXALIGN(mul_size(max_worker_processes,
												 sizeof(JqSlot))),
							   &found);
	if (!found)
	{
		memset(jq_slots, 0, max_worker_processes * sizeof(JqSlot));
		for (i = 0; i < max_worker_processes; i++)
		{
			jq_slots[i].procno = -1;
			jq_slots[i].claim_lane = -1;
			jq_slots[i].place = JQ_NO_PLACE;
		}
		jq_shared->nslots = max_worker_processes;
	}
	jq_claim_cells = ShmemInitStruct("jobqueue claims of slots",
									 MAXALIGN(mul_size(max_worker_processes,
													   sizeof(JqClaimCell))),
									 &found);
	if (!found)
		memset(jq_claim_cells, 0, max_worker_processes * sizeof(JqClaimCell));
	jq_claim_others =
		ShmemInitStruct("jobqueue batches of slots", others_size(), &found);
}

int
jq_slot_reserve(int group, uint64 *generation)
{
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_slots[i].state == JQ_SLOT_FREE)
			break;
	if (i < jq_shared->nslots)
	{
		JqSlot *s = &jq_slots[i];

		s->state = JQ_SLOT_STARTING;
		s->generation = *generation = ++jq_shared->next_generation;
		s->pid = 0;
		s->procno = -1;
		s->group = group;
		s->launched = GetCurrentTimestamp();
		s->stop = false;
		s->written_off = false;
		s->waiting = false;
		s->jobs = 0;
		s->held_back = 0;
		s->others_wait = false;
		s->place = JQ_NO_PLACE;
		jq_groups[group].nworkers++;
		jq_groups[group].last_served = s->launched;
	}
	else
		i = -1;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return i;
}

/* JQ_LOCK_SLOT held: a worker has not come up; the more have not, the later is
 * the next */
static void
start_failed(JqGroup *g)
{
	g->nfailed++;
	g->not_before = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												jq_db_retry_ms(g->nfailed));
}

/* JQ_LOCK_SLOT held */
static void
slot_free(JqSlot *s)
{
	if (s->state == JQ_SLOT_IDLE)
		jq_groups[s->group].nidle--;
	jq_groups[s->group].nworkers--;
	if (s->waiting)
		jq_groups[s->group].nwaiting--;
	s->waiting = false;
	/* it may go with a wake-up that was meant for it: the launcher looks;
	 * model: EXIT_WANTED */
	jq_groups[s->group].wanted = true;
	s->state = JQ_SLOT_FREE;
	s->pid = 0;
	s->procno = -1;
}

void
jq_slot_unreserve(int slot, uint64 generation, bool failed)
{
	JqSlot *s = &jq_slots[slot];

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (s->state == JQ_SLOT_STARTING && s->generation == generation)
	{
		if (failed)
			start_failed(&jq_groups[s->group]);
		slot_free(s);
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

bool
jq_slot_attach(int slot, uint64 generation)
{
	JqSlot *s = &jq_slots[slot];
	bool ok;

	if (slot < 0 || slot >= jq_shared->nslots)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	ok = s->state == JQ_SLOT_STARTING && s->generation == generation &&
		 s->pid == 0;
	if (ok)
	{
		s->pid = MyProcPid;
		s->procno = jq_my_procno();
		jq_my_slot = slot;
		my_generation = generation;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return ok;
}

void
jq_slot_detach(void)
{
	JqSlot *s;
	JqPlace place = JQ_NO_PLACE;

	if (jq_my_slot < 0)
		return;
	s = &jq_slots[jq_my_slot];
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (s->generation == my_generation && s->pid == MyProcPid)
	{
		/* it may have been idle, and given one until now; model: EXIT_PLACE */
		place = s->place;
		s->place = JQ_NO_PLACE;
		/* it could not connect */
		if (s->state == JQ_SLOT_STARTING)
			start_failed(&jq_groups[s->group]);
		slot_free(s);
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	jq_limit_give(&place);
	jq_my_slot = -1;
	jq_launcher_wake();
}

void
jq_slot_ready(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	s->state = JQ_SLOT_BUSY;
	jq_groups[s->group].nfailed = 0;
	jq_groups[s->group].not_before = 0;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

/* model: CALLED_AWAKE */
bool
jq_slot_set_idle(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	bool idle;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	idle = s->place.queue < 0;
	if (idle && s->state == JQ_SLOT_BUSY)
	{
		s->state = JQ_SLOT_IDLE;
		s->idle_since = GetCurrentTimestamp();
		jq_groups[s->group].nidle++;
		jq_groups[s->group].wanted = false;
		jq_groups[s->group].called = false;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return idle;
}

void
jq_slot_set_busy(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (s->state == JQ_SLOT_IDLE)
	{
		s->state = JQ_SLOT_BUSY;
		jq_groups[s->group].nidle--;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

/* JQ_LOCK_SLOT held: of that role, or (InvalidOid) of any */
static int
count_waiting(Oid role)
{
	int n = 0;
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_slots[i].state != JQ_SLOT_FREE && jq_slots[i].waiting &&
			(!OidIsValid(role) || jq_groups[jq_slots[i].group].role == role))
			n++;
	return n;
}

bool
jq_slot_begin_wait(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	bool ok;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	ok = count_waiting(InvalidOid) < jobqueue_max_workers &&
		 count_waiting(jq_groups[s->group].role) < jq_workers_per_role();
	if (ok)
	{
		s->waiting = true;
		jq_groups[s->group].nwaiting++;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	if (ok)
		jq_launcher_wake();
	return ok;
}

void
jq_slot_end_wait(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int n = 0;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (s->waiting)
	{
		s->waiting = false;
		jq_groups[s->group].nwaiting--;
	}
	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_slots[i].state != JQ_SLOT_FREE && !jq_slots[i].written_off &&
			!jq_slots[i].waiting && !jq_slots[i].stop)
			n++;
	if (n > jobqueue_max_workers ||
		jq_groups[s->group].nworkers - jq_groups[s->group].nwaiting >
			jq_workers_per_role())
		s->stop = true;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
}

bool
jq_slot_all_wait(void)
{
	bool all = true;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
	for (i = 0; i < jq_shared->nslots && all; i++)
		all = jq_slots[i].state == JQ_SLOT_FREE || jq_slots[i].waiting ||
			  jq_slots[i].written_off;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return all;
}

void
jq_slot_wake_waiting(void)
{
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		int procno = -1;

		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
		if (jq_slots[i].state != JQ_SLOT_FREE && jq_slots[i].waiting)
			procno = jq_slots[i].procno;
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		if (procno >= 0)
			SetLatch(&GetPGProcByNumber(procno)->procLatch);
	}
}

void
jq_launcher_wake(void)
{
	int procno = *(volatile int *) &jq_shared->launcher_procno;

	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

bool
jq_group_is_awake(int group)
{
	JqGroup *g = &jq_groups[group];

	/* pairs with the lock in jq_slot_set_idle */
	pg_memory_barrier();
	if (g->role == JQ_CONSUMER_ROLE)
		return *(volatile int *) &g->nidle == 0; /* nobody starts one */
	return *(volatile int *) &g->nidle == 0 && *(volatile bool *) &g->wanted;
}

void
jq_group_wake(int group, int n)
{
	JqGroup *g = &jq_groups[group];
	int wake[64];
	int nwake = 0;
	bool launcher = false;
	int i;

	if (jq_group_is_awake(group))
		return;
	/* nobody may take anything; jobqueue_resume() wakes */
	if (jq_db_is_quiesced(g->dbix))
		return;
	if (g->role == JQ_CONSUMER_ROLE)
	{
		jq_consumer_wake(group, n);
		return;
	}
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nslots && g->nidle > 0 && nwake < n &&
				nwake < (int) lengthof(wake);
		 i++)
	{
		JqSlot *s = &jq_slots[i];

		if (s->state == JQ_SLOT_IDLE && s->group == group)
		{
			s->state = JQ_SLOT_BUSY;
			g->nidle--;
			wake[nwake++] = s->procno;
		}
	}
	if (nwake < n && !g->wanted)
		g->wanted = launcher = true;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	for (i = 0; i < nwake; i++)
		SetLatch(&GetPGProcByNumber(wake[i])->procLatch);
	if (launcher)
		jq_launcher_wake();
}

int
jq_slot_call(int group, const JqPlace *place, bool *launcher)
{
	JqGroup *g = &jq_groups[group];
	int procno = -1;
	int i;

	if (g->role == JQ_CONSUMER_ROLE)
		return jq_consumer_call(group, place);
	/* the caller took the lane off the list of those that wait before this */
	if (*(volatile int *) &g->nidle == 0 && *(volatile bool *) &g->wanted &&
		*(volatile bool *) &g->called)
		return -1;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nslots && g->nidle > 0 && procno < 0; i++)
	{
		JqSlot *s = &jq_slots[i];

		/* not one that is about to leave */
		if (s->state != JQ_SLOT_IDLE || s->group != group || s->stop)
			continue;
		s->state = JQ_SLOT_BUSY;
		g->nidle--;
		s->place = *place;
		procno = s->procno;
	}
	if (procno < 0)
	{
		*launcher = !g->wanted || !g->called;
		g->wanted = g->called = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return procno;
}

int
jq_slot_stop_idle(Oid db, Oid role)
{
	int n = 0;
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		int procno = -1;

		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
		if (s->state != JQ_SLOT_FREE &&
			(!OidIsValid(db) || jq_groups[s->group].db == db) &&
			(!OidIsValid(role) || jq_groups[s->group].role == role))
		{
			s->stop = true; /* a busy one leaves after its job */
			if (s->state == JQ_SLOT_IDLE || s->held_back)
			{
				procno = s->procno;
				n++;
			}
		}
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		if (procno >= 0)
			SetLatch(&GetPGProcByNumber(procno)->procLatch);
	}
	return n;
}

bool
jq_slot_evict_idle(int group, Oid role)
{
	int best = -1;
	int procno = -1;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];

		/* one place at a time: is somebody on his way out already? */
		if (s->state != JQ_SLOT_FREE && s->stop && s->group != group &&
			jq_claim_cells[i].id == 0 &&
			(!OidIsValid(role) || jq_groups[s->group].role == role))
		{
			LWLockRelease(jq_lock(JQ_LOCK_SLOT));
			return true;
		}
		if (s->state == JQ_SLOT_IDLE && s->group != group && !s->stop &&
			(!OidIsValid(role) || jq_groups[s->group].role == role) &&
			(best < 0 || s->idle_since < jq_slots[best].idle_since))
			best = i;
	}
	if (best >= 0)
	{
		jq_slots[best].stop = true;
		procno = jq_slots[best].procno;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
	return best >= 0;
}

#define TIME_SLICE_MS 1000

bool
jq_slot_evict_busy(int group, Oid role, TimestampTz *when)
{
	TimestampTz now = GetCurrentTimestamp();
	int best = -1;
	bool evicted = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		int n;

		if (s->state != JQ_SLOT_BUSY || s->group == group || s->written_off ||
			(OidIsValid(role) && jq_groups[s->group].role != role))
			continue;
		if (s->stop)
		{
			/* it leaves after its job; a long one is not waited for */
			if (now - s->started_at > TIME_SLICE_MS * INT64CONST(1000))
				continue;
			*when = TimestampTzPlusMilliseconds(now, TIME_SLICE_MS);
			best = -1;
			break;
		}
		n = jq_groups[s->group].nworkers;
		if (best < 0 || n > jq_groups[jq_slots[best].group].nworkers ||
			(n == jq_groups[jq_slots[best].group].nworkers &&
			 s->launched < jq_slots[best].launched))
			best = i;
	}
	if (best >= 0)
	{
		*when =
			TimestampTzPlusMilliseconds(jq_slots[best].launched, TIME_SLICE_MS);
		if (*when <= now)
			jq_slots[best].stop = evicted = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return evicted;
}

#define CANCEL_REPEAT_MS 1000
#define CANCEL_TERMINATE_MS 5000

void
jq_slot_repeat_cancels(TimestampTz *when)
{
	TimestampTz now = GetCurrentTimestamp();
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		int lane = *(volatile int *) &s->claim_lane;

		if (lane < 0 || *(volatile int64 *) &s->cancel_for == 0)
			continue;
		LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
		if (s->claim_lane == lane && s->cancel_for != 0 &&
			s->cancel_for == jq_claim_cells[i].id)
		{
			int64 age = (now - s->cancel_at) / 1000;

			/* a job can swallow a cancel, but not a termination */
			if (age >= CANCEL_TERMINATE_MS)
				kill(s->pid, SIGTERM);
			else if (age >= CANCEL_REPEAT_MS)
				kill(s->pid, SIGINT);
			*when =
				Min(*when, TimestampTzPlusMilliseconds(now, CANCEL_REPEAT_MS));
		}
		LWLockRelease(jq_lane_lock(lane));
	}
}

void
jq_slot_show(int attempt, TimestampTz started, TimestampTz deadline,
			 const char *command)
{
	JqSlot *s = &jq_slots[jq_my_slot];

	s->changecount++;
	pg_write_barrier();
	s->attempt = attempt;
	s->started_at = started;
	s->deadline = deadline;
	strlcpy(s->command, command, sizeof(s->command));
	pg_write_barrier();
	s->changecount++;
}
