/*
 * keylook.h
 *		A look at one key.
 */
#ifndef JQ_KEYLOOK_H
#define JQ_KEYLOOK_H

#include "pool.h"
#include "utils/timestamp.h"

typedef struct JqKeyLook
{
	int procno; /* of the holder; -1 = free */
	int pid;
	int64 job; /* it is held for; 0 = none */
	TimestampTz since;
	int ahead;	   /* waiters in memory before that place */
	bool waits;	   /* is the job at that place one of them? */
	bool in_table; /* or its row left in the table until they have gone? */
} JqKeyLook;

/* from the place of a job in its order; false: nobody has to do with the key */
extern bool jq_keylock_look(Oid db, const char *key, int len, JqPos pos,
							JqKeyLook *out);

#endif /* JQ_KEYLOOK_H */
