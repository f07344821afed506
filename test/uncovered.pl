#!/usr/bin/perl
#
# uncovered.pl LIST REPORT ...: the lines of gcov's reports (lane.c.gcov) that no
# test ran, without those that LIST gives a reason for; "file:line:function:text"
# each, and which entries of LIST stand for no line at all. To standard error:
# how many are explained, and which entries of LIST explain nothing.
#
# LIST: a comment is the reason for the entries below it. An entry is a file (* =
# any), a function in it (* = any) and, optionally, a part of the line; without it
# the entry stands for the whole function. With " ..." after the part, it stands
# also for what follows that line (which may have run, be it a condition or only a
# comment), up to the next line that was run.

use strict;
use warnings;

my ($list, @reports) = @ARGV;
my (%entries, @order);

open my $in, '<', $list or die "$list: $!";
while (my $line = <$in>)
{
	chomp $line;
	next if $line =~ /^\s*(#|$)/;
	my ($file, $function, $text) = split / /, $line, 3;
	die "$list: \"$line\"?\n" unless defined $function;
	my $on = defined $text && $text =~ s/ \.\.\.$//;
	my $entry = {
		line => $line, function => $function, text => $text, on => $on, n => 0, there => 0 };
	push @{ $entries{$file} }, $entry;
	push @order, $entry;
}
close $in;

my ($explained, $left) = (0, 0);
foreach my $report (@reports)
{
	my ($file, $function) = ('', '');
	my $on;    # the entry that stands for what follows

	open my $in, '<', $report or die "$report: $!";
	while (my $row = <$in>)
	{
		my ($count, $number, $text) = $row =~ /^\s*([^:]+):\s*(\d+):(.*)$/ or next;

		$file = "src/$1" if $text =~ m{^Source:(?:.*/)?(.*)};
		next if $number == 0;
		$function = $1 if $text =~ /^([a-z]\w*)\(/;
		my @meant = grep {
			($_->{function} eq '*' || $_->{function} eq $function)
			  && (!defined $_->{text} || index($text, $_->{text}) >= 0)
		} @{ $entries{$file} || [] }, @{ $entries{'*'} || [] };
		my $entry = $meant[0];
		$_->{there} = 1 foreach @meant;
		if ($entry && $entry->{on})
		{
			$on = $entry;
		}
		elsif ($on && $count =~ /^\d/)
		{
			$on = undef;
		}
		next unless $count =~ /^#####/;
		$entry ||= $on;
		if ($entry)
		{
			$entry->{n}++;
			$explained++;
			next;
		}
		$left++;
		print "$file:$number:$function:$text\n";
	}
	close $in;
}
print "no such line: $_->{line}\n" foreach grep { !$_->{there} } @order;
print STDERR "$explained lines that no test ran are explained in $list, $left are not\n";
print STDERR "explains nothing: $_->{line}\n" foreach grep { $_->{n} == 0 } @order;
