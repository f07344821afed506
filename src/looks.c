/*
 * looks.c
 *		Rows that a scheduler is to look at, as memory may not know what they are.
 *
 * Whoever gives back a job that somebody has passed over meanwhile publishes it as
 * he knows it, and asks for a look at its row besides: that is published as what it
 * is then.  What is asked for is no claim: nobody waits for it, and whoever takes the
 * job meanwhile is passed over in turn.
 *
 *		ERROR, ROLLBACK		what was asked for stays: a look too many
 *		crash of the server	all is gone, and the tables are read anew
 *		no room				all that memory knows of the database is read anew
 */
#include "postgres.h"

#include "looks.h"
#include "storage/shmem.h"

#define LOOKS_MAX 1024

typedef struct LookAt
{
	int64 id;
	Oid db;
} LookAt;

typedef struct Looks
{
	int n;
	LookAt at[LOOKS_MAX];
} Looks;

static Looks *looks;

Size
jq_looks_size(void)
{
	return MAXALIGN(sizeof(Looks));
}

void
jq_looks_init(void)
{
	bool found;

	looks = ShmemInitStruct("jobqueue looks", jq_looks_size(), &found);
	if (!found)
		looks->n = 0;
}

/* lock held */
static void
purge(Oid db)
{
	int i;

	for (i = looks->n - 1; i >= 0; i--)
		if (looks->at[i].db == db)
			looks->at[i] = looks->at[--looks->n];
}

bool
jq_looks_ask(Oid db, int64 id)
{
	bool asked = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	for (i = 0; i < looks->n && !asked; i++)
		asked = looks->at[i].db == db &&
				(looks->at[i].id == id || looks->at[i].id == JQ_LOOK_AT_ALL);
	if (!asked && looks->n == LOOKS_MAX)
	{
		purge(db);
		id = JQ_LOOK_AT_ALL;
	}
	if (!asked && looks->n < LOOKS_MAX)
	{
		looks->at[looks->n].id = id;
		looks->at[looks->n++].db = db;
		asked = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return asked;
}

bool
jq_looks_any(Oid db)
{
	bool found = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	for (i = 0; i < looks->n && !found; i++)
		found = looks->at[i].db == db;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return found;
}

bool
jq_looks_take(Oid db, int64 *id)
{
	bool found = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	for (i = 0; i < looks->n && !found; i++)
		if (looks->at[i].db == db)
		{
			*id = looks->at[i].id;
			looks->at[i] = looks->at[--looks->n];
			found = true;
		}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return found;
}

void
jq_looks_purge(Oid db)
{
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	purge(db);
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
}
