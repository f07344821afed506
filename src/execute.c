/*
 * execute.c
 *		Executing the command of a job.
 *
 * A function that takes one jsonb or nothing and returns one value is called
 * directly.  Its lookup is kept until the catalogs change; then existence,
 * rights and owner are checked anew.  Procedures, set-returning functions and
 * SQL text go through SPI.  The plan of a text is kept when the text is seen
 * for the second time, so that texts with literals in them do not pile up.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "common/hashfn.h"
#include "compat.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "nodes/params.h"
#include "parser/parser.h"
#include "runjob.h"
#include "servicerun.h"
#include "tcop/dest.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#define CACHE_SIZE 64

typedef struct CachedFunction
{
	char *command; /* NULL = unused */
	Oid enqueued_owner;
	Oid user;
	uint32 generation;
	uint32 used;
	MemoryContext context;
	Oid oid;
	bool direct;
	bool is_procedure;
	bool takes_args;
	int nargs;
	Oid rettype;
	FmgrInfo finfo;
	FmgrInfo to_jsonb;
} CachedFunction;

typedef struct CachedText
{
	uint32 hash; /* 0 = unused */
	uint32 used;
	char *text; /* NULL = seen once */
	SPIPlanPtr plan;
} CachedText;

static CachedFunction functions[CACHE_SIZE];
static CachedText texts[CACHE_SIZE];
static uint32 clock_hand;

/*
 * A job may run another one (jobqueue_run): then the caches are in use below
 * and are left alone.
 */
static int depth;

/* ----------------------------------------------------------- environment */

static void
apply_environment(JqRow *row, GucAction action)
{
	char *path = jq_row_cstring(row, JQ_COL_SEARCH_PATH);
	Datum *elems;
	int n, i;

	if (path != NULL)
		(void) set_config_option("search_path", path, PGC_USERSET,
								 PGC_S_SESSION, action, true, 0, false);
	if (JQ_ROW_NULL(row, JQ_COL_SETTINGS))
		return;
	deconstruct_array(DatumGetArrayTypeP(JQ_ROW(row, JQ_COL_SETTINGS)), TEXTOID,
					  -1, false, TYPALIGN_INT, &elems, NULL, &n);
	for (i = 0; i < n; i++)
	{
		char *name = TextDatumGetCString(elems[i]);
		char *value = strchr(name, '=');

		if (value == NULL)
			continue;
		*value++ = '\0';
		(void) set_config_option(name, value,
								 superuser() ? PGC_SUSET : PGC_USERSET,
								 PGC_S_SESSION, action, true, 0, false);
	}
}

void
jq_apply_environment(JqRow *row)
{
	apply_environment(row, GUC_ACTION_LOCAL);
}

void
jq_apply_environment_nested(JqRow *row)
{
	apply_environment(row, GUC_ACTION_SAVE);
}

/* ---------------------------------------------------------------- results */

/* keeps the first column of the first row, and counts on */
typedef struct FirstReceiver
{
	DestReceiver pub;
	MemoryContext context;
	bool got;
	bool isnull;
	Datum value;
	Oid type;
} FirstReceiver;

static void
first_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	FirstReceiver *r = (FirstReceiver *) self;

	(void) operation;
	/* a later statement's result takes the place of an earlier one's */
	r->got = false;
	r->isnull = true;
	r->type = desc->natts > 0 ? TupleDescAttr(desc, 0)->atttypid : InvalidOid;
}

static bool
first_receive(TupleTableSlot *slot, DestReceiver *self)
{
	FirstReceiver *r = (FirstReceiver *) self;

	if (!r->got && OidIsValid(r->type))
	{
		MemoryContext old = MemoryContextSwitchTo(r->context);
		Datum d = slot_getattr(slot, 1, &r->isnull);
		int16 len;
		bool byval;

		if (!r->isnull)
		{
			get_typlenbyval(r->type, &len, &byval);
			if (len == -1)
				r->value = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
			else
				r->value = datumCopy(d, byval, len);
		}
		MemoryContextSwitchTo(old);
		r->got = true;
	}
	return true;
}

static void
first_nothing(DestReceiver *self)
{
	(void) self;
}

static void
init_first(FirstReceiver *r)
{
	memset(r, 0, sizeof(*r));
	r->pub.receiveSlot = first_receive;
	r->pub.rStartup = first_startup;
	r->pub.rShutdown = first_nothing;
	r->pub.rDestroy = first_nothing;
	r->pub.mydest = DestNone;
	r->context = CurrentMemoryContext;
	r->isnull = true;
}

/* to_jsonb() takes its type from the call's expression: make one */
static void
init_to_jsonb(FmgrInfo *finfo, Oid type, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Const *arg = makeNullConst(type, -1, InvalidOid);
	FuncExpr *expr = makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(arg),
								  InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);

	fmgr_info_cxt(F_TO_JSONB, finfo, context);
	fmgr_info_set_expr((Node *) expr, finfo);
	MemoryContextSwitchTo(old);
}

static Datum
value_to_jsonb(Datum value, Oid type)
{
	FmgrInfo finfo;

	if (type == JSONBOID)
		return value;
	init_to_jsonb(&finfo, type, CurrentMemoryContext);
	return FunctionCall1(&finfo, value);
}

/* -------------------------------------------------------------- functions */

static void
forget_function(CachedFunction *f)
{
	if (f->command == NULL)
		return;
	f->command = NULL;
	MemoryContextDelete(f->context);
}

/*
 * Find the function of a signature, and check that it is what was enqueued: the
 * role that owned it then, the job's owner or a superuser owns it now.
 */
static void
lookup_function(CachedFunction *f, const char *command, Oid enqueued_owner)
{
	Oid user = GetUserId();
	HeapTuple tup;
	Form_pg_proc proc;
	List *names;
	int nargs;
	Oid argtypes[FUNC_MAX_ARGS];
	const char *paren = strrchr(command, '(');
	char *name;
	FuncCandidateList c;

	/* as regprocedure's input does, with the rights of the job's role */
	if (paren == NULL ||
		(strcmp(paren, "()") != 0 && strcmp(paren, "(pg_catalog.jsonb)") != 0 &&
		 strcmp(paren, "(jsonb)") != 0 && strcmp(paren, JQ_HANDLER_ARGS) != 0))
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("invalid function signature \"%s\"", command),
						errhint("Enqueue the job with jobqueue_enqueue().")));
	name = pnstrdup(command, paren - command);
	names = textToQualifiedNameList(cstring_to_text(name));
	nargs = strcmp(paren, "()") == 0			? 0 :
			strcmp(paren, JQ_HANDLER_ARGS) == 0 ? 2 :
												  1;
	argtypes[0] = argtypes[1] = JSONBOID;
	f->oid = InvalidOid;
	for (c = FuncnameGetCandidates(names, nargs, NIL, false, false, false,
								   false);
		 c; c = c->next)
		if (memcmp(c->args, argtypes, nargs * sizeof(Oid)) == 0)
			f->oid = c->oid;
	if (!OidIsValid(f->oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist", command),
				 errhint(
					 "It was dropped or changed after the job was enqueued.")));
	tup = SearchSysCache1(PROCOID, ObjectIdGetDatum(f->oid));
	if (!HeapTupleIsValid(tup))
		elog(ERROR, "cache lookup failed for function %u", f->oid);
	proc = (Form_pg_proc) GETSTRUCT(tup);
	if ((proc->prokind != PROKIND_FUNCTION &&
		 proc->prokind != PROKIND_PROCEDURE) ||
		(get_typtype(proc->prorettype) == TYPTYPE_PSEUDO &&
		 proc->prorettype != VOIDOID && proc->prorettype != RECORDOID))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("%s cannot be run as a job", command),
				 errhint(
					 "Enqueue it with jobqueue_enqueue(), which says why.")));
	if (proc->proowner != enqueued_owner && proc->proowner != user &&
		!superuser_arg(proc->proowner))
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg(
				 "function %s has another owner than when the job was enqueued",
				 command),
			 errhint(
				 "If the new function is to be trusted, cancel the job and enqueue it again.")));
	if (jq_proc_aclcheck(f->oid, user, ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV,
					   proc->prokind == PROKIND_PROCEDURE ? OBJECT_PROCEDURE :
															OBJECT_FUNCTION,
					   NameStr(proc->proname));
	f->is_procedure = proc->prokind == PROKIND_PROCEDURE;
	f->takes_args = nargs == 1;
	f->nargs = nargs;
	f->rettype = proc->prorettype;
	f->direct =
		!f->is_procedure && !proc->proretset && proc->prorettype != RECORDOID;
	ReleaseSysCache(tup);
}

void
jq_execute_check(const char *command, Oid func_owner)
{
	CachedFunction f;

	lookup_function(&f, command, func_owner);
}

static CachedFunction *
get_function(const char *command, Oid enqueued_owner)
{
	uint32 now = jq_command_generation();
	CachedFunction *f = NULL;
	CachedFunction *oldest = &functions[0];
	CachedFunction new;
	int i;

	for (i = 0; i < CACHE_SIZE; i++)
	{
		f = &functions[i];
		if (f->command == NULL || f->used < oldest->used)
			oldest = f;
		if (f->command != NULL && f->generation == now &&
			f->enqueued_owner == enqueued_owner && f->user == GetUserId() &&
			strcmp(f->command, command) == 0)
		{
			f->used = ++clock_hand;
			return f;
		}
		if (f->command != NULL && f->generation != now && depth <= 1)
			forget_function(f);
	}
	f = depth > 1 ? palloc0(sizeof(CachedFunction)) : oldest;
	if (depth <= 1)
		forget_function(f);
	memset(&new, 0, sizeof(new));
	lookup_function(&new, command, enqueued_owner);
	new.context =
		AllocSetContextCreate(depth > 1 ? CurrentMemoryContext :
										  TopMemoryContext,
							  "jobqueue function", ALLOCSET_SMALL_SIZES);
	new.generation = now;
	new.enqueued_owner = enqueued_owner;
	new.user = GetUserId();
	new.used = ++clock_hand;
	*f = new;
	if (f->direct)
	{
		fmgr_info_cxt(f->oid, &f->finfo, f->context);
		if (f->rettype != VOIDOID && f->rettype != JSONBOID)
			init_to_jsonb(&f->to_jsonb, f->rettype, f->context);
	}
	f->command = MemoryContextStrdup(f->context, command);
	return f;
}

static Datum
call_function(CachedFunction *f, Datum args, bool args_null, bool *isnull)
{
	LOCAL_FCINFO(fcinfo, 1);
	PgStat_FunctionCallUsage usage;
	Datum result;

	InvokeFunctionExecuteHook(f->oid);
	*isnull = true;
	if (f->takes_args && args_null && f->finfo.fn_strict)
		return (Datum) 0;
	InitFunctionCallInfoData(*fcinfo, &f->finfo, f->takes_args ? 1 : 0,
							 InvalidOid, NULL, NULL);
	fcinfo->args[0].value = args;
	fcinfo->args[0].isnull = args_null;
	pgstat_init_function_usage(fcinfo, &usage);
	result = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);
	if (f->rettype == VOIDOID || fcinfo->isnull)
		return (Datum) 0;
	*isnull = false;
	if (f->rettype == JSONBOID)
		return result;
	return FunctionCall1(&f->to_jsonb, result);
}

/* ------------------------------------------------------------- statements */

static void
forget_text(CachedText *c)
{
	if (c->plan)
		SPI_freeplan(c->plan);
	if (c->text)
		pfree(c->text);
	memset(c, 0, sizeof(*c));
}

/* the plan of the text, if it is worth keeping and one statement */
static SPIPlanPtr
get_plan(const char *text)
{
	uint32 hash =
		DatumGetUInt32(hash_any((const unsigned char *) text, strlen(text))) |
		1;
	CachedText *oldest = &texts[0];
	CachedText *c;
	SPIPlanPtr plan;
	Oid types[1] = {JSONBOID};
	int i;

	for (i = 0; i < CACHE_SIZE; i++)
	{
		c = &texts[i];
		if (c->hash == hash && (c->text == NULL || strcmp(c->text, text) == 0))
			break;
		if (c->used < oldest->used)
			oldest = c;
	}
	if (i == CACHE_SIZE)
	{
		forget_text(oldest);
		oldest->hash = hash;
		oldest->used = ++clock_hand;
		return NULL;
	}
	c->used = ++clock_hand;
	if (c->plan != NULL)
		return c->plan;
	if (strlen(text) > 65536)
		return NULL;
	/* several statements may not be analyzed before the first has run */
	if (list_length(raw_parser(text, RAW_PARSE_DEFAULT)) != 1)
		return NULL;
	plan = SPI_prepare(text, 1, types);
	if (plan == NULL)
		return NULL;
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	c->plan = plan;
	c->text = MemoryContextStrdup(TopMemoryContext, text);
	return plan;
}

static Datum
run_statements(const char *text, Datum args, bool args_null, bool *isnull)
{
	FirstReceiver first;
	SPIExecuteOptions options;
	ParamListInfo params = makeParamList(1);
	SPIPlanPtr plan;
	int rc;

	params->params[0].value = args;
	params->params[0].isnull = args_null;
	params->params[0].ptype = JSONBOID;
	params->params[0].pflags = PARAM_FLAG_CONST;
	init_first(&first);
	memset(&options, 0, sizeof(options));
	options.params = params;
	options.dest = &first.pub;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = depth > 1 ? NULL : get_plan(text);
	if (plan != NULL)
		rc = SPI_execute_plan_extended(plan, &options);
	else
		rc = SPI_execute_extended(text, &options);
	if (rc < 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("the command cannot be executed in a job: %s",
							   SPI_result_code_string(rc))));
	SPI_finish();
	*isnull = first.isnull;
	if (first.isnull || first.type == VOIDOID)
	{
		*isnull = true;
		return (Datum) 0;
	}
	return value_to_jsonb(first.value, first.type);
}

Datum
jq_execute_handler(const char *handler, Oid func_owner, Datum state,
				   Datum message, bool message_null, bool *isnull)
{
	CachedFunction *f = get_function(handler, func_owner);
	LOCAL_FCINFO(fcinfo, 2);
	PgStat_FunctionCallUsage usage;
	Datum result;

	if (f->nargs != 2 || !f->direct || f->rettype != JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("function %s cannot be the handler of a service",
						handler),
				 errhint("It was changed after the service was started.")));
	InvokeFunctionExecuteHook(f->oid);
	*isnull = true;
	if (message_null && f->finfo.fn_strict)
		return (Datum) 0;
	InitFunctionCallInfoData(*fcinfo, &f->finfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = state;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value =
		message_null ? (Datum) 0 : PointerGetDatum(PG_DETOAST_DATUM(message));
	fcinfo->args[1].isnull = message_null;
	pgstat_init_function_usage(fcinfo, &usage);
	result = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);
	*isnull = fcinfo->isnull;
	return result;
}

static Datum
execute(JqRow *row, bool *isnull)
{
	char *command = jq_row_cstring(row, JQ_COL_COMMAND);
	bool args_null = JQ_ROW_NULL(row, JQ_COL_ARGS);
	Datum args = (Datum) 0;
	Oid owner = InvalidOid;
	CachedFunction *f;

	if (!args_null)
		args = PointerGetDatum(PG_DETOAST_DATUM(JQ_ROW(row, JQ_COL_ARGS)));
	if (DatumGetChar(JQ_ROW(row, JQ_COL_KIND)) == JQ_KIND_MESSAGE)
		return jq_service_handle(row, isnull);
	if (DatumGetChar(JQ_ROW(row, JQ_COL_KIND)) != JQ_KIND_FUNCTION)
		return run_statements(command, args, args_null, isnull);
	if (!JQ_ROW_NULL(row, JQ_COL_FUNC_OWNER))
		owner = DatumGetObjectId(JQ_ROW(row, JQ_COL_FUNC_OWNER));
	f = get_function(command, owner);
	if (f->nargs > 1)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("invalid function signature \"%s\"", command),
						errhint("Enqueue the job with jobqueue_enqueue().")));
	if (f->direct)
		return call_function(f, args, args_null, isnull);

	/* the signature names the function without doubt */
	*strrchr(command, '(') = '\0';
	return run_statements(psprintf("%s %s(%s)",
								   f->is_procedure ? "CALL" : "SELECT", command,
								   f->takes_args ? "$1" : ""),
						  args, args_null, isnull);
}

Datum
jq_execute(JqRow *row, bool *isnull)
{
	Datum result;

	depth++;
	PG_TRY();
	{
		result = execute(row, isnull);
	}
	PG_FINALLY();
	{
		depth--;
	}
	PG_END_TRY();
	return result;
}
