-- Where jobs come from, and what becomes of them when the transaction ends.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

SELECT jobqueue_quiesce();

-- all arguments, by name; what is stored
SELECT jobqueue_enqueue('note', '{"what": "all"}', queue => 'enq.A_b:1-c',
	key => 'k', priority => -32768, run_at => '2000-01-01', max_attempts => 3,
	timeout => '5 min', expires_at => '2999-01-01', keep => '1 day',
	tags => '{x,"y z"}') > 0 AS id;
SELECT jobqueue_enqueue('note', '{"what": "defaults"}') > 0 AS id;
SELECT jobqueue_enqueue('note', run_at => '-infinity',
	expires_at => 'infinity', args => NULL, queue => NULL, priority => NULL,
	key => NULL, max_attempts => NULL, timeout => NULL, keep => NULL,
	tags => '{}') > 0 AS id;
\x
SELECT owner::text, kind, command, args, queue, key, priority, run_at,
	max_attempts, timeout, expires_at > now() AS expires, keep, tags,
	search_path, settings, attempt, crashes, errors
FROM jobqueue_job ORDER BY id;
\x

-- the search path of the session is kept, the role's default is not
SET search_path = public, pg_temp;
SELECT jobqueue_enqueue('note', '{"what": "path"}') > 0 AS id;
RESET search_path;
SELECT jobqueue_enqueue('note', '{"what": "no path"}') > 0 AS id;
-- and so are the settings that are to be captured
SET jobqueue.capture_settings = 'app.tenant, work_mem, no.such';
SET app.tenant = 'a=b, "c"';
SELECT jobqueue_enqueue('SELECT current_setting(''app.tenant'')',
	queue => 'captured', keep => '1 day') > 0 AS id;
RESET jobqueue.capture_settings;
RESET app.tenant;
SELECT args->>'what' AS what, search_path, settings FROM jobqueue_job
ORDER BY id OFFSET 3;

-- several at once, in order
SELECT count(*), array_agg(id ORDER BY n) = array_agg(id ORDER BY id) AS in_order
FROM jobqueue_enqueue_many('note', ARRAY['{"what": "m1"}', NULL, '{"what": "m2"}']::jsonb[],
	keys => '{k1,NULL,k2}', queue => 'many', priority => 7)
	WITH ORDINALITY AS e(id, n);
SELECT args, key, priority FROM jobqueue_job WHERE queue = 'many' ORDER BY id;
SELECT count(*) FROM jobqueue_enqueue_many('note', '{}');
SELECT jobqueue_enqueue_many('note', '{}', keys => '{}');
SELECT jobqueue_enqueue_many('note', ARRAY['{"what": "list"}']::jsonb[], queue => 'many') > 0 AS id;

SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
SELECT command, result FROM jobqueue_history WHERE queue = 'captured' ORDER BY id;

-- from plpgsql, a row trigger, a statement trigger
DO $$ BEGIN PERFORM jobqueue_enqueue('note', '{"what": "plpgsql"}'); END $$;
CREATE TABLE source (a int);
CREATE FUNCTION each_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', 'row ' || NEW.a));
	RETURN NULL;
END $$;
CREATE FUNCTION each_statement() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', 'rows ' || count(*)))
	FROM new;
	RETURN NULL;
END $$;
CREATE FUNCTION each_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', 'commit ' || NEW.a));
	RETURN NULL;
END $$;
CREATE TRIGGER r AFTER INSERT ON source FOR EACH ROW EXECUTE FUNCTION each_row();
CREATE TRIGGER s AFTER INSERT ON source REFERENCING NEW TABLE AS new
	FOR EACH STATEMENT EXECUTE FUNCTION each_statement();
CREATE CONSTRAINT TRIGGER c AFTER INSERT ON source DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION each_commit();
INSERT INTO source SELECT generate_series(1, 3);
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
DROP TABLE source;
DROP FUNCTION each_row, each_statement, each_commit;

-- from a SECURITY DEFINER function: the job is its owner's
CREATE ROLE regress_jq_owner;
CREATE ROLE regress_jq_caller;
SELECT jobqueue_grant('regress_jq_owner', 'use');
CREATE FUNCTION definer() RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$
	SELECT jobqueue_enqueue('note', '{"what": "definer"}') > 0 $$;
ALTER FUNCTION definer() OWNER TO regress_jq_owner;
SET ROLE regress_jq_caller;
SELECT definer();
RESET ROLE;
CALL drained();
SELECT what, role FROM ran;
DELETE FROM ran;
DROP FUNCTION definer();

-- from a running job, and it runs only when that one has committed
CREATE FUNCTION parent() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	PERFORM jobqueue_enqueue('note', '{"what": "child"}');
	BEGIN
		PERFORM jobqueue_enqueue('note', '{"what": "rolled back child"}');
		RAISE EXCEPTION 'back';
	EXCEPTION WHEN raise_exception THEN NULL;
	END;
END $$;
CREATE FUNCTION failing_parent() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
	PERFORM jobqueue_enqueue('note', '{"what": "child of failed"}');
	RAISE EXCEPTION 'failed on purpose';
END $$;
SELECT jobqueue_enqueue('parent') > 0 AS id;
SELECT jobqueue_enqueue('failing_parent', max_attempts => 1) > 0 AS id;
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;
DROP FUNCTION parent, failing_parent;

-- rolled back, whole and in part
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "rolled back"}') > 0 AS id;
SELECT count(*) FROM jobqueue_enqueue_many('note', array_fill('{"what": "rolled back"}'::jsonb, ARRAY[100]));
ROLLBACK;
SELECT count(*) FROM jobqueue_job;
BEGIN;
SELECT jobqueue_enqueue('note', '{"what": "1 kept"}') > 0 AS id;
SAVEPOINT a;
SELECT jobqueue_enqueue('note', '{"what": "2 lost"}') > 0 AS id;
SAVEPOINT b;
SELECT jobqueue_enqueue('note', '{"what": "3 lost"}') > 0 AS id;
RELEASE b;
ROLLBACK TO a;
SELECT jobqueue_enqueue('note', '{"what": "4 kept"}') > 0 AS id;
SAVEPOINT c;
SELECT jobqueue_enqueue('note', '{"what": "5 kept"}') > 0 AS id;
SAVEPOINT d;
SELECT jobqueue_enqueue('note', '{"what": "6 lost"}') > 0 AS id;
ROLLBACK TO d;
SELECT jobqueue_enqueue('note', '{"what": "7 kept"}') > 0 AS id;
RELEASE c;
COMMIT;
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;

-- many of them in one statement
SELECT count(jobqueue_enqueue('note', jsonb_build_object('what', g % 3), queue => 'series'))
FROM generate_series(1, 3000) g;
CALL drained();
SELECT what, count(*) FROM left_behind() AS what GROUP BY 1 ORDER BY 1;

-- a cursor, a prepared statement, COPY as source, a parameter
PREPARE e(text) AS SELECT jobqueue_enqueue('note', jsonb_build_object('what', $1)) > 0 AS id;
EXECUTE e('prepared 1');
EXECUTE e('prepared 2');
DEALLOCATE e;
BEGIN;
DECLARE c CURSOR FOR SELECT jobqueue_enqueue('note', jsonb_build_object('what', 'cursor ' || g)) > 0 AS id
FROM generate_series(1, 10) g;
FETCH 2 FROM c;
COMMIT;
CALL drained();
SELECT * FROM left_behind() AS what ORDER BY what;

-- in order of priority, then id
CREATE FUNCTION in_order(jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.ran (what) VALUES ($1->>'what') $$;
SELECT jobqueue_quiesce();
SELECT count(jobqueue_enqueue('in_order', jsonb_build_object('what', p || ' ' || g), key => 'one', priority => p))
FROM generate_series(1, 3) g, unnest('{5,-5,0}'::int[]) p;
SELECT jobqueue_resume();
CALL drained();
SELECT * FROM left_behind() AS what;
DROP FUNCTION in_order(jsonb);

DROP OWNED BY regress_jq_owner, regress_jq_caller;
DROP ROLE regress_jq_owner, regress_jq_caller;
