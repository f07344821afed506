/*
 * claim.c
 *		Claims: what is out, and how a worker takes its next job.
 *
 * A slot's claim (its cell and the claim_* fields) changes under the lock of
 * the claimed job's lane:
 *
 *		none    -> taken	: jq_claim_next; the entry leaves the lane and its key
 *							  is taken in the same section
 *		taken   -> running	: jq_claim_set_running
 *		running -> taken	: jq_claim_set_taken, at the end of a job in a batch
 *		taken   -> other	: jq_claim_more, jq_claim_put_aside
 *		other   -> taken	: jq_claim_pick
 *		other   -> none		: jq_claim_end_others
 *		running -> none		: jq_claim_end, jq_claim_next
 *		running -> table	: jq_claim_to_held (failing, doubtful)
 *
 * In the table, under JQ_LOCK_CLAIM:
 *
 *		session  -> none	: the session, at the end of its transaction
 *		failing  -> none	: the scheduler, after the record has committed
 *		doubtful -> none	: the scheduler, after the other transaction ended
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "claim.h"
#include "compat.h"
#include "database.h"
#include "fetched.h"
#include "keylock.h"
#include "lane.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#define JQ_MAX_HELD 4096
#define TAKE_TRIES 64 /* entries looked at in one hold of the lock */

static HTAB *jq_held;

/*
 * How many cells may have the job, by a hash of it: where this is zero none
 * has, and nobody needs to look through the cells, each of which is in another
 * processor's cache.  Goes up before the cell is set, down after it is cleared.
 */
#define CLAIM_COUNTS_BITS 12
static pg_atomic_uint32 *claim_counts;

static Size
counts_size(void)
{
	return sizeof(pg_atomic_uint32) << CLAIM_COUNTS_BITS;
}

Size
jq_claim_size(void)
{
	return add_size(hash_estimate_size(JQ_MAX_HELD, sizeof(JqHeld)),
					counts_size());
}

void
jq_claim_init(void)
{
	HASHCTL info;
	bool found;
	int i;

	memset(&info, 0, sizeof(info));
	info.keysize = offsetof(JqHeld, kind);
	info.entrysize = sizeof(JqHeld);
	jq_held = ShmemInitHash("jobqueue held claims", JQ_MAX_HELD, JQ_MAX_HELD,
							&info, HASH_ELEM | HASH_BLOBS);
	claim_counts =
		ShmemInitStruct("jobqueue claim counts", counts_size(), &found);
	if (!found)
		for (i = 0; i < 1 << CLAIM_COUNTS_BITS; i++)
			pg_atomic_init_u32(&claim_counts[i], 0);
}

static pg_atomic_uint32 *
claim_count(Oid db, int64 id)
{
	uint64 v = (uint64) id ^ (uint64) db << 32;

	/* Fibonacci hashing: neighbours get places far from each other */
	v *= UINT64CONST(0x9E3779B97F4A7C15);
	return &claim_counts[v >> (64 - CLAIM_COUNTS_BITS)];
}

void
jq_claim_count_up(Oid db, int64 id)
{
	pg_atomic_fetch_add_u32(claim_count(db, id), 1);
}

void
jq_claim_count_down(Oid db, int64 id)
{
	uint32 was PG_USED_FOR_ASSERTS_ONLY;

	was = pg_atomic_fetch_sub_u32(claim_count(db, id), 1);
	Assert(was > 0);
}

/* by an outside consumer? */
static bool
claimed_by_consumer(Oid db, int64 id, bool pass)
{
	return pg_atomic_read_u32(claim_count(db, id)) != 0 &&
		   (pass ? jq_fetched_pass_over(db, id) : jq_fetched_has(db, id));
}

static void
held_key(JqHeld *key, Oid db, int64 id)
{
	key->id = id;
	key->db = db;
	key->zero = 0;
}

/* place of the job among the others of the slot; -1 = it is not there */
static int
other_of_slot(int slot, int64 id)
{
	uint32 n = jq_claim_cells[slot].nothers;
	uint32 i;

	for (i = 0; i < n; i++)
		if (JQ_OTHERS(slot)[i].id == id)
			return (int) i;
	return -1;
}

static bool
is_of_slot(int slot, Oid db, int64 id)
{
	JqClaimCell *c = &jq_claim_cells[slot];

	if (c->id == id && c->db == db)
		return true;
	/* it may have gone to the others after we looked */
	pg_read_barrier();
	return c->nothers > 0 && c->db == db && other_of_slot(slot, id) >= 0;
}

static bool
claimed_by_slot(Oid db, int64 id, bool pass)
{
	int i;

	if (pg_atomic_read_u32(claim_count(db, id)) == 0)
		return false;
	for (i = 0; i < jq_shared->nslots; i++)
	{
		if (!is_of_slot(i, db, id))
			continue;
		if (!pass)
			return true;
		do
		{
			jq_slots[i].claim_passed = true;
			/* whose claim has not ended by now sees that: jq_claim_was_passed() */
			pg_memory_barrier();
			if (!is_of_slot(i, db, id))
				break;
			/* it may be its next claim, of the same job */
			pg_read_barrier();
			if (jq_slots[i].claim_passed)
				return true;
		} while (true);
	}
	return false;
}

static bool
is_out(Oid db, int64 id, bool pass)
{
	JqHeld key;
	JqHeld *h;

	if (claimed_by_slot(db, id, pass) || claimed_by_consumer(db, id, pass))
		return true;
	if (pg_atomic_read_u32(&jq_shared->nheld) == 0)
		return false;
	held_key(&key, db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	h = hash_search(jq_held, &key, HASH_FIND, NULL);
	/* nobody reads it before we let go of the lock */
	if (h != NULL && pass)
		h->passed = true;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return h != NULL;
}

bool
jq_claim_is_out(Oid db, int64 id)
{
	return is_out(db, id, false);
}

bool
jq_claim_pass_over(Oid db, int64 id)
{
	return is_out(db, id, true);
}

bool
jq_claim_has(Oid db, int64 id)
{
	JqHeld key;
	JqHeld *h;
	bool has;

	if (claimed_by_slot(db, id, false) || claimed_by_consumer(db, id, false))
		return true;
	if (pg_atomic_read_u32(&jq_shared->nheld) == 0)
		return false;
	held_key(&key, db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	h = hash_search(jq_held, &key, HASH_FIND, NULL);
	has = h != NULL && h->kind != JQ_HELD_DOUBTFUL;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return has;
}

/* --------------------------------------------------------------- workers */

/* lane lock of the claim held */
static void
claim_clear(JqSlot *s)
{
	JqClaimCell *cell = &jq_claim_cells[jq_my_slot];
	pg_atomic_uint32 *count = claim_count(cell->db, cell->id);
	uint32 was PG_USED_FOR_ASSERTS_ONLY;

	jq_lanes[s->claim_lane].nclaimed--;
	s->claim_state = JQ_CLAIM_NONE;
	s->claim_lane = -1;
	s->cancel_for = 0;
	cell->id = 0;
	was = pg_atomic_fetch_sub_u32(count, 1);
	Assert(was > 0);
}

/* no lock held: the place goes when nothing is claimed any more */
static void
settle(JqSlot *s)
{
	if (s->claim_lane < 0 && jq_claim_cells[jq_my_slot].nothers == 0)
		jq_limit_give(&s->place);
}

void
jq_claim_end(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int lane = s->claim_lane;

	if (lane >= 0)
	{
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		claim_clear(s);
		LWLockRelease(jq_lane_lock(lane));
	}
	settle(s);
}

bool
jq_claim_end_uncancelled(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int lane = s->claim_lane;
	bool ended;

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	ended = s->cancel_for != jq_claim_cells[jq_my_slot].id;
	if (ended)
		claim_clear(s);
	LWLockRelease(jq_lane_lock(lane));
	settle(s);
	return ended;
}

bool
jq_claim_was_passed(void)
{
	pg_memory_barrier();
	return jq_slots[jq_my_slot].claim_passed;
}

/* lane lock of the claim held */
static void
put_aside(JqSlot *s)
{
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];
	JqOther *o = &JQ_OTHERS(jq_my_slot)[c->nothers];

	Assert(c->nothers < JQ_BATCH_MAX);
	o->id = c->id;
	o->cancel = s->cancel_for != 0 && s->cancel_for == c->id;
	pg_write_barrier();
	c->nothers++;
	pg_write_barrier();
	s->claim_state = JQ_CLAIM_NONE;
	s->claim_lane = -1;
	s->cancel_for = 0;
	c->id = 0;
}

/* lane lock held; nothing is in hand */
static void
claim_set(JqSlot *s, const JqClaimed *job, Oid db)
{
	s->claim_lane = job->lane;
	s->claim_state = JQ_CLAIM_TAKEN;
	s->claim_pos = job->pos;
	s->claim_tid = job->tid;
	s->claim_flags = job->flags & ~JQ_E_UNPARKED;
	if (jq_claim_cells[jq_my_slot].nothers == 0)
		s->claim_passed = false;
	s->claim_keylen = job->keylen;
	memcpy(s->claim_key, job->key, job->keylen);
	s->cancel_for = 0;
	pg_write_barrier(); /* claim_passed before that */
	jq_claim_cells[jq_my_slot].db = db;
	jq_claim_cells[jq_my_slot].id = job->id;
}

static bool
claim_next(int lane, Oid db, Oid role, JqClaimed *out, bool more_of_batch)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqLane *l = &jq_lanes[lane];
	JqDb *d;
	bool got = false;
	bool refill = false;
	bool more = true;
	bool may;
	bool ask = false;
	int dbix = -1;
	uint32 taken = JQ_NIL;
	uint32 next = JQ_NIL;

	if (s->claim_lane >= 0 && s->claim_lane != lane)
		jq_claim_end();
	while (more && !got)
	{
		int tries;

		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (s->claim_lane >= 0 && !more_of_batch)
			claim_clear(s);
		/* nor may it be the lane of another queue now than we have a place of */
		if (l->db != db || l->role != role ||
			(s->place.queue >= 0 && s->place.queue != l->queue_ix))
		{
			LWLockRelease(jq_lane_lock(lane));
			settle(s);
			return false;
		}
		dbix = l->dbix;
		d = &jq_dbs[dbix];
		more = false;
		may = l->nready > 0 && !jq_lane_stopped(l) &&
			  !*(volatile bool *) &d->quiesced &&
			  jq_limit_take(lane, &s->place, more_of_batch);
		for (tries = 0; may; tries++)
		{
			uint32 ix;
			JqEntry *e;

			if (tries == TAKE_TRIES)
			{
				more = true; /* let others at the lane, then go on */
				break;
			}
			ix = jq_lane_take_first(l);
			if (ix == JQ_NIL)
				break;
			e = JQ_ENTRY(ix);
			out->keylen = e->keylen > 0 ? jq_entry_key(ix, out->key) : 0;
			if (jq_claim_pass_over(db, e->id))
			{
				/* a duplicate; the one who has it will publish it again;
				 * model: SKIP_CLAIMED */
				bool brought = e->flags & JQ_E_BROUGHT;

				pg_atomic_fetch_add_u64(&jq_queues[l->queue_ix].wasted, 1);
				jq_lane_drop(l, ix);
				if (out->keylen > 0)
					ask |=
						jq_keylock_dropped(db, out->key, out->keylen, brought);
				continue;
			}
			if (out->keylen > 0)
			{
				JqKeyResult r = jq_keylock_take(db, out->key, out->keylen,
												e->id, lane, ix, &ask, &next);

				if (r == JQ_KEY_BUSY || r == JQ_KEY_GONE)
					continue;
				if (r == JQ_KEY_FULL)
				{
					jq_lane_untake(l, ix);
					break;
				}
			}
			out->id = e->id;
			out->pos = JQ_ENTRY_POS(ix);
			out->tid = e->tid;
			out->flags = e->flags;
			out->lane = lane;
			taken = ix;
			if (next != JQ_NIL)
				jq_lane_take_back(next);
			if (s->claim_lane >= 0)
				put_aside(s);
			pg_atomic_fetch_add_u32(claim_count(db, out->id), 1);
			claim_set(s, out, db);
			l->nclaimed++;
			got = true;
			break;
		}
		refill = jq_lane_wants_refill(l);
		if (refill)
		{
			refill = !l->want_refill || l->nready == 0;
			l->want_refill = true;
		}
		LWLockRelease(jq_lane_lock(lane));
	}
	settle(s);
	jq_limit_wake();
	jq_keylock_tell();
	/* it is ours alone now; all free entries share one cache line */
	if (taken != JQ_NIL)
		jq_entry_free(taken);
	if (refill || ask)
		jq_db_request(dbix,
					  (refill ? JQ_REQ_REFILL : 0) | (ask ? JQ_REQ_KEYS : 0));
	if (pg_atomic_read_u32(&jq_shared->starved) != 0)
		jq_claim_unstarve();
	return got;
}

bool
jq_claim_next(int lane, Oid db, Oid role, JqClaimed *out)
{
	return claim_next(lane, db, role, out, false);
}

bool
jq_claim_more(int lane, Oid db, Oid role, JqClaimed *out)
{
	return claim_next(lane, db, role, out, true);
}

void
jq_claim_put_aside(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int lane = s->claim_lane;

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	put_aside(s);
	s->others_wait = true;
	LWLockRelease(jq_lane_lock(lane));
}

void
jq_claim_pick(const JqClaimed *job)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];
	JqOther *others = JQ_OTHERS(jq_my_slot);
	int i;

	LWLockAcquire(jq_lane_lock(job->lane), LW_EXCLUSIVE);
	if (s->claim_lane >= 0)
		claim_clear(s);
	i = other_of_slot(jq_my_slot, job->id);
	Assert(i >= 0);
	claim_set(s, job, c->db);
	if (others[i].cancel)
	{
		s->cancel_for = job->id;
		s->cancel_at = GetCurrentTimestamp();
	}
	others[i] = others[c->nothers - 1];
	c->nothers--;
	if (c->nothers == 0)
		s->others_wait = false;
	LWLockRelease(jq_lane_lock(job->lane));
}

bool
jq_claim_may_repeat(const JqClaimed *job, Oid db)
{
	return jq_limit_take_token(&jq_slots[jq_my_slot].place) &&
		   (job->keylen == 0 ||
			jq_keylock_use_again(db, job->key, job->keylen));
}

bool
jq_claim_is_other(int64 id)
{
	return other_of_slot(jq_my_slot, id) >= 0;
}

bool
jq_claim_shares(void)
{
	return jq_claim_cells[jq_my_slot].nothers > 0 &&
		   !jq_slots[jq_my_slot].others_wait;
}

/* lane lock held */
static void
end_last_other(JqLane *l, JqClaimCell *c)
{
	int64 id = JQ_OTHERS(jq_my_slot)[--c->nothers].id;

	l->nclaimed--;
	pg_atomic_fetch_sub_u32(claim_count(c->db, id), 1);
}

void
jq_claim_end_others(int lane)
{
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];

	if (c->nothers == 0)
	{
		jq_slots[jq_my_slot].others_wait = false; /* it matters to nobody now */
		return;
	}
	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	jq_slots[jq_my_slot].others_wait = false;
	while (c->nothers > 0)
		end_last_other(&jq_lanes[lane], c);
	LWLockRelease(jq_lane_lock(lane));
	settle(&jq_slots[jq_my_slot]);
}

bool
jq_claim_any_cancel_wanted(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];
	int lane = s->claim_lane;
	bool wanted;
	uint32 i;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	wanted = s->cancel_for != 0 && s->cancel_for == c->id;
	for (i = 0; i < c->nothers && !wanted; i++)
		wanted = JQ_OTHERS(jq_my_slot)[i].cancel;
	LWLockRelease(jq_lane_lock(lane));
	return wanted;
}

bool
jq_claim_cancel_asked(int64 id)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];
	int lane = s->claim_lane;
	bool asked;
	uint32 i;

	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	asked = c->id == id && s->cancel_for == id;
	for (i = 0; i < c->nothers && !asked; i++)
		asked = JQ_OTHERS(jq_my_slot)[i].id == id &&
				JQ_OTHERS(jq_my_slot)[i].cancel;
	LWLockRelease(jq_lane_lock(lane));
	return asked;
}

void
jq_claim_set_taken(void)
{
	jq_slots[jq_my_slot].claim_state = JQ_CLAIM_TAKEN;
}

void
jq_claim_set_running(void)
{
	/* it matters to its owner alone, in the exit hook; a view may lag */
	jq_slots[jq_my_slot].claim_state = JQ_CLAIM_RUNNING;
	jq_limit_start(&jq_slots[jq_my_slot].place);
}

/* model: TURN */
bool
jq_claim_take_turn(JqClaimed *job)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqLane *l = &jq_lanes[job->lane];
	JqItem item;
	uint32 ix;
	bool taken = true;
	bool spill = false;
	bool ask = false;
	uint32 next;
	JqKeyResult r;
	Oid db = l->db;
	Oid role = l->role;
	char queue[JQ_QUEUE_NAME_MAX + 1];

	/* the lane stays what it is while a job of it is claimed */
	strlcpy(queue, l->queue, sizeof(queue));
	memset(&item, 0, sizeof(item));
	item.id = job->id;
	item.priority = job->pos.priority;
	item.tid = job->tid;
	item.flags = job->flags;
	item.key = job->key;
	item.keylen = job->keylen;
	LWLockAcquire(jq_lane_lock(job->lane), LW_EXCLUSIVE);
	if (s->cancel_for == job->id)
	{
		LWLockRelease(jq_lane_lock(job->lane));
		return false;
	}
	ix = jq_entry_new(&item, job->lane);
	r = jq_keylock_take(JQ_SUSPECT_DB, JQ_SUSPECT_KEY, strlen(JQ_SUSPECT_KEY),
						job->id, job->lane, ix, &ask, &next);
	if (r == JQ_KEY_BUSY || r == JQ_KEY_GONE)
	{
		taken = false;
		claim_clear(s);
		spill = ix == JQ_NIL; /* no room to remember it: the table does */
	}
	else if (ix != JQ_NIL)
		jq_entry_free(ix);
	LWLockRelease(jq_lane_lock(job->lane));
	settle(s);
	if (spill)
		jq_lane_lose(db, role, queue, job->pos, job->flags);
	return taken;
}

bool
jq_claim_cancel_wanted(void)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	bool wanted;

	if (s->claim_lane < 0)
		return false;
	LWLockAcquire(jq_lane_lock(s->claim_lane), LW_SHARED);
	wanted =
		s->cancel_for != 0 && s->cancel_for == jq_claim_cells[jq_my_slot].id;
	LWLockRelease(jq_lane_lock(s->claim_lane));
	return wanted;
}

static void
held_fill(JqHeld *h, JqHeldKind kind, Oid role, const char *queue)
{
	h->kind = kind;
	h->role = role;
	h->procno = jq_my_procno();
	h->user = GetSessionUserId();
	h->xid = InvalidTransactionId;
	h->since = GetCurrentTimestamp();
	h->passed = false;
	h->attempt = 0;
	h->started_at = 0;
	strlcpy(h->queue, queue, sizeof(h->queue));
	h->sqlstate[0] = h->error[0] = '\0';
}

/* lane lock held: an entry for a job of this process; false: no room */
static bool
hold_mine(JqLane *l, int64 id, JqHeldKind kind, TransactionId xid,
		  const char *sqlstate, const char *error)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	JqHeld key;
	JqHeld *h;
	bool found;

	held_key(&key, l->db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	h = hash_search(jq_held, &key, HASH_ENTER_NULL, &found);
	if (h != NULL)
	{
		held_fill(h, kind, l->role, l->queue);
		h->xid = xid;
		h->attempt = s->attempt;
		h->started_at = s->started_at;
		strlcpy(h->sqlstate, sqlstate ? sqlstate : "", sizeof(h->sqlstate));
		strlcpy(h->error, error ? error : "", sizeof(h->error));
		if (!found)
			pg_atomic_fetch_add_u32(&jq_shared->nheld, 1);
	}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return h != NULL;
}

bool
jq_claim_to_held(JqHeldKind kind, TransactionId xid, const char *sqlstate,
				 const char *error)
{
	JqSlot *s = &jq_slots[jq_my_slot];
	int lane = s->claim_lane;
	JqLane *l = &jq_lanes[lane];
	int dbix;
	bool done;

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	dbix = l->dbix;
	/* who has cancelled it has been told so */
	if (s->cancel_for == s->claim_pos.id)
		done = hold_mine(l, s->claim_pos.id, JQ_HELD_FAILING,
						 InvalidTransactionId, "CANCL", "cancelled");
	else
		done = hold_mine(l, s->claim_pos.id, kind, xid, sqlstate, error);
	if (done)
		claim_clear(s);
	LWLockRelease(jq_lane_lock(lane));
	settle(s);
	if (done)
		jq_db_request(dbix, JQ_REQ_FAILED);
	return done;
}

int
jq_claim_leave_others(int lane, int64 *open)
{
	JqClaimCell *c = &jq_claim_cells[jq_my_slot];
	JqLane *l = &jq_lanes[lane];
	int nopen = 0;
	bool any = false;
	int dbix;

	LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
	dbix = l->dbix;
	while (c->nothers > 0)
	{
		JqOther *o = &JQ_OTHERS(jq_my_slot)[c->nothers - 1];

		if (o->cancel && hold_mine(l, o->id, JQ_HELD_FAILING,
								   InvalidTransactionId, "CANCL", "cancelled"))
			any = true;
		else
			open[nopen++] = o->id;
		end_last_other(l, c);
	}
	jq_slots[jq_my_slot].others_wait = false;
	LWLockRelease(jq_lane_lock(lane));
	settle(&jq_slots[jq_my_slot]);
	if (any)
		jq_db_request(dbix, JQ_REQ_FAILED);
	return nopen;
}

/* ------------------------------------------------- sessions and scheduler */

/*
 * JQ_LOCK_CLAIM held: may this session hold one more?  Half of the places are for
 * failing jobs, and of the others a role gets no more than half, so that one that
 * leaves transactions open keeps nobody else from acting on his jobs.
 */
static bool
may_hold(void)
{
	long n = hash_get_num_entries(jq_held);
	Oid user = GetSessionUserId();
	HASH_SEQ_STATUS seq;
	JqHeld *h;
	int mine = 0;

	if (n < JQ_MAX_HELD / 4)
		return true;
	if (n >= JQ_MAX_HELD / 2)
		return false;
	hash_seq_init(&seq, jq_held);
	while ((h = hash_seq_search(&seq)) != NULL)
		if (h->kind == JQ_HELD_SESSION && h->user == user)
			mine++;
	return mine < JQ_MAX_HELD / 4;
}

JqHoldResult
jq_claim_hold(Oid db, Oid role, const char *queue, int64 id)
{
	JqHoldResult result;
	int lane;
	JqHeld key;
	JqHeld *h;
	bool found;

	/* the lane's lock keeps workers from taking it meanwhile */
	for (;;)
	{
		lane = jq_dir_lane(db, role, queue, true);
		if (lane < 0)
			return JQ_HOLD_FULL;
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (jq_lane_is(&jq_lanes[lane], db, role, queue))
			break;
		LWLockRelease(jq_lane_lock(lane));
		jq_dir_forget();
	}
	if (claimed_by_slot(db, id, false))
		result = JQ_HOLD_RUNNING;
	else if (claimed_by_consumer(db, id, false))
	{
		JqFetched f;

		/* one that is lost waits for its failure to be recorded */
		result = jq_fetched_get(db, id, &f) && f.state != JQ_FETCHED_LOST ?
					 JQ_HOLD_RUNNING :
					 JQ_HOLD_OTHER;
	}
	else
	{
		held_key(&key, db, id);
		LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
		if (hash_search(jq_held, &key, HASH_FIND, NULL) != NULL)
			result = JQ_HOLD_OTHER;
		else if (!may_hold())
			result = JQ_HOLD_FULL;
		else
		{
			h = hash_search(jq_held, &key, HASH_ENTER_NULL, &found);
			if (h == NULL)
				result = JQ_HOLD_FULL;
			else
			{
				held_fill(h, JQ_HELD_SESSION, role, queue);
				pg_atomic_fetch_add_u32(&jq_shared->nheld, 1);
				result = JQ_HOLD_DONE;
			}
		}
		LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	}
	LWLockRelease(jq_lane_lock(lane));
	return result;
}

bool
jq_claim_unhold(Oid db, int64 id)
{
	JqHeld key;
	JqHeld *h;
	bool passed = false;

	held_key(&key, db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	h = hash_search(jq_held, &key, HASH_FIND, NULL);
	if (h != NULL)
	{
		passed = h->passed;
		hash_search(jq_held, &key, HASH_REMOVE, NULL);
		pg_atomic_fetch_sub_u32(&jq_shared->nheld, 1);
	}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return passed;
}

void
jq_claim_purge(Oid db)
{
	HASH_SEQ_STATUS seq;
	JqHeld *h;

	if (pg_atomic_read_u32(&jq_shared->nheld) == 0)
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_held);
	while ((h = hash_seq_search(&seq)) != NULL)
		/* those of sessions are theirs to let go */
		if (h->db == db && h->kind != JQ_HELD_SESSION)
		{
			hash_search(jq_held, h, HASH_REMOVE, NULL);
			pg_atomic_fetch_sub_u32(&jq_shared->nheld, 1);
		}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
}

bool
jq_claim_hold_doubtful(Oid db, Oid role, const char *queue, int64 id,
					   TransactionId xid, bool soon)
{
	JqHeld key;
	JqHeld *h;
	bool found;

	held_key(&key, db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	h = hash_search(jq_held, &key, HASH_ENTER_NULL, &found);
	if (h != NULL)
	{
		held_fill(h, JQ_HELD_DOUBTFUL, role, queue);
		h->xid = xid;
		strlcpy(h->sqlstate, soon ? JQ_HELD_SOON : "", sizeof(h->sqlstate));
		if (!found)
			pg_atomic_fetch_add_u32(&jq_shared->nheld, 1);
	}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return h != NULL;
}

JqHeld *
jq_claim_list(Oid db, int *n)
{
	JqHeld *list = palloc(JQ_MAX_HELD * sizeof(JqHeld));
	HASH_SEQ_STATUS seq;
	JqHeld *h;

	*n = 0;
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	hash_seq_init(&seq, jq_held);
	while ((h = hash_seq_search(&seq)) != NULL)
		if (h->db == db && h->kind != JQ_HELD_SESSION && *n < JQ_MAX_HELD)
			list[(*n)++] = *h;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return list;
}

bool
jq_claim_cancel(Oid db, int64 id)
{
	int i;

	if (jq_fetched_cancel(db, id))
		return true;
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		int lane;
		int other;
		bool sent = false;

		if (jq_claim_cells[i].db != db ||
			(jq_claim_cells[i].id != id && other_of_slot(i, id) < 0))
			continue;
		lane = *(volatile int *) &s->claim_lane;
		if (lane < 0)
			continue;
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (s->claim_lane == lane && jq_claim_cells[i].db == db &&
			(other = other_of_slot(i, id)) >= 0)
		{
			/*
			 * The job in hand ends, and with it the batch, so far undone.  One
			 * that waits for its turn alone is looked at then, and the job in
			 * hand has nothing to do with it.
			 */
			JQ_OTHERS(i)[other].cancel = true;
			if (!s->others_wait)
				kill(s->pid, SIGINT);
			sent = true;
		}
		else if (s->claim_lane == lane && jq_claim_cells[i].id == id &&
				 jq_claim_cells[i].db == db)
		{
			/* under the lock, so that the job cannot end in between */
			if (s->cancel_for != id)
				s->cancel_at = GetCurrentTimestamp();
			s->cancel_for = id;
			kill(s->pid, SIGINT);
			sent = true;
		}
		LWLockRelease(jq_lane_lock(lane));
		if (sent)
		{
			jq_launcher_wake(); /* it repeats what the job swallows */
			return true;
		}
	}
	return false;
}

int64 *
jq_claim_running(Oid db, int *n)
{
	int nfetched;
	JqFetched *list = jq_fetched_list(db, &nfetched);
	int64 *ids =
		palloc((jq_shared->nslots * (JQ_BATCH_MAX + 1) + nfetched + 1) *
			   sizeof(int64));
	int i;
	uint32 k;

	*n = 0;
	for (i = 0; i < nfetched; i++)
		ids[(*n)++] = list[i].id;
	pfree(list);
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqClaimCell *c = &jq_claim_cells[i];
		int64 id = c->id;

		if (c->db != db)
			continue;
		if (id != 0)
			ids[(*n)++] = id;
		/* one that goes to the others just now is found there */
		pg_read_barrier();
		for (k = 0; k < c->nothers && k < JQ_BATCH_MAX; k++)
			ids[(*n)++] = JQ_OTHERS(i)[k].id;
		/* and one that comes back from there, here */
		pg_read_barrier();
		if (c->id != 0 && c->id != id)
			ids[(*n)++] = c->id;
	}
	return ids;
}

int64 *
jq_claim_ids(Oid db, int *n)
{
	int64 *ids = jq_claim_running(db, n);
	HASH_SEQ_STATUS seq;
	JqHeld *h;
	int room = *n + JQ_MAX_HELD;

	ids = repalloc(ids, room * sizeof(int64));
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	hash_seq_init(&seq, jq_held);
	while ((h = hash_seq_search(&seq)) != NULL)
		if (h->db == db && h->kind != JQ_HELD_DOUBTFUL && *n < room)
			ids[(*n)++] = h->id;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return ids;
}

int
jq_claim_count(Oid db)
{
	int n = 0;
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_claim_cells[i].db == db)
			n += (jq_claim_cells[i].id != 0) + jq_claim_cells[i].nothers;
	return n + jq_fetched_count(db);
}

/* model: UNSTARVE */
void
jq_claim_unstarve(void)
{
	int i;

	if (pg_atomic_exchange_u32(&jq_shared->starved, 0) == 0)
		return;
	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];
		int dbix = -1;

		if (!*(volatile bool *) &l->starved)
			continue;
		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (OidIsValid(l->db) && l->starved)
		{
			l->starved = false;
			l->want_refill = true;
			dbix = l->dbix;
		}
		LWLockRelease(jq_lane_lock(i));
		if (dbix >= 0)
			jq_db_request(dbix, JQ_REQ_REFILL);
	}
}

bool
jq_claim_find_held(Oid db, int64 id, JqHeld *out)
{
	JqHeld key;
	JqHeld *h;

	held_key(&key, db, id);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	h = hash_search(jq_held, &key, HASH_FIND, NULL);
	if (h != NULL)
		*out = *h;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return h != NULL;
}
