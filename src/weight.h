/*
 * weight.h
 *		Weights of queues: from which of its lanes a worker takes the next job.
 */
#ifndef JQ_WEIGHT_H
#define JQ_WEIGHT_H

#include "directory.h"

/* are there lanes of queues of different weights? */
extern bool jq_weights_differ(const int *lanes, int n);

/*
 * Of these lanes of the group the one that is owed most, of those that may have a
 * job (see jq_lane_may_have) and have not been chosen in this round; -1: none.
 * *start: where to begin among equals; moves on.
 */
extern int jq_weight_choose(int group, const int *lanes, int n, int place,
							int *start, uint32 round);

/* so many jobs of the lane have been taken */
extern void jq_weight_charge(int group, int lane, int jobs);

#endif /* JQ_WEIGHT_H */
