/*
 * fetched.c
 *		The table of claims of outside consumers.
 *
 *		none   -> taking	: jq_fetched_take; the entry leaves the lane, and a
 *							  place, a token and its key are taken with it
 *		none   -> held		: jq_fetched_restore, of leases after a start
 *		taking -> held		: jq_fetched_keep, when the fetch has committed
 *		taking -> none		: jq_fetched_end, when it was rolled back, or when the
 *							  job ended in the same transaction
 *		held   -> none		: jq_fetched_end, when whatever ended the job, or gave
 *							  it back, has committed
 *		held   -> lost		: jq_fetched_lose: the session has gone, the lease is
 *							  over, or the consumer was told of a cancel; unless a
 *							  transaction is about to end the job (its "fate")
 *		lost   -> none		: jq_fetched_recorded, by the scheduler
 *
 * The exit hook is on_shmem_exit: by then the transaction has been aborted, and
 * what it had taken is back in the lanes.
 */
#include "postgres.h"

#include "claim.h"
#include "compat.h"
#include "database.h"
#include "fetched.h"
#include "fetchxact.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pause.h"
#include "queue.h"
#include "slot.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/timestamp.h"

#define TAKE_TRIES 64 /* entries looked at besides those taken */

static HTAB *fetched;

/* this session may have claims */
static bool have_claims;
static bool exit_registered;

int
jq_fetched_max(void)
{
	return Max(64, jobqueue_max_ready_jobs / 8);
}

Size
jq_fetched_size(void)
{
	return hash_estimate_size(jq_fetched_max(), sizeof(JqFetched));
}

void
jq_fetched_init(void)
{
	HASHCTL info;

	memset(&info, 0, sizeof(info));
	info.keysize = offsetof(JqFetched, state);
	info.entrysize = sizeof(JqFetched);
	fetched = ShmemInitHash("jobqueue fetched jobs", jq_fetched_max(),
							jq_fetched_max(), &info, HASH_ELEM | HASH_BLOBS);
}

/* the lock held */
static JqFetched *
find(Oid db, int64 id)
{
	JqFetched key;

	key.id = id;
	key.db = db;
	key.zero = 0;
	return hash_search(fetched, &key, HASH_FIND, NULL);
}

bool
jq_fetched_has(Oid db, int64 id)
{
	bool has;

	if (pg_atomic_read_u32(&jq_shared->nfetched) == 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	has = find(db, id) != NULL;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return has;
}

bool
jq_fetched_get(Oid db, int64 id, JqFetched *out)
{
	JqFetched *f;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = find(db, id);
	if (f != NULL)
		*out = *f;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return f != NULL;
}

int
jq_fetched_key(Oid db, int64 id, char *buf)
{
	JqFetched *f;
	int len;

	/* the entry is the claim's as long as that can be found */
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = find(db, id);
	len = f != NULL ? jq_entry_key(f->entry, buf) : 0;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return len;
}

JqFetched *
jq_fetched_list(Oid db, int *n)
{
	int max = (int) pg_atomic_read_u32(&jq_shared->nfetched);
	JqFetched *list = palloc(Max(max, 1) * sizeof(JqFetched));
	HASH_SEQ_STATUS seq;
	JqFetched *f;

	*n = 0;
	while (max > 0)
	{
		bool all = true;

		*n = 0;
		LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
		hash_seq_init(&seq, fetched);
		while (all && (f = hash_seq_search(&seq)) != NULL)
		{
			if (f->db != db)
				continue;
			if (*n == max)
			{
				all = false; /* more have come meanwhile */
				hash_seq_term(&seq);
			}
			else
				list[(*n)++] = *f;
		}
		LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
		if (all)
			break;
		max *= 2;
		list = repalloc(list, max * sizeof(JqFetched));
	}
	return list;
}

int
jq_fetched_count(Oid db)
{
	HASH_SEQ_STATUS seq;
	JqFetched *f;
	int n = 0;

	if (pg_atomic_read_u32(&jq_shared->nfetched) == 0)
		return 0;
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	hash_seq_init(&seq, fetched);
	while ((f = hash_seq_search(&seq)) != NULL)
		if (f->db == db && f->pid != 0 && f->state != JQ_FETCHED_LOST)
			n++;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return n;
}

/* ----------------------------------------------------------------- taking */

static void
session_exit(int code, Datum arg)
{
	(void) code;
	(void) arg;
	LWLockReleaseAll();
	jq_fetched_lose_mine();
}

void
jq_fetched_register_exit(void)
{
	if (!exit_registered)
		on_shmem_exit(session_exit, (Datum) 0);
	exit_registered = true;
	have_claims = true;
}

/* room for up to n claims, which are counted from now on */
static int
reserve(int n)
{
	uint32 old = pg_atomic_read_u32(&jq_shared->nfetched);
	int got;

	do
	{
		got = Min(n, jq_fetched_max() - (int) old);
		if (got <= 0)
			return 0;
	} while (
		!pg_atomic_compare_exchange_u32(&jq_shared->nfetched, &old, old + got));
	return got;
}

/* lane lock held exclusively, room reserved: the entry becomes a claim */
static void
insert(int lane, uint32 ix, const JqPlace *place, int pid, JqFetchedState state)
{
	JqLane *l = &jq_lanes[lane];
	JqFetched key;
	JqFetched *f;
	bool found;

	JQ_ENTRY(ix)->flags &= ~JQ_E_UNPARKED;
	key.id = JQ_ENTRY(ix)->id;
	key.db = l->db;
	key.zero = 0;
	jq_claim_count_up(l->db, key.id);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = hash_search(fetched, &key, HASH_ENTER_NULL, &found);
	Assert(f != NULL && !found);
	memset(&f->state, 0, sizeof(*f) - offsetof(JqFetched, state));
	f->state = state;
	f->entry = ix;
	f->lane = lane;
	f->pid = pid;
	f->place = *place;
	f->started_at = GetCurrentTimestamp();
	strlcpy(f->queue, l->queue, sizeof(f->queue));
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	l->nclaimed++;
}

/* lock the consumers' lane of that queue; -1: there is no place for it */
static int
lock_lane(const char *queue)
{
	for (;;)
	{
		int lane = jq_dir_lane(MyDatabaseId, JQ_CONSUMER_ROLE, queue, true);

		if (lane < 0)
			return -1;
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		if (jq_lane_is(&jq_lanes[lane], MyDatabaseId, JQ_CONSUMER_ROLE, queue))
			return lane;
		LWLockRelease(jq_lane_lock(lane));
		jq_dir_forget();
	}
}

int
jq_fetched_take(const char *queue, int max, bool leased, JqPlace *place,
				JqTaken *out, bool *full)
{
	int room;
	int n = 0;
	int tries = 0;
	bool refill;
	bool ask = false;
	int dbix;
	int lane;
	JqLane *l;

	jq_fetched_register_exit();
	room = reserve(max);
	*full = room == 0;
	lane = room > 0 ? lock_lane(queue) : -1;
	if (lane < 0)
	{
		jq_limit_give(place);
		pg_atomic_fetch_sub_u32(&jq_shared->nfetched, room);
		return 0;
	}
	l = &jq_lanes[lane];
	dbix = l->dbix;
	/* a place that was given to us may be of what the queue was before */
	if (place->queue >= 0 && place->queue != l->queue_ix)
	{
		LWLockRelease(jq_lane_lock(lane));
		jq_limit_give(place);
		pg_atomic_fetch_sub_u32(&jq_shared->nfetched, room);
		return 0;
	}
	while (n < room && l->nready > 0 && !jq_lane_stopped(l) &&
		   !*(volatile bool *) &jq_dbs[dbix].quiesced &&
		   tries < room + TAKE_TRIES)
	{
		JqTaken *t = &out[n];
		uint32 next = JQ_NIL;
		uint32 ix;
		JqEntry *e;

		tries++;
		if (!jq_limit_take(lane, place, false))
			break;
		ix = jq_lane_take_first(l);
		if (ix == JQ_NIL)
			break;
		e = JQ_ENTRY(ix);
		t->keylen = e->keylen > 0 ? jq_entry_key(ix, t->key) : 0;
		if (jq_claim_is_out(MyDatabaseId, e->id))
		{
			/* a duplicate; whoever has it will publish it again */
			pg_atomic_fetch_add_u64(&jq_queues[l->queue_ix].wasted, 1);
			jq_lane_drop(l, ix);
			if (t->keylen > 0)
				ask |= jq_keylock_dropped(MyDatabaseId, t->key, t->keylen);
			continue;
		}
		if (t->keylen > 0)
		{
			JqKeyResult r =
				jq_keylock_take_for_claim(MyDatabaseId, t->key, t->keylen,
										  e->id, leased ? 0 : MyProcPid, lane,
										  ix, &ask, &next);

			if (r == JQ_KEY_BUSY || r == JQ_KEY_GONE)
				continue;
			if (r == JQ_KEY_FULL)
			{
				jq_lane_untake(l, ix);
				break;
			}
		}
		t->id = e->id;
		t->pos = JQ_ENTRY_POS(ix);
		t->tid = e->tid;
		t->flags = e->flags & ~JQ_E_UNPARKED;
		t->lane = lane;
		if (next != JQ_NIL)
			jq_lane_take_back(next);
		insert(lane, ix, place, MyProcPid, JQ_FETCHED_TAKING);
		*place = JQ_NO_PLACE;
		n++;
		jq_fetchxact_taken(t->id);
	}
	refill = jq_lane_wants_refill(l);
	if (refill)
	{
		refill = !l->want_refill || l->nready == 0;
		l->want_refill = true;
	}
	LWLockRelease(jq_lane_lock(lane));
	if (n < room)
		pg_atomic_fetch_sub_u32(&jq_shared->nfetched, room - n);
	jq_limit_give(place);
	jq_limit_wake();
	jq_keylock_tell();
	if (refill || ask)
		jq_db_request(dbix,
					  (refill ? JQ_REQ_REFILL : 0) | (ask ? JQ_REQ_KEYS : 0));
	return n;
}

void
jq_fetched_describe(int64 id, Oid owner, int attempt, TimestampTz enqueued_at,
					TimestampTz ready_at, const pg_uuid_t *token,
					TimestampTz leased_until)
{
	JqFetched *f;
	JqPlace place = JQ_NO_PLACE;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	Assert(f != NULL && f->state == JQ_FETCHED_TAKING);
	f->owner = owner;
	f->attempt = attempt;
	f->enqueued_at = enqueued_at;
	f->ready_at = ready_at;
	f->started_at = GetCurrentTimestamp();
	if (token != NULL)
	{
		f->leased = true;
		f->token = *token;
		f->leased_until = leased_until;
	}
	place = f->place;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (place.token == 0)
		return;
	/* it starts now, and its token is used; the claim is still ours alone */
	jq_limit_start(&place);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	f->place = place;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
}

void
jq_fetched_set_digest(int64 id, const char *digest, int len)
{
	JqFetched *f;

	Assert(len <= JQ_DIGEST_MAX);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	Assert(f != NULL && f->state == JQ_FETCHED_TAKING);
	memcpy(f->digest, digest, len);
	f->digest_len = len;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
}

/* ---------------------------------------------------- the open transaction */

static bool
same_token(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a->data, b->data, UUID_LEN) == 0;
}

/* the lock held */
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

JqPinned
jq_fetched_pin(int64 id, const pg_uuid_t *token, JqFetchedFate fate,
			   JqFetched *out, JqFetchedFate *was)
{
	JqFetched *f;
	JqPinned r;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
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
jq_fetched_undo(int64 id, JqFetchedFate was)
{
	JqFetched *f;
	bool over = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	if (f != NULL)
	{
		f->fate = was;
		over = was == JQ_FATE_NONE && f->leased &&
			   f->leased_until <= GetCurrentTimestamp();
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (over)
	{
		int dbix = jq_dir_db(MyDatabaseId, false);

		if (dbix >= 0)
			jq_db_request(dbix, JQ_REQ_LEASES);
	}
}

static void
tell_lease(TimestampTz until)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	if (dbix >= 0)
		jq_db_lease(dbix, until);
}

void
jq_fetched_keep(int64 id)
{
	JqFetched *f;
	TimestampTz until = DT_NOEND;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	if (f != NULL && f->state == JQ_FETCHED_TAKING)
	{
		f->state = JQ_FETCHED_HELD;
		if (f->leased)
		{
			f->pid = 0; /* no session's any more */
			until = f->leased_until;
		}
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (until != DT_NOEND)
		tell_lease(until);
}

void
jq_fetched_extended(int64 id, TimestampTz until)
{
	JqFetched *f;
	bool found = false;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, id);
	if (f != NULL)
	{
		f->leased_until = until;
		/* unless it has ended afterwards, in the same transaction */
		if (f->fate == JQ_FATE_EXTEND)
			f->fate = JQ_FATE_NONE;
		found = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (found)
		tell_lease(until);
}

/* ------------------------------------------------------------------- ends */

/* what it holds, but for its entry; the caller alone has the claim */
static void
let_go(JqFetched *f)
{
	char key[JQ_KEY_MAX + 1];
	int len = jq_entry_key(f->entry, key);

	if (len > 0)
		jq_keylock_release_of_claim(f->db, key, len, f->id);
	if (f->digest_len > 0)
		jq_keylock_release_of_claim(f->db, f->digest, f->digest_len, f->id);
	jq_limit_give(&f->place);
}

static void
remove_claim(const JqFetched *f)
{
	JqLane *l = &jq_lanes[f->lane];
	bool found;

	LWLockAcquire(jq_lane_lock(f->lane), LW_EXCLUSIVE);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	hash_search(fetched, f, HASH_REMOVE, &found);
	Assert(found);
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	jq_claim_count_down(f->db, f->id);
	l->nclaimed--;
	LWLockRelease(jq_lane_lock(f->lane));
	pg_atomic_fetch_sub_u32(&jq_shared->nfetched, 1);
	jq_entry_free(f->entry);
	if (pg_atomic_read_u32(&jq_shared->starved) != 0)
		jq_claim_unstarve();
}

/* no transaction has to do with it any more */
static void
hold_again(Oid db, int64 id)
{
	JqFetched *f;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(db, id);
	f->state = JQ_FETCHED_HELD;
	f->fate = JQ_FATE_NONE;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
}

void
jq_fetched_end(Oid db, int64 id, bool publish)
{
	JqFetched f;
	JqItem item;
	char key[JQ_KEY_MAX + 1];

	if (!jq_fetched_get(db, id, &f))
		return;
	if (publish && f.cancel)
	{
		/* it is not to run again: the scheduler ends it */
		hold_again(db, id);
		(void) jq_fetched_lose(db, id, JQ_LOSS_CANCEL);
		return;
	}
	memset(&item, 0, sizeof(item));
	item.id = id;
	item.priority = JQ_ENTRY(f.entry)->priority;
	item.tid = JQ_ENTRY(f.entry)->tid;
	item.flags = JQ_ENTRY(f.entry)->flags;
	item.key = key;
	item.keylen = jq_entry_key(f.entry, key);
	let_go(&f);
	remove_claim(&f);
	if (publish)
		jq_lane_publish(db, JQ_CONSUMER_ROLE, f.queue, &item, 1);
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

bool
jq_fetched_lose(Oid db, int64 id, JqFetchedLoss loss)
{
	JqFetched *f;
	JqFetched copy;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(db, id);
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
	f = find(db, id);
	f->state = JQ_FETCHED_LOST;
	f->loss = f->cancel ? JQ_LOSS_CANCEL : loss;
	f->since = GetCurrentTimestamp();
	f->fate = JQ_FATE_NONE;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	jq_db_request(jq_lanes[copy.lane].dbix, JQ_REQ_FAILED);
	return true;
}

/* up to most ids of held claims of this session */
static int
find_mine(int64 *ids, int most)
{
	HASH_SEQ_STATUS seq;
	JqFetched *f;
	int n = 0;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	hash_seq_init(&seq, fetched);
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
jq_fetched_lose_mine(void)
{
	int64 ids[256];
	int n, i;

	if (!have_claims)
		return;
	do
	{
		n = find_mine(ids, lengthof(ids));
		for (i = 0; i < n; i++)
			(void) jq_fetched_lose(MyDatabaseId, ids[i], JQ_LOSS_SESSION);
	} while (n == lengthof(ids));
}

bool
jq_fetched_cancel(Oid db, int64 id)
{
	JqFetched *f;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(db, id);
	if (f != NULL && f->state != JQ_FETCHED_LOST)
		f->cancel = true;
	else
		f = NULL;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return f != NULL;
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

	if (jq_fetched_get(db, id, &f) && f.state == JQ_FETCHED_LOST)
		remove_claim(&f);
}

bool
jq_fetched_restore(const JqItem *item, const char *queue, Oid owner,
				   int attempt, TimestampTz enqueued_at, TimestampTz started_at,
				   const pg_uuid_t *token, TimestampTz leased_until,
				   const char *digest, int digest_len)
{
	JqPlace place = JQ_NO_PLACE;
	JqFetched *f;
	bool ask = false;
	uint32 next;
	uint32 ix;
	int lane;

	if (jq_fetched_has(MyDatabaseId, item->id))
		return true;
	if (reserve(1) == 0)
		return false;
	lane = lock_lane(queue);
	ix = lane < 0 ? JQ_NIL : jq_entry_new(item, lane);
	if (ix == JQ_NIL)
	{
		if (lane >= 0)
			LWLockRelease(jq_lane_lock(lane));
		pg_atomic_fetch_sub_u32(&jq_shared->nfetched, 1);
		return false;
	}
	/* it has a place, whatever the limit is now */
	place.queue = jq_lanes[lane].queue_ix;
	pg_atomic_fetch_add_u32(&jq_queues[place.queue].limit.running, 1);
	insert(lane, ix, &place, 0, JQ_FETCHED_HELD);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = find(MyDatabaseId, item->id);
	f->leased = true;
	f->token = *token;
	f->leased_until = leased_until;
	f->owner = owner;
	f->attempt = attempt;
	f->enqueued_at = f->ready_at = enqueued_at;
	f->started_at = started_at;
	f->digest_len = digest_len;
	memcpy(f->digest, digest, digest_len);
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	/* nothing else runs yet, so nobody has the keys */
	if (item->keylen > 0)
		(void) jq_keylock_take_for_claim(MyDatabaseId, item->key, item->keylen,
										 item->id, 0, lane, JQ_NIL, &ask,
										 &next);
	if (digest_len > 0)
		(void) jq_keylock_take_for_claim(MyDatabaseId, digest, digest_len,
										 item->id, 0, -1, JQ_NIL, &ask, &next);
	LWLockRelease(jq_lane_lock(lane));
	tell_lease(leased_until);
	return true;
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
		hash_seq_init(&seq, fetched);
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
		jq_fetched_end(db, id, false);
	}
}
