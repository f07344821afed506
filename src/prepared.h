/*
 * prepared.h
 *		What prepared transactions have enqueued: COMMIT PREPARED, by whatever
 *		session, publishes it.
 */
#ifndef JQ_PREPARED_H
#define JQ_PREPARED_H

#include "pool.h"
#include "shmem.h"

#define JQ_PREPARED_LANES 8
#define JQ_PREPARED_RECYCLE 8

typedef struct JqPreparedLane
{
	Oid role;
	char queue[JQ_QUEUE_NAME_MAX + 1];
	JqPos first; /* its smallest ready row */
	int64 low_id;
	int64 nrows;
} JqPreparedLane;

/* see quota.c */
typedef struct JqPreparedQuota
{
	Oid role;
	int64 n;
} JqPreparedQuota;

/* workers that are to start anew: of these, InvalidOid = all */
typedef struct JqRecycle
{
	Oid db;
	Oid role;
} JqRecycle;

typedef struct JqPrepared
{
	char gid[256]; /* JQ_LOCK_PREPARED; empty = free */
	Oid db;
	bool all;		 /* more lanes than fit, or unknown */
	bool due;		 /* rows that wait for their time */
	bool settings;	 /* of queues were changed */
	bool count_anew; /* rows of another home came */
	bool schedules;	 /* were made or changed */
	bool after;		 /* jobs wait for others, or have ended */
	bool databases;	 /* have come, or changed */
	bool created;	 /* the extension */
	int nlanes;
	JqPreparedLane lanes[JQ_PREPARED_LANES];
	int nquotas;
	JqPreparedQuota quotas[JQ_PREPARED_LANES];
	bool quota_stale; /* rows came and went besides */
	int nrecycle;
	JqRecycle recycle[JQ_PREPARED_RECYCLE];
} JqPrepared;

extern Size jq_prepared_size(void);
extern void jq_prepared_init(void);

/* at PREPARE; cannot fail: there is a place for each prepared transaction */
extern void jq_prepared_store(const JqPrepared *p);
/* at COMMIT or ROLLBACK PREPARED: find and forget */
extern bool jq_prepared_take(const char *gid, JqPrepared *out);

#endif /* JQ_PREPARED_H */
