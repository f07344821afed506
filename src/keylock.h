/*
 * keylock.h
 *		Keys: at most so many holders each, per database, by full text.
 *
 * A key is held by processes, for a job each.  How many it may have, how often
 * it may be taken and by whom next, is a matter of the queues of the jobs; see
 * keyrule.c.  A job that cannot have its key is parked on it and holds nothing;
 * when that may have changed the key's first waiter (of each lane) goes back into
 * its lane, and the key is nobody's until a job takes it.
 */
#ifndef JQ_KEYLOCK_H
#define JQ_KEYLOCK_H

#include "pool.h"

/* the key under which jobs that may have crashed the server take turns */
#define JQ_SUSPECT_DB InvalidOid
#define JQ_SUSPECT_KEY "suspect"

/*
 * Keys of services begin so, and those of users do not: jq_check_user_key().  On
 * such a key jobs run one by one and in order, whatever their queue's settings.
 */
#define JQ_SERVICE_KEY "jobqueue_service:"

static inline bool
jq_key_is_service(const char *key, int len)
{
	return len >= (int) strlen(JQ_SERVICE_KEY) &&
		   memcmp(key, JQ_SERVICE_KEY, strlen(JQ_SERVICE_KEY)) == 0;
}

typedef struct JqKeyInfo
{
	char key[JQ_KEY_MAX + 1];
	bool first; /* else it is another holder of the key before */
	int pid;	/* 0 = free, but waited for */
	int procno;
	int64 job; /* 0 = it is held by a session */
	TimestampTz since;
	int64 waiting;
	bool spilled; /* from here on its rows are in the table only */
	JqPos frontier;
} JqKeyInfo;

typedef enum JqKeyResult
{
	JQ_KEY_TAKEN,
	JQ_KEY_BUSY, /* or parked, where an entry was given */
	JQ_KEY_GONE, /* the entry is not needed: it was parked there already, or
				  * the key answers for its row */
	JQ_KEY_FULL	 /* no place in the key table */
} JqKeyResult;

extern Size jq_keylock_size(void);
extern void jq_keylock_init(void);

/* make room to remember one more key; allocates, so call it without locks */
extern void jq_keylock_prepare(void);

/*
 * Take the key, and a token of its bucket, for this process and the job of that
 * lane (-1: of a queue with default settings).  If it cannot be had, and entry is
 * not JQ_NIL, park the entry on it in the same section.  Without an entry
 * nothing is asked but whether it has too many holders.  A process has a key once.
 * An entry's lane lock is held by the caller, who calls jq_keylock_tell when it
 * is not.
 * *ask: the key wants a refill (JQ_REQ_KEYS).  *next: a waiter of the same lane
 * that may have it too, for jq_lane_take_back; or JQ_NIL.
 */
extern JqKeyResult jq_keylock_take(Oid db, const char *key, int len, int64 job,
								   int lane, uint32 entry, bool *ask,
								   uint32 *next);
/*
 * The same for the claim of an outside consumer, whose session has that pid (0:
 * it has none).  The key is then the claim's, not this process's, and may be let
 * go by any process.  Its token counts as used.  Without an entry, but with a
 * lane: it had the key before, as a lease that is read from the table.
 */
extern JqKeyResult jq_keylock_take_for_claim(Oid db, const char *key, int len,
											 int64 job, int pid, int lane,
											 uint32 entry, bool *ask,
											 uint32 *next);
extern void jq_keylock_release_of_claim(Oid db, const char *key, int len,
										int64 job);
/* the job that this process has the key for begins: its token is used */
extern void jq_keylock_use(Oid db, const char *key, int len);
/* it has begun, and is to begin once more: a token for that, if one is needed */
extern bool jq_keylock_use_again(Oid db, const char *key, int len);
/* no lock held: the launcher may have to know of a moment */
extern void jq_keylock_tell(void);

/* no place in the key table until one becomes free */
static inline bool
jq_keylock_full(void)
{
	return pg_atomic_read_u32(&jq_shared->keys_full) != 0;
}

/* a key has gone from the table: wake who found no place; no lock held */
extern void jq_keylock_wake(void);

/*
 * Give back a key of this process: unpark the first waiter of each lane.  Takes
 * lane locks: the caller holds none.  Does nothing if the key is not ours.
 */
extern void jq_keylock_release(Oid db, const char *key, int len);

/* all keys of this process; for its exit hook */
extern void jq_keylock_release_all(void);

/*
 * Is the key spilled, so that it answers for the row, which its refill will bring?
 * It does from now on, too: nobody else need know of the row.
 */
extern bool jq_keylock_answers(Oid db, const char *key, int len, JqPos pos);
/* or does the job, whose row is due, wait for the key in memory, at that place of that
 * lane?  Its entry, which may be older than the row's run_at, is told of that. */
extern bool jq_keylock_has(Oid db, const char *key, int len, int lane,
						   JqPos pos);
/* the row leaves memory: is it the key that answers for it from now on? */
extern bool jq_keylock_take_over(Oid db, const char *key, int len, int lane,
								 JqPos pos);

/* the job it is held for, 0 = none */
typedef struct JqKeyJob
{
	int64 id;
	TimestampTz ending; /* since when, 0: it is not */
} JqKeyJob;

extern JqKeyJob jq_keylock_job(Oid db, const char *key, int len);

/*
 * The transaction that ends it is about to commit, or has failed to.  job: the
 * claim of a consumer has the key; 0: this process.
 */
extern void jq_keylock_ending(Oid db, const char *key, int len, int64 job,
							  bool ending);

/* does this process hold the key? */
extern bool jq_keylock_mine(Oid db, const char *key, int len);

/*
 * Lane lock of the entry held: waiters of its key in that lane leave the key;
 * returned as a chain by next[0].
 */
extern uint32 jq_keylock_forget_waiters(uint32 entry);

/* ---- spilled keys; see keylock.c ---- */

/*
 * Does a spilled key answer for that row of the lane?  fresh: no refill of the
 * lane has passed over it.
 */
extern bool jq_keylock_answers_for(Oid db, const JqItem *item, int lane,
								   bool fresh);
/*
 * A row of that lane is gone; true: the key counts one less.  unknown: the lane does
 * not know it, and counts it, unless the key has been told of it since.
 */
extern bool jq_keylock_uncount(Oid db, const char *key, int len, int lane,
							   JqPos pos, bool unknown);
/* rows that keys answer for are added to their lane's element */
extern void jq_keylock_count_spilled(Oid db, int64 *per_lane);
/*
 * The entry of a job of that key has been dropped, JQ_E_BROUGHT or not: does the
 * key want a refill now?
 */
extern bool jq_keylock_dropped(Oid db, const char *key, int len, bool brought);

/* ---- by the scheduler: keys that want rows; palloc'd ---- */
typedef struct JqKeyWant
{
	int len;
	char key[JQ_KEY_MAX + 1];
} JqKeyWant;

extern JqKeyWant *jq_keylock_wanting(Oid db, int *n);
extern bool jq_keylock_refill_begin(Oid db, const JqKeyWant *k, JqPos *from,
									int64 *low_id, int *room);
/* everything before upto has been read, n rows of these lanes */
extern void jq_keylock_refill_read(Oid db, const JqKeyWant *k, JqPos upto,
								   const int *lanes, int n);
/* a row of those was in memory before, and not among those in the table only */
extern void jq_keylock_was_known(Oid db, const JqKeyWant *k, int lane);
/* what was read has been published, so much of it to no lane that runs */
extern void jq_keylock_refill_end(Oid db, const JqKeyWant *k, int in_vain);
/* lanes have been stopped: keys that are free may have to bring others' rows */
extern void jq_keylock_look_again(Oid db);
/* a scheduler died in a refill: what it had read is read again */
extern void jq_keylock_refill_abandon(Oid db);
/* the database has no jobs; or: forget what the keys know */
extern void jq_keylock_purge(Oid db);
extern void jq_keylock_forget(Oid db);

/* ---- ordered queues; see keyorder.c.  No lock is held ---- */

/*
 * The key is ours.  The job at pos is to run (again) at run_at, before all later
 * ones of the queue; DT_NOEND: its failure is about to be recorded, or it is to be
 * looked at again.
 */
extern void jq_keylock_order_begin(Oid db, const char *key, int len,
								   const char *queue, JqPos pos,
								   TimestampTz run_at);
/*
 * Is the key table so full that more of that had better wait in the table?
 */
extern bool jq_keylock_crowded(void);
/* then: until when, if the one that it waits for is to run again at run_at */
extern TimestampTz jq_keylock_order_put_off(TimestampTz run_at);
/* or so full that the rest is for jobs? */
extern bool jq_keylock_reserved(void);
/* so many keys may sessions of one role lock: half of what all of them may */
extern int jq_keylock_quota(void);
/*
 * What the job is now is in the table: a failure has been recorded, it has
 * ended, or was changed.  upto: who lets others have it before asks for a number
 * while he has its claim; orders without an end that have been noted since are of
 * whoever has it now.  Else PG_UINT64_MAX.
 */
extern uint64 jq_keylock_order_number(void);
extern void jq_keylock_order_recorded(Oid db, const char *key, int len,
									  int64 job, uint64 upto);
/* the same by its id alone */
extern void jq_keylock_order_recorded_job(Oid db, int64 job, uint64 upto);
/* the same of many jobs; all: even of those whose failure is to be recorded */
extern void jq_keylock_order_forget(Oid db, bool all);
/* settings of a queue have changed */
extern void jq_keylock_settings_changed(Oid db);

/* ---- launcher: what is due; *next is lowered to when to come again ---- */
extern void jq_keylock_look_due(TimestampTz *next);

/*
 * All holders of all keys of a database (a row of a key without any, if it is
 * waited for), and the ids parked on keys; palloc'd
 */
extern JqKeyInfo *jq_keylock_list(Oid db, int *n);
extern int64 *jq_keylock_parked(Oid db, Oid **roles, int *n);

#endif /* JQ_KEYLOCK_H */
