/*
 * keytable.h
 *		The key table, for the files key*.c alone.
 */
#ifndef JQ_KEYTABLE_H
#define JQ_KEYTABLE_H

#include "guc.h"
#include "keylock.h"
#include "keyrate.h"
#include "lib/pairingheap.h"
#include "queue.h"
#include "utils/hsearch.h"

typedef struct JqKeyTag
{
	Oid db;
	uint32 len;
	char text[JQ_KEY_MAX + 1];
} JqKeyTag;

/* whoever is to have a key next has so long to take it */
#ifdef JQ_TESTING
#define JQ_KEY_TURN_US (jobqueue_testing_key_turn * (int64) 1000)
#else
#define JQ_KEY_TURN_US 200000
#endif

/* lanes that are told apart; what is of others is counted for the first */
#define SPILL_LANES 4

#define KEY_ORDERS 3 /* of a key; more are elements of the pool */

/* all under the partition's lock */
typedef struct JqKey
{
	JqKeyTag tag;
	int nholders;	 /* 0 = free */
	JqHolder holder; /* the first of them; the others by next, in the pool */
	int32 limit;	 /* the smallest of what its holders allow */
	uint32 first;	 /* waiters, by next[0] */
	uint32 last;
	uint32 nwaiting;
	bool one_lane; /* all waiters are of one lane */
	bool spilled;
	bool want; /* the scheduler has been asked for a refill */
	bool filling;
	int pusher; /* procno of the scheduler that publishes what it has read, or
				 * -1: until it has, no worker gets the key */
	int pusher_pid;
	JqPos frontier; /* of a spilled key */
	JqPos cut;
	JqPos fill_from;
	int64
		low_id;	 /* of a spilled key: no row it answers for has a smaller one */
	int brought; /* entries of the last refill that no worker has met yet */
	int nlanes;	 /* whose rows are in the table only: how many of them */
	int32 lanes[SPILL_LANES];
	int64 counts[SPILL_LANES];
	/* refills of the lane have counted what they passed up to here */
	JqPos counted[SPILL_LANES];
	int norders; /* jobs that failed and keep their order; see keyorder.c */
	JqKeyOrder orders[KEY_ORDERS];
	uint32 more_orders;	   /* in the pool, by next, the last one first */
	bool passed;		   /* somebody had to wait because of turn */
	JqPos turn;			   /* the waiter that is to have it now ... */
	TimestampTz turn_ends; /* ... unless this is over; 0 = nobody's turn */
	TimestampTz wake_at;   /* in the heap of keywake.c; 0 = it is not */
	pairingheap_node wake_node;
	int first_session; /* procno; sessions that wait, see keywait.c; -1 = none */
	int nsessions;
	TimestampTz session_turn; /* jobs before the first of them may take the key
							   * until then; 0 = it has not been set */
	bool turn_of_table;		  /* only those that the table has, may */
	JqPos unparked;			  /* back in its lane, to take the key ... */
	TimestampTz unparked_until; /* ... before sessions that come after it, until
								 * then; 0 = there is none */
} JqKey;

/* keys of this process */
typedef struct JqMyKey
{
	JqKeyTag tag;
	uint32 hash;
	int64 job;
	bool for_job;		/* we hold it for a job ... */
	bool for_session;	/* ... or it has been locked, or both */
	bool waiting;		/* we stand in line for it; may hold it already */
	bool pushed;		/* we are not a holder, but its pusher */
	bool of_claim;		/* nor are we: the claim of an outside consumer is */
	bool unused;		/* a token was taken that has not been used */
	JqKeyBucket bucket; /* of the token */
} JqMyKey;

extern HTAB *jq_keys;

extern long jq_key_max(void);

extern uint32 jq_key_hash_of(const JqKeyTag *tag);
extern LWLock *jq_key_partition(uint32 hash);
/* locks the key's partition, exclusively, whether it is there or not (NULL) */
extern JqKey *jq_key_find(Oid db, const char *key, int len, uint32 *hash);
extern void jq_key_lock_all(LWLockMode mode);
extern void jq_key_unlock_all(void);
/* the same, and it is made if it is not there; NULL: there is no place for it */
extern JqKey *jq_key_enter(const JqKeyTag *tag, uint32 hash);
extern void jq_key_make_tag(JqKeyTag *tag, Oid db, const char *key, int len);
/* room has been made by jq_keylock_prepare */
extern JqMyKey *jq_key_note_mine(const JqKeyTag *tag, uint32 hash);
/* what this process has, or NULL; waiting: what it waits for */
extern JqMyKey *jq_key_find_mine(Oid db, const char *key, int len,
								 bool waiting);
/* no lock held: let it go altogether */
extern void jq_key_release_mine(JqMyKey *my);
/* no lock held: it is not held for a job any more, but for the session */
extern void jq_key_end_job(JqMyKey *my);
/* this process is its pusher; room has been made by jq_keylock_prepare */
extern void jq_key_note_pushed(const JqKeyTag *tag, uint32 hash);
/*
 * Partition lock held: nobody holds it, waits for it, keeps an order in it, or
 * has rows in the table
 */
extern void jq_key_remove_if_unused(JqKey *k, uint32 hash);
/* no lock held: whoever may have the key now goes back into his lane */
extern void jq_key_advance(const JqKeyTag *tag);
/* the same for all its waiters, whether they may have it or not */
extern void jq_key_let_all_go(const JqKeyTag *tag);
/* partition lock held */
#ifdef USE_ASSERT_CHECKING
extern void jq_key_check(const JqKey *k);
#else
#define jq_key_check(k) ((void) 0)
#endif

/* ---- holders; the partition's lock is held ---- */

/* this process, if it is one of them */
extern const JqHolder *jq_key_my_holder(const JqKey *k);
/* claim_pid: of a claim, of a session with that pid; -1: this process itself */
extern void jq_key_set_holder(JqHolder *h, int claim_pid, int64 job, int lane,
							  int32 limit);
/* false: there is no memory for one more */
extern bool jq_key_add_holder(JqKey *k, const JqHolder *h);
/* false: this process, or the claim, is none */
extern bool jq_key_remove_holder(JqKey *k, const JqMyKey *my);
/* the smallest of what they allow */
extern void jq_key_set_limit(JqKey *k);
/* settings have changed: what they allow now */
extern void jq_key_renew_limits(JqKey *k, uint32 hash);

/* ---- keyrule.c; the partition's lock is held ---- */

/* what the queue of a job says about keys */
typedef struct JqKeyRules
{
	int32 limit;
	bool ordered;
	uint32 queue; /* hash of its name, never 0; of ordered ones only */
	bool limited; /* has a bucket */
	JqKeyBucket bucket;
} JqKeyRules;

typedef enum JqKeyClosed
{
	JQ_KEY_OPEN,
	JQ_KEY_PUSHED,	/* smaller ones may be on their way */
	JQ_KEY_LIMIT,	/* it has as many holders as it may have */
	JQ_KEY_ORDER,	/* a job that failed is to run before */
	JQ_KEY_TURN,	/* it is somebody else's turn */
	JQ_KEY_NO_TOKEN /* its bucket is empty */
} JqKeyClosed;

extern uint32 jq_key_queue_hash(const char *queue);
extern void jq_key_rules(const JqKey *k, uint32 hash, int lane, JqKeyRules *r);
/*
 * Why can a job of the lane at pos not have the key?  *until: when that is over,
 * if nothing happens before.
 */
extern JqKeyClosed jq_key_closed(JqKey *k, const JqKeyRules *r, JqPos pos,
								 TimestampTz now, TimestampTz *until);
/* has somebody who stands before pos to have it first? */
extern bool jq_key_behind(JqKey *k, uint32 hash, int lane, JqPos pos,
						  TimestampTz now);
/*
 * Unlink the waiters that are to go back into their lanes; *ends: when to look
 * at the others, if nothing happens before.  all: everybody.
 */
extern uint32 jq_key_unpark(JqKey *k, uint32 hash, bool all, TimestampTz now,
							TimestampTz *until);
/* the next waiter of the lane, if it may have the key too; JQ_NIL if not */
extern uint32 jq_key_unpark_next(JqKey *k, uint32 hash, int lane,
								 TimestampTz now, TimestampTz *until);

/* ---- keywait.c; the partition's lock is held ---- */

extern Size jq_keywait_size(void);
extern void jq_keywait_init(void);
/* does a session wait that stands before that place? */
extern bool jq_key_session_before(const JqKey *k, JqPos pos);
extern int jq_key_sessions_before(const JqKey *k, JqPos pos);
/*
 * Give the key to the first session that waits, if it may have it.  blocked: a
 * job before it may have it, too.  *until: when to look again.
 */
extern void jq_key_session_serve(JqKey *k, bool blocked, TimestampTz now,
								 TimestampTz *until);
/* its jobs have had time enough: the session is the next one */
extern bool jq_key_session_due(const JqKey *k, TimestampTz now);
/*
 * These have been unparked: sessions that come after the first of them leave the
 * key to it for a while.  *until: when to look again.
 */
extern void jq_key_session_unparked(JqKey *k, uint32 chain, TimestampTz now,
									TimestampTz *until);
/* this process stands in line no more; true: it had been given the key */
extern bool jq_key_session_leave(JqKey *k);
/* this process lets it go: what it has committed is to be flushed one day */
extern void jq_key_note_commit(uint32 hash);
/* no lock held: wake who has been given a key */
extern void jq_key_session_tell(void);

/* ---- keyorder.c; the partition's lock is held ---- */

/* what keeps a job of the queue (hash) at pos from running; NULL: nothing */
extern JqKeyOrder *jq_key_order_of(JqKey *k, uint32 queue, JqPos pos);
/* those whose time is over go; the others have a moment */
extern void jq_key_order_expire(JqKey *k, uint32 hash, TimestampTz now);
/* what the job has left; of what has no end only orders up to that number */
extern bool jq_key_order_clear(JqKey *k, int64 job, uint64 upto);

/* ---- keyspill.c; the partition's lock is held ---- */

/* how many waiters a key may have in memory, as long as that has room */
extern uint32 jq_key_max_waiters(void);
/* the row at pos is in the table only */
extern void jq_key_spill_from(JqKey *k, JqPos pos, int lane);
/* forget the largest waiter */
extern void jq_key_spill_last(JqKey *k);
/* the frontier has been lowered: no waiter may stand behind it */
extern void jq_key_spill_waiters(JqKey *k);
/* is it time to ask for the next rows of the key?  If so, it has been noted. */
extern bool jq_key_wants_refill(JqKey *k);
/* how many rows of it are in the table only */
extern int64 jq_key_spilled_rows(const JqKey *k);

#endif /* JQ_KEYTABLE_H */
