/*
 * explain.h
 *		Why a job does not run yet.
 */
#ifndef JQ_EXPLAIN_H
#define JQ_EXPLAIN_H

#include "directory.h"
#include "jobtable.h"
#include "lib/stringinfo.h"
#include "settings.h"

/* a live job, and what memory knows of its surroundings */
typedef struct JqExplain
{
	JqTable *t;
	int64 id;
	JqRow row;
	bool doubtful;	   /* somebody is changing the row: */
	TransactionId xid; /* this one */
	Oid owner;
	Oid lane_role; /* JQ_CONSUMER_ROLE: it has no command */
	int sight;	   /* jq_sight_of(owner) */
	char *queue;
	char *key; /* NULL = none */
	JqPos pos;
	JqQueueSettings settings;
	TimestampTz now;
	int dbix; /* these may be -1: memory has no place for it (yet) */
	int lane;
	int queue_ix;
	int group;
	StringInfoData out;
} JqExplain;

/*
 * Is this why the job does not run?  Then it says so in out, as a phrase in
 * lower case without a full stop.  Reads only.
 */
typedef bool (*JqExplainCheck)(JqExplain *e);

/* in the session's time zone; palloc'd */
extern char *jq_explain_time(TimestampTz when);
/* from now to then, in whole seconds from 10 s on; palloc'd */
extern char *jq_explain_span(TimestampTz now, TimestampTz then);
/* may the current user see what that process does? */
extern bool jq_explain_may_see(int procno);

#endif /* JQ_EXPLAIN_H */
