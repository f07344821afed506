/*
 * keyorder.c
 *		Ordered queues: a job that failed keeps its place before later ones.
 *
 * The table says which jobs those are: rows with attempts, or crashes, behind
 * them, which have an index of their own (jobqueue_job_tried).  A worker that has
 * taken a job of an ordered queue, and its key, looks there before the job
 * starts; nothing has to be remembered for that, over restarts or otherwise.
 *
 * What memory adds is where to wait.  If there is such a row, the worker notes
 * its place in the key, as an "order", and gives the job back; from then on later
 * jobs of the queue are parked on the key.  The order goes
 *
 *		when the job that it is of has ended or been changed: the worker that
 *		ran it, or the session that cancelled or rescheduled it, says so
 *		when the moment is over at which that job was to run again, and a little
 *		more: then somebody looks again
 *
 * and the waiters go on, to look at the table.  So an order is a hint, but for
 * one moment: from the end of a failing job until its failure is in the table,
 * when the key is free already.  That order is noted before the key is let go,
 * and has no end but the record of the failure.  So is the one of a job that could
 * not be started, until the scheduler has looked at it and published it again.
 *
 * Memory has room for so many keys.  When half of it is taken, a job that has to
 * wait for another one does so in the table: it is put off until that one is to
 * run again, a minute at most, and marked ("keeps_order"), since later ones have to
 * wait for it, too.  Then it does not notice when the other one ends before.
 *
 * Jobs that are running already when one of their key fails go on.
 */
#include "postgres.h"

#include "claim.h"
#include "keytable.h"
#include "keywake.h"
#include "lane.h"
#include "utils/timestamp.h"

/* the failed job is due then; it may have to wait for a worker, too */
#define LATER_US (5 * USECS_PER_SEC)
/* there was no room to tell queues apart */
#define CROWDED_US USECS_PER_SEC
/* the one that a job waits for in the table may have ended meanwhile */
#define MAX_PUT_OFF_US USECS_PER_MINUTE

TimestampTz
jq_keylock_order_put_off(TimestampTz run_at)
{
	TimestampTz now = GetCurrentTimestamp();

	return Min(Max(run_at, now + CROWDED_US), now + MAX_PUT_OFF_US);
}

static JqKeyOrder *
order_at(JqKey *k, int i)
{
	uint32 ix = k->more_orders;
	int at;

	if (i < KEY_ORDERS)
		return &k->orders[i];
	for (at = k->norders - 1; at > i; at--)
		ix = JQ_ORDER(ix)->next;
	return JQ_ORDER(ix);
}

JqKeyOrder *
jq_key_order_of(JqKey *k, uint32 queue, JqPos pos)
{
	int i;

	for (i = 0; i < k->norders; i++)
	{
		JqKeyOrder *o = order_at(k, i);

		if ((o->queue == queue || o->queue == 0) && jq_pos_cmp(o->pos, pos) < 0)
			return o;
	}
	return NULL;
}

/* room for one more, whose fields are not set; NULL: there is none */
static JqKeyOrder *
add_order(JqKey *k, bool pool)
{
	if (k->norders >= KEY_ORDERS)
	{
		uint32 ix = pool ? jq_pool_take() : JQ_NIL;

		if (ix == JQ_NIL)
			return NULL;
		JQ_ORDER(ix)->next = k->more_orders;
		k->more_orders = ix;
	}
	pg_atomic_fetch_add_u32(&jq_shared->key_orders, 1);
	return order_at(k, k->norders++);
}

static void
set_order(JqKeyOrder *o, uint32 queue, JqPos pos, TimestampTz until,
		  uint64 number)
{
	o->queue = queue;
	o->pos = pos;
	o->until = until;
	o->number = number;
}

/* the last one takes its place */
static void
drop_order(JqKey *k, int i)
{
	JqKeyOrder *o = order_at(k, i);
	JqKeyOrder *last = order_at(k, k->norders - 1);

	set_order(o, last->queue, last->pos, last->until, last->number);
	if (--k->norders >= KEY_ORDERS)
	{
		uint32 ix = k->more_orders;

		k->more_orders = JQ_ORDER(ix)->next;
		jq_pool_give_back(ix);
	}
	pg_atomic_fetch_sub_u32(&jq_shared->key_orders, 1);
}

void
jq_key_order_expire(JqKey *k, uint32 hash, TimestampTz now)
{
	int i;

	for (i = k->norders - 1; i >= 0; i--)
		if (order_at(k, i)->until <= now)
			drop_order(k, i);
		else
			jq_key_wake_by(k, hash, order_at(k, i)->until);
}

bool
jq_key_order_clear(JqKey *k, int64 job, uint64 upto)
{
	bool done = false;
	int i;

	for (i = k->norders - 1; i >= 0; i--)
		if (order_at(k, i)->pos.id == job &&
			(order_at(k, i)->number <= upto ||
			 order_at(k, i)->until != DT_NOEND))
		{
			drop_order(k, i);
			done = true;
		}
	return done;
}

/* one that can be found in the table; NULL: there is none */
static JqKeyOrder *
order_in_table(JqKey *k)
{
	int i;

	for (i = 0; i < k->norders; i++)
		if (order_at(k, i)->until != DT_NOEND)
			return order_at(k, i);
	return NULL;
}

/*
 * Of the same job, the last one counts.  Those whose failure is to be recorded, or
 * that could not be started, each have their own, in the pool if need be; of others
 * a key has few, and what there is no room for is merged into one: all look at the
 * table soon.
 */
static void
note_order(JqKey *k, uint32 hash, uint32 queue, JqPos pos, TimestampTz until)
{
	uint64 number = pg_atomic_add_fetch_u64(&jq_shared->order_number, 1);
	JqKeyOrder *o = NULL;
	int i;

	for (i = 0; i < k->norders && o == NULL; i++)
		if (order_at(k, i)->queue == queue && order_at(k, i)->pos.id == pos.id)
			o = order_at(k, i);
	if (o == NULL)
	{
		JqKeyOrder *other = order_in_table(k);

		o = add_order(k, until == DT_NOEND || other == NULL);
		if (o == NULL && other != NULL && until == DT_NOEND)
		{
			/* it gives way; whoever waited for it finds it in the table */
			o = other;
			jq_key_wake_by(k, hash, GetCurrentTimestamp());
		}
		else if (o == NULL)
		{
			/* none of them is in the table: memory is full of other things */
			if (other == NULL)
				other = order_at(k, 0);
			o = other;
			queue = 0;
			if (jq_pos_cmp(o->pos, pos) < 0)
			{
				/* it is cleared as what it was */
				pos = o->pos;
				number = o->number;
			}
			/* one that has an end would take the place of another's end */
			if (o->until != DT_NOEND || until != DT_NOEND)
				until = GetCurrentTimestamp() + CROWDED_US;
		}
	}
	set_order(o, queue, pos, until, number);
	jq_key_wake_by(k, hash, until);
}

void
jq_keylock_order_begin(Oid db, const char *key, int len, const char *queue,
					   JqPos pos, TimestampTz run_at)
{
	uint32 hash;
	JqKey *k = jq_key_find(db, key, len, &hash);

	/* we hold it, so it is there */
	if (k != NULL)
		note_order(k, hash, jq_key_queue_hash(queue), pos,
				   run_at == DT_NOEND ?
					   DT_NOEND :
					   Max(run_at, GetCurrentTimestamp()) + LATER_US);
	LWLockRelease(jq_key_partition(hash));
	jq_key_wake_tell();
}

void
jq_keylock_order_recorded(Oid db, const char *key, int len, int64 job,
						  uint64 upto)
{
	JqKey *k;
	uint32 hash;
	JqKeyTag tag;
	bool advance;

	if (pg_atomic_read_u32(&jq_shared->key_orders) == 0)
		return;
	k = jq_key_find(db, key, len, &hash);
	/* whoever waits looks at the table, and notes what is there */
	advance = k != NULL && jq_key_order_clear(k, job, upto);
	if (advance)
		tag = k->tag;
	LWLockRelease(jq_key_partition(hash));
	if (advance)
		jq_key_advance(&tag);
}

uint64
jq_keylock_order_number(void)
{
	return pg_atomic_read_u64(&jq_shared->order_number);
}

/* of whatever key: it is not known */
void
jq_keylock_order_recorded_job(Oid db, int64 job, uint64 upto)
{
	HASH_SEQ_STATUS seq;
	JqKey *k;

	if (pg_atomic_read_u32(&jq_shared->key_orders) == 0)
		return;
	jq_key_lock_all(LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
		if (k->tag.db == db && jq_key_order_clear(k, job, upto))
			jq_key_wake_by(k, jq_key_hash_of(&k->tag), GetCurrentTimestamp());
	jq_key_unlock_all();
	jq_key_wake_tell();
}

void
jq_keylock_order_forget(Oid db, bool all)
{
	HASH_SEQ_STATUS seq;
	JqKey *k;

	if (pg_atomic_read_u32(&jq_shared->key_orders) == 0)
		return;
	jq_key_lock_all(LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		int i;

		if (k->tag.db != db)
			continue;
		for (i = k->norders - 1; i >= 0; i--)
			if (all || order_at(k, i)->until != DT_NOEND)
				drop_order(k, i);
		jq_key_wake_by(k, jq_key_hash_of(&k->tag), GetCurrentTimestamp());
	}
	jq_key_unlock_all();
	jq_key_wake_tell();
}

/* the settings of a queue have changed: what waits may be free to go;
 * model: SET_LOOK */
void
jq_keylock_settings_changed(Oid db)
{
	HASH_SEQ_STATUS seq;
	JqKey *k;

	jq_key_lock_all(LW_EXCLUSIVE);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
		if (k->tag.db == db)
		{
			uint32 hash = jq_key_hash_of(&k->tag);

			jq_key_renew_limits(k, hash);
			if (k->first != JQ_NIL || k->spilled)
				jq_key_wake_by(k, hash, GetCurrentTimestamp());
		}
	jq_key_unlock_all();
	jq_key_wake_tell();
}
