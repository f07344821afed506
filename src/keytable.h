/*
 * keytable.h
 *		The key table, for keylock.c, keyspill.c and keylook.c alone.
 */
#ifndef JQ_KEYTABLE_H
#define JQ_KEYTABLE_H

#include "keylock.h"
#include "utils/hsearch.h"

typedef struct JqKeyTag
{
	Oid db;
	uint32 len;
	char text[JQ_KEY_MAX + 1];
} JqKeyTag;

/* lanes that are told apart; what is of others is counted for the first */
#define SPILL_LANES 4

/* all under the partition's lock */
typedef struct JqKey
{
	JqKeyTag tag;
	int procno; /* of the holder; -1 = free */
	int pid;
	int64 job;
	TimestampTz since;
	uint32 first; /* waiters, by next[0] */
	uint32 last;
	uint32 nwaiting;
	bool one_lane; /* all waiters are of one lane */
	bool spilled;
	bool want; /* the scheduler has been asked for a refill */
	bool filling;
	int pusher; /* procno of the scheduler that publishes what it has read, or
				 * -1: until it has, nobody else gets the key when it is free */
	int pusher_pid;
	JqPos frontier; /* of a spilled key */
	JqPos cut;
	JqPos fill_from;
	int64
		low_id;	 /* of a spilled key: no row it answers for has a smaller one */
	int brought; /* entries of the last refill that no worker has met yet */
	JqPos
		counted; /* refills of lanes have counted what they passed up to here */
	int nlanes;	 /* whose rows are in the table only: how many of them */
	int32 lanes[SPILL_LANES];
	int64 counts[SPILL_LANES];
} JqKey;

extern HTAB *jq_keys;

extern uint32 jq_key_hash_of(const JqKeyTag *tag);
extern LWLock *jq_key_partition(uint32 hash);
/* locks the key's partition, exclusively, whether it is there or not (NULL) */
extern JqKey *jq_key_find(Oid db, const char *key, int len, uint32 *hash);
extern void jq_key_lock_all(LWLockMode mode);
extern void jq_key_unlock_all(void);
/* the key is one of this process; room has been made by jq_keylock_prepare */
extern void jq_key_note_mine(const JqKeyTag *tag, uint32 hash);
/* partition lock held: nobody holds it, waits for it, or has rows in the table */
extern void jq_key_remove_if_unused(JqKey *k, uint32 hash);

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
