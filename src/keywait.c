/*
 * keywait.c
 *		Sessions that wait for keys.
 *
 * A job that cannot have its key is an entry that is parked; a session is a
 * process that sleeps.  It stands in line among the parked jobs, at the place of
 * a job of priority 0 that was enqueued when it asked, and others of that place
 * in order of their arrival.
 *
 * A session wants the key for itself.  Whoever stands behind it does not pass
 * it, not even to join holders that are there.  When the last holder has gone and
 * it is first, it is handed the key, in the section in which the holder leaves:
 * it is alive, and asleep.
 *
 * If jobs stand before it that may go, they are put back into their lanes, as
 * always, and have JQ_KEY_TURN_US to take the key, from the moment when it became free;
 * jobs that the table alone has do so, too.  They may lack a worker.  Then the
 * session has it.  Jobs that wait for something else, too, keep it waiting no
 * longer than anybody else.
 *
 * A session that comes in that time stands behind them, too, though they do not
 * wait for the key any more ("unparked").  For that the key stays in the table
 * when nobody else waits; only where sessions have used keys of late.
 *
 *		none    -> in line	: jq_keywait_begin
 *		in line -> given	: jq_key_session_serve, by whoever looks at the key
 *		in line -> none		: jq_key_session_leave: gives up, error, exit
 *		given   -> none		: jq_keywait_given, it is held from now on; or
 *							  jq_key_session_leave, which gives it back
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "fetched.h"
#include "keytable.h"
#include "keywait.h"
#include "lane.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
#include "worker.h"

#define USED_US 1000000 /* so long after a session used a key, others may */

typedef enum JqWaitState
{
	JQ_WAIT_NONE,
	JQ_WAIT_IN_LINE,
	JQ_WAIT_GIVEN
} JqWaitState;

/*
 * What a process waits for, by its number.  All under the lock of the partition
 * of hash; its process alone makes it wait.
 *
 * After an error, in whatever subtransaction, jq_keywait_leave is called by who
 * waits; when the process ends, by jq_keylock_release_all in its exit hook; after
 * kill -9 there is no memory left.  Nothing is allocated.  Nobody waits outside of
 * a statement, so at PREPARE and COMMIT there is nothing here.
 */
typedef struct JqKeyWait
{
	JqWaitState state;
	int pid;
	uint32 hash;
	JqKeyTag tag;
	JqPos pos;
	TimestampTz since;
	int next; /* in line for the key; -1 = last */
} JqKeyWait;

static JqKeyWait *waits;

/*
 * How many keys sessions have locked; without a lock.  A process adds to its
 * number first, then looks whether the role has too many.
 */
typedef struct JqKeyNumbers
{
	pg_atomic_uint64 used;	/* TimestampTz: when a session last locked or
							 * unlocked one, or a little before */
	pg_atomic_uint32 total; /* of all processes */
	struct
	{
		pg_atomic_uint32 n; /* the process alone changes its own */
		Oid role;			/* whose keys they are, if n > 0 */
	} of[FLEXIBLE_ARRAY_MEMBER];
} JqKeyNumbers;

static JqKeyNumbers *numbers;

/* up to where holders of keys of a partition had committed; its lock */
static XLogRecPtr *commits;

static int given_procno = -1; /* to be woken */

static Size
numbers_size(void)
{
	return MAXALIGN(add_size(offsetof(JqKeyNumbers, of),
							 mul_size(MaxBackends, sizeof(numbers->of[0]))));
}

Size
jq_keywait_size(void)
{
	return add_size(numbers_size(),
					add_size(MAXALIGN(mul_size(MaxBackends, sizeof(JqKeyWait))),
							 MAXALIGN(JQ_KEY_PARTITIONS * sizeof(XLogRecPtr))));
}

void
jq_keywait_init(void)
{
	bool found;
	Size size = MAXALIGN(mul_size(MaxBackends, sizeof(JqKeyWait)));

	waits = ShmemInitStruct("jobqueue waits for keys", size, &found);
	if (!found)
		memset(waits, 0, size);
	size = JQ_KEY_PARTITIONS * sizeof(XLogRecPtr);
	commits = ShmemInitStruct("jobqueue commits of keys", size, &found);
	if (!found)
		memset(commits, 0, size);
	numbers =
		ShmemInitStruct("jobqueue numbers of keys", numbers_size(), &found);
	if (!found)
	{
		int i;

		pg_atomic_init_u64(&numbers->used, 0);
		pg_atomic_init_u32(&numbers->total, 0);
		for (i = 0; i < MaxBackends; i++)
		{
			pg_atomic_init_u32(&numbers->of[i].n, 0);
			numbers->of[i].role = InvalidOid;
		}
	}
}

/* --------------------------------------------------------------- numbers */

/* jobs and sessions compete for keys; not always exact, see below */
static void
note_use(TimestampTz now)
{
	if (now - (TimestampTz) pg_atomic_read_u64(&numbers->used) > USED_US / 8)
		pg_atomic_write_u64(&numbers->used, (uint64) now);
}

Oid
jq_keywait_role(void)
{
	return jq_is_worker ? GetSessionUserId() : GetAuthenticatedUserId();
}

void
jq_keywait_set_number(int n)
{
	pg_atomic_uint32 *mine = &numbers->of[jq_my_procno()].n;
	uint32 before = pg_atomic_read_u32(mine);

	if (before == (uint32) n)
		return;
	if (n > 0)
		numbers->of[jq_my_procno()].role = jq_keywait_role();
	pg_write_barrier();
	pg_atomic_write_u32(mine, (uint32) n);
	(void) pg_atomic_fetch_add_u32(&numbers->total, n - (int32) before);
}

bool
jq_keywait_over_quota(int quota)
{
	Oid role = numbers->of[jq_my_procno()].role;
	uint32 n = 0;
	int i;

	if (pg_atomic_read_u32(&numbers->total) <= (uint32) quota)
		return false;
	pg_memory_barrier();
	for (i = 0; i < MaxBackends; i++)
	{
		uint32 its = pg_atomic_read_u32(&numbers->of[i].n);

		pg_read_barrier();
		if (its > 0 && numbers->of[i].role == role)
			n += its;
	}
	return n > (uint32) quota;
}

/* ------------------------------------------------------------------ line */

static void
link_wait(JqKey *k, int me)
{
	int *link = &k->first_session;

	while (*link >= 0 && jq_pos_cmp(waits[*link].pos, waits[me].pos) <= 0)
		link = &waits[*link].next;
	waits[me].next = *link;
	*link = me;
	k->nsessions++;
}

static void
unlink_wait(JqKey *k, int who)
{
	int *link = &k->first_session;

	while (*link != who)
	{
		Assert(*link >= 0);
		link = &waits[*link].next;
	}
	*link = waits[who].next;
	k->nsessions--;
	if (k->first_session < 0)
		k->session_turn = 0;
}

bool
jq_key_session_before(const JqKey *k, JqPos pos)
{
	return k->first_session >= 0 &&
		   jq_pos_cmp(waits[k->first_session].pos, pos) < 0;
}

int
jq_key_sessions_before(const JqKey *k, JqPos pos)
{
	int n = 0;
	int i;

	for (i = k->first_session; i >= 0 && jq_pos_cmp(waits[i].pos, pos) < 0;
		 i = waits[i].next)
		n++;
	return n;
}

bool
jq_key_session_due(const JqKey *k, TimestampTz now)
{
	return k->session_turn != 0 && k->session_turn <= now;
}

void
jq_key_session_serve(JqKey *k, bool blocked, TimestampTz now,
					 TimestampTz *until)
{
	JqKeyWait *w = &waits[k->first_session];
	bool due = jq_key_session_due(k, now);
	bool unparked;
	bool in_table;
	JqHolder h;

	/* looked at again when they have gone */
	if (k->nholders > 0 || k->pusher >= 0)
	{
		k->session_turn = 0;
		return;
	}
	if (k->turn_ends > now && jq_pos_cmp(w->pos, k->turn) >= 0)
	{
		*until = Min(*until, k->turn_ends);
		return;
	}
	unparked = k->unparked_until > now && jq_pos_cmp(w->pos, k->unparked) >= 0;
	/* in the table; or on their way from there, in lanes */
	in_table =
		k->brought > 0 || (k->spilled && jq_pos_cmp(w->pos, k->frontier) >= 0);
	/* they have all been met, and none stands before it */
	if (!in_table && !blocked && !unparked && k->turn_of_table)
		k->session_turn = 0;
	if ((blocked || in_table) && k->session_turn == 0)
	{
		k->session_turn = now + JQ_KEY_TURN_US;
		k->turn_of_table = true;
	}
	if (unparked && k->session_turn == 0)
		k->session_turn = k->unparked_until;
	if (blocked || unparked)
		k->turn_of_table = false;
	if (k->session_turn != 0 && !due)
	{
		*until = Min(*until, k->session_turn);
		return;
	}
	h.procno = k->first_session;
	h.pid = w->pid;
	h.job = 0;
	h.since = now;
	h.limit = 1;
	h.lane = -1;
	h.next = JQ_NIL;
	h.ending = 0;
	Assert(given_procno < 0);
	given_procno = k->first_session;
	unlink_wait(k, k->first_session);
	w->state = JQ_WAIT_GIVEN;
	(void) jq_key_add_holder(k, &h); /* the first one, which has its place */
}

void
jq_key_session_unparked(JqKey *k, uint32 chain, TimestampTz now,
						TimestampTz *until)
{
	if (k->nholders > 0 || k->unparked_until != 0 ||
		now - (TimestampTz) pg_atomic_read_u64(&numbers->used) > USED_US)
		return;
	while (chain != JQ_NIL && jq_lane_waits(&jq_lanes[JQ_ENTRY(chain)->lane]))
		chain = JQ_ENTRY(chain)->next[0];
	if (chain == JQ_NIL)
		return;
	k->unparked = JQ_ENTRY_POS(chain);
	k->unparked_until = now + JQ_KEY_TURN_US;
	*until = Min(*until, k->unparked_until);
}

/* model: GIVE_BACK */
bool
jq_key_session_leave(JqKey *k)
{
	int me = jq_my_procno();
	bool given = waits[me].state == JQ_WAIT_GIVEN;

	if (waits[me].state == JQ_WAIT_IN_LINE)
		unlink_wait(k, me);
	waits[me].state = JQ_WAIT_NONE;
	return given;
}

void
jq_key_session_tell(void)
{
	int procno = given_procno;

	if (procno < 0)
		return;
	given_procno = -1;
	SetLatch(&GetPGProcByNumber(procno)->procLatch);
}

/* ------------------------------------------------------------ this process */

/* a job that this session has fetched has it: then the session may, too */
static bool
is_of_our_claim(const JqKey *k)
{
	return k->nholders == 1 && k->holder.procno == JQ_CLAIM_HOLDS &&
		   k->holder.pid == MyProcPid;
}

JqKeyResult
jq_keywait_take(Oid db, const char *key, int len)
{
	JqKeyResult result = JQ_KEY_TAKEN;
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	k = jq_key_enter(&tag, hash);
	if (k == NULL)
		result = JQ_KEY_FULL;
	else if (k->nholders > 0 && !is_of_our_claim(k))
		result = JQ_KEY_BUSY;
	else if (k->nholders == 0 &&
			 (k->pusher >= 0 || k->brought > 0 || k->first != JQ_NIL ||
			  k->spilled || k->first_session >= 0 || k->turn_ends != 0 ||
			  k->unparked_until != 0))
		result = JQ_KEY_GONE;
	else
	{
		JqHolder h;

		h.procno = jq_my_procno();
		h.pid = MyProcPid;
		h.job = 0;
		h.since = GetCurrentTimestamp();
		h.limit = 1;
		h.lane = -1;
		h.next = JQ_NIL;
		h.ending = 0;
		/* the first one always has its place */
		if (jq_key_add_holder(k, &h))
		{
			jq_key_note_mine(&tag, hash)->for_session = true;
			note_use(h.since);
		}
		else
			result = JQ_KEY_FULL;
	}
	if (k != NULL)
		jq_key_check(k);
	LWLockRelease(jq_key_partition(hash));
	return result;
}

bool
jq_keywait_share(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, false);

	if (m == NULL || m->pushed)
		return false;
	m->for_session = true;
	return true;
}

void
jq_keywait_release(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, false);

	if (m == NULL || !m->for_session)
		return;
	if (m->for_job)
		m->for_session = false;
	else
	{
		note_use(GetCurrentTimestamp());
		jq_key_release_mine(m);
	}
}

bool
jq_keywait_begin(Oid db, const char *key, int len, int64 last_id)
{
	JqKeyWait *w = &waits[jq_my_procno()];
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_EXCLUSIVE);
	Assert(w->state == JQ_WAIT_NONE || w->pid != MyProcPid);
	k = jq_key_enter(&tag, hash);
	if (k != NULL)
	{
		w->pid = MyProcPid;
		w->hash = hash;
		w->tag = tag;
		w->pos = jq_pos_make(0, last_id);
		w->since = GetCurrentTimestamp();
		note_use(w->since);
		w->state = JQ_WAIT_IN_LINE;
		link_wait(k, jq_my_procno());
		jq_key_note_mine(&tag, hash)->waiting = true;
	}
	LWLockRelease(jq_key_partition(hash));
	/* it may be ours at once */
	if (k != NULL)
		jq_key_advance(&tag);
	return k != NULL;
}

bool
jq_keywait_given(Oid db, const char *key, int len)
{
	JqKeyWait *w = &waits[jq_my_procno()];
	JqMyKey *m = jq_key_find_mine(db, key, len, true);
	bool given;

	Assert(m != NULL);
	LWLockAcquire(jq_key_partition(m->hash), LW_EXCLUSIVE);
	given = w->state == JQ_WAIT_GIVEN;
	if (given)
	{
		w->state = JQ_WAIT_NONE;
		m->waiting = false;
		m->for_session = true;
	}
	LWLockRelease(jq_key_partition(m->hash));
	return given;
}

void
jq_keywait_leave(Oid db, const char *key, int len)
{
	JqMyKey *m = jq_key_find_mine(db, key, len, true);

	if (m != NULL)
		jq_key_release_mine(m);
}

/* ----------------------------------------------------------------- looks */

/* the process without which the holder does not let the key go; 0: none */
static int
process_of(Oid db, const JqHolder *h)
{
	return h->procno == JQ_CLAIM_HOLDS ? jq_fetched_process(db, h->job) :
										 h->pid;
}

void
jq_key_note_commit(uint32 hash)
{
	XLogRecPtr *c = &commits[hash % JQ_KEY_PARTITIONS];

	if (*c < XactLastCommitEnd)
		*c = XactLastCommitEnd;
}

XLogRecPtr
jq_keywait_lsn(Oid db, const char *key, int len)
{
	JqKeyTag tag;
	uint32 hash;
	XLogRecPtr lsn;

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	lsn = commits[hash % JQ_KEY_PARTITIONS];
	LWLockRelease(jq_key_partition(hash));
	return lsn;
}

void
jq_keywait_flush(XLogRecPtr lsn)
{
	if (synchronous_commit != SYNCHRONOUS_COMMIT_OFF &&
		lsn != InvalidXLogRecPtr && lsn > GetFlushRecPtr(NULL))
		XLogFlush(lsn);
}

bool
jq_keywait_holder(Oid db, const char *key, int len, int nth, int *procno,
				  int *pid)
{
	const JqHolder *h = NULL;
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	if (k != NULL && k->nholders > nth)
		for (h = &k->holder; nth > 0; nth--)
			h = JQ_HOLDER(h->next);
	if (h != NULL)
	{
		*procno = h->procno;
		*pid = h->pid;
	}
	LWLockRelease(jq_key_partition(hash));
	return h != NULL;
}

bool
jq_keywait_only_holder(Oid db, const char *key, int len, int limit, int *pid)
{
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	bool only;

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	only = k != NULL && k->nholders == 1 && Min(k->limit, limit) == 1;
	if (only)
		*pid = process_of(db, &k->holder);
	LWLockRelease(jq_key_partition(hash));
	return only;
}

int
jq_keywait_blockers(int procno, int pid, uint64 *since, int *pids, int max)
{
	JqKeyWait *w;
	uint32 hash;
	JqKey *k;
	int n = 0;

	if (procno < 0 || procno >= MaxBackends)
		return 0;
	w = &waits[procno];
	if (*(volatile JqWaitState *) &w->state != JQ_WAIT_IN_LINE)
		return 0;
	/* if it waits for another one by now, it moves, and so is in no cycle */
	hash = *(volatile uint32 *) &w->hash;
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	if (w->state == JQ_WAIT_IN_LINE && w->pid == pid && w->hash == hash)
	{
		const JqHolder *h;

		k = hash_search_with_hash_value(jq_keys, &w->tag, hash, HASH_FIND,
										NULL);
		*since = (uint64) w->since;
		h = k != NULL && k->nholders > 0 ? &k->holder : NULL;
		for (; h != NULL && n < max;
			 h = h->next == JQ_NIL ? NULL : JQ_HOLDER(h->next))
			pids[n++] = process_of(w->tag.db, h);
	}
	LWLockRelease(jq_key_partition(hash));
	return n;
}
