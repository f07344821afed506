/*
 * recent.c
 *		The ring of ended jobs.
 *
 * A writer takes the next number and fills the cell of that number under the
 * cell's lock.  Readers copy cell by cell.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "recent.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "waiter.h"

static JqRecent *cells;

Size
jq_recent_size(void)
{
	return MAXALIGN(mul_size(JQ_RECENT_CELLS, sizeof(JqRecent)));
}

void
jq_recent_init(void)
{
	bool found;

	cells = ShmemInitStruct("jobqueue recent jobs", jq_recent_size(), &found);
	if (!found)
	{
		memset(cells, 0, jq_recent_size());
		pg_atomic_init_u64(&jq_shared->recent_next, 0);
	}
}

void
jq_recent_fill(JqRecent *c, const JqRecent *r, const char *text, int len)
{
	int cut = 0;

	if (text != NULL)
		cut = len <= JQ_RECENT_TEXT ? len :
									  pg_mbcliplen(text, len, JQ_RECENT_TEXT);
	memcpy(c, r, offsetof(JqRecent, textlen));
	c->textlen = cut;
	c->cut = text != NULL && cut < len;
	if (cut > 0)
		memcpy(c->text, text, cut);
}

char *
jq_recent_copy(MemoryContext context, const char *text, int len)
{
	Size size = Min(len, JQ_RECENT_TEXT + MAX_MULTIBYTE_CHAR_LEN) + 1;
	char *copy = MemoryContextAlloc(context, size);

	strlcpy(copy, text, size);
	return copy;
}

void
jq_recent_add(const JqRecent *r, const char *text, int len)
{
	int cell =
		pg_atomic_fetch_add_u64(&jq_shared->recent_next, 1) % JQ_RECENT_CELLS;

	LWLockAcquire(jq_recent_lock(cell), LW_EXCLUSIVE);
	jq_recent_fill(&cells[cell], r, text, len);
	LWLockRelease(jq_recent_lock(cell));
	if (jq_outcome_is_end(r->outcome))
		jq_waiter_tell(r, text, len);
}

bool
jq_recent_find(Oid db, int64 id, JqRecent *r)
{
	uint64 next = pg_atomic_read_u64(&jq_shared->recent_next);
	bool found = false;
	int i;

	for (i = 1; i <= JQ_RECENT_CELLS && !found; i++)
	{
		int cell = (next + JQ_RECENT_CELLS - i) % JQ_RECENT_CELLS;
		JqRecent *c = &cells[cell];

		/* whoever is filling it just now tells those who wait */
		if (*(volatile int64 *) &c->id != id)
			continue;
		LWLockAcquire(jq_recent_lock(cell), LW_SHARED);
		found = c->id == id && c->db == db && jq_outcome_is_end(c->outcome);
		if (found)
			*r = *c;
		LWLockRelease(jq_recent_lock(cell));
	}
	return found;
}

JqRecent *
jq_recent_list(Oid db, int *n)
{
	JqRecent *list = palloc(jq_recent_size());
	uint64 next = pg_atomic_read_u64(&jq_shared->recent_next);
	int i;

	*n = 0;
	for (i = 1; i <= JQ_RECENT_CELLS; i++)
	{
		int cell = (next + JQ_RECENT_CELLS - i) % JQ_RECENT_CELLS;

		LWLockAcquire(jq_recent_lock(cell), LW_SHARED);
		if (cells[cell].id != 0 && cells[cell].db == db)
			list[(*n)++] = cells[cell];
		LWLockRelease(jq_recent_lock(cell));
	}
	return list;
}

const char *
jq_outcome_name(JqOutcome outcome)
{
	switch (outcome)
	{
		case JQ_COMPLETED:
			return "completed";
		case JQ_FAILED:
			return "failed";
		case JQ_CANCELLED:
			return "cancelled";
		case JQ_DEAD:
			return "dead";
		case JQ_SNOOZED:
			return "snoozed";
	}
	return "?";
}
