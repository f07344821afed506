/*
 * cron.h
 *		When a schedule is due: the text of an expression, and the next instant.
 *
 * Knows nothing of tables, catalogs or shared memory, and keeps nothing.
 */
#ifndef JQ_CRON_H
#define JQ_CRON_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "pgtime.h"

typedef struct JqCron
{
	int64 every; /* microseconds between two instants; 0: the fields say it */
	uint64 seconds;
	uint64 minutes;
	uint32 hours;
	uint32 days;		  /* bits 1 to 31 */
	uint32 from_end;	  /* bit n: n days before the last one of the month */
	uint32 months;		  /* bits 1 to 12 */
	uint32 weekdays;	  /* bits 0 to 6, Sunday first */
	uint32 last_weekdays; /* the last one of the month only */
	/* the field begins with "*": then both have to match, else one of the two */
	bool any_day;
	bool any_weekday;
} JqCron;

typedef struct JqCronError
{
	int at; /* byte of the text */
	char message[160];
	const char *hint;
} JqCronError;

/* false: it is none, and *error says why */
extern bool jq_cron_parse(const char *text, JqCron *cron, JqCronError *error);

/*
 * The first instant after a moment.  An interval is counted from start.  false:
 * there is none that a timestamp can be.
 *
 * A local time is due when clocks in the zone first show it, or a later one: so
 * one that is skipped is due at the jump, once for all that are skipped, and one
 * that comes twice is due the first time.
 */
extern bool jq_cron_next(const JqCron *cron, TimestampTz start,
						 TimestampTz after, const pg_tz *zone,
						 TimestampTz *next);

/* the last instant in (from, to]; false: there is none */
extern bool jq_cron_previous(const JqCron *cron, TimestampTz start,
							 TimestampTz from, TimestampTz to,
							 const pg_tz *zone, TimestampTz *previous);

#endif /* JQ_CRON_H */
