/*
 * guc.c
 *		The settings of jobqueue.
 */
#include "postgres.h"

#include <limits.h>

#include "guc.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/varlena.h"
#include "version.h"

bool jobqueue_enabled = true;
int jobqueue_max_workers = 4;
int jobqueue_max_workers_per_role = 0;
int jobqueue_max_ready_jobs = 100000;
int jobqueue_max_lanes = 1024;
int jobqueue_max_databases = 256;
int jobqueue_max_args_size = 1024;
int jobqueue_flush_interval = 2;
int jobqueue_worker_idle_timeout = 60;
int jobqueue_worker_max_jobs = 0;
int jobqueue_worker_max_memory = 65536;
char *jobqueue_capture_settings = NULL;
bool jobqueue_inline = false;
char *jobqueue_scheduled_for = NULL;
int jobqueue_max_jobs_per_role = 0;
#ifdef JQ_TESTING
int jobqueue_testing_key_turn = 2000;
#endif

/* a list of names of settings; which exist is known only in a session */
static bool
check_capture_settings(char **newval, void **extra, GucSource source)
{
	char *copy;
	List *names;
	bool ok;

	(void) extra;
	(void) source;
	if (*newval == NULL)
		return true;
	copy = pstrdup(*newval);
	ok = SplitIdentifierString(copy, ',', &names);
	if (!ok)
		GUC_check_errdetail("List syntax is invalid.");
	pfree(copy);
	return ok;
}

void
jq_guc_define_version(void)
{
	static char *version;

#ifdef JQ_TESTING
	if (process_shared_preload_libraries_in_progress)
		DefineCustomBoolVariable(
			"jobqueue.testing_old_library",
			"Test builds: behaves like the library of version 1.0.", NULL,
			&jobqueue_testing_old_library, false, PGC_POSTMASTER,
			GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	DefineCustomIntVariable(
		"jobqueue.testing_key_turn",
		"Test builds: how long whoever is to have a key next has to take it.",
		NULL, &jobqueue_testing_key_turn, 2000, 1, 600000, PGC_SIGHUP,
		GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE | GUC_UNIT_MS, NULL, NULL, NULL);
	if (jobqueue_testing_old_library)
		return;
#endif
	DefineCustomStringVariable("jobqueue.library_version",
							   "Shows the version of the library that is "
							   "loaded.",
							   "The SQL objects of a database may be of an "
							   "older one.",
							   &version, JQ_VERSION, PGC_INTERNAL, 0, NULL,
							   NULL, NULL);
}

void
jq_guc_define(void)
{
	DefineCustomBoolVariable("jobqueue.enabled", "Runs jobs.",
							 "Off: jobs are enqueued, none is started.",
							 &jobqueue_enabled, true, PGC_SIGHUP, 0, NULL, NULL,
							 NULL);
	DefineCustomIntVariable("jobqueue.max_workers",
							"Sets how many jobs the server runs at once.",
							"What max_worker_processes leaves may be less.",
							&jobqueue_max_workers, 4, 0, 1024, PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_workers_per_role",
							"Sets how many workers one role may have at once.",
							"0 means one less than jobqueue.max_workers, but "
							"at least one.",
							&jobqueue_max_workers_per_role, 0, 0, 1024,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_ready_jobs",
							"Sets how many waiting jobs are kept in memory.",
							"The others stay in the table until there is "
							"room. One takes 232 bytes of shared memory.",
							&jobqueue_max_ready_jobs, 100000, 64, 100000000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_lanes",
							"Sets how many combinations of database, role and "
							"queue memory can hold at once.",
							"One takes 3280 bytes of shared memory.",
							&jobqueue_max_lanes, 1024, 8, 65536, PGC_POSTMASTER,
							0, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_databases",
							"Sets how many databases may use jobqueue.",
							"One takes 752 bytes of shared memory.",
							&jobqueue_max_databases, 256, 1, 65536,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_args_size",
							"Sets the largest size of a job's arguments.", NULL,
							&jobqueue_max_args_size, 1024, 1, MAX_KILOBYTES,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.flush_interval",
							"Sets how long a worker that has more to do may "
							"leave completed jobs unflushed.",
							"Or ten times as long as a flush takes. "
							"0 flushes after each job.",
							&jobqueue_flush_interval, 2, 0, 10000, PGC_SIGHUP,
							GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.worker_idle_timeout",
							"Sets how long a worker waits for a next job "
							"before it exits.",
							NULL, &jobqueue_worker_idle_timeout, 60, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.worker_max_jobs",
							"Sets after how many jobs a worker is replaced.",
							"0 means never.", &jobqueue_worker_max_jobs, 0, 0,
							INT_MAX, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("jobqueue.worker_max_memory",
							"Sets at which size of its memory a worker is "
							"replaced after the job.",
							"It is looked at every 256 jobs. 0 means never.",
							&jobqueue_worker_max_memory, 65536, 0,
							MAX_KILOBYTES, PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL,
							NULL);
	DefineCustomStringVariable("jobqueue.capture_settings",
							   "Names settings that are stored with a job "
							   "and hold while it runs.",
							   NULL, &jobqueue_capture_settings, "", PGC_SUSET,
							   GUC_LIST_INPUT, check_capture_settings, NULL,
							   NULL);
	DefineCustomBoolVariable("jobqueue.inline",
							 "Runs each job at its enqueue, in the enqueuing "
							 "transaction.",
							 "For the tests of applications.", &jobqueue_inline,
							 false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("jobqueue.scheduled_for",
							   "Shows, in a job of a schedule, the instant it "
							   "was enqueued for.",
							   NULL, &jobqueue_scheduled_for, "", PGC_USERSET,
							   GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE, NULL,
							   NULL, NULL);
	DefineCustomIntVariable("jobqueue.max_jobs_per_role",
							"Sets how many live jobs a role may have in a "
							"database.",
							"0 means no limit. Superusers are exempt.",
							&jobqueue_max_jobs_per_role, 0, 0, INT_MAX,
							PGC_SUSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("jobqueue");
}

int
jq_workers_per_role(void)
{
	if (jobqueue_max_workers_per_role > 0)
		return jobqueue_max_workers_per_role;
	return Max(jobqueue_max_workers - 1, 1);
}
