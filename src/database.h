/*
 * database.h
 *		What is asked of the scheduler of a database, and when it is to look.
 */
#ifndef JQ_DATABASE_H
#define JQ_DATABASE_H

#include "clock.h"
#include "directory.h"

/* how long before a due moment a scheduler is started */
#define JQ_SCHED_LEAD_MS 500
#define JQ_SCHED_LEAD_MAX_MS 5000

/* ask; wakes the scheduler, or the launcher to start one */
extern void jq_db_request(int dbix, uint32 requests);
/* the same without waking anybody: a lock is held, a request follows */
extern void jq_db_request_quietly(int dbix, uint32 requests);

/* a row waits until then; or expires then */
extern void jq_db_due(int dbix, TimestampTz when);
extern void jq_db_expiry(int dbix, TimestampTz when);
/* a lease ends then */
extern void jq_db_lease(int dbix, TimestampTz when);
/* a schedule is due then, by the clock of clock.h */
extern void jq_db_schedule(int dbix, TimestampTz when);
/* all of them are to be looked at when they may fire again */
extern void jq_db_put_off_schedules(int dbix);
/* a row leaves the history then, or some minutes later */
extern void jq_db_prune(int dbix, TimestampTz when);

/*
 * JQ_LOCK_DB held: when is there something to do?  No schedule fires while
 * jobqueue.enabled is off, which whoever publishes may not know yet.
 */
static inline TimestampTz
jq_db_next(const JqDb *d, bool enabled)
{
	return Min(Min(Min(d->next_due, d->next_expiry),
				   Min(d->next_prune, d->next_lease)),
			   enabled ? jq_clock_to_real(d->next_schedule) : DT_NOEND);
}

/* ---- scheduler ---- */
extern bool jq_db_sched_attach(int dbix);
/* came_up: it could connect */
extern void jq_db_sched_detach(int dbix, bool came_up);
/* what is before has been looked at */
typedef struct JqFrom
{
	TimestampTz due;	  /* JQ_REQ_DUE: rows that wait for a time */
	TimestampTz expiry;	  /* JQ_REQ_EXPIRY: rows that expire */
	TimestampTz schedule; /* JQ_REQ_SCHEDULES */
	TimestampTz taken;	  /* when that was */
} JqFrom;

/* Take the requests, before any snapshot is taken for them. */
extern uint32 jq_db_take_requests(int dbix, JqFrom *from);
/* is the history to be pruned? and before it is looked at when it is next: */
extern bool jq_db_prune_is_due(int dbix);
extern void jq_db_forget_prune(int dbix);
/* leave if nothing is asked and nothing due before keep_until */
extern bool jq_db_sched_leave(int dbix, TimestampTz keep_until);

/*
 * Some rows have no lane: from now on a new lane knows nothing.  A discovery
 * that began before does not change that.
 */
extern void jq_db_overflow(int dbix);
extern uint32 jq_db_overflows(int dbix);
extern void jq_db_set_loaded(int dbix, uint32 overflows);
extern bool jq_db_is_loaded(int dbix);
extern void jq_db_set_absent(int dbix, bool absent);
extern bool jq_db_is_quiesced(int dbix);
extern void jq_db_set_quiesced(int dbix, bool quiesced);

/*
 * A statement wants nobody in the database, until it ends: workers and the
 * scheduler are not started, and leave.
 */
/* the place of the database, -1 if it is not known: then there is none of them */
extern int jq_db_leave(Oid db);
extern void jq_db_return(int dbix);
/* is that so, or does it take no connections? */
extern bool jq_db_is_left(int dbix);
/* does it take connections? */
extern void jq_db_set_closed(int dbix, bool closed);
/* milliseconds after so many failed starts in a row */
extern int64 jq_db_retry_ms(int nfailed);

/* ask the launcher to look for databases it does not know */
extern void jq_db_scan_wanted(void);

#endif /* JQ_DATABASE_H */
