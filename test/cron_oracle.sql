-- What cron expressions mean, by brute force: random expressions are made
-- together with the sets of numbers that they stand for, and each minute (second,
-- day) is compared with these.
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS oracle CASCADE;
CREATE SCHEMA oracle;

-- the sets: seconds, minutes, hours, days, days before the last one, months,
-- weekdays, last weekdays
CREATE TYPE oracle.expr AS (text text, s int[], m int[], h int[], d int[], e int[],
	mon int[], w int[], lw int[], any_d boolean, any_w boolean);

CREATE FUNCTION oracle.rnd(a int, b int) RETURNS int LANGUAGE sql VOLATILE AS
	$$ SELECT a + floor(random() * (b - a + 1))::int $$;

CREATE FUNCTION oracle.name(field text, n int) RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT CASE WHEN random() < 0.5 THEN n::text
		WHEN field = 'mon' THEN (string_to_array('jan feb mar apr may jun jul aug sep oct nov dec', ' '))[n]
		WHEN field = 'w' AND n < 7 THEN (string_to_array('sun MON Tue wed thu fri sat', ' '))[n + 1]
		ELSE n::text END $$;

-- one field, and its set; dense: with much in it
CREATE FUNCTION oracle.field(field text, lo int, hi int, dense boolean, OUT text text, OUT set int[])
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	a int; b int; step int; r float8 := random(); part text; parts text[] := '{}';
	size int := hi - lo + 1;
BEGIN
	set := '{}';
	IF r < 0.3 OR (dense AND r < 0.6) THEN
		text := '*';
		set := ARRAY(SELECT generate_series(lo, hi));
		RETURN;
	ELSIF r < 0.4 THEN
		step := oracle.rnd(1, size);
		text := '*/' || step;
		set := ARRAY(SELECT generate_series(lo, hi, step));
		RETURN;
	END IF;
	FOR i IN 1 .. oracle.rnd(1, 3) LOOP
		a := oracle.rnd(lo, hi);
		b := oracle.rnd(a, hi);
		step := oracle.rnd(1, size);
		r := random();
		part := oracle.name(field, a);
		IF r < 0.4 THEN
			b := a; step := 1;
		ELSIF r < 0.7 THEN
			part := part || '-' || oracle.name(field, b); step := 1;
		ELSIF r < 0.85 THEN
			part := part || '-' || oracle.name(field, b) || '/' || step;
		ELSE
			b := hi;
			part := part || '/' || step;
		END IF;
		parts := parts || part;
		set := set || ARRAY(SELECT generate_series(a, b, step));
	END LOOP;
	text := array_to_string(parts, ',');
END $$;

CREATE FUNCTION oracle.expression(seconds boolean, dense boolean) RETURNS oracle.expr
LANGUAGE plpgsql VOLATILE AS $$
DECLARE x oracle.expr; t text; s text;
BEGIN
	x.s := '{0}'; x.e := '{}'; x.lw := '{}'; x.text := '';
	IF seconds THEN
		SELECT * INTO t, x.s FROM oracle.field('s', 0, 59, dense);
		x.text := t || ' ';
	END IF;
	SELECT * INTO t, x.m FROM oracle.field('m', 0, 59, dense);
	x.text := x.text || t;
	SELECT * INTO t, x.h FROM oracle.field('h', 0, 23, dense);
	x.text := x.text || ' ' || t;
	SELECT * INTO t, x.d FROM oracle.field('d', 1, 31, dense);
	IF random() < 0.15 THEN
		t := t || ',L'; x.e := '{0}';
	ELSIF random() < 0.1 THEN
		x.e := ARRAY[oracle.rnd(0, 27)]; t := 'L-' || x.e[1]; x.d := '{}';
	END IF;
	x.any_d := t LIKE '*%';
	x.text := x.text || ' ' || t;
	SELECT * INTO t, x.mon FROM oracle.field('mon', 1, 12, dense);
	x.text := x.text || ' ' || t;
	SELECT * INTO t, x.w FROM oracle.field('w', 0, 6, dense);
	IF random() < 0.15 THEN
		x.lw := ARRAY[oracle.rnd(0, 6)]; t := t || ',' || x.lw[1] || 'L';
	END IF;
	x.any_w := t LIKE '*%';
	x.text := x.text || ' ' || t;
	RETURN x;
END $$;

CREATE FUNCTION oracle.day_matches(x oracle.expr, l timestamp) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
	SELECT extract(month FROM l)::int = ANY (x.mon) AND CASE WHEN x.any_d OR x.any_w THEN a AND b ELSE a OR b END
	FROM (SELECT extract(day FROM l)::int = ANY (x.d) OR left_in_month = ANY (x.e) AS a,
		extract(dow FROM l)::int = ANY (x.w)
			OR (left_in_month < 7 AND extract(dow FROM l)::int = ANY (x.lw)) AS b
		FROM (SELECT extract(day FROM date_trunc('month', l) + interval '1 month' - date_trunc('day', l))::int - 1
			AS left_in_month) y) z $$;
CREATE FUNCTION oracle.matches(x oracle.expr, l timestamp) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
	SELECT extract(second FROM l)::int = ANY (x.s) AND extract(minute FROM l)::int = ANY (x.m)
		AND extract(hour FROM l)::int = ANY (x.h) AND oracle.day_matches(x, l) $$;

-- due: what clocks in the zone show for the first time, or pass over
CREATE FUNCTION oracle.due(x oracle.expr, zone text, a timestamptz, b timestamptz, step interval)
RETURNS SETOF timestamptz LANGUAGE sql STABLE AS $$
	WITH shown AS (
		SELECT u, u AT TIME ZONE zone AS l FROM generate_series(a - interval '4 hours', b, step) u),
	before AS (
		SELECT u, l, max(l) OVER (ORDER BY u ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS b FROM shown)
	SELECT u FROM before v
	WHERE u > a AND l > v.b
	  AND EXISTS (SELECT FROM generate_series(v.b + step, l, step) p WHERE oracle.matches(x, p))
	ORDER BY u $$;

-- a moment at which the offset of the zone changes, some time between 1975 and 2060
CREATE FUNCTION oracle.change(zone text) RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	start timestamptz := make_timestamptz(oracle.rnd(1975, 2060), oracle.rnd(1, 12), 1, 0, 0, 0, 'UTC');
	a timestamptz; b timestamptz; m timestamptz;
BEGIN
	SELECT u INTO a FROM generate_series(start, start + interval '1 year', '1 day') u
	WHERE u AT TIME ZONE zone - u AT TIME ZONE 'UTC'
		<> (u + interval '1 day') AT TIME ZONE zone - (u + interval '1 day') AT TIME ZONE 'UTC'
	LIMIT 1;
	IF a IS NULL THEN
		RETURN start;
	END IF;
	b := a + interval '1 day';
	WHILE b - a > interval '1 minute' LOOP
		m := date_trunc('minute', a + (b - a) / 2);
		IF m AT TIME ZONE zone - m AT TIME ZONE 'UTC' = a AT TIME ZONE zone - a AT TIME ZONE 'UTC' THEN
			a := m;
		ELSE
			b := m;
		END IF;
	END LOOP;
	RETURN b;
END $$;

CREATE TABLE oracle.zones AS
	-- AT TIME ZONE takes some names for those of fixed offsets
	SELECT name, row_number() OVER (ORDER BY name) AS n FROM pg_timezone_names
	WHERE name NOT LIKE 'posix/%' AND name NOT IN (SELECT abbrev FROM pg_timezone_abbrevs);

CREATE FUNCTION oracle.check_around(cases int, seconds boolean, step interval, before interval, after interval,
	OUT expression text, OUT zone text, OUT a timestamptz, OUT differs timestamptz[])
RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS $$
DECLARE x oracle.expr; c timestamptz; b timestamptz; k int;
BEGIN
	FOR i IN 1 .. cases LOOP
		x := oracle.expression(seconds, random() < 0.7);
		k := oracle.rnd(1, (SELECT count(*) FROM oracle.zones)::int);
		SELECT name INTO zone FROM oracle.zones WHERE n = k;
		c := oracle.change(zone);
		-- half of them between the change and the end of what clocks show twice
		a := CASE WHEN random() < 0.5 THEN c - before ELSE c + random() * after / 3 END;
		a := date_trunc('second', a);
		IF NOT seconds THEN
			a := date_trunc('minute', a);
		END IF;
		b := c + after;
		BEGIN
			expression := x.text;
			SELECT array_agg(coalesce(p.t, q.t) ORDER BY 1) INTO differs
			FROM (SELECT t FROM oracle.fires(x.text, a, b, zone) t) p
			FULL JOIN (SELECT t FROM oracle.due(x, zone, a, b, step) t) q USING (t)
			WHERE p.t IS NULL OR q.t IS NULL;
		EXCEPTION WHEN invalid_parameter_value THEN
			-- a day that never comes: the oracle must not know one either
			SELECT array_agg(l) INTO differs
			FROM generate_series(timestamp '2000-01-01', '2028-01-01', '1 day') l
			WHERE oracle.day_matches(x, l);
		END;
		IF differs IS NOT NULL THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;

-- what jobqueue says, up to b
CREATE FUNCTION oracle.fires(expression text, a timestamptz, b timestamptz, zone text)
RETURNS SETOF timestamptz LANGUAGE sql AS $$
	SELECT n FROM jobqueue_cron_next(expression, a, zone, 7000) n WHERE n <= b $$;

CREATE FUNCTION check_minutes(cases int, OUT expression text, OUT zone text, OUT a timestamptz, OUT differs timestamptz[])
RETURNS SETOF record LANGUAGE sql AS
	$$ SELECT * FROM oracle.check_around(cases, false, '1 minute', '5 hours', '5 hours') $$;
CREATE FUNCTION check_seconds(cases int, OUT expression text, OUT zone text, OUT a timestamptz, OUT differs timestamptz[])
RETURNS SETOF record LANGUAGE sql AS
	$$ SELECT * FROM oracle.check_around(cases, true, '1 second', '40 minutes', '70 minutes') $$;

-- months, leap days, ends of months: each day of four years
CREATE FUNCTION check_days(cases int, OUT expression text, OUT a timestamptz, OUT differs timestamptz[])
RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS $$
DECLARE x oracle.expr; b timestamptz;
BEGIN
	FOR i IN 1 .. cases LOOP
		x := oracle.expression(false, random() < 0.3);
		x.text := regexp_replace(x.text, '^\S+ \S+', '0 0');
		expression := x.text;
		a := make_timestamptz(oracle.rnd(1890, 2110), oracle.rnd(1, 12), oracle.rnd(1, 28), 0, 0, 0, 'UTC');
		b := a + interval '4 years';
		BEGIN
			SELECT array_agg(coalesce(p.t, q.t) ORDER BY 1) INTO differs
			FROM (SELECT t FROM oracle.fires(x.text, a, b, 'UTC') t) p
			FULL JOIN (SELECT l AT TIME ZONE 'UTC' AS t FROM generate_series(a AT TIME ZONE 'UTC' + interval '1 day',
				b AT TIME ZONE 'UTC', '1 day') l WHERE oracle.day_matches(x, l)) q USING (t)
			WHERE p.t IS NULL OR q.t IS NULL;
		EXCEPTION WHEN invalid_parameter_value THEN
			SELECT array_agg(l) INTO differs
			FROM generate_series(timestamp '2000-01-01', '2028-01-01', '1 day') l
			WHERE oracle.day_matches(x, l);
		END;
		IF differs IS NOT NULL THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;

-- each zone at each change of the years around now, half past each hour
CREATE FUNCTION check_zones(OUT zone text, OUT a timestamptz, OUT differs timestamptz[])
RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS $$
DECLARE x oracle.expr;
BEGIN
	x := ROW('*/30 * * * *', '{0}', '{0,30}', ARRAY(SELECT generate_series(0, 23)), ARRAY(SELECT generate_series(1, 31)),
		'{}', ARRAY(SELECT generate_series(1, 12)), ARRAY(SELECT generate_series(0, 6)), '{}', true, true);
	FOR zone IN SELECT name FROM oracle.zones ORDER BY n LOOP
		a := oracle.change(zone) + (ARRAY['-2 hours', '10 minutes'])[oracle.rnd(1, 2)]::interval;
		SELECT array_agg(coalesce(p.t, q.t) ORDER BY 1) INTO differs
		FROM (SELECT t FROM oracle.fires(x.text, a, a + interval '4 hours', zone) t) p
		FULL JOIN (SELECT t FROM oracle.due(x, zone, a, a + interval '4 hours', '1 minute') t) q USING (t)
		WHERE p.t IS NULL OR q.t IS NULL;
		IF differs IS NOT NULL THEN
			RETURN NEXT;
		END IF;
	END LOOP;
END $$;
