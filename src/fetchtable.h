/*
 * fetchtable.h
 *		The table of claims of consumers, for fetched.c and fetchend.c alone.
 */
#ifndef JQ_FETCHTABLE_H
#define JQ_FETCHTABLE_H

#include "fetched.h"
#include "utils/hsearch.h"

extern HTAB *jq_fetched_table;
extern bool jq_have_fetched; /* this session may have claims */

/* JQ_LOCK_FETCHED held */
extern JqFetched *jq_fetched_find(Oid db, int64 id);
/* no lock held: there may be room for a claim again */
extern void jq_fetched_tell_of_room(void);
/* no lock held: the scheduler is to look at leases then */
extern void jq_fetched_tell_lease(TimestampTz until);

#endif /* JQ_FETCHTABLE_H */
