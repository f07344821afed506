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

/*
 * Can the text, no bare name, be of that kind?  It can be of two where it rests on
 * what a table was.  ERROR if it is no SQL.
 */
extern bool jq_command_is(const char *command, char kind);

/* how the signature of the handler of a service ends */
#define JQ_HANDLER_ARGS "(pg_catalog.jsonb,pg_catalog.jsonb)"

/*
 * The function that a name means as the handler of a service: its signature,
 * palloc'd, and its owner.  ERROR if there is none that the caller can use.
 */
extern char *jq_command_handler(const char *name, Oid *func_owner);

/* moves whenever functions, schemas or roles have changed */
extern uint32 jq_command_generation(void);

/* SQLSTATE 22023 unless it is 1 to 63 of letters, digits, "_.:-" */
extern void jq_check_queue_name(const char *name);
/* SQLSTATE 22023 unless it has 1 to 255 bytes */
extern void jq_check_key(int len);
/* the same, and besides it is not one of those that services have */
/* jobs of a schedule that are not to run beside each other have a key of its own */
#define JQ_SCHEDULE_KEY "jobqueue_schedule:"
extern bool jq_key_is_schedule(const char *key, int len);

extern void jq_check_user_key(const char *key, int len);

#endif /* JQ_COMMAND_H */
