/*
 * keyrate.c
 *		Token buckets of (queue, key).
 *
 * A bucket is one number: the moment at which it will be full.  Taking a token
 * moves that moment by the time that one token takes to come, and a token is
 * there if the moment is not further away than all tokens but one take.  A
 * bucket that is full need not be remembered, so a cell whose moment has come is
 * free.
 *
 * At the start of the server, which nobody remembers anything before, all
 * buckets are empty: what is not remembered counts as full only after the time
 * that filling it takes.
 *
 * Cells stand in sets; the key's partition, and a digest of database, queue and
 * key with a seed of this server's life, choose one.  Two keys of one digest would
 * share a bucket, and so be slower than they might.  If all cells of the set are
 * in use, the jobs of the key wait until one of them is free: no limit is broken
 * for want of memory.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "guc.h"
#include "keyrate.h"
#include "shmem.h"
#include "storage/shmem.h"

#define SET_CELLS 16

typedef struct Cell
{
	uint64 digest;
	TimestampTz full_at; /* free when that is over */
} Cell;

/* lock: that of the key partition; sets go to the partitions in turn */
typedef struct KeyRates
{
	uint64 seed;
	uint32 nsets; /* of a partition */
	Cell cells[FLEXIBLE_ARRAY_MEMBER];
} KeyRates;

static KeyRates *rates;

/* twice the jobs that memory has room for: keys outlive them */
static uint32
sets_of_partition(void)
{
	return Max(2 * jobqueue_max_ready_jobs / JQ_KEY_PARTITIONS / SET_CELLS, 4);
}

Size
jq_keyrate_size(void)
{
	return add_size(offsetof(KeyRates, cells),
					mul_size(sizeof(Cell) * SET_CELLS * JQ_KEY_PARTITIONS,
							 sets_of_partition()));
}

void
jq_keyrate_init(void)
{
	bool found;

	rates = ShmemInitStruct("jobqueue key rates", jq_keyrate_size(), &found);
	if (found)
		return;
	memset(rates, 0, jq_keyrate_size());
	rates->nsets = sets_of_partition();
	rates->seed = pg_prng_uint64(&pg_global_prng_state);
}

void
jq_keyrate_bucket(JqKeyBucket *b, uint32 partition, Oid db, const char *queue,
				  const char *key, int len, int32 rate, int64 per_us)
{
	uint64 seed = hash_combine64(rates->seed, db);

	seed =
		hash_bytes_extended((const unsigned char *) queue, strlen(queue), seed);
	b->partition = partition;
	b->digest = hash_bytes_extended((const unsigned char *) key, len, seed);
	b->size = rate;
	/* rounded up: rather slower than faster */
	b->interval = (per_us + rate - 1) / rate;
}

static Cell *
set_of(const JqKeyBucket *b)
{
	return &rates->cells[((uint64) b->partition * rates->nsets +
						  b->digest % rates->nsets) *
						 SET_CELLS];
}

/* the bucket's cell, or a free one; NULL: no room before *free_at */
static Cell *
cell_of(const JqKeyBucket *b, TimestampTz now, TimestampTz *free_at)
{
	Cell *set = set_of(b);
	Cell *free = NULL;
	int i;

	*free_at = DT_NOEND;
	for (i = 0; i < SET_CELLS; i++)
	{
		if (set[i].full_at > now && set[i].digest == b->digest)
			return &set[i];
		if (set[i].full_at <= now)
			free = &set[i];
		else
			*free_at = Min(*free_at, set[i].full_at);
	}
	return free;
}

/* when will it be full, seen from now */
static TimestampTz
full_at(const JqKeyBucket *b, Cell *c, TimestampTz now)
{
	TimestampTz at = jq_shared->start_time + b->size * b->interval;
	TimestampTz empty = now + b->size * b->interval;

	if (c->full_at > now)
	{
		/*
		 * It cannot lack more than all; the clock, or the rate, has changed.
		 * From now on it fills, so this moment has to be remembered.
		 */
		if (c->full_at > empty)
			c->full_at = empty;
		at = c->full_at;
	}
	at = Min(at, empty);
	return Max(at, now);
}

TimestampTz
jq_keyrate_next(const JqKeyBucket *b, TimestampTz now)
{
	TimestampTz free_at;
	Cell *c = cell_of(b, now, &free_at);

	if (c == NULL)
		return free_at;
	return full_at(b, c, now) - (b->size - 1) * b->interval;
}

void
jq_keyrate_take(const JqKeyBucket *b, TimestampTz now)
{
	TimestampTz free_at;
	Cell *c = cell_of(b, now, &free_at);

	Assert(c != NULL);
	Assert(jq_keyrate_next(b, now) <= now);
	c->full_at = full_at(b, c, now) + b->interval;
	c->digest = b->digest;
}

void
jq_keyrate_give_back(const JqKeyBucket *b, int64 interval)
{
	Cell *set = set_of(b);
	Cell *c = NULL;
	int i;

	/* of several only the latest may be more than a free cell */
	for (i = 0; i < SET_CELLS; i++)
		if (set[i].digest == b->digest &&
			(c == NULL || c->full_at < set[i].full_at))
			c = &set[i];
	if (c != NULL)
		c->full_at -= Min(b->interval, interval);
}
