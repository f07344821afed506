/*
 * where.h
 *		Many jobs by what they have in common: queue, state, tag.
 *
 * One statement acts on the rows, however many.  Those of jobqueue_job are
 * beyond what claims could hold one by one: the lanes that they are in are held
 * back until the transaction ends, so that nothing of them is taken meanwhile.
 * After a commit those lanes are read anew; after a rollback they are as they
 * were.
 *
 * What runs is left out.  A lane is held back before we look who runs, so
 * whoever has taken a job of it is seen.
 */
#ifndef JQ_WHERE_H
#define JQ_WHERE_H

#include "fmgr.h"
#include "jobtable.h"

/* states that a function acts on */
#define JQ_WHERE_WAITING 0x01
#define JQ_WHERE_RUNNING 0x02
#define JQ_WHERE_COMPLETED 0x04
#define JQ_WHERE_FAILED 0x08 /* dead, cancelled */

#define JQ_WHERE_ARGS 8

typedef struct JqWhere
{
	JqTable *table;
	bool waiting; /* which states are meant */
	bool running;
	const char *state; /* on the row, in SQL */
	/* arguments of the statements; those of the caller come last */
	int nargs;
	Oid types[JQ_WHERE_ARGS + 1];
	Datum values[JQ_WHERE_ARGS + 1];
	char nulls[JQ_WHERE_ARGS + 2];
} JqWhere;

/*
 * Check a call whose first arguments are queue, state and (tag_arg >= 0) tag:
 * at least one of them must be given, unless everything is meant.
 */
extern void jq_where_begin(JqWhere *w, FunctionCallInfo fcinfo,
						   const char *function, int tag_arg,
						   int everything_arg, int states);

/* one argument more; returns its number, as in $9 */
extern int jq_where_add(JqWhere *w, Oid type, Datum value, bool isnull);

/* nothing of the lanes of these jobs is taken until the transaction ends */
extern void jq_where_freeze(JqWhere *w);

/* shown a row of a result */
typedef void (*JqWhereEach)(HeapTuple tup, TupleDesc desc, void *arg);

/*
 * Run a statement: what comes before the condition, which is about the columns of
 * "j", and what comes after it.  jq_where_waiting: jobs that wait, in lanes that
 * are held back; jq_where_ended: rows of jobqueue_archive.  Each row of the result
 * goes to a function, or (NULL) none.  Returns how many rows there were.
 */
extern int64 jq_where_waiting(JqWhere *w, const char *before, const char *after,
							  JqWhereEach each, void *arg);
extern int64 jq_where_ended(JqWhere *w, const char *before, const char *after,
							JqWhereEach each, void *arg);

/* those of the jobs that run; palloc'd */
extern int64 *jq_where_running(JqWhere *w, int *n);

/* those whose rows this transaction has written and that are claimed; palloc'd */
extern int64 *jq_where_claimed(JqWhere *w, int *n);

#endif /* JQ_WHERE_H */
