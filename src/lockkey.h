/*
 * lockkey.h
 *		Keys that a session has locked.
 */
#ifndef JQ_LOCKKEY_H
#define JQ_LOCKKEY_H

/* DISCARD ALL: the session lets all of them go */
extern void jq_lockkey_discard(void);

/* worker, after the transaction: what the job has locked goes before its key */
extern void jq_lockkey_end_of_job(void);

#endif /* JQ_LOCKKEY_H */
