/*
 * claim.h
 *		Claims: every job that has been taken out of its lane and has not ended.
 *
 * A running job is claimed by its worker's slot, one that an outside consumer
 * has fetched in a table of its own (fetched.h).  All other claims stand in one
 * small table: jobs that a session's control function holds until the end of
 * its transaction, jobs whose worker died and whose failure is not recorded
 * yet, and rows that somebody is deleting in a transaction still open.  What is
 * claimed is skipped by refill, due scans and workers; whoever holds the claim
 * publishes the row again, if there still is one, when he lets it go.
 */
#ifndef JQ_CLAIM_H
#define JQ_CLAIM_H

#include "directory.h"
#include "slot.h"

typedef enum JqHeldKind
{
	JQ_HELD_SESSION = 1, /* by a control function, until end of xact */
	JQ_HELD_FAILING,	 /* the scheduler is to record a failure */
	JQ_HELD_DOUBTFUL	 /* somebody's uncommitted delete: wait for xid */
} JqHeldKind;

/* "sqlstate" of one that is in doubt for a moment only: what stands in its way is
 * a commit */
#define JQ_HELD_SOON "SOON"

#define JQ_HELD_ERROR 512

typedef struct JqHeld
{
	/* hash key */
	int64 id;
	Oid db;
	uint32 zero;
	/* the rest under JQ_LOCK_CLAIM */
	JqHeldKind kind;
	Oid role;
	int procno; /* of the session */
	Oid user;	/* and its user */
	TransactionId xid;
	TimestampTz since;
	bool passed; /* somebody has passed over it: see jq_claim_pass_over */
	int attempt;
	TimestampTz started_at;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	char sqlstate[6];
	char error[JQ_HELD_ERROR];
} JqHeld;

/* the job in a worker's hands */
typedef struct JqClaimed
{
	int64 id;
	JqPos pos;
	ItemPointerData tid;
	uint8 flags;
	int lane;
	int keylen;
	char key[JQ_KEY_MAX + 1];
} JqClaimed;

typedef enum JqHoldResult
{
	JQ_HOLD_DONE,
	JQ_HOLD_RUNNING, /* a worker has it */
	JQ_HOLD_OTHER,	 /* another session, or it is failing */
	JQ_HOLD_FULL
} JqHoldResult;

extern Size jq_claim_size(void);
extern void jq_claim_init(void);

/* Is the job claimed?  Any lock but JQ_LOCK_CLAIM may be held. */
extern bool jq_claim_is_out(Oid db, int64 id);
/*
 * The same, by one who has met it, or its row, and leaves it to whoever has it, for
 * memory not to know it otherwise.  The row may have been changed since the claim
 * was taken: so whoever ends the claim on a job that is to go on asks whether
 * anybody has passed over it (jq_claim_unhold, jq_claim_was_passed, JqFetched), and
 * then has the row looked at (jq_publish_unsure).  model: PASSED
 */
extern bool jq_claim_pass_over(Oid db, int64 id);

/* ---- workers ---- */

/*
 * End the claim in hand, if any, and take the next job of the lane: a place in
 * its queue, its token and its key with it, in one section.  false: nothing
 * there that may run now.
 */
extern bool jq_claim_next(int lane, Oid db, Oid role, JqClaimed *out);
extern void jq_claim_end(void);
/* the same unless a cancel was meant for the job in hand (false) */
extern bool jq_claim_end_uncancelled(void);
/*
 * The same for a batch: take one more job of the lane; the claim in hand goes to
 * the others of the slot, which stay claimed.
 */
extern bool jq_claim_more(int lane, Oid db, Oid role, JqClaimed *out);
/* the claim in hand goes to the others */
extern void jq_claim_put_aside(void);
/* end the claim in hand, if any, and take one of the others into it */
extern void jq_claim_pick(const JqClaimed *job);
/*
 * The job, in hand or one of the others, had started perhaps and is to start
 * once more: do the rates of its queue and its key allow it now?  If so it has
 * the tokens.
 */
extern bool jq_claim_may_repeat(const JqClaimed *job, Oid db);
/* is the job one of the others? */
extern bool jq_claim_is_other(int64 id);
/* does the job in hand share its transaction with others? */
extern bool jq_claim_shares(void);
/*
 * The claims of the others, which are of that lane, end undone: those that have been
 * cancelled go to the scheduler.  The rest, how many is returned, is nobody's now.
 */
extern int jq_claim_leave_others(int lane, int64 *open);
/* end the claims of the others, which are of that lane */
extern void jq_claim_end_others(int lane);
/* was a cancel meant for any job of the batch? */
extern bool jq_claim_any_cancel_wanted(void);
/* mark the job in hand as begun: from now on its loss is a failed attempt */
extern void jq_claim_set_running(void);
/* it is done, though not committed: its loss costs nothing */
extern void jq_claim_set_taken(void);
/*
 * The job in hand may have crashed the server: it takes turns with others of
 * that kind.  false: it has to wait; it is parked and the claim has ended, unless
 * it has been cancelled.
 */
extern bool jq_claim_take_turn(JqClaimed *job);
/* the claim in hand goes to the table; false: no room there */
extern bool jq_claim_to_held(JqHeldKind kind, TransactionId xid,
							 const char *sqlstate, const char *error);
/* was a cancel meant for the job in hand? */
extern bool jq_claim_cancel_wanted(void);

/* ---- sessions and scheduler ---- */
extern JqHoldResult jq_claim_hold(Oid db, Oid role, const char *queue,
								  int64 id);
/* true: somebody has passed over it */
extern bool jq_claim_unhold(Oid db, int64 id);
/*
 * The claim of this process has ended, and its next one not begun: has anybody
 * passed over the job, or over another one of the batch, while it was claimed?
 */
extern bool jq_claim_was_passed(void);
/* the database has no jobs any more: nobody is to look at what is left of them */
extern void jq_claim_purge(Oid db);
/* copy of the entries of a database that the scheduler works on; palloc'd */
extern JqHeld *jq_claim_list(Oid db, int *n);
/* the claim of a job that stands in the table; false: there is none */
extern bool jq_claim_find_held(Oid db, int64 id, JqHeld *out);
/* worker with a job in hand: is that job of its batch to be cancelled? */
extern bool jq_claim_cancel_asked(int64 id);
/* interrupt the worker that runs it; false: it does not run */
extern bool jq_claim_cancel(Oid db, int64 id);
/* somebody's uncommitted delete has been met, or a commit (soon); false: no room to
 * note it */
extern bool jq_claim_hold_doubtful(Oid db, Oid role, const char *queue,
								   int64 id, TransactionId xid, bool soon);
/* ids of the jobs that workers and outside consumers have; palloc'd */
extern int64 *jq_claim_running(Oid db, int *n);
/* of all that is claimed, but for what waits for the end of a transaction */
extern int64 *jq_claim_ids(Oid db, int *n);
/* is the job among those? */
extern bool jq_claim_has(Oid db, int64 id);
/* number of claims of workers, and of sessions that fetched, in a database */
extern int jq_claim_count(Oid db);

/* fetched.c: a claim of a consumer comes, before it can be found; goes */
extern void jq_claim_count_up(Oid db, int64 id);
extern void jq_claim_count_down(Oid db, int64 id);

/* lanes that found no room may ask again, if there are any */
extern void jq_claim_unstarve(void);

#endif /* JQ_CLAIM_H */
