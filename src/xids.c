/*
 * xids.c
 *		Back-pressure on transaction ids.
 *
 * Every job uses at least one transaction id.  At full speed the server would
 * come to its end of them within an hour or two, if vacuum does not keep up or
 * something holds it back.  Two of the server's own marks count: at xidVacLimit
 * it begins to force autovacuum, at xidWarnLimit to warn.
 *
 *		plenty		up to the middle between the two: nothing is done
 *		throttled	beyond it: all workers together use at most a 3600th of the
 *					ids that are left to xidWarnLimit in a second, so that there
 *					always is an hour left
 *		stopped		from xidWarnLimit on: no job is started
 *
 * The workers share one account.  Each counts the ids that it uses, those of
 * subtransactions, of COMMIT in a procedure and of failure records included, and
 * after a few of them moves the moment up to which all are paid for by as long as
 * they may take; then it waits for that moment.  So nobody needs to know how many
 * workers there are, and those that use little wait little.
 *
 * What goes on when jobs are stopped: jobs that run end as ever, the failure of
 * one is recorded; schedulers do what they do, which is bounded as no job starts;
 * clients enqueue and cancel, with ids of their own.  From xidWarnLimit the server
 * has 37 million ids for that, and for the vacuum, before it refuses commands.
 */
#include "postgres.h"

#include "access/transam.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "xids.h"

#define SECONDS_LEFT 3600	  /* what is left lasts so long, or longer */
#define LOOK_IDS 500		  /* looks: after so many ids ... */
#define LOOK_MS 100			  /* ... or so long */
#define GROUPS_PER_SECOND 100 /* throttled: how often somebody pays */
#define CREDIT_MS 50		  /* unused time that still counts */
#define DEBT_MS 60000		  /* nobody waits longer, whatever a job has used */
#define LOOK_AGAIN_MS 1000	  /* while waiting */
#define ANNOUNCE_MS (5 * 60 * 1000)

typedef struct JqXids
{
	pg_atomic_uint64 paid_until; /* TimestampTz */
	pg_atomic_uint32 announced;	 /* state that was last written to the log */
	pg_atomic_uint64 announced_at[JQ_XIDS_STOPPED + 1]; /* TimestampTz */
} JqXids;

typedef struct Limits
{
	JqXidState state;
	int32 left;	 /* to xidWarnLimit */
	uint32 wrap; /* to xidWrapLimit */
	Oid oldest_db;
} Limits;

static JqXids *xids;

uint64 jq_xids_used;
uint64 jq_xids_look_at;
TimestampTz jq_xids_look_time;

static uint64 paid;			   /* of jq_xids_used */
static TimestampTz wait_until; /* when what was paid is over */
static bool waiting;		   /* ... and it has not been, at the last look */

Size
jq_xids_size(void)
{
	return MAXALIGN(sizeof(JqXids));
}

void
jq_xids_init(void)
{
	bool found;
	int i;

	xids = ShmemInitStruct("jobqueue transaction ids", sizeof(JqXids), &found);
	if (found)
		return;
	pg_atomic_init_u64(&xids->paid_until, 0);
	pg_atomic_init_u32(&xids->announced, JQ_XIDS_PLENTY);
	for (i = 0; i <= JQ_XIDS_STOPPED; i++)
		pg_atomic_init_u64(&xids->announced_at[i], 0);
}

const char *
jq_xids_state_name(JqXidState state)
{
	switch (state)
	{
		case JQ_XIDS_PLENTY:
			break;
		case JQ_XIDS_THROTTLED:
			return "throttled";
		case JQ_XIDS_STOPPED:
			return "stopped: transaction ids";
	}
	return NULL;
}

/* --------------------------------------------------------------- counting */

static void
count_xact(XactEvent event, void *arg)
{
	(void) arg;
	if ((event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT) &&
		TransactionIdIsValid(GetTopTransactionIdIfAny()))
		jq_xids_used++;
}

static void
count_subxact(SubXactEvent event, SubTransactionId my, SubTransactionId parent,
			  void *arg)
{
	(void) my;
	(void) parent;
	(void) arg;
	if ((event == SUBXACT_EVENT_COMMIT_SUB ||
		 event == SUBXACT_EVENT_ABORT_SUB) &&
		TransactionIdIsValid(GetCurrentTransactionIdIfAny()))
		jq_xids_used++;
}

void
jq_xids_attach(void)
{
	RegisterXactCallback(count_xact, NULL);
	RegisterSubXactCallback(count_subxact, NULL);
}

/* ----------------------------------------------------------------- limits */

static void
read_limits(Limits *l)
{
	TransactionId next, vac, warn, wrap;

	LWLockAcquire(XidGenLock, LW_SHARED);
	next = XidFromFullTransactionId(jq_transam->nextXid);
	vac = jq_transam->xidVacLimit;
	warn = jq_transam->xidWarnLimit;
	wrap = jq_transam->xidWrapLimit;
	l->oldest_db = jq_transam->oldestXidDB;
	LWLockRelease(XidGenLock);

	/* distances on a circle */
	l->left = (int32) (warn - next);
	l->wrap = wrap - next;
	l->state = l->left <= 0						   ? JQ_XIDS_STOPPED :
			   (uint32) l->left < (warn - vac) / 2 ? JQ_XIDS_THROTTLED :
													 JQ_XIDS_PLENTY;
}

bool
jq_xids_stopped(void)
{
	Limits l;

	read_limits(&l);
	return l.state == JQ_XIDS_STOPPED;
}

static uint32
ids_per_second(const Limits *l)
{
	return Max(l->left / SECONDS_LEFT, 1);
}

/* --------------------------------------------------------------- announce */

static char *
database_name(Oid db)
{
	MemoryContext context = CurrentMemoryContext;
	char *volatile name = NULL;

	PG_TRY();
	{
		char *found;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		found = get_database_name(db);
		if (found != NULL)
			name = MemoryContextStrdup(context, found);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		/* a message without the name is better than none */
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		AbortCurrentTransaction();
		QueryCancelPending = false;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return name != NULL ? psprintf("\"%s\"", name) :
						  psprintf("with OID %u", db);
}

static void
announce(const Limits *l)
{
	uint32 was = pg_atomic_read_u32(&xids->announced);
	MemoryContext context;
	MemoryContext old;
	TimestampTz now;
	TimestampTz last;
	const char *db;

	if (was == (uint32) l->state)
		return;
	now = GetCurrentTimestamp();
	last = (TimestampTz) pg_atomic_read_u64(&xids->announced_at[l->state]);
	if (last != 0 && now >= last &&
		now < TimestampTzPlusMilliseconds(last, ANNOUNCE_MS))
		return;
	/* one of the workers */
	if (!pg_atomic_compare_exchange_u32(&xids->announced, &was, l->state))
		return;
	pg_atomic_write_u64(&xids->announced_at[l->state], (uint64) now);

	context =
		AllocSetContextCreate(CurrentMemoryContext, "jobqueue transaction ids",
							  ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	db = database_name(l->oldest_db);
	switch (l->state)
	{
		case JQ_XIDS_PLENTY:
			ereport(
				LOG,
				(errmsg(
					"there are enough transaction IDs again: jobs run at full speed")));
			break;
		case JQ_XIDS_THROTTLED:
			ereport(
				WARNING,
				(errmsg("transaction IDs run short: jobs are throttled"),
				 errdetail(
					 "%d transaction IDs are left before no more jobs are started, because of database %s. Jobs now use at most %u of them a second.",
					 l->left, db, ids_per_second(l)),
				 errhint(
					 "Execute a database-wide VACUUM in that database.\n"
					 "You might also need to commit or roll back old prepared transactions, or drop stale replication slots.\n"
					 "Many small jobs in one transaction (setting \"batch\" of a queue) use fewer IDs.")));
			break;
		case JQ_XIDS_STOPPED:
			ereport(
				WARNING,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction IDs run short: no more jobs are started"),
				 errdetail(
					 "Database %s must be vacuumed within %u transactions. Jobs wait until it has been, and can be enqueued.",
					 db, l->wrap),
				 errhint(
					 "Execute a database-wide VACUUM in that database, in a session and not as a job.\n"
					 "You might also need to commit or roll back old prepared transactions, or drop stale replication slots.")));
			break;
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ------------------------------------------------------------------- look */

/* the moment up to which all that was used is paid for */
static TimestampTz
pay(int64 cost, TimestampTz now)
{
	uint64 old = pg_atomic_read_u64(&xids->paid_until);
	TimestampTz until;

	do
	{
		until = Max((TimestampTz) old,
					TimestampTzPlusMilliseconds(now, -CREDIT_MS)) +
				cost;
		/* a step of the clock ends here, too */
		until = Min(until, TimestampTzPlusMilliseconds(now, DEBT_MS));
	} while (!pg_atomic_compare_exchange_u64(&xids->paid_until, &old,
											 (uint64) until));
	return until;
}

long
jq_xids_look(JqXidState *state)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64 used = jq_xids_used - paid;
	uint32 group = LOOK_IDS;
	Limits l;

	paid = jq_xids_used;
	read_limits(&l);
	announce(&l);
	*state = l.state;
	switch (l.state)
	{
		case JQ_XIDS_PLENTY:
			waiting = false;
			break;
		case JQ_XIDS_THROTTLED:
			/* one who comes anew stands in line as if he had paid nothing */
			if (used > 0 || !waiting)
				wait_until =
					pay((int64) (used * USECS_PER_SEC / ids_per_second(&l)),
						now);
			wait_until =
				Min(wait_until, TimestampTzPlusMilliseconds(now, DEBT_MS));
			waiting = wait_until > now;
			if (waiting)
			{
				jq_xids_set_due();
				return Min(TimestampDifferenceMilliseconds(now, wait_until),
						   LOOK_AGAIN_MS);
			}
			group = ids_per_second(&l) / GROUPS_PER_SECOND;
			group = Max(Min(group, LOOK_IDS), 1);
			break;
		case JQ_XIDS_STOPPED:
			jq_xids_set_due();
			return LOOK_AGAIN_MS;
	}
	jq_xids_look_at = jq_xids_used + group;
	jq_xids_look_time = TimestampTzPlusMilliseconds(now, LOOK_MS);
	return 0;
}
