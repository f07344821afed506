/*
 * pool.h
 *		The pool of entries: what memory knows of waiting jobs.
 *
 * An entry is a hint about a row of jobqueue_job.  It is free, in a lane's
 * order, or parked on a key; whoever has taken it out of one of these owns it
 * alone until he puts it into another.  A key of more than JQ_KEY_INLINE bytes
 * goes on in further elements of the pool.
 */
#ifndef JQ_POOL_H
#define JQ_POOL_H

#include "postgres.h"

#include "shmem.h"
#include "storage/itemptr.h"

#define JQ_NIL PG_UINT32_MAX

/*
 * Jobs without a command are fetched by outside consumers, who may fetch those
 * of all roles.  So they stand in one lane of their queue, apart from what
 * workers run: neither has to pass over the other's, in memory or in the table
 * (each has an index of its own).  The role of such a lane is this one, which
 * can be nobody's: it is below all that are ever given out.
 */
#define JQ_CONSUMER_ROLE ((Oid) 1)
#define JQ_LEVELS 8
#define JQ_KEY_INLINE 36
#define JQ_KEY_MORE 92

/* flags of an entry */
#define JQ_E_DUE 0x01 /* its row has a run_at, so no refill would find it */
#define JQ_E_UNPARKED 0x02 /* waiters of its key count on it */
#define JQ_E_UNSURE 0x04   /* with JQ_E_DUE: or it has none */
/* so many times has it been rolled back and run again, uncharged */
#define JQ_E_BROUGHT 0x08 /* its key counts it until a worker meets it */
#define JQ_E_RERUN_SHIFT 4
#define JQ_E_RERUNS (0x0f << JQ_E_RERUN_SHIFT)

typedef struct JqEntry
{
	int64 id;
	int16 priority;
	ItemPointerData tid;
	int32 lane;
	uint32 next[JQ_LEVELS]; /* order of a lane; [0] also other lists */
	uint8 level;
	uint8 keylen; /* 0 = no key */
	uint8 flags;
	uint8 unused;
	uint32 more; /* rest of the key */
	char key[JQ_KEY_INLINE];
} JqEntry;

typedef struct JqMore
{
	uint32 more;
	char text[JQ_KEY_MORE];
} JqMore;

#define JQ_CLAIM_HOLDS (-2)

/* whoever holds a key; see keylock.c */
typedef struct JqHolder
{
	int procno; /* JQ_CLAIM_HOLDS: no process, but the claim on the job */
	int pid;	/* of such a claim: of its session, 0 = it has none */
	int64 job;
	TimestampTz since;
	int32 limit; /* so many holders does his queue allow */
	int32 lane;	 /* of a job that a worker has; -1 = of another */
	uint32 next; /* of the same key */
	/* since when its transaction commits, 0: it does not; see conflict.c */
	TimestampTz ending;
} JqHolder;

/* place in the order of a lane: smaller runs first */
typedef struct JqPos
{
	int32 priority;
	int64 id;
} JqPos;

/* a job of a key that later ones have to wait for; see keyorder.c */
typedef struct JqKeyOrder
{
	/* of the queue of that name (hash of it; 0 = of all) nothing after pos has
	 * the key before that moment; DT_NOEND: before somebody says so */
	uint32 queue;
	uint32 next; /* of the same key, where it is in the pool */
	JqPos pos;
	TimestampTz until;
	uint64 number; /* of the note; later ones have larger ones */
} JqKeyOrder;

typedef union JqElement
{
	JqEntry entry;
	JqMore more;
	JqHolder holder;
	JqKeyOrder order;
	uint32 next_free;
} JqElement;

/* the same in local memory */
typedef struct JqItem
{
	int64 id;
	int16 priority;
	ItemPointerData tid;
	uint8 flags;
	uint8 keylen;
	const char *key;
} JqItem;

#define JQ_POS_NOTHING ((JqPos){PG_INT32_MIN, 0})
#define JQ_POS_ALL ((JqPos){PG_INT32_MAX, 0})

static inline int
jq_pos_cmp(JqPos a, JqPos b)
{
	if (a.priority != b.priority)
		return a.priority < b.priority ? -1 : 1;
	if (a.id != b.id)
		return a.id < b.id ? -1 : 1;
	return 0;
}

static inline JqPos
jq_pos_min(JqPos a, JqPos b)
{
	return jq_pos_cmp(a, b) <= 0 ? a : b;
}

static inline JqPos
jq_pos_make(int priority, int64 id)
{
	JqPos p;

	p.priority = priority;
	p.id = id;
	return p;
}

/* the first place after a row */
static inline JqPos
jq_pos_after(int priority, int64 id)
{
	if (id < PG_INT64_MAX)
		return jq_pos_make(priority, id + 1);
	return priority < PG_INT16_MAX ? jq_pos_make(priority + 1, PG_INT64_MIN) :
									 JQ_POS_ALL;
}

static inline bool
jq_pos_is_all(JqPos a)
{
	return a.priority == PG_INT32_MAX;
}

extern JqElement *jq_pool;

#define JQ_ENTRY(ix) (&jq_pool[ix].entry)
#define JQ_HOLDER(ix) (&jq_pool[ix].holder)
#define JQ_ORDER(ix) (&jq_pool[ix].order)
#define JQ_ENTRY_POS(ix) jq_pos_make(JQ_ENTRY(ix)->priority, JQ_ENTRY(ix)->id)

extern Size jq_pool_size(void);
extern void jq_pool_init(void);

/*
 * Make an entry of an item; JQ_NIL when the pool is empty.  Takes no lock.
 */
extern uint32 jq_entry_new(const JqItem *item, int lane);
extern void jq_entry_free(uint32 ix);

/* the flags of what may have got a run_at that nobody has looked at */
static inline uint8
jq_flags_perhaps_due(uint8 flags)
{
	return flags & JQ_E_DUE ? flags : flags | JQ_E_DUE | JQ_E_UNSURE;
}

/*
 * An entry's flags where another one of the same job is not needed.  If one of
 * them knows of a run_at and the other does not, one is older than the row; but
 * which?  model: TWIN_DUE
 */
static inline uint8
jq_flags_of_twins(uint8 flags, uint8 other)
{
	if (flags & other & JQ_E_DUE)
		return other & JQ_E_UNSURE ? flags : flags & ~JQ_E_UNSURE;
	return other & JQ_E_DUE ? jq_flags_perhaps_due(flags) :
		   flags & JQ_E_DUE ? flags | JQ_E_UNSURE :
							  flags;
}

/* its row has a run_at, which the entry may not know of: it is older, perhaps */
static inline void
jq_entry_is_due(JqEntry *e)
{
	e->flags = jq_flags_of_twins(e->flags, JQ_E_DUE);
}

/* what is known of a job that another entry stands for as well: it stays known */
static inline void
jq_entry_add_reruns(JqEntry *e, const JqEntry *twin)
{
	if ((e->flags & JQ_E_RERUNS) < (twin->flags & JQ_E_RERUNS))
		e->flags = (e->flags & ~JQ_E_RERUNS) | (twin->flags & JQ_E_RERUNS);
}

/* it does not look as if anything had to leave it soon */
static inline bool
jq_pool_is_half_free(void)
{
	return pg_atomic_read_u32(&jq_shared->pool_nfree) >
		   (uint32) jq_shared->nentries / 2;
}

/* an element for something else; JQ_NIL when the pool is empty */
extern uint32 jq_pool_take(void);
extern void jq_pool_give_back(uint32 ix);

/* copy the key, NUL-terminated; buf has JQ_KEY_MAX + 1 bytes; returns length */
extern int jq_entry_key(uint32 ix, char *buf);

#endif /* JQ_POOL_H */
