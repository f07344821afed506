/*
 * grant.h
 *		Who may do and see what.
 */
#ifndef JQ_GRANT_H
#define JQ_GRANT_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* has the current user the level "admin"? superusers have */
extern bool jq_is_admin(void);
/* may that role make schedules? */
extern bool jq_may_schedule(Oid role);
/* SQLSTATE 42501 unless one may do that ("act on", ...) to a job of the owner */
extern void jq_check_owner(Oid owner, int64 id, const char *what);

/* may the current user fetch from the queue? */
extern bool jq_may_consume(const char *queue);

/*
 * What the current user may see of the jobs of a role: 2 all, 1 all but
 * arguments and results, 0 nothing.
 */
extern int jq_sight_of(Oid owner);

/* has the role the level "use", by itself or by a membership? */
extern bool jq_role_may_enqueue(Oid role);

/*
 * Around an update of the extension: who has a level gets what came with it.
 * What was there before is left as it is, also if somebody has taken it away.
 */
extern List *jq_grant_members(void);
extern void jq_grant_complete(const List *before);

#endif /* JQ_GRANT_H */
