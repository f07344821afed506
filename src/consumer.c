/*
 * consumer.c
 *		Sessions that wait for jobs to fetch.
 *
 * Whoever puts a job into a lane wakes workers of its group; that of consumers
 * has sessions instead, in the order in which they came.  Each is woken once: it
 * leaves the list with that.
 *
 *		none    -> waiting	: jq_consumer_wait
 *		waiting -> called	: jq_consumer_wake, jq_consumer_call (with a place)
 *		any     -> none		: jq_consumer_stop
 *
 * A session puts itself into the list, then looks at its lane, then sleeps; a
 * publisher puts the entry into the lane, then looks at the list.  One of the two
 * sees the other.  One that was called and goes away otherwise (an error, its
 * exit) calls the next one.
 */
#include "postgres.h"

#include "compat.h"
#include "consumer.h"
#include "database.h"
#include "lane.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"

/* by procno; all under JQ_LOCK_SLOT */
typedef struct Consumer
{
	bool waiting;
	bool called;
	int group;
	int prev; /* by procno, -1 = none */
	int next;
	JqPlace place;
} Consumer;

static Consumer *consumers;
static bool in_use; /* mine */

Size
jq_consumer_size(void)
{
	return MAXALIGN(mul_size(MaxBackends, sizeof(Consumer)));
}

void
jq_consumer_init(void)
{
	bool found;

	consumers =
		ShmemInitStruct("jobqueue consumers", jq_consumer_size(), &found);
	if (!found)
		memset(consumers, 0, jq_consumer_size());
}

/* JQ_LOCK_SLOT held */
static void
unlink_consumer(int procno)
{
	Consumer *c = &consumers[procno];
	JqGroup *g = &jq_groups[c->group];

	Assert(c->waiting);
	if (c->prev >= 0)
		consumers[c->prev].next = c->next;
	else
		g->first_waiter = c->next;
	if (c->next >= 0)
		consumers[c->next].prev = c->prev;
	else
		g->last_waiter = c->prev;
	c->waiting = false;
	g->nidle--;
}

static void
consumer_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_consumer_leave();
}

bool
jq_consumer_wait(const char *queue)
{
	static bool registered;
	int procno = jq_my_procno();
	Consumer *c = &consumers[procno];
	JqGroup *g;
	int lane;

	Assert(procno < MaxBackends && !in_use);
	if (!registered)
		on_shmem_exit(consumer_exit, (Datum) 0);
	registered = true;
	/* its group stays as long as somebody waits in it */
	for (;;)
	{
		lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, queue, true);
		if (lane < 0)
			return false;
		LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
		if (jq_lane_is(&jq_lanes[lane], MyDatabaseId, JQ_CONSUMER_ROLE, queue))
			break;
		LWLockRelease(jq_lane_lock(lane));
		jq_dir_forget();
	}
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	in_use = true;
	c->group = jq_lanes[lane].group;
	g = &jq_groups[c->group];
	c->waiting = true;
	c->called = false;
	c->place = JQ_NO_PLACE;
	c->next = -1;
	c->prev = g->last_waiter;
	if (g->last_waiter >= 0)
		consumers[g->last_waiter].next = procno;
	else
		g->first_waiter = procno;
	g->last_waiter = procno;
	g->nidle++;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	LWLockRelease(jq_lane_lock(lane));
	return true;
}

bool
jq_consumer_stop(JqPlace *place)
{
	int procno = jq_my_procno();
	Consumer *c = &consumers[procno];
	bool called;

	*place = JQ_NO_PLACE;
	if (!in_use)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	if (c->waiting)
		unlink_consumer(procno);
	called = c->called;
	c->called = false;
	*place = c->place;
	c->place = JQ_NO_PLACE;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	in_use = false;
	return called;
}

bool
jq_consumer_called(void)
{
	return *(volatile bool *) &consumers[jq_my_procno()].called;
}

void
jq_consumer_leave(void)
{
	JqPlace place;
	int group = consumers[jq_my_procno()].group;

	if (!in_use || !jq_consumer_stop(&place))
		return;
	/* the place goes to whoever waits for one; or the wake-up, to the next */
	jq_limit_give(&place);
	jq_group_wake(group, 1);
}

bool
jq_consumer_may_have(const char *queue)
{
	int lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, queue, true);

	return lane >= 0 && jq_lane_has_first(lane);
}

bool
jq_consumer_is_behind(const char *queue)
{
	int lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, queue, true);

	return lane >= 0 && jq_lane_is_behind(lane);
}

void
jq_consumer_wake(int group, int n)
{
	JqGroup *g = &jq_groups[group];

	while (n > 0)
	{
		int wake[64];
		int nwake = 0;
		int i;

		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
		while (g->first_waiter >= 0 && nwake < n &&
			   nwake < (int) lengthof(wake))
		{
			int procno = g->first_waiter;

			unlink_consumer(procno);
			consumers[procno].called = true;
			wake[nwake++] = procno;
		}
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		for (i = 0; i < nwake; i++)
			SetLatch(&GetPGProcByNumber(wake[i])->procLatch);
		n = nwake < (int) lengthof(wake) ? 0 : n - nwake;
	}
}

int
jq_consumer_call(int group, const JqPlace *place)
{
	JqGroup *g = &jq_groups[group];
	int procno;

	if (*(volatile int *) &g->nidle == 0)
		return -1;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
	procno = g->first_waiter;
	if (procno >= 0)
	{
		unlink_consumer(procno);
		consumers[procno].called = true;
		consumers[procno].place = *place;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	return procno;
}
