/*
 * weight.c
 *		Weights of queues: stride scheduling among the lanes of a group.
 *
 * Each job taken moves its lane's "pass" on by a stride, which is the shorter the
 * greater the weight; the lane whose pass is least is next.  So, as long as two
 * lanes have jobs, as many are taken from each as its weight says, by all workers
 * of the group together.  A lane that had none is not owed for that time: it
 * begins at the group's "vtime", the pass at which a job was last taken.
 *
 * All of this is without locks: two workers that choose at once may choose the
 * same lane, and each charges it.  With equal weights workers go round the lanes
 * instead, and none of this is touched.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "weight.h"

#define STRIDE (UINT64CONST(1) << 20)

static uint32
weight_of(int lane)
{
	return pg_atomic_read_u32(&jq_queues[jq_lanes[lane].queue_ix].weight);
}

bool
jq_weights_differ(const int *lanes, int n)
{
	int i;

	for (i = 1; i < n; i++)
		if (weight_of(lanes[i]) != weight_of(lanes[0]))
			return true;
	return false;
}

int
jq_weight_choose(int group, const int *lanes, int n, int place, int *start,
				 uint32 round)
{
	static uint32 *tried; /* the last round in which a lane was chosen */
	uint64 vtime = pg_atomic_read_u64(&jq_groups[group].vtime);
	uint64 least = PG_UINT64_MAX;
	int best = -1;
	int i;

	if (tried == NULL)
		tried = MemoryContextAllocZero(TopMemoryContext,
									   jq_shared->nlanes * sizeof(uint32));
	for (i = 0; i < n; i++)
	{
		int at = (*start + i) % n;
		JqLane *l = &jq_lanes[lanes[at]];
		uint64 pass;

		if (!jq_lane_may_have(l, place) || tried[lanes[at]] == round)
			continue;
		pass = Max(pg_atomic_read_u64(&l->pass), vtime);
		if (pass < least)
		{
			least = pass;
			best = at;
		}
	}
	if (best < 0)
		return -1;
	*start = (best + 1) % n;
	tried[lanes[best]] = round;
	return lanes[best];
}

void
jq_weight_charge(int group, int lane, int jobs)
{
	JqLane *l = &jq_lanes[lane];
	uint64 vtime = pg_atomic_read_u64(&jq_groups[group].vtime);
	uint64 pass = pg_atomic_read_u64(&l->pass);
	uint64 stride = Max(STRIDE * jobs / Max(weight_of(lane), 1), 1);

	while (!pg_atomic_compare_exchange_u64(&l->pass, &pass,
										   Max(pass, vtime) + stride))
		;
	pass = Max(pass, vtime);
	while (
		vtime < pass &&
		!pg_atomic_compare_exchange_u64(&jq_groups[group].vtime, &vtime, pass))
		;
}
