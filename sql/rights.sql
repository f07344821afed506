-- Who may call and see what.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE VIEW objects AS
	SELECT d.classid, d.objid, coalesce(p.proname, c.relname)::text AS name
	FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'jobqueue'
	LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
	LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
	WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
	  AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass);
CREATE FUNCTION may(role name) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT name FROM objects WHERE CASE WHEN classid = 'pg_proc'::regclass
		THEN has_function_privilege(role, objid, 'EXECUTE')
		WHEN name LIKE '%\_seq' THEN has_sequence_privilege(role, objid, 'USAGE, SELECT, UPDATE')
		ELSE has_table_privilege(role, objid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END
	ORDER BY name COLLATE "C" $$;
CREATE ROLE regress_jq_nobody;
CREATE ROLE regress_jq_use;
CREATE ROLE regress_jq_monitor;
CREATE ROLE regress_jq_admin;
CREATE ROLE regress_jq_pgmon;
GRANT pg_monitor TO regress_jq_pgmon;
SELECT jobqueue_grant('regress_jq_use', 'use'), jobqueue_grant('regress_jq_monitor', 'monitor'),
	jobqueue_grant('regress_jq_admin', 'admin');
-- nothing for PUBLIC
SELECT * FROM may('regress_jq_nobody') AS may;
SELECT * FROM may('regress_jq_pgmon') AS may;
SELECT * FROM may('regress_jq_use') AS may;
SELECT * FROM may('regress_jq_monitor') AS may;
SELECT * FROM may('regress_jq_admin') AS may;

-- some jobs
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('SELECT 1', '{"secret": 1}', queue => 'rights', keep => '1 day', key => 'of super') > 0 AS id;
SET ROLE regress_jq_use;
SELECT jobqueue_enqueue('SELECT 2', '{"mine": 2}', queue => 'rights', keep => '1 day') > 0 AS id;
RESET ROLE;
CREATE PROCEDURE looks() LANGUAGE plpgsql AS $$
DECLARE v text; n bigint;
BEGIN
	FOREACH v IN ARRAY '{status,jobs,running,recent,history,keys,workers}'::text[] LOOP
		BEGIN
			EXECUTE format('SELECT count(*) FROM jobqueue_%s WHERE %s', v,
				CASE WHEN v IN ('workers') THEN 'false' WHEN v = 'keys' THEN 'true' ELSE 'queue = ''rights''' END) INTO n;
			RAISE INFO '% jobqueue_%: %', current_user, v, n;
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE INFO '% jobqueue_%: %', current_user, v, SQLERRM;
		END;
	END LOOP;
END $$;
SET ROLE regress_jq_nobody;
CALL looks();
SET ROLE regress_jq_use;
CALL looks();
SELECT owner::text, state, args FROM jobqueue_jobs WHERE queue = 'rights' ORDER BY id;
SELECT ready FROM jobqueue_status WHERE queue = 'rights';
SET ROLE regress_jq_monitor;
CALL looks();
SELECT owner = 'regress_jq_use'::regrole AS of_use, state, args FROM jobqueue_jobs WHERE queue = 'rights' ORDER BY id;
SELECT ready FROM jobqueue_status WHERE queue = 'rights';
SET ROLE regress_jq_admin;
CALL looks();
SELECT jobqueue_resume();
RESET ROLE;
CALL drained();
CALL wait_until('(SELECT count(*) = 2 FROM jobqueue_recent WHERE queue = ''rights'')');
SET ROLE regress_jq_use;
CALL looks();
SELECT owner::text, result, args FROM jobqueue_history WHERE queue = 'rights' ORDER BY id;
SELECT owner::text, result FROM jobqueue_recent WHERE queue = 'rights' ORDER BY id;
SET ROLE regress_jq_monitor;
CALL looks();
SELECT owner = 'regress_jq_use'::regrole AS of_use, result, args FROM jobqueue_history WHERE queue = 'rights' ORDER BY id;
SELECT owner = 'regress_jq_use'::regrole AS of_use, result FROM jobqueue_recent WHERE queue = 'rights' ORDER BY id;
-- a condition of the looker's is not shown what he may not see
SET ROLE regress_jq_use;
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE INFO 'saw %', $1; RETURN true; END $$;
SELECT count(*) FROM jobqueue_history WHERE queue = 'rights' AND pg_temp.leak(command);
-- nor do the functions behind the views tell of keys of others
RESET ROLE;
SELECT jobqueue_grant('regress_jq_nobody', 'use');
SELECT pg_advisory_lock(4713);
SET ROLE regress_jq_use;
SELECT jobqueue_enqueue('SELECT pg_advisory_xact_lock(4713)', queue => 'rights', key => 'mine', timeout => '5 min') AS id \gset
RESET ROLE;
CALL wait_until($$ (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted) = 1 $$);
SET ROLE regress_jq_use;
SELECT count(jobqueue_enqueue('SELECT 1', queue => 'rights', key => 'mine')) FROM generate_series(1, 300);
RESET ROLE;
CALL wait_until($$ (SELECT sum(waiting) FROM jobqueue_keys) = 300 $$);
SET ROLE regress_jq_nobody;
SELECT count(*) AS ids FROM jobqueue_blocked_jobs() WHERE id IS NOT NULL;
SELECT count(*) AS texts FROM jobqueue_blocked_jobs() b WHERE b::text LIKE '%mine%';
SET ROLE regress_jq_use;
SELECT count(*) > 0 AS ids FROM jobqueue_blocked_jobs() WHERE id IS NOT NULL;
SELECT state, count(*) FROM jobqueue_jobs WHERE queue = 'rights' AND key = 'mine' GROUP BY 1 ORDER BY 1;
RESET ROLE;
SELECT pg_advisory_unlock(4713);
CALL drained();
SELECT jobqueue_revoke('regress_jq_nobody', 'use');
SET ROLE regress_jq_use;
-- calls
CALL raises($$ SELECT jobqueue_resume() $$);
CALL raises($$ SELECT jobqueue_quiesce() $$);
CALL raises($$ SELECT jobqueue_adopt() $$);
CALL raises($$ SELECT jobqueue_sweep() $$);
CALL raises($$ SELECT jobqueue_grant('regress_jq_nobody', 'use') $$);
CALL raises($$ SELECT * FROM jobqueue_job $$);
CALL raises($$ SELECT * FROM jobqueue_archive $$);
CALL raises($$ SELECT * FROM jobqueue_meta $$);
SET ROLE regress_jq_monitor;
CALL raises($$ SELECT jobqueue_enqueue('SELECT 1') $$);
CALL raises($$ SELECT jobqueue_cancel(1) $$);
-- an administrator gives and takes
SET ROLE regress_jq_admin;
CALL raises($$ SELECT jobqueue_enqueue('SELECT 1') $$);
SELECT jobqueue_grant('regress_jq_nobody', 'use');
SET ROLE regress_jq_nobody;
SELECT jobqueue_enqueue('SELECT 1') > 0 AS id;
SET ROLE regress_jq_admin;
SELECT jobqueue_revoke('regress_jq_nobody', 'use');
RESET ROLE;
SELECT * FROM may('regress_jq_nobody') AS may;
-- what two levels give is kept when one is taken
SELECT jobqueue_grant('regress_jq_nobody', 'use'), jobqueue_grant('regress_jq_nobody', 'monitor'), jobqueue_revoke('regress_jq_nobody', 'use');
SELECT count(*) = (SELECT count(*) FROM may('regress_jq_monitor')) AS as_monitor FROM may('regress_jq_nobody');
SELECT jobqueue_grant('regress_jq_nobody', 'use'), jobqueue_revoke('regress_jq_nobody', 'monitor');
SELECT count(*) = (SELECT count(*) FROM may('regress_jq_use')) AS as_use FROM may('regress_jq_nobody');
CALL drained();

-- what is revoked is not replaced by what comes from a membership
GRANT regress_jq_use TO regress_jq_nobody;
SELECT jobqueue_revoke('regress_jq_nobody', 'use'), jobqueue_grant('regress_jq_nobody', 'lock'), jobqueue_revoke('regress_jq_nobody', 'lock');
REVOKE regress_jq_use FROM regress_jq_nobody;
SELECT * FROM may('regress_jq_nobody') AS may;
-- queues that were granted before DROP OWNED do not come back with another
SELECT jobqueue_grant('regress_jq_nobody', 'consume', 'rights1');
DROP OWNED BY regress_jq_nobody;
GRANT EXECUTE ON FUNCTION jobqueue_fetch TO regress_jq_pgmon;
GRANT regress_jq_pgmon TO regress_jq_nobody;
SET ROLE regress_jq_nobody;
CALL raises($$ SELECT jobqueue_fetch('rights1') $$);
RESET ROLE;
SELECT jobqueue_grant('regress_jq_nobody', 'consume', 'rights2');
SET ROLE regress_jq_nobody;
CALL raises($$ SELECT jobqueue_fetch('rights1') $$);
SELECT count(*) FROM jobqueue_fetch('rights2');
-- nothing is told of jobs of other queues, nor of those that workers run
RESET ROLE;
SELECT jobqueue_enqueue(NULL, queue => 'rights1') AS other \gset
SELECT jobqueue_enqueue('SELECT 1', queue => 'rights2', run_at => 'tomorrow') AS command \gset
SELECT jobqueue_cancel(:other), jobqueue_cancel(:command);
SET ROLE regress_jq_nobody;
\set VERBOSITY sqlstate
SELECT jobqueue_complete(:other);
SELECT jobqueue_complete(:command);
\set VERBOSITY default
RESET ROLE;

-- what builds an index or a view for another role lends that its session, not its keys and claims
SELECT jobqueue_grant('regress_jq_nobody', 'lock');
SELECT jobqueue_enqueue(NULL, queue => 'rights1') AS id \gset
SELECT count(*) FROM jobqueue_fetch('rights1');
SELECT jobqueue_lock('mine');
CREATE SCHEMA regress_jq AUTHORIZATION regress_jq_nobody;
SET ROLE regress_jq_nobody;
CREATE FUNCTION regress_jq.borrow(command text) RETURNS text LANGUAGE plpgsql SET search_path = public AS $$
BEGIN
	EXECUTE command;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
CREATE MATERIALIZED VIEW regress_jq.borrowed AS SELECT command, regress_jq.borrow(format(command, :id)) FROM (VALUES
	('SELECT jobqueue_complete(%s)'), ('SELECT jobqueue_fail(%s)'), ('SELECT jobqueue_release(%s)'),
	('SELECT jobqueue_fetch(''rights2'')'), ('SELECT jobqueue_lock(''theirs'')'), ('SELECT jobqueue_xact_lock(''theirs'')'),
	('SELECT jobqueue_try_lock(''theirs'')'), ('SELECT jobqueue_unlock(''mine'')'), ('SELECT pg_advisory_unlock_all()')) v (command) WITH NO DATA;
RESET ROLE;
REFRESH MATERIALIZED VIEW regress_jq.borrowed;
SELECT * FROM regress_jq.borrowed;
SELECT key FROM jobqueue_keys;
SELECT jobqueue_complete(:id);
SELECT jobqueue_unlock('mine');
DROP SCHEMA regress_jq CASCADE;

-- in a parallel query, of a queue of consumers
SELECT jobqueue_grant('regress_jq_use', 'use');
SELECT jobqueue_enqueue(NULL, queue => 'parallel') AS id \gset
SELECT jobqueue_grant('regress_jq_use', 'consume', 'parallel');
SET ROLE regress_jq_use;
BEGIN;
SELECT count(set_config(name, 'on', true)) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query');
SELECT (jobqueue_queue_stats()).queue;
COMMIT;
RESET ROLE;
SELECT jobqueue_cancel(:id);

DROP PROCEDURE looks;
DROP FUNCTION may;
DROP VIEW objects;
DROP OWNED BY regress_jq_nobody, regress_jq_use, regress_jq_monitor, regress_jq_admin, regress_jq_pgmon;
DROP ROLE regress_jq_nobody, regress_jq_use, regress_jq_monitor, regress_jq_admin, regress_jq_pgmon;
