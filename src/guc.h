/*
 * guc.h
 *		The settings of jobqueue; README.md describes them.
 */
#ifndef JQ_GUC_H
#define JQ_GUC_H

extern bool jobqueue_enabled;
extern int jobqueue_max_workers;
extern int jobqueue_max_workers_per_role; /* 0 = max_workers - 1 */
extern int jobqueue_max_ready_jobs;
extern int jobqueue_max_lanes;
extern int jobqueue_max_databases;
extern int jobqueue_max_args_size;		 /* kB */
extern int jobqueue_flush_interval;		 /* ms */
extern int jobqueue_worker_idle_timeout; /* s */
extern int jobqueue_worker_max_jobs;
extern int jobqueue_worker_max_memory; /* kB */
extern char *jobqueue_capture_settings;
extern bool jobqueue_inline;
extern char *jobqueue_scheduled_for; /* read by jobs only */
extern int jobqueue_max_jobs_per_role;
#ifdef JQ_TESTING
extern int jobqueue_testing_key_turn; /* ms */
#endif

extern void jq_guc_define(void);
/* jobqueue.library_version */
extern void jq_guc_define_version(void);

/* the cap for one role that is in force */
extern int jq_workers_per_role(void);

#endif /* JQ_GUC_H */
