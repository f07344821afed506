/*
 * keylock.h
 *		Keys: at most one holder each, per database, by full text.
 *
 * A key is held by a process, for a job.  A job that meets a held key is parked
 * on it and holds nothing; when the key becomes free its first waiter (of each
 * lane) goes back into its lane, and the key stays free until a job takes it.
 */
#ifndef JQ_KEYLOCK_H
#define JQ_KEYLOCK_H

#include "pool.h"

/* the key under which jobs that may have crashed the server take turns */
#define JQ_SUSPECT_DB InvalidOid
#define JQ_SUSPECT_KEY "suspect"

typedef struct JqKeyInfo
{
	char key[JQ_KEY_MAX + 1];
	int pid; /* 0 = free, but waited for */
	int64 job;
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
 * Take the key for this process and the job.  If it is held, and entry is not
 * JQ_NIL, park the entry on it in the same section.  An entry's lane lock is
 * held by the caller.  *ask: the key wants a refill (JQ_REQ_KEYS).
 */
extern JqKeyResult jq_keylock_take(Oid db, const char *key, int len, int64 job,
								   uint32 entry, bool *ask);

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

/* the job it is held for, 0 = none */
extern int64 jq_keylock_job(Oid db, const char *key, int len);

/* does this process hold the key? */
extern bool jq_keylock_mine(Oid db, const char *key, int len);

/*
 * Lane lock of the entry held: waiters of its key in that lane leave the key;
 * returned as a chain by next[0].
 */
extern uint32 jq_keylock_forget_waiters(uint32 entry);

/* ---- spilled keys; see keylock.c ---- */

/* does a spilled key answer for that row of the lane? */
extern bool jq_keylock_answers_for(Oid db, const JqItem *item, int lane);
/* rows that keys answer for are added to their lane's element */
extern void jq_keylock_count_spilled(Oid db, int64 *per_lane);
/*
 * The entry of a job of that key has been dropped: does the key want a refill
 * now?
 */
extern bool jq_keylock_dropped(Oid db, const char *key, int len);

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
/* for the exit hook of a scheduler, before jq_keylock_release_all */
extern void jq_keylock_push_no_more(void);
/* a scheduler died in a refill: what it had read is read again */
extern void jq_keylock_refill_abandon(Oid db);
/* the database has no jobs; or: forget what the keys know */
extern void jq_keylock_purge(Oid db);
extern void jq_keylock_forget(Oid db);

/* all keys of a database, and the ids parked on them; palloc'd */
extern JqKeyInfo *jq_keylock_list(Oid db, int *n);
extern int64 *jq_keylock_parked(Oid db, int *n);

#endif /* JQ_KEYLOCK_H */
