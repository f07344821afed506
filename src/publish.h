/*
 * publish.h
 *		From the transaction to memory: what a transaction did to the table
 *		reaches the lanes when it has committed and released its locks.
 */
#ifndef JQ_PUBLISH_H
#define JQ_PUBLISH_H

#include "directory.h"
#include "queue.h"

extern void jq_publish_init(void);

/*
 * The transaction wrote a row that is to run: at its commit it is published (if
 * run_at is DT_NOBEGIN, at once; else when its time comes).
 */
extern void jq_publish_row(Oid owner, const char *queue, const JqItem *item,
						   TimestampTz run_at);

/* at commit, the scheduler is to look at what is due or expired then */
extern void jq_publish_due(TimestampTz when);
/* one expires then */
extern void jq_publish_expiry(TimestampTz when);
/* a schedule is due then (see clock.h); DT_NOBEGIN: look at all */
extern void jq_publish_schedule(TimestampTz when);
/* one leaves the history then */
extern void jq_publish_prune(TimestampTz when);

/* the lane got rows that we know nothing else about */
extern void jq_publish_unknown(Oid owner, const char *queue);

/*
 * This transaction has taken the claim of a waiting job (jq_claim_hold): it is
 * given back at its end.  If the transaction aborts the row is published again;
 * at commit only if it has not been deleted, which is for the caller to say by
 * jq_publish_row.
 */
extern void jq_publish_held(Oid owner, const char *queue, const JqItem *item,
							TimestampTz run_at);
/* of the last claim that was told so: what the row is, under the claim */
extern void jq_publish_held_is(Oid owner, const char *queue, const JqItem *item,
							   TimestampTz run_at);
/* a claim that was told so is given back at once, nothing has been done */
extern void jq_publish_not_held(int64 id);

/* does this transaction hold the claim of the job? */
extern bool jq_publish_is_held(int64 id);

/* a key taken for the rest of the transaction; reserve before it is taken */
extern void jq_publish_reserve_key(void);
extern void jq_publish_key(const char *key, int len);

/* the utility hook tells the global id before PREPARE TRANSACTION */
extern void jq_publish_set_gid(const char *gid);

/* this transaction gave the queue these settings */
extern void jq_publish_settings(const JqQueueRow *row);
/* it changed settings of queues that we know nothing else about */
extern void jq_publish_settings_unknown(void);

/* this transaction has paused a role */
extern void jq_publish_paused_role(Oid role);
/* it has resumed roles, or who knows what it did about them */
extern void jq_publish_roles_unknown(void);

/* rows of a prepared transaction that has committed */
struct JqPrepared;
extern void jq_publish_prepared(const struct JqPrepared *p);
/* memory is to forget what it knows about this database's waiting jobs */
extern void jq_publish_forget(Oid db);

/*
 * At commit, workers of the role in the database (InvalidOid: all) are to start
 * anew: settings have changed.  Nobody can disturb the workers of roles and
 * databases that he may not alter.
 */
extern void jq_publish_recycle(Oid db, Oid role);
/* databases have come, or take connections again: the launcher is to look */
extern void jq_publish_databases(void);
/* CREATE EXTENSION has made it */
extern void jq_publish_created(void);

/* was this job enqueued by the transaction that is still open? */
extern bool jq_publish_is_mine(int64 id);

/* one row, now, by a process that has no transaction to wait for */
extern void jq_publish_now(Oid db, Oid owner, const char *queue,
						   const JqItem *item, TimestampTz run_at);

/* the same for a row that its lane counts already, where it has no room for it */
extern void jq_publish_counted(Oid db, Oid owner, const char *queue,
							   const JqItem *item, TimestampTz run_at);

/*
 * The row may be anything now: the scheduler looks at it, and publishes it as what
 * it is.  Besides what the caller publishes, not instead.
 */
extern void jq_publish_unsure(Oid db, int64 id);

/*
 * Nothing is taken from the lane until the transaction ends; if it commits, the
 * lane is read anew.
 */
extern void jq_publish_freeze(Oid owner, const char *queue);

/* a ready row of which only the place is known: the table has the rest */
extern void jq_publish_in_table(Oid owner, const char *queue, int priority,
								int64 id);

/* the row waits for other jobs: at commit the scheduler is to look at them */
extern void jq_publish_waiting(int64 id);
/* the job ends with this transaction, and others may wait for it */
extern void jq_publish_ended(int64 id);
/* jobs end, or wait, that we know nothing else about */
extern void jq_publish_after_unknown(void);
/* rows were deleted by hand: whoever waits for jobs is to look */
extern void jq_publish_deleted(void);
/* the scheduler ends jobs and sees itself who waits for them */
extern bool jq_publish_no_ends;

/*
 * The next commit ends a job (or, after an error, does not): nothing is to end
 * this process before it has told how.  Interrupts are held from the commit on,
 * until jq_publish_told().
 */
extern void jq_publish_will_tell(bool will);
extern void jq_publish_told(void);

/* rows of another home have come: all numbers are to be counted again */
extern void jq_publish_count_anew(void);

#endif /* JQ_PUBLISH_H */
