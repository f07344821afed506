/*
 * explain.c
 *		jobqueue_explain(): why a job does not run yet, in one sentence.
 *
 * A list of checks, in the order in which a job meets its obstacles; the first
 * one that applies answers.  What comes first is what has to be known before all
 * else (it runs, somebody has it), then what lies in the job itself, then what
 * stops many, then keys, and last the workers.
 *
 * Reads memory and the table as they are now, whatever the transaction's
 * snapshot, and writes neither; so it works in a read-only transaction and on a
 * standby.  What it says may have changed when it is read.
 *
 * Of what belongs to roles that the caller is no member of it tells that it is
 * there, not what it is.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "claim.h"
#include "compat.h"
#include "configure.h"
#include "database.h"
#include "dependency.h"
#include "executor/spi.h"
#include "explain.h"
#include "fetched.h"
#include "fmgr.h"
#include "grant.h"
#include "guc.h"
#include "keylock.h"
#include "keylook.h"
#include "lane.h"
#include "limit.h"
#include "miscadmin.h"
#include "pausedrole.h"
#include "progress.h"
#include "publish.h"
#include "recent.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "views.h"
#include "xids.h"

#define MOST_AHEAD 10000 /* more are not counted, under the lane's lock */

char *
jq_explain_time(TimestampTz when)
{
	return DatumGetCString(
		DirectFunctionCall1(timestamptz_out, TimestampTzGetDatum(when)));
}

char *
jq_explain_span(TimestampTz now, TimestampTz then)
{
	Interval *i = palloc0(sizeof(Interval));
	int64 us = Max(then - now, 0);

	if (us >= 10 * USECS_PER_SEC)
		us -= us % USECS_PER_SEC;
	else
		us -= us % 1000;
	i->day = us / USECS_PER_DAY;
	i->time = us % USECS_PER_DAY;
	return DatumGetCString(
		DirectFunctionCall1(interval_out, IntervalPGetDatum(i)));
}

bool
jq_explain_may_see(int procno)
{
	Oid role = InvalidOid;
	int i;

	if (procno == jq_my_procno())
		return true;
	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_slots[i].state != JQ_SLOT_FREE && jq_slots[i].procno == procno)
			role = jq_groups[jq_slots[i].group].role;
	if (!OidIsValid(role))
		role = GetPGProcByNumber(procno)->roleId;
	return jq_sight_of(role) > 0;
}

/* "pid 4711", or not so much */
static char *
who(int procno, int pid)
{
	return jq_explain_may_see(procno) ? psprintf("pid %d", pid) :
										pstrdup("a process of another role");
}

/* the last error of the job, or NULL */
static char *
last_error(Datum errors)
{
	Jsonb *jb = DatumGetJsonbP(errors);
	JsonbValue *v;
	int n = JB_ROOT_COUNT(jb);

	if (!JB_ROOT_IS_ARRAY(jb) || n == 0)
		return NULL;
	v = getIthJsonbValueFromContainer(&jb->root, n - 1);
	if (v == NULL || v->type != jbvBinary ||
		!JsonContainerIsObject(v->val.binary.data))
		return NULL;
	v = getKeyJsonValueFromContainer(v->val.binary.data, "error",
									 strlen("error"), NULL);
	if (v == NULL || v->type != jbvString)
		return NULL;
	return pnstrdup(v->val.string.val, v->val.string.len);
}

/* ------------------------------------------------------- somebody has it */

static bool
enqueued_here(JqExplain *e)
{
	if (!jq_publish_is_mine(e->id))
		return false;
	/* or rescheduled, retried, ...: then it is older */
	appendStringInfo(&e->out, "%s by this transaction, which has not committed",
					 DatumGetTimestampTz(JQ_ROW(&e->row, JQ_COL_ENQUEUED_AT)) <
							 GetCurrentTransactionStartTimestamp() ?
						 "changed" :
						 "enqueued");
	return true;
}

static bool
is_running(JqExplain *e)
{
	int i;

	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *slot = &jq_slots[i];
		JqProgressInfo progress;
		JqShown s;

		if (!jq_show_slot(i, &s) || !jq_shows_job(&s, e->id))
			continue;
		if (s.id != e->id)
			appendStringInfo(&e->out,
							 "in a batch with %d others in pid %d: done, or "
							 "waiting for its turn",
							 s.nothers, s.pid);
		else if (!s.running)
			appendStringInfo(&e->out, "taken by pid %d, about to start", s.pid);
		else
		{
			appendStringInfo(&e->out,
							 "running in pid %d since %s, attempt %d of %d",
							 s.pid, jq_explain_time(s.started_at), s.attempt,
							 jq_row_max_attempts(&e->row, &e->settings));
			if (jq_progress_get(i, e->id, &progress))
				appendStringInfo(&e->out, ", %d %% done",
								 (int) floor(progress.fraction * 100 + 1e-9));
			if (*(volatile int64 *) &slot->cancel_for == e->id)
				appendStringInfoString(&e->out, ", being cancelled");
			if (slot->written_off)
				appendStringInfoString(&e->out,
									   ", and does not react to its timeout");
		}
		return true;
	}
	return false;
}

/* by an outside consumer */
static bool
is_fetched(JqExplain *e)
{
	JqFetched f;

	if (!jq_fetched_get(MyDatabaseId, e->id, &f))
		return false;
	if (f.state == JQ_FETCHED_LOST)
	{
		appendStringInfo(&e->out,
						 "lost by its consumer at %s, which is to be recorded",
						 jq_explain_time(f.since));
		return true;
	}
	if (f.leased)
		appendStringInfo(&e->out, "leased until %s",
						 jq_explain_time(f.leased_until));
	else
		appendStringInfo(&e->out, "fetched by pid %d since %s", f.pid,
						 jq_explain_time(f.started_at));
	if (f.attempt > 0)
		appendStringInfo(&e->out, ", attempt %d of %d", f.attempt,
						 jq_row_max_attempts(&e->row, &e->settings));
	if (f.cancel)
		appendStringInfoString(&e->out, ", being cancelled");
	return true;
}

static bool
is_held(JqExplain *e)
{
	JqHeld h;

	if (jq_claim_find_held(MyDatabaseId, e->id, &h))
	{
		switch (h.kind)
		{
			case JQ_HELD_SESSION:
				appendStringInfo(
					&e->out,
					"held by a transaction in %s that acts on it, since %s",
					who(h.procno, GetPGProcByNumber(h.procno)->pid),
					jq_explain_time(h.since));
				return true;
			case JQ_HELD_FAILING:
				appendStringInfo(&e->out,
								 "ended at %s (%s), which is to be recorded",
								 jq_explain_time(h.since), h.error);
				return true;
			case JQ_HELD_DOUBTFUL:
				if (TransactionIdIsValid(h.xid))
				{
					e->doubtful = true;
					e->xid = h.xid;
					break;
				}
				appendStringInfo(
					&e->out, "could not be started at %s, and is tried again",
					jq_explain_time(h.since));
				return true;
		}
	}
	if (!e->doubtful)
		return false;
	appendStringInfo(
		&e->out,
		"transaction %u, which has not ended, changes or deletes its row",
		e->xid);
	return true;
}

/* --------------------------------------------------------- the job itself */

static bool
is_standby(JqExplain *e)
{
	if (!RecoveryInProgress())
		return false;
	appendStringInfoString(&e->out,
						   "this server is a standby: jobs run on the primary");
	return true;
}

static bool
is_foreign(JqExplain *e)
{
	if (DatumGetInt64(JQ_ROW(&e->row, JQ_COL_HOME)) == e->t->home &&
		e->t->meta_database == MyDatabaseId)
		return false;
	appendStringInfoString(
		&e->out,
		"held, as it comes from another database, until jobqueue_adopt()");
	return true;
}

static bool
has_expired(JqExplain *e)
{
	TimestampTz when;

	if (JQ_ROW_NULL(&e->row, JQ_COL_EXPIRES_AT))
		return false;
	when = DatumGetTimestampTz(JQ_ROW(&e->row, JQ_COL_EXPIRES_AT));
	if (when > e->now)
		return false;
	appendStringInfo(&e->out, "expired at %s, and will be cancelled",
					 jq_explain_time(when));
	return true;
}

#define DEPS_NAMED 3

static bool
waits_for_jobs(JqExplain *e)
{
	int64 ids[DEPS_NAMED];
	int n, i;

	if (!jq_row_waits(&e->row))
		return false;
	n = jq_after_open(e->t, e->id, ids, DEPS_NAMED);
	if (n == 0)
	{
		appendStringInfoString(
			&e->out,
			"the jobs that it waited for are completed, which is about to be seen");
		return true;
	}
	if (n == 1)
		appendStringInfo(&e->out, "waits for job " INT64_FORMAT, ids[0]);
	else
		appendStringInfo(&e->out, "waits for %d jobs: ", n);
	for (i = 0; n > 1 && i < Min(n, DEPS_NAMED); i++)
		appendStringInfo(&e->out, "%s" INT64_FORMAT, i > 0 ? ", " : "", ids[i]);
	if (n > DEPS_NAMED)
		appendStringInfoString(&e->out, ", ...");
	return true;
}

static bool
is_scheduled(JqExplain *e)
{
	TimestampTz when;
	int attempt = DatumGetInt16(JQ_ROW(&e->row, JQ_COL_ATTEMPT));
	char *error = NULL;

	if (JQ_ROW_NULL(&e->row, JQ_COL_RUN_AT))
		return false;
	when = DatumGetTimestampTz(JQ_ROW(&e->row, JQ_COL_RUN_AT));
	if (when <= e->now)
		return false;
	if (when == DT_NOEND && !JQ_ROW_NULL(&e->row, JQ_COL_KIND) &&
		DatumGetChar(JQ_ROW(&e->row, JQ_COL_KIND)) == JQ_KIND_MESSAGE)
	{
		appendStringInfo(&e->out,
						 "waits until service \"%s\", which has failed, is "
						 "started again",
						 jq_row_cstring(&e->row, JQ_COL_COMMAND));
		return true;
	}
	appendStringInfo(&e->out, "due in %s, at %s", jq_explain_span(e->now, when),
					 jq_explain_time(when));
	if (attempt == 0)
		return true;
	appendStringInfo(&e->out, ", after attempt %d of %d failed", attempt,
					 jq_row_max_attempts(&e->row, &e->settings));
	if (!JQ_ROW_NULL(&e->row, JQ_COL_ERRORS))
		error = last_error(JQ_ROW(&e->row, JQ_COL_ERRORS));
	if (error != NULL)
		appendStringInfo(&e->out, ": %s", error);
	return true;
}

/* -------------------------------------------------------- what stops many */

static bool
is_switched_off(JqExplain *e)
{
	if (!jobqueue_enabled)
		appendStringInfoString(&e->out, "jobqueue.enabled is off");
	else if (jobqueue_max_workers == 0)
		appendStringInfoString(&e->out, "jobqueue.max_workers is 0");
	else if (e->dbix < 0)
		appendStringInfo(
			&e->out,
			"more databases use jobqueue than jobqueue.max_databases (%d)",
			jobqueue_max_databases);
	else if (jq_db_is_quiesced(e->dbix))
		appendStringInfoString(
			&e->out, "the database is quiesced until jobqueue_resume()");
	else if (*(volatile bool *) &jq_dbs[e->dbix].leave)
		appendStringInfoString(
			&e->out, "a statement wants the database without sessions");
	else if (*(volatile int *) &jq_shared->launcher_pid == 0)
		appendStringInfoString(&e->out, "the launcher does not run");
	else
		return false;
	return true;
}

static bool
queue_is_stopped(JqExplain *e)
{
	uint32 stopped;

	if (e->queue_ix < 0)
		return false;
	stopped = pg_atomic_read_u32(&jq_queues[e->queue_ix].stopped);
	if (stopped & JQ_STOPPED_PAUSED)
		appendStringInfo(&e->out,
						 "queue \"%s\" is paused until jobqueue_resume('%s')",
						 e->queue, e->queue);
	else if (stopped != 0)
		appendStringInfo(&e->out,
						 "the settings of queue \"%s\" are about to be read",
						 e->queue);
	else
		return false;
	return true;
}

static bool
role_is_paused(JqExplain *e)
{
	const char *role;

	if (!jq_role_is_paused(MyDatabaseId, e->owner))
		return false;
	role = GetUserNameFromId(e->owner, true);
	if (role == NULL)
		return false; /* it does not exist any more */
	appendStringInfo(&e->out,
					 "role %s is paused until jobqueue_resume_role(%s)",
					 quote_identifier(role),
					 quote_literal_cstr(quote_identifier(role)));
	return true;
}

static bool
queue_is_held_back(JqExplain *e)
{
	bool back = false;

	if (e->lane < 0)
		return false;
	LWLockAcquire(jq_lane_lock(e->lane), LW_SHARED);
	if (jq_lane_is(&jq_lanes[e->lane], MyDatabaseId, e->lane_role, e->queue))
		back = jq_lanes[e->lane].held_back > 0;
	LWLockRelease(jq_lane_lock(e->lane));
	if (back)
		appendStringInfo(&e->out,
						 "a transaction that acts on many jobs of queue "
						 "\"%s\" has not ended",
						 e->queue);
	return back;
}

/* ---- role: may it run anything here? ---- */

static bool
role_cannot_run(JqExplain *e)
{
	HeapTuple tup;
	bool login pg_attribute_unused(); /* of newer versions */
	const char *role;

	if (e->lane_role == JQ_CONSUMER_ROLE)
		return false; /* it runs nothing */
	tup = SearchSysCache1(AUTHOID, ObjectIdGetDatum(e->owner));
	if (!HeapTupleIsValid(tup))
	{
		appendStringInfo(
			&e->out,
			"role with OID %u does not exist any more; it will be dead",
			e->owner);
		return true;
	}
	login = ((Form_pg_authid) GETSTRUCT(tup))->rolcanlogin;
	ReleaseSysCache(tup);
	role = GetUserNameFromId(e->owner, true);
	if (jq_database_aclcheck(MyDatabaseId, e->owner, ACL_CONNECT) !=
		ACLCHECK_OK)
	{
		appendStringInfo(
			&e->out,
			"role \"%s\" has no CONNECT privilege on the database; it will be dead",
			role);
		return true;
	}
#ifdef JQ_NEEDS_NOBODY
	if (!login)
	{
		bool usable = false;

		tup = SearchSysCache1(AUTHNAME, CStringGetDatum("jobqueue_nobody"));
		if (HeapTupleIsValid(tup))
		{
			Form_pg_authid r = (Form_pg_authid) GETSTRUCT(tup);

			usable = r->rolcanlogin && !r->rolsuper;
			ReleaseSysCache(tup);
		}
		if (!usable)
		{
			appendStringInfo(
				&e->out,
				"role \"%s\" cannot log in, and role \"jobqueue_nobody\", as which its workers connect, does not exist or has been changed",
				role);
			return true;
		}
	}
#endif
	return false;
}

static bool
workers_do_not_start(JqExplain *e)
{
	int failed;
	TimestampTz again;

	if (e->group < 0 || e->lane_role == JQ_CONSUMER_ROLE)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
	failed = jq_groups[e->group].nfailed;
	again = jq_groups[e->group].not_before;
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	if (failed == 0)
		return false;
	appendStringInfo(
		&e->out,
		"no worker of role \"%s\" could be started, %d times in a row: see the server's log; the next try is due in %s",
		GetUserNameFromId(e->owner, true), failed,
		jq_explain_span(e->now, again));
	return true;
}

/* ", 3 ahead" */
static void
say_ahead(JqExplain *e)
{
	int ahead;

	if (e->lane < 0)
		return;
	ahead = jq_lane_ahead(e->lane, e->pos, MOST_AHEAD);
	if (ahead == 0)
		appendStringInfoString(&e->out, ", next in line");
	else
		appendStringInfo(&e->out, ", %s%d ahead",
						 ahead == MOST_AHEAD ? "at least " : "", ahead);
}

static bool
queue_is_at_limit(JqExplain *e)
{
	JqLimitInfo m;

	if (e->queue_ix < 0)
		return false;
	jq_limit_info(e->queue_ix, &m);
	if (m.max_running > 0 && m.running >= m.max_running)
		appendStringInfo(
			&e->out, "%d of %d jobs of queue \"%s\" are running (max_running)",
			m.running, m.max_running, e->queue);
	else if (m.rate > 0 && m.tokens == 0)
		appendStringInfo(&e->out,
						 "next token of queue \"%s\" in %s (rate %d per %s)",
						 e->queue, jq_explain_span(0, m.next_token_us), m.rate,
						 jq_explain_span(0, m.rate_per_us));
	else
		return false;
	say_ahead(e);
	return true;
}

/* -------------------------------------------------------------------- key */

static bool
waits_for_turn(JqExplain *e)
{
	JqKeyLook k;

	if (DatumGetInt16(JQ_ROW(&e->row, JQ_COL_CRASHES)) == 0)
		return false;
	jq_keylock_look(JQ_SUSPECT_DB, JQ_SUSPECT_KEY, strlen(JQ_SUSPECT_KEY), -1,
					e->pos, &k);
	if (k.holders == 0 || k.job == e->id)
		return false;
	appendStringInfoString(
		&e->out, "it ran when the server crashed, and such jobs take turns: ");
	if (jq_explain_may_see(k.procno))
		appendStringInfo(&e->out,
						 "waits for job " INT64_FORMAT " in pid %d since %s",
						 k.job, k.pid, jq_explain_time(k.since));
	else
		appendStringInfo(&e->out, "waits for a job of another role since %s",
						 jq_explain_time(k.since));
	return true;
}

static void
say_line(JqExplain *e, const JqKeyLook *k)
{
	if (k->ahead == 0 && !k->in_table)
		appendStringInfoString(&e->out, ", next in line");
	else
		appendStringInfo(&e->out, ", %s%d ahead",
						 k->in_table ? "at least " : "", k->ahead);
}

/* a job of the key has failed, and the queue is ordered */
static bool
keeps_order(JqExplain *e, const JqKeyLook *k)
{
	JqRow row;
	TransactionId xid;

	if (k->after == 0)
		return false;
	if (jq_row_fetch(e->t, k->after, NULL, NULL, &row, &xid, NULL) !=
			JQ_FETCH_GONE &&
		jq_sight_of(DatumGetObjectId(JQ_ROW(&row, JQ_COL_OWNER))) > 0)
		appendStringInfo(&e->out,
						 "waits for job " INT64_FORMAT
						 " of key '%s', which is to run again before it",
						 k->after, e->key);
	else
		appendStringInfo(
			&e->out,
			"waits for a job of another role with key '%s', which is to run again before it",
			e->key);
	return true;
}

/* who has fetched the job that has the key */
static void
say_consumer(JqExplain *e, const JqKeyLook *k)
{
	const char *since = jq_explain_time(k->since);
	JqFetched f;

	if (!jq_fetched_get(MyDatabaseId, k->job, &f) || jq_sight_of(f.owner) == 0)
		appendStringInfo(&e->out, "held by another role since %s", since);
	else if (f.leased)
		appendStringInfo(&e->out,
						 "held by job " INT64_FORMAT ", leased since %s",
						 k->job, since);
	else
		appendStringInfo(&e->out,
						 "held by job " INT64_FORMAT
						 ", fetched by pid %d since %s",
						 k->job, k->pid, since);
}

static bool
waits_for_key(JqExplain *e)
{
	JqKeyLook k;
	const char *since;

	if (e->key == NULL)
		return false;
	jq_keylock_look(MyDatabaseId, e->key, strlen(e->key), e->lane, e->pos, &k);
	if (!k.known && jq_keylock_full())
	{
		appendStringInfoString(&e->out, "memory has no place for another key");
		return true;
	}
	if (k.holders > 0 && k.job == e->id)
		return false;
	if (keeps_order(e, &k))
		return true;
	if (k.next_token != 0)
	{
		appendStringInfo(&e->out,
						 "next token of key '%s' in %s (key_rate %d per %s)",
						 e->key, jq_explain_span(e->now, k.next_token),
						 e->settings.key_rate,
						 jq_explain_span(0, e->settings.key_rate_per_us));
		say_line(e, &k);
		return true;
	}
	/* there is room: it is only in line if somebody stands before it */
	if (k.holders < k.limit && (k.ahead == 0 || !(k.waits || k.in_table)))
		return false;
	appendStringInfo(&e->out, "waits for key '%s', ", e->key);
	if (k.holders == 0)
		appendStringInfoString(&e->out, "which has become free");
	else if (k.holders > 1 || k.holders < k.limit)
		appendStringInfo(&e->out, "%d of %d running", k.holders,
						 Max(k.holders, k.limit));
	else
	{
		since = jq_explain_time(k.since);
		if (k.procno == JQ_CLAIM_HOLDS)
			say_consumer(e, &k);
		else if (!jq_explain_may_see(k.procno))
			appendStringInfo(&e->out, "held by another role since %s", since);
		else if (k.job != 0)
			appendStringInfo(&e->out,
							 "held by job " INT64_FORMAT " in pid %d since %s",
							 k.job, k.pid, since);
		else
			appendStringInfo(&e->out, "held by pid %d since %s", k.pid, since);
	}
	say_line(e, &k);
	return true;
}

/* ---------------------------------------------------------------- workers */

/* transaction ids are short */
static bool
waits_for_ids(JqExplain *e)
{
	bool throttled = false;
	int i;

	if (e->lane_role == JQ_CONSUMER_ROLE)
		return false;
	if (jq_xids_stopped())
	{
		appendStringInfoString(
			&e->out,
			"no job is started, as the server is short of transaction ids: VACUUM is needed");
		return true;
	}
	for (i = 0; i < jq_shared->nslots; i++)
		if (jq_slots[i].state != JQ_SLOT_FREE &&
			jq_slots[i].group == e->group && jq_slots[i].held_back)
			throttled = true;
	if (throttled)
		appendStringInfoString(
			&e->out,
			"jobs are throttled, as the server runs short of transaction ids");
	return throttled;
}

/* "ready, 3 ahead" */
static void
say_ready(JqExplain *e)
{
	int ahead = jq_lane_ahead(e->lane, e->pos, MOST_AHEAD);
	bool known = true;

	LWLockAcquire(jq_lane_lock(e->lane), LW_SHARED);
	if (jq_lane_is(&jq_lanes[e->lane], MyDatabaseId, e->lane_role, e->queue))
		known = jq_pos_cmp(e->pos, jq_lanes[e->lane].frontier) < 0;
	LWLockRelease(jq_lane_lock(e->lane));
	if (!known)
		appendStringInfo(&e->out,
						 "ready, in the table until memory has room for it, "
						 "at least %d ahead",
						 ahead);
	else if (ahead == 0)
		appendStringInfoString(&e->out, "ready, next in line");
	else
		appendStringInfo(&e->out, "ready, %s%d ahead",
						 ahead == MOST_AHEAD ? "at least " : "", ahead);
}

static bool
no_worker_is_free(JqExplain *e)
{
	int total = 0, busy = 0, idle = 0, mine = 0, of_role = 0, role_busy = 0;
	int i;

	if (e->lane < 0 || e->group < 0 || e->lane_role == JQ_CONSUMER_ROLE)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
	for (i = 0; i < jq_shared->nslots; i++)
	{
		JqSlot *s = &jq_slots[i];
		bool works = s->state == JQ_SLOT_BUSY && jq_claim_cells[i].id != 0;

		if (s->state == JQ_SLOT_FREE)
			continue;
		if (jq_groups[s->group].role == e->owner)
		{
			of_role++;
			role_busy += works;
		}
		if (s->written_off)
			continue;
		total++;
		busy += works;
		idle += s->state == JQ_SLOT_IDLE;
		mine += s->group == e->group && !works;
	}
	LWLockRelease(jq_lock(JQ_LOCK_SLOT));
	if (mine > 0)
		return false;
	if (of_role >= jq_workers_per_role() && role_busy == of_role)
		appendStringInfo(
			&e->out,
			"no worker is free: %d of %d workers of role \"%s\" are busy; ",
			role_busy, jq_workers_per_role(),
			GetUserNameFromId(e->owner, true));
	else if (total >= jobqueue_max_workers && busy == total)
		appendStringInfo(&e->out, "no worker is free: %d of %d are busy; ",
						 busy, jobqueue_max_workers);
	else if (idle == 0 && e->now - jq_shared->slots_full_at < 5 * USECS_PER_SEC)
		appendStringInfo(
			&e->out,
			"no background worker slot of the server is left (max_worker_processes = %d); ",
			max_worker_processes);
	else
		return false;
	say_ready(e);
	return true;
}

/* nothing is in its way */
static bool
is_ready(JqExplain *e)
{
	if (e->lane < 0)
	{
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
		if (jq_dbs[e->dbix].overflows > 0)
			appendStringInfo(
				&e->out,
				"memory has no place for its queue yet (jobqueue.max_lanes = %d)",
				jobqueue_max_lanes);
		else
			appendStringInfoString(&e->out,
								   "ready, and about to be found in the table");
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		return true;
	}
	say_ready(e);
	if (e->lane_role == JQ_CONSUMER_ROLE)
		appendStringInfoString(&e->out, "; it waits for a consumer");
	return true;
}

static const JqExplainCheck checks[] = {
	/* somebody has it */
	enqueued_here,
	is_running,
	is_fetched,
	is_held,
	/* the job itself */
	is_standby,
	is_foreign,
	has_expired,
	waits_for_jobs,
	is_scheduled,
	/* what stops many */
	is_switched_off,
	queue_is_stopped,
	role_is_paused,
	queue_is_held_back,
	role_cannot_run,
	queue_is_at_limit,
	/* keys */
	waits_for_turn,
	waits_for_key,
	/* workers */
	waits_for_ids,
	workers_do_not_start,
	no_worker_is_free,
	is_ready,
};

/* ------------------------------------------------------------ the question */

static void
check_sight(Oid owner, int64 id, int *sight)
{
	*sight = jq_sight_of(owner);
	if (*sight == 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for job " INT64_FORMAT, id),
			 errhint(
				 "One may see the jobs of roles whose privileges one has.")));
}

/* a job in the history; NULL: it is not there */
static char *
explain_history(JqTable *t, int64 id)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(id)};
	JqOwnerState state;
	Oid owner = InvalidOid;
	TimestampTz ended = 0;
	char *what[3]; /* state, reason, error */
	bool found;
	int sight;
	int i;

	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT owner::oid, ended_at, state, reason,"
				  " CASE state WHEN 'dead' THEN errors -> -1 ->> 'error' END"
				  " FROM %s.jobqueue_archive WHERE id = $1",
				  1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		owner = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
		ended = DatumGetTimestampTz(SPI_getbinval(tup, desc, 2, &isnull));
		for (i = 0; i < 3; i++)
		{
			what[i] = SPI_getvalue(tup, desc, 3 + i);
			if (what[i] != NULL)
				what[i] = MemoryContextStrdup(context, what[i]);
		}
	}
	jq_owner_end(&state);
	if (!found)
		return NULL;
	check_sight(owner, id, &sight);
	if (what[1] != NULL && strcmp(what[1], what[0]) == 0)
		what[1] = NULL;
	if (what[2] != NULL && what[1] != NULL && strcmp(what[1], what[2]) == 0)
		what[2] = NULL;
	return psprintf("%s %s %s%s%s%s%s", what[0],
					strcmp(what[0], "dead") == 0 ? "since" : "at",
					jq_explain_time(ended), what[1] ? ": " : "",
					what[1] ? what[1] : "", what[2] ? ": " : "",
					what[2] ? what[2] : "");
}

/* one that has ended lately; NULL: not that memory knows */
static char *
explain_recent(int64 id)
{
	int n, i;
	JqRecent *list = jq_recent_list(MyDatabaseId, &n);
	char *answer = NULL;
	int sight;

	for (i = 0; i < n && answer == NULL; i++)
	{
		JqRecent *r = &list[i];

		if (r->id != id || r->outcome == JQ_FAILED || r->outcome == JQ_SNOOZED)
			continue;
		check_sight(r->role, id, &sight);
		answer = psprintf("%s at %s", jq_outcome_name(r->outcome),
						  jq_explain_time(r->ended_at));
		if (r->pid != 0)
			answer = psprintf("%s in pid %d, attempt %d", answer, r->pid,
							  r->attempt);
		answer = psprintf("%s, and not kept", answer);
	}
	pfree(list);
	return answer;
}

static char *
explain_unknown(JqTable *t, int64 id)
{
	JqOwnerState state;
	bool given;
	bool isnull;

	jq_owner_begin(t, &state);
	jq_owner_read(t,
				  "SELECT last_value >= $1 AND is_called AND $1 > 0"
				  " FROM %s.jobqueue_job_id_seq",
				  1, (Oid[]){INT8OID}, (Datum[]){Int64GetDatum(id)}, NULL);
	given = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	if (!given)
		return psprintf("no job " INT64_FORMAT " has been enqueued yet", id);
	return psprintf("there is no job " INT64_FORMAT
					": it has ended and was not kept, was rolled back, or the "
					"transaction that enqueues it has not committed",
					id);
}

static void
look_around(JqExplain *e)
{
	JqRow *row = &e->row;
	int i;

	e->lane_role = jq_row_lane_role(row);
	e->queue = jq_row_cstring(row, JQ_COL_QUEUE);
	e->key = jq_row_cstring(row, JQ_COL_KEY);
	e->pos = jq_row_pos(row);
	e->now = GetCurrentTimestamp();
	e->dbix = jq_dir_db(MyDatabaseId, false);
	e->lane = jq_dir_lane(MyDatabaseId, e->lane_role, e->queue, false);
	e->queue_ix = e->group = -1;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	if (e->lane >= 0 &&
		!jq_lane_is(&jq_lanes[e->lane], MyDatabaseId, e->lane_role, e->queue))
		e->lane = -1; /* it was, and is another one now */
	if (e->lane >= 0)
		e->group = jq_lanes[e->lane].group;
	for (i = 0; i < jq_shared->nqueues; i++)
		if (jq_queues[i].db == MyDatabaseId &&
			strcmp(jq_queues[i].name, e->queue) == 0)
			e->queue_ix = i;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (e->lane < 0)
		jq_dir_forget();
	if (e->queue_ix >= 0)
		jq_queue_settings(e->queue_ix, &e->settings);
	else
		jq_settings_of_queue(e->t, e->queue, &e->settings);
}

PG_FUNCTION_INFO_V1(jq_explain);
Datum
jq_explain(PG_FUNCTION_ARGS)
{
	JqExplain e;
	int tries;
	size_t i;

	jq_shmem_check();
	/* it takes snapshots */
	PreventCommandIfParallelMode("jobqueue_explain()");
	memset(&e, 0, sizeof(e));
	e.t = jq_table_required();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job id must not be null"),
				 errhint("Give the id that jobqueue_enqueue() returned.")));
	e.id = PG_GETARG_INT64(0);
	/* see what this transaction has enqueued */
	CommandCounterIncrement();
	for (tries = 0;; tries++)
	{
		JqFetch f = jq_row_fetch(e.t, e.id, NULL, NULL, &e.row, &e.xid, NULL);
		char *ended;

		if (f != JQ_FETCH_GONE)
		{
			e.doubtful = f == JQ_FETCH_DOUBTFUL;
			break;
		}
		if (jq_publish_is_held(e.id))
			PG_RETURN_TEXT_P(cstring_to_text(
				"ended by this transaction, which has not committed"));
		ended = explain_history(e.t, e.id);
		if (ended == NULL)
			ended = explain_recent(e.id);
		/* it may have come back from the history in between */
		if (ended == NULL && tries > 0)
			ended = explain_unknown(e.t, e.id);
		if (ended != NULL)
			PG_RETURN_TEXT_P(cstring_to_text(ended));
	}
	e.owner = DatumGetObjectId(JQ_ROW(&e.row, JQ_COL_OWNER));
	check_sight(e.owner, e.id, &e.sight);
	initStringInfo(&e.out);
	look_around(&e);
	for (i = 0; i < lengthof(checks); i++)
		if (checks[i](&e))
			break;
	PG_RETURN_TEXT_P(cstring_to_text_with_len(e.out.data, e.out.len));
}
