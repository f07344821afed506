/*
 * keylock.c
 *		Who gets a key, who waits for it, who lets it go.
 *
 * States of a key:
 *
 *		absent -> held		: jq_keylock_take
 *		held   -> held		: jq_keylock_take by one more process, as far as
 *							  keyrule.c lets it; jq_keylock_release by one of
 *							  several
 *		held   -> absent	: jq_keylock_release, nobody waits
 *		held   -> free		: jq_keylock_release, some still wait
 *		free   -> held		: jq_keylock_take
 *		free   -> absent	: the last waiter is forgotten
 *
 * Whenever somebody may have the key, be it free or not, each lane whose first
 * waiter may have it also has an entry in its order, marked JQ_E_UNPARKED: the
 * first waiters of each lane go back there when a holder goes, or when the
 * moment comes for which they waited (keywake.c).  Whoever takes the key with
 * that mark hands it on to the next waiter of his lane, if he may have it too.  If
 * that entry leaves the order without being taken (it is evicted), the waiters of
 * the lane leave with it, so nobody waits for a key that no one will release.
 *
 * Waiters stand in order of (priority, id); keyspill.c tells of those that memory
 * does not keep, and of the scheduler that brings them.  While rows are on their
 * way (it is the key's "pusher") no worker gets the key.
 */
#include "postgres.h"

#include "compat.h"
#include "database.h"
#include "keytable.h"
#include "keywait.h"
#include "keywake.h"
#include "lane.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* keys of this process */
static JqMyKey *my_keys;
static int n_my_keys;
static int max_my_keys;

void
jq_keylock_prepare(void)
{
	if (n_my_keys + 2 <= max_my_keys)
		return;
	if (my_keys == NULL)
		my_keys = MemoryContextAlloc(TopMemoryContext, 8 * sizeof(JqMyKey));
	else
		my_keys = repalloc(my_keys, 2 * max_my_keys * sizeof(JqMyKey));
	max_my_keys = max_my_keys == 0 ? 8 : 2 * max_my_keys;
}

JqMyKey *
jq_key_note_mine(const JqKeyTag *tag, uint32 hash)
{
	JqMyKey *m = &my_keys[n_my_keys];

	Assert(n_my_keys < max_my_keys);
	m->tag = *tag;
	m->hash = hash;
	m->job = 0;
	m->for_job = m->for_session = m->waiting = false;
	m->pushed = m->of_claim = m->unused = false;
	n_my_keys++;
	return m;
}

void
jq_key_note_pushed(const JqKeyTag *tag, uint32 hash)
{
	jq_key_note_mine(tag, hash)->pushed = true;
}

/* ---------------------------------------------------------------- waiters */

static bool
holds(const JqKey *k)
{
	return jq_key_my_holder(k) != NULL;
}

/*
 * Put the entry among the waiters, in order.  false: the job waits already, as
 * a refill may have brought it once more; this entry has been freed.
 */
static bool
park(JqKey *k, uint32 ix)
{
	JqEntry *e = JQ_ENTRY(ix);
	uint32 *link = &k->first;
	uint32 prev = JQ_NIL;

	e->flags &= ~JQ_E_UNPARKED;
	if (k->last != JQ_NIL &&
		jq_pos_cmp(JQ_ENTRY_POS(k->last), JQ_ENTRY_POS(ix)) < 0)
		link = &JQ_ENTRY(k->last)->next[0];
	else
		for (; *link != JQ_NIL &&
			   jq_pos_cmp(JQ_ENTRY_POS(*link), JQ_ENTRY_POS(ix)) < 0;
			 link = &JQ_ENTRY(prev)->next[0])
			prev = *link;
	/* the same job in another lane: its row has moved; who takes it will see */
	for (; *link != JQ_NIL && JQ_ENTRY(*link)->id == e->id;
		 link = &JQ_ENTRY(prev)->next[0])
	{
		if (JQ_ENTRY(*link)->lane == e->lane)
		{
			JQ_ENTRY(*link)->flags =
				jq_flags_of_twins(JQ_ENTRY(*link)->flags, e->flags);
			jq_entry_add_reruns(JQ_ENTRY(*link), e);
			jq_entry_free(ix);
			return false;
		}
		prev = *link;
	}
	k->one_lane =
		k->first == JQ_NIL ||
		(k->one_lane && JQ_ENTRY(k->first)->lane == JQ_ENTRY(ix)->lane);
	e->next[0] = *link;
	*link = ix;
	if (e->next[0] == JQ_NIL)
		k->last = ix;
	k->nwaiting++;
	return true;
}

/*
 * The key is held, or (free) the entry is not the next of it: park it, or forget
 * it if the key answers for its row.
 */
static JqKeyResult
wait_for(JqKey *k, uint32 ix)
{
	JqPos pos = JQ_ENTRY_POS(ix);

	if (k->spilled && jq_pos_cmp(pos, k->frontier) >= 0)
	{
		jq_key_spill_from(k, pos, JQ_ENTRY(ix)->lane);
		jq_entry_free(ix);
		return JQ_KEY_GONE;
	}
	if (!park(k, ix))
		return JQ_KEY_GONE;
	pg_atomic_fetch_add_u32(&jq_lanes[JQ_ENTRY(ix)->lane].nparked, 1);
	/* suspects are few, and no index has them together */
	if (k->tag.db != JQ_SUSPECT_DB && k->nwaiting > jq_key_max_waiters())
		jq_key_spill_last(k);
	return JQ_KEY_BUSY;
}

static JqMyKey *
note_job(const JqKey *k, uint32 hash, int64 job)
{
	JqMyKey *m = jq_key_note_mine(&k->tag, hash);

	m->job = job;
	m->for_job = true;
	return m;
}

/* claim_pid: for a claim, of a session with that pid; -1: for this process */
static JqKeyResult
take(JqKey *k, uint32 hash, int64 job, int claim_pid, int lane, uint32 ix,
	 bool *ask, uint32 *next)
{
	bool of_claim = claim_pid >= 0;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz until;
	JqKeyRules r;
	JqKeyClosed closed;
	JqPos pos = ix != JQ_NIL ? JQ_ENTRY_POS(ix) : JQ_POS_NOTHING;
	bool counted_on =
		ix != JQ_NIL && (JQ_ENTRY(ix)->flags & JQ_E_UNPARKED) != 0;
	JqHolder h;
	JqMyKey *m;

	jq_key_rules(k, hash, lane, &r);
	if (ix == JQ_NIL)
	{
		/* a lease that the table has, it had before */
		bool had = of_claim && lane >= 0;

		if (k->nholders > 0 && !had &&
			(k->nholders >= Min(r.limit, k->limit) || (!of_claim && holds(k))))
			return JQ_KEY_BUSY;
		if (k->first_session >= 0 && !had)
			return JQ_KEY_BUSY;
		jq_key_set_holder(&h, claim_pid, job, of_claim ? lane : -1, r.limit);
		if (!jq_key_add_holder(k, &h))
			return JQ_KEY_BUSY;
		if (!of_claim)
			note_job(k, hash, job);
		return JQ_KEY_TAKEN;
	}
	if ((JQ_ENTRY(ix)->flags & JQ_E_BROUGHT) && k->brought > 0)
		k->brought--;
	JQ_ENTRY(ix)->flags &= ~JQ_E_BROUGHT;
	closed = jq_key_closed(k, &r, pos, now, &until);
	if (closed != JQ_KEY_OPEN)
	{
		jq_key_wake_by(k, hash, until);
		return wait_for(k, ix);
	}
	if (k->spilled && jq_pos_cmp(pos, k->frontier) >= 0)
	{
		/* smaller ones may be in the table */
		JqKeyResult result = wait_for(k, ix);

		if (counted_on && !k->filling && !k->want)
		{
			/* those of its lane that count on it are larger still */
			jq_key_spill_waiters(k);
			k->want = *ask = true;
		}
		else
			*ask |= jq_key_wants_refill(k);
		return result;
	}
	if (jq_key_behind(k, hash, lane, pos, now) || (!of_claim && holds(k)))
	{
		/* somebody else may be able to go; if so, the launcher sees to it */
		jq_key_wake_by(k, hash, now);
		return wait_for(k, ix);
	}
	jq_key_set_holder(&h, claim_pid, job, lane, r.limit);
	if (!jq_key_add_holder(k, &h))
		return wait_for(k, ix); /* there are others, who let it go */
	m = of_claim ? NULL : note_job(k, hash, job);
	if (r.limited)
	{
		jq_keyrate_take(&r.bucket, now);
		if (m != NULL)
		{
			m->unused = true;
			m->bucket = r.bucket;
		}
	}
	if (k->turn_ends != 0 && jq_pos_cmp(pos, k->turn) == 0)
	{
		k->turn_ends = 0;
		if (k->first != JQ_NIL)
			jq_key_wake_by(k, hash, now);
	}
	if (counted_on && k->first != JQ_NIL)
	{
		*next = jq_key_unpark_next(k, hash, lane, now, &until);
		jq_key_wake_by(k, hash, until);
	}
	return JQ_KEY_TAKEN;
}

static JqKeyResult
take_key(Oid db, const char *key, int len, int64 job, int claim_pid, int lane,
		 uint32 entry, bool *ask, uint32 *next)
{
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	JqKeyResult result;

	Assert(claim_pid >= 0 || n_my_keys < max_my_keys);
	*next = JQ_NIL;
	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	k = jq_key_enter(&tag, hash);
	if (k == NULL)
	{
		/* whoever removes a key from now on wakes us; look once more */
		pg_atomic_write_u32(&jq_shared->keys_full, 1);
		k = jq_key_enter(&tag, hash);
	}
	if (k == NULL)
		result = JQ_KEY_FULL;
	else
	{
		result = take(k, hash, job, claim_pid, lane, entry, ask, next);
		jq_key_check(k);
	}
	LWLockRelease(jq_key_partition(hash));
	return result;
}

JqKeyResult
jq_keylock_take(Oid db, const char *key, int len, int64 job, int lane,
				uint32 entry, bool *ask, uint32 *next)
{
	return take_key(db, key, len, job, -1, lane, entry, ask, next);
}

JqKeyResult
jq_keylock_take_for_claim(Oid db, const char *key, int len, int64 job, int pid,
						  int lane, uint32 entry, bool *ask, uint32 *next)
{
	return take_key(db, key, len, job, pid, lane, entry, ask, next);
}

JqMyKey *
jq_key_find_mine(Oid db, const char *key, int len, bool waiting)
{
	int i;

	for (i = n_my_keys - 1; i >= 0; i--)
		if (my_keys[i].tag.db == db && my_keys[i].tag.len == (uint32) len &&
			my_keys[i].waiting == waiting &&
			memcmp(my_keys[i].tag.text, key, len) == 0)
			return &my_keys[i];
	return NULL;
}

void
jq_keylock_use(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, false);

	if (m != NULL)
		m->unused = false;
}

bool
jq_keylock_use_again(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, false);
	TimestampTz now = GetCurrentTimestamp();
	uint32 hash;
	JqKey *k;
	JqKeyRules r;
	const JqHolder *h;
	bool ok = true;

	if (m == NULL || m->unused)
		return true;
	k = jq_key_find(db, key, len, &hash);
	h = k != NULL ? jq_key_my_holder(k) : NULL;
	if (h != NULL)
	{
		jq_key_rules(k, hash, h->lane, &r);
		ok = !r.limited || jq_keyrate_next(&r.bucket, now) <= now;
		if (r.limited && ok)
		{
			jq_keyrate_take(&r.bucket, now);
			m->unused = true;
			m->bucket = r.bucket;
		}
	}
	LWLockRelease(jq_key_partition(hash));
	return ok;
}

void
jq_keylock_tell(void)
{
	jq_key_wake_tell();
}

#define RELEASE_LANES 8

/* the lanes that have waiters here, ascending; -1: too many to lock them all */
static int
lanes_of_waiters(JqKey *k, int *lanes)
{
	int n = 0;
	uint32 ix;

	for (ix = k->first; ix != JQ_NIL; ix = JQ_ENTRY(ix)->next[0])
	{
		int lane = JQ_ENTRY(ix)->lane;
		int i;
		int j;

		for (i = 0; i < n && lanes[i] < lane; i++)
			;
		if (i < n && lanes[i] == lane)
			continue;
		if (n == RELEASE_LANES)
			return -1;
		for (j = n++; j > i; j--)
			lanes[j] = lanes[j - 1];
		lanes[i] = lane;
		if (k->one_lane)
			break;
	}
	return n;
}

static bool
is_subset(const int *a, int na, const int *b, int nb)
{
	int i = 0;
	int j;

	for (j = 0; j < nb && i < na; j++)
		if (b[j] == a[i])
			i++;
	return i == na;
}

/* partition lock held: the token was not used */
static void
give_token_back(JqKey *k, const JqMyKey *my)
{
	const JqHolder *h = jq_key_my_holder(k);
	JqKeyRules r;

	if (h == NULL)
		return;
	jq_key_rules(k, my->hash, h->lane, &r);
	/* a faster rate than it was taken at: no more than a token */
	if (r.limited)
		jq_keyrate_give_back(&my->bucket, r.bucket.interval);
}

/* partition lock held: this process lets it go; false: it has it not */
static bool
let_go(JqKey *k, JqMyKey *my)
{
	/* those that stood behind us may be free to go */
	if (my->waiting && !jq_key_session_leave(k))
		return true;
	jq_key_note_commit(my->hash);
	if (my->pushed)
	{
		if (k->pusher != jq_my_procno() || k->pusher_pid != MyProcPid)
			return false;
		k->pusher = -1;
		return true;
	}
	if (my->unused)
		give_token_back(k, my);
	if (!jq_key_remove_holder(k, my))
		return false;
	/* unless its failure is still to be recorded */
	if (k->norders > 0)
		(void) jq_key_order_clear(k, my->job, 0);
	return true;
}

/* partition lock held: those that may go on now */
static uint32
unpark(JqKey *k, uint32 hash, bool all, bool *ask)
{
	uint32 chain = JQ_NIL;

	if (k->unparked_until != 0)
	{
		if (k->unparked_until <= GetCurrentTimestamp())
			k->unparked_until = 0;
		else
			jq_key_wake_by(k, hash, k->unparked_until);
	}
	/* smaller ones than those in the lanes may be on their way */
	if (k->pusher < 0 &&
		(k->first != JQ_NIL || k->norders > 0 || k->first_session >= 0))
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz until;

		jq_key_order_expire(k, hash, now);
		chain = jq_key_unpark(k, hash, all, now, &until);
		if (chain != JQ_NIL && !all)
			jq_key_session_unparked(k, chain, now, &until);
		jq_key_wake_by(k, hash, until);
	}
	if (k->pusher < 0 && (k->nholders == 0 || k->nholders < k->limit))
		*ask = jq_key_wants_refill(k);
	jq_key_check(k);
	/* somebody is sure to see to the sessions that wait */
	Assert(k->first_session < 0 || k->nholders > 0 || k->pusher >= 0 ||
		   k->wake_at != 0);
	jq_key_remove_if_unused(k, hash);
	return chain;
}

static void
ask_refill(Oid db)
{
	int dbix = jq_dir_db(db, false);

	if (dbix >= 0)
		jq_db_request(dbix, JQ_REQ_KEYS);
}

/* there may be a place for a key again: wake who could not have one */
void
jq_keylock_wake(void)
{
	int i;

	if (!jq_keylock_full() ||
		pg_atomic_exchange_u32(&jq_shared->keys_full, 0) == 0)
		return;
	for (i = 0; i < jq_shared->nlanes; i++)
		if (OidIsValid(jq_groups[i].db))
			jq_group_wake(i, 1);
}

/*
 * The key has room (my: this process lets it go), and its first waiters are back
 * in their lanes, in one section: else a later job of the lane could take the key
 * in between.  So the locks of the lanes are taken first, in ascending order (the
 * one place where several lane locks are held), and if the waiters have changed
 * meanwhile, once more.  Where there are too many lanes for that, their order is
 * not kept.  everybody: they need not be able to take the key (of suspects, all
 * go on; model: TURN_GOES_ON).
 */
static void
advance(const JqKeyTag *tag, uint32 hash, JqMyKey *my, bool everybody)
{
	uint32 chain = JQ_NIL;
	int locked[RELEASE_LANES];
	int nlocked = 0;
	bool done = false;
	bool ask = false;
	JqKey *k;
	int i;

	/* nothing may come between leaving the key and entering the lane */
	HOLD_INTERRUPTS();
	while (!done)
	{
		int lanes[RELEASE_LANES];
		int n = 0;

		LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
		k = hash_search_with_hash_value(jq_keys, tag, hash, HASH_FIND, NULL);
		if (k == NULL)
			done = true;
		else
		{
			n = lanes_of_waiters(k, lanes);
			if (n < 0 || is_subset(lanes, n, locked, nlocked))
			{
				/* how full the table is, is asked only for those that wait */
				if (my == NULL || let_go(k, my))
					chain =
						unpark(k, hash,
							   everybody || n < 0 || tag->db == JQ_SUSPECT_DB ||
								   (n > 0 && jq_keylock_crowded()),
							   &ask);
				done = true;
			}
		}
		LWLockRelease(jq_key_partition(hash));
		if (done && n >= 0)
			break;
		while (nlocked > 0)
			LWLockRelease(jq_lane_lock(locked[--nlocked]));
		for (; nlocked < n; nlocked++)
		{
			locked[nlocked] = lanes[nlocked];
			LWLockAcquire(jq_lane_lock(locked[nlocked]), LW_EXCLUSIVE);
		}
	}

	if (nlocked > 0)
	{
		int returned[RELEASE_LANES] = {0};

		while (chain != JQ_NIL)
		{
			uint32 next = JQ_ENTRY(chain)->next[0];

			for (i = 0; i < nlocked; i++)
				if (locked[i] == JQ_ENTRY(chain)->lane)
					returned[i]++;
			jq_lane_take_back(chain);
			chain = next;
		}
		for (i = nlocked - 1; i >= 0; i--)
			LWLockRelease(jq_lane_lock(locked[i]));
		for (i = 0; i < nlocked; i++)
			if (returned[i] > 0)
				jq_lane_took_back(locked[i], returned[i]);
	}
	while (chain != JQ_NIL)
	{
		uint32 next = JQ_ENTRY(chain)->next[0];
		int lane = JQ_ENTRY(chain)->lane;

		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		jq_lane_take_back(chain);
		LWLockRelease(jq_lane_lock(lane));
		jq_lane_took_back(lane, 1);
		chain = next;
	}
	if (ask)
		ask_refill(tag->db);
	jq_keylock_wake();
	jq_key_wake_tell();
	jq_key_session_tell();
	RESUME_INTERRUPTS();
}

void
jq_key_advance(const JqKeyTag *tag)
{
	advance(tag, jq_key_hash_of(tag), NULL, false);
}

void
jq_key_let_all_go(const JqKeyTag *tag)
{
	advance(tag, jq_key_hash_of(tag), NULL, true);
}

void
jq_key_release_mine(JqMyKey *m)
{
	JqMyKey my = *m;

	HOLD_INTERRUPTS();
	*m = my_keys[--n_my_keys];
	advance(&my.tag, my.hash, &my, false);
	RESUME_INTERRUPTS();
}

void
jq_key_end_job(JqMyKey *my)
{
	JqKey *k;
	JqHolder *h;

	LWLockAcquire(jq_key_partition(my->hash), LW_EXCLUSIVE);
	k = hash_search_with_hash_value(jq_keys, &my->tag, my->hash, HASH_FIND,
									NULL);
	if (k != NULL)
	{
		if (my->unused)
			give_token_back(k, my);
		if (k->norders > 0)
			(void) jq_key_order_clear(k, my->job, 0);
		for (h = k->nholders > 0 ? &k->holder : NULL; h != NULL;
			 h = h->next == JQ_NIL ? NULL : JQ_HOLDER(h->next))
			if (h->procno == jq_my_procno() && h->pid == MyProcPid)
			{
				h->job = 0;
				h->lane = -1;
				h->limit = 1;
			}
		jq_key_set_limit(k);
	}
	LWLockRelease(jq_key_partition(my->hash));
	my->job = 0;
	my->for_job = my->unused = false;
}

void
jq_keylock_release(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, false);

	if (m == NULL || !(m->for_job || m->pushed))
		return;
	if (m->for_session)
		jq_key_end_job(m);
	else
		jq_key_release_mine(m);
}

void
jq_keylock_release_of_claim(Oid db, const char *key, int len, int64 job)
{
	JqMyKey my;

	memset(&my, 0, offsetof(JqMyKey, bucket));
	jq_key_make_tag(&my.tag, db, key, len);
	my.hash = jq_key_hash_of(&my.tag);
	my.job = job;
	my.of_claim = true;
	advance(&my.tag, my.hash, &my, false);
}

void
jq_keylock_release_all(void)
{
	while (n_my_keys > 0)
		jq_key_release_mine(&my_keys[n_my_keys - 1]);
	jq_keywait_set_number(0);
}

bool
jq_keylock_mine(Oid db, const char *key, int len)
{
	return jq_key_find_mine(db, key, len, false) != NULL;
}

/* partition lock held: may the first waiter of the lane have it now? */
static bool
open_for(JqKey *k, uint32 hash, int lane)
{
	TimestampTz until;
	JqKeyRules r;
	uint32 ix = k->first;

	while (ix != JQ_NIL && JQ_ENTRY(ix)->lane != lane)
		ix = JQ_ENTRY(ix)->next[0];
	if (ix == JQ_NIL)
		return false;
	jq_key_rules(k, hash, lane, &r);
	return jq_key_closed(k, &r, JQ_ENTRY_POS(ix), GetCurrentTimestamp(),
						 &until) == JQ_KEY_OPEN;
}

/* a spilled key that answers for the row may have begun behind it */
static bool
answers(JqKey *k, JqPos pos)
{
	if (!k->spilled || jq_pos_cmp(pos, k->frontier) < 0)
		return false;
	k->low_id = Min(k->low_id, pos.id);
	return true;
}

bool
jq_keylock_answers(Oid db, const char *key, int len, JqPos pos)
{
	uint32 hash;
	bool has;
	JqKey *k;

	if (len == 0 || pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return false;
	k = jq_key_find(db, key, len, &hash);
	has = k != NULL && answers(k, pos);
	LWLockRelease(jq_key_partition(hash));
	return has;
}

bool
jq_keylock_has(Oid db, const char *key, int len, int lane, JqPos pos)
{
	uint32 hash;
	uint32 ix;
	bool has;
	JqKey *k;

	if (len == 0)
		return false;
	k = jq_key_find(db, key, len, &hash);
	has = k != NULL && answers(k, pos);
	for (ix = k != NULL ? k->first : JQ_NIL; ix != JQ_NIL && !has;
		 ix = JQ_ENTRY(ix)->next[0])
		if (JQ_ENTRY(ix)->lane == lane &&
			jq_pos_cmp(JQ_ENTRY_POS(ix), pos) == 0)
		{
			jq_entry_is_due(JQ_ENTRY(ix)); /* model: TOLD */
			has = true;
		}
	LWLockRelease(jq_key_partition(hash));
	return has;
}

bool
jq_keylock_take_over(Oid db, const char *key, int len, int lane, JqPos pos)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, key, len, &hash);
	bool taken = k != NULL && answers(k, pos);

	if (taken)
		jq_key_spill_from(k, pos, lane);
	LWLockRelease(jq_key_partition(hash));
	return taken;
}

uint32
jq_keylock_forget_waiters(uint32 entry)
{
	char key[JQ_KEY_MAX + 1];
	int len = jq_entry_key(entry, key);
	int32 lane = JQ_ENTRY(entry)->lane;
	Oid db = jq_lanes[lane].db;
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	uint32 chain = JQ_NIL;
	bool ask;

	if (len == 0)
		return JQ_NIL;
	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	/* if not, somebody is sure to unpark them */
	if (k != NULL && open_for(k, hash, lane))
	{
		uint32 *link = &k->first;

		k->last = JQ_NIL;
		while (*link != JQ_NIL)
		{
			uint32 ix = *link;

			if (JQ_ENTRY(ix)->lane == lane)
			{
				*link = JQ_ENTRY(ix)->next[0];
				JQ_ENTRY(ix)->next[0] = chain;
				chain = ix;
				k->nwaiting--;
			}
			else
			{
				k->last = ix;
				link = &JQ_ENTRY(ix)->next[0];
			}
		}
		ask = jq_key_wants_refill(k);
		jq_key_remove_if_unused(k, hash);
		/* rare; nobody is sure to ask after the locks */
		if (ask || jq_keylock_full())
			jq_db_request(jq_lanes[lane].dbix, JQ_REQ_KEYS);
	}
	LWLockRelease(jq_key_partition(hash));
	return chain;
}
