/*
 * pausedrole.h
 *		Roles of which nothing is started: what memory knows of
 *		jobqueue_paused_role.
 */
#ifndef JQ_PAUSEDROLE_H
#define JQ_PAUSEDROLE_H

#include "directory.h"

extern Size jq_paused_role_size(void);
extern void jq_paused_role_init(void);
/* so many may be paused at a time, in all databases */
extern int jq_paused_role_max(void);

/* Costs one look at a number as long as no role is paused. */
extern bool jq_role_is_paused(Oid db, Oid role);
/* the same with JQ_LOCK_DIR held */
extern bool jq_role_is_paused_locked(Oid db, Oid role);

/*
 * A transaction that has paused the role has committed.  When this returns, no
 * job of it is taken any more.
 */
extern void jq_role_pause(Oid db, Oid role);

/*
 * The scheduler: before the snapshot with which it reads the table, and what it
 * has read.  false: there are more than memory has place for.
 */
extern uint32 jq_role_load_begin(void);
extern bool jq_role_load(int dbix, uint32 seen, const Oid *roles, int n);

/* JQ_LOCK_DIR held exclusively: the database has no extension any more */
extern void jq_role_forget_db(Oid db);

#endif /* JQ_PAUSEDROLE_H */
