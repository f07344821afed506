/*
 * after.c
 *		Filter and requests for jobs that others wait for; see after.h.
 *
 * There are filters for a few databases; one is given to a database when the
 * first id is noted, and taken back when a look at all rows finds none that
 * waits.
 */
#include "postgres.h"

#include "after.h"
#include "database.h"
#include "guc.h"
#include "storage/shmem.h"

#define NFILTERS 8
#define FILTER_BITS 19 /* 64 kB */
#define FILTER_WORDS ((1 << FILTER_BITS) / 32)
#define NHASHES 4
#define NEAR 64 /* ids between two ranges that may as well be one */

typedef struct Filter
{
	/* JQ_LOCK_AFTER; read without it */
	Oid db;
	int current;   /* which half is looked at */
	bool building; /* the other half will be */
	/* under JQ_LOCK_AFTER; full with what the database may have besides */
	int nended;
	int64 ended[JQ_AFTER_ENDED - JQ_AFTER_ANY_ENDED];
	pg_atomic_uint32 bits[2][FILTER_WORDS];
} Filter;

JqAfterDb *jq_after_dbs;
static Filter *filters;

Size
jq_after_size(void)
{
	return add_size(MAXALIGN(
						mul_size(jobqueue_max_databases, sizeof(JqAfterDb))),
					MAXALIGN(mul_size(NFILTERS, sizeof(Filter))));
}

static void
clear(pg_atomic_uint32 *bits)
{
	int i;

	for (i = 0; i < FILTER_WORDS; i++)
		pg_atomic_write_u32(&bits[i], 0);
}

void
jq_after_init(void)
{
	bool found;
	int i;

	jq_after_dbs =
		ShmemInitStruct("jobqueue awaited databases",
						mul_size(jq_shared->ndbs, sizeof(JqAfterDb)), &found);
	filters = ShmemInitStruct("jobqueue awaited jobs",
							  mul_size(NFILTERS, sizeof(Filter)), &found);
	if (found)
		return;
	memset(jq_after_dbs, 0, jq_shared->ndbs * sizeof(JqAfterDb));
	for (i = 0; i < jq_shared->ndbs; i++)
		jq_after_dbs[i].filter = JQ_AFTER_NOBODY;
	for (i = 0; i < NFILTERS; i++)
	{
		filters[i].db = InvalidOid;
		filters[i].current = 0;
		filters[i].building = false;
		filters[i].nended = 0;
		clear(filters[i].bits[0]);
		clear(filters[i].bits[1]);
	}
}

/* the bits of an id: parts of a product of which all bits are mixed */
static uint32
bit_of(int64 id, int i)
{
	uint64 v = (uint64) id;

	v ^= v >> 32;
	v *= UINT64CONST(0x9E3779B97F4A7C15);
	v ^= v >> 29;
	v *= UINT64CONST(0xBF58476D1CE4E5B9);
	v ^= v >> 32;
	/* double hashing */
	return ((uint32) v + (uint32) i * ((uint32) (v >> 32) | 1)) &
		   ((1 << FILTER_BITS) - 1);
}

/*
 * Reads without a lock, and may be stopped for any time meanwhile.  Then what it
 * looks at may no longer be current, and bits be missing.  That is harmless:
 *
 *		half not current any more	who sets bits now sees that the job has ended
 *		half cleared				a rebuild has begun: the look at all rows that
 *									follows sees it, whatever waits for the job
 *		filter taken back			such a look has found no row that waits; one
 *									that has come since is still to be looked at
 *
 * as all of them came after the choice, and so after the commit.
 */
bool
jq_after_maybe(int dbix, int64 id)
{
	int which = *(volatile int *) &jq_after_dbs[dbix].filter;
	Filter *f;
	pg_atomic_uint32 *bits;
	int i;

	if (which == JQ_AFTER_NOBODY)
		return false;
	if (which == JQ_AFTER_ANY)
		return true;
	f = &filters[which];
	bits = f->bits[*(volatile int *) &f->current];
	for (i = 0; i < NHASHES; i++)
	{
		uint32 bit = bit_of(id, i);

		if (!(pg_atomic_read_u32(&bits[bit / 32]) & (1U << (bit % 32))))
			return false;
	}
	return true;
}

/* JQ_LOCK_AFTER held: the database's filter, or NULL */
static Filter *
filter_of(int dbix)
{
	int which = jq_after_dbs[dbix].filter;

	return which >= 0 ? &filters[which] : NULL;
}

void
jq_after_push_ended(int dbix, int64 id)
{
	JqAfterDb *d = &jq_after_dbs[dbix];
	Filter *f;
	bool room = true;

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	f = filter_of(dbix);
	if (d->nended < JQ_AFTER_ANY_ENDED)
		d->ended[d->nended++] = id;
	else if (f != NULL && f->nended < lengthof(f->ended))
		f->ended[f->nended++] = id;
	else
		room = false;
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
	jq_db_request(dbix, room ? JQ_REQ_AFTER : JQ_REQ_AFTER_ALL);
}

void
jq_after_add_range(JqAfterRange *ranges, int *n, int64 first, int64 last)
{
	JqAfterRange *best = NULL;
	uint64 best_growth = 0;
	int i;

	for (i = 0; i < *n; i++)
	{
		JqAfterRange *r = &ranges[i];
		uint64 growth =
			(first < r->first ? (uint64) r->first - (uint64) first : 0) +
			(last > r->last ? (uint64) last - (uint64) r->last : 0);

		if (best == NULL || growth < best_growth)
		{
			best = r;
			best_growth = growth;
		}
	}
	if (best != NULL && (*n == JQ_AFTER_RANGES ||
						 (uint64) last - (uint64) first + NEAR >= best_growth))
	{
		best->first = Min(best->first, first);
		best->last = Max(best->last, last);
		return;
	}
	ranges[*n].first = first;
	ranges[*n].last = last;
	(*n)++;
}

static void
add_range(int dbix, int64 first, int64 last)
{
	JqAfterDb *d = &jq_after_dbs[dbix];

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	jq_after_add_range(d->ranges, &d->nranges, first, last);
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
}

void
jq_after_push_waiting(int dbix, int64 first, int64 last)
{
	add_range(dbix, first, last);
	jq_db_request(dbix, JQ_REQ_AFTER);
}

void
jq_after_take(int dbix, int64 *ended, int *nended, JqAfterRange *ranges,
			  int *nranges)
{
	JqAfterDb *d = &jq_after_dbs[dbix];
	Filter *f;

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	*nended = d->nended;
	memcpy(ended, d->ended, d->nended * sizeof(int64));
	f = filter_of(dbix);
	if (f != NULL)
	{
		memcpy(ended + *nended, f->ended, f->nended * sizeof(int64));
		*nended += f->nended;
		f->nended = 0;
	}
	*nranges = d->nranges;
	memcpy(ranges, d->ranges, d->nranges * sizeof(JqAfterRange));
	d->nended = d->nranges = 0;
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
}

static void
give_filter(int dbix)
{
	int which = JQ_AFTER_ANY;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	for (i = 0; i < NFILTERS && which < 0; i++)
		if (!OidIsValid(filters[i].db))
		{
			filters[i].db = jq_dbs[dbix].oid;
			filters[i].building = false;
			which = i;
		}
	if (jq_after_dbs[dbix].filter < 0)
		jq_after_dbs[dbix].filter = which;
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
}

static void
set_bits(pg_atomic_uint32 *bits, int64 id)
{
	int i;

	for (i = 0; i < NHASHES; i++)
	{
		uint32 bit = bit_of(id, i);
		uint32 mask = 1U << (bit % 32);

		if (!(pg_atomic_read_u32(&bits[bit / 32]) & mask))
			(void) pg_atomic_fetch_or_u32(&bits[bit / 32], mask);
	}
}

/* its scheduler alone gives a database a filter or takes it, so no lock */
void
jq_after_note(int dbix, int64 id)
{
	Filter *f;

	if (jq_after_dbs[dbix].filter == JQ_AFTER_NOBODY)
		give_filter(dbix);
	f = filter_of(dbix);
	if (f == NULL)
		return;
	set_bits(f->bits[f->current], id);
	if (f->building)
		set_bits(f->bits[1 - f->current], id);
}

void
jq_after_rebuild(int dbix)
{
	Filter *f = filter_of(dbix);

	if (f == NULL)
		return; /* nobody waits; or everything counts until there is one */
	clear(f->bits[1 - f->current]);
	f->building = true;
}

void
jq_after_rebuilt(int dbix, bool any)
{
	Filter *f = filter_of(dbix);

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	if (f != NULL && f->building)
	{
		f->current = 1 - f->current;
		f->building = false;
	}
	if (!any)
	{
		if (f != NULL)
		{
			clear(f->bits[0]);
			clear(f->bits[1]);
			f->nended = 0;
			f->db = InvalidOid;
		}
		jq_after_dbs[dbix].filter = JQ_AFTER_NOBODY;
	}
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
}

void
jq_after_forget(int dbix)
{
	JqAfterDb *d = &jq_after_dbs[dbix];
	Filter *f;

	LWLockAcquire(jq_lock(JQ_LOCK_AFTER), LW_EXCLUSIVE);
	f = filter_of(dbix);
	d->filter = JQ_AFTER_NOBODY;
	d->nended = d->nranges = 0;
	if (f != NULL)
	{
		clear(f->bits[0]);
		clear(f->bits[1]);
		f->building = false;
		f->nended = 0;
		f->db = InvalidOid;
	}
	LWLockRelease(jq_lock(JQ_LOCK_AFTER));
	jq_waiter_call_all(jq_dbs[dbix].oid);
}
