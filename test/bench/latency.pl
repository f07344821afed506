#!/usr/bin/env perl
#
# latency.pl SOCKET DATABASE ROLE SYNCHRONOUS_COMMIT SAMPLES PAUSE_MS
#
# How long from before the client sends its SELECT jobqueue_enqueue(...) to the
# first line of the job, on an otherwise idle system: one job at a time, the
# next one when the former has ended, its worker sleeps again, and PAUSE_MS
# have passed. Client and server read the same clock.
#
# It speaks the wire protocol itself, since any other program in between would
# be measured too. Prints, in microseconds: p50, p99 and maximum of the
# samples; p50 of an enqueue and of a plain INSERT from sending to the reply.

use strict;
use warnings;

use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

die "usage: latency.pl SOCKET DATABASE ROLE SYNCHRONOUS_COMMIT SAMPLES PAUSE_MS\n"
  if @ARGV != 6;
my ($socket, $database, $role, $commit, $samples, $pause) = @ARGV;
my $warm_up = 20;

sub read_exactly
{
	my ($conn, $length) = @_;
	my $data = '';

	while (length($data) < $length)
	{
		sysread($conn, $data, $length - length($data), length($data))
		  or die "the server closed the connection\n";
	}
	return $data;
}

# Reads up to ReadyForQuery; returns the columns of the last row.
sub read_reply
{
	my ($conn) = @_;
	my ($error, @row);

	while (1)
	{
		my ($type, $length) = unpack('a N', read_exactly($conn, 5));
		my $body = $length > 4 ? read_exactly($conn, $length - 4) : '';

		if ($type eq 'Z')
		{
			die "$error\n" if defined $error;
			return @row;
		}
		elsif ($type eq 'D')
		{
			my $n = unpack('n', $body);
			my $at = 2;

			@row = ();
			for (1 .. $n)
			{
				my $size = unpack('l>', substr($body, $at, 4));

				push @row, $size < 0 ? undef : substr($body, $at + 4, $size);
				$at += 4 + ($size < 0 ? 0 : $size);
			}
		}
		elsif ($type eq 'E')
		{
			my %field = map { substr($_, 0, 1) => substr($_, 1) }
			  grep { length } split(/\0/, $body);

			$error = $field{M} // 'unknown error';
		}
		elsif ($type eq 'R' && unpack('N', $body) != 0)
		{
			die "the server asks for a password\n";
		}
	}
}

sub connect_as
{
	my ($user) = @_;
	my $conn = IO::Socket::UNIX->new(Peer => $socket)
	  or die "no connection to $socket: $!\n";
	my $startup = pack('N', 196608)
	  . join('', map { "$_\0" } user => $user, database => $database) . "\0";

	syswrite($conn, pack('N', length($startup) + 4) . $startup);
	read_reply($conn);
	return $conn;
}

sub query
{
	my ($conn, $text) = @_;

	syswrite($conn, 'Q' . pack('N', length($text) + 5) . "$text\0");
	return read_reply($conn);
}

# Polls, and says what did not come.
sub wait_until
{
	my ($what, $check) = @_;
	my $deadline = time() + 30;

	until ($check->())
	{
		die "not within 30 s: $what\n" if time() > $deadline;
		sleep(0.001);
	}
}

sub percentile
{
	my ($p, @values) = @_;

	@values = sort { $a <=> $b } @values;
	my $rank = int($p * @values / 100 + 0.999999) || 1;
	return 1e6 * $values[$rank - 1];
}

my $client = connect_as($role);
my $watcher = connect_as('postgres');

query($client, "SET synchronous_commit = $commit");
my (@latency, @enqueue, @insert);

for my $i (1 .. $samples + $warm_up)
{
	my $before = time();

	query($client, "SELECT jobqueue_enqueue('latency', '$i')");
	my $replied = time();

	my $started;
	wait_until("start of job $i", sub {
		($started) = query($watcher,
			"SELECT extract(epoch FROM started) FROM latency_sample WHERE id = $i");
		return defined $started;
	});
	wait_until("idle workers", sub {
		return (query($watcher,
			"SELECT count(*) FROM jobqueue_workers WHERE state <> 'idle'"))[0] == 0;
	});
	sleep($pause / 1000);

	if ($i > $warm_up)
	{
		push @latency, $started - $before;
		push @enqueue, $replied - $before;
	}
}
for my $i (1 .. $samples / 4 + $warm_up)
{
	my $before = time();

	query($client, "INSERT INTO plain (payload) VALUES ('$i')");
	push @insert, time() - $before if $i > $warm_up;
	sleep($pause / 1000);
}

printf "%.0f %.0f %.0f %.0f %.0f\n", percentile(50, @latency),
  percentile(99, @latency), percentile(100, @latency), percentile(50, @enqueue),
  percentile(50, @insert);
