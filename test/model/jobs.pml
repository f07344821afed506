/*
 * jobs.pml: jobs on their way from a client's INSERT to the end: lanes, claims,
 * one key, workers, scheduler, sessions. What is modelled, and where the rules
 * are kept in the code, says README.md.
 *
 * A d_step is what nobody can look into: one hold of LWLocks, one snapshot, or
 * one commit becoming visible. Anything may happen between two of them. Jobs
 * are numbered in their order (priority, id): smaller first.
 *
 * -DNO_x breaks rule x.
 */
#ifndef NJ
#define NJ		2			/* jobs, 4 at the most */
#endif
#ifndef NW
#define NW		2			/* workers */
#endif
#ifndef CAP
#define CAP		8			/* entries of the pool: in lanes, and parked */
#endif
#ifndef C0
#define C0		1			/* jobs of client 0 and of client 1, bit masks */
#define C1		2
#endif
#ifndef LANE1
#define LANE1	0			/* jobs of the second lane */
#endif
#ifndef KEYED
#define KEYED	0			/* jobs that have the key */
#endif
#ifndef MAXW
#define MAXW	8			/* waiters that a key may have in memory */
#endif
#ifndef SUB
#define SUB		0			/* jobs enqueued within a savepoint */
#endif
#ifndef DELAY
#define DELAY	0			/* jobs enqueued with a run_at */
#endif
#ifndef PREP
#define PREP	0			/* clients that may PREPARE, bit mask */
#endif
#ifndef BYHAND
#define BYHAND	0			/* clients that INSERT by hand, bit mask */
#endif
#ifndef NFAIL
#define NFAIL	0			/* how often a job raises an error */
#endif
#ifndef NRERUN
#define NRERUN	0			/* how often one is rolled back and given back */
#endif
#ifndef NCRASH
#define NCRASH	0			/* server crashes */
#endif
#ifndef NEXIT
#define NEXIT	0			/* exits of worker 0, and as many of worker 1 */
#endif
#ifndef NSEXIT
#define NSEXIT	0			/* exits of the scheduler */
#endif
#if LANE1
#define NL		2
#else
#define NL		1
#endif

/* row[] */
#define NONE	0			/* no row: not yet, or rolled back */
#define INS		1			/* inserted, transaction open */
#define PREPD	2			/* inserted, transaction prepared */
#define LIVE	3			/* committed */
#define GONE	4			/* deletion committed */
/* at[] */
#define LATER	1			/* has a run_at, which is to come */
#define DUE		2			/* has one that has come; 0: has none */
/* xmax[]: who has deleted the row, uncommitted: 0, worker + 1, or */
#define SESS	(NW + 1)	/* a session, by a control function */
#define HAND	(NW + 2)	/* somebody, by a DELETE */
/* holder of the key: 0, worker + 1, or SESS */
/* ent[]: entry in the lane; par[]: entry parked on the key; flags */
#define IN		1
#define EDUE	2			/* its row has a run_at: no refill would find it */
#define UNP		4			/* unparked: waiters of its lane count on it */
#define BR		8			/* its key counts it until a worker meets it */
/* held[]: claims that no slot stands for */
#define BYSESS	1
#define FAILING	2
#define DOUBT	3

#define HAS(m, x)	(((m) >> (x)) & 1)
#define KEY(x)		HAS(KEYED, x)
#define LANE(x)		HAS(LANE1, x)
#define ALL(x)		for (x : 0 .. NJ - 1)

/* ---- durable: the table, and WAL not flushed yet ---- */
byte row[NJ], xmax[NJ], at[NJ];
byte wal[NJ + NFAIL + 1], nwal;	/* j: completed, NJ + j: failure recorded */
bool hprep;						/* the DELETE by hand is prepared */

/* ---- shared memory: lanes, pool ---- */
byte ent[NJ];
byte F[2], cut[2], low[2];		/* frontier (NJ: knows all), cut, low_water */
bool filling[2], want[2], starved[2], lost[2];	/* lost_due */
byte hb[2];						/* held_back */
/* ---- asked of the scheduler ---- */
bool need, rdue, rlost, rkeys, armed, discover;	/* armed: a next_due moment */
bool seen[NJ];					/* the due scans have passed its moment */
/* ---- claims ---- */
byte cl[NW];					/* slot: job + 1 */
bool cdue[NW], running[NW], cfor[NW];
byte held[NJ], hx[NJ];			/* hx: DOUBT: who had deleted it */
bool passed[NJ];				/* somebody has passed over a held one */
/* ---- the key ---- */
byte par[NJ];
byte holder;
byte sline;						/* a session: 0, 1 in line, 2 has been given it */
bool sturn, stable, kwake;		/* its turn comes (for rows of the table alone); the
								 * launcher is to look */
bool kspilled, kwant, kfill, pusher;
byte kF, kcut, kfrom, brought;
/* ---- slots ---- */
bool idle[NW], latch[NW], down[NW], wanted[2];
bool whold[NW], shold;			/* interrupts held */

/* ---- for the properties and the misfortunes ---- */
byte done[NJ];
bool committed[NJ], cancelled[NJ], told[NJ];
byte ncrash, nfail, nrerun, pub;	/* pub: published with all of their transaction */
bool inrun[NW];					/* a transaction of a job that has the key */
bool killed[NW], skilled;
hidden byte a_, b_, c_, f_, g_, h_, i_, k_, n_, o_, p_, q_, r_, s_, t_, u_, v_, w_, x_, y_, z_;

hidden byte intab_;
hidden byte due_, served_, wanted_, runs_;
hidden byte lanes_;

#ifndef SPOS
#define SPOS	0			/* the session came before the jobs from here on */
#endif
#define TWOLANES	(NL == 2 && (KEYED & LANE1) != 0 && (KEYED & ~(LANE1)) != 0)
#define OUT(x)		(cl[0] == x + 1 || cl[NW - 1] == x + 1 || held[x] != 0)
#ifndef NO_TAKE_KNOWN
#define READY(l, x)	((ent[x] & IN) && LANE(x) == l && x < F[l])
#else
#define READY(l, x)	((ent[x] & IN) && LANE(x) == l)
#endif
#if NJ == 2
#define ANY(l)		(READY(l, 0) || READY(l, 1))
#elif NJ == 3
#define ANY(l)		(READY(l, 0) || READY(l, 1) || READY(l, 2))
#else
#define ANY(l)		(READY(l, 0) || READY(l, 1) || READY(l, 2) || READY(l, 3))
#endif
#if NJ == 2
#define BROUGHT		((ent[0] & BR) || (ent[1] & BR))
#elif NJ == 3
#define BROUGHT		((ent[0] & BR) || (ent[1] & BR) || (ent[2] & BR))
#else
#define BROUGHT		((ent[0] & BR) || (ent[1] & BR) || (ent[2] & BR) || (ent[3] & BR))
#endif
#define FIRST(l)	(ANY(l) && hb[l] == 0)
/* each lane is of a role of its own, unless -DONEROLE */
#ifdef ONEROLE
#define GROUP(l)	0
#define SERVES(w, l)	true
#else
#define GROUP(l)	(l)
#define SERVES(w, l)	(NL == 1 || (l) == (w))
#endif
#ifdef ONEROLE
#define MYGROUP		0
#else
#define MYGROUP		(NL == 2 -> me : 0)
#endif
#if NJ == 2
#define CLAIMED(k)	(held[0] == k || held[1] == k)
#elif NJ == 3
#define CLAIMED(k)	(held[0] == k || held[1] == k || held[2] == k)
#else
#define CLAIMED(k)	(held[0] == k || held[1] == k || held[2] == k || held[3] == k)
#endif
#define CANTAKE(w)	((SERVES(w, 0) && FIRST(0)) || (NL == 2 && SERVES(w, 1) && FIRST(1)))

#include "memory.pml"
#include "actors.pml"

/* ------------------------------------------------------------- misfortunes */
proctype misfortune()		/* SIGTERM, FATAL: the exit hook runs */
{
	byte n;

	do :: n < NEXIT -> n++; killed[0] = true; !killed[0] :: break od;
	n = 0;
	do :: n < NEXIT && NW > 1 -> n++; killed[NW - 1] = true; !killed[NW - 1] :: break od;
	n = 0;
	do :: n < NSEXIT -> n++; skilled = true; !skilled :: break od
}

proctype crasher()			/* signal 9, power loss: no hook runs */
{
	byte x;

	do
	:: atomic {
		ncrash < NCRASH -> ncrash++;
		do					/* some tail of the WAL is lost, effects with it */
		:: nwal > 0 ->
			nwal--; x = wal[nwal];
			if
			:: x < NJ -> assert(!told[x]); row[x] = LIVE; done[x]--
			:: else -> at[x - NJ] = 0
			fi
		:: break
		od;
		x = 0;
		d_step {
			printf("crash, %d unflushed kept\n", nwal);
			nwal = 0; rows(15, INS, NONE);
			ALL(i_) {
				ent[i_] = 0; par[i_] = 0; held[i_] = 0; hx[i_] = 0; seen[i_] = false;
				if :: !(xmax[i_] == HAND && hprep) -> xmax[i_] = 0 :: else fi
			};
			for (i_ : 0 .. NW - 1) {
				cl[i_] = 0; cdue[i_] = false; running[i_] = false; cfor[i_] = false; inrun[i_] = false;
				idle[i_] = false; latch[i_] = false; down[i_] = false; whold[i_] = false;
				killed[i_] = false
			};
			for (i_ : 0 .. 1) {
				F[i_] = 0; cut[i_] = NJ; low[i_] = 0; filling[i_] = false; starved[i_] = false;
				hb[i_] = 0; wanted[i_] = false;
#ifndef NO_START_UNKNOWN
				want[i_] = (i_ < NL)
#else
				want[i_] = false; F[i_] = NJ
#endif
			};
			holder = 0; sline = 0; sturn = false; stable = false; kwake = false; kspilled = false; kwant = false;
			kfill = false; pusher = false; kF = NJ; kcut = NJ; kfrom = 0; brought = 0;
			shold = false; skilled = false;
#ifndef NO_START_UNKNOWN
			need = true; rdue = true;
#else
			need = false; rdue = true;
#endif
			rkeys = false; armed = false; discover = true; rlost = false; lost[0] = false; lost[1] = false
		} }
	:: break
	od
}

/* ------------------------------------------------------------- properties */
/* asserted in actors.pml: never twice, one of the key, not before the commit
 * nor the run_at, in order, told only what is durable */

proctype monitor()			/* nothing can move any more */
{
	timeout ->
	d_step {
		ALL(i_) {
			assert(!committed[i_] || row[i_] == GONE);
			assert(!committed[i_] || (done[i_] == 1) != cancelled[i_]);
			assert(committed[i_] || done[i_] == 0);
			assert(ent[i_] == 0 && par[i_] == 0 && held[i_] == 0)
		};
		assert(cl[0] == 0 && cl[NW - 1] == 0);
		assert(holder == 0 && sline == 0 && !kspilled && !pusher && brought == 0);
		assert(F[0] == NJ && (NL == 1 || F[1] == NJ));
		assert(!filling[0] && !filling[1] && hb[0] == 0 && hb[1] == 0)
	}
}

init {
	atomic {
#ifdef HELD
		holder = SESS;
#endif
		need = true; discover = true; cut[0] = NJ; cut[1] = NJ; kF = NJ; kcut = NJ;
		want[0] = true; want[1] = (NL == 2);
		run monitor();
		run scheduler();
		run worker(0);
#if NW > 1
		run worker(1);
#endif
		run client(0, C0);
#if C1
		run client(1, C1);
#endif
#if KEYED
		run launcher();
#endif
#ifdef CANCEL
		run canceller();
#endif
#ifdef MANY_AT_ONCE
		run many();
#endif
#ifdef DELETE
		run hand();
#endif
#ifdef STRANGER
		run stranger();
#endif
#ifdef SESSION
		run session();
#endif
#if NEXIT + NSEXIT
		run misfortune();
#endif
#if NCRASH
		run crasher();
#endif
	}
}
