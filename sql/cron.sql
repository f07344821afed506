-- Cron expressions: what they mean, what is wrong with them, when they are due.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set oracle :abs_srcdir /test/cron_oracle.sql
\set ECHO none
\i :common
\i :oracle
\set ECHO all
SET timezone = 'UTC';
SET datestyle = 'ISO';

-- five fields, six with seconds, words, names, lists, ranges, steps
CREATE FUNCTION due(cron text, after timestamptz, zone text DEFAULT 'UTC', n int DEFAULT 3)
RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(to_char(t AT TIME ZONE zone, 'Dy YYYY-MM-DD HH24:MI:SS'), ', ')
	FROM jobqueue_cron_next(cron, after, zone, n) t $$;
SELECT cron, due(cron, '2024-01-31 23:59:30+00') FROM unnest(ARRAY[
	'* * * * *', '*/15 * * * *', '5 4 * * *', '0 22 * * 1-5', '0 0,12 1 */2 *',
	'15 10 * jan,mar-may mon', '0 9 * * fri-sun', '0 0 * * 7', '0 0 * * 0',
	'0 0 * * 7/2', '0 0 13 * 7/3', '0 0 * * 5/2',
	'*/20 30 8 * * *', '0/25 * * * * *', '10-50/20 7-9 * * *', '0 8 * * MON-fri/2',
	'0 0 13 * fri', '0 0 */10 * mon', '0 0 L * *', '0 0 L-1,15 * *', '0 0 * * 5L',
	'0 0 * * friL,Monl', '0 0 29 2 *', '0 0 31 * *', '  0	0  1 1 * ', '59 59 23 31 12 *',
	'@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@ANNUALLY']) WITH ORDINALITY AS x (cron, n)
ORDER BY n;
-- intervals, counted from there on
SELECT cron, due(cron, '2024-01-31 23:59:30+00') FROM unnest(ARRAY[
	'15 seconds', '1 second', '90 min', '1 hour 30 minutes', '2h 5s', '1 day', '1 week', '00:05:00', '36:00',
	' 10  Minutes ', '45s']) WITH ORDINALITY AS x (cron, n)
ORDER BY n;
-- what is wrong, and where
\set VERBOSITY default
SELECT jobqueue_cron_next('0 25 * * *');
\set VERBOSITY terse
CREATE OR REPLACE FUNCTION wrong(expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE m text;
BEGIN
	PERFORM jobqueue_cron_next(expression);
	RETURN 'no error';
EXCEPTION WHEN invalid_parameter_value THEN
	GET STACKED DIAGNOSTICS m = MESSAGE_TEXT;
	RETURN replace(m, 'invalid cron expression: ', '');
END $$;
SELECT cron, wrong(cron) FROM unnest(ARRAY[
	'', ' ', '* * * *', '*', '* * * * * * *', '60 * * * *', '-1 * * * *', '* 24 * * *', '* * 0 * *', '* * 32 * *',
	'* * * 13 *', '* * * 0 *', '* * * * 8', '60 * * * * *', '99999999999 * * * *', 'x * * * *', '* * * foo *',
	'* * * january *', '* * * * monday', '5- * * * *', '5-x * * * *', '10-5 * * * *', '* * * * fri-mon', '*/0 * * * *',
	'*/61 * * * *', '*/ * * * *', '*/x * * * *', '5,,6 * * * *', '5, * * * *', ',5 * * * *', '5;6 * * * *', '*5 * * * *',
	'* * L-31 * *', '* * L- * *', '* L * * *', '* * Lx * *', '* * * * L', '* * * * 5L-6', '0 0 30 2 *', '0 0 31 4,6,9,11 *',
	'0 0 30,31 feb *', '@reboot', '@', '@daily 5', '@täglich', 'ü * * * *', '15', '15 parsecs', '15 ms', '1 month', '2 years', '0 seconds',
	'1.5 hours', '1 hour 30', '-5 minutes', '5 minutes ago', '5:7', '1:00:61', '5300 weeks', '4000000000 weeks',
	'1 week x', '1 day 5 /', '5000 weeks 5000 weeks 1 x']) WITH ORDINALITY AS x (cron, n)
ORDER BY n;
-- long numbers are what they say
SELECT wrong('99999999999 seconds'), wrong('18446744073709551617 seconds');
SELECT jobqueue_cron_next('2000000000 seconds', '2000-01-01 00:00+00') AT TIME ZONE 'UTC';
SELECT jobqueue_cron_next('000000000005 0 * * *', '2000-01-01 00:01+00', 'UTC') AT TIME ZONE 'UTC';
-- the position counts characters, and stands in the text that was given
\set VERBOSITY default
SELECT jobqueue_cron_next('0 0 * * ä');
SELECT jobqueue_cron_next(repeat(' ', 3) || '0 0 31 feb *');
\set VERBOSITY terse
CALL raises($$ SELECT jobqueue_cron_next(NULL) $$);
CALL raises($$ SELECT jobqueue_cron_next('* * * * *', 'infinity') $$);
CALL raises($$ SELECT jobqueue_cron_next('* * * * *', timezone => 'Mars/Olympus') $$);
CALL raises($$ SELECT jobqueue_cron_next('* * * * *', n => -1) $$);
CALL raises($$ SELECT jobqueue_cron_next('1 hour 30') $$);
SELECT count(*) FROM jobqueue_cron_next('* * * * *', n => 0);

-- the session's zone is the default
SET timezone = 'Asia/Kolkata';
SELECT jobqueue_cron_next('0 6 * * *', '2024-05-01 00:00+00');
SET timezone = 'UTC';
-- a skipped local time runs at the jump, once for all of them; a doubled one the first time
SELECT jobqueue_cron_next('30 2 * * *', '2024-03-29 12:00+00', 'Europe/Berlin', 3);
SELECT jobqueue_cron_next('*/15 2 * * *', '2024-03-30 12:00+00', 'Europe/Berlin', 2);
SELECT jobqueue_cron_next('30 2 * * *', '2024-10-25 12:00+00', 'Europe/Berlin', 3);
SELECT jobqueue_cron_next('30 2 * * *', '2024-10-27 00:30+00', 'Europe/Berlin');
SELECT jobqueue_cron_next('30 2 * * *', '2024-10-27 01:10+00', 'Europe/Berlin');
SELECT jobqueue_cron_next('0 * * * *', '2024-10-26 23:30+00', 'Europe/Berlin', 4);
SELECT jobqueue_cron_next('30 minutes', '2024-10-27 00:00+00', 'Europe/Berlin', 3);
-- half an hour in Lord Howe, a whole day in Samoa, midnight in Beirut
SELECT jobqueue_cron_next('15 2 * * *', '2024-10-05 00:00+00', 'Australia/Lord_Howe', 2);
SELECT jobqueue_cron_next('0 12 * * *', '2011-12-28 00:00+00', 'Pacific/Apia', 4);
SELECT jobqueue_cron_next('@daily', '2024-03-29 00:00+00', 'Asia/Beirut', 3);
-- leap years, 400 years ahead, the end of time
SELECT jobqueue_cron_next('0 0 29 2 *', '2096-03-01', 'UTC', 2);
SELECT jobqueue_cron_next('0 0 29 feb */7', '2024-03-01', 'UTC', 2);
SELECT jobqueue_cron_next('0 0 1 1 *', '294275-06-01', 'UTC', 9);
SELECT jobqueue_cron_next('5000 weeks', '294100-01-01', 'UTC', 9);
SELECT jobqueue_cron_next('@yearly', '4713-01-01 BC', 'UTC');
-- parts of a second, before 2000 and after
SELECT jobqueue_cron_next('* * * * * *', t::timestamptz, 'UTC')
FROM unnest('{1999-12-31 23:59:58.5,1999-12-31 23:59:59.999999,2000-01-01 00:00:00.5}'::text[]) t;

-- the same as minute by minute, second by second, day by day with PostgreSQL's arithmetic
SELECT setseed(0.5);
\set cases 100
\getenv cases JQ_CRON_CASES
SELECT * FROM check_minutes(:cases);
SELECT * FROM check_seconds(:cases / 10);
SELECT * FROM check_days(:cases);
SELECT count(*) FROM check_zones();
DROP FUNCTION due, wrong, check_minutes, check_seconds, check_days, check_zones;
DROP SCHEMA oracle CASCADE;
