/*
 * keylock.c
 *		The key table: who holds a key, who waits for it.
 *
 * A partitioned hash of keys that are held or waited for.  States of a key:
 *
 *		absent -> held		: jq_keylock_take
 *		held   -> absent	: jq_keylock_release, nobody waits
 *		held   -> free		: jq_keylock_release, some still wait: the first of
 *							  each lane has gone back into its lane and takes
 *							  the key when its turn comes there
 *		free   -> held		: jq_keylock_take, by whoever comes first
 *		free   -> absent	: the last waiter is forgotten
 *
 * In "free" each lane that has waiters here also has one entry in its order,
 * marked JQ_E_UNPARKED.  If that entry leaves the order without being taken (it
 * is evicted), the waiters of the lane leave with it, so nobody waits for a key
 * that no one will release.
 *
 * Waiters stand in order of (priority, id); keyspill.c tells of those that memory
 * does not keep, and of the scheduler that brings them:
 *
 *		free   -> held		: jq_keylock_refill_read, by the scheduler
 *		held   -> held		: jq_keylock_release while rows are on their way: the
 *							  key goes to the scheduler ("pusher")
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "database.h"
#include "guc.h"
#include "keytable.h"
#include "lane.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

HTAB *jq_keys;

/* keys of this process */
typedef struct JqMyKey
{
	JqKeyTag tag;
	uint32 hash;
} JqMyKey;

static JqMyKey *my_keys;
static int n_my_keys;
static int max_my_keys;

static uint32
tag_hash_text(const void *key, Size keysize)
{
	const JqKeyTag *tag = key;

	(void) keysize;
	return hash_combine(hash_bytes((const unsigned char *) tag->text, tag->len),
						tag->db);
}

uint32
jq_key_hash_of(const JqKeyTag *tag)
{
	return tag_hash_text(tag, 0);
}

static int
tag_match(const void *a, const void *b, Size keysize)
{
	const JqKeyTag *x = a;
	const JqKeyTag *y = b;

	(void) keysize;
	return x->db != y->db || x->len != y->len ||
		   memcmp(x->text, y->text, x->len) != 0;
}

/* held keys: workers and sessions; waited for: see jq_keylock_release */
static long
max_keys(void)
{
	return 4 * MaxBackends + (4 + JQ_BATCH_MAX) * max_worker_processes + 1024 +
		   jobqueue_max_ready_jobs / 16;
}

Size
jq_keylock_size(void)
{
	return hash_estimate_size(max_keys(), sizeof(JqKey));
}

void
jq_keylock_init(void)
{
	HASHCTL info;

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(JqKeyTag);
	info.entrysize = sizeof(JqKey);
	info.hash = tag_hash_text;
	info.match = tag_match;
	info.num_partitions = JQ_KEY_PARTITIONS;
	jq_keys = ShmemInitHash("jobqueue keys", max_keys(), max_keys(), &info,
							HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								HASH_PARTITION);
}

static void
make_tag(JqKeyTag *tag, Oid db, const char *key, int len)
{
	tag->db = db;
	tag->len = len;
	memcpy(tag->text, key, len);
	tag->text[len] = '\0';
}

LWLock *
jq_key_partition(uint32 hash)
{
	return jq_key_lock(hash % JQ_KEY_PARTITIONS);
}

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

void
jq_key_note_mine(const JqKeyTag *tag, uint32 hash)
{
	Assert(n_my_keys < max_my_keys);
	my_keys[n_my_keys].tag = *tag;
	my_keys[n_my_keys].hash = hash;
	n_my_keys++;
}

JqKey *
jq_key_find(Oid db, const char *key, int len, uint32 *hash)
{
	JqKeyTag tag;

	make_tag(&tag, db, key, len);
	*hash = tag_hash_text(&tag, 0);
	LWLockAcquire(jq_key_partition(*hash), LW_EXCLUSIVE);
	return hash_search_with_hash_value(jq_keys, &tag, *hash, HASH_FIND, NULL);
}

void
jq_key_lock_all(LWLockMode mode)
{
	int i;

	for (i = 0; i < JQ_KEY_PARTITIONS; i++)
		LWLockAcquire(jq_key_lock(i), mode);
}

void
jq_key_unlock_all(void)
{
	int i;

	for (i = JQ_KEY_PARTITIONS - 1; i >= 0; i--)
		LWLockRelease(jq_key_lock(i));
}

/* nobody holds it, waits for it, or has rows in the table only */
void
jq_key_remove_if_unused(JqKey *k, uint32 hash)
{
	if (k->procno < 0 && k->first == JQ_NIL && !k->spilled)
		hash_search_with_hash_value(jq_keys, &k->tag, hash, HASH_REMOVE, NULL);
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
	if (*link != JQ_NIL && JQ_ENTRY(*link)->id == e->id &&
		JQ_ENTRY(*link)->lane == e->lane)
	{
		jq_entry_free(ix);
		return false;
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

static JqKey *
enter_key(const JqKeyTag *tag, uint32 hash)
{
	bool found;
	JqKey *k = hash_search_with_hash_value(jq_keys, tag, hash, HASH_ENTER_NULL,
										   &found);

	if (k != NULL && !found)
	{
		memset((char *) k + sizeof(JqKeyTag), 0,
			   sizeof(JqKey) - sizeof(JqKeyTag));
		k->procno = -1;
		k->pusher = -1;
		k->first = k->last = JQ_NIL;
		k->one_lane = true;
		k->cut = JQ_POS_ALL;
	}
	return k;
}

JqKeyResult
jq_keylock_take(Oid db, const char *key, int len, int64 job, uint32 entry,
				bool *ask)
{
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	JqKeyResult result;

	Assert(n_my_keys < max_my_keys);
	make_tag(&tag, db, key, len);
	hash = tag_hash_text(&tag, 0);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	k = enter_key(&tag, hash);
	if (k == NULL)
	{
		/* whoever removes a key from now on wakes us; look once more */
		pg_atomic_write_u32(&jq_shared->keys_full, 1);
		k = enter_key(&tag, hash);
	}
	if (k == NULL)
		result = JQ_KEY_FULL;
	else
	{
		if (entry != JQ_NIL && k->brought > 0)
			k->brought--;
		if (k->procno >= 0 &&
			!(entry == JQ_NIL && k->pusher >= 0 && k->procno == k->pusher))
			result = entry == JQ_NIL ? JQ_KEY_BUSY : wait_for(k, entry);
		else if (entry != JQ_NIL && k->spilled &&
				 jq_pos_cmp(JQ_ENTRY_POS(entry), k->frontier) >= 0)
		{
			/* free, but smaller ones may be in the table */
			bool counted_on = (JQ_ENTRY(entry)->flags & JQ_E_UNPARKED) != 0;

			result = wait_for(k, entry);
			if (counted_on && !k->filling && !k->want)
			{
				/* those of its lane that count on it are larger still */
				jq_key_spill_waiters(k);
				k->want = *ask = true;
			}
			else
				*ask |= jq_key_wants_refill(k);
		}
		else
		{
			result = JQ_KEY_TAKEN;
			k->procno = jq_my_procno();
			k->pid = MyProcPid;
			k->job = job;
			k->since = GetCurrentTimestamp();
			jq_key_note_mine(&tag, hash);
		}
	}
	LWLockRelease(jq_key_partition(hash));
	return result;
}

/*
 * Unlink waiters that are to go back into their lanes: the first of each lane,
 * or (all) everybody.
 */
static uint32
unpark(JqKey *k, bool all)
{
	uint32 chain = JQ_NIL;
	uint32 *end = &chain;
	uint32 *link = &k->first;
	uint32 prev = JQ_NIL;
	int32 seen[16];
	int nseen = 0;

	while (*link != JQ_NIL)
	{
		uint32 ix = *link;
		bool take = true;
		int i;

		for (i = 0; i < nseen && !all; i++)
			if (seen[i] == JQ_ENTRY(ix)->lane)
				take = false;
		if (take)
		{
			if (nseen < (int) lengthof(seen))
				seen[nseen++] = JQ_ENTRY(ix)->lane;
			*link = JQ_ENTRY(ix)->next[0];
			JQ_ENTRY(ix)->next[0] = JQ_NIL;
			if (!all)
				JQ_ENTRY(ix)->flags |= JQ_E_UNPARKED;
			*end = ix;
			end = &JQ_ENTRY(ix)->next[0];
			k->nwaiting--;
		}
		else
		{
			prev = ix;
			link = &JQ_ENTRY(ix)->next[0];
		}
		if (k->one_lane && !all)
		{
			if (*link != JQ_NIL)
				prev = k->last;
			break;
		}
	}
	k->last = prev;
	if (k->first == JQ_NIL)
		k->last = JQ_NIL;
	return chain;
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

/* partition lock held: the key is free; its waiters that may go on now */
static uint32
set_free(JqKey *k, uint32 hash, bool all, bool *ask)
{
	uint32 chain;

	if (k->pusher >= 0 && k->procno != k->pusher)
	{
		/* smaller ones than those in the lanes may be on their way */
		k->procno = k->pusher;
		k->pid = k->pusher_pid;
		k->job = 0;
		return JQ_NIL;
	}
	k->pusher = -1;
	k->procno = -1;
	k->pid = 0;
	k->job = 0;
	chain = unpark(k, all);
	*ask = jq_key_wants_refill(k);
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
 * The key becomes free, and its first waiters are back in their lanes, in one
 * section: else a later job of the lane could take the key in between.  So the
 * locks of the lanes are taken first, in ascending order (the one place where
 * several lane locks are held), and if the waiters have changed meanwhile, once
 * more.  Where there are too many lanes for that, their order is not kept.
 */
static void
release_at(int my)
{
	JqKeyTag tag = my_keys[my].tag;
	uint32 hash = my_keys[my].hash;
	bool all = tag.db == JQ_SUSPECT_DB ||
			   hash_get_num_entries(jq_keys) > max_keys() / 2;
	uint32 chain = JQ_NIL;
	int locked[RELEASE_LANES];
	int nlocked = 0;
	bool done = false;
	bool ask = false;
	JqKey *k;
	int i;

	/* nothing may come between leaving the key and entering the lane */
	HOLD_INTERRUPTS();
	my_keys[my] = my_keys[--n_my_keys];
	while (!done)
	{
		int lanes[RELEASE_LANES];
		int n = 0;

		LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
		k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
		if (k == NULL || k->procno != jq_my_procno() || k->pid != MyProcPid)
			done = true; /* not ours */
		else
		{
			n = lanes_of_waiters(k, lanes);
			if (n < 0 || is_subset(lanes, n, locked, nlocked))
			{
				chain = set_free(k, hash, all || n < 0, &ask);
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
		ask_refill(tag.db);
	jq_keylock_wake();
	RESUME_INTERRUPTS();
}

void
jq_keylock_release(Oid db, const char *key, int len)
{
	int i;

	for (i = 0; i < n_my_keys; i++)
		if (my_keys[i].tag.db == db && my_keys[i].tag.len == (uint32) len &&
			memcmp(my_keys[i].tag.text, key, len) == 0)
		{
			release_at(i);
			return;
		}
}

void
jq_keylock_release_all(void)
{
	while (n_my_keys > 0)
		release_at(n_my_keys - 1);
}

/* this process, a scheduler, will not publish what it has read */
void
jq_keylock_push_no_more(void)
{
	HASH_SEQ_STATUS seq;
	JqKey *k;

	jq_key_lock_all(LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
		if (k->pusher == jq_my_procno() && k->pusher_pid == MyProcPid &&
			k->procno != k->pusher)
			k->pusher = -1;
	jq_key_unlock_all();
}

bool
jq_keylock_mine(Oid db, const char *key, int len)
{
	int i;

	for (i = 0; i < n_my_keys; i++)
		if (my_keys[i].tag.db == db && my_keys[i].tag.len == (uint32) len &&
			memcmp(my_keys[i].tag.text, key, len) == 0)
			return true;
	return false;
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
	make_tag(&tag, db, key, len);
	hash = tag_hash_text(&tag, 0);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	if (k != NULL && k->procno < 0)
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

int64
jq_keylock_job(Oid db, const char *key, int len)
{
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	int64 job = 0;

	make_tag(&tag, db, key, len);
	hash = tag_hash_text(&tag, 0);
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	if (k != NULL && k->procno >= 0)
		job = k->job;
	LWLockRelease(jq_key_partition(hash));
	return job;
}

JqKeyInfo *
jq_keylock_list(Oid db, int *n)
{
	JqKeyInfo *list =
		palloc_extended(max_keys() * sizeof(JqKeyInfo), MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS seq;
	JqKey *k;

	*n = 0;
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->tag.db != db || *n >= max_keys())
			continue;
		if (k->tag.text[0] == '\0')
			continue; /* not a key of a job; see conflict.c */
		memcpy(list[*n].key, k->tag.text, sizeof(list[*n].key));
		list[*n].pid = k->procno >= 0 ? k->pid : 0;
		list[*n].job = k->job;
		list[*n].since = k->since;
		list[*n].waiting =
			k->nwaiting + (k->spilled ? jq_key_spilled_rows(k) : 0);
		list[*n].spilled = k->spilled;
		list[*n].frontier = k->frontier;
		(*n)++;
	}
	jq_key_unlock_all();
	return list;
}

int64 *
jq_keylock_parked(Oid db, int *n)
{
	int64 *ids = palloc_extended(mul_size(jq_shared->nentries, sizeof(int64)),
								 MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS seq;
	JqKey *k;

	*n = 0;
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		uint32 ix;

		if (k->tag.db != db && k->tag.db != JQ_SUSPECT_DB)
			continue;
		for (ix = k->first; ix != JQ_NIL && *n < jq_shared->nentries;
			 ix = JQ_ENTRY(ix)->next[0])
			if (jq_lanes[JQ_ENTRY(ix)->lane].db == db)
				ids[(*n)++] = JQ_ENTRY(ix)->id;
	}
	jq_key_unlock_all();
	return ids;
}
