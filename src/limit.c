/*
 * limit.c
 *		Limits of a queue: places and tokens, and whose turn it is.
 *
 * Places.  Each worker that has claims has one place of their queue; a batch has
 * one.  "running" counts them whether there is a limit or not, so that a limit
 * is right from the moment it is set.  A worker that goes on to the next job of
 * the same lane keeps its place, which costs nothing.  What has been rolled back
 * and written down has ended: "failing" and "doubtful" claims have no place.
 *
 * Tokens.  A bucket of "rate" tokens, filled at an even pace and empty in the
 * beginning, so that in no span of time more jobs start than come in it, and
 * "rate" more.  It is one number, the moment at which it will be full.  A token
 * that is taken moves that moment by the interval in which one comes, rounded up;
 * one that was not used moves it back.  One that is taken has its room in the
 * bucket until its job starts or it is given back: else the bucket would fill up
 * behind workers that are held up, and what starts then would be more than a
 * burst.  Time is that of a clock nobody sets.
 *
 * Order.  What there is for a job is taken in one visit, under the lane's lock:
 * not stopped, a place, a token, then the entry and its key; and given back if
 * there is no entry that may run.
 *
 * Waiting.  A lane that is refused, or gets jobs while its queue is at a limit,
 * waits in the queue's list, and nobody looks at it.  Who gives back a place or a
 * token, and the launcher when a token comes, calls those who wait, in order: the
 * lane leaves the list, and the place goes, with a token, to an idle worker of
 * the lane's role, which is awake from then on.  It takes a job with it or passes
 * it on; so nothing is held by anyone who cannot run.  Where no worker is idle
 * the place stays free for whoever comes, and the launcher is to start a worker,
 * which will wait there when the next place becomes free.
 *
 *		lane: not waiting -> waiting	: jq_limit_take, jq_limit_wakes
 *		      waiting -> not waiting	: serve; jq_limit_set, without limits;
 *										  jq_limit_forget_lane
 *
 * Who waits and then looks once more meets who gives and then looks who waits:
 * one of the two sees the other.
 *
 * Fairness.  A worker keeps its place from job to job until another lane has
 * waited for SLICE_NS; then it stands behind it.
 */
#include "postgres.h"

#include <time.h>

#include "database.h"
#include "directory.h"
#include "limit.h"
#include "slot.h"
#include "storage/latch.h"
#include "storage/proc.h"

#define SLICE_NS INT64CONST(2000000)
#define WAKE_NS INT64CONST(4000000) /* tokens that come in it come together */
#define MAX_CALLS 64
/* rows that are written past jobqueue_configure() may have more; nobody will see
 * the difference, but a number could not hold it */
#define MAX_PER_US (INT64CONST(366) * USECS_PER_DAY)

/* what is to be done after the release of the locks */
static int calls[MAX_CALLS];
static int ncalls;
static bool call_launcher;
static int serve_again = -1; /* more wait than fit into calls */

static int64
now_ns(void)
{
	struct timespec t;

	(void) clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64CONST(1000000000) + t.tv_nsec;
}

void
jq_limit_init(JqLimit *m)
{
	memset(m, 0, sizeof(*m));
	m->first = m->last = -1;
	pg_atomic_init_u32(&m->limited, 0);
	pg_atomic_init_u32(&m->max_running, 0);
	pg_atomic_init_u32(&m->running, 0);
	pg_atomic_init_u32(&m->nwaiting, 0);
}

/* ------------------------------------------------- under the limit's lock */

/* when the bucket will be full after n tokens more; those taken have room in it */
static int64
full_after(const JqLimit *m, int64 now, int64 n)
{
	/* of a rate that was lowered more may be out than have room */
	int64 taken = Min(m->ntaken, m->rate);

	return Max(m->full_at, now + taken * m->interval_ns) + n * m->interval_ns;
}

static int64
tokens(const JqLimit *m, int64 now)
{
	return Max((now + m->burst_ns - full_after(m, now, 0)) / m->interval_ns, 0);
}

/* the launcher is to look when the next token comes; there is none now;
 * model: ARM */
static void
arm(JqLimit *m)
{
	int64 n = Min((WAKE_NS + m->interval_ns - 1) / m->interval_ns,
				  m->rate - m->ntaken);
	uint64 known;

	/* none comes while all are taken: jq_limit_start and jq_limit_give look */
	if (m->wake_at != 0 || n <= 0)
		return;
	m->wake_at = m->full_at + n * m->interval_ns - m->burst_ns;
	/* it is there before the launcher can miss it; so read what it has left */
	pg_memory_barrier();
	known = pg_atomic_read_u64(&jq_shared->limits_due);
	while ((uint64) m->wake_at < known)
		if (pg_atomic_compare_exchange_u64(&jq_shared->limits_due, &known,
										   (uint64) m->wake_at))
		{
			call_launcher = true;
			break;
		}
}

/* how many jobs may start now, up to n */
static int
room(JqLimit *m, int n)
{
	uint32 max = pg_atomic_read_u32(&m->max_running);
	int64 got = n;

	if (max > 0)
		got = Min(got, (int64) max - pg_atomic_read_u32(&m->running));
	if (got <= 0)
		return 0;
	if (m->rate > 0)
	{
		got = Min(got, tokens(m, now_ns()));
		if (got == 0)
			arm(m);
	}
	return (int) got;
}

static void
fill_token(JqLimit *m, JqPlace *place, int64 now)
{
	if (m->rate == 0)
		return;
	m->full_at = full_after(m, now, 1);
	m->ntaken++;
	place->token = m->life;
}

/* the token is not in anybody's hands any more, nor yet back */
static void
drop_token(JqLimit *m, JqPlace *place)
{
	if (m->rate > 0 && place->token == m->life)
	{
		m->full_at = full_after(m, now_ns(), 0);
		Assert(m->ntaken > 0);
		m->ntaken--;
	}
	place->token = 0;
}

static void
unfill_token(JqLimit *m, JqPlace *place)
{
	bool back = m->rate > 0 && place->token == m->life;

	drop_token(m, place);
	if (back)
		m->full_at -= m->interval_ns;
}

static void
fill(JqLimit *m, int queue_ix, JqPlace *place, bool called)
{
	place->queue = queue_ix;
	place->called = called;
	pg_atomic_fetch_add_u32(&m->running, 1);
	fill_token(m, place, m->rate > 0 ? now_ns() : 0);
}

static void
unfill(JqLimit *m, JqPlace *place)
{
	uint32 was PG_USED_FOR_ASSERTS_ONLY;

	unfill_token(m, place);
	was = pg_atomic_fetch_sub_u32(&m->running, 1);
	Assert(was > 0);
	*place = JQ_NO_PLACE;
}

static void
join(JqLimit *m, int lane)
{
	JqLane *l = &jq_lanes[lane];

	if (l->limit_waiting)
		return;
	l->limit_since = now_ns();
	l->limit_next = -1;
	l->limit_prev = m->last;
	if (m->last >= 0)
		jq_lanes[m->last].limit_next = lane;
	else
		m->first = lane;
	m->last = lane;
	l->limit_waiting = true;
	pg_atomic_fetch_add_u32(&m->nwaiting, 1);
}

static void
leave(JqLimit *m, int lane)
{
	JqLane *l = &jq_lanes[lane];

	if (!l->limit_waiting)
		return;
	if (l->limit_prev >= 0)
		jq_lanes[l->limit_prev].limit_next = l->limit_next;
	else
		m->first = l->limit_next;
	if (l->limit_next >= 0)
		jq_lanes[l->limit_next].limit_prev = l->limit_prev;
	else
		m->last = l->limit_prev;
	l->limit_waiting = false;
	pg_atomic_fetch_sub_u32(&m->nwaiting, 1);
}

/*
 * Call those who wait, as many as there is room for.  true: it is the turn of
 * the lane "me", which has left the list.
 */
static bool
serve(int queue_ix, int me)
{
	JqLimit *m = &jq_queues[queue_ix].limit;

	while (m->first >= 0 && room(m, 1) > 0)
	{
		int lane = m->first;
		JqLane *l = &jq_lanes[lane];
		JqPlace place = JQ_NO_PLACE;
		bool launcher = false;
		int procno;

		/* jobqueue_resume() calls again */
		if (jq_db_is_quiesced(l->dbix))
			break;
		if (lane != me && ncalls == MAX_CALLS)
		{
			serve_again = queue_ix;
			break;
		}
		leave(m, lane); /* a full barrier: see jq_limit_wakes;
						 * model: LEAVE_FIRST */
		if (lane == me)
			return true;
		if (*(volatile uint32 *) &l->nready == 0 || jq_lane_stopped(l))
			continue; /* who publishes or resumes looks at the limit */
		fill(m, queue_ix, &place, true);
		procno = jq_slot_call(l->group, &place, &launcher);
		call_launcher |= launcher;
		if (procno >= 0)
			calls[ncalls++] = procno;
		else
			unfill(m, &place);
	}
	return false;
}

/* has another lane waited for its share? */
static bool
other_waits(JqLimit *m, int lane)
{
	int other = m->first;

	if (other == lane)
		other = jq_lanes[other].limit_next;
	return other >= 0 && now_ns() - jq_lanes[other].limit_since >= SLICE_NS;
}

/* the token for the next job, if one is needed */
static bool
renew_token(JqLimit *m, JqPlace *place)
{
	int64 now;

	if (m->rate == 0 || place->token == m->life)
		return true;
	now = now_ns();
	if (full_after(m, now, 1) > now + m->burst_ns)
		return false;
	fill_token(m, place, now);
	return true;
}

/* may the next job be run in the place at hand? */
static bool
may_keep(JqLimit *m, int lane, JqPlace *place)
{
	uint32 max = pg_atomic_read_u32(&m->max_running);

	/* a limit that was lowered: those that run go on, and that is all;
	 * model: KEEP */
	if (max > 0 && pg_atomic_read_u32(&m->running) > max)
		return false;
	if (!place->called && other_waits(m, lane))
		return false;
	return renew_token(m, place);
}

/* the same where there is nothing to change: no token, and no other lane waits */
static bool
may_keep_unlocked(JqLimit *m, int lane, const JqPlace *place)
{
	uint32 nwaiting = pg_atomic_read_u32(&m->nwaiting);

	return place->queue >= 0 && !place->called &&
		   pg_atomic_read_u32(&m->limited) == JQ_LIMITED_RUNNING &&
		   (nwaiting == 0 ||
			(nwaiting == 1 &&
			 *(volatile bool *) &jq_lanes[lane].limit_waiting)) &&
		   pg_atomic_read_u32(&m->running) <=
			   pg_atomic_read_u32(&m->max_running);
}

/* a place for the lane, or it waits */
static bool
take_new(JqLimit *m, int queue_ix, int lane, JqPlace *place)
{
	bool waiting;

	(void) serve(queue_ix, lane);
	for (;;)
	{
		waiting = jq_lanes[lane].limit_waiting;
		if (room(m, 1) > 0)
			break;
		if (waiting)
			return false;
		/* a full barrier; and look once more; model: JOIN_LOOK */
		join(m, lane);
	}
	leave(m, lane);
	fill(m, queue_ix, place, false);
	return true;
}

/* ----------------------------------------------------------------- taking */

bool
jq_limit_take(int lane, JqPlace *place, bool in_batch)
{
	int queue_ix = jq_lanes[lane].queue_ix;
	JqLimit *m = &jq_queues[queue_ix].limit;
	bool ok;

	Assert(place->queue < 0 || place->queue == queue_ix);
	if (!jq_limited(m))
	{
		/* counted all the same; model: COUNTED */
		if (place->queue < 0)
		{
			place->queue = queue_ix;
			pg_atomic_fetch_add_u32(&m->running, 1);
		}
		place->called = false;
		return true;
	}
	if (may_keep_unlocked(m, lane, place))
		return true;
	LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
	if (place->queue < 0)
		ok = take_new(m, queue_ix, lane, place);
	else if (may_keep(m, lane, place))
		ok = true;
	else if (in_batch)
		ok = false;
	else
	{
		unfill(m, place);
		leave(m, lane); /* it stands behind those who wait */
		ok = take_new(m, queue_ix, lane, place);
	}
	if (ok)
		place->called = false;
	LWLockRelease(jq_limit_lock(queue_ix));
	return ok;
}

bool
jq_limit_take_token(JqPlace *place)
{
	JqLimit *m = &jq_queues[place->queue].limit;
	bool ok;

	if (!jq_limited(m))
		return true;
	LWLockAcquire(jq_limit_lock(place->queue), LW_EXCLUSIVE);
	ok = renew_token(m, place);
	LWLockRelease(jq_limit_lock(place->queue));
	return ok;
}

void
jq_limit_start(JqPlace *place)
{
	JqLimit *m;

	if (place->token == 0)
		return;
	m = &jq_queues[place->queue].limit;
	LWLockAcquire(jq_limit_lock(place->queue), LW_EXCLUSIVE);
	drop_token(m, place);
	/* that the next one comes is perhaps not seen to, see arm();
	 * model: START_SERVES */
	if (m->first >= 0 && m->wake_at == 0)
		(void) serve(place->queue, -1);
	LWLockRelease(jq_limit_lock(place->queue));
	jq_limit_wake();
}

/* model: GIVE_SERVES */
void
jq_limit_give(JqPlace *place)
{
	int queue_ix = place->queue;
	JqLimit *m;

	if (queue_ix < 0)
		return;
	m = &jq_queues[queue_ix].limit;
	if (place->token == 0)
	{
		uint32 was PG_USED_FOR_ASSERTS_ONLY;

		was = pg_atomic_fetch_sub_u32(&m->running, 1);
		Assert(was > 0);
		*place = JQ_NO_PLACE;
		jq_limit_serve(queue_ix);
		return;
	}
	LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
	unfill(m, place);
	(void) serve(queue_ix, -1);
	LWLockRelease(jq_limit_lock(queue_ix));
	jq_limit_wake();
}

int
jq_limit_wakes(int lane, int n)
{
	JqLane *l = &jq_lanes[lane];
	int queue_ix = l->queue_ix;
	JqLimit *m = &jq_queues[queue_ix].limit;
	int got;

	if (n <= 0 || jq_lane_stopped(l))
		return 0;
	if (!jq_limited(m))
		return n;
	/* who takes it off the list looks for entries after that */
	pg_memory_barrier();
	if (*(volatile bool *) &l->limit_waiting)
		return 0;
	LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
	/* the limit may have gone just now: then room() says so */
	got = room(m, n);
	if (got == 0)
	{
		join(m, lane); /* a full barrier; and look once more */
		got = room(m, n);
		if (got > 0)
			leave(m, lane);
	}
	LWLockRelease(jq_limit_lock(queue_ix));
	return got;
}

void
jq_limit_forget_lane(int lane)
{
	int queue_ix = jq_lanes[lane].queue_ix;

	LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
	leave(&jq_queues[queue_ix].limit, lane);
	LWLockRelease(jq_limit_lock(queue_ix));
}

void
jq_limit_serve(int queue_ix)
{
	if (pg_atomic_read_u32(&jq_queues[queue_ix].limit.nwaiting) > 0)
	{
		LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
		(void) serve(queue_ix, -1);
		LWLockRelease(jq_limit_lock(queue_ix));
	}
	jq_limit_wake();
}

void
jq_limit_wake(void)
{
	while (ncalls > 0 || call_launcher)
	{
		int again = serve_again;

		serve_again = -1;
		while (ncalls > 0)
			SetLatch(&GetPGProcByNumber(calls[--ncalls])->procLatch);
		if (call_launcher)
		{
			call_launcher = false;
			jq_launcher_wake();
		}
		if (again >= 0)
		{
			LWLockAcquire(jq_limit_lock(again), LW_EXCLUSIVE);
			(void) serve(again, -1);
			LWLockRelease(jq_limit_lock(again));
		}
	}
}

int64
jq_limit_serve_due(void)
{
	int64 now = now_ns();
	uint64 next = pg_atomic_read_u64(&jq_shared->limits_due);
	int i;

	if (next > (uint64) now)
		return next == PG_UINT64_MAX ? -1 : ((int64) next - now + 999) / 1000;
	/* whoever arms a limit from now on lowers it again, and wakes us */
	(void) pg_atomic_exchange_u64(&jq_shared->limits_due, PG_UINT64_MAX);
	for (i = 0; i < jq_shared->nqueues; i++)
	{
		JqLimit *m = &jq_queues[i].limit;
		int64 at = *(volatile int64 *) &m->wake_at;

		if (at == 0)
			continue;
		LWLockAcquire(jq_limit_lock(i), LW_EXCLUSIVE);
		at = m->wake_at;
		if (at != 0)
		{
			m->wake_at = 0;
			if (at <= now)
				(void) serve(i, -1);
			else if (m->rate > 0)
				arm(m);
		}
		LWLockRelease(jq_limit_lock(i));
		jq_limit_wake();
	}
	next = pg_atomic_read_u64(&jq_shared->limits_due);
	if (next == PG_UINT64_MAX)
		return -1;
	return Max(((int64) next - now + 999) / 1000, 0);
}

/* --------------------------------------------------------------- settings */

static void
set_rate(JqLimit *m, int32 rate, int64 per_us)
{
	int64 now = now_ns();
	int64 interval = 0;
	int64 burst = 0;

	per_us = Min(per_us, MAX_PER_US);
	if (rate == m->rate && (rate == 0 || per_us == m->rate_per_us))
		return;
	if (rate > 0)
	{
		interval = (per_us * 1000 + rate - 1) / rate;
		burst = interval * rate;
		if (m->rate == 0)
		{
			m->life++;
			m->ntaken = 0;
			m->full_at = now + burst;
		}
		else
		{
			/* what is there stays, as far as it has room */
			double level = (double) (now + m->burst_ns - full_after(m, now, 0));

			level = Max(level, 0) * ((double) interval / m->interval_ns);
			m->full_at = now + burst - (int64) Min(level, (double) burst);
		}
	}
	m->rate = rate;
	m->rate_per_us = per_us;
	m->interval_ns = interval;
	m->burst_ns = burst;
	m->wake_at = 0;
}

void
jq_limit_set(int queue_ix, const JqQueueSettings *s)
{
	JqLimit *m = &jq_queues[queue_ix].limit;
	uint32 limited = 0;

	LWLockAcquire(jq_limit_lock(queue_ix), LW_EXCLUSIVE);
	pg_atomic_write_u32(&m->max_running, s->max_running);
	set_rate(m, s->rate, s->rate_per_us);
	if (s->max_running > 0)
		limited |= JQ_LIMITED_RUNNING;
	if (s->rate > 0)
		limited |= JQ_LIMITED_RATE;
	pg_atomic_write_u32(&m->limited, limited);
	while (limited == 0 && m->first >= 0)
		leave(m, m->first);
	LWLockRelease(jq_limit_lock(queue_ix));
}

/* --------------------------------------------------------------- numbers */

int
jq_limit_appetite(int queue_ix)
{
	JqLimit *m = &jq_queues[queue_ix].limit;
	double per_second;

	if ((pg_atomic_read_u32(&m->limited) & JQ_LIMITED_RATE) == 0)
		return -1;
	per_second = (double) m->rate * USECS_PER_SEC / Max(m->rate_per_us, 1);
	return 64 + (int) Min(2 * per_second, 1e9);
}

void
jq_limit_info(int queue_ix, JqLimitInfo *out)
{
	JqLimit *m = &jq_queues[queue_ix].limit;

	memset(out, 0, sizeof(*out));
	LWLockAcquire(jq_limit_lock(queue_ix), LW_SHARED);
	out->max_running = (int) pg_atomic_read_u32(&m->max_running);
	out->running = (int) pg_atomic_read_u32(&m->running);
	out->waiting = (int) pg_atomic_read_u32(&m->nwaiting);
	out->rate = m->rate;
	out->rate_per_us = m->rate_per_us;
	if (m->rate > 0)
	{
		int64 now = now_ns();

		out->tokens = tokens(m, now);
		if (out->tokens == 0)
			out->next_token_us =
				(full_after(m, now, 1) - m->burst_ns - now + 999) / 1000;
	}
	LWLockRelease(jq_limit_lock(queue_ix));
}
