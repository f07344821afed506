-- The demo's application: a list of files, and totals for each top folder.

CREATE EXTENSION jobqueue;

CREATE TABLE file (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	path text NOT NULL,
	folder text NOT NULL GENERATED ALWAYS AS
		(CASE WHEN path LIKE '%/%' THEN split_part(path, '/', 1) ELSE '.' END)
		STORED,
	bytes bigint NOT NULL,
	modified timestamptz NOT NULL
);

CREATE TABLE folder_total (
	folder text PRIMARY KEY,
	files bigint NOT NULL,
	bytes bigint NOT NULL,
	newest timestamptz NOT NULL
) WITH (fillfactor = 20);

-- one row for each job that committed
CREATE TABLE run (
	file bigint NOT NULL,
	folder text NOT NULL,
	pid int NOT NULL DEFAULT pg_backend_pid(),
	started timestamptz NOT NULL,
	ended timestamptz NOT NULL
);

-- The job. It reads the totals, adds to what it read and writes that back,
-- without any lock: two of these at once for one folder, and a file is lost
-- from the count. Nothing but the job's key prevents that.
CREATE FUNCTION count_file(job jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	started timestamptz := clock_timestamp();
	this text := job->>'folder';
	was folder_total;
BEGIN
	SELECT * INTO was FROM folder_total t WHERE t.folder = this;
	IF NOT FOUND THEN
		INSERT INTO folder_total VALUES (this, 1, (job->>'bytes')::bigint,
			(job->>'modified')::timestamptz);
	ELSE
		UPDATE folder_total t SET
			files = was.files + 1,
			bytes = was.bytes + (job->>'bytes')::bigint,
			newest = greatest(was.newest, (job->>'modified')::timestamptz)
		WHERE t.folder = this;
	END IF;
	INSERT INTO run (file, folder, started, ended)
		VALUES ((job->>'file')::bigint, this, started, clock_timestamp());
END $$;

CREATE FUNCTION enqueue_file() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM jobqueue_enqueue('count_file',
		jsonb_build_object('file', NEW.id, 'folder', NEW.folder,
			'bytes', NEW.bytes, 'modified', NEW.modified),
		key => NEW.folder);
	RETURN NULL;
END $$;

CREATE TRIGGER enqueue_file AFTER INSERT ON file
	FOR EACH ROW EXECUTE FUNCTION enqueue_file();
