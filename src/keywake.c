/*
 * keywake.c
 *		Moments at which a key is to be looked at again.
 *
 * A key that nobody can have before a moment, for want of a token or because a
 * job that failed keeps its order, stands in a heap of its partition by that
 * moment.  The first moment of each heap can be read without a lock; the launcher
 * sleeps until the first of all.  Whoever brings a sooner one wakes it after his
 * locks are released.
 */
#include "postgres.h"

#include "keywake.h"
#include "lib/pairingheap.h"
#include "slot.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define AT_ONCE 32 /* keys looked at for one hold of the lock */

typedef struct Heap
{
	pairingheap_node *root; /* the partition's lock */
	pg_atomic_uint64 first; /* TimestampTz; DT_NOEND = empty */
} Heap;

static Heap *heaps;

/* the launcher is to be told */
static bool tell;

Size
jq_keywake_size(void)
{
	return JQ_KEY_PARTITIONS * sizeof(Heap);
}

void
jq_keywake_init(void)
{
	bool found;
	int i;

	heaps = ShmemInitStruct("jobqueue key moments", jq_keywake_size(), &found);
	if (found)
		return;
	for (i = 0; i < JQ_KEY_PARTITIONS; i++)
	{
		heaps[i].root = NULL;
		pg_atomic_init_u64(&heaps[i].first, (uint64) DT_NOEND);
	}
}

static int
compare(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz x = pairingheap_const_container(JqKey, wake_node, a)->wake_at;
	TimestampTz y = pairingheap_const_container(JqKey, wake_node, b)->wake_at;

	(void) arg;
	/* the smallest is to come first */
	return x < y ? 1 : x > y ? -1 : 0;
}

/* a function's address has no place in shared memory */
static void
open_heap(pairingheap *h, const Heap *shared)
{
	h->ph_compare = compare;
	h->ph_arg = NULL;
	h->ph_root = shared->root;
}

static void
close_heap(pairingheap *h, Heap *shared)
{
	TimestampTz first = DT_NOEND;

	shared->root = h->ph_root;
	if (h->ph_root != NULL)
		first = pairingheap_container(JqKey, wake_node, h->ph_root)->wake_at;
	pg_atomic_write_u64(&shared->first, (uint64) first);
}

void
jq_key_wake_by(JqKey *k, uint32 hash, TimestampTz when)
{
	Heap *shared = &heaps[hash % JQ_KEY_PARTITIONS];
	pairingheap h;

	if (when == DT_NOEND || (k->wake_at != 0 && k->wake_at <= when))
		return;
	open_heap(&h, shared);
	if (k->wake_at != 0)
		pairingheap_remove(&h, &k->wake_node);
	k->wake_at = when;
	pairingheap_add(&h, &k->wake_node);
	if (h.ph_root == &k->wake_node)
		tell = true;
	close_heap(&h, shared);
}

void
jq_key_wake_cancel(JqKey *k, uint32 hash)
{
	Heap *shared = &heaps[hash % JQ_KEY_PARTITIONS];
	pairingheap h;

	if (k->wake_at == 0)
		return;
	open_heap(&h, shared);
	pairingheap_remove(&h, &k->wake_node);
	k->wake_at = 0;
	close_heap(&h, shared);
}

void
jq_key_wake_tell(void)
{
	if (!tell)
		return;
	tell = false;
	jq_launcher_wake();
}

/* take what is due out of the heap; returns how many tags */
static int
take_due(int partition, TimestampTz now, JqKeyTag *tags)
{
	Heap *shared = &heaps[partition];
	pairingheap h;
	int n = 0;

	LWLockAcquire(jq_key_lock(partition), LW_EXCLUSIVE);
	open_heap(&h, shared);
	while (h.ph_root != NULL && n < AT_ONCE)
	{
		JqKey *k = pairingheap_container(JqKey, wake_node, h.ph_root);

		if (k->wake_at > now)
			break;
		(void) pairingheap_remove_first(&h);
		k->wake_at = 0;
		tags[n++] = k->tag;
	}
	close_heap(&h, shared);
	LWLockRelease(jq_key_lock(partition));
	return n;
}

void
jq_keylock_look_due(TimestampTz *next)
{
	static JqKeyTag tags[AT_ONCE];
	TimestampTz now = GetCurrentTimestamp();
	int i;

	for (i = 0; i < JQ_KEY_PARTITIONS; i++)
	{
		while ((TimestampTz) pg_atomic_read_u64(&heaps[i].first) <= now)
		{
			int n = take_due(i, now, tags);
			int j;

			for (j = 0; j < n; j++)
				jq_key_advance(&tags[j]);
		}
		*next = Min(*next, (TimestampTz) pg_atomic_read_u64(&heaps[i].first));
	}
}
