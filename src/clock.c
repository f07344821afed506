/*
 * clock.c
 *		Tests set the clock by which schedules are due.
 */
#include "postgres.h"

#include "clock.h"

#ifdef JQ_TESTING

#include "compat.h"
#include "directory.h"
#include "fmgr.h"
#include "slot.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

/* let it show that time now (null: the server's) */
PG_FUNCTION_INFO_V1(jq_clock_set);
Datum
jq_clock_set(PG_FUNCTION_ARGS)
{
	int64 offset =
		PG_ARGISNULL(0) ? 0 : PG_GETARG_TIMESTAMPTZ(0) - GetCurrentTimestamp();
	int i;

	jq_shmem_check();
	pg_atomic_write_u64(&jq_shared->clock_offset, (uint64) offset);
	/* who sleeps would notice within a minute */
	for (i = 0; i < jq_shared->ndbs; i++)
	{
		int procno = -1;

		LWLockAcquire(jq_lock(JQ_LOCK_DB), LW_SHARED);
		if (jq_dbs[i].sched_state == JQ_SCHED_RUNNING)
			procno = jq_dbs[i].sched_procno;
		LWLockRelease(jq_lock(JQ_LOCK_DB));
		if (procno >= 0)
			SetLatch(&GetPGProcByNumber(procno)->procLatch);
	}
	jq_launcher_wake();
	PG_RETURN_VOID();
}

PG_FUNCTION_INFO_V1(jq_clock_show);
Datum
jq_clock_show(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	jq_shmem_check();
	PG_RETURN_TIMESTAMPTZ(jq_clock_now());
}

#endif /* JQ_TESTING */
