/*
 * settings.c
 *		What can be set for a queue.
 *
 * One list says it all: the columns of jobqueue_queue, which are the arguments
 * of jobqueue_configure() in the same order, and what may be in them.  An
 * argument that is NULL leaves the setting as it is; where a setting can be
 * absent, 0 or the empty text takes it away, and its column is NULL.
 *
 * The columns have CHECKs of their own, for rows that are written past the
 * function.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "settings.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define YEARS_100 (INT64CONST(36600) * USECS_PER_DAY)
#define YEAR (INT64CONST(366) * USECS_PER_DAY)
#define MSEC INT64CONST(1000)

typedef struct Setting
{
	const char *column;
	Oid type;
	int64 min; /* intervals: in microseconds */
	int64 max;
	bool optional; /* 0 or '' takes it away */
	const char *range;
} Setting;

#define LIMIT "between 1 and 1000000000, or 0 for no limit"
#define UP_TO_100_YEARS "between 0 and 100 years"

enum
{
	MAX_RUNNING,
	KEY_LIMIT,
	RATE,
	RATE_PER,
	KEY_RATE,
	KEY_RATE_PER,
	WEIGHT,
	ORDERED,
	MAX_ATTEMPTS,
	BACKOFF,
	BACKOFF_BASE,
	BACKOFF_MAX,
	TIMEOUT,
	KEEP,
	KEEP_DEAD,
	SYNCHRONOUS_COMMIT,
	BATCH,
	ON_DEAD
};

static const Setting list[] = {
	{"max_running", INT4OID, 0, 1000000000, true, LIMIT},
	{"key_limit", INT4OID, 1, 10000, false, "between 1 and 10000"},
	{"rate", INT4OID, 0, 1000000000, true, LIMIT},
	{"rate_per", INTERVALOID, MSEC, YEAR, false,
	 "between 1 millisecond and 366 days"},
	{"key_rate", INT4OID, 0, 1000000000, true, LIMIT},
	{"key_rate_per", INTERVALOID, MSEC, YEAR, false,
	 "between 1 millisecond and 366 days"},
	{"weight", INT4OID, 1, 1000, false, "between 1 and 1000"},
	{"ordered", BOOLOID, 0, 0, false, NULL},
	{"max_attempts", INT4OID, 0, PG_INT16_MAX, true,
	 "between 1 and 32767, or 0 for the default"},
	{"backoff", TEXTOID, 0, 0, false, "exponential, linear, constant"},
	{"backoff_base", INTERVALOID, 0, YEARS_100, false, UP_TO_100_YEARS},
	{"backoff_max", INTERVALOID, 0, YEARS_100, false, UP_TO_100_YEARS},
	{"timeout", INTERVALOID, 0, YEARS_100, false, UP_TO_100_YEARS},
	{"keep", INTERVALOID, 0, YEARS_100, false, UP_TO_100_YEARS},
	{"keep_dead", INTERVALOID, 0, YEARS_100, false, UP_TO_100_YEARS},
	{"synchronous_commit", TEXTOID, 0, 0, true,
	 "on, off, local, remote_write, remote_apply, or empty for what the role has"},
	{"batch", INT4OID, 1, 100, false, "between 1 and 100"},
	{"on_dead", TEXTOID, 0, 0, true, NULL},
};

StaticAssertDecl(lengthof(list) == JQ_NSETTINGS, "count of the settings");
StaticAssertDecl(lengthof(list) == ON_DEAD + 1, "order of the settings");
StaticAssertDecl(sizeof(JqQueueSettings) ==
					 offsetof(JqQueueSettings, unused) + 5,
				 "settings are compared as bytes");

/* as SyncCommitLevel numbers them */
static const char *const sync_words[] = {"off", "local", "remote_write", "on",
										 "remote_apply"};
static const char *const backoff_words[] = {"exponential", "linear",
											"constant"};

StaticAssertDecl(SYNCHRONOUS_COMMIT_OFF == 0 &&
					 SYNCHRONOUS_COMMIT_LOCAL_FLUSH == 1 &&
					 SYNCHRONOUS_COMMIT_REMOTE_WRITE == 2 &&
					 SYNCHRONOUS_COMMIT_REMOTE_FLUSH == 3 &&
					 SYNCHRONOUS_COMMIT_REMOTE_APPLY == 4,
				 "order of the words");

void
jq_settings_default(JqQueueSettings *s)
{
	memset(s, 0, sizeof(*s));
	s->key_limit = 1;
	s->rate_per_us = USECS_PER_SEC;
	s->key_rate_per_us = USECS_PER_SEC;
	s->weight = 1;
	s->backoff = 'e';
	s->backoff_base_us = USECS_PER_SEC;
	s->backoff_max_us = USECS_PER_HOUR;
	s->timeout_us = -1;
	s->keep_dead_us = 7 * USECS_PER_DAY;
	s->synchronous_commit = -1;
	s->batch = 1;
}

bool
jq_settings_equal(const JqQueueSettings *a, const JqQueueSettings *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

int64
jq_interval_us(const Interval *i)
{
	double us =
		(double) i->time + (i->day + 30.0 * i->month) * (double) USECS_PER_DAY;

	/* where no caller would let it come that far */
	if (us > 1e18)
		return INT64CONST(1000000000000000000);
	if (us < -1e18)
		return -INT64CONST(1000000000000000000);
	return i->time + (i->day + INT64CONST(30) * i->month) * USECS_PER_DAY;
}

/* -1: none of them */
static int
find_word(const char *word, const char *const *words, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (pg_strcasecmp(word, words[i]) == 0)
			return i;
	return -1;
}

/* -------------------------------------------------------------- the table */

const char *
jq_settings_columns(void)
{
	static char columns[512];
	size_t i;

	if (columns[0] != '\0')
		return columns;
	for (i = 0; i < lengthof(list); i++)
	{
		if (i > 0)
			strlcat(columns, ", ", sizeof(columns));
		strlcat(columns, list[i].column, sizeof(columns));
	}
	Assert(strlen(columns) + 1 < sizeof(columns));
	return columns;
}

void
jq_settings_of_row(HeapTuple tup, TupleDesc desc, int first, JqQueueSettings *s)
{
	Datum v[JQ_NSETTINGS];
	bool nulls[JQ_NSETTINGS];
	int i;

#define INT(i, none) (nulls[i] ? (none) : DatumGetInt32(v[i]))
#define US(i, none) \
	(nulls[i] ? (none) : jq_interval_us(DatumGetIntervalP(v[i])))
	for (i = 0; i < JQ_NSETTINGS; i++)
		v[i] = SPI_getbinval(tup, desc, first + i, &nulls[i]);
	jq_settings_default(s);
	s->max_running = INT(MAX_RUNNING, 0);
	s->key_limit = INT(KEY_LIMIT, 1);
	s->rate = INT(RATE, 0);
	s->rate_per_us = US(RATE_PER, s->rate_per_us);
	s->key_rate = INT(KEY_RATE, 0);
	s->key_rate_per_us = US(KEY_RATE_PER, s->key_rate_per_us);
	s->weight = INT(WEIGHT, 1);
	s->ordered = !nulls[ORDERED] && DatumGetBool(v[ORDERED]);
	s->max_attempts = INT(MAX_ATTEMPTS, 0);
	if (!nulls[BACKOFF])
		s->backoff = TextDatumGetCString(v[BACKOFF])[0];
	s->backoff_base_us = US(BACKOFF_BASE, s->backoff_base_us);
	s->backoff_max_us = US(BACKOFF_MAX, s->backoff_max_us);
	s->timeout_us = US(TIMEOUT, -1);
	s->keep_us = US(KEEP, 0);
	s->keep_dead_us = US(KEEP_DEAD, s->keep_dead_us);
	if (!nulls[SYNCHRONOUS_COMMIT])
		s->synchronous_commit =
			find_word(TextDatumGetCString(v[SYNCHRONOUS_COMMIT]), sync_words,
					  lengthof(sync_words));
	s->batch = INT(BATCH, 1);
	s->has_on_dead = !nulls[ON_DEAD];
#undef INT
#undef US
}

/* ---------------------------------------------------------- the arguments */

static void
out_of_range(const Setting *s)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("%s is out of range", s->column),
					errhint("It must be %s.", s->range)));
}

/* the word as the column has it; NULL: none */
static const char *
check_word(const Setting *s, const char *word, const char *const *words, int n)
{
	int i = find_word(word, words, n);

	if (word[0] == '\0' && s->optional)
		return NULL;
	if (i < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid %s \"%s\"", s->column, word),
						errhint("It must be one of: %s.", s->range)));
	return words[i];
}

/* false: the column becomes NULL */
static bool
check_value(int i, Datum *value)
{
	const Setting *s = &list[i];
	int64 n = 1;
	const char *word;

	switch (s->type)
	{
		case INT4OID:
			n = DatumGetInt32(*value);
			if (n < s->min || n > s->max)
				out_of_range(s);
			return n != 0 || !s->optional;
		case INTERVALOID:
			n = jq_interval_us(DatumGetIntervalP(*value));
			if (n < s->min || n > s->max)
				out_of_range(s);
			return true;
		case TEXTOID:
			word = TextDatumGetCString(*value);
			if (i == BACKOFF)
				word =
					check_word(s, word, backoff_words, lengthof(backoff_words));
			else if (i == SYNCHRONOUS_COMMIT)
				word = check_word(s, word, sync_words, lengthof(sync_words));
			if (word == NULL || word[0] == '\0')
				return false;
			*value = CStringGetTextDatum(word);
			return true;
		default:
			return true;
	}
}

int
jq_settings_of_args(FunctionCallInfo fcinfo, int first, const char **columns,
					Oid *types, Datum *values, char *nulls)
{
	int n = 0;
	int i;

	for (i = 0; i < JQ_NSETTINGS; i++)
	{
		if (PG_ARGISNULL(first + i))
			continue;
		columns[n] = list[i].column;
		types[n] = list[i].type;
		values[n] = PG_GETARG_DATUM(first + i);
		nulls[n] = check_value(i, &values[n]) ? ' ' : 'n';
		n++;
	}
	return n;
}
