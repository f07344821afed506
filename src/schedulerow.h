/*
 * schedulerow.h
 *		The row of a schedule in jobqueue_schedule, and the jobs that it makes.
 *
 * What is found is palloc'd in the caller's context.
 */
#ifndef JQ_SCHEDULEROW_H
#define JQ_SCHEDULEROW_H

#include "cron.h"
#include "jobtable.h"

typedef struct JqSchedule
{
	ItemPointerData tid;
	int64 id;
	char *name;
	Oid owner;
	char *cron;
	char *timezone;
	TimestampTz started_at; /* from then on an interval is counted */
	TimestampTz seen_to;	/* instants up to then have been dealt with */
	TimestampTz next_run;	/* to be looked at then */
	char overlap;			/* 's'kip, 'q'ueue, 'a'llow */
	char catch_up;			/* 'n'one, 'o'ne, 'a'll */
	bool paused;
	int64 last_job; /* 0 = none */
	/* of the job, as far as the schedule says it */
	Datum values[JQ_NCOLS];
	bool nulls[JQ_NCOLS];
} JqSchedule;

/* for a list of columns */
extern const char *const jq_schedule_columns;
/* row n of what SPI has found with these, copied to the context */
extern void jq_schedule_of_row(int n, MemoryContext context, JqSchedule *s);

/* expression and zone; false: *error says what is wrong with them */
extern bool jq_schedule_when(const JqSchedule *s, JqCron *cron, pg_tz **zone,
							 char **error);

/*
 * Write the row of a job, for the transaction to publish; returns its id.  The
 * quota of the owner is for the caller.  instant: what it is told that it is for.
 * in_turn: not beside another one.
 */
extern int64 jq_schedule_write_job(JqTable *t, const JqSchedule *s,
								   TimestampTz instant, bool in_turn,
								   bool publish);

#endif /* JQ_SCHEDULEROW_H */
