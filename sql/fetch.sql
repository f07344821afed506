-- Outside consumers: what jobqueue_fetch_wait() gives, and what one cannot do with a job.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

-- each job of one call comes with what is its own, as it stands in the table
SELECT jobqueue_enqueue(NULL, queue => 'fetch') > 0 AS id;
SELECT jobqueue_enqueue(NULL, '{"a": [1, {"b": null}]}', queue => 'fetch', key => 'k', priority => 7, tags => '{x,"y z"}') > 0 AS id;
SELECT jobqueue_enqueue(NULL, '"scalar"', queue => 'fetch', priority => -7, tags => '{}') > 0 AS id;
CALL jobqueue_fetch_wait('fetch', 10, '1 min') \gset
SELECT g.id = j.id AS id, g.args, g.key, g.attempt, g.priority, g.tags, g.enqueued_at = j.enqueued_at AS enqueued_at, g.token
FROM jsonb_to_recordset(:'jobs') g (id bigint, args jsonb, key text, attempt int, priority int, tags text[], enqueued_at timestamptz, token uuid)
LEFT JOIN jobqueue_job j ON j.id = g.id ORDER BY g.priority;
SELECT jobqueue_complete((j->>'id')::bigint) FROM jsonb_array_elements(:'jobs') j;
CALL drained();
CALL jobqueue_fetch_wait('fetch', 10, '10 ms');

-- without ids
CREATE PROCEDURE refused(statement text) LANGUAGE plpgsql AS $$
DECLARE
	h text;
BEGIN
	EXECUTE statement;
	RAISE INFO 'no error';
EXCEPTION WHEN query_canceled OR OTHERS THEN
	GET STACKED DIAGNOSTICS h = PG_EXCEPTION_HINT;
	RAISE INFO '% %', sqlstate, regexp_replace(sqlerrm, '\d+', 'N');
	RAISE INFO '      hint: %', coalesce(nullif(h, ''), 'none');
END $$;
-- of a session: no lease, no token, ended once
SELECT jobqueue_enqueue(NULL, queue => 'fetch') AS id \gset
SELECT id = :id AS fetched FROM jobqueue_fetch('fetch', wait => '1 min');
CALL refused(format('SELECT jobqueue_extend(%s, %L, NULL)', :id, '1 min'));
CALL refused(format('SELECT jobqueue_complete(%s, token => %L)', :id, '00000000-0000-0000-0000-000000000000'));
BEGIN;
SELECT jobqueue_fail(:id, 'not now', retry_in => '1 hour') IS NOT NULL AS failed;
CALL refused(format('SELECT jobqueue_complete(%s)', :id));
CALL refused(format('SELECT jobqueue_release(%s)', :id));
ROLLBACK;
-- whose row has gone
BEGIN;
DELETE FROM jobqueue_job WHERE id = :id;
CALL refused(format('SELECT jobqueue_complete(%s)', :id));
CALL refused(format('SELECT jobqueue_fail(%s, %L)', :id, 'not now'));
ROLLBACK;
SELECT jobqueue_complete(:id);
CALL drained();
CALL refused(format('SELECT jobqueue_complete(%s)', :id));
-- leased: another token, an old one
SELECT jobqueue_enqueue(NULL, queue => 'fetch') AS id \gset
SELECT id = :id AS fetched, token FROM jobqueue_fetch('fetch', wait => '1 min', lease => '1 hour') \gset
SELECT :'fetched' AS fetched;
CALL refused(format('SELECT jobqueue_complete(%s)', :id));
CALL refused(format('SELECT jobqueue_complete(%s, token => %L)', :id, '00000000-0000-0000-0000-000000000000'));
SELECT jobqueue_extend(:id, '1 ms', :'token') IS NOT NULL AS extended;
CALL wait_until(format('(SELECT attempt = 1 FROM jobqueue_job WHERE id = %s)', :id));
CALL refused(format('SELECT jobqueue_complete(%s, token => %L)', :id, :'token'));
SELECT jobqueue_cancel(:id);
-- cancelled while it is out
SELECT jobqueue_enqueue(NULL, queue => 'fetch') AS id \gset
SELECT id = :id AS fetched FROM jobqueue_fetch('fetch', wait => '1 min');
SELECT jobqueue_cancel(:id);
CALL refused(format('SELECT jobqueue_complete(%s)', :id));
CALL drained();

DROP PROCEDURE refused;
DELETE FROM jobqueue_archive;
