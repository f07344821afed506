-- Keys that sessions lock: what the functions return and raise.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE VIEW held AS
	SELECT key, pid = pg_backend_pid() AS mine, job IS NULL AS by_session, waiting
	FROM jobqueue_keys ORDER BY key COLLATE "C";
SELECT jobqueue_lock('a'), jobqueue_lock('a', '1 second'), jobqueue_try_lock('b'), jobqueue_xact_lock('c');
SELECT * FROM held;
SELECT jobqueue_whereis('a') = pg_backend_pid() AS a, jobqueue_whereis('c') AS c;
SELECT jobqueue_unlock('a'), jobqueue_unlock('a'), jobqueue_unlock('a'), jobqueue_unlock('c');
SELECT * FROM held;
-- at the end of the transaction
BEGIN;
SELECT jobqueue_unlock('b'), jobqueue_xact_lock(key => 'x', timeout => '1 hour');
SELECT * FROM held;
SAVEPOINT s;
SELECT jobqueue_xact_lock('y'), jobqueue_xact_lock('x');
SELECT * FROM held;
ROLLBACK TO s;
SELECT * FROM held;
COMMIT;
SELECT * FROM held;
-- a transaction may be read-only
BEGIN READ ONLY;
SELECT jobqueue_xact_lock('a');
SELECT * FROM held;
COMMIT;
-- a job waits
SELECT jobqueue_lock('a');
SELECT jobqueue_enqueue('note', '{"what": "job"}', key => 'a') AS id \gset
CALL wait_until($$ (SELECT waiting = 1 FROM jobqueue_keys) $$);
SELECT state FROM jobqueue_jobs WHERE id = :id;
SELECT jobqueue_explain(:id) ~ '^waits for key ''a'', held by pid [0-9]+ since .*, next in line$' AS explained;
SELECT jobqueue_unlock('a');
CALL drained();
SELECT left_behind();
-- poolers
SELECT jobqueue_lock('a'), jobqueue_lock('b');
DISCARD ALL;
SELECT * FROM held;
SELECT jobqueue_lock('a'), jobqueue_lock('b');
BEGIN;
SELECT pg_advisory_unlock_all();
SELECT * FROM held;
COMMIT;
SELECT * FROM held;
-- errors
CALL raises($$ SELECT jobqueue_lock(NULL) $$);
CALL raises($$ SELECT jobqueue_try_lock('') $$);
CALL raises($$ SELECT jobqueue_xact_lock(repeat('x', 256)) $$);
CALL raises($$ SELECT jobqueue_lock('a', '-1 second') $$);
CALL raises($$ SELECT jobqueue_whereis('') $$);
CALL raises($$ SELECT jobqueue_unlock(NULL) $$);
SELECT jobqueue_try_lock(repeat('x', 255)), jobqueue_unlock(repeat('x', 255));
BEGIN;
SELECT jobqueue_xact_lock('a');
\set VERBOSITY default
PREPARE TRANSACTION 'lock';
\set VERBOSITY terse
SELECT * FROM held;
-- rights
CREATE ROLE regress_jq_locker;
SELECT jobqueue_grant('regress_jq_locker', 'lock');
SELECT p.proname AS may FROM pg_proc p
WHERE proname LIKE 'jobqueue%' AND has_function_privilege('regress_jq_locker', p.oid, 'EXECUTE')
ORDER BY proname::text COLLATE "C";
-- what another level needs is kept when this one is taken, and the other way round
SELECT jobqueue_grant('regress_jq_locker', 'use'), jobqueue_revoke('regress_jq_locker', 'lock');
SELECT has_function_privilege('regress_jq_locker', 'jobqueue_whereis(text)', 'EXECUTE') AS whereis,
	has_function_privilege('regress_jq_locker', 'jobqueue_unlock(text)', 'EXECUTE') AS unlock,
	has_table_privilege('regress_jq_locker', 'jobqueue_jobs', 'SELECT') AS jobs;
SELECT jobqueue_grant('regress_jq_locker', 'lock'), jobqueue_grant('regress_jq_locker', 'monitor'),
	jobqueue_revoke('regress_jq_locker', 'use'), jobqueue_revoke('regress_jq_locker', 'monitor');
SELECT has_function_privilege('regress_jq_locker', 'jobqueue_whereis(text)', 'EXECUTE') AS whereis,
	has_function_privilege('regress_jq_locker', 'jobqueue_unlock(text)', 'EXECUTE') AS unlock,
	has_table_privilege('regress_jq_locker', 'jobqueue_jobs', 'SELECT') AS jobs;
CALL raises($$ SELECT jobqueue_grant('regress_jq_locker', 'locks') $$);
-- others are told that a key is held, not by whom
SELECT jobqueue_lock('a');
SET ROLE regress_jq_locker;
SELECT jobqueue_whereis('a') = pg_backend_pid() AS own_session, jobqueue_whereis('b') AS free;
RESET ROLE;
SELECT jobqueue_unlock('a');
DROP OWNED BY regress_jq_locker;
DROP ROLE regress_jq_locker;
DROP VIEW held;
