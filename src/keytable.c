/*
 * keytable.c
 *		The table of keys: its entries, and the holders of each.
 *
 * The first holder is part of the key; more are elements of the pool.  Where the
 * pool has none, the key has as many holders as it has: each that goes lets the
 * next one look.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "compat.h"
#include "fetched.h"
#include "guc.h"
#include "keytable.h"
#include "keywait.h"
#include "keywake.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

HTAB *jq_keys;

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

/* held keys: workers, sessions, consumers; waited for: see jq_keylock_release */
long
jq_key_max(void)
{
	return 4 * MaxBackends + (4 + JQ_BATCH_MAX) * max_worker_processes + 1024 +
		   jq_fetched_max_keys() + jobqueue_max_ready_jobs / 16;
}

Size
jq_keylock_size(void)
{
	Size size = hash_estimate_size(jq_key_max(), sizeof(JqKey));

	size = add_size(size, jq_keyrate_size());
	size = add_size(size, jq_keywake_size());
	return add_size(size, jq_keywait_size());
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
	jq_keys = ShmemInitHash("jobqueue keys", jq_key_max(), jq_key_max(), &info,
							HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								HASH_PARTITION);
	jq_keyrate_init();
	jq_keywake_init();
	jq_keywait_init();
}

void
jq_key_make_tag(JqKeyTag *tag, Oid db, const char *key, int len)
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

bool
jq_keylock_crowded(void)
{
	return hash_get_num_entries(jq_keys) > jq_key_max() / 2;
}

/* sessions leave a quarter to the keys of jobs, and consumers what they have */
static long
max_session_keys(void)
{
	return (jq_key_max() - jq_fetched_max_keys()) / 4 * 3;
}

bool
jq_keylock_reserved(void)
{
	return hash_get_num_entries(jq_keys) > max_session_keys();
}

int
jq_keylock_quota(void)
{
	return (int) (max_session_keys() / 2);
}

JqKey *
jq_key_enter(const JqKeyTag *tag, uint32 hash)
{
	bool found;
	JqKey *k = hash_search_with_hash_value(jq_keys, tag, hash, HASH_ENTER_NULL,
										   &found);

	if (k != NULL && !found)
	{
		memset((char *) k + sizeof(JqKeyTag), 0,
			   sizeof(JqKey) - sizeof(JqKeyTag));
		k->pusher = -1;
		k->first_session = -1;
		k->first = k->last = k->more_orders = JQ_NIL;
		k->one_lane = true;
		k->cut = JQ_POS_ALL;
	}
	return k;
}

JqKey *
jq_key_find(Oid db, const char *key, int len, uint32 *hash)
{
	JqKeyTag tag;

	jq_key_make_tag(&tag, db, key, len);
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

void
jq_key_remove_if_unused(JqKey *k, uint32 hash)
{
	if (k->nholders > 0 || k->pusher >= 0 || k->first != JQ_NIL ||
		k->norders > 0 || k->spilled || k->first_session >= 0 ||
		k->unparked_until != 0)
		return;
	jq_key_wake_cancel(k, hash);
	hash_search_with_hash_value(jq_keys, &k->tag, hash, HASH_REMOVE, NULL);
}

#ifdef USE_ASSERT_CHECKING
void
jq_key_check(const JqKey *k)
{
	const JqHolder *h = &k->holder;
	uint32 waiting = 0;
	uint32 last = JQ_NIL;
	uint32 ix;
	int32 limit = PG_INT32_MAX;
	int i;

	for (i = 0; i < k->nholders; i++)
	{
		limit = Min(limit, h->limit);
		Assert((h->next == JQ_NIL) == (i == k->nholders - 1));
		if (h->next != JQ_NIL)
			h = JQ_HOLDER(h->next);
	}
	Assert(k->nholders == 0 || (limit == k->limit && limit > 0));
	for (ix = k->more_orders, i = KEY_ORDERS; ix != JQ_NIL;
		 ix = JQ_ORDER(ix)->next)
		i++;
	Assert(k->norders >= 0 &&
		   (k->norders <= KEY_ORDERS ? k->more_orders == JQ_NIL :
									   k->norders == i));
	for (ix = k->first; ix != JQ_NIL; ix = JQ_ENTRY(ix)->next[0])
	{
		/* a job whose row has moved may be there once for each lane */
		Assert(last == JQ_NIL ||
			   jq_pos_cmp(JQ_ENTRY_POS(last), JQ_ENTRY_POS(ix)) < 0 ||
			   (jq_pos_cmp(JQ_ENTRY_POS(last), JQ_ENTRY_POS(ix)) == 0 &&
				JQ_ENTRY(last)->lane != JQ_ENTRY(ix)->lane));
		last = ix;
		waiting++;
	}
	Assert(last == k->last && waiting == k->nwaiting);
}
#endif

/* ---------------------------------------------------------------- holders */

static JqHolder *
next_holder(const JqHolder *h)
{
	return h->next == JQ_NIL ? NULL : JQ_HOLDER(h->next);
}

const JqHolder *
jq_key_my_holder(const JqKey *k)
{
	const JqHolder *h = k->nholders > 0 ? &k->holder : NULL;

	for (; h != NULL; h = next_holder(h))
		if (h->procno == jq_my_procno() && h->pid == MyProcPid)
			return h;
	return NULL;
}

bool
jq_key_add_holder(JqKey *k, const JqHolder *h)
{
	uint32 next = JQ_NIL;

	if (k->nholders > 0)
	{
		next = jq_pool_take();
		if (next == JQ_NIL)
			return false;
		*JQ_HOLDER(next) = k->holder;
	}
	k->holder = *h;
	k->holder.next = next;
	k->limit = k->nholders == 0 ? h->limit : Min(k->limit, h->limit);
	k->nholders++;
	k->session_turn = k->unparked_until = 0;
	return true;
}

void
jq_key_set_holder(JqHolder *h, int claim_pid, int64 job, int lane, int32 limit)
{
	h->procno = claim_pid >= 0 ? JQ_CLAIM_HOLDS : jq_my_procno();
	h->pid = claim_pid >= 0 ? claim_pid : MyProcPid;
	h->job = job;
	h->since = GetCurrentTimestamp();
	h->limit = limit;
	h->lane = lane;
	h->next = JQ_NIL;
	h->ending = 0;
}

void
jq_key_set_limit(JqKey *k)
{
	const JqHolder *h = k->nholders > 0 ? &k->holder : NULL;

	k->limit = PG_INT32_MAX;
	for (; h != NULL; h = next_holder(h))
		k->limit = Min(k->limit, h->limit);
}

static bool
is_mine(const JqHolder *h, const JqMyKey *my)
{
	if (my->of_claim)
		return h->procno == JQ_CLAIM_HOLDS && h->job == my->job;
	return h->procno == jq_my_procno() && h->pid == MyProcPid;
}

bool
jq_key_remove_holder(JqKey *k, const JqMyKey *my)
{
	JqHolder *next_h = k->nholders > 0 ? &k->holder : NULL;
	JqHolder *h = NULL;
	uint32 *next_link = NULL;
	uint32 *link = NULL; /* to h */

	/* the first of them to come, which stands last: a job that has been given
	 * back may be claimed once more, before its old claim has let the key go */
	while (next_h != NULL)
	{
		if (is_mine(next_h, my))
		{
			h = next_h;
			link = next_link;
		}
		next_link = &next_h->next;
		next_h = next_h->next == JQ_NIL ? NULL : JQ_HOLDER(next_h->next);
	}
	if (h == NULL)
		return false;
	if (h->next != JQ_NIL)
	{
		/* the next one takes its place */
		uint32 next = h->next;

		/* no place of the pool is at NULL
		 * NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
		*h = *JQ_HOLDER(next);
		jq_pool_give_back(next);
	}
	else if (link != NULL)
	{
		jq_pool_give_back(*link);
		*link = JQ_NIL;
	}
	k->nholders--;
	jq_key_set_limit(k);
	return true;
}

void
jq_keylock_ending(Oid db, const char *key, int len, int64 job, bool ending)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, key, len, &hash);
	JqMyKey my;

	my.of_claim = job != 0;
	my.job = job;
	/* it has one holder, or none, or it is not this one's any more */
	if (k != NULL && k->nholders > 0 && is_mine(&k->holder, &my))
		k->holder.ending = ending ? GetCurrentTimestamp() : 0;
	LWLockRelease(jq_key_partition(hash));
}

void
jq_key_renew_limits(JqKey *k, uint32 hash)
{
	JqHolder *h = k->nholders > 0 ? &k->holder : NULL;
	JqKeyRules r;

	for (; h != NULL; h = next_holder(h))
		/* the lane stays what it is while a job of it is claimed */
		if (h->lane >= 0)
		{
			jq_key_rules(k, hash, h->lane, &r);
			h->limit = r.limit;
		}
	jq_key_set_limit(k);
}
