/*
 * inflight.h
 *		Which jobs were running when a process died by itself.
 */
#ifndef JQ_INFLIGHT_H
#define JQ_INFLIGHT_H

#include "shmem.h"

typedef struct JqSuspect
{
	int64 id;
	Oid db;
	bool alone; /* the only one marked at that crash */
} JqSuspect;

#define JQ_MAX_SUSPECTS 256

extern Size jq_inflight_size(void);

/* postmaster: read what the last life left, start the file anew */
extern void jq_inflight_init(void);

/* worker: map the file, clear the mark when told to die by SIGQUIT */
extern void jq_inflight_attach(int slot);
extern void jq_inflight_mark(Oid db, int64 id);
extern void jq_inflight_clear(void);

/* has the job crashed the server, which is not in the table yet? */
extern bool jq_inflight_is_suspect(Oid db, int64 id);
/* the suspects of a database; palloc'd */
extern JqSuspect *jq_inflight_suspects(Oid db, int *n);
/* its crash has been recorded in the table */
extern void jq_inflight_settled(Oid db, int64 id);

#endif /* JQ_INFLIGHT_H */
