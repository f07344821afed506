/*
 * limits.pml: places and tokens of a queue that several lanes share (limit.c),
 * and who is woken for them.  Each lane is of a role of its own; all jobs are
 * there to be run, how they fare otherwise is in jobs.pml.
 *
 * Finer than the other models: what is read and changed without the limit's lock
 * is a step of its own.  A d_step is a hold of JQ_LOCK_SLOT, or touches one thing.
 *
 * -DNO_x breaks rule x.
 */
#ifndef NL
#define NL		2			/* lanes, each with clients and workers of its own */
#endif
#ifndef NW
#define NW		2			/* slots of workers */
#endif
#ifndef J0
#define J0		1			/* jobs of lane 0 */
#endif
#ifndef J1
#define J1		1			/* jobs of lane 1 */
#endif
#ifndef MAX0
#define MAX0	1			/* max_running; 0: no limit */
#endif
#ifndef MAX1
#define MAX1	MAX0		/* what it is set to meanwhile */
#endif
#ifndef RATE
#define RATE	0			/* tokens that the bucket holds; 0: no rate */
#endif
#ifndef TOTAL
#define TOTAL	NW			/* jobqueue.max_workers */
#endif
#ifndef NEXIT
#define NEXIT	0			/* workers that leave */
#endif
/* -DLONG: a job of lane 0 that ends when all others have
 * -DSTARTED: all workers are there from the beginning, and stay; 0 and 1 run a job
 * of their lanes, and the next one of 0 is the long one; -DLAUNCHER: beside them the
 * launcher looks, who has none to start */
#define LANE(w)	((w) % NL)

/* state[]: of a slot */
#define FREE	0
#define START	1
#define BUSY	2
#define IDLE	3
#define NOBODY	9			/* serve() for no lane in particular */

byte nready[NL];
bool lanelock[NL], limlock;
/* ---- JqLimit ---- */
byte max = MAX0, running, ntaken, tokens;
byte line0, line1;			/* lanes that wait, + 1, in order */
bool armed, lit;			/* wake_at; the launcher's moment has been set */
/* ---- slots, groups ---- */
byte state[NW];
bool place[NW], called[NW], token[NW], stop[NW], latch[NW];
bool claim[NW];
bool wanted[NL], gcalled[NL], poke;

byte done, nexit;
bool lingered, has_long;
bool set;					/* the new limit is in force, as far as its setter knows */

#define LIMITED		(max != 0 || RATE != 0)
#define WAITING(l)	(line0 == (l) + 1 || line1 == (l) + 1)
#define ROOM		((max == 0 || running < max) && (RATE == 0 || tokens > 0))
#define IDLES(l)	((state[0] == IDLE && LANE(0) == l) || (NW > 1 && state[1 % NW] == IDLE && LANE(1 % NW) == l) || (NW > 2 && state[2 % NW] == IDLE && LANE(2 % NW) == l))
#define USED		((state[0] != FREE) + (NW > 1 && state[1 % NW] != FREE) + (NW > 2 && state[2 % NW] != FREE))

hidden byte i_, n_;

inline acquire(x) { d_step { !x -> x = true } }
inline release(x) { x = false }

/* ------------------------------------------------------- under the limit's lock */
inline join(l)
{
	d_step {
		if
		:: WAITING(l)
		:: else -> if :: line0 == 0 -> line0 = l + 1 :: else -> line1 = l + 1 fi
		fi
	}
}

inline leave(l)
{
	d_step {
		if
		:: line0 == l + 1 -> line0 = line1; line1 = 0
		:: line1 == l + 1 -> line1 = 0
		:: else
		fi
	}
}

/* room(m, 1); r_: there is; ml: the launcher is to be woken */
inline room(r_)
{
	d_step {
		r_ = ROOM;
#if RATE
		if
		:: (max == 0 || running < max) && tokens == 0 && !armed && ntaken < RATE ->
#ifndef NO_ARM
			armed = true; lit = true; ml = true
#endif
		:: else
		fi
#endif
	}
}

inline fill_token(w)
{
#if RATE
	tokens--; ntaken++; token[w] = true
#else
	skip
#endif
}

inline unfill(w)
{
	d_step {
		if :: token[w] -> token[w] = false; ntaken--; tokens++ :: else fi;
		running--; place[w] = false; called[w] = false
	}
}

/* jq_slot_call; JQ_LOCK_SLOT */
inline call(l)
{
	d_step {
		n_ = NW;
		for (i_ : 0 .. NW - 1) {
			if
			:: n_ == NW && state[i_] == IDLE && LANE(i_) == l && !stop[i_] -> n_ = i_
			:: else
			fi
		};
		running++;
		if
		:: n_ < NW ->
			state[n_] = BUSY; place[n_] = true; called[n_] = true;
			fill_token(n_);
			mc = mc | (1 << n_)
		:: else ->
			running--;
			ml = ml || !wanted[l] || !gcalled[l];
			wanted[l] = true; gcalled[l] = true
		fi
	}
}

/* mt: it is the turn of lane me_, which has left the line */
inline serve(me_)
{
	mt = false;
	do
	:: line0 == 0 -> break
	:: line0 != 0 ->
		room(mr);
		if
		:: !mr -> break
		:: mr ->
			ms = line0 - 1;
#ifdef NO_LEAVE_FIRST
			mn = nready[ms];
#endif
			leave(ms);
			if
			:: ms == me_ -> mt = true; break
			:: ms != me_ ->
#ifndef NO_LEAVE_FIRST
				mn = nready[ms];
#endif
				if
				:: mn == 0				/* who publishes looks at the limit */
				:: mn != 0 -> call(ms)
				fi
			fi
		fi
	od;
	ms = 0; mn = 0; mr = false
}

/* ------------------------------------------------------------------ no lock held */
inline wake_called()				/* jq_limit_wake */
{
	d_step {
		for (i_ : 0 .. NW - 1) {
			if :: (mc >> i_) & 1 -> latch[i_] = true :: else fi
		};
		mc = 0;
		if :: ml -> poke = true; ml = false :: else fi
	}
}

inline serve_all()					/* jq_limit_serve */
{
	if
	:: line0 != 0 -> acquire(limlock); serve(NOBODY); release(limlock)
	:: else
	fi;
	wake_called()
}

/* jq_limit_give, of a place that is in hand (the slot's, or taken out of it) */
inline give(w)
{
	if
	:: !place[w]
	:: place[w] && !token[w] ->
		d_step { assert(running > 0); running--; place[w] = false; called[w] = false };
#ifndef NO_GIVE_SERVES
		serve_all()
#endif
	:: place[w] && token[w] ->
		acquire(limlock);
		unfill(w);
#ifndef NO_GIVE_SERVES
		serve(NOBODY);
#endif
		release(limlock);
		wake_called()
	fi
}

inline group_wake(l)				/* jq_group_wake, for one */
{
	d_step {
		n_ = NW;
		for (i_ : 0 .. NW - 1) {
			if
			:: n_ == NW && state[i_] == IDLE && LANE(i_) == l -> n_ = i_
			:: else
			fi
		};
		if
		:: n_ < NW -> state[n_] = BUSY; latch[n_] = true
		:: else -> if :: !wanted[l] -> wanted[l] = true; poke = true :: else fi
		fi
	}
}

/* jq_limit_wakes; mg: how many are to be woken for n ready jobs, none or some */
inline wakes(l, n)
{
	mg = false;
	if
	:: n == 0
	:: n != 0 && !LIMITED -> mg = true
	:: n != 0 && LIMITED && WAITING(l)
	:: n != 0 && LIMITED && !WAITING(l) ->
		atomic { acquire(limlock); room(mg) };
		if
		:: mg
		:: !mg ->
			join(l);
#ifndef NO_JOIN_LOOK
			room(mg);
			if :: mg -> leave(l) :: !mg fi
#endif
		fi;
		release(limlock)
	fi
}

/* ------------------------------------------------------------------ under the lane's lock */
/* a place, while there is none in hand; mt: there is one */
inline take_new(w, l)
{
	serve(l); mt = false;
	do
	:: true ->
		mn = WAITING(l);
		room(mr);
		if
		:: mr -> mt = true; break
		:: !mr && mn == 1 -> break
		:: !mr && mn == 0 ->
			join(l);
#ifdef NO_JOIN_LOOK
			break
#endif
		fi
	od;
	mn = 0; mr = false;
	if
	:: mt ->
		leave(l);
		d_step { running++; place[w] = true; called[w] = false; fill_token(w) }
	:: !mt
	fi
}

/* jq_limit_take; mt */
inline take(w, l)
{
	if
	:: !LIMITED ->
		d_step {
			if
			:: !place[w] -> place[w] = true;
#ifndef NO_COUNTED
				running++
#endif
			:: else
			fi;
			called[w] = false; mt = true
		}
	:: LIMITED ->
		if
		:: RATE == 0 && place[w] && !called[w] && (line0 == 0 || (line0 == l + 1 && line1 == 0)) && running <= max ->
			mt = true							/* may_keep_unlocked */
		:: else ->
			acquire(limlock);
			mt = false;
			if
			:: !place[w] -> take_new(w, l)
			:: place[w] ->
				if
#ifndef NO_KEEP
				:: !(max > 0 && running > max) ->
#else
				:: true ->
#endif
					if
					:: token[w] || RATE == 0 -> mt = true
					:: !token[w] && RATE != 0 && tokens > 0 -> d_step { fill_token(w) }; mt = true
					:: !token[w] && RATE != 0 && tokens == 0
					fi
				:: !called[w] && ((line0 != 0 && line0 != l + 1) || line1 != 0)
					/* another lane has waited for its share */
#ifndef NO_KEEP
				:: max > 0 && running > max
#endif
				fi;
				if
				:: mt
				:: !mt ->
					unfill(w);
					leave(l);					/* it stands behind those who wait */
					take_new(w, l)
				fi
			fi;
			if :: mt -> called[w] = false :: !mt fi;
			release(limlock)
		fi
	fi
}

/* ---------------------------------------------------------------------------- actors */
#define MINE	byte mc, ms, mn; bool ml, mt, mr, mg

inline publish(l)					/* jq_lane_publish */
{
	acquire(lanelock[l]);
#ifndef NO_PUBLISH_FIRST
	nready[l]++;
	wakes(l, 1);
#else
	wakes(l, 1);
	nready[l]++;
#endif
	release(lanelock[l]);
	wake_called();
	if :: mg -> group_wake(l); mg = false :: !mg fi
}

proctype client(byte l, n)
{
	MINE;

	do
	:: n > 0 -> publish(l); n--
	:: n == 0 -> break
	od
}

inline end_claim(w, l)				/* jq_claim_end; settle() */
{
	if
	:: claim[w] -> acquire(lanelock[l]); claim[w] = false; release(lanelock[l])
	:: !claim[w]
	fi;
	give(w)
}

proctype worker(byte w)
{
	byte l;
	bool got;
	MINE;

	l = LANE(w);
#ifdef STARTED
	if :: w < 2 -> goto runs :: else fi;
#endif
start:
	state[w] == START ->
	d_step { state[w] = BUSY; latch[w] = false };
	do
	:: /* take_job */
		if
		:: stop[w] -> goto out
		:: nexit < NEXIT -> nexit++; goto out
		:: !stop[w] && place[w]					/* called, or from the last job */
		:: !stop[w] && !place[w] && nready[l] > 0 && !WAITING(l)
		:: !stop[w] && !place[w] && !(nready[l] > 0 && !WAITING(l)) -> goto idle
		fi;
		/* claim_next */
		acquire(lanelock[l]);
		claim[w] = false; got = false;
		if
		:: nready[l] > 0 ->
			take(w, l);
			if
			:: mt ->
				d_step {
					nready[l]--; claim[w] = true; got = true;
					/* not more than there may be, once the limit is in force */
					assert(!set || MAX1 == 0 || running <= MAX1);
					assert(MAX0 != MAX1 || MAX1 == 0 || running <= MAX1);
					assert(RATE == 0 || token[w])
				}
			:: !mt
			fi;
			mt = false
		:: nready[l] == 0
		fi;
		release(lanelock[l]);
		if
		:: got
		:: !got -> end_claim(w, l)
		fi;
		wake_called();
		if :: !got -> goto idle :: got fi;
		/* call_for_help */
		if
		:: nready[l] > 0 && !WAITING(l) && !(wanted[l] && !IDLES(l)) ->
			wakes(l, 1); wake_called();
			if :: mg -> group_wake(l); mg = false :: !mg fi
		:: else
		fi;
		if
		:: nexit < NEXIT -> nexit++; goto out
		:: true
		fi;
#if RATE
		/* jq_limit_start: the token is used */
		acquire(limlock);
		d_step { token[w] = false; ntaken-- };
#ifndef NO_START_SERVES
		if :: line0 != 0 && !armed -> serve(NOBODY) :: else fi;
#endif
		release(limlock);
		wake_called();
#endif
runs:	got = false;
#ifdef LONG
		if
#ifndef STARTED
		:: d_step { l == 0 && !has_long -> has_long = true }; done == J0 + J1 - 1
		:: true
#else
		:: d_step { w == 0 && done > 0 && !has_long -> has_long = true }; done == J0 + J1 - 1
		:: else
#endif
		fi;
#endif
		done++;
		/* its claim ends when the next one is taken */
		goto next;
idle:
		end_claim(w, l);
linger:
		assert(!place[w] || called[w]);			/* who has no job holds nothing */
		d_step {
			got = true;
			if
#ifndef NO_CALLED_AWAKE
			:: place[w]							/* called, while the latch was reset */
#endif
			:: else -> state[w] = IDLE; wanted[l] = false; gcalled[l] = false; got = false
			fi
		};
		if :: got -> got = false; goto next :: !got fi;
		/* jq_lane_has_first */
		acquire(lanelock[l]);
		wakes(l, nready[l]);
		release(lanelock[l]);
		wake_called();
		if
		:: mg -> mg = false
		:: !mg ->
			if
			:: stop[w] -> goto leaves
			:: nexit < NEXIT -> nexit++; goto leaves			/* idle for too long */
			:: nexit < NEXIT -> nexit++; goto killed
			:: latch[w] -> latch[w] = false
#ifdef LINGER
			/* not woken, but to flush; what has come by now is reset */
			:: !lingered -> lingered = true; latch[w] = false; goto linger
#endif
			fi
		fi;
		d_step { if :: state[w] == IDLE -> state[w] = BUSY :: else fi };
next:	skip
	od;

leaves:
	skip;
	d_step { if :: state[w] == IDLE -> state[w] = BUSY :: else fi };
out:
	/* worker_exit: what was taken and has not begun goes back */
	end_claim(w, l);
	if :: got -> got = false; publish(l) :: !got fi;
	/* jq_slot_detach; one that is killed while it is idle comes here at once */
killed:
	skip;
	d_step {
		state[w] = FREE; stop[w] = false;
		wanted[l] = true
	};
#ifndef NO_EXIT_PLACE
	give(w);
#else
	place[w] = false;
#endif
	poke = true;
	goto start
}

proctype launcher()
{
	byte l, w;
	MINE;

end:
	do
	:: d_step { poke -> poke = false; l = 0 };
		do
		:: l < NL ->
			if
			:: wanted[l] ->
				/* group_has_work */
				mg = false;
				if
				:: nready[l] == 0
				:: nready[l] != 0 && (!LIMITED || gcalled[l]) -> mg = true
				:: nready[l] != 0 && LIMITED && !gcalled[l] ->
					acquire(lanelock[l]); wakes(l, nready[l]); release(lanelock[l]); wake_called()
				fi;
				if
				:: mg
				:: !mg ->
					d_step { wanted[l] = false; gcalled[l] = false };
#ifndef NO_WANTED_LOOK
					if
					:: nready[l] == 0
					:: nready[l] != 0 && (!LIMITED || gcalled[l]) -> mg = true
					:: nready[l] != 0 && LIMITED && !gcalled[l] ->
						acquire(lanelock[l]); wakes(l, nready[l]); release(lanelock[l]); wake_called()
					fi;
					if :: mg -> wanted[l] = true :: !mg fi
#endif
				fi;
				if
				:: !mg
				:: mg ->
					mg = false;
					d_step {
						w = NW;
						for (i_ : 0 .. NW - 1) {
							if :: state[i_] == FREE && LANE(i_) == l -> w = i_ :: else fi
						};
						if
						:: w < NW && USED < TOTAL ->
							wanted[l] = false; gcalled[l] = false; state[w] = START
						:: w < NW && USED >= TOTAL ->
							/* make_place: an idle one of others leaves, or a busy one
							 * after its job; its exit wakes us */
							w = NW;
							for (i_ : 0 .. NW - 1) {
								if :: state[i_] != FREE && state[i_] != START && LANE(i_) != l -> w = i_ :: else fi
							};
							if :: w < NW -> stop[w] = true; latch[w] = true :: else fi
						:: else					/* the role has as many as it may have */
						fi;
						w = 0
					}
				fi
			:: !wanted[l]
			fi;
			l++
		:: l == NL -> break
		od;
		l = 0
#if RATE
	:: d_step { lit && tokens > 0 -> lit = false };			/* a token has come */
		acquire(limlock);
		if
		:: armed ->
			armed = false;
			serve(NOBODY)
		:: else
		fi;
		release(limlock);
		wake_called()
#endif
	od
}

#if RATE
proctype clock()					/* tokens come, as long as there is room for them */
{
end:	do
	:: d_step { tokens + ntaken < RATE && done < J0 + J1 -> tokens++ }
	od
}
#endif

#if MAX1 != MAX0
proctype setter()					/* jq_queue_apply */
{
	byte l;
	MINE;

	acquire(limlock);
	max = MAX1;
#ifndef NO_LIFTED
	if :: !LIMITED -> d_step { line0 = 0; line1 = 0 } :: else fi;
#endif
	release(limlock);
	do								/* tell_lanes */
	:: l < NL ->
		acquire(lanelock[l]);
#ifndef NO_SET_TELLS
		wakes(l, nready[l]);
#endif
		release(lanelock[l]);
		wake_called();
#ifndef NO_SET_TELLS
		serve_all();
		if :: mg -> group_wake(l); mg = false :: !mg fi;
#endif
		l++
	:: l == NL -> break
	od;
	set = true
}
#endif

proctype monitor()					/* nothing can move any more */
{
	timeout ->
	d_step {
		assert(done == J0 + J1);
		assert(nready[0] == 0 && nready[NL - 1] == 0);
		assert(running == 0 && ntaken == 0);
		for (i_ : 0 .. NW - 1) { assert(!place[i_] && !token[i_] && !claim[i_]) };
		skip
	}
}

init {
	atomic {
		run monitor();
#if MAX1 != MAX0
		run setter();
#endif
#if !defined(STARTED) || defined(LAUNCHER)
		run launcher();
#endif
#ifdef STARTED
		for (i_ : 0 .. NW - 1) {
			state[i_] = (i_ < 2 -> BUSY : START);
			place[i_] = (i_ < 2); claim[i_] = (i_ < 2)
		};
		running = 2;
#endif
		run worker(0);
#if NW > 1
		run worker(1);
#endif
#if NW > 2
		run worker(2);
#endif
#ifdef STARTED
		run client(0, J0 - 1);
#else
		run client(0, J0);
#endif
#if NL > 1 && J1 && !defined(STARTED)
		run client(1, J1);
#endif
#if RATE
		run clock();
#endif
	}
}
