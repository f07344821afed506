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
 * table, and the lane knows that it does.  JQ_E_DUE items that find no room are
 * noted as a request to the scheduler.  Wakes workers.  Never fails.  Returns
 * how many were accepted.
 */
extern int jq_lane_publish(Oid db, Oid role, const char *queue,
						   const JqItem *items, int n);

/*
 * The same for the scheduler's due rows: those that found no room are marked
 * JQ_E_REFUSED, and nothing is requested for them.
 */
extern int jq_lane_publish_due(Oid db, Oid role, const char *queue,
							   JqItem *items, int n);

/*
 * Rows from pos on exist that memory does not know: the lane forgets that it
 * knew.  nrows is added to the estimate of spilled rows.
 */
extern void jq_lane_spill(Oid db, Oid role, const char *queue, JqPos pos,
						  int64 nrows);

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

/* Lane lock held: forget all ready entries; the frontier becomes this. */
extern void jq_lane_clear(int lane, JqPos frontier);

/* Lane lock held: the first entry that may run, taken out; JQ_NIL if none. */
extern uint32 jq_lane_take_first(JqLane *l);

/* Is there one? */
extern bool jq_lane_has_first(int lane);

/* Lane lock held: it is not to run at all. */
extern void jq_lane_drop(JqLane *l, uint32 ix);

/* Lane lock held: and back to its place. */
extern void jq_lane_untake(JqLane *l, uint32 ix);

/* Lane lock held: should the scheduler refill this lane now? */
extern bool jq_lane_wants_refill(JqLane *l);

/* ---- refill, by the scheduler only; see lane.c ---- */
extern bool jq_lane_refill_begin(int lane, JqPos *from, int *room);
extern void jq_lane_refill_add(int lane, const JqItem *items, int n);
extern void jq_lane_refill_end(int lane, JqPos upto);
extern void jq_lane_refill_abandon(int lane);

/* wake workers of the group for n new entries */
extern void jq_group_wake(int group, int n);

#endif /* JQ_LANE_H */
