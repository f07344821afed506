/*
 * waiter.h
 *		Who waits for the end of which job.
 *
 * A table in shared memory with one cell for each job that a session waits for.
 * Whoever ends a job leaves its end in the cells of that job and sets the latches
 * of their owners; what has no words for an end (a row deleted, a look at all) only
 * asks them to look again.
 *
 * Order.  A waiter takes his cell, then looks whether the job still lives.  Who
 * ends a job commits, then looks for cells.  So one of the two sees the other.
 *
 * What becomes of a cell:
 *		ERROR, ROLLBACK TO		its owner gives it back as the error passes
 *		PREPARE					there is none: it does not outlive the statement
 *		terminate				its owner's exit hook gives it back
 *		kill -9					the crash restart makes a new table
 *		out of memory			nothing is allocated here
 *		table full				who waits for many gets an error; one can always
 */
#ifndef JQ_WAITER_H
#define JQ_WAITER_H

#include "recent.h"

/* cells, over all databases, besides one for each process */
#define JQ_WAITERS 4096

extern Size jq_waiter_size(void);
extern void jq_waiter_init(void);

/* ---- the waiter ---- */

/*
 * Take a cell; -1: none is free.  needed: the wait cannot end before this job
 * does; since tells this wait from others of the process.
 */
extern int jq_waiter_add(int64 id, bool needed, TimestampTz since);
/* give all cells of this process back */
extern void jq_waiter_drop_all(void);
/* has something happened since the last call? */
extern bool jq_waiter_is_called(int cell);
/* how the job ended, if that was told; r->text is not terminated */
extern bool jq_waiter_told(int cell, JqRecent *r);
/* the jobs of this database that a process needs, and that have not been told to
 * have ended; returns how many */
extern int jq_waiter_of(int procno, uint64 *since, int64 *ids, int max);

/* ---- those who end jobs: after the commit, no lock held ---- */

extern void jq_waiter_tell(const JqRecent *r, const char *text, int len);
/* the job has ended, or may have: look */
extern void jq_waiter_call(Oid db, int64 id);
extern void jq_waiter_call_all(Oid db);

#endif /* JQ_WAITER_H */
