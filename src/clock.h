/*
 * clock.h
 *		The clock by which schedules are due.
 *
 * Test builds can set it; else it is the server's.
 */
#ifndef JQ_CLOCK_H
#define JQ_CLOCK_H

#include "shmem.h"

static inline int64
jq_clock_offset(void)
{
#ifdef JQ_TESTING
	return (int64) pg_atomic_read_u64(&jq_shared->clock_offset);
#else
	return 0;
#endif
}

static inline TimestampTz
jq_clock_now(void)
{
	return GetCurrentTimestamp() + jq_clock_offset();
}

/* when the server's clock shows what this one would */
static inline TimestampTz
jq_clock_to_real(TimestampTz when)
{
	return when == DT_NOEND ? when : when - jq_clock_offset();
}

#endif /* JQ_CLOCK_H */
