/*
 * runhere.h
 *		Running a job in the caller's session and transaction.
 */
#ifndef JQ_RUNHERE_H
#define JQ_RUNHERE_H

#include "jobtable.h"

/*
 * The job that runs here belongs to another role than the session, to which it
 * must find no way: nothing of it may be left to run at the commit.
 */
extern bool jq_run_guarded;

/* ... and what it has deferred is being run */
extern bool jq_run_settling;

/*
 * Run the job of a row that nobody else can take, with the current user as its
 * owner, and let the row leave the queue, all in the open transaction.  Returns
 * its result as jsonb (*isnull: there is none).  ERROR: that of the job, or why
 * it cannot be run here.
 */
extern Datum jq_run_here(JqTable *t, JqRow *row, bool *isnull);

/* jobqueue.inline: is what the current user enqueues run in this session? */
extern bool jq_inline_here(void);

/* ... then run the job that this command has written */
extern void jq_run_inline(JqTable *t, int64 id);

/* does this session run the job just now, it or one that it runs in turn? */
extern bool jq_runs_here(int64 id);

/*
 * Has the open transaction run the job to its end?  Then *r is that, without its
 * text; *result is the beginning of its result (NULL: none), in len bytes if it
 * were whole.
 */
struct JqRecent;
extern bool jq_ended_here(int64 id, struct JqRecent *r, const char **result,
						  int *len);

#endif /* JQ_RUNHERE_H */
