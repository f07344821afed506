/*
 * session.c
 *		The session of a worker.
 *
 * Identity.  A worker serves one role for life.  It connects as that role, so
 * that session user, authenticated user and current user are the same and no
 * RESET, SET or ROLLBACK leads anywhere else.  Where the server refuses roles
 * without LOGIN (before PostgreSQL 17) it authenticates as jobqueue_nobody,
 * which has no rights, and then becomes the role: what falls back, falls to no
 * rights.  "ALTER ROLE ... SET role" is overridden.
 *
 * Leftovers.  After each job the session is as it was before, whatever the job
 * did: settings, temporary objects, prepared statements, cursors, session
 * advisory locks, the seed of random(), the replication origin.  Cleaning costs
 * more than a small job, so it is done only if the job did something that can
 * outlive a transaction.  That is noticed where it happens: utility statements,
 * and calls of the few functions that change session state.  What sequences have
 * given is forgotten after each job: identity columns and jobqueue_enqueue() use
 * them without a call of a function, and to forget costs nothing.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_proc.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "lockkey.h"
#include "nodes/parsenodes.h"
#include "replication/origin.h"
#include "session.h"
#include "storage/lock.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

static Oid my_role;
static bool my_role_super;
static bool by_nobody;
static bool commits_sync;
static bool dirty;
static bool transaction_dirty; /* something lasts to the transaction's end */

static object_access_hook_type prev_object_access_hook;

/* ---------------------------------------------------------- what is noted */

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);
	if (access == OAT_FUNCTION_EXECUTE)
		switch (objectId)
		{
			case F_SET_CONFIG:
			case F_SETSEED:
			case F_PG_REPLICATION_ORIGIN_SESSION_SETUP:
			case F_NEXTVAL:
			case F_SETVAL_REGCLASS_INT8:
			case F_SETVAL_REGCLASS_INT8_BOOL:
			case F_PG_ADVISORY_LOCK_INT8:
			case F_PG_ADVISORY_LOCK_SHARED_INT8:
			case F_PG_TRY_ADVISORY_LOCK_INT8:
			case F_PG_TRY_ADVISORY_LOCK_SHARED_INT8:
			case F_PG_ADVISORY_LOCK_INT4_INT4:
			case F_PG_ADVISORY_LOCK_SHARED_INT4_INT4:
			case F_PG_TRY_ADVISORY_LOCK_INT4_INT4:
			case F_PG_TRY_ADVISORY_LOCK_SHARED_INT4_INT4:
				dirty = true;
				break;
			default:
				break;
		}
	else if (access == OAT_POST_CREATE && !dirty)
	{
		Oid temp;
		Oid toast;

		/* something was created: perhaps in the temporary schema */
		GetTempNamespaceState(&temp, &toast);
		if (OidIsValid(temp))
			dirty = true;
	}
}

void
jq_session_note_utility(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_VariableSetStmt:
			/* what follows from a seed is not taken back */
			if (!((VariableSetStmt *) stmt)->is_local ||
				(((VariableSetStmt *) stmt)->name != NULL &&
				 pg_strcasecmp(((VariableSetStmt *) stmt)->name, "seed") == 0))
				dirty = true;
			break;
		case T_ConstraintsSetStmt:
			transaction_dirty = true;
			break;
		case T_PrepareStmt:
		case T_DeclareCursorStmt:
		case T_ListenStmt:
		case T_UnlistenStmt:
		case T_LoadStmt:
		case T_DiscardStmt:
		case T_DeallocateStmt:
			dirty = true;
			break;
		default:
			break;
	}
}

void
jq_session_note_lock(bool xact)
{
	if (xact)
		transaction_dirty = true;
	else
		dirty = true;
}

/* -------------------------------------------------------------- identity */

static void
apply_role_settings(Oid db, Oid role)
{
	Relation rel = table_open(DbRoleSettingRelationId, AccessShareLock);
	Snapshot snapshot =
		RegisterSnapshot(GetCatalogSnapshot(DbRoleSettingRelationId));

	ApplySetting(snapshot, db, role, rel, PGC_S_DATABASE_USER);
	ApplySetting(snapshot, InvalidOid, role, rel, PGC_S_USER);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* be the role, whatever the last job has left */
static void
become_role(void)
{
	if (by_nobody)
		SetSessionAuthorization(my_role, my_role_super);
}

void
jq_session_connect(Oid db, Oid role, Oid nobody)
{
	struct config_generic *commit;
	HeapTuple tup;

	my_role = role;
	by_nobody = OidIsValid(nobody);
	if (by_nobody)
		BackgroundWorkerInitializeConnectionByOid(db, nobody,
												  BGWORKER_BYPASS_ALLOWCONN);
	else
		BackgroundWorkerInitializeConnectionByOid(
			db, role, BGWORKER_BYPASS_ROLELOGINCHECK);

	StartTransactionCommand();
	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (!HeapTupleIsValid(tup))
		ereport(FATAL, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("role with OID %u does not exist", role)));
	my_role_super = ((Form_pg_authid) GETSTRUCT(tup))->rolsuper;
	ReleaseSysCache(tup);
	if (by_nobody)
		apply_role_settings(db, role);
	CommitTransactionCommand();

	/* ALTER ROLE ... SET role is not for jobs; RESET ROLE leads here, too */
	SetConfigOption("role", "none", PGC_SUSET, PGC_S_OVERRIDE);
	become_role();

	/*
	 * The worker flushes for groups of jobs, unless somebody has said for this
	 * role or database how its transactions are to commit.
	 */
	commit = jq_guc_find("synchronous_commit");
	commits_sync = commit != NULL && commit->source >= PGC_S_DATABASE &&
				   commit->source <= PGC_S_DATABASE_USER;
	if (!commits_sync)
		SetConfigOption("synchronous_commit", "off", PGC_USERSET, PGC_S_CLIENT);

	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	process_session_preload_libraries();
	jq_session_check();
}

void
jq_session_check(void)
{
	Oid user;
	int sec_context;

	GetUserIdAndSecContext(&user, &sec_context);
	if (user == my_role && sec_context == 0 && GetSessionUserId() == my_role &&
		GetOuterUserId() == my_role)
		return;
	dirty = true;
	jq_session_clean();
	GetUserIdAndSecContext(&user, &sec_context);
	if (user != my_role || sec_context != 0 || GetSessionUserId() != my_role ||
		GetOuterUserId() != my_role)
		ereport(FATAL, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
						errmsg("worker is not the role whose jobs it runs")));
}

bool
jq_session_is_clean(void)
{
	Oid user;
	int sec_context;

	GetUserIdAndSecContext(&user, &sec_context);
	return !dirty && !transaction_dirty && user == my_role &&
		   sec_context == 0 && GetSessionUserId() == my_role &&
		   GetOuterUserId() == my_role;
}

void
jq_session_set_commit(int level, bool whole_job)
{
	static const char *const names[] = {"off", "local", "remote_write", "on",
										"remote_apply"};

	if (whole_job)
		dirty = true;
	(void) set_config_option("synchronous_commit", names[level], PGC_USERSET,
							 PGC_S_SESSION,
							 whole_job ? GUC_ACTION_SET : GUC_ACTION_LOCAL,
							 true, 0, false);
}

/* -------------------------------------------------------------- leftovers */

static void
forget_origin(void)
{
	if (replorigin_session_origin == InvalidRepOriginId)
		return;
	replorigin_session_reset();
	replorigin_session_origin = InvalidRepOriginId;
	replorigin_session_origin_lsn = InvalidXLogRecPtr;
	replorigin_session_origin_timestamp = 0;
}

void
jq_session_clean(void)
{
	transaction_dirty = false;
	ResetSequenceCaches();
	if (!dirty)
		return;
	jq_lockkey_end_of_job();

	/* an error on the way leaves a session that cannot be used any more */
	PG_TRY();
	{
		forget_origin(); /* the commit below is not its */
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		PortalHashTableDeleteAll();
		SetPGVariable("session_authorization", NIL, false);
		SetPGVariable("role", NIL, false);
		ResetAllOptions();
		become_role();
		DropAllPreparedStatements();
		Async_UnlistenAll();
		LockReleaseAll(USER_LOCKMETHOD, true);
		ResetTempTableNamespace();
		(void) DirectFunctionCall1(setseed, Float8GetDatum(pg_prng_double(
												&pg_global_prng_state)));
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
		ereport(FATAL, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("could not clean the session of a worker")));
	}
	PG_END_TRY();
	become_role();
	dirty = false;
}
