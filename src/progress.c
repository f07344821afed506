/*
 * progress.c
 *		Progress of running jobs, one place for each worker slot.
 *
 * Written by the slot's process alone, read without a lock: readers retry while
 * changecount is odd or has moved.  What stands there names its job, so that
 * nobody takes it for that of the next one.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "progress.h"
#include "slot.h"
#include "storage/shmem.h"

typedef struct JqProgress
{
	volatile uint32 changecount;
	int64 job; /* 0 = nothing was said */
	JqProgressInfo info;
} JqProgress;

static JqProgress *places;

Size
jq_progress_size(void)
{
	return MAXALIGN(mul_size(max_worker_processes, sizeof(JqProgress)));
}

void
jq_progress_init(void)
{
	bool found;

	places = ShmemInitStruct("jobqueue progress", jq_progress_size(), &found);
	if (!found)
		memset(places, 0, jq_progress_size());
}

static void
set_place(int64 job, float8 fraction, const char *message)
{
	JqProgress *p = &places[jq_my_slot];

	p->changecount++;
	pg_write_barrier();
	p->job = job;
	p->info.fraction = fraction;
	strlcpy(p->info.message, message, sizeof(p->info.message));
	pg_write_barrier();
	p->changecount++;
}

void
jq_progress_set(int64 job, float8 fraction, const char *message)
{
	set_place(job, fraction, message);
}

void
jq_progress_clear(void)
{
	/* most jobs never say anything */
	if (jq_my_slot >= 0 && places[jq_my_slot].job != 0)
		set_place(0, 0, "");
}

bool
jq_progress_get(int slot, int64 job, JqProgressInfo *out)
{
	JqProgress *p = &places[slot];
	int tries;

	for (tries = 0; tries < 1000; tries++)
	{
		uint32 before = p->changecount;
		bool mine;

		pg_read_barrier();
		mine = p->job == job;
		*out = p->info;
		pg_read_barrier();
		if (before == p->changecount && !(before & 1))
		{
			out->message[JQ_PROGRESS_MESSAGE - 1] = '\0';
			return mine;
		}
	}
	return false;
}
