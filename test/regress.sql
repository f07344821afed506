-- What the files in sql/ share; each of them reads it first.
\set VERBOSITY terse
SET client_min_messages = warning;

CREATE TABLE IF NOT EXISTS ran (
	n bigint GENERATED ALWAYS AS IDENTITY, what text,
	role name DEFAULT current_user);
GRANT SELECT, INSERT ON ran TO PUBLIC;

-- try until it is true, at most 2 minutes
CREATE OR REPLACE PROCEDURE wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
	ok boolean;
	until timestamptz := clock_timestamp() + interval '2 min';
BEGIN
	WHILE clock_timestamp() < until LOOP
		EXECUTE 'SELECT ' || condition INTO ok;
		IF ok THEN
			RETURN;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
	RAISE EXCEPTION 'still not true: %', condition;
END $$;

-- nothing waits or runs
CREATE OR REPLACE PROCEDURE drained() LANGUAGE plpgsql AS $$
BEGIN
	CALL wait_until('NOT EXISTS (SELECT FROM jobqueue_job)'
		' AND NOT EXISTS (SELECT FROM jobqueue_running)');
END $$;

-- what the jobs left behind since the last call
CREATE OR REPLACE FUNCTION left_behind() RETURNS SETOF text LANGUAGE sql AS $$
	WITH gone AS (DELETE FROM ran RETURNING *)
	SELECT what FROM gone ORDER BY n
$$;

CREATE OR REPLACE FUNCTION note(args jsonb) RETURNS void LANGUAGE sql AS $$
	INSERT INTO public.ran (what) VALUES (args->>'what')
$$;

-- SQLSTATE, message, detail and hint of what a statement raises
CREATE OR REPLACE PROCEDURE raises(statement text) LANGUAGE plpgsql AS $$
DECLARE
	s text; m text; d text; h text;
BEGIN
	EXECUTE statement;
	RAISE INFO 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS s = RETURNED_SQLSTATE, m = MESSAGE_TEXT,
		d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
	RAISE INFO '% %', s, m;
	IF d <> '' THEN
		RAISE INFO '      detail: %', d;
	END IF;
	RAISE INFO '      hint: %', coalesce(nullif(h, ''), 'none');
END $$;

RESET client_min_messages;
