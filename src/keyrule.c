/*
 * keyrule.c
 *		Who may have a key now.
 *
 * A key may have several holders: a job may start if with it there are no more
 * than its own queue's key_limit and those of all holders allow.  Besides, in a
 * queue with key_rate its bucket must have a token (keyrate.c), and in an ordered
 * queue no job before it may have failed and wait to run again (keyorder.c).
 *
 * Order.  Nobody has the key before somebody of his lane who stands before him,
 * or before one of another lane who waits only for holders to go: else a job
 * that wants the key for itself would wait for ever among those that share it.
 * What waits for a token, for a job to be run again, or in a lane that is stopped
 * or at a limit of its queue, keeps nobody but its own lane waiting.
 *
 * Turn.  When a waiter that others had to stand behind may have the key at last,
 * it is given a while in which nobody who stands behind it gets it; its lane may
 * have to wake a worker first.  If it does not come (its worker may be busy), the
 * others go on.
 *
 * A session that waits (keywait.c) stands in the same line and wants the key for
 * itself: nobody behind it passes it.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "keytable.h"
#include "lane.h"

uint32
jq_key_queue_hash(const char *queue)
{
	uint32 h = hash_bytes((const unsigned char *) queue, strlen(queue));

	return h == 0 ? 1 : h;
}

void
jq_key_rules(const JqKey *k, uint32 hash, int lane, JqKeyRules *r)
{
	JqQueueSettings s;

	memset(r, 0, sizeof(*r));
	r->limit = 1;
	/* those that may have crashed the server run one by one, at any rate */
	if (k->tag.db == JQ_SUSPECT_DB || lane < 0)
		return;
	jq_queue_settings(jq_lanes[lane].queue_ix, &s);
	r->limit = s.key_limit;
	r->ordered = s.ordered;
	if (jq_key_is_service(k->tag.text, (int) k->tag.len))
	{
		r->limit = 1;
		r->ordered = true;
	}
	if (r->ordered)
		r->queue = jq_key_queue_hash(jq_lanes[lane].queue);
	r->limited = s.key_rate > 0;
	if (r->limited)
		jq_keyrate_bucket(&r->bucket, hash % JQ_KEY_PARTITIONS, k->tag.db,
						  jq_lanes[lane].queue, k->tag.text, (int) k->tag.len,
						  s.key_rate, s.key_rate_per_us);
}

JqKeyClosed
jq_key_closed(JqKey *k, const JqKeyRules *r, JqPos pos, TimestampTz now,
			  TimestampTz *until)
{
	JqKeyOrder *o;

	*until = DT_NOEND;
	if (k->pusher >= 0)
		return JQ_KEY_PUSHED;
	if (r->ordered && (o = jq_key_order_of(k, r->queue, pos)) != NULL)
	{
		*until = o->until;
		return JQ_KEY_ORDER;
	}
	if (r->limited)
	{
		*until = jq_keyrate_next(&r->bucket, now);
		if (*until > now)
			return JQ_KEY_NO_TOKEN;
		*until = DT_NOEND;
	}
	if (k->turn_ends != 0 && jq_pos_cmp(pos, k->turn) > 0)
	{
		if (k->turn_ends > now)
		{
			*until = k->turn_ends;
			return JQ_KEY_TURN;
		}
		k->turn_ends = 0;
	}
	/* last: who waits for nothing else keeps others waiting;
	 * model: SHARED_LIMIT */
	if (k->nholders > 0 && k->nholders >= Min(r->limit, k->limit))
		return JQ_KEY_LIMIT;
	return JQ_KEY_OPEN;
}

/* does it only wait for holders to go? */
static bool
wants_place(JqKey *k, uint32 hash, uint32 ix, TimestampTz now)
{
	JqKeyRules r;
	TimestampTz until;
	int lane = JQ_ENTRY(ix)->lane;

	if (k->nholders == 0 || jq_lane_waits(&jq_lanes[lane]))
		return false;
	jq_key_rules(k, hash, lane, &r);
	return jq_key_closed(k, &r, JQ_ENTRY_POS(ix), now, &until) == JQ_KEY_LIMIT;
}

bool
jq_key_behind(JqKey *k, uint32 hash, int lane, JqPos pos, TimestampTz now)
{
	int32 last_lane = -1;
	uint32 ix;

	if (jq_key_session_before(k, pos))
		return true;
	for (ix = k->first; ix != JQ_NIL && jq_pos_cmp(JQ_ENTRY_POS(ix), pos) < 0;
		 ix = JQ_ENTRY(ix)->next[0])
	{
		if (JQ_ENTRY(ix)->lane == lane)
			return true;
		/* the first of each lane says it for all of it, nearly always */
		if (JQ_ENTRY(ix)->lane == last_lane)
			continue;
		last_lane = JQ_ENTRY(ix)->lane;
		if (wants_place(k, hash, ix, now))
		{
			k->passed = true;
			return true;
		}
	}
	return false;
}

/* take the entry out of the waiters; prev: the one before it, or JQ_NIL */
static void
unlink_waiter(JqKey *k, uint32 ix, uint32 prev)
{
	uint32 *link = prev == JQ_NIL ? &k->first : &JQ_ENTRY(prev)->next[0];

	Assert(*link == ix);
	*link = JQ_ENTRY(ix)->next[0];
	if (k->last == ix)
		k->last = prev;
	JQ_ENTRY(ix)->next[0] = JQ_NIL;
	k->nwaiting--;
}

#define SEEN_LANES 16

uint32
jq_key_unpark(JqKey *k, uint32 hash, bool all, TimestampTz now,
			  TimestampTz *until)
{
	uint32 chain = JQ_NIL;
	uint32 *end = &chain;
	uint32 prev = JQ_NIL;
	uint32 ix;
	uint32 next;
	int32 seen[SEEN_LANES];
	int nseen = 0;
	bool wanted = false; /* one that was seen only wants a place */
	bool served = k->first_session < 0;
	bool runs = false; /* one that was unparked may go on to run */

	*until = DT_NOEND;
	if (!served && jq_key_session_due(k, now))
	{
		jq_key_session_serve(k, false, now, until);
		served = wanted = true;
	}
	for (ix = k->first; ix != JQ_NIL; ix = next)
	{
		int lane = JQ_ENTRY(ix)->lane;
		bool take = all;
		int i;

		next = JQ_ENTRY(ix)->next[0];
		if (!served && jq_key_session_before(k, JQ_ENTRY_POS(ix)))
		{
			jq_key_session_serve(k, runs, now, until);
			served = wanted = true; /* others come after it */
		}
		for (i = 0; i < nseen && seen[i] != lane; i++)
			;
		if (!all && i == nseen && nseen < SEEN_LANES)
		{
			JqKeyRules r;
			TimestampTz when;
			JqKeyClosed closed;

			seen[nseen++] = lane;
			jq_key_rules(k, hash, lane, &r);
			closed = jq_key_closed(k, &r, JQ_ENTRY_POS(ix), now, &when);
			*until = Min(*until, when);
			take = closed == JQ_KEY_OPEN && !wanted;
			if (closed == JQ_KEY_OPEN && wanted)
				k->passed = true;
			if (closed == JQ_KEY_LIMIT && !jq_lane_waits(&jq_lanes[lane]))
				wanted = true;
		}
		if (take)
		{
			unlink_waiter(k, ix, prev);
			runs |= !jq_lane_waits(&jq_lanes[lane]);
			if (!all)
				JQ_ENTRY(ix)->flags |= JQ_E_UNPARKED;
			*end = ix;
			end = &JQ_ENTRY(ix)->next[0];
			if (k->passed && !all && !wanted && !jq_lane_waits(&jq_lanes[lane]))
			{
				/* the others have let it go first */
				k->passed = false;
				k->turn = JQ_ENTRY_POS(ix);
				k->turn_ends = now + JQ_KEY_TURN_US;
			}
		}
		else
			prev = ix;
		if (k->one_lane && !all)
			break;
	}
	if (!served)
		jq_key_session_serve(k, runs, now, until);
	return chain;
}

/* model: UNPARK_NEXT */
uint32
jq_key_unpark_next(JqKey *k, uint32 hash, int lane, TimestampTz now,
				   TimestampTz *until)
{
	uint32 prev = JQ_NIL;
	uint32 ix;
	JqKeyRules r;

	*until = DT_NOEND;
	for (ix = k->first; ix != JQ_NIL && JQ_ENTRY(ix)->lane != lane;
		 ix = JQ_ENTRY(ix)->next[0])
		prev = ix;
	if (ix == JQ_NIL)
		return JQ_NIL;
	jq_key_rules(k, hash, lane, &r);
	if (jq_key_closed(k, &r, JQ_ENTRY_POS(ix), now, until) != JQ_KEY_OPEN ||
		jq_key_behind(k, hash, lane, JQ_ENTRY_POS(ix), now))
		return JQ_NIL;
	unlink_waiter(k, ix, prev);
	JQ_ENTRY(ix)->flags |= JQ_E_UNPARKED;
	return ix;
}
