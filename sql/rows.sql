-- Rows of the job table that did not come through jobqueue_enqueue().
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- with as little as possible, and with columns
INSERT INTO jobqueue_job (command) VALUES ('SELECT public.note(''{"what": "text"}'')');
INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "function"}'), ('note', '{"what": "two"}');
INSERT INTO jobqueue_job (command, args, queue, key, priority, max_attempts, tags, keep)
VALUES ('note', '{"what": "columns"}', 'by_hand', 'k', 3, 2, '{x}', '1 day');
INSERT INTO jobqueue_job (command) SELECT 'SELECT public.note(''{"what": "many"}'')' FROM generate_series(1, 20);
CALL drained();
SELECT what, count(*) FROM left_behind() AS what GROUP BY 1 ORDER BY 1;
SELECT owner::text, state, command, args, key, priority, tags FROM jobqueue_history WHERE queue = 'by_hand' ORDER BY id;
COPY jobqueue_job (command, args, queue) FROM stdin;
note	{"what": "copied"}	default
public.note	{"what": "copied elsewhere"}	by_hand
\.
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
-- a time, by hand; rolled back
INSERT INTO jobqueue_job (command, args, run_at) VALUES ('note', '{"what": "soon"}', clock_timestamp() + interval '50 ms');
BEGIN;
INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "rolled back"}');
ROLLBACK;
CALL drained();
SELECT * FROM left_behind() AS what;

-- what cannot be a job is refused
CALL raises($$ INSERT INTO jobqueue_job (command) VALUES ('no_such_function') $$);
CALL raises($$ INSERT INTO jobqueue_job (command) VALUES ('SELEC 1') $$);
CALL raises($$ INSERT INTO jobqueue_job (command) VALUES ('COMMIT;') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, queue) VALUES ('note', 'a b') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, key) VALUES ('note', '') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, key) VALUES ('note', repeat('k', 256)) $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES ('SELECT 1', 'q') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES ('SELECT 1', '') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES ('SELECT 1', 'n') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES (NULL, 's') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES ('note', 'f') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, kind) VALUES ('VACUUM', 's') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, attempt) VALUES ('note', -1) $$);
CALL raises($$ INSERT INTO jobqueue_job (command, max_attempts) VALUES ('note', 0) $$);
CALL raises($$ INSERT INTO jobqueue_job (command, errors) VALUES ('note', '{}') $$);
CALL raises($$ INSERT INTO jobqueue_job (command, unique_key, unique_until, on_conflict) VALUES ('note', repeat('k', 256), 'e', 's') $$);
INSERT INTO jobqueue_job (command, owner) VALUES ('note', NULL);
INSERT INTO jobqueue_job (command, priority) VALUES ('note', NULL);
-- for a consumer, and one that is not started in time
INSERT INTO jobqueue_job (command, args, queue) VALUES (NULL, '{"what": "fetched"}', 'by_hand');
SELECT id, args, key FROM jobqueue_fetch('by_hand', wait => '1 min') \gset
SELECT :'args' AS args, jobqueue_complete(:id);
INSERT INTO jobqueue_job (command, args, run_at, expires_at)
VALUES ('note', '{"what": "too late"}', clock_timestamp() + interval '1 hour', clock_timestamp() + interval '10 ms');
CALL drained();
SELECT args, state, reason FROM jobqueue_history WHERE args->>'what' = 'too late';
CALL raises($$ SELECT jobqueue_job_trigger() $$);
-- changed while it waits: it runs as it is then
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "changed"}') AS id \gset
UPDATE jobqueue_job SET args = '{"what": "args changed"}' WHERE id = :id;
SELECT jobqueue_enqueue('note', '{"what": "queue changed"}') AS id \gset
UPDATE jobqueue_job SET queue = 'other_queue', priority = -1, key = 'new' WHERE id = :id;
SELECT jobqueue_enqueue('note', '{"what": "made due"}', run_at => '2999-01-01') AS id \gset
UPDATE jobqueue_job SET run_at = NULL WHERE id = :id;
SELECT jobqueue_enqueue('note', '{"what": "postponed"}') AS later \gset
UPDATE jobqueue_job SET run_at = '2999-01-01' WHERE id = :later;
SELECT jobqueue_enqueue('note', '{"what": "deleted"}') AS id \gset
DELETE FROM jobqueue_job WHERE id = :id;
SELECT jobqueue_resume();
CALL wait_until(format('NOT EXISTS (SELECT FROM jobqueue_job WHERE id <> %s)', :later));
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT state FROM jobqueue_jobs WHERE id = :later;
SELECT jobqueue_cancel(:later);

-- the guard: to be able to write is not to be able to become
CREATE ROLE regress_jq_writer;
CREATE ROLE regress_jq_group;
GRANT regress_jq_group TO regress_jq_writer;
SELECT jobqueue_grant('regress_jq_writer', 'use');
SELECT jobqueue_quiesce();
SELECT jobqueue_enqueue('note', '{"what": "of the superuser"}') AS id \gset
GRANT ALL ON jobqueue_job, jobqueue_archive TO regress_jq_writer;
GRANT USAGE ON SEQUENCE jobqueue_job_id_seq TO regress_jq_writer;
SET ROLE regress_jq_writer;
CALL raises($$ INSERT INTO jobqueue_job (command, owner) SELECT 'SELECT 1', oid FROM pg_roles WHERE rolsuper LIMIT 1 $$);
CALL raises($$ INSERT INTO jobqueue_job (command, owner) VALUES ('SELECT 1', 0) $$);
INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "mine"}');
INSERT INTO jobqueue_job (command, args, owner) VALUES ('note', '{"what": "of my group"}', 'regress_jq_group'::regrole);
CALL raises($$ UPDATE jobqueue_job SET owner = (SELECT min(oid) FROM pg_roles WHERE rolsuper) $$);
-- row security hides the rows of others
SELECT args->>'what' AS what, owner::text FROM jobqueue_job ORDER BY id;
UPDATE jobqueue_job SET priority = 9;
DELETE FROM jobqueue_job WHERE priority = 0;
RESET ROLE;
SELECT args->>'what' AS what, owner::text, priority FROM jobqueue_job ORDER BY id;
SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
WHERE relkind = 'r' AND relname LIKE 'jobqueue\_%' ORDER BY relname;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'jobqueue%' ORDER BY tgname;
REVOKE ALL ON jobqueue_job, jobqueue_archive FROM regress_jq_writer;
REVOKE ALL ON SEQUENCE jobqueue_job_id_seq FROM regress_jq_writer;
-- replication apply and session_replication_role do not pass it by
SET session_replication_role = replica;
CALL raises($$ INSERT INTO jobqueue_job (command) VALUES ('no_such_function') $$);
INSERT INTO jobqueue_job (command, args) VALUES ('note', '{"what": "replica"}');
-- nor do schedules, whose jobs are written without another look
CALL raises($$ INSERT INTO jobqueue_schedule (name, cron, kind, command, queue) VALUES ('long', '1 second', 's', 'SELECT 1', repeat('q', 64)) $$);
CALL raises($$ INSERT INTO jobqueue_schedule (name, cron, kind, command, key) VALUES ('long', '1 second', 's', 'SELECT 1', repeat('k', 256)) $$);
CALL raises($$ INSERT INTO jobqueue_schedule (name, cron, kind, command, key) VALUES ('long', '1 second', 's', 'SELECT 1', 'jobqueue_service:1') $$);
RESET session_replication_role;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;

DROP OWNED BY regress_jq_writer, regress_jq_group;
DROP ROLE regress_jq_writer, regress_jq_group;
