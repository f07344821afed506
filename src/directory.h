/*
 * directory.h
 *		What memory has a place for: databases, roles in them (groups), their
 *		queues and lanes.  Found by name, known by index.
 *
 * Indexes are stable while the thing is in use.  Things are added and reused
 * under JQ_LOCK_DIR (exclusive); a lane's identity changes only under its own
 * lock as well, so that holding either is enough to trust it.
 */
#ifndef JQ_DIRECTORY_H
#define JQ_DIRECTORY_H

#include "postgres.h"

#include "limit.h"
#include "pool.h"
#include "settings.h"
#include "shmem.h"

/* requests to a scheduler */
#define JQ_REQ_DISCOVER 0x01  /* which lanes does the table have? */
#define JQ_REQ_REFILL 0x02	  /* some lane wants entries */
#define JQ_REQ_DUE 0x04		  /* look at all waiting rows, not only the next */
#define JQ_REQ_FAILED 0x08	  /* a claim is "failing" or "doubtful" */
#define JQ_REQ_COUNT 0x10	  /* count what memory cannot know, all of it */
#define JQ_REQ_GROUP 0x20	  /* some role cannot be served: look at it */
#define JQ_REQ_RECOUNT 0x40	  /* go on counting where it is not known */
#define JQ_REQ_KEYS 0x80	  /* spilled keys want rows */
#define JQ_REQ_SETTINGS 0x100 /* read the settings of the queues */
#define JQ_REQ_EXPIRY 0x200	  /* look at all rows that expire */
/* jobs that others wait for, see after.h; and all rows that wait for others */
#define JQ_REQ_AFTER 0x400
#define JQ_REQ_AFTER_ALL 0x800
#define JQ_REQ_LEASES 0x1000	/* some may be over; after a start: read them */
#define JQ_REQ_SCHEDULES 0x2000 /* look at all schedules */
#define JQ_REQ_LOST 0x4000		/* some lane has lost_due */
#define JQ_REQ_ALL 0x7fff

typedef enum JqSchedState
{
	JQ_SCHED_NONE,
	JQ_SCHED_STARTING,
	JQ_SCHED_RUNNING
} JqSchedState;

typedef struct JqDb
{
	Oid oid;			 /* JQ_LOCK_DIR; 0 = free */
	bool settings_known; /* JQ_LOCK_DIR: a queue without a place has defaults */
	uint32 settings_forgotten; /* JQ_LOCK_DIR: how often, ever */
	/* the rest under JQ_LOCK_DB */
	uint32 requests;
	TimestampTz next_due;	 /* DT_NOEND = nothing waits for its time */
	TimestampTz next_expiry; /* DT_NOEND = nothing expires */
	JqSchedState sched_state;
	int sched_procno;
	int sched_pid;
	TimestampTz sched_since;
	TimestampTz sched_not_before; /* after a failed start */
	uint32 overflows;			  /* lanes that found no place, ever */
	bool loaded;				  /* every lane of the table is known */
	bool absent;				  /* no extension there */
	bool foreign;				  /* meta names another database: hold all */
	bool quiesced;
	int leave;				   /* so many statements want it empty */
	bool closed;			   /* it takes no connections */
	int nfailed;			   /* schedulers in a row that did not come up */
	bool told_version;		   /* that the SQL objects are old */
	Oid relid;				   /* jobqueue_job when last seen */
	TimestampTz next_prune;	   /* DT_NOEND = nothing is to leave the history */
	TimestampTz next_lease;	   /* DT_NOEND = no lease ends */
	bool leases_read;		   /* memory has the leases of the table */
	TimestampTz next_schedule; /* clock.h; DT_NOEND = none is due again */
} JqDb;

typedef struct JqGroup
{
	Oid db;	  /* JQ_LOCK_DIR; 0 = free */
	Oid role; /* JQ_LOCK_DIR */
	/* JQ_LOCK_DIR; of consumers: "" is the group of a role's workers */
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int dbix;						   /* JQ_LOCK_DIR */
	int first_lane;					   /* JQ_LOCK_DIR; -1 = none */
	pg_atomic_uint32 lanes_generation; /* moves when its lanes change */
	pg_atomic_uint64 vtime;			   /* see weight.c */
	/* the rest under JQ_LOCK_SLOT */
	int nworkers;			 /* started or starting */
	int nidle;				 /* read without lock as a hint */
	int nwaiting;			 /* their jobs wait for others */
	bool wanted;			 /* a publisher found no idle worker */
	int nfailed;			 /* starts that failed in a row */
	TimestampTz not_before;	 /* after a failed start */
	TimestampTz last_served; /* when a worker was last started */
	bool called; /* a limit had room, and nobody was idle: start one for it */
	/* consumers that wait, nidle of them, by procno; see consumer.c */
	int first_waiter;
	int last_waiter;
} JqGroup;

/* why nothing is taken from the lanes of a queue */
#define JQ_STOPPED_PAUSED 0x01
#define JQ_STOPPED_UNKNOWN 0x02 /* its settings have not been read yet */
/* besides one of those: it may have rows, but no lane, or one that misses some */
#define JQ_STOPPED_UNSEEN 0x04

#define JQ_HISTOGRAM 80 /* two buckets for each doubling, from 1 us */

typedef struct JqQueue
{
	Oid db;							  /* JQ_LOCK_DIR; 0 = free */
	char name[JQ_QUEUE_NAME_MAX + 1]; /* JQ_LOCK_DIR */
	/* settings, see queue.c; set under JQ_LOCK_DIR (exclusive) */
	int64 version;			  /* of the row they are from; 0 = of none */
	bool pinned;			  /* not the defaults: the place is not reused */
	pg_atomic_uint32 stopped; /* JQ_STOPPED_*: lanes read it under their lock */
	JqQueueSettings settings[2]; /* read them with jq_queue_settings */
	pg_atomic_uint32 settings_in_force;
	pg_atomic_uint32 singly; /* a batch failed: so many run one by one */
	/* the rest is atomic; sums are exact, the rest nearly */
	pg_atomic_uint64 completed;
	pg_atomic_uint64 failed;
	pg_atomic_uint64 minute; /* minutes since 2000 of the next two */
	pg_atomic_uint32 completed_now;
	pg_atomic_uint32 failed_now;
	pg_atomic_uint32 completed_before; /* the minute before */
	pg_atomic_uint32 failed_before;
	pg_atomic_uint64 held;	 /* rows of another home, when last counted */
	pg_atomic_uint64 wasted; /* entries that a worker took in vain */
	pg_atomic_uint32 wait_hist[JQ_HISTOGRAM];
	pg_atomic_uint32 run_hist[JQ_HISTOGRAM];
	JqLimit limit;
	pg_atomic_uint32 weight; /* of its lanes; see weight.c */
} JqQueue;

typedef struct JqLane
{
	/* identity: JQ_LOCK_DIR and lane lock */
	Oid db; /* 0 = free */
	Oid role;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	int dbix;
	int group;
	int queue_ix;
	int next_in_group;
	/* the rest: lane lock */
	JqPos frontier; /* every ready row before it is known */
	JqPos cut;		/* while filling: what may be claimed to be
								   * known at its end */
	int64 low_id;	/* no unknown row has a smaller id */
	bool filling;	/* a refill is under way */
	bool want_refill;
	int held_back;	  /* publishers that are not done yet */
	bool starved;	  /* its last refill found no room */
	bool lost_due;	  /* rows that no refill finds had to leave it */
	bool role_paused; /* see pausedrole.c; JQ_LOCK_DIR too, to change it */
	uint32 nready;	  /* read without lock as a hint */
	pg_atomic_uint32 nparked; /* waiting for keys; less under key locks, too */
	uint32 low_water;		  /* refill when nready falls to it */
	uint32 nclaimed;
	/* keys of claims of consumers */
	pg_atomic_uint32 nkeys;
	int64 wants_key; /* of consumers: a job that needs one more; 0: none */
	int64 spilled;	 /* ready rows beyond the frontier, of which those
						 * before count_pos are counted */
	int64 held;		 /* rows of another home, as far as counted */
	JqPos count_pos;
	JqPos passed; /* refills have passed over rows of keys up to here */
	uint32 head[JQ_LEVELS];
	uint32 tail[JQ_LEVELS];
	/* lock of the queue's limit: its place among those that wait */
	bool limit_waiting; /* read without lock as a hint */
	int limit_prev;
	int limit_next;
	int64 limit_since;
	/* without a lock, see weight.c */
	pg_atomic_uint64 pass;
} JqLane;

extern JqDb *jq_dbs;
extern JqGroup *jq_groups;
extern JqQueue *jq_queues;
extern JqLane *jq_lanes;

extern Size jq_directory_size(void);
extern void jq_directory_init(void);

/* Index of a thing, or -1: unknown, or (create) no place left. */
extern int jq_dir_db(Oid db, bool create);
extern int jq_dir_lane(Oid db, Oid role, const char *queue, bool create);

/* The lane's identity; the caller holds its lock or JQ_LOCK_DIR. */
extern bool jq_lane_is(const JqLane *l, Oid db, Oid role, const char *queue);

/* forget what jq_dir_lane remembers of the last call */
extern void jq_dir_forget(void);

/*
 * JQ_LOCK_DIR held exclusively: the index of a queue, or -1.  A new one has the
 * default settings, or unknown ones.
 */
extern int jq_dir_queue(int dbix, const char *name, bool create);
/* the same lock held: rows of a queue that was unseen may run */
extern void jq_dir_see_again(int dbix);
/* the same lock held: all settings of the database are unknown again */
extern void jq_dir_forget_settings(int dbix);

/* is nothing to be taken from the lane?  The caller holds its lock, or hopes. */
static inline bool
jq_lane_stopped(const JqLane *l)
{
	return pg_atomic_read_u32(&jq_queues[l->queue_ix].stopped) != 0 ||
		   *(volatile const bool *) &l->role_paused;
}

/* the same, or is its queue at a limit? */
static inline bool
jq_lane_waits(const JqLane *l)
{
	return jq_lane_stopped(l) || *(volatile const bool *) &l->limit_waiting;
}

/*
 * May there be a job in it for somebody who has a place of that queue (-1:
 * none)?  He need not wait for one.
 */
static inline bool
jq_lane_may_have(const JqLane *l, int place)
{
	return *(volatile const uint32 *) &l->nready > 0 &&
		   (place == l->queue_ix ? !jq_lane_stopped(l) : !jq_lane_waits(l));
}

/*
 * Is the queue paused?  If so, it may be without lanes from now on: whoever
 * resumes it has its rows looked for.
 */
extern bool jq_dir_leave_unseen(int dbix, const char *queue);

/*
 * Take the lane with most entries from the database (from another one, if this
 * one has none), with the entries in it: they are in the table, where a discovery
 * finds them again.  false: there is none that could go.  true is no promise of
 * room: somebody else may have it by now, or what is missing is something else.
 */
extern bool jq_dir_give_up_lane(Oid db);

/*
 * There is no place for a lane of this role: take one, in the same way, from the
 * (database, role) that has most of all, if that has two more at least.  So one
 * that puts its jobs into very many queues does not keep others from work.
 */
extern bool jq_dir_make_place(Oid db, Oid role);

/* lanes of a database; buf has room for jq_shared->nlanes */
extern int jq_dir_lanes_of(Oid db, int *buf);
extern int jq_dir_lanes_of_group(int group, int *buf, int max);

/* the database has no jobs any more: everything memory knows of them goes */
extern void jq_dir_purge_db(Oid db);

extern void jq_queue_count(int queue_ix, bool completed, TimestampTz ready,
						   TimestampTz start, TimestampTz end);
extern double jq_histogram_percentile(pg_atomic_uint32 *hist, double fraction);

#endif /* JQ_DIRECTORY_H */
