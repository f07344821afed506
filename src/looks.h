/*
 * looks.h
 *		Rows that a scheduler is to look at, as memory may not know what they are.
 */
#ifndef JQ_LOOKS_H
#define JQ_LOOKS_H

#include "directory.h"

/* in place of a job: at all that memory knows of the database */
#define JQ_LOOK_AT_ALL 0

extern Size jq_looks_size(void);
extern void jq_looks_init(void);

/* false: no room at all.  Any lock but JQ_LOCK_CLAIM may be held; allocates nothing. */
extern bool jq_looks_ask(Oid db, int64 id);
/* is there one of the database? */
extern bool jq_looks_any(Oid db);
/* scheduler: one of the database, which is not asked for any more; false: none */
extern bool jq_looks_take(Oid db, int64 *id);
/* the database has no jobs any more */
extern void jq_looks_purge(Oid db);

#endif /* JQ_LOOKS_H */
