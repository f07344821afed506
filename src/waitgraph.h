/*
 * waitgraph.h
 *		Cycles of waits that PostgreSQL cannot see.
 *
 * PostgreSQL's deadlock detector knows its own locks.  A cycle that it does not
 * see has a process in it that sleeps in a wait of ours, and that one finds it.
 * Who sleeps calls jq_waitgraph_look() from time to time:
 *
 *		JqWaitLook look;
 *
 *		jq_waitgraph_begin(&look);
 *		for (;;)
 *		{
 *			if (jq_waitgraph_look(&look))
 *			{
 *				... stop waiting, so that others do not see it any more ...
 *				jq_waitgraph_error(&look, "key \"a\"");
 *			}
 *			... sleep no longer than until look.next ...
 *		}
 *
 * To tell of a new kind of wait, add a function to the list in waitgraph.c.  It
 * is asked about any process, by any other one, and answers with processes that
 * all have to do something before that one goes on: where one of several would
 * do, with none.  What it answers may be out of date, but as long as a process
 * stays in the same wait (since), it names it for each process that keeps it
 * there.  Whoever searches holds no lock; the function may read tables, and may
 * fail, which ends the wait of him who searches.
 */
#ifndef JQ_WAITGRAPH_H
#define JQ_WAITGRAPH_H

#include "compat.h"
#include "utils/timestamp.h"

#define JQ_WAIT_CYCLE 32 /* longer cycles are found, but compared so far */

/* a process of a cycle, and its wait */
typedef struct JqWaitStep
{
	int pid;
	int kind;	  /* in the list of waitgraph.c */
	uint64 since; /* tells this wait from others of the process; 0 = unknown */
} JqWaitStep;

typedef struct JqWaitLook
{
	TimestampTz next; /* when to look, if nothing happens before */
	int nsteps;		  /* of the cycle seen last; 0 = none was seen */
	JqWaitStep steps[JQ_WAIT_CYCLE];
} JqWaitLook;

/* a wait begins */
extern void jq_waitgraph_begin(JqWaitLook *look);

/*
 * If it is time: is this process in a cycle of waits?  Allocates; a lock may not
 * be held.  After true, jq_waitgraph_error() has to follow, and nothing between
 * the two may fail.
 */
extern bool jq_waitgraph_look(JqWaitLook *look);

/* ERROR 40P01; what: this process has waited for */
pg_noreturn extern void jq_waitgraph_error(const JqWaitLook *look,
										   const char *what);

/* for jobs: since the last call of forget, has there been one in which somebody
 * waited for a key of ours, or may have? */
extern bool jq_waitgraph_key_wanted(void);
extern void jq_waitgraph_forget(void);

#endif /* JQ_WAITGRAPH_H */
