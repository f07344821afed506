# The recipes of the README: the very texts run, show what they are said to show,
# and keep what is promised while workers, consumers and servers are killed.
#
# Who checks is not jobqueue.  Each recipe has a function that stands for the
# outside; it is replaced by one that takes an advisory lock of PostgreSQL, which
# must be free, and says OVERLAP in the server's log if it is not, even if the job
# fails later.  What comes before what is told by PostgreSQL's snapshots.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use JobqueueTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $top = "$FindBin::RealBin/../..";
my $psql;

new_node('recipes', conf => "jobqueue.max_workers = 6\n");
$psql = node()->installed_command('psql');

# ---- the texts -------------------------------------------------------------

# name => [ { sql => , shown => undef or output }, ... ]
my %recipe = read_recipes();

sub read_recipes
{
	my ($section) = slurp_file("$top/README.md") =~ /^## Recipes\n(.*?)^## /ms
	  or die 'README.md has no section Recipes';
	my %blocks;

	while ($section =~ /^<!-- recipes\/(\w+)\.sql -->\n```sql\n(.*?)^```\n(?:```\n(.*?)^```\n)?/msg)
	{
		push @{ $blocks{$1} }, { sql => $2, shown => $3 };
	}
	my $all = () = $section =~ /^```sql$/mg;
	my $found = 0;
	$found += @$_ foreach values %blocks;
	die "a block of the section Recipes has no marker\n" if $found != $all;
	return %blocks;
}

# Without blank lines, and blanks at the end. Which id a message to a service gets
# depends on what the service has sent by then.
sub squeezed
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\n+/\n/g;
	$text =~ s/^\n//;
	$text =~ s/^( message\n-+\n) +\d+$/$1 N/m;
	return $text;
}

# runs a text as psql does that reads a file; what it says, errors included
sub run_psql
{
	my ($db, $text) = @_;
	my $out = '';
	local %ENV = node()->_get_env(%ENV, PGDATABASE => $db, PGCLIENTENCODING => 'UTF8');

	IPC::Run::run([ $psql, '-X', '-q', '-P', 'footer=off' ],
		'<', \$text, '>', \$out, '2>&1');
	return $out;
}

sub make_db
{
	my ($db) = @_;

	sql("CREATE DATABASE $db");
	JobqueueTest::add_database($db);
	# the texts show the first ids, and their own output only
	sql("ALTER DATABASE $db SET client_min_messages = notice");
}

# runs a recipe, block by block in one session, and compares what it shows
sub run_recipe
{
	my ($name, $db) = @_;
	my @blocks = @{ $recipe{$name} };
	my $said = run_psql($db,
		join('', map { "$_->{sql}\n\\echo === end of block\n" } @blocks));
	my @said = split /^=== end of block\n/m, $said;

	is(scalar @said, scalar @blocks, "$name.sql: runs to its end");
	foreach my $i (0 .. $#blocks)
	{
		if (defined $blocks[$i]{shown})
		{
			is(squeezed($said[$i]), squeezed($blocks[$i]{shown}),
				"$name.sql, block $i: shows what the README says");
		}
		else
		{
			unlike($said[$i], qr/ERROR|FATAL/, "$name.sql, block $i: no error");
		}
	}
}

sub in { my ($db, $query) = @_; return sql($query, db => $db); }

property 'the files in recipes are what the README shows' => sub {
	is(join(' ', sort keys %recipe), 'consumer mail outbox tracker webhooks', 'all of them');
	foreach my $name (sort keys %recipe)
	{
		my ($head, $body) = split /\n\n/, slurp_file("$top/recipes/$name.sql"), 2;
		unlike($head, qr/^(?!--)/m, "$name.sql begins with a comment");
		is(squeezed($body), squeezed(join '', map { $_->{sql} } @{ $recipe{$name} }),
			"$name.sql");
	}
};

foreach my $name ('webhooks', 'tracker', 'mail')
{
	property "$name.sql shows what the README says" => sub {
		make_db($name);
		run_recipe($name, $name);
		run_recipe('outbox', $name) if $name eq 'mail';
	};
}

# ---- what goes wrong -------------------------------------------------------

# all processes of the server at once, and it starts again
sub kill_server
{
	my @pids = split /\n/, sql('SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');

	my ($postmaster) = slurp_file(node()->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	node()->kill9;
	kill 'KILL', @pids;
	# a start before they are gone for good would be refused
	foreach my $pid ($postmaster, @pids)
	{
		usleep(1_000) while kill 0, $pid;
	}
	node()->start;
}

sub kill_worker
{
	my ($db) = @_;
	my $offset = crash_offset();
	my $pid = '';

	# not the second time for the same job, which would be given up
	until ($pid)
	{
		$pid = in($db, 'SELECT min(pid) FROM jobqueue_running WHERE NOT EXISTS (SELECT FROM jobqueue_job WHERE crashes > 0)');
	}
	kill_hard($pid);
	wait_crash_restart($offset);
}

my @disasters = (
	[ 'kill -9 of a worker' => \&kill_worker ],
	[ 'immediate stop' => sub { node()->stop('immediate'); node()->start } ],
	[ 'restart' => sub { node()->restart } ],
	[ 'kill -9 of the server' => \&kill_server ]);

# A pgbench of 8 sessions; what PROGRESS counts moves on between all that happens:
# workers are terminated, then one of the above.
sub disaster
{
	my ($db, $script, $progress, $end) = @_;
	my $h = start_pgbench($script, db => $db, clients => 8,
		transactions => 1000000, options => [ '-R', 300 ]);
	my $count = in($db, $progress);

	for (1 .. 3)
	{
		$count += 40;
		wait_for("SELECT ($progress) >= $count", 't', $db);
		my $pid = in($db, 'SELECT min(pid) FROM jobqueue_running');
		next if $pid eq '';
		in($db, "SELECT pg_terminate_backend($pid)");
		# it cannot be killed below when it is about to end
		wait_gone($pid);
	}
	$end->($db);
	# it ends with its connections
	$h->finish;
}

my $log_read = 0;

# since the last call
sub no_overlap
{
	my $log = slurp_file(node()->logfile, $log_read);

	$log_read += length $log;
	is(join("\n", grep { defined } ($log =~ /^.*LOG:  OVERLAP.*$/mg)[ 0 .. 2 ]), '', 'never two at once');
}

# ---- webhooks --------------------------------------------------------------

$JobqueueTest::tidy_db = 'webhooks';
in('webhooks', <<'END');
TRUNCATE customer;
CREATE TABLE synced (job bigint, customer int, seen pg_snapshot);
CREATE TABLE event (customer int, how text, job bigint, xid xid8 DEFAULT pg_current_xact_id());
CREATE OR REPLACE FUNCTION crm_profile(customer int) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF NOT pg_try_advisory_xact_lock(1, customer) THEN
		RAISE LOG 'OVERLAP of customer %', customer;
	END IF;
	INSERT INTO synced VALUES ((jobqueue_current()).id, customer, pg_current_snapshot());
	PERFORM pg_advisory_xact_lock_shared(1000 + customer);
	-- gives a second one time to come
	PERFORM pg_sleep(random() * 0.004);
	RETURN '{}';
END $$;
END

# each event is followed by a sync that could see it, and more
sub check_webhooks
{
	my ($what) = @_;

	wait_drained(db => 'webhooks');
	no_overlap();
	is(in('webhooks', q{SELECT count(*) FROM event e WHERE NOT EXISTS (SELECT FROM synced s
		WHERE s.customer = e.customer AND pg_visible_in_snapshot(e.xid, s.seen))}),
		'0', "$what: each event is followed by a sync");
	is(in('webhooks', q{SELECT count(*) FROM event e WHERE NOT EXISTS (SELECT FROM synced s
		WHERE s.job = e.job AND s.customer = e.customer AND pg_visible_in_snapshot(e.xid, s.seen))}),
		'0', "$what: by the one that was named to it");
	is(in('webhooks', 'SELECT count(*) FROM (SELECT job FROM synced GROUP BY job HAVING count(*) > 1) x'),
		'0', "$what: no sync twice");
	is(in('webhooks', 'SELECT count(*) FROM synced WHERE job NOT IN (SELECT job FROM event)'),
		'0', "$what: none for an event that was rolled back");
	is(in('webhooks', 'SELECT count(*) FROM jobqueue_history'), '0', "$what: none given up");
	note in('webhooks', 'SELECT how, count(*), count(DISTINCT job) FROM event GROUP BY how');
}

sub forget_webhooks
{
	in('webhooks', 'TRUNCATE event, synced');
}

my $events = <<'END';
\set c random(1, 6)
\set how random(1, 4)
BEGIN;
\if :how <= 2
INSERT INTO event VALUES (:c, 'coalesced', on_event_coalesced(:c));
\else
INSERT INTO event VALUES (:c, 'each', on_event(:c));
\endif
\if :how = 1
ROLLBACK;
\else
COMMIT;
\endif
END

foreach my $d (@disasters)
{
	property "webhooks: one sync a user, no event lost: $d->[0]" => sub {
		disaster('webhooks', $events, 'SELECT count(*) FROM synced', $d->[1]);
		check_webhooks($d->[0]);
		cmp_ok(in('webhooks', q{SELECT count(DISTINCT job) FROM event WHERE how = 'each'}), '==',
			in('webhooks', q{SELECT count(*) FROM event WHERE how = 'each'}), 'one sync for each event');
		forget_webhooks();
	};
}

property 'webhooks: events during a sync run after it' => sub {
	my $gate = close_gate(1001, db => 'webhooks');
	my $first = in('webhooks', q{INSERT INTO event VALUES (1, 'each', on_event(1)) RETURNING job});
	wait_at_gate(1);
	my $second = in('webhooks', q{INSERT INTO event VALUES (1, 'each', on_event(1)) RETURNING job});
	# one of another user does not wait
	my $other = in('webhooks', q{INSERT INTO event VALUES (2, 'each', on_event(2)) RETURNING job});
	wait_for("SELECT count(*) = 1 FROM synced WHERE job = $other", 't', 'webhooks');
	is(in('webhooks', "SELECT state FROM jobqueue_jobs WHERE id = $second"), 'blocked', 'waits');
	open_gate($gate);
	check_webhooks('two events');
	is(in('webhooks', 'SELECT count(*) FROM synced WHERE customer = 1'), '2', 'each has run');
	forget_webhooks();
};

property 'webhooks: events of many sessions during a sync are coalesced into one' => sub {
	my $gate = close_gate(1001, db => 'webhooks');
	my $first = in('webhooks', q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1)) RETURNING job});
	wait_at_gate(1);
	start_pgbench(q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1));},
		db => 'webhooks', clients => 8, transactions => 25)->finish;
	is(in('webhooks', "SELECT count(*), count(DISTINCT job) FROM event WHERE job <> $first"), '200|1', 'one for 200');
	open_gate($gate);
	check_webhooks('coalesced');
	is(in('webhooks', 'SELECT count(*) FROM synced'), '2', 'two syncs in all');
	forget_webhooks();
};

# The waiting sync is there when an event comes that has not committed yet. Then it
# must not start, or not be the last one.
sub late_commit
{
	my $s = session(db => 'webhooks');

	in('webhooks', q{SELECT jobqueue_pause('webhooks')});
	my $waiting = in('webhooks', q{SELECT on_event_coalesced(1)});
	$s->query_safe(q{BEGIN; INSERT INTO event (customer, how) VALUES (1, 'coalesced'); UPDATE event SET job = on_event_coalesced(1)});
	in('webhooks', q{SELECT jobqueue_resume('webhooks')});
	# what comes later has run
	my $other = in('webhooks', q{SELECT on_event(2)});
	wait_for("SELECT count(*) = 1 FROM synced WHERE job = $other", 't', 'webhooks');
	return ($s, $waiting);
}

property 'webhooks: a sync does not start before the event that counts on it has committed' => sub {
	my ($s, $waiting) = late_commit();
	is(in('webhooks', "SELECT count(*) FROM synced WHERE job = $waiting"), '0', 'has not started');
	is($s->query_safe('SELECT job FROM event'), $waiting, 'counts on it');
	$s->query_safe('COMMIT');
	wait_drained(db => 'webhooks');
	is(in('webhooks', q{SELECT count(*) FROM event e JOIN synced s USING (job)
		WHERE pg_visible_in_snapshot(e.xid, s.seen)}), '1', 'and sees it');
	# if that one rolls back, the sync runs
	forget_webhooks();
	($s, $waiting) = late_commit();
	$s->query_safe('ROLLBACK');
	wait_drained(db => 'webhooks');
	is(in('webhooks', "SELECT count(*) FROM synced WHERE job = $waiting"), '1', 'runs after a rollback, too');
	$s->quit;
	forget_webhooks();
};

foreach my $strategy ('skip', 'join')
{
	property "webhooks: with $strategy it would, as the README warns" => sub {
		my $text = in('webhooks', q{SELECT pg_get_functiondef('on_event_coalesced'::regproc)});
		in('webhooks', $text =~ s/'update'/'$strategy'/r);
		my ($s, $waiting) = late_commit();
		wait_for("SELECT count(*) = 1 FROM synced WHERE job = $waiting", 't', 'webhooks');
		$s->query_safe('COMMIT');
		wait_drained(db => 'webhooks');
		is(in('webhooks', q{SELECT count(*) FROM event e WHERE NOT EXISTS (SELECT FROM synced s
			WHERE s.customer = e.customer AND pg_visible_in_snapshot(e.xid, s.seen))}), '1', 'lost');
		in('webhooks', $text);
		$s->quit;
		forget_webhooks();
	};
}

foreach my $point ('worker-claimed', 'worker-unique-released')
{
	paused_property "webhooks: an event at the start of a sync ($point) gets its own" => sub {
		my $s = session(db => 'webhooks');
		arm($point);
		my $first = in('webhooks', q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1)) RETURNING job});
		caught($point);
		# waits until the sync has started, or need not
		send_sql($s, q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1)) RETURNING job});
		wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO event%'
			AND datname = 'webhooks' AND pid <> pg_backend_pid() AND (state = 'idle' OR wait_event = 'Extension')});
		release($point);
		$s->query('SELECT 1');
		check_webhooks($point);
		is(in('webhooks', "SELECT count(*) FROM synced WHERE job <> $first"), '1', 'another one');
		$s->quit;
		forget_webhooks();
	};
}

property 'webhooks: a sync that waits for its retry does not swallow events' => sub {
	my $text = in('webhooks', q{SELECT pg_get_functiondef('crm_profile'::regproc)});
	in('webhooks', q{CREATE OR REPLACE FUNCTION crm_profile(customer int) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'no answer'; END $$});
	my $first = in('webhooks', q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1)) RETURNING job});
	wait_for("SELECT attempt >= 1 FROM jobqueue_jobs WHERE id = $first", 't', 'webhooks');
	in('webhooks', $text);
	my $second = in('webhooks', q{INSERT INTO event VALUES (1, 'coalesced', on_event_coalesced(1)) RETURNING job});
	isnt($second, $first, 'a job of its own');
	check_webhooks('after a failure');
	forget_webhooks();
};

# ---- tracker ---------------------------------------------------------------

$JobqueueTest::tidy_db = 'tracker';
in('tracker', <<'END');
TRUNCATE bank, settled;
CREATE TABLE asked (transfer text);
CREATE TABLE started (transfer text, number bigint);
CREATE TABLE noted (transfer text, n int GENERATED ALWAYS AS IDENTITY);
CREATE OR REPLACE FUNCTION ask_bank(transfer text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF NOT pg_try_advisory_xact_lock(hashtext(transfer)) THEN
		RAISE LOG 'OVERLAP of %', transfer;
	END IF;
	INSERT INTO asked VALUES (transfer);
	RETURN (SELECT status FROM bank WHERE bank.transfer = $1);
END $$;
CREATE FUNCTION remember(t text) RETURNS void LANGUAGE sql AS $$
	WITH x AS (INSERT INTO noted (transfer) VALUES (t) RETURNING n)
	SELECT jobqueue_send(t, jsonb_build_object('note', n)) FROM x
$$;
END

# every poll that counts has asked once, every note is there once, one timer each
my $unsound = q{SELECT count(*) FROM jobqueue_services s WHERE
	(SELECT count(*) FROM asked WHERE transfer = s.name) <> (s.state->>'polls')::int
	OR s.state->>'transfer' <> s.name OR s.status <> 'running'};

property 'tracker: many sessions start it, one is started' => sub {
	start_pgbench(q{
		\set t random(1, 5)
		INSERT INTO started VALUES ('t' || :t, track('t' || :t, '0.05 s'));
	}, db => 'tracker', clients => 8, transactions => 40)->finish;
	is(in('tracker', 'SELECT count(*) FROM started'), '320', 'all calls worked');
	is(in('tracker', 'SELECT count(DISTINCT transfer), count(DISTINCT number) FROM started'), '5|5', 'one each');
	is(in('tracker', 'SELECT count(*) FROM jobqueue_services'), '5', 'so many are there');
	is(in('tracker', 'SELECT min(waiting), max(waiting) FROM jobqueue_services'), '1|1', 'each with one timer');
	wait_for(q{SELECT min((state->>'polls')::int) > 3 FROM jobqueue_services}, 't', 'tracker');
	is(in('tracker', 'SELECT min(waiting), max(waiting) FROM jobqueue_services'), '1|1', 'still, after some polls');
	is(in('tracker', $unsound), '0', 'states and what they have done agree');
};

property 'tracker: a second start waits for the transaction of the first' => sub {
	foreach my $end ('COMMIT', 'ROLLBACK')
	{
		my ($s, $o) = (session(db => 'tracker'), session(db => 'tracker'));
		$o->query_safe('SET client_min_messages = warning; CREATE TEMP TABLE got (number bigint)');
		my $number = $s->query_safe(q{BEGIN; SELECT track('one', '1 h')});
		send_sql($o, q{INSERT INTO got SELECT track('one', '1 h')});
		wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO got%' AND wait_event_type = 'Lock'});
		$s->query_safe($end);
		is($o->query_safe("SELECT number = $number FROM got"), $end eq 'COMMIT' ? 't' : 'f', "the same after $end");
		is(in('tracker', q{SELECT count(*) FROM jobqueue_services WHERE name = 'one'}), '1', 'one is there');
		in('tracker', q{SELECT jobqueue_stop_service('one')});
		wait_for(q{SELECT count(*) = 0 FROM jobqueue_services WHERE name = 'one'}, 't', 'tracker');
		is(in('tracker', q{SELECT count(*) FROM jobqueue_jobs WHERE command = 'one' AND state <> 'cancelled'}), '0', 'its timer is gone with it');
		$_->quit foreach ($s, $o);
	}
	in('tracker', q{DELETE FROM asked WHERE transfer = 'one'});
};

foreach my $d (@disasters)
{
	property "tracker: found again with its state: $d->[0]" => sub {
		my $before = in('tracker', q{SELECT sum((state->>'polls')::int) FROM jobqueue_services});
		my $number = in('tracker', q{SELECT track('t1')});
		disaster('tracker', "\\set t random(1, 5)\nSELECT remember('t' || :t);\n",
			'SELECT count(*) FROM asked', $d->[1]);
		# one that was hit too often in 5 s has failed, and goes on
		is(in('tracker', q{SELECT max(track('t' || i)) FILTER (WHERE i = 1) FROM generate_series(1, 5) i}),
			$number, 'the same service');
		my $polls = in('tracker', q{SELECT min((state->>'polls')::int) FROM jobqueue_services WHERE name ~ '^t\d'});
		cmp_ok(in('tracker', q{SELECT sum((state->>'polls')::int) FROM jobqueue_services}), '>', $before, 'with its state');
		wait_for("SELECT min((state->>'polls')::int) > $polls + 2 FROM jobqueue_services WHERE name ~ '^t\\d'", 't', 'tracker');
		wait_for('SELECT max(waiting) = 1 FROM jobqueue_services', 't', 'tracker');
		is(in('tracker', $unsound), '0', 'states and what they have done agree');
		is(in('tracker', q{SELECT count(*) FROM noted n FULL JOIN
			(SELECT name, note::int FROM jobqueue_services, jsonb_array_elements_text(state->'notes') note) s
			ON (transfer, n) = (name, note) WHERE n IS NULL OR note IS NULL}), '0', 'no note is lost, none is made up');
		is(in('tracker', q{SELECT sum(jsonb_array_length(state->'notes')) = (SELECT count(*) FROM noted) FROM jobqueue_services}),
			't', 'none is there twice');
		is(in('tracker', q{SELECT min(waiting), max(waiting) FROM jobqueue_services}), '1|1', 'one timer each');
		no_overlap();
	};
}

paused_property 'tracker: killed in a poll, which has not happened then' => sub {
	arm('worker-before-commit');
	my $pid = caught('worker-before-commit');
	my $crash = crash_offset();
	kill_hard($pid);
	wait_crash_restart($crash);
	my $polls = in('tracker', q{SELECT min((state->>'polls')::int) FROM jobqueue_services WHERE name ~ '^t\d'});
	wait_for("SELECT min((state->>'polls')::int) > $polls FROM jobqueue_services WHERE name ~ '^t\\d'", 't', 'tracker');
	is(in('tracker', $unsound), '0', 'states and what they have done agree');
};

property 'tracker: deregistered when the bank has answered' => sub {
	my $reply = in('tracker', q{CALL jobqueue_call('t1', '{"look": true}')});
	like($reply, qr/"transfer": "t1"/, 'is there and answers');
	in('tracker', q{INSERT INTO bank SELECT name, 'booked' FROM jobqueue_services});
	wait_for('SELECT count(*) = 0 FROM jobqueue_services', 't', 'tracker');
	wait_drained(db => 'tracker');
	is(in('tracker', q{SELECT count(*), count(DISTINCT transfer), min(status) FROM settled}), '5|5|booked', 'each is settled, once');
	is(in('tracker', q{SELECT count(*) FROM settled s WHERE polls <> (SELECT count(*) FROM asked a WHERE a.transfer = s.transfer)}),
		'0', 'every poll counted');
	is(in('tracker', q{SELECT sum(jsonb_array_length(notes)) = (SELECT count(*) FROM noted) FROM settled}), 't', 'every note is there');
	like(sql_error(q{SELECT jobqueue_send('t1', '{"note": 1}')}, db => 'tracker'),
		qr/ERROR:  service "t1" does not exist/, 'no more messages');
	like(sql_error(q{CALL jobqueue_call('t1', '{"look": true}')}, db => 'tracker'),
		qr/ERROR:  service "t1" does not exist/, 'nor calls');
	is(in('tracker', q{SELECT count(*) FROM jobqueue_jobs WHERE state NOT IN ('completed', 'cancelled')}),
		'0', 'no message is left');
};

property 'tracker: while it ends, messages and a new start are errors' => sub {
	in('tracker', q{SELECT track('t9', '1 h')});
	wait_for(q{SELECT state->>'polls' = '1' FROM jobqueue_services}, 't', 'tracker');
	in('tracker', q{SELECT jobqueue_pause('default'); SELECT jobqueue_stop_service('t9')});
	like(sql_error(q{\set VERBOSITY verbose
		SELECT jobqueue_send('t9', '{"note": 1}')}, db => 'tracker'), qr/55000.*stop/, 'send');
	like(sql_error(q{\set VERBOSITY verbose
		SELECT track('t9')}, db => 'tracker'), qr/55000.*stop/, 'start');
	in('tracker', q{SELECT jobqueue_resume('default')});
	wait_for('SELECT count(*) = 0 FROM jobqueue_services', 't', 'tracker');
	like(sql_error(q{\set VERBOSITY verbose
		SELECT jobqueue_send('t9', '{"note": 1}')}, db => 'tracker'), qr/42704/, 'gone');
};

# ---- mail ------------------------------------------------------------------

$JobqueueTest::tidy_db = 'mail';
in('mail', <<'END');
DELETE FROM jobqueue_job;
TRUNCATE mail;
CREATE TABLE delivered (mail bigint, run bigint);
CREATE OR REPLACE FUNCTION smtp_send(m mail) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF NOT pg_try_advisory_xact_lock(2, 0) THEN
		RAISE LOG 'OVERLAP of runs';
	END IF;
	RAISE LOG 'OUTSIDE %.', m.id;
	INSERT INTO delivered VALUES (m.id, (jobqueue_current()).id);
	PERFORM pg_advisory_xact_lock_shared(2000);
	PERFORM pg_sleep(random() * 0.004);
END $$;
END

# which mails went out so often, by what the server's log says
sub outside
{
	my %count;

	$count{$_}++ foreach slurp_file(node()->logfile) =~ /LOG:  OUTSIDE (\d+)\./g;
	return \%count;
}

sub check_mails
{
	my ($what) = @_;

	# the servers' timers go on
	wait_for('SELECT mail_tick() IS NULL OR count(*) = 0 FROM mail WHERE sent_at IS NULL', 't', 'mail');
	while (in('mail', 'SELECT count(*) FROM mail WHERE sent_at IS NULL') > 0)
	{
		in('mail', 'SELECT mail_tick()');
		wait_drained(db => 'mail');
	}
	wait_drained(db => 'mail');
	no_overlap();
	is(in('mail', 'SELECT count(*) FROM mail m WHERE 1 <> (SELECT count(*) FROM delivered WHERE mail = m.id)'),
		'0', "$what: each mail exactly once");
	is(in('mail', 'SELECT count(*) FROM delivered WHERE mail NOT IN (SELECT id FROM mail)'),
		'0', "$what: no other");
	my $outside = outside();
	is(scalar(grep { !$outside->{$_} } split /\n/, in('mail', 'SELECT id FROM mail')),
		0, "$what: outside at least once");
	note in('mail', 'SELECT count(*), count(DISTINCT run) FROM delivered');
}

foreach my $d (@disasters)
{
	property "mail: one run at a time, no mail twice: $d->[0]" => sub {
		disaster('mail', <<'END', 'SELECT count(*) FROM delivered', $d->[1]);
\set what random(1, 4)
\if :what = 1
SELECT mail_tick();
\else
INSERT INTO mail (recipient, body) VALUES ('a@example.org', '');
\endif
END
		check_mails($d->[0]);
		in('mail', 'TRUNCATE mail, delivered');
	};
}

property 'mail: ticks of several servers during a run start no other' => sub {
	my $gate = close_gate(2000, db => 'mail');
	in('mail', q{INSERT INTO mail (recipient, body) SELECT 'a@example.org', '' FROM generate_series(1, 5)});
	my $run = in('mail', 'SELECT mail_tick()');
	wait_at_gate(1);
	in('mail', 'CREATE TABLE tick (run bigint)');
	start_pgbench('INSERT INTO tick SELECT mail_tick();', db => 'mail', clients => 8, transactions => 10)->finish;
	is(in('mail', 'SELECT count(*), count(run) FROM tick'), '80|0', 'no other run');
	# what is written meanwhile comes with the next one
	in('mail', q{INSERT INTO mail (recipient, body) VALUES ('b@example.org', '')});
	open_gate($gate);
	wait_drained(db => 'mail');
	in('mail', 'TRUNCATE tick');
	in('mail', 'SELECT mail_tick()');
	wait_drained(db => 'mail');
	is(in('mail', 'SELECT count(*), count(DISTINCT run) FROM delivered'), '6|2', 'two runs');
	check_mails('ticks');
	in('mail', 'DROP TABLE tick; TRUNCATE mail, delivered');
};

property 'mail: ticks at the same moment start one run' => sub {
	my ($s, $o) = (session(db => 'mail'), session(db => 'mail'));
	in('mail', q{SELECT jobqueue_pause('mail'); CREATE TABLE tick (run bigint)});
	$s->query_safe('BEGIN; INSERT INTO tick SELECT mail_tick()');
	send_sql($o, 'INSERT INTO tick SELECT mail_tick()');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO tick%' AND wait_event_type = 'Lock'});
	$s->query_safe('COMMIT');
	$o->query('SELECT 1');
	is(in('mail', 'SELECT count(*), count(run) FROM tick'), '2|1', 'one of the two');
	in('mail', q{SELECT jobqueue_resume('mail'); DROP TABLE tick});
	wait_drained(db => 'mail');
	$_->quit foreach ($s, $o);
};

property 'mail: a session that has the key keeps runs from starting' => sub {
	my $s = session(db => 'mail');
	$s->query_safe(q{SELECT jobqueue_lock('mailer')});
	in('mail', q{INSERT INTO mail (recipient, body) VALUES ('a@example.org', '')});
	my $run = in('mail', 'SELECT mail_tick()');
	wait_for("SELECT state = 'blocked' FROM jobqueue_jobs WHERE id = $run", 't', 'mail');
	is(in('mail', 'SELECT count(*) FROM delivered'), '0', 'nothing is sent');
	$s->query_safe(q{SELECT jobqueue_unlock('mailer')});
	check_mails('after it');
	$s->quit;
	in('mail', 'TRUNCATE mail, delivered');
};

paused_property 'mail: after a crash before the commit, in the database once, outside twice' => sub {
	in('mail', q{INSERT INTO mail (recipient, body) VALUES ('a@example.org', '')});
	my $mail = in('mail', 'SELECT id FROM mail');
	arm('worker-before-commit');
	in('mail', 'SELECT mail_tick()');
	my $pid = caught('worker-before-commit');
	my $crash = crash_offset();
	kill_hard($pid);
	wait_crash_restart($crash);
	check_mails('crash');
	is(outside()->{$mail}, 2, 'as the README says');
	in('mail', 'TRUNCATE mail, delivered');
};

# ---- mail by consumers -----------------------------------------------------

# a sendmail that keeps what it gets, an outside that knows of no transaction
my $bin = node()->basedir . '/bin';
my $sent = node()->basedir . '/sent';
mkdir $bin or die "$bin: $!";
append_to_file("$bin/sendmail", <<END);
#!/bin/sh
text=\$(cat)
case \$text in *fail*) exit 1 ;; esac
# one write, so that lines of several do not mix
printf '%s\\n' "\$text" | grep '^Message-ID' >> '$sent'
[ ! -e '$bin/hang' ] || { echo \$\$ > '$bin/hang'; exec sleep 600; }
END
chmod 0755, "$bin/sendmail";
append_to_file($sent, '');
append_to_file("$bin/consumer.sql", $recipe{consumer}[0]{sql});

sub consumer
{
	my ($loops) = @_;
	local %ENV = node()->_get_env(%ENV, PGDATABASE => 'mail', PATH => "$bin:$ENV{PATH}");
	my $out = '';
	# as the file says, but not for ever; for the last time in this process itself
	my $h = IPC::Run::start([ 'sh', '-c', <<END ], '<', \undef, '>', \$out, '2>&1');
consume="'$psql' -X -q -v ON_ERROR_STOP=1 -f '$bin/consumer.sql'"
i=1; while [ \$i -lt $loops ]; do eval "\$consume"; i=\$((i + 1)); done
eval "exec \$consume"
END
	$h->{out} = \$out;
	return $h;
}

# kill -9 of a consumer of one loop, and of its sendmail
sub kill_consumer
{
	my ($h) = @_;

	$h->signal('KILL');
	kill 'KILL', slurp_file("$bin/hang");
	eval { $h->finish };
}

# Message-ID => times
sub sent
{
	my %count;

	$count{$_}++ foreach slurp_file($sent) =~ /^Message-ID: <(\d+)@/mg;
	return \%count;
}

property 'outbox: each mail is sent once by several consumers' => sub {
	in('mail', q{INSERT INTO mail (recipient, body) SELECT 'a@example.org', E'It''s "one"\n$(two)' FROM generate_series(1, 40)});
	in('mail', 'SELECT hand_out_mails()');
	my @c = map { consumer(10) } 1 .. 4;
	in('mail', 'SELECT hand_out_mails()');
	$_->finish foreach @c;
	is(join('', map { ${ $_->{out} } } @c), '', 'not a word');
	is(in('mail', 'SELECT count(*) FROM mail WHERE sent_at IS NULL'), '0', 'all are marked');
	my $count = sent();
	is(join(' ', sort { $a <=> $b } keys %$count), join(' ', split /\n/, in('mail', 'SELECT id FROM mail ORDER BY id')), 'all of them');
	is(scalar(grep { $_ != 1 } values %$count), 0, 'each once');
	in('mail', 'DELETE FROM jobqueue_job; TRUNCATE mail');
};

property 'outbox: a consumer that is killed loses its mail to the next one' => sub {
	my $id = in('mail', q{INSERT INTO mail (recipient, body) VALUES ('a@example.org', '') RETURNING id});
	in('mail', 'SELECT hand_out_mails()');
	append_to_file("$bin/hang", '');
	my $c = consumer(1);
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'mail' AND state = 'idle in transaction'});
	is(in('mail', q{SELECT count(*) FROM jobqueue_keys WHERE pid IS NOT NULL}), '1', 'it has the key');
	usleep(10_000) until -s "$bin/hang";
	kill_consumer($c);
	unlink "$bin/hang";
	wait_for("SELECT attempt = 1 FROM jobqueue_jobs WHERE key = 'mail:$id'", 't', 'mail');
	in('mail', "SELECT jobqueue_reschedule(id, now()) FROM jobqueue_jobs WHERE key = 'mail:$id'");
	consumer(1)->finish;
	is(in('mail', "SELECT sent_at IS NOT NULL FROM mail WHERE id = $id"), 't', 'sent and marked');
	is(sent()->{$id}, 2, 'outside twice, as the README says');
	in('mail', 'TRUNCATE mail');
};

property 'outbox: a mail that sendmail refuses is tried again, others are not kept' => sub {
	my ($bad, $good) = split /\n/, in('mail', q{INSERT INTO mail (recipient, body) VALUES ('a@example.org', 'fail'), ('b@example.org', '') RETURNING id});
	in('mail', q{SELECT jobqueue_configure('outbox', backoff_base => '1 h'); SELECT hand_out_mails()});
	consumer(2)->finish;
	is(in('mail', 'SELECT id FROM mail WHERE sent_at IS NOT NULL'), $good, 'the good one');
	is(in('mail', q{SELECT key, attempt, errors->0->>'error' FROM jobqueue_jobs WHERE queue = 'outbox'}), "mail:$bad|1|sendmail failed", 'the bad one');
	is(in('mail', 'SELECT hand_out_mails()'), '0', 'has its job already');
	in('mail', 'DELETE FROM jobqueue_job; TRUNCATE mail');
};

property 'outbox: a run with an old snapshot has no mail sent again' => sub {
	my ($one, $two) = split /\n/, in('mail', q{INSERT INTO mail (recipient, body) VALUES ('a@example.org', ''), ('b@example.org', '') RETURNING id});
	my ($s, $o) = (session(db => 'mail'), session(db => 'mail'));
	# the run comes to a stop at the first mail, with its snapshot
	$s->query_safe("BEGIN; SELECT jobqueue_enqueue(NULL, queue => 'outbox', unique_key => 'mail:$one')");
	send_sql($o, 'SELECT hand_out_mails()');
	wait_for(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT hand_out%' AND wait_event_type = 'Lock'});
	in('mail', "SELECT jobqueue_enqueue(NULL, jsonb_build_object('mail', $two), queue => 'outbox', key => 'mail:$two', unique_key => 'mail:$two')");
	consumer(1)->finish;
	is(sent()->{$two}, 1, 'the second is sent meanwhile');
	$s->query_safe('ROLLBACK');
	$o->query('SELECT 1');
	is(in('mail', 'SELECT count(*) FROM jobqueue_job'), '2', 'the run has handed out both');
	consumer(2)->finish;
	wait_drained(db => 'mail');
	is(sent()->{$_}, 1, 'sent once') foreach ($one, $two);
	$_->quit foreach ($s, $o);
};

done_testing();
