/*
 * comeback.h
 *		Jobs that come back under their number while somebody has it claimed.
 */
#ifndef JQ_COMEBACK_H
#define JQ_COMEBACK_H

#include "jobtable.h"

/* In a transaction, before that: nothing is to be waited for then. */
extern void jq_look_prepare(JqTable *t);

/*
 * In a transaction, interrupts held: a claim on the job has ended without its row,
 * which was not there, or may have been changed.  If it is there now it is published.
 * counted: its lane counts it already, where memory has no room for it.
 */
extern void jq_look_again(JqTable *t, int64 id, bool counted);

/* the row as it is now */
extern void jq_publish_found(JqTable *t, JqRow *row);

#endif /* JQ_COMEBACK_H */
