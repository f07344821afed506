/*
 * enqueue.h
 *		Enqueueing jobs.
 */
#ifndef JQ_ENQUEUE_H
#define JQ_ENQUEUE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* the settings named in jobqueue.capture_settings, as "name=value" text[] */
extern Datum jq_captured_settings(bool *isnull);

/* the search_path to be stored with a job; NULL = the role's own default */
extern const char *jq_captured_search_path(void);

/*
 * May the session write jobs now?  ERROR if not; the function is named there.
 */
extern struct JqTable *jq_enqueue_begin(const char *function);

/* SQLSTATEs 54000, 22015 and 22003 */
extern void jq_check_args_size(Datum args);
extern void jq_check_interval(const char *what, Interval *i);
/* SQLSTATEs 22003 and 22004 */
extern void jq_check_priority(int priority);
extern void jq_check_max_attempts(int n);
extern void jq_check_tags(struct ArrayType *tags);

#endif /* JQ_ENQUEUE_H */
