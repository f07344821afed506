/*
 * memcheck.h
 *		What PostgreSQL tells valgrind about its memory (USE_VALGRIND), told to
 *		AddressSanitizer instead: test/assert.sh SANITIZE=address.
 *
 * Of what valgrind knows, AddressSanitizer does not have "undefined": memory may
 * be touched or it may not. A pool is a memory context; what pfree() takes back
 * its code marks itself, as builds with assertions clobber it.
 */
#ifndef JQ_FAKE_MEMCHECK_H
#define JQ_FAKE_MEMCHECK_H

extern void __asan_poison_memory_region(void const volatile *addr,
										__SIZE_TYPE__ size);
extern void __asan_unpoison_memory_region(void const volatile *addr,
										  __SIZE_TYPE__ size);

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size) \
	__asan_poison_memory_region((addr), (size))
#define VALGRIND_MAKE_MEM_DEFINED(addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size) \
	do \
	{ \
	} while (0)
#define VALGRIND_GET_VBITS(addr, bits, size) 0
#define VALGRIND_CREATE_MEMPOOL(pool, redzone, zeroed) \
	do \
	{ \
	} while (0)
#define VALGRIND_DESTROY_MEMPOOL(pool) \
	do \
	{ \
	} while (0)
#define VALGRIND_MEMPOOL_ALLOC(pool, addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_MEMPOOL_FREE(pool, addr) \
	do \
	{ \
	} while (0)
#define VALGRIND_MEMPOOL_CHANGE(pool, old, addr, size) \
	__asan_unpoison_memory_region((addr), (size))
#define VALGRIND_COUNT_ERRORS 0
#define VALGRIND_PRINTF(...) \
	do \
	{ \
	} while (0)

#endif
