/*
 * pause.h
 *		Named points at which a test can stop a process and let it go on.
 *		Compiled in with -DJQ_TESTING only.  Never under an LWLock.
 */
#ifndef JQ_PAUSE_H
#define JQ_PAUSE_H

#ifdef JQ_TESTING
#include "postgres.h"

extern Size jq_pause_size(void);
extern void jq_pause_init(void);
extern void jq_pause_here(const char *name);
#define JQ_PAUSE(name) jq_pause_here(name)
#else
#define JQ_PAUSE(name) ((void) 0)
#endif

#endif /* JQ_PAUSE_H */
