/*
 * progress.h
 *		How far running jobs say they are.
 */
#ifndef JQ_PROGRESS_H
#define JQ_PROGRESS_H

#include "postgres.h"

#define JQ_PROGRESS_MESSAGE 256 /* bytes, with the end */

typedef struct JqProgressInfo
{
	float8 fraction;
	char message[JQ_PROGRESS_MESSAGE]; /* empty: none */
} JqProgressInfo;

extern Size jq_progress_size(void);
extern void jq_progress_init(void);

/* worker: what the job in hand says; seen by others at once */
extern void jq_progress_set(int64 job, float8 fraction, const char *message);
/* worker: it says nothing (any more) */
extern void jq_progress_clear(void);

/* what the job of that slot has said; false: nothing */
extern bool jq_progress_get(int slot, int64 job, JqProgressInfo *out);

#endif /* JQ_PROGRESS_H */
