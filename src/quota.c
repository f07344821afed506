/*
 * quota.c
 *		jobqueue.max_jobs_per_role.
 *
 * Counting at each enqueue would be dear.  So the live rows of a role are
 * counted once, and what is left to the quota is its headroom: each enqueue
 * takes from it, and gives nothing back.  When there is not enough of it, the
 * rows are counted again; jobs that have ended meanwhile make room then.  A role
 * far below its quota is counted seldom, and pays a row or two for a job.
 *
 * Transactions in progress.  What they have taken is "inflight", for they may
 * commit; the count sees only what has committed, and one's own rows.  A
 * transaction that ends between the snapshot of the count and its result is
 * found in "ended".  Somebody may be counted twice for a moment, nobody is
 * forgotten: jobs enqueued by jobqueue_enqueue() never exceed the quota.
 *
 * A subtransaction that is rolled back gives back what it has taken, as does a
 * transaction.  What a prepared one has taken stays inflight; prepared.c keeps
 * the numbers until its end.  Rows that come by INSERT or COPY are taken without
 * a refusal.  What was prepared before a restart is only seen by the next count.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "quota.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* a count that takes longer is not repeated at once when it was in vain */
#define SLOW_US 100000
#define PAUSE_FACTOR 10

/* all under JQ_LOCK_QUOTA */
typedef struct JqQuota
{
	Oid db;
	Oid role;
	int quota;		/* that the headroom is for: sessions may differ */
	int64 headroom; /* negative: there are more than may be */
	int64 inflight; /* taken by transactions in progress */
	int64 ended; /* taken by transactions that committed; starts with the time
					 * of the entry's creation, beyond what its predecessor had */
	TimestampTz full_until;
} JqQuota;

static HTAB *quotas;

/*
 * What this transaction has taken, by nesting level, the deepest first; in
 * TopTransactionContext.
 */
typedef struct Taken
{
	struct Taken *next;
	Oid role;
	int nest;
	int64 n;
} Taken;

static Taken *taken;

Size
jq_quota_size(void)
{
	return hash_estimate_size(jobqueue_max_lanes, sizeof(JqQuota));
}

void
jq_quota_init(void)
{
	HASHCTL info;

	memset(&info, 0, sizeof(info));
	info.keysize = offsetof(JqQuota, quota);
	info.entrysize = sizeof(JqQuota);
	quotas = ShmemInitHash("jobqueue quotas", jobqueue_max_lanes,
						   jobqueue_max_lanes, &info, HASH_ELEM | HASH_BLOBS);
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
		memset((char *) q + offsetof(JqQuota, quota), 0,
			   sizeof(JqQuota) - offsetof(JqQuota, quota));
		q->ended = GetCurrentTimestamp();
	}
	return q;
}

/* -------------------------------------------------------- end of transaction */

/* lock held; what has been taken is a job for good, or never has been one */
static void
settle(Oid db, Oid role, int64 n, bool committed)
{
	JqQuota *q = get_quota(db, role, false);

	if (q == NULL)
		return;
	Assert(q->inflight >= n);
	q->inflight -= n;
	if (committed)
		q->ended += n;
	else
		q->headroom += n;
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	if (taken == NULL ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT))
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (; taken != NULL; taken = taken->next)
		settle(MyDatabaseId, taken->role, taken->n, event == XACT_EVENT_COMMIT);
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
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
		}
		else
		{
			LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
			settle(MyDatabaseId, t->role, t->n, false);
			LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
		}
		*link = t->next;
		pfree(t);
	}
}

bool
jq_quota_taken(void)
{
	return taken != NULL;
}

void
jq_quota_prepare(JqPrepared *p)
{
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (; taken != NULL; taken = taken->next)
	{
		int i = 0;

		while (i < p->nquotas && p->quotas[i].role != taken->role)
			i++;
		if (i == JQ_PREPARED_LANES)
		{
			/* of so many roles the last ones are seen by the next count */
			settle(MyDatabaseId, taken->role, taken->n, true);
			continue;
		}
		if (i == p->nquotas)
		{
			p->quotas[i].role = taken->role;
			p->quotas[i].n = 0;
			p->nquotas++;
		}
		p->quotas[i].n += taken->n;
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

void
jq_quota_end_prepared(const JqPrepared *p, bool committed)
{
	int i;

	if (p->nquotas == 0)
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (i = 0; i < p->nquotas; i++)
		settle(p->db, p->quotas[i].role, p->quotas[i].n, committed);
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
			q->quota = 0; /* its headroom is for no quota */
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

/* where this subtransaction notes what it takes for the role */
static Taken *
my_taken(Oid role)
{
	static bool registered;
	int nest = GetCurrentTransactionNestLevel();
	Taken *t;

	if (!registered)
	{
		jq_publish_init(); /* it sees PREPARE */
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		registered = true;
	}
	for (t = taken; t != NULL && t->nest == nest; t = t->next)
		if (t->role == role)
			return t;
	t = MemoryContextAlloc(TopTransactionContext, sizeof(Taken));
	t->role = role;
	t->nest = nest;
	t->n = 0;
	t->next = taken;
	taken = t;
	return t;
}

/* all that this transaction has taken for the role */
static int64
sum_taken(Oid role)
{
	int64 n = 0;
	Taken *t;

	for (t = taken; t != NULL; t = t->next)
		if (t->role == role)
			n += t->n;
	return n;
}

/* ------------------------------------------------------------------- take */

static int64
count_rows(JqTable *t, Oid role, int64 most)
{
	Oid types[2] = {OIDOID, INT8OID};
	Datum values[2];
	JqOwnerState state;
	int64 n;
	bool isnull;

	values[0] = ObjectIdGetDatum(role);
	values[1] = Int64GetDatum(most);
	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT count(*) FROM (SELECT FROM %s.jobqueue_job"
				  " WHERE owner::oid = $1 LIMIT $2) x",
				  2, types, values, NULL);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	return n;
}

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

/* in_table: their rows are there already */
static void
take(JqTable *t, Oid role, int64 n, bool in_table)
{
	int quota = jobqueue_max_jobs_per_role;
	TimestampTz start;
	Taken *mine;
	JqQuota *q;
	bool enough;
	bool full = false;
	int64 ended = PG_INT64_MAX;
	int64 room;
	int64 count;

	if (n == 0 || !has_quota(role))
		return;
	mine = my_taken(role);
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	q = get_quota(MyDatabaseId, role, true);
	enough = q != NULL && q->quota == quota && q->headroom >= n;
	if (enough)
	{
		q->headroom -= n;
		q->inflight += n;
		mine->n += n;
	}
	else if (q != NULL)
	{
		full = q->full_until > GetCurrentTimestamp() && q->quota == quota;
		ended = q->ended;
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
	if (enough)
		return;
	if (full)
		refuse(role);

	start = GetCurrentTimestamp();
	JQ_PAUSE("quota-before-count");
	count = count_rows(t, role, (int64) quota + 1);
	JQ_PAUSE("quota-after-count");
	room = quota - count - (in_table ? 0 : n);
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	q = get_quota(MyDatabaseId, role, true);
	if (q != NULL)
	{
		/* mine are among those counted */
		room -= q->inflight - sum_taken(role) + Max(q->ended - ended, 0);
		q->quota = quota;
		q->full_until = 0;
		if (room >= 0)
		{
			q->headroom = room;
			q->inflight += n;
			mine->n += n;
		}
		else
		{
			q->headroom = room + n;
			if (GetCurrentTimestamp() - start > SLOW_US)
				q->full_until = GetCurrentTimestamp() +
								PAUSE_FACTOR * (GetCurrentTimestamp() - start);
		}
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
	if (room < 0)
		refuse(role);
}

void
jq_quota_take(JqTable *t, Oid role, int64 n)
{
	take(t, role, n, false);
}

void
jq_quota_take_present(JqTable *t, Oid role, int64 n)
{
	take(t, role, n, true);
}

void
jq_quota_note(Oid role, int64 n)
{
	Taken *mine;
	JqQuota *q;

	if (!has_quota(role))
		return;
	mine = my_taken(role);
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	q = get_quota(MyDatabaseId, role, true);
	if (q != NULL)
	{
		q->headroom -= n;
		q->inflight += n;
		mine->n += n;
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}
