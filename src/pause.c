/*
 * pause.c
 *		Pause points for tests.
 *
 * A test arms a point by name; the next process that comes by stops there
 * until the point is released.  A point is one-shot: it disarms itself when
 * it catches a process.  States of a point:
 *
 *		free -> armed		: jq_pause_arm
 *		armed -> caught		: the process that comes by
 *		caught -> free		: jq_pause_release, or the caught process dies
 */
#include "postgres.h"

#include "pause.h"

#ifdef JQ_TESTING

#include "compat.h"
#include "fmgr.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/builtins.h"

#define JQ_NPAUSE 16

typedef struct JqPausePoint
{
	char name[NAMEDATALEN]; /* all under JQ_LOCK_PAUSE */
	bool armed;
	int caught_pid; /* 0 = nobody */
	bool released;
	int procno;
} JqPausePoint;

typedef struct JqPause
{
	pg_atomic_uint32 narmed;
	JqPausePoint p[JQ_NPAUSE];
} JqPause;

static JqPause *pause_shared;

Size
jq_pause_size(void)
{
	return MAXALIGN(sizeof(JqPause));
}

void
jq_pause_init(void)
{
	bool found;

	pause_shared =
		ShmemInitStruct("jobqueue pause points", jq_pause_size(), &found);
	if (!found)
	{
		memset(pause_shared, 0, sizeof(JqPause));
		pg_atomic_init_u32(&pause_shared->narmed, 0);
	}
}

static JqPausePoint *
pause_find(const char *name)
{
	int i;

	for (i = 0; i < JQ_NPAUSE; i++)
		if (strcmp(pause_shared->p[i].name, name) == 0)
			return &pause_shared->p[i];
	return NULL;
}

void
jq_pause_here(const char *name)
{
	JqPausePoint *p;
	bool mine = false;

	if (pause_shared == NULL || pg_atomic_read_u32(&pause_shared->narmed) == 0)
		return;
	LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_EXCLUSIVE);
	p = pause_find(name);
	if (p && p->armed)
	{
		p->armed = false;
		p->released = false;
		p->caught_pid = MyProcPid;
		p->procno = jq_my_procno();
		pg_atomic_fetch_sub_u32(&pause_shared->narmed, 1);
		mine = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
	if (!mine)
		return;
	for (;;)
	{
		bool done;

		LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_SHARED);
		done = p->released || p->caught_pid != MyProcPid;
		LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
		if (done)
			break;
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		/* a cancel is for the code around the point, not for the point */
		if (ProcDiePending)
			CHECK_FOR_INTERRUPTS();
	}
	LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_EXCLUSIVE);
	if (p->caught_pid == MyProcPid)
	{
		p->caught_pid = 0;
		p->name[0] = '\0';
	}
	LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
	SetLatch(MyLatch); /* what we swallowed */
}

/* jq_pause_arm(text): the next process at that point stops */
PG_FUNCTION_INFO_V1(jq_pause_arm);
Datum
jq_pause_arm(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	JqPausePoint *p;
	bool ok = false;

	jq_shmem_check();
	LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_EXCLUSIVE);
	p = pause_find(name);
	if (p == NULL)
		p = pause_find("");
	if (p != NULL)
	{
		strlcpy(p->name, name, NAMEDATALEN);
		p->caught_pid = 0;
		p->released = false;
		if (!p->armed)
			pg_atomic_fetch_add_u32(&pause_shared->narmed, 1);
		p->armed = true;
		ok = true;
	}
	LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
	if (!ok)
		elog(ERROR, "no pause point left");
	PG_RETURN_VOID();
}

/* jq_pause_caught(text) -> int: pid of the process that stopped there, or NULL */
PG_FUNCTION_INFO_V1(jq_pause_caught);
Datum
jq_pause_caught(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	JqPausePoint *p;
	int pid = 0;

	jq_shmem_check();
	LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_SHARED);
	p = pause_find(name);
	if (p != NULL)
		pid = p->caught_pid;
	LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
	if (pid == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(pid);
}

/* jq_pause_release(text): go on; disarms it if nobody came */
PG_FUNCTION_INFO_V1(jq_pause_release);
Datum
jq_pause_release(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	JqPausePoint *p;
	int procno = -1;

	jq_shmem_check();
	LWLockAcquire(jq_lock(JQ_LOCK_PAUSE), LW_EXCLUSIVE);
	p = pause_find(name);
	if (p != NULL)
	{
		if (p->armed)
		{
			pg_atomic_fetch_sub_u32(&pause_shared->narmed, 1);
			p->armed = false;
			p->name[0] = '\0';
		}
		else if (p->caught_pid != 0)
		{
			p->released = true;
			procno = p->procno;
		}
	}
	LWLockRelease(jq_lock(JQ_LOCK_PAUSE));
	if (procno >= 0)
		SetLatch(&GetPGProcByNumber(procno)->procLatch);
	PG_RETURN_BOOL(procno >= 0);
}

#endif /* JQ_TESTING */
