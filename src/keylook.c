/*
 * keylook.c
 *		A look at one key.
 */
#include "postgres.h"

#include "keylook.h"
#include "keytable.h"

bool
jq_keylock_look(Oid db, const char *key, int len, JqPos pos, JqKeyLook *out)
{
	uint32 hash;
	uint32 ix;
	JqKey *k = jq_key_find(db, key, len, &hash);

	if (k != NULL)
	{
		memset(out, 0, sizeof(*out));
		out->procno = k->procno;
		out->pid = k->pid;
		out->job = k->job;
		out->since = k->since;
		out->in_table = k->spilled && jq_pos_cmp(pos, k->frontier) >= 0;
		for (ix = k->first; ix != JQ_NIL; ix = JQ_ENTRY(ix)->next[0])
		{
			out->ahead += jq_pos_cmp(JQ_ENTRY_POS(ix), pos) < 0;
			out->waits |= JQ_ENTRY(ix)->id == pos.id;
		}
	}
	LWLockRelease(jq_key_partition(hash));
	return k != NULL;
}
