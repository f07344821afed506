# Logical replication: triggers of a subscriber enqueue; jobs that are replicated
# themselves are held there, and run once after the cut-over.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use JobqueueTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $pub = new_node('publisher', streaming => 'logical', conf => "wal_level = logical\n");
my $sub = PostgreSQL::Test::Cluster->new('subscriber');

$sub->init;
$sub->append_conf('postgresql.conf', <<'END');
shared_preload_libraries = 'jobqueue'
max_worker_processes = 24
wal_retrieve_retry_interval = 100ms
lc_messages = 'C'
END
$sub->start;

my $connection = $pub->connstr . ' dbname=postgres';

# the rest of a call is about the other server
sub at
{
	my ($node, $code) = @_;
	local $JobqueueTest::node = $node;
	return $code->();
}

sub sub_sql { my @args = @_; return at($sub, sub { sql(@args) }); }
sub sub_wait { my @args = @_; return at($sub, sub { wait_for(@args) }); }

sub synced
{
	sub_wait("SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'", 't', $_[1]);
	$pub->wait_for_catchup($_[0], 'replay', $pub->lsn('insert'));
}

sub rows
{
	return sql('SELECT (SELECT string_agg(j::text, chr(10) ORDER BY id) FROM jobqueue_job j), '
		  . '(SELECT string_agg(a::text, chr(10) ORDER BY id) FROM jobqueue_archive a), '
		  . '(SELECT string_agg(c::text, chr(10) ORDER BY service, handled) FROM jobqueue_service_current c), '
		  . "(SELECT string_agg((to_jsonb(s) - 'next_run')::text, chr(10) ORDER BY id) FROM jobqueue_schedule s), "
		  . '(SELECT string_agg(u::text, chr(10) ORDER BY job) FROM jobqueue_unique u), '
		  . '(SELECT string_agg(c::text, chr(10) ORDER BY c::text) FROM jobqueue_consumer c), '
		  . "(SELECT string_agg((to_jsonb(q) - 'version')::text, chr(10) ORDER BY name) FROM jobqueue_queue q)");
}

# ---- triggers of a subscriber ------------------------------------------------

my $orders = 'CREATE TABLE orders (id int PRIMARY KEY, customer int)';

sql("CREATE ROLE app; $orders; INSERT INTO orders VALUES (1, 1)");
sub_sql('CREATE ROLE app; CREATE DATABASE app');
at($sub, sub { JobqueueTest::add_database('app') });
sub_sql(<<"END", db => 'app');
$orders;
GRANT USAGE ON SCHEMA public TO app;
SELECT jobqueue_grant('app', 'use');
-- apply workers have an empty search_path
CREATE FUNCTION ordered() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS \$\$
BEGIN
	PERFORM jobqueue_enqueue('note', jsonb_build_object('what', TG_OP || ' ' || coalesce(NEW.id, OLD.id)), key => 'orders');
	RETURN NULL;
END \$\$;
CREATE TRIGGER ordered AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION ordered();
ALTER TABLE orders OWNER TO app;
END

foreach my $enable ('REPLICA', 'ALWAYS')
{
	property "a trigger of a subscriber enqueues: ENABLE $enable" => sub {
		sub_sql("ALTER TABLE orders ENABLE $enable TRIGGER ordered", db => 'app');
		sql('CREATE PUBLICATION orders FOR TABLE orders');
		sub_sql("CREATE SUBSCRIPTION orders CONNECTION '$connection' PUBLICATION orders", db => 'app');
		synced('orders', 'app');
		sub_wait("SELECT count(*) = 1 FROM ran", 't', 'app');
		sql('INSERT INTO orders VALUES (2, 1); UPDATE orders SET customer = 2 WHERE id = 1; DELETE FROM orders WHERE id = 2');
		sql('BEGIN; INSERT INTO orders VALUES (3, 1); ROLLBACK');
		sub_wait("SELECT count(*) = 4 FROM ran", 't', 'app');
		is(at($sub, sub { ran(db => 'app') }), 'INSERT 1 INSERT 2 UPDATE 1 DELETE 2', 'each once, in order');
		is( sub_sql('SELECT DISTINCT role FROM ran', db => 'app'),
			$sub->safe_psql('postgres', 'SHOW server_version_num') >= 160000 ? 'app' : superuser(),
			'as who applies the changes');
		sub_sql($_, db => 'app') foreach ('DROP SUBSCRIPTION orders', 'TRUNCATE ran, orders');
		sql('DROP PUBLICATION orders');
	};
}

# ---- jobs that are replicated themselves ---------------------------------------

my %id;

property 'replication of all tables brings all jobs, held' => sub {
	sql('ALTER TABLE ran REPLICA IDENTITY FULL');
	sql(<<'END');
CREATE FUNCTION add_up(state jsonb, message jsonb) RETURNS jsonb LANGUAGE sql AS
	$$ SELECT to_jsonb(state::int + coalesce((message->>'add')::int, 0)) $$;
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE ROLE consumer;
SELECT jobqueue_grant('consumer', 'consume', 'out');
SELECT jobqueue_pause('later');
SELECT jobqueue_start_service('adds', 'add_up', '0', queue => 'later');
SELECT jobqueue_send('adds', '{"add": 1}');
SELECT jobqueue_schedule('often', '1 second', 'note', '{"what": "often"}');
END
	$id{$_} = enqueue('note', what => $_, queue => 'later', key => 'k') foreach ('a', 'b');
	$id{after} = enqueue('note', what => 'after', queue => 'later', after => "{$id{b}}");
	$id{unique} = enqueue('note', what => 'unique', queue => 'later', unique_key => 'u');
	$id{due} = enqueue('note', what => 'due', queue => 'later', run_at => 'tomorrow');
	$id{out} = sql(q{SELECT jobqueue_enqueue(NULL, '{"out": 1}', 'out')});

	$pub->command_ok([ 'pg_dump', '--schema-only', '-f', $pub->basedir . '/schema.sql', 'postgres' ], 'the schema');
	sub_sql('CREATE ROLE consumer');
	$sub->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f', $pub->basedir . '/schema.sql', 'postgres' ], 'there');
	# the ids of its own jobs are out of the way of those that come
	sub_sql(q{SELECT setval('jobqueue_job_id_seq', 1000000000000)});
	sub_sql("CREATE SUBSCRIPTION everything CONNECTION '$connection' PUBLICATION everything");
	synced('everything');
	isnt(sub_sql('SELECT home FROM jobqueue_meta'), sql('SELECT home FROM jobqueue_meta'),
		'the subscriber is an installation of its own');
	sub_wait("SELECT count(*) >= 6 FROM jobqueue_jobs WHERE state = 'held'");
	is(sub_sql("SELECT count(*) FROM jobqueue_jobs WHERE state NOT IN ('held', 'completed')"), 0, 'held');
	like(sub_sql("SELECT jobqueue_explain($id{a})"), qr/^held, as it comes from another database/, 'explain');
	sub_wait('SELECT sum(held) >= 6 AND NOT bool_or(estimated) FROM jobqueue_status');
	is(sub_sql('SELECT count(next_run) FROM jobqueue_schedules'), 0, 'schedules');
	is(sub_sql('SELECT status FROM jobqueue_services'), 'held', 'services');
};

property 'what happens there arrives, and nothing is done twice' => sub {
	my $runs = sql("SELECT runs FROM jobqueue_schedules");

	sql(q{SELECT jobqueue_reprioritize(} . $id{b} . q{, 5)});
	my $dead = enqueue('fail', what => 'f', max_attempts => 1);
	my $retried = enqueue('fail', what => 'f', max_attempts => 2);
	enqueue('note', what => 'now') foreach (1 .. 20);
	wait_state($dead, 'dead');
	wait_for("SELECT runs > $runs + 1 FROM jobqueue_schedules");
	# every statement that changes a table which the publication has
	sql(q{SELECT jobqueue_revoke('consumer', 'consume', 'out'), jobqueue_configure('later', max_running => 2)});
	sql(q{UPDATE jobqueue_consumer SET queue = queue});
	sql(q{SELECT jobqueue_cancel(} . $id{due} . q{)});
	sql(q{SELECT jobqueue_send('adds', '{"add": 2}')});
	sql(q{SELECT jobqueue_schedule_pause('often')});
	sql(q{SELECT jobqueue_pause_role('consumer'), jobqueue_pause_role(current_user::regrole)});
	synced('everything');
	is(sub_sql('SELECT count(*) FROM jobqueue_paused_roles'), 2, 'paused roles');
	sql(q{SELECT jobqueue_resume_role('consumer'), jobqueue_resume_role(current_user::regrole)});
	wait_for("SELECT count(*) = 20 FROM ran WHERE what = 'now'");
	wait_quiet();
	synced('everything');
	is(sub_sql('SELECT count(*) FROM jobqueue_paused_roles'), 0, 'resumed');
	is(at($sub, \&rows), rows(), 'the same rows');
	is(at($sub, \&ran), ran(), 'and what the jobs have done');
	sub_wait('SELECT NOT bool_or(estimated) FROM jobqueue_status');
	is(sub_sql('SELECT sum(held) = (SELECT count(*) FROM jobqueue_job) FROM jobqueue_status'), 't', 'held are those that wait');
};

property 'the subscriber has jobs of its own meanwhile' => sub {
	my $before = sub_sql('SELECT count(*) FROM ran');
	my $h = start_pgbench(q{SELECT jobqueue_enqueue('note', '{"what": "there"}')}, clients => 2, transactions => 200);
	my $here = at($sub, sub { start_pgbench(q{SELECT jobqueue_enqueue('note', '{"what": "here"}')}, clients => 2, transactions => 200) });

	ok($h->finish, 'enqueued there') or diag ${ $h->{out} };
	ok($here->finish, 'enqueued here') or diag ${ $here->{out} };
	wait_for("SELECT count(*) = 400 FROM ran WHERE what = 'there'");
	synced('everything');
	sub_wait("SELECT count(*) = $before + 800 FROM ran");
	is(sub_sql("SELECT what, count(*), count(DISTINCT job) FROM ran WHERE what LIKE '%here' GROUP BY 1 ORDER BY 1"),
		"here|400|400\nthere|400|400", 'each has run once, where it was enqueued');
};

property 'after the cut-over all that waited runs once' => sub {
	sql('SELECT jobqueue_quiesce()');
	synced('everything');
	sub_sql('DROP SUBSCRIPTION everything');
	my $held = sub_sql("SELECT count(*) FROM jobqueue_jobs WHERE state = 'held'");
	is(sub_sql('SELECT jobqueue_adopt()'), $held, 'adopted');
	sub_wait("SELECT count(*) = 0 FROM jobqueue_jobs WHERE state = 'held'");
	is(sub_sql("SELECT paused, max_running FROM jobqueue_queues WHERE queue = 'later'"), 't|2', 'a paused queue is paused');
	is(sub_sql(q{SELECT jobqueue_enqueue('note', queue => 'later', unique_key => 'u', on_conflict => 'join')}),
		$id{unique}, 'a unique key is taken');
	sub_sql(q{SELECT jobqueue_resume('later')});
	sub_wait("SELECT count(*) = 4 FROM ran WHERE what IN ('a', 'b', 'after', 'unique')");
	is(sub_sql("SELECT string_agg(what, ' ' ORDER BY n DESC) FROM ran WHERE what IN ('b', 'after')"), 'after b', 'after each other');
	sub_wait("SELECT state = '3' FROM jobqueue_services WHERE name = 'adds'");
	sub_sql(q{SELECT jobqueue_schedule_resume('often')});
	my $runs = sub_sql("SELECT runs FROM jobqueue_schedules");
	sub_wait("SELECT runs > $runs FROM jobqueue_schedules");
	cmp_ok(sub_sql(q{SELECT jobqueue_enqueue('note')}), '>', 1000000000000, 'ids go on');
	is(sub_sql("SELECT what, job FROM ran WHERE what <> 'often' GROUP BY 1, 2 HAVING count(*) > 1"), '', 'nothing has run twice');
	is(sql('SELECT count(*) FROM jobqueue_running'), 0, 'nothing runs at the old place');
};

property 'nothing failed at the subscriber' => sub {
	my $log = slurp_file($sub->logfile);

	is(join("\n", grep { !/terminating|could not receive data|ran. \(what\)/ } $log =~ /^.*ERROR:.*$/mg), '', 'no error in its log');
};

done_testing();
