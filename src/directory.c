/*
 * directory.c
 *		Databases, groups, queues and lanes: where they are in shared memory.
 *
 * One hash maps (kind, database, role, name) to an index of the array of that
 * kind.  Nothing is removed as long as there is room; when there is none, what
 * is empty and holds no knowledge that could not be had again is reused.  A
 * lane may be reused when no entry is in it, parked or claimed and it knows
 * everything (its frontier is JQ_POS_ALL): a later job then finds a fresh lane,
 * which in a loaded database also starts with that knowledge.
 *
 * A paused queue need have no lane.  Its empty lanes are reused whatever they
 * know if there is need, and the queue is "unseen" then: a new lane of it knows
 * nothing, and when it is resumed the scheduler looks which lanes there are.
 */
#include "postgres.h"

#include "claim.h"
#include "database.h"
#include "directory.h"
#include "fetched.h"
#include "guc.h"
#include "keylock.h"
#include "lane.h"
#include "looks.h"
#include "miscadmin.h"
#include "pausedrole.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#ifdef JQ_TESTING
#define JQ_SINGLY_FIRST 0 /* tests want to know which jobs are together */
#else
#define JQ_SINGLY_FIRST JQ_BATCH_MAX
#endif

typedef enum JqDirKind
{
	JQ_DIR_DB = 1,
	JQ_DIR_GROUP,
	JQ_DIR_QUEUE,
	JQ_DIR_LANE
} JqDirKind;

typedef struct JqDirKey
{
	uint32 kind;
	Oid db;
	Oid role;
	char name[JQ_QUEUE_NAME_MAX + 1];
} JqDirKey;

typedef struct JqDirEntry
{
	JqDirKey key;
	int index;
} JqDirEntry;

JqDb *jq_dbs;
JqGroup *jq_groups;
JqQueue *jq_queues;
JqLane *jq_lanes;

static HTAB *jq_dir;

/* the last answer of jq_dir_lane; checked by whoever uses it */
static JqDirKey last_key;
static int last_lane = -1;

static Size
dir_entries(void)
{
	/* lanes, groups, queues (twice as many), databases */
	return 4 * (Size) jobqueue_max_lanes + jobqueue_max_databases;
}

Size
jq_directory_size(void)
{
	Size size = 0;

	size =
		add_size(size, hash_estimate_size(dir_entries(), sizeof(JqDirEntry)));
	size = add_size(size,
					MAXALIGN(mul_size(jobqueue_max_databases, sizeof(JqDb))));
	size =
		add_size(size, MAXALIGN(mul_size(jobqueue_max_lanes, sizeof(JqGroup))));
	size =
		add_size(size,
				 MAXALIGN(mul_size(2 * jobqueue_max_lanes, sizeof(JqQueue))));
	size =
		add_size(size, MAXALIGN(mul_size(jobqueue_max_lanes, sizeof(JqLane))));
	return size;
}

static void *
init_array(const char *name, int n, Size elem)
{
	bool found;
	void *p = ShmemInitStruct(name, MAXALIGN(mul_size(n, elem)), &found);

	if (!found)
		memset(p, 0, MAXALIGN(mul_size(n, elem)));
	return p;
}

void
jq_directory_init(void)
{
	HASHCTL info;

	memset(&info, 0, sizeof(info));
	info.keysize = sizeof(JqDirKey);
	info.entrysize = sizeof(JqDirEntry);
	jq_dir = ShmemInitHash("jobqueue directory", dir_entries(), dir_entries(),
						   &info, HASH_ELEM | HASH_BLOBS);
	jq_dbs =
		init_array("jobqueue databases", jobqueue_max_databases, sizeof(JqDb));
	jq_groups =
		init_array("jobqueue groups", jobqueue_max_lanes, sizeof(JqGroup));
	jq_queues =
		init_array("jobqueue queues", 2 * jobqueue_max_lanes, sizeof(JqQueue));
	jq_lanes = init_array("jobqueue lanes", jobqueue_max_lanes, sizeof(JqLane));
	last_lane = -1;
}

static void
make_key(JqDirKey *key, JqDirKind kind, Oid db, Oid role, const char *name)
{
	memset(key, 0, sizeof(*key));
	key->kind = kind;
	key->db = db;
	key->role = role;
	strlcpy(key->name, name, sizeof(key->name));
}

static int
dir_get(JqDirKind kind, Oid db, Oid role, const char *name)
{
	JqDirKey key;
	JqDirEntry *e;

	make_key(&key, kind, db, role, name);
	e = hash_search(jq_dir, &key, HASH_FIND, NULL);
	return e ? e->index : -1;
}

static bool
dir_put(JqDirKind kind, Oid db, Oid role, const char *name, int index)
{
	JqDirKey key;
	JqDirEntry *e;
	bool found;

	make_key(&key, kind, db, role, name);
	e = hash_search(jq_dir, &key, HASH_ENTER_NULL, &found);
	if (e == NULL)
		return false;
	e->index = index;
	return true;
}

static void
dir_drop(JqDirKind kind, Oid db, Oid role, const char *name)
{
	JqDirKey key;

	make_key(&key, kind, db, role, name);
	hash_search(jq_dir, &key, HASH_REMOVE, NULL);
}

/* ------------------------------------------------------------- databases */

static bool lane_try_reuse(int ix, bool paused_too);
static void forget_settings(int dbix, Oid db);

/* a database without the extension need not be remembered */
static bool
db_try_reuse(int ix)
{
	JqDb *d = &jq_dbs[ix];
	bool reuse;
	Oid db = InvalidOid;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	reuse = d->absent && d->sched_state == JQ_SCHED_NONE && d->leave == 0;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	/* its lanes know their database by place */
	for (i = 0; i < jq_shared->nlanes && reuse; i++)
		if (jq_lanes[i].db == d->oid)
			reuse = lane_try_reuse(i, false);
	if (reuse)
	{
		/* a statement may have come that wants it empty */
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		reuse = d->absent && d->sched_state == JQ_SCHED_NONE && d->leave == 0;
		db = d->oid;
		if (reuse)
			d->oid = InvalidOid;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
	}
	if (reuse)
	{
		forget_settings(ix, db);
		jq_role_forget_db(db);
		dir_drop(JQ_DIR_DB, db, InvalidOid, "");
	}
	return reuse;
}

static int
db_add(Oid db)
{
	int pass;
	int i;

	for (pass = 0; pass < 2; pass++)
		for (i = 0; i < jq_shared->ndbs; i++)
		{
			JqDb *d = &jq_dbs[i];

			if (OidIsValid(d->oid) && (pass == 0 || !db_try_reuse(i)))
				continue;
			if (!dir_put(JQ_DIR_DB, db, InvalidOid, "", i))
				return -1;
			LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
			memset(d, 0, sizeof(*d));
			d->oid = db;
			d->next_due = d->next_expiry = d->next_prune = DT_NOEND;
			d->next_lease = d->next_schedule = DT_NOEND;
			d->sched_procno = -1;
			d->requests = JQ_REQ_ALL; /* model: START_UNKNOWN */
			LWLockRelease(jq_lock(JQ_LOCK_DB));
			return i;
		}
	return -1;
}

int
jq_dir_db(Oid db, bool create)
{
	static Oid cached_db = InvalidOid;
	static int cached_ix;
	int ix;

	/* a live database keeps its place while this process is connected */
	if (cached_db == db && cached_ix < jq_shared->ndbs &&
		jq_dbs[cached_ix].oid == db)
		return cached_ix;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	ix = dir_get(JQ_DIR_DB, db, InvalidOid, "");
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (ix < 0 && create)
	{
		LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
		ix = dir_get(JQ_DIR_DB, db, InvalidOid, "");
		if (ix < 0)
			ix = db_add(db);
		LWLockRelease(jq_lock(JQ_LOCK_DIR));
	}
	if (ix >= 0)
	{
		cached_db = db;
		cached_ix = ix;
	}
	return ix;
}

/* ------------------------------------------------------ groups and queues */

/*
 * Workers take jobs from all lanes of their group, consumers from the one of a
 * queue: that has a group of its own.
 */
static const char *
group_name(Oid role, const char *queue)
{
	return role == JQ_CONSUMER_ROLE ? queue : "";
}

static int
group_get(Oid db, Oid role, const char *queue, int dbix)
{
	const char *name = group_name(role, queue);
	int ix = dir_get(JQ_DIR_GROUP, db, role, name);
	int i;

	if (ix >= 0)
	{
		jq_groups[ix].dbix = dbix; /* the database may have another place now */
		return ix;
	}
	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqGroup *g = &jq_groups[i];

		if (OidIsValid(g->db))
		{
			bool reuse;

			LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_SHARED);
			reuse = g->first_lane < 0 && g->nworkers == 0 && g->nidle == 0;
			LWLockRelease(jq_lock(JQ_LOCK_SLOT));
			if (!reuse)
				continue;
			dir_drop(JQ_DIR_GROUP, g->db, g->role, g->queue);
			g->db = InvalidOid;
		}
		if (!dir_put(JQ_DIR_GROUP, db, role, name, i))
			return -1;
		LWLockAcquire(jq_lock(JQ_LOCK_SLOT), LW_EXCLUSIVE);
		memset(g, 0, sizeof(*g));
		g->db = db;
		g->role = role;
		strlcpy(g->queue, name, sizeof(g->queue));
		g->dbix = dbix;
		g->first_lane = -1;
		g->first_waiter = g->last_waiter = -1;
		pg_atomic_init_u32(&g->lanes_generation, 1);
		pg_atomic_init_u64(&g->vtime, 0);
		LWLockRelease(jq_lock(JQ_LOCK_SLOT));
		return i;
	}
	return -1;
}

static bool
queue_in_use(const JqQueue *q)
{
	int i;

	/* who has a place of it gives that back after its lane has gone */
	if (pg_atomic_read_u32((pg_atomic_uint32 *) &q->limit.running) > 0)
		return true;
	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_lanes[i].db == q->db && &jq_queues[jq_lanes[i].queue_ix] == q)
			return true;
	return false;
}

int
jq_dir_queue(int dbix, const char *name, bool create)
{
	Oid db = jq_dbs[dbix].oid;
	int ix = dir_get(JQ_DIR_QUEUE, db, InvalidOid, name);
	int pass;
	int i;

	if (ix >= 0 || !create)
		return ix;
	/* first an unused place, then one whose counters nobody adds to */
	for (pass = 0; pass < 2; pass++)
	{
		for (i = 0; i < jq_shared->nqueues; i++)
		{
			JqQueue *q = &jq_queues[i];

			if (OidIsValid(q->db))
			{
				if (pass == 0 || q->pinned || queue_in_use(q))
					continue;
				dir_drop(JQ_DIR_QUEUE, q->db, InvalidOid, q->name);
				q->db = InvalidOid;
			}
			if (!dir_put(JQ_DIR_QUEUE, db, InvalidOid, name, i))
				return -1;
			/* whoever gave back its last place may still look who waits there */
			LWLockAcquire(jq_limit_lock(i), LW_EXCLUSIVE);
			memset(q, 0, sizeof(*q));
			jq_limit_init(&q->limit);
			LWLockRelease(jq_limit_lock(i));
			q->db = db;
			strlcpy(q->name, name, sizeof(q->name));
			jq_settings_default(&q->settings[0]);
			pg_atomic_init_u32(&q->settings_in_force, 0);
			pg_atomic_init_u32(&q->weight, 1);
			/* a job that has crashed the server at the commit of a batch: the
			 * first ones after a start run alone, it is among them */
			pg_atomic_init_u32(&q->singly, JQ_SINGLY_FIRST);
			pg_atomic_init_u32(&q->stopped, jq_dbs[dbix].settings_known ?
												0 :
												JQ_STOPPED_UNKNOWN);
			return i;
		}
	}
	return -1;
}

/* is nothing of it to run, and does its place remember that? */
static bool
may_be_unseen(JqQueue *q)
{
	return q->pinned && pg_atomic_read_u32(&q->stopped) & JQ_STOPPED_PAUSED;
}

/* JQ_LOCK_DIR held exclusively: the rows of a queue that was unseen may run */
void
jq_dir_see_again(int dbix)
{
	/* in this order: no lane is made meanwhile */
	jq_db_overflow(dbix);
	jq_db_request_quietly(dbix, JQ_REQ_DISCOVER);
}

bool
jq_dir_leave_unseen(int dbix, const char *queue)
{
	bool paused = false;
	int ix;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	ix = jq_dir_queue(dbix, queue, false);
	paused = ix >= 0 && may_be_unseen(&jq_queues[ix]);
	if (paused)
		pg_atomic_fetch_or_u32(&jq_queues[ix].stopped, JQ_STOPPED_UNSEEN);
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return paused;
}

static void
forget_settings(int dbix, Oid db)
{
	bool unseen = false;
	int i;

	for (i = 0; i < jq_shared->nqueues; i++)
	{
		JqQueue *q = &jq_queues[i];

		if (q->db != db)
			continue;
		q->version = 0;
		q->pinned = false;
		if (pg_atomic_read_u32(&q->stopped) & JQ_STOPPED_UNSEEN)
			unseen = true;
		pg_atomic_write_u32(&q->stopped, JQ_STOPPED_UNKNOWN);
	}
	/* its place may be another queue's soon */
	if (unseen)
		jq_dir_see_again(dbix);
	jq_dbs[dbix].settings_known = false;
	jq_dbs[dbix].settings_forgotten++;
}

void
jq_dir_forget_settings(int dbix)
{
	forget_settings(dbix, jq_dbs[dbix].oid);
}

/* ----------------------------------------------------------------- lanes */

/* take the lane out of the directory; JQ_LOCK_DIR held exclusively */
static void
lane_remove(int ix)
{
	JqLane *l = &jq_lanes[ix];
	JqGroup *g = &jq_groups[l->group];
	int *link = &g->first_lane;

	while (*link >= 0 && *link != ix)
		link = &jq_lanes[*link].next_in_group;
	if (*link == ix)
		*link = l->next_in_group;
	pg_atomic_fetch_add_u32(&g->lanes_generation, 1);
	jq_limit_forget_lane(ix);
	dir_drop(JQ_DIR_LANE, l->db, l->role, l->queue);
	l->db = InvalidOid;
}

/* lane lock held: nothing of it is out, or on its way */
static bool
lane_is_free(JqLane *l)
{
	return pg_atomic_read_u32(&l->nparked) == 0 && l->nclaimed == 0 &&
		   l->held_back == 0 && !l->filling;
}

/* JQ_LOCK_DIR held exclusively, so that nobody resumes its queue */
static bool
lane_try_reuse(int ix, bool paused_too)
{
	JqLane *l = &jq_lanes[ix];
	bool ok;

	LWLockAcquire(jq_lane_lock(ix), LW_EXCLUSIVE);
	ok = l->nready == 0 && lane_is_free(l);
	if (ok && !(jq_pos_is_all(l->frontier) && jq_pos_is_all(l->count_pos)))
	{
		ok = paused_too && may_be_unseen(&jq_queues[l->queue_ix]);
		if (ok)
			pg_atomic_fetch_or_u32(&jq_queues[l->queue_ix].stopped,
								   JQ_STOPPED_UNSEEN);
	}
	if (ok)
		lane_remove(ix);
	LWLockRelease(jq_lane_lock(ix));
	return ok;
}

static bool
can_do_without(Oid db, const char *queue)
{
	int ix = dir_get(JQ_DIR_QUEUE, db, InvalidOid, queue);

	return ix >= 0 && may_be_unseen(&jq_queues[ix]);
}

static int
lane_add(Oid db, Oid role, const char *queue)
{
	int dbix = dir_get(JQ_DIR_DB, db, InvalidOid, "");
	int pass;
	int i;
	int j;
	int group;
	int queue_ix;
	JqLane *l;
	bool loaded;

	if (dbix < 0)
		dbix = db_add(db);
	if (dbix < 0)
		return -1;
	/* paused queues do not take each other's places */
	for (pass = 0; pass < (can_do_without(db, queue) ? 2 : 3); pass++)
		for (i = 0; i < jq_shared->nlanes; i++)
		{
			l = &jq_lanes[i];
			if (OidIsValid(l->db) &&
				(pass == 0 || !lane_try_reuse(i, pass == 2)))
				continue;

			/*
			 * After a lane has gone, its queue and group may have, too; not
			 * if a worker of the group is idle: then the next one is tried.
			 */
			group = group_get(db, role, queue, dbix);
			queue_ix = jq_dir_queue(dbix, queue, true);
			if (group >= 0 && queue_ix >= 0)
				goto found;
			if (pass == 0)
				break;
		}
	return -1;

found:
	if (!dir_put(JQ_DIR_LANE, db, role, queue, i))
		return -1;
	LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
	loaded = jq_dbs[dbix].loaded;
	LWLockRelease(jq_lock(JQ_LOCK_DB));
	if (pg_atomic_read_u32(&jq_queues[queue_ix].stopped) & JQ_STOPPED_UNSEEN)
		loaded = false;

	LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
	memset(l, 0, sizeof(*l));
	l->db = db;
	l->role = role;
	strlcpy(l->queue, queue, sizeof(l->queue));
	l->dbix = dbix;
	l->group = group;
	l->queue_ix = queue_ix;
	l->role_paused = jq_role_is_paused_locked(db, role);
	for (j = 0; j < JQ_LEVELS; j++)
		l->head[j] = l->tail[j] = JQ_NIL;

	/*
	 * In a loaded database every row that exists has a lane; the rows of a
	 * lane that is new come through publish, all of them.
	 */
	l->frontier = loaded ? JQ_POS_ALL : JQ_POS_NOTHING;
	l->low_id = loaded ? PG_INT64_MAX : PG_INT64_MIN;
	l->count_pos = l->frontier;
	l->passed = JQ_POS_NOTHING;
	pg_atomic_init_u32(&l->nparked, 0);
	pg_atomic_init_u32(&l->nkeys, 0);
	l->wants_key = 0;
	pg_atomic_init_u64(&l->pass, 0);
	l->want_refill = !loaded;
	l->lost_due = false;
	l->cut = JQ_POS_ALL;
	l->next_in_group = jq_groups[group].first_lane;
	jq_groups[group].first_lane = i;
	LWLockRelease(jq_lane_lock(i));
	pg_atomic_fetch_add_u32(&jq_groups[group].lanes_generation, 1);
	return i;
}

/* JQ_LOCK_DIR held exclusively: false: it is in use */
static bool
give_up(int ix)
{
	JqLane *l = &jq_lanes[ix];
	bool done;

	/* before it has gone: a new one must not think that it knows all */
	jq_dir_see_again(l->dbix);
	LWLockAcquire(jq_lane_lock(ix), LW_EXCLUSIVE);
	done = lane_is_free(l);
	if (done)
	{
		jq_lane_clear(ix, JQ_POS_NOTHING);
		lane_remove(ix);
	}
	LWLockRelease(jq_lane_lock(ix));
	return done;
}

bool
jq_dir_make_place(Oid db, Oid role)
{
	int *count = palloc0(jq_shared->nlanes * sizeof(int)); /* of groups */
	int greedy = -1;
	int mine = 0;
	int other = -1; /* the database whose lane it was, if it is not this one */
	bool done = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];

		if (!OidIsValid(l->db))
			continue;
		count[l->group]++;
		if (l->db == db && l->role == role)
			mine++;
		if (greedy < 0 || count[l->group] > count[greedy])
			greedy = l->group;
	}
	/* who has one more would take it back */
	if (greedy >= 0 && count[greedy] > mine + 1)
		for (i = jq_shared->nlanes - 1; i >= 0 && !done; i--)
			if (OidIsValid(jq_lanes[i].db) && jq_lanes[i].group == greedy &&
				lane_is_free(&jq_lanes[i]))
			{
				/* the caller looks anyway */
				other = jq_lanes[i].db != db ? jq_lanes[i].dbix : -1;
				done = give_up(i);
			}
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (done && other >= 0)
		jq_db_request(other, JQ_REQ_DISCOVER);
	pfree(count);
	return done;
}

/*
 * JQ_LOCK_DIR held: the lane with most entries, of the database or (InvalidOid)
 * of any; -1: there is none with so many.
 */
static int
fullest_lane(Oid db, uint32 at_least)
{
	int most = -1;
	int i;

	for (i = 0; i < jq_shared->nlanes; i++)
	{
		JqLane *l = &jq_lanes[i];

		if (!OidIsValid(l->db) || (OidIsValid(db) && l->db != db))
			continue;
		LWLockAcquire(jq_lane_lock(i), LW_SHARED);
		if (l->nready >= at_least && lane_is_free(l))
		{
			most = i;
			at_least = l->nready + 1;
		}
		LWLockRelease(jq_lane_lock(i));
	}
	return most;
}

bool
jq_dir_give_up_lane(Oid db)
{
	int dbix = -1;
	int most;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	most = fullest_lane(db, 1);
	if (most < 0)
		most = fullest_lane(InvalidOid, 1);
	if (most < 0)
		most = fullest_lane(db, 0);
	if (most >= 0)
	{
		dbix = jq_lanes[most].dbix;
		(void) give_up(most);
	}
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (dbix >= 0)
		jq_db_request(dbix, JQ_REQ_DISCOVER);
	return dbix >= 0;
}

bool
jq_lane_is(const JqLane *l, Oid db, Oid role, const char *queue)
{
	return l->db == db && l->role == role && strcmp(l->queue, queue) == 0;
}

void
jq_dir_forget(void)
{
	last_lane = -1;
}

int
jq_dir_lane(Oid db, Oid role, const char *queue, bool create)
{
	int ix;
	int dbix = -1;

	if (last_lane >= 0 && last_key.db == db && last_key.role == role &&
		strcmp(last_key.name, queue) == 0)
		return last_lane;
	/* no row should have such a name; the directory would find another lane */
	if (strlen(queue) > JQ_QUEUE_NAME_MAX)
		return -1;
	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	ix = dir_get(JQ_DIR_LANE, db, role, queue);
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (ix < 0 && create)
	{
		LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
		ix = dir_get(JQ_DIR_LANE, db, role, queue);
		if (ix < 0)
			ix = lane_add(db, role, queue);
		if (ix >= 0 && jq_lane_stopped(&jq_lanes[ix]) &&
			!jq_dbs[jq_lanes[ix].dbix].settings_known)
			dbix = jq_lanes[ix].dbix;
		LWLockRelease(jq_lock(JQ_LOCK_DIR));
		if (dbix >= 0)
			jq_db_request(dbix, JQ_REQ_SETTINGS);
	}
	if (ix >= 0)
	{
		make_key(&last_key, JQ_DIR_LANE, db, role, queue);
		last_lane = ix;
	}
	return ix;
}

int
jq_dir_lanes_of(Oid db, int *buf)
{
	int n = 0;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	for (i = 0; i < jq_shared->nlanes; i++)
		if (jq_lanes[i].db == db)
			buf[n++] = i;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return n;
}

int
jq_dir_lanes_of_group(int group, int *buf, int max)
{
	int n = 0;
	int ix;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_SHARED);
	for (ix = jq_groups[group].first_lane; ix >= 0 && n < max;
		 ix = jq_lanes[ix].next_in_group)
		buf[n++] = ix;
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	return n;
}

void
jq_dir_purge_db(Oid db)
{
	bool nobody_fills = false;
	int i;
	int dbix;

	LWLockAcquire(jq_lock(JQ_LOCK_DIR), LW_EXCLUSIVE);
	dbix = dir_get(JQ_DIR_DB, db, InvalidOid, "");
	if (dbix >= 0)
	{
		jq_dir_forget_settings(dbix);
		jq_db_request_quietly(dbix, JQ_REQ_SETTINGS);
	}
	jq_role_forget_db(db);
	LWLockRelease(jq_lock(JQ_LOCK_DIR));
	if (dbix >= 0)
	{
		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_EXCLUSIVE);
		jq_dbs[dbix].leases_read = false;
		nobody_fills = jq_dbs[dbix].sched_state == JQ_SCHED_NONE;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
	}
	jq_fetched_purge(db);
	jq_claim_purge(db);
	jq_looks_purge(db);
	jq_keylock_order_forget(db, true);
	jq_keylock_purge(db);
	/* last: whoever waited for those has gone back into his lane */
	for (i = 0; i < jq_shared->nlanes; i++)
	{
		if (*(volatile Oid *) &jq_lanes[i].db != db)
			continue;
		/* its scheduler may have been ended in the middle of a refill */
		if (nobody_fills)
			jq_lane_refill_abandon(i);
		LWLockAcquire(jq_lane_lock(i), LW_EXCLUSIVE);
		if (jq_lanes[i].db == db)
			/* what has no rows is known, and its place may be reused */
			jq_lane_clear(i, JQ_POS_ALL);
		LWLockRelease(jq_lane_lock(i));
	}
}

/* -------------------------------------------------------------- counters */

static int
histogram_bucket(TimestampTz us)
{
	int b;
	uint64 v = us > 1 ? (uint64) us : 1;

	b = 2 * (63 - __builtin_clzll(v));
	if (b > 0 && (v >> (b / 2 - 1) & 1))
		b++;
	return Min(b, JQ_HISTOGRAM - 1);
}

/* halve all buckets once in a while, so that the past fades */
static void
histogram_add(pg_atomic_uint32 *hist, TimestampTz us)
{
	if (pg_atomic_fetch_add_u32(&hist[histogram_bucket(us)], 1) > 100000)
	{
		int i;

		for (i = 0; i < JQ_HISTOGRAM; i++)
		{
			uint32 v = pg_atomic_read_u32(&hist[i]);

			pg_atomic_fetch_sub_u32(&hist[i], v / 2);
		}
	}
}

/* the upper end of the bucket in which the fraction is reached, in seconds */
double
jq_histogram_percentile(pg_atomic_uint32 *hist, double fraction)
{
	uint64 total = 0;
	uint64 sum = 0;
	int i;

	for (i = 0; i < JQ_HISTOGRAM; i++)
		total += pg_atomic_read_u32(&hist[i]);
	if (total == 0)
		return -1;
	for (i = 0; i < JQ_HISTOGRAM; i++)
	{
		sum += pg_atomic_read_u32(&hist[i]);
		if (sum >= fraction * total)
			break;
	}
	return ((UINT64CONST(1) << (i / 2)) * (i % 2 ? 2.0 : 1.5)) / 1000000.0;
}

void
jq_queue_count(int queue_ix, bool completed, TimestampTz ready,
			   TimestampTz start, TimestampTz end)
{
	JqQueue *q = &jq_queues[queue_ix];
	uint64 minute = (uint64) (end / USECS_PER_MINUTE);
	uint64 old = pg_atomic_read_u64(&q->minute);

	if (old != minute &&
		pg_atomic_compare_exchange_u64(&q->minute, &old, minute))
	{
		uint32 c = pg_atomic_exchange_u32(&q->completed_now, 0);
		uint32 f = pg_atomic_exchange_u32(&q->failed_now, 0);

		pg_atomic_write_u32(&q->completed_before, old + 1 == minute ? c : 0);
		pg_atomic_write_u32(&q->failed_before, old + 1 == minute ? f : 0);
	}
	if (completed)
	{
		pg_atomic_fetch_add_u64(&q->completed, 1);
		pg_atomic_fetch_add_u32(&q->completed_now, 1);
	}
	else
	{
		pg_atomic_fetch_add_u64(&q->failed, 1);
		pg_atomic_fetch_add_u32(&q->failed_now, 1);
	}
	histogram_add(q->wait_hist, start - ready);
	histogram_add(q->run_hist, end - start);
}
