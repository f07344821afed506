/*
 * planner.h
 *		What the planner believes of the tables of the queue.
 */
#ifndef JQ_PLANNER_H
#define JQ_PLANNER_H

/* at load of the library */
extern void jq_planner_init(void);

#endif /* JQ_PLANNER_H */
