/*
 * rowguard.c
 *		Rows that come past jobqueue_enqueue(): INSERT, COPY, UPDATE, restore,
 *		apply workers.
 *
 * A row is a right to run its command as its owner.  The trigger lets pass who
 * could become that role anyway.  It fills in what a hand-written INSERT leaves
 * out, and has the row's lane read from the table after the commit.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "command.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "jobtable.h"
#include "keylock.h"
#include "publish.h"
#include "quota.h"
#include "rowguard.h"
#include "servicerow.h"
#include "unique.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

/* may the current user act for the owner? */
void
jq_row_check_owner(Oid owner)
{
	if (superuser())
		return;
	if (OidIsValid(owner) &&
		SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)) &&
		jq_can_set_role(GetUserId(), owner))
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		 errmsg("permission denied to write a job of another role"),
		 errhint(
			 "Jobs are enqueued with jobqueue_enqueue(); rows may be written only for roles one can become.")));
}

/* a dump that is restored, rows that are replicated */
static bool
writes_as_it_is(void)
{
	return superuser() ||
		   SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA;
}

static Datum
column(HeapTuple tup, TupleDesc desc, const char *name, bool *isnull)
{
	int n = SPI_fnumber(desc, name);

	if (n <= 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("column \"%s\" is missing", name)));
	return SPI_getbinval(tup, desc, n, isnull);
}

/* a command without a kind: as jobqueue_enqueue would have stored it */
static HeapTuple
complete_row(HeapTuple tup, TupleDesc desc)
{
	bool isnull;
	const JqCommand *command;
	int cols[3] = {JQ_COL_KIND, JQ_COL_COMMAND, JQ_COL_FUNC_OWNER};
	Datum values[3];
	bool nulls[3] = {false, false, false};
	Datum d;

	(void) column(tup, desc, "kind", &isnull);
	if (!isnull)
		return tup;
	d = column(tup, desc, "command", &isnull);
	if (isnull)
	{
		values[0] = CharGetDatum(JQ_KIND_NONE);
		return heap_modify_tuple_by_cols(tup, desc, 1, cols, values, nulls);
	}
	command = jq_command_resolve(TextDatumGetCString(d));
	values[0] = CharGetDatum(command->kind);
	values[1] = CStringGetTextDatum(command->stored);
	values[2] = ObjectIdGetDatum(command->func_owner);
	nulls[2] = !OidIsValid(command->func_owner);
	return heap_modify_tuple_by_cols(tup, desc, 3, cols, values, nulls);
}

static void
refuse(const char *column, const char *what)
{
	ereport(ERROR, (errcode(ERRCODE_CHECK_VIOLATION),
					errmsg("invalid value in column \"%s\" of a job", column),
					errhint("It must be %s.", what)));
}

/* as jq_service_key() writes it */
static bool
is_key_of_service(const char *key)
{
	return jq_key_is_service(key, strlen(key)) &&
		   strcmp(key, jq_service_key(jq_service_id(key))) == 0;
}

static void
check_queue(HeapTuple tup, TupleDesc desc)
{
	bool isnull;
	Datum d = column(tup, desc, "queue", &isnull);

	if (!isnull)
		jq_check_queue_name(TextDatumGetCString(d));
}

static void
check_values(HeapTuple tup, TupleDesc desc)
{
	bool isnull;
	Datum d;

	check_queue(tup, desc);
	d = column(tup, desc, "key", &isnull);
	if (!isnull)
	{
		text *key = DatumGetTextPP(d);
		char kind = DatumGetChar(column(tup, desc, "kind", &isnull));

		if (isnull || kind != JQ_KIND_MESSAGE)
		{
			/* dumps and replication bring those of schedules */
			if (!writes_as_it_is() ||
				!jq_key_is_schedule(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)))
				jq_check_user_key(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
			else
				jq_check_key(VARSIZE_ANY_EXHDR(key));
		}
		else if (!is_key_of_service(text_to_cstring(key)))
			refuse("key", "that of a service, of a job of kind m");
		return;
	}
	if (DatumGetChar(column(tup, desc, "kind", &isnull)) == JQ_KIND_MESSAGE &&
		!isnull)
		refuse("key", "that of a service, of a job of kind m");
}

void
jq_row_check_schedule(HeapTuple tup, TupleDesc desc)
{
	check_values(tup, desc);
}

/*
 * A message stands in the line of its service, whoever wrote the row: so only
 * those may write one who could send it.
 */
static void
check_message(HeapTuple tup, TupleDesc desc, JqTable *t)
{
	bool isnull;
	Datum d = column(tup, desc, "owner", &isnull);
	JqService s;

	if (superuser())
		return;
	s.owner = InvalidOid;
	if (!isnull &&
		jq_service_find_by_id(t,
							  jq_service_id(TextDatumGetCString(
								  column(tup, desc, "key", &isnull))),
							  &s) &&
		s.owner == DatumGetObjectId(d))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to write a message to a service of "
					"another role"),
			 errhint("Messages are sent with jobqueue_send().")));
}

static void
check_range(HeapTuple tup, TupleDesc desc, const char *name, int min)
{
	bool isnull;
	Datum d = column(tup, desc, name, &isnull);

	if (!isnull && DatumGetInt16(d) < min)
		refuse(name, psprintf("at least %d", min));
}

static void
check_not_negative(HeapTuple tup, TupleDesc desc, const char *name)
{
	bool isnull;
	Datum d = column(tup, desc, name, &isnull);
	Interval zero;

	memset(&zero, 0, sizeof(zero));
	if (!isnull &&
		DatumGetInt32(
			DirectFunctionCall2(interval_cmp, d, IntervalPGetDatum(&zero))) < 0)
		refuse(name, "a positive interval, or 0");
}

/* is the text what jobqueue_enqueue() would have stored with that kind? */
static void
check_command(char kind, const char *command)
{
	bool ok;

	if (kind == JQ_KIND_MESSAGE)
		ok = true;
	else if (kind == JQ_KIND_FUNCTION)
	{
		const char *paren = strrchr(command, '(');

		ok = paren != NULL &&
			 (strcmp(paren, "()") == 0 || strcmp(paren, "(jsonb)") == 0 ||
			  strcmp(paren, "(pg_catalog.jsonb)") == 0);
	}
	else
		ok = jq_command_is(command, kind);
	if (!ok)
		refuse(
			"command",
			"of the kind that column \"kind\" says; with a null there, it is looked at as jobqueue_enqueue() does");
}

/* codes of unique.h, all or none */
static void
check_unique(HeapTuple tup, TupleDesc desc)
{
	bool isnull;
	bool until_null, conflict_null;
	Datum key = column(tup, desc, "unique_key", &isnull);
	char until = DatumGetChar(column(tup, desc, "unique_until", &until_null));
	char conflict =
		DatumGetChar(column(tup, desc, "on_conflict", &conflict_null));

	check_not_negative(tup, desc, "unique_for");
	if (isnull)
		return;
	if (VARSIZE_ANY_EXHDR(DatumGetTextPP(key)) < 1 ||
		VARSIZE_ANY_EXHDR(DatumGetTextPP(key)) > JQ_KEY_MAX)
		refuse("unique_key", psprintf("1 to %d bytes long", JQ_KEY_MAX));
	if (until_null || until == '\0' || strchr("setwb", until) == NULL)
		refuse("unique_until", "s, e, t, w or b");
	if (conflict_null || conflict == '\0' ||
		strchr("sjxpudrRl", conflict) == NULL)
		refuse("on_conflict", "s, j, x, p, u, d, r, R or l");
	/* else a lock would be for ever */
	(void) column(tup, desc, "unique_for", &isnull);
	if (isnull && until == JQ_UNTIL_EXPIRED)
		refuse("unique_for", "an interval if unique_until is t");
}

static void
check_row(HeapTuple tup, TupleDesc desc)
{
	bool isnull;
	Datum d = column(tup, desc, "kind", &isnull);

	if (!isnull &&
		(DatumGetChar(d) == '\0' || strchr("fsxnm", DatumGetChar(d)) == NULL))
		refuse("kind", "f, s, x, n, m or null");
	if (!isnull)
	{
		char kind = DatumGetChar(d);

		d = column(tup, desc, "command", &isnull);
		if (isnull != (kind == JQ_KIND_NONE))
			refuse("kind", "n if there is no command, and only then");
		if (!isnull)
			check_command(kind, TextDatumGetCString(d));
	}
	d = column(tup, desc, "errors", &isnull);
	if (!isnull && !JB_ROOT_IS_ARRAY(DatumGetJsonbP(d)))
		refuse("errors", "an array, or null");
	check_range(tup, desc, "attempt", 0);
	check_range(tup, desc, "max_attempts", 1);
	check_range(tup, desc, "crashes", 0);
	check_not_negative(tup, desc, "timeout");
	check_not_negative(tup, desc, "keep");
	check_unique(tup, desc);
}

static bool
at_home(HeapTuple tup, TupleDesc desc, JqTable *t)
{
	bool isnull;
	Datum d = column(tup, desc, "home", &isnull);

	return !isnull && DatumGetInt64(d) == t->home &&
		   t->meta_database == MyDatabaseId;
}

/* is it a ready row of which we know where it will stand? */
static bool
stands_at(HeapTuple tup, TupleDesc desc, JqTable *t, int *priority, int64 *id)
{
	bool isnull;
	Datum d;

	if (!t->plain)
		return false; /* other triggers may change it */
	(void) column(tup, desc, "run_at", &isnull);
	if (!isnull)
		return false;
	d = column(tup, desc, "priority", &isnull);
	if (isnull)
		return false;
	*priority = DatumGetInt16(d);
	d = column(tup, desc, "id", &isnull);
	*id = DatumGetInt64(d);
	return !isnull;
}

/* old: NULL, or what is changed */
static void
note_lane(HeapTuple old, HeapTuple tup, TupleDesc desc, JqTable *t)
{
	bool isnull;
	Datum queue = column(tup, desc, "queue", &isnull);
	Datum owner;
	Datum run_at;
	JqItem item;
	int priority;
	int64 id;

	if (isnull)
		return;
	owner = column(tup, desc, "owner", &isnull);
	if (isnull)
		return;
	(void) column(tup, desc, "command", &isnull);
	if (isnull)
		owner = ObjectIdGetDatum(JQ_CONSUMER_ROLE); /* whose lane it is in */
	if (!at_home(tup, desc, t))
	{
		/* held: there is nothing to read, unless memory has it */
		jq_publish_count_anew();
		if (old != NULL && at_home(old, desc, t))
			jq_publish_unknown(DatumGetObjectId(owner),
							   TextDatumGetCString(queue));
		return;
	}
	if (old == NULL && stands_at(tup, desc, t, &priority, &id))
		jq_publish_in_table(DatumGetObjectId(owner), TextDatumGetCString(queue),
							priority, id);
	else
		jq_publish_unknown(DatumGetObjectId(owner), TextDatumGetCString(queue));
	run_at = column(tup, desc, "expires_at", &isnull);
	if (!isnull)
		jq_publish_expiry(Max(DatumGetTimestampTz(run_at), DT_NOBEGIN + 1));
	run_at = column(tup, desc, "run_at", &isnull);
	if (!isnull && TIMESTAMP_IS_NOEND(DatumGetTimestampTz(run_at)))
		jq_publish_after_unknown();
	if (!isnull)
	{
		memset(&item, 0, sizeof(item));
		jq_publish_row(DatumGetObjectId(owner), TextDatumGetCString(queue),
					   &item, Max(DatumGetTimestampTz(run_at), DT_NOBEGIN + 1));
	}
}

/* a row comes, or (old) is changed; a statement may still leave it out */
static void
note_quota(HeapTuple old, HeapTuple new, TupleDesc desc)
{
	bool isnull;
	Oid owner = DatumGetObjectId(column(new, desc, "owner", &isnull));

	if (old != NULL)
	{
		Oid before = DatumGetObjectId(column(old, desc, "owner", &isnull));

		if (before == owner)
			return;
		jq_quota_gone(before, 1);
	}
	jq_quota_note(owner, 1);
	jq_quota_by_hand();
}

/*
 * A number is a job's, a schedule's or a service's, and no other one has ever had
 * it or will have it: messages name their service by it, what ends takes its place
 * in the archive by it, and who has taken numbers that are still to come keeps
 * others from getting them.  So who writes a row by hand is given a new one, and
 * keeps it.  What is replicated was numbered elsewhere.
 */
HeapTuple
jq_row_number(HeapTuple old, HeapTuple new, TupleDesc desc, JqTable *t)
{
	int attr = SPI_fnumber(desc, "id");
	bool isnull = false;
	Datum id;

	if (writes_as_it_is())
		return new;
	if (old != NULL)
		id = column(old, desc, "id", &isnull);
	else
		id = Int64GetDatum(nextval_internal(t->sequence, false));
	return heap_modify_tuple_by_cols(new, desc, 1, &attr, &id, &isnull);
}

PG_FUNCTION_INFO_V1(jq_job_trigger);
Datum
jq_job_trigger(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	HeapTuple new;
	bool isnull;
	bool update;
	JqTable *t;

	if (CALLED_AS_TRIGGER(fcinfo) &&
		TRIGGER_FIRED_FOR_STATEMENT(data->tg_event) &&
		TRIGGER_FIRED_AFTER(data->tg_event))
	{
		/* our own statements count what they remove */
		if (jq_shmem_ready() && !jq_bookkeeping)
		{
			jq_quota_by_hand();
			jq_publish_deleted();
			jq_publish_count_anew(); /* some may have been held */
		}
		return PointerGetDatum(NULL);
	}
	if (CALLED_AS_TRIGGER(fcinfo) && TRIGGER_FIRED_FOR_ROW(data->tg_event) &&
		TRIGGER_FIRED_BY_DELETE(data->tg_event) &&
		TRIGGER_FIRED_AFTER(data->tg_event))
	{
		/* replication fires no triggers of statements */
		if (jq_shmem_ready() && (t = jq_table()) != NULL)
		{
			jq_quota_by_hand();
			jq_publish_deleted();
			if (!at_home(data->tg_trigtuple,
						 RelationGetDescr(data->tg_relation), t))
				jq_publish_count_anew();
		}
		return PointerGetDatum(NULL);
	}
	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		!TRIGGER_FIRED_BEFORE(data->tg_event))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg(
				 "jobqueue_job_trigger() is a row trigger of the tables of jobqueue")));
	update = TRIGGER_FIRED_BY_UPDATE(data->tg_event);
	new = update ? data->tg_newtuple : data->tg_trigtuple;
	desc = RelationGetDescr(data->tg_relation);

	/* our own statements, as the extension's owner, publish for themselves */
	t = jq_table();
	if (jq_bookkeeping && t != NULL && GetUserId() == t->owner)
		return PointerGetDatum(new);
	if (t != NULL && RelationGetRelid(data->tg_relation) == t->meta)
	{
		/* the identity of another database is not ours */
		if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
			return PointerGetDatum(NULL);
		CacheInvalidateRelcacheByRelid(t->job); /* all look again */
		return PointerGetDatum(new);
	}

	jq_row_check_owner(DatumGetObjectId(column(new, desc, "owner", &isnull)));
	if (update)
		jq_row_check_owner(DatumGetObjectId(
			column(data->tg_trigtuple, desc, "owner", &isnull)));
	if (t == NULL)
		return PointerGetDatum(new);
	new = jq_row_number(update ? data->tg_trigtuple : NULL, new, desc, t);
	if (RelationGetRelid(data->tg_relation) != t->job)
	{
		/* jobqueue_retry() makes it a job again; the others are services */
		if (RelationGetRelid(data->tg_relation) == t->archive)
			check_values(new, desc);
		else
			check_queue(new, desc);
		return PointerGetDatum(new);
	}
	new = complete_row(new, desc);
	check_values(new, desc);
	check_row(new, desc);
	if (DatumGetChar(column(new, desc, "kind", &isnull)) == JQ_KIND_MESSAGE)
		check_message(new, desc, t);
	if (jq_shmem_ready())
	{
		note_lane(update ? data->tg_trigtuple : NULL, new, desc, t);
		note_quota(update ? data->tg_trigtuple : NULL, new, desc);
	}
	if (jq_shmem_ready() && update && !at_home(data->tg_trigtuple, desc, t))
		jq_publish_count_anew(); /* it is held no more */
	return PointerGetDatum(new);
}
