-- Each object that a user sees has a comment.
\getenv abs_srcdir PG_ABS_SRCDIR
\set common :abs_srcdir /test/regress.sql
\set ECHO none
\i :common
\set ECHO all

CREATE TEMP VIEW member AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object,
		obj_description(d.objid, d.classid::regclass::name) AS comment
	FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	WHERE e.extname = 'jobqueue' AND d.deptype = 'e'
	  AND d.refclassid = 'pg_extension'::regclass;
SELECT object AS without_comment FROM member
WHERE comment IS NULL
  AND classid IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_type'::regclass)
  AND NOT EXISTS (SELECT FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid
				  WHERE t.oid = objid AND c.relkind IN ('r', 'v'))
  AND object NOT LIKE 'type jobqueue_%[]'
ORDER BY object COLLATE "C";
-- a comment is one sentence that is not just the name
SELECT object, comment FROM member
WHERE length(comment) < 15 OR comment ~ '^\s|\s$|\n'
ORDER BY object COLLATE "C";
SELECT obj_description(oid, 'pg_extension') IS NOT NULL AS commented
FROM pg_extension WHERE extname = 'jobqueue';
-- each setting is described
SELECT name FROM pg_settings WHERE name LIKE 'jobqueue.%'
AND coalesce(short_desc, '') = '' ORDER BY name COLLATE "C";
-- volatility, parallel safety and strictness are as they were decided
SELECT p.oid::regprocedure::text AS function, provolatile AS v, proparallel AS p, proisstrict AS s
FROM member m JOIN pg_proc p ON p.oid = m.objid
WHERE m.classid = 'pg_proc'::regclass
  AND (provolatile, proparallel, proisstrict) <> ('v', 'u', false)
ORDER BY p.oid::regprocedure::text COLLATE "C";
DROP VIEW member;
