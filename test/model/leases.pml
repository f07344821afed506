/*
 * leases.pml: jobs in the hands of outside consumers (fetched.c, fetchend.c,
 * fetchxact.c, lease.c). Two jobs of one key and one lane, consumers that fetch
 * with or without a lease, the scheduler, time, crashes.
 *
 * A d_step is one hold of LWLocks, one snapshot, or one commit becoming visible.
 *
 * -DNO_x breaks rule x.
 */
#ifndef NC
#define NC		2			/* consumers; each has a session of its own */
#endif
#ifndef NJ
#define NJ		1			/* jobs, numbered in their order */
#endif
#ifndef NCRASH
#define NCRASH	0
#endif
#ifndef NEXIT
#define NEXIT	0			/* sessions that end while they have a job */
#endif
#ifndef NCANCEL
#define NCANCEL	0			/* jobqueue_cancel(0) */
#endif
#ifdef LEASE
#define LEASED	1
#else
#define LEASED	0
#endif
#define ALL(x)	for (x : 0 .. NJ - 1)

/* st[]: the claim */
#define NONE	0
#define TAKING	1
#define HELD	2
#define LOST	3
/* fate[] */
#define EXTEND	1
#define END		2

/* ---- durable ---- */
bool live[NJ];				/* its row */
byte lrow[NJ];				/* its lease in the table: the token; 0: none */
bool due[NJ];				/* the row has a run_at, which has come */
/* ---- memory ---- */
bool inlane[NJ], parked[NJ];
byte st[NJ], fate[NJ], fowner[NJ], whose[NJ], tok[NJ];
bool over[NJ], cancel[NJ];	/* leased_until has passed */
byte holder;				/* of the key: job + 1 of a claim */
bool leases_read, filled;	/* memory knows the leases, the lane */
bool rleases, rfailed, rdue;	/* asked of the scheduler */

/* ---- for the properties ---- */
byte owner[NJ];				/* consumer + 1 that was told it has the job */
byte has[NC];				/* the token that a consumer knows; it may be an old one */
byte ncrash, nexit;
byte done[NJ];
bool gone[NJ], asked[NJ];	/* cancelled; or it is to be */
hidden byte i_;
hidden byte f_;

#define OUT(x)	(st[x] != NONE)
#if NJ == 1
#define INLANE	inlane[0]
#define KNOWN(t)	(t == tok[0] || t == lrow[0] || (NC > 1 && t == has[(me + 1) % NC]))
#else
#define INLANE	(inlane[0] || inlane[1])
#define KNOWN(t)	(t == tok[0] || t == lrow[0] || t == tok[1] || t == lrow[1] || (NC > 1 && t == has[(me + 1) % NC]))
#endif

inline publish(x) { if :: live[x] && !parked[x] -> inlane[x] = true :: else fi }

inline unkey(x)				/* jq_keylock_release_of_claim: the first waiter goes on */
{
	if
	:: holder == x + 1 ->
		holder = 0; f_ = 0;
		ALL(i_) { if :: parked[i_] && f_ == 0 -> parked[i_] = false; inlane[i_] = true; f_ = 1 :: else fi }
	:: else
	fi
}

/* remove_claim: mt: it does not go on, as it was cancelled meanwhile */
inline remove(x, back)
{
	mt = false;
	if
#ifndef NO_CANCEL_BACK
	:: (back) && cancel[x] -> st[x] = LOST; fate[x] = 0; rfailed = true; mt = true
#endif
	:: else -> st[x] = NONE; fate[x] = 0; tok[x] = 0; whose[x] = 0; over[x] = false; cancel[x] = false
	fi
}

inline end_lane(x)			/* jq_fetched_end, JQ_THEN_LANE */
{
#ifdef NO_KEY_LAST
	d_step { unkey(x) };
#endif
	d_step { remove(x, true) };
	d_step { if :: !mt -> publish(x) :: else fi; mt = false };
#ifndef NO_KEY_LAST
	d_step { unkey(x) }
#endif
}

inline end_gone(x)			/* the same for one that has ended, or whose row says more */
{
	d_step { unkey(x) };
	d_step { remove(x, false); mt = false }
}

/* jq_fetched_lose: of a session that ends, a lease that is over, a cancelled one */
inline lose(x, why)
{
	d_step {
		mt = (st[x] == HELD && (why));
#ifndef NO_PINNED
		if :: fate[x] != 0 -> mt = false :: else fi;
#endif
		if :: mt -> fate[x] = END; fowner[x] = NC + 1; owner[x] = 0 :: else fi
	};
	if
	:: mt ->
		d_step { unkey(x) };
		d_step { st[x] = LOST; fate[x] = 0; rfailed = true; mt = false }
	:: !mt
	fi
}

proctype consumer(byte me)
{
	byte j, ep, how;
	bool mt;

start:	skip;
	ep = ncrash;
	{
		do
		:: /* take: the claim, and its key, in one hold of the lane's lock */
			d_step {
				leases_read && filled && INLANE ->	/* nothing is taken before */
				j = NJ;
				ALL(i_) {
					if
					:: j == NJ && inlane[i_] ->
						inlane[i_] = false;
						if
						:: OUT(i_)					/* a duplicate */
						:: !OUT(i_) && holder != 0 -> parked[i_] = true
						:: !OUT(i_) && holder == 0 -> j = i_
						fi
					:: else
					fi
				};
				if
				:: j < NJ ->
					holder = j + 1;
					st[j] = TAKING; whose[j] = me + 1; cancel[j] = false;
					/* its key is one job's, and what is before it is out */
					ALL(i_) {
						assert(i_ == j || owner[i_] == 0);
						assert(!(i_ < j && live[i_] && !due[i_] && !OUT(i_)))
					};
					assert(!asked[j]);
					assert(owner[j] == 0)			/* nor has anybody been told so */
				:: else
				fi
			};
			if
			:: j == NJ -> goto again
			:: j < NJ
			fi;
			/* the row is there */
			if
			:: d_step { !live[j] -> skip }; end_gone(j); goto again
			:: d_step {								/* with a token that nobody knows */
					live[j] ->
					has[me] = 1;
					do
					:: KNOWN(has[me]) -> has[me]++
					:: else -> break
					od;
					tok[j] = has[me] }
			fi;
			if
			:: d_step {								/* COMMIT, flushed: the lease is in the table */
#if LEASED && !defined(NO_LEASE_ROW)
					lrow[j] = has[me];
#endif
					owner[j] = me + 1 };
				/* carry_out: jq_fetched_keep */
				d_step {
					st[j] = HELD;
					if :: LEASED -> whose[j] = 0 :: else fi;
					how = (cancel[j] && LEASED)
				};
				if
				:: how == 1 -> how = 0; lose(j, true)
				:: how == 0
				fi
			:: end_lane(j); goto again				/* ROLLBACK */
			fi;
			/* it works; then, in another transaction, it ends the claim */
			if
			:: true -> how = 1						/* complete */
			:: true -> how = 2						/* release */
#if LEASED
			:: true -> how = 3						/* extend, then complete */
			:: true -> goto again					/* it is never heard of again */
#endif
#if NEXIT
			:: !LEASED && nexit < NEXIT ->			/* the session ends */
				nexit++;
#ifndef NO_EXIT_LOSE
				lose(j, whose[j] == me + 1);
#else
				owner[j] = 0; whose[j] = NC + 1;
#endif
				goto again
#endif
			fi;
pins:		skip;
			d_step {
				mt = false;
				if
#ifndef NO_TOKEN
				:: st[j] == HELD && (LEASED -> tok[j] == has[me] : whose[j] == me + 1) &&
#else
				:: st[j] == HELD &&
#endif
					(fate[j] == 0 || fowner[j] == me + 1) && !cancel[j] && !over[j] ->
					mt = true
#ifndef NO_PIN
					; fate[j] = (how == 3 -> EXTEND : END); fowner[j] = me + 1
#endif
				:: else
				fi
			};
			if
			:: !mt ->								/* refused: whoever is told so has it no more */
				lose(j, cancel[j] && !LEASED && whose[j] == me + 1);
				goto again
			:: mt -> mt = false
			fi;
			if
			:: d_step {								/* COMMIT */
					if
					:: how == 1 ->
						assert(live[j] && owner[j] == me + 1);	/* it is still its own */
						live[j] = false; done[j]++; lrow[j] = 0; due[j] = false
					:: how == 2 -> lrow[j] = 0
					:: how == 3 -> assert(owner[j] == me + 1)
					fi;
					if :: how != 3 -> owner[j] = 0 :: else fi
				};
				/* when its locks are released */
				if
				:: how == 1 -> end_gone(j)
				:: how == 2 -> end_lane(j)
				:: how == 3 ->
					d_step {						/* jq_fetched_extended */
						over[j] = false;
						if :: fate[j] == EXTEND -> fate[j] = 0 :: else fi;
						mt = cancel[j] && st[j] == HELD
					};
					if :: mt -> mt = false; lose(j, true); goto again :: !mt fi;
					how = 1; goto pins
				fi
			:: skip;								/* ROLLBACK: jq_fetched_undo */
				d_step {
					fate[j] = 0;
					mt = (cancel[j] && LEASED && st[j] == HELD);
#ifndef NO_UNDO_ASKS
					if :: over[j] -> rleases = true :: else fi;
#endif
					if :: over[j] -> owner[j] = 0 :: else fi
				};
				if :: mt -> mt = false; lose(j, true); goto again :: !mt fi;
				how = 1; goto pins					/* once more */
			fi;
again:	skip;
			d_step { j = 0; how = 0; mt = false }
		od
	} unless { ep != ncrash };
	d_step { j = 0; how = 0; mt = false };
	goto start
}

proctype scheduler()
{
	byte ep, j;
	bool mt;

start:	skip;
	ep = ncrash; j = 0; mt = false;
	{
#ifndef NO_LEASES_FIRST
		/* jq_sched_read_leases: all of them, then what is in lanes may be taken */
		d_step {
			ALL(i_) {
				if
				:: lrow[i_] != 0 && live[i_] && st[i_] == NONE ->
					st[i_] = HELD; tok[i_] = lrow[i_]; whose[i_] = 0; holder = i_ + 1
				:: else
				fi
			};
			skip
		};
#endif
		d_step { leases_read = true };
		d_step { ALL(i_) { if :: live[i_] && !OUT(i_) && !due[i_] -> inlane[i_] = true :: else fi }; filled = true };
		do
		:: d_step { rleases -> rleases = false; j = 0 };		/* jq_fetched_expire */
			do
			:: j < NJ -> lose(j, LEASED && over[j]); j++
			:: j == NJ -> break
			od;
			j = 0
		:: d_step { rfailed -> rfailed = false; j = 0 };		/* settle_lost */
			do
			:: j < NJ ->
				if
				:: st[j] == LOST && fate[j] == 0 ->
					/* the record commits */
					d_step {
						lrow[j] = 0;
						if
						:: live[j] && cancel[j] -> live[j] = false; gone[j] = true; mt = false
						:: live[j] && !cancel[j] -> due[j] = true; mt = true
						:: else -> mt = false
						fi
					};
#ifdef NO_DUE_AFTER
					d_step { if :: mt -> rdue = true :: else fi };
					if :: rdue -> rdue = false; d_step { ALL(i_) { if :: due[i_] && live[i_] && !OUT(i_) -> inlane[i_] = true :: else fi }; skip } :: !rdue fi;
#endif
					d_step { st[j] = NONE; tok[j] = 0; whose[j] = 0; over[j] = false; cancel[j] = false };
#ifndef NO_DUE_AFTER
					d_step { if :: mt -> rdue = true :: else fi };
#endif
					mt = false
				:: else
				fi;
				j++
			:: j == NJ -> break
			od;
			j = 0
		:: d_step { rdue -> rdue = false };						/* due rows; what is claimed is passed over */
			d_step { ALL(i_) { if :: due[i_] && live[i_] && !OUT(i_) && !inlane[i_] && !parked[i_] -> inlane[i_] = true :: else fi }; skip }
		od
	} unless { ep != ncrash };
	goto start
}

#if LEASED
proctype clock()					/* the time of the first job's lease is over */
{
end:	do
	:: d_step { st[0] == HELD && !over[0] ->
			over[0] = true; rleases = true;
			/* unless it is about to end it, it has it no more */
			if :: fate[0] == 0 -> owner[0] = 0 :: else fi }
	od
}
#endif

#if NCANCEL
proctype canceller()				/* jobqueue_cancel(0): of one that is fetched */
{
	byte ep;
	bool mt;

	ep = ncrash;
	{
		d_step { st[0] == TAKING || st[0] == HELD -> cancel[0] = true; asked[0] = true };
		lose(0, LEASED)
	} unless { ep != ncrash }
}
#endif

#if NCRASH
proctype crasher()
{
	do
	:: d_step {
			ncrash < NCRASH -> ncrash++;
			ALL(i_) {
				inlane[i_] = false; parked[i_] = false; st[i_] = NONE; fate[i_] = 0; fowner[i_] = 0; whose[i_] = 0;
				tok[i_] = 0; over[i_] = false; cancel[i_] = false;
				/* a session's claim ends with it, a lease does not */
				if :: !LEASED -> owner[i_] = 0 :: else fi
			};
			holder = 0; leases_read = false; filled = false; rleases = false; rfailed = false; rdue = true
		}
	:: break
	od
}
#endif

proctype monitor()					/* nothing can move any more */
{
	timeout ->
	d_step {
		ALL(i_) {
			assert(!live[i_] && (done[i_] == 1 || gone[i_]) && !(done[i_] == 1 && gone[i_]));
			assert(st[i_] == NONE && lrow[i_] == 0 && !inlane[i_] && !parked[i_])
		};
		assert(holder == 0)
	}
}

init {
	atomic {
		ALL(i_) { live[i_] = true };
		run monitor();
		run scheduler();
		run consumer(0);
#if NC > 1
		run consumer(1);
#endif
#if LEASED
		run clock();
#endif
#if NCANCEL
		run canceller();
#endif
#if NCRASH
		run crasher();
#endif
	}
}
