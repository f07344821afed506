/*
 * lockkey.c
 *		jobqueue_lock() and its like: keys that a session has locked.
 *
 * A key is locked for the session, so often, or for the transaction, or both.
 * The first of these takes the key (keywait.c), the last one that goes lets it
 * go; a key that the process has for a job is shared with the job.
 *
 *		for the session		until as many jobqueue_unlock() have taken effect, the
 *							session ends, or DISCARD ALL
 *		for the transaction	until its end; of a subtransaction that is rolled
 *							back, until then
 *
 * jobqueue_unlock() takes effect at the end of the transaction, be it committed or
 * not: a key that became free before would let others see the data as they were.
 * For the same reason keys go after the locks of PostgreSQL, not before.
 *
 * Rolled back or not, what is locked for the session stays locked, and what is
 * unlocked stays so, as with advisory locks.  All state is local; what others see
 * of it is the holder in the key table, whom the exit hook removes, after
 * whatever death but that by signal 9, after which there is no memory left.
 * Memory is reserved before a key is taken.
 */
#include "postgres.h"

#include "access/xact.h"
#include "afterlocks.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "command.h"
#include "compat.h"
#include "control.h"
#include "explain.h"
#include "fmgr.h"
#include "jobtable.h"
#include "keywait.h"
#include "lease.h"
#include "lockkey.h"
#include "miscadmin.h"
#include "pause.h"
#include "runjob.h"
#include "session.h"
#include "settings.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "waitgraph.h"
#include "worker.h"

#define MAX_LOCKED 1024 /* keys of one session */
#define ASIDE_US \
	100000 /* a job waits so long before another worker may start */

typedef struct LockedKey
{
	int len;
	char text[JQ_KEY_MAX + 1];
	int64 session; /* locked so often for the session */
	int64 unlocks; /* of these, so many end with the transaction */
	int xact_nest; /* locked for that level of the transaction; 0 = it is not */
} LockedKey;

static LockedKey *locked;
static int nlocked, maxlocked;
static bool at_end;	   /* the end of the transaction has something to do */
static bool ended;	   /* do it at the next AFTER_LOCKS ... */
static bool sub_ended; /* ... or that of a subtransaction */
static bool attached;  /* callbacks are registered */

static object_access_hook_type prev_object_access_hook;

/* ------------------------------------------------------------- local state */

static LockedKey *
find(const char *key, int len)
{
	int i;

	for (i = 0; i < nlocked; i++)
		if (locked[i].len == len && memcmp(locked[i].text, key, len) == 0)
			return &locked[i];
	return NULL;
}

static void
reserve(void)
{
	jq_keylock_prepare();
	if (nlocked < maxlocked)
		return;
	if (nlocked == MAX_LOCKED)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
						errmsg("this session has locked %d keys", nlocked),
						errhint("It may have no more of them at a time; "
								"unlock some first.")));
	if (locked == NULL)
		locked = MemoryContextAlloc(TopMemoryContext, 8 * sizeof(LockedKey));
	else
		locked = repalloc(locked, 2 * maxlocked * sizeof(LockedKey));
	maxlocked = maxlocked == 0 ? 8 : 2 * maxlocked;
}

/* the key is ours; room has been reserved */
static LockedKey *
note(const char *key, int len)
{
	LockedKey *l = &locked[nlocked++];

	memset(l, 0, sizeof(*l));
	l->len = len;
	memcpy(l->text, key, len);
	return l;
}

/* let those go that nothing keeps any more */
static void
let_go(void)
{
	int i;

	for (i = nlocked - 1; i >= 0; i--)
	{
		LockedKey l = locked[i];

		if (l.session > 0 || l.xact_nest > 0)
			continue;
		locked[i] = locked[--nlocked];
		jq_keywait_release(MyDatabaseId, l.text, l.len);
	}
	jq_keywait_set_number(nlocked);
}

/* --------------------------------------------------------------- callbacks */

static void
xact_callback(XactEvent event, void *arg)
{
	int i;

	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			ended = at_end;
			break;
		case XACT_EVENT_PRE_PREPARE:
			for (i = 0; i < nlocked && at_end; i++)
				if (locked[i].xact_nest > 0 || locked[i].unlocks > 0)
					ereport(
						ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 locked[i].xact_nest > 0 ?
							 errmsg(
								 "cannot PREPARE a transaction that has locked a key") :
							 errmsg(
								 "cannot PREPARE a transaction that has unlocked a key"),
						 errhint(
							 "Keys belong to sessions: use jobqueue_lock() before the transaction, and jobqueue_unlock() after it.")));
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int nest;
	int i;

	(void) mine;
	(void) parent;
	(void) arg;
	if (!at_end ||
		(event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
		return;
	nest = GetCurrentTransactionNestLevel();
	for (i = 0; i < nlocked; i++)
	{
		if (locked[i].xact_nest < nest)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			locked[i].xact_nest = nest - 1;
		else
		{
			locked[i].xact_nest = 0;
			sub_ended = true;
		}
	}
}

static void
after_locks(bool commit, bool top)
{
	int i;

	(void) commit;
	if (!(top ? ended : sub_ended))
		return;
	sub_ended = false;
	JQ_PAUSE("unlock-after-locks");
	if (!top)
	{
		let_go();
		return;
	}
	ended = at_end = false;
	for (i = 0; i < nlocked; i++)
	{
		locked[i].xact_nest = 0;
		locked[i].session -= locked[i].unlocks;
		locked[i].unlocks = 0;
	}
	let_go();
}

/* what poolers call for want of DISCARD ALL means our keys, too */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	int i;

	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);
	if (access != OAT_FUNCTION_EXECUTE ||
		objectId != F_PG_ADVISORY_UNLOCK_ALL || !IsTransactionState() ||
		InSecurityRestrictedOperation())
		return;
	for (i = 0; i < nlocked; i++)
	{
		locked[i].unlocks = locked[i].session;
		at_end = true;
	}
}

/*
 * on_shmem_exit: the transaction has been aborted by then, memory and its locks
 * are still there.  A worker has a hook of its own.
 */
static void
session_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_keylock_release_all();
}

static void
attach(void)
{
	if (attached)
		return;
	if (!jq_is_worker)
		on_shmem_exit(session_exit, (Datum) 0);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	jq_after_locks(JQ_AFTER_LOCKS_KEYS, after_locks);
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	attached = true;
}

static void
forget_session(void)
{
	int i;

	for (i = 0; i < nlocked; i++)
		locked[i].session = locked[i].unlocks = 0;
	let_go();
}

void
jq_lockkey_discard(void)
{
	if (nlocked > 0)
		forget_session();
}

void
jq_lockkey_end_of_job(void)
{
	if (nlocked > 0)
		forget_session();
}

/* ------------------------------------------------------------------- wait */

static void
table_full(void)
{
	ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
					errmsg("memory has no place for another key"),
					errhint("Increase jobqueue.max_ready_jobs, or lock fewer "
							"keys at a time.")));
}

/*
 * Stand in line until then; false: in vain.  A job that does so for longer has
 * another worker take its place meanwhile, if there may be one.
 */
static bool
wait_for(const char *key, int len, TimestampTz until)
{
	static uint32 wait_event;
	volatile bool given;
	char *what = psprintf("key \"%s\"", key);
	int64 last_id;
	bool job = jq_is_worker && jq_current_job.id != 0;
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz aside_at = job ? began + ASIDE_US : DT_NOEND;
	volatile bool aside = false;
	JqWaitLook look;

	last_id = jq_last_job_id(jq_table_required());
	JQ_PAUSE("lock-before-line");
	if (!jq_keywait_begin(MyDatabaseId, key, len, last_id))
		table_full();
	given = jq_keywait_given(MyDatabaseId, key, len);
	if (given)
		return true;
	PG_TRY();
	{
		if (LockTimeout > 0)
			enable_timeout_at(LOCK_TIMEOUT,
							  TimestampTzPlusMilliseconds(began, LockTimeout));
		jq_waitgraph_begin(&look);
		while (!(given = jq_keywait_given(MyDatabaseId, key, len)))
		{
			TimestampTz now = GetCurrentTimestamp();
			TimestampTz wake;

			if (now >= until)
				break;
			if (jq_waitgraph_look(&look))
			{
				jq_keywait_leave(MyDatabaseId, key, len);
				jq_waitgraph_error(&look, what);
			}
			/* a lock that the search has waited for has taken it */
			if (LockTimeout > 0 && !get_timeout_active(LOCK_TIMEOUT) &&
				!get_timeout_indicator(LOCK_TIMEOUT, false))
				enable_timeout_at(LOCK_TIMEOUT,
								  TimestampTzPlusMilliseconds(began,
															  LockTimeout));
			if (now >= aside_at)
			{
				aside = jq_slot_begin_wait();
				aside_at = aside ? DT_NOEND : now + USECS_PER_SEC;
			}
			wake = Min(Min(until, look.next), aside_at);
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 TimestampDifferenceMilliseconds(now, wake),
							 jq_wait_event(&wait_event, "JobqueueKey"));
			ResetLatch(MyLatch);
			JQ_PAUSE("lock-woken");
			CHECK_FOR_INTERRUPTS();
		}
	}
	PG_CATCH();
	{
		if (aside)
			jq_slot_end_wait();
		disable_timeout(LOCK_TIMEOUT, false);
		jq_keywait_leave(MyDatabaseId, key, len);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (aside)
		jq_slot_end_wait();
	/* if it has fired nevertheless, it says so, as with other locks */
	disable_timeout(LOCK_TIMEOUT, true);
	if (!given)
		jq_keywait_leave(MyDatabaseId, key, len);
	return given;
}

static bool
take_or_wait(const char *key, int len, TimestampTz until)
{
	int quota = jq_keylock_quota();

	if (jq_keywait_over_quota(quota))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("quota of %d locked keys of role \"%s\" is reached",
						quota, GetUserNameFromId(jq_keywait_role(), true)),
				 errhint("Unlock some first, in whatever session of the role; "
						 "the quota grows with jobqueue.max_ready_jobs.")));
	if (jq_keylock_reserved())
		table_full();
	/* after a start of the server: its holder is not known yet */
	while (jq_lease_unread_key(jq_table_required(), key, len))
	{
		if (GetCurrentTimestamp() >= until)
			return false;
		jq_control_pause();
	}
	switch (jq_keywait_take(MyDatabaseId, key, len))
	{
		case JQ_KEY_TAKEN:
			return true;
		case JQ_KEY_FULL:
			table_full();
			break;
		case JQ_KEY_BUSY:
			if (until == DT_NOBEGIN)
				return false;
			break;
		default:
			break;
	}
	return wait_for(key, len, until);
}

/* until: DT_NOBEGIN: do not wait */
static LockedKey *
take(const char *key, int len, TimestampTz until)
{
	volatile bool taken = false;

	reserve();
	if (jq_keywait_share(MyDatabaseId, key, len))
		return note(key, len);
	jq_keywait_set_number(nlocked + 1);
	PG_TRY();
	{
		taken = take_or_wait(key, len, until);
	}
	PG_FINALLY();
	{
		if (!taken)
			jq_keywait_set_number(nlocked);
	}
	PG_END_TRY();
	return taken ? note(key, len) : NULL;
}

static bool
lock(const char *key, int len, TimestampTz until, bool xact)
{
	LockedKey *l;

	attach();
	l = find(key, len);
	if (l == NULL)
	{
		l = take(key, len, until);
		if (l == NULL)
			return false;
		if (jq_is_worker)
			jq_session_note_lock(xact);
	}
	if (!xact)
	{
		l->session++;
		if (jq_is_worker)
			jq_session_note_lock(false);
	}
	else if (l->xact_nest == 0)
	{
		l->xact_nest = GetCurrentTransactionNestLevel();
		at_end = true;
	}
	jq_keywait_flush(jq_keywait_lsn(MyDatabaseId, key, len));
	return true;
}

/* -------------------------------------------------------------- functions */

/* a parallel worker would take keys for itself, and end before the query does */
static char *
key_argument(FunctionCallInfo fcinfo, const char *function, int *len)
{
	text *key;

	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("key must not be null"),
						errhint("For example jobqueue_lock('user:42').")));
	key = PG_GETARG_TEXT_PP(0);
	*len = VARSIZE_ANY_EXHDR(key);
	if (*len < 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("key must not be empty"),
						errhint("For example jobqueue_lock('user:42').")));
	jq_check_user_key(VARDATA_ANY(key), *len);
	return text_to_cstring(key);
}

static TimestampTz
timeout_argument(FunctionCallInfo fcinfo)
{
	int64 us;

	if (PG_ARGISNULL(1))
		return DT_NOEND;
	us = jq_interval_us(PG_GETARG_INTERVAL_P(1));
	if (us < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("timeout must not be negative"),
						errhint("0 does not wait, NULL waits without limit.")));
	return us == 0 ? DT_NOBEGIN : GetCurrentTimestamp() + us;
}

/* jobqueue_lock(key, timeout) -> bool */
PG_FUNCTION_INFO_V1(jq_lock_session);
Datum
jq_lock_session(PG_FUNCTION_ARGS)
{
	int len;
	char *key = key_argument(fcinfo, "jobqueue_lock()", &len);

	jq_check_primary("jobqueue_lock()");
	jq_control_not_restricted("jobqueue_lock()");
	PG_RETURN_BOOL(lock(key, len, timeout_argument(fcinfo), false));
}

/* jobqueue_xact_lock(key, timeout) -> bool */
PG_FUNCTION_INFO_V1(jq_lock_xact);
Datum
jq_lock_xact(PG_FUNCTION_ARGS)
{
	int len;
	char *key = key_argument(fcinfo, "jobqueue_xact_lock()", &len);

	jq_check_primary("jobqueue_xact_lock()");
	jq_control_not_restricted("jobqueue_xact_lock()");
	PG_RETURN_BOOL(lock(key, len, timeout_argument(fcinfo), true));
}

/* jobqueue_try_lock(key) -> bool */
PG_FUNCTION_INFO_V1(jq_try_lock);
Datum
jq_try_lock(PG_FUNCTION_ARGS)
{
	int len;
	char *key = key_argument(fcinfo, "jobqueue_try_lock()", &len);

	jq_check_primary("jobqueue_try_lock()");
	jq_control_not_restricted("jobqueue_try_lock()");
	PG_RETURN_BOOL(lock(key, len, DT_NOBEGIN, false));
}

/* jobqueue_unlock(key) -> bool */
PG_FUNCTION_INFO_V1(jq_unlock);
Datum
jq_unlock(PG_FUNCTION_ARGS)
{
	int len;
	char *key = key_argument(fcinfo, "jobqueue_unlock()", &len);
	LockedKey *l = find(key, len);

	jq_check_primary("jobqueue_unlock()");
	jq_control_not_restricted("jobqueue_unlock()");
	if (l == NULL || l->session <= l->unlocks)
	{
		ereport(WARNING,
				(errmsg("this session has not locked key \"%s\"", key)));
		PG_RETURN_BOOL(false);
	}
	l->unlocks++;
	at_end = true;
	PG_RETURN_BOOL(true);
}

/* jobqueue_whereis(key) -> int */
PG_FUNCTION_INFO_V1(jq_whereis);
Datum
jq_whereis(PG_FUNCTION_ARGS)
{
	int len;
	char *key = key_argument(fcinfo, "jobqueue_whereis()", &len);
	int procno;
	int pid;
	int n;

	/* of several holders, one that may be seen */
	for (n = 0; jq_keywait_holder(MyDatabaseId, key, len, n, &procno, &pid);
		 n++)
		if (jq_explain_may_see(procno))
			PG_RETURN_INT32(pid);
	if (n == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(0);
}
