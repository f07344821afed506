/*
 * inflight.c
 *		In-flight marks: a small file that outlives a crash of the server.
 *
 * A worker writes the job it starts into its own place of a mapped file and
 * clears it when the job has ended.  A process that is told to die (SIGQUIT:
 * immediate stop, or another process crashed) clears its mark first; so what
 * is marked when the server comes back died by itself: by a signal of its own,
 * or killed by the kernel.
 *
 * The file has two parts.  "marks": one a slot, of the present life of shared
 * memory.  "suspects": marks of former lives that no scheduler has settled yet,
 * that is, has committed as a crash of that job.  At start the marks join the
 * suspects.
 *
 * The header tells whether the marks mean anything here: same cluster, same
 * boot of the machine (after a power failure nobody is to blame), same inode (a
 * copy of the directory is another server).  The file is in pg_stat_tmp, which
 * base backups leave out.
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/file_perm.h"
#include "inflight.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/shmem.h"

#define JQ_INFLIGHT_FILE "pg_stat_tmp/jobqueue.inflight"
#define JQ_INFLIGHT_MAGIC UINT64CONST(0x6a6f627175657531)

typedef struct JqMark
{
	volatile int64 id; /* 0 = nothing */
	volatile uint32 db;
	uint32 unused;
} JqMark;

typedef struct JqMarkFile
{
	uint64 magic;
	uint64 system_id;
	uint64 inode;
	char boot_id[40];
	uint32 nslots;
	uint32 nsuspects;
	JqSuspect suspects[JQ_MAX_SUSPECTS];
	JqMark marks[FLEXIBLE_ARRAY_MEMBER];
} JqMarkFile;

/* suspects in shared memory, JQ_LOCK_CLAIM; the file follows it */
typedef struct JqSuspects
{
	int n;
	JqSuspect s[JQ_MAX_SUSPECTS];
} JqSuspects;

static JqSuspects *suspects;
static JqMarkFile *mapped;
static volatile JqMark *my_mark;

Size
jq_inflight_size(void)
{
	return MAXALIGN(sizeof(JqSuspects));
}

static size_t
file_size(int nslots)
{
	return offsetof(JqMarkFile, marks) + nslots * sizeof(JqMark);
}

static void
get_boot_id(char *buf, size_t size)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
	ssize_t n = 0;

	memset(buf, 0, size);
	if (fd >= 0)
	{
		n = read(fd, buf, size - 1);
		close(fd);
	}
	if (n <= 0)
		strlcpy(buf, "unknown", size);
}

static bool
map_file(int nslots)
{
	int fd;
	void *p;

	if (mapped != NULL)
		return true;
	fd = open(JQ_INFLIGHT_FILE, O_RDWR);
	if (fd < 0)
		return false;
	p = mmap(NULL, file_size(nslots), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			 0);
	close(fd);
	if (p == MAP_FAILED)
		return false;
	mapped = p;
	return true;
}

/* what the file says, if it is of this server and this boot */
static void
read_marks(void)
{
	int fd = open(JQ_INFLIGHT_FILE, O_RDONLY);
	struct stat st;
	JqMarkFile *old;
	char boot_id[40];
	uint32 i;
	int nmarked = 0;

	if (fd < 0)
		return;
	if (fstat(fd, &st) != 0 || st.st_size < (off_t) sizeof(JqMarkFile) ||
		st.st_size > 16 * 1024 * 1024)
	{
		close(fd);
		return;
	}
	old = malloc(st.st_size);
	get_boot_id(boot_id, sizeof(boot_id));
	if (old != NULL && read(fd, old, st.st_size) == st.st_size &&
		old->magic == JQ_INFLIGHT_MAGIC &&
		old->system_id == GetSystemIdentifier() &&
		old->inode == (uint64) st.st_ino &&
		memcmp(old->boot_id, boot_id, sizeof(boot_id)) == 0 &&
		st.st_size == (off_t) file_size(old->nslots) &&
		old->nsuspects <= JQ_MAX_SUSPECTS)
	{
		suspects->n = old->nsuspects;
		memcpy(suspects->s, old->suspects, old->nsuspects * sizeof(JqSuspect));
		for (i = 0; i < old->nslots; i++)
			if (old->marks[i].id != 0)
				nmarked++;
		for (i = 0; i < old->nslots; i++)
			if (old->marks[i].id != 0 && suspects->n < JQ_MAX_SUSPECTS)
			{
				JqSuspect *s = &suspects->s[suspects->n++];

				memset(s, 0, sizeof(*s));
				s->id = old->marks[i].id;
				s->db = old->marks[i].db;
				s->alone = nmarked == 1;
			}
	}
	free(old);
	close(fd);
}

/* postmaster: a new file every time, so that its inode tells copies apart */
static void
write_file(int nslots)
{
	size_t size = file_size(nslots);
	JqMarkFile *new = calloc(1, size);
	int fd;
	struct stat st;

	if (new == NULL)
		return;
	fd = open(JQ_INFLIGHT_FILE ".new", O_RDWR | O_CREAT | O_TRUNC,
			  pg_file_create_mode);
	if (fd >= 0 && fstat(fd, &st) == 0)
	{
		new->magic = JQ_INFLIGHT_MAGIC;
		new->system_id = GetSystemIdentifier();
		new->inode = (uint64) st.st_ino;
		get_boot_id(new->boot_id, sizeof(new->boot_id));
		new->nslots = nslots;
		new->nsuspects = suspects->n;
		memcpy(new->suspects, suspects->s, suspects->n * sizeof(JqSuspect));
		if (write(fd, new, size) != (ssize_t) size ||
			rename(JQ_INFLIGHT_FILE ".new", JQ_INFLIGHT_FILE) != 0)
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not write file \"%s\": %m",
								 JQ_INFLIGHT_FILE)));
	}
	else
		ereport(LOG, (errcode_for_file_access(),
					  errmsg("could not create file \"%s\": %m",
							 JQ_INFLIGHT_FILE ".new")));
	if (fd >= 0)
		close(fd);
	free(new);
}

void
jq_inflight_init(void)
{
	bool found;

	suspects = ShmemInitStruct("jobqueue suspects", jq_inflight_size(), &found);
	if (found)
		return;
	memset(suspects, 0, sizeof(*suspects));
	if (IsUnderPostmaster || !IsPostmasterEnvironment)
		return;
	read_marks();
	write_file(max_worker_processes);
}

/* ---------------------------------------------------------------- worker */

static void
quit_handler(SIGNAL_ARGS)
{
	if (my_mark != NULL)
		my_mark->id = 0; /* told to die: not guilty */
	SignalHandlerForCrashExit(postgres_signal_arg);
}

void
jq_inflight_attach(int slot)
{
	if (map_file(max_worker_processes))
		my_mark = &mapped->marks[slot];
	pqsignal(SIGQUIT, quit_handler);
}

void
jq_inflight_mark(Oid db, int64 id)
{
	if (my_mark == NULL)
		return;
	my_mark->db = db;
	pg_write_barrier();
	my_mark->id = id;
}

void
jq_inflight_clear(void)
{
	if (my_mark != NULL)
		my_mark->id = 0;
}

bool
jq_inflight_is_suspect(Oid db, int64 id)
{
	bool found = false;
	int i;

	/* no more of them come while the server is up */
	if (*(volatile int *) &suspects->n == 0)
		return false;
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	for (i = 0; i < suspects->n && !found; i++)
		found = suspects->s[i].db == db && suspects->s[i].id == id;
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return found;
}

/* ------------------------------------------------------------- scheduler */

JqSuspect *
jq_inflight_suspects(Oid db, int *n)
{
	JqSuspect *list = palloc(JQ_MAX_SUSPECTS * sizeof(JqSuspect));
	int i;

	*n = 0;
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_SHARED);
	for (i = 0; i < suspects->n; i++)
		if (suspects->s[i].db == db)
			list[(*n)++] = suspects->s[i];
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
	return list;
}

void
jq_inflight_settled(Oid db, int64 id)
{
	int i;

	/* mapped first: nothing under the lock may fail */
	(void) map_file(max_worker_processes);
	LWLockAcquire(jq_lock(JQ_LOCK_CLAIM), LW_EXCLUSIVE);
	for (i = 0; i < suspects->n; i++)
		if (suspects->s[i].db == db && suspects->s[i].id == id)
		{
			suspects->s[i] = suspects->s[--suspects->n];
			i--;
		}
	if (mapped != NULL)
	{
		memcpy(mapped->suspects, suspects->s, suspects->n * sizeof(JqSuspect));
		mapped->nsuspects = suspects->n;
	}
	LWLockRelease(jq_lock(JQ_LOCK_CLAIM));
}
