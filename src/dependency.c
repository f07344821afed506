/*
 * dependency.c
 *		What an enqueue, a retry and a question have to do with jobs that wait
 *		for others.
 *
 * An enqueue decides nothing: a job of which all dependencies have ended
 * already waits, too, until the scheduler has seen it after the commit.  It only
 * refuses what cannot be a job one may wait for.  An id that is not in the tables
 * counts as completed if it has been given out, as most completed jobs leave no
 * row; so a row that another transaction is just inserting has to be waited for,
 * or it would be taken for one that has ended.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "dependency.h"
#include "executor/spi.h"
#include "grant.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

bool
jq_row_waits(const JqRow *row)
{
	return !JQ_ROW_NULL(row, JQ_COL_AFTER_RUN_AT) &&
		   !JQ_ROW_NULL(row, JQ_COL_RUN_AT) &&
		   TIMESTAMP_IS_NOEND(DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT)));
}

int64 *
jq_after_ids(Datum after, int *n)
{
	Datum *elems;
	bool *nulls;
	int64 *ids;
	int i, all;

	deconstruct_array(DatumGetArrayTypeP(after), INT8OID, 8, FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &elems, &nulls, &all);
	ids = palloc(Max(all, 1) * sizeof(int64));
	*n = 0;
	for (i = 0; i < all; i++)
		if (!nulls[i])
			ids[(*n)++] = DatumGetInt64(elems[i]);
	return ids;
}

static Datum
array_of_ids(const int64 *ids, int n)
{
	Datum *d = palloc(Max(n, 1) * sizeof(Datum));
	int i;

	for (i = 0; i < n; i++)
		d[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(
		construct_array(d, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* ---------------------------------------------------------------- enqueue */

static void
unknown_job(int64 id)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_NO_DATA_FOUND),
		 errmsg("job " INT64_FORMAT " in \"after\" does not exist", id),
		 errhint(
			 "Give ids that jobqueue_enqueue() has returned, of jobs that one may see.")));
}

static int
compare_ids(const void *a, const void *b)
{
	int64 x = *(const int64 *) a;
	int64 y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/* a look that sees what others have not committed yet */
typedef struct Look
{
	Relation rel;
	Relation index;
	TupleTableSlot *slot;
} Look;

/*
 * Is there a row, and whose?  One that is being inserted is waited for; one that
 * is being changed or deleted is there.
 */
static bool
look_at(Look *l, int64 id, Oid *owner)
{
	for (;;)
	{
		SnapshotData dirty;
		IndexScanDesc scan;
		ScanKeyData key;
		TransactionId inserter = InvalidTransactionId;
		bool found = false;

		InitDirtySnapshot(dirty);
		scan = jq_index_beginscan(l->rel, l->index, &dirty, 1);
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ,
					Int64GetDatum(id));
		index_rescan(scan, &key, 1, NULL, 0);
		/* of a row that is being changed, the old version may come second */
		while (!found &&
			   index_getnext_slot(scan, ForwardScanDirection, l->slot))
		{
			bool isnull;

			if (TransactionIdIsValid(dirty.xmin))
			{
				inserter = dirty.xmin;
				continue;
			}
			found = true;
			*owner =
				DatumGetObjectId(slot_getattr(l->slot, JQ_COL_OWNER, &isnull));
		}
		ExecClearTuple(l->slot);
		index_endscan(scan);
		if (found || !TransactionIdIsValid(inserter))
			return found;
		CHECK_FOR_INTERRUPTS();
		XactLockTableWait(inserter, NULL, NULL, XLTW_None);
	}
}

/* the largest id that may have been given out */
static int64
last_id(JqTable *t)
{
	JqOwnerState state;
	int64 last = 0;
	bool isnull;

	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "SELECT CASE WHEN is_called THEN last_value"
					 " ELSE last_value - 1 END FROM %s.jobqueue_job_id_seq",
					 0, NULL, NULL, NULL);
	if (SPI_processed == 1)
		last = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	return last;
}

/* nor may one learn how jobs of others have ended, by what becomes of one's own */
static void
check_ended(JqTable *t, const int64 *ids, int n)
{
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	JqOwnerState state;
	Oid *owners;
	int64 *first;
	int nowners, i;
	MemoryContext context = CurrentMemoryContext;

	values[0] = array_of_ids(ids, n);
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "SELECT owner::oid, min(id) FROM %s.jobqueue_archive"
					 " WHERE id = ANY ($1) GROUP BY 1",
					 1, types, values, NULL);
	nowners = (int) SPI_processed;
	owners = MemoryContextAlloc(context, Max(nowners, 1) * sizeof(Oid));
	first = MemoryContextAlloc(context, Max(nowners, 1) * sizeof(int64));
	for (i = 0; i < nowners; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		owners[i] = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
		first[i] = DatumGetInt64(SPI_getbinval(tup, desc, 2, &isnull));
	}
	jq_owner_end(&state);
	for (i = 0; i < nowners; i++)
		if (jq_sight_of(owners[i]) == 0)
			unknown_job(first[i]);
}

static void
check_ids(JqTable *t, const int64 *ids, int n)
{
	Look l;
	int64 *unseen = palloc(n * sizeof(int64));
	int nunseen = 0;
	int i;

	l.rel = table_open(t->job, AccessShareLock);
	l.index = index_open(t->pk, AccessShareLock);
	l.slot = table_slot_create(l.rel, NULL);
	for (i = 0; i < n; i++)
	{
		Oid owner = InvalidOid;

		if (ids[i] <= 0)
			unknown_job(ids[i]);
		if (!look_at(&l, ids[i], &owner))
			unseen[nunseen++] = ids[i];
		else if (jq_sight_of(owner) == 0)
			unknown_job(ids[i]);
	}
	ExecDropSingleTupleTableSlot(l.slot);
	index_close(l.index, AccessShareLock);
	table_close(l.rel, AccessShareLock);
	if (nunseen == 0)
		return;
	/* they are in order, so it is the largest */
	if (unseen[nunseen - 1] > last_id(t))
		unknown_job(unseen[nunseen - 1]);
	check_ended(t, unseen, nunseen);
}

Datum
jq_after_argument(JqTable *t, ArrayType *after)
{
	int64 *ids;
	int n, i;
	int m = 0;

	if (ARR_NDIM(after) > 1 || array_contains_nulls(after))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("after must be a one-dimensional array without nulls"),
			 errhint(
				 "Give ids of jobs; jobqueue_enqueue() may have returned null for one that was not enqueued.")));
	ids = jq_after_ids(PointerGetDatum(after), &n);
	if (n == 0)
		return (Datum) 0;
	qsort(ids, n, sizeof(int64), compare_ids);
	for (i = 0; i < n; i++)
		if (i == 0 || ids[i] != ids[m - 1])
			ids[m++] = ids[i];
	if (m > JQ_MAX_AFTER)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("a job cannot wait for %d others", m),
			 errhint(
				 "The limit is %d; let jobs without a task of their own gather parts of them.",
				 JQ_MAX_AFTER)));
	check_ids(t, ids, m);
	return array_of_ids(ids, m);
}

/* ---------------------------------------------------------------- questions */

int
jq_after_open(JqTable *t, int64 id, int64 *ids, int max)
{
	static const char *const sql =
		"SELECT x FROM %s.jobqueue_job j, unnest(j.after) x"
		" WHERE j.id = $1 AND " JQ_ROW_WAITS
		" AND (EXISTS (SELECT FROM %s.jobqueue_job d WHERE d.id = x)"
		"  OR EXISTS (SELECT FROM %s.jobqueue_archive a WHERE a.id = x"
		"   AND a.state <> 'completed'))"
		" ORDER BY x";
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	int n, i;

	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_read(t, sql, 1, types, values, NULL);
	n = (int) SPI_processed;
	for (i = 0; i < n && i < max; i++)
	{
		bool isnull;

		ids[i] =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));
	}
	jq_owner_end(&state);
	return n;
}

/* -------------------------------------------------------------------- retry */

int64 *
jq_after_wait_again(JqTable *t, const int64 *ids, int n, int *nwaiting)
{
	/* those that have ended count no more, however they did */
	static const char *const sql =
		"UPDATE %s.jobqueue_job j SET run_at = 'infinity',"
		" after_run_at = coalesce(j.run_at, '-infinity'), after = w.live"
		" FROM (SELECT k.id, array_agg(x ORDER BY x) AS live"
		"  FROM %s.jobqueue_job k, unnest(k.after) x"
		"  WHERE k.id = ANY ($1)"
		"  AND EXISTS (SELECT FROM %s.jobqueue_job d WHERE d.id = x)"
		"  GROUP BY k.id) w"
		" WHERE j.id = w.id RETURNING j.id";
	Oid types[1] = {INT8ARRAYOID};
	Datum values[1];
	JqOwnerState state;
	MemoryContext context = CurrentMemoryContext;
	int64 *waiting;
	int i;

	values[0] = array_of_ids(ids, n);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 1, types, values, NULL);
	*nwaiting = (int) SPI_processed;
	waiting = MemoryContextAlloc(context, Max(*nwaiting, 1) * sizeof(int64));
	for (i = 0; i < *nwaiting; i++)
	{
		bool isnull;

		waiting[i] =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));
	}
	jq_owner_end(&state);
	return waiting;
}
