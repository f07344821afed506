/*
 * publish.c
 *		What a transaction has to tell memory at its end.
 *
 * A list of rows grows while the transaction runs.  Each subtransaction that
 * adds to it remembers how long the list was before; its abort cuts the list
 * there.  The list is bounded: what goes beyond is only counted, with the
 * smallest place of each lane, and the lane is told to read it from the table.
 *
 * When.  The commit sets a flag at XACT_EVENT_COMMIT; the list is pushed in the
 * resource release phase after locks.  By then other sessions see the rows, the
 * locks of the transaction are gone and its invalidations have been sent: a
 * worker can neither find nothing, nor wait for the enqueuer, nor run a function
 * that this very transaction has replaced.  Nothing in that phase can fail:
 * everything was allocated before the commit.  model: AFTER_COMMIT
 *
 * PREPARE TRANSACTION leaves a summary in shared memory under the global id, and
 * COMMIT PREPARED makes the lanes read the rows from the table.
 *
 * Claims held by control functions are given back at the end of the transaction
 * or of the subtransaction that took them, after locks as well; if that aborted,
 * the row is as it was and is published again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "after.h"
#include "afterlocks.h"
#include "claim.h"
#include "compat.h"
#include "database.h"
#include "guc.h"
#include "jobtable.h"
#include "keylock.h"
#include "lane.h"
#include "looks.h"
#include "pause.h"
#include "pausedrole.h"
#include "prepared.h"
#include "publish.h"
#include "quota.h"
#include "storage/ipc.h"
#include "utils/memutils.h"

/* a lane that the transaction has to do with */
typedef struct PendingLane
{
	Oid owner;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	bool unknown; /* got rows past us */
	bool spilled; /* has rows that are not in the list */
	JqPos spill_from;
	int64 spill_low_id;
	int64 nspilled;
	int npending; /* counted at the push */
	bool held_back;
} PendingLane;

typedef struct Pending
{
	JqItem item;
	int lane;			/* index in lanes[] */
	TimestampTz run_at; /* DT_NOBEGIN = at once */
	bool held;			/* a claim of ours, not a new row */
} Pending;

typedef struct Level
{
	int nest;  /* nesting level */
	int start; /* length of the list before it */
	int nkeys;
	int nsettings;
	int nfrozen;
} Level;

typedef struct PendingKey
{
	int len;
	char key[JQ_KEY_MAX];
} PendingKey;

/* all in TopTransactionContext, pointers reset at its end */
static PendingLane *lanes;
static int nlanes, maxlanes, last_lane;
static Pending *pending;
static int npending, maxpending;
static Level *levels;
static int nlevels, maxlevels;
static PendingKey *keys;
static int nkeys, maxkeys;
static JqQueueRow *settings; /* in the order in which they were given */
static int nsettings, maxsettings;
static bool settings_unknown;
/* one of a subtransaction that aborts is paused until the table has been read */
#define PAUSED_MAX 32
static Oid paused_roles[PAUSED_MAX];
static int npaused_roles;
static bool roles_unknown;
static int *frozen; /* lanes that we hold back, by index in lanes[] */
static int nfrozen, maxfrozen;
static TimestampTz first_due;
static TimestampTz first_expiry;
static TimestampTz first_prune;
static TimestampTz first_schedule;

static bool count_anew; /* rows of another home have come */
static JqRecycle *recycle;
static int nrecycle;
static int maxrecycle;
static bool databases; /* some have come, or changed */
static int created;	   /* nesting level at which the extension was, or 0 */
static bool registered;
/* to be done when the locks are released */
static bool committed, aborted, sub_aborted;
static char prepare_gid[256];
static JqItem *push_buf; /* scratch for the push, allocated before */

/*
 * Jobs that wait for others, as a range of ids, and jobs that have ended.  What
 * a subtransaction that aborted has added is looked at in vain.
 */
#define ENDED_MAX 8192
static int64 waiting_first; /* 0 = none */
static int64 waiting_last;
static int64 ended[ENDED_MAX];
static int nended;
static bool after_unknown;
static bool deleted;
bool jq_publish_no_ends = false;

/* the commit to come ends a job; it has, and interrupts are held */
static bool will_tell;
static bool telling;

static void xact_callback(XactEvent event, void *arg);
static void subxact_callback(SubXactEvent event, SubTransactionId mine,
							 SubTransactionId parent, void *arg);
static void after_locks(bool commit, bool top);
static void publish(bool commit, bool top);

void
jq_publish_init(void)
{
	if (registered)
		return;
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	jq_after_locks(JQ_AFTER_LOCKS_HELD, after_locks);
	jq_after_locks(JQ_AFTER_LOCKS_PUBLISH, publish);
	registered = true;
}

static void
forget_all(void)
{
	lanes = NULL;
	pending = NULL;
	levels = NULL;
	keys = NULL;
	settings = NULL;
	push_buf = NULL;
	nlanes = maxlanes = 0;
	npending = maxpending = 0;
	nlevels = maxlevels = 0;
	nkeys = maxkeys = 0;
	frozen = NULL;
	nfrozen = maxfrozen = 0;
	nsettings = maxsettings = 0;
	settings_unknown = false;
	npaused_roles = 0;
	roles_unknown = false;
	first_due = DT_NOEND;
	first_expiry = DT_NOEND;
	first_prune = DT_NOEND;
	first_schedule = DT_NOEND;
	committed = aborted = sub_aborted = false;
	recycle = NULL;
	nrecycle = maxrecycle = 0;
	databases = false;
	created = 0;
	count_anew = false;
	waiting_first = waiting_last = 0;
	nended = 0;
	after_unknown = false;
	deleted = false;
}

/* room for one more in an array of TopTransactionContext */
static void *
grow(void *array, int n, int *max, Size elem, int first)
{
	void *p;

	if (n < *max)
		return array;
	p = array != NULL ? repalloc_huge(array, 2 * *max * elem) :
						MemoryContextAlloc(TopTransactionContext, first * elem);
	*max = array != NULL ? 2 * *max : first;
	return p;
}

/* the present subtransaction is about to add something */
static void
enter_level(void)
{
	int nest = GetCurrentTransactionNestLevel();

	jq_publish_init();
	if (nlevels > 0 && levels[nlevels - 1].nest == nest)
		return;
	levels = grow(levels, nlevels, &maxlevels, sizeof(Level), 8);
	levels[nlevels].nest = nest;
	levels[nlevels].start = npending;
	levels[nlevels].nkeys = nkeys;
	levels[nlevels].nsettings = nsettings;
	levels[nlevels].nfrozen = nfrozen;
	nlevels++;
}

static int
pending_lane(Oid owner, const char *queue)
{
	int i;

	if (last_lane < nlanes && lanes[last_lane].owner == owner &&
		strcmp(lanes[last_lane].queue, queue) == 0)
		return last_lane;
	for (i = 0; i < nlanes; i++)
		if (lanes[i].owner == owner && strcmp(lanes[i].queue, queue) == 0)
			return last_lane = i;
	lanes = grow(lanes, nlanes, &maxlanes, sizeof(PendingLane), 4);
	memset(&lanes[nlanes], 0, sizeof(PendingLane));
	lanes[nlanes].owner = owner;
	strlcpy(lanes[nlanes].queue, queue, sizeof(lanes[nlanes].queue));
	return last_lane = nlanes++;
}

static void
fill_pending(Pending *p, int lane, const JqItem *item, TimestampTz run_at,
			 bool held)
{
	char *key = NULL;

	if (item->keylen > 0)
	{
		key = MemoryContextAlloc(TopTransactionContext, item->keylen);
		memcpy(key, item->key, item->keylen);
	}
	p->item = *item;
	p->item.key = key;
	p->lane = lane;
	p->run_at = run_at;
	p->held = held;
}

static void
add_pending(int lane, const JqItem *item, TimestampTz run_at, bool held)
{
	if (pending == NULL)
		push_buf =
			MemoryContextAlloc(TopTransactionContext, 256 * sizeof(JqItem));
	pending = grow(pending, npending, &maxpending, sizeof(Pending), 16);
	fill_pending(&pending[npending], lane, item, run_at, held);
	npending++;
}

static void
note_spilled(PendingLane *l, int priority, int64 id)
{
	JqPos pos = jq_pos_make(priority, id);

	l->spill_from = l->spilled ? jq_pos_min(l->spill_from, pos) : pos;
	l->spill_low_id = l->spilled ? Min(l->spill_low_id, id) : id;
	l->spilled = true;
	l->nspilled++;
}

void
jq_publish_in_table(Oid owner, const char *queue, int priority, int64 id)
{
	int lane;

	enter_level();
	lane = pending_lane(owner, queue); /* which may move the lanes */
	note_spilled(&lanes[lane], priority, id);
}

void
jq_publish_row(Oid owner, const char *queue, const JqItem *item,
			   TimestampTz run_at)
{
	JqTable *t = jq_table();
	int lane;

	enter_level();
	if (t != NULL && t->meta_database != MyDatabaseId)
	{
		count_anew = true; /* in a copy of another database all is held */
		return;
	}
	lane = pending_lane(owner, queue);
	if (npending >= jobqueue_max_ready_jobs)
	{
		/*
		 * If a subtransaction that gets here aborts, the lane is told of rows
		 * that do not exist, which costs one look at the table.
		 */
		if (run_at != DT_NOBEGIN)
		{
			if (first_due == 0 || run_at < first_due)
				first_due = run_at;
		}
		else
			note_spilled(&lanes[lane], item->priority, item->id);
		return;
	}
	add_pending(lane, item, run_at, false);
}

void
jq_publish_due(TimestampTz when)
{
	enter_level();
	if (first_due == 0 || when < first_due)
		first_due = when;
}

void
jq_publish_expiry(TimestampTz when)
{
	enter_level();
	if (first_expiry == 0 || when < first_expiry)
		first_expiry = when;
}

void
jq_publish_prune(TimestampTz when)
{
	enter_level();
	if (first_prune == 0 || when < first_prune)
		first_prune = when;
}

void
jq_publish_schedule(TimestampTz when)
{
	enter_level();
	when = Max(when, DT_NOBEGIN + 1);
	if (first_schedule == 0 || when < first_schedule)
		first_schedule = when;
}

void
jq_publish_unknown(Oid owner, const char *queue)
{
	int lane;

	enter_level();
	lane = pending_lane(owner, queue);
	lanes[lane].unknown = true;
}

void
jq_publish_count_anew(void)
{
	enter_level();
	count_anew = true;
}

void
jq_publish_waiting(int64 id)
{
	enter_level();
	waiting_first = waiting_first == 0 ? id : Min(waiting_first, id);
	waiting_last = Max(waiting_last, id);
}

void
jq_publish_ended(int64 id)
{
	if (jq_publish_no_ends)
		return;
	enter_level();
	if (nended < ENDED_MAX)
		ended[nended++] = id;
	else
		after_unknown = true;
}

void
jq_publish_after_unknown(void)
{
	enter_level();
	after_unknown = true;
}

void
jq_publish_deleted(void)
{
	enter_level();
	deleted = true;
}

void
jq_publish_will_tell(bool will)
{
	will_tell = will;
}

void
jq_publish_told(void)
{
	if (!telling)
		return;
	telling = false;
	RESUME_INTERRUPTS();
}

void
jq_publish_held(Oid owner, const char *queue, const JqItem *item,
				TimestampTz run_at)
{
	enter_level();
	add_pending(pending_lane(owner, queue), item, run_at, true);
}

void
jq_publish_held_is(Oid owner, const char *queue, const JqItem *item,
				   TimestampTz run_at)
{
	Assert(npending > 0 && pending[npending - 1].held &&
		   pending[npending - 1].item.id == item->id);
	fill_pending(&pending[npending - 1], pending_lane(owner, queue), item,
				 run_at, true);
}

void
jq_publish_not_held(int64 id)
{
	int i = npending - 1;

	while (pending[i].item.id != id || !pending[i].held)
	{
		i--;
		Assert(i >= levels[nlevels - 1].start);
	}
	memmove(&pending[i], &pending[i + 1], (npending - i - 1) * sizeof(Pending));
	npending--;
	(void) jq_claim_unhold(MyDatabaseId, id);
}

void
jq_publish_reserve_key(void)
{
	enter_level();
	keys = grow(keys, nkeys, &maxkeys, sizeof(PendingKey), 4);
}

void
jq_publish_key(const char *key, int len)
{
	Assert(nkeys < maxkeys);
	keys[nkeys].len = len;
	memcpy(keys[nkeys].key, key, len);
	nkeys++;
}

bool
jq_publish_is_held(int64 id)
{
	int i;

	for (i = npending - 1; i >= 0; i--)
		if (pending[i].item.id == id && pending[i].held)
			return true;
	return false;
}

void
jq_publish_recycle(Oid db, Oid role)
{
	int i;

	enter_level();
	for (i = 0; i < nrecycle; i++)
		if (recycle[i].db == db && recycle[i].role == role)
			return;
	recycle = grow(recycle, nrecycle, &maxrecycle, sizeof(JqRecycle), 4);
	recycle[nrecycle].db = db;
	recycle[nrecycle].role = role;
	nrecycle++;
}

void
jq_publish_databases(void)
{
	enter_level();
	databases = true;
}

/*
 * The extension has been created: what memory still has of one that was here
 * before, and may have gone unseen, must not meet its jobs, which begin again
 * with the same numbers.
 */
void
jq_publish_created(void)
{
	enter_level();
	created = GetCurrentTransactionNestLevel();
}

void
jq_publish_settings(const JqQueueRow *row)
{
	enter_level();
	settings = grow(settings, nsettings, &maxsettings, sizeof(JqQueueRow), 4);
	settings[nsettings++] = *row;
}

void
jq_publish_settings_unknown(void)
{
	enter_level();
	settings_unknown = true;
}

void
jq_publish_paused_role(Oid role)
{
	enter_level();
	if (npaused_roles < PAUSED_MAX)
		paused_roles[npaused_roles++] = role;
	else
		settings_unknown = true;
}

void
jq_publish_roles_unknown(void)
{
	enter_level();
	roles_unknown = true;
}

void
jq_publish_freeze(Oid owner, const char *queue)
{
	int lane;

	enter_level();
	lane = pending_lane(owner, queue);
	frozen = grow(frozen, nfrozen, &maxfrozen, sizeof(int), 8);
	/*
	 * Where there is no place for the lane nothing is taken from it, and after
	 * the commit the scheduler looks for its rows.
	 */
	if (jq_lane_hold_back(MyDatabaseId, owner, queue, true))
		frozen[nfrozen++] = lane;
	else
		lanes[lane].unknown = true;
}

/* lanes from this place of the list on; changed: their rows are not what they
 * were */
static void
thaw(int from, bool changed)
{
	int i;

	for (i = from; i < nfrozen; i++)
	{
		PendingLane *l = &lanes[frozen[i]];

		if (changed)
			jq_lane_spill(MyDatabaseId, l->owner, l->queue, JQ_POS_NOTHING, 0,
						  0);
		(void) jq_lane_hold_back(MyDatabaseId, l->owner, l->queue, false);
	}
	if (changed && nfrozen > from)
		jq_keylock_order_forget(MyDatabaseId, false);
	nfrozen = from;
}

bool
jq_publish_is_mine(int64 id)
{
	int i;

	for (i = npending - 1; i >= 0; i--)
		if (pending[i].item.id == id && !pending[i].held)
			return true;
	return false;
}

void
jq_publish_set_gid(const char *gid)
{
	strlcpy(prepare_gid, gid, sizeof(prepare_gid));
}

/* ------------------------------------------------------------- the push */

void
jq_publish_now(Oid db, Oid owner, const char *queue, const JqItem *item,
			   TimestampTz run_at)
{
	if (run_at == DT_NOBEGIN)
		jq_lane_publish(db, owner, queue, item, 1);
	else
	{
		int dbix = jq_dir_db(db, true);

		if (dbix >= 0)
			jq_db_due(dbix, run_at);
	}
}

void
jq_publish_counted(Oid db, Oid owner, const char *queue, const JqItem *item,
				   TimestampTz run_at)
{
	bool refused;

	/* of one that is due more has to be told: it is counted once too often */
	if (run_at == DT_NOBEGIN && !(item->flags & JQ_E_DUE))
		jq_lane_publish_due(db, owner, queue, item, 1, &refused);
	else
		jq_publish_now(db, owner, queue, item, run_at);
}

void
jq_publish_unsure(Oid db, int64 id)
{
	int dbix = jq_dir_db(db, true);

	if (dbix < 0)
		return;
	if (jq_looks_ask(db, id))
	{
		jq_db_request(dbix, JQ_REQ_FAILED);
		return;
	}
	/* other databases have a thousand of them */
	jq_publish_forget(db);
}

/* before the jobs: one enqueued together with a pause does not start */
static void
push_settings(void)
{
	int i;

	for (i = 0; i < nsettings; i++)
		jq_queue_apply(MyDatabaseId, &settings[i]);
	if (settings_unknown)
		jq_queue_forget(MyDatabaseId);
	for (i = 0; i < npaused_roles; i++)
		jq_role_pause(MyDatabaseId, paused_roles[i]);
	if (roles_unknown)
	{
		int dbix = jq_dir_db(MyDatabaseId, true);

		if (dbix >= 0)
			jq_db_request(dbix, JQ_REQ_SETTINGS);
	}
}

static void
push_all(void)
{
	int i = 0;
	TimestampTz due = DT_NOEND;
	int dbix = jq_dir_db(MyDatabaseId, true);

	if (dbix < 0)
		return; /* no place for the database: see status */
	for (i = 0; i < nlanes; i++)
		lanes[i].npending = 0;
	for (i = 0; i < npending; i++)
		if (!pending[i].held && pending[i].run_at == DT_NOBEGIN)
			lanes[pending[i].lane].npending++;
	/*
	 * Nothing is taken until all is there.  First what is not known, so that
	 * nothing overtakes it; but a refill may bring that at once, before the
	 * smaller ones of the list.  model: HOLD_BACK
	 */
	for (i = 0; i < nlanes; i++)
	{
		PendingLane *l = &lanes[i];

		if (l->npending > 1 || (l->npending > 0 && (l->spilled || l->unknown)))
			l->held_back =
				jq_lane_hold_back(MyDatabaseId, l->owner, l->queue, true);
		if (l->unknown)
			jq_lane_spill(MyDatabaseId, l->owner, l->queue, JQ_POS_NOTHING, 0,
						  0);
		if (l->spilled)
			jq_lane_spill(MyDatabaseId, l->owner, l->queue, l->spill_from,
						  l->spill_low_id, l->nspilled);
	}
	JQ_PAUSE("enqueue-before-push");
	i = 0;
	while (i < npending)
	{
		int lane = pending[i].lane;
		int n = 0;

		/* a run of rows of one lane */
		for (; i < npending && n < 256 && pending[i].lane == lane; i++)
		{
			if (pending[i].held)
				continue;
			if (pending[i].run_at == DT_NOBEGIN)
				push_buf[n++] = pending[i].item;
			else
				due = Min(due, pending[i].run_at);
		}
		if (n > 0)
			jq_lane_publish(MyDatabaseId, lanes[lane].owner, lanes[lane].queue,
							push_buf, n);
	}
	for (i = 0; i < nlanes; i++)
		if (lanes[i].held_back)
			(void) jq_lane_hold_back(MyDatabaseId, lanes[i].owner,
									 lanes[i].queue, false);
	if (first_due != 0 && first_due != DT_NOEND)
		due = Min(due, first_due);
	if (due != DT_NOEND)
		jq_db_due(dbix, due);
	if (first_expiry != 0 && first_expiry != DT_NOEND)
		jq_db_expiry(dbix, first_expiry);
	if (first_prune != 0 && first_prune != DT_NOEND)
		jq_db_prune(dbix, first_prune);
	if (first_schedule != 0 && first_schedule != DT_NOEND)
		jq_db_schedule(dbix, first_schedule);
	if (count_anew)
		jq_db_request(dbix, JQ_REQ_COUNT);
}

/* nobody else has a job of the extension that was created yet */
static void
forget_former(void)
{
	int dbix = jq_dir_db(MyDatabaseId, false);

	if (dbix < 0)
		return;
	jq_dir_purge_db(MyDatabaseId);
	jq_db_request(dbix, JQ_REQ_SETTINGS | JQ_REQ_LEASES);
}

/* the rows are where they are now: who waits, and for whom? */
static void
push_after(void)
{
	int dbix;
	int i;

	if (deleted || after_unknown)
		jq_waiter_call_all(MyDatabaseId);
	if (waiting_first == 0 && nended == 0 && !after_unknown)
		return;
	dbix = jq_dir_db(MyDatabaseId, true);
	if (dbix < 0)
	{
		jq_waiter_call_all(MyDatabaseId);
		return;
	}
	JQ_PAUSE("after-before-push");
	for (i = 0; i < nended; i++)
		jq_after_ended(dbix, ended[i]);
	if (waiting_first != 0)
		jq_after_push_waiting(dbix, waiting_first, waiting_last);
	if (after_unknown)
		jq_db_request(dbix, JQ_REQ_AFTER_ALL);
}

/* has the transaction written the row before this place of the list? */
static bool
written_before(int place, int64 id)
{
	int i;

	for (i = 0; i < place; i++)
		if (pending[i].item.id == id && !pending[i].held)
			return true;
	return false;
}

/*
 * Give back claims and keys of the list from these places on.  again: what was
 * claimed is as before.  A row of this very transaction is not to be seen before
 * it commits: whoever took it would find nothing, and drop it.
 * model: ABORT_PUBLISH
 */
static void
let_go(int from, int from_key, bool again)
{
	uint64 orders = jq_keylock_order_number();
	int i;

	for (i = from; i < npending; i++)
	{
		Pending *p = &pending[i];
		PendingLane *l = &lanes[p->lane];
		bool passed;
		bool goes_on; /* as before */

		if (!p->held)
			continue;
		/* what nobody takes (a consumer, a paused queue) would stay, and be
		 * counted; if it stands there still it is published below */
		if (!again && p->run_at == DT_NOBEGIN)
			jq_lane_remove(MyDatabaseId, l->owner, l->queue, &p->item);
		/* it may have been changed before we had it, or by those who change many
		 * while we had it, or have committed what we did; model: PASSED */
		passed = jq_claim_unhold(MyDatabaseId, p->item.id);
		goes_on = again && !written_before(from, p->item.id);
		/* an entry of it may have been dropped: nothing counts it then */
		if (goes_on && passed)
			jq_publish_now(MyDatabaseId, l->owner, l->queue, &p->item,
						   p->run_at);
		else if (goes_on)
			jq_publish_counted(MyDatabaseId, l->owner, l->queue, &p->item,
							   p->run_at);
		/* what we have made of it may not be in the list */
		if (passed && (again ? goes_on :
							   first_due != 0 || l->spilled ||
								   npending >= jobqueue_max_ready_jobs ||
								   written_before(npending, p->item.id)))
			jq_publish_unsure(MyDatabaseId, p->item.id);
		if (p->item.keylen > 0)
			jq_keylock_order_recorded(MyDatabaseId, p->item.key, p->item.keylen,
									  p->item.id, orders);
	}
	for (i = from_key; i < nkeys; i++)
		jq_keylock_release(MyDatabaseId, keys[i].key, keys[i].len);
}

static void
prepare(void)
{
	JqPrepared p;
	int i;

	memset(&p, 0, sizeof(p));
	strlcpy(p.gid, prepare_gid, sizeof(p.gid));
	p.db = MyDatabaseId;
	p.settings =
		nsettings > 0 || settings_unknown || npaused_roles > 0 || roles_unknown;
	p.count_anew = count_anew;
	p.after = waiting_first != 0 || nended > 0 || after_unknown || deleted;
	p.schedules = first_schedule != 0 && first_schedule != DT_NOEND;
	p.databases = databases;
	p.created = created > 0;
	p.nrecycle = nrecycle <= JQ_PREPARED_RECYCLE ? nrecycle : 1; /* all */
	for (i = 0; i < nrecycle && nrecycle <= JQ_PREPARED_RECYCLE; i++)
		p.recycle[i] = recycle[i];
	for (i = 0; i < nlanes; i++)
	{
		PendingLane *l = &lanes[i];
		JqPos first = l->spilled ? l->spill_from : JQ_POS_ALL;
		int64 low_id = l->spilled ? l->spill_low_id : PG_INT64_MAX;
		int64 n = l->nspilled;
		int j;

		if (l->unknown)
			first = JQ_POS_NOTHING;
		for (j = 0; j < npending; j++)
			if (pending[j].lane == i)
			{
				if (pending[j].run_at != DT_NOBEGIN)
					p.due = true;
				else
				{
					first =
						jq_pos_min(first, jq_pos_make(pending[j].item.priority,
													  pending[j].item.id));
					low_id = Min(low_id, pending[j].item.id);
					n++;
				}
			}
		if ((first_due != 0 && first_due != DT_NOEND) ||
			(first_expiry != 0 && first_expiry != DT_NOEND))
			p.due = true;
		if (jq_pos_is_all(first))
			continue;
		if (p.nlanes == JQ_PREPARED_LANES)
		{
			p.all = true;
			break;
		}
		p.lanes[p.nlanes].role = l->owner;
		strlcpy(p.lanes[p.nlanes].queue, l->queue,
				sizeof(p.lanes[p.nlanes].queue));
		p.lanes[p.nlanes].first = first;
		p.lanes[p.nlanes].low_id = low_id;
		p.lanes[p.nlanes].nrows = n;
		p.nlanes++;
	}
	jq_quota_prepare(&p);
	jq_prepared_store(&p);
}

void
jq_publish_prepared(const JqPrepared *p)
{
	int i;
	int dbix;

	for (i = 0; i < p->nrecycle; i++)
		(void) jq_slot_stop_idle(p->recycle[i].db, p->recycle[i].role);
	if (p->created)
		forget_former();
	if (p->databases)
		jq_db_scan_wanted();
	if (p->after && !p->all)
		jq_waiter_call_all(p->db);
	if (p->all)
	{
		jq_publish_forget(p->db);
		return;
	}
	if (p->settings)
		jq_queue_forget(p->db);
	for (i = 0; i < p->nlanes; i++)
		jq_lane_spill(p->db, p->lanes[i].role, p->lanes[i].queue,
					  p->lanes[i].first, p->lanes[i].low_id, p->lanes[i].nrows);
	dbix = jq_dir_db(p->db, true);
	if (dbix >= 0 && p->due)
		jq_db_request(dbix, JQ_REQ_DUE | JQ_REQ_EXPIRY);
	if (dbix >= 0 && p->schedules)
		jq_db_request(dbix, JQ_REQ_SCHEDULES);
	if (dbix >= 0 && p->count_anew)
		jq_db_request(dbix, JQ_REQ_COUNT);
	if (dbix >= 0 && p->after)
		jq_db_request(dbix, JQ_REQ_AFTER_ALL);
}

void
jq_publish_forget(Oid db)
{
	int dbix = jq_dir_db(db, true);
	int i;

	jq_waiter_call_all(db);
	if (dbix < 0)
		return;
	jq_queue_forget(db);
	jq_db_overflow(dbix);
	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];

		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (l->db == db)
		{
			l->low_id = PG_INT64_MIN;
			if (l->filling)
				l->cut = JQ_POS_NOTHING; /* all it reads is given up */
			else
				jq_lane_clear(i, JQ_POS_NOTHING);
			l->want_refill = true;
			l->starved = false;
		}
		LWLockRelease(jq_lane_lock(i));
	}
	jq_keylock_forget(db);
	jq_keylock_order_forget(db, false);
	jq_db_request(dbix, JQ_REQ_DISCOVER | JQ_REQ_REFILL | JQ_REQ_KEYS |
							JQ_REQ_DUE | JQ_REQ_EXPIRY | JQ_REQ_COUNT |
							JQ_REQ_AFTER_ALL | JQ_REQ_SCHEDULES);
}

/* ------------------------------------------------------------- callbacks */

/* jobs that have run here: whoever meets one from now on waits for the end of the
 * commit; model: ENDING_LATER */
static void
end_digests(void)
{
	int i;

	for (i = 0; i < nkeys; i++)
		if (keys[i].key[0] == '\0')
			jq_keylock_ending(MyDatabaseId, keys[i].key, keys[i].len, 0, true);
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
			if (will_tell && event == XACT_EVENT_COMMIT)
			{
				HOLD_INTERRUPTS();
				telling = true;
			}
			will_tell = false;
			jq_bookkeeping = false;
			committed = nlevels > 0;
			if (!committed)
				forget_all(); /* all that there was has been rolled back */
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PARALLEL_ABORT:
			jq_bookkeeping = false;
			aborted = nlevels > 0;
			if (!aborted)
				forget_all();
			else
				JQ_PAUSE("held-before-locks");
			break;
		case XACT_EVENT_PRE_COMMIT:
			end_digests();
			break;
		case XACT_EVENT_PRE_PREPARE:
		{
			int i;

			for (i = 0; i < npending; i++)
				if (pending[i].held)
					ereport(
						ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg(
							 "cannot PREPARE a transaction that has acted on a waiting job"),
						 errhint(
							 "Commit it, or act on the job in a transaction of its own.")));
			if (nfrozen > 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(
						 "cannot PREPARE a transaction that has acted on many jobs"),
					 errhint(
						 "Commit it, or act on the jobs in a transaction of its own.")));
			if (nkeys > 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(
						 "cannot PREPARE a transaction that holds the key of a job"),
					 errhint(
						 "Commit it, or run the job in a transaction of its own.")));
			break;
		}
		case XACT_EVENT_PREPARE:
			if (nlevels > 0 || jq_quota_taken())
				prepare();
			forget_all();
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int nest = GetCurrentTransactionNestLevel();
	Level *top;

	(void) mine;
	(void) parent;
	(void) arg;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		jq_bookkeeping = false;
	if (created >= nest && event == SUBXACT_EVENT_COMMIT_SUB)
		created = nest - 1;
	else if (created >= nest && event == SUBXACT_EVENT_ABORT_SUB)
		created = 0;
	if (nlevels == 0)
		return;
	top = &levels[nlevels - 1];
	if (top->nest < nest)
		return; /* it added nothing */
	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		if (nlevels > 1 && levels[nlevels - 2].nest == nest - 1)
			nlevels--; /* joins what its parent added */
		else
			top->nest = nest - 1;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		sub_aborted = true;
		JQ_PAUSE("held-before-locks");
	}
}

/* claims and keys go */
static void
after_locks(bool commit, bool top)
{
	if (commit && top && committed)
	{
		JQ_PAUSE("enqueue-before-publish");
		if (created > 0)
			forget_former();
		let_go(0, 0, false);
	}
	else if (!commit && top && aborted)
	{
		aborted = false;
		let_go(0, 0, true);
		thaw(0, false);
		forget_all();
	}
	else if (!top && sub_aborted)
	{
		Level *level = &levels[nlevels - 1];

		sub_aborted = false;
		let_go(level->start, level->nkeys, true);
		thaw(level->nfrozen, false);
		npending = level->start;
		nkeys = level->nkeys;
		nsettings = level->nsettings;
		nlevels--;
	}
}

/* ... and then what has been enqueued is published */
static void
publish(bool commit, bool top)
{
	int i;

	if (!commit || !top || !committed)
		return;
	committed = false;
	for (i = 0; i < nrecycle; i++)
		jq_slot_stop_idle(recycle[i].db, recycle[i].role);
	if (databases)
		jq_db_scan_wanted();
	push_settings();
	push_all();
	push_after();
	thaw(0, true);
	forget_all();
}
