#!/usr/bin/env bash
#
# run.sh [-k] [PATTERN]: checks the models and their mutations, and prints a table;
# only lines whose name matches PATTERN; -k keeps the work directory with the
# trails (spin -p -t DEFINES jobs.pml shows one).
#
# With all rules in force everything must hold; with one switched off (NO_x) Spin
# must find a counter-example ("caught"), or a cycle in which everybody moves and no
# job ends ("stuck"; "lives" if there is none). Each line takes at most 3 GB, and
# five minutes of the processor: on a busy machine all of it lasts longer, and says
# the same. "cpu" is what Spin took of it, in seconds.

set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
keep=
if [ "${1:-}" = -k ]; then
	keep=1
	shift
fi
pattern=${1:-.}
model="jobs"
"$here/../setup.sh" model
work=$(mktemp -d)
if [ -n "$keep" ]; then
	echo "in $work"
else
	trap 'rm -rf "$work"' EXIT
fi
cd "$work"
bad=0
lines=0
cpu=0
start=$SECONDS

# check NAME EXPECTED [DEFINE ...]: expected is ok or caught; or lives or stuck, where
# cycles are searched for, too
check()
{
	local name=$1 expected=$2 level got states secs why
	local mode=-DSAFETY options='' good=ok
	shift 2
	[[ $name =~ $pattern ]] || return 0
	mkdir "$name"
	cp "$here"/*.pml "$name"
	cd "$name"
	spin -a -DNOABORT "$@" $model.pml >spin.out 2>&1 || { cat spin.out; exit 1; }
	case $expected in
		lives | stuck) mode='-DNP -DNFAIR=3' options='-l -f' good=lives ;;
	esac
	# much is compiled, and little of it runs for long
	[ "$expected" = $good ] && level=-O1 || level=-O0
	# shellcheck disable=SC2086 # they are lists of options
	gcc $level -w $mode -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=3000 -o pan pan.c
	# shellcheck disable=SC2086
	secs=$( (ulimit -t 300; ./pan -E $options -m300000 >out 2>&1 || true; times) |
		awk -F '[ms ]' 'NR == 2 { printf "%.1f", 60 * $1 + $2 }')
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' out)
	why=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' out | tr -s ' ' | cut -c1-60)
	if grep -q '^pan:1: non-progress cycle' out; then
		got=stuck
	elif grep -q 'errors: 1' out; then
		got=caught
	elif grep -q 'errors: 0' out &&
		! grep -qE 'out of memory|max search depth|Search not completed' out; then
		got=$good
	else
		got=unfinished
	fi
	lines=$((lines + 1))
	cpu=$(awk "BEGIN { printf \"%.1f\", $cpu + $secs }")
	if [ $got != "$expected" ]; then
		bad=$((bad + 1))
		got="$got (!)"
	fi
	printf '%-22s %-10s %9s %6s  %s\n' "$name" "$got" "$states" "$secs" "$why"
	cd ..
	[ -n "$keep" ] || rm -rf "$name"
}

one='-DNW=1 -DC0=1 -DC1=0'			# one job, one worker
both='-DNW=1 -DC0=3 -DC1=0'			# two jobs of one transaction
three='-DNW=1 -DNJ=3 -DC0=5 -DC1=2 -DCAP=1'
full="$both -DCAP=1"
due="$full -DDELAY=1 -DNFAIL=1"
old="$one -DNFAIL=1 -DNRERUN=1 -DSTRANGER=2"	# entries older than the row
cancel="$full -DCANCEL=1"
late="$full -DDELAY=1 -DCANCEL=0"	# its row is locked when it is to become ready
many="$one -DDELAY=1 -DCANCEL=0 -DMANY_AT_ONCE"
retry='-DC0=1 -DC1=0 -DSTRANGER=1 -DCANCEL=0 -DRETRY'
delete="$both -DDELETE=1"
exits="$one -DNFAIL=1 -DNEXIT=1"
leaves="$one -DNFAIL=1 -DNEXIT=1 -DSTRANGER=1"
dies="$one -DNFAIL=1 -DNSEXIT=1 -DSTRANGER=1"
crash="$one -DNFAIL=1 -DNCRASH=1 -DTELL"
prep="$one -DPREP=1"
keys='-DC0=3 -DC1=0 -DKEYED=3'
session='-DNW=1 -DC0=3 -DC1=0 -DKEYED=3 -DSESSION -DMAXW=0'
alone='-DNL=1 -DJ0=2 -DJ1=0'			# one lane, two workers
tokens="$alone -DRATE=1 -DMAX0=0"
raised="$alone -DMAX0=1 -DMAX1=2 -DLONG"
given="$alone -DMAX0=0 -DMAX1=1"
line="-DJ0=3 -DNW=3 -DMAX0=2 -DLONG -DSTARTED"
# both workers are there and run from the beginning, and one job more comes
lowered='-DNL=1 -DJ0=2 -DMAX0=2 -DMAX1=1 -DSTARTED -DLAUNCHER'
order_far='-DORDERED=1 -DNFAIL=1 -DLIM0=2 -DFAR'
shared='-DNJ=3 -DLANE1=2 -DLIM0=2'
keyset='-DNJ=3 -DNW=3 -DLIM0=1 -DSET0=3 -DLONG=3'
order='-DORDERED=1 -DNFAIL=1'
suspects='-DNJ=3 -DSUSPECT=3 -DLIM0=2 -DLONG=3'
told='-DNW=1 -DC0=2 -DC1=1 -DKEYED=2 -DSESSION -DHELD -DCAP=2 -DCANCEL=1 -DRESCHEDULE'
starve='-DC0=1 -DC1=2 -DLANE1=2 -DCAP=1'
room='-DWAITS=0 -DKEY1=2 -DNKEYS=1 -DMAX=2'	# two unique_keys, one digest

# shellcheck disable=SC2086 # they are lists of options
{
	printf '%-22s %-10s %9s %6s  %s\n' name result states cpu violated
	echo '--- all rules in force'
	check three ok $three -DORDER
	check order_commit ok $both -DORDER
	check due ok $due
	check old ok $old
	check one_runner ok -DC0=1 -DC1=0 -DSTRANGER=1
	check cancel ok $cancel
	check reschedule ok $cancel -DRESCHEDULE
	check late ok $late
	check many ok $many
	check retry ok $retry
	check delete ok $delete
	check delete_prepared ok $one -DDELETE=0 -DHPREP
	check exits ok $exits
	check leaves ok $one -DNEXIT=1 -DSTRANGER=1
	check dies ok $dies
	check crash ok $crash
	check prepared ok $prep
	check prepared_crash ok $prep -DNCRASH=1
	check by_hand ok $both -DBYHAND=1
	check savepoint ok $both -DSUB=2
	check starve ok $starve
	check keys ok $keys
	check session ok $session
	check session_cancel ok $session -DCANCEL=1
	check told ok $told
	model=limits
	check places ok
	check places_exits ok -DNEXIT=1
	check places_linger ok -DLINGER
	check tokens ok $tokens
	check tokens_long ok $tokens -DLONG
	check limit_lifted ok $alone -DMAX0=1 -DMAX1=0
	check limit_raised ok $raised
	check limit_given ok $given
	check limit_lowered ok $lowered
	check limit_line ok $line
	model=keys
	check key_limit ok -DNJ=3 -DLIM0=2 -DLONG=1
	check key_limit_shared ok $shared
	check key_limit_set ok $keyset
	check key_limit_lowered ok -DNJ=3 -DLIM0=2 -DSET0=1
	check key_order ok $order
	check key_order_far ok $order_far
	check key_order_shared ok -DNJ=3 -DORDERED=1 -DNFAIL=2 -DLIM0=2
	check suspects ok $suspects
	check suspects_order ok -DNJ=3 -DORDERED=1 -DNFAIL=1 -DSUSPECT=1 -DLIM0=2 -DLANE1=2
	model=leases
	check fetched ok -DNJ=2
	check fetched_exit ok -DNJ=2 -DNEXIT=1
	check fetched_cancel ok -DNCANCEL=1
	check leased ok -DLEASE
	check leased_cancel ok -DNC=1 -DLEASE -DNCANCEL=1
	check leased_crash ok -DNC=1 -DLEASE -DNCRASH=1
	model=unique
	check unique ok
	check unique_behind ok -DWAITS=2
	check unique_both_wait ok -DWAITS=3 -DMAX=2
	check unique_together ok -DMAX=2 -DNEXIT=1
	check unique_three ok -DNJ=3 -DWAITS=5
	check unique_room ok $room
	check unique_lives lives
	check unique_lives_together lives -DMAX=2 -DNEXIT=1
	check unique_lives_room lives $room
	echo '--- one rule switched off'
	model="jobs"
	check no_R1 caught $three -DNO_R1
	check no_R4 caught $three -DNO_R4
	check no_R5 caught $three -DNO_R5
	check no_CLEAR_FIRST caught $three -DNO_CLEAR_FIRST
	check no_TAKE_KNOWN caught $three -DORDER -DNO_TAKE_KNOWN
	check no_HOLD_BACK caught $both -DORDER -DNO_HOLD_BACK
	check no_HOLD_BACK_WAKE caught $both -DNO_HOLD_BACK_WAKE
	check no_AFTER_COMMIT caught $both -DNO_AFTER_COMMIT
	check no_SKIP_CLAIMED caught -DC0=1 -DC1=0 -DSTRANGER=1 -DNO_SKIP_CLAIMED
	check no_LOOK caught $delete -DNO_LOOK
	check no_LOOK_DUE caught $old -DNO_LOOK_DUE
	check no_TWIN_DUE caught $old -DNO_TWIN_DUE
	check no_FLAG_OF_ROW caught $old -DNO_FLAG_OF_ROW
	check no_EXIT_DUE caught $leaves -DNO_EXIT_DUE
	check no_MAKE_READY caught $due -DNO_MAKE_READY
	check no_MADE_READY caught $late -DNO_MADE_READY
	check no_ABORT_PUBLISH caught $cancel -DNO_ABORT_PUBLISH
	check no_PASSED caught $many -DNO_PASSED
	check no_COME_BACK caught $retry -DNO_COME_BACK
	check no_DOUBTFUL caught $delete -DNO_DOUBTFUL
	check no_CLAIM_UNTIL_RECORD caught $exits -DNO_CLAIM_UNTIL_RECORD
	check no_HOLD_INTERRUPTS caught $exits -DNO_HOLD_INTERRUPTS
	check no_EXIT_FAILING caught $exits -DNO_EXIT_FAILING
	check no_EXIT_PUBLISH caught $exits -DNO_EXIT_PUBLISH
	check no_EXIT_WANTED caught $exits -DNO_EXIT_WANTED
	check no_SCHED_ALL caught $dies -DNO_SCHED_ALL
	check no_ABANDON caught $dies -DNO_ABANDON
	check no_START_UNKNOWN caught $crash -DNO_START_UNKNOWN
	check no_FLUSH_TELL caught $crash -DNO_FLUSH_TELL
	check no_PREPARED_AFTER caught $prep -DNO_PREPARED_AFTER
	check no_PREPARED_LONG_AGO caught $prep -DNCRASH=1 -DNO_PREPARED_LONG_AGO
	check no_LOOK_BEFORE_SLEEP caught $one -DNO_LOOK_BEFORE_SLEEP
	check no_UNSTARVE caught $starve -DNO_UNSTARVE
	check no_KEY_UNTIL_COMMIT caught $keys -DNO_KEY_UNTIL_COMMIT
	check no_EXIT_KEY caught $one -DKEYED=1 -DNEXIT=1 -DNO_EXIT_KEY
	check no_GIVE_BACK caught $session -DNO_GIVE_BACK
	check no_KEY_ASK caught $session -DNO_KEY_ASK
	check no_TOLD caught $told -DNO_TOLD
	check no_DROPPED caught $session -DCANCEL=1 -DNO_DROPPED
	model=limits
	check no_JOIN_LOOK caught -DNO_JOIN_LOOK
	check no_GIVE_SERVES caught -DNO_GIVE_SERVES
	check no_LEAVE_FIRST caught $line -DNO_LEAVE_FIRST
	check no_PUBLISH_FIRST caught -DNO_PUBLISH_FIRST
	check no_CALLED_AWAKE caught -DLINGER -DNO_CALLED_AWAKE
	check no_EXIT_PLACE caught -DNEXIT=1 -DNO_EXIT_PLACE
	check no_WANTED_LOOK caught -DNO_WANTED_LOOK
	check no_ARM caught $tokens -DNO_ARM
	check no_START_SERVES caught $tokens -DLONG -DNO_START_SERVES
	check no_SET_TELLS caught $raised -DNO_SET_TELLS
	check no_COUNTED caught $given -DNO_COUNTED
	check no_KEEP caught $lowered -DNO_KEEP
	model=keys
	check no_SHARED_LIMIT caught $shared -DNO_SHARED_LIMIT
	check no_SET_LOOK caught $keyset -DNO_SET_LOOK
	check no_UNPARK_NEXT caught $keyset -DNO_UNPARK_NEXT
	check no_ORDER_FIRST caught $order -DNO_ORDER_FIRST
	check no_ORDER_RECORDED caught $order -DNO_ORDER_RECORDED
	check no_ORDER_LOOK caught $order_far -DNO_ORDER_LOOK
	check no_TURN caught $suspects -DNO_TURN
	check no_TURN_GOES_ON caught $suspects -DNO_TURN_GOES_ON
	check no_TURN_FREES caught $suspects -DNO_TURN_FREES
	model=leases
	check no_KEY_LAST caught -DNJ=2 -DNO_KEY_LAST
	check no_EXIT_LOSE caught -DNEXIT=1 -DNO_EXIT_LOSE
	check no_CANCEL_BACK caught -DNCANCEL=1 -DNO_CANCEL_BACK
	check no_DUE_AFTER caught -DLEASE -DNO_DUE_AFTER
	check no_TOKEN caught -DLEASE -DNO_TOKEN
	check no_PIN caught -DLEASE -DNO_PIN
	check no_PINNED caught -DLEASE -DNO_PINNED
	check no_UNDO_ASKS caught -DLEASE -DNO_UNDO_ASKS
	check no_LEASE_ROW caught -DLEASE -DNCRASH=1 -DNO_LEASE_ROW
	check no_LEASES_FIRST caught -DLEASE -DNCRASH=1 -DNO_LEASES_FIRST
	model=unique
	check no_LOCK_FIRST caught -DNO_LOCK_FIRST
	check no_LOCK_FIRST_lives stuck -DMAX=2 -DNO_LOCK_FIRST -DNO_BLAME
	check no_LOCK_FIRST_keeps stuck -DMAX=2 -DNC=1 -DNO_LOCK_FIRST -DKEEPS -DNO_BLAME
	check no_GONE_LATER caught -DNO_GONE_LATER
	check no_ENDING_LATER caught -DNO_ENDING_LATER
	check no_WANTS_KEY caught $room -DNO_WANTS_KEY
	check no_SPARE caught $room -DNO_SPARE
	check no_ROOM_LOOK caught $room -DNO_ROOM_LOOK
	check no_ROOM_TELLS caught $room -DNO_ROOM_TELLS
}
echo "$lines lines, $bad not as expected, $cpu s of the processor, $((SECONDS - start)) s"
[ "$bad" = 0 ] && [ "$lines" -gt 0 ]
