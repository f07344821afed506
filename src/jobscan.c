/*
 * jobscan.c
 *		Reading rows of jobqueue_job in the order of an index, past the planner.
 *
 * Under an old snapshot an index keeps the entries of rows that are long gone.
 * So a scan goes from priority to priority by a look into the index for the next
 * larger one, and within each it begins with the smallest id that may be alive.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_collation.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "jobscan.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

/* of jobtable.c, while a scan is open */
static TupleTableSlot *read_slot;

/* what a row says that is of use to memory; the key is copied */
static void
item_of_slot(JqItem *item, TupleTableSlot *slot)
{
	bool isnull;
	Datum d;

	memset(item, 0, sizeof(*item));
	item->id = DatumGetInt64(slot_getattr(slot, JQ_COL_ID, &isnull));
	item->priority =
		DatumGetInt16(slot_getattr(slot, JQ_COL_PRIORITY, &isnull));
	item->tid = slot->tts_tid;
	d = slot_getattr(slot, JQ_COL_KEY, &isnull);
	if (!isnull)
	{
		text *key = DatumGetTextPP(d);
		int len = VARSIZE_ANY_EXHDR(key);

		if (len > 0 && len <= JQ_KEY_MAX)
		{
			char *copy = palloc(len);

			memcpy(copy, VARDATA_ANY(key), len);
			item->key = copy;
			item->keylen = len;
		}
	}
}

/*
 * A lane's part of the ready index; or, without an owner, of the one of jobs that
 * consumers fetch.
 */
typedef struct LaneScan
{
	JqTable *t;
	Relation rel;
	Relation index;
	Snapshot snapshot;
	Datum queue;
	Oid owner;
	int nfixed; /* columns before the priority */
	IndexScanDesc rows;
	IndexScanDesc jump;
} LaneScan;

static void
lane_scan_open(LaneScan *s, JqTable *t, const char *queue, Oid owner)
{
	s->t = t;
	s->rel = table_open(t->job, AccessShareLock);
	s->nfixed = owner == JQ_CONSUMER_ROLE ? 1 : 2;
	s->index =
		index_open(s->nfixed == 1 ? t->fetch : t->ready, AccessShareLock);
	s->snapshot = RegisterSnapshot(GetLatestSnapshot());
	s->queue = CStringGetTextDatum(queue);
	s->owner = owner;
	s->rows = jq_index_beginscan(s->rel, s->index, s->snapshot, s->nfixed + 2);
	s->jump = jq_index_beginscan(s->rel, s->index, s->snapshot, s->nfixed + 1);
	s->jump->xs_want_itup = true;
	read_slot = jq_read_begin();
}

static void
lane_scan_close(LaneScan *s)
{
	jq_read_end();
	index_endscan(s->rows);
	index_endscan(s->jump);
	UnregisterSnapshot(s->snapshot);
	index_close(s->index, AccessShareLock);
	table_close(s->rel, AccessShareLock);
}

/* returns their number */
static int
lane_scan_keys(LaneScan *s, ScanKeyData *key, StrategyNumber strategy,
			   RegProcedure proc, int priority)
{
	int n = s->nfixed;

	ScanKeyInit(&key[0], 1, BTEqualStrategyNumber, F_TEXTEQ, s->queue);
	key[0].sk_collation = C_COLLATION_OID;
	if (n == 2)
		ScanKeyInit(&key[1], 2, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(s->owner));
	ScanKeyInit(&key[n], n + 1, strategy, proc, Int16GetDatum(priority));
	return n + 1;
}

/*
 * The next larger priority that stands in the index, be its rows alive or not;
 * false: there is none.
 */
static bool
lane_scan_jump(LaneScan *s, int32 *priority)
{
	ScanKeyData key[3];
	bool isnull;
	int n;

	if (*priority >= PG_INT16_MAX)
		return false;
	if (*priority < PG_INT16_MIN)
		n = lane_scan_keys(s, key, BTGreaterEqualStrategyNumber, F_INT2GE,
						   PG_INT16_MIN);
	else
		n = lane_scan_keys(s, key, BTGreaterStrategyNumber, F_INT2GT,
						   *priority);
	index_rescan(s->jump, key, n, NULL, 0);
	if (index_getnext_tid(s->jump, ForwardScanDirection) == NULL)
		return false;
	*priority =
		DatumGetInt16(index_getattr(s->jump->xs_itup, s->nfixed + 1,
									RelationGetDescr(s->index), &isnull));
	return true;
}

/* the rows of one priority, ids from here on */
static void
lane_scan_start(LaneScan *s, int priority, int64 id)
{
	ScanKeyData key[4];
	int n = lane_scan_keys(s, key, BTEqualStrategyNumber, F_INT2EQ, priority);

	ScanKeyInit(&key[n], n + 1, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(id));
	index_rescan(s->rows, key, n + 1, NULL, 0);
}

/*
 * Go over the live rows in order, as long as visit() says so.  Returns up to
 * where everything has been visited.
 */
static JqPos
lane_scan(LaneScan *s, JqPos from, int64 low_id,
		  bool (*visit)(LaneScan *s, void *arg), void *arg)
{
	int32 priority = from.priority;
	int64 id = Max(from.id, low_id);

	if (priority < PG_INT16_MIN)
	{
		if (!lane_scan_jump(s, &priority))
			return JQ_POS_ALL;
		id = low_id;
	}
	for (;;)
	{
		lane_scan_start(s, priority, id);
		while (index_getnext_slot(s->rows, ForwardScanDirection, read_slot))
		{
			bool isnull;
			int64 at =
				DatumGetInt64(slot_getattr(read_slot, JQ_COL_ID, &isnull));

			CHECK_FOR_INTERRUPTS();
			if (!visit(s, arg))
				return jq_pos_after(priority, at);
		}
		if (!lane_scan_jump(s, &priority))
			return JQ_POS_ALL;
		id = low_id;
	}
}

static bool
at_home(LaneScan *s)
{
	bool isnull;

	return s->t->meta_database == MyDatabaseId &&
		   DatumGetInt64(slot_getattr(read_slot, JQ_COL_HOME, &isnull)) ==
			   s->t->home;
}

/* the row in read_slot: has it no command, and an owner to be left out? */
static bool
is_skipped(bool (*skip)(Oid owner))
{
	bool isnull;

	if (skip == NULL)
		return false;
	(void) slot_getattr(read_slot, JQ_COL_COMMAND, &isnull);
	return isnull && skip(DatumGetObjectId(
						 slot_getattr(read_slot, JQ_COL_OWNER, &isnull)));
}

static bool
read_visit(LaneScan *s, void *arg)
{
	JqReader *r = arg;
	JqItem *item = &r->items[r->n];

	r->max_visits--;
	if (at_home(s) && !is_skipped(r->skip))
	{
		int passed;

		item_of_slot(item, read_slot);
		passed = r->pass == NULL ? 0 : r->pass(item);
		if (passed == 0)
			r->n++;
		else if (passed == 2)
			r->npassed++;
	}
	return r->n < r->max && r->max_visits > 0;
}

void
jq_rows_ready(JqTable *t, const char *queue, Oid owner, JqPos from,
			  int64 low_id, JqReader *r)
{
	LaneScan s;

	r->n = 0;
	r->npassed = 0;
	lane_scan_open(&s, t, queue, owner);
	r->upto = lane_scan(&s, from, low_id, read_visit, r);
	lane_scan_close(&s);
}

typedef struct Count
{
	JqPos first;
	int visits;
	int64 n;
	int64 held;
	int (*pass)(const JqItem *item);
} Count;

static bool
count_visit(LaneScan *s, void *arg)
{
	Count *c = arg;

	if (at_home(s))
	{
		JqItem item;

		item_of_slot(&item, read_slot);
		if (jq_pos_cmp(jq_pos_make(item.priority, item.id), c->first) >= 0 &&
			c->pass(&item) == 0)
			c->n++;
		if (item.keylen > 0)
			pfree(unconstify(char *, item.key));
	}
	else
		c->held++;
	return --c->visits > 0;
}

int64
jq_rows_count(JqTable *t, const char *queue, Oid owner, JqPos from, JqPos first,
			  int max_visits, int (*pass)(const JqItem *item), int64 *held,
			  JqPos *upto)
{
	LaneScan s;
	Count c = {first, max_visits, 0, 0, pass};

	lane_scan_open(&s, t, queue, owner);
	*upto = lane_scan(&s, from, PG_INT64_MIN, count_visit, &c);
	lane_scan_close(&s);
	*held = c.held;
	return c.n;
}

static bool
stop_visit(LaneScan *s, void *arg)
{
	(void) s;
	*(bool *) arg = true;
	return false;
}

bool
jq_lane_has_rows(JqTable *t, const char *queue, Oid owner)
{
	LaneScan s;
	bool found = false;

	lane_scan_open(&s, t, queue, owner);
	(void) lane_scan(&s, JQ_POS_NOTHING, PG_INT64_MIN, stop_visit, &found);
	lane_scan_close(&s);
	return found;
}

/* a row of the key that memory may have now? */
static bool
read_key_row(JqTable *t, const char *key, int keylen, TimestampTz now,
			 JqKeyRow *r)
{
	bool isnull;
	Datum d;

	item_of_slot(&r->item, read_slot);
	if (r->item.key == NULL || r->item.keylen != keylen ||
		memcmp(r->item.key, key, keylen) != 0)
		return false; /* another key of the same hash */
	if (DatumGetInt64(slot_getattr(read_slot, JQ_COL_HOME, &isnull)) != t->home)
		return false;
	d = slot_getattr(read_slot, JQ_COL_RUN_AT, &isnull);
	if (!isnull)
	{
		if (DatumGetTimestampTz(d) > now)
			return false; /* comes when it is due */
		r->item.flags = JQ_E_DUE;
	}
	r->lane_role =
		DatumGetObjectId(slot_getattr(read_slot, JQ_COL_OWNER, &isnull));
	(void) slot_getattr(read_slot, JQ_COL_COMMAND, &isnull);
	if (isnull)
		r->lane_role = JQ_CONSUMER_ROLE;
	r->queue =
		TextDatumGetCString(slot_getattr(read_slot, JQ_COL_QUEUE, &isnull));
	return true;
}

/* the next larger priority of the key that stands in the index, as above */
static bool
key_scan_jump(IndexScanDesc jump, ScanKeyData *keys, int32 *priority)
{
	bool isnull;

	if (*priority >= PG_INT16_MAX)
		return false;
	if (*priority < PG_INT16_MIN)
		ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT2GE,
					Int16GetDatum(PG_INT16_MIN));
	else
		ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT2GT,
					Int16GetDatum(*priority));
	index_rescan(jump, keys, 2, NULL, 0);
	if (index_getnext_tid(jump, ForwardScanDirection) == NULL)
		return false;
	*priority = DatumGetInt16(
		index_getattr(jump->xs_itup, 2, RelationGetDescr(jump->indexRelation),
					  &isnull));
	return true;
}

int
jq_rows_of_key(JqTable *t, const char *key, int keylen, JqPos from,
			   int64 low_id, bool (*skip)(Oid owner), JqKeyRow *rows, int max,
			   JqPos *upto)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Relation index = index_open(t->key, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc scan = jq_index_beginscan(rel, index, snapshot, 3);
	IndexScanDesc jump = jq_index_beginscan(rel, index, snapshot, 2);
	Datum hash =
		jq_key_hash(PointerGetDatum(cstring_to_text_with_len(key, keylen)));
	TimestampTz now = GetCurrentTimestamp();
	ScanKeyData keys[3];
	int32 priority = from.priority;
	int64 id = Max(from.id, low_id);
	bool more = true;
	int n = 0;

	*upto = JQ_POS_ALL;
	jump->xs_want_itup = true;
	read_slot = jq_read_begin();
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, hash);
	if (priority < PG_INT16_MIN)
	{
		more = key_scan_jump(jump, keys, &priority);
		id = low_id;
	}
	while (more && n < max)
	{
		ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT2EQ,
					Int16GetDatum(priority));
		ScanKeyInit(&keys[2], 3, BTGreaterEqualStrategyNumber, F_INT8GE,
					Int64GetDatum(id));
		index_rescan(scan, keys, 3, NULL, 0);
		while (n < max &&
			   index_getnext_slot(scan, ForwardScanDirection, read_slot))
		{
			CHECK_FOR_INTERRUPTS();
			if (!read_key_row(t, key, keylen, now, &rows[n]) ||
				is_skipped(skip))
				continue;
			n++;
			if (n == max)
				*upto = jq_pos_after(rows[n - 1].item.priority,
									 rows[n - 1].item.id);
		}
		if (n < max)
			more = key_scan_jump(jump, keys, &priority);
		id = low_id;
	}
	jq_read_end();
	index_endscan(scan);
	index_endscan(jump);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return n;
}

bool
jq_row_tried_before(JqTable *t, const char *queue, const char *key, int keylen,
					JqPos pos, JqPos *found, TimestampTz *run_at)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Relation index = index_open(t->tried, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc scan = jq_index_beginscan(rel, index, snapshot, 2);
	Datum hash =
		jq_key_hash(PointerGetDatum(cstring_to_text_with_len(key, keylen)));
	ScanKeyData keys[2];
	JqKeyRow row;
	bool before = false;

	read_slot = jq_read_begin();
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ, hash);
	ScanKeyInit(&keys[1], 2, BTLessEqualStrategyNumber, F_INT2LE,
				Int16GetDatum(pos.priority));
	index_rescan(scan, keys, 2, NULL, 0);
	while (!before && index_getnext_slot(scan, ForwardScanDirection, read_slot))
	{
		bool isnull;
		Datum d;

		CHECK_FOR_INTERRUPTS();
		/* due or not; what is left is of the key, and at home */
		if (!read_key_row(t, key, keylen, DT_NOEND, &row))
			continue;
		*found = jq_pos_make(row.item.priority, row.item.id);
		if (jq_pos_cmp(*found, pos) >= 0)
			break;
		before = strcmp(row.queue, queue) == 0;
		d = slot_getattr(read_slot, JQ_COL_RUN_AT, &isnull);
		*run_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(d);
	}
	jq_read_end();
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return before;
}

/*
 * The first entry of one of these indexes within these keys, alive or not; of
 * the ready index if the owner is wanted, too.
 */
static bool
first_entry(Relation rel, Relation index, ScanKeyData *key, int nkeys,
			char *queue, Oid *owner)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	IndexScanDesc scan = jq_index_beginscan(rel, index, snapshot, nkeys);
	bool found;

	scan->xs_want_itup = true;
	index_rescan(scan, key, nkeys, NULL, 0);
	found = index_getnext_tid(scan, ForwardScanDirection) != NULL;
	if (found)
	{
		TupleDesc desc = RelationGetDescr(index);
		bool isnull;
		Datum d = index_getattr(scan->xs_itup, 1, desc, &isnull);

		text_to_cstring_buffer(DatumGetTextPP(d), queue, NAMEDATALEN);
		if (owner != NULL)
			*owner = DatumGetObjectId(
				index_getattr(scan->xs_itup, 2, desc, &isnull));
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	return found;
}

/* the next queue that has jobs for consumers */
static bool
next_consumer_lane(JqTable *t, char *queue, bool first)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Relation index = index_open(t->fetch, AccessShareLock);
	ScanKeyData key;
	bool found;

	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_TEXT_GT,
				CStringGetTextDatum(first ? "" : queue));
	key.sk_collation = C_COLLATION_OID;
	found = first_entry(rel, index, &key, 1, queue, NULL);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

/* the same for workers */
static bool
next_worker_lane(JqTable *t, char *queue, Oid *owner, bool first)
{
	Relation rel = table_open(t->job, AccessShareLock);
	Relation index = index_open(t->ready, AccessShareLock);
	Datum name = CStringGetTextDatum(first ? "" : queue);
	ScanKeyData key[2];
	bool found = false;

	if (!first)
	{
		/* the next owner of this queue */
		ScanKeyInit(&key[0], 1, BTEqualStrategyNumber, F_TEXTEQ, name);
		key[0].sk_collation = C_COLLATION_OID;
		ScanKeyInit(&key[1], 2, BTGreaterStrategyNumber, F_OIDGT,
					ObjectIdGetDatum(*owner));
		found = first_entry(rel, index, key, 2, queue, owner);
	}
	if (!found)
	{
		/* the next queue */
		ScanKeyInit(&key[0], 1, BTGreaterStrategyNumber, F_TEXT_GT, name);
		key[0].sk_collation = C_COLLATION_OID;
		found = first_entry(rel, index, key, 1, queue, owner);
	}
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}

bool
jq_next_lane(JqTable *t, char *queue, Oid *owner, bool first)
{
	bool to_consumers = false;

	if (first || *owner != JQ_CONSUMER_ROLE)
	{
		if (next_worker_lane(t, queue, owner, first))
			return true;
		to_consumers = true;
	}
	*owner = JQ_CONSUMER_ROLE;
	return next_consumer_lane(t, queue, to_consumers);
}
