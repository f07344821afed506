/*
 * keywait.h
 *		Sessions that hold keys, or wait for them.
 *
 * A session shares the keys of its database with the jobs.  It wants a key for
 * itself alone; a process that has one, for a job or for its session, has it.
 * Call jq_keylock_prepare() before anything that may take a key.
 */
#ifndef JQ_KEYWAIT_H
#define JQ_KEYWAIT_H

#include "access/xlogdefs.h"
#include "keylock.h"
#include "storage/proc.h"

/*
 * Take the key for the session if nobody has it, and nobody stands in line.
 * JQ_KEY_BUSY: somebody holds it.  JQ_KEY_GONE: nobody does, but others are
 * there to have it first, perhaps: stand in line.
 */
extern JqKeyResult jq_keywait_take(Oid db, const char *key, int len);
/* this process has the key for a job: it has it for the session, too */
extern bool jq_keywait_share(Oid db, const char *key, int len);
/* it is not the session's any more */
extern void jq_keywait_release(Oid db, const char *key, int len);

/*
 * Stand in line, behind the jobs up to that id; false: the key table is full.
 * The process may stand in one line at a time, and its latch is set when it is
 * given the key.
 */
extern bool jq_keywait_begin(Oid db, const char *key, int len, int64 last_id);
/* has it been given the key?  If so, the session has it. */
extern bool jq_keywait_given(Oid db, const char *key, int len);
/* give up; a key that it may have been given goes back */
extern void jq_keywait_leave(Oid db, const char *key, int len);

/* whose quota: the role that has logged in, or whose jobs a worker runs */
extern Oid jq_keywait_role(void);
/* so many keys has this process locked, or is about to */
extern void jq_keywait_set_number(int n);
/* have all processes of its role locked more than that? */
extern bool jq_keywait_over_quota(int quota);

/* commits of holders that were there before need a flush up to here */
extern XLogRecPtr jq_keywait_lsn(Oid db, const char *key, int len);
/*
 * Whoever had the key may have committed without a flush, as workers do.  What
 * we do about it, or tell others, is not to be forgotten less easily than that.
 */
extern void jq_keywait_flush(XLogRecPtr lsn);

/* the nth holder of the key, from 0; false: there are not so many */
extern bool jq_keywait_holder(Oid db, const char *key, int len, int nth,
							  int *procno, int *pid);

/*
 * The process that holds the key, nobody besides, and keeps a job of a queue with
 * that key_limit from having it; 0: none does, for a lease
 */
extern bool jq_keywait_only_holder(Oid db, const char *key, int len, int limit,
								   int *pid);

/*
 * For waitgraph.c: the processes that hold the key which that one waits for; 0:
 * it waits for none.  *since tells this wait from its later ones.
 */
extern int jq_keywait_blockers(int procno, int pid, uint64 *since, int *pids,
							   int max);

#endif /* JQ_KEYWAIT_H */
