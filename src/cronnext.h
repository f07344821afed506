/*
 * cronnext.h
 *		Expressions and zones that users give.
 */
#ifndef JQ_CRONNEXT_H
#define JQ_CRONNEXT_H

#include "cron.h"
#include "fmgr.h"

/* SQLSTATE 22023, with the position in the text, unless it is an expression */
extern void jq_cron_of_text(const char *text, JqCron *cron);
/* NULL: the session's; SQLSTATE 22023 if there is none of that name */
extern pg_tz *jq_zone_of_text(const char *name);
/* the same without an error: NULL */
extern pg_tz *jq_zone_find(const char *name);

#endif /* JQ_CRONNEXT_H */
