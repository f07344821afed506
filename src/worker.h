/*
 * worker.h
 *		The worker process, and starting processes.
 */
#ifndef JQ_WORKER_H
#define JQ_WORKER_H

#include "postgres.h"

#include <signal.h>

/* parameters of a worker, in bgw_extra */
typedef struct JqWorkerArgs
{
	uint64 generation;
	Oid db;
	Oid role;
	Oid nobody; /* InvalidOid: connect as the role itself */
	int slot;
	int group;
} JqWorkerArgs;

/* is this process a worker of ours? */
extern bool jq_is_worker;

/* has the role, or what it is a member of, changed since the start? */
extern bool jq_worker_role_changed(void);

/* a SIGINT has arrived since this was cleared */
extern volatile sig_atomic_t jq_worker_interrupted;

extern PGDLLEXPORT void jq_worker_main(Datum arg);
extern PGDLLEXPORT void jq_scheduler_main(Datum arg);
extern PGDLLEXPORT void jq_launcher_main(Datum arg);

/* for processes of ours: reread settings if asked to */
extern void jq_reload_config(void);

#endif /* JQ_WORKER_H */
