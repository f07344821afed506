/*
 * wait.c
 *		jobqueue_wait(): sleep until jobs have ended, and how they did.
 *
 * The session takes a cell for each job (waiter.h), then looks at the job: its
 * row lives, so it has not ended; or how it ended stands in its cell, in the ring
 * of ended jobs, or in the history.  A row that is gone while its job is still
 * claimed has ended just now, and whoever has the claim is about to say how.
 *
 * A job that was cancelled or dead may have come back and ended again, so for
 * those the history goes before the ring; one that is completed never comes back.
 *
 * Nobody is told what a crash or a failover could take back: the end of the job
 * is flushed, and replicated as this session's own synchronous_commit says.
 *
 * No lock is held while it sleeps, but the statement's snapshot is; of
 * jobqueue_call(), which commits before it comes here, there is none.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "grant.h"
#include "guc.h"
#include "jobtable.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pause.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "runhere.h"
#include "runjob.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"
#include "waiter.h"
#include "waitgraph.h"
#include "worker.h"

#define MAX_CONFIRM_MS 100 /* between two looks at what standbys have */
#define MAX_IDS 1000
#define SOON_MS 10 /* its end is about to be told; doubled up to */
#define SOON_MAX_MS 1000
#ifdef JQ_TESTING
#define LOOK_MS 3600000 /* tests want to know when somebody is not called */
#else
#define LOOK_MS \
	60000 /* so that a lost row is noticed, or a step of the clock */
#endif

typedef struct Target
{
	int64 id;
	int cell;
	bool seen; /* its row has been there */
	bool soon; /* its row is gone: it ends just now */
	bool ended;
	const char *state;
	bool has_result;
	Datum result;
	char *error;
	bool hidden;	/* the caller sees no results of its owner */
	bool here;		/* in this very transaction: nothing to flush */
	XLogRecPtr lsn; /* of its commit; invalid: not known */
} Target;

typedef struct Wait
{
	MemoryContext context; /* what lasts to the end of the call */
	MemoryContext scratch; /* reset for each look */
	bool worker;		   /* and counts as one that waits */
	TimestampTz since;
	TimestampTz until;
	int n;
	Target *targets;
} Wait;

/* ------------------------------------------------------------- one look */

static void
check_owner(Oid owner, Target *t)
{
	/* an administrator waits for all, and sees of them what the views show */
	t->hidden = jq_sight_of(owner) < 2;
	if (t->hidden)
		jq_check_owner(owner, t->id, "wait for");
}

/* an end of a record that has been written to the WAL, or later */
static XLogRecPtr
end_of_wal(void)
{
	XLogRecPtr lsn = GetXLogInsertRecPtr();

	/* at the start of a page it stands behind the header, which may not exist */
	if (XLogSegmentOffset(lsn, wal_segment_size) == SizeOfXLogLongPHD)
		lsn -= SizeOfXLogLongPHD;
	else if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		lsn -= SizeOfXLogShortPHD;
	return lsn;
}

/* have the standbys confirmed it, as this session asks for? */
static bool
is_confirmed(XLogRecPtr lsn)
{
	int mode;
	bool ok;

	if (!SyncRepRequested())
		return true;
	mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE ?
			   SYNC_REP_WAIT_WRITE :
		   synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_APPLY ?
			   SYNC_REP_WAIT_APPLY :
			   SYNC_REP_WAIT_FLUSH;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	/* the setting as the server has it: this session's own may be older */
	ok = !jq_standbys_defined() || WalSndCtl->lsn[mode] >= lsn;
	LWLockRelease(SyncRepLock);
	return ok;
}

static void
confirmation_context(void *arg)
{
	(void) arg;
	errcontext("waiting for a standby to confirm the end of the job");
}

/*
 * SyncRepWaitForLSN() is for who has written the record: no two may wait there for
 * the same one, and any number of sessions wait for the end of a job.
 */
static void
await_confirmation(XLogRecPtr lsn)
{
	ErrorContextCallback context;
	long ms;

	context.callback = confirmation_context;
	context.arg = NULL;
	context.previous = error_context_stack;
	error_context_stack = &context;
	for (ms = 1; !is_confirmed(lsn); ms = Min(ms * 2, MAX_CONFIRM_MS))
	{
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
						 WAIT_EVENT_SYNC_REP);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	error_context_stack = context.previous;
}

/* all up to there; invalid: all that there is; model: FLUSH_TELL */
static void
make_durable(XLogRecPtr lsn)
{
	if (XLogRecPtrIsInvalid(lsn))
		lsn = end_of_wal();
	JQ_PAUSE("wait-before-flush");
	XLogFlush(lsn);
	await_confirmation(lsn);
}

static void
too_large(const Target *t)
{
	if (!t->here)
		make_durable(t->lsn);
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("job " INT64_FORMAT
					" is completed, but its result was not kept",
					t->id),
			 errdetail("Results of more than %d bytes are only in the history.",
					   JQ_RECENT_TEXT),
			 errhint("Enqueue it with keep, or set keep for its queue.")));
}

/* what stands in a cell, in the ring, or is about to */
static void
take_recent(Wait *w, Target *t, const JqRecent *r, const char *text, int len,
			bool cut)
{
	MemoryContext old = MemoryContextSwitchTo(w->context);
	char *copy = text != NULL && len > 0 ? pnstrdup(text, len) : NULL;

	t->state = jq_outcome_name(r->outcome);
	/* one that had come back may have ended once more, by somebody else */
	t->lsn = r->outcome == JQ_COMPLETED ? r->lsn : InvalidXLogRecPtr;
	if (r->outcome != JQ_COMPLETED)
		t->error = copy;
	else if (cut && !t->hidden)
		too_large(t);
	else if (copy != NULL && !cut)
	{
		t->result = DirectFunctionCall1(jsonb_in, CStringGetDatum(copy));
		t->has_result = true;
	}
	t->ended = true;
	MemoryContextSwitchTo(old);
}

static bool
take_history(Wait *w, JqTable *table, Target *t)
{
	static const char *const sql =
		"SELECT owner::oid, state, result,"
		" CASE state WHEN 'completed' THEN NULL"
		"  WHEN 'dead' THEN coalesce(errors->-1->>'error', reason)"
		"  ELSE reason END"
		" FROM %s.jobqueue_archive WHERE id = $1";
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	bool found;
	Oid owner = InvalidOid;

	values[0] = Int64GetDatum(t->id);
	/* what is out of line is read under a snapshot, which a call may not have */
	PushActiveSnapshot(GetLatestSnapshot());
	jq_owner_begin(table, &state);
	jq_owner_read(table, sql, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(w->context);
		bool isnull;
		Datum d;

		owner = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
		t->state = SPI_getvalue(tup, desc, 2);
		t->state = MemoryContextStrdup(w->context, t->state);
		d = SPI_getbinval(tup, desc, 3, &isnull);
		t->has_result = !isnull;
		if (!isnull)
			t->result = PointerGetDatum(PG_DETOAST_DATUM_COPY(d));
		t->error = SPI_getvalue(tup, desc, 4);
		if (t->error != NULL)
			t->error = MemoryContextStrdup(w->context, t->error);
		MemoryContextSwitchTo(old);
	}
	jq_owner_end(&state);
	PopActiveSnapshot();
	if (!found)
		return false;
	check_owner(owner, t);
	t->ended = true;
	return true;
}

static void
must_not_be_ours(JqRow *row, int64 id)
{
	if (TransactionIdIsCurrentTransactionId(
			HeapTupleHeaderGetXmin(row->tuple->t_data)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT
						" cannot start before this transaction has committed",
						id),
				 errdetail("This transaction has enqueued or changed it."),
				 errhint("Commit first, then wait.")));
}

static void
not_found(const Target *t)
{
	make_durable(InvalidXLogRecPtr);
	if (t->seen)
		ereport(ERROR, (errcode(ERRCODE_NO_DATA_FOUND),
						errmsg("job " INT64_FORMAT
							   " has ended, and it is not known how",
							   t->id),
						errhint("Its row was deleted by hand.")));
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 errmsg("job " INT64_FORMAT " does not exist", t->id),
			 errhint("It has ended too long ago and was not kept, or was never "
					 "enqueued.")));
}

/* has it ended?  Then t says how. */
static void
look(Wait *w, Target *t)
{
	JqTable *table = jq_table_required();
	TransactionId xid;
	JqRow row;
	JqRecent r;
	bool out;
	bool known;
	const char *text;
	int len;

	t->soon = false;
	if (jq_waiter_told(t->cell, &r) && r.outcome == JQ_COMPLETED && !r.cut)
	{
		check_owner(r.role, t);
		take_recent(w, t, &r, r.text, r.textlen, false);
		return;
	}
	if (jq_row_fetch(table, t->id, NULL, NULL, &row, &xid, NULL) !=
		JQ_FETCH_GONE)
	{
		check_owner(DatumGetObjectId(JQ_ROW(&row, JQ_COL_OWNER)), t);
		must_not_be_ours(&row, t->id);
		t->seen = true;
		return;
	}
	if (jq_ended_here(t->id, &r, &text, &len))
	{
		bool cut = len > JQ_RECENT_TEXT;

		check_owner(r.role, t);
		t->here = true;
		if (!cut || !take_history(w, table, t))
			take_recent(w, t, &r, text, text ? strlen(text) : 0, cut);
		return;
	}
	/* whoever had it tells how it ended before he lets it go */
	out = jq_claim_is_out(MyDatabaseId, t->id);
	JQ_PAUSE("wait-row-gone");
	known =
		jq_waiter_told(t->cell, &r) || jq_recent_find(MyDatabaseId, t->id, &r);
	if (known)
		check_owner(r.role, t);
	if (known && r.outcome == JQ_COMPLETED && !r.cut)
		take_recent(w, t, &r, r.text, r.textlen, false);
	else if (take_history(w, table, t))
		t->lsn = known && r.outcome == JQ_COMPLETED ? r.lsn : InvalidXLogRecPtr;
	else if (known)
		take_recent(w, t, &r, r.text, r.textlen, r.cut);
	else if (out)
		t->soon = true;
	else
		not_found(t);
}

/* ------------------------------------------------------------ durability */

static void
make_ends_durable(Wait *w)
{
	XLogRecPtr lsn = InvalidXLogRecPtr;
	bool any = false;
	bool known = true;
	int i;

	for (i = 0; i < w->n; i++)
	{
		Target *t = &w->targets[i];

		if (!t->ended || t->here)
			continue;
		any = true;
		known &= !XLogRecPtrIsInvalid(t->lsn);
		lsn = Max(lsn, t->lsn);
	}
	if (any)
		make_durable(known ? lsn : InvalidXLogRecPtr);
}

/* --------------------------------------------------------------- the wait */

/* look at those that something has happened to; how many have ended */
static int
look_around(Wait *w, bool all, bool *soon)
{
	int ended = 0;
	int i;

	*soon = false;
	for (i = 0; i < w->n; i++)
	{
		Target *t = &w->targets[i];

		if (!t->ended && (jq_waiter_is_called(t->cell) || t->soon || all))
		{
			MemoryContext old = MemoryContextSwitchTo(w->scratch);

			look(w, t);
			MemoryContextSwitchTo(old);
			MemoryContextReset(w->scratch);
		}
		ended += t->ended;
		*soon |= t->soon;
	}
	return ended;
}

/* a job waits for one that no worker is left for */
static void
check_workers(Wait *w)
{
	if (w->worker && jq_shared->slots_full_at >= w->since && jq_slot_all_wait())
		ereport(
			ERROR,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("no worker is left that could run what this job waits for"),
			 errhint("Increase max_worker_processes (now %d).",
					 max_worker_processes)));
}

/* for the errors */
static char *
describe(const Wait *w)
{
	int i;

	if (w->n > 1)
		return psprintf("%d jobs", w->n);
	for (i = 0; i < w->n; i++)
		if (!w->targets[i].ended)
			return psprintf("job " INT64_FORMAT, w->targets[i].id);
	return "";
}

static void
sleep_until_called(Wait *w, int wanted)
{
	static uint32 wait_event;
	TimestampTz looked = GetCurrentTimestamp();
	int soon_ms = SOON_MS;
	JqWaitLook look;

	jq_waitgraph_begin(&look);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz wake;
		bool all = now - looked >= LOOK_MS * INT64CONST(1000);
		bool soon;

		if (all)
			looked = now;
		if (look_around(w, all, &soon) >= wanted)
			return;
		if (now >= w->until)
			return;
		check_workers(w);
		wake = Min(w->until, looked + LOOK_MS * INT64CONST(1000));
		if (soon)
		{
			wake = Min(wake, TimestampTzPlusMilliseconds(now, soon_ms));
			soon_ms = Min(2 * soon_ms, SOON_MAX_MS);
		}
		if (jq_waitgraph_look(&look))
		{
			char *what = describe(w);

			jq_waiter_drop_all();
			jq_waitgraph_error(&look, what);
		}
		wake = Min(wake, look.next);
		/* where there is no other snapshot, none is held while it sleeps */
		InvalidateCatalogSnapshotConditionally();
		JQ_PAUSE("wait-before-sleep");
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(TimestampDifferenceMilliseconds(now, wake), 1),
						 jq_wait_event(&wait_event, "JobqueueWait"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* those that would wait for ever */
static void
check_ids(Wait *w)
{
	int i;

	for (i = 0; i < w->n; i++)
	{
		int64 id = w->targets[i].id;

		/* 0 is no job, and so is what runs where none runs */
		if (id != 0 && jq_runs_here(id))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("job " INT64_FORMAT " cannot wait for itself", id),
					 errhint("Wait for another job.")));
		if (jq_is_worker && jq_claim_is_other(id) && !jq_claim_shares())
			ereport(ERROR,
					(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
					 errmsg("job " INT64_FORMAT
							" is in one batch with the job that waits for it",
							id),
					 errhint("Set batch to 1 for a queue whose jobs wait.")));
	}
}

/*
 * Those before it in a batch have not committed while it waits, perhaps for what
 * cannot run before they have: it is to be run alone, after them.  A cancel is
 * what no handler in the job takes for a failure of its own.
 */
static void
must_not_share(void)
{
	if (jq_claim_shares())
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("a job that waits does not share a transaction")));
}

static void
wait_for(Wait *w, int wanted)
{
	int i;

	check_ids(w);
	w->context = CurrentMemoryContext;
	w->scratch = AllocSetContextCreate(CurrentMemoryContext, "jobqueue wait",
									   ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		for (i = 0; i < w->n; i++)
		{
			w->targets[i].cell =
				jq_waiter_add(w->targets[i].id, wanted == w->n, w->since);
			if (w->targets[i].cell < 0)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("too many jobs are waited for"),
						 errdetail("There is room for %d over all sessions, "
								   "besides one for each.",
								   JQ_WAITERS),
						 errhint("Wait for fewer jobs at a time.")));
		}
		JQ_PAUSE("wait-registered");
		if (w->until > w->since)
		{
			bool soon;

			/* as a rule it is over at once, or not for long */
			if (look_around(w, false, &soon) < wanted)
			{
				if (jq_is_worker && jq_current_job.id != 0)
				{
					must_not_share();
					w->worker = jq_slot_begin_wait();
					if (!w->worker)
						ereport(
							ERROR,
							(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
							 errmsg("too many jobs wait for other jobs"),
							 errdetail(
								 "As many as there may be workers (%d; of a role %d) wait already.",
								 jobqueue_max_workers, jq_workers_per_role()),
							 errhint(
								 "Let a job wait by after => instead, or increase jobqueue.max_workers.")));
				}
			}
		}
		sleep_until_called(w, wanted);
	}
	PG_FINALLY();
	{
		if (w->worker)
			jq_slot_end_wait();
		jq_waiter_drop_all();
	}
	PG_END_TRY();
	MemoryContextDelete(w->scratch);
	make_ends_durable(w);
}

/* -------------------------------------------------------------- functions */

static void
begin(FunctionCallInfo fcinfo, Wait *w)
{
	int64 us = USECS_PER_MINUTE;

	jq_shmem_check();
	PreventCommandIfParallelMode("jobqueue_wait()");
	jq_check_primary("jobqueue_wait()");
	(void) jq_table_required();
	/* see what this very command has enqueued */
	CommandCounterIncrement();
	memset(w, 0, sizeof(*w));
	if (!PG_ARGISNULL(1))
	{
		Interval *i = PG_GETARG_INTERVAL_P(1);

		/* the sum below is not to overflow */
		if (i->month < -12 * 100 || i->month > 12 * 100 || i->day < -36600 ||
			i->day > 36600 || i->time < -36600 * USECS_PER_DAY ||
			i->time > 36600 * USECS_PER_DAY)
			ereport(ERROR, (errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
							errmsg("timeout is out of range"),
							errhint("It must be at most 100 years.")));
		us = i->time + (i->day + INT64CONST(30) * i->month) * USECS_PER_DAY;
	}
	if (us < 0)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("timeout must not be negative"),
						errhint("0 does not wait.")));
	w->since = GetCurrentTimestamp();
	w->until = w->since + us;
}

static void
null_id(void)
{
	ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					errmsg("job id must not be null"),
					errhint("Give the id that jobqueue_enqueue() returned.")));
}

static void
to_row(const Target *t, Datum *values, bool *nulls)
{
	values[0] = Int64GetDatum(t->id);
	nulls[0] = false;
	nulls[1] = !t->ended;
	if (t->ended)
		values[1] = CStringGetTextDatum(t->state);
	nulls[2] = !t->ended || !t->has_result || t->hidden;
	values[2] = t->result;
	nulls[3] = !t->ended || t->error == NULL;
	if (!nulls[3])
		values[3] = CStringGetTextDatum(t->error);
}

PG_FUNCTION_INFO_V1(jq_wait);
Datum
jq_wait(PG_FUNCTION_ARGS)
{
	Wait w;
	Target target;
	TupleDesc desc;
	Datum values[4] = {0};
	bool nulls[4];

	begin(fcinfo, &w);
	if (PG_ARGISNULL(0))
		null_id();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	memset(&target, 0, sizeof(target));
	target.id = PG_GETARG_INT64(0);
	w.targets = &target;
	w.n = 1;
	wait_for(&w, 1);
	to_row(&target, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

PG_FUNCTION_INFO_V1(jq_wait_many);
Datum
jq_wait_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool any_of = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	Wait w;
	Datum *ids;
	bool *isnull;
	int n, i;
	Datum values[4] = {0};
	bool nulls[4];

	begin(fcinfo, &w);
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		null_id();
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, 8, true,
					  TYPALIGN_DOUBLE, &ids, &isnull, &n);
	if (n > MAX_IDS)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many jobs to wait for"),
						errhint("It may be %d at a time.", MAX_IDS)));
	if (n == 0)
		return (Datum) 0;
	w.targets = palloc0(n * sizeof(Target));
	w.n = n;
	for (i = 0; i < n; i++)
	{
		if (isnull[i])
			null_id();
		w.targets[i].id = DatumGetInt64(ids[i]);
	}
	wait_for(&w, any_of ? 1 : n);
	for (i = 0; i < n; i++)
	{
		if (any_of && !w.targets[i].ended)
			continue;
		to_row(&w.targets[i], values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		if (any_of)
			return (Datum) 0;
	}
	if (any_of)
	{
		/* none of them */
		memset(nulls, true, sizeof(nulls));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
