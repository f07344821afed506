/*
 * keys.pml: one key that several jobs may hold (key_limit), whose failed jobs keep
 * their order (ordered queues), and the key under which suspects take turns
 * (keylock.c, keyrule.c, keyorder.c, claim.c). Up to two lanes, each of a queue of
 * its own; workers serve both. Spilled keys and sessions are in jobs.pml.
 *
 * A d_step is one hold of LWLocks, one snapshot, or one commit becoming visible.
 *
 * -DNO_x breaks rule x; -DFAR: the moments until which orders last do not come.
 */
#ifndef NJ
#define NJ		2			/* jobs of the key, numbered in their order */
#endif
#ifndef NW
#define NW		2			/* workers */
#endif
#ifndef LANE1
#define LANE1	0			/* jobs of the second lane, bit mask */
#endif
#ifndef LIM0
#define LIM0	1			/* key_limit of the queues of both */
#endif
#ifndef LIM1
#define LIM1	1
#endif
#ifndef SET0
#define SET0	LIM0		/* what that of the first is set to meanwhile */
#endif
#ifndef ORDERED
#define ORDERED	0			/* lanes whose queue is ordered, bit mask */
#endif
#ifndef SUSPECT
#define SUSPECT	0			/* jobs that may have crashed the server, bit mask */
#endif
#ifndef NFAIL
#define NFAIL	0			/* errors */
#endif
#ifndef LONG
#define LONG	0			/* jobs that end when all that are not have, bit mask */
#endif
#define HAS(m, x)	(((m) >> (x)) & 1)
#define LANE(x)		HAS(LANE1, x)
#define ALL(x)		for (x : 0 .. NJ - 1)

/* ---- durable ---- */
bool live[NJ], tried[NJ], later[NJ];
/* ---- memory ---- */
bool inlane[NJ], parked[NJ], unp[NJ], out[NJ];	/* out: claimed */
byte lim[2];
byte hold[NW], hlim[NW];	/* the key's holders: job + 1, its limit */
byte ord[NJ];				/* orders: 1 until it is recorded, 2 until a moment */
bool passed, turn_on;
byte turn;
bool wake;					/* the launcher is to look, now or when its moment comes */
byte sholder;				/* of the key of suspects: worker + 1 */
bool sparked[NJ];
/* ---- for the properties ---- */
bool failing[NJ], running[NJ];
byte nfail;
hidden byte i_, k_, n_, c_, m_, w_, wanted_, lanes_, b_, u_;

inline holders()			/* n_: how many; m_: what they allow */
{
	n_ = 0; m_ = 99;
	for (k_ : 0 .. NW - 1) {
		if
		:: hold[k_] != 0 -> n_++; if :: hlim[k_] < m_ -> m_ = hlim[k_] :: else fi
		:: else
		fi
	}
}

#define ISOPEN	0
#define LIMIT	1
#define ORDER	2
#define TURN	3
#ifndef FAR
#define MOMENT(c)	((c) == ORDER || (c) == TURN)
#else
#define MOMENT(c)	((c) == TURN)
#endif

inline closed(x)			/* c_: jq_key_closed */
{
	holders();
	c_ = ISOPEN;
	if
	:: HAS(ORDERED, LANE(x)) ->
		for (k_ : 0 .. NJ - 1) {
			if :: k_ < x && LANE(k_) == LANE(x) && ord[k_] != 0 -> c_ = ORDER :: else fi
		}
	:: else
	fi;
	if :: c_ == ISOPEN && turn_on && x > turn -> c_ = TURN :: else fi;
	if :: lim[LANE(x)] < m_ -> m_ = lim[LANE(x)] :: else fi;
#ifndef NO_SHARED_LIMIT
	if :: c_ == ISOPEN && n_ > 0 && n_ >= m_ -> c_ = LIMIT :: else fi
#else
	if :: c_ == ISOPEN && n_ > 0 && n_ >= lim[LANE(x)] -> c_ = LIMIT :: else fi
#endif
}

inline behind(x)			/* b_: jq_key_behind */
{
	b_ = 0;
	ALL(i_) {
		if
		:: i_ < x && parked[i_] && LANE(i_) == LANE(x) -> b_ = 1
#ifndef NO_WANTS_PLACE
		:: i_ < x && parked[i_] && LANE(i_) != LANE(x) && b_ == 0 ->
			closed(i_);
			if :: c_ == LIMIT && n_ > 0 -> passed = true; b_ = 1 :: else fi
#endif
		:: else
		fi
	}
}

inline unpark()				/* jq_key_unpark: the first of each lane that may have it */
{
	wanted_ = 0; lanes_ = 0;
	ALL(i_) {
		if
		:: parked[i_] && !HAS(lanes_, LANE(i_)) ->
			lanes_ = lanes_ | (1 << LANE(i_));
			closed(i_);
			if
			:: c_ == ISOPEN && !wanted_ ->
				parked[i_] = false; inlane[i_] = true; unp[i_] = true;
				if
				:: passed -> passed = false; turn = i_; turn_on = true; wake = true
				:: else
				fi
			:: c_ == ISOPEN && wanted_ -> passed = true
			:: c_ == LIMIT -> wanted_ = 1
			:: c_ == ORDER || c_ == TURN -> wake = wake || MOMENT(c_)
			fi
		:: else
		fi
	};
	skip
}

inline take(me, x)			/* take; u_: it has the key */
{
	u_ = 0;
	closed(x);
	if
	:: c_ != ISOPEN ->
		parked[x] = true;
		if :: c_ == ORDER || c_ == TURN -> wake = wake || MOMENT(c_) :: else fi
	:: else ->
		behind(x);
		if
		:: b_ == 1 ->
			parked[x] = true;
#ifndef NO_BEHIND_LOOK
			wake = true
#endif
		:: else ->
			hold[me] = x + 1; hlim[me] = lim[LANE(x)]; u_ = 1;
			holders();
			assert(n_ <= m_);					/* no more than all of them allow */
			if
			:: turn_on && turn == x -> turn_on = false; wake = true
			:: else
			fi;
#ifndef NO_UNPARK_NEXT
			if
			:: unp[x] ->						/* the next one of its lane may have it, too */
				w_ = NJ;
				ALL(i_) { if :: w_ == NJ && parked[i_] && LANE(i_) == LANE(x) -> w_ = i_ :: else fi };
				if
				:: w_ < NJ ->
					closed(w_);
					if
					:: c_ == ISOPEN -> behind(w_); if :: b_ == 0 -> parked[w_] = false; inlane[w_] = true; unp[w_] = true :: else fi
					:: c_ == ORDER || c_ == TURN -> wake = wake || MOMENT(c_)
					:: else
					fi
				:: else
				fi
			:: else
			fi
#endif
		fi
	fi;
	if :: u_ == 1 -> unp[x] = false :: else -> unp[x] = false fi
}

inline let_go(me)			/* jq_keylock_release */
{
	if
	:: hold[me] != 0 ->
		if :: ord[hold[me] - 1] == 2 -> ord[hold[me] - 1] = 0 :: else fi;
		hold[me] = 0;
		unpark()
	:: else
	fi
}

inline let_turn_go(me)		/* the key of suspects: all that wait for it go back */
{
	if
	:: sholder == me + 1 ->
		sholder = 0;
#ifndef NO_TURN_GOES_ON
		ALL(i_) { if :: sparked[i_] -> sparked[i_] = false; inlane[i_] = true :: else fi }
#endif
	:: else
	fi
}

inline before(x)			/* b_: jq_row_tried_before: the job + 1, or 0 */
{
	b_ = 0;
	if
	:: HAS(ORDERED, LANE(x)) ->
		ALL(i_) { if :: b_ == 0 && i_ < x && LANE(i_) == LANE(x) && live[i_] && tried[i_] -> b_ = i_ + 1 :: else fi }
	:: else
	fi
}

#if NJ == 2
#define INLANE	(inlane[0] || inlane[1])
#define SHORT	((live[0] && !HAS(LONG, 0)) || (live[1] && !HAS(LONG, 1)))
#else
#define INLANE	(inlane[0] || inlane[1] || inlane[2])
#define SHORT	((live[0] && !HAS(LONG, 0)) || (live[1] && !HAS(LONG, 1)) || (live[2] && !HAS(LONG, 2)))
#endif

proctype worker(byte me)
{
	byte j, o;

	do
	:: d_step {								/* claim_next: of whichever lane */
			INLANE ->
			j = NJ;
			ALL(i_) { if :: j == NJ && inlane[i_] -> j = i_ :: else fi };
		};
		if
		:: LANE1 != 0 ->					/* of the other lane, its first */
			d_step {
				o = NJ;
				ALL(i_) { if :: j < NJ && o == NJ && inlane[i_] && LANE(i_) != LANE(j) -> o = i_ :: else fi };
				skip
			};
			if :: o < NJ -> j = o :: true fi;
			o = 0
		:: LANE1 == 0
		fi;
		d_step {
			if
			:: j < NJ && inlane[j] ->
				inlane[j] = false; o = 0;
				if
				:: out[j] -> j = NJ			/* a duplicate */
				:: else -> take(me, j); if :: u_ == 1 -> out[j] = true :: else -> j = NJ fi
				fi
			:: else -> j = NJ
			fi
		};
		if
		:: j == NJ -> goto again
		:: j < NJ
		fi;
		/* the row: is there another one that is to run before? */
look:	skip;
		d_step { before(j); o = b_ };
		if
		:: o != 0 ->
			/* noted in the key; then it looks again, as that may have ended */
			d_step { if :: ord[o - 1] != 1 -> ord[o - 1] = 2 :: else fi; wake = true };
#ifndef NO_ORDER_LOOK
			d_step { before(j); b_ = (b_ == o -> 0 : o); o = o * (b_ == 0) + (NJ + b_) * (b_ != 0) };
			if
			:: o > NJ -> d_step { ord[o - NJ - 1] = 0; o = 0; unpark() }; goto look
			:: o <= NJ
			fi;
#endif
			/* it goes back into its lane, then its key goes */
			d_step { out[j] = false };
			d_step { inlane[j] = true };
			d_step { let_go(me) };
			goto again
		:: o == 0
		fi;
		/* a suspect, in its turn only */
		if
		:: HAS(SUSPECT, j) ->
			d_step {
				if
#ifndef NO_TURN
				:: sholder != 0 -> sparked[j] = true; out[j] = false; o = 1
#endif
				:: else -> sholder = me + 1
				fi
			};
			if
			:: o == 1 ->
#ifndef NO_TURN_FREES
				d_step { let_go(me) };
#else
				sholder == 0;				/* it would wait with its key */
				d_step { let_go(me) };
#endif
				goto again
			:: o == 0
			fi
		:: !HAS(SUSPECT, j)
		fi;
		d_step {							/* it runs, under the snapshot that it has */
			running[j] = true;
			ALL(i_) {
				assert(i_ == j || !(running[i_] && HAS(SUSPECT, i_) && HAS(SUSPECT, j)));
				/* one that failed keeps its order, recorded or not */
				assert(!(i_ < j && HAS(ORDERED, LANE(j)) && LANE(i_) == LANE(j) && failing[i_] && LIM0 == 1))
			};
			skip
		};
		if
		:: d_step { !HAS(LONG, j) || !SHORT -> live[j] = false; tried[j] = false; running[j] = false; failing[j] = false };	/* COMMIT */
			d_step { let_go(me) };
			d_step { let_turn_go(me) };
			d_step { out[j] = false }
		:: d_step { nfail < NFAIL -> nfail++; running[j] = false; failing[j] = true };
			/* its key is free before the failure is recorded */
#ifndef NO_ORDER_FIRST
			d_step { if :: HAS(ORDERED, LANE(j)) -> ord[j] = 1 :: else fi };
#endif
			d_step { let_go(me) };
			d_step { let_turn_go(me) };
			d_step { tried[j] = true; later[j] = true };
			d_step { out[j] = false };
			d_step {						/* jq_keylock_order_recorded */
#ifndef NO_ORDER_RECORDED
				ord[j] = 0; unpark()
#else
				skip
#endif
			}
		fi;
again:	skip;
		d_step { j = 0; o = 0 }
	od
}

proctype scheduler()
{
end:	do
	:: d_step { later[0] && !out[0] -> later[0] = false; inlane[0] = true }
	:: d_step { later[1] && !out[1] -> later[1] = false; inlane[1] = true }
#if NJ > 2
	:: d_step { later[2] && !out[2] -> later[2] = false; inlane[2] = true }
#endif
	od
}

proctype launcher()			/* jq_keylock_look_due: whatever has a moment, it has come */
{
end:	do
	:: d_step {
			wake -> wake = false;
			turn_on = false;
#ifndef FAR
			ALL(i_) { if :: ord[i_] == 2 -> ord[i_] = 0 :: else fi };
#endif
			unpark()
		}
	od
}

#if SET0 != LIM0
proctype setter()			/* jq_keylock_settings_changed */
{
	d_step {
		lim[0] = SET0;
		for (k_ : 0 .. NW - 1) {
			if :: hold[k_] != 0 && LANE(hold[k_] - 1) == 0 -> hlim[k_] = SET0 :: else fi
		};
#ifndef NO_SET_LOOK
		wake = true
#endif
	}
}
#endif

proctype monitor()			/* nothing can move any more */
{
	timeout ->
	d_step {
		ALL(i_) { assert(!live[i_] && !parked[i_] && !sparked[i_] && !inlane[i_] && ord[i_] == 0) };
		holders();
		assert(n_ == 0 && sholder == 0)
	}
}

init {
	atomic {
		lim[0] = LIM0; lim[1] = LIM1;
		ALL(i_) { live[i_] = true; inlane[i_] = true };
		run monitor();
		run scheduler();
		run launcher();
		run worker(0);
#if NW > 1
		run worker(1);
#endif
#if NW > 2
		run worker(2);
#endif
#if SET0 != LIM0
		run setter();
#endif
	}
}
