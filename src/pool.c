/*
 * pool.c
 *		The pool of entries.
 *
 * Free elements form a stack.  Its head carries a counter beside the index, so
 * that a compare-and-swap notices when the head went away and came back.  The
 * next pointer of an element that somebody else has just taken may be read
 * here; the swap then fails and the value is not used.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "guc.h"
#include "pool.h"
#include "storage/shmem.h"

JqElement *jq_pool;

StaticAssertDecl(sizeof(JqElement) == 96, "pool element has an odd size");
StaticAssertDecl(JQ_KEY_INLINE + 3 * JQ_KEY_MORE >= JQ_KEY_MAX,
				 "longest key needs too many elements");

Size
jq_pool_size(void)
{
	return mul_size(jobqueue_max_ready_jobs, sizeof(JqElement));
}

void
jq_pool_init(void)
{
	bool found;
	int i;
	int n = jobqueue_max_ready_jobs;

	jq_pool = ShmemInitStruct("jobqueue pool", jq_pool_size(), &found);
	if (found)
		return;
	for (i = 0; i < n; i++)
		jq_pool[i].next_free = i + 1 < n ? (uint32) i + 1 : JQ_NIL;
	jq_shared->nentries = n;
	pg_atomic_init_u64(&jq_shared->pool_head, 0);
	pg_atomic_init_u32(&jq_shared->pool_nfree, n);
}

static uint32
pool_pop(void)
{
	uint64 old = pg_atomic_read_u64(&jq_shared->pool_head);

	for (;;)
	{
		uint32 ix = (uint32) old;
		uint64 new;

		if (ix == JQ_NIL)
			return JQ_NIL;
		new = ((old >> 32) + 1) << 32 |
			  *(volatile uint32 *) &jq_pool[ix].next_free;
		if (pg_atomic_compare_exchange_u64(&jq_shared->pool_head, &old, new))
		{
			pg_atomic_fetch_sub_u32(&jq_shared->pool_nfree, 1);
			return ix;
		}
	}
}

static void
pool_push(uint32 ix)
{
	uint64 old = pg_atomic_read_u64(&jq_shared->pool_head);

	for (;;)
	{
		uint64 new = ((old >> 32) + 1) << 32 | ix;

		jq_pool[ix].next_free = (uint32) old;
		pg_write_barrier();
		if (pg_atomic_compare_exchange_u64(&jq_shared->pool_head, &old, new))
		{
			pg_atomic_fetch_add_u32(&jq_shared->pool_nfree, 1);
			return;
		}
	}
}

uint32
jq_pool_take(void)
{
	return pool_pop();
}

void
jq_pool_give_back(uint32 ix)
{
	pool_push(ix);
}

uint32
jq_entry_new(const JqItem *item, int lane)
{
	uint32 ix = pool_pop();
	JqEntry *e;
	uint32 bits;
	uint32 *link;
	int done;

	Assert(item->keylen == 0 || item->key != NULL);
	if (ix == JQ_NIL)
		return JQ_NIL;
	e = JQ_ENTRY(ix);
	e->id = item->id;
	e->priority = item->priority;
	e->tid = item->tid;
	e->lane = lane;
	e->flags = item->flags;
	e->keylen = item->keylen;
	e->more = JQ_NIL;
	e->next[0] = JQ_NIL;
	/* one in four entries stands on the second level, and so on */
	bits = pg_prng_uint32(&pg_global_prng_state);
	for (e->level = 1; e->level < JQ_LEVELS && (bits & 3) == 0; bits >>= 2)
		e->level++;

	done = Min(item->keylen, JQ_KEY_INLINE);
	memcpy(e->key, item->key ? item->key : "", done);
	link = &e->more;
	while (done < item->keylen)
	{
		uint32 m = pool_pop();
		int len = Min(item->keylen - done, JQ_KEY_MORE);

		if (m == JQ_NIL)
		{
			jq_entry_free(ix);
			return JQ_NIL;
		}
		jq_pool[m].more.more = JQ_NIL;
		memcpy(jq_pool[m].more.text, item->key + done, len);
		*link = m;
		link = &jq_pool[m].more.more;
		done += len;
	}
	return ix;
}

void
jq_entry_free(uint32 ix)
{
	uint32 m = JQ_ENTRY(ix)->more;

	while (m != JQ_NIL)
	{
		uint32 next = jq_pool[m].more.more;

		pool_push(m);
		m = next;
	}
	pool_push(ix);
}

int
jq_entry_key(uint32 ix, char *buf)
{
	JqEntry *e = JQ_ENTRY(ix);
	int done = Min(e->keylen, JQ_KEY_INLINE);
	uint32 m = e->more;

	memcpy(buf, e->key, done);
	while (done < e->keylen && m != JQ_NIL)
	{
		int len = Min(e->keylen - done, JQ_KEY_MORE);

		memcpy(buf + done, jq_pool[m].more.text, len);
		done += len;
		m = jq_pool[m].more.more;
	}
	buf[done] = '\0';
	return done;
}
