/*
 * actors.pml: the processes (part of jobs.pml).
 *
 * "{ ... } ESCAPE(ep != ncrash)": the server crashed, this process is gone.
 */
#if NCRASH + NEXIT + NSEXIT
#define ESCAPE(c)	unless { c }
#else
#define ESCAPE(c)
#endif

/* j: the smallest, or largest, job of a set, taken out of it; within a d_step */
inline lowest(m)
{
	j = 0;
	do :: !HAS(m, j) -> j++ :: else -> break od;
	m = m & ~(1 << j)
}

inline highest(m)
{
	j = NJ - 1;
	do :: !HAS(m, j) -> j-- :: else -> break od;
	m = m & ~(1 << j)
}

/* ----------------------------------------------------------------- client */
#define MANY(m)	((m) != 1 && (m) != 2 && (m) != 4 && (m) != 8)

proctype client(byte c, mine)
{
	byte j, pend, ep;
	bool prep;

	ep = ncrash;
	{
		d_step {
			pend = mine;
			ALL(i_) {
				if :: HAS(mine, i_) -> row[i_] = INS; if :: HAS(DELAY, i_) -> at[i_] = LATER :: else fi :: else fi
			}; skip };
#ifdef NO_AFTER_COMMIT
		d_step { ALL(x_) { if :: HAS(pend, x_) -> publish(x_, 0) :: else fi }; pend = 0 };
#endif
		if
		:: (mine & SUB) != 0 ->							/* ROLLBACK TO SAVEPOINT */
			d_step {
				rows(mine & SUB, INS, NONE);
#ifndef NO_SUBXACT
				pend = pend & ~(SUB);
#endif
				skip
			}
		:: true
		fi;
		if
		:: d_step {										/* COMMIT: durable, visible */
				printf("client %d commits\n", c);
				rows(mine, INS, LIVE); flush() };
			if
			:: HAS(BYHAND, c) ->						/* the trigger has noted the lane */
				d_step { pub = pub | mine; ALL(x_) { if :: HAS(mine, x_) -> spill(LANE(x_), 0); if :: HAS(DELAY, x_) -> rdue = true :: else fi :: else fi }; skip }
			:: else ->
#ifndef NO_HOLD_BACK
				if
				:: MANY(mine) -> d_step { for (i_ : 0 .. NL - 1) { hb[i_]++ }; skip }
				:: else
				fi;
#endif
				do										/* in whatever order */
				:: d_step {
						pend != 0 ->
						highest(pend);
						printf("client %d publishes %d, F=%d\n", c, j, F[LANE(j)]);
						if
						:: HAS(DELAY, j) -> arm(j)
						:: else -> publish(j, 0)
						fi;
						j = 0 }
				:: else -> break
				od;
				skip;
#ifndef NO_HOLD_BACK
				d_step {
					pub = pub | mine;
					for (y_ : 0 .. NL - 1) {
						if
						:: hb[y_] > 0 && MANY(mine) ->
							hb[y_]--;
#ifndef NO_HOLD_BACK_WAKE
							ready(y_);
							if :: r_ > 0 -> wake(GROUP(y_)); wake(GROUP(y_)) :: else fi
#endif
						:: else
						fi
					};
					skip
				}
#endif
			fi
#ifndef NOABORT
		:: d_step { rows(mine, INS, NONE) }				/* ROLLBACK */
#endif
		:: HAS(PREP, c) ->								/* PREPARE TRANSACTION */
			d_step { rows(mine, INS, PREPD); flush(); prep = true; j = ncrash }
		fi
	} ESCAPE(ep != ncrash);
	if
	:: prep ->											/* by anybody, also after a crash */
		prep = false; pend = 0;
		if
		:: true ->
			ep = ncrash;
#ifdef NO_PREPARED_AFTER
			d_step { ALL(x_) { if :: HAS(mine, x_) -> spill(LANE(x_), x_) :: else fi }; skip };
#endif
			d_step { ep = ncrash; printf("COMMIT PREPARED %d\n", c); rows(mine, PREPD, LIVE); flush() };
#ifndef NO_PREPARED_AFTER
			{
				d_step {								/* jq_publish_prepared, or _forget */
					ALL(x_) {
						if
						:: HAS(mine, x_) ->
#ifndef NO_PREPARED_LONG_AGO
							spill(LANE(x_), x_ * (j == ncrash))
#else
							if :: j == ncrash -> spill(LANE(x_), x_) :: else fi
#endif
						:: else
						fi
					};
					if :: (mine & DELAY) != 0 -> rdue = true :: else fi
				}
			} ESCAPE(ep != ncrash)
#endif
		:: d_step { rows(mine, PREPD, NONE) }			/* ROLLBACK PREPARED */
		fi
	:: else
	fi
}

#ifdef CANCEL			/* jobqueue_cancel(CANCEL), or reschedule, or cancel and retry */
proctype canceller()
{
	byte ep, k, saw;
	bool done_;

	ep = ncrash;
	{
		do
		:: d_step { row[CANCEL] == LIVE -> saw = at[CANCEL] };	/* it is looked at, */
			/* then jq_claim_hold, under the lane's lock */
			d_step {
				row[CANCEL] == LIVE ->
				k = 0;
				if
				:: held[CANCEL] != 0 -> k = 3
				:: cl[0] == CANCEL + 1 -> cfor[0] = true; k = 2
				:: cl[NW - 1] == CANCEL + 1 -> cfor[NW - 1] = true; k = 2
				:: else ->
					held[CANCEL] = BYSESS; passed[CANCEL] = false;
					k = 1
				fi
			};
			if
			:: k == 1 -> break
			:: k == 2 -> goto over					/* it is told */
			:: else ->								/* a failure is being recorded: wait */
				held[CANCEL] == 0
			fi
		:: true -> goto over						/* did nothing */
		od;
		/* is it there still? delete it */
		if
		:: d_step { row[CANCEL] == LIVE && xmax[CANCEL] == 0 -> xmax[CANCEL] = SESS; k = 1 }
		:: d_step { row[CANCEL] == GONE -> k = 0 }
		fi;
		if
		:: d_step {
				k == 1 ->
				xmax[CANCEL] = 0; flush(); done_ = true;
#ifndef RESCHEDULE
				row[CANCEL] = GONE; cancelled[CANCEL] = true;
				printf("cancel commits\n")
#else
				at[CANCEL] = LATER; seen[CANCEL] = false
#endif
			}
		:: d_step { xmax[CANCEL] = 0; printf("cancel rolled back\n") }
		fi;
#ifndef RESCHEDULE
		d_step {									/* jq_lane_remove: if it stands there still */
			if
			:: done_ && (ent[CANCEL] & IN) ->
				b_ = ent[CANCEL]; ent[CANCEL] = 0;
				relieve(LANE(CANCEL), b_, true); dropped(CANCEL, b_);
				wants(LANE(CANCEL)); if :: b_ -> need = true :: else fi
			:: else
			fi
		};
#endif
		d_step {
			if
			:: held[CANCEL] == BYSESS ->
				held[CANCEL] = 0;
#ifndef NO_PASSED
				if :: passed[CANCEL] -> saw = DUE :: else fi
#endif
			:: else
			fi };
		if
		:: done_ ->
#ifdef RESCHEDULE
			d_step { arm(CANCEL) }
#endif
		:: else ->
#ifndef NO_ABORT_PUBLISH
			/* as it was when it was looked at, or nobody knows what it is */
			d_step {
				if
				:: k == 1 && saw != LATER -> publish(CANCEL, EDUE * (saw == DUE))
				:: k == 1 && saw == LATER -> arm(CANCEL)
				:: else
				fi }
#endif
		fi;
#ifdef RETRY
		if
		:: done_ ->									/* jobqueue_retry() */
			/* jq_control_await: whoever has it lets it go first */
			d_step {
				cl[0] != CANCEL + 1 && cl[NW - 1] != CANCEL + 1 &&
					(held[CANCEL] == 0 || held[CANCEL] == DOUBT) ->
				row[CANCEL] = INS };
			d_step { rows(1 << CANCEL, INS, LIVE); flush(); at[CANCEL] = 0 };
			d_step { publish(CANCEL, 0) }
		:: else
		fi;
#endif
over:	skip
	} ESCAPE(ep != ncrash)
}
#endif

#ifdef MANY_AT_ONCE		/* jobqueue_reschedule_where(): what runs is left out, nothing is held */
proctype many()
{
	byte ep;

	ep = ncrash;
	{
		if
		:: d_step {
				row[0] == LIVE && xmax[0] == 0 && at[0] != 0 && cl[0] != 1 && cl[NW - 1] != 1 ->
				at[0] = 0; seen[0] = false; flush();
				printf("many are to run at once\n") };
			d_step { spill(LANE(0), 0) }
		:: true
		fi
	} ESCAPE(ep != ncrash)
}
#endif

#ifdef DELETE			/* DELETE by hand: nobody is asked */
proctype hand()
{
	byte ep;

	ep = ncrash;
	{
		if
		:: d_step { row[DELETE] == LIVE && xmax[DELETE] == 0 ->
				xmax[DELETE] = HAND; printf("DELETE by hand\n") };
			if
			:: d_step { row[DELETE] = GONE; xmax[DELETE] = 0; cancelled[DELETE] = true; flush() };
			:: d_step { xmax[DELETE] = 0; printf("by hand: rolled back\n") }
#ifdef HPREP
			:: d_step { hprep = true; flush() }
#endif
			fi
		:: true
		fi
	} ESCAPE(ep != ncrash);
	if
	:: hprep ->
		if
		:: d_step { row[DELETE] = GONE; xmax[DELETE] = 0; cancelled[DELETE] = true; hprep = false; flush() }
		:: d_step { xmax[DELETE] = 0; hprep = false }
		fi
	:: else
	fi
}
#endif

#ifdef STRANGER		/* others INSERT by hand: the lane forgets what it knew */
proctype stranger()
{
	byte n;

	do :: n < STRANGER -> n++; d_step { spill(0, 0) } :: break od
}
#endif

#ifdef SESSION				/* jobqueue_lock(key), and unlock; may give up */
proctype session()
{
	byte ep;

	ep = ncrash;
	{
#ifndef HELD				/* it has had it from the beginning */
		d_step {
			nwaiting();
			if
			:: holder == 0 && !pusher && brought == 0 && n_ == 0 && !kspilled -> holder = SESS; sline = 0
			:: else -> sline = 1
			fi
		};
		/* jq_keywait_begin: in line, then it looks whether it may have it */
		d_step { if :: sline == 1 -> unpark(false) :: else fi };
		if
		:: (holder == SESS) -> skip
		:: true											/* gives up: time-out, exit */
		fi;
#endif
		/* jq_key_session_leave, or jq_keywait_given and a release */
		d_step {
#ifndef NO_GIVE_BACK
			if
			:: sline == 1 -> sline = 0; sturn = false; stable = false; unpark(false)
			:: else -> sline = 0; if :: holder == SESS -> release() :: else fi
			fi
#else
			if
			:: sline == 1 -> sline = 0; sturn = false; stable = false
			:: sline != 1 && sline != 2 && holder == SESS -> release()
			:: else -> sline = 0
			fi
#endif
		}
	} ESCAPE(ep != ncrash)
}
#endif

#if KEYED					/* jq_keylock_look_due */
proctype launcher()
{
end:	do
	:: d_step { kwake -> kwake = false; unpark(true) }
	od
}
#endif

/* ----------------------------------------------------------------- worker */
inline drop_claim()			/* claim_clear */
{
	cl[me] = 0; cdue[me] = false; running[me] = false; cfor[me] = false
}

inline unstarve()			/* jq_claim_unstarve, when entries have been freed */
{
#ifndef NO_UNSTARVE
	for (h_ : 0 .. 1) {
		if :: starved[h_] -> starved[h_] = false; want[h_] = true; need = true :: else fi
	};
#endif
	skip
}

inline first(l)				/* x_: the first entry that may be taken, or NJ */
{
	x_ = NJ;
	ALL(i_) { if :: x_ == NJ && (ent[i_] & IN) && LANE(i_) == l -> x_ = i_ :: else fi };
#ifndef NO_TAKE_KNOWN
	if :: x_ != NJ && x_ >= F[l] -> x_ = NJ :: else fi
#endif
}

inline claim(l)				/* claim_next: all in one hold of the lane's lock */
{
	drop_claim();
	first(l);
	do
	:: x_ < NJ && cl[me] == 0 ->
		c_ = ent[x_]; ent[x_] = 0;
		if
#ifndef NO_SKIP_CLAIMED
		:: OUT(x_) ->
			printf("worker %d passes %d over\n", me, x_);
			passed[x_] = true;
			b_ = c_; relieve(l, b_, true); dropped(x_, b_)
#endif
		:: else ->
			k_ = 1; b_ = c_;
#if KEYED
			if
			:: KEY(x_) ->
				p_ = x_;
				ktake(p_, l, b_);
				if :: k_ == 1 -> holder = me + 1; sturn = false; stable = false :: else fi
			:: else
			fi;
#endif
			if
			:: k_ == 1 ->
				cl[me] = x_ + 1; cdue[me] = (b_ & EDUE) != 0;
				printf("worker %d takes %d\n", me, x_);
#ifdef ORDER
				ALL(i_) {								/* what is before it is out, or to come */
					assert(!(i_ < x_ && LANE(i_) == l && row[i_] == LIVE && xmax[i_] == 0 && at[i_] == 0
						&& !OUT(i_) && !par[i_]
						&& (HAS(pub, i_) || (committed[i_] && HAS(C0, i_) && HAS(C0, x_)))))
				};
#endif
				skip
			:: else
			fi
		fi;
		first(l)
	:: else -> break
	od;
	x_ = 0; wants(l);
	if
	:: b_ ->
		if :: !want[l] || r_ == 0 -> need = true :: else fi;
		want[l] = true
	:: else
	fi;
	unstarve()
}

inline free_key()
{
#if KEYED
	d_step { if :: holder == me + 1 -> release() :: else fi }
#else
	skip
#endif
}

proctype worker(byte me)
{
	byte j, l, ep, ph, k;

start:
	ep = ncrash; j = 0; l = 0; ph = 0; k = 0;
	{
		do
		:: d_step { !CANTAKE(me) -> drop_claim(); unstarve() };
			d_step { idle[me] = true; wanted[MYGROUP] = false };
			if
#ifndef NO_LOOK_BEFORE_SLEEP
			:: d_step { CANTAKE(me) -> idle[me] = false }
#endif
			:: d_step { !CANTAKE(me) -> skip };
				latch[me] -> d_step { latch[me] = false; idle[me] = false }
#ifdef NO_LOOK_BEFORE_SLEEP
			:: d_step { CANTAKE(me) -> skip };
				latch[me] -> d_step { latch[me] = false; idle[me] = false }
#endif
			fi
		:: CANTAKE(me) ->
			if
			:: SERVES(me, 0) && FIRST(0) -> l = 0
			:: NL == 2 && SERVES(me, 1) && FIRST(1) -> l = 1
			:: else -> l = (SERVES(me, 0) -> 0 : 1)
			fi;
			d_step { claim(l); l = 0; if :: cl[me] != 0 -> j = cl[me] - 1; ph = 1 :: else -> ph = 0 fi };
			if
			:: ph == 1 ->
				/* the row, under a snapshot taken now */
				d_step {
					k = xmax[j];
					if
					:: row[j] != LIVE -> ph = 0
					:: row[j] == LIVE && xmax[j] != 0 -> ph = 2
#ifndef NO_LOOK_DUE
					:: row[j] == LIVE && xmax[j] == 0 && at[j] == LATER -> ph = 3
#endif
					:: else
					fi;
#ifdef NO_LOOK
					ph = 1;
#endif
					printf("worker %d looks at %d: %d\n", me, j, ph);
					if
					:: ph == 1 ->
						assert(row[j] == LIVE && committed[j]);		/* not before the commit */
						assert(at[j] != LATER);						/* nor its run_at */
#ifndef NO_FLAG_OF_ROW
						cdue[me] = (at[j] == DUE);
#endif
						running[me] = true; inrun[me] = KEY(j);
						assert(NW == 1 || !(cl[1 - me] == j + 1 && running[1 - me]));	/* one runner */
						if
						:: KEY(j) -> assert(!(inrun[0] && inrun[NW - 1] && NW > 1));	/* one of the key */
							assert(holder == me + 1)
						:: else
						fi
					:: else
					fi
				};
				/* the command runs; in the end the row is deleted */
#ifdef NO_KEY_UNTIL_COMMIT
				if :: ph == 1 -> free_key() :: else fi;
#endif
				if
				:: d_step {											/* COMMIT, not flushed */
						ph == 1 && row[j] == LIVE && xmax[j] == 0 ->
						row[j] = GONE; done[j]++; at[j] = 0; seen[j] = false;
						printf("worker %d commits %d\n", me, j);
						assert(done[j] == 1);						/* never twice */
						wal[nwal] = j; nwal++;
						inrun[me] = false; whold[me] = true; ph = 4 };
#ifdef TELL
					d_step {										/* a waiter is told */
#ifndef NO_FLUSH_TELL
						flush();
#endif
						told[j] = true }
#endif
				:: d_step {											/* an error: rolled back */
						ph == 1 && ((row[j] == LIVE && xmax[j] == 0 && nfail < NFAIL) || row[j] != LIVE || cfor[me]) ->
						if :: row[j] == LIVE && !cfor[me] -> nfail++ :: else fi;
						printf("worker %d: %d fails\n", me, j);
#ifdef NO_CLAIM_UNTIL_RECORD
						if :: !cfor[me] -> drop_claim() :: else fi;
#endif
						inrun[me] = false; ph = 5 }
				:: d_step {											/* serialization failure */
						ph == 1 && nrerun < NRERUN -> nrerun++; inrun[me] = false; ph = 6 }
				:: ph == 0 || ph == 2 || ph == 3
				fi;
				if
				:: ph == 3 || ph == 6 ->
					/* publish_claimed: the claim ends, the job is published (by its
					 * row, or as the entry had it), then its key goes; unless it is
					 * to be cancelled */
					d_step {
						whold[me] = true;
						k = EDUE * cdue[me];
						if :: !cfor[me] -> drop_claim() :: else -> ph = 5; whold[me] = false fi };
#ifdef NO_KEY_LAST
					free_key();
#endif
					d_step {
						if
						:: ph == 3 -> publish_row(j)
						:: ph == 6 -> publish(j, k)
						:: else
						fi }
				:: else
				fi;
				free_key();
				if
				:: ph == 2 ->										/* somebody is deleting it */
					d_step {
#ifndef NO_DOUBTFUL
						held[j] = DOUBT; hx[j] = k;
#endif
						drop_claim() }
				:: ph == 5 ->
					if
					:: d_step {										/* jobqueue_cancel() came */
							cfor[me] && xmax[j] == 0 ->
							if :: row[j] == LIVE -> row[j] = GONE; cancelled[j] = true; at[j] = 0; flush() :: else fi;
							whold[me] = true; k = 0 }
					:: d_step {										/* the failure is recorded */
							!cfor[me] && xmax[j] == 0 ->
							if
							:: row[j] == LIVE -> at[j] = LATER; seen[j] = false; wal[nwal] = NJ + j; nwal++; k = 1
							:: else -> k = 0
							fi;
#ifndef NO_HOLD_INTERRUPTS
							whold[me] = true;
#endif
							printf("failure of %d recorded\n", j) }
					fi;
					d_step { drop_claim() };
					d_step { if :: k == 1 -> arm(j) :: else fi; whold[me] = false }
				:: ph == 0 ->										/* no row; is there one now? */
					d_step { whold[me] = true; drop_claim() };
					d_step {
#ifndef NO_COME_BACK
						if :: row[j] == LIVE -> publish_row(j) :: else fi;
#endif
						whold[me] = false }
				:: else -> whold[me] = false
				fi;
				d_step { ph = 0; k = 0; j = 0 }
			:: else
			fi
		od
	} ESCAPE((killed[me] && !whold[me]) || ep != ncrash);

	if
	:: ep != ncrash -> goto start
	:: else
	fi;
	{
		/* exit: the transaction is aborted, then the exit hook */
		d_step {
			printf("worker %d exits, job %d\n", me, cl[me] - 1);
			killed[me] = false; inrun[me] = false; idle[me] = false; latch[me] = false;
			k = cl[me]; j = 0; l = 0; ph = 0 };
		if
		:: k != 0 && running[me] ->
			d_step {
#ifndef NO_EXIT_FAILING
				held[k - 1] = FAILING;
#endif
				drop_claim() }
		:: k != 0 && !running[me] ->
			d_step { ph = (cdue[me] -> EDUE : 0); drop_claim() };
			d_step {
#ifndef NO_EXIT_PUBLISH
#ifndef NO_EXIT_DUE
				ph = EDUE;
#endif
				j = k - 1; publish(j, ph);
#endif
				j = 0; ph = 0
			}
		:: else
		fi;
#ifndef NO_EXIT_KEY
		free_key();
#endif
		d_step {
			down[me] = true; k = 0;
#ifndef NO_EXIT_WANTED
			wanted[MYGROUP] = true;
#endif
				skip
			};
		d_step { wanted[MYGROUP] -> wanted[MYGROUP] = false; down[me] = false }
	} ESCAPE(ep != ncrash);
	goto start
}

/* -------------------------------------------------------------- scheduler */

/* rows that memory has no room for become ready in the table, and their lanes do
 * not think that they know them */
inline make_ready()
{
	d_step {
		ALL(x_) {
			if
			:: HAS(ref, x_) ->
#ifndef NO_MAKE_READY
				if
				:: row[x_] == LIVE && at[x_] == DUE && xmax[x_] == 0 ->
#ifndef NO_MADE_READY
					lower(LANE(x_), x_);
#endif
					at[x_] = 0; seen[x_] = false
				:: else -> rlost = true
				fi
#else
				skip
#endif
			:: else
			fi
		};
		if :: ref != 0 -> need = true :: else fi;
		ref = 0 };
	d_step { trim(0); if :: NL == 2 -> trim(1) :: else fi; skip }
}

proctype scheduler()
{
	byte ep, res, ref, from, to, room, l, j, ph;
	bool all;

start:
	ep = ncrash; res = 0; ref = 0; from = 0; to = 0; room = 0; l = 0; j = 0; ph = 0; all = false;
	{
		do
		::	/* refill of the lanes that want it */
			d_step { need ->
#ifndef NO_CLEAR_FIRST
				need = false;
#endif
				l = 0 };
			do
			::	d_step {							/* open it, ... */
					ph == 0 && l < NL ->
					wants(l);
					if
					:: b_ && !lost[l] ->
						want[l] = false;
						count();
#ifdef ROOM
						/* make_room: from the other lane */
						do
						:: u_ >= CAP && NL == 2 -> ready(1 - l); if :: r_ > ROOM -> evict(1 - l); count() :: else -> break fi
						:: else -> break
						od;
#endif
						if
						:: u_ >= CAP -> starved[l] = true; l++
						:: else ->
							filling[l] = true;
							cut[l] = NJ;
							from = F[l]; room = CAP - u_; ph = 1
						fi
					:: else -> l++
					fi
				}
			::	/* ... only then the snapshot; read from the frontier on */
				d_step {
					ph == 1 ->
					to = NJ; i_ = from; res = 0;
					do
					:: i_ < NJ ->
						if
						:: row[i_] == LIVE && at[i_] == 0 && LANE(i_) == l && !(KEY(i_) && kspilled && i_ >= kF) ->
							if
							:: room == 0 -> to = i_; break
							:: else -> res = res | (1 << i_); room--
							fi
						:: else
						fi;
						i_++
					:: else -> break
					od;
					room = 0; from = 0; ph = 2;
					printf("refill of %d reads %d up to %d\n", l, res, to) }
			::	/* then put it into the lane, */
				d_step {
					ph == 2 && (res & ((1 << cut[l]) - 1)) != 0 ->
					lowest(res);
#ifndef NO_REFILL_SKIP
					if :: !OUT(j) -> offer(l, j, 0); if :: o_ == 1 -> wake(GROUP(l)) :: else fi :: else -> passed[j] = true fi;
#else
					offer(l, j, 0); if :: o_ == 1 -> wake(GROUP(l)) :: else fi;
#endif
					p_ = (j + 1 < cut[l] -> j + 1 : cut[l]);
					if :: F[l] < p_ -> F[l] = p_ :: else fi;
					j = 0
				}
			::	/* and close it */
				d_step {
					ph == 2 && (res & ((1 << cut[l]) - 1)) == 0 ->
					F[l] = (to < cut[l] -> to : cut[l]); filling[l] = false; cut[l] = NJ;
					trim(l);
					ready(l); low[l] = r_ / 2;
					printf("refill of %d ends, F=%d\n", l, F[l]);
					if :: r_ > 0 -> wake(GROUP(l)); wake(GROUP(l)) :: else fi;
					wants(l);
#ifndef NO_R4
					if :: b_ -> need = true :: else fi;
#endif
					res = 0; to = 0; ph = 0; l++
				}
			::	d_step {
					ph == 0 && l == NL ->
#ifdef NO_CLEAR_FIRST
					need = false;
#endif
					l = 0 };
				break
			od

		::	/* due rows */
			d_step { rdue || armed ->
				all = rdue;
				if :: all -> lost[0] = false; lost[1] = false; rlost = false; need = true :: else fi;
				/* the moment of all that have been noted has come */
				if :: armed -> ALL(i_) { if :: row[i_] == LIVE && at[i_] == LATER -> at[i_] = DUE :: else fi } :: else fi;
#ifndef NO_CLEAR_FIRST
				rdue = false; armed = false
#endif
			};
			d_step {
				res = 0;
				ALL(i_) {
					if
					:: row[i_] == LIVE && at[i_] == DUE && (all || !seen[i_]) -> res = res | (1 << i_); seen[i_] = true
					:: else
					fi
				};
				all = false;
				printf("due: %d\n", res) };
			do
			:: d_step {
					res != 0 ->
					lowest(res);
					if
					:: !OUT(j) ->
						publish_due(j);
						if :: p_ == 0 -> ref = ref | (1 << j) :: else fi
					:: else -> passed[j] = true
					fi;
					j = 0 }
			:: else -> break
			od;
			make_ready();
			/* when is the next one due? */
			d_step {
#ifdef NO_CLEAR_FIRST
				rdue = false; armed = false;
#endif
				ALL(i_) { if :: row[i_] == LIVE && at[i_] == LATER -> armed = true :: else fi };
				res = 0; ref = 0; j = 0 }

		::	/* rows that are due and had to leave memory: those that nobody has */
			d_step { rlost ->
				rlost = false; lost[0] = false; lost[1] = false;
				res = 0;
				ALL(i_) { if :: row[i_] == LIVE && at[i_] == DUE -> res = res | (1 << i_) :: else fi };
				printf("due and lost? %d\n", res) };
			do
			:: d_step {
					res != 0 ->
					lowest(res);
					if
					:: !OUT(j) && !(ent[j] & IN) && !(par[j] & IN) && !(KEY(j) && kspilled && j >= kF) -> ref = ref | (1 << j)
					:: OUT(j) -> passed[j] = true
					:: else
					fi;
#ifndef NO_TOLD
					if :: ent[j] & IN -> ent[j] = ent[j] | EDUE :: else fi;
					if :: par[j] & IN -> par[j] = par[j] | EDUE :: else fi;
#endif
					j = 0 }
			:: else -> break
			od;
			make_ready();
			d_step { need = true; res = 0; ref = 0; j = 0 }

#if KEYED
		::	/* rows of the spilled key */
			d_step { rkeys ->
#ifndef NO_CLEAR_FIRST
				rkeys = false;
#endif
				all = (kwant && kspilled && !kfill);
				if
				:: all ->
					kwant = false; kfill = true; kcut = NJ; kfrom = kF; from = kF;
					nwaiting();
					room = (MAXW > n_ + 1 -> MAXW : n_ + 1) - n_
				:: else
				fi
			};
			if
			:: all ->
				d_step {
					to = NJ; i_ = from; res = 0;
					do
					:: i_ < NJ && room > 0 ->
						if
						:: row[i_] == LIVE && at[i_] != LATER && KEY(i_) ->
							res = res | (1 << i_); room--;
							if :: room == 0 -> to = i_ + 1 :: else fi
						:: else
						fi;
						i_++
					:: else -> break
					od;
					from = 0; room = 0; printf("key: reads %d up to %d\n", res, to) };
				/* those that are claimed are not for memory */
				d_step { ALL(i_) { if :: HAS(res, i_) && OUT(i_) -> res = res & ~(1 << i_) :: else fi }; skip };
				d_step {
					kF = (to < kcut -> to : kcut);
					brought = 0; ALL(i_) { if :: HAS(res, i_) -> brought++ :: else fi };
#ifndef NO_PUSHER
					pusher = true
#endif
				};
				room = 0;						/* rows read in order; any will do */
				do
				:: d_step {
						res != 0 ->
						highest(res);
						publish(j, AT_FLAG(j) | BR);
						if :: p_ == 0 -> room++ :: else fi;
						j = 0 }
				:: else -> break
				od;
				skip;
				d_step {
					kfill = false;
					brought = (brought > room -> brought - room : 0);
					if :: kF == NJ -> kspilled = false; kwant = false :: else fi };
				d_step {
					pusher = false; unpark(false);
					rkeys = true; all = false; res = 0; to = 0; j = 0; room = 0 }
			:: else
			fi
#endif

		::	/* a failure that its worker did not record */
			d_step {
				CLAIMED(FAILING) ->
				ALL(i_) { if :: held[i_] == FAILING -> j = i_ :: else fi }; skip };
			d_step {
				xmax[j] == 0 ->						/* waits for whoever has the row */
				if
				:: row[j] == LIVE -> at[j] = LATER; seen[j] = false; wal[nwal] = NJ + j; nwal++; all = true
				:: else -> all = false
				fi;
				shold = true };
			d_step { held[j] = 0 };
			d_step { if :: all -> arm(j) :: else fi; all = false; shold = false; j = 0 }

		::	/* a row that somebody was deleting: has he ended? */
			d_step {
				CLAIMED(DOUBT) ->
				j = NJ;
				ALL(i_) { if :: held[i_] == DOUBT && xmax[i_] != hx[i_] -> j = i_ :: else fi };
				if
				:: j < NJ -> all = (row[j] == LIVE); if :: all && xmax[j] != 0 -> hx[j] = xmax[j]; j = NJ :: else fi
				:: else
				fi
			};
			if
			:: j < NJ ->
				d_step { shold = true; held[j] = 0; hx[j] = 0 };
				d_step { if :: all -> publish_row(j) :: else fi; shold = false }
			:: else
			fi;
			d_step { j = 0; all = false }
		od
	} ESCAPE((skilled && !shold) || ep != ncrash);

	if
	:: ep != ncrash -> goto start
	:: else
	fi;
	{
		d_step {
			printf("scheduler exits\n"); skilled = false;
#if KEYED
			if :: pusher -> pusher = false; unpark(false) :: else fi;
#endif
			skip };
		d_step {									/* its successor */
#ifndef NO_SCHED_ALL
			need = true; rdue = true; rkeys = true;
#endif
			ALL(i_) { seen[i_] = false };			/* where the due scans were is forgotten */
#ifndef NO_ABANDON
			for (l : 0 .. NL - 1) {
				if :: filling[l] -> F[l] = (F[l] < cut[l] -> F[l] : cut[l]); filling[l] = false; trim(l) :: else fi;
				if :: F[l] < NJ -> want[l] = true :: else fi;
				starved[l] = false
			};
			if
			:: kspilled && kfill ->
				kF = (kF < kfrom -> kF : kfrom); kcut = (kcut < kF -> kcut : kF);
				kfill = false; kwant = true;
				spill_waiters()
			:: else
			fi;
#else
			filling[0] = false; filling[1] = false; kfill = false;
#endif
			l = 0 }
	} ESCAPE(ep != ncrash);
	goto start
}
