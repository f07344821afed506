/*
 * cron.c
 *		Fuzzing of src/cron.c: a second parser and a calendar that is walked
 *		second by second say what it has to answer.
 *
 * An input is the text, a zero byte, and what the rest is made of: the moment to
 * count from, and a zone.  Zones are made up here, so that clocks jump in ways
 * that no government has thought of.
 */
#include "postgres.h"

#include <math.h>

#include "cron.h"
#include "mb/pg_wchar.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#define SPAN (2 * SECS_PER_DAY) /* of the walk */
#define MAX_SHIFTS 6

/* the mean offset changes at some instants */
struct pg_tz
{
	int n;
	pg_time_t at[MAX_SHIFTS]; /* ascending */
	int64 offset[MAX_SHIFTS + 1];
};

static void
check(bool ok, const char *what, const char *text)
{
	if (ok)
		return;
	fprintf(stderr, "fault: %s: \"%s\"\n", what, text);
	abort();
}

/* -------------------------------- what src/cron.c has from the server */

const int day_tab[2][13] = {{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0},
							{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31,
							 0}};

/* the calendar of PostgreSQL, by eras of 400 years that begin with a March */
int
date2j(int y, int m, int d)
{
	int64 year = (int64) y - (m <= 2);
	int64 era = (year >= 0 ? year : year - 399) / 400;
	int64 of_era = year - era * 400;
	int64 day = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;

	day += of_era * 365 + of_era / 4 - of_era / 100;
	return era * 146097 + day - 719468 + UNIX_EPOCH_JDATE;
}

void
j2date(int jd, int *year, int *month, int *day)
{
	int y = (int) floor((jd - 1721060) / 365.2425) - 1;
	int m = 1;

	while (date2j(y + 1, 1, 1) <= jd)
		y++;
	while (m < 12 && date2j(y, m + 1, 1) <= jd)
		m++;
	*year = y;
	*month = m;
	*day = jd - date2j(y, m, 1) + 1;
}

int
j2day(int jd)
{
	return (jd % 7 + 8) % 7; /* Sunday is 0 */
}

int
pg_mbcliplen(const char *s, int len, int limit)
{
	return Min((int) strnlen(s, len), limit);
}

int
pg_next_dst_boundary(const pg_time_t *t, long int *before, int *before_isdst,
					 pg_time_t *boundary, long int *after, int *after_isdst,
					 const pg_tz *tz)
{
	int i = 0;

	*before_isdst = *after_isdst = 0;
	while (i < tz->n && tz->at[i] <= *t)
		i++;
	*before = tz->offset[i];
	if (i == tz->n)
		return 0;
	*boundary = tz->at[i];
	*after = tz->offset[i + 1];
	return 1;
}

/* ----------------------------------------------------- a second parser */

typedef struct Oracle
{
	bool set[6][64]; /* second, minute, hour, day, month, weekday */
	bool from_end[32];
	bool last_weekday[8];
	bool star[6];
} Oracle;

static const int lowest[6] = {0, 0, 0, 1, 1, 0};
static const int highest[6] = {59, 59, 23, 31, 12, 7};

static bool
whole_number(const char *s, int len, int *n)
{
	int i;

	if (len < 1)
		return false;
	*n = 0;
	for (i = 0; i < len; i++)
	{
		if (s[i] < '0' || s[i] > '9')
			return false;
		*n = Min(*n * 10 + (s[i] - '0'), 100000);
	}
	return true;
}

static bool
one_value(int f, const char *s, int len, int *n)
{
	static const char *const months[] = {"jan", "feb", "mar", "apr",
										 "may", "jun", "jul", "aug",
										 "sep", "oct", "nov", "dec"};
	static const char *const days[] = {"sun", "mon", "tue", "wed",
									   "thu", "fri", "sat"};
	int i;

	if (whole_number(s, len, n))
		return *n >= lowest[f] && *n <= highest[f];
	for (i = 0; len == 3 && f == 4 && i < 12; i++)
		if (strncasecmp(s, months[i], 3) == 0)
		{
			*n = i + 1;
			return true;
		}
	for (i = 0; len == 3 && f == 5 && i < 7; i++)
		if (strncasecmp(s, days[i], 3) == 0)
		{
			*n = i;
			return true;
		}
	return false;
}

/* one element of a list, without its commas */
static bool
one_element(Oracle *o, int f, const char *s, int len)
{
	const char *slash = memchr(s, '/', len);
	int body = slash ? slash - s : len;
	const char *dash = memchr(s, '-', body);
	int top = f == 5 ? 6 : highest[f];
	int from, to, by = 1, i;

	if (len < 1)
		return false;
	if (f == 3 && (s[0] == 'L' || s[0] == 'l'))
	{
		from = 0;
		if (len > 1 &&
			(s[1] != '-' || !whole_number(s + 2, len - 2, &from) || from > 30))
			return false;
		o->from_end[from] = true;
		return true;
	}
	if (f == 5 && (s[len - 1] == 'L' || s[len - 1] == 'l'))
	{
		if (!one_value(f, s, len - 1, &from))
			return false;
		o->last_weekday[from % 7] = true;
		return true;
	}
	if (slash && (!whole_number(slash + 1, len - body - 1, &by) || by < 1 ||
				  by > top - lowest[f] + 1))
		return false;
	if (body == 1 && s[0] == '*')
		from = lowest[f], to = top;
	else if (dash)
	{
		if (!one_value(f, s, dash - s, &from) ||
			!one_value(f, dash + 1, s + body - dash - 1, &to))
			return false;
		if (f == 5 && to == 0 && from > 0)
			to = 7;
		if (to < from)
			return false;
	}
	else
	{
		if (!one_value(f, s, body, &from))
			return false;
		to = slash && from < top ? top : from;
	}
	for (i = from; i <= to; i += by)
		o->set[f][f == 5 ? i % 7 : i] = true;
	return true;
}

/* five or six fields; false: they are none */
static bool
oracle_parse(const char *text, Oracle *o)
{
	static const char spaces[] = " \t\n\v\f\r";
	const char *starts[6];
	int lengths[6];
	int n = 0, f, m, d;

	memset(o, 0, sizeof(*o));
	for (text += strspn(text, spaces); *text; text += strspn(text, spaces))
	{
		if (n == 6)
			return false;
		starts[n] = text;
		lengths[n] = strcspn(text, spaces);
		text += lengths[n++];
	}
	if (n < 5)
		return false;
	if (n == 5)
		o->set[0][0] = true;
	for (f = 6 - n; f < 6; f++)
	{
		const char *s = starts[f - (6 - n)];
		const char *end = s + lengths[f - (6 - n)];

		o->star[f] = *s == '*';
		for (;;)
		{
			const char *comma = memchr(s, ',', end - s);

			if (!one_element(o, f, s, (comma ? comma : end) - s))
				return false;
			if (comma == NULL)
				break;
			s = comma + 1;
		}
	}
	/* is there such a day in any year? */
	if (!o->star[3] && !o->star[5])
		for (d = 0; d < 7; d++)
			if (o->set[5][d] || o->last_weekday[d])
				return true;
	for (m = 1; m <= 12; m++)
		for (d = 1; o->set[4][m] && d <= day_tab[1][m - 1]; d++)
			if (o->set[3][d] || o->from_end[day_tab[1][m - 1] - d] ||
				(m == 2 && d < 29 && o->from_end[28 - d]))
				return true;
	return false;
}

static double
digits_at(const char *p)
{
	double n = 0;

	for (; *p >= '0' && *p <= '9'; p++)
		n = n * 10 + (*p - '0');
	return n;
}

/* false: it is none, or none that may be */
static bool
oracle_interval(const char *p, int64 *every)
{
	static const struct
	{
		const char *name;
		int seconds;
	} units[] = {{"s", 1},		  {"sec", 1},		{"secs", 1},
				 {"second", 1},	  {"seconds", 1},	{"m", 60},
				 {"min", 60},	  {"mins", 60},		{"minute", 60},
				 {"minutes", 60}, {"h", 3600},		{"hr", 3600},
				 {"hrs", 3600},	  {"hour", 3600},	{"hours", 3600},
				 {"d", 86400},	  {"day", 86400},	{"days", 86400},
				 {"w", 604800},	  {"week", 604800}, {"weeks", 604800}};
	static const char spaces[] = " \t\n\v\f\r";
	static const char digits[] = "0123456789";
	double sum = 0;
	int i;

	for (p += strspn(p, spaces); *p; p += strspn(p, spaces))
	{
		double n = digits_at(p);
		size_t len = strspn(p, digits);

		if (len == 0)
			return false;
		p += len;
		if (*p == ':')
		{
			sum += n * 3600;
			for (i = 60; i > 0 && *p == ':'; i /= 60)
			{
				if (strspn(p + 1, digits) != 2 || p[1] > '5')
					return false;
				sum += i * ((p[1] - '0') * 10 + p[2] - '0');
				p += 3;
			}
			continue;
		}
		p += strspn(p, spaces);
		for (len = 0; (p[len] >= 'a' && p[len] <= 'z') ||
					  (p[len] >= 'A' && p[len] <= 'Z');)
			len++;
		for (i = 0; i < (int) lengthof(units); i++)
			if (strlen(units[i].name) == len &&
				strncasecmp(p, units[i].name, len) == 0)
				break;
		if (i == (int) lengthof(units))
			return false;
		p += len;
		sum += n * units[i].seconds;
	}
	*every = sum < 1e11 ? (int64) sum * USECS_PER_SEC : 0;
	return sum >= 1 && sum <= 36600.0 * 86400;
}

static bool
oracle_day(const Oracle *o, int64 days)
{
	int year, month, day, left, weekday;
	bool by_day, by_weekday;

	j2date(days + UNIX_EPOCH_JDATE, &year, &month, &day);
	if (!o->set[4][month])
		return false;
	left = day_tab[isleap(year)][month - 1] - day;
	weekday = ((days + 4) % 7 + 7) % 7; /* 1970 began on a Thursday */
	by_day = o->set[3][day] || o->from_end[left];
	by_weekday = o->set[5][weekday] || (left < 7 && o->last_weekday[weekday]);
	return o->star[3] || o->star[5] ? by_day && by_weekday :
									  by_day || by_weekday;
}

static bool
oracle_matches(const Oracle *o, int64 local)
{
	static int64 known = PG_INT64_MIN;
	static const Oracle *of;
	static bool known_day;
	int64 days = local / SECS_PER_DAY;
	int second = local % SECS_PER_DAY;

	if (o == NULL)
	{
		known = PG_INT64_MIN;
		return false;
	}
	if (second < 0)
		second += SECS_PER_DAY, days--;
	if (known != days || of != o)
	{
		known_day = oracle_day(o, days);
		known = days;
		of = o;
	}
	return known_day && o->set[2][second / 3600] &&
		   o->set[1][second / 60 % 60] && o->set[0][second % 60];
}

/* ------------------------------------------------------------- the walk */

#define EPOCH_DIFF \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY)

static int64
shown(const pg_tz *zone, pg_time_t t)
{
	int i = 0;

	while (i < zone->n && zone->at[i] <= t)
		i++;
	return t + zone->offset[i];
}

/* the latest that clocks have shown until then: each turning back counts */
static int64
latest(const pg_tz *zone, pg_time_t t)
{
	int64 most = shown(zone, t);
	int i;

	for (i = 0; i < zone->n && zone->at[i] <= t; i++)
		most = Max(most, zone->at[i] - 1 + zone->offset[i]);
	return most;
}

/*
 * From a moment on at which clocks show what they have not shown before: so many
 * seconds nothing matches, for sure.
 */
static int64
nothing_for(const Oracle *o, const pg_tz *zone, pg_time_t t, int64 local)
{
	int second = (local % SECS_PER_DAY + SECS_PER_DAY) % SECS_PER_DAY;
	int64 n = 0;
	int i;

	if (!oracle_day(o, (local - second) / SECS_PER_DAY))
		n = SECS_PER_DAY - second;
	else if (!o->set[2][second / 3600])
		n = 3600 - second % 3600;
	else if (!o->set[1][second / 60 % 60])
		n = 60 - second % 60;
	for (i = 0; i < zone->n; i++)
		if (zone->at[i] > t)
			n = Min(n, zone->at[i] - t);
	return n;
}

/* does anything match that clocks have passed by from one moment to a later? */
static bool
due_at(const Oracle *o, int64 before, int64 now)
{
	/* what is skipped beyond a week repeats no day less than that */
	for (; before < now; before++)
		if (oracle_matches(o, before + 1))
			return true;
	return false;
}

static void
walk(const JqCron *cron, const Oracle *o, const pg_tz *zone, TimestampTz after,
	 const char *text)
{
	pg_time_t t = (int64) floor(after / 1e6) + EPOCH_DIFF;
	pg_time_t end = t + SPAN;
	TimestampTz from = after;
	TimestampTz last = 0;
	bool has_last = false;
	TimestampTz next, previous;
	int64 before = latest(zone, t);
	bool found = jq_cron_next(cron, 0, from, zone, &next);
	int hits = 0;

	oracle_matches(NULL, 0);
	for (t++; t <= end && hits < 100; t++)
	{
		int64 now = latest(zone, t);
		int64 n = now == before + 1 ? nothing_for(o, zone, t, now) : 0;

		if (n > 0)
		{
			n = Min(n, end + 1 - t);
			before += n;
			t += n - 1;
			continue;
		}
		if (due_at(o, before, now))
		{
			TimestampTz instant = (t - EPOCH_DIFF) * USECS_PER_SEC;

			check(found && next == instant, "an instant is missed", text);
			check(jq_cron_next(cron, 0, instant - 1, zone, &next) &&
					  next == instant,
				  "not found from just before it", text);
			found = jq_cron_next(cron, 0, instant, zone, &next);
			check(!found || next > instant, "next is not later", text);
			last = instant;
			has_last = true;
			hits++;
		}
		before = Max(before, now);
	}
	check(!found || next >= (t - EPOCH_DIFF) * USECS_PER_SEC,
		  "an instant that is none", text);
	if (t <= end)
		return;
	check(jq_cron_previous(cron, 0, from, (end - EPOCH_DIFF) * USECS_PER_SEC,
						   zone, &previous) == has_last,
		  "there is a previous one, or none", text);
	check(!has_last || previous == last, "the previous one", text);
}

/* ------------------------------------------------------------ one input */

typedef struct Input
{
	const uint8 *p;
	const uint8 *end;
} Input;

static int64
take(Input *in, int bytes)
{
	uint64 n = 0;

	while (bytes-- > 0 && in->p < in->end)
		n = n << 8 | *in->p++;
	return (int64) n;
}

static void
make_zone(Input *in, pg_time_t around, pg_tz *zone)
{
	int i;

	memset(zone, 0, sizeof(*zone));
	zone->n = take(in, 1) % (MAX_SHIFTS + 1);
	for (i = 0; i <= zone->n; i++)
	{
		/* up to 14 hours, in seconds */
		zone->offset[i] = take(in, 2) % 50400 * (take(in, 1) % 2 ? 1 : -1);
		if (i == zone->n)
			break;
		zone->at[i] = i == 0 ? around - 86400 + take(in, 3) % 259200 :
							   zone->at[i - 1] + 1 + take(in, 3) % 100000;
	}
}

int LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const uint8 *zero = memchr(data, 0, size);
	size_t len = zero ? zero - data : size;
	Input in = {zero ? zero + 1 : data + size, data + size};
	char *text = malloc(len + 1);
	JqCron cron, again;
	JqCronError error;
	Oracle o;
	pg_tz zone;
	TimestampTz after, next, wild;
	int64 every;
	bool ok, is_fields;

	memcpy(text, data, len);
	text[len] = '\0';
	/* within 200 years of 2000, and anywhere */
	wild = take(&in, 8);
	after = wild % (INT64CONST(73000) * USECS_PER_DAY);
	make_zone(&in, (int64) floor(after / 1e6) + EPOCH_DIFF, &zone);

	ok = jq_cron_parse(text, &cron, &error);
	is_fields = text[strspn(text, " \t\n\v\f\r")] != '@' && cron.every == 0;
	if (ok)
	{
		check(jq_cron_parse(text, &again, &error) &&
				  memcmp(&cron, &again, sizeof(cron)) == 0,
			  "read twice, and it differs", text);
		if (cron.every != 0)
			check(oracle_interval(text, &every) && cron.every == every,
				  "an interval is another one", text);
	}
	else
	{
		check(error.at >= 0 && error.at <= (int) len, "the error is outside",
			  text);
		check(error.hint != NULL && error.message[0] != '\0',
			  "an error that says nothing", text);
		check(!oracle_interval(text, &every), "a good interval was refused",
			  text);
	}
	if (is_fields)
	{
		bool other = oracle_parse(text, &o);

		check(!ok || other, "nonsense was accepted", text);
		/* what looks like an interval is read as one */
		check(ok || !other, "good fields were refused", text);
	}
	if (ok)
	{
		TimestampTz start = wild / 2;

		if (IS_VALID_TIMESTAMP(wild) && IS_VALID_TIMESTAMP(start))
		{
			if (jq_cron_next(&cron, start, wild, &zone, &next))
				check(next > wild && IS_VALID_TIMESTAMP(next), "not after it",
					  text);
		}
		if (cron.every != 0)
		{
			if (jq_cron_next(&cron, start, after, &zone, &next))
			{
				/* no sum of two such numbers is beyond 128 bits */
				check(next > start && (next <= after || next > after),
					  "an interval", text);
				check((int64) (((__int128) next - start) % cron.every) == 0,
					  "an interval drifts", text);
				check(next > after &&
						  (after < start ?
							   (__int128) next - start == cron.every :
							   (__int128) next - after <= cron.every),
					  "an interval is left out", text);
			}
		}
		else
		{
			if (!is_fields)
			{
				const char *p = text + strspn(text, " \t\n\v\f\r");

				switch (p[1] | 0x20)
				{
					case 'h':
						ok = oracle_parse("0 * * * *", &o);
						break;
					case 'd':
						ok = oracle_parse("0 0 * * *", &o);
						break;
					case 'w':
						ok = oracle_parse("0 0 * * 0", &o);
						break;
					case 'm':
						ok = oracle_parse((p[2] | 0x20) == 'o' ? "0 0 1 * *" :
																 "0 0 * * *",
										  &o);
						break;
					default:
						ok = oracle_parse("0 0 1 1 *", &o);
				}
				check(ok, "a word", text);
			}
			walk(&cron, &o, &zone, after, text);
		}
	}
	free(text);
	return 0;
}
