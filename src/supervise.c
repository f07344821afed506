/*
 * supervise.c
 *		What becomes of a service and its messages when one of them fails.
 *
 * permanent: the message is tried again at once.  transient: it is dropped, and
 * the next one comes.  temporary: the service ends.  More than max_restarts
 * failures within the period, and the service has failed: its messages wait
 * until it is started again.
 *
 * Messages of a failed service wait in the table: the first one that is met has
 * run_at = infinity, and by the order of the key all later ones wait for it.  To
 * start the service again is to let the few such rows go.
 *
 * Lock order of rows: a job, then its service.  Whoever starts a service again
 * has the service first, but waits for no job that is being recorded: those do
 * not have run_at = infinity.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "control.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "publish.h"
#include "servicerow.h"
#include "supervise.h"
#include "utils/builtins.h"

/* ids of jobs that a statement finds; palloc'd */
static int64 *
list_jobs(JqTable *t, const char *sql, int64 service, int64 but, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {TEXTOID, INT8OID};
	Datum values[2];
	JqOwnerState state;
	int64 *ids;
	bool isnull;
	int i;

	values[0] = CStringGetTextDatum(jq_service_key(service));
	values[1] = Int64GetDatum(but);
	jq_owner_begin(t, &state);
	jq_owner_read(t, sql, 2, types, values, NULL);
	*n = (int) SPI_processed;
	ids = MemoryContextAllocHuge(context, Max(*n, 1) * sizeof(int64));
	for (i = 0; i < *n; i++)
		ids[i] =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1, &isnull));
	jq_owner_end(&state);
	return ids;
}

#define OF_KEY                                                        \
	"SELECT id FROM %s.jobqueue_job WHERE hashtextextended(key, 0) =" \
	" hashtextextended($1, 0) AND key = $1 AND id <> $2"

void
jq_service_end(JqTable *t, int64 id, const char *name, int64 but)
{
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(id)};
	JqHeldJob h;
	bool running;
	uint64 done;
	int64 *ids;
	int n, i;

	jq_service_execute(t, "DELETE FROM %s.jobqueue_service WHERE id = $1", 1,
					   types, values, NULL, &done);
	jq_service_execute(
		t, "DELETE FROM %s.jobqueue_service_current WHERE service = $1", 1,
		types, values, NULL, &done);
	/* what later ones wait for in memory: they are to be told, at the commit */
	ids =
		list_jobs(t, OF_KEY " AND (attempt > 0 OR crashes > 0 OR keeps_order)",
				  id, but, &n);
	for (i = 0; i < n; i++)
		(void) jq_control_hold(t, ids[i], &h, &running);
	ids = list_jobs(t, OF_KEY " ORDER BY id", id, but, &n);
	for (i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		(void) jq_archive(t, ids[i], "cancelled",
						  psprintf("service \"%s\" has ended", name), 0,
						  (Datum) 0);
	}
}

void
jq_service_resume(JqTable *t, int64 service)
{
	int64 *ids;
	int n, i;

	ids = list_jobs(t, OF_KEY " AND run_at = 'infinity' ORDER BY id", service,
					0, &n);
	for (i = 0; i < n; i++)
		(void) jq_job_run_now(t, ids[i]);
}

bool
jq_service_put_off(JqTable *t, int64 id, const char *key)
{
	/* a new version of the row: who starts it at a higher isolation level than
	 * read committed has to see what waits */
	static const char *const lock =
		"UPDATE %s.jobqueue_service SET status = 'failed'"
		" WHERE id = $1 AND status = 'failed'";
	static const char *const put_off =
		"UPDATE %s.jobqueue_job SET run_at = 'infinity', keeps_order = true"
		" WHERE id = $1";
	Oid types[1] = {INT8OID};
	Datum values[1];
	uint64 done;

	values[0] = Int64GetDatum(jq_service_id(key));
	jq_service_execute(t, lock, 1, types, values, NULL, &done);
	if (done == 0)
		return false;
	values[0] = Int64GetDatum(id);
	jq_service_execute(t, put_off, 1, types, values, NULL, &done);
	return true;
}

JqServiceFailure
jq_service_failed(JqTable *t, int64 id, const char *key, const JqFailure *f,
				  const char **reason)
{
	static const char *const sql =
		"UPDATE %s.jobqueue_service s SET failures = n.list,"
		" failed = s.failed + 1, last_error = $2,"
		" status = CASE WHEN s.status = 'running' AND s.restart <> 'temporary'"
		"  AND cardinality(n.list) > s.max_restarts THEN 'failed'"
		"  ELSE s.status END"
		" FROM (SELECT x.id, coalesce((SELECT array_agg(f) FROM"
		"   unnest(x.failures) f WHERE f > clock_timestamp() - x.within), '{}')"
		"   || clock_timestamp() AS list"
		"  FROM %s.jobqueue_service x WHERE x.id = $1 FOR UPDATE) n"
		" WHERE s.id = n.id"
		" RETURNING s.name::text, s.restart, s.status,"
		" cardinality(s.failures) > s.max_restarts, coalesce(s.down_job, 0),"
		" s.within::text";
	MemoryContext context = CurrentMemoryContext;
	Oid types[2] = {INT8OID, TEXTOID};
	Datum values[2];
	JqOwnerState state;
	int64 service = jq_service_id(key);
	char *name;
	char *restart;
	char *status;
	char *within;
	bool often;
	bool down;
	bool isnull;

	values[0] = Int64GetDatum(service);
	values[1] = CStringGetTextDatum(f->message ? f->message : "");
	jq_owner_begin(t, &state);
	jq_service_run(t, sql, 2, types, values, NULL, false);
	if (SPI_processed == 0)
	{
		jq_owner_end(&state);
		*reason = "its service has ended";
		return JQ_SERVICE_DROP;
	}
	name = jq_service_text(1, context);
	restart = jq_service_text(2, context);
	status = jq_service_text(3, context);
	often = DatumGetBool(jq_service_column(4, context, &isnull));
	down = DatumGetInt64(jq_service_column(5, context, &isnull)) == id;
	within = jq_service_text(6, context);
	jq_owner_end(&state);
	if (strcmp(restart, "temporary") == 0 ||
		(strcmp(status, "stopping") == 0 && often) ||
		(down && (f->final || strcmp(restart, "transient") == 0)))
	{
		jq_service_end(t, service, name, id);
		*reason = psprintf("service \"%s\" ended with it", name);
		return JQ_SERVICE_DROP;
	}
	if (strcmp(status, "failed") == 0 && often)
		ereport(WARNING,
				(errmsg("service \"%s\" has failed", name),
				 errdetail("Messages failed more often than max_restarts "
						   "allows within %s; the last error was: %s",
						   within, f->message),
				 errhint("Start it again with jobqueue_start_service().")));
	if (f->final)
	{
		*reason = f->reason;
		return JQ_SERVICE_DROP;
	}
	if (strcmp(restart, "transient") == 0)
	{
		*reason = psprintf("service \"%s\" dropped it", name);
		return JQ_SERVICE_DROP;
	}
	return strcmp(status, "failed") == 0 ? JQ_SERVICE_STALL : JQ_SERVICE_RETRY;
}
