/*
 * fetchxact.c
 *		A journal of what the transaction does to claims of outside consumers.
 *
 * One step for each job that is fetched, and one for each claim that is to end
 * or to be extended, with the nesting level of its subtransaction.  An abort
 * undoes the steps of its level from the last one back, the commit carries them
 * out; both when the locks of the transaction have been released, as publish.c
 * does, so that whoever gets the key next finds nothing of this transaction in his
 * way.  Nothing there can fail: the steps and their texts have been allocated
 * before.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "after.h"
#include "afterlocks.h"
#include "consumer.h"
#include "database.h"
#include "fetchxact.h"
#include "lane.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pause.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

typedef enum StepKind
{
	STEP_TAKE,
	STEP_PIN /* and what it is to become, once that is said */
} StepKind;

typedef struct Step
{
	int64 id;
	StepKind kind;
	int nest;
	JqFetchedFate was;
	bool decided;
	JqFetchEnd how;
	TimestampTz at;
	char *text;
	int len;
} Step;

/* in TopTransactionContext */
static Step *steps;
static int nsteps, maxsteps;
static bool ended;	   /* done when the locks are released ... */
static bool sub_ended; /* ... and for a subtransaction that was rolled back */
static bool ending;	   /* end_digests has been called */

static void
forget(void)
{
	steps = NULL;
	nsteps = maxsteps = 0;
	ended = sub_ended = ending = false;
}

static void
undo(Step *s)
{
	if (s->kind == STEP_TAKE)
		jq_fetched_end(MyDatabaseId, s->id, JQ_THEN_LANE);
	else
		jq_fetched_undo(s->id, s->was);
}

static void
undo_from(int nest)
{
	while (nsteps > 0 && steps[nsteps - 1].nest >= nest)
		undo(&steps[--nsteps]);
}

/* ------------------------------------------------------------ at commit */

static void
note_end(const Step *s, const JqFetched *f, JqOutcome outcome)
{
	JqRecent r;

	memset(&r, 0, offsetof(JqRecent, text));
	r.id = f->id;
	r.db = f->db;
	r.role = f->owner;
	r.outcome = outcome;
	r.attempt = f->attempt;
	r.pid = MyProcPid;
	r.enqueued_at = f->enqueued_at;
	r.started_at = f->started_at;
	r.ended_at = GetCurrentTransactionStopTimestamp();
	if (outcome == JQ_COMPLETED)
		r.lsn = XactLastCommitEnd;
	strlcpy(r.queue, f->queue, sizeof(r.queue));
	r.is_error = outcome != JQ_COMPLETED;
	jq_recent_add(&r, s->text, s->len);
	if (outcome != JQ_CANCELLED)
		jq_queue_count(jq_lanes[f->lane].queue_ix, outcome == JQ_COMPLETED,
					   f->ready_at, f->started_at, r.ended_at);
}

static void
carry_out(const Step *s)
{
	JqFetched f;
	bool later;

	if (s->kind == STEP_TAKE)
	{
		jq_fetched_keep(s->id);
		return;
	}
	if (!s->decided || !jq_fetched_get(MyDatabaseId, s->id, &f))
		return;
	switch (s->how)
	{
		case JQ_FETCH_EXTENDED:
			jq_fetched_extended(s->id, s->at);
			return;
		case JQ_FETCH_COMPLETED:
			note_end(s, &f, JQ_COMPLETED);
			break;
		case JQ_FETCH_RETRY:
			note_end(s, &f, JQ_FAILED);
			break;
		case JQ_FETCH_DEAD:
			note_end(s, &f, JQ_DEAD);
			break;
		case JQ_FETCH_CANCELLED:
			note_end(s, &f, JQ_CANCELLED);
			break;
		case JQ_FETCH_RELEASED:
		case JQ_FETCH_LATER:
			break;
	}
	later = s->how == JQ_FETCH_RETRY || s->how == JQ_FETCH_LATER;
	jq_fetched_end(MyDatabaseId, s->id,
				   s->how == JQ_FETCH_RELEASED ? JQ_THEN_LANE :
				   later					   ? JQ_THEN_TABLE :
												 JQ_THEN_GONE);
	if (later)
	{
		int dbix = jq_dir_db(MyDatabaseId, true);

		/* what is claimed would be passed over when it is due */
		if (dbix >= 0)
			jq_db_due(dbix, s->at);
	}
}

/*
 * The unique_keys of jobs that this transaction ends, or gives back: whoever meets
 * one from now on waits for the end of the commit.  model: ENDING_LATER
 */
static void
end_digests(bool ends)
{
	int i;

	ending = ends;
	for (i = 0; i < nsteps; i++)
		if (steps[i].decided && steps[i].how != JQ_FETCH_EXTENDED)
			jq_fetched_ending(steps[i].id, ends);
}

static void
xact_callback(XactEvent event, void *arg)
{
	(void) arg;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			ended = nsteps > 0;
			if (!ended)
				forget();
			break;
		case XACT_EVENT_ABORT:
			jq_consumer_leave();
			ended = true;
			if (nsteps > 0)
				JQ_PAUSE("fetch-before-locks");
			break;
		case XACT_EVENT_PRE_COMMIT:
			end_digests(true);
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (nsteps > 0)
				ereport(
					ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg(
						 "cannot PREPARE a transaction that has fetched or ended jobs"),
					 errhint("Commit it.")));
			break;
		case XACT_EVENT_PREPARE:
			forget(); /* the memory of a fetch that found nothing goes, too */
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int nest = GetCurrentTransactionNestLevel();
	int i;

	(void) mine;
	(void) parent;
	(void) arg;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		jq_consumer_leave();
		sub_ended = true;
		if (nsteps > 0)
			JQ_PAUSE("fetch-before-locks");
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		for (i = nsteps - 1; i >= 0 && steps[i].nest >= nest; i--)
			steps[i].nest = nest - 1;
}

static void
after_locks(bool commit, bool top)
{
	int i;

	if (!top)
	{
		if (sub_ended)
			undo_from(GetCurrentTransactionNestLevel());
		sub_ended = false;
		return;
	}
	if (!ended)
		return;
	if (commit)
	{
		JQ_PAUSE("fetch-before-carry-out");
		for (i = 0; i < nsteps; i++)
			carry_out(&steps[i]);
	}
	else
	{
		if (ending)
			end_digests(false);
		undo_from(0);
	}
	forget();
}

/* ---------------------------------------------------------------- journal */

void
jq_fetchxact_reserve(int n)
{
	static bool registered;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		jq_after_locks(JQ_AFTER_LOCKS_FETCHED, after_locks);
		registered = true;
	}
	if (nsteps + n <= maxsteps)
		return;
	if (steps == NULL)
	{
		maxsteps = Max(n, 16);
		steps = MemoryContextAllocHuge(TopTransactionContext,
									   maxsteps * sizeof(Step));
	}
	else
	{
		int max = Max(2 * maxsteps, nsteps + n);

		steps = repalloc_huge(steps, max * sizeof(Step));
		maxsteps = max;
	}
}

static Step *
add_step(int64 id, StepKind kind)
{
	Step *s = &steps[nsteps];

	Assert(nsteps < maxsteps);
	memset(s, 0, sizeof(*s));
	s->id = id;
	s->kind = kind;
	s->nest = GetCurrentTransactionNestLevel();
	nsteps++;
	return s;
}

void
jq_fetchxact_taken(int64 id)
{
	(void) add_step(id, STEP_TAKE);
}

bool
jq_fetchxact_drop(int64 id, JqFetchedThen then)
{
	int i;

	for (i = nsteps - 1; i >= 0; i--)
		if (steps[i].id == id && steps[i].kind == STEP_TAKE)
			break;
	Assert(i >= 0);
	memmove(&steps[i], &steps[i + 1], (nsteps - i - 1) * sizeof(Step));
	nsteps--;
	return jq_fetched_end(MyDatabaseId, id, then);
}

void
jq_fetch_cancelled(int64 id)
{
	ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
					errmsg("job " INT64_FORMAT " was cancelled", id),
					errhint("Roll back what was done for it.")));
}

static void
refuse(int64 id, JqPinned pinned, const JqFetched *f)
{
	/* this session has given it up, by DISCARD ALL; that is to be recorded */
	if (pinned == JQ_PIN_LOST && !f->leased)
		pinned = JQ_PIN_NONE;
	switch (pinned)
	{
		case JQ_PIN_NONE:
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " is not fetched", id),
				 errhint(
					 "Its claim has ended, or jobqueue_fetch() has not returned it.")));
			break;
		case JQ_PIN_OTHER:
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " is fetched by another session",
						id),
				 errhint(
					 "Give a lease to jobqueue_fetch() if another session is to complete what it returns.")));
			break;
		case JQ_PIN_TOKEN:
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " is leased with another token",
						id),
				 errhint(
					 "Give the token that jobqueue_fetch() returned with the job; if it is that one, its lease has ended, and the job was fetched again.")));
			break;
		case JQ_PIN_NO_LEASE:
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("job " INT64_FORMAT " has no lease", id),
							errhint("It is this session's until it ends.")));
			break;
		case JQ_PIN_BUSY:
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another transaction has to do with job " INT64_FORMAT,
						id),
				 errdetail("It is that of the session with PID %d.",
						   f->fate != JQ_FATE_NONE ? f->fate_pid : f->pid)));
			break;
		case JQ_PIN_ENDED:
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("the claim on job " INT64_FORMAT
								   " has been given up in this transaction",
								   id)));
			break;
		case JQ_PIN_CANCELLED:
			/* whoever is told has it no more */
			(void) jq_fetched_lose(MyDatabaseId, id, JQ_LOSS_CANCEL);
			jq_fetch_cancelled(id);
			break;
		case JQ_PIN_LOST:
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the lease of job " INT64_FORMAT " has ended", id),
				 errhint(
					 "Fetch with a longer lease, or call jobqueue_extend() in time.")));
			break;
		case JQ_PIN_OK:
			break;
	}
}

void
jq_fetchxact_pin(int64 id, const pg_uuid_t *token, bool extend, JqFetched *f)
{
	JqFetchedFate was;
	JqPinned pinned;

	jq_fetchxact_reserve(1);
	pinned = jq_fetched_pin(id, token, extend ? JQ_FATE_EXTEND : JQ_FATE_END, f,
							&was);
	if (pinned != JQ_PIN_OK)
		refuse(id, pinned, f);
	add_step(id, STEP_PIN)->was = was;
}

void
jq_fetchxact_end(int64 id, JqFetchEnd how, TimestampTz at, const char *text)
{
	Step *s = NULL;
	int i;

	for (i = nsteps - 1; i >= 0 && s == NULL; i--)
		if (steps[i].id == id && steps[i].kind == STEP_PIN)
			s = &steps[i];
	Assert(s != NULL && !s->decided);
	if (text != NULL)
	{
		s->len = strlen(text);
		s->text = jq_recent_copy(TopTransactionContext, text, s->len);
	}
	s->decided = true;
	s->how = how;
	s->at = at;
}
