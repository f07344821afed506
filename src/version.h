/*
 * version.h
 *		Which version of the SQL objects this library is made for.
 *
 * It serves those before it, too, without what came later: so a package may be
 * upgraded first, and each database when it suits (ALTER EXTENSION ... UPDATE).
 * Objects that are newer than the library are not touched: who knows what they
 * mean.
 */
#ifndef JQ_VERSION_H
#define JQ_VERSION_H

#define JQ_VERSION "1.1"

#ifdef JQ_TESTING
/* test builds: be the library of 1.0 */
extern bool jobqueue_testing_old_library;
#endif

/* the version of this library, as the setting jobqueue.library_version has it */
extern const char *jq_version(void);

/* <0: a is older than b, 0: the same, >0: newer */
extern int jq_version_compare(const char *a, const char *b);

#endif /* JQ_VERSION_H */
