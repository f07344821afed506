/*
 * utility.h
 *		What is done before and after utility statements.
 */
#ifndef JQ_UTILITY_H
#define JQ_UTILITY_H

extern void jq_utility_init(void);

#endif /* JQ_UTILITY_H */
