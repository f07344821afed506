/*
 * dependency.h
 *		Jobs that wait for others, as the tables have them.
 *
 * The row of such a job names them in "after".  While it waits, run_at is
 * 'infinity', and after_run_at what run_at is to become (-infinity: none).  Who
 * lets it go or cancels it is the scheduler, see release.c.
 */
#ifndef JQ_DEPENDENCY_H
#define JQ_DEPENDENCY_H

#include "jobtable.h"
#include "utils/array.h"

#define JQ_MAX_AFTER 10000 /* jobs that one may wait for */

/*
 * SQL: is the row one that waits for others?  So written that no index is chosen
 * for it where another condition tells more.
 */
#define JQ_ROW_WAITS                          \
	"(run_at IS NOT DISTINCT FROM 'infinity'" \
	" AND after_run_at IS NOT NULL)"

/*
 * SQL: has the scheduler still to see that the job "id" has ended, for which
 * others wait?  How it ended must be there until then.
 */
#define JQ_AWAITED                                 \
	"EXISTS (SELECT FROM %s.jobqueue_dependency e" \
	" WHERE e.dep = id)"

extern bool jq_row_waits(const JqRow *row);

/*
 * The argument of an enqueue: checked, each id once, in order; or 0 if it is
 * empty.  Waits for the end of transactions that are enqueueing one of the jobs.
 */
extern Datum jq_after_argument(JqTable *t, ArrayType *after);

/* the ids of such an array, NULLs left out */
extern int64 *jq_after_ids(Datum after, int *n);

/*
 * Jobs that a job still waits for, at most max of them in order.  Returns how
 * many there are: those that live, and those that are dead or cancelled, as the
 * scheduler will see presently.
 */
extern int jq_after_open(JqTable *t, int64 id, int64 *ids, int max);

/*
 * These rows have come back from the archive, ready: those that waited for jobs
 * which live now wait for them again.  Returns which; palloc'd.
 */
extern int64 *jq_after_wait_again(JqTable *t, const int64 *ids, int n,
								  int *nwaiting);

#endif /* JQ_DEPENDENCY_H */
