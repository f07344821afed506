/*
 * fetchend.c
 *		Claims of outside consumers: what transactions do to them, and how they
 *		end; the states stand in fetched.c.
 *
 * Whoever ends a claim is the only one: the transaction that has pinned it, or
 * who has marked it as about to be lost.  He lets go first what it holds, and
 * the claim last; so nobody takes the job, or ends the claim once more, meanwhile.
 * But a job that goes back into its lane is there before its key is free.
 */
#include "postgres.h"

#include "claim.h"
#include "database.h"
#include "fetchtable.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "publish.h"
#include "queue.h"
#include "utils/timestamp.h"

/* ---------------------------------------------------- the open transaction */

static bool
same_token(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a->data, b->data, UUID_LEN) == 0;
}

/* the lock held; model: TOKEN */
static JqPinned
may_pin(const JqFetched *f, const pg_uuid_t *token, JqFetchedFate fate)
{
	if (f == NULL)
		return JQ_PIN_NONE;
	if (f->leased ? token == NULL || !same_token(token, &f->token) :
					f->pid != MyProcPid)
		return f->leased ? JQ_PIN_TOKEN : JQ_PIN_OTHER;
	if (f->state == JQ_FETCHED_LOST)
		return f->loss == JQ_LOSS_CANCEL ? JQ_PIN_CANCELLED : JQ_PIN_LOST;
	/* it is nobody else's before its fetch has committed */
	if (f->state == JQ_FETCHED_TAKING && f->pid != MyProcPid)
		return JQ_PIN_BUSY;
	if (!f->leased && (token != NULL || fate == JQ_FATE_EXTEND))
		return JQ_PIN_NO_LEASE;
	if (f->fate != JQ_FATE_NONE && f->fate_pid != MyProcPid)
		return JQ_PIN_BUSY;
	if (f->fate == JQ_FATE_END)
		return JQ_PIN_ENDED;
	if (f->cancel)
		return JQ_PIN_CANCELLED;
	if (f->leased && f->fate == JQ_FATE_NONE &&
		f->leased_until <= GetCurrentTimestamp())
		return JQ_PIN_LOST;
	return JQ_PIN_OK;
}

/* model: PIN */
JqPinned
jq_fetched_pin(int64 id, const pg_uuid_t *token, JqFetchedFate fate,
			   JqFetched *out, JqFetchedFate *was)
{
	JqFetched *f;
	JqPinned r;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	r = may_pin(f, token, fate);
	if (f != NULL)
		*out = *f;
	if (r == JQ_PIN_OK)
	{
		*was = f->fate;
		f->fate = fate;
		f->fate_pid = MyProcPid;
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return r;
}

void
jq_fetched_ending(int64 id, bool ending)
{
	JqFetched f;

	/* a copy: its lock is not held, as locks of keys come before it */
	if (jq_fetched_get(MyDatabaseId, id, &f) && f.digest_len > 0)
		jq_keylock_ending(f.db, f.digest, f.digest_len, id, ending);
}

/* a leased job was cancelled while a transaction had to do with its claim */
static bool
was_cancelled(const JqFetched *f)
{
	return f->cancel && f->leased && f->state == JQ_FETCHED_HELD &&
		   f->fate == JQ_FATE_NONE;
}

/* model: UNDO_ASKS */
void
jq_fetched_undo(int64 id, JqFetchedFate was)
{
	JqFetched *f;
	bool over = false;
	bool cancelled = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	if (f != NULL)
	{
		f->fate = was;
		cancelled = was_cancelled(f);
		over = was == JQ_FATE_NONE && f->leased &&
			   f->leased_until <= GetCurrentTimestamp();
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (cancelled)
		(void) jq_fetched_lose(MyDatabaseId, id, JQ_LOSS_CANCEL);
	else if (over)
	{
		int dbix = jq_dir_db(MyDatabaseId, false);

		if (dbix >= 0)
			jq_db_request(dbix, JQ_REQ_LEASES);
	}
}

/*
 * When a session ends, what it had is to be with others within milliseconds: the
 * scheduler, which records that, is there as long as sessions have claims.
 */
static void
call_scheduler(void)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	if (dbix >= 0 &&
		*(volatile JqSchedState *) &jq_dbs[dbix].sched_state == JQ_SCHED_NONE)
		jq_db_request(dbix, JQ_REQ_LEASES);
}

void
jq_fetched_keep(int64 id)
{
	JqFetched *f;
	TimestampTz until = DT_NOEND;
	bool cancelled = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	if (f != NULL && f->state == JQ_FETCHED_TAKING)
	{
		f->state = JQ_FETCHED_HELD;
		if (f->leased)
		{
			f->pid = 0; /* no session's any more */
			until = f->leased_until;
		}
		cancelled = was_cancelled(f);
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (cancelled)
		(void) jq_fetched_lose(MyDatabaseId, id, JQ_LOSS_CANCEL);
	else if (until != DT_NOEND)
		jq_fetched_tell_lease(until);
	else
		call_scheduler();
}

void
jq_fetched_extended(int64 id, TimestampTz until)
{
	JqFetched *f;
	bool found = false;
	bool cancelled = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	if (f != NULL)
	{
		f->leased_until = until;
		/* unless it has ended afterwards, in the same transaction */
		if (f->fate == JQ_FATE_EXTEND)
			f->fate = JQ_FATE_NONE;
		found = true;
		cancelled = was_cancelled(f);
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (cancelled)
		(void) jq_fetched_lose(MyDatabaseId, id, JQ_LOSS_CANCEL);
	else if (found)
		jq_fetched_tell_lease(until);
}

/* ------------------------------------------------------------------- ends */

/* what it holds, but for its entry and its key; the caller alone has the claim */
static void
let_go_but_key(JqFetched *f)
{
	if (f->digest_len > 0)
		jq_keylock_release_of_claim(f->db, f->digest, f->digest_len, f->id);
	jq_limit_give(&f->place);
}

/* the same with its key */
static void
let_go(JqFetched *f)
{
	char key[JQ_KEY_MAX + 1];
	int len = jq_entry_key(f->entry, key);

	if (len > 0 && !f->key_given)
		jq_keylock_release_of_claim(f->db, key, len, f->id);
	let_go_but_key(f);
}

/* the lock held, all that the claim holds is free: the scheduler is to end it */
static void
to_lost(JqFetched *f, JqFetchedLoss loss)
{
	f->state = JQ_FETCHED_LOST;
	f->loss = f->cancel ? JQ_LOSS_CANCEL : loss;
	f->since = GetCurrentTimestamp();
	f->fate = JQ_FATE_NONE;
	f->place = JQ_NO_PLACE;
	f->digest_len = 0;
}

/* there is room for a claim again: whoever found none looks once more;
 * model: ROOM_TELLS */
void
jq_fetched_tell_of_room(void)
{
	int i;

	if (!jq_fetched_full() ||
		pg_atomic_exchange_u32(&jq_shared->fetched_full, 0) == 0)
		return;
	for (i = 0; i < jq_shared->nlanes; i++)
		if (OidIsValid(jq_groups[i].db) &&
			jq_groups[i].role == JQ_CONSUMER_ROLE)
			jq_group_wake(i, 1);
}

/*
 * What it held is free.  false: the job is not to go on, as it was cancelled
 * meanwhile; the claim is lost.  model: CANCEL_BACK
 */
static bool
remove_claim(JqFetched *f, JqFetchedThen then)
{
	JqLane *l = &jq_lanes[f->lane];
	JqFetched *mine;
	int nkeys;
	int dbix;

	LWLockAcquire(jq_lane_lock(f->lane), LW_EXCLUSIVE);
	dbix = l->dbix;
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	mine = jq_fetched_find(f->db, f->id);
	Assert(mine != NULL);
	if (then != JQ_THEN_GONE && mine->cancel)
	{
		to_lost(mine, JQ_LOSS_CANCEL);
		LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
		LWLockRelease(jq_lane_lock(f->lane));
		jq_db_request(dbix, JQ_REQ_FAILED);
		return false;
	}
	nkeys = mine->nkeys;
	f->passed = mine->passed;
	hash_search(jq_fetched_table, f, HASH_REMOVE, NULL);
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	jq_claim_count_down(f->db, f->id);
	l->nclaimed--;
	pg_atomic_fetch_sub_u32(&l->nkeys, nkeys);
	LWLockRelease(jq_lane_lock(f->lane));
	/* a full barrier: see jq_fetched_take */
	pg_atomic_fetch_sub_u32(&jq_shared->fetched_keys, nkeys);
	pg_atomic_fetch_sub_u32(&jq_shared->nfetched, 1);
	jq_entry_free(f->entry);
	if (pg_atomic_read_u32(&jq_shared->starved) != 0)
		jq_claim_unstarve();
	jq_fetched_tell_of_room();
	return true;
}

bool
jq_fetched_end(Oid db, int64 id, JqFetchedThen then)
{
	JqFetched f;
	JqItem item;
	char key[JQ_KEY_MAX + 1];
	bool removed;

	if (!jq_fetched_get(db, id, &f))
		return false;
	memset(&item, 0, sizeof(item));
	item.id = id;
	item.priority = JQ_ENTRY(f.entry)->priority;
	item.tid = JQ_ENTRY(f.entry)->tid;
	/* its row may have a run_at that the entry does not know of */
	item.flags = jq_flags_perhaps_due(JQ_ENTRY(f.entry)->flags);
	item.key = key;
	item.keylen = jq_entry_key(f.entry, key);
	/* where it goes back its key goes last: a later job that waits for it would
	 * pass this one, were it not there yet; model: KEY_LAST */
	if (then == JQ_THEN_LANE)
		let_go_but_key(&f);
	else
		let_go(&f);
	JQ_PAUSE("fetched-let-go");
	removed = remove_claim(&f, then);
	if (removed && then == JQ_THEN_LANE)
		jq_lane_publish(db, JQ_CONSUMER_ROLE, f.queue, &item, 1);
	if (removed && then != JQ_THEN_GONE && f.passed)
		jq_publish_unsure(db, id);
	JQ_PAUSE("fetched-given-back");
	if (then == JQ_THEN_LANE && item.keylen > 0 && !f.key_given)
		jq_keylock_release_of_claim(db, key, item.keylen, id);
	return removed;
}

/* later jobs of its key wait until its failure is in the table */
static void
keep_order(const JqFetched *f)
{
	char key[JQ_KEY_MAX + 1];
	int len = jq_entry_key(f->entry, key);
	JqQueueSettings s;

	if (len == 0)
		return;
	jq_queue_settings(jq_lanes[f->lane].queue_ix, &s);
	if (s.ordered)
		jq_keylock_order_begin(f->db, key, len, f->queue,
							   JQ_ENTRY_POS(f->entry), DT_NOEND);
}

/* model: PINNED */
bool
jq_fetched_lose(Oid db, int64 id, JqFetchedLoss loss)
{
	JqFetched *f;
	JqFetched copy;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(db, id);
	if (f == NULL || f->state != JQ_FETCHED_HELD || f->fate != JQ_FATE_NONE ||
		(loss == JQ_LOSS_LEASE && f->leased_until > GetCurrentTimestamp()))
	{
		LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
		return false;
	}
	/* nobody touches it until all it holds is free */
	f->fate = JQ_FATE_END;
	f->fate_pid = MyProcPid;
	copy = *f;
	f->place = JQ_NO_PLACE;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	keep_order(&copy);
	let_go(&copy);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(db, id);
	to_lost(f, loss);
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	jq_db_request(jq_lanes[copy.lane].dbix, JQ_REQ_FAILED);
	return true;
}

/* up to most ids of held claims of this session; model: EXIT_LOSE */
static int
find_mine(int64 *ids, int most)
{
	HASH_SEQ_STATUS seq;
	JqFetched *f;
	int n = 0;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	hash_seq_init(&seq, jq_fetched_table);
	while ((f = hash_seq_search(&seq)) != NULL)
	{
		if (f->pid != MyProcPid || f->state != JQ_FETCHED_HELD ||
			f->fate != JQ_FATE_NONE)
			continue;
		ids[n++] = f->id;
		if (n == most)
		{
			hash_seq_term(&seq);
			break;
		}
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return n;
}

void
jq_fetched_lose_mine(JqFetchedLoss loss)
{
	int64 ids[256];
	int n, i;

	if (!jq_have_fetched)
		return;
	do
	{
		n = find_mine(ids, lengthof(ids));
		for (i = 0; i < n; i++)
			(void) jq_fetched_lose(MyDatabaseId, ids[i], loss);
	} while (n == lengthof(ids));
}

bool
jq_fetched_cancel(Oid db, int64 id)
{
	JqFetched *f;
	bool marked = false;
	bool leased = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(db, id);
	if (f != NULL && f->state != JQ_FETCHED_LOST)
	{
		f->cancel = marked = true;
		leased = f->leased;
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	/* if a transaction has to do with it, that does so when it has ended */
	if (leased)
		(void) jq_fetched_lose(db, id, JQ_LOSS_CANCEL);
	return marked;
}

/* -------------------------------------------------------------- scheduler */

TimestampTz
jq_fetched_expire(Oid db)
{
	int n, i;
	JqFetched *list = jq_fetched_list(db, &n);
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = DT_NOEND;

	for (i = 0; i < n; i++)
	{
		if (!list[i].leased || list[i].state != JQ_FETCHED_HELD)
			continue;
		if (list[i].leased_until > now)
			next = Min(next, list[i].leased_until);
		else
			/* if it is about to be completed, whoever gives that up asks */
			(void) jq_fetched_lose(db, list[i].id, JQ_LOSS_LEASE);
	}
	pfree(list);
	return next;
}

void
jq_fetched_recorded(Oid db, int64 id)
{
	JqFetched f;

	if (jq_fetched_get(db, id, &f) && f.state == JQ_FETCHED_LOST &&
		remove_claim(&f, JQ_THEN_GONE) && f.passed)
		jq_publish_unsure(db, id);
}

void
jq_fetched_purge(Oid db)
{
	for (;;)
	{
		HASH_SEQ_STATUS seq;
		JqFetched *f;
		int64 id = 0;

		LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
		hash_seq_init(&seq, jq_fetched_table);
		while ((f = hash_seq_search(&seq)) != NULL)
			/* those of sessions are theirs to let go */
			if (f->db == db && f->fate == JQ_FATE_NONE &&
				(f->state == JQ_FETCHED_LOST ||
				 (f->state == JQ_FETCHED_HELD && f->pid == 0)))
			{
				id = f->id;
				hash_seq_term(&seq);
				break;
			}
		LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
		if (id == 0)
			return;
		jq_fetched_end(db, id, JQ_THEN_GONE);
	}
}
