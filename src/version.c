/*
 * version.c
 *		Versions of the library and of its SQL objects.
 */
#include "postgres.h"

#include <limits.h>

#include "version.h"

#ifdef JQ_TESTING
bool jobqueue_testing_old_library = false;
#endif

const char *
jq_version(void)
{
#ifdef JQ_TESTING
	if (jobqueue_testing_old_library)
		return "1.0";
#endif
	return JQ_VERSION;
}

/* the number at *s, and go on behind the dot after it; at the end: 0 */
static long
next_number(const char **s)
{
	char *end;
	long n;

	if (**s == '\0')
		return 0;
	n = strtol(*s, &end, 10);
	if (end == *s)
	{
		*s += strlen(*s);
		return LONG_MAX; /* who knows; newer than all that we do */
	}
	*s = *end == '.' ? end + 1 : end;
	return n;
}

/* "1.10" is newer than "1.9" */
int
jq_version_compare(const char *a, const char *b)
{
	while (*a != '\0' || *b != '\0')
	{
		long x = next_number(&a);
		long y = next_number(&b);

		if (x != y)
			return x < y ? -1 : 1;
	}
	return 0;
}
