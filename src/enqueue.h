/*
 * enqueue.h
 *		Enqueueing jobs.
 */
#ifndef JQ_ENQUEUE_H
#define JQ_ENQUEUE_H

#include "postgres.h"

/* the settings named in jobqueue.capture_settings, as "name=value" text[] */
extern Datum jq_captured_settings(bool *isnull);

/* the search_path to be stored with a job; NULL = the role's own default */
extern const char *jq_captured_search_path(void);

#endif /* JQ_ENQUEUE_H */
