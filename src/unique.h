/*
 * unique.h
 *		The table jobqueue_unique: which job holds a unique_key of its queue.
 *
 * A row of it is a lock as durable as the transaction that wrote it.  It is
 * written in the transaction that enqueues the job and deleted in the one that
 * ends it (or, until "executing", in one just before the job starts), so after
 * any crash there is a lock for exactly those jobs that are to have one.
 *
 * Whoever wants a key that somebody's open transaction has taken or given free
 * waits for the end of that transaction.  Needs a transaction, knows no shared
 * memory.
 */
#ifndef JQ_UNIQUE_H
#define JQ_UNIQUE_H

#include "jobtable.h"

/* unique_until, as stored */
#define JQ_UNTIL_EXECUTING 's'
#define JQ_UNTIL_EXECUTED 'e'
#define JQ_UNTIL_EXPIRED 't'
#define JQ_WHILE_EXECUTING 'w'
#define JQ_UNTIL_AND_WHILE_EXECUTING 'b'

/* on_conflict, as stored */
#define JQ_CONFLICT_SKIP 's'
#define JQ_CONFLICT_JOIN 'j'
#define JQ_CONFLICT_RAISE 'x'
#define JQ_CONFLICT_REPLACE 'p'
#define JQ_CONFLICT_UPDATE 'u'
#define JQ_CONFLICT_REJECT 'd'
#define JQ_CONFLICT_RESCHEDULE 'r'
#define JQ_CONFLICT_LOG 'l'
/* "reschedule", and the job has not had its lock yet: it asks at its start */
#define JQ_CONFLICT_RESCHEDULED 'R'

/* ERROR with a hint if there is no such word */
extern char jq_unique_until_code(const char *word);
extern char jq_on_conflict_code(const char *word);

/* is there a lock in the table from the enqueue on? */
static inline bool
jq_unique_locks(char until)
{
	return until != JQ_WHILE_EXECUTING;
}

/* does the job give its lock free when it starts? */
static inline bool
jq_unique_ends_at_start(char until)
{
	return until == JQ_UNTIL_EXECUTING || until == JQ_UNTIL_AND_WHILE_EXECUTING;
}

typedef struct JqUniqueLock
{
	int64 job;
	char until;
	TimestampTz expires_at; /* DT_NOEND = never */
	bool mine;				/* written by this transaction */
} JqUniqueLock;

/*
 * Take the lock for the job; true also if it has it already.  false: *holder has
 * it.  If wait is false, what an open transaction of somebody else has taken or
 * given free counts as held.
 */
extern bool jq_unique_take(JqTable *t, Datum queue, Datum key, int64 job,
						   char until, TimestampTz expires_at, bool wait,
						   JqUniqueLock *holder);

/*
 * The job lets go of its lock; one until "expired" only if it is to be dropped.
 * false: it has none, or keeps it.
 */
extern bool jq_unique_release(JqTable *t, Datum queue, Datum key, int64 job,
							  bool drop);

/* the same at the end of a job, for a row that was deleted past the trigger */
extern void jq_unique_ended(JqTable *t, const JqRow *row);

/* now + unique_for of a job; DT_NOEND without one */
extern TimestampTz jq_unique_expiry(const Datum *values, const bool *nulls);

/* a lock that has expired is in nobody's way; it is deleted some time later */
#define JQ_UNIQUE_LINGERS_US USECS_PER_HOUR

/* there is no row of the job that anybody could see, or bring back */
extern bool jq_unique_job_is_gone(JqTable *t, int64 job);

/*
 * Delete locks that have expired in the time from *from to to, a batch of them;
 * how many it found.  *from goes on for the next batch.
 */
extern int64 jq_unique_prune(JqTable *t, TimestampTz *from, TimestampTz to,
							 int most);

#endif /* JQ_UNIQUE_H */
