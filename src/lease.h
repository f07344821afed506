/*
 * lease.h
 *		The table jobqueue_lease: who has leased a fetched job, and until when.
 *
 * A row is written in the transaction of the fetch, which commits synchronously,
 * and deleted in the one that ends the claim; so after any crash, and in a copy
 * of the database, exactly those jobs are leased whose consumers were told so.
 * Memory decides whose a lease is; the rows are read when memory is new.
 */
#ifndef JQ_LEASE_H
#define JQ_LEASE_H

#include "jobtable.h"
#include "utils/uuid.h"

/* the open transaction leases these jobs, or changes their leases */
extern void jq_lease_write(JqTable *t, const int64 *ids, int n,
						   const pg_uuid_t *token, TimestampTz until);
/* the lease of the job ends with it */
extern void jq_lease_delete(JqTable *t, int64 id);

/*
 * Memory being new: is there a lease that it has not read yet, of that job, or of
 * a job of that key?  If so, the scheduler is asked to.
 */
extern bool jq_lease_unread_job(JqTable *t, int64 id);
extern bool jq_lease_unread_key(JqTable *t, const char *key, int len);

/*
 * Scheduler, memory being new: claim what is leased, before anything is taken
 * from a lane.
 */
extern void jq_sched_read_leases(void);
/* some may be over */
extern void jq_sched_end_leases(TimestampTz unused);

#endif /* JQ_LEASE_H */
