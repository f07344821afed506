/*
 * prepared.c
 *		Prepared transactions that enqueued.
 *
 * They are remembered by their global id, in memory only.  After a restart a
 * prepared transaction may have enqueued without being known here; its commit
 * then makes memory forget all it knows of the database (see utility.c).
 */
#include "postgres.h"

#include "access/twophase.h"
#include "miscadmin.h"
#include "prepared.h"
#include "storage/shmem.h"

static JqPrepared *prepared;

static int
nprepared(void)
{
	/* one may be prepared while another, just committed, is still here */
	return max_prepared_xacts + MaxBackends;
}

Size
jq_prepared_size(void)
{
	return MAXALIGN(mul_size(nprepared(), sizeof(JqPrepared)));
}

void
jq_prepared_init(void)
{
	bool found;

	prepared = ShmemInitStruct("jobqueue prepared", jq_prepared_size(), &found);
	if (!found)
		memset(prepared, 0, jq_prepared_size());
}

void
jq_prepared_store(const JqPrepared *p)
{
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_PREPARED), LW_EXCLUSIVE);
	for (i = 0; i < nprepared(); i++)
		if (prepared[i].gid[0] == '\0' || strcmp(prepared[i].gid, p->gid) == 0)
		{
			prepared[i] = *p;
			break;
		}
	LWLockRelease(jq_lock(JQ_LOCK_PREPARED));
}

bool
jq_prepared_take(const char *gid, JqPrepared *out)
{
	bool found = false;
	int i;

	LWLockAcquire(jq_lock(JQ_LOCK_PREPARED), LW_EXCLUSIVE);
	for (i = 0; i < nprepared() && !found; i++)
		if (gid[0] != '\0' && strcmp(prepared[i].gid, gid) == 0)
		{
			*out = prepared[i];
			prepared[i].gid[0] = '\0';
			found = true;
		}
	LWLockRelease(jq_lock(JQ_LOCK_PREPARED));
	return found;
}
