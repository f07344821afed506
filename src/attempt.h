/*
 * attempt.h
 *		One attempt of a job, between runjob.c, batch.c and outcome.c.
 */
#ifndef JQ_ATTEMPT_H
#define JQ_ATTEMPT_H

#include "claim.h"
#include "conflict.h"
#include "recent.h"
#include "settings.h"

/* what has become of an attempt */
typedef enum JqVerdict
{
	COMPLETED,
	DROPPED,	  /* nothing to run; republished where needed */
	NO_ROW,		  /* the same: the row is not there */
	PARKED,		  /* waits; the claim has ended already */
	DOUBTFUL_ROW, /* somebody is deleting it, or one in its way */
	EXPIRED,	  /* or cancelled for another reason; it was not started */
	FAILED,		  /* error in the job */
	RERUN,		  /* error that does not count */
	TROUBLE,	  /* error of ours, not of the job */
	AGAIN,		  /* look at the row once more */
	REFUSED		  /* another job has its unique_key */
} JqVerdict;

typedef struct JqAttempt
{
	JqClaimed *job;
	Oid role;
	const char *queue;
	int queue_ix;
	bool running; /* the command may have begun */
	bool committing;
	bool outside;
	int commit_level;  /* synchronous_commit at its end, in a batch */
	TransactionId xid; /* DOUBTFUL_ROW */
	bool keeps_order;  /* DOUBTFUL_ROW: later ones of its key wait for it */
	bool soon;		   /* DOUBTFUL_ROW: what is in its way commits */
	TimestampTz ready_at;
	TimestampTz enqueued_at;
	TimestampTz started_at;
	TimestampTz ended_at; /* 0: when it is noted */
	int attempt;		  /* this one, from 1 */
	ErrorData *error;
	const char *reason; /* EXPIRED; NULL: it has */
	char *result;		/* text of the result, or NULL */
	int result_len;
	JqQueueSettings settings;  /* of its queue, as it started */
	JqRefusal refusal;		   /* REFUSED */
	bool admitted;			   /* it has let go of its unique_key, or has it */
	TimestampTz snoozed_until; /* COMPLETED, and to be run again; 0 = not */
} JqAttempt;

/* what lives as long as a job, or a batch; emptied by the function */
extern MemoryContext jq_job_context;
extern MemoryContext jq_attempt_context(void);
/* does a failure keep later ones of its key waiting? */
extern bool jq_attempt_is_ordered(const JqAttempt *a);
extern void jq_attempt_init(JqAttempt *a, JqClaimed *job, Oid role,
							const char *queue, int queue_ix);

/*
 * Run the job and delete its row in the open transaction, whose other jobs it
 * shares it with.  false: this job has to run by itself; nothing has been done.
 */
extern bool jq_attempt_in_batch(JqAttempt *a);

/* in PG_CATCH: roll back, and tell whose fault it was */
extern JqVerdict jq_attempt_caught(JqAttempt *a, bool report);
extern void jq_attempt_begin(void);
/* it was rolled back, and that does not count: once more of a bounded number */
extern void jq_attempt_count_rerun(JqClaimed *job);
/* run the job in hand alone */
extern void jq_attempt_alone(JqAttempt *a);
/* leave nothing behind for the next job */
extern void jq_attempt_done(void);

/* ---- outcome.c ---- */

/* after errors: was a cancel meant for the job in hand? */
extern bool jq_attempt_was_cancelled(JqVerdict verdict);
/* completed: into the ring and the counters */
extern void jq_attempt_note_completed(JqAttempt *a);
/* the claim ends, and the row says when it goes on; false: it has been cancelled */
extern bool jq_attempt_ends_until(const JqAttempt *a, TimestampTz run_at);
/* the attempt is over; see jq_run_claimed */
extern void jq_attempt_settle(JqAttempt *a, JqVerdict verdict);
extern void jq_attempt_cancelled(JqAttempt *a);

#endif /* JQ_ATTEMPT_H */
