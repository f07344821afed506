/*
 * rowguard.h
 *		Rows that come past the functions.
 */
#ifndef JQ_ROWGUARD_H
#define JQ_ROWGUARD_H

#include "jobtable.h"

/* ERROR unless the current user could become that role */
extern void jq_row_check_owner(Oid owner);

/* the row that a trigger was given, with the number that it is to have */
extern HeapTuple jq_row_number(HeapTuple old, HeapTuple new, TupleDesc desc,
							   JqTable *t);

/* ERROR unless it could be what jobqueue_schedule() writes: queue and key */
extern void jq_row_check_schedule(HeapTuple tup, TupleDesc desc);

#endif /* JQ_ROWGUARD_H */
