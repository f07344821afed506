/*
 * unique.c
 *		The table jobqueue_unique: taking and releasing locks.
 *
 * A lock is looked up in the primary key with a dirty snapshot, which tells
 * what is there at this moment and which open transaction has a hand in it:
 *
 *		nothing there			write it, speculatively; if somebody was faster
 *								take it back and look again
 *		being written or		by an open transaction: wait for its end (or, for
 *		deleted					a worker, call it held) and look again
 *		there, but expired		delete it, look again
 *		there, but the job is	the lock was left behind by somebody who changed
 *		not						the tables by hand: as if expired
 *		there					it is held
 *
 * That is what INSERT ... ON CONFLICT does, without the executor, which would
 * take longer than all of the rest; and it does not depend on the isolation
 * level, so that a job can let go of a lock that was taken over from it.
 *
 * A lock that has expired may be taken over while its job runs.  The job must
 * not wait for the one who does that: it leaves such a lock alone.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "storage/lmgr.h"
#include "unique.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* columns of jobqueue_unique */
enum
{
	COL_QUEUE = 1,
	COL_KEY,
	COL_JOB,
	COL_UNTIL,
	COL_EXPIRES_AT
};
#define NCOLS 5

/* ------------------------------------------------------------------ words */

typedef struct Word
{
	const char *word;
	char code;
} Word;

static const Word until_words[] = {{"executing", JQ_UNTIL_EXECUTING},
								   {"executed", JQ_UNTIL_EXECUTED},
								   {"expired", JQ_UNTIL_EXPIRED},
								   {"while_executing", JQ_WHILE_EXECUTING},
								   {"until_and_while_executing",
									JQ_UNTIL_AND_WHILE_EXECUTING},
								   {NULL, 0}};

static const Word conflict_words[] = {{"skip", JQ_CONFLICT_SKIP},
									  {"join", JQ_CONFLICT_JOIN},
									  {"raise", JQ_CONFLICT_RAISE},
									  {"replace", JQ_CONFLICT_REPLACE},
									  {"update", JQ_CONFLICT_UPDATE},
									  {"reject", JQ_CONFLICT_REJECT},
									  {"reschedule", JQ_CONFLICT_RESCHEDULE},
									  {"log", JQ_CONFLICT_LOG},
									  {NULL, 0}};

static char
code_of(const char *what, const Word *words, const char *word, const char *hint)
{
	for (; words->word != NULL; words++)
		if (strcmp(words->word, word) == 0)
			return words->code;
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("invalid %s \"%s\"", what, word),
					errhint("It must be one of: %s.", hint)));
}

char
jq_unique_until_code(const char *word)
{
	return code_of(
		"unique_until", until_words, word,
		"executing, executed, expired, while_executing, until_and_while_executing");
}

char
jq_on_conflict_code(const char *word)
{
	return code_of(
		"on_conflict", conflict_words, word,
		"skip, join, raise, replace, update, reject, reschedule, log");
}

TimestampTz
jq_unique_expiry(const Datum *values, const bool *nulls)
{
	if (nulls[JQ_COL_UNIQUE_FOR - 1])
		return DT_NOEND;
	return DatumGetTimestampTz(
		DirectFunctionCall2(timestamptz_pl_interval,
							TimestampTzGetDatum(GetCurrentTimestamp()),
							values[JQ_COL_UNIQUE_FOR - 1]));
}

/* ------------------------------------------------------------------- look */

typedef struct Locks
{
	JqTable *t;
	Relation rel;
	Relation pk;
	TupleTableSlot *slot; /* the row found; its page is pinned */
	ScanKeyData key[2];
} Locks;

typedef enum Look
{
	NOTHING,
	THERE,
	IN_DOUBT /* an open transaction of somebody else */
} Look;

typedef struct Found
{
	JqUniqueLock lock;
	TransactionId xid;
	uint32 token; /* of a speculative insertion */
} Found;

static void
open_locks(Locks *l, JqTable *t, Datum queue, Datum key)
{
	l->t = t;
	l->rel = table_open(t->unique, RowExclusiveLock);
	l->pk = index_open(t->unique_pk, RowExclusiveLock);
	l->slot = table_slot_create(l->rel, NULL);
	/* the key first: it is what tells rows apart */
	ScanKeyInit(&l->key[0], 1, BTEqualStrategyNumber, F_TEXTEQ, key);
	l->key[0].sk_collation = C_COLLATION_OID;
	ScanKeyInit(&l->key[1], 2, BTEqualStrategyNumber, F_TEXTEQ, queue);
	l->key[1].sk_collation = C_COLLATION_OID;
}

static void
close_locks(Locks *l)
{
	ExecDropSingleTupleTableSlot(l->slot);
	index_close(l->pk, NoLock);
	table_close(l->rel, NoLock);
}

static Look
look(Locks *l, Found *f)
{
	SnapshotData dirty;
	IndexScanDesc scan;
	bool found;
	bool isnull;
	Datum d;

	InitDirtySnapshot(dirty);
	ExecClearTuple(l->slot);
	scan = jq_index_beginscan(l->rel, l->pk, &dirty, 2);
	index_rescan(scan, l->key, 2, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, l->slot);
	index_endscan(scan); /* the slot keeps the page */
	if (!found)
		return NOTHING;
	f->lock.job = DatumGetInt64(slot_getattr(l->slot, COL_JOB, &isnull));
	f->lock.until = DatumGetChar(slot_getattr(l->slot, COL_UNTIL, &isnull));
	d = slot_getattr(l->slot, COL_EXPIRES_AT, &isnull);
	f->lock.expires_at = isnull ? DT_NOEND : DatumGetTimestampTz(d);
	f->lock.mine = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(
		slot_getsysattr(l->slot, MinTransactionIdAttributeNumber, &isnull)));
	f->token = dirty.speculativeToken;
	f->xid = TransactionIdIsValid(dirty.xmin) ? dirty.xmin : dirty.xmax;
	return TransactionIdIsValid(f->xid) ? IN_DOUBT : THERE;
}

static void
wait_for_other(Locks *l, Found *f)
{
	ItemPointerData tid = l->slot->tts_tid;

	ExecClearTuple(l->slot); /* nobody is to wait for the page */
	if (f->token != 0)
		SpeculativeInsertionWait(f->xid, f->token);
	else
		XactLockTableWait(f->xid, l->rel, &tid, XLTW_InsertIndexUnique);
}

static bool
has_expired(const JqUniqueLock *lock)
{
	return lock->expires_at <= GetCurrentTimestamp();
}

/* is a transaction that is still open about to insert the row? */
static bool
is_being_written(JqTable *t, int64 job)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Relation pk = index_open(t->pk, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	SnapshotData dirty;
	IndexScanDesc scan;
	ScanKeyData key;
	bool found;

	InitDirtySnapshot(dirty);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(job));
	scan = jq_index_beginscan(rel, pk, &dirty, 1);
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(pk, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

bool
jq_unique_job_is_gone(JqTable *t, int64 job)
{
	JqRow row;
	TransactionId xid;

	/* one that is run inline has a row that nobody else sees */
	return jq_row_fetch(t, job, NULL, NULL, &row, &xid, NULL) ==
			   JQ_FETCH_GONE &&
		   !is_being_written(t, job);
}

/* ----------------------------------------------------------------- change */

/* may the table be written without the executor? */
static bool
is_plain(Relation rel)
{
	List *indexes = RelationGetIndexList(rel);
	bool plain = rel->trigdesc == NULL && list_length(indexes) == 2;

	list_free(indexes);
	return plain;
}

/* delete the row in the slot; false: somebody else has changed it */
static bool
delete_found(Locks *l, Found *f, bool wait)
{
	TM_FailureData failure;

	if (f->lock.mine)
		CommandCounterIncrement();
	if (!is_plain(l->rel))
	{
		Oid types[1] = {TIDOID};
		Datum values[1];
		JqOwnerState state;
		bool done;

		values[0] = PointerGetDatum(&l->slot->tts_tid);
		/* a worker that is about to start a job has none */
		PushActiveSnapshot(GetTransactionSnapshot());
		jq_owner_begin(l->t, &state);
		jq_owner_execute(l->t, "DELETE FROM %s.jobqueue_unique WHERE ctid = $1",
						 1, types, values, NULL);
		done = SPI_processed == 1;
		jq_owner_end(&state);
		PopActiveSnapshot();
		return done;
	}
	/* while the page is pinned nothing else can come to its place */
	return table_tuple_delete(l->rel, &l->slot->tts_tid,
							  GetCurrentCommandId(true), GetLatestSnapshot(),
							  InvalidSnapshot, wait, &failure, false) == TM_Ok;
}

static bool
insert_by_sql(JqTable *t, Datum *values, bool *nulls)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_unique (queue, unique_key, job, unique_until,"
		" expires_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
	Oid types[NCOLS] = {TEXTOID, TEXTOID, INT8OID, CHAROID, TIMESTAMPTZOID};
	char flags[NCOLS];
	JqOwnerState state;
	bool done;
	int i;

	for (i = 0; i < NCOLS; i++)
		flags[i] = nulls[i] ? 'n' : ' ';
	PushActiveSnapshot(GetTransactionSnapshot());
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, NCOLS, types, values, flags);
	done = SPI_processed == 1;
	jq_owner_end(&state);
	PopActiveSnapshot();
	return done;
}

static void
insert_expiry(Locks *l, Datum expires_at, ItemPointer tid)
{
	Relation index = index_open(l->t->unique_expiry, RowExclusiveLock);
	bool isnull = false;

	index_insert(index, &expires_at, &isnull, tid, l->rel, UNIQUE_CHECK_NO,
				 false, BuildIndexInfo(index));
	index_close(index, NoLock);
}

/* false: somebody was faster */
static bool
insert(Locks *l, Datum *values, bool *nulls)
{
	TupleTableSlot *slot;
	TransactionId xid;
	uint32 token;
	Datum key[2];
	bool done;

	if (!is_plain(l->rel))
		return insert_by_sql(l->t, values, nulls);
	slot = MakeSingleTupleTableSlot(RelationGetDescr(l->rel), &TTSOpsVirtual);
	memset(slot->tts_isnull, true,
		   sizeof(bool) * RelationGetDescr(l->rel)->natts);
	memcpy(slot->tts_values, values, sizeof(Datum) * NCOLS);
	memcpy(slot->tts_isnull, nulls, sizeof(bool) * NCOLS);
	ExecStoreVirtualTuple(slot);
	xid = GetCurrentTransactionId();
	token = SpeculativeInsertionLockAcquire(xid);
	table_tuple_insert_speculative(l->rel, slot, GetCurrentCommandId(true), 0,
								   NULL, token);
	key[0] = values[COL_KEY - 1];
	key[1] = values[COL_QUEUE - 1];
	done = index_insert(l->pk, key, nulls, &slot->tts_tid, l->rel,
						UNIQUE_CHECK_PARTIAL, false, BuildIndexInfo(l->pk));
	if (done && !nulls[COL_EXPIRES_AT - 1])
		insert_expiry(l, values[COL_EXPIRES_AT - 1], &slot->tts_tid);
	table_tuple_complete_speculative(l->rel, slot, token, done);
	SpeculativeInsertionLockRelease(xid);
	ExecDropSingleTupleTableSlot(slot);
	return done;
}

/* what the caller is told must be what his snapshot shows */
static void
check_visible(Locks *l, const Found *f)
{
	if (!IsolationUsesXactSnapshot() || f->lock.mine ||
		table_tuple_satisfies_snapshot(l->rel, l->slot,
									   GetTransactionSnapshot()))
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
		 errmsg("could not serialize access due to concurrent update"),
		 errhint(
			 "A job with this unique_key was enqueued after this transaction's snapshot; retry the transaction.")));
}

/*
 * Where so many keys in a row were free, the next one is inserted without a look
 * before: it costs a fifth of an enqueue.  If it was not free, a dead row is left,
 * so this is not for those who meet duplicates now and then.
 */
#define SURELY_FREE 100

static int free_in_a_row;

bool
jq_unique_take(JqTable *t, Datum queue, Datum key, int64 job, char until,
			   TimestampTz expires_at, bool wait, JqUniqueLock *holder)
{
	Datum values[NCOLS];
	bool nulls[NCOLS];
	Locks l;
	Found f;
	int64 gone = 0; /* a holder that was no job before the last look */
	bool taken = false;
	bool held = false;

	memset(nulls, false, sizeof(nulls));
	values[COL_QUEUE - 1] = queue;
	values[COL_KEY - 1] = key;
	values[COL_JOB - 1] = Int64GetDatum(job);
	values[COL_UNTIL - 1] = CharGetDatum(until);
	values[COL_EXPIRES_AT - 1] = TimestampTzGetDatum(expires_at);
	nulls[COL_EXPIRES_AT - 1] = TIMESTAMP_IS_NOEND(expires_at);

	open_locks(&l, t, queue, key);
	if (free_in_a_row >= SURELY_FREE)
	{
		/* the insertion looks, too */
		taken = insert(&l, values, nulls);
		if (!taken)
			free_in_a_row = 0;
	}
	while (!taken && !held)
	{
		CHECK_FOR_INTERRUPTS();
		switch (look(&l, &f))
		{
			case NOTHING:
				taken = insert(&l, values, nulls);
				free_in_a_row++;
				break;
			case IN_DOUBT:
				if (wait)
					wait_for_other(&l, &f);
				else
					held = true;
				break;
			case THERE:
				if (has_expired(&f.lock) ||
					(f.lock.job == gone && f.lock.job != job))
					/* a worker does not wait for who has locked the row, either */
					held = !delete_found(&l, &f, wait) && !wait;
				else if (f.lock.job == job)
					taken = true;
				else if (!f.lock.mine && f.lock.until != JQ_UNTIL_EXPIRED &&
						 jq_unique_job_is_gone(t, f.lock.job))
					gone = f.lock.job; /* ended just now, if not in vain */
				else
				{
					if (wait)
						check_visible(&l, &f);
					held = true;
				}
				break;
		}
	}
	close_locks(&l);
	if (held)
	{
		free_in_a_row = 0;
		*holder = f.lock;
	}
	return taken;
}

bool
jq_unique_release(JqTable *t, Datum queue, Datum key, int64 job, bool drop)
{
	Locks l;
	Found f;
	bool done = false;
	bool mine = true;

	open_locks(&l, t, queue, key);
	while (mine && !done)
	{
		Look what;

		CHECK_FOR_INTERRUPTS();
		what = look(&l, &f);
		mine = what != NOTHING && f.lock.job == job &&
			   (drop || f.lock.until != JQ_UNTIL_EXPIRED);
		if (!mine)
			break;
		if (has_expired(&f.lock))
		{
			/* somebody may be about to take it over */
			done = what == THERE && delete_found(&l, &f, false);
			break;
		}
		if (what == IN_DOUBT)
			wait_for_other(&l, &f);
		else
			done = delete_found(&l, &f, true);
	}
	close_locks(&l);
	return done;
}

void
jq_unique_ended(JqTable *t, const JqRow *row)
{
	if (JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY) ||
		JQ_ROW_NULL(row, JQ_COL_UNIQUE_UNTIL) ||
		!jq_unique_locks(DatumGetChar(JQ_ROW(row, JQ_COL_UNIQUE_UNTIL))))
		return;
	(void) jq_unique_release(t, JQ_ROW(row, JQ_COL_QUEUE),
							 JQ_ROW(row, JQ_COL_UNIQUE_KEY),
							 DatumGetInt64(JQ_ROW(row, JQ_COL_ID)), false);
}

int64
jq_unique_prune(JqTable *t, TimestampTz *from, TimestampTz to, int most)
{
	/* bounds that the index knows: neither what is gone nor what is not due */
	static const char *const sql =
		"WITH gone AS (DELETE FROM %s.jobqueue_unique WHERE ctid = ANY (ARRAY("
		"  SELECT ctid FROM %s.jobqueue_unique"
		"  WHERE expires_at >= $2 AND expires_at <= $3"
		"  ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))"
		" RETURNING expires_at)"
		" SELECT count(*), max(expires_at) FROM gone";
	Oid types[3] = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum values[3];
	JqOwnerState state;
	int64 n;
	bool isnull;

	values[0] = Int32GetDatum(most);
	values[1] = TimestampTzGetDatum(*from);
	values[2] = TimestampTzGetDatum(to);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 3, types, values, NULL);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 1, &isnull));
	if (n > 0)
		*from = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 2,
												  &isnull));
	jq_owner_end(&state);
	return n;
}

/* ---------------------------------------------------------------- trigger */

/* after a statement has deleted a row of jobqueue_job */
PG_FUNCTION_INFO_V1(jq_unique_trigger);
Datum
jq_unique_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	HeapTuple old;
	JqTable *t;
	JqRow row;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_BY_DELETE(data->tg_event))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(
				 "jobqueue_unique_trigger() is a row trigger of \"jobqueue_job\"")));
	t = jq_table();
	if (t == NULL || RelationGetRelid(data->tg_relation) != t->job)
		return PointerGetDatum(NULL);
	old = data->tg_trigtuple;
	desc = RelationGetDescr(data->tg_relation);
	{
		static const int cols[] = {JQ_COL_ID, JQ_COL_QUEUE, JQ_COL_UNIQUE_KEY,
								   JQ_COL_UNIQUE_UNTIL};
		size_t i;

		for (i = 0; i < lengthof(cols); i++)
			row.values[cols[i] - 1] =
				heap_getattr(old, cols[i], desc, &row.nulls[cols[i] - 1]);
	}
	jq_unique_ended(t, &row);
	return PointerGetDatum(NULL);
}
