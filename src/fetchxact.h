/*
 * fetchxact.h
 *		What an open transaction does to claims of outside consumers.
 *
 * Nothing of it counts before the commit, and a rollback, of a subtransaction
 * too, undoes it: jobs that were fetched are back in their lanes, claims that
 * were about to end are there as before.
 */
#ifndef JQ_FETCHXACT_H
#define JQ_FETCHXACT_H

#include "fetched.h"
#include "recent.h"

/* what becomes of a claim when the transaction commits */
typedef enum JqFetchEnd
{
	JQ_FETCH_COMPLETED,
	JQ_FETCH_RETRY, /* failed; its row has a run_at */
	JQ_FETCH_DEAD,
	JQ_FETCH_CANCELLED,
	JQ_FETCH_RELEASED, /* back into its lane */
	JQ_FETCH_LATER,	   /* not started: its row has a run_at */
	JQ_FETCH_EXTENDED
} JqFetchEnd;

/*
 * Make room to note that many jobs as fetched; allocates.  From now on an abort
 * also ends a wait of this session (consumer.h).
 */
extern void jq_fetchxact_reserve(int n);
/* the job has been taken; cannot fail */
extern void jq_fetchxact_taken(int64 id);
/*
 * The claim on it goes at once, nothing has been done with it: the row is gone,
 * or belongs elsewhere, or it is to wait in its lane.  false: as jq_fetched_end.
 */
extern bool jq_fetchxact_drop(int64 id, JqFetchedThen then);

/*
 * The claim is to end so; ERROR if it is not the caller's.  It has been pinned for
 * the transaction then, and *f is what it was.
 */
extern void jq_fetchxact_pin(int64 id, const pg_uuid_t *token, bool extend,
							 JqFetched *f);
/* ERROR: it is not the caller's any more, as it was cancelled */
extern void jq_fetch_cancelled(int64 id);
/*
 * ... and how.  at: its run_at, or when the lease ends.  text: its result, or the
 * error; may be NULL.
 */
extern void jq_fetchxact_end(int64 id, JqFetchEnd how, TimestampTz at,
							 const char *text);

#endif /* JQ_FETCHXACT_H */
