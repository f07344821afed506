/*
 * queue.c
 *		Settings of queues in memory.
 *
 * A queue of which memory has no place has the default settings as long as
 * memory has a place for every queue of the database that has others
 * ("settings_known"); those places are not reused.  Otherwise a new place starts
 * as JQ_STOPPED_UNKNOWN, and nothing is taken from its lanes until the scheduler
 * has read the table.  So a paused queue does not run after a restart either.
 *
 *		unknown -> known	: jq_queue_load
 *		known	-> known	: jq_queue_apply, jq_queue_load
 *		any		-> unknown	: jq_queue_forget, and the purge of a database
 *
 * Who has committed a change applies it himself (jq_queue_apply).  Two commits
 * may be applied in the wrong order; the versions say which is the later one.
 * The scheduler's reading may be older than what has been applied meanwhile: it
 * yields to what came after its snapshot.
 *
 * Each place has two copies of its settings.  Who changes them, under JQ_LOCK_DIR,
 * fills the one that is not in force and then makes it so; who reads looks
 * whether that has happened meanwhile, and so needs no lock.  Settings that are
 * forgotten stay in force for what still runs.
 *
 * A lane reads "stopped" under its own lock before anything is taken from it.
 * Whoever sets it takes each lane's lock once afterwards: then nobody is left
 * who has not seen it.
 */
#include "postgres.h"

#include "database.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "queue.h"

static bool
is_default(const JqQueueRow *row)
{
	JqQueueSettings none;

	jq_settings_default(&none);
	return !row->paused && jq_settings_equal(&row->settings, &none);
}

void
jq_queue_settings(int queue_ix, JqQueueSettings *out)
{
	JqQueue *q = &jq_queues[queue_ix];
	uint32 n;

	do
	{
		n = pg_atomic_read_u32(&q->settings_in_force);
		pg_read_barrier();
		memcpy(out, &q->settings[n % 2], sizeof(*out));
		pg_read_barrier();
	} while (pg_atomic_read_u32(&q->settings_in_force) != n);
}

/* JQ_LOCK_DIR held exclusively */
static void
put_in_force(JqQueue *q, const JqQueueSettings *s)
{
	uint32 n = pg_atomic_read_u32(&q->settings_in_force) + 1;

	/* who still reads this copy is to see that another one is in force */
	pg_memory_barrier();
	memcpy(&q->settings[n % 2], s, sizeof(*s));
	pg_write_barrier();
	pg_atomic_write_u32(&q->settings_in_force, n);
}

/*
 * JQ_LOCK_DIR held exclusively.  Places that stand only for their settings may
 * not take those that lanes need.
 */
static bool
may_pin(void)
{
	int n = 0;
	int i;

	for (i = 0; i < jq_shared->nqueues; i++)
		if (OidIsValid(jq_queues[i].db) && jq_queues[i].pinned)
			n++;
	return n < jq_shared->nqueues - jq_shared->nlanes;
}

/* JQ_LOCK_DIR held exclusively: the place for this row, -1 = none */
static int
place_for(int dbix, const JqQueueRow *row)
{
	int ix = jq_dir_queue(dbix, row->name, false);

	if (is_default(row))
		return ix;
	if (ix >= 0 && jq_queues[ix].pinned)
		return ix;
	return may_pin() ? jq_dir_queue(dbix, row->name, true) : -1;
}

/* JQ_LOCK_DIR held exclusively */
static void
set(int dbix, JqQueue *q, const JqQueueRow *row)
{
	uint32 stopped = pg_atomic_read_u32(&q->stopped) & JQ_STOPPED_UNKNOWN;
	uint32 unseen = pg_atomic_read_u32(&q->stopped) & JQ_STOPPED_UNSEEN;

	q->version = row->version;
	q->pinned = !is_default(row);
	put_in_force(q, &row->settings);
	jq_limit_set((int) (q - jq_queues), &row->settings);
	pg_atomic_write_u32(&q->weight, row->settings.weight);
	if (row->paused)
		stopped |= JQ_STOPPED_PAUSED | unseen;
	pg_atomic_write_u32(&q->stopped, stopped);
	if (!row->paused && unseen != 0)
		jq_dir_see_again(dbix);
}

/*
 * The settings of a queue (-1: of all) have changed: whoever is in a section of
 * one of its lanes is waited for, and what may run now is seen to.
 * model: SET_TELLS
 */
static void
tell_lanes(Oid db, int queue_ix)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];
		bool refill = false;
		int n = 0;
		int group = 0;
		int dbix = 0;
		int lane_queue = -1;

		if (l->db != db || (queue_ix >= 0 && l->queue_ix != queue_ix))
			continue;
		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (l->db == db && !jq_lane_stopped(l))
		{
			if (!jq_pos_is_all(l->frontier))
				l->want_refill = true;
			refill = jq_lane_wants_refill(l);
			n = jq_limit_wakes(i, (int) l->nready);
			group = l->group;
			dbix = l->dbix;
			lane_queue = l->queue_ix;
			/* weights may have changed */
			pg_atomic_fetch_add_u32(&jq_groups[group].lanes_generation, 1);
		}
		LWLockRelease(jq_lane_lock(i));
		jq_limit_wake();
		/* lanes that wait at a limit which is no more what it was */
		if (lane_queue >= 0)
			jq_limit_serve(lane_queue);
		if (refill)
			jq_db_request(dbix, JQ_REQ_REFILL);
		if (n > 0)
			jq_group_wake(group, n);
	}
}

void
jq_queue_apply(Oid db, const JqQueueRow *row)
{
	int dbix = jq_dir_db(db, true);
	bool first;
	bool changed = false;
	bool unseen = false;
	int ix;

	if (dbix < 0)
		return; /* no place for the database: nothing of it runs */
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	ix = place_for(dbix, row);
	if (ix < 0)
	{
		first = !is_default(row) || !jq_dbs[dbix].settings_known;
		if (!is_default(row))
			jq_dir_forget_settings(dbix);
	}
	else
	{
		/*
		 * Was there a later one that memory did not keep, or has the sequence
		 * been set back?  The table says.
		 */
		first =
			jq_queues[ix].version == 0 || jq_queues[ix].version > row->version;
		changed = jq_queues[ix].version < row->version;
		unseen = changed && !row->paused &&
				 pg_atomic_read_u32(&jq_queues[ix].stopped) & JQ_STOPPED_UNSEEN;
		if (changed)
			set(dbix, &jq_queues[ix], row);
	}
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (ix < 0 && !is_default(row))
		tell_lanes(db, -1);
	else if (changed)
	{
		tell_lanes(db, ix);
		jq_keylock_settings_changed(db);
		if (row->paused)
		{
			jq_keylock_look_again(db);
			jq_db_request(dbix, JQ_REQ_KEYS);
		}
	}
	if (first || unseen)
		jq_db_request(dbix, (first ? JQ_REQ_SETTINGS : 0) |
								(unseen ? JQ_REQ_DISCOVER : 0));
}

void
jq_queue_forget(Oid db)
{
	int dbix = jq_dir_db(db, true);

	if (dbix < 0)
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	jq_dir_forget_settings(dbix);
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	tell_lanes(db, -1);
	jq_db_request(dbix, JQ_REQ_SETTINGS);
}

JqQueueSeen *
jq_queue_load_begin(int dbix)
{
	JqQueueSeen *seen = palloc(offsetof(JqQueueSeen, versions) +
							   jq_shared->nqueues * sizeof(int64));
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	seen->forgotten = jq_dbs[dbix].settings_forgotten;
	for (i = 0; i < jq_shared->nqueues; i++)
		seen->versions[i] =
			jq_queues[i].db == jq_dbs[dbix].oid ? jq_queues[i].version : -1;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return seen;
}

bool
jq_queue_load(int dbix, const JqQueueSeen *seen, const JqQueueRow *rows, int n)
{
	bool *has_row = palloc0(jq_shared->nqueues * sizeof(bool));
	Oid db = jq_dbs[dbix].oid;
	bool complete = true;
	bool current;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	/* if not, what was read may be what was forgotten; a request is there */
	current = jq_dbs[dbix].settings_forgotten == seen->forgotten;
	for (i = 0; i < n && current; i++)
	{
		int ix = place_for(dbix, &rows[i]);
		bool stays = ix >= 0;

		if (!stays)
		{
			if (is_default(&rows[i]))
				continue;
			complete = false;
			/* no place to stay, but if it is there now this is what it is */
			ix = jq_dir_queue(dbix, rows[i].name, false);
			if (ix < 0)
				continue;
		}
		has_row[ix] = true;
		if (rows[i].version > jq_queues[ix].version ||
			jq_queues[ix].version == seen->versions[ix])
			set(dbix, &jq_queues[ix], &rows[i]);
		if (!stays)
			jq_queues[ix].pinned = false; /* only as long as it has lanes */
	}
	for (i = 0; i < jq_shared->nqueues && current; i++)
	{
		JqQueue *q = &jq_queues[i];

		if (q->db != db)
			continue;
		if (!has_row[i] && q->version == seen->versions[i])
		{
			JqQueueRow none;

			memset(&none, 0, sizeof(none));
			jq_settings_default(&none.settings);
			set(dbix, q, &none);
		}
		/* one that came after the snapshot is read once more */
		if (has_row[i] || seen->versions[i] >= 0)
			pg_atomic_fetch_and_u32(&q->stopped, ~JQ_STOPPED_UNKNOWN);
	}
	if (current)
		jq_dbs[dbix].settings_known = complete;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	pfree(has_row);
	tell_lanes(db, -1);
	jq_keylock_settings_changed(db);
	jq_keylock_look_again(db);
	jq_db_request(dbix, JQ_REQ_KEYS);
	return complete;
}
