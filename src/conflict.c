/*
 * conflict.c
 *		on_conflict: what becomes of a job whose unique_key another one has.
 *
 * At enqueue the lock of unique.h is asked for.  Who has it may be waiting: then
 * "replace" and "update" claim it first, as jobqueue_cancel() does, so that no
 * worker starts it meanwhile.  Or it runs, and then
 *
 *		until executed, expired		"replace" and "update" do as "skip"
 *		until executing				its lock is given free at any moment, since
 *									only its start is left: wait for that
 *
 * "reschedule" writes the row without a lock, marked JQ_CONFLICT_RESCHEDULED and
 * with a run_at.  When its time has come a worker asks for the lock; if it is
 * taken, the job is put off once more.
 *
 * While a job executes, a lock in the key table keeps others of its unique_key
 * from it, which is free the moment its worker ends, however it ends.  Queue and
 * unique_key can be longer than a key, so a digest stands for them, behind a zero
 * byte, which no key has.
 *
 * A worker waits for nobody: what an open transaction has to do with is held.
 */
#include "postgres.h"

#include "access/xact.h"
#include "afterlocks.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "conflict.h"
#include "control.h"
#include "dependency.h"
#include "executor/spi.h"
#include "failure.h"
#include "fetched.h"
#include "keylock.h"
#include "miscadmin.h"
#include "pause.h"
#include "pgstat.h"
#include "publish.h"
#include "runhere.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define LATER_US (5 * USECS_PER_SEC) /* "reschedule" without unique_for */
#define LONG_COMMIT_US USECS_PER_SEC /* it may wait for a standby */

#define VALUE(col) (values[(col) -1])
#define ISNULL(col) (nulls[(col) -1])

static char
until_of(const JqRow *row)
{
	return JQ_ROW_NULL(row, JQ_COL_UNIQUE_UNTIL) ?
			   JQ_UNTIL_EXECUTED :
			   DatumGetChar(JQ_ROW(row, JQ_COL_UNIQUE_UNTIL));
}

static char
on_conflict_of(const JqRow *row)
{
	return JQ_ROW_NULL(row, JQ_COL_ON_CONFLICT) ?
			   JQ_CONFLICT_SKIP :
			   DatumGetChar(JQ_ROW(row, JQ_COL_ON_CONFLICT));
}

static char *
cstring(const Datum *values, int col)
{
	return TextDatumGetCString(VALUE(col));
}

/* ---------------------------------------------------------------- enqueue */

static void
raise_conflict(const Datum *values, const JqUniqueLock *holder)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_UNIQUE_VIOLATION),
		 errmsg("a job with unique_key \"%s\" is in queue \"%s\" already",
				cstring(values, JQ_COL_UNIQUE_KEY),
				cstring(values, JQ_COL_QUEUE)),
		 TIMESTAMP_IS_NOEND(holder->expires_at) ?
			 errdetail("Job " INT64_FORMAT " holds it.", holder->job) :
			 errdetail("Job " INT64_FORMAT " holds it until %s.", holder->job,
					   timestamptz_to_str(holder->expires_at)),
		 errhint(
			 "With on_conflict => 'join' the call returns that job's id, with 'skip' null.")));
}

char *
jq_unique_reason(const Datum *values, int64 holder)
{
	return psprintf("job " INT64_FORMAT " holds unique_key \"%s\"", holder,
					cstring(values, JQ_COL_UNIQUE_KEY));
}

/* the holder waits, and is ours until the end of the transaction */
static void
replace(JqTable *t, const Datum *values, int64 holder)
{
	char *reason = psprintf("replaced by job " INT64_FORMAT,
							DatumGetInt64(VALUE(JQ_COL_ID)));

	if (!jq_archive(t, holder, "cancelled", reason, 0, (Datum) 0))
		jq_row_must_be_gone(t, holder);
	/* one until "expired" has outlived it */
	(void) jq_unique_release(t, VALUE(JQ_COL_QUEUE), VALUE(JQ_COL_UNIQUE_KEY),
							 holder, true);
	CommandCounterIncrement();
}

/* of a job that is about to be enqueued; DT_NOBEGIN: none */
static TimestampTz
wanted_run_at(const Datum *values, const bool *nulls)
{
	/* one that waits for others gets its time when they are completed */
	int col = ISNULL(JQ_COL_AFTER) ? JQ_COL_RUN_AT : JQ_COL_AFTER_RUN_AT;

	return ISNULL(col) ? DT_NOBEGIN : DatumGetTimestampTz(VALUE(col));
}

/* false: it is gone; what the holder waits for, it still waits for */
static bool
update(JqTable *t, const Datum *values, const bool *nulls, JqHeldJob *h)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_job SET args = $2, priority = $4,"
		" run_at = CASE WHEN " JQ_ROW_WAITS " THEN run_at ELSE $3 END,"
		" after_run_at = CASE WHEN " JQ_ROW_WAITS
		" THEN coalesce($3, '-infinity') ELSE after_run_at END"
		" WHERE id = $1 RETURNING ctid, run_at";
	Oid types[4] = {INT8OID, JSONBOID, TIMESTAMPTZOID, INT2OID};
	Datum args[4];
	char flags[4] = {' ', ' ', ' ', ' '};
	JqOwnerState state;
	TimestampTz run_at = wanted_run_at(values, nulls);
	bool done;

	args[0] = Int64GetDatum(h->item.id);
	args[1] = VALUE(JQ_COL_ARGS);
	flags[1] = ISNULL(JQ_COL_ARGS) ? 'n' : ' ';
	args[2] = TimestampTzGetDatum(run_at);
	flags[2] = TIMESTAMP_IS_NOBEGIN(run_at) ? 'n' : ' ';
	args[3] = VALUE(JQ_COL_PRIORITY);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 4, types, args, flags);
	done = SPI_processed == 1;
	if (done)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;
		Datum d;

		h->item.tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(tup, desc, 1, &isnull));
		d = SPI_getbinval(tup, desc, 2, &isnull);
		run_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(d);
	}
	jq_owner_end(&state);
	if (!done)
	{
		jq_row_must_be_gone(t, h->item.id);
		return false;
	}
	h->item.priority = DatumGetInt16(VALUE(JQ_COL_PRIORITY));
	h->item.flags = TIMESTAMP_IS_NOBEGIN(run_at) ? 0 : JQ_E_DUE;
	if (DatumGetInt64(JQ_ROW(&h->row, JQ_COL_HOME)) == t->home)
		jq_publish_row(h->lane_role, h->queue, &h->item, run_at);
	CommandCounterIncrement();
	return true;
}

/* its lock is free in a moment */
static void
wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 2L, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * "replace", "update".  false: the holder is not what it was, ask for the lock
 * again.  *ended: a holder that was no job before.
 */
static bool
act_on_holder(JqTable *t, const Datum *values, const bool *nulls,
			  char on_conflict, const JqUniqueLock *holder, int64 *ended,
			  JqAdmission *result)
{
	JqHeldJob h;
	bool running;

	/* see what this transaction has enqueued */
	CommandCounterIncrement();
	JQ_PAUSE("unique-before-hold");
	*result = JQ_ADMIT_NONE;
	if (jq_runs_here(holder->job))
		return true;
	if (jq_control_hold(t, holder->job, &h, &running))
	{
		JQ_PAUSE("unique-held");
		if (on_conflict == JQ_CONFLICT_REPLACE)
		{
			replace(t, values, holder->job);
			return false;
		}
		*result = JQ_ADMIT_OTHER;
		return update(t, values, nulls, &h);
	}
	if (!running)
	{
		/* once more, to see whether the lock is still that one's */
		if (*ended != holder->job)
		{
			*ended = holder->job;
			return false;
		}
		/*
		 * The lock has outlived it.  Or its row is still to be written: this is
		 * a trigger, or a job run inline, under the call that has taken the lock
		 * for it; that one goes on when we return.
		 */
		return holder->until == JQ_UNTIL_EXPIRED || holder->mine;
	}
	if (!jq_unique_ends_at_start(holder->until))
		return true;
	/* it starts just now */
	wait_a_moment();
	return false;
}

JqAdmission
jq_unique_admit(JqTable *t, const Datum *values, const bool *nulls,
				int64 *holder)
{
	char on_conflict = DatumGetChar(VALUE(JQ_COL_ON_CONFLICT));
	char until = DatumGetChar(VALUE(JQ_COL_UNIQUE_UNTIL));
	int64 ended = 0;
	JqAdmission result;
	JqUniqueLock lock;

	if (!jq_unique_locks(until))
		return JQ_ADMIT;
	do
	{
		TimestampTz expires_at = jq_unique_expiry(values, nulls);

		if (jq_unique_take(t, VALUE(JQ_COL_QUEUE), VALUE(JQ_COL_UNIQUE_KEY),
						   DatumGetInt64(VALUE(JQ_COL_ID)), until, expires_at,
						   true, &lock))
		{
			if (expires_at != DT_NOEND)
				jq_publish_prune(expires_at + JQ_UNIQUE_LINGERS_US);
			return JQ_ADMIT;
		}
		*holder = lock.job;
		switch (on_conflict)
		{
			case JQ_CONFLICT_JOIN:
				return JQ_ADMIT_OTHER;
			case JQ_CONFLICT_RAISE:
				raise_conflict(values, &lock);
				break;
			case JQ_CONFLICT_REJECT:
				return JQ_ADMIT_DEAD;
			case JQ_CONFLICT_RESCHEDULE:
				return JQ_ADMIT_LATER;
			case JQ_CONFLICT_LOG:
				ereport(LOG, (errmsg("no job was enqueued in queue \"%s\": %s",
									 cstring(values, JQ_COL_QUEUE),
									 jq_unique_reason(values, lock.job))));
				return JQ_ADMIT_NONE;
			case JQ_CONFLICT_REPLACE:
			case JQ_CONFLICT_UPDATE:
				break;
			default:
				return JQ_ADMIT_NONE;
		}
	} while (
		!act_on_holder(t, values, nulls, on_conflict, &lock, &ended, &result));
	return result;
}

static TimestampTz
later(const Datum *values, const bool *nulls)
{
	if (ISNULL(JQ_COL_UNIQUE_FOR))
		return GetCurrentTimestamp() + LATER_US;
	return jq_unique_expiry(values, nulls);
}

TimestampTz
jq_unique_postpone(Datum *values, bool *nulls)
{
	TimestampTz at = Max(later(values, nulls), wanted_run_at(values, nulls));

	VALUE(JQ_COL_ON_CONFLICT) = CharGetDatum(JQ_CONFLICT_RESCHEDULED);
	if (!ISNULL(JQ_COL_AFTER))
	{
		VALUE(JQ_COL_AFTER_RUN_AT) = TimestampTzGetDatum(at);
		return DatumGetTimestampTz(VALUE(JQ_COL_RUN_AT));
	}
	VALUE(JQ_COL_RUN_AT) = TimestampTzGetDatum(at);
	ISNULL(JQ_COL_RUN_AT) = false;
	return at;
}

/* ------------------------------------------------------------------ start */

#define DIGEST_LEN (1 + PG_SHA256_DIGEST_LENGTH)

/* what this process keeps others from executing; one job a time */
static char executing[DIGEST_LEN];
static bool is_executing;
static bool ends_with_commit; /* of the open transaction */
static bool committed;		  /* to be done when its locks are released */

static void
make_digest(char *digest, const JqRow *row)
{
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);
	text *queue = DatumGetTextPP(JQ_ROW(row, JQ_COL_QUEUE));
	text *key = DatumGetTextPP(JQ_ROW(row, JQ_COL_UNIQUE_KEY));

	digest[0] = '\0';
	if (ctx == NULL || pg_cryptohash_init(ctx) < 0 ||
		/* with its end, so that nothing else has the same bytes */
		pg_cryptohash_update(ctx, (uint8 *) VARDATA_ANY(queue),
							 VARSIZE_ANY_EXHDR(queue)) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) "", 1) < 0 ||
		pg_cryptohash_update(ctx, (uint8 *) VARDATA_ANY(key),
							 VARSIZE_ANY_EXHDR(key)) < 0 ||
		pg_cryptohash_final(ctx, (uint8 *) digest + 1,
							PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute a digest");
	pg_cryptohash_free(ctx);
}

int
jq_unique_digest(char *digest, const JqRow *row)
{
	if (JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY) ||
		(until_of(row) != JQ_WHILE_EXECUTING &&
		 until_of(row) != JQ_UNTIL_AND_WHILE_EXECUTING))
		return 0;
	make_digest(digest, row);
	return DIGEST_LEN;
}

/* false: *holder executes */
static bool
take_digest(const char *digest, int64 id, JqKeyJob *holder)
{
	bool ask = false;
	uint32 next;

	jq_keylock_prepare();
	holder->id = 0;
	while (holder->id == 0) /* else it was given free just now */
	{
		switch (jq_keylock_take(MyDatabaseId, digest, DIGEST_LEN, id, -1,
								JQ_NIL, &ask, &next))
		{
			case JQ_KEY_TAKEN:
				return true;
			case JQ_KEY_FULL:
				ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
								errmsg("too many keys are held")));
				break;
			default:
				*holder = jq_keylock_job(MyDatabaseId, digest, DIGEST_LEN);
				break;
		}
	}
	return false;
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	if (event == XACT_EVENT_ABORT)
		committed = false;
	if (!ends_with_commit)
		return;
	/* whoever meets it from now on waits for the end of that;
	 * model: ENDING_LATER */
	if (event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_ABORT)
		jq_keylock_ending(MyDatabaseId, executing, DIGEST_LEN, 0,
						  event == XACT_EVENT_PRE_COMMIT);
	if (event == XACT_EVENT_COMMIT)
	{
		committed = true;
		JQ_PAUSE("unique-before-locks");
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		ends_with_commit = false;
}

/*
 * What the job has enqueued finds nobody executing.  An abort changes nothing, the
 * job may be rerun at once.
 */
static void
after_locks(bool commit, bool top)
{
	if (!commit || !top || !committed)
		return;
	committed = false;
	JQ_PAUSE("unique-after-locks");
	jq_unique_let_go();
}

void
jq_unique_ends_with_commit(void)
{
	static bool registered = false;

	if (!is_executing)
		return;
	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		jq_after_locks(JQ_AFTER_LOCKS_EXECUTING, after_locks);
		registered = true;
	}
	ends_with_commit = true;
}

void
jq_unique_let_go(void)
{
	if (!is_executing)
		return;
	jq_keylock_release(MyDatabaseId, executing, DIGEST_LEN);
	is_executing = false;
}

/* it has asked for its lock, and got it */
static void
clear_mark(JqTable *t, int64 id)
{
	Oid types[1] = {INT8OID};
	Datum args[1];
	JqOwnerState state;

	args[0] = Int64GetDatum(id);
	PushActiveSnapshot(GetTransactionSnapshot());
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_job SET on_conflict = 'r'"
					 " WHERE id = $1 AND on_conflict = 'R'",
					 1, types, args, NULL);
	jq_owner_end(&state);
	PopActiveSnapshot();
}

static JqUniqueStart
refuse(const JqRow *row, int64 holder, bool at_work, JqRefusal *r)
{
	char *key = jq_row_cstring(row, JQ_COL_UNIQUE_KEY);

	r->on_conflict = on_conflict_of(row);
	r->run_at = later(row->values, row->nulls);
	if (!at_work)
		r->reason = psprintf("job " INT64_FORMAT " holds unique_key \"%s\"",
							 holder, key);
	else if (r->on_conflict == JQ_CONFLICT_JOIN)
		r->reason =
			psprintf("job " INT64_FORMAT " of unique_key \"%s\" is running",
					 holder, key);
	else
		r->reason = psprintf("a job of unique_key \"%s\" is running", key);
	return JQ_UNIQUE_REFUSED;
}

/*
 * Another one executes.  Who commits its end is about to let go, and not in the way;
 * so is one whose row is gone, however it ended.  model: ENDING_LATER, GONE_LATER
 */
static JqUniqueStart
is_executed(JqTable *t, const JqRow *row, const JqKeyJob *holder,
			JqRefusal *refusal)
{
	if (holder->ending != 0)
		return holder->ending + LONG_COMMIT_US > GetCurrentTimestamp() ?
				   JQ_UNIQUE_SOON :
				   JQ_UNIQUE_LATER;
	if (jq_unique_job_is_gone(t, holder->id))
		return JQ_UNIQUE_LATER;
	return refuse(row, holder->id, true, refusal);
}

static bool
is_to_ask(const JqRow *row)
{
	return on_conflict_of(row) == JQ_CONFLICT_RESCHEDULED &&
		   jq_unique_locks(until_of(row));
}

/*
 * A job that has still to ask for its lock does so before it keeps others from
 * executing: else one that has its lock, and starts now, would be refused for one
 * that does not start.  JQ_UNIQUE_GO: it has it.  model: LOCK_FIRST
 */
static JqUniqueStart
ask_for_lock(JqTable *t, const JqRow *row, const char *digest, int len,
			 JqRefusal *refusal)
{
	JqKeyJob holder = {0};
	JqUniqueLock lock;

	if (!is_to_ask(row))
		return JQ_UNIQUE_GO;
	if (len > 0)
		holder = jq_keylock_job(MyDatabaseId, digest, len);
	if (holder.id != 0)
		return is_executed(t, row, &holder, refusal);
	if (!jq_unique_take(t, JQ_ROW(row, JQ_COL_QUEUE),
						JQ_ROW(row, JQ_COL_UNIQUE_KEY),
						DatumGetInt64(JQ_ROW(row, JQ_COL_ID)), until_of(row),
						jq_unique_expiry(row->values, row->nulls), false,
						&lock))
		/* itself: who has given it up again has not ended yet */
		return lock.job == DatumGetInt64(JQ_ROW(row, JQ_COL_ID)) ?
				   JQ_UNIQUE_LATER :
				   refuse(row, lock.job, false, refusal);
	JQ_PAUSE("unique-asked");
	return JQ_UNIQUE_GO;
}

/* one that has begun to execute since then: the lock goes back */
static JqUniqueStart
was_overtaken(JqTable *t, const JqRow *row, const JqKeyJob *holder,
			  JqRefusal *refusal)
{
	if (is_to_ask(row))
		(void) jq_unique_release(t, JQ_ROW(row, JQ_COL_QUEUE),
								 JQ_ROW(row, JQ_COL_UNIQUE_KEY),
								 DatumGetInt64(JQ_ROW(row, JQ_COL_ID)), true);
	return is_executed(t, row, holder, refusal);
}

/* it starts: what its lock in the table has to do with that */
static JqUniqueStart
start_lock(JqTable *t, const JqRow *row)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	bool wrote = false;

	if (is_to_ask(row))
	{
		CommandCounterIncrement();
		clear_mark(t, id);
		wrote = true;
	}
	if (jq_unique_ends_at_start(until_of(row)))
		wrote |= jq_unique_release(t, JQ_ROW(row, JQ_COL_QUEUE),
								   JQ_ROW(row, JQ_COL_UNIQUE_KEY), id, false);
	return wrote ? JQ_UNIQUE_AGAIN : JQ_UNIQUE_GO;
}

JqUniqueStart
jq_unique_start(JqTable *t, const JqRow *row, JqRefusal *refusal)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	int len = is_executing ? 0 : jq_unique_digest(executing, row);
	JqKeyJob holder;
	JqUniqueStart result = ask_for_lock(t, row, executing, len, refusal);

	if (result != JQ_UNIQUE_GO)
		return result;
	if (len > 0)
	{
		if (!take_digest(executing, id, &holder))
			return was_overtaken(t, row, &holder, refusal);
		is_executing = true;
	}
	return start_lock(t, row);
}

JqUniqueStart
jq_unique_start_fetched(JqTable *t, const JqRow *row, bool leased,
						JqRefusal *refusal)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	char digest[DIGEST_LEN] = {0}; /* if it has one */
	int len = jq_unique_digest(digest, row);
	JqKeyJob holder = {0};
	bool taken = len == 0;
	bool ask = false;
	uint32 next;
	JqUniqueStart result;

	if (!taken && !jq_fetched_reserve_key(id))
		return JQ_UNIQUE_FULL;
	result = ask_for_lock(t, row, digest, len, refusal);
	if (result != JQ_UNIQUE_GO)
		return result;
	while (!taken && holder.id == 0) /* else it was given free just now */
	{
		switch (jq_keylock_take_for_claim(MyDatabaseId, digest, len, id,
										  leased ? 0 : MyProcPid, -1, JQ_NIL,
										  &ask, &next))
		{
			case JQ_KEY_TAKEN:
				jq_fetched_set_digest(id, digest, len);
				taken = true;
				break;
			case JQ_KEY_FULL:
				ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY),
								errmsg("too many keys are held")));
				break;
			default:
				holder = jq_keylock_job(MyDatabaseId, digest, len);
				break;
		}
	}
	if (!taken)
		return was_overtaken(t, row, &holder, refusal);
	return start_lock(t, row);
}

JqRefused
jq_unique_refuse(JqTable *t, int64 id, const JqRefusal *r)
{
	switch (r->on_conflict)
	{
		case JQ_CONFLICT_RESCHEDULE:
		case JQ_CONFLICT_RESCHEDULED:
		{
			Oid types[2] = {INT8OID, TIMESTAMPTZOID};
			Datum args[2];
			JqOwnerState state;
			bool done;

			args[0] = Int64GetDatum(id);
			args[1] = TimestampTzGetDatum(r->run_at);
			jq_owner_begin(t, &state);
			jq_owner_execute(
				t, "UPDATE %s.jobqueue_job SET run_at = $2 WHERE id = $1", 2,
				types, args, NULL);
			done = SPI_processed == 1;
			jq_owner_end(&state);
			return done ? JQ_REFUSED_LATER : JQ_REFUSED_GONE;
		}
		case JQ_CONFLICT_RAISE:
		{
			JqFailure f;
			TimestampTz run_at;

			memset(&f, 0, sizeof(f));
			f.sqlstate = "23505";
			f.message = f.reason = r->reason;
			f.final = true;
			return jq_record_failure(t, id, &f, &run_at) == JQ_RECORD_DEAD ?
					   JQ_REFUSED_DEAD :
					   JQ_REFUSED_GONE;
		}
		case JQ_CONFLICT_REJECT:
			return jq_archive(t, id, "dead", r->reason, 0, (Datum) 0) ?
					   JQ_REFUSED_DEAD :
					   JQ_REFUSED_GONE;
		case JQ_CONFLICT_LOG:
			ereport(LOG, (errmsg("job " INT64_FORMAT " was cancelled: %s", id,
								 r->reason)));
			break;
		default:
			break;
	}
	return jq_archive(t, id, "cancelled", r->reason, 0, (Datum) 0) ?
			   JQ_REFUSED_CANCELLED :
			   JQ_REFUSED_GONE;
}

/* --------------------------------------------------------------- sessions */

static void
not_now(const JqRow *row, int64 holder, const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					errmsg("unique_key \"%s\" of job " INT64_FORMAT
						   " is %s, by job " INT64_FORMAT,
						   jq_row_cstring(row, JQ_COL_UNIQUE_KEY),
						   DatumGetInt64(JQ_ROW(row, JQ_COL_ID)), what, holder),
					errhint("Wait for its end, or cancel it.")));
}

/* only for the end of its commit, if that does not wait for a standby */
static void
wait_for_executed(const JqRow *row, const JqKeyJob *holder)
{
	if (holder->ending == 0 ||
		holder->ending + LONG_COMMIT_US <= GetCurrentTimestamp())
		not_now(row, holder->id, "executed now");
	wait_a_moment();
}

void
jq_unique_run_here(JqTable *t, const JqRow *row)
{
	int64 id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	char until = until_of(row);
	char digest[DIGEST_LEN] = {0};
	bool mine = true; /* or it needs none */
	JqKeyJob holder;
	JqUniqueLock lock;

	if (until == JQ_WHILE_EXECUTING || until == JQ_UNTIL_AND_WHILE_EXECUTING)
	{
		make_digest(digest, row);
		mine = jq_keylock_mine(MyDatabaseId, digest, DIGEST_LEN);
		while (!mine &&
			   (holder = jq_keylock_job(MyDatabaseId, digest, DIGEST_LEN)).id !=
				   0)
			wait_for_executed(row, &holder);
	}
	/* its lock first, as at a start */
	if (is_to_ask(row) &&
		!jq_unique_take(t, JQ_ROW(row, JQ_COL_QUEUE),
						JQ_ROW(row, JQ_COL_UNIQUE_KEY), id, until,
						jq_unique_expiry(row->values, row->nulls), true, &lock))
		not_now(row, lock.job, "held");
	if (!mine)
	{
		jq_publish_reserve_key();
		while (!take_digest(digest, id, &holder))
			wait_for_executed(row, &holder);
		jq_publish_key(digest, DIGEST_LEN);
	}
	if (jq_unique_ends_at_start(until))
		(void) jq_unique_release(t, JQ_ROW(row, JQ_COL_QUEUE),
								 JQ_ROW(row, JQ_COL_UNIQUE_KEY), id, false);
}

void
jq_unique_come_back(JqTable *t, int64 id)
{
	TransactionId xid;
	JqUniqueLock lock;
	JqRow row;
	char until;

	CommandCounterIncrement();
	if (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL) != JQ_FETCH_FOUND ||
		JQ_ROW_NULL(&row, JQ_COL_UNIQUE_KEY))
		return;
	until = until_of(&row);
	if (!jq_unique_locks(until) ||
		jq_unique_take(t, JQ_ROW(&row, JQ_COL_QUEUE),
					   JQ_ROW(&row, JQ_COL_UNIQUE_KEY), id, until,
					   jq_unique_expiry(row.values, row.nulls), true, &lock))
		return;
	ereport(ERROR, (errcode(ERRCODE_UNIQUE_VIOLATION),
					errmsg("job " INT64_FORMAT
						   " cannot come back: another one has its "
						   "unique_key \"%s\"",
						   id, jq_row_cstring(&row, JQ_COL_UNIQUE_KEY)),
					errdetail("Job " INT64_FORMAT " holds it.", lock.job),
					errhint("Wait for its end, or cancel it.")));
}
