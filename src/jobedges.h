/*
 * jobedges.h
 *		For waitgraph.c: who keeps the jobs from ending that a process waits for.
 */
#ifndef JQ_JOBEDGES_H
#define JQ_JOBEDGES_H

#include "storage/proc.h"

/*
 * The processes without which those jobs cannot end; 0: it waits for none, or
 * they need nobody.  *since tells this wait from its later ones.  Reads tables,
 * no lock may be held.
 */
extern int jq_job_blockers(PGPROC *proc, uint64 *since, int *pids, int max);

#endif /* JQ_JOBEDGES_H */
