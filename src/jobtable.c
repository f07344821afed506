/*
 * jobtable.c
 *		The tables of this database.
 *
 * They are found as members of the extension, whatever its schema is called.
 * What was found is kept until an invalidation of one of them arrives.
 *
 * On the hot path rows are written and deleted through the table access method
 * and the index access methods, without the executor, as long as nobody has
 * added columns, constraints, indexes or triggers to jobqueue_job ("plain").
 * Otherwise SQL statements do it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "jobtable.h"
#include "quota.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "storage/sinval.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "version.h"

bool jq_bookkeeping = false;
uint32 jq_table_consumers_generation = 0;

static JqTable table;
static bool table_valid;
static bool callback_registered;

/* kept with the table */
static MemoryContext table_context;
static TupleDesc job_desc;
static TupleTableSlot *read_slot;
static TupleTableSlot *write_slot;
static bool reading; /* an error has left read_slot as it was */
static IndexInfo *pk_info, *ready_info, *fetch_info, *due_info, *expiry_info,
	*key_info;
static Oid known_relfile;
static BlockNumber known_blocks;

/* ----------------------------------------------------- finding the tables */

static void
relcache_callback(Datum arg, Oid relid)
{
	(void) arg;
	if (relid == InvalidOid || relid == table.consumer)
		jq_table_consumers_generation++;
	if (relid == InvalidOid || relid == table.job || relid == table.pk ||
		relid == table.ready || relid == table.fetch || relid == table.due ||
		relid == table.expiry || relid == table.key || relid == table.tried ||
		relid == table.archive || relid == table.sequence ||
		relid == table.queue_version || relid == table.unique ||
		relid == table.unique_pk || relid == table.unique_expiry ||
		relid == table.paused_role)
		table_valid = false;
}

/* the name of our schema may have changed */
static void
schema_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	(void) arg;
	(void) cacheid;
	(void) hashvalue;
	table_valid = false;
}

static Oid
member(Oid schema, Oid extension, const char *name)
{
	Oid relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		return InvalidOid;
	if (get_rel_relkind(relid) != RELKIND_INDEX &&
		getExtensionOfObject(RelationRelationId, relid) != extension)
		return InvalidOid;
	return relid;
}

static bool
extension_row(Oid extension, Oid *schema, Oid *owner, char *version, Size size)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tup;
	bool isnull;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tup = systable_getnext(scan);
	if (HeapTupleIsValid(tup))
	{
		*schema = ((Form_pg_extension) GETSTRUCT(tup))->extnamespace;
		*owner = ((Form_pg_extension) GETSTRUCT(tup))->extowner;
		text_to_cstring_buffer(
			DatumGetTextPP(heap_getattr(tup, Anum_pg_extension_extversion,
										RelationGetDescr(rel), &isnull)),
			version, size);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return HeapTupleIsValid(tup);
}

static void
read_meta(Oid relid, JqTable *t)
{
	Relation rel = table_open(relid, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetCatalogSnapshot(relid));
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	HeapTuple tup = heap_getnext(scan, ForwardScanDirection);

	if (HeapTupleIsValid(tup))
	{
		bool isnull;

		t->home =
			DatumGetInt64(heap_getattr(tup, 2, RelationGetDescr(rel), &isnull));
		t->meta_database = DatumGetObjectId(
			heap_getattr(tup, 3, RelationGetDescr(rel), &isnull));
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* are all writes to the table ours to understand? */
static bool
is_plain(Relation rel, Oid extension)
{
	TriggerDesc *trig = rel->trigdesc;
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	int n = trig != NULL ? trig->numtriggers : 0;
	Oid *functions;
	int i;

	if (constr != NULL &&
		(constr->num_check > 0 || constr->has_generated_stored))
		return false;
	/* looking at a catalog may replace what the relation points to */
	functions = palloc(Max(n, 1) * sizeof(Oid));
	for (i = 0; i < n; i++)
		functions[i] = trig->triggers[i].tgfoid;
	for (i = 0; i < n; i++)
		if (getExtensionOfObject(ProcedureRelationId, functions[i]) !=
			extension)
			break;
	pfree(functions);
	return i == n && list_length(RelationGetIndexList(rel)) == 7;
}

static IndexInfo *
index_info(Oid relid)
{
	Relation index = index_open(relid, AccessShareLock);
	MemoryContext old = MemoryContextSwitchTo(table_context);
	IndexInfo *info = BuildIndexInfo(index);

	MemoryContextSwitchTo(old);
	index_close(index, AccessShareLock);
	return info;
}

bool
jq_table_is_newer(char *buf, Size size)
{
	Oid extension = get_extension_oid("jobqueue", true);
	Oid schema, owner;

	return OidIsValid(extension) &&
		   extension_row(extension, &schema, &owner, buf, size) &&
		   jq_version_compare(buf, jq_version()) > 0;
}

void
jq_table_changed(void)
{
	JqTable *t = jq_table();

	if (t != NULL)
		CacheInvalidateRelcacheByRelid(t->job);
}

static bool
lookup(JqTable *t)
{
	Relation rel;
	MemoryContext old;

	memset(t, 0, sizeof(*t));
	t->extension = get_extension_oid("jobqueue", true);
	if (!OidIsValid(t->extension) ||
		!extension_row(t->extension, &t->schema, &t->owner, t->version,
					   sizeof(t->version)))
		return false;
	if (jq_version_compare(t->version, jq_version()) > 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "the SQL objects of extension \"jobqueue\" are of version %s, the server runs the library of version %s",
				 t->version, jq_version()),
			 errhint(
				 "Install the library of version %s or later, and restart the server.",
				 t->version)));
	t->job = member(t->schema, t->extension, "jobqueue_job");
	t->pk = member(t->schema, t->extension, "jobqueue_job_pkey");
	t->ready = member(t->schema, t->extension, "jobqueue_job_ready");
	t->fetch = member(t->schema, t->extension, "jobqueue_job_fetch");
	t->due = member(t->schema, t->extension, "jobqueue_job_due");
	t->expiry = member(t->schema, t->extension, "jobqueue_job_expiry");
	t->key = member(t->schema, t->extension, "jobqueue_job_key");
	t->tried = member(t->schema, t->extension, "jobqueue_job_tried");
	t->sequence = member(t->schema, t->extension, "jobqueue_job_id_seq");
	t->archive = member(t->schema, t->extension, "jobqueue_archive");
	t->queue_version =
		member(t->schema, t->extension, "jobqueue_queue_version_seq");
	t->unique = member(t->schema, t->extension, "jobqueue_unique");
	t->unique_pk = member(t->schema, t->extension, "jobqueue_unique_pkey");
	t->unique_expiry =
		member(t->schema, t->extension, "jobqueue_unique_expiry");
	t->consumer = member(t->schema, t->extension, "jobqueue_consumer");
	if (jq_version_compare(t->version, "1.1") >= 0)
		t->paused_role =
			member(t->schema, t->extension, "jobqueue_paused_role");
	t->meta = member(t->schema, t->extension, "jobqueue_meta");
	if (!OidIsValid(t->job) || !OidIsValid(t->meta))
		return false; /* CREATE EXTENSION is under way */
	if (!OidIsValid(t->pk) || !OidIsValid(t->ready) || !OidIsValid(t->fetch) ||
		!OidIsValid(t->due) || !OidIsValid(t->expiry) || !OidIsValid(t->key) ||
		!OidIsValid(t->tried) || !OidIsValid(t->sequence) ||
		!OidIsValid(t->archive) || !OidIsValid(t->queue_version) ||
		!OidIsValid(t->unique) || !OidIsValid(t->unique_pk) ||
		!OidIsValid(t->unique_expiry) || !OidIsValid(t->consumer) ||
		(!OidIsValid(t->paused_role) && !creating_extension &&
		 jq_version_compare(t->version, "1.1") >= 0))
	{
		if (creating_extension)
			return false;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg(
					 "tables or indexes of extension \"jobqueue\" are missing"),
				 errhint("Recreate what was dropped or renamed, or drop and "
						 "create the extension.")));
	}
	strlcpy(t->schema_name, quote_identifier(get_namespace_name(t->schema)),
			sizeof(t->schema_name));
	read_meta(t->meta, t);

	rel = table_open(t->job, AccessShareLock);
	if (RelationGetNumberOfAttributes(rel) < JQ_NCOLS)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "the SQL objects of extension \"jobqueue\" are of another version than its library"),
			 errhint("Run ALTER EXTENSION jobqueue UPDATE.")));
	t->plain = RelationGetNumberOfAttributes(rel) == JQ_NCOLS &&
			   is_plain(rel, t->extension);

	if (table_context == NULL)
		table_context =
			AllocSetContextCreate(TopMemoryContext, "jobqueue table",
								  ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(table_context);
	old = MemoryContextSwitchTo(table_context);
	job_desc = CreateTupleDescCopy(RelationGetDescr(rel));
	/* columns that somebody has added are not our concern */
	job_desc->natts = JQ_NCOLS;
	read_slot = MakeSingleTupleTableSlot(job_desc, &TTSOpsBufferHeapTuple);
	reading = false;
	write_slot = MakeSingleTupleTableSlot(job_desc, &TTSOpsVirtual);
	MemoryContextSwitchTo(old);
	if (t->plain)
	{
		pk_info = index_info(t->pk);
		ready_info = index_info(t->ready);
		fetch_info = index_info(t->fetch);
		due_info = index_info(t->due);
		expiry_info = index_info(t->expiry);
		key_info = index_info(t->key);
	}
	known_relfile = InvalidOid;
	/* not for as long as the transaction: a change is noticed */
	table_close(rel, AccessShareLock);
	return true;
}

JqTable *
jq_table(void)
{
	JqTable t;
	int tries;
	volatile bool found;

	if (table_valid)
		return &table;
	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, schema_callback, (Datum) 0);
		callback_registered = true;
	}
	/*
	 * A change may arrive while we look, also one of a table that the callback
	 * does not know yet. The counter tells; debug_discard_caches, which makes
	 * all invalid at each look, does not count.
	 */
	for (tries = 0; tries < 10; tries++)
	{
		uint64 messages = SharedInvalidMessageCounter;

		memset(&table, 0, sizeof(table));
		table_valid = true;
		found = false;
		PG_TRY();
		{
			found = lookup(&t);
		}
		PG_FINALLY();
		{
			if (!found)
				table_valid = false;
		}
		PG_END_TRY();
		if (!found)
			return NULL;
		table = t;
		/* relations opened above are known to the callback from here on */
		if (messages == SharedInvalidMessageCounter)
			return &table;
	}
	table_valid = false;
	return &table;
}

bool
jq_table_is_queue(Oid relid)
{
	/* an invalidation, that of VACUUM above all, makes it no other table */
	return OidIsValid(relid) && (relid == table.job || relid == table.archive);
}

JqTable *
jq_table_required(void)
{
	JqTable *t = jq_table();

	if (t == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg(
					 "extension \"jobqueue\" does not exist in this database"),
				 errhint("Run CREATE EXTENSION jobqueue.")));
	return t;
}

int64
jq_last_job_id(JqTable *t)
{
	Relation rel = relation_open(t->sequence, AccessShareLock);
	Buffer buf = ReadBuffer(rel, 0);
	Page page;
	HeapTupleHeader tup;
	Form_pg_sequence_data seq;
	int64 last;

	/* nextval() writes it in place */
	LockBuffer(buf, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buf);
	tup = (HeapTupleHeader) PageGetItem(page,
										PageGetItemId(page, FirstOffsetNumber));
	seq = (Form_pg_sequence_data) ((char *) tup + tup->t_hoff);
	last = seq->is_called ? seq->last_value : 0;
	UnlockReleaseBuffer(buf);
	relation_close(rel, AccessShareLock);
	return last;
}

/* ------------------------------------------------------------------ rows */

static void
insert_index(Oid relid, IndexInfo *info, Relation heap, ItemPointer tid,
			 Datum *values, IndexUniqueCheck unique)
{
	static bool nonulls[INDEX_MAX_KEYS];
	Relation index = index_open(relid, RowExclusiveLock);

	index_insert(index, values, nonulls, tid, heap, unique, false, info);
	index_close(index, NoLock);
}

/* as the index on it has it: hashtextextended(key, 0) */
Datum
jq_key_hash(Datum key)
{
	return DirectFunctionCall2Coll(hashtextextended, C_COLLATION_OID, key,
								   Int64GetDatum(0));
}

static void
insert_by_sql(JqTable *t, Datum *values, bool *nulls, ItemPointer tid)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_job (id, enqueued_at, home, run_at, expires_at,"
		" owner, func_owner, priority, attempt, max_attempts, crashes, kind,"
		" queue, command, args, key, search_path, settings, timeout, keep, tags,"
		" errors, keeps_order, unique_key, unique_until, unique_for, on_conflict,"
		" after, after_run_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,"
		" $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27,"
		" $28, $29)"
		" RETURNING ctid";
	Oid types[JQ_NCOLS];
	char flags[JQ_NCOLS];
	int i;
	bool isnull;
	JqOwnerState state;

	for (i = 0; i < JQ_NCOLS; i++)
	{
		types[i] = TupleDescAttr(job_desc, i)->atttypid;
		flags[i] = nulls[i] ? 'n' : ' ';
	}
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, JQ_NCOLS, types, values, flags);
	if (SPI_processed != 1)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg(
				 "a trigger or rule on \"jobqueue_job\" suppressed the new job")));
	*tid = *(ItemPointer) DatumGetPointer(SPI_getbinval(SPI_tuptable->vals[0],
														SPI_tuptable->tupdesc,
														1, &isnull));
	jq_owner_end(&state);
}

void
jq_row_insert(JqTable *t, Datum *values, bool *nulls, ItemPointer tid)
{
	Relation rel;
	Datum key[4];

	if (!t->plain)
	{
		insert_by_sql(t, values, nulls, tid);
		return;
	}
	rel = table_open(t->job, RowExclusiveLock);
	if (!table_valid)
	{
		/*
		 * Changed while we waited for the lock. What is found now holds for as
		 * long as we have it; were it looked at anew until nothing more
		 * arrives, that might never end.
		 */
		t = jq_table_required();
		if (!t->plain || t->job != RelationGetRelid(rel))
		{
			table_close(rel, NoLock);
			insert_by_sql(t, values, nulls, tid);
			return;
		}
	}
	ExecClearTuple(write_slot);
	memcpy(write_slot->tts_values, values, sizeof(Datum) * JQ_NCOLS);
	memcpy(write_slot->tts_isnull, nulls, sizeof(bool) * JQ_NCOLS);
	ExecStoreVirtualTuple(write_slot);
	table_tuple_insert(rel, write_slot, GetCurrentCommandId(true), 0, NULL);
	*tid = write_slot->tts_tid;
	ExecClearTuple(write_slot);

	key[0] = values[JQ_COL_ID - 1];
	insert_index(t->pk, pk_info, rel, tid, key, UNIQUE_CHECK_YES);
	if (nulls[JQ_COL_RUN_AT - 1] && nulls[JQ_COL_COMMAND - 1])
	{
		key[0] = values[JQ_COL_QUEUE - 1];
		key[1] = values[JQ_COL_PRIORITY - 1];
		key[2] = values[JQ_COL_ID - 1];
		insert_index(t->fetch, fetch_info, rel, tid, key, UNIQUE_CHECK_NO);
	}
	else if (nulls[JQ_COL_RUN_AT - 1])
	{
		key[0] = values[JQ_COL_QUEUE - 1];
		key[1] = values[JQ_COL_OWNER - 1];
		key[2] = values[JQ_COL_PRIORITY - 1];
		key[3] = values[JQ_COL_ID - 1];
		insert_index(t->ready, ready_info, rel, tid, key, UNIQUE_CHECK_NO);
	}
	else
	{
		key[0] = values[JQ_COL_RUN_AT - 1];
		key[1] = values[JQ_COL_ID - 1];
		insert_index(t->due, due_info, rel, tid, key, UNIQUE_CHECK_NO);
	}
	if (!nulls[JQ_COL_EXPIRES_AT - 1])
	{
		key[0] = values[JQ_COL_EXPIRES_AT - 1];
		key[1] = values[JQ_COL_ID - 1];
		insert_index(t->expiry, expiry_info, rel, tid, key, UNIQUE_CHECK_NO);
	}
	if (!nulls[JQ_COL_KEY - 1])
	{
		key[0] = jq_key_hash(values[JQ_COL_KEY - 1]);
		key[1] = values[JQ_COL_PRIORITY - 1];
		key[2] = values[JQ_COL_ID - 1];
		insert_index(t->key, key_info, rel, tid, key, UNIQUE_CHECK_NO);
	}
	pgstat_count_heap_insert(rel, 1);
	table_close(rel, NoLock);
}

/* may this TID be touched? beyond the table's end it would be an ERROR */
static bool
tid_in_table(Relation rel, ItemPointer tid)
{
	BlockNumber block;

	if (!ItemPointerIsValid(tid))
		return false;
	block = ItemPointerGetBlockNumber(tid);
	if (known_relfile != jq_relfilenumber(rel) || block >= known_blocks)
	{
		known_relfile = jq_relfilenumber(rel);
		known_blocks = RelationGetNumberOfBlocks(rel);
	}
	return block < known_blocks;
}

/*
 * After an error in the midst of a read the slot names a buffer that has been
 * released already: then a new one is made.
 */
TupleTableSlot *
jq_read_begin(void)
{
	if (reading)
	{
		MemoryContext old = MemoryContextSwitchTo(table_context);

		read_slot = MakeSingleTupleTableSlot(job_desc, &TTSOpsBufferHeapTuple);
		MemoryContextSwitchTo(old);
	}
	reading = true;
	return read_slot;
}

void
jq_read_end(void)
{
	ExecClearTuple(read_slot);
	reading = false;
}

static bool
slot_has_id(TupleTableSlot *slot, int64 id)
{
	bool isnull;

	return DatumGetInt64(slot_getattr(slot, JQ_COL_ID, &isnull)) == id;
}

static bool
fetch_by_key(JqTable *t, Relation rel, int64 id, Snapshot snapshot)
{
	Relation index = index_open(t->pk, AccessShareLock);
	IndexScanDesc scan = jq_index_beginscan(rel, index, snapshot, 1);
	ScanKeyData key;
	bool found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	index_rescan(scan, &key, 1, NULL, 0);
	found = index_getnext_slot(scan, ForwardScanDirection, read_slot);
	if (found)
		ExecMaterializeSlot(read_slot);
	index_endscan(scan);
	index_close(index, AccessShareLock);
	return found;
}

JqFetch
jq_row_fetch(JqTable *t, int64 id, ItemPointer tid, Snapshot given, JqRow *row,
			 TransactionId *xid, Snapshot *keep)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Snapshot snapshot =
		RegisterSnapshot(given ? given : GetCatalogSnapshot(t->job));
	JqFetch result = JQ_FETCH_GONE;
	bool found;

	(void) jq_read_begin();
	found = tid != NULL && tid_in_table(rel, tid) &&
			table_tuple_fetch_row_version(rel, tid, snapshot, read_slot) &&
			slot_has_id(read_slot, id);
	if (!found)
	{
		ExecClearTuple(read_slot);
		found = fetch_by_key(t, rel, id, snapshot);
	}
	if (found)
	{
		HeapTuple tup = ExecCopySlotHeapTuple(read_slot);
		uint16 mask = tup->t_data->t_infomask;

		result = JQ_FETCH_FOUND;
		if (!(mask & HEAP_XMAX_INVALID) && !HEAP_XMAX_IS_LOCKED_ONLY(mask))
		{
			*xid = HeapTupleHeaderGetUpdateXid(tup->t_data);
			if (TransactionIdIsValid(*xid) &&
				!TransactionIdIsCurrentTransactionId(*xid) &&
				TransactionIdIsInProgress(*xid))
				result = JQ_FETCH_DOUBTFUL;
		}
		row->tuple = tup;
		row->tid = tup->t_self;
		heap_deform_tuple(tup, job_desc, row->values, row->nulls);
	}
	jq_read_end();
	if (result == JQ_FETCH_FOUND && keep != NULL)
		*keep = snapshot;
	else
		UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return result;
}

static bool
delete_by_sql(JqTable *t, int64 id)
{
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	bool done;

	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, "DELETE FROM %s.jobqueue_job WHERE id = $1", 1, types,
					 values, NULL);
	done = SPI_processed == 1;
	jq_owner_end(&state);
	return done;
}

static bool
delete_row(JqTable *t, int64 id, JqRow *row, Snapshot snapshot)
{
	Oid relfile = known_relfile;
	Relation rel;
	bool deleted = false;
	int tries;

	if (!t->plain)
	{
		if (snapshot)
			UnregisterSnapshot(snapshot);
		return delete_by_sql(t, id);
	}
	rel = table_open(t->job, RowExclusiveLock);
	if (!table_valid)
	{
		/* rewritten or changed during the job: look at everything again */
		table_close(rel, NoLock);
		if (snapshot)
			UnregisterSnapshot(snapshot);
		t = jq_table();
		if (t == NULL)
			return false;
		if (!t->plain)
			return delete_by_sql(t, id);
		snapshot = NULL;
		rel = table_open(t->job, RowExclusiveLock);
	}

	/*
	 * The row is where it was if the snapshot under which it was found is still
	 * registered (so it cannot have been pruned away) and the table has not
	 * been rewritten.  Otherwise, and when somebody changed it, look anew.
	 */
	if (snapshot != NULL && relfile != jq_relfilenumber(rel))
	{
		UnregisterSnapshot(snapshot);
		snapshot = NULL;
	}
	for (tries = 0; tries < 100 && !deleted; tries++)
	{
		TM_FailureData failure;
		TM_Result result;
		TransactionId xid;

		if (snapshot == NULL)
		{
			JqFetch f =
				jq_row_fetch(t, id, &row->tid, NULL, row, &xid, &snapshot);

			if (f == JQ_FETCH_GONE)
				break;
			if (f == JQ_FETCH_DOUBTFUL)
			{
				/* the delete below could do it, but not without a snapshot */
				XactLockTableWait(xid, rel, &row->tid, XLTW_Delete);
				continue;
			}
		}
		result = table_tuple_delete(rel, &row->tid, GetCurrentCommandId(true),
									snapshot, InvalidSnapshot, true, &failure,
									false);
		UnregisterSnapshot(snapshot);
		snapshot = NULL;
		switch (result)
		{
			case TM_Ok:
				deleted = true;
				break;
			case TM_SelfModified:
				ereport(
					ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg(
						 "the job changed its own row of \"jobqueue_job\"")));
				break;
			default:
				break; /* updated or deleted: look again */
		}
	}
	if (snapshot != NULL)
		UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	return deleted;
}

bool
jq_row_delete(JqTable *t, int64 id, JqRow *row, Snapshot snapshot)
{
	bool deleted = delete_row(t, id, row, snapshot);

	if (deleted)
		jq_quota_gone(DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)), 1);
	return deleted;
}

/* ------------------------------------------------------------ statements */

void
jq_owner_begin(JqTable *t, JqOwnerState *state)
{
	GetUserIdAndSecContext(&state->user, &state->sec_context);
	SetUserIdAndSecContext(t->owner,
						   state->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	state->nest = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* bookkeeping is not what a read-only transaction is to be kept from */
	state->read_only = XactReadOnly;
	XactReadOnly = false;
	jq_bookkeeping = true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
jq_owner_end(JqOwnerState *state)
{
	SPI_finish();
	jq_bookkeeping = false;
	XactReadOnly = state->read_only;
	AtEOXact_GUC(false, state->nest);
	SetUserIdAndSecContext(state->user, state->sec_context);
}

/*
 * Our schema may be renamed at any time, nothing locks it against that: its name is
 * looked up just before it is used.
 */
const char *
jq_table_schema(JqTable *t)
{
	char *name;

	AcceptInvalidationMessages();
	name = get_namespace_name(t->schema);
	if (name != NULL)
		strlcpy(t->schema_name, quote_identifier(name), sizeof(t->schema_name));
	return t->schema_name;
}

char *
jq_owner_statement(JqTable *t, const char *sql)
{
	StringInfoData buf;
	const char *p = sql;
	const char *mark;

	initStringInfo(&buf);
	while ((mark = strstr(p, "%s")) != NULL)
	{
		appendBinaryStringInfo(&buf, p, mark - p);
		appendStringInfoString(&buf, jq_table_schema(t));
		p = mark + 2;
	}
	appendStringInfoString(&buf, p);
	return buf.data;
}

static int
owner_execute(JqTable *t, const char *sql, int nargs, Oid *types, Datum *values,
			  const char *nulls, bool read_only)
{
	char *text = jq_owner_statement(t, sql);
	int rc;

	rc = SPI_execute_with_args(text, nargs, types, values, nulls, read_only, 0);
	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", text,
			 SPI_result_code_string(rc));
	return rc;
}

int
jq_owner_execute(JqTable *t, const char *sql, int nargs, Oid *types,
				 Datum *values, const char *nulls)
{
	return owner_execute(t, sql, nargs, types, values, nulls, false);
}

void
jq_owner_execute_kept(JqTable *t, JqKept *kept, const char *sql, int nargs,
					  Oid *types, Datum *values, const char *nulls)
{
	char *text = jq_owner_statement(t, sql);
	int rc;

	if (kept->plan != NULL && strcmp(kept->text, text) != 0)
	{
		SPI_freeplan(kept->plan);
		kept->plan = NULL;
		pfree(kept->text);
	}
	if (kept->plan == NULL)
	{
		SPIPlanPtr plan =
			SPI_prepare_cursor(text, nargs, types, CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", text,
				 SPI_result_code_string(SPI_result));
		kept->text = MemoryContextStrdup(TopMemoryContext, text);
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "could not keep the plan of \"%s\"", text);
		kept->plan = plan;
	}
	rc = SPI_execute_plan(kept->plan, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "could not execute \"%s\": %s", text,
			 SPI_result_code_string(rc));
}

void
jq_owner_read(JqTable *t, const char *sql, int nargs, Oid *types, Datum *values,
			  const char *nulls)
{
	/* in a parallel query nothing newer may be seen, nor has anything been written */
	if (IsInParallelMode())
		PushActiveSnapshot(GetActiveSnapshot());
	else
	{
		CommandCounterIncrement();
		PushActiveSnapshot(GetLatestSnapshot());
	}
	(void) owner_execute(t, sql, nargs, types, values, nulls, true);
	PopActiveSnapshot();
}

void
jq_row_must_be_gone(JqTable *t, int64 id)
{
	JqRow row;
	TransactionId xid;

	CommandCounterIncrement();
	if (jq_row_fetch(t, id, NULL, NULL, &row, &xid, NULL) != JQ_FETCH_GONE)
		ereport(
			ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access due to concurrent update"),
			 errhint(
				 "The job was enqueued or changed after this transaction's snapshot; retry the transaction.")));
}
