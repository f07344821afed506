/*
 * structbench.h
 *		The shared structures by themselves, to be measured.
 *		Compiled in with -DJQ_TESTING only.
 */
#ifndef JQ_STRUCTBENCH_H
#define JQ_STRUCTBENCH_H

#ifdef JQ_TESTING
#include "postgres.h"

extern Size jq_bench_size(void);
extern void jq_bench_init(void);
#endif

#endif /* JQ_STRUCTBENCH_H */
