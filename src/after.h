/*
 * after.h
 *		Jobs that wait for others: what memory knows of them.
 *
 * The row of such a job names the others (column "after") and has run_at
 * 'infinity', so that nothing dispatches it.  Which rows wait for a job is for
 * the scheduler to find (release.c); here is how it is asked to, and how the
 * many jobs that nobody waits for are kept from asking.
 *
 * A filter has a few bits for each id that may be waited for.  Only schedulers
 * set bits, and always before they look whether that job still lives; who ends a
 * job looks at the filter after his commit.  So one of the two sees the other.
 * Bits are never taken back one by one: when too many have become useless, a new
 * filter is made beside the old one.
 *
 * Requests stand in small lists; what does not fit is a look at all rows.
 */
#ifndef JQ_AFTER_H
#define JQ_AFTER_H

#include "directory.h"
#include "port/atomics.h"

#define JQ_AFTER_ENDED 256 /* requests of each kind that a database may have */
#define JQ_AFTER_RANGES 32

/* ids of rows that wait; others may be between them */
typedef struct JqAfterRange
{
	int64 first;
	int64 last;
} JqAfterRange;

#define JQ_AFTER_NOBODY (-1) /* no bits: nothing waits */
#define JQ_AFTER_ANY (-2) /* no filter was left: everything may be waited for */

typedef struct JqAfterDb
{
	int filter; /* JQ_LOCK_AFTER; read without it */
	/* the rest under JQ_LOCK_AFTER */
	int nended;
	int nranges;
	int64 ended[JQ_AFTER_ENDED];
	JqAfterRange ranges[JQ_AFTER_RANGES];
} JqAfterDb;

extern JqAfterDb *jq_after_dbs; /* one for each JqDb */

extern Size jq_after_size(void);
extern void jq_after_init(void);

/* does the filter have the bits of the job? */
extern bool jq_after_maybe(int dbix, int64 id);
extern void jq_after_push_ended(int dbix, int64 id);

/* the job has ended, which is committed: others may wait for it */
static inline void
jq_after_ended(int dbix, int64 id)
{
	/* what was committed must be seen by whoever sets bits from now on */
	pg_memory_barrier();
	if (*(volatile int *) &jq_after_dbs[dbix].filter != JQ_AFTER_NOBODY &&
		jq_after_maybe(dbix, id))
		jq_after_push_ended(dbix, id);
}

/* rows have come that wait */
extern void jq_after_push_waiting(int dbix, int64 first, int64 last);
/* nothing is known of the database any more */
extern void jq_after_forget(int dbix);

/* ---- scheduler ---- */
/* a row is to be looked at again, when it looks again anyway */
extern void jq_after_push_again(int dbix, int64 id);
/* take the requests; the arrays have room for all */
extern void jq_after_take(int dbix, int64 *ended, int *nended,
						  JqAfterRange *ranges, int *nranges);
/* the job may be waited for; call before looking at it */
extern void jq_after_note(int dbix, int64 id);
/* make a new filter of what is noted from now on; use it */
extern void jq_after_rebuild(int dbix);
extern void jq_after_rebuilt(int dbix, bool any);

#endif /* JQ_AFTER_H */
