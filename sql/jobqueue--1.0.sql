/* sql/jobqueue--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION jobqueue" to load this file. \quit

-- No name of ours is qualified: the objects live in the schema that CREATE
-- EXTENSION names, and C finds them as members of the extension.  Whoever may
-- create in that schema could have put functions and operators there, so what is
-- used here of pg_catalog is such that its arguments fit as they are, or qualified:
-- what fits better would be preferred, and be called as a superuser.

DO $$
BEGIN
	-- that pg_database_owner owns a schema says that the database's owner does
	IF EXISTS (SELECT FROM pg_catalog.pg_namespace n,
				 LATERAL (SELECT n.nspowner AS role
						  UNION ALL SELECT a.grantee
						  FROM pg_catalog.aclexplode(n.nspacl) a
						  WHERE a.privilege_type = 'CREATE') c,
				 pg_catalog.pg_database d
			   WHERE n.nspname = pg_catalog.current_schema()
				 AND d.datname = pg_catalog.current_database()
				 AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r
								 WHERE r.rolsuper AND r.oid =
									CASE WHEN c.role = 'pg_database_owner'::regrole::oid
									THEN d.datdba ELSE c.role END))
	THEN
		RAISE WARNING 'roles that are not superusers may create objects in schema "%"',
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
	id			bigint NOT NULL DEFAULT pg_catalog.nextval('jobqueue_job_id_seq'),
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
	command		text,
	args		jsonb,
	key			text COLLATE "C",
	search_path	text,
	settings	text[],
	timeout		interval,
	keep		interval,
	tags		text[],
	errors		jsonb,
	keeps_order	boolean,
	unique_key	text COLLATE "C",
	unique_until "char",
	unique_for	interval,
	on_conflict	"char",
	after		bigint[],
	after_run_at timestamptz,
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
	WHERE run_at IS NULL AND command IS NOT NULL;
-- the same for outside consumers, who fetch jobs of all owners
CREATE INDEX jobqueue_job_fetch ON jobqueue_job (queue, priority, id)
	WHERE run_at IS NULL AND command IS NULL;
-- what waits for a key, where memory does not hold all that does
CREATE INDEX jobqueue_job_key ON jobqueue_job
	(pg_catalog.hashtextextended(key, 0), priority, id)
	WHERE key IS NOT NULL;
-- what was started before, and later jobs of an ordered queue have to wait for
CREATE INDEX jobqueue_job_tried ON jobqueue_job
	(pg_catalog.hashtextextended(key, 0), priority, id)
	WHERE key IS NOT NULL AND (attempt > 0 OR crashes > 0 OR keeps_order);
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
	command		text,
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
	unique_key	text COLLATE "C",
	unique_until "char",
	unique_for	interval,
	on_conflict	"char",
	after		bigint[],
	CONSTRAINT jobqueue_archive_pkey PRIMARY KEY (id)
);
CREATE INDEX jobqueue_archive_expiry ON jobqueue_archive (expires_at, id)
	WHERE expires_at IS NOT NULL;
CREATE INDEX jobqueue_archive_dead ON jobqueue_archive (queue)
	WHERE state = 'dead';

-- Which job holds a unique_key of its queue; see src/unique.h.  Written past
-- the executor: no triggers and no other indexes, please.
CREATE TABLE jobqueue_unique (
	queue		text COLLATE "C" NOT NULL,
	unique_key	text COLLATE "C" NOT NULL,
	job			bigint NOT NULL,
	unique_until "char" NOT NULL,
	expires_at	timestamptz,
	CONSTRAINT jobqueue_unique_pkey PRIMARY KEY (unique_key, queue)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,
		autovacuum_vacuum_insert_scale_factor = 0,
		autovacuum_vacuum_insert_threshold = 1000000,
		autovacuum_analyze_scale_factor = 0,
		autovacuum_analyze_threshold = 1000000);
CREATE INDEX jobqueue_unique_expiry ON jobqueue_unique (expires_at)
	WHERE expires_at IS NOT NULL;
-- Which rows wait for a job.  It follows from "after" of the rows that wait; the
-- scheduler alone writes it, and its data is not dumped.
CREATE TABLE jobqueue_dependency (
	dep			bigint NOT NULL,
	job			bigint NOT NULL,
	CONSTRAINT jobqueue_dependency_pkey PRIMARY KEY (dep, job)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX jobqueue_dependency_job ON jobqueue_dependency (job, dep);

-- Jobs that outside consumers have fetched with a lease; see src/lease.h.
CREATE TABLE jobqueue_lease (
	job			bigint NOT NULL,
	token		uuid NOT NULL,
	leased_until timestamptz NOT NULL,
	leased_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT jobqueue_lease_pkey PRIMARY KEY (job)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- Who may fetch from which queue; '' stands for all.
CREATE TABLE jobqueue_consumer (
	role		jobqueue_role NOT NULL,
	queue		text COLLATE "C" NOT NULL
);

-- Settings of queues; one without a row has the defaults.
CREATE SEQUENCE jobqueue_queue_version_seq;
CREATE TABLE jobqueue_queue (
	name		text COLLATE "C" NOT NULL,
	paused		boolean NOT NULL DEFAULT false,
	batch		int NOT NULL DEFAULT 1 CHECK (batch BETWEEN 1 AND 100),
	version		bigint NOT NULL,		-- set by the trigger
	max_running	int CHECK (max_running > 0),
	key_limit	int NOT NULL DEFAULT 1 CHECK (key_limit > 0),
	rate		int CHECK (rate > 0),
	rate_per	interval NOT NULL DEFAULT '1 second' CHECK (rate_per > '0'),
	key_rate	int CHECK (key_rate > 0),
	key_rate_per interval NOT NULL DEFAULT '1 second' CHECK (key_rate_per > '0'),
	weight		int NOT NULL DEFAULT 1 CHECK (weight > 0),
	ordered		boolean NOT NULL DEFAULT false,
	max_attempts int CHECK (max_attempts BETWEEN 1 AND 32767),
	backoff		text NOT NULL DEFAULT 'exponential'
				CHECK (backoff IN ('exponential', 'linear', 'constant')),
	backoff_base interval NOT NULL DEFAULT '1 second' CHECK (backoff_base >= '0'),
	backoff_max	interval NOT NULL DEFAULT '1 hour' CHECK (backoff_max >= '0'),
	timeout		interval CHECK (timeout >= '0'),
	keep		interval CHECK (keep >= '0'),
	keep_dead	interval NOT NULL DEFAULT '7 days' CHECK (keep_dead >= '0'),
	synchronous_commit text CHECK (synchronous_commit IN
		('on', 'off', 'local', 'remote_write', 'remote_apply')),
	on_dead		text CHECK (on_dead <> ''),
	on_dead_owner jobqueue_role,
	on_dead_func_owner oid,
	CHECK ((on_dead IS NULL) = (on_dead_owner IS NULL)),
	CONSTRAINT jobqueue_queue_pkey PRIMARY KEY (name)
);
ALTER SEQUENCE jobqueue_queue_version_seq OWNED BY jobqueue_queue.version;

-- Services, one row each; see src/service.c.  What each message changes is in a
-- table of its own, see src/servicerow.c.
CREATE TABLE jobqueue_service (
	name		text COLLATE "C" NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 255),
	id			bigint NOT NULL DEFAULT pg_catalog.nextval('jobqueue_job_id_seq'),
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	home		bigint NOT NULL DEFAULT jobqueue_home(),
	owner		jobqueue_role NOT NULL DEFAULT current_user::regrole,
	func_owner	oid,
	handler		text NOT NULL,
	status		text NOT NULL DEFAULT 'running'
				CHECK (status IN ('running', 'stopping', 'failed')),
	restart		text NOT NULL DEFAULT 'permanent'
				CHECK (restart IN ('permanent', 'transient', 'temporary')),
	max_restarts int NOT NULL DEFAULT 3 CHECK (max_restarts BETWEEN 0 AND 1000),
	within		interval NOT NULL DEFAULT '5 seconds' CHECK (within > '0'),
	queue		text COLLATE "C" NOT NULL DEFAULT 'default',
	timeout		interval CHECK (timeout >= '0'),
	search_path	text,
	settings	text[],
	failed		bigint NOT NULL DEFAULT 0,
	failures	timestamptz[] NOT NULL DEFAULT '{}',
	last_error	text,
	down_job	bigint,
	CONSTRAINT jobqueue_service_pkey PRIMARY KEY (name),
	CONSTRAINT jobqueue_service_id_key UNIQUE (id)
);
CREATE TABLE jobqueue_service_current (
	service		bigint NOT NULL,
	handled		bigint NOT NULL DEFAULT 0,
	state		jsonb NOT NULL,
	CONSTRAINT jobqueue_service_current_pkey PRIMARY KEY (service, handled)
) WITH (autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- Schedules, one row each; see src/schedule.c and src/fire.c.
CREATE TABLE jobqueue_schedule (
	owner		jobqueue_role NOT NULL DEFAULT current_user::regrole,
	name		text COLLATE "C" NOT NULL,
	id			bigint NOT NULL DEFAULT pg_catalog.nextval('jobqueue_job_id_seq'),
	created_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	home		bigint NOT NULL DEFAULT jobqueue_home(),
	cron		text NOT NULL,
	timezone	text NOT NULL DEFAULT current_setting('timezone'),
	started_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	seen_to		timestamptz NOT NULL DEFAULT clock_timestamp(),
	next_run	timestamptz NOT NULL DEFAULT '-infinity',
	paused		boolean NOT NULL DEFAULT false,
	overlap		text NOT NULL DEFAULT 'skip'
				CHECK (overlap IN ('skip', 'queue', 'allow')),
	catch_up	text NOT NULL DEFAULT 'one'
				CHECK (catch_up IN ('none', 'one', 'all')),
	kind		"char" NOT NULL CHECK (kind IN ('f', 's', 'x', 'n')),
	command		text CHECK ((command IS NULL) = (kind = 'n')),
	args		jsonb,
	queue		text COLLATE "C" NOT NULL DEFAULT 'default',
	key			text COLLATE "C",
	priority	smallint NOT NULL DEFAULT 0,
	max_attempts smallint CHECK (max_attempts > 0),
	timeout		interval CHECK (timeout >= '0'),
	keep		interval CHECK (keep >= '0'),
	tags		text[],
	func_owner	oid,
	search_path	text,
	settings	text[],
	last_run	timestamptz,
	last_job	bigint,
	last_outcome text,
	last_error	text,
	runs		bigint NOT NULL DEFAULT 0,
	CONSTRAINT jobqueue_schedule_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50, vacuum_truncate = off,
		autovacuum_vacuum_scale_factor = 0,
		autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);
-- One that a dump names and that is not there where it is restored is 0: of
-- nobody there may be several of a name.
CREATE UNIQUE INDEX jobqueue_schedule_name ON jobqueue_schedule
	(name, NULLIF(owner::oid, 0::oid));
CREATE INDEX jobqueue_schedule_next ON jobqueue_schedule (next_run, id)
	WHERE NOT paused;

SELECT pg_catalog.pg_extension_config_dump('jobqueue_job', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_job_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_archive', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_unique', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_lease', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_consumer', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_queue', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_queue_version_seq', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_service', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_service_current', '');
SELECT pg_catalog.pg_extension_config_dump('jobqueue_schedule', '');

-- Rows that did not come through jobqueue_enqueue: may their writer act for
-- the owner?  Memory is told of them at commit.
CREATE FUNCTION jobqueue_job_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_job_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_job_guard BEFORE INSERT OR UPDATE ON jobqueue_job
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_guard;
-- Rows deleted by hand make room in the quotas of their owners.
CREATE TRIGGER jobqueue_job_gone AFTER DELETE OR TRUNCATE ON jobqueue_job
	FOR EACH STATEMENT EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_gone;
-- The same for replication, which fires no triggers of statements.
CREATE TRIGGER jobqueue_job_left AFTER DELETE ON jobqueue_job
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_job ENABLE REPLICA TRIGGER jobqueue_job_left;
CREATE TRIGGER jobqueue_archive_guard BEFORE INSERT OR UPDATE ON jobqueue_archive
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_archive ENABLE ALWAYS TRIGGER jobqueue_archive_guard;
CREATE TRIGGER jobqueue_service_guard BEFORE INSERT OR UPDATE ON jobqueue_service
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_service ENABLE ALWAYS TRIGGER jobqueue_service_guard;
CREATE FUNCTION jobqueue_schedule_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_schedule_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_schedule_guard BEFORE INSERT OR UPDATE ON jobqueue_schedule
	FOR EACH ROW EXECUTE FUNCTION jobqueue_schedule_trigger();
ALTER TABLE jobqueue_schedule ENABLE ALWAYS TRIGGER jobqueue_schedule_guard;
-- A job with a unique_key lets go of it when its row is deleted by a statement.
CREATE FUNCTION jobqueue_unique_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME', 'jq_unique_trigger' LANGUAGE C;
CREATE TRIGGER jobqueue_job_unique AFTER DELETE ON jobqueue_job
	FOR EACH ROW WHEN (OLD.unique_key IS NOT NULL)
	EXECUTE FUNCTION jobqueue_unique_trigger();
ALTER TABLE jobqueue_job ENABLE ALWAYS TRIGGER jobqueue_job_unique;
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
-- Replication of all tables does not make a database the one that it copies.
CREATE TRIGGER jobqueue_meta_guard BEFORE INSERT OR UPDATE OR DELETE ON jobqueue_meta
	FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger();
ALTER TABLE jobqueue_meta ENABLE ALWAYS TRIGGER jobqueue_meta_guard;
-- It has no primary key, and may be part of a publication of all tables.
ALTER TABLE jobqueue_consumer REPLICA IDENTITY FULL;
ALTER TABLE jobqueue_job ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_job_owner ON jobqueue_job
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_archive ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_archive_owner ON jobqueue_archive
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_service ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_service_owner ON jobqueue_service
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_service_current ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_schedule ENABLE ROW LEVEL SECURITY;
CREATE POLICY jobqueue_schedule_owner ON jobqueue_schedule
	USING (pg_catalog.pg_has_role(current_user, owner::oid, 'MEMBER'));
ALTER TABLE jobqueue_meta ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_unique ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_dependency ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_lease ENABLE ROW LEVEL SECURITY;
ALTER TABLE jobqueue_consumer ENABLE ROW LEVEL SECURITY;

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
	unique_key text DEFAULT NULL,
	unique_until text DEFAULT 'executed',
	unique_for interval DEFAULT NULL,
	on_conflict text DEFAULT 'skip',
	after bigint[] DEFAULT NULL,
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
	unique_keys text[] DEFAULT NULL,
	unique_until text DEFAULT 'executed',
	unique_for interval DEFAULT NULL,
	on_conflict text DEFAULT 'skip',
	after bigint[] DEFAULT NULL,
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
CREATE FUNCTION jobqueue_retry_where(queue text, state text, tag text,
	everything boolean DEFAULT false) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_retry_where' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_reschedule(id bigint, run_at timestamptz) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_reschedule' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_reschedule_where(queue text, state text, tag text,
	run_at timestamptz, everything boolean DEFAULT false) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_reschedule_where' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_reprioritize(id bigint, priority int) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_reprioritize' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_reprioritize_where(queue text, state text, tag text,
	priority int, everything boolean DEFAULT false) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_reprioritize_where' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_purge(queue text, state text,
	everything boolean DEFAULT false) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_purge' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_run(id bigint) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'jq_run' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_explain(id bigint) RETURNS text
	AS 'MODULE_PATHNAME', 'jq_explain' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_wait(id bigint, timeout interval DEFAULT '1 minute',
	OUT id bigint, OUT state text, OUT result jsonb, OUT error text)
	AS 'MODULE_PATHNAME', 'jq_wait' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_wait(ids bigint[], timeout interval DEFAULT '1 minute',
	any_of boolean DEFAULT false,
	OUT id bigint, OUT state text, OUT result jsonb, OUT error text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_wait_many' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_adopt() RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_adopt' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_sweep() RETURNS void
	AS 'MODULE_PATHNAME', 'jq_sweep' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_quiesce(timeout interval DEFAULT '1 minute')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_quiesce' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_resume() RETURNS void
	AS 'MODULE_PATHNAME', 'jq_resume' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_configure(
	queue text,
	max_running int DEFAULT NULL,
	key_limit int DEFAULT NULL,
	rate int DEFAULT NULL,
	rate_per interval DEFAULT NULL,
	key_rate int DEFAULT NULL,
	key_rate_per interval DEFAULT NULL,
	weight int DEFAULT NULL,
	ordered boolean DEFAULT NULL,
	max_attempts int DEFAULT NULL,
	backoff text DEFAULT NULL,
	backoff_base interval DEFAULT NULL,
	backoff_max interval DEFAULT NULL,
	timeout interval DEFAULT NULL,
	keep interval DEFAULT NULL,
	keep_dead interval DEFAULT NULL,
	synchronous_commit text DEFAULT NULL,
	batch int DEFAULT NULL,
	on_dead text DEFAULT NULL)
RETURNS void
	AS 'MODULE_PATHNAME', 'jq_configure' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_pause(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_pause_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_resume(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_resume_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_drop_queue(queue text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_drop_queue' LANGUAGE C VOLATILE PARALLEL UNSAFE;
-- keys, shared by jobs and sessions
CREATE FUNCTION jobqueue_lock(key text, timeout interval DEFAULT NULL)
RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_lock_session' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_xact_lock(key text, timeout interval DEFAULT NULL)
RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_lock_xact' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_try_lock(key text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_try_lock' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_unlock(key text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_unlock' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_whereis(key text) RETURNS int
	AS 'MODULE_PATHNAME', 'jq_whereis' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_start_service(
	name text,
	handler text,
	state jsonb,
	restart text DEFAULT 'permanent',
	max_restarts int DEFAULT 3,
	within interval DEFAULT '5 seconds',
	queue text DEFAULT 'default',
	timeout interval DEFAULT NULL)
RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_start_service' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_stop_service(name text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_stop_service' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_send(name text, message jsonb,
	run_at timestamptz DEFAULT NULL) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_send' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE PROCEDURE jobqueue_call(name text, message jsonb,
	INOUT reply jsonb DEFAULT NULL, timeout interval DEFAULT '5 seconds')
	AS 'MODULE_PATHNAME', 'jq_call' LANGUAGE C;
CREATE FUNCTION jobqueue_service_state(name text) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'jq_service_state' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_whereis_service(name text) RETURNS int
	AS 'MODULE_PATHNAME', 'jq_whereis_service' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_schedule(
	name text,
	cron text,
	command text,
	args jsonb DEFAULT NULL,
	queue text DEFAULT 'default',
	key text DEFAULT NULL,
	priority int DEFAULT 0,
	max_attempts int DEFAULT NULL,
	timeout interval DEFAULT NULL,
	keep interval DEFAULT NULL,
	tags text[] DEFAULT NULL,
	timezone text DEFAULT NULL,
	overlap text DEFAULT 'skip',
	catch_up text DEFAULT 'one')
RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_schedule' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_unschedule(name text) RETURNS boolean
	AS 'MODULE_PATHNAME', 'jq_unschedule' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_schedule_run(name text) RETURNS bigint
	AS 'MODULE_PATHNAME', 'jq_schedule_run' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_schedule_pause(name text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_schedule_pause' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_schedule_resume(name text) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_schedule_resume' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_cron_next(cron text,
	after timestamptz DEFAULT now(), timezone text DEFAULT NULL,
	n int DEFAULT 1) RETURNS SETOF timestamptz
	AS 'MODULE_PATHNAME', 'jq_cron_next_sql' LANGUAGE C STABLE PARALLEL SAFE;
CREATE FUNCTION jobqueue_grant(role regrole, level text,
	queue text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_grant' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_revoke(role regrole, level text,
	queue text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_revoke' LANGUAGE C VOLATILE PARALLEL UNSAFE;

-- ---------------------------------------------------------------------------
-- Outside consumers
-- ---------------------------------------------------------------------------
CREATE FUNCTION jobqueue_fetch(queue text, max int DEFAULT 1,
	wait interval DEFAULT '0', lease interval DEFAULT NULL,
	OUT id bigint, OUT args jsonb, OUT key text, OUT attempt int,
	OUT priority int, OUT tags text[], OUT enqueued_at timestamptz,
	OUT token uuid)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_fetch' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 10;
CREATE PROCEDURE jobqueue_fetch_wait(queue text, max int DEFAULT 1,
	wait interval DEFAULT '1 minute', lease interval DEFAULT NULL,
	INOUT jobs jsonb DEFAULT NULL)
	AS 'MODULE_PATHNAME', 'jq_fetch_wait' LANGUAGE C;
CREATE FUNCTION jobqueue_complete(id bigint, result jsonb DEFAULT NULL,
	token uuid DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME', 'jq_complete' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_fail(id bigint, error text DEFAULT NULL,
	retry_in interval DEFAULT NULL, token uuid DEFAULT NULL) RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'jq_fail' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_extend(id bigint, lease interval, token uuid)
	RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'jq_extend' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_release(id bigint, token uuid DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME', 'jq_release' LANGUAGE C VOLATILE PARALLEL UNSAFE;

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
	OUT run_p50 float8, OUT run_p99 float8, OUT wasted bigint,
	OUT at_limit boolean)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_queue_stats' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_counts(
	OUT queue text, OUT scheduled bigint, OUT dead bigint, OUT oldest_ready timestamptz,
	OUT waiting bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_counts' LANGUAGE C VOLATILE PARALLEL UNSAFE;
CREATE FUNCTION jobqueue_running_jobs(
	OUT id bigint, OUT queue text, OUT owner oid, OUT key text, OUT pid int,
	OUT attempt int, OUT started_at timestamptz, OUT command text,
	OUT progress float8, OUT progress_message text,
	OUT leased_until timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'jq_running_jobs' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
CREATE FUNCTION jobqueue_blocked_jobs(OUT id bigint, OUT key_hash bigint,
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
		   coalesce(s.blocked, 0) + coalesce(c.waiting, 0) AS blocked,
		   coalesce(s.running, 0) AS running,
		   coalesce(c.dead, 0) AS dead,
		   coalesce(s.held, 0) AS held,
		   coalesce(s.spilled, 0) AS spilled,
		   coalesce(s.estimated, pg_is_in_recovery()) AS estimated,
		   c.oldest_ready,
		   coalesce(s.completed, 0) AS completed,
		   coalesce(s.failed, 0) AS failed,
		   coalesce(s.completed_per_minute, 0) AS completed_per_minute,
		   coalesce(s.failed_per_minute, 0) AS failed_per_minute,
		   coalesce(s.wasted, 0) AS wasted,
		   pg_catalog.make_interval(secs => s.wait_p50) AS wait_p50,
		   pg_catalog.make_interval(secs => s.wait_p99) AS wait_p99,
		   pg_catalog.make_interval(secs => s.run_p50) AS run_p50,
		   pg_catalog.make_interval(secs => s.run_p99) AS run_p99,
		   coalesce(q.paused, false) AS paused,
		   q.max_running, q.rate,
		   CASE WHEN q.rate IS NOT NULL THEN q.rate_per END AS rate_per,
		   coalesce(s.at_limit, false) AS at_limit
	FROM jobqueue_queue_stats() s FULL JOIN jobqueue_counts() c USING (queue)
		 LEFT JOIN jobqueue_queue q ON q.name = queue COLLATE "C";

CREATE VIEW jobqueue_queues WITH (security_barrier) AS
	SELECT name::text AS queue, paused, batch,
		   max_running, key_limit,
		   rate, CASE WHEN rate IS NOT NULL THEN rate_per END AS rate_per,
		   key_rate, CASE WHEN key_rate IS NOT NULL THEN key_rate_per END AS key_rate_per,
		   weight, ordered, max_attempts, backoff, backoff_base, backoff_max,
		   coalesce(timeout, '1 hour') AS timeout, coalesce(keep, '0') AS keep,
		   keep_dead, synchronous_commit, on_dead
	FROM jobqueue_queue;

CREATE VIEW jobqueue_jobs WITH (security_barrier) AS
	SELECT j.id, j.queue::text AS queue, j.owner::oid::regrole AS owner,
		   CASE WHEN r.id IS NOT NULL THEN 'running'
				WHEN j.home <> jobqueue_home() OR NOT jobqueue_at_home() THEN 'held'
				WHEN w.waits OR (j.kind = 'm' AND j.run_at = 'infinity') THEN 'blocked'
				WHEN j.run_at > clock_timestamp() THEN 'scheduled'
				WHEN b.id IS NOT NULL OR k.key_hash IS NOT NULL THEN 'blocked'
				ELSE 'ready' END AS state,
		   j.command,
		   CASE WHEN x.sight = 2 THEN j.args END AS args,
		   j.key::text AS key, j.priority::int AS priority,
		   CASE WHEN w.waits THEN nullif(j.after_run_at, '-infinity') ELSE j.run_at END AS run_at,
		   j.attempt::int AS attempt, coalesce(j.max_attempts, q.max_attempts, CASE j.kind WHEN 'x' THEN 1 ELSE 10 END)::int AS max_attempts,
		   coalesce(j.timeout, q.timeout, '1 hour') AS timeout, j.expires_at,
		   coalesce(j.keep, q.keep, '0') AS keep, j.tags,
		   j.enqueued_at, r.started_at, NULL::timestamptz AS ended_at,
		   r.pid, NULL::jsonb AS result, j.errors,
		   CASE WHEN pg_is_in_recovery()
				THEN 'this server is a standby: jobs run on the primary' END AS reason,
		   j.unique_key::text AS unique_key, j.after
	FROM jobqueue_job j
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(j.owner::oid) AS sight) x
		 CROSS JOIN LATERAL (SELECT j.run_at = 'infinity' AND j.after_run_at IS NOT NULL AS waits) w
		 LEFT JOIN jobqueue_running_jobs() r ON r.id = j.id
		 LEFT JOIN jobqueue_blocked_jobs() b ON b.id = j.id
		 LEFT JOIN jobqueue_blocked_jobs() k ON k.key_hash = pg_catalog.hashtextextended(j.key, 0)
			AND (j.priority::int, j.id) >= (k.from_priority, k.from_id)
		 LEFT JOIN jobqueue_queue q ON q.name = j.queue
	WHERE x.sight > 0
	UNION ALL
	SELECT h.id, h.queue, h.owner::oid::regrole, h.state, h.command,
		   CASE WHEN x.sight = 2 THEN h.args END, h.key, h.priority, NULL,
		   h.attempt, coalesce(h.max_attempts, q.max_attempts, CASE h.kind WHEN 'x' THEN 1 ELSE 10 END), coalesce(h.timeout, q.timeout, '1 hour'), NULL,
		   coalesce(h.keep, q.keep, '0'), h.tags, h.enqueued_at, h.started_at,
		   h.ended_at, NULL, CASE WHEN x.sight = 2 THEN h.result END,
		   h.errors, h.reason, h.unique_key, h.after
	FROM jobqueue_archive h
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(h.owner::oid) AS sight) x
		 LEFT JOIN jobqueue_queue q ON q.name = h.queue
	WHERE x.sight > 0;

CREATE VIEW jobqueue_running WITH (security_barrier) AS
	SELECT id, queue, owner::regrole AS owner, command, key, pid, attempt, started_at,
		   progress, progress_message, leased_until
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
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(h.owner::oid) AS sight) x
	WHERE x.sight > 0;

CREATE VIEW jobqueue_keys WITH (security_barrier) AS
	SELECT key, pid, job, since, waiting FROM jobqueue_held_keys();

CREATE VIEW jobqueue_workers WITH (security_barrier) AS
	SELECT pid, role::regrole AS role, state, job, queue, started_at, jobs
	FROM jobqueue_processes() WHERE kind = 'worker';

CREATE VIEW jobqueue_services WITH (security_barrier) AS
	SELECT s.name::text AS name, s.owner::oid::regrole AS owner, s.handler,
		   CASE WHEN s.home <> jobqueue_home() OR NOT jobqueue_at_home() THEN 'held'
				ELSE s.status END AS status,
		   CASE WHEN x.sight = 2 THEN c.state END AS state,
		   (SELECT count(*) FROM jobqueue_job j
			WHERE pg_catalog.hashtextextended(j.key, 0) = pg_catalog.hashtextextended(k.key, 0)
			  AND j.key = k.key) AS waiting,
		   c.handled, s.failed, s.last_error, s.restart, s.max_restarts,
		   s.within, s.queue::text AS queue,
		   coalesce(s.timeout, q.timeout, '1 hour') AS timeout, s.started_at,
		   r.pid
	FROM jobqueue_service s
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(s.owner::oid) AS sight) x
		 CROSS JOIN LATERAL (SELECT 'jobqueue_service:' || s.id::text AS key) k
		 LEFT JOIN jobqueue_running_jobs() r ON r.key = k.key
		 LEFT JOIN jobqueue_queue q ON q.name = s.queue
		 LEFT JOIN jobqueue_service_current c ON c.service = s.id
	WHERE x.sight > 0;

CREATE VIEW jobqueue_schedules WITH (security_barrier) AS
	SELECT s.name::text AS name, s.owner::oid::regrole AS owner, s.cron,
		   s.timezone, s.command,
		   CASE WHEN x.sight = 2 THEN s.args END AS args, s.queue::text AS queue,
		   s.key::text AS key, s.priority::int AS priority, s.overlap, s.catch_up,
		   s.paused,
		   CASE WHEN NOT s.paused AND isfinite(s.next_run) AND s.home = jobqueue_home()
				AND jobqueue_at_home() THEN s.next_run END AS next_run,
		   s.last_run, s.last_job,
		   CASE WHEN s.last_outcome <> 'enqueued' THEN s.last_outcome
				WHEN r.id IS NOT NULL THEN 'running'
				WHEN j.id IS NOT NULL THEN 'waiting'
				WHEN s.last_outcome IS NOT NULL THEN coalesce(h.state, 'completed')
				END AS last_outcome,
		   s.last_error, s.runs, s.max_attempts::int AS max_attempts,
		   coalesce(s.timeout, q.timeout, '1 hour') AS timeout,
		   coalesce(s.keep, q.keep, '0') AS keep, s.tags, s.created_at
	FROM jobqueue_schedule s
		 CROSS JOIN LATERAL (SELECT jobqueue_sight(s.owner::oid) AS sight) x
		 LEFT JOIN jobqueue_job j ON j.id = s.last_job
		 LEFT JOIN jobqueue_running_jobs() r ON r.id = s.last_job
		 LEFT JOIN jobqueue_archive h ON h.id = s.last_job
		 LEFT JOIN jobqueue_queue q ON q.name = s.queue
	WHERE x.sight > 0;

-- ---------------------------------------------------------------------------
-- Rights: nothing for PUBLIC, then what jobqueue_grant() hands out
-- ---------------------------------------------------------------------------
DO $$
DECLARE
	f regprocedure;
BEGIN
	FOR f IN SELECT d.objid FROM pg_catalog.pg_depend d
			 WHERE d.classid = 'pg_catalog.pg_proc'::regclass::oid AND d.deptype = 'e'
			   AND d.refclassid = 'pg_catalog.pg_extension'::regclass::oid
			   AND d.refobjid = (SELECT oid FROM pg_catalog.pg_extension
								 WHERE extname = 'jobqueue')
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f);
	END LOOP;
END
$$;

-- pg_monitor sees all, without arguments.
GRANT SELECT ON jobqueue_status, jobqueue_jobs, jobqueue_running,
	jobqueue_recent, jobqueue_history, jobqueue_keys, jobqueue_workers,
	jobqueue_queues, jobqueue_services, jobqueue_schedules
	TO pg_monitor;
GRANT EXECUTE ON FUNCTION jobqueue_home(), jobqueue_at_home(),
	jobqueue_sight(oid), jobqueue_queue_stats(), jobqueue_counts(),
	jobqueue_running_jobs(), jobqueue_blocked_jobs(), jobqueue_recent_jobs(),
	jobqueue_held_keys(), jobqueue_processes(), jobqueue_explain(bigint),
	jobqueue_whereis(text)
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
	'f: function; s: SQL text in a transaction; x: one statement outside a transaction block; m: message to a service; n: no command';
COMMENT ON COLUMN jobqueue_job.queue IS 'name of its queue';
COMMENT ON COLUMN jobqueue_job.command IS
	'signature of the function, SQL text, or name of the service; NULL: an outside consumer fetches it';
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
COMMENT ON COLUMN jobqueue_job.keeps_order IS
	'later jobs of its key wait for it in an ordered queue, as if it had failed';
COMMENT ON COLUMN jobqueue_job.unique_key IS
	'no second job of the queue with it, as long as jobqueue_unique says so; a row written by hand holds none';
COMMENT ON COLUMN jobqueue_job.unique_until IS
	's: executing, e: executed, t: expired, w: while_executing, b: until_and_while_executing';
COMMENT ON COLUMN jobqueue_job.unique_for IS
	'how long the unique_key is held at most, or until it is given free';
COMMENT ON COLUMN jobqueue_job.on_conflict IS
	's: skip, j: join, x: raise, p: replace, u: update, d: reject, r: reschedule, R: the same, and it has not got its unique_key yet, l: log';
COMMENT ON TRIGGER jobqueue_job_unique ON jobqueue_job IS
	'lets go of the unique_key';
COMMENT ON COLUMN jobqueue_job.after IS
	'jobs that it waits, or has waited, for';
COMMENT ON COLUMN jobqueue_job.after_run_at IS
	'while it waits for jobs (run_at is infinity): run_at once they are completed, -infinity: none; then: when that was';
COMMENT ON TRIGGER jobqueue_job_left ON jobqueue_job IS
	'rows that replication deletes make room in the quotas of their owners, and are held no more';
COMMENT ON TRIGGER jobqueue_meta_guard ON jobqueue_meta IS
	'what replication brings is left out, as it is the identity of another database; processes look again when it is changed';
COMMENT ON TRIGGER jobqueue_job_guard ON jobqueue_job IS
	'who writes a row must be a member of its owner; completes and announces the row';
COMMENT ON POLICY jobqueue_job_owner ON jobqueue_job IS
	'rows of roles that one is a member of';
COMMENT ON INDEX jobqueue_job_fetch IS
	'what outside consumers may fetch';
COMMENT ON INDEX jobqueue_job_key IS
	'what waits for a key, where memory does not hold all that does';
COMMENT ON INDEX jobqueue_job_tried IS
	'what later jobs of its key wait for in an ordered queue';
COMMENT ON TABLE jobqueue_archive IS
	'jobs that are dead or cancelled, and completed ones that are kept; read the view jobqueue_history';
COMMENT ON COLUMN jobqueue_archive.expires_at IS 'when the row is deleted';
COMMENT ON TABLE jobqueue_dependency IS
	'internal: which jobs wait for a job; follows from jobqueue_job.after, and is not dumped';
COMMENT ON COLUMN jobqueue_dependency.dep IS 'the job that is waited for';
COMMENT ON COLUMN jobqueue_dependency.job IS 'the job that waits';
COMMENT ON INDEX jobqueue_dependency_job IS
	'what a job still waits for';
COMMENT ON TRIGGER jobqueue_archive_guard ON jobqueue_archive IS
	'who writes a row must be a member of its owner';
COMMENT ON POLICY jobqueue_archive_owner ON jobqueue_archive IS
	'rows of roles that one is a member of';
COMMENT ON FUNCTION jobqueue_job_trigger() IS
	'internal: guards rows that do not come through jobqueue_enqueue()';
COMMENT ON FUNCTION jobqueue_unique_trigger() IS
	'internal: lets go of the unique_key of a job';
COMMENT ON TABLE jobqueue_unique IS
	'which job holds a unique_key of its queue; written by jobqueue alone';
COMMENT ON COLUMN jobqueue_unique.queue IS 'name of the queue';
COMMENT ON COLUMN jobqueue_unique.unique_key IS 'the key, unique in its queue';
COMMENT ON COLUMN jobqueue_unique.job IS
	'the job that holds it; one with unique_until "expired" may have ended';
COMMENT ON COLUMN jobqueue_unique.unique_until IS
	's: executing, e: executed, t: expired, b: until_and_while_executing';
COMMENT ON COLUMN jobqueue_unique.expires_at IS
	'free from then on; NULL: when the job gives it free';
COMMENT ON INDEX jobqueue_unique_expiry IS
	'what is to be pruned';
COMMENT ON TABLE jobqueue_consumer IS
	'which roles may fetch from which queues, as jobqueue_grant() left them';
COMMENT ON COLUMN jobqueue_consumer.role IS 'the role';
COMMENT ON COLUMN jobqueue_consumer.queue IS
	'name of the queue; empty: all of them';
COMMENT ON TABLE jobqueue_lease IS
	'jobs that outside consumers have fetched with a lease; written by jobqueue alone';
COMMENT ON COLUMN jobqueue_lease.job IS 'the job';
COMMENT ON COLUMN jobqueue_lease.token IS
	'whoever has it may complete the job';
COMMENT ON COLUMN jobqueue_lease.leased_until IS
	'the attempt has failed if the job has not ended by then';
COMMENT ON COLUMN jobqueue_lease.leased_at IS 'when it was fetched';
COMMENT ON TABLE jobqueue_queue IS
	'settings of queues, as jobqueue_configure() and jobqueue_pause() left them; read the view jobqueue_queues';
COMMENT ON COLUMN jobqueue_queue.name IS 'name of the queue';
COMMENT ON COLUMN jobqueue_queue.paused IS 'no job of it is started';
COMMENT ON COLUMN jobqueue_queue.batch IS
	'so many small jobs may share a transaction';
COMMENT ON COLUMN jobqueue_queue.version IS
	'grows with each change; of two, memory takes the higher one';
COMMENT ON COLUMN jobqueue_queue.max_running IS
	'so many jobs of it run at a time, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queue.key_limit IS
	'so many jobs of a key run at a time, at most';
COMMENT ON COLUMN jobqueue_queue.rate IS
	'so many jobs start within rate_per, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queue.rate_per IS
	'the period of rate';
COMMENT ON COLUMN jobqueue_queue.key_rate IS
	'so many jobs of a key start within key_rate_per, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queue.key_rate_per IS
	'the period of key_rate';
COMMENT ON COLUMN jobqueue_queue.weight IS
	'its share where queues compete for workers';
COMMENT ON COLUMN jobqueue_queue.ordered IS
	'a job that failed keeps later ones of its key from starting';
COMMENT ON COLUMN jobqueue_queue.max_attempts IS
	'of jobs that have none of their own; NULL: 10, or 1 where the command cannot run in a transaction block';
COMMENT ON COLUMN jobqueue_queue.backoff IS
	'how the wait after a failure grows: exponential, linear or constant';
COMMENT ON COLUMN jobqueue_queue.backoff_base IS
	'the wait after the first failure';
COMMENT ON COLUMN jobqueue_queue.backoff_max IS
	'no wait after a failure is longer';
COMMENT ON COLUMN jobqueue_queue.timeout IS
	'of jobs that have none of their own; 0: none';
COMMENT ON COLUMN jobqueue_queue.keep IS
	'how long completed jobs that do not say it themselves stay in the history';
COMMENT ON COLUMN jobqueue_queue.keep_dead IS
	'how long dead and cancelled jobs stay in the history';
COMMENT ON COLUMN jobqueue_queue.synchronous_commit IS
	'with which its jobs commit; NULL: with what their role has';
COMMENT ON COLUMN jobqueue_queue.on_dead IS
	'the function that is called with a job that is dead';
COMMENT ON COLUMN jobqueue_queue.on_dead_owner IS
	'the role that it runs as';
COMMENT ON COLUMN jobqueue_queue.on_dead_func_owner IS
	'who owned the function then';
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
	int, interval, timestamptz, interval, text, text, interval, text, bigint[], text[]) IS
	'enqueue a job in this transaction; returns its id, NULL if a job with its unique_key was in the way';
COMMENT ON FUNCTION jobqueue_enqueue_many(text, jsonb[], text[], text, int,
	timestamptz, int, interval, timestamptz, interval, text[], text, interval,
	text, bigint[], text[]) IS
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
COMMENT ON FUNCTION jobqueue_retry_where(text, text, text, boolean) IS
	'as jobqueue_retry(), for all jobs of a queue, in a state, with a tag (null: any) that one may act on; how many';
COMMENT ON FUNCTION jobqueue_reschedule(bigint, timestamptz) IS
	'let a waiting job run not before then (null: at once); false if there is no waiting job of that id';
COMMENT ON FUNCTION jobqueue_reschedule_where(text, text, text, timestamptz, boolean) IS
	'as jobqueue_reschedule(), for all waiting jobs of a queue, in a state, with a tag (null: any) that one may act on; how many';
COMMENT ON FUNCTION jobqueue_reprioritize(bigint, int) IS
	'give a waiting job another priority, smaller ones run first; false if there is no waiting job of that id';
COMMENT ON FUNCTION jobqueue_reprioritize_where(text, text, text, int, boolean) IS
	'as jobqueue_reprioritize(), for all waiting jobs of a queue, in a state, with a tag (null: any) that one may act on; how many';
COMMENT ON FUNCTION jobqueue_purge(text, text, boolean) IS
	'delete jobs that have ended from the history: those of a queue, in a state (null: any) that one may act on; how many';
COMMENT ON FUNCTION jobqueue_run(bigint) IS
	'for tests: run a waiting job of the current role here, in this transaction; returns its result';
COMMENT ON FUNCTION jobqueue_explain(bigint) IS
	'why a job does not run yet, or what has become of it, in one sentence';
COMMENT ON FUNCTION jobqueue_wait(bigint, interval) IS
	'wait until a job has ended: its state (null after the timeout), result and error; what is told is durable';
COMMENT ON FUNCTION jobqueue_wait(bigint[], interval, boolean) IS
	'wait until all of these jobs have ended, or one of them: a row for each, in order, or for that one';
COMMENT ON FUNCTION jobqueue_adopt() IS
	'let jobs run that came with a dump, a copy or replication of another database; returns how many';
COMMENT ON FUNCTION jobqueue_sweep() IS
	'read again from the table which jobs are ready, after rows were written without triggers';
COMMENT ON FUNCTION jobqueue_quiesce(interval) IS
	'start no more jobs in this database and wait for those that run; false if some still run after the timeout';
COMMENT ON FUNCTION jobqueue_resume() IS
	'start jobs again after jobqueue_quiesce()';
COMMENT ON FUNCTION jobqueue_configure(text, int, int, int, interval, int,
	interval, int, boolean, int, text, interval, interval, interval, interval,
	interval, text, int, text) IS
	'give a queue settings, from commit on; NULL leaves one as it is, 0 or the empty text takes it away';
COMMENT ON FUNCTION jobqueue_pause(text) IS
	'start no more jobs of the queue, from commit on; those that run go on';
COMMENT ON FUNCTION jobqueue_resume(text) IS
	'start jobs of the queue again after jobqueue_pause()';
COMMENT ON FUNCTION jobqueue_drop_queue(text) IS
	'forget the settings of a queue that has no jobs';
COMMENT ON FUNCTION jobqueue_lock(text, interval) IS
	'lock a key for this session, as a job that runs has its key; waits, null: without limit; false if the timeout is over';
COMMENT ON FUNCTION jobqueue_xact_lock(text, interval) IS
	'lock a key until the end of this transaction, as a job that runs has its key; waits, null: without limit; false if the timeout is over';
COMMENT ON FUNCTION jobqueue_try_lock(text) IS
	'lock a key for this session if nobody has it or is in line for it; else false';
COMMENT ON FUNCTION jobqueue_unlock(text) IS
	'undo one jobqueue_lock() or jobqueue_try_lock() of this session when the transaction ends; false if there is none';
COMMENT ON FUNCTION jobqueue_whereis(text) IS
	'the process that holds a key, for a job or as a session; 0: one of a role that one may not see, or none, by a lease; NULL: nobody holds it';
COMMENT ON TABLE jobqueue_service IS
	'services, one row each; a row is a right to run its handler as its owner, so grant nothing on it; read the view jobqueue_services';
COMMENT ON COLUMN jobqueue_service.id IS
	'its key is jobqueue_service: and this number, which no other service gets';
COMMENT ON COLUMN jobqueue_service.home IS
	'identity of the installation it was started in';
COMMENT ON COLUMN jobqueue_service.func_owner IS
	'the role that owned the handler when the service was started';
COMMENT ON COLUMN jobqueue_service.failures IS
	'when messages failed, within the last period';
COMMENT ON COLUMN jobqueue_service.down_job IS
	'the job that is its last message';
COMMENT ON TABLE jobqueue_service_current IS
	'the state of each service';
COMMENT ON COLUMN jobqueue_service_current.service IS 'its number';
COMMENT ON COLUMN jobqueue_service_current.handled IS 'messages handled';
COMMENT ON TRIGGER jobqueue_service_guard ON jobqueue_service IS
	'who writes a row must be a member of its owner';
COMMENT ON POLICY jobqueue_service_owner ON jobqueue_service IS
	'rows of roles that one is a member of';
COMMENT ON FUNCTION jobqueue_start_service(text, text, jsonb, text, int,
	interval, text, interval) IS
	'start a service, a name with a state and a handler f(state, message) of its messages, or one that has failed again; returns its number';
COMMENT ON FUNCTION jobqueue_stop_service(text) IS
	'stop a service when the messages sent so far have been handled; false if that is on its way';
COMMENT ON FUNCTION jobqueue_send(text, jsonb, timestamptz) IS
	'send a message to a service in this transaction; returns the id of the job that it is';
COMMENT ON PROCEDURE jobqueue_call(text, jsonb, jsonb, interval) IS
	'send a message to a service, commit, and wait for the reply of its handler; an error after the timeout';
COMMENT ON FUNCTION jobqueue_service_state(text) IS
	'the state that the last message handled has left';
COMMENT ON FUNCTION jobqueue_whereis_service(text) IS
	'the process that handles a message of the service now; NULL: none does';
COMMENT ON TABLE jobqueue_schedule IS
	'schedules, one row each; a row is a right to run its command as its owner, so grant nothing on it; read the view jobqueue_schedules';
COMMENT ON COLUMN jobqueue_schedule.owner IS 'the role its jobs run as';
COMMENT ON COLUMN jobqueue_schedule.name IS
	'its name, unique among those of its owner';
COMMENT ON COLUMN jobqueue_schedule.id IS
	'its number, which its jobs have in their key where they take turns';
COMMENT ON COLUMN jobqueue_schedule.home IS
	'identity of the installation it was made in; of another one: held until jobqueue_adopt()';
COMMENT ON COLUMN jobqueue_schedule.started_at IS
	'an interval is counted from then on';
COMMENT ON COLUMN jobqueue_schedule.seen_to IS
	'what was due up to then has been dealt with, and does not fire again';
COMMENT ON COLUMN jobqueue_schedule.next_run IS
	'when it is looked at next; -infinity: at once, as somebody has changed the row';
COMMENT ON COLUMN jobqueue_schedule.kind IS
	'f: function; s: SQL text in a transaction; x: one statement outside a transaction block; n: no command';
COMMENT ON COLUMN jobqueue_schedule.func_owner IS
	'the role that owned the function when the schedule was made';
COMMENT ON COLUMN jobqueue_schedule.last_outcome IS
	'enqueued; skipped: a run had not ended; missed: not made up for; error: see last_error';
COMMENT ON INDEX jobqueue_schedule_name IS
	'schedules of a role have different names; those of nobody need not';
COMMENT ON INDEX jobqueue_schedule_next IS
	'what is due, and when the next one is';
COMMENT ON TRIGGER jobqueue_schedule_guard ON jobqueue_schedule IS
	'who writes a row must be a member of its owner; has it looked at';
COMMENT ON POLICY jobqueue_schedule_owner ON jobqueue_schedule IS
	'rows of roles that one is a member of';
COMMENT ON FUNCTION jobqueue_schedule_trigger() IS
	'internal: guards rows that do not come through jobqueue_schedule()';
COMMENT ON FUNCTION jobqueue_schedule(text, text, text, jsonb, text, text, int,
	int, interval, interval, text[], text, text, text) IS
	'have a job enqueued whenever a cron expression is due, or every so often; replaces the schedule of that name; returns its number';
COMMENT ON FUNCTION jobqueue_unschedule(text) IS
	'remove a schedule, its jobs go on; false if there is none of that name';
COMMENT ON FUNCTION jobqueue_schedule_run(text) IS
	'enqueue a job of the schedule now, beside its instants; returns its id, NULL if one has not ended and overlap is "skip"';
COMMENT ON FUNCTION jobqueue_schedule_pause(text) IS
	'enqueue no more jobs of a schedule';
COMMENT ON FUNCTION jobqueue_schedule_resume(text) IS
	'have a paused schedule go on with what is due from now on';
COMMENT ON FUNCTION jobqueue_cron_next(text, timestamptz, text, int) IS
	'the next n instants of a cron expression after a moment, in a time zone (null: that of the session)';
COMMENT ON FUNCTION jobqueue_grant(regrole, text, text) IS
	'give a role the level "use", "consume" (of a queue; null: of all), "lock", "monitor" or "admin"';
COMMENT ON FUNCTION jobqueue_revoke(regrole, text, text) IS
	'take the privileges of a level from a role; of "consume", those of a queue (null: of all)';

COMMENT ON FUNCTION jobqueue_fetch(text, int, interval, interval) IS
	'for outside consumers: take up to max jobs without a command from a queue, waiting for the first; they are this session''s, or with a lease the token''s, until completed, failed or released';
COMMENT ON PROCEDURE jobqueue_fetch_wait(text, int, interval, interval, jsonb) IS
	'as jobqueue_fetch(), but no snapshot is held while it waits; the jobs come as an array of objects';
COMMENT ON FUNCTION jobqueue_complete(bigint, jsonb, uuid) IS
	'a fetched job is done: it leaves the queue with this transaction';
COMMENT ON FUNCTION jobqueue_fail(bigint, text, interval, uuid) IS
	'an attempt of a fetched job has failed; returns when it is tried again, NULL: it is dead';
COMMENT ON FUNCTION jobqueue_extend(bigint, interval, uuid) IS
	'the lease of a fetched job ends that long from now; returns when';
COMMENT ON FUNCTION jobqueue_release(bigint, uuid) IS
	'give a fetched job back, as if it had not been fetched';

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
	'wait for other jobs, or for a key, as far as memory has found those';
COMMENT ON COLUMN jobqueue_status.running IS 'taken by a worker';
COMMENT ON COLUMN jobqueue_status.dead IS 'dead jobs in the history';
COMMENT ON COLUMN jobqueue_status.held IS
	'come from another installation and wait for jobqueue_adopt(); counted now and then';
COMMENT ON COLUMN jobqueue_status.spilled IS
	'ready jobs that are in the table and not in memory';
COMMENT ON COLUMN jobqueue_status.estimated IS
	'ready, spilled, blocked and held are not counted to the end yet: after a start, rows changed by hand or from another database, or jobqueue_sweep(); on a standby they are not counted at all';
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
COMMENT ON COLUMN jobqueue_status.max_running IS
	'so many of its jobs run at a time, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_status.rate IS
	'so many of its jobs start within rate_per; NULL: no limit';
COMMENT ON COLUMN jobqueue_status.rate_per IS 'see rate';
COMMENT ON COLUMN jobqueue_status.at_limit IS
	'jobs are ready that max_running or rate does not let start';
COMMENT ON VIEW jobqueue_queues IS
	'queues that have settings of their own';
COMMENT ON COLUMN jobqueue_queues.queue IS 'name of the queue';
COMMENT ON COLUMN jobqueue_queues.paused IS 'no job of it is started';
COMMENT ON COLUMN jobqueue_queues.batch IS
	'so many small jobs may share a transaction';
COMMENT ON COLUMN jobqueue_queues.max_running IS
	'so many jobs of it run at a time, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queues.key_limit IS
	'so many jobs of a key run at a time, at most';
COMMENT ON COLUMN jobqueue_queues.rate IS
	'so many jobs start within rate_per, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queues.rate_per IS
	'the period of rate';
COMMENT ON COLUMN jobqueue_queues.key_rate IS
	'so many jobs of a key start within key_rate_per, at most; NULL: no limit';
COMMENT ON COLUMN jobqueue_queues.key_rate_per IS
	'the period of key_rate';
COMMENT ON COLUMN jobqueue_queues.weight IS
	'its share where queues compete for workers';
COMMENT ON COLUMN jobqueue_queues.ordered IS
	'a job that failed keeps later ones of its key from starting';
COMMENT ON COLUMN jobqueue_queues.max_attempts IS
	'of jobs that have none of their own; NULL: 10, or 1 where the command cannot run in a transaction block';
COMMENT ON COLUMN jobqueue_queues.backoff IS
	'how the wait after a failure grows: exponential, linear or constant';
COMMENT ON COLUMN jobqueue_queues.backoff_base IS
	'the wait after the first failure';
COMMENT ON COLUMN jobqueue_queues.backoff_max IS
	'no wait after a failure is longer';
COMMENT ON COLUMN jobqueue_queues.timeout IS
	'of jobs that have none of their own; 0: none';
COMMENT ON COLUMN jobqueue_queues.keep IS
	'how long completed jobs that do not say it themselves stay in the history';
COMMENT ON COLUMN jobqueue_queues.keep_dead IS
	'how long dead and cancelled jobs stay in the history';
COMMENT ON COLUMN jobqueue_queues.synchronous_commit IS
	'with which its jobs commit; NULL: with what their role has';
COMMENT ON COLUMN jobqueue_queues.on_dead IS
	'the function that is called with a job that is dead';
COMMENT ON VIEW jobqueue_jobs IS
	'all live jobs and the history, with one word for the state of each';
COMMENT ON COLUMN jobqueue_jobs.owner IS 'the role it runs as';
COMMENT ON COLUMN jobqueue_jobs.state IS
	'held, scheduled, ready, blocked, running, completed, cancelled or dead';
COMMENT ON COLUMN jobqueue_jobs.command IS
	'signature of the function, or SQL text; NULL: outside consumers fetch it';
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
	'why it was cancelled or is dead; on a standby, why it does not run';
COMMENT ON COLUMN jobqueue_jobs.unique_key IS
	'no second job of its queue with the same, as unique_until says';
COMMENT ON COLUMN jobqueue_jobs.after IS
	'jobs that it waits, or has waited, for';
COMMENT ON VIEW jobqueue_running IS
	'jobs that workers run and that outside consumers have fetched; reads memory only';
COMMENT ON COLUMN jobqueue_running.pid IS
	'process of its worker, or of the session that has fetched it; NULL: it is leased';
COMMENT ON COLUMN jobqueue_running.leased_until IS
	'of a job that was fetched with a lease';
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
	'keys that are held or waited for, a row for each holder; reads memory only';
COMMENT ON COLUMN jobqueue_keys.pid IS
	'process that holds it; NULL with a job: that is leased; NULL: nobody does, though jobs wait for it, or for its rate, or for a job of it that failed';
COMMENT ON COLUMN jobqueue_keys.job IS
	'the job it is held for; NULL: the session itself holds it';
COMMENT ON COLUMN jobqueue_keys.waiting IS
	'sessions that wait for it, and jobs as far as memory has found them, those that are left in the table included';
COMMENT ON VIEW jobqueue_services IS
	'services that are running, failed or being stopped';
COMMENT ON COLUMN jobqueue_services.owner IS 'the role its handler runs as';
COMMENT ON COLUMN jobqueue_services.handler IS
	'the function that is called with state and message';
COMMENT ON COLUMN jobqueue_services.status IS
	'running; failed: its messages wait until it is started again; stopping: its last messages are being handled; held: it comes from another database, until jobqueue_adopt()';
COMMENT ON COLUMN jobqueue_services.state IS
	'what the last message handled has left; shown to members of the owner only';
COMMENT ON COLUMN jobqueue_services.waiting IS
	'messages that wait, those sent for later and the one being handled included';
COMMENT ON COLUMN jobqueue_services.handled IS 'messages handled';
COMMENT ON COLUMN jobqueue_services.failed IS 'attempts that failed';
COMMENT ON COLUMN jobqueue_services.last_error IS 'of the last one';
COMMENT ON COLUMN jobqueue_services.restart IS
	'what becomes of a message that failed: permanent: it is tried again; transient: it is dropped; temporary: the service ends';
COMMENT ON COLUMN jobqueue_services.max_restarts IS
	'with more failures than these within the period the service has failed';
COMMENT ON COLUMN jobqueue_services.within IS
	'the period of max_restarts';
COMMENT ON COLUMN jobqueue_services.pid IS
	'process that handles a message of it';
COMMENT ON VIEW jobqueue_schedules IS
	'schedules: when they are due next, and what became of the last time';
COMMENT ON COLUMN jobqueue_schedules.owner IS 'the role its jobs run as';
COMMENT ON COLUMN jobqueue_schedules.cron IS
	'cron expression, or interval';
COMMENT ON COLUMN jobqueue_schedules.timezone IS
	'the time zone of the expression';
COMMENT ON COLUMN jobqueue_schedules.args IS
	'shown to members of the owner only';
COMMENT ON COLUMN jobqueue_schedules.next_run IS
	'when it is due next; NULL: not while it is paused or held, or never again';
COMMENT ON COLUMN jobqueue_schedules.last_run IS
	'the instant for which a job was enqueued last';
COMMENT ON COLUMN jobqueue_schedules.last_job IS 'the id of that job';
COMMENT ON COLUMN jobqueue_schedules.last_outcome IS
	'of that job: waiting, running, completed, cancelled, dead; or of a later instant: skipped, missed, error';
COMMENT ON COLUMN jobqueue_schedules.last_error IS
	'why no job was enqueued at the last instant';
COMMENT ON COLUMN jobqueue_schedules.runs IS 'jobs enqueued so far';
COMMENT ON VIEW jobqueue_workers IS
	'the worker processes of this database; reads memory only';
COMMENT ON COLUMN jobqueue_workers.role IS 'the role whose jobs it runs';
COMMENT ON COLUMN jobqueue_workers.state IS
	'starting, idle, busy, running; stuck: its job does not react to its timeout; throttled, stopped: transaction ids: it waits as the server is short of them';
COMMENT ON COLUMN jobqueue_workers.job IS 'the job it has taken';
COMMENT ON COLUMN jobqueue_workers.jobs IS 'how many jobs it has run';
