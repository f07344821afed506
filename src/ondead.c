/*
 * ondead.c
 *		on_dead: a function that is called with each dead job of a queue.
 *
 * The call is a job like others, in the queue "on_dead", enqueued in the
 * transaction in which the job becomes dead: so it is made for each death, once,
 * and a failing function neither keeps the job alive nor is forgotten.
 *
 * It runs as the role that named the function.  As the owner of the dead job it
 * would be a way for whoever configures queues to become any role.  That role
 * sees the job's arguments if it may see them in the views.
 *
 * Calls that are dead themselves are not reported again.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "command.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "ondead.h"
#include "publish.h"
#include "quota.h"

static bool
ends_with(const char *s, const char *end)
{
	size_t n = strlen(s);
	size_t m = strlen(end);

	return n >= m && strcmp(s + n - m, end) == 0;
}

const char *
jq_on_dead_resolve(const char *queue, const char *function, Oid *func_owner)
{
	const JqCommand *c;

	if (strcmp(queue, JQ_ON_DEAD_QUEUE) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("queue \"%s\" cannot have on_dead", JQ_ON_DEAD_QUEUE),
				 errhint("Its jobs are the calls of such functions.")));
	c = jq_command_resolve(function);
	if (c->kind != JQ_KIND_FUNCTION ||
		!(ends_with(c->stored, "(jsonb)") || ends_with(c->stored, ".jsonb)")))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("on_dead is not the name of a function of one jsonb"),
			 errhint(
				 "Give the name alone, without arguments: it is called with the dead job.")));
	*func_owner = c->func_owner;
	return pstrdup(c->stored);
}

void
jq_on_dead(JqTable *t, int64 id)
{
	static const char *const sql =
		"INSERT INTO %s.jobqueue_job (owner, func_owner, kind, queue, command,"
		" args)"
		" SELECT q.on_dead_owner, q.on_dead_func_owner, 'f',"
		" '" JQ_ON_DEAD_QUEUE "', q.on_dead, jsonb_build_object('id', a.id,"
		"  'queue', a.queue, 'owner', a.owner::oid::regrole::text,"
		"  'command', a.command, 'args', CASE WHEN"
		"   pg_catalog.pg_has_role(q.on_dead_owner::oid, a.owner::oid, 'USAGE')"
		"   THEN a.args END,"
		"  'key', a.key, 'unique_key', a.unique_key, 'priority', a.priority,"
		"  'tags', to_jsonb(a.tags), 'attempt', a.attempt,"
		"  'enqueued_at', a.enqueued_at, 'started_at', a.started_at,"
		"  'ended_at', a.ended_at, 'reason', a.reason, 'errors', a.errors)"
		" FROM %s.jobqueue_archive a JOIN %s.jobqueue_queue q ON q.name = a.queue"
		" WHERE a.id = $1 AND a.queue <> '" JQ_ON_DEAD_QUEUE "'"
		" AND q.on_dead IS NOT NULL AND q.on_dead_owner IS NOT NULL"
		" RETURNING id, owner::oid, priority, ctid";
	Oid types[1] = {INT8OID};
	Datum values[1];
	JqOwnerState state;
	JqItem item;
	Oid owner = InvalidOid;

	memset(&item, 0, sizeof(item));
	values[0] = Int64GetDatum(id);
	jq_owner_begin(t, &state);
	jq_owner_execute(t, sql, 1, types, values, NULL);
	if (SPI_processed == 1)
	{
		HeapTuple tup = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool isnull;

		item.id = DatumGetInt64(SPI_getbinval(tup, desc, 1, &isnull));
		owner = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
		item.priority = DatumGetInt16(SPI_getbinval(tup, desc, 3, &isnull));
		item.tid = *(ItemPointer) DatumGetPointer(
			SPI_getbinval(tup, desc, 4, &isnull));
	}
	jq_owner_end(&state);
	if (!OidIsValid(owner))
		return;
	jq_quota_note(owner, 1);
	jq_publish_row(owner, JQ_ON_DEAD_QUEUE, &item, DT_NOBEGIN);
}
