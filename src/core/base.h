/* The few things every file needs: integer shorthands, typed addresses, the
 * always-on assertion.  No guest knowledge, no system calls. */
#ifndef CORE_BASE_H
#define CORE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

/* Guest-physical, guest-virtual (linear) and host-virtual addresses are
 * different types at every interface, so that mixing them does not compile. */
typedef struct { u64 v; } gpa_t;
typedef struct { u64 v; } gva_t;
typedef struct { u64 v; } hva_t;

#define GPA(x) ((gpa_t){ .v = (u64)(x) })
#define GVA(x) ((gva_t){ .v = (u64)(x) })

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n) (1ull << (n))
#define MASK(n) ((n) >= 64 ? ~0ull : (1ull << (n)) - 1)
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define ALIGN_UP(x, a) ALIGN_DOWN((x) + (__typeof__(x))(a)-1, a)
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define KiB ((u64)1 << 10)
#define MiB ((u64)1 << 20)
#define GiB ((u64)1 << 30)
#define PAGE_SIZE ((u64)4096)
#define PAGE_SHIFT 12
#define PAGE_MASK (~(PAGE_SIZE - 1))

/* Our own bugs only (never a guest mistake, never a host failure).  The hook
 * writes the report file (registers, guest RIP) before the process ends. */
_Noreturn void assert_failed(const char *expr, const char *file, int line);
#define ASSERT(x) ((x) ? (void)0 : assert_failed(#x, __FILE__, __LINE__))

#endif
