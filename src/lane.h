/*
 * lane.h
 *		A lane: the ready jobs of one (database, role, queue), in order.
 *
 * All functions take the lane's lock themselves unless they say otherwise.
 */
#ifndef JQ_LANE_H
#define JQ_LANE_H

#include "directory.h"

/*
 * Offer ready jobs to the lane of (db, role, queue): the one way in for commit,
 * due, retry and rows given back.  What the lane does not accept stays in the
 * table, and the lane knows that it does.  JQ_E_DUE items that find no room the
 * scheduler is asked to make ready.  Wakes workers.  Never fails.  Returns
 * how many were accepted.
 */
extern int jq_lane_publish(Oid db, Oid role, const char *queue,
						   const JqItem *items, int n);

/* The same for one, which may be there already (and is accepted then). */
extern bool jq_lane_publish_one(Oid db, Oid role, const char *queue,
								const JqItem *item, bool *known);

/*
 * The same for the scheduler's due rows: it makes ready in the table what is
 * refused.
 */
extern void jq_lane_publish_due(Oid db, Oid role, const char *queue,
								const JqItem *items, int n, bool *refused);

/* A row that somebody had, with these flags, is in the table only. */
extern void jq_lane_lose(Oid db, Oid role, const char *queue, JqPos pos,
						 uint8 flags);

/*
 * Rows from pos on exist that memory does not know, none of them with an id
 * below low_id: the lane forgets that it knew.  nrows is added to the number of
 * spilled rows.  JQ_POS_NOTHING: nobody knows which, nor how many.
 */
extern void jq_lane_spill(Oid db, Oid role, const char *queue, JqPos pos,
						  int64 low_id, int64 nrows);

/*
 * Lane lock held: an entry that was parked is back.  After the lock's release,
 * tell how many.
 */
extern void jq_lane_take_back(uint32 entry);
extern void jq_lane_took_back(int lane, int n);

/*
 * While somebody publishes rows that have an order among them, nothing is taken
 * from the lane.  false: there is no place for the lane.
 */
extern bool jq_lane_hold_back(Oid db, Oid role, const char *queue, bool hold);

/* see to it that up to so many ready entries are run, as far as limits allow */
extern void jq_lane_call(int lane, int most);

/* Lane lock held: forget all ready entries; the frontier becomes this. */
extern void jq_lane_clear(int lane, JqPos frontier);

/* Lane lock held: the first entry that may run, taken out; JQ_NIL if none. */
extern uint32 jq_lane_take_first(JqLane *l);

/* Is there one? */
extern bool jq_lane_has_first(int lane);

/* Is there none because the scheduler has still to read the tables? */
extern bool jq_lane_is_behind(int lane);

/* Lane lock held: it is not to run at all. */
extern void jq_lane_drop(JqLane *l, uint32 ix);
/*
 * No row stands there any more.  Whoever says so holds the claim on the job, so
 * that nobody puts it there again meanwhile.
 */
extern void jq_lane_remove(Oid db, Oid role, const char *queue,
						   const JqItem *item);

/* Lane lock held: and back to its place. */
extern void jq_lane_untake(JqLane *l, uint32 ix);

/* Lane lock held: should the scheduler refill this lane now? */
extern bool jq_lane_wants_refill(JqLane *l);

/* ---- by the scheduler only; see lane.c ---- */
typedef struct JqRefill
{
	JqPos from; /* where to read */
	int64 low_id;
	int room;	  /* how many rows at the most */
	JqPos passed; /* rows of spilled keys before it were passed over before */
} JqRefill;

extern bool jq_lane_refill_begin(int lane, JqRefill *r);
extern void jq_lane_refill_add(int lane, const JqItem *items, int n);

/*
 * Rows that are due and had to leave memory.  Before they are looked for, with
 * make_place some more of each lane leave it; which of these rows does nobody
 * have; and a row that nobody had has been made ready in the table, which its lane
 * is told twice: before the commit, so that it does not think that it knows the
 * row, and after it.
 */
extern void jq_lane_lost_begin(Oid db, bool make_place);
extern void jq_lane_which_lost(Oid db, Oid role, const char *queue,
							   const JqItem *items, int n, bool *lost);
extern void jq_lane_made_ready(Oid db, Oid role, const char *queue, JqPos pos,
							   bool committed);

/*
 * All rows before upto have been read (JQ_POS_ALL: the end of the index);
 * passed: how many rows of spilled keys were passed over for the first time.
 */
extern void jq_lane_refill_end(int lane, JqPos upto, int64 passed);
extern void jq_lane_refill_abandon(int lane);

/*
 * Counting: where to go on (false: all is counted), which rows are beyond the
 * frontier, and what refills have passed over; and what was found up to there.
 */
extern bool jq_lane_count_from(int lane, JqPos *from, JqPos *frontier,
							   JqPos *passed);
extern void jq_lane_counted(int lane, JqPos from, JqPos upto, int64 n,
							int64 held);
/* count from the start */
extern void jq_lane_uncount(int lane);

/* all workers of the group are awake, and another one is wanted already */
extern bool jq_group_is_awake(int group);
/* how many ready entries stand before that place; at most so many are counted */
extern int jq_lane_ahead(int lane, JqPos pos, int most);

/* wake workers of the group for n new entries */
extern void jq_group_wake(int group, int n);

#endif /* JQ_LANE_H */
