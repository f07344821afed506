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
 * Requests stand in lists, that of jobs which have ended beside the filter, as
 * only who has one can tell which jobs matter.  When that is full, all rows are
 * looked at.
 */
#ifndef JQ_AFTER_H
#define JQ_AFTER_H

#include "directory.h"
#include "port/atomics.h"
#include "waiter.h"

#define JQ_AFTER_ENDED 8192 /* requests that a database may have, at most */
#define JQ_AFTER_RANGES 16

/* ids of rows that wait; others may be between them */
typedef struct JqAfterRange
{
	int64 first;
	int64 last;
} JqAfterRange;

#define JQ_AFTER_NOBODY (-1) /* no bits: nothing waits */
#define JQ_AFTER_ANY (-2) /* no filter was left: everything may be waited for */
#define JQ_AFTER_ANY_ENDED 32 /* requests then */

typedef struct JqAfterDb
{
	int filter; /* JQ_LOCK_AFTER; read without it */
	/* the rest under JQ_LOCK_AFTER */
	int nended;
	int nranges;
	int64 ended[JQ_AFTER_ANY_ENDED];
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
	jq_waiter_call(jq_dbs[dbix].oid, id);
	/* what was committed must be seen by whoever sets bits from now on */
	pg_memory_barrier();
	if (*(volatile int *) &jq_after_dbs[dbix].filter != JQ_AFTER_NOBODY &&
		jq_after_maybe(dbix, id))
		jq_after_push_ended(dbix, id);
}

/*
 * One more range in a list that has room for JQ_AFTER_RANGES.  What does not fit
 * widens another, so there are more others between them.
 */
extern void jq_after_add_range(JqAfterRange *ranges, int *n, int64 first,
							   int64 last);

/* rows have come that wait */
extern void jq_after_push_waiting(int dbix, int64 first, int64 last);
/* nothing is known of the database any more */
extern void jq_after_forget(int dbix);

/* ---- scheduler ---- */
/* take the requests; the arrays have room for JQ_AFTER_ENDED, JQ_AFTER_RANGES */
extern void jq_after_take(int dbix, int64 *ended, int *nended,
						  JqAfterRange *ranges, int *nranges);
/* the job may be waited for; call before looking at it */
extern void jq_after_note(int dbix, int64 id);
/* make a new filter of what is noted from now on; use it */
extern void jq_after_rebuild(int dbix);
extern void jq_after_rebuilt(int dbix, bool any);

#endif /* JQ_AFTER_H */
