/*
 * servicerow.h
 *		The rows of a service, and who may use it.
 *
 * What is found is palloc'd in the caller's context.
 */
#ifndef JQ_SERVICEROW_H
#define JQ_SERVICEROW_H

#include "fmgr.h"
#include "jobtable.h"

/* a service, as far as the caller needs it; strings are palloc'd */
typedef struct JqService
{
	int64 id;
	char *name;
	Oid owner;
	char *status;
	char *queue;
	char *handler;
	Oid func_owner;
	int64 down_job; /* 0 = none */
	int64 home;		/* of another one: its messages are held */
	Datum timeout;
	bool has_timeout;
	/* where they come from when the handler runs */
	JqRow environment;
} JqService;

/* the key of its messages, and back; ERROR if it is another key */
extern char *jq_service_key(int64 id);
extern int64 jq_service_id(const char *key);

/* as it is now, whatever the transaction's snapshot; false: there is none */
extern bool jq_service_find(JqTable *t, text *name, JqService *s);
/* as the transaction's snapshot has it */
extern bool jq_service_find_by_id(JqTable *t, int64 id, JqService *s);

/* the state that stands in the table now; false: the service has ended */
extern bool jq_service_read_state(JqTable *t, int64 id, bool has_key,
								  Datum *state);
/* the caller has the key; one more message has been handled */
extern bool jq_service_write_state(JqTable *t, int64 id, Datum state);

/* the name that is the first argument of a function; ERROR if it is none */
extern text *jq_service_name(FunctionCallInfo fcinfo);
/* the service of that name; ERROR if there is none or the caller may not use it */
extern void jq_service_argument(JqTable *t, FunctionCallInfo fcinfo,
								JqService *s);
extern void jq_service_check_owner(const JqService *s);
/* ERROR: it is being stopped */
extern void jq_service_is_stopping(const JqService *s);

/*
 * A statement, between jq_owner_begin() and jq_owner_end(); sql is a constant.
 * latest: it reads what is there now, whatever the transaction's snapshot.
 */
extern void jq_service_run(JqTable *t, const char *sql, int nargs, Oid *types,
						   Datum *values, const char *nulls, bool latest);
/* the same alone; *n: rows processed */
extern void jq_service_execute(JqTable *t, const char *sql, int nargs,
							   Oid *types, Datum *values, const char *nulls,
							   uint64 *n);
/* column n of the first row that a statement has found, copied to the context */
extern Datum jq_service_column(int n, MemoryContext context, bool *isnull);
extern char *jq_service_text(int n, MemoryContext context);

#endif /* JQ_SERVICEROW_H */
