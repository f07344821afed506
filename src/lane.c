/*
 * lane.c
 *		The order of a lane, and what it knows of the table.
 *
 * Entries stand in a skip list by (priority, id).  New ids are mostly the
 * largest, so the tail of each level is remembered and appending is O(1), as is
 * taking the first.
 *
 * Knowledge.  "frontier" means: every ready row of the lane that is smaller is
 * in memory: in the list, parked on a key, claimed, or in the hands of a
 * process that will publish it.  JQ_POS_NOTHING: nothing is known.  JQ_POS_ALL:
 * everything.  From this follows
 *
 *	accept	a key smaller than the frontier must be accepted, or the frontier
 *			lowered to it (never raised: min).  No room: the largest entry goes
 *			and the frontier is lowered to it.
 *	refill	begin: filling = true, cut = ALL; from now on all keys are accepted,
 *			each one refused or evicted lowers cut.  Only then the snapshot.
 *			add: rows in order, those below cut; the frontier follows.
 *			end: frontier = min(what was read, cut); what was accepted beyond it
 *			is given up, since rows before it may be unknown.
 *	take	only entries before the frontier are given out, so that nothing
 *			overtakes rows that a refill has not brought yet.
 *
 * Rows that are due but have a run_at (JQ_E_DUE) are not ready in the table, where
 * a refill would find them.  If one has to leave memory, or finds no room, the lane
 * has lost_due, and is not refilled, as that would pass over the row, before the
 * scheduler has looked which those are (jq_lane_which_lost) and has made them ready.
 * A row is made ready but once, so that comes to an end; taken into memory again
 * such rows would drive out others in turn.  Where there is room for them they are
 * published again instead, as are all that are due after a start: then some of the
 * lane that are not due may run before them.
 *
 * Rows of a spilled key are the exception: from the key's own frontier on the
 * key answers for them, refills of the lane pass over them; see keylock.c.
 *
 * low_id.  Whoever lowers the frontier says from which id on rows may be
 * unknown; it is forgotten when everything is known.  A refill does not touch
 * index entries below it: where an old snapshot is held they are many, and dead.
 *
 * Numbers.  spilled counts rows beyond the frontier that are ready in the table.
 * After a start, or when rows came by hand, the scheduler counts in steps: up to
 * count_pos the number is right, and kept up to date.
 */
#include "postgres.h"

#include "claim.h"
#include "database.h"
#include "keylock.h"
#include "lane.h"
#include "slot.h"
#include "storage/latch.h"

#define PUSH_CHUNK 256	 /* entries pushed in one hold of the lock */
#define LANE_RESERVE 16	 /* entries a lane may have when memory is short */
#define REFILL_MAX 20000 /* rows brought by one refill */
#define LOST_MORE 8		 /* of due rows such a part leaves together */

/* ------------------------------------------------------------- skip list */

#ifdef USE_ASSERT_CHECKING
static void
lane_check(JqLane *l)
{
	uint32 ix;
	uint32 n = 0;
	uint32 last = JQ_NIL;

	for (ix = l->head[0]; ix != JQ_NIL && n < 100; ix = JQ_ENTRY(ix)->next[0])
	{
		if (last != JQ_NIL)
			Assert(jq_pos_cmp(JQ_ENTRY_POS(last), JQ_ENTRY_POS(ix)) < 0);
		Assert(l->filling || jq_pos_cmp(JQ_ENTRY_POS(ix), l->frontier) < 0);
		last = ix;
		n++;
	}
	Assert(ix != JQ_NIL || n == l->nready);
	Assert((l->nready == 0) == (l->head[0] == JQ_NIL));
	Assert((l->head[0] == JQ_NIL) == (l->tail[0] == JQ_NIL));
}
#else
#define lane_check(l) ((void) 0)
#endif

/*
 * The last entry of each level that stands before pos (JQ_NIL: the head).
 * Returns the entry at pos, if any.
 */
static uint32
lane_search(JqLane *l, JqPos pos, uint32 *before)
{
	int lev;
	uint32 at = JQ_NIL;
	uint32 next = JQ_NIL;

	for (lev = JQ_LEVELS - 1; lev >= 0; lev--)
	{
		next = at == JQ_NIL ? l->head[lev] : JQ_ENTRY(at)->next[lev];
		while (next != JQ_NIL && jq_pos_cmp(JQ_ENTRY_POS(next), pos) < 0)
		{
			at = next;
			next = JQ_ENTRY(at)->next[lev];
		}
		before[lev] = at;
	}
	if (next != JQ_NIL && jq_pos_cmp(JQ_ENTRY_POS(next), pos) == 0)
		return next;
	return JQ_NIL;
}

static void lane_lose_twins(JqLane *l, uint32 ix, uint32 twin);

static bool
has_key(uint32 ix, const char *key, int len)
{
	char own[JQ_KEY_MAX + 1];

	return jq_entry_key(ix, own) == len && memcmp(own, key, len) == 0;
}

/*
 * Put the entry in its place.  If one is there already this is a duplicate, and
 * is freed; what counted on it counts on the other, and what it said of the row
 * (one of them may be older than the row's run_at) is not lost.  model: TWIN_DUE
 */
static bool
lane_insert(JqLane *l, uint32 ix)
{
	JqEntry *e = JQ_ENTRY(ix);
	JqPos pos = JQ_ENTRY_POS(ix);
	uint32 before[JQ_LEVELS];
	int lev;

	if (l->tail[0] == JQ_NIL || jq_pos_cmp(JQ_ENTRY_POS(l->tail[0]), pos) < 0)
		memcpy(before, l->tail, sizeof(before));
	else
	{
		uint32 twin = lane_search(l, pos, before);

		if (twin != JQ_NIL)
		{
			char key[JQ_KEY_MAX + 1];
			int len = jq_entry_key(ix, key);

			if (!has_key(twin, key, len))
			{
				lane_lose_twins(l, ix, twin);
				return false;
			}
			JQ_ENTRY(twin)->flags =
				jq_flags_of_twins(JQ_ENTRY(twin)->flags, e->flags) |
				(e->flags & (JQ_E_UNPARKED | JQ_E_BROUGHT));
			jq_entry_add_reruns(JQ_ENTRY(twin), e);
			jq_entry_free(ix);
			return false;
		}
	}
	for (lev = 0; lev < e->level; lev++)
	{
		uint32 *link = before[lev] == JQ_NIL ?
						   &l->head[lev] :
						   &JQ_ENTRY(before[lev])->next[lev];

		e->next[lev] = *link;
		*link = ix;
		if (e->next[lev] == JQ_NIL)
			l->tail[lev] = ix;
	}
	l->nready++;
	return true;
}

static void
lane_unlink(JqLane *l, uint32 ix)
{
	JqEntry *e = JQ_ENTRY(ix);
	uint32 before[JQ_LEVELS];
	int lev;

	if (l->head[0] == ix)
		memset(before, 0xff, sizeof(before)); /* JQ_NIL: first everywhere */
	else
		lane_search(l, JQ_ENTRY_POS(ix), before);
	for (lev = 0; lev < e->level; lev++)
	{
		uint32 *link = before[lev] == JQ_NIL ?
						   &l->head[lev] :
						   &JQ_ENTRY(before[lev])->next[lev];

		*link = e->next[lev];
		if (l->tail[lev] == ix)
			l->tail[lev] = before[lev];
	}
	l->nready--;
}

/* ------------------------------------------------------------- knowledge */

/* rows from pos on are no longer known; model: R1, R5 */
static void
lane_lower(JqLane *l, JqPos pos, int64 low_id)
{
	if (jq_pos_is_all(l->frontier))
		l->low_water = l->nready / 2;
	l->frontier = jq_pos_min(l->frontier, pos);
	l->cut = jq_pos_min(l->cut, pos);
	l->low_id = Min(l->low_id, low_id);
}

/* rows at pos are in the table only */
static void
lane_count_spilled(JqLane *l, JqPos pos, int64 n)
{
	if (jq_pos_cmp(pos, l->count_pos) < 0)
		l->spilled = Max(l->spilled + n, 0);
}

/* the numbers are not right any more */
static void
lane_uncount(JqLane *l)
{
	pg_atomic_fetch_sub_u64(&jq_queues[l->queue_ix].held, l->held);
	l->held = 0;
	l->spilled = 0;
	l->count_pos = JQ_POS_NOTHING;
	l->passed = JQ_POS_NOTHING;
}

/*
 * The row at pos, of which these flags were known, is in the table only.  Nobody is
 * woken: before it is missed the lane wants a refill.
 */
static void
lane_lose(JqLane *l, JqPos pos, uint8 flags)
{
	if ((flags & JQ_E_DUE) && !l->lost_due)
	{
		l->lost_due = true;
		jq_db_request_quietly(l->dbix, JQ_REQ_LOST);
	}
	/* counted when it is ready; if nobody knows whether it is, then once too often
	 * rather than never */
	if ((flags & (JQ_E_DUE | JQ_E_UNSURE)) != JQ_E_DUE)
		lane_count_spilled(l, pos, 1);
	lane_lower(l, pos, pos.id);
}

static void lane_evict_one(JqLane *l);
static int lane_lock_by_name(Oid db, Oid role, const char *queue, bool create);

/* nothing that stays may stand behind what is not known */
static void
lane_trim(JqLane *l)
{
	while (!l->filling && l->tail[0] != JQ_NIL &&
		   jq_pos_cmp(JQ_ENTRY_POS(l->tail[0]), l->frontier) >= 0)
		lane_evict_one(l);
}

/* an entry that is in nobody's hands any more: the table has its row */
static void
lane_forget(JqLane *l, uint32 ix)
{
	JqEntry *e = JQ_ENTRY(ix);
	JqPos pos = JQ_ENTRY_POS(ix);
	bool spilled = pg_atomic_read_u32(&jq_shared->spilled_keys) > 0;
	char key[JQ_KEY_MAX + 1];
	int len = 0;

	if (e->keylen > 0 && (spilled || (e->flags & JQ_E_BROUGHT)))
		len = jq_entry_key(ix, key);
	/* a key finds what has a run_at, too */
	if (len == 0 || !spilled || !(e->flags & JQ_E_DUE) ||
		!jq_keylock_take_over(l->db, key, len, e->lane, pos))
		lane_lose(l, pos, e->flags);
	/* rare; nobody is sure to ask after the locks */
	if (len > 0 && jq_keylock_dropped(l->db, key, len, e->flags & JQ_E_BROUGHT))
		jq_db_request(l->dbix, JQ_REQ_KEYS);
	jq_entry_free(ix);
}

/*
 * Waiters of the entry's key that count on this entry, if the key is free: they
 * are taken off the key.  keep: they go back into the lane, else they are
 * forgotten; they are in the table too.
 */
static void
lane_relieve_waiters(JqLane *l, uint32 ix, bool keep)
{
	uint32 waiter;

	if (!(JQ_ENTRY(ix)->flags & JQ_E_UNPARKED))
		return;
	waiter = jq_keylock_forget_waiters(ix);
	while (waiter != JQ_NIL)
	{
		uint32 next = JQ_ENTRY(waiter)->next[0];

		pg_atomic_fetch_sub_u32(&l->nparked, 1);
		if (keep &&
			(l->filling || jq_pos_cmp(JQ_ENTRY_POS(waiter), l->frontier) < 0))
			(void) lane_insert(l, waiter);
		else
			lane_forget(l, waiter);
		waiter = next;
	}
}

/* an entry of that key is not there any more */
static void
lane_drop_key(JqLane *l, const char *key, int len, uint8 flags)
{
	if (len > 0 && jq_keylock_dropped(l->db, key, len, flags & JQ_E_BROUGHT))
		jq_db_request(l->dbix, JQ_REQ_KEYS);
}

static void
lane_drop_entry(JqLane *l, uint32 ix)
{
	char key[JQ_KEY_MAX + 1];

	lane_relieve_waiters(l, ix, true);
	lane_drop_key(l, key, jq_entry_key(ix, key), JQ_ENTRY(ix)->flags);
	jq_entry_free(ix);
}

/*
 * Entries of one job with different keys: one of them is older than the row, and
 * that key, spilled, would not find it.  The table knows which.
 */
static void
lane_lose_twins(JqLane *l, uint32 ix, uint32 twin)
{
	JqPos pos = JQ_ENTRY_POS(ix);
	uint8 flags = jq_flags_of_twins(JQ_ENTRY(twin)->flags, JQ_ENTRY(ix)->flags);

	lane_unlink(l, twin);
	lane_drop_entry(l, twin);
	lane_drop_entry(l, ix);
	lane_lose(l, pos, flags);
	l->want_refill = true;
	lane_trim(l);
}

/* the same where the last entry is of the job, and there is none for the other */
static void
lane_lose_known(JqLane *l, const JqItem *item)
{
	uint32 ix = l->tail[0];
	uint8 flags = jq_flags_of_twins(JQ_ENTRY(ix)->flags, item->flags);

	lane_unlink(l, ix);
	lane_drop_entry(l, ix);
	lane_drop_key(l, item->key, item->keylen, item->flags);
	lane_lose(l, jq_pos_make(item->priority, item->id), flags);
	l->want_refill = true;
	lane_trim(l);
}

/* give up the largest entry, and whoever counts on it */
static void
lane_evict_one(JqLane *l)
{
	uint32 ix = l->tail[0];

	lane_unlink(l, ix);
	lane_relieve_waiters(l, ix, false);
	lane_forget(l, ix);
}

/* and what may not stay then */
static void
lane_evict_last(JqLane *l)
{
	lane_evict_one(l);
	lane_trim(l);
}

/* taken, but it is not to run: a duplicate of a claimed job; lane lock held */
void
jq_lane_drop(JqLane *l, uint32 ix)
{
	lane_relieve_waiters(l, ix, true);
	jq_entry_free(ix);
}

void
jq_lane_remove(Oid db, Oid role, const char *queue, const JqItem *item)
{
	JqPos pos = jq_pos_make(item->priority, item->id);
	int lane = lane_lock_by_name(db, role, queue, false);
	uint32 before[JQ_LEVELS];
	uint32 ix;
	bool refill;
	bool ask = false;
	bool lost;
	bool had_lost;
	JqLane *l;
	int dbix;

	if (lane < 0)
		return;
	l = &jq_lanes[lane];
	had_lost = l->lost_due;
	ix = lane_search(l, pos, before);
	if (ix != JQ_NIL)
	{
		char key[JQ_KEY_MAX + 1];
		int len = jq_entry_key(ix, key);
		bool brought = JQ_ENTRY(ix)->flags & JQ_E_BROUGHT;

		lane_unlink(l, ix);
		jq_lane_drop(l, ix);
		if (len > 0)
			ask = jq_keylock_dropped(db, key, len, brought);
	}
	else if (!l->filling)
	{
		bool unknown = jq_pos_cmp(pos, l->frontier) >= 0;

		/* what is due was not counted: see lane_lose */
		if (!(unknown && (item->flags & JQ_E_DUE)) &&
			!jq_keylock_uncount(db, item->key, item->keylen, lane, pos,
								unknown) &&
			unknown)
			lane_count_spilled(l, pos, -1);
	}
	lane_check(l);
	refill = ix != JQ_NIL && jq_lane_wants_refill(l);
	lost = l->lost_due && !had_lost;
	dbix = l->dbix;
	LWLockRelease(jq_lane_lock(lane));
	if (refill || ask || lost)
		jq_db_request(dbix, (refill ? JQ_REQ_REFILL : 0) |
								(ask ? JQ_REQ_KEYS : 0) |
								(lost ? JQ_REQ_LOST : 0));
	if (pg_atomic_read_u32(&jq_shared->starved) != 0)
		jq_claim_unstarve();
}

void
jq_lane_clear(int lane, JqPos frontier)
{
	JqLane *l = &jq_lanes[lane];

	while (l->nready > 0)
		lane_evict_last(l);
	l->frontier = frontier;
	l->cut = frontier;
	l->low_id = jq_pos_is_all(frontier) ? PG_INT64_MAX : PG_INT64_MIN;
	l->want_refill = !jq_pos_is_all(frontier);
	lane_uncount(l);
	if (jq_pos_is_all(frontier))
	{
		l->count_pos = JQ_POS_ALL;
		l->lost_due = false;
	}
	lane_check(l);
}

bool
jq_lane_wants_refill(JqLane *l)
{
	if (jq_pos_is_all(l->frontier) || l->filling || l->starved ||
		jq_lane_stopped(l))
		return false;
	/* at a limit it needs no more than it has */
	if (l->limit_waiting && l->nready > 0)
		return false;
	return l->want_refill || l->nready <= l->low_water;
}

typedef enum Offered
{
	REFUSED,  /* in the table only: the frontier has been lowered to it */
	ACCEPTED, /* new in memory */
	KNOWN	  /* was there already */
} Offered;

/* Accept one item, lane lock held. */
static Offered
lane_offer(JqLane *l, int lane, const JqItem *item)
{
	JqPos pos = jq_pos_make(item->priority, item->id);
	uint32 ix;

	if (!l->filling && jq_pos_cmp(pos, l->frontier) >= 0)
	{
		lane_lower(l, pos, pos.id);
		return REFUSED;
	}
	for (;;)
	{
		ix = jq_entry_new(item, lane);
		if (ix != JQ_NIL)
			break;
		if (l->tail[0] != JQ_NIL &&
			jq_pos_cmp(JQ_ENTRY_POS(l->tail[0]), pos) == 0)
		{
			JqEntry *e = JQ_ENTRY(l->tail[0]);

			if (has_key(l->tail[0], item->key, item->keylen))
				e->flags = jq_flags_of_twins(e->flags, item->flags) |
						   (item->flags & JQ_E_BROUGHT);
			else
				lane_lose_known(l, item);
			return KNOWN;
		}
		/* no room: the largest gives way, perhaps this one */
		if (l->tail[0] == JQ_NIL ||
			jq_pos_cmp(JQ_ENTRY_POS(l->tail[0]), pos) <= 0)
		{
			lane_lower(l, pos, pos.id);
			return REFUSED;
		}
		lane_evict_last(l);
		if (!l->filling && jq_pos_cmp(pos, l->frontier) >= 0)
		{
			lane_lower(l, pos, pos.id);
			return REFUSED;
		}
	}
	return lane_insert(l, ix) ? ACCEPTED : KNOWN;
}

/*
 * Lock the lane of that name, creating it if need be; -1: there is no place.
 */
static int
lane_lock_by_name(Oid db, Oid role, const char *queue, bool create)
{
	bool told = false;

	for (;;)
	{
		int lane = jq_dir_lane(db, role, queue, create);

		if (lane < 0)
		{
			int dbix = create && !told ? jq_dir_db(db, true) : -1;

			if (dbix < 0)
				return -1;
			/* somebody may make the lane just now, thinking it knows all */
			jq_db_overflow(dbix);
			told = true;
			continue;
		}
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (jq_lane_is(&jq_lanes[lane], db, role, queue))
			return lane;
		LWLockRelease(jq_lane_lock(lane));
		jq_dir_forget();
	}
}

/*
 * No place for the lane: the scheduler will find its rows, those too that are not
 * ready in the table.
 */
static void
lane_overflow(Oid db, bool due)
{
	int dbix = jq_dir_db(db, true);

	if (dbix >= 0)
		jq_db_request(dbix, JQ_REQ_DISCOVER | (due ? JQ_REQ_DUE : 0));
}

/* refused: one flag an item, or NULL; known: how many were there already */
static int
publish(Oid db, Oid role, const char *queue, const JqItem *items, int n,
		bool *refused, int *known)
{
	int done = 0;
	int accepted = 0;

	while (done < n)
	{
		int end = Min(done + PUSH_CHUNK, n);
		int lane = lane_lock_by_name(db, role, queue, true);
		int got = 0;
		bool refill;
		bool lost;
		bool had_lost;
		JqLane *l;
		int group;
		int dbix;

		if (lane < 0)
		{
			bool due = false;

			for (; done < n; done++)
				if (refused != NULL)
					refused[done] = true;
				else
					due |= items[done].flags & JQ_E_DUE;
			lane_overflow(db, due);
			return accepted;
		}
		l = &jq_lanes[lane];
		had_lost = l->lost_due;
		/* model: PUBLISH_FIRST */
		for (; done < end; done++)
		{
			const JqItem *item = &items[done];
			Offered offered = lane_offer(l, lane, item);

			if (offered == KNOWN)
				(*known)++;
			if (offered != REFUSED)
				got++;
			else if (refused != NULL)
				refused[done] = true;
			else
				lane_lose(l, jq_pos_make(item->priority, item->id),
						  item->flags);
		}
		lane_check(l);
		refill = jq_lane_wants_refill(l);
		if (refill)
			l->want_refill = true;
		lost = l->lost_due && !had_lost;
		group = l->group;
		dbix = l->dbix;
		accepted += got;
		got = jq_limit_wakes(lane, got);
		LWLockRelease(jq_lane_lock(lane));
		jq_limit_wake();
		if (refill || lost)
			jq_db_request(dbix, (refill ? JQ_REQ_REFILL : 0) |
									(lost ? JQ_REQ_LOST : 0));
		if (got > 0)
			jq_group_wake(group, got);
	}
	return accepted;
}

int
jq_lane_publish(Oid db, Oid role, const char *queue, const JqItem *items, int n)
{
	int known = 0;

	return publish(db, role, queue, items, n, NULL, &known);
}

bool
jq_lane_publish_one(Oid db, Oid role, const char *queue, const JqItem *item,
					bool *known)
{
	int n = 0;
	bool accepted = publish(db, role, queue, item, 1, NULL, &n) > 0;

	*known = n > 0;
	return accepted;
}

void
jq_lane_publish_due(Oid db, Oid role, const char *queue, const JqItem *items,
					int n, bool *refused)
{
	int known = 0;

	(void) publish(db, role, queue, items, n, refused, &known);
}

void
jq_lane_which_lost(Oid db, Oid role, const char *queue, const JqItem *items,
				   int n, bool *lost)
{
	int lane = lane_lock_by_name(db, role, queue, false);
	uint32 before[JQ_LEVELS];
	int i;

	for (i = 0; i < n; i++)
	{
		JqPos pos = jq_pos_make(items[i].priority, items[i].id);
		uint32 ix =
			lane < 0 ? JQ_NIL : lane_search(&jq_lanes[lane], pos, before);

		if (ix != JQ_NIL)
			jq_entry_is_due(JQ_ENTRY(ix)); /* model: TOLD */
		lost[i] = ix == JQ_NIL && !jq_claim_pass_over(db, items[i].id) &&
				  (lane < 0 || !jq_keylock_has(db, items[i].key,
											   items[i].keylen, lane, pos));
	}
	if (lane >= 0)
		LWLockRelease(jq_lane_lock(lane));
}

void
jq_lane_lost_begin(Oid db, bool make_place)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];
		uint32 n;

		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (l->db == db && l->lost_due)
		{
			/* the look is the same for more of them, and the next ones would have
			 * to go one by one */
			for (n = make_place ? l->nready / LOST_MORE : 0;
				 n > 0 && l->nready > 0 &&
				 JQ_ENTRY(l->tail[0])->flags & JQ_E_DUE;
				 n--)
				lane_evict_last(l);
			lane_check(l);
			l->lost_due = false;
		}
		LWLockRelease(jq_lane_lock(i));
	}
	if (make_place && pg_atomic_read_u32(&jq_shared->starved) != 0)
		jq_claim_unstarve();
}

void
jq_lane_made_ready(Oid db, Oid role, const char *queue, JqPos pos,
				   bool committed)
{
	int lane = lane_lock_by_name(db, role, queue, true);
	JqLane *l;
	int dbix;
	bool refill;

	if (lane < 0)
	{
		lane_overflow(db, false);
		return;
	}
	l = &jq_lanes[lane];
	if (committed)
		lane_count_spilled(l, pos, 1);
	else
	{
		/* model: MADE_READY */
		lane_lower(l, pos, pos.id);
		lane_trim(l);
	}
	refill = committed && jq_lane_wants_refill(l);
	lane_check(l);
	dbix = l->dbix;
	LWLockRelease(jq_lane_lock(lane));
	if (refill)
		jq_db_request(dbix, JQ_REQ_REFILL);
}

/* lane lock held, and released: the frontier has been lowered, so the scheduler is
 * to read on from there */
static void
lane_read_on(JqLane *l, int lane, uint32 request)
{
	int dbix = l->dbix;

	lane_trim(l);
	l->want_refill = true;
	l->starved = false;
	lane_check(l);
	LWLockRelease(jq_lane_lock(lane));
	jq_db_request(dbix, JQ_REQ_REFILL | request);
}

void
jq_lane_lose(Oid db, Oid role, const char *queue, JqPos pos, uint8 flags)
{
	int lane = lane_lock_by_name(db, role, queue, true);

	if (lane < 0)
	{
		lane_overflow(db, flags & JQ_E_DUE);
		return;
	}
	lane_lose(&jq_lanes[lane], pos, flags);
	lane_read_on(&jq_lanes[lane], lane, flags & JQ_E_DUE ? JQ_REQ_LOST : 0);
}

void
jq_lane_spill(Oid db, Oid role, const char *queue, JqPos pos, int64 low_id,
			  int64 nrows)
{
	int lane = lane_lock_by_name(db, role, queue, true);
	JqLane *l;
	bool count = false;

	if (lane < 0)
	{
		lane_overflow(db, true);
		return;
	}
	l = &jq_lanes[lane];
	if (jq_pos_cmp(pos, JQ_POS_NOTHING) == 0)
	{
		low_id = PG_INT64_MIN;
		lane_uncount(l);
		count = true;
	}
	lane_count_spilled(l, pos, nrows);
	lane_lower(l, pos, low_id);
	lane_read_on(l, lane, count ? JQ_REQ_RECOUNT : 0);
}

void
jq_lane_take_back(uint32 entry)
{
	JqLane *l = &jq_lanes[JQ_ENTRY(entry)->lane];

	Assert(OidIsValid(l->db));
	pg_atomic_fetch_sub_u32(&l->nparked, 1);
	if (!l->filling && jq_pos_cmp(JQ_ENTRY_POS(entry), l->frontier) >= 0)
	{
		/* the frontier was lowered meanwhile: refill will bring it again */
		lane_relieve_waiters(l, entry, false);
		lane_forget(l, entry);
		lane_trim(l);
		l->want_refill = true;
	}
	else
		(void) lane_insert(l, entry);
	lane_check(l);
}

void
jq_lane_took_back(int lane, int n)
{
	JqLane *l = &jq_lanes[lane];

	/* what is read here without lock is checked by whoever is woken */
	if (l->want_refill && OidIsValid(l->db))
		jq_db_request(l->dbix, JQ_REQ_REFILL);
	if (jq_limited(&jq_queues[l->queue_ix].limit))
		jq_lane_call(lane, n);
	else if (!jq_lane_stopped(l))
		jq_group_wake(l->group, n);
}

void
jq_lane_call(int lane, int most)
{
	JqLane *l = &jq_lanes[lane];
	int group;
	int queue_ix = -1;
	int n = 0;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	if (OidIsValid(l->db))
	{
		n = jq_limit_wakes(lane, Min(most, (int) l->nready));
		queue_ix = l->queue_ix;
	}
	group = l->group;
	LWLockRelease(jq_lane_lock(lane));
	jq_limit_wake();
	/* it may have waited already */
	if (queue_ix >= 0)
		jq_limit_serve(queue_ix);
	if (n > 0)
		jq_group_wake(group, n);
}

bool
jq_lane_hold_back(Oid db, Oid role, const char *queue, bool hold)
{
	int lane = lane_lock_by_name(db, role, queue, hold);
	JqLane *l;
	int group;
	int n;

	if (lane < 0)
		return false;
	l = &jq_lanes[lane];
	l->held_back += hold ? 1 : -1;
	group = l->group;
	/* model: HOLD_BACK_WAKE */
	n = hold ? 0 : jq_limit_wakes(lane, (int) l->nready);
	LWLockRelease(jq_lane_lock(lane));
	jq_limit_wake();
	if (n > 0)
		jq_group_wake(group, n);
	return true;
}

bool
jq_lane_has_first(int lane)
{
	JqLane *l = &jq_lanes[lane];
	bool has;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	has = l->head[0] != JQ_NIL && l->held_back == 0 && !jq_lane_stopped(l) &&
		  jq_pos_cmp(JQ_ENTRY_POS(l->head[0]), l->frontier) < 0 &&
		  (JQ_ENTRY(l->head[0])->keylen == 0 || !jq_keylock_full()) &&
		  jq_limit_wakes(lane, 1) > 0;
	LWLockRelease(jq_lane_lock(lane));
	jq_limit_wake();
	return has;
}

bool
jq_lane_is_behind(int lane)
{
	JqLane *l = &jq_lanes[lane];
	uint32 stopped;
	bool behind;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	stopped = pg_atomic_read_u32(&jq_queues[l->queue_ix].stopped);
	if ((stopped & JQ_STOPPED_PAUSED) || l->role_paused || l->starved)
		behind = false;
	else if (stopped != 0)
		behind = true;
	else
		behind = !jq_pos_is_all(l->frontier) &&
				 (l->head[0] == JQ_NIL ||
				  jq_pos_cmp(JQ_ENTRY_POS(l->head[0]), l->frontier) >= 0);
	LWLockRelease(jq_lane_lock(lane));
	return behind;
}

/* model: TAKE_KNOWN */
uint32
jq_lane_take_first(JqLane *l)
{
	uint32 ix = l->head[0];

	if (ix == JQ_NIL || l->held_back > 0 || jq_lane_stopped(l) ||
		jq_pos_cmp(JQ_ENTRY_POS(ix), l->frontier) >= 0)
		return JQ_NIL;
	lane_unlink(l, ix);
	return ix;
}

/* taken, but it cannot run now: back to its place; lane lock held */
void
jq_lane_untake(JqLane *l, uint32 ix)
{
	(void) lane_insert(l, ix);
}

/* ---------------------------------------------------------------- refill */

/*
 * Lanes that have more than their share give back entries from their end.  What
 * does not run now has no share: it goes first.
 */
static void
make_room(int lane, int want)
{
	int share;
	int active = 1;
	int i;
	int pass;

	for (i = 0; i < jq_shared->nlanes; i++)
		if (i != lane && jq_lanes[i].nready > 0 && !jq_lane_waits(&jq_lanes[i]))
			active++;
	share = Max(jq_shared->nentries / active, LANE_RESERVE);
	for (pass = 0; pass < 2; pass++)
		for (i = 0; i < jq_shared->nlanes && want > 0; i++)
		{
			JqLane *l = &jq_lanes[i];
			/* what waits for keys stays, and is part of the share */
			int waiting = (int) pg_atomic_read_u32(&l->nparked);
			uint32 keep = jq_lane_waits(l) ? LANE_RESERVE :
											 Max(share - waiting, LANE_RESERVE);
			int dbix;

			/* what does not go on needs none, if there is none for others */
			if (jq_lane_stopped(l) &&
				pg_atomic_read_u32(&jq_shared->pool_nfree) == 0)
				keep = 0;
			if (i == lane || l->nready <= keep ||
				(pass == 0 && !jq_lane_waits(l)))
				continue;
			LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
			/* it may go on again by now */
			while (want > 0 && l->nready > keep &&
				   (keep > 0 || jq_lane_stopped(l)))
			{
				lane_evict_last(l);
				want--;
			}
			lane_check(l);
			dbix = l->lost_due ? l->dbix : -1;
			LWLockRelease(jq_lane_lock(i));
			/* it may be of a database that nobody looks at now */
			if (dbix >= 0)
				jq_db_request(dbix, JQ_REQ_LOST);
		}
}

/* Open a refill.  false: nothing to do, or no room. */
bool
jq_lane_refill_begin(int lane, JqRefill *r)
{
	JqLane *l = &jq_lanes[lane];
	int want = Min(REFILL_MAX, Max(jq_shared->nentries / 4, LANE_RESERVE));
	int appetite = jq_limit_appetite(l->queue_ix);
	int nfree = (int) pg_atomic_read_u32(&jq_shared->pool_nfree);
	bool ok = false;

	if (appetite >= 0)
		want = Min(want, appetite);
	if (nfree < want)
	{
		make_room(lane, want - nfree);
		nfree = (int) pg_atomic_read_u32(&jq_shared->pool_nfree);
	}
	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	if (OidIsValid(l->db) && !l->filling && !jq_pos_is_all(l->frontier) &&
		!l->lost_due && jq_lane_wants_refill(l))
	{
		l->want_refill = false; /* requests from now on are for the next one */
		if (nfree <= 0)
		{
			/* whoever frees an entry asks again */
			l->starved = true;
			pg_atomic_write_u32(&jq_shared->starved, 1);
			if (pg_atomic_read_u32(&jq_shared->pool_nfree) > 0)
			{
				l->starved = false;
				nfree = 1;
			}
		}
		if (nfree > 0)
		{
			l->filling = true;
			l->cut = JQ_POS_ALL;
			r->from = l->frontier;
			r->low_id = l->low_id;
			r->passed = l->passed;
			r->room = Min(want, nfree);
			ok = true;
		}
	}
	LWLockRelease(jq_lane_lock(lane));
	return ok;
}

/*
 * Rows read by the refill, in order, following what was added before.
 */
void
jq_lane_refill_add(int lane, const JqItem *items, int n)
{
	JqLane *l = &jq_lanes[lane];
	int done = 0;

	while (done < n)
	{
		int end = Min(done + PUSH_CHUNK, n);
		int got = 0;
		int group;

		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		for (; done < end; done++)
		{
			JqPos pos = jq_pos_make(items[done].priority, items[done].id);

			if (jq_pos_cmp(pos, l->cut) >= 0)
			{
				done = n;
				break;
			}
			if (!jq_claim_pass_over(l->db, items[done].id))
				/* what is refused is counted already */
				if (lane_offer(l, lane, &items[done]) == ACCEPTED)
				{
					got++;
					lane_count_spilled(l, pos, -1);
				}
			/* known up to here, unless this very row found no room */
			pos = jq_pos_min(jq_pos_after(items[done].priority, items[done].id),
							 l->cut);
			if (jq_pos_cmp(l->frontier, pos) < 0)
				l->frontier = pos;
		}
		lane_check(l);
		group = l->group;
		got = jq_limit_wakes(lane, got);
		LWLockRelease(jq_lane_lock(lane));
		jq_limit_wake();
		if (got > 0)
			jq_group_wake(group, got);
	}
}

void
jq_lane_refill_end(int lane, JqPos upto, int64 passed)
{
	JqLane *l = &jq_lanes[lane];
	int group;
	int dbix;
	bool refill;
	int n;

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	l->frontier = jq_pos_min(upto, l->cut);
	l->filling = false;
	lane_trim(l);
	if (jq_pos_is_all(l->frontier))
	{
		l->spilled = 0;
		l->low_id = PG_INT64_MAX;
	}
	else
		lane_count_spilled(l, upto, -passed);
	if (jq_pos_cmp(l->passed, upto) < 0)
		l->passed = upto;
	l->low_water = l->nready / 2;
	lane_check(l);
	group = l->group;
	dbix = l->dbix;
	n = jq_limit_wakes(lane, (int) l->nready);
	refill = jq_lane_wants_refill(l); /* model: R4 */
	LWLockRelease(jq_lane_lock(lane));
	jq_limit_wake();
	if (refill)
		jq_db_request(dbix, JQ_REQ_REFILL);
	if (n > 0)
		jq_group_wake(group, n);
}

/* the scheduler died in a refill: what was accepted meanwhile is given up;
 * model: ABANDON */
void
jq_lane_refill_abandon(int lane)
{
	JqLane *l = &jq_lanes[lane];

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	if (l->filling)
	{
		l->frontier = jq_pos_min(l->frontier, l->cut);
		l->filling = false;
		lane_trim(l);
	}
	if (!jq_pos_is_all(l->frontier))
		l->want_refill = true;
	l->starved = false;
	lane_check(l);
	LWLockRelease(jq_lane_lock(lane));
}

/* ---------------------------------------------------------------- numbers */

bool
jq_lane_count_from(int lane, JqPos *from, JqPos *frontier, JqPos *passed)
{
	JqLane *l = &jq_lanes[lane];
	bool more;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	more = OidIsValid(l->db) && !jq_pos_is_all(l->count_pos);
	*from = l->count_pos;
	*frontier = l->frontier;
	*passed = l->passed;
	LWLockRelease(jq_lane_lock(lane));
	return more;
}

void
jq_lane_counted(int lane, JqPos from, JqPos upto, int64 n, int64 held)
{
	JqLane *l = &jq_lanes[lane];

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	/* unless it was reset in the meantime */
	if (OidIsValid(l->db) && jq_pos_cmp(l->count_pos, from) == 0)
	{
		l->count_pos = upto;
		/* those that keys answer for are not among them */
		if (jq_pos_cmp(l->passed, upto) < 0)
			l->passed = upto;
		l->spilled += n;
		l->held += held;
		pg_atomic_fetch_add_u64(&jq_queues[l->queue_ix].held, held);
	}
	LWLockRelease(jq_lane_lock(lane));
}

void
jq_lane_uncount(int lane)
{
	JqLane *l = &jq_lanes[lane];

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	if (OidIsValid(l->db))
		lane_uncount(l);
	LWLockRelease(jq_lane_lock(lane));
}

int
jq_lane_ahead(int lane, JqPos pos, int most)
{
	JqLane *l = &jq_lanes[lane];
	uint32 ix;
	int n = 0;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	for (ix = l->head[0];
		 ix != JQ_NIL && n < most && jq_pos_cmp(JQ_ENTRY_POS(ix), pos) < 0;
		 ix = JQ_ENTRY(ix)->next[0])
		n++;
	LWLockRelease(jq_lane_lock(lane));
	return n;
}
