/*
 * views.h
 *		What a worker slot shows of its job.
 */
#ifndef JQ_VIEWS_H
#define JQ_VIEWS_H

#include "slot.h"

/* what a slot shows, read without its lock */
typedef struct JqShown
{
	int64 id;
	Oid role;
	int pid;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	char key[JQ_KEY_MAX + 1];
	bool running;
	int nothers; /* of a batch */
	int64 others[JQ_BATCH_MAX];
	int attempt;
	TimestampTz started_at;
	char command[JQ_COMMAND_SHOWN];
} JqShown;

/* false: the slot has no job of this database */
extern bool jq_show_slot(int slot, JqShown *out);
/* has the slot that job, be it in hand or besides? */
extern bool jq_shows_job(const JqShown *s, int64 id);

#endif /* JQ_VIEWS_H */
