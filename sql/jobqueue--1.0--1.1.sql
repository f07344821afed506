/* sql/jobqueue--1.0--1.1.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION jobqueue UPDATE TO '1.1'" to load this file. \quit

-- The server must run the library that these objects are made for: one that was
-- loaded before the package was upgraded stays until a restart.
LOAD 'MODULE_PATHNAME';
DO $$
DECLARE
	library text := pg_catalog.current_setting('jobqueue.library_version', true);
BEGIN
	IF library IS NULL OR pg_catalog.string_to_array(library, '.')::int[] OPERATOR(pg_catalog.<) '{1,1}'
	THEN
		RAISE EXCEPTION 'the server runs the library of jobqueue %, which does not know the SQL objects of jobqueue 1.1',
			coalesce(library, '1.0')
			USING ERRCODE = 'object_not_in_prerequisite_state',
				  HINT = 'Restart the server, so that it loads the library that is installed now, then try again.';
	END IF;
END
$$;

-- ---------------------------------------------------------------------------
-- Roles of which nothing is started.  One that a dump names and that is not
-- there where it is restored is 0, so several rows may be.
-- ---------------------------------------------------------------------------
CREATE TABLE jobqueue_paused_role (
	role		jobqueue_role NOT NULL,
	paused_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	paused_by	jobqueue_role NOT NULL DEFAULT current_user::regrole
);
ALTER TABLE jobqueue_paused_role ENABLE ROW LEVEL SECURITY;
-- It has no primary key, and may be part of a publication of all tables.
ALTER TABLE jobqueue_paused_role REPLICA IDENTITY FULL;
SELECT pg_catalog.pg_extension_config_dump('jobqueue_paused_role', '');

CREATE FUNCTION jobqueue_paused_role_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_paused_role_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_paused_role_announce
	AFTER INSERT OR UPDATE OR DELETE ON jobqueue_paused_role
	FOR EACH ROW EXECUTE FUNCTION jobqueue_paused_role_trigger();
CREATE TRIGGER jobqueue_paused_role_truncate
	AFTER TRUNCATE ON jobqueue_paused_role
	FOR EACH STATEMENT EXECUTE FUNCTION jobqueue_paused_role_trigger();
ALTER TABLE jobqueue_paused_role ENABLE ALWAYS TRIGGER jobqueue_paused_role_announce;
ALTER TABLE jobqueue_paused_role ENABLE ALWAYS TRIGGER jobqueue_paused_role_truncate;

CREATE FUNCTION jobqueue_pause_role(role regrole) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_pause_role' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_resume_role(role regrole) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_resume_role' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_reassign(from_role regrole, to_role regrole)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_reassign' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE VIEW jobqueue_paused_roles WITH (security_barrier) AS
	SELECT p.role::oid::regrole AS role, p.paused_at,
		   p.paused_by::oid::regrole AS paused_by
	FROM jobqueue_paused_role p
	WHERE jobqueue_sight(p.role::oid) > 0;

REVOKE ALL ON FUNCTION jobqueue_paused_role_trigger(),
	jobqueue_pause_role(regrole), jobqueue_resume_role(regrole),
	jobqueue_reassign(regrole, regrole) FROM PUBLIC;
GRANT SELECT ON jobqueue_paused_roles TO pg_monitor;

COMMENT ON TABLE jobqueue_paused_role IS
	'roles of which nothing is started, see jobqueue_pause_role(); read the view jobqueue_paused_roles';
COMMENT ON COLUMN jobqueue_paused_role.role IS 'the role';
COMMENT ON COLUMN jobqueue_paused_role.paused_at IS 'when it was paused';
COMMENT ON COLUMN jobqueue_paused_role.paused_by IS 'who has paused it';
COMMENT ON TRIGGER jobqueue_paused_role_announce ON jobqueue_paused_role IS
	'tells memory of rows that come and go';
COMMENT ON TRIGGER jobqueue_paused_role_truncate ON jobqueue_paused_role IS
	'has the table read again';
COMMENT ON FUNCTION jobqueue_paused_role_trigger() IS
	'internal: tells memory which roles are paused';
COMMENT ON FUNCTION jobqueue_pause_role(regrole) IS
	'start no job of a role any more, and fire none of its schedules; what runs goes on';
COMMENT ON FUNCTION jobqueue_resume_role(regrole) IS
	'let the jobs and schedules of a paused role go on';
COMMENT ON FUNCTION jobqueue_reassign(regrole, regrole) IS
	'give the jobs, history, schedules and services of a role to another one; returns how many jobs that have not ended';
COMMENT ON VIEW jobqueue_paused_roles IS
	'roles of which nothing is started';
COMMENT ON COLUMN jobqueue_paused_roles.role IS 'the role';
COMMENT ON COLUMN jobqueue_paused_roles.paused_at IS 'when it was paused';
COMMENT ON COLUMN jobqueue_paused_roles.paused_by IS 'who has paused it';
