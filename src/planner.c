/*
 * planner.c
 *		What the planner believes of the tables of the queue.
 *
 * A queue is vacuumed when it is empty, as a rule.  From then on the planner
 * takes its table for empty, however many rows come, and all plans for equally
 * good: one that reads a whole index for each row among them.  So statements of
 * ours are planned for tables that are large; others for as many rows as the
 * pages may have.
 */
#include "postgres.h"

#include "access/transam.h"
#include "jobtable.h"
#include "optimizer/plancat.h"
#include "planner.h"

#define LARGE_PAGES 100000 /* about 5,000,000 jobs */
#define ROWS_PER_PAGE 50
#define ENTRIES_PER_PAGE 200

static get_relation_info_hook_type prev_hook;

static void
relation_info(PlannerInfo *root, Oid relid, bool inhparent, RelOptInfo *rel)
{
	ListCell *lc;

	if (prev_hook)
		prev_hook(root, relid, inhparent, rel);
	if (relid < FirstNormalObjectId ||
		!(jq_bookkeeping || jq_table_is_queue(relid)))
		return;
	if (jq_bookkeeping)
		rel->pages = Max(rel->pages, LARGE_PAGES);
	rel->tuples = Max(rel->tuples, (double) rel->pages * ROWS_PER_PAGE);
	foreach(lc, rel->indexlist)
	{
		IndexOptInfo *index = lfirst(lc);
		double entries = index->indpred == NIL ? rel->tuples : rel->tuples / 10;

		index->tuples = Max(index->tuples, entries);
		index->pages = Max(index->pages, entries / ENTRIES_PER_PAGE);
		index->tree_height = Max(index->tree_height, 2);
	}
}

void
jq_planner_init(void)
{
	prev_hook = get_relation_info_hook;
	get_relation_info_hook = relation_info;
}
