/*
 * Going back in time: RAM becomes what it was without being copied.
 *
 * tt_revert names the pages that may differ from the past that is wanted and
 * marks them stale.  A stale page is fetched, through a callback, when anything
 * first looks at it: a page walk, a fill of the TLB, a device.  So going back
 * costs what is looked at next, not what has changed since.
 *
 * A stale page is never dirty, the TLB never holds it, and the digest of RAM is
 * already that of the past; only its own entry in page_hash waits for the fetch.
 */
#include <string.h>

#include "core.h"

static void make_stale(Engine *e, uint64_t number)
{
    uint8_t *flags = &e->mem.flags[number];

    e->mem.stale += !(*flags & STALE);
    *flags = STALE;
    tt_page(e, tt_host(&e->mem, number * PAGE_SIZE))->flips = 0; /* flips at another time say nothing about now */
}

/* `changed` has a bit for each page, lowest first.  Pages stored to since the last
 * tt_take_changes are stale as well; what changed before it must be in `changed`. */
void tt_revert(Engine *e, const uint8_t *changed, const uint64_t digest[2])
{
    const Memory *m = &e->mem;
    uint64_t count = tt_page_count(m), size = (count + 7) / 8, eight;

    for (uint64_t at = 0; at < size; at += 8) {
        uint64_t here = size - at < 8 ? size - at : 8;
        eight = 0;
        memcpy(&eight, changed + at, here);
        for (; eight; eight &= eight - 1)
            if (at * 8 + __builtin_ctzll(eight) < count)
                make_stale(e, at * 8 + __builtin_ctzll(eight));
    }
    for (uint64_t i = 0; (i = tt_next_page(m, i, count, DIRTY_ALL)) < count; i++)
        make_stale(e, i);
    e->mem.digest[0] = digest[0];
    e->mem.digest[1] = digest[1];
    tt_flush_tlb(e);
}

/* Drop the blocks that were translated from bytes that have changed. */
static void drop_changed_code(Engine *e, uint64_t host, const uint8_t *old, const uint8_t *new)
{
    enum { PIECE = 64 };
    unsigned at = 0, end;

    for (; at < PAGE_SIZE; at = end + PIECE) {
        for (end = at; end < PAGE_SIZE && memcmp(old + end, new + end, PIECE);)
            end += PIECE;
        if (end > at)
            tt_inside.tb_invalidate_page_range(e->tr.uc, host + at, host + end);
    }
}

static void fetch_page(Engine *e, uint64_t number)
{
    Memory *m = &e->mem;
    uint64_t host = tt_host(m, number * PAGE_SIZE);
    uint8_t content[PAGE_SIZE], *page = m->pool + host;

    if (!e->calls.fetch_page(e->self, number, content))
        return;
    m->flags[number] &= ~STALE;
    m->stale--;
    if (memcmp(page, content, PAGE_SIZE)) {
        if (tt_page(e, host)->cls == CLASS_X) /* blocks were made of what it held */
            drop_changed_code(e, host, page, content);
        memcpy(page, content, PAGE_SIZE);
    }
    tt_hash_page(page, number, &m->hash[2 * number]);
}

void tt_fetch(Engine *e, uint64_t paddr, uint64_t size)
{
    const Memory *m = &e->mem;
    uint64_t end = size ? (paddr + size - 1) / PAGE_SIZE + 1 : 0;

    if (end > tt_page_count(m))
        end = tt_page_count(m);
    for (uint64_t i = paddr / PAGE_SIZE; (i = tt_next_page(m, i, end, STALE)) < end; i++)
        fetch_page(e, i);
}
