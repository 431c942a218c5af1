/*
 * A machine's memory: which pages it has, where they lie, what changed in them.
 *
 * Two addresses, two names.  `paddr` is guest-physical: what the guest's page tables say and
 * devices use.  `host` is an offset into the pool of host memory, which is what QEMU takes for
 * a physical address: what its TLB, its blocks and a `Page` (core.h) go by.  tt_host() leads
 * from the one to the other, and nothing else does.  Today a machine has a pool for itself, all
 * of it, in order.  Where machines share a pool, tt_host() looks the page up in the machine's
 * map; a build with TT_SCATTER lays the pages out backwards instead, so that the tests find
 * code that takes one address for the other.
 */
#ifndef TT_MEMORY_H
#define TT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 4096u
#define PAGE_MASK (~(uint64_t)(PAGE_SIZE - 1))

/* What is known of a guest page, a byte each: whether the digest and the checkpoints still have to take a
 * store to it into account; and STALE: its bytes must be fetched before they are used (revert.c). */
enum { DIRTY_DIGEST = 1, DIRTY_CHECKPOINT = 2, DIRTY_ALL = 3, STALE = 4 };

typedef struct Memory {
    uint8_t *pool;
    uint64_t size;      /* bytes of guest RAM; whole pages */
    uint8_t *flags;     /* of each page; densely, for they are scanned at each checkpoint */
    uint64_t stale;     /* how many pages are STALE */
    uint64_t *hash;     /* two words a page (digest.c) */
    uint64_t digest[2];
} Memory;

static inline uint64_t tt_page_count(const Memory *m)
{
    return m->size / PAGE_SIZE;
}

/* Where a byte of RAM lies in the pool. */
static inline uint64_t tt_host(const Memory *m, uint64_t paddr)
{
#ifdef TT_SCATTER
    return m->size - PAGE_SIZE - (paddr & PAGE_MASK) + (paddr & (PAGE_SIZE - 1));
#else
    (void)m;
    return paddr;
#endif
}

/* The bytes from there to the end of the page. */
static inline uint8_t *tt_at(const Memory *m, uint64_t paddr)
{
    return m->pool + tt_host(m, paddr);
}

static inline uint8_t *tt_flags_of(const Memory *m, uint64_t paddr)
{
    return &m->flags[paddr / PAGE_SIZE];
}

bool tt_memory_open(Memory *m, uint64_t size);
void tt_memory_close(Memory *m);
void *tt_zeros(uint64_t size);
uint64_t tt_next_page(const Memory *m, uint64_t from, uint64_t end, uint8_t any);
uint64_t tt_count_pages(const Memory *m, uint8_t any);
bool tt_digest_pages(Memory *m);
void tt_hash_page(const uint8_t *page, uint64_t number, uint64_t out[2]);

#endif
