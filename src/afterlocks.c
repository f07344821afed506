/*
 * afterlocks.c
 *		What the end of a transaction does once PostgreSQL's locks are released.
 */
#include "postgres.h"

#include "afterlocks.h"
#include "utils/resowner.h"

static JqAfterLocksStep steps[JQ_AFTER_LOCKS_STEPS];

static void
release_callback(ResourceReleasePhase phase, bool isCommit, bool isTopLevel,
				 void *arg)
{
	int i;

	(void) arg;
	/* what a subtransaction has that commits is its parent's from now on */
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || (isCommit && !isTopLevel))
		return;
	for (i = 0; i < JQ_AFTER_LOCKS_STEPS; i++)
		if (steps[i] != NULL)
			steps[i](isCommit, isTopLevel);
}

void
jq_after_locks(JqAfterLocks place, JqAfterLocksStep step)
{
	static bool registered;

	if (!registered)
		RegisterResourceReleaseCallback(release_callback, NULL);
	registered = true;
	steps[place] = step;
}
