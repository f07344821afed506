/*
 * utility.c
 *		The hook around utility statements.
 *
 *		PREPARE TRANSACTION		its global id is told to publish.c
 *		COMMIT PREPARED			what it enqueued is published afterwards
 *		DROP, RENAME, ... of a database, CREATE DATABASE ... TEMPLATE
 *								idle workers and the scheduler leave it, if the
 *								user may do what he asks for
 *		ALTER EXTENSION			what processes know of it is looked up anew, and
 *								levels get what is new
 *		CREATE DATABASE, CREATE EXTENSION
 *								the launcher looks for new databases
 *		DISCARD ALL				the keys that the session has locked, and what it has
 *								fetched
 *		in a worker				statements that leave something in the session
 *		in a job that is run here under SET ROLE
 *								what would leave something to run at the commit
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "compat.h"
#include "database.h"
#include "executor/spi.h"
#include "fetched.h"
#include "grant.h"
#include "jobtable.h"
#include "lockkey.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pause.h"
#include "prepared.h"
#include "publish.h"
#include "quota.h"
#include "runhere.h"
#include "session.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "worker.h"

static ProcessUtility_hook_type prev_hook;

/* ------------------------------------------------------------- databases */

static bool
may_create_database(void)
{
	HeapTuple tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool ok = superuser();

	if (HeapTupleIsValid(tup))
	{
		ok = ok || ((Form_pg_authid) GETSTRUCT(tup))->rolcreatedb;
		ReleaseSysCache(tup);
	}
	return ok;
}

/*
 * The database that nobody must be connected to for this statement, or
 * InvalidOid: none, or the user may not do it anyway.
 */
static Oid
database_to_leave(Node *stmt)
{
	const char *name = NULL;
	bool as_template = false;
	Oid db;

	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			name = ((DropdbStmt *) stmt)->dbname;
			break;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
				name = ((RenameStmt *) stmt)->subname;
			break;
		case T_AlterDatabaseStmt:
		{
			ListCell *lc;

			foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
				if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") ==
					0)
					name = ((AlterDatabaseStmt *) stmt)->dbname;
			break;
		}
		case T_CreatedbStmt:
		{
			ListCell *lc;

			name = "template1";
			foreach(lc, ((CreatedbStmt *) stmt)->options)
			{
				DefElem *d = lfirst(lc);

				if (strcmp(d->defname, "template") == 0 && d->arg &&
					IsA(d->arg, String))
					name = strVal(d->arg);
			}
			as_template = true;
			break;
		}
		default:
			break;
	}
	if (name == NULL)
		return InvalidOid;
	db = get_database_oid(name, true);
	if (!OidIsValid(db))
		return InvalidOid;
	if (as_template)
	{
		HeapTuple tup = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
		bool open = false;

		if (HeapTupleIsValid(tup))
		{
			open = ((Form_pg_database) GETSTRUCT(tup))->datistemplate;
			ReleaseSysCache(tup);
		}
		if (!may_create_database() ||
			!(open || jq_database_ownercheck(db, GetUserId())))
			return InvalidOid;
	}
	else if (!jq_database_ownercheck(db, GetUserId()))
		return InvalidOid;
	return db;
}

/*
 * Ask what is idle in the database to leave, keep new processes out, and wait
 * a moment for them.  A job that runs is a session like any other: the
 * statement itself decides about it.  Returns how many there are.
 */
static int
leave_database(Oid db, int dbix)
{
	TimestampTz until =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 4000);

	for (;;)
	{
		int procno;
		bool busy = false;
		int nrunning = 0;
		int i;

		jq_slot_stop_idle(db, InvalidOid);
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
		procno = jq_dbs[dbix].sched_state == JQ_SCHED_RUNNING ?
					 jq_dbs[dbix].sched_procno :
					 -1;
		if (jq_dbs[dbix].sched_state != JQ_SCHED_NONE)
			busy = true;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		if (procno >= 0)
			SetLatch(&GetPGProcByNumber(procno)->procLatch);
		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
		for (i = 0; i < jq_shared->nslots; i++)
		{
			if (jq_slots[i].state == JQ_SLOT_FREE || i == jq_my_slot ||
				jq_groups[jq_slots[i].group].db != db)
				continue;
			if (jq_claim_cells[i].id == 0)
				busy = true;
			else
				nrunning++;
		}
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		if (!busy || GetCurrentTimestamp() > until)
			return nrunning;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* also where the session ends in the middle of the statement */
static void
return_to_database(int code, Datum dbix)
{
	(void) code;
	jq_db_return(DatumGetInt32(dbix));
}

static bool
is_gone(Oid db)
{
	CommandCounterIncrement();
	return !SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db));
}

static bool
ends_sessions(Node *stmt)
{
	ListCell *lc;

	if (!IsA(stmt, DropdbStmt))
		return false;
	foreach(lc, ((DropdbStmt *) stmt)->options)
		if (strcmp(((DefElem *) lfirst(lc))->defname, "force") == 0)
			return true;
	return false;
}

static void
tell_of_jobs(Oid db, int n)
{
	ereport(
		NOTICE,
		(errmsg_plural("%d job of jobqueue runs in database \"%s\"",
					   "%d jobs of jobqueue run in database \"%s\"", n, n,
					   get_database_name(db)),
		 errhint(
			 "They are waited for, for 5 seconds. If that is too short, run jobqueue_quiesce() there first; DROP DATABASE ... WITH (FORCE) ends them.")));
}

/* ---------------------------------------------------- prepared transactions */

/*
 * Prepared before jobs ran here, perhaps on the server that this one was a standby
 * of: it may have enqueued.  Its id tells; the time is that of another clock.
 * model: PREPARED_LONG_AGO
 */
static bool
prepared_long_ago(const char *gid)
{
	Oid types[1] = {TEXTOID};
	Datum values[1];
	bool older = false;

	values[0] = CStringGetTextDatum(gid);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SPI_execute_with_args("SELECT transaction FROM pg_catalog.pg_prepared_xacts"
						  " WHERE gid OPERATOR(pg_catalog.=) $1",
						  1, types, values, NULL, true, 1);
	if (SPI_processed > 0)
	{
		FullTransactionId next = ReadNextFullTransactionId();
		uint64 start = pg_atomic_read_u64(&jq_shared->start_xid);
		TransactionId xid;
		bool isnull;

		xid = DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1,
												  &isnull));
		/* its age is less than 2^31, that of the start may be more */
		older = start == 0 || U64FromFullTransactionId(next) -
									  (XidFromFullTransactionId(next) - xid) <
								  start;
	}
	SPI_finish();
	PopActiveSnapshot();
	return older;
}

/* ------------------------------------------------------ jobs that run here */

static void
check_guarded(Node *stmt)
{
	const char *what = NULL;

	if (IsA(stmt, DeclareCursorStmt) &&
		(((DeclareCursorStmt *) stmt)->options & CURSOR_OPT_HOLD))
		what = "DECLARE CURSOR WITH HOLD";
	else if (jq_run_settling && IsA(stmt, ConstraintsSetStmt) &&
			 ((ConstraintsSetStmt *) stmt)->deferred)
		what = "SET CONSTRAINTS DEFERRED in a deferred trigger";
	if (what == NULL)
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		 errmsg("%s is not possible in a job that is run under SET ROLE", what),
		 errhint(
			 "It would run at the commit, as whoever commits. Workers can run the job, and sessions of its role.")));
}

/* --------------------------------------------------------------- the hook */

static void
next_hook(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
		  ProcessUtilityContext context, ParamListInfo params,
		  QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_hook)
		prev_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv,
				  dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

static void
utility_hook(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *queryEnv, DestReceiver *dest,
			 QueryCompletion *qc)
{
	Node *stmt = pstmt->utilityStmt;
	volatile int dbix = -1;
	JqPrepared prepared;
	bool publish = false;
	bool forget = false;
	volatile bool updates =
		IsA(stmt, AlterExtensionStmt) &&
		strcmp(((AlterExtensionStmt *) stmt)->extname, "jobqueue") == 0;
	volatile bool creates =
		IsA(stmt, CreateExtensionStmt) &&
		strcmp(((CreateExtensionStmt *) stmt)->extname, "jobqueue") == 0;
	List *volatile members = NIL;
	volatile Oid db;

	if (!jq_shmem_ready())
	{
		next_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv,
				  dest, qc);
		return;
	}
	if (jq_is_worker)
		jq_session_note_utility(stmt);
	if (jq_run_guarded)
		check_guarded(stmt);
	if (IsA(stmt, TransactionStmt))
	{
		TransactionStmt *t = (TransactionStmt *) stmt;

		if (t->kind == TRANS_STMT_PREPARE)
			jq_publish_set_gid(t->gid);
		else if (t->kind == TRANS_STMT_COMMIT_PREPARED)
			forget = !IsTransactionBlock() && !RecoveryInProgress() &&
					 prepared_long_ago(t->gid);
		next_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv,
				  dest, qc);
		if (t->kind == TRANS_STMT_COMMIT_PREPARED ||
			t->kind == TRANS_STMT_ROLLBACK_PREPARED)
		{
			/* model: PREPARED_AFTER */
			publish = jq_prepared_take(t->gid, &prepared);
			if (publish)
				jq_quota_end_prepared(&prepared,
									  t->kind == TRANS_STMT_COMMIT_PREPARED);
			publish = publish && t->kind == TRANS_STMT_COMMIT_PREPARED;
			if (publish)
				jq_publish_prepared(&prepared);
			else if (forget)
			{
				jq_publish_forget(MyDatabaseId);
				jq_quota_forget(MyDatabaseId);
				/* it may have changed what holds for any worker */
				(void) jq_slot_stop_idle(InvalidOid, InvalidOid);
				jq_db_scan_wanted();
			}
		}
		return;
	}
	db = RecoveryInProgress() ? InvalidOid : database_to_leave(stmt);
	if (updates)
		members = jq_grant_members();
	creates = creates && !OidIsValid(get_extension_oid("jobqueue", true));
	/* one's own can be copied, and nothing else */
	if (OidIsValid(db) && (db != MyDatabaseId || IsA(stmt, CreatedbStmt)))
		dbix = jq_db_leave(db);
	if (dbix >= 0)
	{
		PG_ENSURE_ERROR_CLEANUP(return_to_database, Int32GetDatum(dbix));
		{
			int n = leave_database(db, dbix);

			if (n > 0 && !ends_sessions(stmt))
				tell_of_jobs(db, n);
			JQ_PAUSE("database-left");
			next_hook(pstmt, queryString, readOnlyTree, context, params,
					  queryEnv, dest, qc);
			JQ_PAUSE("database-done");
			/* before anybody may start there again; unless another one had
			 * the name when it came to that */
			if (IsA(stmt, DropdbStmt))
			{
				/* a cancel would bring its row back, and not its files */
				HOLD_INTERRUPTS();
				if (is_gone(db))
				{
					jq_dir_purge_db(db);
					jq_db_set_absent(dbix, true);
				}
				RESUME_INTERRUPTS();
			}
		}
		PG_END_ENSURE_ERROR_CLEANUP(return_to_database, Int32GetDatum(dbix));
		jq_db_return(dbix);
	}
	else
		next_hook(pstmt, queryString, readOnlyTree, context, params, queryEnv,
				  dest, qc);
	if (IsA(stmt, AlterRoleSetStmt))
	{
		AlterRoleSetStmt *s = (AlterRoleSetStmt *) stmt;

		jq_publish_recycle(s->database ? get_database_oid(s->database, false) :
										 InvalidOid,
						   s->role ? get_rolespec_oid(s->role, false) :
									 InvalidOid);
	}
	else if (IsA(stmt, AlterDatabaseSetStmt))
		jq_publish_recycle(
			get_database_oid(((AlterDatabaseSetStmt *) stmt)->dbname, false),
			InvalidOid);
	if (IsA(stmt, DiscardStmt) && ((DiscardStmt *) stmt)->target == DISCARD_ALL)
		jq_fetched_lose_mine(JQ_LOSS_CLIENT); /* it is somebody else's now */
	if ((IsA(stmt, CreatedbStmt) || IsA(stmt, AlterDatabaseStmt)) &&
		IsTransactionState())
		jq_publish_databases();
	if (IsA(stmt, AlterDatabaseStmt) && IsTransactionState())
		/* it may take no connections now */
		jq_publish_recycle(
			get_database_oid(((AlterDatabaseStmt *) stmt)->dbname, false),
			InvalidOid);
	if (creates)
		jq_publish_created();
	if (updates)
	{
		CommandCounterIncrement();
		jq_table_changed();
		jq_grant_complete(members);
	}
	if (IsA(stmt, DiscardStmt) && ((DiscardStmt *) stmt)->target == DISCARD_ALL)
		jq_lockkey_discard();
}

void
jq_utility_init(void)
{
	prev_hook = ProcessUtility_hook;
	ProcessUtility_hook = utility_hook;
}
