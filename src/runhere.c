/*
 * runhere.c
 *		Running a job in the caller's session and transaction, for the tests of
 *		applications: jobqueue_run() and jobqueue.inline.
 *
 * The job's key is held to the end of the transaction, as its effects are not
 * seen before.  Its error is the caller's, and charges no attempt: its row is as
 * it was, or has never been.  Its end is in the ring of ended jobs once the
 * transaction has committed.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "afterlocks.h"
#include "commands/trigger.h"
#include "compat.h"
#include "configure.h"
#include "conflict.h"
#include "directory.h"
#include "failure.h"
#include "guc.h"
#include "keylock.h"
#include "lease.h"
#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "quota.h"
#include "recent.h"
#include "runhere.h"
#include "runjob.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker.h"

bool jq_run_guarded;
bool jq_run_settling;

/*
 * Jobs that this transaction has run, in order, with the nesting level that did;
 * in TopTransactionContext.  No more than the ring has room for.
 */
typedef struct Ended
{
	dlist_node node;
	int nest;
	char *result;	 /* as much as the ring looks at; NULL: none */
	int len;		 /* of all of it */
	JqRecent recent; /* without its text */
} Ended;

static dlist_head ended = DLIST_STATIC_INIT(ended);
static int nended;
static bool committed; /* tell of them when the locks are released */

/* a job that runs here, and the one that has brought it here */
typedef struct Running
{
	int64 id;
	const struct Running *outer;
} Running;

static const Running *running;

static void
forget_ended(Ended *e)
{
	dlist_delete(&e->node);
	if (e->result != NULL)
		pfree(e->result);
	pfree(e);
	nended--;
}

static void
forget_all(void)
{
	dlist_init(&ended);
	nended = 0;
	committed = false;
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	if (event == XACT_EVENT_COMMIT)
	{
		committed = true;
		if (!dlist_is_empty(&ended))
			JQ_PAUSE("run-before-locks");
	}
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		forget_all();
}

/* before it lets go of them: whoever sees a job end can read how it ended */
static void
after_locks(bool commit, bool top)
{
	dlist_iter i;

	if (!commit || !top || !committed)
		return;
	dlist_foreach(i, &ended)
	{
		Ended *e = dlist_container(Ended, node, i.cur);

		e->recent.ended_at = GetCurrentTransactionStopTimestamp();
		e->recent.lsn = XactLastCommitEnd;
		jq_recent_add(&e->recent, e->result, e->len);
	}
	forget_all();
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int nest = GetCurrentTransactionNestLevel();
	dlist_node *last = dlist_is_empty(&ended) ? NULL : dlist_tail_node(&ended);

	(void) mine;
	(void) parent;
	(void) arg;
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while (last != NULL)
	{
		Ended *e = dlist_container(Ended, node, last);

		if (e->nest < nest)
			break;
		last =
			dlist_has_prev(&ended, last) ? dlist_prev_node(&ended, last) : NULL;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			e->nest = nest - 1;
		else
			forget_ended(e);
	}
}

bool
jq_ended_here(int64 id, JqRecent *r, const char **result, int *len)
{
	dlist_iter i;

	dlist_reverse_foreach(i, &ended)
	{
		Ended *e = dlist_container(Ended, node, i.cur);

		if (e->recent.id != id || !jq_outcome_is_end(e->recent.outcome))
			continue;
		memcpy(r, &e->recent, offsetof(JqRecent, text));
		*result = e->result;
		*len = e->len;
		return true;
	}
	return false;
}

static void
note_ended(const JqRecent *r, const char *result)
{
	static bool registered;
	Ended *e;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		jq_after_locks(JQ_AFTER_LOCKS_TELL, after_locks);
		registered = true;
	}
	if (nended == JQ_RECENT_CELLS)
		forget_ended(dlist_container(Ended, node, dlist_head_node(&ended)));
	e = MemoryContextAlloc(TopTransactionContext, offsetof(Ended, recent.text));
	e->nest = GetCurrentTransactionNestLevel();
	e->result = NULL;
	e->len = 0;
	if (result != NULL)
	{
		e->len = strlen(result);
		e->result = jq_recent_copy(TopTransactionContext, result, e->len);
	}
	memcpy(&e->recent, r, offsetof(JqRecent, text));
	dlist_push_tail(&ended, &e->node);
	nended++;
}

static void
take_key(int64 id, const char *key, int len, int lane)
{
	JqKeyResult result;
	bool ask = false;
	uint32 next;

	jq_publish_reserve_key();
	jq_keylock_prepare();
	/* after a start of the server: its holder is not known yet */
	if (jq_lease_unread_key(jq_table_required(), key, len))
		result = JQ_KEY_BUSY;
	else
		result = jq_keylock_take(MyDatabaseId, key, len, id, lane, JQ_NIL, &ask,
								 &next);
	switch (result)
	{
		case JQ_KEY_TAKEN:
			jq_publish_key(key, len);
			break;
		case JQ_KEY_BUSY:
		case JQ_KEY_GONE:
			ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
							errmsg("key \"%s\" of job " INT64_FORMAT " is held",
								   key, id),
							errhint("View jobqueue_keys tells by whom.")));
			break;
		case JQ_KEY_FULL:
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
							errmsg("too many keys are held")));
	}
}

/* jq_current_job becomes this one; what the job around it has said stays */
static void
set_current(const JqRow *row, const JqQueueSettings *settings)
{
	memset(&jq_current_job, 0, sizeof(jq_current_job));
	jq_current_job.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	jq_current_job.queue = jq_row_cstring(row, JQ_COL_QUEUE);
	jq_current_job.key = jq_row_cstring(row, JQ_COL_KEY);
	jq_current_job.attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	jq_current_job.max_attempts = jq_row_max_attempts(row, settings);
	jq_current_job.enqueued_at =
		DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
}

bool
jq_runs_here(int64 id)
{
	const Running *r = running;

	while (r != NULL && r->id != id)
		r = r->outer;
	return r != NULL || jq_current_job.id == id;
}

/* it is to run again, after that time */
static bool
snooze(JqTable *t, JqRow *row, Interval *delay)
{
	char *key = jq_row_cstring(row, JQ_COL_KEY);
	TimestampTz run_at;
	JqItem item;

	memset(&item, 0, sizeof(item));
	item.id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	item.priority = DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY));
	item.flags = JQ_E_DUE;
	if (key != NULL)
	{
		item.key = key;
		item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
	if (!jq_snooze_row(t, item.id, delay, &run_at, &item.tid))
		return false;
	jq_publish_row(DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)),
				   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
	return true;
}

/* it is completed */
static bool
end(JqTable *t, JqRow *row, const JqQueueSettings *settings, Datum result,
	bool isnull)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));

	if (jq_row_wants_keep(row, settings))
		return jq_archive(t, id, "completed", NULL,
						  GetCurrentStatementStartTimestamp(),
						  isnull ? (Datum) 0 : result);
	jq_publish_ended(id);
	if (!jq_row_delete(t, id, row, NULL))
		return false;
	jq_unique_ended(t, row);
	return true;
}

/*
 * Is the session that of another role than the user, perhaps a greater one, to
 * which RESET ROLE or RESET SESSION AUTHORIZATION would take the job back?  A
 * worker's session is of the job's role.
 */
static bool
session_is_another(Oid user)
{
	return user != GetSessionUserId() ||
		   (!jq_is_worker && user != GetAuthenticatedUserId());
}

/*
 * What the job has deferred runs now, while the user is its role.  At the commit
 * it would run as whoever commits, with a way back to the session's role.
 */
static void
run_deferred(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);
	bool settling = jq_run_settling;

	stmt->constraints = NIL;
	stmt->deferred = false;
	jq_run_settling = true;
	PG_TRY();
	{
		AfterTriggerSetState(stmt);
	}
	PG_FINALLY();
	{
		jq_run_settling = settling;
	}
	PG_END_TRY();
}

/* fresh: it has not been counted among the jobs of its role */
static Datum
run_here(JqTable *t, JqRow *row, bool *isnull, bool fresh)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	char *key = jq_row_cstring(row, JQ_COL_KEY);
	int keylen = key != NULL ? Min(strlen(key), JQ_KEY_MAX) : 0;
	volatile Datum result = (Datum) 0;
	JqCurrent outer = jq_current_job;
	Running this = {id, running};
	Oid owner = DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER));
	char *queue = jq_row_cstring(row, JQ_COL_QUEUE);
	JqQueueSettings settings;
	TimestampTz started_at = GetCurrentTimestamp();
	JqRecent recent;
	Interval delay;
	volatile bool snoozed = false;
	bool guarded = jq_run_guarded;
	Oid user;
	int sec_context;
	bool done;
	int nest;

	/* jobs that enqueue jobs, inline */
	check_stack_depth();
	if (DatumGetChar(JQ_ROW(row, JQ_COL_KIND)) == JQ_KIND_OUTSIDE)
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("the command of job " INT64_FORMAT
							   " cannot run in a transaction block",
							   id),
						errhint("Only a worker can run it.")));
	if (keylen > 0 && !jq_keylock_mine(MyDatabaseId, key, keylen))
		take_key(id, key, keylen,
				 jq_dir_lane(MyDatabaseId, owner, queue, false));
	if (!JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY))
		jq_unique_run_here(t, row);
	jq_settings_of_queue(t, queue, &settings);
	set_current(row, &settings);
	nest = NewGUCNestLevel();
	GetUserIdAndSecContext(&user, &sec_context);
	if (session_is_another(user))
	{
		SetUserIdAndSecContext(user,
							   sec_context | SECURITY_LOCAL_USERID_CHANGE);
		jq_run_guarded = true;
	}
	running = &this;
	PG_TRY();
	{
		jq_apply_environment_nested(row);
		PushActiveSnapshot(GetTransactionSnapshot());
		result = jq_execute(row, isnull);
		PopActiveSnapshot();
		if (jq_run_guarded)
			run_deferred();
		snoozed = jq_snooze_wanted(&delay);
	}
	PG_FINALLY();
	{
		jq_injob_forget();
		jq_current_job = outer;
		jq_run_guarded = guarded;
		running = this.outer;
	}
	PG_END_TRY();
	SetUserIdAndSecContext(user, sec_context);
	/* what it has set ends with it, SET LOCAL or not, as in a worker */
	AtEOXact_GUC(false, nest);
	if (snoozed)
	{
		done = snooze(t, row, &delay);
		if (done && fresh)
			jq_quota_take_written(t, owner, 1);
	}
	else
		done = end(t, row, &settings, result, *isnull);
	if (!done)
	{
		jq_row_must_be_gone(t, id);
		ereport(ERROR, (errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
						errmsg("the row of the job was deleted while it ran"),
						errhint("Nothing of it has been done.")));
	}
	memset(&recent, 0, offsetof(JqRecent, text));
	recent.id = id;
	recent.db = MyDatabaseId;
	recent.role = owner;
	recent.outcome = snoozed ? JQ_SNOOZED : JQ_COMPLETED;
	recent.attempt = DatumGetInt16(JQ_ROW(row, JQ_COL_ATTEMPT)) + 1;
	recent.pid = MyProcPid;
	recent.enqueued_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
	recent.started_at = started_at;
	strlcpy(recent.queue, queue, sizeof(recent.queue));
	note_ended(&recent,
			   *isnull ?
				   NULL :
				   JsonbToCString(NULL, &DatumGetJsonbP(result)->root, 0));
	return result;
}

/*
 * Is what is enqueued run here?  In a SECURITY DEFINER function its job would run
 * with the rights of the function's owner in the session of whoever calls it, with
 * the temporary objects and the settings of that one.  So only where he could be
 * that role anyway.
 */
bool
jq_inline_here(void)
{
	return jobqueue_inline &&
		   (GetUserId() == GetSessionUserId() ||
			jq_can_set_role(GetSessionUserId(), GetUserId()));
}

Datum
jq_run_here(JqTable *t, JqRow *row, bool *isnull)
{
	return run_here(t, row, isnull, false);
}

void
jq_run_inline(JqTable *t, int64 id)
{
	JqRow row;
	TransactionId xid;
	bool isnull;

	/* nobody else sees the row, so that there is nothing to claim */
	CommandCounterIncrement();
	if (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL) != JQ_FETCH_FOUND)
		elog(ERROR, "job " INT64_FORMAT " was not found after its enqueue", id);
	(void) run_here(t, &row, &isnull, true);
}
