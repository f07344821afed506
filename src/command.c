/*
 * command.c
 *		Commands at enqueue: functions are looked up, SQL text is parsed.
 *
 * A bare name is a function or procedure.  It is stored with its full signature
 * and the role that owns it now, so that no later change of a search_path, and
 * no function planted by somebody else, changes what the job means.
 *
 * The last few answers are kept, for loops that enqueue the same command; they
 * hold as long as user, search_path and the catalogs they rest on are the same.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/defrem.h"
#include "common/keywords.h"
#include "compat.h"
#include "jobtable.h"
#include "keylock.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "nodes/pg_list.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#define CACHE_SIZE 8
#define CACHE_MAX_TEXT 1024

typedef struct CacheEntry
{
	char *command; /* NULL = unused */
	char *search_path;
	Oid user;
	uint32 generation;
	JqCommand answer;
} CacheEntry;

static CacheEntry cache[CACHE_SIZE];
static int cache_next;
static MemoryContext cache_context;

static uint32 generation = 1;
static bool callbacks_registered;
static bool rests_on_relation; /* the answer holds for now only */

static void
catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	(void) arg;
	(void) cacheid;
	(void) hashvalue;
	generation++;
}

uint32
jq_command_generation(void)
{
	if (!callbacks_registered)
	{
		CacheRegisterSyscacheCallback(PROCOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHOID, catalog_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, catalog_changed,
									  (Datum) 0);
		callbacks_registered = true;
	}
	return generation;
}

void
jq_check_queue_name(const char *name)
{
	int len = 0;
	const char *p;

	for (p = name; *p; p++, len++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
			  (*p >= '0' && *p <= '9') || strchr("_.:-", *p)))
			break;
	if (*p != '\0' || len < 1 || len > JQ_QUEUE_NAME_MAX)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid queue name \"%s\"", name),
			 errhint(
				 "A queue name consists of 1 to 63 letters, digits and the characters \"_\", \".\", \":\", \"-\".")));
}

void
jq_check_key(int len)
{
	if (len < 1 || len > JQ_KEY_MAX)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 len < 1 ? errmsg("key must not be empty") :
					   errmsg("key is too long"),
			 len < 1 ?
				 errhint("Leave the key out if the job needs none.") :
				 errhint(
					 "A key has 1 to %d bytes; hash what is longer, for instance with md5().",
					 JQ_KEY_MAX)));
}

bool
jq_key_is_schedule(const char *key, int len)
{
	return len >= (int) strlen(JQ_SCHEDULE_KEY) &&
		   memcmp(key, JQ_SCHEDULE_KEY, strlen(JQ_SCHEDULE_KEY)) == 0;
}

void
jq_check_user_key(const char *key, int len)
{
	jq_check_key(len);
	if (jq_key_is_service(key, len))
		ereport(
			ERROR,
			(errcode(ERRCODE_RESERVED_NAME),
			 errmsg("keys that begin with \"%s\" are reserved", JQ_SERVICE_KEY),
			 errhint(
				 "They are those of services; send messages with jobqueue_send().")));
	if (jq_key_is_schedule(key, len))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("keys that begin with \"%s\" are reserved",
						JQ_SCHEDULE_KEY),
				 errhint(
					 "They are those of schedules; give a schedule a key of "
					 "yours to share it.")));
}

/* ------------------------------------------------------------- functions */

/* one identifier, quoted or not, perhaps qualified, and nothing else */
static bool
is_bare_name(const char *s)
{
	while (scanner_isspace(*s))
		s++;
	for (;;)
	{
		if (*s == '"')
		{
			const char *begin = ++s;
			bool closed = false;

			while (*s && !closed)
				if (*s != '"')
					s++;
				else if (s[1] == '"')
					s += 2;
				else
				{
					closed = true;
					s++;
				}
			if (!closed || s == begin + 1)
				return false; /* "" is no name */
		}
		else if (isalpha((unsigned char) *s) || *s == '_' || IS_HIGHBIT_SET(*s))
			while (isalnum((unsigned char) *s) || *s == '_' || *s == '$' ||
				   IS_HIGHBIT_SET(*s))
				s++;
		else
			return false;
		while (scanner_isspace(*s))
			s++;
		if (*s != '.')
			break;
		s++;
		while (scanner_isspace(*s))
			s++;
	}
	return *s == '\0';
}

/* would it have been a statement, had it not been taken for a name? */
static bool
is_keyword(const char *s)
{
	char *word = pstrdup(s);
	char *end;
	int kw;

	while (scanner_isspace(*word))
		word++;
	for (end = word; *end && !scanner_isspace(*end); end++)
		;
	*end = '\0';
	if (pg_strcasecmp(word, "commit") == 0 ||
		pg_strcasecmp(word, "rollback") == 0 ||
		pg_strcasecmp(word, "begin") == 0 ||
		pg_strcasecmp(word, "abort") == 0 || pg_strcasecmp(word, "end") == 0)
		return false; /* refused in any form */
	kw = ScanKeywordLookup(downcase_truncate_identifier(word, strlen(word),
														false),
						   &ScanKeywords);
	return kw >= 0;
}

/* a function or procedure of exactly these input arguments */
static Oid
find_signature(List *names, int nargs, const Oid *argtypes)
{
	FuncCandidateList c;

	for (c = FuncnameGetCandidates(names, nargs, NIL, false, false, false,
								   true);
		 c; c = c->next)
		if (memcmp(c->args, argtypes, nargs * sizeof(Oid)) == 0)
			return c->oid;
	return InvalidOid;
}

static Oid
find_function(const char *command)
{
	List *names = textToQualifiedNameList(cstring_to_text(command));
	Oid argtypes[1] = {JSONBOID};
	Oid fn;

	fn = find_signature(names, 1, argtypes);
	if (!OidIsValid(fn))
		fn = find_signature(names, 0, argtypes);
	if (!OidIsValid(fn))
	{
		FuncCandidateList others;

		others =
			FuncnameGetCandidates(names, -1, NIL, false, false, false, true);
		if (others != NULL)
			ereport(
				ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg(
					 "function \"%s\" takes neither one jsonb argument nor none",
					 NameListToString(names)),
				 errhint(
					 "A job's function is called with its args, f(jsonb), or without, f(); for anything else enqueue SQL text such as 'SELECT f(1, 2)'.")));
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION),
			 errmsg("function \"%s\" does not exist", NameListToString(names)),
			 is_keyword(command) ?
				 errhint(
					 "A bare name is a function. For a statement of one word, end it with a semicolon: '%s;'.",
					 command) :
				 errhint(
					 "It must be on the search_path, or qualified, and take one jsonb argument or none.")));
	}
	return fn;
}

char *
jq_command_handler(const char *name, Oid *func_owner)
{
	static const char *const hint =
		"A handler is the name of a function f(state jsonb, message jsonb) that returns jsonb.";
	Oid argtypes[2] = {JSONBOID, JSONBOID};
	Oid fn = InvalidOid;
	HeapTuple tup;
	Form_pg_proc proc;

	if (is_bare_name(name))
		fn = find_signature(textToQualifiedNameList(cstring_to_text(name)), 2,
							argtypes);
	if (!OidIsValid(fn))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("there is no function \"%s\" of two jsonb", name),
				 errhint("%s", hint)));
	tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(fn));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for function %u", fn);
	proc = (Form_pg_proc) GETSTRUCT(tup);
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset ||
		proc->prorettype != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be the handler of a service", name),
				 errhint("%s", hint)));
	if (isAnyTempNamespace(proc->pronamespace))
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("function \"%s\" is temporary and cannot be a handler",
					name),
			 errhint(
				 "Workers do not see the temporary objects of a session.")));
	if (jq_proc_aclcheck(fn, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION,
					   NameStr(proc->proname));
	*func_owner = proc->proowner;
	ReleaseSysCache(tup);
	return format_procedure_qualified(fn);
}

static void
resolve_function(const char *command, JqCommand *answer)
{
	Oid fn = find_function(command);
	HeapTuple tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(fn));
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for function %u", fn);
	proc = (Form_pg_proc) GETSTRUCT(tup);
	if (proc->prokind != PROKIND_FUNCTION && proc->prokind != PROKIND_PROCEDURE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a function or procedure", command),
				 errhint("Aggregate and window functions cannot be jobs.")));
	if (get_typtype(proc->prorettype) == TYPTYPE_PSEUDO &&
		proc->prorettype != VOIDOID && proc->prorettype != RECORDOID)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg(
				 "function \"%s\" cannot be a job because it returns type %s",
				 command, format_type_be(proc->prorettype)),
			 errhint(
				 "A trigger enqueues a job by calling jobqueue_enqueue() in its body.")));
	if (isAnyTempNamespace(proc->pronamespace))
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("function \"%s\" is temporary and cannot be a job",
					command),
			 errhint(
				 "Workers do not see the temporary objects of a session.")));
	if (jq_proc_aclcheck(fn, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV,
					   proc->prokind == PROKIND_PROCEDURE ? OBJECT_PROCEDURE :
															OBJECT_FUNCTION,
					   NameStr(proc->proname));
	answer->kind = JQ_KIND_FUNCTION;
	answer->func_owner = proc->proowner;
	answer->stored = format_procedure_qualified(fn);
	ReleaseSysCache(tup);
}

/* -------------------------------------------------------------- SQL text */

/* positions of syntax errors are in the command, not in the caller's query */
static void
syntax_error_callback(void *arg)
{
	int pos = geterrposition();

	if (pos > 0)
	{
		errposition(0);
		internalerrposition(pos);
		internalerrquery((const char *) arg);
	}
	errcontext("command of a job");
}

static bool
has_option(List *options, const char *name)
{
	ListCell *lc;

	foreach(lc, options)
	{
		DefElem *opt = lfirst(lc);

		if (strcmp(opt->defname, name) == 0)
			return true;
	}
	return false;
}

/* the last one counts, as it does for the server */
static bool
is_concurrent(List *options)
{
	bool on = false;
	ListCell *lc;

	foreach(lc, options)
	{
		DefElem *opt = lfirst(lc);

		if (strcmp(opt->defname, "concurrently") == 0)
			on = defGetBoolean(opt);
	}
	return on;
}

/* as it is now, and without a check of rights: that is the statement's */
static bool
is_partitioned(const RangeVar *rel)
{
	Oid oid;
	char kind;

	rests_on_relation = true;
	if (rel->schemaname)
		oid = get_relname_relid(rel->relname,
								get_namespace_oid(rel->schemaname, true));
	else
		oid = RelnameGetRelid(rel->relname);
	kind = OidIsValid(oid) ? get_rel_relkind(oid) : '\0';
	return kind == RELKIND_PARTITIONED_TABLE ||
		   kind == RELKIND_PARTITIONED_INDEX;
}

/* what a table or index of a statement is taken for */
typedef enum Partitioned
{
	LOOK,
	PARTITIONED,
	NOT_PARTITIONED
} Partitioned;

/* a statement that does not run in a transaction block */
static bool
needs_outside(Node *stmt, Partitioned how)
{
	switch (nodeTag(stmt))
	{
		case T_VacuumStmt:
			return ((VacuumStmt *) stmt)->is_vacuumcmd;
		case T_IndexStmt:
			return ((IndexStmt *) stmt)->concurrent;
		case T_DropStmt:
			return ((DropStmt *) stmt)->concurrent;
		case T_ReindexStmt:
		{
			ReindexStmt *r = (ReindexStmt *) stmt;

			return is_concurrent(r->params) || r->relation == NULL ||
				   how == PARTITIONED ||
				   (how == LOOK && is_partitioned(r->relation));
		}
		case T_ClusterStmt:
		{
			RangeVar *rel = ((ClusterStmt *) stmt)->relation;

			return rel == NULL || how == PARTITIONED ||
				   (how == LOOK && is_partitioned(rel));
		}
		case T_AlterTableStmt:
		{
			ListCell *lc;

			foreach(lc, ((AlterTableStmt *) stmt)->cmds)
			{
				AlterTableCmd *cmd = lfirst(lc);

				if (cmd->subtype == AT_DetachPartition && cmd->def != NULL &&
					IsA(cmd->def, PartitionCmd) &&
					((PartitionCmd *) cmd->def)->concurrent)
					return true;
			}
			return false;
		}
		case T_AlterDatabaseStmt:
			return has_option(((AlterDatabaseStmt *) stmt)->options,
							  "tablespace");
		case T_AlterSystemStmt:
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_CreateTableSpaceStmt:
		case T_DropTableSpaceStmt:
		case T_CreateSubscriptionStmt:
		case T_DropSubscriptionStmt:
		case T_AlterSubscriptionStmt:
		case T_CallStmt:
			return true;
		default:
			return false;
	}
}

static void
resolve_sql(const char *command, JqCommand *answer, Partitioned how)
{
	ErrorContextCallback context;
	List *list;
	ListCell *lc;

	context.callback = syntax_error_callback;
	context.arg = unconstify(char *, command);
	context.previous = error_context_stack;
	error_context_stack = &context;
	list = raw_parser(command, RAW_PARSE_DEFAULT);
	error_context_stack = context.previous;

	if (list == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("command is empty"),
				 errhint("A command is the name of a function, or SQL text.")));
	answer->kind = JQ_KIND_SQL;
	answer->func_owner = InvalidOid;
	answer->stored = command;
	foreach(lc, list)
	{
		Node *stmt = lfirst_node(RawStmt, lc)->stmt;

		if (IsA(stmt, TransactionStmt))
			ereport(
				ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg(
					 "transaction control is not allowed in the command of a job"),
				 errhint(
					 "A job is one transaction; a procedure that commits is enqueued as a single CALL.")));
		if (IsA(stmt, CopyStmt) && ((CopyStmt *) stmt)->filename == NULL)
			ereport(
				ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg(
					 "COPY from or to a client is not allowed in the command of a job"),
				 errhint(
					 "Use COPY with a file or program, or INSERT ... SELECT.")));
		if (!needs_outside(stmt, how))
			continue;
		if (list_length(list) == 1)
			answer->kind = JQ_KIND_OUTSIDE;
		else if (!IsA(stmt, CallStmt))
			ereport(
				ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg(
					 "the command of a job has several statements, one of which cannot run in a transaction block"),
				 errhint("Enqueue that statement as a job of its own.")));
	}
}

bool
jq_command_is(const char *command, char kind)
{
	JqCommand answer;

	resolve_sql(command, &answer,
				kind == JQ_KIND_OUTSIDE ? PARTITIONED : NOT_PARTITIONED);
	return answer.kind == kind;
}

/* --------------------------------------------------------------- resolve */

const JqCommand *
jq_command_resolve(const char *command)
{
	static JqCommand uncached;
	uint32 now = jq_command_generation();
	Oid user = GetUserId();
	JqCommand answer;
	CacheEntry *e;
	MemoryContext old;
	int i;

	for (i = 0; i < CACHE_SIZE; i++)
	{
		e = &cache[i];
		if (e->command != NULL && e->generation == now && e->user == user &&
			strcmp(e->command, command) == 0 &&
			strcmp(e->search_path, namespace_search_path) == 0)
			return &e->answer;
	}

	rests_on_relation = false;
	if (is_bare_name(command))
		resolve_function(command, &answer);
	else
		resolve_sql(command, &answer, LOOK);

	uncached = answer;
	if (strlen(command) > CACHE_MAX_TEXT || rests_on_relation ||
		jq_command_generation() != now)
		return &uncached;
	if (cache_context == NULL)
		cache_context =
			AllocSetContextCreate(TopMemoryContext, "jobqueue commands",
								  ALLOCSET_SMALL_SIZES);
	e = &cache[cache_next];
	cache_next = (cache_next + 1) % CACHE_SIZE;
	if (e->command != NULL)
	{
		if (e->answer.stored != e->command)
			pfree(unconstify(char *, e->answer.stored));
		pfree(e->command);
		pfree(e->search_path);
		e->command = NULL;
	}
	old = MemoryContextSwitchTo(cache_context);
	e->search_path = pstrdup(namespace_search_path);
	e->answer = answer;
	e->user = user;
	e->generation = now;
	if (answer.stored == command)
		e->answer.stored = e->command = pstrdup(command);
	else
	{
		e->answer.stored = pstrdup(answer.stored);
		e->command = pstrdup(command);
	}
	MemoryContextSwitchTo(old);
	return &e->answer;
}
