/*
 * slot.h
 *		Worker slots: which worker processes there are, for whom, doing what.
 */
#ifndef JQ_SLOT_H
#define JQ_SLOT_H

#include "directory.h"

/*
 * States of a slot, all under JQ_LOCK_SLOT:
 *
 *		free     -> starting : launcher, which then registers the process
 *		starting -> busy	 : the process, when it is connected
 *		busy     -> idle	 : the process, before it looks a last time and sleeps
 *		idle     -> busy	 : whoever wakes it, or itself
 *		any      -> free	 : its exit hook; launcher, if it never attached
 */
typedef enum JqSlotState
{
	JQ_SLOT_FREE,
	JQ_SLOT_STARTING,
	JQ_SLOT_BUSY,
	JQ_SLOT_IDLE
} JqSlotState;

typedef enum JqClaimState
{
	JQ_CLAIM_NONE,
	JQ_CLAIM_TAKEN, /* popped; nothing has been done yet */
	JQ_CLAIM_RUNNING
} JqClaimState;

#define JQ_COMMAND_SHOWN 128

typedef struct JqSlot
{
	/* JQ_LOCK_SLOT */
	JqSlotState state;
	uint64 generation; /* of this use of the slot */
	int pid;
	int procno;
	int group;
	TimestampTz launched;
	TimestampTz idle_since;
	bool stop;		  /* asked to leave; read without lock */
	bool written_off; /* its job does not react: a stand-in may run */
	bool waiting;	  /* its job waits for another one: a stand-in may run */
	JqPlace place;	  /* its own; but given to it while it is idle */

	/* lane lock of claim_lane; claim_lane itself changes only under it */
	int claim_lane; /* -1 = none */
	JqClaimState claim_state;
	JqPos claim_pos;
	ItemPointerData claim_tid;
	uint8 claim_flags;
	/* somebody has passed over it, or over one of the others; no lock */
	volatile bool claim_passed;
	uint8 claim_keylen;
	char claim_key[JQ_KEY_MAX + 1];
	int64 cancel_for;	   /* the job a cancel is meant for */
	TimestampTz cancel_at; /* since when */
	bool others_wait;	   /* the others wait for their turn, alone */

	/* written by the owner alone; readers retry while changecount is odd or
	 * has moved */
	volatile uint32 changecount;
	int attempt;
	TimestampTz started_at;
	TimestampTz deadline; /* of its job; 0 = none */
	char command[JQ_COMMAND_SHOWN];
	int64 jobs; /* done in this process's life */

	/* written by the owner alone, read without lock: sleeps although there are
	 * jobs (JqXidState); busy */
	uint8 held_back;
} JqSlot;

/* what the slot has claimed, apart and dense for quick search */
typedef struct JqClaimCell
{
	volatile int64 id; /* 0 = none */
	volatile Oid db;
	volatile uint32 nothers;
} JqClaimCell;

/*
 * Jobs of the same lane that the slot has claimed besides: those of a batch.
 * They change under that lane's lock.
 */
typedef struct JqOther
{
	volatile int64 id;
	bool cancel; /* it is to be cancelled */
} JqOther;

extern JqSlot *jq_slots;
extern JqClaimCell *jq_claim_cells;
extern JqOther *jq_claim_others;
#define JQ_OTHERS(slot) (&jq_claim_others[(slot) *JQ_BATCH_MAX])

/* this process's slot, -1 if it is no worker */
extern int jq_my_slot;

extern Size jq_slot_size(void);
extern void jq_slot_init(void);

/* launcher: reserve a slot for a group; -1 = none left */
extern int jq_slot_reserve(int group, uint64 *generation);
/* launcher: its process did not come up, or (not failed) was never made */
extern void jq_slot_unreserve(int slot, uint64 generation, bool failed);
/* worker: the slot is ours; false = it is not (any more) */
extern bool jq_slot_attach(int slot, uint64 generation);
extern void jq_slot_detach(void);
/* worker: connected and ready */
extern void jq_slot_ready(void);
/* worker: going to sleep (false: it has been called); and awake again */
extern bool jq_slot_set_idle(void);
extern void jq_slot_set_busy(void);

/*
 * Wake an idle worker of the group and give it the place; its procno, whose latch
 * the caller sets when he has released his locks.  -1: none is idle; the launcher
 * (to be woken if *launcher) is to start one.  Up to the limit's lock may be held.
 */
extern int jq_slot_call(int group, const JqPlace *place, bool *launcher);

/* ask workers to leave when idle: of a database, of a role (InvalidOid: any) */
extern int jq_slot_stop_idle(Oid db, Oid role);
/*
 * Ask the longest idle worker of another group to leave; of that role only, if
 * it is valid.
 */
extern bool jq_slot_evict_idle(int group, Oid role);
/*
 * Ask a busy one to leave after its job, of the group that has most, if it has
 * had its share of time; else *when says when it will have had it.
 */
extern bool jq_slot_evict_busy(int group, Oid role, TimestampTz *when);
/* workers that run a job whose cancel was asked for: interrupt them again */
extern void jq_slot_repeat_cancels(TimestampTz *when);

/*
 * The job in hand waits for others, which may need workers: while it does, this
 * one does not count as a worker.  Up to jobqueue.max_workers may be in that
 * state, of a role up to jobqueue.max_workers_per_role; false: there are that
 * many.  The exit hook ends it, too.  At its end one more may be running than
 * there should be: then this one leaves after its job.
 */
extern bool jq_slot_begin_wait(void);
extern void jq_slot_end_wait(void);
/* are all the workers that there are in that state? */
extern bool jq_slot_all_wait(void);
/* have those that are look again */
extern void jq_slot_wake_waiting(void);

extern void jq_launcher_wake(void);

/* what the job in hand is, for the views */
extern void jq_slot_show(int attempt, TimestampTz started, TimestampTz deadline,
						 const char *command);

#endif /* JQ_SLOT_H */
