-- What a role that may enqueue tries against the jobs of others, in one session; see
-- also test/t/055_attack.pl.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE ROLE regress_jq_alice;
CREATE ROLE regress_jq_mallory;
SELECT jobqueue_grant('regress_jq_alice', 'use'), jobqueue_grant('regress_jq_mallory', 'use');
CREATE SCHEMA regress_jq_mallory AUTHORIZATION regress_jq_mallory;
CREATE FUNCTION keeps(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT state || message';
CREATE FUNCTION dies() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'secret error'; END $$;

-- what alice has
SET SESSION AUTHORIZATION regress_jq_alice;
SELECT jobqueue_enqueue('SELECT ''secret command''', '{"x": "secret args"}', queue => 'secret.queue', key => 'secret key',
	unique_key => 'secret unique', tags => '{secret tag}', run_at => '2999-01-01') AS waiting \gset
SELECT jobqueue_enqueue('dies', max_attempts => 1, queue => 'secret.queue') AS dead \gset
SELECT jobqueue_enqueue('SELECT ''secret result''', keep => '1 day', queue => 'secret.queue') AS kept \gset
SELECT jobqueue_enqueue(NULL, '{"x": "secret args"}', queue => 'secret.queue', key => 'secret key 2') AS outside \gset
SELECT jobqueue_schedule('secret schedule', '@yearly', 'SELECT ''secret''', '{"x": "secret args"}') > 0 AS id;
SELECT jobqueue_start_service('regress_jq_service', 'keeps', '{"x": "secret state"}') > 0 AS id;
RESET SESSION AUTHORIZATION;
CALL wait_until(format('(SELECT count(*) = 2 FROM jobqueue_history WHERE id IN (%s, %s))', :dead, :kept));
CALL wait_until($$ (SELECT handled = 1 FROM jobqueue_services) $$);

-- nothing of it is seen
SET SESSION AUTHORIZATION regress_jq_mallory;
CREATE FUNCTION regress_jq_mallory.look(relation text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM %s x WHERE x::text LIKE ''%%secret%%''', relation) INTO n;
	RETURN n;
EXCEPTION WHEN insufficient_privilege THEN
	RAISE INFO '%', SQLERRM;
	RETURN 0;
END $$;
SELECT v, regress_jq_mallory.look(v) FROM unnest('{jobqueue_status,jobqueue_jobs,jobqueue_running,jobqueue_recent,jobqueue_history,jobqueue_keys,
	jobqueue_workers,jobqueue_queues,jobqueue_services,jobqueue_schedules,jobqueue_paused_roles,jobqueue_queue_stats(),jobqueue_counts(),jobqueue_running_jobs(),
	jobqueue_blocked_jobs(),jobqueue_recent_jobs(),jobqueue_held_keys(),jobqueue_processes(),
	jobqueue_job,jobqueue_archive,jobqueue_unique,jobqueue_lease,jobqueue_dependency,jobqueue_queue,jobqueue_service,
	jobqueue_service_current,jobqueue_schedule,jobqueue_consumer,jobqueue_meta,jobqueue_paused_role,pg_stats,pg_statistic_ext}'::text[]) v;
-- by a function of the looker's, in a condition or behind the estimate of a plan
CREATE FUNCTION regress_jq_mallory.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
	$$ BEGIN RAISE INFO 'saw %', $1; RETURN true; END $$;
DO $$
DECLARE v text; n bigint;
BEGIN
	FOREACH v IN ARRAY '{status,jobs,running,recent,history,keys,services,schedules}'::text[] LOOP
		EXECUTE format('SELECT count(*) FROM jobqueue_%s x WHERE regress_jq_mallory.leak(x)', v) INTO n;
		EXECUTE format('SELECT count(*) FROM (SELECT * FROM jobqueue_%s x OFFSET 0) x WHERE regress_jq_mallory.leak(x)', v) INTO n;
	END LOOP;
END $$;
-- statistics
RESET SESSION AUTHORIZATION;
ANALYZE jobqueue_job, jobqueue_archive;
GRANT pg_read_all_data TO regress_jq_mallory;
SET SESSION AUTHORIZATION regress_jq_mallory;
SELECT count(*) FROM pg_stats WHERE tablename LIKE 'jobqueue%' AND tablename NOT IN ('jobqueue_job_key', 'jobqueue_job_tried');
SELECT count(*) FROM jobqueue_job;
SELECT count(*) FROM jobqueue_archive;
SELECT count(*) FROM jobqueue_unique;
SELECT count(*) FROM jobqueue_service_current;
SELECT count(*) FROM jobqueue_meta;
RESET SESSION AUTHORIZATION;
REVOKE pg_read_all_data FROM regress_jq_mallory;

-- nothing is told or done
SET SESSION AUTHORIZATION regress_jq_mallory;
CREATE PROCEDURE regress_jq_mallory.attack(statement text) LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
	EXECUTE statement INTO r;
	RAISE INFO '%: %', regexp_replace(statement, '\d+', 'N', 'g'), coalesce(r, 'null');
EXCEPTION WHEN OTHERS THEN
	RAISE INFO '%: % %', regexp_replace(statement, '\d+', 'N', 'g'), SQLSTATE, regexp_replace(SQLERRM, '\d+', 'N', 'g');
END $$;
SELECT set_config('mallory.ids', concat_ws(',', :waiting, :dead, :kept, :outside), false) <> '' AS set;
DO $$
DECLARE
	job text[] := string_to_array(current_setting('mallory.ids'), ',');
	s text; id text;
BEGIN
	FOREACH s IN ARRAY ARRAY['cancel(%s)', 'retry(%s)', 'run(%s)', 'reschedule(%s, now())', 'reprioritize(%s, -1)', 'explain(%s)',
		'wait(%s, ''0'')', 'wait(ARRAY[%s, %1$s], ''0'')', 'complete(%s)', 'fail(%s)', 'release(%s)', 'extend(%s, ''1 s'', gen_random_uuid())',
		'enqueue(''SELECT 1'', after => ARRAY[%s])'] LOOP
		FOREACH id IN ARRAY CASE WHEN s ~ '^(complete|fail|release|extend)' THEN job[4:4] ELSE job END LOOP
			CALL regress_jq_mallory.attack(format('SELECT jobqueue_' || s, id));
		END LOOP;
	END LOOP;
	FOREACH s IN ARRAY ARRAY[
		'cancel_where(NULL, NULL, NULL, everything => true)', 'retry_where(''secret.queue'', NULL, NULL)', 'reschedule_where(''secret.queue'', NULL, NULL, now())',
		'reprioritize_where(''secret.queue'', NULL, NULL, -1)', 'purge(NULL, NULL, everything => true)',
		'enqueue(''SELECT 1'', queue => ''secret.queue'', unique_key => ''secret unique'')',
		'enqueue(''SELECT 1'', queue => ''secret.queue'', unique_key => ''secret unique'', on_conflict => ''replace'')',
		'enqueue(''SELECT 1'', queue => ''secret.queue'', unique_key => ''secret unique'', on_conflict => ''update'')',
		'send(''regress_jq_service'', ''{}'')', 'stop_service(''regress_jq_service'')', 'service_state(''regress_jq_service'')', 'whereis_service(''regress_jq_service'')',
		'start_service(''regress_jq_service'', ''keeps'', ''{}'')',
		'unschedule(''secret schedule'')', 'schedule_run(''secret schedule'')', 'schedule_pause(''secret schedule'')', 'schedule_resume(''secret schedule'')',
		'reassign(''regress_jq_alice'', ''regress_jq_mallory'')', 'reassign(''regress_jq_mallory'', ''regress_jq_alice'')', 'reassign(10, ''regress_jq_mallory'')',
		'whereis(''secret key'')', 'enqueue(''SELECT 1'', key => ''jobqueue_service:1'')', 'enqueue(''SELECT 1'', key => ''jobqueue_schedule:1'')',
		'schedule(''x'', ''@yearly'', ''SELECT 1'', key => ''jobqueue_service:1'')',
		'fetch(''secret.queue'')', 'lock(''secret key'')', 'try_lock(''secret key'')', 'xact_lock(''secret key'')', 'unlock(''secret key'')',
		'quiesce()', 'resume()', 'adopt()', 'sweep()', 'pause(''secret.queue'')', 'resume(''secret.queue'')', 'drop_queue(''secret.queue'')',
		'configure(''secret.queue'', on_dead => ''regress_jq_mallory.leak'')', 'pause_role(''regress_jq_alice'')', 'resume_role(''regress_jq_alice'')',
		'grant(''regress_jq_mallory'', ''admin'')', 'revoke(''regress_jq_alice'', ''use'')', 'monitors()', 'job_trigger()', 'role_in(''0'')'] LOOP
		CALL regress_jq_mallory.attack('SELECT jobqueue_' || s);
	END LOOP;
	CALL regress_jq_mallory.attack('CALL jobqueue_fetch_wait(''secret.queue'')');
	CALL regress_jq_mallory.attack('LOCK TABLE jobqueue_jobs IN SHARE MODE');
	CALL regress_jq_mallory.attack('SELECT id FROM jobqueue_jobs FOR UPDATE');
	CALL regress_jq_mallory.attack('INSERT INTO jobqueue_queues (queue) VALUES (''x'')');
	CALL regress_jq_mallory.attack('DELETE FROM jobqueue_history');
	CALL regress_jq_mallory.attack('CREATE TRIGGER t BEFORE INSERT ON jobqueue_job EXECUTE FUNCTION suppress_redundant_updates_trigger()');
	CALL regress_jq_mallory.attack('CREATE RULE r AS ON INSERT TO jobqueue_job DO INSTEAD NOTHING');
	CALL regress_jq_mallory.attack('CREATE INDEX ON jobqueue_job (id)');
	CALL regress_jq_mallory.attack('CREATE TABLE regress_jq_mallory.t (id bigint REFERENCES jobqueue_job)');
	CALL regress_jq_mallory.attack('CREATE STATISTICS regress_jq_mallory.s ON id, queue FROM jobqueue_job');
	CALL regress_jq_mallory.attack('CREATE POLICY p ON jobqueue_job USING (true)');
	CALL regress_jq_mallory.attack('ALTER FUNCTION jobqueue_enqueue OWNER TO regress_jq_mallory');
	CALL regress_jq_mallory.attack('ALTER EXTENSION jobqueue UPDATE');
	CALL regress_jq_mallory.attack('COMMENT ON TABLE jobqueue_job IS ''x''');
	CALL regress_jq_mallory.attack('SELECT nextval(''jobqueue_job_id_seq'')');
	CALL regress_jq_mallory.attack('SELECT last_value FROM jobqueue_job_id_seq');
	CALL regress_jq_mallory.attack('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = ''jobqueue launcher''');
	CALL regress_jq_mallory.attack('SET jobqueue.max_jobs_per_role = 0');
	CALL regress_jq_mallory.attack('SET jobqueue.max_args_size = ''1GB''');
	CALL regress_jq_mallory.attack('SET jobqueue.capture_settings = ''role''');
	CALL regress_jq_mallory.attack('ALTER ROLE regress_jq_mallory SET jobqueue.max_jobs_per_role = 0');
	CALL regress_jq_mallory.attack('SET session_replication_role = replica');
	CALL regress_jq_mallory.attack('SELECT pg_replication_origin_create(''x'')');
END $$;
RESET SESSION AUTHORIZATION;
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_job WHERE owner::oid = 'regress_jq_mallory'::regrole AND run_at IS NULL) $$);
SELECT id = :waiting AS waiting, state, priority, run_at FROM jobqueue_jobs WHERE owner::text = 'regress_jq_alice' ORDER BY id;
SELECT status, state FROM jobqueue_services;
SELECT name, paused, runs FROM jobqueue_schedules;

-- names that end a statement, or are a format
CREATE ROLE "regress_jq "";DROP TABLE jobqueue_job;--'%s%n%1$s";
DO $$
DECLARE r regrole;
BEGIN
	SELECT oid INTO r FROM pg_roles WHERE rolname LIKE 'regress_jq "%';
	PERFORM jobqueue_grant(r, level) FROM unnest('{use,consume,lock,monitor,admin}'::text[]) level;
	PERFORM jobqueue_grant(r, 'consume', 'q');
	EXECUTE format('SET ROLE %s', r);
	PERFORM jobqueue_schedule('%s%n"'';--', '@yearly', 'SELECT ''%s%n''');
	PERFORM jobqueue_schedule_pause('%s%n"'';--'), jobqueue_schedule_resume('%s%n"'';--');
	PERFORM jobqueue_start_service('%s%n"'';--', 'keeps', '{}');
	PERFORM jobqueue_explain(jobqueue_enqueue('SELECT ''%s%n''', '"%s"', key => '%s%n"'';--', unique_key => '%s%n"'';--', tags => '{%s%n}', run_at => 'tomorrow'));
	PERFORM jobqueue_explain(jobqueue_enqueue('SELECT ''%s%n''', key => '%s%n"'';--', unique_key => '%s%n"'';--', on_conflict => 'reject'));
	PERFORM jobqueue_cancel_where(NULL, NULL, '%s%n'), jobqueue_lock('%s%n"'';--'), jobqueue_whereis('%s%n"'';--'), jobqueue_unlock('%s%n"'';--');
	PERFORM jobqueue_configure('q', on_dead => 'public.note'), jobqueue_drop_queue('q');
	PERFORM jobqueue_pause_role(r), jobqueue_resume_role(r);
	PERFORM jobqueue_unschedule('%s%n"'';--');
	RESET ROLE;
	PERFORM jobqueue_revoke(r, level) FROM unnest('{use,consume,lock,monitor,admin}'::text[]) level;
END $$;
SELECT name, status FROM jobqueue_services ORDER BY name;
DO $$ BEGIN PERFORM jobqueue_stop_service(name) FROM jobqueue_services; END $$;

-- what is far out of range is refused, or waits or runs; nothing stands still
SET SESSION AUTHORIZATION regress_jq_mallory;
DO $$
DECLARE s text;
BEGIN
	FOREACH s IN ARRAY ARRAY['run_at => ''infinity''', 'run_at => ''-infinity''', 'run_at => ''4714-11-24 BC''', 'run_at => ''294276-12-31''',
		'expires_at => ''infinity''', 'expires_at => ''-infinity''', 'expires_at => ''4714-11-24 BC''', 'expires_at => ''294276-12-31''',
		'timeout => ''178000000 years''', 'timeout => ''-1 s''', 'timeout => ''100 years''', 'timeout => ''1 us''', 'keep => ''178000000 years''', 'keep => ''100 years''', 'keep => ''-1 day''',
		'unique_key => ''u'', unique_for => ''178000000 years''', 'unique_key => ''v'', unique_for => ''1 us''', 'unique_key => ''w'', unique_for => ''100 years -36600 days''',
		'priority => 32768', 'priority => -32769', 'max_attempts => 0', 'max_attempts => 32768', 'key => ''''', 'key => repeat(''k'', 256)', 'queue => ''''', 'queue => repeat(''q'', 64)', 'queue => ''q"''',
		'queue => E''q\n''', 'tags => ''{{a},{b}}''', 'tags => ''{NULL}''', 'after => ''{NULL}''', 'after => ''{9223372036854775807}''', 'after => ''{-1}''', 'after => ''{0}''',
		'after => array_agg(-1::bigint)'] LOOP
		CALL regress_jq_mallory.attack('SELECT jobqueue_enqueue(''SELECT 1'', ' || s || ') > 0 AS id' || CASE WHEN s LIKE '%array_agg%' THEN ' FROM generate_series(1, 20000)' ELSE '' END);
	END LOOP;
	CALL regress_jq_mallory.attack('SELECT jobqueue_enqueue(''SELECT 1'', (repeat(''['', 6000) || repeat('']'', 6000))::jsonb) > 0 AS id');
	CALL regress_jq_mallory.attack('SELECT jobqueue_enqueue(''SELECT '' || repeat(''('', 100000) || 1 || repeat('')'', 100000)) > 0 AS id');
	FOREACH s IN ARRAY ARRAY['178000000 years', '1 year 1 us', '1 us', '0 s', '-1 day', '* * * * * * *', '60 * * * *', '0 0 30 2 *', '0 0 31 4,6,9,11 *', '*/0 * * * *', '1-0 * * * *', '@never', ''] LOOP
		CALL regress_jq_mallory.attack(format('SELECT count(*) FROM jobqueue_cron_next(%L, n => 5)', s));
	END LOOP;
	CALL regress_jq_mallory.attack('SELECT jobqueue_send(''x'', ''{}'', run_at => ''infinity'')');
	CALL regress_jq_mallory.attack('SELECT jobqueue_reschedule(1, ''infinity'')');
END $$;
-- and in a job
SELECT count(jobqueue_enqueue(command, max_attempts => 1, queue => 'poison')) FROM (VALUES
	('SELECT jobqueue_snooze(''178000000 years'')'), ('SELECT jobqueue_snooze(''-178000000 years'')'),
	('SELECT jobqueue_discard(repeat(''x'', 100000))'), ('SELECT jobqueue_discard(NULL)'),
	('SELECT jobqueue_progress(''NaN'', repeat(''x'', 100000))'), ('SELECT jobqueue_progress(''infinity'')'),
	('DO $do$ BEGIN RAISE EXCEPTION ''%'', repeat(''%s'', 100000) USING DETAIL = repeat(''x'', 100000), HINT = repeat(''ä'', 100000); END $do$'),
	('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''00000'', MESSAGE = ''''; END $do$'), ('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''57P01''; END $do$'),
	('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''57014''; END $do$'), ('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''40001''; END $do$'),
	('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''55P03''; END $do$'), ('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''CANCL''; END $do$'),
	('DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = ''DISCD''; END $do$'),
	('SELECT repeat(''x'', 1000000)'), ('SELECT repeat(''['', 5000)::text'), ('SELECT ''NaN''::float8'), ('SELECT ''infinity''::timestamptz'),
	('CREATE TEMP TABLE x (i int) ON COMMIT DROP; SET TRANSACTION READ ONLY'), ('SET LOCAL statement_timeout = 1; SET LOCAL lock_timeout = 1'),
	('SET jobqueue.inline = on; SELECT jobqueue_enqueue(''SELECT 1'')'), ('SELECT pg_notify(''x'', repeat(''x'', 7999)) FROM generate_series(1, 100)'),
	('SELECT set_config(''search_path'', ''regress_jq_mallory'', false), set_config(''jobqueue.scheduled_for'', ''x'', false)')) v (command);
RESET SESSION AUTHORIZATION;
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_job WHERE owner::oid = 'regress_jq_mallory'::regrole AND run_at IS NULL) $$);
SELECT state, count(*), max(length(errors::text)) < 200000 AS short FROM jobqueue_jobs WHERE owner::text = 'regress_jq_mallory' AND queue = 'poison' GROUP BY 1 ORDER BY 1;
SELECT jobqueue_cancel_where(NULL, NULL, NULL, everything => true) > 0 AS cancelled;
SELECT jobqueue_unschedule('secret schedule');
CALL drained();

DROP FUNCTION keeps, dies;
DROP SCHEMA regress_jq_mallory CASCADE;
DELETE FROM jobqueue_archive;
DROP OWNED BY regress_jq_alice, regress_jq_mallory, "regress_jq "";DROP TABLE jobqueue_job;--'%s%n%1$s";
DROP ROLE regress_jq_alice, regress_jq_mallory, "regress_jq "";DROP TABLE jobqueue_job;--'%s%n%1$s";
