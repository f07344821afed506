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
 * Rows that come in other ways (INSERT, COPY, jobqueue_retry(), two-phase
 * commit) are only seen by the next count.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "pause.h"
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
	int quota; /* that the headroom is for: sessions may differ */
	int64 headroom;
	int64 inflight; /* taken by transactions in progress */
	int64 ended;	/* taken by transactions that committed, ever */
	TimestampTz full_until;
} JqQuota;

static HTAB *quotas;

/* what this transaction has taken; in TopTransactionContext */
typedef struct Taken
{
	struct Taken *next;
	Oid role;
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
get_quota(Oid role, bool create)
{
	JqQuota key;
	JqQuota *q;
	bool found;

	memset(&key, 0, sizeof(key));
	key.db = MyDatabaseId;
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
		memset((char *) q + offsetof(JqQuota, quota), 0,
			   sizeof(JqQuota) - offsetof(JqQuota, quota));
	return q;
}

/* -------------------------------------------------------- end of transaction */

static void
xact_callback(XactEvent event, void *arg)
{
	bool commit = event == XACT_EVENT_COMMIT;

	(void) arg;
	if (taken == NULL ||
		(!commit && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	for (; taken != NULL; taken = taken->next)
	{
		JqQuota *q = get_quota(taken->role, false);

		if (q == NULL)
			continue;
		Assert(q->inflight >= taken->n);
		q->inflight -= taken->n;
		if (commit)
			q->ended += taken->n;
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
}

/* what this transaction has taken for the role */
static Taken *
my_taken(Oid role)
{
	static bool registered;
	Taken *t;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		registered = true;
	}
	for (t = taken; t != NULL; t = t->next)
		if (t->role == role)
			return t;
	t = MemoryContextAlloc(TopTransactionContext, sizeof(Taken));
	t->role = role;
	t->n = 0;
	t->next = taken;
	taken = t;
	return t;
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

void
jq_quota_take(JqTable *t, Oid role, int64 n)
{
	int quota = jobqueue_max_jobs_per_role;
	TimestampTz start;
	Taken *mine;
	JqQuota *q;
	bool enough;
	bool full = false;
	int64 ended = 0;
	int64 room;
	int64 count;

	if (quota == 0 || n == 0 || superuser_arg(role))
		return;
	mine = my_taken(role);
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	q = get_quota(role, true);
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
	room = quota - count - n;
	LWLockAcquire(jq_lock(JQ_LOCK_QUOTA), LW_EXCLUSIVE);
	q = get_quota(role, true);
	if (q != NULL)
	{
		/* mine are among those counted */
		room -= q->inflight - mine->n + Max(q->ended - ended, 0);
		q->quota = quota;
		q->headroom = Max(room, 0);
		if (room >= 0)
		{
			q->inflight += n;
			mine->n += n;
			q->full_until = 0;
		}
		else if (GetCurrentTimestamp() - start > SLOW_US)
			q->full_until = GetCurrentTimestamp() +
							PAUSE_FACTOR * (GetCurrentTimestamp() - start);
	}
	LWLockRelease(jq_lock(JQ_LOCK_QUOTA));
	if (room < 0)
		refuse(role);
}
