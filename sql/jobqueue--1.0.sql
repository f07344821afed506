/* sql/jobqueue--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION jobqueue" to load this file. \quit

-- No name in this file is qualified: the objects live in the schema that
-- CREATE EXTENSION names, and C finds them as members of the extension.

DO $$
BEGIN
	IF EXISTS (SELECT FROM pg_catalog.pg_namespace n,
				 LATERAL pg_catalog.aclexplode(n.nspacl) a
			   WHERE n.nspname = pg_catalog.current_schema()
				 AND a.privilege_type = 'CREATE'
				 AND a.grantee <> n.nspowner
				 AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r
								 WHERE r.oid = a.grantee AND r.rolsuper))
	THEN
		RAISE WARNING 'roles other than its owner may create objects in schema "%"',
			pg_catalog.current_schema()
			USING HINT = 'Install jobqueue in a schema in which only superusers may create objects.';
	END IF;
	-- Workers for roles that cannot log in connect as this role, which can do
	-- nothing and to which no client can connect, and become the job's role.
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'jobqueue_nobody')
	THEN
		CREATE ROLE jobqueue_nobody LOGIN CONNECTION LIMIT 0
			NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
	END IF;
END
$$;

-- ---------------------------------------------------------------------------
-- The type of "owner": a role, as regrole prints it.  Where the dump of a
-- dropped role shows a bare number, input gives 0 and not whichever role has
-- that number where it is restored.
-- ---------------------------------------------------------------------------
CREATE TYPE jobqueue_role;
CREATE FUNCTION jobqueue_role_in(cstring) RETURNS jobqueue_role
	AS 'MODULE_PATHNAME', 'jq_role_in' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE FUNCTION jobqueue_role_out(jobqueue_role) RETURNS cstring
	AS 'MODULE_PATHNAME', 'jq_role_out' LANGUAGE C STABLE STRICT PARALLEL SAFE;
CREATE TYPE jobqueue_role (INPUT = jobqueue_role_in, OUTPUT = jobqueue_role_out,
	LIKE = pg_catalog.oid);
CREATE CAST (jobqueue_role AS pg_catalog.oid) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (pg_catalog.oid AS jobqueue_role) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (pg_catalog.regrole AS jobqueue_role) WITHOUT FUNCTION AS ASSIGNMENT;

-- ---------------------------------------------------------------------------
-- Tables.  No grants on them, ever: a row is a right to run its command as its
-- owner.  src/jobtable.h knows the columns of jobqueue_job by number.
-- ---------------------------------------------------------------------------
CREATE TABLE jobqueue_meta (
	only_row	boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	home		bigint NOT NULL,
	database	oid NOT NULL
);
INSERT INTO jobqueue_meta (home, database)
	SELECT pg_catalog.hashtextextended(pg_catalog.gen_random_uuid()::text, 0), oid
	FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database();

CREATE FUNCTION jobqueue_home() RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_home' LANGUAGE C STABLE PARALLEL SAFE;

CREATE FUNCTION jobqueue_at_home() RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_at_home' LANGUAGE C STABLE PARALLEL SAFE;

CREATE SEQUENCE jobqueue_job_id_seq;
CREATE TABLE jobqueue_job (
	id			bigint NOT NULL DEFAULT nextval('jobqueue_job_id_seq'),
	enqueued_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	home		bigint NOT NULL DEFAULT jobqueue_home(),
	run_at		timestamptz,
	expires_at	timestamptz,
	owner		jobqueue_role NOT NULL DEFAULT current_user::regrole,
	func_owner	oid,
	priority	smallint NOT NULL DEFAULT 0,
	attempt		smallint NOT NULL DEFAULT 0,
	max_attempts smallint,
	crashes		smallint NOT NULL DEFAULT 0,
	kind		"char",
	queue		text COLLATE "C" NOT NULL DEFAULT 'default',
	command		text NOT NULL,
	args		jsonb,
	key			text COLLATE "C",
	search_path	text,
	settings	text[],
	timeout		interval,
	keep		interval,
	tags		text[],
	errors		jsonb,
	CONSTRAINT jobqueue_job_pkey PRIMARY KEY (id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,
		autovacuum_vacuum_insert_scale_factor = 0,
		autovacuum_vacuum_insert_threshold = 1000000,
		autovacuum_analyze_scale_factor = 0,
		autovacuum_analyze_threshold = 1000000,
		toast.vacuum_truncate = off, toast.autovacuum_vacuum_scale_factor = 0,
		toast.autovacuum_vacuum_threshold = 10000,
		toast.autovacuum_vacuum_cost_delay = 0);
ALTER SEQUENCE jobqueue_job_id_seq OWNED BY jobqueue_job.id;
CREATE INDEX jobqueue_job_ready ON jobqueue_job (queue, owner, priority, id)
	WHERE run_at IS NULL;
-- what waits for a key, where memory does not hold all that does
CREATE INDEX jobqueue_job_key ON jobqueue_job
	(pg_catalog.hashtextextended(key, 0), priority, id)
	WHERE key IS NOT NULL;
CREATE INDEX jobqueue_job_due ON jobqueue_job (run_at, id)
	WHERE run_at IS NOT NULL;
CREATE INDEX jobqueue_job_expiry ON jobqueue_job (expires_at, id)
	WHERE expires_at IS NOT NULL;

-- dead, cancelled and kept jobs; users read the view jobqueue_history
CREATE TABLE jobqueue_archive (
	id			bigint NOT NULL,
	enqueued_at	timestamptz NOT NULL,
	started_at	timestamptz,
	ended_at	timestamptz NOT NULL,
	expires_at	timestamptz,		-- when the row is pruned
	home		bigint NOT NULL,
	owner		jobqueue_role NOT NULL,
	func_owner	oid,
	priority	smallint NOT NULL,
	attempt		smallint NOT NULL,
	max_attempts smallint,
	kind		"char",
	state		text NOT NULL CHECK (state IN ('completed', 'cancelled', 'dead')),
	queue		text COLLATE "C" NOT NULL,
	command		text NOT NULL,
	args		jsonb,
	key			text COLLATE "C",
	search_path	text,
	settings	text[],
	timeout		interval,
	keep		interval,
	tags		text[],
	result		jsonb,
	errors		jsonb,
	reason		text,
	CONSTRAINT jobqueue_archive_pkey PRIMARY KEY (id)
);
CREATE INDEX jobqueue_archive_expiry ON jobqueue_archive (expires_at, id)
	WHERE expires_at IS NOT NULL;
CREATE INDEX jobqueue_archive_dead ON jobqueue_archive (queue)
	WHERE state = 'dead';

-- Settings of queues; one without a row has the defaults.
CREATE SEQUENCE jobqueue_queue_version_seq;
CREATE TABLE jobqueue_queue (
	name		text COLLATE "C" NOT NULL,
	paused		boolean NOT NULL DEFAULT false,
	batch		int NOT NULL DEFAULT 1 CHECK (batch BETWEEN 1 AND 100),
	version		bigint NOT NULL,		-- set by the trigger
	CONSTRAINT jobqueue_queue_pkey PRIMARY KEY (name)
);
ALTER SEQUENCE jobqueue_queue_version_seq OWNED BY jobqueue_queue.version;

SELECT pg_catalog.pg_extension_config_dump('jobqueue_job', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_job_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_archive', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_queue', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_queue_version_seq', '');

-- Rows that did not come through jobqueue_enqueue: may their writer act for
-- the owner?  Memory is told of them at commit.
CREATE FUNCTION jobqueue_job_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_job_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_job_guard BEFORE INSERT OR UPDATE ON jobqueue_job
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_guard;
CREATE TRIGGER jobqueue_archive_guard BEFORE INSERT OR UPDATE ON jobqueue_archive
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_archive ENABLE ALWAYS TRIGGER jobqueue_archive_guard;
CREATE FUNCTION jobqueue_queue_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_queue_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_queue_version BEFORE INSERT OR UPDATE OR DELETE ON jobqueue_queue
	FOR EACH ROW EXECUTE FUNCTION jobqueue_queue_trigger();
CREATE TRIGGER jobqueue_queue_announce
	AFTER TRUNCATE ON jobqueue_queue
	FOR EACH STATEMENT EXECUTE FUNCTION jobqueue_queue_trigger();
ALTER TABLE jobqueue_queue ENABLE ALWAYS TRIGGER jobqueue_queue_version;
ALTER TABLE jobqueue_queue ENABLE ALWAYS TRIGGER jobqueue_queue_announce;
-- Memory may know settings of an extension that was here before.
TRUNCATE jobqueue_queue;
ALTER TABLE jobqueue_job ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_job_owner ON jobqueue_job
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_archive ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_archive_owner ON jobqueue_archive
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_meta ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_queue ENABLE ROW LEVEL SECURITY;

-- ---------------------------------------------------------------------------
-- Enqueue
-- ---------------------------------------------------------------------------
CREATE FUNCTION jobqueue_enqueue(
	command text,
	args jsonb DEFAULT NULL,
	queue text DEFAULT 'default',
	key text DEFAULT NULL,
	priority int DEFAULT 0,
	run_at timestamptz DEFAULT NULL,
	max_attempts int DEFAULT NULL,
	timeout interval DEFAULT NULL,
	expires_at timestamptz DEFAULT NULL,
	keep interval DEFAULT NULL,
	tags text[] DEFAULT NULL)
RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_enqueue' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION jobqueue_enqueue_many(
	command text,
	args jsonb[],
	keys text[] DEFAULT NULL,
	queue text DEFAULT 'default',
	priority int DEFAULT 0,
	run_at timestamptz DEFAULT NULL,
	max_attempts int DEFAULT NULL,
	timeout interval DEFAULT NULL,
	expires_at timestamptz DEFAULT NULL,
	keep interval DEFAULT NULL,
	tags text[] DEFAULT NULL)
RETURNS SETOF bigint
	AS 'MODULE_PATHNAME', 'jq_enqueue_many' LANGUAGE C VOLATILE PARALLEL UNSAFE;

-- ---------------------------------------------------------------------------
-- In a job, and control
-- ---------------------------------------------------------------------------
CREATE FUNCTION jobqueue_current(
	OUT id bigint, OUT queue text, OUT key text, OUT attempt int,
	OUT max_attempts int, OUT enqueued_at timestamptz)
	AS 'MODULE_PATHNAME', 'jq_current' LANGUAGE C STABLE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_progress(fraction float8, message text DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME', 'jq_progress' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_snooze(delay interval) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_snooze' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_discard(reason text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_discard' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_cancel(id bigint) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_cancel' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_cancel_where(queue text, state text, tag text,
	everything boolean DEFAULT false) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_cancel_where' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_retry(id bigint) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_retry' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_run(id bigint) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'jq_run' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_explain(id bigint) RETURNS text
	AS 'MODULE_PATHNAME', 'jq_explain' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_adopt() RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_adopt' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_sweep() RETURNS void
	AS 'MODULE_PATHNAME', 'jq_sweep' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_quiesce(timeout interval DEFAULT '1 minute')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_quiesce' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_resume() RETURNS void
	AS 'MODULE_PATHNAME', 'jq_resume' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_configure(queue text, batch int DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME', 'jq_configure' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_pause(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_pause_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_resume(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_resume_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_drop_queue(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_drop_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_grant(role regrole, level text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_grant' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_revoke(role regrole, level text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_revoke' LANGUAGE C VOLATILE PARALLEL UNSAFE;

-- ---------------------------------------------------------------------------
-- What memory knows; each function shows only what its caller may see
-- ---------------------------------------------------------------------------
-- 2: everything about the jobs of that role, 1: all but arguments, 0: nothing
CREATE FUNCTION jobqueue_sight(owner oid) RETURNS int
	AS 'MODULE_PATHNAME', 'jq_sight' LANGUAGE C STABLE PARALLEL RESTRICTED;
-- EXECUTE on this one is the level "monitor"
CREATE FUNCTION jobqueue_monitors() RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_monitors' LANGUAGE C STABLE PARALLEL RESTRICTED;
-- per queue; wait and run times in seconds
CREATE FUNCTION jobqueue_queue_stats(
	OUT queue text, OUT ready bigint, OUT blocked bigint, OUT running bigint,
	OUT held bigint, OUT spilled bigint, OUT estimated boolean,
	OUT completed bigint, OUT failed bigint,
	OUT completed_per_minute bigint, OUT failed_per_minute bigint,
	OUT wait_p50 float8, OUT wait_p99 float8,
	OUT run_p50 float8, OUT run_p99 float8, OUT wasted bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_queue_stats' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_counts(
	OUT queue text, OUT scheduled bigint, OUT dead bigint, OUT oldest_ready timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_counts' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_running_jobs(
	OUT id bigint, OUT queue text, OUT owner oid, OUT key text, OUT pid int,
	OUT attempt int, OUT started_at timestamptz, OUT command text,
	OUT progress float8, OUT progress_message text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_running_jobs' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_blocked_jobs(OUT id bigint, OUT key text,
	OUT from_priority int, OUT from_id bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_blocked_jobs' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_recent_jobs(
	OUT id bigint, OUT queue text, OUT owner oid, OUT outcome text,
	OUT attempt int, OUT enqueued_at timestamptz, OUT started_at timestamptz,
	OUT ended_at timestamptz, OUT pid int, OUT lsn pg_lsn,
	OUT result text, OUT error text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_recent_jobs' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_held_keys(
	OUT key text, OUT pid int, OUT job bigint, OUT since timestamptz,
	OUT waiting bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_held_keys' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_processes(
	OUT pid int, OUT kind text, OUT role oid, OUT state text, OUT job bigint,
	OUT queue text, OUT started_at timestamptz, OUT jobs bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_processes' LANGUAGE C VOLATILE PARALLEL RESTRICTED;

-- ---------------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------------
CREATE VIEW jobqueue_status WITH (security_barrier) AS
	SELECT queue,
		   coalesce(s.ready, 0) AS ready,
		   coalesce(c.scheduled, 0) AS scheduled,
		   coalesce(s.blocked, 0) AS blocked,
		   coalesce(s.running, 0) AS running,
		   coalesce(c.dead, 0) AS dead,
		   coalesce(s.held, 0) AS held,
		   coalesce(s.spilled, 0) AS spilled,
		   coalesce(s.estimated, false) AS estimated,
		   c.oldest_ready,
		   coalesce(s.completed, 0) AS completed,
		   coalesce(s.failed, 0) AS failed,
		   coalesce(s.completed_per_minute, 0) AS completed_per_minute,
		   coalesce(s.failed_per_minute, 0) AS failed_per_minute,
		   coalesce(s.wasted, 0) AS wasted,
		   make_interval(secs => s.wait_p50) AS wait_p50,
		   make_interval(secs => s.wait_p99) AS wait_p99,
		   make_interval(secs => s.run_p50) AS run_p50,
		   make_interval(secs => s.run_p99) AS run_p99,
		   coalesce(q.paused, false) AS paused
	FROM jobqueue_queue_stats() s FULL JOIN jobqueue_counts() c USING (queue)
		 LEFT JOIN jobqueue_queue q ON q.name = queue COLLATE "C";

CREATE VIEW jobqueue_queues WITH (security_barrier) AS
	SELECT name::text AS queue, paused, batch FROM jobqueue_queue;

CREATE VIEW jobqueue_jobs WITH (security_barrier) AS
	SELECT j.id, j.queue::text AS queue, j.owner::oid::regrole AS owner,
		   CASE WHEN r.id IS NOT NULL THEN 'running'
				WHEN j.home <> jobqueue_home() OR NOT jobqueue_at_home() THEN 'held'
				WHEN j.run_at > clock_timestamp() THEN 'scheduled'
				WHEN b.id IS NOT NULL OR k.key IS NOT NULL THEN 'blocked'
				ELSE 'ready' END AS state,
		   j.command,
		   CASE WHEN x.sight = 2 THEN j.args END AS args,
		   j.key::text AS key, j.priority::int AS priority, j.run_at,
		   j.attempt::int AS attempt, coalesce(j.max_attempts, CASE j.kind WHEN 'x' THEN 1 ELSE 10 END)::int AS max_attempts,
		   coalesce(j.timeout, '1 hour') AS timeout, j.expires_at,
		   coalesce(j.keep, '0') AS keep, j.tags,
		   j.enqueued_at, r.started_at, NULL::timestamptz AS ended_at,
		   r.pid, NULL::jsonb AS result, j.errors, NULL::text AS reason
	FROM jobqueue_job j
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(j.owner) AS sight) x
		 LEFT JOIN jobqueue_running_jobs() r ON r.id = j.id
		 LEFT JOIN jobqueue_blocked_jobs() b ON b.id = j.id
		 LEFT JOIN jobqueue_blocked_jobs() k ON k.key = j.key
			AND (j.priority::int, j.id) >= (k.from_priority, k.from_id)
	WHERE x.sight > 0
	UNION ALL
	SELECT h.id, h.queue, h.owner::oid::regrole, h.state, h.command,
		   CASE WHEN x.sight = 2 THEN h.args END, h.key, h.priority, NULL,
		   h.attempt, coalesce(h.max_attempts, CASE h.kind WHEN 'x' THEN 1 ELSE 10 END), coalesce(h.timeout, '1 hour'), NULL,
		   coalesce(h.keep, '0'), h.tags, h.enqueued_at, h.started_at,
		   h.ended_at, NULL, CASE WHEN x.sight = 2 THEN h.result END,
		   h.errors, h.reason
	FROM jobqueue_archive h
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(h.owner) AS sight) x
	WHERE x.sight > 0;

CREATE VIEW jobqueue_running WITH (security_barrier) AS
	SELECT id, queue, owner::regrole AS owner, command, key, pid, attempt, started_at,
		   progress, progress_message
	FROM jobqueue_running_jobs();

CREATE VIEW jobqueue_recent WITH (security_barrier) AS
	SELECT id, queue, owner::regrole AS owner, outcome, attempt,
		   enqueued_at, started_at, ended_at, pid, lsn, result, error
	FROM jobqueue_recent_jobs();

CREATE VIEW jobqueue_history WITH (security_barrier) AS
	SELECT h.id, h.queue::text AS queue, h.owner::oid::regrole AS owner, h.state,
		   h.reason, h.command,
		   CASE WHEN x.sight = 2 THEN h.args END AS args, h.key::text AS key,
		   h.priority::int AS priority, h.attempt::int AS attempt, h.tags,
		   h.enqueued_at, h.started_at, h.ended_at, h.expires_at,
		   CASE WHEN x.sight = 2 THEN h.result END AS result, h.errors
	FROM jobqueue_archive h
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(h.owner) AS sight) x
	WHERE x.sight > 0;

CREATE VIEW jobqueue_keys WITH (security_barrier) AS
	SELECT key, pid, job, since, waiting FROM jobqueue_held_keys();

CREATE VIEW jobqueue_workers WITH (security_barrier) AS
	SELECT pid, role::regrole AS role, state, job, queue, started_at, jobs
	FROM jobqueue_processes() WHERE kind = 'worker';

-- ---------------------------------------------------------------------------
-- Rights: nothing for PUBLIC, then what jobqueue_grant() hands out
-- ---------------------------------------------------------------------------
DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT d.objid FROM pg_catalog.pg_depend d
			 WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
			   AND d.refclassid = 'pg_catalog.pg_extension'::regclass
			   AND d.refobjid = (SELECT oid FROM pg_catalog.pg_extension
								 WHERE extname = 'jobqueue')
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
	END LOOP;
END
$$;

-- pg_monitor sees all, without arguments.
GRANT SELECT ON jobqueue_status, jobqueue_jobs, jobqueue_running,
	jobqueue_recent, jobqueue_history, jobqueue_keys, jobqueue_workers,
	jobqueue_queues
	TO pg_monitor;
GRANT EXECUTE ON FUNCTION jobqueue_home(), jobqueue_at_home(),
	jobqueue_sight(oid), jobqueue_queue_stats(), jobqueue_counts(),
	jobqueue_running_jobs(), jobqueue_blocked_jobs(), jobqueue_recent_jobs(),
	jobqueue_held_keys(), jobqueue_processes(), jobqueue_explain(bigint)
	TO pg_monitor;
DO $$
BEGIN
	EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO pg_monitor',
							  pg_catalog.current_schema());
END
$$;

-- ---------------------------------------------------------------------------
-- Comments
-- ---------------------------------------------------------------------------
COMMENT ON TYPE jobqueue_role IS
	'a role, printed like regrole; a bare number is read as no role at all';
COMMENT ON FUNCTION jobqueue_role_in(cstring) IS
	'input function of type jobqueue_role';
COMMENT ON FUNCTION jobqueue_role_out(jobqueue_role) IS
	'output function of type jobqueue_role';
COMMENT ON CAST (jobqueue_role AS pg_catalog.oid) IS
	'the OID of the role';
COMMENT ON CAST (pg_catalog.oid AS jobqueue_role) IS
	'the role with that OID';
COMMENT ON CAST (pg_catalog.regrole AS jobqueue_role) IS
	'the role as a jobqueue_role, for assignments';

COMMENT ON TABLE jobqueue_meta IS
	'internal: the identity of this installation; its data is not dumped';
COMMENT ON COLUMN jobqueue_meta.home IS
	'random identity; jobs enqueued under another one are held';
COMMENT ON COLUMN jobqueue_meta.database IS
	'OID of the database the identity belongs to; a copy of the database has another one and holds its jobs';
COMMENT ON SEQUENCE jobqueue_job_id_seq IS
	'source of the ids of jobs; its value is part of a dump';
COMMENT ON TABLE jobqueue_job IS
	'live jobs, one row each from enqueue to end; a row is a right to run its command as its owner, so grant nothing on it; read the view jobqueue_jobs';
COMMENT ON COLUMN jobqueue_job.id IS 'id of the job';
COMMENT ON COLUMN jobqueue_job.enqueued_at IS 'when it was enqueued';
COMMENT ON COLUMN jobqueue_job.home IS
	'identity of the installation it was enqueued in; of another one: held until jobqueue_adopt()';
COMMENT ON COLUMN jobqueue_job.run_at IS 'not before; NULL: ready';
COMMENT ON COLUMN jobqueue_job.expires_at IS
	'cancelled if it has not started by then';
COMMENT ON COLUMN jobqueue_job.owner IS 'the role it runs as';
COMMENT ON COLUMN jobqueue_job.func_owner IS
	'the role that owned the function when the job was enqueued';
COMMENT ON COLUMN jobqueue_job.priority IS 'smaller runs first';
COMMENT ON COLUMN jobqueue_job.attempt IS 'attempts that have failed';
COMMENT ON COLUMN jobqueue_job.max_attempts IS
	'dead after so many; NULL: 10, or 1 outside a transaction block';
COMMENT ON COLUMN jobqueue_job.crashes IS
	'crashes of the server while it ran, since its last recorded failure';
COMMENT ON COLUMN jobqueue_job.kind IS
	'f: function; s: SQL text in a transaction; x: one statement outside a transaction block';
COMMENT ON COLUMN jobqueue_job.queue IS 'name of its queue';
COMMENT ON COLUMN jobqueue_job.command IS 'signature of the function, or SQL text';
COMMENT ON COLUMN jobqueue_job.args IS 'argument of the function, or $1 of the text';
COMMENT ON COLUMN jobqueue_job.key IS 'at most one job of a key runs at a time';
COMMENT ON COLUMN jobqueue_job.search_path IS
	'search_path of the enqueuer; NULL: the default of the role';
COMMENT ON COLUMN jobqueue_job.settings IS
	'settings captured at enqueue, each name=value';
COMMENT ON COLUMN jobqueue_job.timeout IS
	'of one attempt; 0: none, NULL: 1 hour';
COMMENT ON COLUMN jobqueue_job.keep IS
	'how long it stays in the history once completed; NULL or 0: not at all';
COMMENT ON COLUMN jobqueue_job.tags IS 'words of the application';
COMMENT ON COLUMN jobqueue_job.errors IS
	'the last failures, oldest first, at most 25';
COMMENT ON TRIGGER jobqueue_job_guard ON jobqueue_job IS
	'who writes a row must be a member of its owner; completes and announces the row';
COMMENT ON POLICY jobqueue_job_owner ON jobqueue_job IS
	'rows of roles that one is a member of';
COMMENT ON INDEX jobqueue_job_key IS
	'what waits for a key, where memory does not hold all that does';
COMMENT ON TABLE jobqueue_archive IS
	'jobs that are dead or cancelled, and completed ones that are kept; read the view jobqueue_history';
COMMENT ON COLUMN jobqueue_archive.expires_at IS 'when the row is deleted';
COMMENT ON TRIGGER jobqueue_archive_guard ON jobqueue_archive IS
	'who writes a row must be a member of its owner';
COMMENT ON POLICY jobqueue_archive_owner ON jobqueue_archive IS
	'rows of roles that one is a member of';
COMMENT ON FUNCTION jobqueue_job_trigger() IS
	'internal: guards rows that do not come through jobqueue_enqueue()';
COMMENT ON TABLE jobqueue_queue IS
	'settings of queues, as jobqueue_configure() and jobqueue_pause() left them; read the view jobqueue_queues';
COMMENT ON COLUMN jobqueue_queue.name IS 'name of the queue';
COMMENT ON COLUMN jobqueue_queue.paused IS 'no job of it is started';
COMMENT ON COLUMN jobqueue_queue.batch IS
	'so many small jobs may share a transaction';
COMMENT ON COLUMN jobqueue_queue.version IS
	'grows with each change; of two, memory takes the higher one';
COMMENT ON SEQUENCE jobqueue_queue_version_seq IS
	'source of the versions of settings; its value is part of a dump';
COMMENT ON TRIGGER jobqueue_queue_version ON jobqueue_queue IS
	'gives each row written a new version; has settings read anew that were written past the functions';
COMMENT ON TRIGGER jobqueue_queue_announce ON jobqueue_queue IS
	'has settings read anew after a TRUNCATE';
COMMENT ON FUNCTION jobqueue_queue_trigger() IS
	'internal: keeps memory in step with jobqueue_queue';
COMMENT ON FUNCTION jobqueue_at_home() IS
	'internal: is this database the one that jobqueue_home() was made for? false in a copy, until jobqueue_adopt() has run there';
COMMENT ON FUNCTION jobqueue_home() IS
	'internal: the identity of this installation';

COMMENT ON FUNCTION jobqueue_enqueue(text, jsonb, text, text, int, timestamptz,
	int, interval, timestamptz, interval, text[]) IS
	'enqueue a job in this transaction; returns its id';
COMMENT ON FUNCTION jobqueue_enqueue_many(text, jsonb[], text[], text, int,
	timestamptz, int, interval, timestamptz, interval, text[]) IS
	'enqueue one job for each element of args, in order; returns their ids';
COMMENT ON FUNCTION jobqueue_current() IS
	'in a job: which job it is; elsewhere: one row of NULLs';
COMMENT ON FUNCTION jobqueue_progress(float8, text) IS
	'in a job: how far it is, from 0 to 1, and in words; seen at once in jobqueue_running';
COMMENT ON FUNCTION jobqueue_snooze(interval) IS
	'in a job: keep what it does, and run it again after that time; no attempt is charged';
COMMENT ON FUNCTION jobqueue_discard(text) IS
	'in a job: an error after which it is dead, without further attempts';
COMMENT ON FUNCTION jobqueue_cancel(bigint) IS
	'cancel a job: a waiting one goes to the history, a running one is interrupted; false if there was nothing to do';
COMMENT ON FUNCTION jobqueue_cancel_where(text, text, text, boolean) IS
	'cancel all jobs of a queue, in a state, with a tag (null: any) that one may act on; how many; jobs of the same queues and roles start after the transaction';
COMMENT ON FUNCTION jobqueue_retry(bigint) IS
	'make a dead or cancelled job ready again with its attempts reset; false if there is none of that id';
COMMENT ON FUNCTION jobqueue_run(bigint) IS
	'for tests: run a waiting job of the current role here, in this transaction; returns its result';
COMMENT ON FUNCTION jobqueue_explain(bigint) IS
	'why a job does not run yet, or what has become of it, in one sentence';
COMMENT ON FUNCTION jobqueue_adopt() IS
	'let jobs run that came with a dump, a copy or replication of another database; returns how many';
COMMENT ON FUNCTION jobqueue_sweep() IS
	'read again from the table which jobs are ready, after rows were written without triggers';
COMMENT ON FUNCTION jobqueue_quiesce(interval) IS
	'start no more jobs in this database and wait for those that run; false if some still run after the timeout';
COMMENT ON FUNCTION jobqueue_resume() IS
	'start jobs again after jobqueue_quiesce()';
COMMENT ON FUNCTION jobqueue_configure(text, int) IS
	'give a queue settings, from commit on; NULL leaves one as it is';
COMMENT ON FUNCTION jobqueue_pause(text) IS
	'start no more jobs of the queue, from commit on; those that run go on';
COMMENT ON FUNCTION jobqueue_resume(text) IS
	'start jobs of the queue again after jobqueue_pause()';
COMMENT ON FUNCTION jobqueue_drop_queue(text) IS
	'forget the settings of a queue that has no jobs';
COMMENT ON FUNCTION jobqueue_grant(regrole, text) IS
	'give a role the level "use", "monitor" or "admin"';
COMMENT ON FUNCTION jobqueue_revoke(regrole, text) IS
	'take the privileges of a level from a role';

COMMENT ON FUNCTION jobqueue_sight(oid) IS
	'internal: what the current role sees of the jobs of that role; 2: all, 1: all but arguments and results, 0: nothing';
COMMENT ON FUNCTION jobqueue_monitors() IS
	'internal: the right to execute it is the level "monitor"';
COMMENT ON FUNCTION jobqueue_queue_stats() IS
	'internal: what memory knows of the queues; times in seconds';
COMMENT ON FUNCTION jobqueue_counts() IS
	'internal: what the tables know of the queues';
COMMENT ON FUNCTION jobqueue_running_jobs() IS
	'internal: jobs that workers have taken';
COMMENT ON FUNCTION jobqueue_blocked_jobs() IS
	'internal: jobs that wait for a key in memory, and from where on those of a key wait in the table';
COMMENT ON FUNCTION jobqueue_recent_jobs() IS
	'internal: the jobs that ended last';
COMMENT ON FUNCTION jobqueue_held_keys() IS
	'internal: keys that are held or waited for';
COMMENT ON FUNCTION jobqueue_processes() IS
	'internal: launcher, scheduler and workers of this database';

COMMENT ON VIEW jobqueue_status IS
	'one row for each queue: how many jobs in which state, how fast; totals and times since the server started';
COMMENT ON COLUMN jobqueue_status.queue IS 'name of the queue';
COMMENT ON COLUMN jobqueue_status.ready IS
	'could start now; includes "spilled"';
COMMENT ON COLUMN jobqueue_status.scheduled IS
	'wait for their run_at, retries included';
COMMENT ON COLUMN jobqueue_status.blocked IS
	'wait for a key, as far as memory has found them, those that are left in the table included';
COMMENT ON COLUMN jobqueue_status.running IS 'taken by a worker';
COMMENT ON COLUMN jobqueue_status.dead IS 'dead jobs in the history';
COMMENT ON COLUMN jobqueue_status.held IS
	'come from another installation and wait for jobqueue_adopt(); counted now and then';
COMMENT ON COLUMN jobqueue_status.spilled IS
	'ready jobs that are in the table and not in memory';
COMMENT ON COLUMN jobqueue_status.estimated IS
	'ready, spilled, blocked and held are not counted to the end yet: after a start, rows changed by hand or from another database, or jobqueue_sweep()';
COMMENT ON COLUMN jobqueue_status.oldest_ready IS
	'when the jobs at the head of the queue were enqueued, the earliest of them';
COMMENT ON COLUMN jobqueue_status.completed IS 'attempts that completed';
COMMENT ON COLUMN jobqueue_status.failed IS 'attempts that failed';
COMMENT ON COLUMN jobqueue_status.completed_per_minute IS
	'completed in the last full minute';
COMMENT ON COLUMN jobqueue_status.failed_per_minute IS
	'failed in the last full minute';
COMMENT ON COLUMN jobqueue_status.wasted IS
	'jobs that a worker took in vain: the row was gone, or another worker had it';
COMMENT ON COLUMN jobqueue_status.wait_p50 IS
	'median of the time from ready to start, rounded up to a step of a histogram';
COMMENT ON COLUMN jobqueue_status.wait_p99 IS
	'99th percentile of the time from ready to start';
COMMENT ON COLUMN jobqueue_status.run_p50 IS
	'median of the time from start to end';
COMMENT ON COLUMN jobqueue_status.run_p99 IS
	'99th percentile of the time from start to end';
COMMENT ON COLUMN jobqueue_status.paused IS
	'jobqueue_pause() was called for it: no job of it is started';
COMMENT ON VIEW jobqueue_queues IS
	'queues that have settings of their own';
COMMENT ON COLUMN jobqueue_queues.queue IS 'name of the queue';
COMMENT ON COLUMN jobqueue_queues.paused IS 'no job of it is started';
COMMENT ON COLUMN jobqueue_queues.batch IS
	'so many small jobs may share a transaction';
COMMENT ON VIEW jobqueue_jobs IS
	'all live jobs and the history, with one word for the state of each';
COMMENT ON COLUMN jobqueue_jobs.owner IS 'the role it runs as';
COMMENT ON COLUMN jobqueue_jobs.state IS
	'held, scheduled, ready, blocked, running, completed, cancelled or dead';
COMMENT ON COLUMN jobqueue_jobs.command IS
	'signature of the function, or SQL text';
COMMENT ON COLUMN jobqueue_jobs.args IS
	'shown to members of the owner only';
COMMENT ON COLUMN jobqueue_jobs.run_at IS
	'not before; for a failed job, the time of its next attempt';
COMMENT ON COLUMN jobqueue_jobs.attempt IS 'attempts that have failed';
COMMENT ON COLUMN jobqueue_jobs.pid IS 'process that runs it';
COMMENT ON COLUMN jobqueue_jobs.result IS
	'of a completed job that is kept; shown to members of the owner only';
COMMENT ON COLUMN jobqueue_jobs.errors IS
	'the last failures, oldest first, at most 25: attempt, at, sqlstate, error, detail, hint, context';
COMMENT ON COLUMN jobqueue_jobs.reason IS
	'why it was cancelled or is dead';
COMMENT ON VIEW jobqueue_running IS
	'jobs that run now; reads memory only';
COMMENT ON COLUMN jobqueue_running.command IS
	'the first 127 bytes of the command';
COMMENT ON COLUMN jobqueue_running.attempt IS 'this attempt, from 1';
COMMENT ON COLUMN jobqueue_running.progress IS
	'how far it is, from 0 to 1, as it said by jobqueue_progress()';
COMMENT ON COLUMN jobqueue_running.progress_message IS
	'the same in words, at most 255 bytes; shown to members of the owner only';
COMMENT ON VIEW jobqueue_recent IS
	'the last attempts that ended, at most 4096 over all databases; reads memory only and is empty after a restart';
COMMENT ON COLUMN jobqueue_recent.outcome IS
	'completed, failed (will be tried again), snoozed (will be run again), dead or cancelled';
COMMENT ON COLUMN jobqueue_recent.attempt IS 'this attempt, from 1';
COMMENT ON COLUMN jobqueue_recent.lsn IS
	'end of the commit of a completed job in the WAL';
COMMENT ON COLUMN jobqueue_recent.result IS
	'the first 500 bytes of the result as text; shown to members of the owner only';
COMMENT ON COLUMN jobqueue_recent.error IS
	'the first 500 bytes of the error message';
COMMENT ON VIEW jobqueue_history IS
	'jobs that are dead or cancelled, and completed ones that are kept';
COMMENT ON COLUMN jobqueue_history.state IS 'completed, cancelled or dead';
COMMENT ON COLUMN jobqueue_history.reason IS
	'why it was cancelled or is dead';
COMMENT ON COLUMN jobqueue_history.attempt IS 'attempts that have failed';
COMMENT ON COLUMN jobqueue_history.expires_at IS 'when the row is deleted';
COMMENT ON VIEW jobqueue_keys IS
	'keys that are held or waited for; reads memory only';
COMMENT ON COLUMN jobqueue_keys.pid IS
	'process that holds it; NULL: free, but jobs that wait for it have not started yet';
COMMENT ON COLUMN jobqueue_keys.job IS 'the job it is held for';
COMMENT ON COLUMN jobqueue_keys.waiting IS
	'jobs that wait for it, as far as memory has found them, those that are left in the table included';
COMMENT ON VIEW jobqueue_workers IS
	'the worker processes of this database; reads memory only';
COMMENT ON COLUMN jobqueue_workers.role IS 'the role whose jobs it runs';
COMMENT ON COLUMN jobqueue_workers.state IS
	'starting, idle, busy, running; stuck: its job does not react to its timeout; throttled, stopped: transaction ids: it waits as the server is short of them';
COMMENT ON COLUMN jobqueue_workers.job IS 'the job it has taken';
COMMENT ON COLUMN jobqueue_workers.jobs IS 'how many jobs it has run';
