/*
 * unique.pml: jobs of one unique_key in the hands of outside consumers (conflict.c,
 * fetched.c, fetchlook.c). Each job has a lock in the table until it starts
 * (until_and_while_executing), or waits for it ("reschedule"); while it executes a
 * digest keeps others from it. Consumers fetch for their sessions.
 *
 * A d_step is one hold of LWLocks, one look at a table, or one commit becoming
 * visible.
 *
 * -DNO_x breaks rule x; -DNO_LOCK_FIRST: the digest first, which is let go again
 * without the lock, with -DKEEPS when the transaction ends; -DNO_BLAME: it is not
 * asserted for whom a job is refused, only that in the end all have run.
 */
#ifndef NJ
#define NJ		2			/* jobs, numbered in their order */
#endif
#ifndef NC
#define NC		2			/* consumers; each has a session of its own */
#endif
#ifndef MAX
#define MAX		1			/* jobs of one fetch */
#endif
#ifndef WAITS
#define WAITS	1			/* jobs that wait for their lock, bit mask */
#endif
#ifndef KEY1
#define KEY1	0			/* jobs that have another unique_key, bit mask */
#endif
#ifndef NKEYS
#define NKEYS	9			/* digests that there is room for */
#endif
#ifndef NBACK
#define NBACK	1			/* fetches that are rolled back, jobs given back */
#endif
#ifndef NEXIT
#define NEXIT	0			/* sessions that end while they have jobs */
#endif
#define ALL(x)	for (x : 0 .. NJ - 1)
#define HAS(m, x)	(((m) >> (x)) & 1)
#define KEY(x)	HAS(KEY1, x)
#ifndef NO_BLAME
#define BLAME	1
#else
#define BLAME	0
#endif

/* ---- durable ---- */
bool live[NJ], later[NJ], waits[NJ];	/* its row; a run_at; "R" */
byte lock[2];				/* of a unique_key: job + 1 */
/* ---- of open transactions ---- */
byte lockby[2], lockto[2];	/* who has changed it: consumer + 1; to what */
/* ---- memory ---- */
bool inlane[NJ], out[NJ], doubt[NJ], lost[NJ];
byte dig[2];				/* who executes: job + 1 */
byte keys[NJ];				/* room that a claim has */
bool spare[NJ];
bool ending[NJ];			/* whoever gives it back commits */
byte nkeys, wants;			/* wants_key: job + 1 */
bool isfull;					/* somebody found no room, and none has come since */
/* ---- for the properties ---- */
bool given[NJ];				/* a consumer has been told to start it */
bool refused[NJ];			/* by the transaction that has it now */
bool blamed[NJ];			/* another one was refused, as this one executes */
byte vain[NJ];				/* taken, though there was no room */
bool over[NJ];				/* it has been given back, and that is committed */
byte nback, nexit;
hidden byte i_;

#if NJ == 2
#define INLANE	(inlane[0] || inlane[1])
#else
#define INLANE	(inlane[0] || inlane[1] || inlane[2])
#endif
/* the lock of a key, as the transaction sees it; whether it may ask for it */
#define SEEN(k)		(lockby[k] == me + 1 -> lockto[k] : lock[k])
#define DOUBT(k)	(lockby[k] != 0 && lockby[k] != me + 1)

/* ------------------------------------------------------------------- claims end */
inline let_go(x)			/* let_go_but_key */
{
	d_step { if :: dig[KEY(x)] == x + 1 -> dig[KEY(x)] = 0 :: else fi; ending[x] = false; over[x] = false }
}

inline remove(x)			/* remove_claim */
{
	d_step { out[x] = false; n = keys[x]; keys[x] = 0; spare[x] = false; refused[x] = false; blamed[x] = false };
	d_step { nkeys = nkeys - n; n = 0 };
#ifndef NO_ROOM_TELLS
	isfull = false
#endif
}

inline end_gone(x)			/* jq_fetched_end; or its row says when it goes on */
{
	let_go(x);
	remove(x)
}

inline end_lane(x)			/* the same, JQ_THEN_LANE */
{
	let_go(x);
	remove(x);
	d_step { inlane[x] = true }
}

/* ------------------------------------------------------------------------ fetch */
/* what there is room for, into todo; r_: there is more */
inline take_some(r_)
{
	d_step {
		r_ = false;
		ALL(i_) {
			if
			:: inlane[i_] && !r_ && ntaken + ngot < MAX ->
				if
				:: out[i_] -> inlane[i_] = false	/* a duplicate */
#ifndef NO_WANTS_KEY
				:: !out[i_] && wants == i_ + 1 && nkeys >= NKEYS -> r_ = true
				:: !out[i_] && wants == i_ + 1 && nkeys < NKEYS ->
					nkeys++; keys[i_] = 1; wants = 0;
#ifndef NO_SPARE
					spare[i_] = true;
#endif
					inlane[i_] = false; out[i_] = true; todo = todo | (1 << i_); ntaken++
				:: !out[i_] && wants != i_ + 1 ->
#else
				:: !out[i_] ->
#endif
					inlane[i_] = false; out[i_] = true; todo = todo | (1 << i_); ntaken++
				fi
			:: else
			fi
		}
	}
}

inline take()				/* jq_fetched_take; rfull: there was no room */
{
	d_step { ntaken = 0; todo = 0 };
	take_some(rfull);
	if
	:: rfull ->				/* reserve_or_wait */
		isfull = true;
#ifndef NO_ROOM_LOOK
		take_some(rfull)
#endif
	:: !rfull
	fi
}

/* somebody else executes, and it is his to say what comes; how: 0 nobody does */
inline look_digest(x)
{
	if
	:: dig[KEY(x)] == 0 || dig[KEY(x)] == x + 1 -> how = 0
#ifndef NO_GONE_LATER
	:: dig[KEY(x)] != 0 && dig[KEY(x)] != x + 1 && !live[dig[KEY(x)] - 1] -> how = 2
#endif
#ifndef NO_ENDING_LATER
	:: dig[KEY(x)] != 0 && dig[KEY(x)] != x + 1 && live[dig[KEY(x)] - 1] && ending[dig[KEY(x)] - 1] -> how = 2
#endif
	:: else ->
		/* who is in the way has not ended, nor does it let others go first */
		assert(live[dig[KEY(x)] - 1] && !over[dig[KEY(x)] - 1] && !(refused[dig[KEY(x)] - 1] && BLAME));
		blamed[dig[KEY(x)] - 1] = true;
		how = 1
	fi
}

inline take_lock(x)
{
	d_step {
		if
		:: waits[x] && (DOUBT(KEY(x)) || (SEEN(KEY(x)) != 0 && SEEN(KEY(x)) != x + 1)) ->
			how = 1;
			/* nobody was refused for one that does not start itself */
			assert(!blamed[x] || !BLAME)
		:: waits[x] && !DOUBT(KEY(x)) && (SEEN(KEY(x)) == 0 || SEEN(KEY(x)) == x + 1) ->
			lockby[KEY(x)] = me + 1; lockto[KEY(x)] = x + 1; how = 0
		:: !waits[x] -> how = 0
		fi
	}
}

inline give_lock(x)			/* jq_unique_release */
{
	d_step {
		if
		:: !DOUBT(KEY(x)) && SEEN(KEY(x)) == x + 1 -> lockby[KEY(x)] = me + 1; lockto[KEY(x)] = 0
		:: else
		fi
	}
}

inline take_digest(x)
{
	d_step { look_digest(x); if :: how == 0 -> dig[KEY(x)] = x + 1 :: else fi }
}

/* jq_unique_start_fetched; how: 0 it starts, 1 refused, 2 in a moment, 3 no room */
inline unique_start(x)
{
	d_step {
		how = 3;
		if
		:: spare[x] -> spare[x] = false; how = 0
		:: !spare[x] && nkeys < NKEYS -> nkeys++; keys[x]++; how = 0
		:: else -> vain[x]++
		fi;
		assert(vain[x] <= NJ)					/* not again and again */
	};
#ifndef NO_LOCK_FIRST
	if :: how == 0 -> d_step { look_digest(x) } :: else fi;
	if :: how == 0 -> take_lock(x) :: else fi;
	if
	:: how == 0 ->
		take_digest(x);
		if :: how != 0 -> give_lock(x) :: else fi
	:: else
	fi;
#else
	if :: how == 0 -> take_digest(x) :: else fi;
	if
	:: how == 0 ->
		take_lock(x);
#ifndef KEEPS
		if :: how == 1 -> d_step { dig[KEY(x)] = 0 } :: else fi
#endif
	:: else
	fi;
#endif
	if :: how == 0 -> give_lock(x) :: else fi
}

proctype consumer(byte me)
{
	byte todo, mine, ref, j, n, how, ntaken, ngot;
	bool rfull;

start:
	skip;
	d_step { INLANE && !(rfull && isfull) -> ngot = 0; rfull = false };
	do
	:: /* take(): as long as something comes, and there may be more */
		take();
		if
		:: ntaken == 0 -> break
		:: ntaken > 0
		fi;
		j = 0;
		do
		:: j < NJ ->
			if
			:: HAS(todo, j) ->
				unique_start(j);
				if
				:: how == 0 ->
					d_step {
						given[j] = true; mine = mine | (1 << j); ngot++; todo = todo & ~(1 << j); vain[j] = 0;
						/* one at a time */
						ALL(i_) { assert(i_ == j || KEY(i_) != KEY(j) || !given[i_]) };
						skip
					}
				:: how == 1 -> d_step { ref = ref | (1 << j); todo = todo & ~(1 << j); refused[j] = true }
				:: how == 2 -> end_gone(j); d_step { doubt[j] = true; todo = todo & ~(1 << j) }
				:: how == 3 ->
					wants = j + 1;
					/* those behind it are not to pass it */
					do
					:: j < NJ -> if :: HAS(todo, j) -> end_lane(j) :: else fi; j++
					:: j == NJ -> break
					od;
					todo = 0; break
				fi
			:: else
			fi;
			j++
		:: j == NJ -> break
		od;
		skip;
		d_step { todo = 0; how = 0; j = 0 };
		if :: ngot == MAX -> break :: ngot < MAX fi
	od;
	skip;
	d_step { ntaken = 0; ngot = 0; how = 0; j = 0; todo = 0 };

	if
	:: true -> how = 1							/* COMMIT, then complete */
	:: mine != 0 -> how = 2						/* complete, COMMIT */
	:: nback < NBACK && (mine | ref) != 0 ->	/* ROLLBACK, perhaps at its exit */
		d_step {
			nback++;
			for (i_ : 0 .. 1) { if :: lockby[i_] == me + 1 -> lockby[i_] = 0; lockto[i_] = 0 :: else fi };
			ALL(i_) { if :: HAS(mine, i_) -> given[i_] = false :: else fi };
			j = NJ
		};
		do
		:: j > 0 -> j--; if :: HAS(mine | ref, j) -> end_lane(j) :: else fi
		:: j == 0 -> break
		od;
		goto again
	fi;
	skip;
	d_step {									/* COMMIT */
		for (i_ : 0 .. 1) { if :: lockby[i_] == me + 1 -> lock[i_] = lockto[i_]; lockby[i_] = 0; lockto[i_] = 0 :: else fi };
		ALL(i_) {
			if :: HAS(ref, i_) -> later[i_] = true :: else fi;
			if :: HAS(mine, i_) -> waits[i_] = false :: else fi;
			if :: HAS(mine, i_) && how == 2 -> live[i_] = false; given[i_] = false :: else fi
		};
		j = 0
	};
	/* carry_out, when its locks are released */
	do
	:: j < NJ -> if :: HAS(ref, j) || (HAS(mine, j) && how == 2) -> end_gone(j) :: else fi; j++
	:: j == NJ -> break
	od;
	if
	:: how == 2 -> goto ended
	:: how == 1 && mine == 0 -> goto again
	:: how == 1 && mine != 0
	fi;
	/* it works; then, in another transaction, it ends the claims */
	how = 0;
	if
	:: d_step { true ->							/* complete, COMMIT */
			ALL(i_) { if :: HAS(mine, i_) -> live[i_] = false; given[i_] = false :: else fi };
			j = 0 };
		do
		:: j < NJ -> if :: HAS(mine, j) -> end_gone(j) :: else fi; j++
		:: j == NJ -> break
		od;
		goto ended
	:: d_step { nback < NBACK ->				/* release, and before COMMIT */
			nback++;
			ALL(i_) { if :: HAS(mine, i_) -> ending[i_] = true :: else fi } };
		d_step {								/* COMMIT */
			ALL(i_) { if :: HAS(mine, i_) -> given[i_] = false; over[i_] = true :: else fi };
			j = 0 };
		do
		:: j < NJ -> if :: HAS(mine, j) -> end_lane(j) :: else fi; j++
		:: j == NJ -> break
		od
	:: d_step { nexit < NEXIT ->				/* the session ends: jq_fetched_lose */
			nexit++;
			ALL(i_) { if :: HAS(mine, i_) -> given[i_] = false :: else fi };
			j = 0 };
		do
		:: j < NJ -> if :: HAS(mine, j) -> let_go(j); lost[j] = true :: else fi; j++
		:: j == NJ -> break
		od
	fi;
	goto again;
ended:
progress:
	skip;
again:
	skip;
	d_step { mine = 0; ref = 0; j = 0; how = 0; n = 0 };
	goto start
}

proctype scheduler()
{
	byte n;

end:	do
	:: d_step { lost[0] -> lost[0] = false; later[0] = true }; remove(0)
	:: d_step { lost[1] -> lost[1] = false; later[1] = true }; remove(1)
	:: d_step { doubt[0] -> doubt[0] = false; inlane[0] = true }
	:: d_step { doubt[1] -> doubt[1] = false; inlane[1] = true }
	/* its time has come; what is claimed is passed over, and asked for again */
	:: d_step { later[0] && !out[0] -> later[0] = false; inlane[0] = true }
	:: d_step { later[1] && !out[1] -> later[1] = false; inlane[1] = true }
#if NJ > 2
	:: d_step { lost[2] -> lost[2] = false; later[2] = true }; remove(2)
	:: d_step { doubt[2] -> doubt[2] = false; inlane[2] = true }
	:: d_step { later[2] && !out[2] -> later[2] = false; inlane[2] = true }
#endif
	od
}

proctype monitor()			/* nothing can move any more */
{
	timeout ->
	d_step {
		ALL(i_) { assert(!live[i_] && !out[i_] && !inlane[i_] && !later[i_] && !doubt[i_] && !lost[i_]) };
		assert(dig[0] == 0 && dig[1] == 0 && lock[0] == 0 && lock[1] == 0 && nkeys == 0)
	}
}

init {
	atomic {
		ALL(i_) {
			live[i_] = true; inlane[i_] = true; waits[i_] = HAS(WAITS, i_);
			/* one of a unique_key has the lock, if not all of them wait */
			if :: !HAS(WAITS, i_) && lock[KEY(i_)] == 0 -> lock[KEY(i_)] = i_ + 1 :: else fi
		};
		run monitor();
		run scheduler();
		run consumer(0);
#if NC > 1
		run consumer(1);
#endif
	}
}
