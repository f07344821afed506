/*
 * keywake.h
 *		Moments at which a key is to be looked at again.
 *
 * For keylock.c and its like; the launcher, which is always there, looks.
 */
#ifndef JQ_KEYWAKE_H
#define JQ_KEYWAKE_H

#include "keytable.h"

extern Size jq_keywake_size(void);
extern void jq_keywake_init(void);

/* partition lock held: look at the key then, or sooner */
extern void jq_key_wake_by(JqKey *k, uint32 hash, TimestampTz when);
/* partition lock held: no more */
extern void jq_key_wake_cancel(JqKey *k, uint32 hash);

/* no lock held: tell the launcher, if a moment is sooner than it knows */
extern void jq_key_wake_tell(void);

#endif /* JQ_KEYWAKE_H */
