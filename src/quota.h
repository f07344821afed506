/*
 * quota.h
 *		jobqueue.max_jobs_per_role: how many live jobs a role may have.
 */
#ifndef JQ_QUOTA_H
#define JQ_QUOTA_H

#include "jobtable.h"

extern Size jq_quota_size(void);
extern void jq_quota_init(void);

/* the role is about to enqueue n jobs: ERROR if that were too many */
extern void jq_quota_take(JqTable *t, Oid role, int64 n);

#endif /* JQ_QUOTA_H */
