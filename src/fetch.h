/*
 * fetch.h
 *		What functions of outside consumers have in common.
 */
#ifndef JQ_FETCH_H
#define JQ_FETCH_H

#include "fetched.h"
#include "fmgr.h"
#include "jobtable.h"

/* what is asked for */
typedef struct JqFetchRequest
{
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int max;
	int64 wait_us;
	bool leased;
	int64 lease_us;
	pg_uuid_t token;
	TimestampTz until; /* of the lease, once jobs have been taken */
	bool full;		   /* there was a job, but no room for its claim */
	bool behind;	   /* what there is was not all in memory */
	bool ends;		   /* jobs that are not given end with this transaction */
} JqFetchRequest;

/* a job that is given to the consumer */
typedef struct JqGiven
{
	int64 id;
	JqRow row;
	int attempt;
} JqGiven;

/* arguments queue, max, wait, lease; and may this session fetch so? */
extern void jq_fetch_request(FunctionCallInfo fcinfo, JqFetchRequest *r,
							 const char *function);
/* Take up to max jobs.  Returns how many there are. */
extern int jq_fetch_now(JqTable *t, JqFetchRequest *r, JqGiven *given);
/*
 * There were none, and the call may last until then: when to look again.  false:
 * it is time to return; ERROR if there was no room, or the queue is paused.
 */
extern bool jq_fetch_again(const JqFetchRequest *r, TimestampTz until,
						   TimestampTz *next);
/*
 * Sleep until there may be a job, or it is that late; jq_fetch_now is to follow.
 * If an error comes in between, the abort lets go what we were given.
 */
extern void jq_fetch_await(const JqFetchRequest *r, TimestampTz until);

/* ---- fetchlook.c ---- */

typedef enum JqLook
{
	JQ_LOOK_GIVE,	 /* the consumer may have it */
	JQ_LOOK_FULL,	 /* there is no room for its unique_key; it went back */
	JQ_LOOK_DROPPED, /* it is not ours any more */
	JQ_LOOK_ENDS	 /* the transaction ends it, and holds its claim so long */
} JqLook;

/* is the job that was just taken to be given to the consumer? */
extern JqLook jq_fetch_look(JqTable *t, const JqTaken *job, bool leased,
							JqRow *row);
/* since when could it start? */
extern TimestampTz jq_fetch_ready_at(const JqRow *row);

#endif /* JQ_FETCH_H */
