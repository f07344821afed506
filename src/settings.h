/*
 * settings.h
 *		What can be set for a queue: values, defaults, columns, checks.
 *
 * Knows no shared memory: see queue.h for what is in force.
 */
#ifndef JQ_SETTINGS_H
#define JQ_SETTINGS_H

#include "postgres.h"

#include "access/htup.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "fmgr.h"

/* compared as bytes: no padding between the members */
typedef struct JqQueueSettings
{
	int64 rate_per_us;
	int64 key_rate_per_us;
	int64 backoff_base_us;
	int64 backoff_max_us;
	int64 timeout_us; /* -1 = the default, 0 = none */
	int64 keep_us;
	int64 keep_dead_us;
	int32 max_running; /* 0 = no limit */
	int32 key_limit;
	int32 rate;		/* 0 = no limit */
	int32 key_rate; /* 0 = no limit */
	int32 weight;
	int32 max_attempts;		  /* 0 = the default */
	int32 synchronous_commit; /* SyncCommitLevel, -1 = what the role has */
	int32 batch;
	bool ordered;
	bool has_on_dead; /* the function's name is in the table */
	char backoff;	  /* 'e'xponential, 'l'inear, 'c'onstant */
	char unused[5];	  /* 0 */
} JqQueueSettings;

extern void jq_settings_default(JqQueueSettings *s);
extern bool jq_settings_equal(const JqQueueSettings *a,
							  const JqQueueSettings *b);

/* their columns in jobqueue_queue, for a list of columns; in order */
extern const char *jq_settings_columns(void);
/* from a row with these columns from number first on */
extern void jq_settings_of_row(HeapTuple tup, TupleDesc desc, int first,
							   JqQueueSettings *s);

/*
 * The arguments of jobqueue_configure() from number first on, in the order of
 * the columns.  What is not NULL is checked and becomes a column and a value of
 * a statement; returns how many.  The arrays have room for JQ_NSETTINGS.
 */
#define JQ_NSETTINGS 18
extern int jq_settings_of_args(FunctionCallInfo fcinfo, int first,
							   const char **columns, Oid *types, Datum *values,
							   char *nulls);

/* a month is 30 days */
extern int64 jq_interval_us(const Interval *i);

#endif /* JQ_SETTINGS_H */
