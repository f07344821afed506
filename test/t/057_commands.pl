# Random commands: texts of one statement or many, made by a grammar and damaged,
# are enqueued, and compared with what a session says of them: what has a syntax
# error, what is one statement, what runs in a transaction block, and with which
# error it ends.  Whatever the text is, the worker lives or ends as it was told to,
# effects and completion of the job come together, and the next job finds the
# session as every job does.
#
#	JQ_SEED			repeats the texts
#	JQ_SECONDS		how long; without it a few hundred texts of one seed
#	JQ_CORPUS		a directory of SQL files, whose statements are taken, too
#	JQ_KEEP			a directory that texts with findings are written to

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use Together;
use Wire;

my $seconds = $ENV{JQ_SECONDS};
my $seed = $ENV{JQ_SEED} || ($seconds ? int(time * 1000) % 1_000_000 : 1);
my $cases = $seconds ? 1e9 : 300;
my $keep = $ENV{JQ_KEEP} || '';

# of one statement, here and there
my $statement_timeout = 2000;

seed_is($seed);
diag "seed $seed" if $seconds;

# a worker that every job of the role has in turn
new_node('commands', conf => <<"END");
log_line_prefix = '%m [%p] %b %e '
log_error_verbosity = verbose
log_min_error_statement = panic
log_statement = none
max_prepared_transactions = 0
jobqueue.max_workers_per_role = 1
jobqueue.worker_idle_timeout = 1h
jobqueue.max_args_size = 64MB
timezone = 'UTC'
END

my @dbs = ('postgres', 'bytes');

sql('CREATE ROLE fz LOGIN; CREATE ROLE fz_other; GRANT fz_other TO fz');
sql("ALTER ROLE fz SET statement_timeout = $statement_timeout; ALTER ROLE fz SET search_path = fz, public");
sql(q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'});
JobqueueTest::add_database('bytes');
foreach my $db (@dbs)
{
	sql(<<'END', db => $db);
SELECT jobqueue_grant('fz', 'use');
SELECT jobqueue_grant('fz', 'lock');
DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO fz', current_database()); END $$;
CREATE TABLE mark (n int, half int);
GRANT INSERT ON mark TO PUBLIC;
CREATE TABLE looked (job bigint, pid int, what text);
GRANT INSERT ON looked TO PUBLIC;
CREATE FUNCTION tries(what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	EXECUTE what INTO answer;
	RETURN answer;
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION my_keys() RETURNS text LANGUAGE sql SECURITY DEFINER AS
	$$ SELECT string_agg(key, ' ') FROM public.jobqueue_keys WHERE pid = pg_backend_pid() AND job IS NULL $$;
-- what a session is like at the start of a job
CREATE FUNCTION look() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	INSERT INTO public.looked SELECT
		(public.jobqueue_current()).id, pg_backend_pid(),
		concat_ws(E'\n',
			'user ' || current_user || ' ' || session_user || ' ' || current_setting('role'),
			'settings ' || (SELECT string_agg(name || '=' || setting, ' ' ORDER BY name)
				FROM pg_settings WHERE source IN ('session', 'override', 'client') AND name NOT IN ('search_path', 'transaction_isolation', 'transaction_read_only', 'transaction_deferrable')),
			'isolation ' || current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only'),
			'of its own ' || (SELECT string_agg(name || '=' || setting, ' ') FROM pg_settings WHERE name LIKE '%.%' AND name NOT LIKE 'jobqueue.%' AND setting <> ''),
			'temporary ' || (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind IN ('r', 'v', 'S')),
			'temporary ' || (SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()),
			'temporary ' || (SELECT string_agg(typname, ' ' ORDER BY typname) FROM pg_type WHERE typnamespace = pg_my_temp_schema()),
			'prepared ' || (SELECT string_agg(name, ' ') FROM pg_prepared_statements),
			'cursors ' || (SELECT string_agg(name, ' ') FROM pg_cursors WHERE name <> '' AND NOT name LIKE '<unnamed%'),
			'locks ' || (SELECT string_agg(concat_ws('/', locktype, classid, objid), ' ') FROM pg_locks WHERE pid = pg_backend_pid() AND locktype IN ('advisory', 'userlock')),
			'channels ' || (SELECT string_agg(c, ' ') FROM pg_listening_channels() c),
			'keys ' || public.my_keys(),
			'lastval ' || public.tries('SELECT lastval()'),
			'origin ' || public.tries('SELECT pg_replication_origin_session_is_setup()'));
END $$;
END
}

# what the role's things are, again
sub objects
{
	my ($db) = @_;

	sql("SET lock_timeout = '60s'; DROP OWNED BY fz; DROP OWNED BY fz_other", db => $db);
	sql(<<'END', db => $db);
SET client_min_messages = warning;
SET lock_timeout = '60s';
DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO fz', current_database()); END $$;
SELECT jobqueue_grant('fz', 'use');
SELECT jobqueue_grant('fz', 'lock');
DROP SCHEMA IF EXISTS fz CASCADE;
CREATE SCHEMA fz AUTHORIZATION fz;
SET SESSION AUTHORIZATION fz;
GRANT ALL ON SCHEMA fz TO fz_other;
CREATE TABLE fz.t (a int, b text);
INSERT INTO fz.t SELECT g, 'row ' || g FROM generate_series(1, 20) g;
CREATE INDEX t_a ON fz.t (a);
CREATE TABLE fz.ident (n int GENERATED ALWAYS AS IDENTITY, s serial, x text);
CREATE TABLE fz.first (a int PRIMARY KEY);
INSERT INTO fz.first VALUES (1), (4);
CREATE TABLE fz.later (a int UNIQUE DEFERRABLE INITIALLY DEFERRED, b int REFERENCES fz.first DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE fz.parts (a int) PARTITION BY RANGE (a);
CREATE TABLE fz.part1 PARTITION OF fz.parts FOR VALUES FROM (0) TO (10);
CREATE INDEX parts_a ON fz.parts (a);
CREATE SEQUENCE fz.seq CACHE 5;
CREATE TYPE fz.mood AS ENUM ('sad', 'ok');
CREATE TYPE fz.pair AS (a int, b text);
CREATE DOMAIN fz.small AS int CHECK (VALUE < 10);
CREATE FUNCTION fz.f(x int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fz.t VALUES (x, 'f'); RETURN x; END $$;
CREATE FUNCTION fz.sets(name text, value text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config(name, value, false); END $$;
CREATE FUNCTION fz.next() RETURNS bigint LANGUAGE sql AS $$ SELECT nextval('fz.seq') $$;
CREATE FUNCTION fz.opens() RETURNS refcursor LANGUAGE plpgsql AS $$ DECLARE c CURSOR FOR SELECT * FROM fz.t; BEGIN OPEN c; RETURN c; END $$;
CREATE FUNCTION fz.rec() RETURNS record LANGUAGE sql AS $$ SELECT 1, 'x'::text $$;
CREATE FUNCTION fz.runs(what text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; END $$;
CREATE FUNCTION fz.catches(what text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE what; RETURN 'done'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
CREATE PROCEDURE fz.p() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fz.t VALUES (100, 'p'); END $$;
CREATE PROCEDURE fz.commits(INOUT x int) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fz.t VALUES (x, 'c'); COMMIT; PERFORM set_config('work_mem', '3MB', false); INSERT INTO fz.t VALUES (x, 'r'); ROLLBACK; x := x + 1; END $$;
CREATE VIEW fz.v AS SELECT a, count(*) FROM fz.t GROUP BY a;
CREATE RULE r AS ON DELETE TO fz.parts DO ALSO NOTIFY gone;
CREATE AGGREGATE fz.agg(text, boolean) (sfunc = set_config, stype = text, initcond = 'work_mem');
END
}

# ---- texts ---------------------------------------------------------------------

my @statements = grep { length($_) } split /\n/, <<'STATEMENTS';
SELECT 1
SELECT $1
SELECT $1->>'a', 2
SELECT a, b FROM t WHERE a < 5
SELECT FROM t
SELECT NULL
SELECT 1/0
SELECT ROW(1, 'x')
SELECT fz.rec()
SELECT '(1,x)'::pair, 3::small
SELECT 30::small
SELECT 'NaN'::float8, 'infinity'::timestamptz
SELECT '{"a": "\u0000"}'::json
SELECT 'x'::cstring
SELECT ARRAY[1, NULL], '{}'::int[]
SELECT repeat('x', 200000)
SELECT opens()
SELECT jsonb_agg(t) FROM t
SELECT f(7)
SELECT next(), next()
SELECT currval('seq')
SELECT lastval()
SELECT setval('seq', 10)
SELECT 1 INTO TEMP made
SELECT * INTO made2 FROM t
SELECT sets('work_mem', '2MB')
SELECT sets('role', 'fz_other')
SELECT sets('x.y', 'left')
SELECT agg('9MB', false)
SELECT set_config('search_path', 'public', false), set_config('DateStyle', 'German', true)
SELECT setseed(0.5)
SELECT pg_advisory_lock(5)
SELECT pg_advisory_lock_shared(5, 6), pg_try_advisory_lock(7)
SELECT pg_advisory_xact_lock(8)
SELECT pg_advisory_unlock_all()
SELECT jobqueue_lock('a key'), jobqueue_try_lock('another')
SELECT jobqueue_xact_lock('a key')
SELECT jobqueue_unlock('a key')
SELECT jobqueue_enqueue('SELECT 1')
SELECT jobqueue_enqueue('SELECT 1', queue => 'nowhere', key => 'k2')
SELECT jobqueue_snooze('0')
SELECT jobqueue_discard('enough')
SELECT jobqueue_progress(0.5, 'half')
SELECT catches('SELECT 1/0')
SELECT catches('COMMIT')
SELECT catches('INSERT INTO t VALUES (1/0)')
SELECT runs('ROLLBACK')
SELECT runs('CREATE TEMP TABLE in_f (x int)')
SELECT runs('SET work_mem = ''5MB''')
SELECT runs('LISTEN in_f')
SELECT runs('PREPARE in_f AS SELECT 1')
SELECT runs('SET CONSTRAINTS ALL IMMEDIATE')
SELECT runs('DECLARE in_f CURSOR WITH HOLD FOR SELECT * FROM t')
SELECT pg_notify('x', 'y')
SELECT pg_cancel_backend(pg_backend_pid())
SELECT pg_sleep(0.01)
SELECT lo_create(0)
SELECT loread(lo_open(lo_from_bytea(0, 'x'), 262144), 1)
SELECT query_to_xml('SELECT 1', true, true, '')
SELECT txid_current(), current_query()
SELECT * FROM v FOR UPDATE
SELECT * FROM t FOR UPDATE SKIP LOCKED
VALUES (1), (2)
TABLE t
WITH x AS (INSERT INTO t VALUES (50, 'w') RETURNING a) SELECT * FROM x
INSERT INTO t VALUES (51, 'i')
INSERT INTO t VALUES (51, 'i') RETURNING a
INSERT INTO t SELECT value::int, 'args' FROM jsonb_array_elements_text($1->'list')
INSERT INTO ident (x) VALUES ('y')
INSERT INTO ident (x) VALUES ('y') RETURNING n
INSERT INTO later VALUES (1, 1)
INSERT INTO later VALUES (2, 3)
INSERT INTO later VALUES (4, 4), (4, 4)
INSERT INTO parts VALUES (1), (20)
INSERT INTO parts VALUES (1)
UPDATE t SET b = 'u' WHERE a = 3
UPDATE pg_settings SET setting = '4MB' WHERE name = 'work_mem'
DELETE FROM t WHERE a > 40
DELETE FROM parts
TRUNCATE t
MERGE INTO t USING parts p ON p.a = t.a WHEN MATCHED THEN DELETE
SET work_mem = '6MB'
SET LOCAL work_mem = '6MB'
SET SESSION work_mem = '6MB'
SET x.y = 'z'
SET search_path = pg_catalog
SET LOCAL search_path = nowhere
SET TIME ZONE 'Asia/Kathmandu'
SET SEED TO 0.1
SET NAMES 'latin1'
SET client_encoding = 'UTF8'
SET standard_conforming_strings = off
SET backslash_quote = on
SET session_replication_role = replica
SET row_security = off
SET statement_timeout = 100
SET lock_timeout = 100
SET transaction_read_only = on
SET default_transaction_read_only = on
SET default_transaction_isolation = 'serializable'
SET synchronous_commit = remote_apply
SET jobqueue.inline = on
SET jobqueue.capture_settings = 'x.y'
SET plan_cache_mode = force_generic_plan
SET quote_all_identifiers = on
SET xmloption = document
SET bytea_output = escape
SET default_table_access_method = nowhere
SET default_tablespace = pg_global
SET check_function_bodies = off
SET max_stack_depth = '100kB'
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
SET TRANSACTION READ ONLY
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
SET TRANSACTION SNAPSHOT '1-1-1'
SET CONSTRAINTS ALL IMMEDIATE
SET CONSTRAINTS ALL DEFERRED
SET ROLE fz_other
SET ROLE postgres
SET ROLE NONE
SET LOCAL ROLE fz_other
SET SESSION AUTHORIZATION fz
SET SESSION AUTHORIZATION fz_other
RESET ALL
RESET ROLE
RESET SESSION AUTHORIZATION
RESET work_mem
SHOW work_mem
SHOW ALL
DISCARD ALL
DISCARD PLANS
DISCARD TEMP
DISCARD SEQUENCES
DECLARE c CURSOR FOR SELECT * FROM t
DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t
FETCH ALL FROM c
MOVE 2 IN c
CLOSE c
CLOSE ALL
PREPARE q AS SELECT 1
PREPARE q (int) AS INSERT INTO t VALUES ($1, 'q')
EXECUTE q
EXECUTE q (5)
DEALLOCATE q
DEALLOCATE ALL
EXPLAIN SELECT 1
EXPLAIN (ANALYZE, TIMING off) INSERT INTO t VALUES (60, 'e')
EXPLAIN EXECUTE q
EXPLAIN ANALYZE CREATE TABLE made3 AS SELECT 1 AS x
EXPLAIN DECLARE c2 CURSOR FOR SELECT 1
CREATE TABLE made (x int)
CREATE TABLE made AS EXECUTE q
CREATE TEMP TABLE made (x int)
CREATE TEMP TABLE tt (x int) ON COMMIT DROP
CREATE TEMP TABLE tt ON COMMIT DELETE ROWS AS SELECT 1 AS x
CREATE TEMP VIEW tv AS SELECT 1 AS x
CREATE TEMP SEQUENCE ts
CREATE FUNCTION pg_temp.tf() RETURNS int LANGUAGE sql AS 'SELECT 1'
CREATE TYPE pg_temp.ty AS ENUM ('a')
CREATE TABLE pg_temp.made (x int)
CREATE UNLOGGED TABLE made (x int PRIMARY KEY)
CREATE SCHEMA AUTHORIZATION fz CREATE TABLE in_schema (x int)
CREATE INDEX ON t (b)
CREATE INDEX CONCURRENTLY made_i ON t (b)
CREATE INDEX IF NOT EXISTS made_i ON t (b)
DROP INDEX made_i
DROP INDEX CONCURRENTLY made_i
DROP TABLE made
DROP TABLE IF EXISTS made, made2, made3
DROP TABLE t
ALTER TABLE t ADD COLUMN c int DEFAULT 7
ALTER TABLE t ALTER COLUMN a TYPE bigint
ALTER TABLE parts DETACH PARTITION part1
ALTER TABLE parts DETACH PARTITION part1 CONCURRENTLY
ALTER TABLE parts DETACH PARTITION part1 FINALIZE
ALTER TABLE parts ATTACH PARTITION part1 FOR VALUES FROM (0) TO (10)
ALTER TABLE t CLUSTER ON t_a
ALTER TYPE mood ADD VALUE 'happy'
ALTER TYPE mood ADD VALUE IF NOT EXISTS 'happy'; SELECT 'happy'::mood
ALTER ROLE fz SET work_mem = '8MB'
ALTER ROLE fz RESET work_mem
ALTER SYSTEM SET work_mem = '8MB'
ALTER DATABASE postgres SET TABLESPACE pg_default
ALTER DATABASE postgres CONNECTION LIMIT 5
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO fz_other
CREATE DATABASE made
DROP DATABASE IF EXISTS made
DROP DATABASE bytes
CREATE TABLESPACE made LOCATION '/nowhere'
DROP TABLESPACE made
CREATE SUBSCRIPTION made CONNECTION 'dbname=made' PUBLICATION made WITH (connect = false)
ALTER SUBSCRIPTION made REFRESH PUBLICATION
DROP SUBSCRIPTION IF EXISTS made
CREATE PUBLICATION made FOR TABLE t
DROP PUBLICATION IF EXISTS made
CREATE ROLE made
DROP OWNED BY fz_other
REASSIGN OWNED BY fz_other TO fz
GRANT SELECT ON t TO fz_other
CREATE TRIGGER tr AFTER INSERT ON t EXECUTE FUNCTION nowhere()
CREATE OR REPLACE RULE ru AS ON INSERT TO t DO ALSO NOTIFY x
COMMENT ON TABLE t IS 'c'
SECURITY LABEL ON TABLE t IS 'x'
IMPORT FOREIGN SCHEMA x FROM SERVER y INTO fz
REFRESH MATERIALIZED VIEW nowhere
CREATE STATISTICS made_s ON a, b FROM t
VACUUM
VACUUM t
VACUUM (ANALYZE, FULL) t
VACUUM nowhere
ANALYZE
ANALYZE t
CLUSTER
CLUSTER t USING t_a
CLUSTER parts USING parts_a
REINDEX TABLE t
REINDEX INDEX t_a
REINDEX TABLE parts
REINDEX INDEX parts_a
REINDEX TABLE CONCURRENTLY t
REINDEX INDEX CONCURRENTLY t_a
REINDEX (CONCURRENTLY) TABLE t
REINDEX (CONCURRENTLY off) TABLE t
REINDEX (CONCURRENTLY on, CONCURRENTLY off) TABLE t
REINDEX (CONCURRENTLY perhaps) TABLE t
REINDEX SCHEMA fz
REINDEX SYSTEM postgres
REINDEX DATABASE postgres
REINDEX (VERBOSE) SCHEMA CONCURRENTLY fz
CHECKPOINT
LOAD 'nowhere'
LISTEN x
NOTIFY x, 'y'
UNLISTEN *
LOCK TABLE t
LOCK TABLE t IN SHARE MODE NOWAIT
LOCK TABLE public.jobqueue_job
CALL p()
CALL commits(1)
CALL commits($1)
CALL commits(($1->>'a')::int)
CALL nowhere()
CALL p(); CALL p()
DO 'BEGIN END'
DO $d$ BEGIN COMMIT; END $d$
DO $d$ BEGIN CALL p(); END $d$
DO $d$ BEGIN CALL commits(1); END $d$
DO $d$ BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN INSERT INTO t VALUES (70, 'd'); END $d$
DO $d$ BEGIN EXECUTE 'COMMIT'; END $d$
DO $d$ BEGIN EXECUTE 'SAVEPOINT s'; END $d$
DO $d$ BEGIN EXECUTE 'VACUUM t'; END $d$
DO $d$ BEGIN RAISE EXCEPTION SQLSTATE 'P0001'; END $d$
DO $d$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $d$
DO $d$ BEGIN RAISE WARNING '%', repeat('w', 1000); END $d$
DO $d$ BEGIN FOR i IN 1..100 LOOP EXECUTE format('SET x.v%s = 1', i); END LOOP; END $d$
DO $d$ BEGIN FOR i IN 1..50 LOOP BEGIN INSERT INTO later VALUES (i, -1); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $d$
DO LANGUAGE nowhere 'x'
COPY t TO STDOUT
COPY t FROM STDIN
COPY (SELECT 1) TO STDOUT
COPY t TO '/nowhere'
COPY t TO PROGRAM 'true'
COPY t FROM '/nowhere'
BEGIN
BEGIN ISOLATION LEVEL SERIALIZABLE
START TRANSACTION READ ONLY
COMMIT
COMMIT AND CHAIN
END
ABORT
ROLLBACK
ROLLBACK WORK AND NO CHAIN
ROLLBACK TO s
ROLLBACK PREPARED 'x'
COMMIT PREPARED 'x'
PREPARE TRANSACTION 'x'
SAVEPOINT s
RELEASE s
CREATE FUNCTION atomic() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END
CREATE PROCEDURE atomic2() BEGIN ATOMIC INSERT INTO t VALUES (1, 'a'); END
CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $d$ BEGIN SET CONSTRAINTS ALL DEFERRED; PERFORM set_config('role', 'fz_other', false); RETURN NULL; END $d$; CREATE CONSTRAINT TRIGGER later AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION later(); INSERT INTO later VALUES (1, 1)
STATEMENTS

my @tokens = (
	';', ';;', "'", "''", '"', '$$', '$a$', '$d$', '$1', '$2', '$', '\\', "\\'", '/*', '*/', '--', "--\n", "\n", "\r", "\t", "\f", "\x0b", ' ', '(', ')', ',', '.',
	"E'", "E'\\x00'", "E'\\u0041'", "E'\\'", "U&'", "U&'\\0041'", 'U&"', " UESCAPE '!'", "B'1'", "X'f'", "N'x'", '::', ':=', '=>', '..', '0x1', '1e', '1_0',
	'COMMIT', 'ROLLBACK', 'BEGIN', 'BEGIN ATOMIC', 'END', 'SAVEPOINT s', 'VACUUM', 'CONCURRENTLY', 'CALL', 'SELECT 1', 'EXPLAIN ', 'EXPLAIN ANALYZE ', 'PREPARE p AS ', 'TO STDOUT', 'AND CHAIN',
	"\xc3\xa9", "\xe6\x97\xa5", "\xc2\xa0", "\xe2\x80\xa8", "\xef\xbb\xbf");
my @bytes = ("\xff", "\xc3", "\xf0\x9f\x98", "\x80", "\x01", "\x7f", "\x1b");
my @names = ('f', 'p', 'fz.p', ' look ', 'rec', 'opens', 'next', '"f"', '"f', '"f""', 'f"', '""', 'f.', '.f', 'f..g', 'a.b.c.d', 'commit', 'vacuum', ' VACUUM ', 'checkpoint', 'analyze', 'end', 'x' x 100, 'Fz . Next', "\"f\"\n", "\xc3\xa9", 'f$', '$f', '_', '1f', 'f()', 'f f', 'f;', 'f--', 'f/**/', "pg_catalog.now");

my @corpus;
if ($ENV{JQ_CORPUS})
{
	foreach my $file (glob "$ENV{JQ_CORPUS}/*.sql")
	{
		my $text = slurp_file($file);
		$text =~ s/^\\.*$//mg;
		push @corpus, grep { length($_) > 3 && length($_) < 20000 && !/\bpg_sleep|pg_terminate|SET SESSION AUTHORIZATION|regress_/i } split /;[ \t]*\n/, $text;
	}
	note scalar(@corpus) . ' statements of the corpus';
}

my $bytes;
my $asserts = sql('SHOW debug_assertions') eq 'on';

sub simple
{
	return pick(@corpus) if @corpus && chance(0.5);
	return pick(@statements);
}

sub space { return pick(' ', "\n", "\t", "\f", "/* c */", "/* /* n; */ ' */", "-- c; '\n", '  ', ''); }

sub quoted
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

# in something that runs it
sub nested
{
	my ($text) = @_;
	my $tag = '$n' . int(rand 1000) . '$';

	return pick(
		"DO $tag BEGIN $text; END $tag",
		"DO $tag BEGIN EXECUTE " . quoted($text) . "; END $tag",
		"DO $tag BEGIN EXECUTE " . quoted($text) . "; EXCEPTION WHEN OTHERS THEN NULL; END $tag",
		"SELECT catches(" . quoted($text) . ')',
		"SELECT runs(" . quoted($text) . ')',
		"EXPLAIN $text", "EXPLAIN (ANALYZE, COSTS off) $text",
		"PREPARE n AS $text; EXECUTE n", "PREPARE n AS $text; EXPLAIN ANALYZE EXECUTE n; DEALLOCATE n",
		"DECLARE n CURSOR FOR $text; FETCH 2 FROM n",
		"DECLARE n CURSOR WITH HOLD FOR $text",
		"CREATE TEMP TABLE n AS $text",
		"COPY ($text) TO STDOUT", "COPY ($text) TO PROGRAM 'true'",
		"WITH n AS ($text) SELECT count(*) FROM n",
		"CREATE FUNCTION n() RETURNS void LANGUAGE sql AS $tag $text $tag; SELECT n()",
		"CREATE PROCEDURE n() LANGUAGE sql AS $tag $text $tag; CALL n()",
		"CREATE FUNCTION n() RETURNS void LANGUAGE sql BEGIN ATOMIC $text; END",
		"CREATE RULE n AS ON UPDATE TO t DO ALSO ($text); UPDATE t SET a = a",
		"CREATE VIEW n AS $text");
}

sub large
{
	my $n = pick(1000, 30000, 1_000_000);

	return pick(
		'SELECT 1' . (' ' x $n) . ';', '/*' . ('*' x $n) . '*/ SELECT 1', ('/*' x ($n / 100)) . ('*/' x ($n / 100)) . 'SELECT 1', 'SELECT ' . ('(' x $n) . '1' . (')' x $n),
		(';' x $n) . 'SELECT 1', 'SELECT ' . quoted("x" x $n), 'SELECT $t$' . (';COMMIT' x ($n / 7)) . '$t$', "-- " . ('c' x $n) . "\nVACUUM t", 'SELECT ' . join(',', (1) x ($n > 3000 ? 3000 : $n)),
		'SELECT ' . join('+', (1) x ($n / 10)), 'SELECT 1;' x ($n / 1000), 'SELECT "' . ('i' x $n) . '"', '"' . ('i' x $n) . '"', ('i' x $n), ('SELECT ' x ($n / 10)), 'SELECT $' . ('9' x $n), "SELECT '" . ("''" x ($n / 2)), ('x.' x $n) . 'y', ('NOT ' x ($n / 4)) . '1');
}

sub damaged
{
	my ($text) = @_;

	foreach (0 .. rand 3)
	{
		my $at = int rand(1 + length $text);
		my $what = rand;

		if ($what < 0.4) { substr($text, $at, 0) = pick(@tokens, $bytes || chance(0.05) ? @bytes : ()); }
		elsif ($what < 0.6) { substr($text, $at, int rand 10) = ''; }
		elsif ($what < 0.7) { substr($text, $at, int rand 5) = substr($text, int rand(1 + length $text), int rand 20); }
		elsif ($what < 0.8)
		{
			my $other = simple();
			$text = substr($text, 0, $at) . substr($other, int rand length $other);
		}
		elsif ($what < 0.9) { $text = substr($text, 0, $at); }
		else
		{
			my @words = split /( )/, $text;
			$words[ rand @words ] = pick(@tokens) if @words;
			$text = join '', @words;
		}
	}
	return $text;
}

sub text_of_case
{
	my $how = rand;
	my $text;

	return large() if $how < 0.01;
	return pick(@names) if $how < 0.03;
	if ($how < 0.35) { $text = simple(); }
	elsif ($how < 0.55) { $text = nested(simple()); }
	elsif ($how < 0.60) { $text = nested(nested(simple())); }
	else { $text = join ';', map { space() . (chance(0.2) ? nested(simple()) : simple()) . space() } 0 .. rand 4; }
	$text = space() . $text . space() . pick('', '', ';', ';;', '; -- end') if chance(0.3);
	$text = damaged($text) if chance(0.35);
	$text =~ s/\0//g;
	# PostgreSQL itself, built with assertions, ends at a string of several
	# statements, in any function, whose first ones declare a cursor
	$text =~ s/DECLARE/-/gi if $asserts && $text =~ /;/;
	return $text;
}

# ---- what a session says ---------------------------------------------------------

my %connections;

sub connection
{
	my ($what, $db, $role) = @_;
	my $c = $connections{"$what $db"};

	return $c if $c && !$c->{gone};
	$c = Wire->new(node()->host, node()->port, $db, $role || 'fz');
	$c->query('SET statement_timeout = 0') if $what eq 'client';
	return $connections{"$what $db"} = $c;
}

my @found;

sub finding
{
	my ($db, $n, $text, $what) = @_;
	my $shown = length $text > 1500 ? substr($text, 0, 1500) . '...' : $text;

	$shown =~ s/([^\x20-\x7e\n\t])/sprintf '\\x%02x', ord $1/ge;
	push @found, "seed $seed, text $n in $db: $what\n$shown\n";
	return if $keep eq '';
	open my $fh, '>', "$keep/$seed.$n.sql" or die;
	print $fh $text;
	close $fh;
}

# in a transaction that has failed nothing is run, but all of it is parsed
sub parsed
{
	my ($db, $text) = @_;
	my $c = connection('parse', $db);
	my $a;

	$c->query('BEGIN; SELECT 1/0') unless $c->{failed}++;
	$a = $c->parse($text);
	return { words => 'gone' } if $a->{gone} || $a->{late};
	my $state = $a->{state} // '';
	return { words => 'one' } if $state eq '25P02';
	return { words => 'many' } if $state eq '42601' && $a->{message} =~ /cannot insert multiple commands/;
	return { words => 'error', state => $state } if $state ne '';
	return { words => $text =~ /commit|rollback|abort|end|prepare/i ? 'one or none' : 'none' };
}

# the same statements in a block that is rolled back
sub in_block
{
	my ($db, $text) = @_;
	my $c = connection('block', $db);
	my $a;

	$c->query('BEGIN; SELECT 1');
	$a = $c->query($text, 20);
	if ($a->{late})
	{
		sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wire' AND state = 'active' AND datname = '$db'");
		return $a;
	}
	return $a if $a->{gone};
	if (!defined $a->{state} && $a->{status} eq 'T')
	{
		my $then = $c->query('SET CONSTRAINTS ALL IMMEDIATE');
		@$a{qw(state message)} = @$then{qw(state message)};
	}
	$c->query('ROLLBACK');
	# what a transaction of its own has left
	$c->query('SET SESSION AUTHORIZATION DEFAULT') if "@{ $a->{tags} }" =~ /BEGIN|COMMIT|ROLLBACK|START/;
	$c->query('DISCARD ALL');
	return $a;
}

# ---- the cases -------------------------------------------------------------------

my $is_name = qr/^\s*(?:"(?:[^"]++|"")+"|[A-Za-z_\x80-\xff][A-Za-z0-9_\$\x80-\xff]*)\s*(?:\.\s*(?:"(?:[^"]++|"")+"|[A-Za-z_\x80-\xff][A-Za-z0-9_\$\x80-\xff]*)\s*)*\z/;
my $control = qr/^(?:BEGIN|START TRANSACTION|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|PREPARE TRANSACTION|COMMIT PREPARED|ROLLBACK PREPARED)$/;
my (%clean, %pid, %verdicts);
my $count = 0;

sub one_case
{
	my ($db, $n, $text) = @_;
	my $parsed = parsed($db, $text);
	my $name = $text =~ $is_name;
	my $c = connection('client', $db);
	my $marked = chance(0.3) && !$name;
	my ($a, $row, $block);

	if ($marked)
	{
		my $whole = "INSERT INTO public.mark VALUES ($n, 1);$text\n;INSERT INTO public.mark VALUES ($n, 2)";
		my $of_whole = parsed($db, $whole);

		# only if they are statements of their own
		if ($parsed->{words} =~ /one|many/ && $of_whole->{words} eq 'many') { ($text, $parsed) = ($whole, $of_whole); }
		else { $marked = 0; }
	}
	$c->query('BEGIN');
	$a = $c->execute(<<'END', $text);
SELECT jobqueue_enqueue($1, '{"a": 1, "list": [1, 2]}', key => 'k', max_attempts => 1, keep => '1 hour', timeout => '3 s')
END
	my $state = $a->{state} // '';
	my $message = $a->{message} // '';
	$verdicts{ $state eq '' ? 'enqueued' : "refused $state" }++;
	return finding($db, $n, $text, 'the client is gone') if $a->{gone} || $a->{late};
	if ($state ne '')
	{
		$c->query('ROLLBACK');
		finding($db, $n, $text, "refused with $state $message") if $state =~ /^XX/;
		return if $name || $state eq '54001' || ($parsed->{state} // '') eq '54001' || $parsed->{words} eq 'gone';
		if ($parsed->{words} eq 'error')
		{
			finding($db, $n, $text, "refused with $state, a session says $parsed->{state}") if $state ne $parsed->{state};
		}
		elsif ($state eq '22023')
		{
			finding($db, $n, $text, "refused as empty, and is $parsed->{words}") if $parsed->{words} !~ /none/;
		}
		elsif ($state !~ /^(?:0A000|25001|42601|22023)$/ || $message !~ /transaction control|COPY|several statements|requires a Boolean/)
		{
			finding($db, $n, $text, "refused with $state $message");
		}
		elsif ($message !~ /requires a Boolean/ && $text !~ /\b(?:FINALIZE|DATABASE|SYSTEM|TABLESPACE|SUBSCRIPTION)\b/i)
		{
			# is it so?
			$a = in_block($db, $text);
			my $so =
				$message =~ /control/ ? grep { /$control/ } @{ $a->{tags} }
			  : $message =~ /COPY/ ? $a->{copy}
			  : ($a->{state} // '') eq '25001';
			my $why = defined $a->{state};    # it did not get there
			finding($db, $n, $text, "refused with $state $message, a session sees nothing of it") if !$so && !$why && !$a->{gone};
			if (grep { /$control/ } @{ $a->{tags} })
			{
				objects($db);
				# where it missed too much to know what has changed, the worker leaves
				delete $pid{$db};
			}
		}
		return;
	}
	my $id = $a->{rows}[0][0];
	if (!defined $id) { $c->query('ROLLBACK'); return finding($db, $n, $text, 'no id'); }
	finding($db, $n, $text, "enqueued, and has an error for a session: $parsed->{state}") if $parsed->{words} eq 'error' && !$name;
	finding($db, $n, $text, 'enqueued, and is empty') if $parsed->{words} eq 'none' && !$name;
	$block = in_block($db, $text) unless $name;
	finding($db, $n, $text, 'enqueued with transaction control in it') if $block && grep { /$control/ } @{ $block->{tags} };
	finding($db, $n, $text, 'enqueued with a COPY of the client in it') if $block && $block->{copy};
	$a = $c->execute(q{SELECT jobqueue_enqueue('public.look', key => 'k', max_attempts => 1)});
	my $look = $a->{rows}[0][0] // 0;
	my $waits = 0;
	my $kind = connection('super', $db, superuser());
	$c->query('COMMIT');
	# what waits for all snapshots waits for ours: then this is the one that ends
	do { $a = $c->execute(q{SELECT state FROM jobqueue_wait($1::bigint, '50 s'::interval)}, $look); } while ($a->{state} // '') eq '40P01' && $waits++ < 20;
	my $how = $a->{rows}[0][0] // '';
	if ($how ne 'completed')
	{
		finding($db, $n, $text, "the job after it: $how " . ($a->{state} // '') . ' ' . ($a->{message} // ''));
		$c->query('ROLLBACK');
		return;
	}
	# and what is to be seen of it
	$a = $kind->execute(<<'END', $id, $look, $n);
SELECT (SELECT count(*) FROM jobqueue_job WHERE id = $1), h.state, h.kind, h.errors->-1->>'sqlstate', h.errors->-1->>'error',
	l.pid, l.what, (SELECT count(*) FROM mark WHERE n = $3), l.n
FROM (SELECT max(pid) AS pid, max(what) AS what, count(*) AS n FROM looked WHERE job = $2) l LEFT JOIN jobqueue_archive h ON h.id = $1
END
	my ($there, $end, $is, $error, $said, $pid, $what, $marks, $looks) = @{ $a->{rows}[0] // [] };
	$_ //= '' foreach ($end, $is, $error, $said, $what);
	$verdicts{"ran $is $end $error"}++;
	my $again = $text =~ /snooze/;
	finding($db, $n, $text, "in the table $there times, in the archive as '$end'") if ($there != 0 || $end eq '') && !$again;
	finding($db, $n, $text, "failed with $error $said") if $error =~ /^XX/ && ($block->{state} // '') ne $error && $said !~ /tuple concurrently/;
	$clean{$db} //= $what;
	finding($db, $n, $text, "the next job finds\n$what\n-- and not\n$clean{$db}") if $what ne $clean{$db} || $looks != 1;
	finding($db, $n, $text, "its worker is gone: $end $error $said") if defined $pid{$db} && $pid{$db} ne $pid && $text !~ /pg_terminate|ALTER\s+(ROLE|USER|GROUP)|GRANT|REVOKE|DROP|ROLE|REASSIGN/i;
	$pid{$db} = $pid;
	finding($db, $n, $text, "$end with $marks marks of 2") if $marked && !$again && $marks != ($end eq 'completed' ? 2 : 0);
	return if $name || $again;

	my $says = $block->{state} // '';
	my $words = $block->{message} // '';
	if ($is eq 'x')
	{
		finding($db, $n, $text, 'runs outside a block, and is several') if $parsed->{words} eq 'many';
		finding($db, $n, $text, 'runs outside a block, and need not') if $says eq '' && $text !~ /CALL|SUBSCRIPTION/i;
		return;
	}
	finding($db, $n, $text, "does not run in a block: $words") if $says eq '25001' && $words =~ /cannot run inside a transaction block/ && $words !~ /^(?:DISCARD ALL)/ && $parsed->{words} eq 'one' && $text !~ /EXECUTE|\bDO\b|runs|catches/i;
	return if $block->{gone} || $block->{late};
	# what differs between a job and a session by nature
	return if $text =~ /\$\d/ && $says eq '42P02';
	return if "$says $error" =~ /57014|57P01|54001|53\d\d\d|40P01/;
	return if $says eq '25001' && $error eq '25001';
	return if $error =~ /^(?:0A000|25001|2D000|22P05|JQ|P0)/ && $says ne $error && $said =~ /background|cannot be executed|transaction|discard|u0000|Unicode|enough/;
	return if $text =~ /jobqueue_(?:snooze|discard|progress|current|unlock|run|wait|enqueue|lock|xact_lock)|jobqueue\.inline|NAMES|client_encoding|statement_timeout|lastval|currval|pg_temp|stack_depth|advisory|set_config|random|lo_/i && $says ne $error;
	finding($db, $n, $text, "ends as $end $error $said; in a session: $says $words") if $says ne $error;
}

my $log_at = 0;

sub log_findings
{
	open my $fh, '<', node()->logfile or die;
	seek $fh, $log_at, 0;
	my %times;
	my $out = '';

	while (my $line = <$fh>)
	{
		next unless $line =~ /TRAP:|PANIC:|(?:ERROR|FATAL):  XX|terminated by signal|leak|still active|not closed|corrupt|stuck|FATAL:/;
		next if $line =~ /FATAL:  57P0[13]|tuple concurrently|(?:QUERY|CONTEXT|STATEMENT):/;
		next if $line !~ /TRAP|terminated by signal|(?:WARNING|ERROR|FATAL|PANIC): /;
		my $what = $line;
		$what =~ s/^.*?(ERROR|FATAL|PANIC|TRAP)/$1/;
		$what =~ s/\d+/N/g;
		$out .= substr $line, 0, 500 unless $times{$what}++ > 2;
	}
	$log_at = tell $fh;
	return $out;
}

my $begin = time;
my $round = 0;

objects($_) foreach @dbs;
log_findings();
while ($count < $cases && (!$seconds || time < $begin + $seconds))
{
	$round++;
	property "seed $seed, round $round" => sub {
		my $n = 0;

		@found = ();
		choices($round);
		my $db = pick(@dbs);

		%pid = ();
		$bytes = $db eq 'bytes';
		while ($n++ < 150 && (!$seconds || time < $begin + $seconds))
		{
			$count++;
			my $text = chance(0.1) && $connections{last} ? $connections{last} : text_of_case();
			$connections{last} = $text;
			one_case($db, $round * 1000 + $n, $text);
			last if @found > 20;
		}
		is(join("\n", @found), '', 'as a session has it');
		is(log_findings(), '', 'the log is clean');
		objects($_) foreach @dbs;
	};
	last if !Test::More->builder->is_passing;
}
diag sprintf 'seed %d: %d texts in %.0f s', $seed, $count, time - $begin if $seconds;
note "$_: $verdicts{$_}" foreach sort keys %verdicts;
node()->stop('immediate') unless Test::More->builder->is_passing;
done_testing();
