/*
 * command.h
 *		What the text of a command means, decided when it is enqueued.
 */
#ifndef JQ_COMMAND_H
#define JQ_COMMAND_H

#include "postgres.h"

typedef struct JqCommand
{
	char kind;			/* JQ_KIND_* */
	const char *stored; /* full signature, or the text */
	Oid func_owner;		/* JQ_KIND_FUNCTION */
} JqCommand;

/*
 * Resolve a command for the current user and search_path; ERROR if it cannot be
 * run.  The result is valid until the next call.
 */
extern const JqCommand *jq_command_resolve(const char *command);

/* the kind of a text that is not a bare name; ERROR if it is no SQL */
extern char jq_command_kind(const char *command);

/* moves whenever functions, schemas or roles have changed */
extern uint32 jq_command_generation(void);

/* SQLSTATE 22023 unless it is 1 to 63 of letters, digits, "_.:-" */
extern void jq_check_queue_name(const char *name);
/* SQLSTATE 22023 unless it has 1 to 255 bytes */
extern void jq_check_key(int len);

#endif /* JQ_COMMAND_H */
