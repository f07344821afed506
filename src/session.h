/*
 * session.h
 *		A worker's session: whose it is, and what a job may not leave in it.
 */
#ifndef JQ_SESSION_H
#define JQ_SESSION_H

#include "postgres.h"

#include "nodes/nodes.h"

/*
 * Connect to the database as the role.  If nobody is a role, the session is
 * authenticated as that one, and then becomes the role.
 */
extern void jq_session_connect(Oid db, Oid role, Oid nobody);

/* FATAL unless session and current user are the role; outside transactions */
extern void jq_session_check(void);

/* undo what the last job left, if it can have left anything */
extern void jq_session_clean(void);

/*
 * In a transaction: may another job follow in it, or has this one left something
 * that outlives it?
 */
extern bool jq_session_is_clean(void);

/* utility hook: a statement that may leave something runs */
extern void jq_session_note_utility(Node *stmt);

/* the job has locked a key, for the session or (xact) for the transaction */
extern void jq_session_note_lock(bool xact);

/*
 * This transaction commits with that level (SyncCommitLevel); whole_job: and those
 * that follow until the session is cleaned.
 */
extern void jq_session_set_commit(int level, bool whole_job);

#endif /* JQ_SESSION_H */
