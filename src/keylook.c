/*
 * keylook.c
 *		Looks at keys, for the views and others.
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

JqKeyJob
jq_keylock_job(Oid db, const char *key, int len)
{
	JqKeyTag tag;
	uint32 hash;
	JqKey *k;
	JqKeyJob job = {0};

	jq_key_make_tag(&tag, db, key, len);
	hash = jq_key_hash_of(&tag);
	LWLockAcquire(jq_key_partition(hash), LW_SHARED);
	k = hash_search_with_hash_value(jq_keys, &tag, hash, HASH_FIND, NULL);
	if (k != NULL && k->nholders > 0)
	{
		job.id = k->holder.job;
		job.ending = k->holder.ending;
	}
	LWLockRelease(jq_key_partition(hash));
	return job;
}

JqKeyInfo *
jq_keylock_list(Oid db, int *n)
{
	long max = 2 * jq_key_max();
	JqKeyInfo *list = palloc_extended(max * sizeof(JqKeyInfo), MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS seq;
	JqKey *k;

	*n = 0;
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		const JqHolder *h = k->nholders > 0 ? &k->holder : NULL;
		bool first = true;

		/* it may be there for what it knows of a failed job */
		if (k->tag.db != db || (k->nholders == 0 && k->first == JQ_NIL &&
								!k->spilled && k->first_session < 0))
			continue;
		if (k->tag.text[0] == '\0')
			continue; /* not a key of a job; see conflict.c */
		for (; *n < max && (first || h != NULL); first = false)
		{
			JqKeyInfo *i = &list[(*n)++];

			memcpy(i->key, k->tag.text, sizeof(i->key));
			i->first = first;
			i->pid = h != NULL ? h->pid : 0;
			i->procno = h != NULL ? h->procno : -1;
			i->job = h != NULL ? h->job : 0;
			i->since = h != NULL ? h->since : 0;
			i->waiting = k->nwaiting + k->nsessions +
						 (k->spilled ? jq_key_spilled_rows(k) : 0);
			i->spilled = k->spilled;
			i->frontier = k->frontier;
			h = h == NULL || h->next == JQ_NIL ? NULL : JQ_HOLDER(h->next);
		}
	}
	jq_key_unlock_all();
	return list;
}

int64 *
jq_keylock_parked(Oid db, Oid **roles, int *n)
{
	int64 *ids = palloc_extended(mul_size(jq_shared->nentries, sizeof(int64)),
								 MCXT_ALLOC_HUGE);
	HASH_SEQ_STATUS seq;
	JqKey *k;

	*n = 0;
	*roles = palloc_extended(mul_size(jq_shared->nentries, sizeof(Oid)),
							 MCXT_ALLOC_HUGE);
	jq_key_lock_all(LW_SHARED);
	hash_seq_init(&seq, jq_keys);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		uint32 ix;

		if (k->tag.db != db && k->tag.db != JQ_SUSPECT_DB)
			continue;
		for (ix = k->first; ix != JQ_NIL && *n < jq_shared->nentries;
			 ix = JQ_ENTRY(ix)->next[0])
			if (jq_lanes[JQ_ENTRY(ix)->lane].db == db)
			{
				(*roles)[*n] = jq_lanes[JQ_ENTRY(ix)->lane].role;
				ids[(*n)++] = JQ_ENTRY(ix)->id;
			}
	}
	jq_key_unlock_all();
	return ids;
}
