/*
 * rowguard.h
 *		Rows that come past the functions.
 */
#ifndef JQ_ROWGUARD_H
#define JQ_ROWGUARD_H

#include "postgres.h"

/* ERROR unless the current user could become that role */
extern void jq_row_check_owner(Oid owner);

#endif /* JQ_ROWGUARD_H */
