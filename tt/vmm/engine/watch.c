/*
 * Breakpoints and watchpoints that cost nothing where they are not.
 *
 * A block that holds a breakpoint always calls block_slow(), which cuts it so
 * that the next one begins there.  A page that holds watched bytes gets TLB
 * entries that are good for one access, so that every access to it comes to
 * tt_fill() with its exact address; an access that hits is carried out alone in
 * its block, and the run ends right after it.  Neither changes what the guest
 * does or how its ticks count.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Replace all breakpoints; `addrs` are linear. */
bool tt_set_breaks(Engine *e, const uint64_t *addrs, int count)
{
    uint64_t *copy = malloc(sizeof *copy * (count + 1));
    if (!copy)
        return false;
    memcpy(copy, addrs, sizeof *copy * count);
    free(e->breaks);
    e->breaks = copy;
    e->break_count = count;
    tt_inside.tb_flush(e->cpu); /* blocks know of breakpoints from when they were made */
    return true;
}

/* Replace all watchpoints. */
bool tt_set_watches(Engine *e, const Watch *watches, int count)
{
    Watch *copy = malloc(sizeof *copy * (count + 1));
    if (!copy)
        return false;
    memcpy(copy, watches, sizeof *copy * count);
    free(e->watches);
    e->watches = copy;
    e->watch_count = count;
    tt_flush_tlb(e);
    return true;
}

bool tt_block_has_break(const Engine *e, const Block *tb)
{
    for (int i = 0; i < e->break_count; i++)
        if (e->breaks[i] - tb->pc < tb->size)
            return true;
    return false;
}

bool tt_is_break(const Engine *e, uint64_t pc)
{
    for (int i = 0; i < e->break_count; i++)
        if (e->breaks[i] == pc)
            return true;
    return false;
}

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

/* Does the page hold watched bytes? */
bool tt_page_watched(const Engine *e, uint64_t vpage, uint64_t ppage)
{
    for (int i = 0; i < e->watch_count; i++) {
        const Watch *w = &e->watches[i];
        if (overlaps(w->addr, w->size, w->physical ? ppage : vpage, PAGE_SIZE))
            return true;
    }
    return false;
}

static void hit(Engine *e, uint64_t addr, uint64_t paddr, uint64_t size, int rw)
{
    if (e->hit.size) /* the first of an instruction counts */
        return;
    e->hit = (Hit){.addr = addr, .paddr = paddr, .size = size, .write = rw == STORE};
    e->stop = tt_tick(e);
    tt_reconsider(e);
}

/* An access of the running block to a watched page, about to be allowed. */
void tt_watch_access(Engine *e, uint64_t addr, uint64_t paddr, int size, int rw, uintptr_t ra)
{
    Block *tb;

    if (size < 1)
        size = 1;
    for (int i = 0; i < e->watch_count; i++) {
        const Watch *w = &e->watches[i];
        if (!(w->kinds & (rw == STORE ? 2 : 1)) || !overlaps(w->addr, w->size, w->physical ? paddr : addr, size))
            continue;
        tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tcg_ctx, ra) : NULL;
        if (tb && tb->icount != 1)
            tt_repeat_alone(e, ra);
        hit(e, addr, paddr, size, rw);
        return;
    }
}

/* A store that did not come from the CPU: a device. */
void tt_watch_device(Engine *e, uint64_t paddr, uint64_t size)
{
    for (int i = 0; i < e->watch_count; i++) {
        const Watch *w = &e->watches[i];
        uint64_t at = w->addr;
        if (!(w->kinds & 2) || (!w->physical && !tt_translate(e, w->addr, &at)))
            continue;
        if (overlaps(at, w->size, paddr, size)) {
            hit(e, w->addr, at, w->size, STORE);
            return;
        }
    }
}
