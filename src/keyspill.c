/*
 * keyspill.c
 *		Spilled keys: those that have more waiters than memory keeps.
 *
 * Only some waiters are kept in memory, fewer when memory is short.  One more,
 * and the largest is forgotten: the key is "spilled", and has a frontier of its
 * own.  Every row of the key before it that is ready is in memory or known to its
 * lane as beyond the lane's frontier; for those from it on the key answers: lanes
 * pass over them, workers drop them.  When few waiters are left the scheduler
 * reads the next rows from the index of keys and publishes them to their lanes.
 * "brought" is how many of those no worker has met yet (JQ_E_BROUGHT): as long
 * as there are some, the key is not read on, and sessions that stand behind them
 * wait.  It may be less than they are: a key with several lanes is read on while
 * some of the last ones are unmet.  Then it is read on sooner, and a session may be
 * given the key before rows that are on their way.  It is never more for longer
 * than until the next refill, as each sets it anew: else the key would not be read
 * on.  The rules are those of a lane's refill (lane.c):
 *
 *	forget	lowers frontier and cut to the row (min)
 *	refill	begin: filling, cut = ALL; then the snapshot; read: frontier =
 *			min(what was read, cut); publish; end.  At the end of the index the
 *			key is not spilled any more.
 *
 * A spilled key stays in the table even if nobody holds it or waits.
 *
 * Between refill_read and refill_end the scheduler is the key's "pusher", and no
 * worker gets it: entries before the new frontier may stand in their lanes while
 * smaller ones are still on their way there.
 */
#include "postgres.h"

#include "compat.h"
#include "keytable.h"
#include "lane.h"
#include "miscadmin.h"

/* how many waiters a key may have in memory, as long as that has room */
uint32
jq_key_max_waiters(void)
{
	int nfree = (int) pg_atomic_read_u32(&jq_shared->pool_nfree);

	if (nfree > jq_shared->nentries / 4)
		return 64;
	if (nfree > jq_shared->nentries / 16)
		return 16;
	/* the rest is for those who do not wait */
	return nfree > jq_shared->nentries / 32 ? 2 : 0;
}

/* where the rows of a lane are counted */
static int
place_of_lane(JqKey *k, int lane)
{
	int i;

	for (i = 0; i < k->nlanes; i++)
		if (k->lanes[i] == lane)
			return i;
	if (k->nlanes == SPILL_LANES)
		return 0;
	k->lanes[i] = lane;
	k->counts[i] = 0;
	k->counted[i] = JQ_POS_NOTHING;
	k->nlanes++;
	return i;
}

/* n rows more, or less, of a lane are in the table only */
static void
count_spilled(JqKey *k, int lane, int64 n)
{
	int i = place_of_lane(k, lane);

	k->counts[i] = Max(k->counts[i] + n, 0);
}

int64
jq_key_spilled_rows(const JqKey *k)
{
	int64 n = 0;
	int i;

	for (i = 0; i < k->nlanes; i++)
		n += k->counts[i];
	return n;
}

/* the row at pos is in the table only */
void
jq_key_spill_from(JqKey *k, JqPos pos, int lane)
{
	if (!k->spilled)
	{
		k->spilled = true;
		k->frontier = JQ_POS_ALL;
		k->low_id = PG_INT64_MAX;
		k->nlanes = 0;
		k->brought = 0;
		pg_atomic_fetch_add_u32(&jq_shared->spilled_keys, 1);
	}
	k->frontier = jq_pos_min(k->frontier, pos);
	k->cut = jq_pos_min(k->cut, pos);
	k->low_id = Min(k->low_id, pos.id);
	count_spilled(k, lane, 1);
}

static void
set_unspilled(JqKey *k)
{
	if (k->spilled)
		pg_atomic_fetch_sub_u32(&jq_shared->spilled_keys, 1);
	k->spilled = k->want = k->filling = false;
	k->nlanes = 0;
}

/* forget the largest waiter */
void
jq_key_spill_last(JqKey *k)
{
	uint32 *link = &k->first;
	uint32 prev = JQ_NIL;
	uint32 ix;

	while (*link != k->last)
	{
		prev = *link;
		link = &JQ_ENTRY(prev)->next[0];
	}
	ix = *link;
	*link = JQ_NIL;
	k->last = prev;
	k->nwaiting--;
	jq_key_spill_from(k, JQ_ENTRY_POS(ix), JQ_ENTRY(ix)->lane);
	pg_atomic_fetch_sub_u32(&jq_lanes[JQ_ENTRY(ix)->lane].nparked, 1);
	jq_entry_free(ix);
}

/* the frontier has been lowered: no waiter may stand behind it */
void
jq_key_spill_waiters(JqKey *k)
{
	while (k->last != JQ_NIL &&
		   jq_pos_cmp(JQ_ENTRY_POS(k->last), k->frontier) >= 0)
		jq_key_spill_last(k);
}

/* waiters that a worker may take; those of lanes that wait hold nobody up */
static uint32
waiters_that_run(JqKey *k)
{
	uint32 n = 0;
	uint32 ix;

	for (ix = k->first; ix != JQ_NIL; ix = JQ_ENTRY(ix)->next[0])
		if (!jq_lane_waits(&jq_lanes[JQ_ENTRY(ix)->lane]))
			n++;
	return n;
}

/* is it time to ask for the next rows of the key?  If so, it has been noted;
 * model: KEY_ASK */
bool
jq_key_wants_refill(JqKey *k)
{
	bool others = k->nlanes > 1 || !k->one_lane;
	uint32 n;

	if (!k->spilled || k->want || k->filling)
		return false;
	/* where nothing can wait in memory, it would come in vain */
	if ((k->nholders > 0 || k->norders > 0 || k->wake_at != 0) &&
		jq_key_max_waiters() == 0)
		return false;
	n = waiters_that_run(k);
	/* nobody waits, but the lane of all of them still has what was read */
	if (n == 0 && k->brought > 0 && !others)
		return false;
	/* free, and those in memory may have no worker: others may come after them;
	 * but not if it is no worker that they lack */
	if (n > 0 && k->nholders == 0 && k->norders == 0 && k->wake_at == 0 &&
		others)
		n = 0;
	if (n > 0 && (k->brought > 0 || n > jq_key_max_waiters() / 2))
		return false;
	return k->want = true;
}

/* ----------------------------------------------------- refill of one key */

bool
jq_keylock_answers_for(Oid db, const JqItem *item, int lane, bool fresh)
{
	JqPos pos = jq_pos_make(item->priority, item->id);
	bool answers;
	JqKey *k;
	uint32 hash;

	if (item->keylen == 0 || pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return false;
	k = jq_key_find(db, item->key, item->keylen, &hash);
	answers = k != NULL && k->spilled && jq_pos_cmp(pos, k->frontier) >= 0;
	if (answers)
		k->low_id = Min(k->low_id, pos.id);
	if (answers)
	{
		/* each lane is read for itself, past rows that others have counted */
		int i = place_of_lane(k, lane);

		if (k->lanes[i] != lane)
			k->counts[i] += fresh ? 1 : 0;
		else if (jq_pos_cmp(pos, k->counted[i]) > 0)
		{
			k->counted[i] = pos;
			k->counts[i]++;
		}
	}
	LWLockRelease(jq_key_partition(hash));
	return answers;
}

bool
jq_keylock_uncount(Oid db, const char *key, int len, int lane, JqPos pos,
				   bool unknown)
{
	uint32 hash;
	JqKey *k;
	bool counted;
	int i = 0;

	if (len == 0 || pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return false;
	k = jq_key_find(db, key, len, &hash);
	while (k != NULL && i < k->nlanes && k->lanes[i] != lane)
		i++;
	/* those of more lanes than that are counted in the first one */
	if (i == SPILL_LANES)
		i = 0;
	counted = k != NULL && k->spilled && i < k->nlanes &&
			  jq_pos_cmp(pos, k->frontier) >= 0 &&
			  (!unknown || jq_pos_cmp(pos, k->counted[i]) <= 0);
	if (counted)
		k->counts[i] = Max(k->counts[i] - 1, 0);
	LWLockRelease(jq_key_partition(hash));
	return counted;
}

bool
jq_keylock_dropped(Oid db, const char *key, int len, bool brought)
{
	JqKey *k;
	uint32 hash;
	bool ask;

	/* what was brought is counted by a key that is not spilled any more, too;
	 * model: DROPPED */
	if (!brought && pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return false;
	k = jq_key_find(db, key, len, &hash);
	if (k != NULL && brought && k->brought > 0)
		k->brought--;
	ask = k != NULL && k->nholders == 0 && k->first == JQ_NIL &&
		  jq_key_wants_refill(k);
	LWLockRelease(jq_key_partition(hash));
	return ask;
}

bool
jq_keylock_refill_begin(Oid db, const JqKeyWant *want, JqPos *from,
						int64 *low_id, int *room)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, want->key, want->len, &hash);
	bool ok = k != NULL && k->spilled && !k->filling;

	if (ok)
	{
		k->want = false;
		k->filling = true;
		k->cut = JQ_POS_ALL;
		k->fill_from = k->frontier;
		*from = k->frontier;
		*low_id = k->low_id;
		*room = (int) Max(jq_key_max_waiters(), k->nwaiting + 1) -
				(int) k->nwaiting;
	}
	LWLockRelease(jq_key_partition(hash));
	return ok;
}

void
jq_keylock_refill_read(Oid db, const JqKeyWant *want, JqPos upto,
					   const int *lanes, int n)
{
	int i;
	uint32 hash;
	JqKey *k = jq_key_find(db, want->key, want->len, &hash);

	if (k != NULL && k->filling)
	{
		k->frontier = jq_pos_min(upto, k->cut);
		k->brought = n;
		for (i = 0; i < n; i++)
			count_spilled(k, lanes[i], -1);
		/* entries before the new frontier may stand in their lanes already */
		k->pusher = jq_my_procno();
		k->pusher_pid = MyProcPid;
		jq_key_note_pushed(&k->tag, hash);
	}
	LWLockRelease(jq_key_partition(hash));
}

void
jq_keylock_was_known(Oid db, const JqKeyWant *want, int lane)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, want->key, want->len, &hash);

	if (k != NULL && k->filling)
		count_spilled(k, lane, 1);
	LWLockRelease(jq_key_partition(hash));
}

void
jq_keylock_refill_end(Oid db, const JqKeyWant *want, int in_vain)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, want->key, want->len, &hash);

	if (k != NULL && k->filling)
	{
		k->filling = false;
		k->brought = Max(k->brought - in_vain, 0);
		if (jq_pos_is_all(k->frontier))
			set_unspilled(k);
	}
	LWLockRelease(jq_key_partition(hash));
	/* all that was read may have run by now: asks for more if need be */
	jq_keylock_release(db, want->key, want->len);
}

#define WANTING_AT_ONCE 64

JqKeyWant *
jq_keylock_wanting(Oid db, int *n)
{
	JqKeyWant *list = palloc(WANTING_AT_ONCE * sizeof(JqKeyWant));
	HASH_SEQ_STATUS seq;
	JqKey *k;

	*n = 0;
	if (pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return list;
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->tag.db != db || !k->want)
			continue;
		list[*n].len = (int) k->tag.len;
		memcpy(list[*n].key, k->tag.text, sizeof(list[*n].key));
		if (++*n == WANTING_AT_ONCE)
		{
			hash_seq_term(&seq);
			break;
		}
	}
	jq_key_unlock_all();
	return list;
}

/* a change of all spilled keys of a database */
static void
for_spilled(Oid db, void (*change)(JqKey *k))
{
	HASH_SEQ_STATUS seq;
	JqKey *k;

	if (pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return;
	jq_key_lock_all(LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
		if (k->tag.db == db && k->spilled)
		{
			change(k);
			jq_key_remove_if_unused(k, jq_key_hash_of(&k->tag));
		}
	jq_key_unlock_all();
}

static void
abandon(JqKey *k)
{
	if (!k->filling)
		return; /* what it wants has been asked for */
	k->frontier = jq_pos_min(k->frontier, k->fill_from);
	k->cut = jq_pos_min(k->cut, k->frontier);
	k->filling = false;
	k->want = true;
	jq_key_spill_waiters(k);
}

void
jq_keylock_refill_abandon(Oid db)
{
	for_spilled(db, abandon);
}

#define PURGE_AT_ONCE 16

void
jq_keylock_purge(Oid db)
{
	JqKeyTag tags[PURGE_AT_ONCE];
	/* for all that can wait now; workers may park some again meanwhile */
	int rounds = jq_shared->nentries / PURGE_AT_ONCE + 1;
	int n;

	for_spilled(db, set_unspilled);
	/* who waits goes back into his lane, which is cleared next */
	do
	{
		HASH_SEQ_STATUS seq;
		JqKey *k;
		int i;

		n = 0;
		jq_key_lock_all(LW_SHARED);
		hash_seq_init(&seq, jq_keys);
		while ((k = hash_seq_search(&seq)) != NULL)
		{
			if (k->tag.db != db || k->first == JQ_NIL || k->pusher >= 0)
				continue;
			tags[n++] = k->tag;
			if (n == PURGE_AT_ONCE)
			{
				hash_seq_term(&seq);
				break;
			}
		}
		jq_key_unlock_all();
		for (i = 0; i < n; i++)
			jq_key_let_all_go(&tags[i]);
	} while (n == PURGE_AT_ONCE && --rounds > 0);
	jq_keylock_wake();
}

static void
forget(JqKey *k)
{
	k->frontier = k->cut = k->fill_from = JQ_POS_NOTHING;
	k->low_id = PG_INT64_MIN;
	k->want = true;
	/* the lanes are read anew, and count them on the way */
	k->nlanes = 0;
	jq_key_spill_waiters(k);
}

static void
look_again(JqKey *k)
{
	if (k->nholders == 0)
		(void) jq_key_wants_refill(k);
}

void
jq_keylock_look_again(Oid db)
{
	for_spilled(db, look_again);
}

void
jq_keylock_forget(Oid db)
{
	for_spilled(db, forget);
}

void
jq_keylock_count_spilled(Oid db, int64 *per_lane)
{
	HASH_SEQ_STATUS seq;
	JqKey *k;
	int i;

	if (pg_atomic_read_u32(&jq_shared->spilled_keys) == 0)
		return;
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
		for (i = 0; k->tag.db == db && k->spilled && i < k->nlanes; i++)
			if (jq_lanes[k->lanes[i]].db == db) /* it may be another's by now */
				per_lane[k->lanes[i]] += k->counts[i];
	jq_key_unlock_all();
}
