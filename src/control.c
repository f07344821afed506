/*
 * control.c
 *		Functions that act on jobs: cancel, retry, run, adopt, sweep, quiesce.
 *
 * One may act on a job of a role one is a member of; an administrator on all.
 * A waiting job is claimed before its row is touched, and the claim is held to
 * the end of the transaction, so that no worker starts it meanwhile and a
 * rollback leaves it as it was.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "comeback.h"
#include "commands/sequence.h"
#include "compat.h"
#include "configure.h"
#include "conflict.h"
#include "control.h"
#include "database.h"
#include "dependency.h"
#include "executor/spi.h"
#include "failure.h"
#include "fetched.h"
#include "fmgr.h"
#include "funcapi.h"
#include "grant.h"
#include "jobtable.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "quota.h"
#include "replication/logicalworker.h"
#include "runhere.h"
#include "runjob.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

JqTable *
jq_control_begin(const char *function)
{
	jq_shmem_check();
	PreventCommandIfParallelMode(function);
	jq_check_primary(function);
	PreventCommandIfReadOnly(function);
	return jq_table_required();
}

void
jq_control_not_restricted(const char *function)
{
	if (InSecurityRestrictedOperation() && !IsLogicalWorker())
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot execute %s within security-restricted operation",
					function),
			 errhint(
				 "Such operations are index builds, ANALYZE and REFRESH MATERIALIZED VIEW.")));
}

int64
jq_control_id(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job id must not be null"),
				 errhint("Give the id that jobqueue_enqueue() returned.")));
	return PG_GETARG_INT64(0);
}

static void
no_such_job(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 errmsg("job " INT64_FORMAT " does not exist", id),
			 errhint("It has ended and was not kept, or was never enqueued.")));
}

static void
describe(JqHeldJob *h)
{
	char *key = jq_row_cstring(&h->row, JQ_COL_KEY);

	h->owner = DatumGetObjectId(JQ_ROW(&h->row, JQ_COL_OWNER));
	h->lane_role = jq_row_lane_role(&h->row);
	h->queue = jq_row_cstring(&h->row, JQ_COL_QUEUE);
	memset(&h->item, 0, sizeof(h->item));
	h->item.id = DatumGetInt64(JQ_ROW(&h->row, JQ_COL_ID));
	h->item.priority = DatumGetInt16(JQ_ROW(&h->row, JQ_COL_PRIORITY));
	h->item.tid = h->row.tid;
	h->run_at = DT_NOBEGIN;
	if (!JQ_ROW_NULL(&h->row, JQ_COL_RUN_AT))
	{
		h->item.flags = JQ_E_DUE;
		h->run_at = DatumGetTimestampTz(JQ_ROW(&h->row, JQ_COL_RUN_AT));
		if (h->run_at <= GetCurrentTimestamp())
			h->run_at = DT_NOBEGIN;
	}
	if (key != NULL)
	{
		h->item.key = key;
		h->item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
}

/* one transaction at a time acts on a job; deadlocks are found by PostgreSQL */
static void
lock_job(JqTable *t, int64 id)
{
	LOCKTAG tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, t->job, (uint32) id,
					   (uint16) (id >> 32));
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

void
jq_control_pause(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 10L, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

void
jq_control_await(JqTable *t, int64 id)
{
	JqFetched f;

	if (!jq_claim_has(MyDatabaseId, id) || jq_publish_is_held(id))
		return; /* ours is let go before the row is published */
	if (jq_fetched_get(MyDatabaseId, id, &f) && f.fate != JQ_FATE_NONE &&
		f.fate_pid == MyProcPid)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
						errmsg("job " INT64_FORMAT
							   " is ended by its consumer in this transaction",
							   id),
						errhint("Commit that first.")));
	/* of a session it is let go with its locks */
	lock_job(t, id);
	while (jq_claim_has(MyDatabaseId, id) && !jq_publish_is_held(id))
		jq_control_pause();
}

bool
jq_control_hold(JqTable *t, int64 id, JqHeldJob *h, bool *running)
{
	TransactionId xid;

	lock_job(t, id);

	*running = false;
	for (;;)
	{
		JqFetch f = jq_row_fetch(t, id, NULL, NULL, &h->row, &xid, NULL);

		if (f == JQ_FETCH_GONE)
			return false;
		describe(h);
		jq_check_owner(h->owner, id, "act on");
		JQ_PAUSE("control-looked");
		switch (jq_claim_hold(MyDatabaseId, h->lane_role, h->queue, id))
		{
			case JQ_HOLD_DONE:
				jq_publish_held(h->lane_role, h->queue, &h->item, h->run_at);
				/* before we had the claim it may have been changed, or run */
				if (jq_row_fetch(t, id, NULL, NULL, &h->row, &xid, NULL) !=
					JQ_FETCH_GONE)
				{
					describe(h);
					jq_publish_held_is(h->lane_role, h->queue, &h->item,
									   h->run_at);
					return true;
				}
				JQ_PAUSE("control-found-none");
				jq_look_prepare(t);
				HOLD_INTERRUPTS();
				jq_publish_not_held(id);
				jq_look_again(t, id, false);
				RESUME_INTERRUPTS();
				break; /* and if it is there, it is ours to hold */
			case JQ_HOLD_RUNNING:
				*running = true;
				return false;
			case JQ_HOLD_OTHER:
				if (jq_publish_is_held(id))
					return true; /* by this very transaction */
				/*
				 * Its failure is being recorded, or its row looked at.  Who has
				 * a hand in the row may be waiting for us: that is to be found.
				 */
				if (f == JQ_FETCH_DOUBTFUL)
					XactLockTableWait(xid, NULL, NULL, XLTW_None);
				else
					jq_control_pause();
				break;
			case JQ_HOLD_FULL:
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("too many jobs are held by open transactions"),
						 errhint("Act on fewer jobs in a transaction.")));
		}
	}
}

PG_FUNCTION_INFO_V1(jq_cancel);
Datum
jq_cancel(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_cancel()");
	int64 id = jq_control_id(fcinfo);
	JqHeldJob h;
	bool running;
	bool done;

	CommandCounterIncrement();
	while (!jq_control_hold(t, id, &h, &running))
	{
		if (!running)
			PG_RETURN_BOOL(false);
		if (jq_claim_cancel(MyDatabaseId, id))
			PG_RETURN_BOOL(true);
		/* it ended just now: completed, or it waits for its next attempt */
		CHECK_FOR_INTERRUPTS();
	}
	if (DatumGetInt64(JQ_ROW(&h.row, JQ_COL_HOME)) != t->home ||
		t->meta_database != MyDatabaseId)
		jq_publish_count_anew(); /* it was held */
	done = jq_archive(t, id, "cancelled", "cancelled", 0, (Datum) 0);
	if (!done)
		jq_row_must_be_gone(t, id);
	PG_RETURN_BOOL(done);
}

PG_FUNCTION_INFO_V1(jq_retry);
Datum
jq_retry(PG_FUNCTION_ARGS)
{
	static const char *const look =
		"SELECT owner::oid FROM %s.jobqueue_archive WHERE id = $1"
		" AND state IN ('dead', 'cancelled') FOR UPDATE";
	static const char *const move =
		"WITH back AS (DELETE FROM %s.jobqueue_archive WHERE id = $1 RETURNING *)"
		" INSERT INTO %s.jobqueue_job (id, enqueued_at, home, owner, func_owner,"
		" priority, attempt, max_attempts, crashes, kind, queue, command, args,"
		" key, search_path, settings, timeout, keep, tags, errors, unique_key,"
		" unique_until, unique_for, on_conflict, after)"
		" SELECT id, enqueued_at, home, owner, func_owner, priority, 0,"
		" max_attempts, 0, kind, queue, command, args, key, search_path, settings,"
		" timeout, keep, tags, errors, unique_key, unique_until, unique_for,"
		" CASE on_conflict WHEN 'R' THEN 'r' ELSE on_conflict END, after FROM back"
		" RETURNING queue, owner::oid, priority, key, ctid, home,"
		" after IS NOT NULL, " JQ_LANE_ROLE;
	JqTable *t = jq_control_begin("jobqueue_retry()");
	int64 id = jq_control_id(fcinfo);
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	JqItem item;
	Oid owner;
	Oid lane_role;
	char *queue;
	char *key = NULL;
	bool isnull;
	bool mine;
	bool after;
	int nwaiting = 0;
	MemoryContext context = CurrentMemoryContext;

	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, look, 1, types, values, NULL);
	if (SPI_processed == 0)
	{
		jq_owner_end(&state);
		PG_RETURN_BOOL(false);
	}
	owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	jq_check_owner(owner, id, "act on");
	jq_quota_take(t, owner, 1);

	jq_owner_begin(t, &state);
	jq_owner_execute(t, move, 1, types, values, NULL);
	if (SPI_processed == 0)
	{
		jq_owner_end(&state);
		jq_quota_gone(owner, 1);
		PG_RETURN_BOOL(false);
	}
	memset(&item, 0, sizeof(item));
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		Datum d;

		queue = MemoryContextStrdup(context,
									TextDatumGetCString(
										SPI_getbinval(tup, desc, 1, &isnull)));
		item.id = id;
		item.priority = DatumGetInt16(SPI_getbinval(tup, desc, 3, &isnull));
		d = SPI_getbinval(tup, desc, 4, &isnull);
		if (!isnull)
			key = MemoryContextStrdup(context, TextDatumGetCString(d));
		item.tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(tup, desc, 5, &isnull));
		mine = DatumGetInt64(SPI_getbinval(tup, desc, 6, &isnull)) == t->home;
		after = DatumGetBool(SPI_getbinval(tup, desc, 7, &isnull));
		lane_role = DatumGetObjectId(SPI_getbinval(tup, desc, 8, &isnull));
	}
	jq_owner_end(&state);
	if (key != NULL)
	{
		item.key = key;
		item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
	jq_unique_come_back(t, id);
	if (after)
		(void) jq_after_wait_again(t, &id, 1, &nwaiting);
	jq_control_await(t, id);
	if (!mine)
		jq_publish_count_anew();
	else if (nwaiting > 0)
		jq_publish_waiting(id);
	else
		jq_publish_row(lane_role, queue, &item, DT_NOBEGIN);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(jq_run);
Datum
jq_run(PG_FUNCTION_ARGS)
{
	JqTable *t = jq_control_begin("jobqueue_run()");
	int64 id = jq_control_id(fcinfo);
	JqHeldJob h;
	bool running;
	bool isnull;
	Datum result;
	int64 dep;

	CommandCounterIncrement();
	if (id != 0 && jq_current_job.id == id)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
						errmsg("job " INT64_FORMAT " cannot run itself", id),
						errhint("Enqueue another job.")));
	if (!jq_control_hold(t, id, &h, &running))
	{
		if (running)
			ereport(ERROR, (errcode(ERRCODE_OBJECT_IN_USE),
							errmsg("job " INT64_FORMAT " is running", id),
							errhint("Wait for its end, or cancel it.")));
		no_such_job(id);
	}
	if (h.owner != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("job " INT64_FORMAT " belongs to another role", id),
				 errhint("SET ROLE to its owner first.")));
	if (DatumGetInt64(JQ_ROW(&h.row, JQ_COL_HOME)) != t->home)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT
						" is held because it comes from another database",
						id),
				 errhint("Run jobqueue_adopt().")));
	if (JQ_ROW_NULL(&h.row, JQ_COL_COMMAND))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " has no command", id),
				 errhint("Outside consumers fetch it by jobqueue_fetch().")));
	if (jq_row_waits(&h.row) && jq_after_open(t, id, &dep, 1) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " waits for job " INT64_FORMAT, id,
						dep),
				 errhint("Run that one first.")));
	result = jq_run_here(t, &h.row, &isnull);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/*
 * Rows that came without the sequence, by replication or table by table, have
 * numbers that it would give again.
 */
static void
advance_ids(JqTable *t)
{
	bool isnull;
	int64 max;

	jq_owner_read(t,
				  "SELECT greatest((SELECT max(id) FROM %s.jobqueue_job),"
				  " (SELECT max(id) FROM %s.jobqueue_archive),"
				  " (SELECT max(id) FROM %s.jobqueue_service),"
				  " (SELECT max(id) FROM %s.jobqueue_schedule), 0)",
				  0, NULL, NULL, NULL);
	max = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull));
	if (max <= jq_last_job_id(t))
		return;
	/* nobody is to be given a number between the look and the change */
	LockRelationOid(t->sequence, ShareRowExclusiveLock);
	if (max > jq_last_job_id(t))
		DirectFunctionCall2(setval_oid, ObjectIdGetDatum(t->sequence),
							Int64GetDatum(max));
}

PG_FUNCTION_INFO_V1(jq_adopt);
Datum
jq_adopt(PG_FUNCTION_ARGS)
{
	/*
	 * A function's owner is remembered by number, which means nothing in
	 * another cluster: whoever adopts the jobs vouches for the functions.
	 */
	static const char *const sql =
		"UPDATE %s.jobqueue_job j SET home = $1, func_owner = CASE kind WHEN 'f'"
		" THEN (SELECT p.proowner FROM pg_proc p"
		"       WHERE p.oid = to_regprocedure(j.command)::oid) END"
		" WHERE home <> $1 RETURNING queue, " JQ_LANE_ROLE;
	JqTable *t = jq_control_begin("jobqueue_adopt()");
	Oid types[2] = {INT8OID, OIDOID};
	Datum values[2];
	JqOwnerState state;
	uint64 n, i;

	(void) fcinfo;
	values[0] = Int64GetDatum(t->home);
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	jq_owner_begin(t, &state);
	if (t->meta_database != MyDatabaseId)
	{
		/* a copy of another database: it gets an identity of its own */
		jq_owner_execute(t,
						 "UPDATE %s.jobqueue_meta SET database = $2,"
						 " home = hashtextextended(gen_random_uuid()::text, 0)",
						 2, types, values, NULL);
		jq_owner_execute(t, "SELECT home FROM %s.jobqueue_meta", 0, NULL, NULL,
						 NULL);
		{
			bool isnull;

			values[0] = SPI_getbinval(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, 1, &isnull);
		}
	}
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_archive SET home = $1"
					 " WHERE home <> $1",
					 1, types, values, NULL);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_service s SET home = $1, func_owner ="
					 " (SELECT p.proowner FROM pg_proc p"
					 "  WHERE p.oid = to_regprocedure(s.handler)::oid)"
					 " WHERE home <> $1",
					 1, types, values, NULL);
	jq_owner_execute(
		t,
		"UPDATE %s.jobqueue_schedule s SET home = $1,"
		" next_run = '-infinity', func_owner ="
		" CASE kind WHEN 'f' THEN (SELECT p.proowner FROM pg_proc p"
		"  WHERE p.oid = to_regprocedure(s.command)::oid) END"
		" WHERE home <> $1",
		1, types, values, NULL);
	if (SPI_processed > 0)
		jq_publish_schedule(DT_NOBEGIN);
	advance_ids(t);
	/* whoever leased them did so elsewhere */
	jq_owner_execute(t,
					 "DELETE FROM %s.jobqueue_lease WHERE job IN"
					 " (SELECT id FROM %s.jobqueue_job WHERE home <> $1)",
					 1, types, values, NULL);
	jq_owner_execute(t, sql, 1, types, values, NULL);
	n = SPI_processed;
	for (i = 0; i < n; i++)
	{
		bool isnull;
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		jq_publish_count_anew();
		jq_publish_unknown(
			DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull)),
			TextDatumGetCString(SPI_getbinval(tup, desc, 1, &isnull)));
	}
	jq_owner_end(&state);
	/* whatever is due or expired, it was not looked at before */
	jq_publish_due(DT_NOBEGIN + 1);
	jq_publish_expiry(DT_NOBEGIN + 1);
	jq_publish_after_unknown();
	/* rows of queues that came with triggers disabled */
	jq_publish_settings_unknown();
	jq_publish_count_anew();
	CacheInvalidateRelcacheByRelid(t->job);
	PG_RETURN_INT64((int64) n);
}

PG_FUNCTION_INFO_V1(jq_sweep);
Datum
jq_sweep(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	(void) jq_control_begin("jobqueue_sweep()");
	jq_publish_forget(MyDatabaseId);
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_quiesce);
Datum
jq_quiesce(PG_FUNCTION_ARGS)
{
	Interval *timeout = PG_ARGISNULL(0) ? NULL : PG_GETARG_INTERVAL_P(0);
	TimestampTz until;
	int64 us = USECS_PER_MINUTE;
	int dbix;

	(void) jq_control_begin("jobqueue_quiesce()");
	/* the sum below is not to overflow */
	if (timeout != NULL &&
		(timeout->month < -12 * 100 || timeout->month > 12 * 100 ||
		 timeout->day < -36600 || timeout->day > 36600 ||
		 timeout->time < -36600 * USECS_PER_DAY ||
		 timeout->time > 36600 * USECS_PER_DAY))
		ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						errmsg("timeout is out of range"),
						errhint("It must be at most 100 years.")));
	if (timeout != NULL)
		us = timeout->time +
			 (timeout->day + INT64CONST(30) * timeout->month) * USECS_PER_DAY;
	if (us < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("timeout must not be negative"),
						errhint("0 does not wait.")));
	dbix = jq_dir_db(MyDatabaseId, true);
	if (dbix < 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg(
					 "there are more databases than jobqueue can look after"),
				 errhint("Increase jobqueue.max_databases.")));
	jq_db_set_quiesced(dbix, true);
	until = GetCurrentTimestamp() + us;
	while (jq_claim_count(MyDatabaseId) > (jq_current_job.id != 0 ? 1 : 0))
	{
		if (GetCurrentTimestamp() >= until)
			PG_RETURN_BOOL(false);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10L,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(jq_resume);
Datum
jq_resume(PG_FUNCTION_ARGS)
{
	int dbix;
	int i;

	(void) fcinfo;
	(void) jq_control_begin("jobqueue_resume()");
	dbix = jq_dir_db(MyDatabaseId, true);
	if (dbix < 0)
		PG_RETURN_VOID();
	jq_db_set_quiesced(dbix, false);
	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_lanes[i].db == MyDatabaseId && !jq_lane_stopped(&jq_lanes[i]))
			jq_lane_call(i, (int) jq_lanes[i].nready);
	jq_launcher_wake();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_current);
Datum
jq_current(PG_FUNCTION_ARGS)
{
	TupleDesc desc;
	Datum values[6];
	bool nulls[6];

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(nulls, true, sizeof(nulls));
	if (jq_current_job.id != 0)
	{
		memset(nulls, false, sizeof(nulls));
		values[0] = Int64GetDatum(jq_current_job.id);
		values[1] = CStringGetTextDatum(jq_current_job.queue);
		nulls[2] = jq_current_job.key == NULL;
		if (!nulls[2])
			values[2] = CStringGetTextDatum(jq_current_job.key);
		values[3] = Int32GetDatum(jq_current_job.attempt);
		values[4] = Int32GetDatum(jq_current_job.max_attempts);
		values[5] = TimestampTzGetDatum(jq_current_job.enqueued_at);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
