-- Schedules: made, replaced, paused, run by hand; who may; what is wrong.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all
SET timezone = 'Europe/Berlin';
SET datestyle = 'ISO';
CREATE FUNCTION nightly(args jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ INSERT INTO public.ran (what) VALUES (args->>'what'); SELECT args $$;

-- a schedule, and what it is like
SELECT jobqueue_schedule('nightly', '30 3 * * *', 'nightly', '{"what": "n"}') > 0 AS id;
SELECT name, owner = current_user::regrole AS mine, cron, timezone, command, args, queue, key, priority, overlap, catch_up, paused,
	next_run = jobqueue_cron_next('30 3 * * *') AS next, last_run, last_job, last_outcome, last_error, runs,
	max_attempts, timeout, keep, tags FROM jobqueue_schedules;
SELECT jobqueue_schedule('all of it', '0 0 12 L feb 5L', 'SELECT $1', '{"a": 1}', queue => 'q', key => 'k', priority => 7,
	max_attempts => 3, timeout => '5 min', keep => '1 day', tags => '{a,b}', timezone => 'America/New_York',
	overlap => 'Queue', catch_up => 'ALL') > 0 AS id;
SELECT name, cron, timezone, command, args, queue, key, priority, overlap, catch_up, max_attempts, timeout, keep, tags
FROM jobqueue_schedules WHERE name = 'all of it';
SELECT jobqueue_schedule('outside', '@daily', NULL, queue => 'q') > 0 AS id;
-- replaced: the same expression goes on where it was, another one begins anew
SELECT id, started_at, seen_to, next_run FROM jobqueue_schedule WHERE name = 'nightly' \gset
SELECT jobqueue_schedule('nightly', '30 3 * * *', 'nightly', '{"what": "other"}', overlap => 'allow') = :id AS same_number;
SELECT started_at = :'started_at' AS started, seen_to = :'seen_to' AS seen, next_run = :'next_run' AS next, args, overlap
FROM jobqueue_schedule WHERE name = 'nightly';
SELECT jobqueue_schedule('nightly', '30 4 * * *', 'nightly', '{"what": "later"}') = :id AS same_number;
SELECT started_at > :'started_at' AS started, seen_to > :'seen_to' AS seen,
	next_run = jobqueue_cron_next('30 4 * * *') AS next, args, overlap FROM jobqueue_schedule WHERE name = 'nightly';
SELECT jobqueue_schedule('nightly', '30 4 * * *', 'nightly', '{"what": "n"}', timezone => 'Asia/Tokyo') = :id AS same_number;
SELECT next_run = jobqueue_cron_next('30 4 * * *', timezone => 'Asia/Tokyo') AS next FROM jobqueue_schedules WHERE name = 'nightly';
-- rolled back
BEGIN;
SELECT jobqueue_unschedule('nightly');
SELECT jobqueue_schedule('never', '@hourly', 'nightly') > 0 AS id;
ROLLBACK;
SELECT string_agg(name, ', ' ORDER BY name) FROM jobqueue_schedules;

-- run by hand; by default not beside a run that has not ended
SELECT jobqueue_schedule_run('nightly') AS job \gset
CALL wait_until($$ (SELECT last_outcome = 'completed' FROM jobqueue_schedules WHERE name = 'nightly') $$);
SELECT last_job = :job AS job, last_run IS NOT NULL AS last_run, runs FROM jobqueue_schedules WHERE name = 'nightly';
SELECT left_behind();
SELECT jobqueue_pause('default');
SELECT jobqueue_schedule_run('nightly') AS job \gset
SELECT last_outcome FROM jobqueue_schedules WHERE name = 'nightly';
\set VERBOSITY sqlstate
SELECT jobqueue_schedule_run('nightly');
\set VERBOSITY terse
SELECT jobqueue_schedule('nightly', '30 4 * * *', 'nightly', '{"what": "q"}', overlap => 'queue') = :id AS same_number;
SELECT jobqueue_schedule_run('nightly') IS NOT NULL AS job, jobqueue_schedule_run('nightly') IS NOT NULL AS job;
SELECT count(*), count(DISTINCT key) AS keys, bool_and(key = 'jobqueue_schedule:' || :id) AS key
FROM jobqueue_jobs WHERE key LIKE 'jobqueue_schedule:%' AND state IN ('ready', 'blocked');
SELECT jobqueue_cancel(:job);
SELECT jobqueue_schedule('nightly', '30 4 * * *', 'nightly', '{"what": "a"}', overlap => 'allow', key => 'mine') = :id AS same_number;
SELECT jobqueue_schedule_run('nightly') IS NOT NULL AS job;
SELECT count(*) FROM jobqueue_jobs WHERE key = 'mine' AND state IN ('ready', 'blocked');
SELECT jobqueue_resume('default');
CALL drained();
SELECT left_behind() ORDER BY 1;
SELECT last_outcome, runs FROM jobqueue_schedules WHERE name = 'nightly';
SET jobqueue.inline = on;
BEGIN;
SELECT jobqueue_schedule_run('nightly') IS NOT NULL AS job;
SELECT left_behind();
ROLLBACK;
RESET jobqueue.inline;
-- an outside consumer gets those without a command
SELECT jobqueue_schedule_run('outside') AS job \gset
SELECT id = :job AS that_one FROM jobqueue_fetch('q');
SELECT jobqueue_complete(:job);

-- paused it has no next time; resumed it goes on from now
SELECT jobqueue_schedule_pause('nightly'), jobqueue_schedule_pause('nightly');
SELECT paused, next_run FROM jobqueue_schedules WHERE name = 'nightly';
SELECT jobqueue_schedule('nightly', '30 5 * * *', 'nightly') = :id AS same_number;
SELECT paused, next_run FROM jobqueue_schedules WHERE name = 'nightly';
SELECT jobqueue_schedule_resume('nightly'), jobqueue_schedule_resume('nightly');
CALL wait_until($$ (SELECT next_run IS NOT NULL FROM jobqueue_schedules WHERE name = 'nightly') $$);
SELECT paused, next_run = jobqueue_cron_next('30 5 * * *') AS next FROM jobqueue_schedules WHERE name = 'nightly';

-- it fires
SELECT jobqueue_schedule('quick', '1 second', 'nightly', '{"what": "quick"}', overlap => 'allow') > 0 AS id;
CALL wait_until($$ (SELECT count(*) >= 3 FROM ran WHERE what = 'quick') $$);
SELECT jobqueue_unschedule('quick'), jobqueue_unschedule('quick');
CALL drained();
SELECT DISTINCT left_behind();
-- six fields: each second
SELECT jobqueue_schedule('seconds', '* * * * * *', 'nightly', '{"what": "s"}', overlap => 'queue') > 0 AS id;
CALL wait_until($$ (SELECT runs >= 3 AND last_run = date_trunc('second', last_run) FROM jobqueue_schedules WHERE name = 'seconds') $$);
SELECT jobqueue_unschedule('seconds');
CALL drained();
SELECT DISTINCT left_behind();

-- what is wrong with an expression is found when the schedule is made, and where
\set VERBOSITY default
SELECT jobqueue_schedule('wrong', '0 0 1 13 *', 'nightly');
\set VERBOSITY terse
CALL raises($$ SELECT jobqueue_schedule(NULL, '@daily', 'nightly') $$);
CALL raises($$ SELECT jobqueue_schedule('', '@daily', 'nightly') $$);
CALL raises($$ SELECT jobqueue_schedule(repeat('x', 256), '@daily', 'nightly') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', NULL, 'nightly') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'no_such_function') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'SELECT FROM FROM') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', timezone => 'Nowhere') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', overlap => 'no') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', catch_up => 'some') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', queue => 'a queue') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', key => '') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', key => 'jobqueue_service:1') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', priority => 40000) $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', max_attempts => 0) $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', timeout => '-1 s') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', keep => '-1 s') $$);
CALL raises($$ SELECT jobqueue_schedule('wrong', '@daily', 'nightly', tags => '{a,null}') $$);
CALL raises($$ SELECT jobqueue_schedule_run('wrong') $$);
CALL raises($$ SELECT jobqueue_schedule_pause('wrong') $$);
CALL raises($$ SELECT jobqueue_schedule_resume('wrong') $$);
CALL raises($$ SELECT jobqueue_schedule_run(NULL) $$);
BEGIN READ ONLY;
SELECT jobqueue_schedule('wrong', '@daily', 'nightly');
ROLLBACK;
SELECT jobqueue_unschedule('wrong');

-- names are a role's own; a member of a role may act on its schedules
CREATE ROLE regress_jq_a;
CREATE ROLE regress_jq_b;
CREATE ROLE regress_jq_ab IN ROLE regress_jq_a, regress_jq_b;
SELECT jobqueue_grant('regress_jq_a', 'use'), jobqueue_grant('regress_jq_b', 'use'), jobqueue_grant('regress_jq_ab', 'use');
SET ROLE regress_jq_a;
SELECT jobqueue_schedule('mine', '@yearly', 'SELECT 1', '{"secret": 1}') > 0 AS id;
SET ROLE regress_jq_b;
SELECT jobqueue_schedule('mine', '@yearly', 'SELECT 2') > 0 AS id;
SELECT jobqueue_schedule('b only', '@yearly', 'INSERT INTO ran (what) VALUES (''b'')') > 0 AS id;
SELECT name, owner, command FROM jobqueue_schedules ORDER BY 1;
SELECT jobqueue_unschedule('nightly');
CALL raises($$ SELECT jobqueue_schedule_run('nightly') $$);
SET ROLE regress_jq_ab;
SELECT name, owner, command FROM jobqueue_schedules ORDER BY 1, 2;
CALL raises($$ SELECT jobqueue_unschedule('mine') $$);
SELECT jobqueue_schedule_run('b only') IS NOT NULL AS job;
SELECT jobqueue_schedule_pause('b only');
RESET ROLE;
CALL drained();
SELECT what, role FROM ran;
SELECT left_behind();
CALL raises($$ SELECT jobqueue_unschedule('mine') $$);
SET ROLE regress_jq_a;
SELECT jobqueue_unschedule('mine');
RESET ROLE;
SELECT jobqueue_unschedule('mine'), jobqueue_unschedule('b only');
-- a row is a right to run as its owner
GRANT SELECT, INSERT, UPDATE, DELETE ON jobqueue_schedule TO regress_jq_a;
GRANT USAGE ON SEQUENCE jobqueue_job_id_seq TO regress_jq_a;
SET ROLE regress_jq_a;
SELECT count(*) FROM jobqueue_schedule;
INSERT INTO jobqueue_schedule (owner, name, cron, kind, command) VALUES ('regress_jq_b', 'planted', '1 second', 's', 'SELECT 1');
INSERT INTO jobqueue_schedule (name, cron, kind, command) VALUES ('own', '@yearly', 's', 'SELECT 1');
INSERT INTO jobqueue_schedule (name, cron, kind, command) VALUES ('broken', 'every now and then', 's', 'SELECT 1');
UPDATE jobqueue_schedule SET owner = 'regress_jq_b';
CALL wait_until($$ (SELECT bool_and(next_run > '-infinity') FROM jobqueue_schedule) $$);
SELECT name, next_run = jobqueue_cron_next('@yearly') AS next, last_outcome, last_error FROM jobqueue_schedules ORDER BY 1;
SELECT jobqueue_unschedule('own'), jobqueue_unschedule('broken');
RESET ROLE;
REVOKE ALL ON jobqueue_schedule FROM regress_jq_a;
REVOKE ALL ON SEQUENCE jobqueue_job_id_seq FROM regress_jq_a;
SELECT count(jobqueue_revoke(r, 'use')) FROM unnest('{regress_jq_a,regress_jq_b,regress_jq_ab}'::regrole[]) r;
DROP OWNED BY regress_jq_a, regress_jq_b, regress_jq_ab;
DROP ROLE regress_jq_a, regress_jq_b, regress_jq_ab;
SELECT count(jobqueue_unschedule(name)) FROM jobqueue_schedules;
SELECT count(*) FROM jobqueue_schedule;
CALL drained();
DROP FUNCTION nightly;
