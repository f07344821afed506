/*
 * recent.h
 *		A ring of the last ended jobs, in memory only.
 */
#ifndef JQ_RECENT_H
#define JQ_RECENT_H

#include "shmem.h"

#include "access/xlogdefs.h"

#define JQ_RECENT_CELLS 4096
#define JQ_RECENT_TEXT 500

typedef enum JqOutcome
{
	JQ_COMPLETED = 1,
	JQ_FAILED, /* will be tried again */
	JQ_CANCELLED,
	JQ_DEAD,
	JQ_SNOOZED /* done what it has done, and will be run again */
} JqOutcome;

typedef struct JqRecent
{
	int64 id; /* 0 = never used */
	Oid db;
	Oid role;
	JqOutcome outcome;
	int attempt;
	int pid;
	TimestampTz enqueued_at;
	TimestampTz started_at;
	TimestampTz ended_at;
	XLogRecPtr lsn;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	bool is_error;
	uint16 textlen;
	bool cut; /* the text was longer */
	char text[JQ_RECENT_TEXT];
} JqRecent;

extern Size jq_recent_size(void);
extern void jq_recent_init(void);

/* r->text is taken from text, cut at a character's end; may be NULL */
extern void jq_recent_add(const JqRecent *r, const char *text, int len);

/* the cells of a database, newest first; palloc'd */
extern JqRecent *jq_recent_list(Oid db, int *n);

/* c becomes r with that text, cut; r->text is not looked at */
extern void jq_recent_fill(JqRecent *c, const JqRecent *r, const char *text,
						   int len);
/* as much of the text, of that length, as a cell may have and has to tell that it
 * was cut; terminated */
extern char *jq_recent_copy(MemoryContext context, const char *text, int len);

/* did the attempt end the job? */
static inline bool
jq_outcome_is_end(JqOutcome outcome)
{
	return outcome == JQ_COMPLETED || outcome == JQ_CANCELLED ||
		   outcome == JQ_DEAD;
}

/* the newest cell that has the end of the job */
extern bool jq_recent_find(Oid db, int64 id, JqRecent *r);

extern const char *jq_outcome_name(JqOutcome outcome);

#endif /* JQ_RECENT_H */
