/*
 * keylook.c
 *		A look at one key.
 */
#include "postgres.h"

#include "keylook.h"
#include "keytable.h"

static void
look_at(JqKey *k, const JqKeyRules *r, JqPos pos, JqKeyLook *out)
{
	uint32 ix;
	JqKeyOrder *o;

	out->known = true;
	out->holders = k->nholders;
	if (k->nholders > 0)
	{
		out->procno = k->holder.procno;
		out->pid = k->holder.pid;
		out->job = k->holder.job;
		out->since = k->holder.since;
		out->limit = Min(out->limit, k->limit);
	}
	out->in_table = k->spilled && jq_pos_cmp(pos, k->frontier) >= 0;
	for (ix = k->first; ix != JQ_NIL; ix = JQ_ENTRY(ix)->next[0])
	{
		out->ahead += jq_pos_cmp(JQ_ENTRY_POS(ix), pos) < 0;
		out->waits |= JQ_ENTRY(ix)->id == pos.id;
	}
	out->ahead += jq_key_sessions_before(k, pos);
	o = r->ordered ? jq_key_order_of(k, r->queue, pos) : NULL;
	out->after = o != NULL ? o->pos.id : 0;
}

void
jq_keylock_look(Oid db, const char *key, int len, int lane, JqPos pos,
				JqKeyLook *out)
{
	TimestampTz now = GetCurrentTimestamp();
	uint32 hash;
	JqKey *k = jq_key_find(db, key, len, &hash);
	JqKey none;
	JqKeyRules r;

	memset(out, 0, sizeof(*out));
	/* its bucket may be empty also if nobody has it */
	memset(&none, 0, sizeof(none));
	none.tag.db = db;
	none.tag.len = len;
	memcpy(none.tag.text, key, len);
	jq_key_rules(k != NULL ? k : &none, hash, lane, &r);
	out->limit = r.limit;
	if (k != NULL)
		look_at(k, &r, pos, out);
	if (r.limited)
		out->next_token = jq_keyrate_next(&r.bucket, now);
	if (out->next_token <= now)
		out->next_token = 0;
	LWLockRelease(jq_key_partition(hash));
}
