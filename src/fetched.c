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
#include "fetchtable.h"
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
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define TAKE_TRIES 64 /* entries looked at besides those taken */

HTAB *jq_fetched_table;

bool jq_have_fetched;

int
jq_fetched_max(void)
{
	return Max(16, jobqueue_max_ready_jobs / 8);
}

int
jq_fetched_max_keys(void)
{
	return Max(16, jq_fetched_max() / 4);
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
	jq_fetched_table =
		ShmemInitHash("jobqueue fetched jobs", jq_fetched_max(),
					  jq_fetched_max(), &info, HASH_ELEM | HASH_BLOBS);
}

JqFetched *
jq_fetched_find(Oid db, int64 id)
{
	JqFetched key;

	key.id = id;
	key.db = db;
	key.zero = 0;
	return hash_search(jq_fetched_table, &key, HASH_FIND, NULL);
}

bool
jq_fetched_has(Oid db, int64 id)
{
	bool has;

	if (pg_atomic_read_u32(&jq_shared->nfetched) == 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	has = jq_fetched_find(db, id) != NULL;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return has;
}

bool
jq_fetched_pass_over(Oid db, int64 id)
{
	JqFetched *f;

	if (pg_atomic_read_u32(&jq_shared->nfetched) == 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = jq_fetched_find(db, id);
	/* nobody reads it before we let go of the lock */
	if (f != NULL)
		f->passed = true;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return f != NULL;
}

bool
jq_fetched_get(Oid db, int64 id, JqFetched *out)
{
	JqFetched *f;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = jq_fetched_find(db, id);
	if (f != NULL)
		*out = *f;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return f != NULL;
}

int
jq_fetched_process(Oid db, int64 id)
{
	JqFetched *f;
	int pid = 0;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = jq_fetched_find(db, id);
	if (f != NULL && f->state != JQ_FETCHED_LOST)
		pid = f->fate != JQ_FATE_NONE ? f->fate_pid : f->pid;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return pid;
}

int
jq_fetched_key(Oid db, int64 id, char *buf)
{
	JqFetched *f;
	int len;

	/* the entry is the claim's as long as that can be found */
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
	f = jq_fetched_find(db, id);
	len = f != NULL ? jq_entry_key(f->entry, buf) : 0;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	return len;
}

JqFetched *
jq_fetched_list(Oid db, int *n)
{
	int max = (int) pg_atomic_read_u32(&jq_shared->nfetched);
	JqFetched *list = palloc_extended(mul_size(Max(max, 1), sizeof(JqFetched)),
									  MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS seq;
	JqFetched *f;

	*n = 0;
	while (max > 0)
	{
		bool all = true;

		*n = 0;
		LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_SHARED);
		hash_seq_init(&seq, jq_fetched_table);
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
		list = repalloc_huge(list, mul_size(max, sizeof(JqFetched)));
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
	hash_seq_init(&seq, jq_fetched_table);
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
	(void) arg;
	LWLockReleaseAll();
	/* it leaves by itself when its client has gone */
	jq_fetched_lose_mine(code == 0 || ClientConnectionLost ? JQ_LOSS_CLIENT :
															 JQ_LOSS_SESSION);
}

void
jq_fetched_register_exit(void)
{
	if (!jq_have_fetched)
		on_shmem_exit(session_exit, (Datum) 0);
	jq_have_fetched = true;
}

/* they are not needed after all */
static void
unreserve(int keys)
{
	pg_atomic_fetch_sub_u32(&jq_shared->nfetched, 1);
	pg_atomic_fetch_sub_u32(&jq_shared->fetched_keys, keys);
}

/*
 * Room for one more claim of a queue that has so many: it is counted from now on.
 * A queue may have as many as it leaves to others; so none can take them all.
 */
static bool
reserve(int has)
{
	uint32 old = pg_atomic_read_u32(&jq_shared->nfetched);

	do
	{
		if (has >= jq_fetched_max() - (int) old)
			return false;
	} while (
		!pg_atomic_compare_exchange_u32(&jq_shared->nfetched, &old, old + 1));
	return true;
}

bool
jq_fetched_full(void)
{
	return pg_atomic_read_u32(&jq_shared->fetched_full) != 0;
}

/* a key of it likewise */
static bool
reserve_key(JqLane *l)
{
	int has = (int) pg_atomic_read_u32(&l->nkeys);
	uint32 old = pg_atomic_read_u32(&jq_shared->fetched_keys);

	do
	{
		if (has >= jq_fetched_max_keys() - (int) old)
			return false;
	} while (!pg_atomic_compare_exchange_u32(&jq_shared->fetched_keys, &old,
											 old + 1));
	return true;
}

/* a claim and its keys; all of it, or nothing */
static bool
reserve_all(JqLane *l, int keys)
{
	int i;

	if (!reserve((int) l->nclaimed))
		return false;
	for (i = 0; i < keys; i++)
		if (!reserve_key(l))
		{
			unreserve(i);
			return false;
		}
	return true;
}

/* the same; if not, whoever ends a claim from now on wakes us;
 * model: ROOM_LOOK */
static bool
reserve_or_wait(JqLane *l, int keys)
{
	if (reserve_all(l, keys))
		return true;
	(void) pg_atomic_exchange_u32(&jq_shared->fetched_full, 1);
	return reserve_all(l, keys);
}

/* lane lock held exclusively, room reserved: the entry becomes a claim */
static void
insert(int lane, uint32 ix, const JqPlace *place, int pid, JqFetchedState state,
	   int keys)
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
	f = hash_search(jq_fetched_table, &key, HASH_ENTER_NULL, &found);
	Assert(f != NULL && !found);
	memset(&f->state, 0, sizeof(*f) - offsetof(JqFetched, state));
	f->state = state;
	f->entry = ix;
	f->lane = lane;
	f->pid = pid;
	f->place = *place;
	f->nkeys = keys;
	f->has_spare = keys > (JQ_ENTRY(ix)->keylen > 0 ? 1 : 0);
	f->started_at = GetCurrentTimestamp();
	strlcpy(f->queue, l->queue, sizeof(f->queue));
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	l->nclaimed++;
	pg_atomic_fetch_add_u32(&l->nkeys, keys);
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
	bool gave_back = false;
	int n = 0;
	int tries = 0;
	bool refill;
	bool ask = false;
	int dbix;
	int lane;
	JqLane *l;

	jq_fetched_register_exit();
	*full = false;
	lane = lock_lane(queue);
	if (lane < 0)
	{
		jq_limit_give(place);
		return 0;
	}
	l = &jq_lanes[lane];
	dbix = l->dbix;
	/* a place that was given to us may be of what the queue was before */
	if (place->queue >= 0 && place->queue != l->queue_ix)
	{
		LWLockRelease(jq_lane_lock(lane));
		jq_limit_give(place);
		return 0;
	}
	while (n < max && l->nready > 0 && !jq_lane_stopped(l) &&
		   !*(volatile bool *) &jq_dbs[dbix].quiesced &&
		   tries < max + TAKE_TRIES)
	{
		JqTaken *t = &out[n];
		uint32 next = JQ_NIL;
		uint32 ix;
		JqEntry *e;
		int keys;

		tries++;
		if (!jq_limit_take(lane, place, false))
			break;
		ix = jq_lane_take_first(l);
		if (ix == JQ_NIL)
			break;
		e = JQ_ENTRY(ix);
		t->keylen = e->keylen > 0 ? jq_entry_key(ix, t->key) : 0;
		if (jq_claim_pass_over(MyDatabaseId, e->id))
		{
			/* a duplicate; whoever has it will publish it again */
			bool brought = e->flags & JQ_E_BROUGHT;

			pg_atomic_fetch_add_u64(&jq_queues[l->queue_ix].wasted, 1);
			jq_lane_drop(l, ix);
			if (t->keylen > 0)
				ask |= jq_keylock_dropped(MyDatabaseId, t->key, t->keylen,
										  brought);
			continue;
		}
		/* model: WANTS_KEY */
		keys = (t->keylen > 0 ? 1 : 0) + (e->id == l->wants_key ? 1 : 0);
		*full = !reserve_or_wait(l, keys);
		if (*full)
		{
			jq_lane_untake(l, ix);
			break;
		}
		if (t->keylen > 0)
		{
			JqKeyResult r =
				jq_keylock_take_for_claim(MyDatabaseId, t->key, t->keylen,
										  e->id, leased ? 0 : MyProcPid, lane,
										  ix, &ask, &next);

			if (r != JQ_KEY_TAKEN)
			{
				unreserve(keys);
				gave_back = true;
			}
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
		if (t->id == l->wants_key)
			l->wants_key = 0;
		insert(lane, ix, place, MyProcPid, JQ_FETCHED_TAKING, keys);
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
	/* somebody may have found it gone in between */
	if (gave_back)
		jq_fetched_tell_of_room();
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
	f = jq_fetched_find(MyDatabaseId, id);
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
	f = jq_fetched_find(MyDatabaseId, id);
	f->place = place;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
}

/* model: SPARE */
bool
jq_fetched_reserve_key(int64 id)
{
	JqFetched *f;
	int lane;
	bool ok;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	Assert(f != NULL && f->state == JQ_FETCHED_TAKING);
	lane = f->lane;
	ok = f->has_spare;
	f->has_spare = false;
	if (!ok && reserve_key(&jq_lanes[lane]))
	{
		f->nkeys++;
		pg_atomic_fetch_add_u32(&jq_lanes[lane].nkeys, 1);
		ok = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (!ok)
	{
		/* the lane stays what it is while the job is claimed */
		LWLockAcquire(jq_lane_lock(lane), LW_EXCLUSIVE);
		jq_lanes[lane].wants_key = id;
		LWLockRelease(jq_lane_lock(lane));
	}
	return ok;
}

void
jq_fetched_set_digest(int64 id, const char *digest, int len)
{
	JqFetched *f;

	Assert(len <= JQ_DIGEST_MAX);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	Assert(f != NULL && f->state == JQ_FETCHED_TAKING);
	memcpy(f->digest, digest, len);
	f->digest_len = len;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
}

void
jq_fetched_make_way(int64 id, bool with_key)
{
	char key[JQ_KEY_MAX + 1];
	int len;
	JqPlace place;
	JqFetched *f;

	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, id);
	Assert(f != NULL && f->pid == MyProcPid);
	len = with_key ? jq_entry_key(f->entry, key) : 0;
	/* once: when its claim ends, another one of this job may have the key */
	f->key_given = len > 0;
	place = f->place;
	f->place = JQ_NO_PLACE;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	if (len > 0)
		jq_keylock_release_of_claim(MyDatabaseId, key, len, id);
	jq_limit_give(&place);
	jq_limit_wake();
}

void
jq_fetched_tell_lease(TimestampTz until)
{
	int dbix = jq_dir_db(MyDatabaseId, true);

	if (dbix >= 0)
		jq_db_lease(dbix, until);
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
	bool ok = true;
	uint32 next;
	uint32 ix;
	int keys = (item->keylen > 0 ? 1 : 0) + (digest_len > 0 ? 1 : 0);
	int lane;

	if (jq_fetched_has(MyDatabaseId, item->id))
		return true;
	if (pg_atomic_fetch_add_u32(&jq_shared->nfetched, 1) >=
		(uint32) jq_fetched_max())
	{
		pg_atomic_fetch_sub_u32(&jq_shared->nfetched, 1);
		return false;
	}
	lane = lock_lane(queue);
	ix = lane < 0 ? JQ_NIL : jq_entry_new(item, lane);
	if (ix == JQ_NIL)
	{
		if (lane >= 0)
			LWLockRelease(jq_lane_lock(lane));
		unreserve(0);
		return false;
	}
	/* more than there may be, if that has been lowered: there is room for them */
	pg_atomic_fetch_add_u32(&jq_shared->fetched_keys, keys);
	/* it has a place, whatever the limit is now */
	place.queue = jq_lanes[lane].queue_ix;
	pg_atomic_fetch_add_u32(&jq_queues[place.queue].limit.running, 1);
	insert(lane, ix, &place, 0, JQ_FETCHED_HELD, keys);
	LWLockAcquire(jq_lock(JQ_LOCK_FETCHED), LW_EXCLUSIVE);
	f = jq_fetched_find(MyDatabaseId, item->id);
	f->leased = true;
	f->token = *token;
	f->leased_until = leased_until;
	f->owner = owner;
	f->attempt = attempt;
	f->enqueued_at = f->ready_at = enqueued_at;
	f->started_at = started_at;
	f->digest_len = digest_len;
	memcpy(f->digest, digest, digest_len);
	f->has_spare = false;
	LWLockRelease(jq_lock(JQ_LOCK_FETCHED));
	/* no job runs yet; sessions may have the key, or wait for it: it has it, too */
	if (item->keylen > 0)
		ok = jq_keylock_take_for_claim(MyDatabaseId, item->key, item->keylen,
									   item->id, 0, lane, JQ_NIL, &ask,
									   &next) == JQ_KEY_TAKEN;
	if (ok && digest_len > 0)
		ok = jq_keylock_take_for_claim(MyDatabaseId, digest, digest_len,
									   item->id, 0, -1, JQ_NIL, &ask,
									   &next) == JQ_KEY_TAKEN;
	LWLockRelease(jq_lane_lock(lane));
	if (!ok)
	{
		jq_fetched_end(MyDatabaseId, item->id, JQ_THEN_GONE);
		return false;
	}
	jq_fetched_tell_lease(leased_until);
	return true;
}
