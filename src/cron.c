/*
 * cron.c
 *		When a schedule is due: the text of an expression, and the next instant.
 *
 * A text is five fields (minute, hour, day of the month, month, day of the
 * week), six with the second first, one of the words that stand for such fields,
 * or an interval.  It becomes a set of bits for each field.
 *
 * The next instant.  Let W be the latest local time that clocks in the zone have
 * shown up to a moment: what they show then, or more if they were turned back
 * since.  What is due after that moment is what local times after W stand for.
 * So the calendar is searched for the first match after W, which knows of no
 * zones; and then the zone for the first instant at which clocks show this or a
 * later time.
 */
#include "postgres.h"

#include "cron.h"
#include "mb/pg_wchar.h"
#include "port/pg_bitutils.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

/* what a search of the calendar gives up after: it repeats itself by then */
#define YEARS 401

/*
 * Offsets of zones are less than a week in what POSIX allows, so what clocks
 * show before does not matter any more.
 */
#define ZONE_WINDOW (INT64CONST(16) * SECS_PER_DAY)

#define MAX_EVERY (INT64CONST(36600) * USECS_PER_DAY)

/* ------------------------------------------------------------------ parser */

enum
{
	CRON_SECOND,
	CRON_MINUTE,
	CRON_HOUR,
	CRON_DAY,
	CRON_MONTH,
	CRON_WEEKDAY,
	CRON_FIELDS
};

typedef struct Field
{
	const char *name;
	int min;
	int max;
	const char *names; /* three letters each, from number first_name on */
	int first_name;
	const char *hint;
} Field;

static const Field fields[CRON_FIELDS] = {
	{"second", 0, 59, "", 0, "Seconds are 0 to 59."},
	{"minute", 0, 59, "", 0, "Minutes are 0 to 59."},
	{"hour", 0, 23, "", 0, "Hours are 0 to 23."},
	{"day of the month", 1, 31, "", 0,
	 "Days are 1 to 31, L for the last one of the month, L-1 for the one before it."},
	{"month", 1, 12, "janfebmaraprmayjunjulaugsepoctnovdec", 1,
	 "Months are 1 to 12, or jan to dec."},
	{"day of the week", 0, 7, "sunmontuewedthufrisat", 0,
	 "Days of the week are 0 to 7 (0 and 7 are Sunday), or sun to sat; 5L is the last Friday of the month."},
};

static const char *const cron_hint =
	"An expression has five fields: minute, hour, day of the month, month, day of the week; or six, with the second first; or it is @hourly, @daily, @weekly, @monthly, @yearly, or an interval such as '15 seconds'.";

typedef struct Parser
{
	const char *text;
	const char *p;
	JqCronError *error;
} Parser;

static bool
is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static void
skip_space(Parser *s)
{
	while (is_space(*s->p))
		s->p++;
}

static const char *
word_end(const char *p)
{
	while (*p != '\0' && !is_space(*p))
		p++;
	return p;
}

static bool fail(Parser *s, const char *at, const char *hint,
				 const char *format, ...) pg_attribute_printf(4, 5);

static bool
fail(Parser *s, const char *at, const char *hint, const char *format, ...)
{
	va_list args;

	s->error->at = at - s->text;
	s->error->hint = hint;
	va_start(args, format);
	vsnprintf(s->error->message, sizeof(s->error->message), format, args);
	va_end(args);
	return false;
}

/* what stands there makes no sense */
static bool
unexpected(Parser *s, const char *where, const char *hint)
{
	unsigned char c = *s->p;

	if (c == '\0' || is_space(c))
		return fail(s, s->p, hint, "%s is incomplete", where);
	if (c < ' ' || c > '~')
		return fail(s, s->p, hint, "unexpected character in the %s", where);
	return fail(s, s->p, hint, "unexpected \"%c\" in the %s", c, where);
}

/* more than any number that may be given */
#define TOO_LARGE INT64CONST(10000000000)

static bool
long_number(Parser *s, int64 *n)
{
	if (!is_digit(*s->p))
		return false;
	for (*n = 0; is_digit(*s->p); s->p++)
		*n = Min(*n * 10 + (*s->p - '0'), TOO_LARGE);
	return true;
}

static bool
number(Parser *s, int *n)
{
	int64 large;

	if (!long_number(s, &large))
		return false;
	*n = Min(large, PG_INT32_MAX / 2);
	return true;
}

/* a number or a name of the field */
static bool
value(Parser *s, const Field *f, int *n)
{
	const char *start = s->p;
	int len = 0;
	int i;

	if (number(s, n))
	{
		if (*n < f->min || *n > f->max)
			return fail(s, start, f->hint, "%s %.*s is out of range", f->name,
						Min((int) (s->p - start), 20), start);
		return true;
	}
	while (is_letter(start[len]))
		len++;
	if (len == 0 || f->names[0] == '\0')
		return unexpected(s, f->name, f->hint);
	for (i = 0; f->names[3 * i] != '\0'; i++)
		/* "friL" is the last Friday */
		if ((len == 3 || (len == 4 && f == &fields[CRON_WEEKDAY] &&
						  pg_tolower((unsigned char) start[3]) == 'l')) &&
			pg_strncasecmp(start, &f->names[3 * i], 3) == 0)
		{
			*n = i + f->first_name;
			s->p += 3;
			return true;
		}
	return fail(s, start, f->hint, "unknown %s \"%.*s\"", f->name, Min(len, 20),
				start);
}

/* the step after a "/", or 1 */
static bool
step(Parser *s, const Field *f, int *n)
{
	const char *start;
	int size = f == &fields[CRON_WEEKDAY] ? 7 : f->max - f->min + 1;

	*n = 1;
	if (*s->p != '/')
		return true;
	start = ++s->p;
	if (!number(s, n))
		return unexpected(s, f->name, f->hint);
	if (*n < 1 || *n > size)
		return fail(
			s, start,
			"Use an interval such as '90 minutes' for steps that do not begin anew each minute, hour, day, ...",
			"step %.*s of the %s is not between 1 and %d",
			Min((int) (s->p - start), 20), start, f->name, size);
	return true;
}

/* one element of a list; its bits are added to *set, other things to cron */
static bool
element(Parser *s, const Field *f, JqCron *cron, uint64 *set)
{
	const char *start = s->p;
	int first = f->min, last, by, i;

	if (f == &fields[CRON_DAY] && (*s->p == 'L' || *s->p == 'l'))
	{
		s->p++;
		first = 0;
		if (*s->p == '-')
		{
			s->p++;
			start = s->p;
			if (!number(s, &first))
				return unexpected(s, f->name, f->hint);
			if (first > 30)
				return fail(s, start, f->hint,
							"no month has that many days before its last one");
		}
		cron->from_end |= UINT32_C(1) << first;
		return true;
	}
	if (*s->p == '*')
	{
		s->p++;
		first = f->min;
		last = f == &fields[CRON_WEEKDAY] ? 6 : f->max;
	}
	else
	{
		if (!value(s, f, &first))
			return false;
		last = first;
		if (f == &fields[CRON_WEEKDAY] && (*s->p == 'L' || *s->p == 'l'))
		{
			s->p++;
			cron->last_weekdays |= UINT32_C(1) << (first % 7);
			return true;
		}
		if (*s->p == '-')
		{
			s->p++;
			if (!value(s, f, &last))
				return false;
			/* up to and with Sunday */
			if (f == &fields[CRON_WEEKDAY] && last == 0 && first > 0)
				last = 7;
			if (last < first)
				return fail(
					s, start,
					"A range goes up; write 22-23,0-4 for one that goes beyond the end.",
					"range of the %s ends before it begins", f->name);
		}
		else if (*s->p == '/') /* from there on */
			last = f == &fields[CRON_WEEKDAY] ? Max(first, 6) : f->max;
	}
	if (!step(s, f, &by))
		return false;
	Assert(first >= 0 && last < 64 && by > 0);
	for (i = first; i <= last; i += by)
		*set |= UINT64CONST(1) << (f == &fields[CRON_WEEKDAY] ? i % 7 : i);
	return true;
}

static bool
field(Parser *s, const Field *f, JqCron *cron, uint64 *set)
{
	*set = 0;
	for (;;)
	{
		if (!element(s, f, cron, set))
			return false;
		if (*s->p != ',')
			break;
		s->p++;
	}
	if (*s->p != '\0' && !is_space(*s->p))
		return unexpected(s, f->name, f->hint);
	return true;
}

/* -------------------------------------------------------------- calendar */

/* does the expression have that day, whatever its month? */
static bool
has_day(const JqCron *c, int julian, int year, int month, int day)
{
	int last = day_tab[isleap(year)][month - 1];
	int weekday = j2day(julian);
	bool by_day = (c->days >> day & 1) || (c->from_end >> (last - day) & 1);
	bool by_weekday = (c->weekdays >> weekday & 1) ||
					  (day > last - 7 && (c->last_weekdays >> weekday & 1));

	return c->any_day || c->any_weekday ? by_day && by_weekday :
										  by_day || by_weekday;
}

/* the first day from *julian on that the expression has */
static bool
find_day(const JqCron *c, int *julian)
{
	int year, month, day, end;

	j2date(*julian, &year, &month, &day);
	for (end = year + YEARS; year < end;)
	{
		if (c->months >> month & 1)
		{
			for (; day <= day_tab[isleap(year)][month - 1]; day++, (*julian)++)
				if (has_day(c, *julian, year, month, day))
					return true;
		}
		else
			*julian += day_tab[isleap(year)][month - 1] - day + 1;
		day = 1;
		if (++month > 12)
		{
			month = 1;
			year++;
		}
	}
	return false;
}

/* the first bit from number n on; -1: none */
static int
next_bit(uint64 set, int n)
{
	set = n > 63 ? 0 : set & (~UINT64CONST(0) << n);
	return set == 0 ? -1 : pg_rightmost_one_pos64(set);
}

/* the first time of a day from that second of it on; -1: none */
static int
find_time(const JqCron *c, int second)
{
	int h = second / SECS_PER_HOUR;
	int m = second / SECS_PER_MINUTE % MINS_PER_HOUR;
	int s = second % SECS_PER_MINUTE;
	int found;

	if (c->hours >> h & 1)
	{
		if (c->minutes >> m & 1)
		{
			found = next_bit(c->seconds, s);
			if (found >= 0)
				return second - s + found;
		}
		found = next_bit(c->minutes, m + 1);
		if (found >= 0)
			return h * SECS_PER_HOUR + found * SECS_PER_MINUTE +
				   next_bit(c->seconds, 0);
	}
	h = next_bit(c->hours, h + 1);
	return h < 0 ?
			   -1 :
			   h * SECS_PER_HOUR + next_bit(c->minutes, 0) * SECS_PER_MINUTE +
				   next_bit(c->seconds, 0);
}

/* the first local time from *local on, in seconds since 1970 */
static bool
find_local(const JqCron *c, int64 *local)
{
	int64 day = *local / SECS_PER_DAY;
	int second = *local % SECS_PER_DAY;
	int julian, from;

	if (second < 0)
	{
		second += SECS_PER_DAY;
		day--;
	}
	from = julian = day + UNIX_EPOCH_JDATE;
	if (!find_day(c, &julian))
		return false;
	second = find_time(c, julian == from ? second : 0);
	if (second < 0)
	{
		julian++;
		if (!find_day(c, &julian))
			return false;
		second = find_time(c, 0);
	}
	*local = ((int64) julian - UNIX_EPOCH_JDATE) * SECS_PER_DAY + second;
	return true;
}

/* ------------------------------------------------------------ the whole text */

static bool
parse_fields(Parser *s, JqCron *cron)
{
	uint64 sets[CRON_FIELDS];
	const char *starts[CRON_FIELDS];
	const char *p;
	int n = 0;
	int i;

	for (p = s->p; *p != '\0'; n++)
	{
		p = word_end(p);
		while (is_space(*p))
			p++;
	}
	if (n != 5 && n != 6)
		return fail(s, n > 6 ? s->p : p, cron_hint,
					n == 1 ? "there is 1 field, not five or six" :
							 "there are %d fields, not five or six",
					n);
	sets[CRON_SECOND] = 1;
	for (i = CRON_FIELDS - n; i < CRON_FIELDS; i++)
	{
		starts[i] = s->p;
		if (!field(s, &fields[i], cron, &sets[i]))
			return false;
		skip_space(s);
	}
	cron->seconds = sets[CRON_SECOND];
	cron->minutes = sets[CRON_MINUTE];
	cron->hours = sets[CRON_HOUR];
	cron->days = sets[CRON_DAY];
	cron->months = sets[CRON_MONTH];
	cron->weekdays = sets[CRON_WEEKDAY];
	cron->any_day = *starts[CRON_DAY] == '*';
	cron->any_weekday = *starts[CRON_WEEKDAY] == '*';
	i = POSTGRES_EPOCH_JDATE;
	if (!find_day(cron, &i))
		return fail(
			s, starts[CRON_DAY],
			"February has up to 29 days; April, June, September and November have 30.",
			"there is no such day in any year");
	return true;
}

static bool
parse_word(Parser *s, JqCron *cron)
{
	static const struct
	{
		const char *word;
		const char *fields;
	} words[] = {{"@yearly", "0 0 1 1 *"},	{"@annually", "0 0 1 1 *"},
				 {"@monthly", "0 0 1 * *"}, {"@weekly", "0 0 * * 0"},
				 {"@daily", "0 0 * * *"},	{"@midnight", "0 0 * * *"},
				 {"@hourly", "0 * * * *"}};
	const char *end = word_end(s->p);
	int len = end - s->p;
	int i;

	for (i = 0; i < (int) lengthof(words); i++)
		if (strlen(words[i].word) == len &&
			pg_strncasecmp(s->p, words[i].word, len) == 0)
		{
			Parser inner = {words[i].fields, words[i].fields, s->error};

			s->p = end;
			skip_space(s);
			if (*s->p != '\0')
				return fail(s, s->p, cron_hint, "nothing may follow \"%s\"",
							words[i].word);
			return parse_fields(&inner, cron);
		}
	return fail(
		s, s->p,
		"It can be @hourly, @daily or @midnight, @weekly, @monthly, @yearly or @annually.",
		"unknown word \"%.*s\"", pg_mbcliplen(s->p, len, 20), s->p);
}

/* ---------------------------------------------------------------- interval */

static const struct
{
	const char *names;
	int64 us; /* 0: has no fixed length */
} units[] = {{" s sec secs second seconds ", USECS_PER_SEC},
			 {" m min mins minute minutes ", USECS_PER_MINUTE},
			 {" h hr hrs hour hours ", USECS_PER_HOUR},
			 {" d day days ", USECS_PER_DAY},
			 {" w week weeks ", 7 * USECS_PER_DAY},
			 {" mon mons month months ", 0},
			 {" y yr yrs year years ", 0}};

static bool
unit(Parser *s, int64 *us)
{
	static const char *const hint =
		"An interval is made of seconds, minutes, hours, days (of 24 hours) and weeks, for example '15 seconds' or '1 hour 30 minutes'.";
	const char *start = s->p;
	char word[16];
	int len = 0;
	int i;

	while (is_letter(s->p[len]))
		len++;
	if (len == 0 && (*s->p == '\0' || is_digit(*s->p)))
		return fail(s, s->p, hint, "the interval lacks a unit");
	if (len > 0 && len < (int) sizeof(word) - 2)
	{
		snprintf(word, sizeof(word), " %.*s ", len, s->p);
		for (i = 0; i < (int) lengthof(units); i++)
		{
			const char *p = units[i].names;

			for (; (p = strchr(p, ' ')) != NULL && p[1] != '\0'; p++)
				if (pg_strncasecmp(p, word, len + 2) == 0)
				{
					s->p += len;
					*us = units[i].us;
					if (*us == 0)
						return fail(
							s, start,
							"Use @monthly, @yearly, or a cron expression.",
							"months and years have no fixed length");
					return true;
				}
		}
	}
	if (len == 0)
		return unexpected(s, "interval", hint);
	return fail(s, start, hint, "unknown unit \"%.*s\" of an interval",
				Min(len, 20), start);
}

/* hh:mm or hh:mm:ss, of which the hours have been read */
static bool
clock_time(Parser *s, int64 *us)
{
	int minutes, seconds = 0;
	const char *start = ++s->p;

	if (!number(s, &minutes) || s->p - start != 2 || minutes > 59)
		return fail(s, start, "For example 00:05:00, five minutes.",
					"invalid minutes of an interval");
	if (*s->p == ':')
	{
		start = ++s->p;
		if (!number(s, &seconds) || s->p - start != 2 || seconds > 59)
			return fail(s, start, "For example 00:05:00, five minutes.",
						"invalid seconds of an interval");
	}
	*us = minutes * USECS_PER_MINUTE + seconds * USECS_PER_SEC;
	return true;
}

static bool
parse_interval(Parser *s, JqCron *cron)
{
	const char *start = s->p;

	cron->every = 0;
	while (*s->p != '\0')
	{
		const char *number_start = s->p;
		int64 us = 0;
		int64 more = 0;
		int64 n;

		if (!long_number(s, &n))
			return fail(s, s->p, cron_hint,
						"a number is missing in the interval");
		if (*s->p == ':')
		{
			if (!clock_time(s, &more))
				return false;
			us = USECS_PER_HOUR;
		}
		else
		{
			skip_space(s);
			if (!unit(s, &us))
				return false;
		}
		Assert(us > 0);
		if (n > MAX_EVERY / us)
			return fail(s, number_start,
						"An interval is 1 second to 100 years.",
						"the interval is out of range");
		cron->every += n * us + more;
		skip_space(s);
		if (cron->every > MAX_EVERY)
			break;
	}
	if (cron->every < USECS_PER_SEC || cron->every > MAX_EVERY)
		return fail(s, start, "An interval is 1 second to 100 years.",
					"the interval is out of range");
	return true;
}

/* a number with a unit, and not the first field of an expression? */
static bool
is_interval(const char *p)
{
	if (!is_digit(*p) || strchr(p, '*') != NULL)
		return false;
	while (is_digit(*p))
		p++;
	if (is_letter(*p) || *p == ':')
		return true;
	while (is_space(*p))
		p++;
	return is_letter(*p);
}

bool
jq_cron_parse(const char *text, JqCron *cron, JqCronError *error)
{
	Parser s = {text, text, error};

	memset(cron, 0, sizeof(*cron));
	memset(error, 0, sizeof(*error));
	skip_space(&s);
	if (*s.p == '\0')
		return fail(&s, s.p, cron_hint, "the expression is empty");
	if (*s.p == '@')
		return parse_word(&s, cron);
	if (is_interval(s.p))
		return parse_interval(&s, cron);
	return parse_fields(&s, cron);
}

/* ------------------------------------------------------------------- zones */

/*
 * The offset at an instant, until *end (exclusive); false if the zone's data do
 * not reach there.
 */
static bool
offset_at(pg_time_t t, const pg_tz *zone, int64 *offset, pg_time_t *end)
{
	long int before, after;
	int isdst;
	pg_time_t boundary;
	int found = pg_next_dst_boundary(&t, &before, &isdst, &boundary, &after,
									 &isdst, zone);

	if (found < 0)
		return false;
	*offset = before;
	*end = found > 0 ? boundary : PG_INT64_MAX;
	return true;
}

/* the latest local time that clocks have shown up to an instant */
static bool
shown_until(pg_time_t t, const pg_tz *zone, int64 *local)
{
	pg_time_t from = t - ZONE_WINDOW;
	pg_time_t end;
	int64 offset;

	*local = PG_INT64_MIN;
	for (;; from = end)
	{
		if (!offset_at(from, zone, &offset, &end))
			return false;
		*local = Max(*local, Min(t, end - 1) + offset);
		if (end > t)
			return true;
	}
}

/* the first instant after t at which clocks show that local time or a later one */
static bool
first_shown(int64 local, pg_time_t t, const pg_tz *zone, pg_time_t *instant)
{
	pg_time_t from = Max(t + 1, local - ZONE_WINDOW);
	pg_time_t end;
	int64 offset;

	for (;; from = end)
	{
		if (!offset_at(from, zone, &offset, &end))
			return false;
		*instant = Max(local - offset, from);
		if (*instant < end)
			return true;
	}
}

#define EPOCH_DIFF \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY)

static bool
next_interval(int64 every, TimestampTz start, TimestampTz after,
			  TimestampTz *next)
{
	uint64 n = 1;

	if (after >= start)
		n += ((uint64) after - (uint64) start) / (uint64) every;
	*next = (int64) ((uint64) start + n * (uint64) every);
	/* beyond the largest number there are only small ones */
	return *next > start && IS_VALID_TIMESTAMP(*next);
}

bool
jq_cron_next(const JqCron *cron, TimestampTz start, TimestampTz after,
			 const pg_tz *zone, TimestampTz *next)
{
	pg_time_t t, instant;
	int64 local;

	if (cron->every > 0)
		return next_interval(cron->every, start, after, next);
	t = after / USECS_PER_SEC;
	if (after % USECS_PER_SEC < 0)
		t--;
	t += EPOCH_DIFF;
	if (!shown_until(t, zone, &local))
		return false;
	local++;
	if (!find_local(cron, &local) || !first_shown(local, t, zone, &instant) ||
		instant - EPOCH_DIFF >= END_TIMESTAMP / USECS_PER_SEC)
		return false;
	*next = (instant - EPOCH_DIFF) * USECS_PER_SEC;
	return true;
}

/*
 * Whether there is an instant after a moment and up to another is known from the
 * first one after it: so the last one is searched for, first in ever longer
 * stretches back from the end, then by halves.
 */
bool
jq_cron_previous(const JqCron *cron, TimestampTz start, TimestampTz from,
				 TimestampTz to, const pg_tz *zone, TimestampTz *previous)
{
	TimestampTz none = to; /* none in (none, to] */
	TimestampTz some, next;
	int64 length;

	for (length = USECS_PER_SEC;; length *= 2)
	{
		some = to - from <= length ? from : to - length;
		if (jq_cron_next(cron, start, some, zone, &next) && next <= to)
			break;
		if (some == from)
			return false;
		none = some;
	}
	for (;;)
	{
		/* the last one is in [next, none] */
		*previous = next;
		if (!jq_cron_next(cron, start, *previous, zone, &next) || next > to)
			return true;
		some = next;
		while (none - some > 1)
		{
			TimestampTz middle = some + (none - some) / 2;

			if (jq_cron_next(cron, start, middle, zone, &next) && next <= to)
			{
				some = next;
				break;
			}
			none = middle;
		}
		next = some;
	}
}
