/*
 * database.c
 *		Requests to schedulers.
 *
 * A request is a bit; it stays until a scheduler takes it, and the scheduler
 * takes it before it reads anything for it, so that one that comes during the
 * reading is served afterwards.  A scheduler that leaves owes nothing; one that
 * dies leaves every bit set for its successor.  model: CLEAR_FIRST
 */
#include "postgres.h"

#include "after.h"
#include "compat.h"
#include "database.h"
#include "guc.h"
#include "miscadmin.h"
#include "slot.h"
#include "storage/latch.h"

void
jq_db_request_quietly(int dbix, uint32 requests)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[dbix].requests |= requests;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

/*
 * JQ_LOCK_DB held: somebody has jobs there, so the extension is there after
 * all; everything is to be looked at.
 */
static void
db_appears(JqDb *d)
{
	if (!d->absent)
		return;
	d->absent = false;
	d->requests |= JQ_REQ_ALL;
}

/* JQ_LOCK_DB held: whom to wake; -1 = the launcher */
static int
db_server(JqDb *d)
{
	return d->sched_state == JQ_SCHED_RUNNING ? d->sched_procno : -1;
}

static void
wake_server(int procno)
{
	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
	else
		jq_launcher_wake();
}

void
jq_db_request(int dbix, uint32 requests)
{
	JqDb *d = &jq_dbs[dbix];
	int procno;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	db_appears(d);
	d->requests |= requests;
	procno = db_server(d);
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	wake_server(procno);
}

static void
note_moment(int dbix, TimestampTz *next, TimestampTz when, uint32 request)
{
	JqDb *d = &jq_dbs[dbix];
	int procno = -1;
	bool sooner = false;
	TimestampTz before;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	db_appears(d);
	if (when < 0)
	{
		/* long ago, or -infinity: look at all that waits */
		d->requests |= request;
		sooner = true;
	}
	else if (when < *next)
	{
		before = jq_db_next(d, true);
		*next = when;
		sooner = jq_db_next(d, true) < before;
	}
	procno = db_server(d);
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (sooner)
		wake_server(procno);
}

void
jq_db_due(int dbix, TimestampTz when)
{
	note_moment(dbix, &jq_dbs[dbix].next_due, when, JQ_REQ_DUE);
}

void
jq_db_lease(int dbix, TimestampTz when)
{
	note_moment(dbix, &jq_dbs[dbix].next_lease, when, JQ_REQ_LEASES);
}

void
jq_db_expiry(int dbix, TimestampTz when)
{
	note_moment(dbix, &jq_dbs[dbix].next_expiry, when, JQ_REQ_EXPIRY);
}

void
jq_db_schedule(int dbix, TimestampTz when)
{
	note_moment(dbix, &jq_dbs[dbix].next_schedule, when, JQ_REQ_SCHEDULES);
}

void
jq_db_put_off_schedules(int dbix)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[dbix].next_schedule = 0;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

/*
 * What leaves the history may leave it later: one scheduler for many, and not one
 * for each.
 */
#ifdef JQ_TESTING
#define PRUNE_GAP USECS_PER_SEC
#else
#define PRUNE_GAP (5 * USECS_PER_MINUTE)
#endif

void
jq_db_prune(int dbix, TimestampTz when)
{
	when = Max(when, GetCurrentTimestamp()) + PRUNE_GAP;
	/* mostly there is an earlier one; who forgets it looks at the table then */
	if (when < *(volatile TimestampTz *) &jq_dbs[dbix].next_prune)
		note_moment(dbix, &jq_dbs[dbix].next_prune, when, 0);
}

bool
jq_db_prune_is_due(int dbix)
{
	bool due;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	due = jq_dbs[dbix].next_prune <= GetCurrentTimestamp();
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return due;
}

void
jq_db_forget_prune(int dbix)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[dbix].next_prune = DT_NOEND;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

bool
jq_db_sched_attach(int dbix)
{
	JqDb *d = &jq_dbs[dbix];
	bool ok;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	ok = d->oid != InvalidOid && d->sched_state == JQ_SCHED_STARTING;
	if (ok)
	{
		d->sched_state = JQ_SCHED_RUNNING;
		d->sched_procno = jq_my_procno();
		d->sched_pid = MyProcPid;
		d->sched_since = GetCurrentTimestamp();
	}
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return ok;
}

void
jq_db_sched_detach(int dbix, bool came_up)
{
	JqDb *d = &jq_dbs[dbix];

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	if (d->sched_state == JQ_SCHED_RUNNING && d->sched_pid == MyProcPid)
	{
		d->sched_state = JQ_SCHED_NONE;
		d->sched_procno = -1;
		d->sched_pid = 0;
		/* it died at work: what it had taken may not be done;
		 * model: SCHED_ALL */
		if (came_up)
			d->requests |= JQ_REQ_ALL & ~JQ_REQ_COUNT;
		d->nfailed = came_up ? 0 : d->nfailed + 1;
		d->sched_not_before =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										jq_db_retry_ms(d->nfailed));
		jq_shared->schedulers_wanted = false; /* here is a place */
	}
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	jq_launcher_wake();
}

uint32
jq_db_take_requests(int dbix, JqFrom *from)
{
	JqDb *d = &jq_dbs[dbix];
	TimestampTz now = GetCurrentTimestamp();
	uint32 requests;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	requests = d->requests;
	d->requests = 0;
	from->due = from->expiry = from->schedule = DT_NOBEGIN;
	from->taken = now;
	if (!(requests & JQ_REQ_DUE) && d->next_due <= now)
	{
		requests |= JQ_REQ_DUE;
		from->due = d->next_due;
	}
	if (!(requests & JQ_REQ_EXPIRY) && d->next_expiry <= now)
	{
		requests |= JQ_REQ_EXPIRY;
		from->expiry = d->next_expiry;
	}
	if (!(requests & JQ_REQ_SCHEDULES) && jobqueue_enabled &&
		d->next_schedule <= jq_clock_now())
	{
		requests |= JQ_REQ_SCHEDULES;
		if (d->next_schedule > 0)
			from->schedule = d->next_schedule;
	}
	if (d->next_lease <= now)
		requests |= JQ_REQ_LEASES;
	/* whoever commits an earlier one from now on lowers it again */
	if (requests & JQ_REQ_LEASES)
		d->next_lease = DT_NOEND;
	if (requests & JQ_REQ_DUE)
		d->next_due = DT_NOEND;
	if (requests & JQ_REQ_EXPIRY)
		d->next_expiry = DT_NOEND;
	if (requests & JQ_REQ_SCHEDULES)
		d->next_schedule = DT_NOEND;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return requests;
}

bool
jq_db_sched_leave(int dbix, TimestampTz keep_until)
{
	JqDb *d = &jq_dbs[dbix];
	bool leave;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	leave = d->requests == 0 && jq_db_next(d, jobqueue_enabled) > keep_until;
	if (leave)
	{
		d->sched_state = JQ_SCHED_NONE;
		d->sched_procno = -1;
		d->sched_pid = 0;
		d->sched_not_before = 0;
		d->nfailed = 0;
		if (jq_shared->schedulers_wanted)
		{
			/* there is a place, and it is for another one */
			jq_shared->schedulers_wanted = false;
			d->sched_not_before = GetCurrentTimestamp() + USECS_PER_SEC;
		}
	}
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (leave)
		jq_launcher_wake(); /* it takes over the next due moment */
	return leave;
}

void
jq_db_overflow(int dbix)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[dbix].loaded = false;
	jq_dbs[dbix].overflows++;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

uint32
jq_db_overflows(int dbix)
{
	uint32 n;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	n = jq_dbs[dbix].overflows;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return n;
}

void
jq_db_set_loaded(int dbix, uint32 overflows)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	if (jq_dbs[dbix].overflows == overflows)
		jq_dbs[dbix].loaded = true;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

bool
jq_db_is_loaded(int dbix)
{
	bool loaded;

	if (dbix < 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	loaded = jq_dbs[dbix].loaded;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	return loaded;
}

void
jq_db_set_absent(int dbix, bool absent)
{
	JqDb *d = &jq_dbs[dbix];

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	d->absent = absent;
	if (absent)
	{
		d->requests = 0;
		d->next_due = d->next_expiry = d->next_prune = DT_NOEND;
		d->next_lease = d->next_schedule = DT_NOEND;
		d->loaded = false;
	}
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (absent)
		jq_after_forget(dbix);
}

bool
jq_db_is_quiesced(int dbix)
{
	return *(volatile bool *) &jq_dbs[dbix].quiesced;
}

void
jq_db_set_quiesced(int dbix, bool quiesced)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[dbix].quiesced = quiesced;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

int
jq_db_leave(Oid db)
{
	int dbix;

	do
	{
		dbix = jq_dir_db(db, false);
		if (dbix < 0)
			return -1;
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		/* its place may have been given to another one meanwhile */
		if (jq_dbs[dbix].oid != db)
			dbix = -1;
		else
			jq_dbs[dbix].leave++;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
	} while (dbix < 0);
	return dbix;
}

void
jq_db_return(int dbix)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	if (jq_dbs[dbix].leave > 0)
		jq_dbs[dbix].leave--;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	jq_launcher_wake();
}

bool
jq_db_is_left(int dbix)
{
	JqDb *d = &jq_dbs[dbix];

	return *(volatile int *) &d->leave > 0 || *(volatile bool *) &d->closed;
}

void
jq_db_set_closed(int dbix, bool closed)
{
	JqDb *d = &jq_dbs[dbix];
	int procno = -1;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	if (closed != d->closed && closed)
		procno = db_server(d);
	d->closed = closed;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (procno >= 0)
		wake_server(procno);
}

#define RETRY_MAX_MS (5 * 60 * 1000)

int64
jq_db_retry_ms(int nfailed)
{
	return Min(INT64CONST(1000) << Min(Max(nfailed - 1, 0), 10), RETRY_MAX_MS);
}

void
jq_db_scan_wanted(void)
{
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_shared->scan_databases = true;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	jq_launcher_wake();
}
