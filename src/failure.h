/*
 * failure.h
 *		How a job ends otherwise than by completion: records in the table.
 */
#ifndef JQ_FAILURE_H
#define JQ_FAILURE_H

#include "jobtable.h"

/*
 * In a statement that has the rows of jobs as "gone": when they leave the
 * history, if they are dead or cancelled.
 */
#define JQ_EXPIRES_DEAD                                     \
	"clock_timestamp() + coalesce((SELECT q.keep_dead"      \
	" FROM %s.jobqueue_queue q WHERE q.name = gone.queue)," \
	" '7 days')"

/*
 * Whatever has the number of the job in the archive already, by hand or from a
 * restore, makes way for it: nothing of the job is to be put into that row.
 */
#define JQ_ARCHIVED_AGAIN                                              \
	" ON CONFLICT (id) DO UPDATE SET"                                  \
	" enqueued_at = excluded.enqueued_at,"                             \
	" started_at = excluded.started_at, ended_at = excluded.ended_at," \
	" expires_at = excluded.expires_at, home = excluded.home,"         \
	" owner = excluded.owner, func_owner = excluded.func_owner,"       \
	" priority = excluded.priority, attempt = excluded.attempt,"       \
	" max_attempts = excluded.max_attempts, kind = excluded.kind,"     \
	" state = excluded.state, queue = excluded.queue,"                 \
	" command = excluded.command, args = excluded.args,"               \
	" key = excluded.key, search_path = excluded.search_path,"         \
	" settings = excluded.settings, timeout = excluded.timeout,"       \
	" keep = excluded.keep, tags = excluded.tags,"                     \
	" result = excluded.result, errors = excluded.errors,"             \
	" reason = excluded.reason, unique_key = excluded.unique_key,"     \
	" unique_until = excluded.unique_until,"                           \
	" unique_for = excluded.unique_for,"                               \
	" on_conflict = excluded.on_conflict, after = excluded.after"

typedef struct JqFailure
{
	const char *sqlstate;
	const char *message;
	const char *detail; /* these may be NULL */
	const char *hint;
	const char *context;
	TimestampTz started_at;
	bool final;			  /* no further attempt */
	TimestampTz retry_at; /* 0: as its queue says */
	const char *reason;	  /* of the end, for the history */
} JqFailure;

typedef enum JqRecorded
{
	JQ_RECORD_GONE,	 /* no such row any more */
	JQ_RECORD_RETRY, /* *run_at says when */
	JQ_RECORD_DEAD
} JqRecorded;

/*
 * Start a transaction for bookkeeping: read committed, read-write, whatever the
 * role's or database's defaults are.
 */
extern void jq_begin_bookkeeping(void);
/*
 * In PG_CATCH: report the error and roll back.  Interrupts are held until the
 * caller resumes them.
 */
extern void jq_abort_bookkeeping(void);

/* Charge an attempt to the job; in the open transaction. */
extern JqRecorded jq_record_failure(JqTable *t, int64 id, const JqFailure *f,
									TimestampTz *run_at);

/*
 * Move the row to the archive, for as long as the job or its queue says.  result
 * may be 0.  false: it is gone.
 */
extern bool jq_archive(JqTable *t, int64 id, const char *state,
					   const char *reason, TimestampTz started_at,
					   Datum result);

/*
 * Charge a crash of the server to the job; alone: nobody else can have caused
 * it.  Returns whether the job is dead now.
 */
extern bool jq_record_crash(JqTable *t, int64 id, bool alone);

/* how long a failed job waits before attempt n + 1, in microseconds */
extern int64 jq_backoff(int attempt, const JqQueueSettings *q);

#endif /* JQ_FAILURE_H */
