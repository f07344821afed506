# Random SQL: every function of the extension, called by roles of each level with
# arguments of every kind and in every kind of statement, while workers run what
# comes of it.  Whatever is asked, the answer is a result or a clean error; nobody
# sees or changes what he has no right to; and when the sessions are gone, nothing
# of them is left in memory.
#
#	JQ_SEED			repeats the statements (not the timing)
#	JQ_SECONDS		how long, without the beginning and the end; without it this
#					file is skipped
#	JQ_CLIENTS		how many at once (4)
#	JQ_KEEP			a directory that scripts with findings are copied to

use strict;
use warnings;
use File::Copy;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use POSIX ':sys_wait_h';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);
use Together;

plan skip_all => '"make fuzz" runs it' unless $ENV{JQ_SECONDS};

my $seed = $ENV{JQ_SEED} || int(time * 1000) % 1_000_000;
my $seconds = $ENV{JQ_SECONDS};
my $clients = $ENV{JQ_CLIENTS} || 4;
my $keep = $ENV{JQ_KEEP} || '';

# no statement of a client may last longer, whatever else the machine does
my $too_long = 60;

# what the server says of a statement that is cancelled, 1 s after its start
my $statement_timeout = 1000;

seed_is($seed);
diag "seed $seed";

# ---- the server --------------------------------------------------------------

new_node('fuzz', conf => <<'END');
log_line_prefix = '%m [%p] %b %e '
log_error_verbosity = verbose
log_min_error_statement = panic
max_prepared_transactions = 20
max_connections = 60
jobqueue.max_workers = 4
jobqueue.max_ready_jobs = 500
jobqueue.max_lanes = 24
jobqueue.worker_idle_timeout = '2s'
autovacuum_naptime = '5s'
max_parallel_workers = 4
timezone = 'UTC'
END

my @dbs = ('postgres', 'bytes');
my @levels = qw(none use consume lock monitor admin all writer);
my @columns;    # of views and tables: database-independent
my @functions;

# what nobody else is to see: names and texts, and arguments and results
my $secret = 'S3CRET';

sub objects
{
	my ($db) = @_;

	sql(<<"END", db => $db);
CREATE TABLE left_over (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, t text);
GRANT ALL ON left_over TO PUBLIC;
CREATE FUNCTION enqueues() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM jobqueue_enqueue('note', '{"what": "trigger"}', queue => 'q1', key => NEW.t);
	RETURN NULL;
END \$\$;
CREATE CONSTRAINT TRIGGER enqueues AFTER INSERT OR UPDATE ON left_over
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION enqueues();
CREATE FUNCTION handle(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	\$\$ SELECT CASE WHEN message ? 'fail' THEN to_jsonb(1 / 0) WHEN message ? 'ask' THEN '{"state": 1, "reply": 2}' ELSE message END \$\$;
CREATE FUNCTION returns_set() RETURNS SETOF jsonb LANGUAGE sql AS \$\$ SELECT to_jsonb(g) FROM generate_series(1, 3) g \$\$;
CREATE FUNCTION returns_row(OUT a int, OUT b text) LANGUAGE sql AS \$\$ SELECT 1, 'x' \$\$;
CREATE FUNCTION ends_itself() RETURNS void LANGUAGE sql AS \$\$ SELECT pg_terminate_backend(pg_backend_pid()) \$\$;
CREATE FUNCTION strict_one(jsonb) RETURNS jsonb LANGUAGE sql STRICT AS \$\$ SELECT \$1 \$\$;
CREATE FUNCTION "Quoted ""é' name"() RETURNS void LANGUAGE sql AS \$\$ \$\$;
CREATE PROCEDURE commits(args jsonb) LANGUAGE plpgsql AS \$\$ BEGIN INSERT INTO ran (what) VALUES ('a'); COMMIT; INSERT INTO ran (what) VALUES ('b'); ROLLBACK; END \$\$;
CREATE PROCEDURE plain_procedure() LANGUAGE sql AS \$\$ \$\$;
CREATE FUNCTION caught(state text, message text) RETURNS void LANGUAGE plpgsql AS
	\$\$ BEGIN RAISE INFO 'caught %: %', state, left(message, 200); END \$\$;
-- recent ids, and those of whoever asks
CREATE FUNCTION fz_id(back int) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	\$\$ SELECT last_value - back FROM jobqueue_job_id_seq \$\$;
CREATE FUNCTION fz_mine(n int) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	\$\$ SELECT id FROM jobqueue_job WHERE owner::oid = session_user::regrole::oid ORDER BY id DESC OFFSET n LIMIT 1 \$\$;
CREATE FUNCTION fz_ended(n int) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	\$\$ SELECT id FROM jobqueue_archive WHERE owner::oid = session_user::regrole::oid ORDER BY id DESC OFFSET n LIMIT 1 \$\$;
CREATE FUNCTION fz_victim(n int) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
	\$\$ SELECT id FROM (SELECT id, owner FROM jobqueue_job UNION ALL SELECT id, owner FROM jobqueue_archive) x WHERE owner::oid = 'fz_victim'::regrole::oid ORDER BY id OFFSET n LIMIT 1 \$\$;
END
}

sub give_levels
{
	my ($db) = @_;
	my $grants = '';

	# an admin may have given and taken
	foreach my $level (@levels)
	{
		$grants .= "SELECT jobqueue_revoke('fz_$level', l) FROM unnest('{use,consume,lock,monitor,admin}'::text[]) l;\n";
	}
	$grants .= "SELECT jobqueue_grant('fz_$_', 'use');\n" foreach qw(use all writer victim), '';
	$grants =~ s/'fz_'/'"fz ""é'' x"'/;
	$grants .= "SELECT jobqueue_grant('fz_$_', '$_');\n" foreach qw(lock monitor admin);
	$grants .= "SELECT jobqueue_grant('fz_all', 'lock');\n";
	$grants .= "SELECT jobqueue_grant('fz_all', 'consume', '$_');\n" foreach qw(default q1 q2 q3 q4);
	$grants .= "SELECT jobqueue_grant('fz_consume', 'consume', '$_');\n" foreach qw(q1 q2);
	$grants .= "SELECT jobqueue_grant('fz_all', 'use', NULL);\n";
	sql($grants, db => $db);
}

my @roles = ((map { "fz_$_" } @levels), 'fz "é\' x');

sql('CREATE DATABASE bytes ENCODING \'SQL_ASCII\' TEMPLATE template0 LOCALE \'C\'');
JobqueueTest::add_database('bytes');
foreach my $role (@roles, 'fz_victim', 'fz_toy', 'fz "toy')
{
	my $quoted = $role;

	$quoted =~ s/"/""/g;
	sql(qq{CREATE ROLE "$quoted" LOGIN; ALTER ROLE "$quoted" SET statement_timeout = $statement_timeout});
}
sql('GRANT pg_write_all_data, pg_read_all_data TO fz_writer; GRANT fz_use TO fz_all');
foreach my $db (@dbs)
{
	objects($db);
	give_levels($db);
	sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO fz_toy; REVOKE ALL ON ALL TABLES IN SCHEMA public FROM fz_toy", db => $db);
}

# ---- somebody whose things are to stay as they are -----------------------------

# jobs that wait, one that is dead, one that is kept, a schedule, a service
sub make_victim
{
	my ($db) = @_;

	sql(<<"END", db => $db);
SELECT jobqueue_pause('quiet');
SET SESSION AUTHORIZATION fz_victim;
SELECT jobqueue_enqueue('note', '{"s": "$secret-ARGS"}', queue => 'quiet', key => '$secret-KEY', tags => '{$secret-TAG}');
SELECT jobqueue_enqueue('SELECT ''$secret-CMD''', '{"s": "$secret-ARGS"}', run_at => '2100-01-01', queue => 'quiet', unique_key => '$secret-UNIQUE');
SELECT jobqueue_enqueue(NULL, '{"s": "$secret-ARGS"}', queue => 'quiet2');
SELECT jobqueue_enqueue('note', '{"s": "$secret-ARGS"}', after => ARRAY[fz_victim(0)]);
SELECT jobqueue_enqueue('note', run_at => '2100-01-01');
SELECT jobqueue_enqueue('SELECT ''$secret-'' || ''ARGS''', keep => '1 year', max_attempts => 1, queue => '$secret');
SELECT jobqueue_enqueue('fail', '{"s": "$secret-ARGS"}', max_attempts => 1, queue => '$secret');
SELECT jobqueue_cancel(jobqueue_enqueue('note', '{"s": "$secret-ARGS"}', run_at => '2100-01-01', queue => 'quiet'));
SELECT jobqueue_schedule('yearly', '0 0 1 1 *', 'note', '{"s": "$secret-ARGS"}');
SELECT jobqueue_schedule('off', '1 second', 'note', '{"s": "$secret-ARGS"}');
SELECT jobqueue_schedule_pause('off');
SELECT jobqueue_start_service('victim', 'handle', '{"s": "$secret-ARGS"}', queue => 'quiet');
SELECT jobqueue_send('victim', '{"s": "$secret-ARGS"}');
END
	wait_for("SELECT count(*) = 3 FROM jobqueue_archive WHERE owner::oid = 'fz_victim'::regrole::oid", 't', $db);
	sql("UPDATE jobqueue_archive SET expires_at = '2100-01-01' WHERE owner::oid = 'fz_victim'::regrole::oid", db => $db);
}

sub victim
{
	my ($db) = @_;

	return sql(<<"END", db => $db);
SELECT j FROM jobqueue_job j WHERE owner::oid = 'fz_victim'::regrole::oid ORDER BY id;
SELECT j FROM jobqueue_archive j WHERE owner::oid = 'fz_victim'::regrole::oid ORDER BY id;
SELECT s.id, s.cron, s.paused, s.last_job, s.runs, s.next_run FROM jobqueue_schedule s WHERE owner::oid = 'fz_victim'::regrole::oid ORDER BY id;
SELECT s, c FROM jobqueue_service s LEFT JOIN jobqueue_service_current c ON c.service = s.id WHERE owner::oid = 'fz_victim'::regrole::oid ORDER BY s.id;
SELECT u FROM jobqueue_unique u WHERE unique_key LIKE '$secret%' ORDER BY unique_key;
SELECT q FROM jobqueue_queue q WHERE name = 'quiet';
END
}

# ---- what is called -------------------------------------------------------------

foreach my $line (split /\n/, sql(<<'END'))
SELECT concat_ws('|', p.oid::regproc, p.prokind, p.pronargs, p.pronargdefaults,
	p.prorettype::regtype, p.proretset,
	(SELECT string_agg(format('%s %s', coalesce(nullif((p.proargnames)[n], ''), '-'), t::regtype), ',' ORDER BY n)
	 FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY x (t, n)))
FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'jobqueue'
ORDER BY p.oid::regprocedure::text
END
{
	my ($name, $kind, $nargs, $defaults, $returns, $set, $args) = split /\|/, $line;
	my @args = map { [ split / /, $_, 2 ] } split /,/, $args // '';

	# the names of input arguments; OUT ones come after them, or are of their name
	push @functions,
	  {
		name => $name,
		kind => $kind,
		needed => $nargs - $defaults,
		returns => $returns,
		set => $set eq 't',
		args => \@args
	  };
}

foreach my $line (split /\n/, sql(<<'END'))
SELECT concat_ws('|', c.relname, c.relkind, a.attname, a.atttypid::regtype)
FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'v') AND c.relname LIKE 'jobqueue%' ORDER BY c.relname, a.attnum
END
{
	push @columns, [ split /\|/, $line ];
}
my %relations;
push @{ $relations{ $_->[0] } }, $_ foreach @columns;
my @views = grep { $relations{$_}[0][1] eq 'v' } sort keys %relations;
my @tables = grep { $relations{$_}[0][1] eq 'r' } sort keys %relations;

# ---- values: SQL expressions, mostly of a sort that goes through -------------------

my $bytes;    # does the client talk to the database of any encoding?

my @odd_text = (
	"''", "' '", "'NULL'", "'null'", "E'\\x01'", "E'a\\nb'", "E'\\t'", "'\\'", "'%s%n%d%99999s'",
	"'''; DROP TABLE ran; --'", "'\"'", "'\"\"'", "'a''b'", "'\$1'", "'ünïcödé'", "'日本語'",
	"'jobqueue_service:1'", "'jobqueue_service:'", "'jobqueue_service:99999999999999999999'", "'../../x'",
	"repeat('x', 63)", "repeat('x', 64)", "repeat('x', 255)", "repeat('x', 256)", "repeat('é', 127) || 'x'",
	"repeat('é', 128)", "repeat('日', 21)", "repeat('日', 22)", "repeat('x', 1000000)", "repeat(' ', 100000)",
	"repeat('é', 100) || repeat('x', 10000)", "'*'", "'-1'", "'0'", "'18446744073709551616'", "chr(127)", "chr(160)",
	"'default'", "'postgres'", "'fz_victim'", "'pg_monitor'", "'public'", "'none'", "'all'", "'use'", "NULL",
	"repeat('(', 20000)", "repeat('a.', 5000) || 'a'", "md5(random()::text)", "'k' || floor(random() * 1000)");

my @odd_bytes = ("E'\\xff'", "E'\\xc3'", "E'\\xe6\\x97'", "E'\\xf0\\x9f\\x98'", "repeat(E'\\xff', 255)", "E'* * * * \\xc3'", "E'\@\\xff\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3\\xc3'");

my @statements = (
	'SELECT 1', 'SELECT 1;', ';', '', ' ', '-- nothing', '/* nothing', '/* nothing */', 'SELECT $1', 'SELECT $2',
	'SELECT 1; SELECT 2', 'SELECT 1;; SELECT 2;', 'INSERT INTO ran (what) VALUES (\'sql\')', 'INSERT INTO ran (what) VALUES ($1->>\'what\') RETURNING n',
	'SELECT pg_sleep(0.05)', 'SELECT pg_sleep(1000)', 'SELECT 1/0', 'SELEC 1', 'SELECT (', 'SELECT \'', 'SELECT $$', 'SELECT "',
	'COMMIT', 'COMMIT;', 'BEGIN', 'END', 'ABORT', 'ROLLBACK; SELECT 1', 'SELECT 1; COMMIT; SELECT 2', 'SAVEPOINT s', 'ROLLBACK TO s', 'RELEASE s',
	'START TRANSACTION', 'PREPARE TRANSACTION \'x\'', 'COMMIT PREPARED \'x\'', 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE', 'SET TRANSACTION READ ONLY',
	'SET ROLE postgres', 'SET ROLE fz_victim', 'SET ROLE NONE', 'RESET ROLE', 'RESET SESSION AUTHORIZATION', 'SET SESSION AUTHORIZATION postgres', 'SET SESSION AUTHORIZATION DEFAULT',
	'SET jobqueue.inline = on', 'SET jobqueue.enabled = off', 'SET statement_timeout = 10', 'SET search_path = nowhere', 'SET client_encoding = latin1', 'SET default_transaction_read_only = on', 'RESET ALL', 'DISCARD ALL', 'DISCARD TEMP',
	'DO $d$ BEGIN COMMIT; END $d$', 'DO $d$ BEGIN ROLLBACK; END $d$', 'DO $d$ BEGIN RAISE EXCEPTION \'%\', repeat(\'é\', 5000); END $d$', 'DO $d$ BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END $d$',
	'DO $d$ BEGIN LOOP BEGIN PERFORM pg_sleep(10); EXCEPTION WHEN query_canceled THEN NULL; END; EXIT WHEN clock_timestamp() > now() + interval \'2 s\'; END LOOP; END $d$',
	'COPY ran TO PROGRAM \'true\'', 'COPY ran TO STDOUT', 'COPY ran FROM STDIN', 'COPY ran TO \'/tmp/x\'', 'VACUUM', 'VACUUM ran', 'ANALYZE ran', 'CREATE INDEX CONCURRENTLY ON ran (n)', 'REINDEX TABLE CONCURRENTLY ran', 'SELECT 1; VACUUM',
	'CALL commits(\'{}\')', 'CALL plain_procedure()', 'CALL nowhere()', 'CALL commits(\'{}\'); SELECT 1', 'LISTEN x', 'NOTIFY x', 'UNLISTEN *', 'LOAD \'jobqueue\'', 'CHECKPOINT', 'CLUSTER', 'ALTER SYSTEM SET jobqueue.enabled = off', 'CREATE DATABASE x', 'DROP DATABASE bytes',
	'DECLARE c CURSOR FOR SELECT 1', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'FETCH ALL FROM c', 'CLOSE ALL', 'PREPARE p AS SELECT 1', 'EXECUTE p', 'DEALLOCATE ALL', 'CREATE TEMP TABLE t (i int)', 'CREATE TEMP TABLE t (i int) ON COMMIT DROP', 'LOCK TABLE ran', 'EXPLAIN SELECT 1', 'SHOW ALL', 'VALUES (1), (2)', 'TABLE ran', 'WITH x AS (SELECT 1) SELECT * FROM x',
	'SELECT pg_terminate_backend(pg_backend_pid())', 'SELECT pg_cancel_backend(pg_backend_pid())', 'SELECT set_config(\'role\', \'postgres\', false)', 'SELECT pg_advisory_lock(1)', 'SELECT pg_advisory_lock(2); SELECT pg_advisory_unlock_all()',
	'SELECT NULL::record', 'SELECT ROW(1, 2)', 'SELECT repeat(\'x\', 1000000)', 'SELECT xmlparse(content \'<a/>\')', 'SELECT \'NaN\'::float8', 'SELECT FROM ran LIMIT 1', 'SELECT ARRAY[1, NULL]', 'SELECT \'infinity\'::timestamptz',
	'INSERT INTO left_over VALUES (1), (1)', 'INSERT INTO left_over SELECT n FROM ran LIMIT 2', 'GRANT fz_victim TO fz_use', 'DROP OWNED BY CURRENT_USER', 'DROP EXTENSION jobqueue', 'ALTER EXTENSION jobqueue UPDATE', 'TRUNCATE jobqueue_job', 'DELETE FROM jobqueue_job',
	"SELECT 1;\n\n  SELECT\n 2/", 'SELECT U&\'\\0000\'', 'SELECT ' . ('(' x 2000) . '1' . (')' x 2000), 'SELECT ' . join(' + ', (1) x 3000), 'U&"note"', 'SECURITY LABEL ON TABLE ran IS \'x\'', 'CREATE SUBSCRIPTION s CONNECTION \'\' PUBLICATION p', 'REINDEX (CONCURRENTLY false) TABLE ran', 'REINDEX DATABASE', 'IMPORT FOREIGN SCHEMA x FROM SERVER y INTO public', 'RELEASE SAVEPOINT x; SELECT 1', 'SELECT 1 \\; SELECT 2', '\\q');

my @names = ('note', 'note', 'note', 'gate', 'fail', 'hang', 'public.note', '"note"', 'public . "note"', ' note ', 'handle', 'returns_set', 'returns_row', 'ends_itself', 'strict_one', 'commits', 'plain_procedure', 'enqueues', '"Quoted ""é\' name"', 'jobqueue_job_trigger', 'jobqueue_sweep', 'jobqueue_adopt', 'now', 'count', 'pg_catalog.now', 'sum', 'row_number', 'nowhere', 'nowhere.note', 'a.b.c', 'a.b.c.d', '"', '""', '"note', 'note.', '.note', 'note()', 'begin', 'vacuum', 'int4', 'pg_sleep', 'version', 'Note', 'NOTE', 'é', 'n' x 64, 'n' x 5000, 'jsonb_pretty', 'pg_temp.note', 'jobqueue_current', 'jobqueue_resume', 'jobqueue_discard', 'pg_reload_conf', 'txid_current', 'clock_timestamp');

my @crons = ('* * * * *', '*/5 * * * * *', '0 0 29 2 *', '0 0 30 2 *', '@hourly', '@never', '1 second', '0.5 s', '1 year', '100 years', '36500 days', '2147483648 s', '99999999999 s', '0 0 L * *', '0 0 L-30 2 *', '* * * * 5L', '59 23 31 12 7', '60 * * * *', '1-0 * * * *', '*/0 * * * *', '* * * *', '* * * * * * *', '0 0 1 jan sun', ',', '* * * * *,', '1,,2 * * * *', '@', '00:00:01', '1 day 12', '5 h 5 min', '1/1/1 * * * *');

sub text_of
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

sub mangled
{
	my ($text) = @_;
	my $n = length $text ? int rand length $text : 0;
	my $how = int rand 4;

	return substr($text, 0, $n) if $how == 0;
	return substr($text, 0, $n) . pick(';', '"', "'", '$', ' ', "\t", '(', '.', '*', '-', ',', '/', '9', 'L', '--', '/*', '$$', '$1', ':', '@') . substr($text, $n) if $how < 3;
	return substr($text, 0, $n) . substr($text, $n ? $n - 1 : 0);
}

our $depth = 0;

sub command
{
	my $text;

	return pick(@odd_text, $bytes ? @odd_bytes : ()) if chance(0.03);
	return 'NULL' if chance(0.12);
	if ($depth < 2 && chance(0.25))
	{
		local $depth = $depth + 1;
		$text = inner_statement();
		$text = join '; ', $text, inner_statement() if chance(0.2);
	}
	else
	{
		$text = chance(0.5) ? pick(@names) : pick(@statements);
	}
	$text = mangled($text) if chance(0.15);
	return text_of($text);
}

sub queue_name { return pick("'default'", "'q1'", "'q1'", "'q2'", "'q3'", "'q4'", "'quiet'", "'quiet2'", "'r' || floor(random() * 40)", chance(0.3) ? odd_text() : "'q1'"); }
sub odd_text { return pick(@odd_text, $bytes ? @odd_bytes : ()); }

my %words = (
	unique_until => [qw(executing executed expired while_executing until_and_while_executing nonsense)],
	on_conflict => [qw(skip join raise replace update reject reschedule log nonsense)],
	state => [qw(ready scheduled blocked running held dead cancelled completed nonsense)],
	level => [qw(use consume lock monitor admin nonsense)],
	restart => [qw(permanent transient temporary nonsense)],
	backoff => [qw(exponential linear constant nonsense)],
	synchronous_commit => [qw(off local remote_write on remote_apply nonsense)],
	overlap => [qw(skip queue allow nonsense)],
	catch_up => [qw(none one all nonsense)],
	timezone => [ 'UTC', 'Europe/Berlin', 'Mars/X', 'posixrules', '<+99>-99', 'UTC+200', 'right/UTC', '../UTC', 'Africa/Casablanca', 'Factory' ],
	handler => [ 'handle', 'handle', 'handle', 'note', 'nowhere', 'public.handle', 'SELECT 1', 'handle; --', '"' ],
	on_dead => [ 'note', 'fail', '', 'nowhere', 'handle', 'SELECT 1' ],
	name => [ 's0', 's1', 's2', 's3', 'victim', 'yearly', 'off' ],
	key => [qw(k0 k1 k2 k3 k4 k5)],
	unique_key => [qw(u0 u1 u2 u3)],
	tag => [qw(t0 t1)],
	reason => [ 'why', 'because' ],
	message => [ 'half' ],
	error => [ 'broken' ]);

sub a_text
{
	my ($name) = @_;

	return odd_text() if chance(0.12);
	return command() if $name eq 'command';
	return queue_name() if $name eq 'queue';
	if ($name eq 'cron')
	{
		my $text = pick(@crons);
		return text_of(chance(0.3) ? mangled($text) : $text);
	}
	return text_of(pick(@{ $words{$name} })) if $words{$name};
	return odd_text();
}

sub an_id
{
	return 'fz_mine(' . int(rand 20) . ')' if chance(0.45);
	return 'fz_ended(' . int(rand 10) . ')' if chance(0.2);
	return 'fz_victim(' . int(rand 9) . ')' if chance(0.2);
	return 'fz_id(' . int(rand 60) . ')' if chance(0.7);
	return pick(0, -1, 1, '9223372036854775807', "'-9223372036854775808'", 'NULL', '4294967296');
}

my %values = (
	'bigint' => \&an_id,
	'integer' => sub { return chance(0.5) ? pick(0, 1, 1, 2, 3, 5) : pick(-1, 10, 100, 101, 1000, 1001, 32767, 32768, -32768, -32769, 2147483647, "'-2147483648'", 'NULL'); },
	'boolean' => sub { return pick('true', 'false', 'NULL'); },
	'double precision' => sub { return pick(0, 0.5, 1, -1, 1.0000001, "'NaN'", "'infinity'", "'-infinity'", '1e308', '5e-324', 'NULL'); },
	'interval' => sub {
		return pick("'0'", "'1 ms'", "'10 ms'", "'50 ms'", "'0.3 s'", "'1 s'") if chance(0.6);
		return pick("'-1 s'", "'00:00:00.000001'", "'178000000 years'", "'-178000000 years'", "'1 mon'", "'1 mon -30 days'", "'1 day -24:00'", "'infinity'", "'-infinity'", "'2147483647 days'", "'-2147483648 months'", "'2147483647 months 2147483647 days 2562047788:00:54.775807'", "'1 year'", "'30 days'", "'2562047788:00:54.775807'", "'-2562047788:00:54.775808'", "'NaN'", 'NULL', "'100 years'", "'1000000 h'");
	},
	'timestamp with time zone' => sub {
		return pick('now()', "clock_timestamp() + '20 ms'", "now() + '0.3 s'", "now() - interval '1 day'") if chance(0.5);
		return pick("'infinity'", "'-infinity'", "'4714-11-24 00:00:00+00 BC'", "'4714-11-23 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", "'epoch'", "'2100-01-01'", "'2000-01-01'", "'today'", 'NULL', "'nonsense'");
	},
	'jsonb' => sub {
		return pick("'{\"what\": \"x\"}'", "'{}'", "'{\"ask\": 1}'", "'{\"fail\": 1}'") if chance(0.5);
		return pick("'null'", "'[]'", '\'"x"\'', "'1'", "'true'", "'{\"init\": 1}'", "'{\"down\": {}}'", "'{\"state\": 1, \"reply\": 2}'", "'{\"state\": null}'", "(repeat('[', 3000) || repeat(']', 3000))::jsonb", "(repeat('[', 100000) || repeat(']', 100000))::jsonb", "jsonb_build_object('x', repeat('y', 1000000))", "jsonb_build_object('x', repeat('é', 600000))", "'1e131000'", "'\"\\u0000\"'", "'\"\\ud83d\\ude00\"'", "'{'", 'NULL', "(SELECT jsonb_object_agg(g, g) FROM generate_series(1, 10000) g)", "'{\"what\": null, \"gate\": \"x\"}'");
	},
	'text' => \&a_text,
	'uuid' => sub { return pick('gen_random_uuid()', 'NULL', "'00000000-0000-0000-0000-000000000000'", "'x'"); },
	'oid' => sub { return pick(0, 10, "'fz_victim'::regrole", "'pg_monitor'::regrole", '4294967295', 'NULL', "current_user::regrole"); },
	'regrole' => sub { return pick("'fz_toy'", "'fz_toy'", "'\"fz \"\"toy\"'", "'fz_toy'", 'NULL', "'postgres'", "'fz_victim'", "'fz_none'", "'pg_database_owner'", "'nobody_at_all'", "'-'", '0::oid::regrole', '4294967295::oid::regrole', '99999::oid::regrole', "'jobqueue_nobody'", "current_user::regrole"); },
	'jobqueue_role' => sub { return pick("'fz_toy'", "'fz_use'", "'10'", "''", "'-'", "'postgres'", "'fz_victim'", "'nobody_at_all'", 'NULL', "'fz_writer'"); },
	'cstring' => sub { return pick("'fz_use'", "'10'", "''", "'-'", "'a.b'", "'\"'", 'NULL') . '::cstring'; },
	'text[]' => sub { return pick("'{}'", "'{t0}'", "'{t0,t1}'", "'{k0,k1,k2}'", "'{u0,NULL,u2}'", "'{NULL}'", "'{{a,b},{c,d}}'", "'[-2:0]={a,b,c}'", "array_fill('t'::text, ARRAY[10000])", "ARRAY[repeat('x', 1000000)]", "ARRAY[repeat('é', 128)]", "'{\"\"}'", 'NULL', "ARRAY[]::text[]", "(SELECT array_agg('k' || g) FROM generate_series(1, 300) g)", "'{a=b}'", "'{statement_timeout=x,work_mem=1kB}'", "'{=}'", "'{role=postgres}'", "'{session_authorization=postgres,search_path=}'"); },
	'bigint[]' => sub {
		return 'ARRAY[' . join(', ', map { an_id() } 0 .. rand 3) . ']::bigint[]' if chance(0.6);
		return pick("'{}'", "'{NULL}'", "'{1,NULL}'", "'{{1,2},{3,4}}'", "'[5:7]={1,2,3}'", "(SELECT array_agg(g) FROM generate_series(1, 10000) g)", "'{0}'", "'{-1}'", 'NULL', 'array_fill(1::bigint, ARRAY[2000])', '(SELECT array_agg(fz_id(g)) FROM generate_series(0, 200) g)');
	},
	'jsonb[]' => sub { return pick("'{}'", "ARRAY['{\"what\": \"many\"}']::jsonb[]", "ARRAY['{}', NULL, '1']::jsonb[]", "array_fill('{}'::jsonb, ARRAY[3])", "array_fill('{}'::jsonb, ARRAY[300])", "array_fill('{}'::jsonb, ARRAY[2, 3])", 'NULL', (chance(0.05) ? "array_fill('{}'::jsonb, ARRAY[10000])" : "'{NULL}'")); },
	'smallint' => sub { return pick(0, 1, -1, 32767, "'-32768'", 'NULL'); },
	'"char"' => sub { return pick(map("'$_'", split(//, 'setwbjxpudrRlfnmqZ'), ''), 'NULL', "E'\\\\377'"); },
	'pg_lsn' => sub { return pick("'0/0'", "'FFFFFFFF/FFFFFFFF'", 'NULL'); });

sub value
{
	my ($type, $name) = @_;

	return 'NULL' if chance(0.05);
	my $make = $values{$type} or return 'NULL';
	return $make->($name);
}

# ---- statements -------------------------------------------------------------------

sub call_of
{
	my ($f) = @_;
	my (@list, $named);

	for my $i (0 .. $#{ $f->{args} })
	{
		my ($name, $type) = @{ $f->{args}[$i] };
		my $optional = $i >= $f->{needed};

		if ($optional ? chance(0.65) : chance(0.01))
		{
			$named = 1;
			next;
		}
		$named ||= chance(0.2);
		# a wait that does not end is no use to anybody
		my $value = $f->{name} eq 'jobqueue_wait' && $name eq 'timeout' ? "'10 ms'" : value($type, $name);
		push @list, $named && $name ne '-' ? "$name => $value" : $value;
	}
	if ($f->{name} =~ /wait|_lock$|call$|quiesce/ && !grep { /timeout =>|wait =>/ } @list)
	{
		push @list, ($f->{name} =~ /fetch/ ? 'wait' : 'timeout') . " => '20 ms'" if chance(0.9) && @list < 3;
	}
	return "$f->{name}(" . join(', ', @list) . ')';
}

sub function
{
	my $f;

	do
	{
		$f = pick(@functions);
	} while ($f->{returns} eq 'trigger' && chance(0.95)
		|| $f->{name} =~ /quiesce|drop_queue|sweep|adopt|pause_role/ && chance(0.8));
	# what most of the others need
	($f) = grep { $_->{name} eq 'jobqueue_enqueue' } @functions if chance(0.15);
	return $f;
}

sub condition
{
	my ($column) = @_;
	my (undef, undef, $name, $type) = @$column;

	return "$name IS " . pick('NULL', 'NOT NULL') if chance(0.3);
	return "${name}::text LIKE " . pick("'%S%'", "'%1%'", "'fz%'", "'%\\'") if chance(0.3);
	my $value = value($type, $name);
	return "$name " . pick('=', '<>', '<', '>=', 'IS DISTINCT FROM') . " $value";
}

sub from_relation
{
	my ($name) = @_;
	my @of = @{ $relations{$name} };
	my $where = join pick(' AND ', ' OR '), map { condition(pick(@of)) } 0 .. int rand 3;

	return pick("SELECT count(*) FROM $name WHERE $where", "SELECT * FROM $name WHERE $where LIMIT 5", "SELECT * FROM $name LIMIT 20", "SELECT " . pick(@of)->[2] . ", count(*) FROM $name GROUP BY 1 ORDER BY 2 LIMIT 10", "SELECT (SELECT count(*) FROM $name x WHERE x." . pick(@of)->[2] . " = y." . pick(@of)->[2] . ") FROM $name y LIMIT 3", "SELECT count(*) FROM $name, $name z");
}

sub change_table
{
	my $name = chance(0.6) ? pick(qw(jobqueue_job jobqueue_archive jobqueue_schedule jobqueue_service)) : pick(@tables);
	my @of = @{ $relations{$name} };
	my $set = sub { my $c = pick(@of); return "$c->[2] = " . value($c->[3], $c->[2]); };

	if (chance(0.5))
	{
		my %chosen = map { $_->[2] => $_ } grep { chance($name eq 'jobqueue_job' ? 0.15 : 0.5) } @of;
		my @chosen = map { $chosen{$_} } sort keys %chosen;
		delete $chosen{$_} foreach qw(id home owner);
		@chosen = map { $chosen{$_} } sort keys %chosen;
		push @chosen, grep { $_->[2] eq 'command' } @of unless $chosen{command} || chance(0.2);
		return "INSERT INTO $name DEFAULT VALUES" unless @chosen;
		return "INSERT INTO $name (" . join(', ', map { $_->[2] } @chosen) . ') VALUES (' . join(', ', map { value($_->[3], $_->[2]) } @chosen) . ')';
	}
	return "UPDATE $name SET " . $set->() . ' WHERE ' . condition(pick(@of)) if chance(0.5);
	return "UPDATE $name SET " . join ', ', $set->() if chance(0.2);
	return "DELETE FROM $name WHERE " . condition(pick(@of)) if chance(0.5);
	return pick("TRUNCATE $name", "LOCK TABLE $name IN " . pick('ACCESS SHARE', 'ROW EXCLUSIVE', 'ACCESS EXCLUSIVE') . ' MODE', "SELECT * FROM $name LIMIT 3", "SELECT * FROM $name LIMIT 3 FOR UPDATE", "CREATE TRIGGER x BEFORE INSERT ON $name FOR EACH ROW EXECUTE FUNCTION jobqueue_job_trigger()", "ALTER TABLE $name DISABLE TRIGGER ALL", "COPY $name TO STDOUT", "DROP TABLE $name", "MERGE INTO $name USING ran ON false WHEN NOT MATCHED THEN DO NOTHING");
}

my $prepared = 0;

# jobs that are fetched, and what becomes of them
sub consumer
{
	my $lease = chance(0.5) ? ", lease => " . value('interval', 'lease') : '';
	my $fetch = "jobqueue_fetch(" . pick("'q1'", "'q2'") . ', ' . pick(1, 2, 5, 10) . ", '0'$lease)";

	return "SELECT id, key, attempt FROM $fetch" if chance(0.2);
	return "SELECT " . pick('jobqueue_complete(f.id, token => f.token)', "jobqueue_complete(f.id, '{}', f.token)", "jobqueue_fail(f.id, 'no', " . value('interval', '') . ", f.token)", 'jobqueue_release(f.id, f.token)', 'jobqueue_extend(f.id, ' . value('interval', '') . ', f.token)', 'jobqueue_cancel(f.id)', 'jobqueue_fail(f.id, token => gen_random_uuid())') . " FROM $fetch f";
}

# one that can stand in a block, in a function, in a job
sub inner_statement
{
	my $f = function();

	return from_relation(pick(@views)) if chance(0.08);
	return change_table() if chance(0.05);
	return consumer() if chance(0.08);
	return pick(@statements) if chance(0.03);
	my $call = call_of($f);
	return "CALL $call" if $f->{kind} eq 'p';
	return "SELECT $call" if chance(0.7);
	return pick(
		"SELECT * FROM $call AS x",
		"SELECT count($call) FROM generate_series(1, " . int(rand 20) . ')',
		"SELECT x.* FROM generate_series(1, 3) g, LATERAL (SELECT $call) x",
		"SELECT CASE WHEN random() < 0.5 THEN ($call)::text END",
		"SELECT 1 FROM ran WHERE ($call)::text = '' LIMIT 1",
		"INSERT INTO ran (what) SELECT left(($call)::text, 100)",
		"WITH x AS MATERIALIZED (SELECT $call) SELECT count(*) FROM x",
		"COPY (SELECT $call) TO STDOUT",
		"CREATE TEMP TABLE IF NOT EXISTS tt AS SELECT ($call)::text AS x",
		"INSERT INTO left_over SELECT floor(random() * 1e9), 'k1' FROM (SELECT $call) x",
		"EXPLAIN (ANALYZE, COSTS OFF) SELECT $call",
		"SELECT * FROM $call WITH ORDINALITY LIMIT 1");
}

# a line or more
sub statement
{
	my $s = inner_statement();
	my $begin = 'BEGIN' . pick('', '', '', ' READ ONLY', ' ISOLATION LEVEL REPEATABLE READ', ' ISOLATION LEVEL SERIALIZABLE', ' ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE');
	my $ending = pick('COMMIT', 'COMMIT', 'ROLLBACK');
	my $how = rand;

	return "$s;" if $how < 0.45;
	return "$begin; $s;\n" . inner_statement() . ";\n" . inner_statement() . ";\n$ending;" if $how < 0.53;
	return join "\n", "$begin;", (map { ("SAVEPOINT s$_;", inner_statement() . ';', (chance(0.6) ? pick("ROLLBACK TO s$_;", "RELEASE s$_;", "ROLLBACK TO s$_; RELEASE s$_;") : ())) } 1 .. 1 + rand 4), "$ending;" if $how < 0.63;
	if ($how < 0.73)
	{
		my $body = join ' ', map { my $i = inner_statement(); $i =~ s/^SELECT /PERFORM / unless $i =~ /^SELECT \*/; $i =~ s/^SELECT \*/PERFORM */; "BEGIN $i; " . (chance(0.2) ? 'RAISE EXCEPTION SQLSTATE \'P0001\'; ' : '') . "EXCEPTION WHEN OTHERS THEN PERFORM caught(SQLSTATE, SQLERRM); END;" . (chance(0.05) ? ' COMMIT;' : '') } 0 .. rand 3;
		return "DO \$do\$ BEGIN $body END \$do\$;";
	}
	if ($how < 0.77)
	{
		$prepared++;
		my $name = "p_${$}_$prepared";
		my $end = pick('COMMIT', 'ROLLBACK');
		return "BEGIN; $s;\n" . inner_statement() . ";\nPREPARE TRANSACTION '$name';\n" . (chance(0.3) ? inner_statement() . ";\n" : '') . "COMMIT;\n$end PREPARED '$name';";
	}
	return "BEGIN;\nDECLARE c" . pick('', ' SCROLL', ' NO SCROLL') . ' CURSOR ' . pick('', 'WITH HOLD ') . "FOR " . ($s =~ /^(SELECT|WITH)/ ? $s : 'SELECT jobqueue_enqueue(\'note\') FROM generate_series(1, 10)') . ";\n" . pick('FETCH 1 FROM c', 'FETCH ALL FROM c', 'MOVE 2 IN c', 'FETCH BACKWARD 1 FROM c', 'SELECT 1') . ";\n" . (chance(0.3) ? "SAVEPOINT s; " . inner_statement() . "; ROLLBACK TO s; FETCH 1 FROM c;\n" : '') . "$ending;\nCLOSE ALL;" if $how < 0.82;
	return "SET debug_parallel_query = on; SET force_parallel_mode = on;\n$s;\n" . from_relation(pick(@views)) . ";\nRESET debug_parallel_query; RESET force_parallel_mode;" if $how < 0.86;
	return 'SET jobqueue.inline = on;' . "\n$s;\n" . "SELECT jobqueue_enqueue(" . command() . ', ' . value('jsonb', '') . ");\nSET jobqueue.inline = off;" if $how < 0.90;
	return "PREPARE q AS $s;\nEXECUTE q;\nEXECUTE q;\nDEALLOCATE ALL;" if $how < 0.93;
	return "SET LOCAL statement_timeout = 50;\nSET ROLE " . pick('fz_use', 'NONE', 'fz_victim', 'pg_monitor') . ";\n$s;\nRESET ROLE;" if $how < 0.95;
	return "BEGIN; INSERT INTO left_over VALUES (" . int(rand 1e9) . ', ' . odd_text() . ");\n$s;\nCOMMIT;" if $how < 0.97;
	return pick('DISCARD ALL', 'DISCARD TEMP', 'RESET ALL', 'SET search_path = nowhere', 'SET jobqueue.capture_settings = \'work_mem, search_path, role, x.y\'', 'SET work_mem = \'100kB\'', 'SET jobqueue.max_jobs_per_role = 1', 'SET jobqueue.max_args_size = 1', 'SET session_replication_role = replica', 'SET default_transaction_isolation = serializable', 'SET x.y = \'a b, c"d\'', 'SET DateStyle = \'German\'', 'SET IntervalStyle = iso_8601', 'SET timezone = \'Asia/Kathmandu\'', 'SET client_min_messages = error', 'SET bytea_output = escape', 'SET row_security = off', 'SET transaction_read_only = on', 'SET work_mem = \'64kB\'; SET max_stack_depth = \'100kB\'', 'RESET max_stack_depth') . ';';
}

# ---- clients ----------------------------------------------------------------------

my $dir = node()->basedir . '/fuzz';
mkdir $dir;
chmod 0700, $dir;

# errors that are PostgreSQL's own where catalogs are changed at the same time
my $core = qr/tuple concurrently (updated|deleted)|could not serialize/;

# FINDINGS: what a script's output says that it should not
sub look_at
{
	my ($role, $script, $out, $err, $status, $ended) = @_;
	my @found;

	foreach my $line (split /\n/, $err)
	{
		push @found, $line if $line =~ /(?:ERROR|FATAL|PANIC):  XX/ && $line !~ $core;
		push @found, $line if $line =~ /caught XX/ && $line !~ $core;
		push @found, $line if $line =~ /(?:PANIC|FATAL): / && $line !~ /FATAL:  57P01/;
		push @found, $line if $line =~ /server closed|connection to server was lost|could not connect|WARNING:.*(?:leak|still active|not closed)/ && !$ended;
	}
	push @found, "exit status $status" if $status && !$ended;
	push @found, "$role sees $1" if "$out$err" =~ /(.{0,80}$secret-ARGS.{0,20})/ && $role !~ /admin/;
	push @found, "$role sees $1" if "$out$err" =~ /(.{0,80}$secret.{0,20})/ && $role !~ /monitor|admin/;
	return @found;
}

sub run_client
{
	my ($number, $round, $until, @who) = @_;
	my ($n, $statements) = (0, 0);
	my %states;
	my $base = "$dir/client_$number";

	open my $found, '>>', "$base.found" or die;
	while (time < $until)
	{
		choices($round, $number, ++$n);
		my $role = pick(@who);
		my $db = pick(@dbs);
		$bytes = $db eq 'bytes';
		my $script = '';
		my $lines = 0;
		while ($lines < 60)
		{
			my $s = statement();
			$s =~ s/\n(?=\s*2\/|\n)/ /g;
			$script .= "$s\n";
			$lines += $s =~ tr/\n// + 1;
		}
		my $ended = chance(0.1);
		$script .= "SELECT pg_terminate_backend(pg_backend_pid());\n" if $ended;
		$ended ||= $script =~ /pg_terminate_backend|ends_itself/;
		open my $fh, '>', "$base.sql" or die;
		print $fh $script;
		close $fh;
		local %ENV = node()->_get_env(PGOPTIONS => '', PGAPPNAME => 'fuzz', PGCLIENTENCODING => $bytes ? 'SQL_ASCII' : 'UTF8');
		my $conn = $role;
		$conn =~ s/(['\\])/\\$1/g;
		my $pid = fork;
		if (!$pid)
		{
			open STDIN, '<', '/dev/null';
			open STDOUT, '>', "$base.out";
			open STDERR, '>', "$base.err";
			exec { node()->installed_command('psql') } 'psql', '-X', '-q', '-A', '-t', '-v', 'VERBOSITY=verbose', '-d', "dbname=$db user='$conn'", '-f', "$base.sql";
		}
		waitpid $pid, 0;
		my $status = $? >> 8;
		my $out = slurp_file("$base.out");
		my $err = slurp_file("$base.err");
		my $count = $lines;
		$statements += $count;
		$states{$1}++ while $err =~ /(?:ERROR:  |caught )(\w{5}):/g;
		my @found = look_at($role, $script, $out, $err, $status, $ended);
		next unless @found;
		print $found "seed $seed, client $number, script $n of $role in $db:\n";
		print $found substr($_, 0, 600) . "\n" foreach @found > 5 ? @found[ 0 .. 4 ] : @found;
		foreach my $l (map { /^psql:[^:]*:(\d+):/ ? $1 : () } @found)
		{
			print $found "  " . substr((split /\n/, $script)[ $l - 1 ] // '', 0, 1500) . "\n";
		}
		if ($keep)
		{
			copy("$base.$_", "$keep/$seed.$number.$n.$_") foreach qw(sql out err);
		}
	}
	open my $fh, '>>', "$base.count" or die;
	print $fh "$statements\n";
	print $fh "$_ $states{$_}\n" foreach sort keys %states;
	close $fh;
}

my %all_states;
my $all_statements = 0;
my $log_at = 0;

# what the server has said since the last look
sub log_findings
{
	open my $fh, '<', node()->logfile or die;
	seek $fh, $log_at, 0;
	my (@found, %times);

	while (my $line = <$fh>)
	{
		next unless $line =~ /TRAP:|PANIC:|(?:ERROR|FATAL):  XX|terminated by signal|leak|still active|not closed|corrupt|stuck|WARNING:|FATAL:/;
		next if $line =~ $core || $line =~ /FATAL:  57P0[13]/;
		# what users are told of what they ask for
		next if $line =~ /client backend .*WARNING:/ && $line !~ /leak|still active|not closed|corrupt/;
		next if $line =~ /WARNING:  (?:01000: this session has not locked|01000: skipping|01000: service "[^"]*" has failed|01000: schedule|01006|01007|42704: role|25P01|25001)/;
		my $what = $line;
		$what =~ s/^.*?(WARNING|ERROR|FATAL|PANIC|TRAP)/$1/;
		$what =~ s/\d+/N/g;
		push @found, substr($line, 0, 500) unless $times{$what}++ > 2;
	}
	$log_at = tell $fh;
	return join '', @found;
}

sub fuzz
{
	my ($round, $length, @who) = @_;
	my $until = time + $length;
	my %pids;
	my $slow = '';

	unlink glob "$dir/*.found";
	foreach my $number (1 .. $clients)
	{
		my $pid = fork;
		if (!$pid)
		{
			eval { run_client($number, $round, $until, @who); 1 } or print STDERR "client: $@";
			POSIX::_exit(0);
		}
		$pids{$pid} = $number;
	}
	my $given_up = 0;
	while (%pids)
	{
		usleep(300_000);
		foreach my $pid (keys %pids)
		{
			delete $pids{$pid} if waitpid($pid, WNOHANG) == $pid;
		}
		my $out = '';
		node()->psql('postgres', <<"END", stdout => \$out, timeout => 60);
SELECT usename, pid, wait_event_type, wait_event, clock_timestamp() - query_start, left(query, 300), pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'fuzz' AND state = 'active' AND query_start < clock_timestamp() - interval '$too_long s'
END
		$slow .= $out;
		die "clients do not end\n" if time > $until + 300;
	}
	my $found = '';
	foreach my $file (glob "$dir/*.found")
	{
		$found .= slurp_file($file);
	}
	foreach my $file (glob "$dir/*.count")
	{
		foreach (split /\n/, slurp_file($file))
		{
			if (/^(\w{5}) (\d+)$/) { $all_states{$1} += $2; }
			else { $all_statements += $_; }
		}
		unlink $file;
	}
	is(substr($found, 0, 20000), '', 'clean answers');
	is($slow, '', 'a statement ends when it is cancelled');
}

# Nobody is there any more: what is left of them is ended.
sub settle
{
	my ($db) = @_;

	wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'fuzz'");
	node()->psql($db, "ROLLBACK PREPARED '$_'") foreach split /\n/, sql("SELECT gid FROM pg_prepared_xacts WHERE database = '$db'", db => $db);
	sql(<<'END', db => $db);
SELECT jobqueue_resume();
SELECT jobqueue_resume_role(role) FROM jobqueue_paused_roles;
DELETE FROM jobqueue_queue WHERE name <> 'quiet';
END
	# what jobs do that run now may make more
	wait_for(<<'END', 't', $db);
WITH services AS (DELETE FROM jobqueue_service WHERE owner::oid <> 'fz_victim'::regrole::oid RETURNING id),
	jobs AS (SELECT jobqueue_cancel(id) FROM jobqueue_job WHERE owner::oid <> 'fz_victim'::regrole::oid),
	schedules AS (DELETE FROM jobqueue_schedule WHERE owner::oid <> 'fz_victim'::regrole::oid RETURNING id)
SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM services) + (SELECT count(*) FROM schedules) = 0
END
	sql("DELETE FROM jobqueue_archive WHERE owner::oid <> 'fz_victim'::regrole::oid; DELETE FROM jobqueue_unique WHERE unique_key NOT LIKE '$secret%'", db => $db);
	# a job for consumers whose row was deleted by hand is missed by who fetches it
	sql(q{SELECT count(*) FROM jobqueue_status s, jobqueue_fetch(s.queue, 100) WHERE s.queue NOT LIKE 'quiet%'}, db => $db);
}

sub nothing_left
{
	my ($db) = @_;

	wait_for("SELECT count(*) = 0 FROM jobqueue_running", 't', $db);
	wait_for("SELECT coalesce(sum(blocked + running), 0) <= 2 AND coalesce(sum(ready) FILTER (WHERE queue NOT LIKE 'quiet%'), 0) = 0 FROM jobqueue_status", 't', $db);
	wait_for("SELECT count(*) = 0 FROM jobqueue_keys WHERE key NOT LIKE '$secret%' AND key NOT LIKE 'jobqueue_service%'", 't', $db);
	is(sql("SELECT count(*) FROM jobqueue_lease", db => $db), '0', "$db: no lease");
	# and each role can go on
	foreach my $role (qw(fz_use fz_all))
	{
		my $id = sql("SELECT jobqueue_enqueue('note', '{\"what\": \"after\"}', key => 'k1', queue => 'q1')", db => $db, role => $role);
		wait_for("SELECT count(*) = 1 FROM ran WHERE job = $id AND what = 'after'", 't', $db);
	}
	is(sql("SELECT jobqueue_try_lock(k) FROM unnest('{k0,k1,k2}'::text[]) k", db => $db), "t\nt\nt", "$db: keys are free");
}

make_victim($_) foreach @dbs;
my %before = map { $_ => victim($_) } @dbs;
my @modest = grep { !/admin/ } @roles;
my $rounds = 0;
my $begin = time;

while (!$rounds || time < $begin + $seconds)
{
	my $length = $seconds > 60 ? 20 : $seconds * 0.4;
	$rounds++;
	property "seed $seed, round $rounds: roles of little rights" => sub {
		fuzz("modest $rounds", $length * 1.5, @modest);
		is(victim($_), $before{$_}, "$_: what is another role's is as it was") foreach @dbs;
		settle($_), nothing_left($_) foreach @dbs;
		is(log_findings(), '', 'the log is clean');
	};
	last if !Test::More->builder->is_passing;
	property "seed $seed, round $rounds: with admins" => sub {
		fuzz("admins $rounds", $length, @roles);
		settle($_) foreach @dbs;
		give_levels($_) foreach @dbs;
		nothing_left($_) foreach @dbs;
		is(log_findings(), '', 'the log is clean');
		foreach my $db (@dbs)
		{
			sql("DELETE FROM jobqueue_$_ WHERE owner::oid = 'fz_victim'::regrole::oid", db => $db) foreach qw(job archive schedule service);
			sql("DELETE FROM jobqueue_unique; DELETE FROM jobqueue_queue", db => $db);
			make_victim($db);
			$before{$db} = victim($db);
		}
	};
	last if !Test::More->builder->is_passing;
}

diag sprintf 'seed %d: %d lines of SQL in %.0f s, %d rounds', $seed, $all_statements, time - $begin, $rounds;
note "$_ $all_states{$_}" foreach sort keys %all_states;
node()->stop('immediate') unless Test::More->builder->is_passing;
done_testing();
