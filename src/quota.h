/*
 * quota.h
 *		jobqueue.max_jobs_per_role: how many live jobs a role may have.
 */
#ifndef JQ_QUOTA_H
#define JQ_QUOTA_H

#include "jobtable.h"
#include "prepared.h"

extern Size jq_quota_size(void);
extern void jq_quota_init(void);

/* the role is about to enqueue n jobs: ERROR if that were too many */
extern void jq_quota_take(JqTable *t, Oid role, int64 n);
/* rows that come by other ways: they count, but are not refused */
extern void jq_quota_note(Oid role, int64 n);
/* rows are written that will hardly stay: nobody else is concerned */
extern void jq_quota_written(Oid role, int64 n);
/* they do stay: as jq_quota_take() */
extern void jq_quota_take_written(JqTable *t, Oid role, int64 n);
/* n live rows of the role were removed */
extern void jq_quota_gone(Oid role, int64 n);
/* a statement of somebody's has written or removed rows, who knows how many */
extern void jq_quota_by_hand(void);

/* has this transaction noted anything? */
extern bool jq_quota_taken(void);
/* at PREPARE: what was taken goes into *p; cannot fail */
extern void jq_quota_prepare(JqPrepared *p);
/* at its end */
extern void jq_quota_end_prepared(const JqPrepared *p, bool committed);
/* count anew: rows came that memory knows nothing of */
extern void jq_quota_forget(Oid db);

#endif /* JQ_QUOTA_H */
