/*
 * fetched.h
 *		Claims of outside consumers: jobs that they have fetched.
 *
 * A session's claim ends with the session at the latest; a leased one is its
 * token's, and ends with the lease.  What such a claim holds, it holds until it
 * ends: its key, a place of its queue, and the pool's entry of the job.  Whoever
 * ends it lets all of that go, in whatever process.
 */
#ifndef JQ_FETCHED_H
#define JQ_FETCHED_H

#include "directory.h"
#include "utils/uuid.h"

typedef enum JqFetchedState
{
	JQ_FETCHED_TAKING = 1, /* by a transaction that is still open */
	JQ_FETCHED_HELD,
	JQ_FETCHED_LOST /* the scheduler is to record a failure */
} JqFetchedState;

/* what an open transaction does to a claim */
typedef enum JqFetchedFate
{
	JQ_FATE_NONE,
	JQ_FATE_EXTEND, /* its lease, and nothing else so far */
	JQ_FATE_END
} JqFetchedFate;

/* why a claim was lost */
typedef enum JqFetchedLoss
{
	JQ_LOSS_SESSION = 1, /* its session was ended, perhaps with the server */
	JQ_LOSS_CLIENT,		 /* its client has gone, or has reset the session */
	JQ_LOSS_LEASE,		 /* the lease is over */
	JQ_LOSS_CANCEL		 /* it was cancelled; of a session: and that knows */
} JqFetchedLoss;

/* what becomes of a job whose claim ends */
typedef enum JqFetchedThen
{
	JQ_THEN_GONE,  /* it has ended, or others see to it */
	JQ_THEN_TABLE, /* its row says when it goes on */
	JQ_THEN_LANE   /* it goes back there, as if it had not been taken */
} JqFetchedThen;

#define JQ_DIGEST_MAX 40

/*
 * All under JQ_LOCK_FETCHED, but for what is set before the claim can be found
 * and never changes (*), and "place", which belongs to whoever ends the claim.
 *
 *		ERROR, ROLLBACK, ROLLBACK TO	fetchxact.c undoes what was done
 *		PREPARE							refused
 *		exit of the session, DISCARD ALL	held claims without lease are lost
 *		crash of the server				all is gone; leases are read anew
 *		no room							nothing more is fetched, see jq_fetched_take;
 *										of what there is one queue gets half
 */
typedef struct JqFetched
{
	/* hash key */
	int64 id;
	Oid db;
	uint32 zero;
	JqFetchedState state;
	JqFetchedFate fate;
	JqFetchedLoss loss; /* JQ_FETCHED_LOST */
	bool leased;
	bool cancel;  /* it is to be cancelled: nobody may complete it, and it does
				   * not run again */
	uint32 entry; /* * of the pool, with its key */
	int lane;	  /* * it stays what it is meanwhile */
	Oid owner;	  /* of the job */
	int pid;	  /* of the session whose claim it is; 0: leased, for good */
	int fate_pid; /* whose transaction */
	pg_uuid_t token;
	TimestampTz leased_until;
	TimestampTz started_at; /* taken */
	TimestampTz since;		/* JQ_FETCHED_LOST: since then */
	int attempt;			/* this one, from 1 */
	TimestampTz enqueued_at;
	TimestampTz ready_at;
	JqPlace place;
	bool key_given;	  /* it has let its key go already */
	uint8 nkeys;	  /* places in the key table that are counted for it */
	bool passed;	  /* somebody has passed over it: see jq_claim_pass_over */
	bool has_spare;	  /* one of them is for its unique_key, if it needs one */
	uint8 digest_len; /* of its unique_key while it executes; 0 = none */
	char digest[JQ_DIGEST_MAX];
	char queue[JQ_QUEUE_NAME_MAX + 1]; /* * */
} JqFetched;

/* a job just taken */
typedef struct JqTaken
{
	int64 id;
	JqPos pos;
	ItemPointerData tid;
	uint8 flags;
	int lane;
	int keylen;
	char key[JQ_KEY_MAX + 1];
} JqTaken;

#define JQ_FETCH_MAX 1000 /* jobs of one call */

extern Size jq_fetched_size(void);
extern void jq_fetched_init(void);

/* how many claims there may be, in all databases */
extern int jq_fetched_max(void);
/* and how many keys they may hold, so that these fill no table of all */
extern int jq_fetched_max_keys(void);
/* somebody found no room, and none has become free since */
extern bool jq_fetched_full(void);

/* is the job claimed so?  Any lock but its own may be held. */
extern bool jq_fetched_has(Oid db, int64 id);
extern bool jq_fetched_pass_over(Oid db, int64 id);
extern bool jq_fetched_get(Oid db, int64 id, JqFetched *out);
/*
 * The process without which the claim does not end: its session, or whose open
 * transaction has to do with it; 0: none, it is leased, or lost, or there is none.
 */
extern int jq_fetched_process(Oid db, int64 id);
/* its key, as jq_entry_key; 0: it has none, or is not fetched */
extern int jq_fetched_key(Oid db, int64 id, char *buf);
/* all of a database; palloc'd */
extern JqFetched *jq_fetched_list(Oid db, int *n);
/* how many are of sessions that live */
extern int jq_fetched_count(Oid db);

/*
 * Take up to max jobs that may run now, for this session's transaction, which has
 * made room for them (jq_fetchxact_reserve); place is none, or one that was given
 * to a consumer of the queue, and is none afterwards.  *full: there is a job, and
 * no room for its claim.
 */
extern int jq_fetched_take(const char *queue, int max, bool leased,
						   JqPlace *place, JqTaken *out, bool *full);

/* what the row says, of a claim of ours that is being taken */
extern void jq_fetched_describe(int64 id, Oid owner, int attempt,
								TimestampTz enqueued_at, TimestampTz ready_at,
								const pg_uuid_t *token,
								TimestampTz leased_until);
/*
 * It is to have one more key.  false: there is no room; give it back to its lane,
 * where it is not taken again before there is.
 */
extern bool jq_fetched_reserve_key(int64 id);
extern void jq_fetched_set_digest(int64 id, const char *digest, int len);
/* it is not to start: its place, and its key, are for others, though its claim
 * lasts */
extern void jq_fetched_make_way(int64 id, bool with_key);

/*
 * The open transaction does this to the claim; the result says what kept it from
 * it.  token NULL: none was given.  *was is for jq_fetched_undo.
 */
typedef enum JqPinned
{
	JQ_PIN_OK,
	JQ_PIN_NONE,	  /* there is no such claim */
	JQ_PIN_OTHER,	  /* it is of another session; see *out */
	JQ_PIN_TOKEN,	  /* leased, with another token */
	JQ_PIN_NO_LEASE,  /* it has no lease */
	JQ_PIN_BUSY,	  /* another transaction does something to it */
	JQ_PIN_ENDED,	  /* this transaction has ended it */
	JQ_PIN_CANCELLED, /* it is cancelled; the claim has ended */
	JQ_PIN_LOST		  /* its lease is over */
} JqPinned;

extern JqPinned jq_fetched_pin(int64 id, const pg_uuid_t *token,
							   JqFetchedFate fate, JqFetched *out,
							   JqFetchedFate *was);
extern void jq_fetched_undo(int64 id, JqFetchedFate was);

/* that transaction is about to commit, or has failed to */
extern void jq_fetched_ending(int64 id, bool ending);

/* taken for good */
extern void jq_fetched_keep(int64 id);
/* the lease holds until then */
extern void jq_fetched_extended(int64 id, TimestampTz until);
/*
 * The claim ends, and all it holds is free.  false: nothing was done, as there is
 * no such claim, or as it was cancelled: then the scheduler records that.
 */
extern bool jq_fetched_end(Oid db, int64 id, JqFetchedThen then);

/*
 * The consumer is gone: what the claim holds is free, the scheduler records the
 * failure.  false: there is nothing to lose.
 */
extern bool jq_fetched_lose(Oid db, int64 id, JqFetchedLoss loss);
/* all claims of this session */
extern void jq_fetched_lose_mine(JqFetchedLoss loss);
/* have jq_fetched_lose_mine() called when this session exits */
extern void jq_fetched_register_exit(void);

/*
 * It is cancelled; false: it is not fetched.  A lease ends with that.  The claim
 * of a session lasts until that is told: it may be at work on the job.
 */
extern bool jq_fetched_cancel(Oid db, int64 id);

/* scheduler: leases that are over are lost; when does the next one end? */
extern TimestampTz jq_fetched_expire(Oid db);
/* the failure of a lost one has been recorded */
extern void jq_fetched_recorded(Oid db, int64 id);
/* a lease that the table has; lane_role's lane.  false: no room */
extern bool jq_fetched_restore(const JqItem *item, const char *queue, Oid owner,
							   int attempt, TimestampTz enqueued_at,
							   TimestampTz started_at, const pg_uuid_t *token,
							   TimestampTz leased_until, const char *digest,
							   int digest_len);
/* the database has no jobs any more */
extern void jq_fetched_purge(Oid db);

#endif /* JQ_FETCHED_H */
