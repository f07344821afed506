/*
 * settle.c
 *		Part of a scheduler: jobs that nobody else answers for.
 *
 * Suspects ran in a process that died by itself; claims in the table are of
 * workers that are gone, or of rows that somebody is deleting; and the jobs of
 * roles that are gone, or may not connect, end here.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "after.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "comeback.h"
#include "compat.h"
#include "database.h"
#include "executor/spi.h"
#include "failure.h"
#include "fetched.h"
#include "inflight.h"
#include "injob.h"
#include "keylock.h"
#include "lane.h"
#include "lease.h"
#include "looks.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "recent.h"
#include "scheduler.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#define SHUTDOWN_GRACE_MS 200
#define LOCK_TIMEOUT_MS "50"
#define LOOKS_AT_ONCE 100
#define DOUBT_MS 1000 /* where no transaction is known that would end it */
#define SOON_MS 100

/*
 * What is settled here may be in the hands of an open transaction: its service is
 * being stopped, its role's jobs are given away.  The jobs of all others do not
 * wait for the end of that, nor for what is wrong with one of them.  false: it is
 * tried again in a while.
 */
static bool
safely(void (*settle)(void *), void *arg, uint32 request)
{
	volatile bool ok = true;

	SetConfigOption("lock_timeout", LOCK_TIMEOUT_MS, PGC_SUSET, PGC_S_OVERRIDE);
	PG_TRY();
	{
		settle(arg);
	}
	PG_CATCH();
	{
		if (geterrcode() == ERRCODE_LOCK_NOT_AVAILABLE)
		{
			/* nothing to be told each second */
			HOLD_INTERRUPTS();
			FlushErrorState();
			AbortCurrentTransaction();
			QueryCancelPending = false;
		}
		else
			jq_abort_bookkeeping();
		RESUME_INTERRUPTS();
		jq_db_request_quietly(jq_sched_dbix, request);
		jq_sched_again_in(1000);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(jq_sched_context);
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	return ok;
}

/* ---------------------------------------------------------------- suspects */

static void
settle_suspect(void *arg)
{
	JqSuspect *suspect = arg;
	JqTable *t = jq_sched_begin();
	bool dead = false;

	if (t != NULL)
		dead = jq_record_crash(t, suspect->id, suspect->alone);
	/* must be on disk before the next crash can come */
	ForceSyncCommit();
	jq_sched_commit();
	jq_inflight_settled(MyDatabaseId, suspect->id);
	if (dead)
		ereport(LOG, (errmsg("job " INT64_FORMAT
							 " is dead: the server crashed twice while it ran",
							 suspect->id)));
}

static void
settle_suspects(bool at_start)
{
	int n, i;
	JqSuspect *list = jq_inflight_suspects(MyDatabaseId, &n);

	/* if not now, then in a while; others do not wait for more than one */
	for (i = 0; i < n; i++)
		if (!safely(settle_suspect, &list[i], JQ_REQ_FAILED) && !at_start)
			break;
}

void
jq_sched_settle_suspects(TimestampTz unused)
{
	(void) unused;
	settle_suspects(true);
}

/* the job has crashed the server, and that could not be recorded yet */
static void
settle_if_suspect(int64 id)
{
	PG_TRY();
	{
		int n, i;
		JqSuspect *list = jq_inflight_suspects(MyDatabaseId, &n);

		for (i = 0; i < n; i++)
			if (list[i].id == id)
				settle_suspect(&list[i]);
		pfree(list);
	}
	PG_CATCH();
	{
		/* whoever has it locked may wait for a later one of its key */
		jq_keylock_order_recorded_job(MyDatabaseId, id, PG_UINT64_MAX);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/* ------------------------------------------------- failing, doubtful claims */

static void
settle_doubtful(void *arg)
{
	JqHeld *h = arg;
	JqTable *t;
	JqRow row;
	TransactionId xid;
	JqFetch fetch;
	uint64 orders;
	int doubt_ms = strcmp(h->sqlstate, JQ_HELD_SOON) == 0 ? SOON_MS : DOUBT_MS;

	if (TransactionIdIsValid(h->xid) ?
			TransactionIdIsInProgress(h->xid) :
			TimestampTzPlusMilliseconds(h->since, doubt_ms) >
				GetCurrentTimestamp())
	{
		/* the longer it lasts, the more seldom we look */
		int64 age = (GetCurrentTimestamp() - h->since) / 1000;

		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_FAILED);
		jq_sched_again_in(age < 1000 ? 20 : age < 10000 ? 100 : 1000);
		return;
	}
	for (;;)
	{
		fetch = JQ_FETCH_GONE;
		t = jq_sched_begin();
		if (t != NULL)
		{
			jq_look_prepare(t);
			fetch = jq_row_fetch(t, h->id, NULL, NULL, &row, &xid, NULL);
		}
		if (fetch == JQ_FETCH_DOUBTFUL)
		{
			jq_sched_commit();
			/* whoever changes it may wait for a later one of its key */
			jq_keylock_order_recorded_job(MyDatabaseId, h->id, PG_UINT64_MAX);
			jq_db_request_quietly(jq_sched_dbix, JQ_REQ_FAILED);
			jq_sched_again_in(100);
			return;
		}
		if (!jq_inflight_is_suspect(MyDatabaseId, h->id))
			break;
		jq_sched_commit();
		settle_if_suspect(h->id);
	}
	orders = jq_keylock_order_number();
	HOLD_INTERRUPTS();
	(void) jq_claim_unhold(MyDatabaseId, h->id);
	if (fetch != JQ_FETCH_FOUND)
		jq_after_ended(jq_sched_dbix, h->id); /* whoever ended it */
	PG_TRY();
	{
		if (t != NULL)
			jq_look_again(t, h->id, false);
		jq_sched_commit();
	}
	PG_FINALLY();
	{
		/* later ones of its key may go on, behind it; unless somebody has taken it
		 * already, who could not start it, either */
		jq_keylock_order_recorded_job(MyDatabaseId, h->id, orders);
	}
	PG_END_TRY();
	RESUME_INTERRUPTS();
}

/*
 * What the rows of jobs are that somebody has given back.  What has been taken from
 * the list is in nobody's hands but ours; whoever has such a job claimed by now asks
 * again when he gives it back.
 */
static void
look_at(void *arg)
{
	JqTable *t = jq_sched_begin();
	int64 id;
	int n;

	(void) arg;
	if (t == NULL)
		jq_looks_purge(MyDatabaseId);
	else
		jq_look_prepare(t);
	HOLD_INTERRUPTS();
	for (n = 0;
		 t != NULL && n < LOOKS_AT_ONCE && jq_looks_take(MyDatabaseId, &id);
		 n++)
		if (id == JQ_LOOK_AT_ALL)
			jq_publish_forget(MyDatabaseId);
		else if (!jq_claim_pass_over(MyDatabaseId, id))
			jq_look_again(t, id, true);
	RESUME_INTERRUPTS();
	jq_sched_commit();
	MemoryContextReset(jq_sched_context);
}

static void
settle_failing(void *arg)
{
	JqHeld *h = arg;
	JqTable *t;
	JqFailure f;
	JqRecorded recorded = JQ_RECORD_GONE;
	TimestampTz run_at = DT_NOEND;
	uint64 orders;
	bool passed;
	bool cancelled = strcmp(h->sqlstate, "CANCL") == 0;
	bool discarded = strcmp(h->sqlstate, "DISCD") == 0;

	/*
	 * A server that shuts down terminates workers too, and a job is not to be
	 * charged for that.  If it does, this process is gone before the time is
	 * over.
	 */
	if (h->since + SHUTDOWN_GRACE_MS * INT64CONST(1000) > GetCurrentTimestamp())
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_FAILED);
		jq_sched_again_in(SHUTDOWN_GRACE_MS);
		return;
	}
	JQ_PAUSE("scheduler-before-record");
	memset(&f, 0, sizeof(f));
	f.sqlstate =
		discarded ? unpack_sql_state(JQ_ERRCODE_DISCARDED) : h->sqlstate;
	f.message = h->error;
	f.final = discarded;
	f.reason = discarded ? h->error : NULL;
	f.started_at = h->started_at;
	t = jq_sched_begin();
	if (t != NULL && cancelled) /* unless it had ended, which has been told */
		cancelled = jq_archive(t, h->id, "cancelled", "cancelled while it ran",
							   h->started_at, (Datum) 0);
	else if (t != NULL)
		recorded = jq_record_failure(t, h->id, &f, &run_at);
	HOLD_INTERRUPTS();
	jq_sched_commit();
	/* first: whoever sees it end can read how it ended */
	if (recorded != JQ_RECORD_GONE || cancelled)
		jq_sched_note_end(h->id, h->role, h->queue,
						  cancelled					 ? JQ_CANCELLED :
						  recorded == JQ_RECORD_DEAD ? JQ_DEAD :
													   JQ_FAILED,
						  h->attempt, h->started_at, h->since, h->error);
	else
		jq_after_ended(jq_sched_dbix, h->id); /* its worker said nothing */
	orders = jq_keylock_order_number();
	passed = jq_claim_unhold(MyDatabaseId, h->id);
	if (recorded == JQ_RECORD_RETRY)
		jq_db_due(jq_sched_dbix, run_at);
	if (recorded == JQ_RECORD_RETRY && passed)
		jq_publish_unsure(MyDatabaseId, h->id);
	jq_keylock_order_recorded_job(MyDatabaseId, h->id, orders);
	RESUME_INTERRUPTS();
}

/* ---------------------------------------------------- consumers that are gone */

static const char *
loss_text(JqFetchedLoss loss)
{
	switch (loss)
	{
		case JQ_LOSS_SESSION:
		case JQ_LOSS_CLIENT:
			break;
		case JQ_LOSS_LEASE:
			return "consumer lost: its lease ended before the job";
		case JQ_LOSS_CANCEL:
			return "cancelled while a consumer had it";
	}
	return "consumer lost: its session ended before the job";
}

static void
settle_lost(void *arg)
{
	JqFetched *h = arg;
	JqTable *t;
	JqFailure f;
	JqRecorded recorded = JQ_RECORD_GONE;
	TimestampTz run_at = DT_NOEND;
	bool cancelled = h->loss == JQ_LOSS_CANCEL;
	const char *text = loss_text(h->loss);
	uint64 orders;

	/* one that is terminated may be so with the server: as in settle_failing */
	if (h->loss == JQ_LOSS_SESSION &&
		h->since + SHUTDOWN_GRACE_MS * INT64CONST(1000) > GetCurrentTimestamp())
	{
		jq_db_request_quietly(jq_sched_dbix, JQ_REQ_FAILED);
		jq_sched_again_in(SHUTDOWN_GRACE_MS);
		return;
	}
	JQ_PAUSE("scheduler-before-lost");
	memset(&f, 0, sizeof(f));
	f.sqlstate = "08006";
	f.message = text;
	f.retry_at =
		GetCurrentTimestamp(); /* the next consumer may have it at once */
	f.started_at = h->started_at;
	t = jq_sched_begin();
	if (t != NULL && h->leased)
		jq_lease_delete(t, h->id);
	if (t != NULL && cancelled)
		cancelled =
			jq_archive(t, h->id, "cancelled", text, h->started_at, (Datum) 0);
	else if (t != NULL)
		recorded = jq_record_failure(t, h->id, &f, &run_at);
	HOLD_INTERRUPTS();
	jq_sched_commit();
	if (recorded != JQ_RECORD_GONE || cancelled)
		jq_sched_note_end(h->id, h->owner, h->queue,
						  cancelled					 ? JQ_CANCELLED :
						  recorded == JQ_RECORD_DEAD ? JQ_DEAD :
													   JQ_FAILED,
						  h->attempt, h->started_at, h->since, text);
	else
		jq_after_ended(jq_sched_dbix, h->id);
	orders = jq_keylock_order_number();
	jq_fetched_recorded(MyDatabaseId, h->id);
	/* model: DUE_AFTER */
	if (recorded == JQ_RECORD_RETRY)
		jq_db_due(jq_sched_dbix, run_at);
	jq_keylock_order_recorded_job(MyDatabaseId, h->id, orders);
	RESUME_INTERRUPTS();
}

/*
 * Of a role that has kept us waiting nothing more is settled in this round: it
 * takes no more of our time than one wait, however many its jobs are.
 */
typedef struct Round
{
	Oid *waited_for;
	int n;
} Round;

static bool
kept_us_waiting(const Round *r, Oid role)
{
	int i;

	for (i = 0; i < r->n; i++)
		if (r->waited_for[i] == role)
			return true;
	return false;
}

static void
settle_one(Round *r, Oid role, void (*settle)(void *), void *arg)
{
	CHECK_FOR_INTERRUPTS();
	if (kept_us_waiting(r, role) || safely(settle, arg, JQ_REQ_FAILED))
		return;
	r->waited_for[r->n++] = role;
}

void
jq_sched_settle_held(TimestampTz unused)
{
	int nlost, nheld, i;
	JqFetched *lost;
	JqHeld *held;
	Round round;

	(void) unused;
	settle_suspects(false);
	if (jq_looks_any(MyDatabaseId) && safely(look_at, NULL, JQ_REQ_FAILED) &&
		jq_looks_any(MyDatabaseId))
		jq_db_request(jq_sched_dbix, JQ_REQ_FAILED);
	lost = jq_fetched_list(MyDatabaseId, &nlost);
	held = jq_claim_list(MyDatabaseId, &nheld);
	round.waited_for = palloc((nlost + nheld + 1) * sizeof(Oid));
	round.n = 0;
	/* these wait for no row */
	for (i = 0; i < nheld; i++)
		if (held[i].kind == JQ_HELD_DOUBTFUL)
			settle_one(&round, held[i].role, settle_doubtful, &held[i]);
	round.n = 0;
	for (i = 0; i < nlost; i++)
		if (lost[i].state == JQ_FETCHED_LOST && lost[i].fate == JQ_FATE_NONE)
			settle_one(&round, lost[i].owner, settle_lost, &lost[i]);
	for (i = 0; i < nheld; i++)
		if (held[i].kind == JQ_HELD_FAILING)
			settle_one(&round, held[i].role, settle_failing, &held[i]);
}

/* ---------------------------------------------------- roles without rights */

/* memory has nothing of that role any more but hints about rows that are gone */
static void
forget_role(Oid role)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		char queue[JQ_QUEUE_NAME_MAX + 1];
		bool mine;

		LWLockAcquire(jq_lane_lock(i), LW_SHARED);
		mine = jq_lanes[i].db == MyDatabaseId && jq_lanes[i].role == role;
		strlcpy(queue, jq_lanes[i].queue, sizeof(queue));
		LWLockRelease(jq_lane_lock(i));
		if (mine)
			jq_lane_spill(MyDatabaseId, role, queue, JQ_POS_NOTHING, 0, 0);
	}
}

/*
 * All waiting jobs of a role that cannot run any go dead, but for those that are
 * held: a copy may have got other roles and rights than it will have.
 */
typedef struct GivenUp
{
	Oid role;
	const char *sqlstate;
	const char *message;
} GivenUp;

static void
give_up_role(void *arg)
{
	const GivenUp *g = arg;
	Oid role = g->role;
	int n;
	int ended;

	do
	{
		JqTable *t = jq_sched_begin();
		Oid types[2] = {OIDOID, INT8OID};
		Datum values[2];
		JqOwnerState state;
		JqFoundRow *rows;
		int i;

		ended = 0;
		if (t == NULL || t->meta_database != MyDatabaseId)
		{
			jq_sched_commit();
			return;
		}
		values[0] = ObjectIdGetDatum(role);
		values[1] = Int64GetDatum(t->home);
		jq_owner_begin(t, &state);
		jq_owner_execute(t,
						 "SELECT " JQ_SCHED_COLUMNS " FROM %s.jobqueue_job"
						 " WHERE owner::oid = $1 AND command IS NOT NULL"
						 " AND home = $2 LIMIT 500",
						 2, types, values, NULL);
		rows = jq_sched_rows(&n);
		jq_owner_end(&state);
		for (i = 0; i < n; i++)
		{
			JqFailure f;
			TimestampTz run_at;

			if (jq_claim_hold(MyDatabaseId, rows[i].lane_role, rows[i].queue,
							  rows[i].item.id) != JQ_HOLD_DONE)
				continue;
			jq_publish_held(rows[i].lane_role, rows[i].queue, &rows[i].item,
							rows[i].run_at);
			memset(&f, 0, sizeof(f));
			f.sqlstate = g->sqlstate;
			f.message = g->message;
			f.reason = g->message;
			f.final = true;
			jq_record_failure(t, rows[i].item.id, &f, &run_at);
			ended++;
		}
		jq_sched_commit();
		MemoryContextReset(jq_sched_context);
		CHECK_FOR_INTERRUPTS();
	} while (n == JQ_SCHED_BATCH && ended > 0);
	forget_role(role);
}

void
jq_sched_check_roles(TimestampTz unused)
{
	int *list = palloc(jq_shared->nlanes * sizeof(int));
	int n = jq_dir_lanes_of(MyDatabaseId, list);
	Oid *roles = palloc(Max(n, 1) * sizeof(Oid));
	int i;

	(void) unused;
	for (i = 0; i < n; i++)
		roles[i] = jq_lanes[list[i]].role;
	for (i = 0; i < n; i++)
	{
		Oid role = roles[i];
		char message[256];
		int j;
		bool exists, connects = true;

		if (role == JQ_CONSUMER_ROLE)
			continue; /* nothing of it runs as anybody */
		for (j = 0; j < i; j++)
			if (roles[j] == role)
				break;
		if (j < i)
			continue;
		(void) jq_sched_begin();
		exists = SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role));
		if (exists)
			connects = jq_database_aclcheck(MyDatabaseId, role, ACL_CONNECT) ==
					   ACLCHECK_OK;
		jq_sched_commit();
		if (exists && connects)
			continue;
		if (!exists)
			snprintf(message, sizeof(message),
					 "role with OID %u does not exist", role);
		else
			snprintf(message, sizeof(message),
					 "the role has no CONNECT privilege on the database");
		/* give_up_role resets the context */
		{
			Oid *copy = MemoryContextAlloc(TopMemoryContext, n * sizeof(Oid));
			GivenUp g = {role, exists ? "42501" : "42704", message};

			memcpy(copy, roles, n * sizeof(Oid));
			(void) safely(give_up_role, &g, JQ_REQ_GROUP);
			roles = MemoryContextAlloc(jq_sched_context, n * sizeof(Oid));
			memcpy(roles, copy, n * sizeof(Oid));
			pfree(copy);
		}
	}
}
