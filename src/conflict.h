/*
 * conflict.h
 *		What becomes of a job whose unique_key another one has: on_conflict.
 */
#ifndef JQ_CONFLICT_H
#define JQ_CONFLICT_H

#include "jobtable.h"
#include "unique.h"

/* ---- at enqueue ---- */

typedef enum JqAdmission
{
	JQ_ADMIT,		/* it is enqueued */
	JQ_ADMIT_LATER, /* it is enqueued, after jq_unique_postpone */
	JQ_ADMIT_DEAD,	/* it goes to the archive, dead */
	JQ_ADMIT_OTHER, /* nothing is enqueued; the answer is another job */
	JQ_ADMIT_NONE	/* nothing is enqueued */
} JqAdmission;

/*
 * Take the unique_key for a job that is about to be enqueued; values are what its
 * row will be.  *holder: who has it otherwise.
 */
extern JqAdmission jq_unique_admit(JqTable *t, const Datum *values,
								   const bool *nulls, int64 *holder);

/* its row, for JQ_ADMIT_LATER; returns its run_at */
extern TimestampTz jq_unique_postpone(Datum *values, bool *nulls);

/* why it is dead, for JQ_ADMIT_DEAD */
extern char *jq_unique_reason(const Datum *values, int64 holder);

/* ---- when a worker is about to start it ---- */

typedef enum JqUniqueStart
{
	JQ_UNIQUE_GO,
	JQ_UNIQUE_AGAIN,  /* commit, and look at the row again */
	JQ_UNIQUE_LATER,  /* whoever executes has ended already */
	JQ_UNIQUE_SOON,	  /* or commits just now */
	JQ_UNIQUE_FULL,	  /* fetched: no room for its key */
	JQ_UNIQUE_REFUSED /* see jq_unique_refuse */
} JqUniqueStart;

typedef struct JqRefusal
{
	char on_conflict;
	TimestampTz run_at; /* of "reschedule" */
	char *reason;
} JqRefusal;

/*
 * In the transaction in which its row has been looked at: let go of its lock, or
 * take it; keep others from executing.
 */
extern JqUniqueStart jq_unique_start(JqTable *t, const JqRow *row,
									 JqRefusal *refusal);

typedef enum JqRefused
{
	JQ_REFUSED_GONE,
	JQ_REFUSED_CANCELLED,
	JQ_REFUSED_DEAD,
	JQ_REFUSED_LATER
} JqRefused;

/* do to the job what on_conflict says, in an open transaction for bookkeeping */
extern JqRefused jq_unique_refuse(JqTable *t, int64 id, const JqRefusal *r);

/*
 * The open transaction ends the job: others may execute when it has committed and
 * released its locks, and before what it has enqueued is published.
 */
extern void jq_unique_ends_with_commit(void);

/* others may execute now */
extern void jq_unique_let_go(void);

/* ---- outside consumers ---- */

/*
 * What stands for the unique_key of the job in the key table while it executes
 * (JQ_DIGEST_MAX bytes have room for it); its length, 0: others may execute, too.
 */
extern int jq_unique_digest(char *digest, const JqRow *row);
/*
 * As jq_unique_start, for a job that the open transaction is fetching: its claim
 * keeps others from executing.  JQ_UNIQUE_AGAIN: it may be fetched, and its lock
 * is let go with the transaction.
 */
extern JqUniqueStart jq_unique_start_fetched(JqTable *t, const JqRow *row,
											 bool leased, JqRefusal *refusal);

/* ---- jobqueue_run(), jobqueue_retry() ---- */

/* as at a start, in the transaction of the caller; ERROR if it may not run */
extern void jq_unique_run_here(JqTable *t, const JqRow *row);

/*
 * A dead or cancelled job has come back: take its lock; ERROR if another job has
 * it.
 */
extern void jq_unique_come_back(JqTable *t, int64 id);

#endif /* JQ_CONFLICT_H */
