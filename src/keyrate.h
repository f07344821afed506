/*
 * keyrate.h
 *		key_rate: how often jobs of a key may start.
 *
 * The lock of the key's partition (keytable.h) is held in all of these but the
 * first two.
 */
#ifndef JQ_KEYRATE_H
#define JQ_KEYRATE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* a bucket: of a queue and a key */
typedef struct JqKeyBucket
{
	uint32 partition; /* of the key */
	uint64 digest;
	int64 interval; /* us: a token more each */
	int64 size;		/* tokens in a full one */
} JqKeyBucket;

extern Size jq_keyrate_size(void);
extern void jq_keyrate_init(void);

extern void jq_keyrate_bucket(JqKeyBucket *b, uint32 partition, Oid db,
							  const char *queue, const char *key, int len,
							  int32 rate, int64 per_us);

/*
 * When has the bucket a token?  Not after now: at once.  Where there is no room
 * for the bucket, when to look again.
 */
extern TimestampTz jq_keyrate_next(const JqKeyBucket *b, TimestampTz now);
/* take the token that is there */
extern void jq_keyrate_take(const JqKeyBucket *b, TimestampTz now);
/* it has not been used; interval: that of the bucket now, which may be another */
extern void jq_keyrate_give_back(const JqKeyBucket *b, int64 interval);

#endif /* JQ_KEYRATE_H */
