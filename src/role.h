/*
 * role.h
 *		What is done about all that a role has in the queue: pause, resume,
 *		give to another one.
 */
#ifndef JQ_ROLE_H
#define JQ_ROLE_H

#include "jobtable.h"

/* the roles that are paused, in the memory context of the moment */
extern Oid *jq_paused_roles_read(JqTable *t, int *n);

#endif /* JQ_ROLE_H */
