/*
 * pausedrole.c
 *		Roles of which nothing is started.
 *
 * Each lane says itself whether its role is paused (role_paused), so that who
 * takes jobs looks at nothing else.  A short list has the roles, for lanes that
 * are made later, and for jobs without a command: those of all roles share a
 * lane, which is not stopped.  Whoever comes upon one of a paused role there, a
 * consumer or a refill, leaves it in the table; when the role is resumed those
 * lanes are read anew.
 *
 *		running -> paused	: jq_role_pause, by who has committed it; jq_role_load
 *		paused -> running	: jq_role_load
 *
 * Two commits may be told in the wrong order.  So a pause is in force at once,
 * and whatever it was, the scheduler then reads the table, which is right.  If a
 * pause has come since its snapshot it takes nothing away, and reads once more.
 */
#include "postgres.h"

#include "database.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "miscadmin.h"
#include "pausedrole.h"
#include "queue.h"
#include "storage/shmem.h"

typedef struct JqPausedRole
{
	Oid db; /* 0 = free */
	Oid role;
} JqPausedRole;

/* all under JQ_LOCK_DIR; the number is read without as a hint */
typedef struct JqPausedRoles
{
	pg_atomic_uint32 n;
	uint32 changes; /* pauses, ever */
	JqPausedRole roles[FLEXIBLE_ARRAY_MEMBER];
} JqPausedRoles;

static JqPausedRoles *paused;

int
jq_paused_role_max(void)
{
	return jobqueue_max_lanes;
}

Size
jq_paused_role_size(void)
{
	return MAXALIGN(
		add_size(offsetof(JqPausedRoles, roles),
				 mul_size(jq_paused_role_max(), sizeof(JqPausedRole))));
}

void
jq_paused_role_init(void)
{
	bool found;

	paused =
		ShmemInitStruct("jobqueue paused roles", jq_paused_role_size(), &found);
	if (!found)
	{
		memset(paused, 0, jq_paused_role_size());
		pg_atomic_init_u32(&paused->n, 0);
	}
}

static int
find(Oid db, Oid role)
{
	int i;

	if (pg_atomic_read_u32(&paused->n) == 0)
		return -1;
	for (i = 0; i < jq_paused_role_max(); i++)
		if (paused->roles[i].db == db && paused->roles[i].role == role)
			return i;
	return -1;
}

bool
jq_role_is_paused_locked(Oid db, Oid role)
{
	return find(db, role) >= 0;
}

bool
jq_role_is_paused(Oid db, Oid role)
{
	bool is;

	if (pg_atomic_read_u32(&paused->n) == 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	is = find(db, role) >= 0;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return is;
}

/*
 * JQ_LOCK_DIR held exclusively, so that of two who change a role the later one
 * has the last word in its lanes too.  Whoever is in a section of one of them is
 * waited for.
 */
static void
set_lanes(Oid db, Oid role, bool is)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];

		if (l->db != db || l->role != role)
			continue;
		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		l->role_paused = is;
		LWLockRelease(jq_lane_lock(i));
	}
}

/* the same; false: there is no place */
static bool
add(Oid db, Oid role)
{
	int i;

	if (find(db, role) >= 0)
		return true;
	for (i = 0; i < jq_paused_role_max(); i++)
		if (!OidIsValid(paused->roles[i].db))
		{
			paused->roles[i].db = db;
			paused->roles[i].role = role;
			pg_atomic_fetch_add_u32(&paused->n, 1);
			set_lanes(db, role, true);
			return true;
		}
	return false;
}

/* the same */
static void
take_away(int i)
{
	JqPausedRole was = paused->roles[i];

	paused->roles[i].db = paused->roles[i].role = InvalidOid;
	pg_atomic_fetch_sub_u32(&paused->n, 1);
	set_lanes(was.db, was.role, false);
}

void
jq_role_forget_db(Oid db)
{
	int i;

	if (pg_atomic_read_u32(&paused->n) == 0)
		return;
	for (i = 0; i < jq_paused_role_max(); i++)
		if (paused->roles[i].db == db)
			take_away(i);
}

void
jq_role_pause(Oid db, Oid role)
{
	int dbix = jq_dir_db(db, true);
	bool ok;

	if (dbix < 0)
		return; /* no place for the database: nothing of it runs */
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	ok = add(db, role);
	paused->changes++;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (!ok)
	{
		jq_queue_forget(db); /* nothing runs until the scheduler has looked */
		return;
	}
	/* waiters of theirs are not to keep others from keys */
	jq_keylock_settings_changed(db);
	jq_keylock_look_again(db);
	jq_db_request(dbix, JQ_REQ_SETTINGS | JQ_REQ_KEYS);
}

uint32
jq_role_load_begin(void)
{
	uint32 seen;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	seen = paused->changes;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return seen;
}

/* rows of consumers' lanes have been left in the table */
static void
read_consumers_anew(Oid db)
{
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		char queue[JQ_QUEUE_NAME_MAX + 1];
		bool is;

		LWLockAcquire(jq_lane_lock(i), LW_SHARED);
		is = jq_lanes[i].db == db && jq_lanes[i].role == JQ_CONSUMER_ROLE;
		strlcpy(queue, jq_lanes[i].queue, sizeof(queue));
		LWLockRelease(jq_lane_lock(i));
		if (is)
			jq_lane_spill(db, JQ_CONSUMER_ROLE, queue, JQ_POS_NOTHING, 0, 0);
	}
}

static bool
is_in(const Oid *roles, int n, Oid role)
{
	int i;

	for (i = 0; i < n; i++)
		if (roles[i] == role)
			return true;
	return false;
}

bool
jq_role_load(int dbix, uint32 seen, const Oid *roles, int n)
{
	Oid db = jq_dbs[dbix].oid;
	bool complete = true;
	bool resumed = false;
	bool again;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	again = paused->changes != seen;
	if (!again)
		for (i = 0; i < jq_paused_role_max(); i++)
			if (paused->roles[i].db == db &&
				!is_in(roles, n, paused->roles[i].role))
			{
				take_away(i);
				resumed = true;
			}
	for (i = 0; i < n; i++)
		complete &= add(db, roles[i]);
	/* a lane of consumers may have gone with rows left in the table */
	if (resumed)
		jq_dir_see_again(dbix);
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	/* the pause may be of another database, whose scheduler is asked then */
	if (again)
		jq_db_request(dbix, JQ_REQ_SETTINGS);
	if (resumed)
	{
		read_consumers_anew(db);
		jq_db_request(dbix, JQ_REQ_DUE | JQ_REQ_REFILL | JQ_REQ_SCHEDULES);
	}
	return complete;
}
