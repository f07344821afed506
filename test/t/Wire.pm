# Wire: a connection that sends what it is given, byte by byte: texts that psql
# would take to pieces, and messages that it has no command for.

package Wire;

use strict;
use warnings;

use IO::Socket::UNIX;
use Time::HiRes 'time';

# Wire->new(host, port, database, user)
sub new
{
	my ($class, $host, $port, $db, $user) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => "$host/.s.PGSQL.$port")
	  or die "could not connect: $!\n";
	my $self = bless { socket => $socket, buffer => '', db => $db, user => $user }, $class;
	my $start = pack('N', 196608) . join("\0", 'user', $user, 'database', $db, 'application_name', 'wire', '', '');

	syswrite $socket, pack('N', length($start) + 4) . $start;
	my $answer = $self->answer(60);
	die "could not connect: $answer->{state} $answer->{message}\n" if defined $answer->{state};
	return $self;
}

sub send
{
	my ($self, $type, $body) = @_;
	my $out = $type . pack('N', length($body) + 4) . $body;

	while (length $out)
	{
		my $n = syswrite $self->{socket}, $out;
		last unless $n;    # who reads sees the end
		substr($out, 0, $n) = '';
	}
}

sub message
{
	my ($self, $until) = @_;

	for (;;)
	{
		if (length $self->{buffer} >= 5)
		{
			my ($type, $length) = unpack 'aN', $self->{buffer};

			if (length $self->{buffer} > $length)
			{
				my $body = substr $self->{buffer}, 5, $length - 4;

				substr($self->{buffer}, 0, $length + 1) = '';
				return ($type, $body);
			}
		}
		my $bits = '';
		my $left = $until - time;
		vec($bits, fileno $self->{socket}, 1) = 1;
		return ('late', '') if $left <= 0 || !select($bits, undef, undef, $left);
		return ('gone', '')
		  unless sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};
	}
}

# The answer up to "ready": state and message of the first error, tags, rows
# (arrays), copy (either direction was asked for), status of the transaction;
# gone = the connection has ended; late = it lasted longer than that.
sub answer
{
	my ($self, $seconds) = @_;
	my %a = (tags => [], rows => [], warnings => []);
	my $until = time + $seconds;

	for (;;)
	{
		my ($type, $body) = $self->message($until);

		if ($type eq 'Z') { $a{status} = $body; last; }
		elsif ($type eq 'gone' || $type eq 'late')
		{
			$a{$type} = 1;
			$self->{gone} = 1;
			last;
		}
		elsif ($type eq 'E' || $type eq 'N')
		{
			my %fields = map { (substr($_, 0, 1), substr($_, 1)) } grep { length } split /\0/, $body;

			if ($type eq 'N') { push @{ $a{warnings} }, $fields{M} if $fields{V} eq 'WARNING'; }
			elsif (!defined $a{state})
			{
				($a{state}, $a{message}) = @fields{qw(C M)};
			}
		}
		elsif ($type eq 'C') { push @{ $a{tags} }, substr($body, 0, -1); }
		elsif ($type eq 'I') { $a{empty} = 1; }
		elsif ($type eq 'D')
		{
			my $n = unpack 'n', $body;
			my @row;
			my $at = 2;

			foreach (1 .. $n)
			{
				my $length = unpack 'N', substr $body, $at, 4;

				$at += 4;
				if ($length == 0xffffffff) { push @row, undef; next; }
				push @row, substr $body, $at, $length;
				$at += $length;
			}
			push @{ $a{rows} }, \@row if @{ $a{rows} } < 100;
		}
		elsif ($type eq 'G')
		{
			$a{copy} = 1;
			$self->send('f', "no\0");
		}
		elsif ($type eq 'H') { $a{copy} = 1; }
	}
	return \%a;
}

# the text as it is, statements in turn
sub query
{
	my ($self, $text, $seconds) = @_;

	$self->send('Q', "$text\0");
	return $self->answer($seconds || 60);
}

# parsed, and nothing else
sub parse
{
	my ($self, $text, $seconds) = @_;

	$self->send('P', "\0$text\0" . pack('n', 0));
	$self->send('S', '');
	return $self->answer($seconds || 60);
}

# one statement with parameters, as text
sub execute
{
	my ($self, $text, @params) = @_;

	$self->send('P', "\0$text\0" . pack('n', 0));
	$self->send('B',
		"\0\0" . pack('nn', 0, scalar @params)
		  . join('', map { defined $_ ? pack('N', length $_) . $_ : pack('N', 0xffffffff) } @params)
		  . pack('n', 0));
	$self->send('E', "\0" . pack('N', 0));
	$self->send('S', '');
	return $self->answer(60);
}

sub close
{
	my ($self) = @_;

	$self->send('X', '') unless $self->{gone};
	close $self->{socket};
}

1;
