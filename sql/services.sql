-- Services: a name, a state, a handler; messages one at a time, in order, once.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- counts what it is sent, and says what it was
CREATE FUNCTION counter(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ran (what) VALUES (concat_ws(' ', message, state));
	IF message ? 'fail' THEN
		RAISE '%', message->>'fail';
	ELSIF message ? 'null' THEN
		RETURN NULL;
	ELSIF message ? 'ask' THEN
		RETURN jsonb_build_object('state', state, 'reply', state->'n');
	ELSIF message ? 'add' THEN
		RETURN jsonb_build_object('n', (state->>'n')::int + (message->>'add')::int);
	END IF;
	RETURN state;
END $$;
CREATE FUNCTION one_argument(message jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT message $$;
CREATE FUNCTION returns_text(state jsonb, message jsonb) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;

-- init first, then in order; the state is kept
SELECT jobqueue_start_service('c', 'counter', '{"n": 0}') > 0 AS id;
SELECT count(jobqueue_send('c', jsonb_build_object('add', i))) FROM generate_series(1, 10) i;
CALL drained();
SELECT left_behind();
SELECT jobqueue_service_state('c');
SELECT name, handler, status, state, waiting, handled, failed, restart, max_restarts, within, queue, timeout, pid
FROM jobqueue_services;
SELECT jobqueue_whereis_service('c');
-- once per name
SET client_min_messages = notice;
SELECT jobqueue_start_service('c', 'counter', '{"n": 100}') = id AS the_same FROM jobqueue_service WHERE name = 'c';
SET client_min_messages = warning;
SELECT jobqueue_service_state('c');
-- sent and rolled back, with savepoints, too
BEGIN;
SELECT jobqueue_send('c', '{"add": 1000}') > 0 AS id;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT jobqueue_send('c', '{"add": 1000}') > 0 AS id;
ROLLBACK TO s;
SELECT jobqueue_send('c', '{"add": 1}') > 0 AS id;
COMMIT;
CALL drained();
SELECT jobqueue_service_state('c');
-- an answer is not the state
SELECT jobqueue_send('c', '{"ask": 1}') AS id \gset
CALL drained();
SELECT jobqueue_service_state('c'), (SELECT result FROM jobqueue_recent WHERE id = :id) AS reply;
SELECT count(*) FROM left_behind();
-- a failure is rolled back and tried again; three more within five seconds, and
-- the service has failed; later messages wait for it, those sent after that, too
SELECT jobqueue_send('c', '{"fail": "no way"}') AS bad \gset
SELECT jobqueue_send('c', '{"add": 1}') AS later \gset
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_services WHERE status = 'failed') $$);
SELECT jobqueue_send('c', '{"add": 2}') > 0 AS id;
CALL wait_until($$ (SELECT count(*) FROM jobqueue_jobs WHERE state = 'blocked') = 3 $$);
SELECT status, state, waiting, failed, last_error FROM jobqueue_services;
SELECT jobqueue_explain(:bad);
SELECT jobqueue_explain(:later) ~ ('waits for .*job ' || :bad) AS waits, regexp_replace(jobqueue_explain(:later), '\d+', 'N', 'g') AS explain;
SELECT attempt, jsonb_array_length(errors) AS errors FROM jobqueue_jobs WHERE id = :bad;
SELECT left_behind();
-- started again it goes on where it was, with the same message
CREATE FUNCTION milder(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT CASE WHEN message ? 'fail' THEN jsonb_build_object('n', (state->>'n')::int * 2) ELSE counter(state, message) END
$$;
BEGIN;
SELECT jobqueue_start_service('c', 'milder', '{"n": 0}', max_restarts => 0) > 0 AS id;
ROLLBACK;
SELECT status FROM jobqueue_services;
SELECT jobqueue_start_service('c', 'milder', '{"n": 0}', max_restarts => 0) > 0 AS id;
CALL drained();
SELECT handler, status, state, waiting, max_restarts FROM jobqueue_services;
SELECT left_behind();
-- or without the message
SELECT jobqueue_start_service('d', 'counter', '{"n": 0}', max_restarts => 0) > 0 AS id;
SELECT jobqueue_send('d', '{"null": 1}') AS bad \gset
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_services WHERE status = 'failed') $$);
SELECT jobqueue_send('d', '{"add": 1}') AS later \gset
SELECT last_error FROM jobqueue_services WHERE name = 'd';
SELECT jobqueue_cancel(:bad);
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s AND run_at = ''infinity'')', :later));
SELECT jobqueue_start_service('d', 'counter', '{"n": 0}') > 0 AS id;
CALL drained();
SELECT status, state FROM jobqueue_services WHERE name = 'd';
-- what was sent for later, before it failed
SELECT jobqueue_send('d', '{"add": 10}', clock_timestamp() + interval '0.1 second') AS timer \gset
SELECT jobqueue_start_service('e', 'counter', '{"n": 0}', max_restarts => 0) > 0 AS id;
SELECT jobqueue_send('e', '{"add": 10}', 'tomorrow') AS timer2 \gset
SELECT jobqueue_send('e', '{"fail": 1}') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_services WHERE status = 'failed') $$);
SELECT jobqueue_reschedule(:timer2, NULL);
CALL wait_until(format('EXISTS (SELECT FROM jobqueue_jobs WHERE id = %s AND run_at = ''infinity'')', :timer2));
CALL wait_until($$ (SELECT state->>'n' FROM jobqueue_services WHERE name = 'd') = '11' $$);
-- a failed service is stopped at once, and what waits for it is cancelled
SELECT jobqueue_stop_service('e');
SELECT state, reason, args FROM jobqueue_history WHERE id >= :timer2 ORDER BY id;
SELECT count(*) FROM jobqueue_services WHERE name = 'e';
-- transient: the message is dropped
SELECT jobqueue_start_service('t', 'counter', '{"n": 0}', 'transient', max_restarts => 1) > 0 AS id;
SELECT jobqueue_send('t', '{"fail": 1}') AS id \gset
SELECT jobqueue_send('t', '{"add": 1}') > 0 AS id;
CALL drained();
SELECT state, reason FROM jobqueue_history WHERE id = :id;
SELECT status, state, failed FROM jobqueue_services WHERE name = 't';
SELECT jobqueue_send('t', '{"fail": 2}') AS id \gset
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_services WHERE status = 'failed') $$);
SELECT jobqueue_send('t', '{"add": 1}') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_jobs WHERE run_at = 'infinity') $$);
SELECT jobqueue_start_service('t', 'counter', '{"n": 0}', 'transient') > 0 AS id;
CALL drained();
SELECT status, state, failed FROM jobqueue_services WHERE name = 't';
-- temporary: the service ends
SELECT jobqueue_start_service('tmp', 'counter', '{"n": 0}', 'temporary') > 0 AS id;
SELECT jobqueue_send('tmp', '{"add": 1}', 'tomorrow') > 0 AS id;
SELECT jobqueue_send('tmp', '{"fail": 1}') AS id \gset
CALL drained();
SELECT state, reason, args FROM jobqueue_history WHERE command = 'tmp' ORDER BY id;
SELECT count(*) FROM jobqueue_services WHERE name = 'tmp';
-- stop: after what was sent before; timers go with it
SELECT count(*) FROM left_behind();
SELECT count(jobqueue_send('d', '{"add": 1}')) FROM generate_series(1, 3);
SELECT jobqueue_send('d', '{"add": 1}', 'tomorrow') AS timer \gset
SELECT jobqueue_stop_service('d');
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_services WHERE name = 'd') $$);
SELECT left_behind();
SELECT state, reason FROM jobqueue_history WHERE id = :timer;
-- the next one of that name gets nothing of it
SELECT jobqueue_start_service('d', 'counter', '{"n": 0}') > 0 AS id;
CALL drained();
SELECT jobqueue_service_state('d');
-- the environment of whoever started it
CREATE SCHEMA regress_services;
SET search_path = regress_services, public;
CREATE FUNCTION regress_services.where_am_i(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT to_jsonb(current_setting('search_path'))
$$;
SELECT jobqueue_start_service('w', 'where_am_i', '{}') > 0 AS id;
RESET search_path;
SELECT jobqueue_send('w', '{}') > 0 AS id;
CALL drained();
SELECT jobqueue_service_state('w');
-- a call sends, commits and waits for the reply
SELECT jobqueue_send('d', '{"add": 3}') > 0 AS id;
CALL jobqueue_call('d', '{"ask": 1}');
CALL jobqueue_call('d', '{"add": 2}', NULL, '1 minute');
CREATE FUNCTION long_winded(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('state', state, 'reply', repeat('x', (message->>'n')::int))
$$;
SELECT jobqueue_start_service('l', 'long_winded', '{}') > 0 AS id;
CREATE PROCEDURE ask_length(n int) LANGUAGE plpgsql AS $$
DECLARE
	reply jsonb;
BEGIN
	CALL jobqueue_call('l', jsonb_build_object('n', n), reply, '1 minute');
	RAISE INFO 'reply of % characters', length(reply #>> '{}');
END $$;
CALL ask_length(10);
CALL ask_length(10000);
SELECT count(*) FROM jobqueue_history WHERE command = 'l';
DROP PROCEDURE ask_length;
BEGIN;
CALL jobqueue_call('d', '{"ask": 1}');
ROLLBACK;
CALL jobqueue_call('nobody', '{}');
CALL jobqueue_call('d', NULL);
CALL jobqueue_call('d', '{}', NULL, '-1 s');
SELECT jobqueue_pause('services_paused');
SELECT jobqueue_start_service('p', 'counter', '{"n": 1}', queue => 'services_paused') > 0 AS id;
\set VERBOSITY sqlstate
CALL jobqueue_call('p', '{"ask": 1}', NULL, '0');
CALL jobqueue_call('t', '{"fail": 3}', NULL, '1 minute');
\set VERBOSITY terse
SELECT jobqueue_resume('services_paused');
CALL drained();
SELECT handled FROM jobqueue_services WHERE name = 'p';
-- inline
SET jobqueue.inline = on;
SELECT jobqueue_send('d', '{"add": 7}') > 0 AS id;
SELECT jobqueue_service_state('d');
SELECT jobqueue_start_service('in', 'counter', '{"n": 0}') > 0 AS id;
SELECT jobqueue_send('in', '{"add": 1}') > 0 AS id;
CALL jobqueue_call('in', '{"ask": 1}');
SELECT jobqueue_stop_service('in');
SELECT count(*) FROM jobqueue_services WHERE name = 'in';
RESET jobqueue.inline;
-- a service that stops itself
CREATE FUNCTION stops(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.ran (what) VALUES (message);
	IF message ? 'stop' THEN
		PERFORM jobqueue_send('itself', '{"last": 1}'), jobqueue_stop_service('itself');
	END IF;
	RETURN state;
END $$;
DELETE FROM ran;
SELECT jobqueue_start_service('itself', 'stops', '{}') > 0 AS id;
SELECT jobqueue_send('itself', '{"stop": 1}') > 0 AS id;
CALL drained();
SELECT left_behind();
SELECT count(*) FROM jobqueue_services WHERE name = 'itself';

-- errors
CALL raises($$SELECT jobqueue_start_service(NULL, 'counter', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('', 'counter', '{}')$$);
CALL raises($$SELECT jobqueue_start_service(repeat('x', 256), 'counter', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', NULL, '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', NULL)$$);
CALL raises($$SELECT jobqueue_start_service('x', 'no_such', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'one_argument', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'returns_text', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'SELECT 1', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', '{}', 'sometimes')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', '{}', max_restarts => -1)$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', '{}', within => '0')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', '{}', queue => 'a b')$$);
CALL raises($$SELECT jobqueue_start_service('x', 'counter', '{}', timeout => '-1 s')$$);
CALL raises($$SELECT jobqueue_send(NULL, '{}')$$);
CALL raises($$SELECT jobqueue_send('d', NULL)$$);
CALL raises($$SELECT jobqueue_send('nobody', '{}')$$);
CALL raises($$SELECT jobqueue_send('d', '{}', 'infinity')$$);
CALL raises($$SELECT jobqueue_stop_service('nobody')$$);
CALL raises($$SELECT jobqueue_service_state('nobody')$$);
CALL raises($$SELECT jobqueue_whereis_service('nobody')$$);
-- names that are too long
CALL raises($$SELECT jobqueue_send(repeat('x', 256), '{}')$$);
CALL raises($$SELECT jobqueue_stop_service(repeat('x', 256))$$);
CALL raises($$SELECT jobqueue_service_state(repeat('x', 256))$$);
CALL raises($$SELECT jobqueue_whereis_service(repeat('x', 256))$$);
CALL jobqueue_call(repeat('x', 256), '{}');
CALL jobqueue_call('', '{}');
CALL jobqueue_call(NULL, '{}');
-- in characters it is shorter
CALL raises($$SELECT jobqueue_start_service(repeat('ä', 128), 'counter', '{}')$$);
SELECT jobqueue_start_service(repeat('y', 255), 'counter', '{"n": 0}') > 0 AS id;
CALL jobqueue_call(repeat('y', 255), '{"ask": 1}', NULL, '1 minute');
-- a failed service takes messages, but does not answer
SELECT jobqueue_start_service('f', 'counter', '{"n": 0}', max_restarts => 0) > 0 AS id;
SELECT jobqueue_send('f', '{"fail": 1}') > 0 AS id;
CALL wait_until($$ EXISTS (SELECT FROM jobqueue_services WHERE name = 'f' AND status = 'failed') $$);
SELECT jobqueue_send('f', '{}') > 0 AS id;
CALL jobqueue_call('f', '{}');
SELECT jobqueue_stop_service('f');
CALL raises($$SELECT jobqueue_send('f', '{}')$$);
-- one that is being stopped takes none
SELECT jobqueue_pause('default');
SELECT jobqueue_stop_service('d');
CALL raises($$SELECT jobqueue_send('d', '{}')$$);
CALL jobqueue_call('d', '{}');
CALL raises($$SELECT jobqueue_start_service('d', 'counter', '{}')$$);
SELECT jobqueue_stop_service('d');
SELECT jobqueue_resume('default');
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_services WHERE name = 'd') $$);
SELECT jobqueue_start_service('d', 'counter', '{"n": 0}') > 0 AS id;
-- a call to oneself, or of another service: what it sends is not there before it ends
CREATE FUNCTION asks(state jsonb, message jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF message ? 'call' THEN
		CALL jobqueue_call(message->>'call', '{}', state);
	ELSIF message ? 'wait' THEN
		PERFORM jobqueue_wait(jobqueue_send('asks', '{}'));
	ELSIF message ? 'self' THEN
		PERFORM jobqueue_wait((jobqueue_current()).id);
	END IF;
	RETURN state;
END $$;
SELECT jobqueue_start_service('asks', 'asks', '{}', 'transient', max_restarts => 10) > 0 AS id;
SELECT jobqueue_send('asks', '{"call": "asks"}') > 0 AS id;
CALL drained();
SELECT last_error FROM jobqueue_services WHERE name = 'asks';
SELECT jobqueue_send('asks', '{"call": "d"}') > 0 AS id;
CALL drained();
SELECT last_error FROM jobqueue_services WHERE name = 'asks';
SELECT jobqueue_send('asks', '{"wait": "asks"}') > 0 AS id;
CALL drained();
SELECT regexp_replace(last_error, '\d+', 'N') AS last_error FROM jobqueue_services WHERE name = 'asks';
SELECT jobqueue_send('asks', '{"self": "asks"}') > 0 AS id;
CALL drained();
SELECT regexp_replace(last_error, '\d+', 'N') AS last_error FROM jobqueue_services WHERE name = 'asks';
-- a strict handler is not called without a message, which only a row by hand can be;
-- one that has become something else, and one that one may not call
CREATE FUNCTION strict_one(state jsonb, message jsonb) RETURNS jsonb STRICT LANGUAGE sql AS $$ SELECT state $$;
SELECT jobqueue_start_service('strict', 'strict_one', '{"n": 1}', 'transient', max_restarts => 10) > 0 AS id;
INSERT INTO jobqueue_job (kind, command, key) SELECT 'm', 'strict', 'jobqueue_service:' || id FROM jobqueue_service WHERE name = 'strict';
CALL drained();
SELECT state, last_error FROM jobqueue_services WHERE name = 'strict';
DROP FUNCTION strict_one;
CREATE FUNCTION strict_one(state jsonb, message jsonb) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;
SELECT jobqueue_send('strict', '{}') > 0 AS id;
CALL drained();
SELECT state, last_error FROM jobqueue_services WHERE name = 'strict';
DROP FUNCTION strict_one;
-- keys of services are not for users
CALL raises($$SELECT jobqueue_enqueue('SELECT 1', key => 'jobqueue_service:1')$$);
CALL raises($$INSERT INTO jobqueue_job (command, key) VALUES ('SELECT 1', 'jobqueue_service:1')$$);
-- others' services
CREATE ROLE regress_jq_owner;
CREATE ROLE regress_jq_other;
SELECT jobqueue_grant('regress_jq_owner', 'use'), jobqueue_grant('regress_jq_other', 'use');
REVOKE EXECUTE ON FUNCTION counter FROM PUBLIC;
CREATE FUNCTION who(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT to_jsonb(current_user::text) $$;
SET ROLE regress_jq_owner;
SELECT jobqueue_start_service('mine', 'who', '{}') > 0 AS id;
CALL raises($$SELECT jobqueue_send('d', '{}')$$);
SELECT name FROM jobqueue_services;
SET ROLE regress_jq_other;
CALL raises($$SELECT jobqueue_send('mine', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('mine', 'who', '{}')$$);
CALL raises($$SELECT jobqueue_start_service('other', 'counter', '{}')$$);
CALL raises($$SELECT jobqueue_stop_service('mine')$$);
CALL raises($$SELECT jobqueue_service_state('mine')$$);
CALL raises($$SELECT jobqueue_whereis_service('mine')$$);
SELECT name FROM jobqueue_services;
CALL raises($$SELECT * FROM jobqueue_service$$);
RESET ROLE;
GRANT regress_jq_owner TO regress_jq_other;
SET ROLE regress_jq_other;
SELECT jobqueue_send('mine', '{}') > 0 AS id;
RESET ROLE;
CALL drained();
SELECT jobqueue_service_state('mine');

SELECT jobqueue_stop_service(name) FROM jobqueue_services;
CALL drained();
SELECT count(*) FROM jobqueue_services;
-- nothing is left in memory, of failed ones neither
CALL wait_until($$ NOT EXISTS (SELECT FROM jobqueue_keys) $$);
DELETE FROM ran;
SELECT jobqueue_purge('default', NULL) > 0 AS purged, jobqueue_purge('services_paused', NULL) >= 0 AS those;
SELECT jobqueue_drop_queue(q) FROM unnest('{default,services_paused}'::text[]) q;
SELECT jobqueue_revoke('regress_jq_owner', 'use'), jobqueue_revoke('regress_jq_other', 'use');
DROP OWNED BY regress_jq_owner, regress_jq_other;
DROP ROLE regress_jq_owner, regress_jq_other;
DROP SCHEMA regress_services CASCADE;
DROP FUNCTION long_winded, asks, stops, counter, milder, one_argument, returns_text, who;
