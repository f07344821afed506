/*
 * fetch.h
 *		What functions of outside consumers have in common.
 */
#ifndef JQ_FETCH_H
#define JQ_FETCH_H

#include "fetched.h"
#include "fmgr.h"
#include "jobtable.h"

/*
 * What keeps a job that was just taken from being given to the consumer; see
 * fetch.c.
 */
typedef enum JqLook
{
	JQ_LOOK_GIVE,	/* nothing; its claim says what it is */
	JQ_LOOK_DROPPED /* it is not ours any more */
} JqLook;

extern JqLook jq_fetch_look(JqTable *t, const JqTaken *job, JqRow *row);

#endif /* JQ_FETCH_H */
