/*
 * memory.pml: what is done to shared memory under locks (part of jobs.pml).
 * All of it is called within a d_step of who holds the lane's lock, and that of
 * the key's partition.
 */

/* ------------------------------------------------------------ requests */
inline wake(g)				/* jq_group_wake: for one entry */
{
	q_ = NW;
	for (h_ : 0 .. NW - 1) {
		if :: idle[h_] && q_ == NW && SERVES(h_, g) -> q_ = h_ :: else fi
	};
	if
	:: q_ < NW -> idle[q_] = false; latch[q_] = true
	:: else -> wanted[g] = true
	fi
}

inline count()				/* u_: entries in use */
{
	u_ = 0;
	ALL(i_) { u_ = u_ + (ent[i_] & IN) + (par[i_] & IN) };
	skip
}

inline ready(l)				/* r_: l->nready, t_: its largest entry, or NJ */
{
	r_ = 0; t_ = NJ;
	ALL(i_) {
		if :: (ent[i_] & IN) && LANE(i_) == l -> r_++; t_ = i_ :: else fi
	}
}

inline wants(l)				/* b_: jq_lane_wants_refill */
{
	ready(l);
	b_ = (F[l] < NJ && !filling[l] && !starved[l] && (want[l] || r_ <= low[l]))
}

/* ------------------------------------------------------------ knowledge */
inline lower(l, x)			/* lane_lower: x is in the table only */
{
	if :: F[l] == NJ -> ready(l); low[l] = r_ / 2 :: else fi;
#ifndef NO_R5
	if :: x < F[l] -> F[l] = x :: else fi;
#else
	F[l] = x;
#endif
#ifndef NO_R1
	if :: x < cut[l] -> cut[l] = x :: else fi
#endif
}

inline wantsk()				/* a_: jq_key_wants_refill */
{
	a_ = 0; n_ = 0;
	if
	:: kspilled && !kwant && !kfill ->
		ALL(i_) { if :: par[i_] & IN -> n_++ :: else fi };
		if
		:: MAXW == 0 && holder != 0
		:: else ->
			if
			:: n_ == 0 && brought > 0 && !TWOLANES
			:: else ->
				if :: n_ > 0 && holder == 0 && TWOLANES -> n_ = 0 :: else fi;
				if
				:: n_ > 0 && (brought > 0 || n_ > MAXW / 2)
				:: else -> kwant = true; a_ = 1
				fi
			fi
		fi
	:: else
	fi;
#ifndef NO_KEY_ASK
	if :: a_ == 1 -> rkeys = true :: else fi
#endif
}

inline nwaiting()			/* n_ */
{
	n_ = 0; ALL(i_) { if :: par[i_] & IN -> n_++ :: else fi };
	skip
}

inline dropped(x, fl)		/* jq_keylock_dropped */
{
#if KEYED
	if
#ifndef NO_DROPPED
	:: KEY(x) && (kspilled || ((fl) & BR)) ->
#else
	:: KEY(x) && kspilled ->
#endif
		if :: ((fl) & BR) && brought > 0 -> brought-- :: else fi;
		nwaiting();
		if :: holder == 0 && n_ == 0 -> wantsk() :: else fi
	:: else
	fi
#else
	skip
#endif
}

inline lose(x, fl)			/* lane_lose, after lowering */
{
	if :: (fl) & EDUE -> lost[LANE(x)] = true; rlost = true :: else fi
}

inline forget(x, fl)		/* lane_forget */
{
	lose(x, fl);
	lower(LANE(x), x);
	dropped(x, fl)
}

inline insert(x, fl)		/* lane_insert; o_: 1 new, 2 was there */
{
	if
	:: ent[x] & IN ->
#ifndef NO_TWIN_DUE
		ent[x] = ent[x] | ((fl) & (UNP | EDUE | BR));
#else
		ent[x] = ent[x] | ((fl) & (UNP | BR));
#endif
		o_ = 2
	:: else -> ent[x] = IN | (fl); o_ = 1
	fi
}

/* lane_relieve_waiters: those that count on an entry that leaves the lane */
inline relieve(l, fl, keep)
{
#if KEYED && !defined(NO_RELIEVE)
	if
	:: ((fl) & UNP) && holder == 0 && !pusher ->
		n_ = 0; ALL(y_) { if :: (par[y_] & IN) && LANE(y_) == l -> n_++ :: else fi };
		if
		:: n_ > 0 ->
			ALL(y_) {
				if
				:: (par[y_] & IN) && LANE(y_) == l ->
					z_ = par[y_] & EDUE; par[y_] = 0;
					if
					:: keep && (filling[l] || y_ < F[l]) -> insert(y_, z_)
					:: else -> forget(y_, z_)
					fi
				:: else
				fi
			};
			wantsk()
		:: else
		fi
	:: else
	fi
#else
	skip
#endif
}

inline evict(l)				/* lane_evict_last, but for the trim; t_: the last */
{
	v_ = t_; f_ = ent[v_]; ent[v_] = 0;
	relieve(l, f_, false);
	forget(v_, f_)
}

inline trim(l)				/* lane_trim */
{
	ready(l);
	do
	:: !filling[l] && t_ != NJ && t_ >= F[l] -> evict(l); ready(l)
	:: else -> break
	od;
	skip
}

inline offer(l, x, fl)		/* lane_offer; o_: 0 refused, 1 accepted, 2 known */
{
	o_ = 3;
	do
	:: o_ == 3 ->
		if
		:: !filling[l] && x >= F[l] -> lower(l, x); o_ = 0
		:: else ->
			count();
			if
			:: u_ < CAP -> insert(x, fl)
			:: else ->
				ready(l);
				if
				:: t_ == x -> o_ = 2;
#ifndef NO_TWIN_DUE
					ent[x] = ent[x] | ((fl) & (EDUE | BR))
#endif
				:: t_ == NJ || t_ < x -> lower(l, x); o_ = 0
				:: t_ != NJ && t_ > x -> evict(l); trim(l)
				fi
			fi
		fi
	:: else -> break
	od;
	skip
}

inline publish(x, fl)		/* jq_lane_publish, of one */
{
	offer(LANE(x), x, fl);
	p_ = o_;
	if :: p_ == 0 -> lose(x, fl) :: else fi;
	wants(LANE(x));
	if :: b_ -> want[LANE(x)] = true; need = true :: else fi;
	if :: p_ > 0 -> wake(GROUP(LANE(x))) :: else fi
}

inline publish_due(x)		/* jq_lane_publish_due; p_: 0 refused */
{
	offer(LANE(x), x, EDUE);
	p_ = o_;
	wants(LANE(x));
	if :: b_ -> want[LANE(x)] = true; need = true :: else fi;
	if :: p_ > 0 -> wake(GROUP(LANE(x))) :: else fi
}

inline arm(x)				/* jq_db_due, with its moment: the scan begins there */
{
	armed = true; seen[x] = false
}

#define AT_FLAG(x)	(EDUE * (at[x] == DUE))

inline publish_row(x)		/* jq_publish_now, of what the row says */
{
	if
	:: at[x] == LATER -> arm(x)
	:: else -> publish(x, AT_FLAG(x))
	fi
}

inline spill(l, x)			/* jq_lane_spill: rows from x on are not known */
{
	lower(l, x); trim(l); want[l] = true; starved[l] = false; need = true
}

/* ------------------------------------------------------------ the key */
inline spill_from(x)		/* jq_key_spill_from */
{
	if :: !kspilled -> kspilled = true; kF = NJ; brought = 0 :: else fi;
	if :: x < kF -> kF = x :: else fi;
#ifndef NO_KEY_CUT
	if :: x < kcut -> kcut = x :: else fi
#endif
}

inline spill_waiters()		/* jq_key_spill_waiters */
{
	ALL(y_) {
		if :: (par[y_] & IN) && y_ >= kF -> par[y_] = 0; spill_from(y_) :: else fi
	};
	skip
}

inline wait_for(x, fl)		/* wait_for: park it, or the key answers for it */
{
	if
	:: kspilled && x >= kF -> spill_from(x)
	:: else ->
		par[x] = IN | ((par[x] | (fl)) & EDUE);
		nwaiting();
		if
		:: n_ > MAXW ->
			c_ = 0; ALL(i_) { if :: par[i_] & IN -> c_ = i_ :: else fi };
			par[c_] = 0; spill_from(c_)
		:: else
		fi
	fi
}

inline ktake(x, l, fl)		/* take; k_: 1 taken */
{
	if :: ((fl) & BR) && brought > 0 -> brought-- :: else fi;
	k_ = 0;
	if
#ifndef NO_PUSHER
	:: pusher || holder != 0 -> wait_for(x, fl)
#else
	:: holder != 0 -> wait_for(x, fl)
#endif
	:: else ->
		if
#ifndef NO_KEY_FRONTIER
		:: kspilled && x >= kF ->
			wait_for(x, fl);
			if
#ifndef NO_SPILL_WAITERS
			:: ((fl) & UNP) && !kfill && !kwant -> spill_waiters(); kwant = true; rkeys = true
#endif
			:: else -> wantsk()
			fi
#endif
		:: else ->
			s_ = (sline == 1 && SPOS <= x);
#ifndef NO_BEHIND
			ALL(i_) { if :: (par[i_] & IN) && LANE(i_) == l && i_ < x -> s_ = 1 :: else fi };
#endif
			if
			:: s_ -> wait_for(x, fl); kwake = true
			:: else -> k_ = 1
			fi
		fi
	fi
}

inline take_back(x, fl)		/* jq_lane_take_back, jq_lane_took_back */
{
	if
	:: !filling[LANE(x)] && x >= F[LANE(x)] ->
		relieve(LANE(x), fl, false);
		forget(x, fl);
		trim(LANE(x));
		want[LANE(x)] = true; need = true
	:: else -> insert(x, fl); wake(GROUP(LANE(x)))
	fi
}

inline serve(blocked)		/* jq_key_session_serve */
{
	if
	:: holder != 0 || pusher -> sturn = false; stable = false
	:: else ->
		due_ = due_ && sturn;
		/* it waits for what the table brought as long as there is some, no longer */
		assert((brought > 0) == BROUGHT);
		intab_ = brought > 0 || (kspilled && SPOS >= kF);
		if :: !intab_ && !(blocked) && stable -> sturn = false; stable = false :: else fi;
		if :: ((blocked) || intab_) && !sturn -> sturn = true; stable = true :: else fi;
		if :: blocked -> stable = false :: else fi;
		if
		:: sturn && !due_ -> kwake = true
		:: else -> holder = SESS; sline = 2; sturn = false; stable = false
		fi
	fi
}

/* jq_key_unpark: the first waiters of each lane go back, or the session has it */
inline unpark(due)
{
	due_ = due;
	if
	:: !pusher ->
		served_ = (sline != 1); wanted_ = false; runs_ = false; lanes_ = 0;
		if :: !served_ && due_ && sturn -> serve(false); served_ = true; wanted_ = true :: else fi;
		ALL(w_) {
			if
			:: par[w_] & IN ->
				if
				:: !served_ && SPOS <= w_ -> serve(runs_); served_ = true; wanted_ = true
				:: else
				fi;
				if
				:: !HAS(lanes_, LANE(w_)) ->
					lanes_ = lanes_ | (1 << LANE(w_));
					if
					:: holder != 0 -> wanted_ = true
					:: holder == 0 && !wanted_ ->
						g_ = (par[w_] & EDUE) | UNP; par[w_] = 0;
						take_back(w_, g_);
						runs_ = true
					:: else
					fi
				:: else
				fi
			:: else
			fi
		};
		if :: !served_ -> serve(runs_) :: else fi;
		if :: holder == 0 -> wantsk() :: else fi
	:: else
	fi
}

inline release()			/* advance: the holder lets it go */
{
	holder = 0; sturn = false; stable = false;
	unpark(false)
}

/* ------------------------------------------------------------ the table */
inline rows(m, from, to)	/* what a (sub)transaction inserted changes state */
{
	ALL(i_) {
		if
		:: HAS(m, i_) && row[i_] == from ->
			row[i_] = to;
			if :: to == LIVE -> committed[i_] = true; cancelled[i_] = false :: else fi
		:: else
		fi
	};
	skip
}

inline flush() { nwal = 0 }	/* WAL is one sequence: all before is durable too */
