/*
 * fetchlook.c
 *		The look at the row of a job that a consumer has taken.
 *
 * As a worker does before it starts a job: is the row still there, at home, what
 * the entry said, not expired; has it to wait for another one of its key in an
 * ordered queue, or another of its unique_key?  What is not to be given to the
 * consumer is let go here, or ends in his transaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "after.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "comeback.h"
#include "conflict.h"
#include "database.h"
#include "executor/spi.h"
#include "fetch.h"
#include "fetchxact.h"
#include "jobscan.h"
#include "keylock.h"
#include "miscadmin.h"
#include "pause.h"
#include "pausedrole.h"
#include "publish.h"
#include "queue.h"
#include "utils/timestamp.h"

TimestampTz
jq_fetch_ready_at(const JqRow *row)
{
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
		return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
	if (!JQ_ROW_NULL(row, JQ_COL_AFTER_RUN_AT))
		return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_AFTER_RUN_AT));
	return DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT));
}

/* whose it is, though it is not given to anybody */
static void
describe(const JqTaken *job, const JqRow *row)
{
	jq_fetched_describe(job->id, DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER)), 0,
						DatumGetTimestampTz(JQ_ROW(row, JQ_COL_ENQUEUED_AT)),
						jq_fetch_ready_at(row), NULL, 0);
}

/*
 * It may be fetched when that transaction has ended, or in a while; order: later
 * ones of its key do not pass it, if they have an order.
 */
static void
hold_doubtful(const JqTaken *job, const JqRow *row, const char *queue,
			  TransactionId xid, bool order, bool soon)
{
	JqQueueSettings s;
	bool noted;

	jq_queue_settings(jq_lanes[job->lane].queue_ix, &s);
	order = order && s.ordered && job->keylen > 0;
	if (order)
		jq_keylock_order_begin(MyDatabaseId, job->key, job->keylen, queue,
							   job->pos, DT_NOEND);
	/* without room to note it, its turn comes again; a cancel of it is not
	 * forgotten with the claim */
	noted = jq_claim_hold_doubtful(MyDatabaseId, JQ_CONSUMER_ROLE, queue,
								   job->id, xid, soon);
	if (order && !noted)
		jq_keylock_order_recorded(MyDatabaseId, job->key, job->keylen, job->id,
								  PG_UINT64_MAX);
	describe(job, row);
	jq_fetchxact_drop(job->id, noted ? JQ_THEN_TABLE : JQ_THEN_LANE);
	if (noted)
		jq_db_request(jq_lanes[job->lane].dbix, JQ_REQ_FAILED);
}

/* it waits for the job before it in the table, not in memory */
static void
put_off(JqTable *t, const JqTaken *job, TimestampTz until)
{
	Oid types[2] = {INT8OID, TIMESTAMPTZOID};
	Datum values[2];
	JqOwnerState state;
	JqFetched f;

	jq_fetchxact_pin(job->id, NULL, false, &f);
	values[0] = Int64GetDatum(job->id);
	values[1] = TimestampTzGetDatum(until);
	jq_owner_begin(t, &state);
	jq_owner_execute(t,
					 "UPDATE %s.jobqueue_job SET run_at = $2,"
					 " keeps_order = true WHERE id = $1",
					 2, types, values, NULL);
	jq_owner_end(&state);
	jq_fetchxact_end(job->id, JQ_FETCH_LATER, until, NULL);
}

/*
 * Has the job to wait for another one of its key that failed?  As a worker does
 * it: then the key knows, and the job is parked when its turn comes again.
 */
static JqLook
look_at_order(JqTable *t, const JqTaken *job, const char *queue)
{
	JqQueueSettings s;
	JqPos pos, again;
	TimestampTz run_at;

	jq_queue_settings(jq_lanes[job->lane].queue_ix, &s);
	if (!s.ordered || job->keylen == 0)
		return JQ_LOOK_GIVE;
	while (jq_row_tried_before(t, queue, job->key, job->keylen, job->pos, &pos,
							   &run_at))
	{
		if (jq_keylock_crowded())
		{
			put_off(t, job, jq_keylock_order_put_off(run_at));
			return JQ_LOOK_ENDS;
		}
		jq_keylock_order_begin(MyDatabaseId, job->key, job->keylen, queue, pos,
							   run_at);
		JQ_PAUSE("order-noted");
		/* it may have ended before the key knew of it: nobody would say so */
		if (jq_row_tried_before(t, queue, job->key, job->keylen, job->pos,
								&again, &run_at) &&
			jq_pos_cmp(again, pos) == 0)
		{
			jq_fetchxact_drop(job->id, JQ_THEN_LANE);
			return JQ_LOOK_DROPPED;
		}
		jq_keylock_order_recorded(MyDatabaseId, job->key, job->keylen, pos.id,
								  PG_UINT64_MAX);
	}
	return JQ_LOOK_GIVE;
}

/* another job has its unique_key: as its on_conflict says */
static void
end_refused(JqTable *t, const JqTaken *job, const JqRow *row,
			const JqRefusal *refusal)
{
	JqFetched f;

	describe(job, row);
	jq_fetchxact_pin(job->id, NULL, false, &f);
	switch (jq_unique_refuse(t, job->id, refusal))
	{
		case JQ_REFUSED_GONE:
			jq_fetchxact_end(job->id, JQ_FETCH_RELEASED, 0, NULL);
			break;
		case JQ_REFUSED_CANCELLED:
			jq_fetchxact_end(job->id, JQ_FETCH_CANCELLED, 0, refusal->reason);
			break;
		case JQ_REFUSED_DEAD:
			jq_fetchxact_end(job->id, JQ_FETCH_DEAD, 0, refusal->reason);
			break;
		case JQ_REFUSED_LATER:
			jq_fetchxact_end(job->id, JQ_FETCH_LATER, refusal->run_at, NULL);
			break;
	}
}

/* may it start, as far as its unique_key is concerned? */
static JqLook
look_at_unique(JqTable *t, const JqTaken *job, const char *queue,
			   const JqRow *row, bool leased)
{
	JqRefusal refusal;

	if (JQ_ROW_NULL(row, JQ_COL_UNIQUE_KEY))
		return JQ_LOOK_GIVE;
	switch (jq_unique_start_fetched(t, row, leased, &refusal))
	{
		case JQ_UNIQUE_GO:
		case JQ_UNIQUE_AGAIN:
			return JQ_LOOK_GIVE;
		case JQ_UNIQUE_LATER:
			hold_doubtful(job, row, queue, InvalidTransactionId, true, false);
			break;
		case JQ_UNIQUE_SOON:
			hold_doubtful(job, row, queue, InvalidTransactionId, true, true);
			break;
		case JQ_UNIQUE_FULL:
			jq_fetchxact_drop(job->id, JQ_THEN_LANE);
			return JQ_LOOK_FULL;
		case JQ_UNIQUE_REFUSED:
			end_refused(t, job, row, &refusal);
			return JQ_LOOK_ENDS;
	}
	return JQ_LOOK_DROPPED;
}

/* it stays in the table; when its role is resumed the lane is read anew */
static bool
is_of_paused_role(JqTable *t, const JqTaken *job, JqRow *row)
{
	Oid owner = DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER));

	if (!jq_role_is_paused(MyDatabaseId, owner))
		return false;
	JQ_PAUSE("fetch-role-paused");
	jq_fetchxact_drop(job->id, JQ_THEN_TABLE);
	/* resumed meanwhile: the row was out when the lane was read */
	if (!jq_role_is_paused(MyDatabaseId, owner))
		jq_publish_found(t, row);
	return true;
}

/*
 * It does not start, and its transaction may last: others are not to wait for
 * that.  One of them may be what it has to wait for.  But in an ordered queue
 * none of its key may pass it, should it come back.
 */
static void
make_way(const JqTaken *job)
{
	JqQueueSettings s;

	jq_queue_settings(jq_lanes[job->lane].queue_ix, &s);
	jq_fetched_make_way(job->id, !s.ordered);
}

JqLook
jq_fetch_look(JqTable *t, const JqTaken *job, bool leased, JqRow *row)
{
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int dbix = jq_lanes[job->lane].dbix;
	TransactionId xid = InvalidTransactionId;
	TimestampTz run_at;
	JqItem item;
	JqLook look;
	ItemPointerData tid = job->tid;

	/* the lane stays what it is while the job is claimed */
	strlcpy(queue, jq_lanes[job->lane].queue, sizeof(queue));
	switch (jq_row_fetch(t, job->id, &tid, NULL, row, &xid, NULL))
	{
		case JQ_FETCH_GONE:
			pg_atomic_fetch_add_u64(
				&jq_queues[jq_lanes[job->lane].queue_ix].wasted, 1);
			JQ_PAUSE("fetch-found-none");
			jq_look_prepare(t);
			HOLD_INTERRUPTS();
			jq_after_ended(dbix, job->id);
			if (jq_fetchxact_drop(job->id, JQ_THEN_TABLE))
				jq_look_again(t, job->id, false);
			RESUME_INTERRUPTS();
			return JQ_LOOK_DROPPED;
		case JQ_FETCH_DOUBTFUL:
			hold_doubtful(job, row, queue, xid, false, false);
			return JQ_LOOK_DROPPED;
		case JQ_FETCH_FOUND:
			break;
	}
	if (DatumGetInt64(JQ_ROW(row, JQ_COL_HOME)) != t->home ||
		t->meta_database != MyDatabaseId)
	{
		jq_fetchxact_drop(job->id,
						  JQ_THEN_TABLE); /* held: adopt publishes it */
		return JQ_LOOK_DROPPED;
	}
	if (is_of_paused_role(t, job, row))
		return JQ_LOOK_DROPPED;
	if (!jq_row_is(row, JQ_CONSUMER_ROLE, jq_lanes[job->lane].queue,
				   job->pos.priority, job->key, job->keylen, &item, &run_at))
	{
		jq_fetchxact_drop(job->id, JQ_THEN_TABLE);
		jq_publish_now(MyDatabaseId, jq_row_lane_role(row),
					   jq_row_cstring(row, JQ_COL_QUEUE), &item, run_at);
		return JQ_LOOK_DROPPED;
	}
	if (!JQ_ROW_NULL(row, JQ_COL_EXPIRES_AT) &&
		DatumGetTimestampTz(JQ_ROW(row, JQ_COL_EXPIRES_AT)) <=
			GetCurrentTimestamp())
	{
		/* the scheduler ends it */
		jq_fetchxact_drop(job->id, JQ_THEN_TABLE);
		jq_db_expiry(dbix,
					 Max(DatumGetTimestampTz(JQ_ROW(row, JQ_COL_EXPIRES_AT)),
						 DT_NOBEGIN + 1));
		return JQ_LOOK_DROPPED;
	}
	look = look_at_order(t, job, queue);
	if (look == JQ_LOOK_GIVE)
		look = look_at_unique(t, job, queue, row, leased);
	if (look == JQ_LOOK_ENDS)
		make_way(job);
	return look;
}
