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
	bool known; /* somebody has to do with the key; else only the last two */
	int holders;
	int procno; /* of one of them, if there is one */
	int pid;
	int64 job; /* it is held for; 0 = none */
	TimestampTz since;
	int ahead;	   /* waiters in memory before that place */
	bool waits;	   /* is the job at that place one of them? */
	bool in_table; /* or its row left in the table until they have gone? */
	int64 after;   /* a job that failed and is to run before; 0 = none */
	int limit;	   /* so many may hold it, with that job */
	TimestampTz next_token; /* 0 = there is one, or none is needed */
} JqKeyLook;

/*
 * From the place of a job of that lane (-1: of a queue with default settings) in
 * the order of the key.
 */
extern void jq_keylock_look(Oid db, const char *key, int len, int lane,
							JqPos pos, JqKeyLook *out);

#endif /* JQ_KEYLOOK_H */
