/*
 * jobrow.c
 *		What a row of jobqueue_job says.
 */
#include "postgres.h"

#include "compat.h"
#include "fmgr.h"
#include "jobtable.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

Oid
jq_row_lane_role(const JqRow *row)
{
	if (JQ_ROW_NULL(row, JQ_COL_COMMAND))
		return JQ_CONSUMER_ROLE;
	return DatumGetObjectId(JQ_ROW(row, JQ_COL_OWNER));
}

JqPos
jq_row_pos(const JqRow *row)
{
	return jq_pos_make(DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY)),
					   DatumGetInt64(JQ_ROW(row, JQ_COL_ID)));
}

char *
jq_row_cstring(const JqRow *row, int col)
{
	if (JQ_ROW_NULL(row, col))
		return NULL;
	return TextDatumGetCString(JQ_ROW(row, col));
}

int
jq_row_max_attempts(const JqRow *row, const JqQueueSettings *q)
{
	if (!JQ_ROW_NULL(row, JQ_COL_MAX_ATTEMPTS))
		return DatumGetInt16(JQ_ROW(row, JQ_COL_MAX_ATTEMPTS));
	if (q->max_attempts > 0)
		return q->max_attempts;
	return DatumGetChar(JQ_ROW(row, JQ_COL_KIND)) == JQ_KIND_OUTSIDE ?
			   1 :
			   JQ_DEFAULT_MAX_ATTEMPTS;
}

int64
jq_row_timeout_us(const JqRow *row, const JqQueueSettings *q)
{
	if (!JQ_ROW_NULL(row, JQ_COL_TIMEOUT))
		return jq_interval_us(DatumGetIntervalP(JQ_ROW(row, JQ_COL_TIMEOUT)));
	return q->timeout_us >= 0 ? q->timeout_us : JQ_DEFAULT_TIMEOUT_US;
}

bool
jq_row_wants_keep(const JqRow *row, const JqQueueSettings *q)
{
	Interval *i;

	if (JQ_ROW_NULL(row, JQ_COL_KEEP))
		return q->keep_us > 0;
	i = DatumGetIntervalP(JQ_ROW(row, JQ_COL_KEEP));
	return i->time > 0 || i->day > 0 || i->month > 0;
}

void
jq_row_item(JqItem *item, const JqRow *row)
{
	memset(item, 0, sizeof(*item));
	item->id = DatumGetInt64(JQ_ROW(row, JQ_COL_ID));
	item->priority = DatumGetInt16(JQ_ROW(row, JQ_COL_PRIORITY));
	item->tid = row->tid;
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
		item->flags = JQ_E_DUE;
	if (!JQ_ROW_NULL(row, JQ_COL_KEY))
	{
		text *key = DatumGetTextPP(JQ_ROW(row, JQ_COL_KEY));

		item->key = VARDATA_ANY(key);
		item->keylen = Min(VARSIZE_ANY_EXHDR(key), JQ_KEY_MAX);
	}
}

static bool
text_equals(Datum d, const char *s, int len)
{
	text *t = DatumGetTextPP(d);

	return VARSIZE_ANY_EXHDR(t) == len && memcmp(VARDATA_ANY(t), s, len) == 0;
}

bool
jq_row_is(const JqRow *row, Oid lane_role, const char *queue, int priority,
		  const char *key, int keylen, JqItem *item, TimestampTz *run_at)
{
	*run_at = DT_NOBEGIN;
	if (!JQ_ROW_NULL(row, JQ_COL_RUN_AT))
	{
		*run_at = DatumGetTimestampTz(JQ_ROW(row, JQ_COL_RUN_AT));
		if (*run_at <= GetCurrentTimestamp())
			*run_at = DT_NOBEGIN;
	}
	jq_row_item(item, row);
	return *run_at == DT_NOBEGIN && jq_row_lane_role(row) == lane_role &&
		   text_equals(JQ_ROW(row, JQ_COL_QUEUE), queue, strlen(queue)) &&
		   item->priority == priority && item->keylen == keylen &&
		   (keylen == 0 || memcmp(item->key, key, keylen) == 0);
}
