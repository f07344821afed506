/*
 * views.c
 *		What the views show of memory.
 *
 * Each function copies what it needs under the locks and makes tuples after
 * their release.  Only jobs of this database are shown, and only to those who
 * may see them.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "common/hashfn.h"
#include "compat.h"
#include "database.h"
#include "dependency.h"
#include "executor/spi.h"
#include "explain.h"
#include "fetched.h"
#include "fmgr.h"
#include "funcapi.h"
#include "grant.h"
#include "jobtable.h"
#include "keylock.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "progress.h"
#include "recent.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "views.h"
#include "xids.h"

static void
put(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* text from memory, cut where it was cut there, perhaps inside a character */
static Datum
memory_text(const char *s)
{
	int len = strlen(s);

	return PointerGetDatum(
		cstring_to_text_with_len(s, pg_mbcliplen(s, len, len)));
}

/* ------------------------------------------------------------ the queues */

PG_FUNCTION_INFO_V1(jq_queue_stats);
Datum
jq_queue_stats(PG_FUNCTION_ARGS)
{
	int i;
	int64 *of_keys;
	int dbix;
	bool to_be_counted;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	dbix = jq_dir_db(MyDatabaseId, false);
	to_be_counted =
		!jq_db_is_loaded(dbix) ||
		(*(volatile uint32 *) &jq_dbs[dbix].requests & JQ_REQ_COUNT) != 0;
	of_keys = palloc0(jq_shared->nlanes * sizeof(int64));
	jq_keylock_count_spilled(MyDatabaseId, of_keys);
	for (i = 0; i < jq_shared->nqueues; i++)
	{
		JqQueue *q = &jq_queues[i];
		int64 ready = 0, blocked = 0, running = 0, spilled = 0;
		/* there may be rows of a lane that found no place */
		bool estimated = to_be_counted ||
						 pg_atomic_read_u32(&q->stopped) & JQ_STOPPED_UNSEEN;
		bool seen = jq_sight_of(InvalidOid) > 0;
		Datum values[17];
		bool nulls[17];
		uint64 minute = (uint64) (GetCurrentTimestamp() / USECS_PER_MINUTE);
		int64 age;
		double p;
		int k;

		if (q->db != MyDatabaseId)
			continue;
		for (k = 0; k < jq_shared->nlanes; k++)
		{
			JqLane *l = &jq_lanes[k];
			Oid role;

			if (l->db != MyDatabaseId || l->queue_ix != i)
				continue;
			role = l->role;
			/* jobs without a command are of all roles */
			if (role == JQ_CONSUMER_ROLE ?
					!jq_may_consume(q->name) && jq_sight_of(InvalidOid) == 0 :
					jq_sight_of(role) == 0)
				continue;
			seen = true;
			LWLockAcquire(jq_lane_lock(k), LW_SHARED);
			if (l->db == MyDatabaseId && l->role == role)
			{
				ready += l->nready;
				blocked += pg_atomic_read_u32(&l->nparked) + of_keys[k];
				running += l->nclaimed;
				if (!jq_pos_is_all(l->frontier))
				{
					spilled += l->spilled;
					estimated |= !jq_pos_is_all(l->count_pos) || l->lost_due;
				}
			}
			LWLockRelease(jq_lane_lock(k));
		}
		if (!seen)
			continue;
		memset(nulls, false, sizeof(nulls));
		values[0] = CStringGetTextDatum(q->name);
		values[1] = Int64GetDatum(ready + spilled);
		values[2] = Int64GetDatum(blocked);
		values[3] = Int64GetDatum(running);
		values[4] = Int64GetDatum(pg_atomic_read_u64(&q->held));
		values[5] = Int64GetDatum(spilled);
		values[6] = BoolGetDatum(estimated);
		values[7] = Int64GetDatum(pg_atomic_read_u64(&q->completed));
		values[8] = Int64GetDatum(pg_atomic_read_u64(&q->failed));
		/* the last full minute */
		age = (int64) (minute - pg_atomic_read_u64(&q->minute));
		values[9] =
			Int64GetDatum(age == 0 ? pg_atomic_read_u32(&q->completed_before) :
						  age == 1 ? pg_atomic_read_u32(&q->completed_now) :
									 0);
		values[10] =
			Int64GetDatum(age == 0 ? pg_atomic_read_u32(&q->failed_before) :
						  age == 1 ? pg_atomic_read_u32(&q->failed_now) :
									 0);
		for (k = 0; k < 4; k++)
		{
			p = jq_histogram_percentile(k < 2 ? q->wait_hist : q->run_hist,
										k % 2 ? 0.99 : 0.5);
			nulls[11 + k] = p < 0;
			values[11 + k] = Float8GetDatum(p);
		}
		values[15] = Int64GetDatum(pg_atomic_read_u64(&q->wasted));
		values[16] = BoolGetDatum(pg_atomic_read_u32(&q->limit.nwaiting) > 0);
		put(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

/* what only the tables know, by index */
PG_FUNCTION_INFO_V1(jq_counts);
Datum
jq_counts(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"SELECT queue, sum(scheduled)::bigint, sum(dead)::bigint, min(oldest),"
		" sum(waiting)::bigint FROM ("
		" SELECT queue, owner::oid AS owner,"
		"  count(*) FILTER (WHERE NOT " JQ_ROW_WAITS
		") AS scheduled, 0 AS dead,"
		"  NULL::timestamptz AS oldest,"
		"  count(*) FILTER (WHERE " JQ_ROW_WAITS ") AS waiting"
		"  FROM %s.jobqueue_job"
		"  WHERE run_at IS NOT NULL AND run_at > clock_timestamp()"
		"  AND home = $1 GROUP BY 1, 2"
		" UNION ALL"
		" SELECT queue, owner::oid, 0, count(*), NULL, 0 FROM %s.jobqueue_archive"
		"  WHERE state = 'dead' GROUP BY 1, 2"
		" UNION ALL"
		" SELECT queue, owner::oid, 0, 0, enqueued_at, 0 FROM %s.jobqueue_job"
		"  WHERE id = ANY($2)) x"
		" WHERE $3 OR owner = ANY($4) GROUP BY queue";
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	JqTable *t = jq_table_required();
	Oid types[4] = {INT8OID, INT8ARRAYOID, BOOLOID, OIDARRAYOID};
	Datum values[4];
	Datum *heads;
	Datum *roles;
	int n = 0, nroles = 0;
	JqOwnerState state;
	uint64 i;
	int k;
	bool all = jq_sight_of(InvalidOid) > 0;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	heads = palloc(jq_shared->nlanes * sizeof(Datum));
	for (k = 0; k < jq_shared->nlanes; k++)
	{
		if (jq_lanes[k].db != MyDatabaseId)
			continue;
		LWLockAcquire(jq_lane_lock(k), LW_SHARED);
		if (jq_lanes[k].db == MyDatabaseId && jq_lanes[k].head[0] != JQ_NIL)
			heads[n++] = Int64GetDatum(JQ_ENTRY(jq_lanes[k].head[0])->id);
		LWLockRelease(jq_lane_lock(k));
	}
	roles = palloc((jq_shared->nlanes + 1) * sizeof(Datum));
	roles[nroles++] = ObjectIdGetDatum(GetUserId());
	for (k = 0; k < jq_shared->nlanes && !all; k++)
		if (jq_lanes[k].db == MyDatabaseId && jq_sight_of(jq_lanes[k].role) > 0)
			roles[nroles++] = ObjectIdGetDatum(jq_lanes[k].role);
	/* in a copy of another database all is held */
	values[0] =
		Int64GetDatum(t->meta_database == MyDatabaseId ? t->home : t->home + 1);
	values[1] = PointerGetDatum(
		construct_array(heads, n, INT8OID, 8, true, TYPALIGN_DOUBLE));
	values[2] = BoolGetDatum(all);
	values[3] = PointerGetDatum(
		construct_array(roles, nroles, OIDOID, 4, true, TYPALIGN_INT));
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 4, types, values, NULL);
	for (i = 0; i < SPI_processed; i++)
	{
		Datum v[5];
		bool nulls[5];

		for (k = 0; k < 5; k++)
			v[k] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
								 k + 1, &nulls[k]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, nulls);
	}
	jq_owner_end(&state);
	return (Datum) 0;
}

/* ----------------------------------------------------------- running jobs */

bool
jq_show_slot(int i, JqShown *out)
{
	JqSlot *s = &jq_slots[i];
	int lane = *(volatile int *) &s->claim_lane;
	bool ok = false;
	int tries;
	int k;

	if (lane < 0)
		return false;
	LWLockAcquire(jq_lane_lock(lane), LW_SHARED);
	if (s->claim_lane == lane && jq_lanes[lane].db == MyDatabaseId)
	{
		out->id = jq_claim_cells[i].id;
		out->role = jq_lanes[lane].role;
		out->pid = s->pid;
		strlcpy(out->queue, jq_lanes[lane].queue, sizeof(out->queue));
		memcpy(out->key, s->claim_key, s->claim_keylen);
		out->key[s->claim_keylen] = '\0';
		out->running = s->claim_state == JQ_CLAIM_RUNNING;
		out->nothers = jq_claim_cells[i].nothers;
		for (k = 0; k < out->nothers; k++)
			out->others[k] = JQ_OTHERS(i)[k].id;
		ok = true;
	}
	LWLockRelease(jq_lane_lock(lane));
	for (tries = 0; ok && tries < 1000; tries++)
	{
		uint32 before = s->changecount;

		pg_read_barrier();
		out->attempt = s->attempt;
		out->started_at = s->started_at;
		memcpy(out->command, s->command, sizeof(out->command));
		pg_read_barrier();
		if (before == s->changecount && !(before & 1))
			break;
	}
	out->command[JQ_COMMAND_SHOWN - 1] = '\0';
	return ok;
}

bool
jq_shows_job(const JqShown *s, int64 id)
{
	bool shows = s->id == id;
	int k;

	for (k = 0; k < s->nothers; k++)
		if (s->others[k] == id)
			shows = true;
	return shows;
}

/* those that outside consumers have fetched */
static void
show_fetched(FunctionCallInfo fcinfo)
{
	int n, i;
	JqFetched *list = jq_fetched_list(MyDatabaseId, &n);

	for (i = 0; i < n; i++)
	{
		JqFetched *f = &list[i];
		char key[JQ_KEY_MAX + 1];
		Datum values[11];
		bool nulls[11];

		if (f->state == JQ_FETCHED_LOST ||
			(jq_sight_of(f->owner) == 0 && f->pid != MyProcPid))
			continue;
		memset(nulls, false, sizeof(nulls));
		values[0] = Int64GetDatum(f->id);
		values[1] = CStringGetTextDatum(f->queue);
		/* not known before its row has been looked at */
		nulls[2] = !OidIsValid(f->owner);
		values[2] = ObjectIdGetDatum(f->owner);
		nulls[3] = jq_fetched_key(MyDatabaseId, f->id, key) == 0;
		values[3] = memory_text(key);
		nulls[4] = f->leased || f->pid == 0;
		values[4] = Int32GetDatum(f->pid);
		nulls[5] = f->attempt == 0;
		values[5] = Int32GetDatum(f->attempt);
		values[6] = TimestampTzGetDatum(f->started_at);
		nulls[7] = nulls[8] = nulls[9] = true;
		nulls[10] = !f->leased;
		values[10] = TimestampTzGetDatum(f->leased_until);
		put(fcinfo, values, nulls);
	}
	pfree(list);
}

PG_FUNCTION_INFO_V1(jq_running_jobs);
Datum
jq_running_jobs(PG_FUNCTION_ARGS)
{
	int i;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	show_fetched(fcinfo);
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqShown s;
		JqProgressInfo progress;
		Datum values[11];
		bool nulls[11];
		int sight;
		int k;

		if (!jq_show_slot(i, &s) || (sight = jq_sight_of(s.role)) == 0)
			continue;
		memset(nulls, false, sizeof(nulls));
		values[0] = Int64GetDatum(s.id);
		values[1] = CStringGetTextDatum(s.queue);
		values[2] = ObjectIdGetDatum(s.role);
		nulls[3] = s.key[0] == '\0';
		values[3] = memory_text(s.key);
		values[4] = Int32GetDatum(s.pid);
		/* taken, but not begun: nothing to say yet */
		nulls[5] = nulls[6] = nulls[7] = !s.running;
		values[5] = Int32GetDatum(s.attempt);
		values[6] = TimestampTzGetDatum(s.started_at);
		values[7] = memory_text(s.command);
		nulls[8] = nulls[9] = nulls[10] = true;
		if (s.running && jq_progress_get(i, s.id, &progress))
		{
			values[8] = Float8GetDatum(progress.fraction);
			values[9] = memory_text(progress.message);
			nulls[8] = false;
			nulls[9] = progress.message[0] == '\0' || sight < 2;
		}
		put(fcinfo, values, nulls);
		/* those that share its transaction: done, or waiting for their turn */
		nulls[3] = nulls[5] = nulls[6] = nulls[7] = true;
		nulls[8] = nulls[9] = true;
		for (k = 0; k < s.nothers; k++)
		{
			values[0] = Int64GetDatum(s.others[k]);
			put(fcinfo, values, nulls);
		}
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(jq_blocked_jobs);
Datum
jq_blocked_jobs(PG_FUNCTION_ARGS)
{
	int64 *ids;
	Oid *roles;
	Oid role = InvalidOid;
	bool seen = false;
	int64 last = 0;
	JqKeyInfo *keys;
	int n, i;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	ids = jq_keylock_parked(MyDatabaseId, &roles, &n);
	for (i = 0; i < n; i++)
	{
		Datum values[4] = {Int64GetDatum(ids[i])};
		bool nulls[4] = {false, true, true, true};

		if (i == 0 || roles[i] != role)
		{
			role = roles[i];
			seen = jq_sight_of(role) > 0;
		}
		/* one whose row has moved may wait once for each lane, side by side */
		if (seen && ids[i] != last)
		{
			put(fcinfo, values, nulls);
			last = ids[i];
		}
	}
	pfree(ids);
	pfree(roles);
	/* of a spilled key, all from here on; its text may be of other roles */
	keys = jq_keylock_list(MyDatabaseId, &n);
	for (i = 0; i < n; i++)
	{
		Datum values[4] = {0};
		bool nulls[4] = {true, false, false, false};

		if (!keys[i].spilled || !keys[i].first)
			continue;
		values[1] = hash_any_extended((unsigned char *) keys[i].key,
									  strlen(keys[i].key), 0);
		values[2] = Int32GetDatum(keys[i].frontier.priority);
		values[3] = Int64GetDatum(keys[i].frontier.id);
		put(fcinfo, values, nulls);
	}
	pfree(keys);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(jq_recent_jobs);
Datum
jq_recent_jobs(PG_FUNCTION_ARGS)
{
	JqRecent *list;
	int n, i;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	list = jq_recent_list(MyDatabaseId, &n);
	for (i = 0; i < n; i++)
	{
		JqRecent *r = &list[i];
		int sight = jq_sight_of(r->role);
		Datum values[12];
		bool nulls[12];
		Datum text;

		if (sight == 0)
			continue;
		memset(nulls, false, sizeof(nulls));
		text = PointerGetDatum(cstring_to_text_with_len(r->text, r->textlen));
		values[0] = Int64GetDatum(r->id);
		values[1] = CStringGetTextDatum(r->queue);
		values[2] = ObjectIdGetDatum(r->role);
		values[3] = CStringGetTextDatum(jq_outcome_name(r->outcome));
		values[4] = Int32GetDatum(r->attempt);
		nulls[5] = r->enqueued_at == 0;
		values[5] = TimestampTzGetDatum(r->enqueued_at);
		nulls[6] = r->started_at == 0;
		values[6] = TimestampTzGetDatum(r->started_at);
		values[7] = TimestampTzGetDatum(r->ended_at);
		nulls[8] = r->pid == 0;
		values[8] = Int32GetDatum(r->pid);
		nulls[9] = r->lsn == InvalidXLogRecPtr;
		values[9] = LSNGetDatum(r->lsn);
		nulls[10] = r->is_error || r->textlen == 0 || sight < 2;
		values[10] = text;
		nulls[11] = !r->is_error;
		values[11] = text;
		put(fcinfo, values, nulls);
	}
	pfree(list);
	return (Datum) 0;
}

/* a key is seen by who may see the job, or the session, that holds it */
static bool
may_see_key(const JqKeyInfo *k)
{
	JqFetched fetched;

	if (k->procno == JQ_CLAIM_HOLDS)
		return k->pid == MyProcPid ||
			   (jq_fetched_get(MyDatabaseId, k->job, &fetched) &&
				jq_sight_of(fetched.owner) > 0);
	return k->pid != 0 && jq_explain_may_see(k->procno);
}

PG_FUNCTION_INFO_V1(jq_held_keys);
Datum
jq_held_keys(PG_FUNCTION_ARGS)
{
	JqKeyInfo *list;
	int n, i;
	bool all = jq_sight_of(InvalidOid) > 0;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	list = jq_keylock_list(MyDatabaseId, &n);
	for (i = 0; i < n; i++)
	{
		JqKeyInfo *k = &list[i];
		Datum values[5];
		bool nulls[5];

		if (!all && !may_see_key(k))
			continue;
		memset(nulls, false, sizeof(nulls));
		values[0] = memory_text(k->key);
		/* what is leased is held by no process */
		nulls[1] = k->pid == 0;
		nulls[2] = k->job == 0;
		nulls[3] = k->pid == 0 && k->job == 0;
		values[1] = Int32GetDatum(k->pid);
		values[2] = Int64GetDatum(k->job);
		values[3] = TimestampTzGetDatum(k->since);
		values[4] = Int64GetDatum(k->waiting);
		put(fcinfo, values, nulls);
	}
	pfree(list);
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(jq_processes);
Datum
jq_processes(PG_FUNCTION_ARGS)
{
	int dbix;
	int i;

	jq_shmem_check();
	InitMaterializedSRF(fcinfo, 0);
	dbix = jq_dir_db(MyDatabaseId, false);
	for (i = -2; i < jq_shared->nslots; i++)
	{
		Datum values[8];
		bool nulls[8];
		const char *state = NULL;
		JqShown shown;

		memset(nulls, true, sizeof(nulls));
		if (i == -2)
		{
			int pid = *(volatile int *) &jq_shared->launcher_pid;

			if (pid == 0 || jq_sight_of(InvalidOid) == 0)
				continue;
			values[0] = Int32GetDatum(pid);
			values[1] = CStringGetTextDatum("launcher");
			nulls[0] = nulls[1] = false;
			put(fcinfo, values, nulls);
			continue;
		}
		if (i == -1)
		{
			int pid = 0;

			if (dbix < 0 || jq_sight_of(InvalidOid) == 0)
				continue;
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
			pid = jq_dbs[dbix].sched_pid;
			LWLockRelease(jq_lock(JQ_LOCK_DB));
			if (pid == 0)
				continue;
			values[0] = Int32GetDatum(pid);
			values[1] = CStringGetTextDatum("scheduler");
			nulls[0] = nulls[1] = false;
			put(fcinfo, values, nulls);
			continue;
		}
		{
			JqSlot s;
			Oid db, role;

			LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
			s = jq_slots[i];
			db = jq_groups[s.group].db;
			role = jq_groups[s.group].role;
			LWLockRelease(jq_lock(JQ_LOCK_SLOT));
			if (s.state == JQ_SLOT_FREE || s.pid == 0 || db != MyDatabaseId ||
				jq_sight_of(role) == 0)
				continue;
			switch (s.state)
			{
				case JQ_SLOT_STARTING:
					state = "starting";
					break;
				case JQ_SLOT_IDLE:
					state = "idle";
					break;
				default:
					state = s.written_off			  ? "stuck" :
							jq_claim_cells[i].id != 0 ? "running" :
							s.held_back ? jq_xids_state_name(s.held_back) :
										  "busy";
			}
			values[0] = Int32GetDatum(s.pid);
			values[1] = CStringGetTextDatum("worker");
			values[2] = ObjectIdGetDatum(role);
			values[3] = CStringGetTextDatum(state);
			nulls[0] = nulls[1] = nulls[2] = nulls[3] = false;
			if (jq_show_slot(i, &shown) && shown.pid == s.pid)
			{
				values[4] = Int64GetDatum(shown.id);
				values[5] = CStringGetTextDatum(shown.queue);
				nulls[4] = nulls[5] = false;
			}
			values[6] = TimestampTzGetDatum(s.launched);
			values[7] = Int64GetDatum(s.jobs);
			nulls[6] = nulls[7] = false;
			put(fcinfo, values, nulls);
		}
	}
	return (Datum) 0;
}
