/*
 * jobqueue.c
 *		Start of the library: settings, shared memory, hooks, the launcher.
 */
#include "postgres.h"

#include "compat.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "planner.h"
#include "postmaster/bgworker.h"
#include "shmem.h"
#include "utility.h"
#include "version.h"

JQ_MODULE_MAGIC("jobqueue", JQ_VERSION);

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	BackgroundWorker w;

	/* the scripts of later versions want to see it, preloaded or not */
	jq_guc_define_version();

	/*
	 * Without shared memory nothing works, and every function says so; a
	 * server that pg_upgrade runs is to be left alone.
	 */
	if (!process_shared_preload_libraries_in_progress)
		return;
	jq_guc_define();
	if (IsBinaryUpgrade)
		return;
	jq_shmem_init_hooks();
	jq_utility_init();
	jq_planner_init();

	memset(&w, 0, sizeof(w));
	w.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	w.bgw_start_time = BgWorkerStart_RecoveryFinished;
	w.bgw_restart_time = 5;
	strlcpy(w.bgw_library_name, "jobqueue", sizeof(w.bgw_library_name));
	strlcpy(w.bgw_function_name, "jq_launcher_main",
			sizeof(w.bgw_function_name));
	strlcpy(w.bgw_type, "jobqueue launcher", sizeof(w.bgw_type));
	strlcpy(w.bgw_name, "jobqueue launcher", sizeof(w.bgw_name));
	RegisterBackgroundWorker(&w);
}
