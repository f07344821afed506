/*
 * lease.c
 *		Leases in the table, and the scheduler's part in them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "conflict.h"
#include "database.h"
#include "directory.h"
#include "executor/spi.h"
#include "fetched.h"
#include "lease.h"
#include "miscadmin.h"
#include "scheduler.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

void
jq_lease_write(JqTable *t, const int64 *ids, int n, const pg_uuid_t *token,
			   TimestampTz until)
{
	/* a row that a dump has brought back is of nobody */
	static const char *const sql =
		"INSERT INTO %s.jobqueue_lease (job, token, leased_until)"
		" SELECT unnest($1), $2, $3"
		" ON CONFLICT (job) DO UPDATE SET token = excluded.token,"
		" leased_until = excluded.leased_until";
	Oid types[3] = {INT8ARRAYOID, UUIDOID, TIMESTAMPTZOID};
	Datum values[3];
	Datum *d = palloc(n * sizeof(Datum));
	JqOwnerState state;
	int i;

	for (i = 0; i < n; i++)
		d[i] = Int64GetDatum(ids[i]);
	values[0] = PointerGetDatum(
		construct_array(d, n, INT8OID, 8, true, TYPALIGN_DOUBLE));
	values[1] = UUIDPGetDatum(token);
	values[2] = TimestampTzGetDatum(until);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 3, types, values, NULL);
	jq_owner_end(&state);
	/* the consumer relies on it, whatever happens to the server */
	ForceSyncCommit();
}

void
jq_lease_delete(JqTable *t, int64 id)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;

	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, "DELETE FROM %s.jobqueue_lease WHERE job = $1", 1,
					 types, values, NULL);
	jq_owner_end(&state);
}

/* --------------------------------------------------------- memory is new */

static bool
unread(JqTable *t, const char *sql, Oid type, Datum value)
{
	int dbix = jq_dir_db(MyDatabaseId, true);
	JqOwnerState state;
	bool found;

	if (dbix < 0 || *(volatile bool *) &jq_dbs[dbix].leases_read)
		return false;
	jq_owner_begin(t, &state);
	jq_owner_read(t, sql, 1, &type, &value, NULL);
	found = SPI_processed > 0;
	jq_owner_end(&state);
	jq_db_request(dbix, JQ_REQ_LEASES);
	/* read meanwhile, they count from now on */
	pg_memory_barrier();
	return found && !*(volatile bool *) &jq_dbs[dbix].leases_read;
}

bool
jq_lease_unread_job(JqTable *t, int64 id)
{
	return unread(t, "SELECT FROM %s.jobqueue_lease WHERE job = $1", INT8OID,
				  Int64GetDatum(id));
}

bool
jq_lease_unread_key(JqTable *t, const char *key, int len)
{
	return unread(t,
				  "SELECT FROM %s.jobqueue_lease l"
				  " JOIN %s.jobqueue_job j ON j.id = l.job"
				  " JOIN %s.jobqueue_meta m ON m.home = j.home"
				  " WHERE j.key = $1",
				  TEXTOID, PointerGetDatum(cstring_to_text_with_len(key, len)));
}

/* -------------------------------------------------------------- scheduler */

typedef struct Lease
{
	int64 job;
	pg_uuid_t token;
	TimestampTz until;
	TimestampTz since;
} Lease;

static Lease *
read_all(JqTable *t, int *n)
{
	JqOwnerState state;
	Lease *list;
	int i;

	jq_owner_begin(t, &state);
	jq_owner_execute(
		t, "SELECT job, token, leased_until, leased_at FROM %s.jobqueue_lease",
		0, NULL, NULL, NULL);
	*n = (int) SPI_processed;
	list = MemoryContextAllocHuge(jq_sched_context, Max(*n, 1) * sizeof(Lease));
	for (i = 0; i < *n; i++)
	{
		HeapTuple tup = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		list[i].job = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
		list[i].token = *DatumGetUUIDP(SPI_getbinval(tup, desc, 2, &isnull));
		list[i].until =
			DatumGetTimestampTz(SPI_getbinval(tup, desc, 3, &isnull));
		list[i].since =
			DatumGetTimestampTz(SPI_getbinval(tup, desc, 4, &isnull));
	}
	jq_owner_end(&state);
	return list;
}

/* false: no room */
static bool
restore(JqTable *t, const Lease *l)
{
	JqRow row;
	TransactionId xid;
	JqItem item;
	char digest[JQ_DIGEST_MAX];
	char *key;

	if (jq_row_fetch(t, l->job, NULL, NULL, &row, &xid, NULL) == JQ_FETCH_GONE)
	{
		jq_lease_delete(t, l->job);
		return true;
	}
	/* of another home; or it has got a command by hand */
	if (DatumGetInt64(JQ_ROW(&row, JQ_COL_HOME)) != t->home ||
		t->meta_database != MyDatabaseId ||
		jq_row_lane_role(&row) != JQ_CONSUMER_ROLE)
		return true;
	memset(&item, 0, sizeof(item));
	item.id = l->job;
	item.priority = DatumGetInt16(JQ_ROW(&row, JQ_COL_PRIORITY));
	item.tid = row.tid;
	if (!JQ_ROW_NULL(&row, JQ_COL_RUN_AT))
		item.flags = JQ_E_DUE;
	key = jq_row_cstring(&row, JQ_COL_KEY);
	if (key != NULL)
	{
		item.key = key;
		item.keylen = Min(strlen(key), JQ_KEY_MAX);
	}
	return jq_fetched_restore(&item, jq_row_cstring(&row, JQ_COL_QUEUE),
							  DatumGetObjectId(JQ_ROW(&row, JQ_COL_OWNER)),
							  DatumGetInt16(JQ_ROW(&row, JQ_COL_ATTEMPT)) + 1,
							  DatumGetTimestampTz(
								  JQ_ROW(&row, JQ_COL_ENQUEUED_AT)),
							  l->since, &l->token, l->until, digest,
							  jq_unique_digest(digest, &row));
}

/* model: LEASES_FIRST */
void
jq_sched_read_leases(void)
{
	JqTable *t;
	Lease *list;
	int tries = 0;
	int n, i;

	if (jq_dbs[jq_sched_dbix].leases_read)
		return;
	t = jq_sched_begin();
	list = t != NULL ? read_all(t, &n) : NULL;
	for (i = 0; list != NULL && i < n; i++)
		/* as long as we are not done no job starts, and nothing gets less */
		while (!restore(t, &list[i]))
		{
			CHECK_FOR_INTERRUPTS();
			jq_dir_forget();
			/* what comes into memory meanwhile may go, too; not for ever */
			if (tries++ < 2 * jq_shared->nlanes &&
				jq_dir_give_up_lane(MyDatabaseId))
				continue;
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("more jobs are leased than memory has place for"),
					 errdetail("There are %d leases. Until memory has all of "
							   "them no job of the database starts.",
							   n),
					 errhint("Increase jobqueue.max_ready_jobs.")));
		}
	jq_sched_commit();
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
	jq_dbs[jq_sched_dbix].leases_read = t != NULL;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
}

void
jq_sched_end_leases(TimestampTz unused)
{
	TimestampTz next = jq_fetched_expire(MyDatabaseId);

	(void) unused;
	if (next != DT_NOEND)
		jq_db_lease(jq_sched_dbix, next);
}
