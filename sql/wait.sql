-- jobqueue_wait: how jobs have ended, and all that a caller can do wrong.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE FUNCTION answer(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT args $$;
CREATE FUNCTION fails(args jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'failed for %', args; END $$;

-- as raises(), without the number of the job
CREATE PROCEDURE raises_for(statement text, id bigint) LANGUAGE plpgsql AS $$
DECLARE s text; m text; d text; h text;
BEGIN
	EXECUTE format(statement, id);
	RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT,
		d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RAISE INFO '% %', s, replace(m, id::text, 'N');
	IF d <> '' THEN
		RAISE INFO '      detail: %', d;
	END IF;
	RAISE INFO '      hint: %', coalesce(nullif(h, ''), 'none');
END $$;

-- results
SELECT jobqueue_enqueue('answer', '{"a": [1, null]}') AS id \gset
SELECT id = :id AS same, state, result, error FROM jobqueue_wait(:id);
SELECT state, result, error FROM jobqueue_wait(:id); -- once more
SELECT jobqueue_enqueue('answer', 'null') AS id \gset
SELECT state, result, result IS NULL AS none FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('answer') AS id \gset
SELECT state, result, result IS NULL AS none FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('note', '{"what": "x"}') AS id \gset
SELECT state, result FROM jobqueue_wait(:id);
SELECT left_behind();
SELECT jobqueue_enqueue('SELECT $1->>0, 2', '["é"]') AS id \gset
SELECT state, result FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('VACUUM ran') AS id \gset
SELECT state, result, error FROM jobqueue_wait(:id);

-- 500 bytes are there, more only with keep
SELECT jobqueue_enqueue('answer', to_jsonb(repeat('x', 498))) AS id \gset
SELECT state, length(result::text) FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('answer', to_jsonb(repeat('x', 499))) AS id \gset
CALL raises_for('SELECT jobqueue_wait(%s)', :id);
SELECT jobqueue_enqueue('answer', to_jsonb(repeat('é', 400))) AS id \gset
CALL raises_for('SELECT jobqueue_wait(%s)', :id);
SELECT jobqueue_enqueue('answer', to_jsonb(repeat('é', 400)), keep => '1 hour') AS id \gset
SELECT state, length(result::text) FROM jobqueue_wait(:id);

-- errors: the last one of a dead job, why one was cancelled
SELECT jobqueue_enqueue('fails', '7', max_attempts => 1) AS id \gset
SELECT state, result, error FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('fails', to_jsonb(repeat('é', 2000)), max_attempts => 1) AS dead \gset
SELECT state, length(error) FROM jobqueue_wait(:dead);
SELECT jobqueue_enqueue('SELECT jobqueue_discard(''for nothing'')') AS id \gset
SELECT state, error FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('note', run_at => '2100-01-01') AS id \gset
SELECT jobqueue_cancel(:id);
SELECT state, error FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('note', expires_at => clock_timestamp() + interval '10 ms', run_at => clock_timestamp() + interval '20 ms') AS id \gset
SELECT state, error FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('note', after => ARRAY[:dead]) AS id \gset
SELECT state, replace(error, :'dead', 'N') FROM jobqueue_wait(:id);
-- pruned: memory has it still
SELECT count(*) > 0 AS purged FROM jobqueue_purge(NULL, 'dead');
SELECT state, left(error, 12) FROM jobqueue_wait(:dead);

-- the timeout: state null, and no error
SELECT jobqueue_enqueue('note', run_at => '2100-01-01') AS far \gset
SELECT id = :far AS same, state, result, error FROM jobqueue_wait(:far, '0');
SELECT id = :far AS same, state FROM jobqueue_wait(:far, '1 ms');
SELECT id = :far AS same, state FROM jobqueue_wait(ARRAY[:far, :far], '1 ms');
SELECT * FROM jobqueue_wait(ARRAY[:far], '1 ms', any_of => true);
CALL raises_for('SELECT jobqueue_wait(%s, ''-1 us'')', :far);
CALL raises_for('SELECT jobqueue_wait(%s, ''1 month -31 days'')', :far);
CALL raises_for('SELECT jobqueue_wait(%s, ''101 years'')', :far);
CALL raises_for('SELECT jobqueue_wait(%s, ''-101 years'')', :far);
CALL raises_for('SELECT jobqueue_wait(%s, ''2000000 hours'')', :far);
CALL raises_for('SELECT jobqueue_wait(ARRAY[%s], ''-1 s'', true)', :far);

-- many: in the order that is asked for; the first
SELECT jobqueue_enqueue('answer', '1') AS a \gset
SELECT jobqueue_enqueue('fails', '2', max_attempts => 1) AS b \gset
SELECT state, result, error FROM jobqueue_wait(ARRAY[:b, :a, :b]);
SELECT state, result, error FROM jobqueue_wait(ARRAY[[:a], [:b]]);
SELECT state, result FROM jobqueue_wait(ARRAY[:far, :a, :far], any_of => true);
SELECT state, result FROM jobqueue_wait(ARRAY[:a], NULL, NULL);
SELECT state, result FROM jobqueue_wait(:a, NULL);
SELECT count(*) FROM jobqueue_wait('{}'::bigint[]);
SELECT count(*) FROM jobqueue_wait('{}'::bigint[], any_of => true);
SELECT count(*), count(state) FROM jobqueue_wait(array_fill(:far::bigint, ARRAY[1000]), '0');
CALL raises_for('SELECT jobqueue_wait(array_fill(%s::bigint, ARRAY[1001]), ''0'')', :far);

-- ids that are none
CALL raises('SELECT jobqueue_wait(NULL::bigint)');
CALL raises('SELECT jobqueue_wait(NULL::bigint[])');
CALL raises_for('SELECT jobqueue_wait(ARRAY[%s, NULL], ''0'')', :a);
CALL raises('SELECT jobqueue_wait(0)');
CALL raises('SELECT jobqueue_wait(-1)');
CALL raises('SELECT jobqueue_wait(9223372036854775807)');
CALL raises('SELECT jobqueue_wait(-9223372036854775808)');
CALL raises_for('SELECT jobqueue_wait(ARRAY[%s, 9000000000], any_of => true)', :far);
SELECT jobqueue_wait(NULL); -- which of the two?
SELECT jobqueue_wait('1 min');

-- in the transaction that has enqueued it, or has changed it
BEGIN;
SELECT jobqueue_enqueue('note') AS id \gset
SAVEPOINT s;
CALL raises_for('SELECT jobqueue_wait(%s, ''0'')', :id);
RELEASE s;
SELECT jobqueue_reschedule(:far, '2100-01-01') IS NOT NULL AS did;
CALL raises_for('SELECT jobqueue_wait(%s)', :far);
ROLLBACK;
CALL raises_for('SELECT jobqueue_wait(%s)', :id);
BEGIN;
SELECT jobqueue_cancel(:far);
SELECT state, error FROM jobqueue_wait(:far);
ROLLBACK;
SELECT state FROM jobqueue_wait(:far, '0');
-- one that it has run itself
SELECT jobqueue_enqueue('answer', '"here"', run_at => '2100-01-01') AS id \gset
BEGIN;
SELECT jobqueue_run(:id);
SELECT state, result FROM jobqueue_wait(:id);
ROLLBACK;
SELECT state FROM jobqueue_wait(:id, '0');
BEGIN;
SET LOCAL jobqueue.inline = on;
SELECT jobqueue_enqueue('answer', '"inline"') AS here \gset
SELECT state, result FROM jobqueue_wait(:here);
COMMIT;
SELECT state, result FROM jobqueue_wait(:here);
SELECT jobqueue_cancel(:id);

-- in a read-only transaction
SELECT jobqueue_enqueue('answer', '1', keep => '1 hour') AS kept \gset
SELECT jobqueue_enqueue('answer', '2') AS gone \gset
BEGIN TRANSACTION READ ONLY;
SELECT state, result FROM jobqueue_wait(ARRAY[:kept, :gone]);
COMMIT;
-- jobs of others
CREATE ROLE regress_wait_one LOGIN;
CREATE ROLE regress_wait_two LOGIN;
CREATE ROLE regress_wait_none LOGIN;
SELECT jobqueue_grant('regress_wait_one', 'use'), jobqueue_grant('regress_wait_two', 'use');
SET ROLE regress_wait_one;
SELECT jobqueue_enqueue('answer', '1') AS ended \gset
SELECT state FROM jobqueue_wait(:ended);
SELECT jobqueue_enqueue('answer', '1', run_at => '2100-01-01') AS waits \gset
SELECT jobqueue_enqueue('answer', '1', run_at => '2100-01-01') AS cancelled \gset
SELECT jobqueue_cancel(:cancelled);
SET ROLE regress_wait_two;
CALL raises_for('SELECT jobqueue_wait(%s)', :ended);
CALL raises_for('SELECT jobqueue_wait(%s)', :waits);
CALL raises_for('SELECT jobqueue_wait(%s)', :cancelled);
CALL raises_for('SELECT jobqueue_wait(ARRAY[%s], any_of => true)', :waits);
SET ROLE regress_wait_none;
CALL raises_for('SELECT jobqueue_wait(%s)', :ended);
CALL raises_for('SELECT jobqueue_wait(ARRAY[%s])', :ended);
RESET ROLE;
-- an administrator for all, a member for those of the role
SELECT state FROM jobqueue_wait(ARRAY[:ended, :cancelled, :waits], '0');
-- who sees no results, as in the views
SELECT jobqueue_enqueue('SELECT repeat(''x'', 1000)') AS long \gset
SELECT jobqueue_grant('regress_wait_none', 'admin');
SET ROLE regress_wait_none;
SELECT state, result, error FROM jobqueue_wait(ARRAY[:ended, :cancelled, :waits], '0');
SELECT state, result FROM jobqueue_wait(:long);
SELECT state, result FROM jobqueue_wait(:long);
RESET ROLE;
SELECT jobqueue_revoke('regress_wait_none', 'admin');
GRANT regress_wait_one TO regress_wait_two;
SET ROLE regress_wait_two;
SELECT state FROM jobqueue_wait(ARRAY[:ended, :cancelled, :waits], '0');
RESET ROLE;
SELECT jobqueue_cancel(:waits);

-- a job that waits: for another one, for itself, for its own child
SELECT jobqueue_enqueue('SELECT result FROM jobqueue_wait(($1)::bigint, ''3 min'')', to_jsonb(:gone::bigint), max_attempts => 1) AS id \gset
SELECT state, result FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('SELECT jobqueue_wait((jobqueue_current()).id)', max_attempts => 1) AS id \gset
SELECT state, replace(error, :'id', 'N') FROM jobqueue_wait(:id);
SELECT jobqueue_enqueue('SELECT state FROM jobqueue_wait(jobqueue_enqueue(''note''))', max_attempts => 1) AS id \gset
SELECT state, error ~ 'cannot start before this transaction has committed' FROM jobqueue_wait(:id);

SELECT jobqueue_cancel(:far);
CALL drained();
DROP OWNED BY regress_wait_one, regress_wait_two, regress_wait_none;
SELECT jobqueue_revoke('regress_wait_one', 'use'), jobqueue_revoke('regress_wait_two', 'use');
DROP ROLE regress_wait_one, regress_wait_two, regress_wait_none;
