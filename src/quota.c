/*
 * quota.c
 *		jobqueue.max_jobs_per_role.
 *
 * The live rows of a role are counted once, when its first job is held against
 * a quota.  From then on their number is kept: a transaction that writes or
 * removes rows notes so, and its commit changes the number.  What a quota has
 * been asked for is "inflight" until the end of its transaction, for it may
 * commit; what a transaction removes makes room for others when it has
 * committed, and for its own jobs at once.  So jobs enqueued by
 * jobqueue_enqueue() never exceed the quota, and are not refused beneath it.
 *
 * Count and commits.  A count reads the table under a snapshot, without what its
 * own transaction has done, and adds what has been settled since the snapshot.
 * A transaction is visible before it has settled; so it tells by PRE_COMMIT what
 * it will settle ("telling"), and the count leaves out what the snapshot saw of
 * that.  The snapshot is taken under the lock under which settling is done.
 *
 * Not sure.  Where a commit cannot tell in time (roles that nobody has counted
 * yet, many roles at once, rows deleted by hand, COMMIT PREPARED), the number
 * may stay too large: it is "stale", and a refusal then asks for a new count.
 *
 * A subtransaction that is rolled back gives back what it has taken, as does a
 * transaction.  What a prepared one has taken stays inflight; prepared.c keeps
 * the numbers until its end.  Rows that come by INSERT or COPY are taken without
 * a refusal.  What was prepared before a restart is only seen by the next count.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "compat.h"
#include "guc.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "quota.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* all under JQ_LOCK_QUOTA */
typedef struct JqQuota
{
	Oid db;
	Oid role;
	uint64 serial;		  /* of this entry */
	Oid job;			  /* the table that was counted */
	bool known;			  /* committed is a number */
	int64 committed;	  /* live rows, as far as settled */
	int64 inflight;		  /* taken by transactions in progress */
	int64 settled;		  /* what commits have added, ever */
	uint64 forgets;		  /* how often known was taken back */
	uint64 stale;		  /* commits that could not tell, ever */
	uint64 counted_stale; /* those that the last count has seen */
} JqQuota;

/* what the commit under way in a process is about to settle */
#define TOLD_ROLES 4

typedef struct JqTelling
{
	TransactionId xid; /* invalid: nothing */
	Oid db;
	int n;
	struct
	{
		Oid role;
		int64 net;
	} roles[TOLD_ROLES];
} JqTelling;

typedef struct JqQuotaShared
{
	pg_atomic_uint32 nentries; /* changed under JQ_LOCK_QUOTA */
	uint64 next_serial;
	JqTelling telling[FLEXIBLE_ARRAY_MEMBER]; /* one a process */
} JqQuotaShared;

static HTAB *quotas;
static JqQuotaShared *shared;

/*
 * What this transaction has done, by nesting level, the deepest first; in
 * TopTransactionContext.
 */
typedef struct Taken
{
	struct Taken *next;
	Oid role;
	int nest;
	int64 n;	/* taken: inflight */
	int64 more; /* rows written beyond that, less rows removed */
	bool told;	/* all of it */
} Taken;

static Taken *taken;
static bool by_hand; /* rows came or went that are not among those */

/* what a snapshot saw of commits that had not settled; room for all processes */
typedef struct Unsettled
{
	TransactionId xid;
	int64 net;
} Unsettled;

static Unsettled *unsettled;

static Size
shared_size(void)
{
	return MAXALIGN(add_size(offsetof(JqQuotaShared, telling),
							 mul_size(MaxBackends, sizeof(JqTelling))));
}

Size
jq_quota_size(void)
{
	return add_size(hash_estimate_size(jobqueue_max_lanes, sizeof(JqQuota)),
					shared_size());
}

void
jq_quota_init(void)
{
	HASHCTL info;
	bool found;

	memset(&info, 0, sizeof(info));
	info.keysize = offsetof(JqQuota, serial);
	info.entrysize = sizeof(JqQuota);
	quotas = ShmemInitHash("jobqueue quotas", jobqueue_max_lanes,
						   jobqueue_max_lanes, &info, HASH_ELEM | HASH_BLOBS);
	shared = ShmemInitStruct("jobqueue quota", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		pg_atomic_init_u32(&shared->nentries, 0);
	}
}

static bool
nobody_has_quota(void)
{
	return pg_atomic_read_u32(&shared->nentries) == 0;
}

/* lock held exclusively; NULL: there is none, and (create) no place */
static JqQuota *
get_quota(Oid db, Oid role, bool create)
{
	JqQuota key;
	JqQuota *q;
	bool found;

	memset(&key, 0, sizeof(key));
	key.db = db;
	key.role = role;
	q = hash_search(quotas, &key, HASH_FIND, NULL);
	if (q != NULL || !create)
		return q;
	if (hash_get_num_entries(quotas) >= jobqueue_max_lanes)
	{
		HASH_SEQ_STATUS seq;

		/* one that nobody uses just now is only counted anew */
		hash_seq_init(&seq, quotas);
		while ((q = hash_seq_search(&seq)) != NULL && q->inflight > 0)
			;
		if (q == NULL)
			return NULL;
		hash_seq_term(&seq);
		(void) hash_search(quotas, q, HASH_REMOVE, NULL);
	}
	q = hash_search(quotas, &key, HASH_ENTER_NULL, &found);
	if (q != NULL)
	{
		memset((char *) q + offsetof(JqQuota, serial), 0,
			   sizeof(JqQuota) - offsetof(JqQuota, serial));
		q->serial = ++shared->next_serial;
	}
	pg_atomic_write_u32(&shared->nentries,
						(uint32) hash_get_num_entries(quotas));
	return q;
}

/* lock held */
static void
make_stale(Oid db)
{
	HASH_SEQ_STATUS seq;
	JqQuota *q;

	hash_seq_init(&seq, quotas);
	while ((q = hash_seq_search(&seq)) != NULL)
		if (q->db == db)
			q->stale++;
}

/* -------------------------------------------------------- end of transaction */

/* lock held; what has been taken is a job for good, or never has been one */
static void
settle(JqQuota *q, int64 n, int64 net)
{
	Assert(q->inflight >= n);
	q->inflight -= n;
	q->committed += net;
	q->settled += net;
}

/* the commit is near: what will it settle? */
static void
tell(void)
{
	TransactionId xid = GetTopTransactionIdIfAny();
	JqTelling *mine = &shared->telling[jq_my_procno()];
	Taken *t;

	if (taken == NULL || nobody_has_quota() || !TransactionIdIsValid(xid))
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	mine->n = 0;
	for (t = taken; t != NULL; t = t->next)
		if (mine->n < TOLD_ROLES &&
			get_quota(MyDatabaseId, t->role, false) != NULL)
		{
			mine->roles[mine->n].role = t->role;
			mine->roles[mine->n].net = t->n + t->more;
			mine->n++;
			t->told = true;
		}
	if (mine->n > 0)
	{
		mine->db = MyDatabaseId;
		mine->xid = xid;
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

static void
settle_all(bool committed)
{
	bool stale = committed && by_hand;

	by_hand = false;
	/* nothing is told or taken where there is no entry */
	if ((taken == NULL && !stale) || nobody_has_quota())
	{
		taken = NULL;
		return;
	}
	JQ_PAUSE("quota-before-settle");
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (; taken != NULL; taken = taken->next)
	{
		JqQuota *q = get_quota(MyDatabaseId, taken->role, false);

		if (q == NULL)
			continue;
		if (!committed)
			settle(q, taken->n, 0);
		else if (taken->told)
			settle(q, taken->n, taken->n + taken->more);
		else
		{
			settle(q, taken->n, taken->n);
			q->stale++;
		}
	}
	if (stale)
		make_stale(MyDatabaseId);
	shared->telling[jq_my_procno()].xid = InvalidTransactionId;
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

/* how many roles has it taken for? */
static int
count_roles(void)
{
	int n = 0;
	Taken *t;

	for (t = taken; t != NULL; t = t->next)
		if (t->n > 0)
			n++;
	return n;
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	if (taken == NULL && !by_hand)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			tell();
			break;
		case XACT_EVENT_COMMIT:
			settle_all(true);
			break;
		case XACT_EVENT_ABORT:
			settle_all(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (count_roles() > JQ_PREPARED_LANES)
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(
						 "cannot PREPARE a transaction that has enqueued for more than %d roles with a quota",
						 JQ_PREPARED_LANES),
					 errhint("Commit it, or enqueue for fewer roles.")));
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
	Taken **link = &taken;
	Taken *t;

	(void) mine;
	(void) parent;
	(void) arg;
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	while ((t = *link) != NULL && t->nest >= nest)
	{
		Taken *up = NULL;

		if (event == SUBXACT_EVENT_COMMIT_SUB)
		{
			for (up = t->next; up != NULL; up = up->next)
				if (up->role == t->role && up->nest == nest - 1)
					break;
			if (up == NULL)
			{
				t->nest = nest - 1;
				link = &t->next;
				continue;
			}
			up->n += t->n;
			up->more += t->more;
		}
		else if (t->n > 0)
		{
			JqQuota *q;

			LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
			q = get_quota(MyDatabaseId, t->role, false);
			if (q != NULL)
				settle(q, t->n, 0);
			LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
		}
		*link = t->next;
		pfree(t);
	}
}

bool
jq_quota_taken(void)
{
	return taken != NULL || by_hand;
}

void
jq_quota_prepare(JqPrepared *p)
{
	p->quota_stale = taken != NULL || by_hand;
	by_hand = false;
	for (; taken != NULL; taken = taken->next)
		if (taken->n > 0 && p->nquotas < JQ_PREPARED_LANES)
		{
			p->quotas[p->nquotas].role = taken->role;
			p->quotas[p->nquotas].n = taken->n;
			p->nquotas++;
		}
}

void
jq_quota_end_prepared(const JqPrepared *p, bool committed)
{
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (i = 0; i < p->nquotas; i++)
	{
		JqQuota *q = get_quota(p->db, p->quotas[i].role, false);

		if (q != NULL)
			settle(q, p->quotas[i].n, committed ? p->quotas[i].n : 0);
	}
	/* nobody was told: a count may have seen them already */
	if (committed && p->quota_stale)
		make_stale(p->db);
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

void
jq_quota_forget(Oid db)
{
	HASH_SEQ_STATUS seq;
	JqQuota *q;

	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	hash_seq_init(&seq, quotas);
	while ((q = hash_seq_search(&seq)) != NULL)
		if (q->db == db)
		{
			q->known = false;
			q->forgets++;
		}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

static void
watch_transactions(void)
{
	static bool registered;

	if (registered)
		return;
	unsettled =
		MemoryContextAlloc(TopMemoryContext, MaxBackends * sizeof(Unsettled));
	jq_publish_init(); /* it sees PREPARE */
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	registered = true;
}

/* where this subtransaction notes what it does for the role */
static Taken *
my_taken(Oid role)
{
	int nest = GetCurrentTransactionNestLevel();
	Taken *t;

	watch_transactions();
	for (t = taken; t != NULL && t->nest == nest; t = t->next)
		if (t->role == role)
			break;
	if (t == NULL || t->nest != nest)
	{
		t = MemoryContextAlloc(TopTransactionContext, sizeof(Taken));
		t->role = role;
		t->nest = nest;
		t->n = 0;
		t->more = 0;
		t->next = taken;
		taken = t;
	}
	t->told = false;
	return t;
}

/* room that this transaction has made for itself */
static int64
own_room(Oid role)
{
	int64 n = 0;
	Taken *t;

	for (t = taken; t != NULL; t = t->next)
		if (t->role == role)
			n -= t->more;
	return n;
}

/* ------------------------------------------------------------------ count */

/* what has ended for this snapshot; a top-level xid */
static bool
has_ended(Snapshot s, TransactionId xid)
{
	uint32 i;

	if (TransactionIdFollowsOrEquals(xid, s->xmax))
		return false;
	if (TransactionIdPrecedes(xid, s->xmin))
		return true;
	for (i = 0; i < s->xcnt; i++)
		if (s->xip[i] == xid)
			return false;
	return true;
}

/* lock held: commits that will settle something for the role; n is their number */
static int
find_telling(Oid role, Snapshot s)
{
	int n = 0;
	int i, j;

	for (i = 0; i < MaxBackends; i++)
	{
		const JqTelling *tell = &shared->telling[i];

		if (!TransactionIdIsValid(tell->xid) || tell->db != MyDatabaseId ||
			i == jq_my_procno() || (s != NULL && !has_ended(s, tell->xid)))
			continue;
		for (j = 0; j < tell->n; j++)
			if (tell->roles[j].role == role)
			{
				unsettled[n].xid = tell->xid;
				unsettled[n].net = tell->roles[j].net;
				n++;
			}
	}
	return n;
}

/*
 * Somebody's rows may be gone for all to see, and the room they leave not yet
 * be there: was there any such, now there is none.
 */
static bool
await_settled(int n)
{
	bool waited = false;
	int i;

	for (i = 0; i < n; i++)
		if (!TransactionIdIsInProgress(unsettled[i].xid))
		{
			XactLockTableWait(unsettled[i].xid, NULL, NULL, XLTW_None);
			waited = true;
		}
	return waited;
}

static int64
count_rows(JqTable *t, Oid role, Snapshot snapshot)
{
	Relation rel = table_open(t->job, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	int64 n = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool isnull;
		Datum owner = slot_getattr(slot, JQ_COL_OWNER, &isnull);

		CHECK_FOR_INTERRUPTS();
		if (!isnull && DatumGetObjectId(owner) == role)
			n++;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return n;
}

/*
 * Count the live rows of the role, as far as they have committed.  false: there
 * is no place to keep the number.
 */
static bool
count(JqTable *t, Oid role, int64 *result)
{
	for (;;)
	{
		JqQuota *q;
		Snapshot snapshot;
		uint64 serial = 0, forgets = 0, stale = 0;
		int64 settled = 0;
		int64 n;
		int nunsettled, i;
		bool done;

		CHECK_FOR_INTERRUPTS();
		/* from now on it allocates nothing */
		(void) GetLatestSnapshot();
		LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
		q = get_quota(MyDatabaseId, role, true);
		if (q != NULL)
		{
			serial = q->serial;
			forgets = q->forgets;
			stale = q->stale;
			settled = q->settled;
		}
		snapshot = GetLatestSnapshot();
		nunsettled = find_telling(role, snapshot);
		LWLockRelease(jq_lock(JQ_LOCK_QUOTA));

		/* what this transaction has done is not for this count */
		snapshot = RegisterSnapshot(snapshot);
		snapshot->curcid = FirstCommandId;
		JQ_PAUSE("quota-after-snapshot");
		n = count_rows(t, role, snapshot);
		UnregisterSnapshot(snapshot);
		for (i = 0; i < nunsettled; i++)
			if (TransactionIdDidCommit(unsettled[i].xid))
				n -= unsettled[i].net;
		*result = n;
		if (q == NULL)
			return false;

		LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
		q = get_quota(MyDatabaseId, role, false);
		done = q != NULL && q->serial == serial && q->forgets == forgets;
		if (done)
		{
			q->committed = n + q->settled - settled;
			q->counted_stale = stale;
			q->job = t->job;
			q->known = true;
		}
		LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
		if (done)
			return true;
	}
}

/* ------------------------------------------------------------------- take */

static void
refuse(Oid role)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
		 errmsg("quota of %d jobs of role \"%s\" is reached",
				jobqueue_max_jobs_per_role, GetUserNameFromId(role, true)),
		 errhint(
			 "Wait until jobs have ended, cancel some, or have jobqueue.max_jobs_per_role raised.")));
}

static bool
has_quota(Oid role)
{
	return jobqueue_max_jobs_per_role != 0 && !superuser_arg(role);
}

void
jq_quota_take(JqTable *t, Oid role, int64 n)
{
	Taken *mine;
	bool counted = false;

	if (n == 0)
		return;
	if (!has_quota(role))
	{
		jq_quota_note(role, n);
		return;
	}
	mine = my_taken(role);
	for (;;)
	{
		JqQuota *q;
		bool enough = false;
		bool sure = false;
		int nunsettled = 0;
		int64 there;

		CHECK_FOR_INTERRUPTS();
		LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
		q = get_quota(MyDatabaseId, role, false);
		if (q != NULL && q->known && q->job == t->job)
		{
			enough = jobqueue_max_jobs_per_role - q->committed - q->inflight +
						 own_room(role) >=
					 n;
			sure = enough || counted || q->stale == q->counted_stale;
			if (enough)
			{
				q->inflight += n;
				mine->n += n;
			}
			else if (sure)
				nunsettled = find_telling(role, NULL);
		}
		LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
		if (enough)
			return;
		if (sure)
		{
			if (!await_settled(nunsettled))
				refuse(role);
			continue;
		}
		counted = true;
		if (count(t, role, &there))
			continue;
		/* more roles at once than there are places: as good as can be */
		if (there + n > jobqueue_max_jobs_per_role + own_room(role))
			refuse(role);
		mine->more += n;
		return;
	}
}

void
jq_quota_take_written(JqTable *t, Oid role, int64 n)
{
	jq_quota_written(role, -n);
	jq_quota_take(t, role, n);
}

void
jq_quota_note(Oid role, int64 n)
{
	Taken *mine = my_taken(role);
	JqQuota *q = NULL;

	if (!nobody_has_quota())
	{
		LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
		q = get_quota(MyDatabaseId, role, false);
		if (q != NULL)
		{
			q->inflight += n;
			mine->n += n;
		}
		LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
	}
	if (q == NULL)
		mine->more += n;
}

void
jq_quota_written(Oid role, int64 n)
{
	my_taken(role)->more += n;
}

void
jq_quota_gone(Oid role, int64 n)
{
	my_taken(role)->more -= n;
}

void
jq_quota_by_hand(void)
{
	watch_transactions();
	by_hand = true;
}
