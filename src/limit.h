/*
 * limit.h
 *		Limits of a queue: how many jobs run at a time, how many start in a time.
 *
 * They are of the queue, over all roles.  Who starts a job has a place of its
 * queue, and where the rate is limited a token, from before the job is taken
 * until its claim has ended; see limit.c.
 */
#ifndef JQ_LIMIT_H
#define JQ_LIMIT_H

#include "postgres.h"

#include "port/atomics.h"
#include "settings.h"

#define JQ_LIMITED_RUNNING 0x01
#define JQ_LIMITED_RATE 0x02

/* of a queue; "the limit's lock" is jq_limit_lock() of the queue */
typedef struct JqLimit
{
	/* atomic; changed under the limit's lock, except as limit.c says */
	pg_atomic_uint32 limited;	  /* JQ_LIMITED_* */
	pg_atomic_uint32 max_running; /* 0 = no limit */
	pg_atomic_uint32 running;	  /* places taken, counted without limit too */
	pg_atomic_uint32 nwaiting;	  /* lanes in the list */
	/* the limit's lock */
	int first; /* lanes that were refused, by limit_next; -1 = none */
	int last;
	int32 rate; /* 0 = no limit */
	int64 rate_per_us;
	uint32 life;	   /* of the bucket: counts how often it began, empty */
	int32 ntaken;	   /* tokens in the hands of those about to start a job */
	int64 interval_ns; /* in which a token comes */
	int64 burst_ns;	   /* in which an empty bucket becomes full */
	int64 full_at;	   /* when it will be full, by jq_limit_now() */
	int64 wake_at;	   /* the launcher is to look then; 0 = never */
} JqLimit;

/* what somebody who runs jobs has; his own, he alone touches it */
typedef struct JqPlace
{
	int queue;	  /* whose place; -1 = none */
	uint32 token; /* not used yet, of that life of the bucket; 0 = none */
	bool called;  /* handed over, nothing has been taken with it yet */
} JqPlace;

#define JQ_NO_PLACE ((JqPlace){-1, 0, false})

extern void jq_limit_init(JqLimit *m);

/*
 * JQ_LOCK_DIR held exclusively: the limits of a queue are these now.  Who sets
 * them takes the lock of each of its lanes afterwards, as for "stopped".
 */
extern void jq_limit_set(int queue_ix, const JqQueueSettings *s);

static inline bool
jq_limited(const JqLimit *m)
{
	return pg_atomic_read_u32((pg_atomic_uint32 *) &m->limited) != 0;
}

/*
 * Lane lock held exclusively: may a job of the lane start now?  *place is none,
 * or one of this queue; if so it is of this queue, with a token where one is
 * needed.  If not the lane waits, *place is none, and somebody is called for the
 * lane when that has changed.  in_batch: *place stays; nothing waits.
 */
extern bool jq_limit_take(int lane, JqPlace *place, bool in_batch);
/* no lock held: the job, which had started, is to start once more */
extern bool jq_limit_take_token(JqPlace *place);
/* no lock held: the job starts, the token (if there is one) is used */
extern void jq_limit_start(JqPlace *place);
/* no lock held: done with the place (or none), and perhaps with the token */
extern void jq_limit_give(JqPlace *place);

/*
 * Lane lock held, at least shared: for how many of n ready jobs are workers to be
 * woken?  0: none may run; if that is due to a limit, the lane waits.
 */
extern int jq_limit_wakes(int lane, int n);
/* the same lock held exclusively: the lane goes */
extern void jq_limit_forget_lane(int lane);

/* no lock held: those who wait are called if they may run now */
extern void jq_limit_serve(int queue_ix);
/*
 * Wake whom the functions above have called while locks were held.  Whoever calls
 * them under a lock calls this after its release.
 */
extern void jq_limit_wake(void);

/* launcher: call those whose token has come; in how many us to call again */
extern int64 jq_limit_serve_due(void);

/* how many entries a lane of the queue may need soon; -1: no telling */
extern int jq_limit_appetite(int queue_ix);

/* for those who explain why a job waits */
typedef struct JqLimitInfo
{
	int max_running; /* 0 = no limit */
	int running;	 /* or about to start */
	int rate;		 /* 0 = no limit */
	int64 rate_per_us;
	int64 tokens;		 /* that are there */
	int64 next_token_us; /* until there is one; 0: there is */
	int waiting;		 /* lanes, which is roles, that were refused */
} JqLimitInfo;

extern void jq_limit_info(int queue_ix, JqLimitInfo *out);

#endif /* JQ_LIMIT_H */
