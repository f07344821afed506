/*
 * xids.h
 *		Back-pressure on transaction ids: when a worker may start a job.
 */
#ifndef JQ_XIDS_H
#define JQ_XIDS_H

#include "postgres.h"

#include "access/xact.h"
#include "utils/timestamp.h"

typedef enum JqXidState
{
	JQ_XIDS_PLENTY,
	JQ_XIDS_THROTTLED,
	JQ_XIDS_STOPPED
} JqXidState;

extern Size jq_xids_size(void);
extern void jq_xids_init(void);

/* ids that this process has used since jq_xids_attach() */
extern uint64 jq_xids_used;
extern uint64 jq_xids_look_at;
extern TimestampTz jq_xids_look_time;

/* worker: count from now on */
extern void jq_xids_attach(void);

/*
 * Is it time for jq_xids_look()?  For every job, so it asks for no time: when
 * the last transaction began is good enough.
 */
static inline bool
jq_xids_due(void)
{
	return jq_xids_used >= jq_xids_look_at ||
		   GetCurrentStatementStartTimestamp() >= jq_xids_look_time;
}

/* worker: after a sleep nobody knows how things are */
static inline void
jq_xids_set_due(void)
{
	jq_xids_look_at = 0;
}

/*
 * Worker, outside transactions, with no job in hand: may one be started?  0:
 * yes; else look again after so many milliseconds.
 */
extern long jq_xids_look(JqXidState *state);

/* does nobody start a job? */
extern bool jq_xids_stopped(void);

/* what a worker that waits shows as its state */
extern const char *jq_xids_state_name(JqXidState state);

#endif /* JQ_XIDS_H */
