/*
 * scheduler.h
 *		The parts of a scheduler's work, and what they have in common.
 *
 * Each part is called with an empty memory context of its own, outside of any
 * transaction; an error ends that part, and it is asked for once more.
 */
#ifndef JQ_SCHEDULER_H
#define JQ_SCHEDULER_H

#include "claim.h"
#include "jobtable.h"
#include "recent.h"

#define JQ_SCHED_BATCH 500 /* rows in one transaction */

extern int jq_sched_dbix; /* our database */
extern MemoryContext jq_sched_context;

/* come back to what has been asked again, after a while */
extern void jq_sched_again_in(int ms);

/*
 * In the midst of something long, between transactions: serve what else is asked,
 * but for these requests.  Resets jq_sched_context; does not return if the
 * scheduler is to leave, and the next one is asked for everything then.
 */
extern void jq_sched_serve_others(uint32 later);

/* a transaction of ours; NULL: the extension is not here */
extern JqTable *jq_sched_begin(void);
extern void jq_sched_commit(void);

/* a row that a query returned */
#define JQ_SCHED_COLUMNS                                               \
	"id, queue, owner::oid, priority, key, ctid, run_at," JQ_LANE_ROLE \
	" AS lane_role"
#define JQ_SCHED_NCOLUMNS 8

typedef struct JqFoundRow
{
	JqItem item;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	Oid owner;
	Oid lane_role; /* of its lane */
	TimestampTz run_at;
} JqFoundRow;

extern JqFoundRow *jq_sched_rows(int *n);

/* the end of a job that no worker had, for the ring */
extern void jq_sched_note_end(int64 id, Oid role, const char *queue,
							  JqOutcome outcome, int attempt,
							  TimestampTz started_at, TimestampTz ended_at,
							  const char *error);

/* ---- refill.c ---- */
extern void jq_sched_discover(TimestampTz unused);
extern void jq_sched_refill(TimestampTz unused);
extern void jq_sched_refill_keys(TimestampTz unused);
extern void jq_sched_count_anew(TimestampTz unused);
extern void jq_sched_count(TimestampTz unused);

/* ---- due.c ---- */
extern void jq_sched_publish_due(TimestampTz from);
extern void jq_sched_find_lost(TimestampTz upto);
extern void jq_sched_end_expired(TimestampTz from);
extern void jq_sched_find_next_due(TimestampTz unused);
extern void jq_sched_find_next_expiry(TimestampTz unused);
extern void jq_sched_prune(TimestampTz unused);
extern bool jq_sched_prune_more; /* the last call has left some */

/* ---- fire.c ---- */
extern void jq_sched_fire(TimestampTz from);
extern void jq_sched_rehearse(TimestampTz next);
extern void jq_sched_find_next_schedule(TimestampTz from);

/* ---- release.c ---- */
extern void jq_sched_release(TimestampTz unused);
extern void jq_sched_release_all(TimestampTz unused);

/* ---- settle.c ---- */
extern void jq_sched_settle_suspects(TimestampTz unused);
extern void jq_sched_settle_held(TimestampTz unused);
extern void jq_sched_check_roles(TimestampTz unused);

#endif /* JQ_SCHEDULER_H */
