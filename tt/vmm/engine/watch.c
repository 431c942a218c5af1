/*
 * Breakpoints, watchpoints and catches; blocks and pages without any cost nothing.
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

static bool is_among(const uint64_t *addrs, int count, uint64_t addr)
{
    for (int i = 0; i < count; i++)
        if (addrs[i] == addr)
            return true;
    return false;
}

/* Replace all breakpoints; `addrs` are linear.  A block keeps from when it was made at which addresses
 * to look; those stay marked, so that setting a breakpoint again costs nothing. */
bool tt_set_breaks(Engine *e, const uint64_t *addrs, int count)
{
    enum { MARKS_KEPT = 512 };
    int keep = e->mark_count + count <= MARKS_KEPT ? e->mark_count : 0, marks = keep;
    uint64_t *copy = malloc(sizeof *copy * (count + 1)), *marked = malloc(sizeof *marked * (keep + count + 1));
    if (!copy || !marked) {
        free(copy);
        free(marked);
        return false;
    }
    memcpy(copy, addrs, sizeof *copy * count);
    if (keep)
        memcpy(marked, e->marks, sizeof *marked * keep);
    for (int i = 0; i < count; i++)
        if (!is_among(marked, marks, addrs[i]))
            marked[marks++] = addrs[i];
    if (marks > keep)
        tt_inside.tb_flush(e->tr.cpu);
    free(e->breaks);
    free(e->marks);
    e->breaks = copy;
    e->break_count = count;
    e->marks = marked;
    e->mark_count = marks;
    tt_pass_break(e);
    return true;
}

/* The caller that set the breakpoints knows that the CPU is at this instruction: do not stop before it again. */
void tt_pass_break(Engine *e)
{
    e->no_break_at = tt_tick(e);
    e->no_break_pc = EIP(e) + SEG(e, SEG_CS).base;
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
    tt_forget_hit(e);
    tt_flush_tlb(e);
    return true;
}

bool tt_block_has_break(const Engine *e, const Block *tb)
{
    for (int i = 0; i < e->mark_count; i++)
        if (e->marks[i] - tb->pc < tb->size)
            return true;
    return false;
}

bool tt_is_break(const Engine *e, uint64_t pc)
{
    return is_among(e->breaks, e->break_count, pc);
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
    return tt_own_watches(e) && tt_own_page(e, vpage);
}

/* Forget which watched bytes were touched. */
void tt_forget_hit(Engine *e)
{
    e->hit = (Hit){0};
    e->hit_stop = ~0ull;
    for (int i = 0; i < e->watch_count; i++)
        e->watches[i].seen = e->watches[i].before_size = 0;
    tt_reconsider(e);
}

/* Keep the watched bytes as they are, if they are few and all mapped. */
static void keep_before(Engine *e, Watch *w)
{
    uint64_t at;

    w->before_size = 0;
    if (w->size > WATCH_BEFORE)
        return;
    for (uint64_t i = 0; i < w->size; i++) {
        at = w->addr + i;
        if ((!w->physical && !tt_translate(e, w->addr + i, &at)) || at >= e->mem.size)
            return;
        tt_read_ram(e, at, &w->before[i], 1);
    }
    w->before_size = w->size;
}

static void hit(Engine *e, Watch *w, uint64_t addr, uint64_t paddr, uint64_t size, bool write, int by)
{
    if (!w->seen)
        keep_before(e, w);
    w->seen |= write ? WATCH_WRITE : WATCH_READ;
    if (e->hit.size) /* the first of an instruction counts */
        return;
    e->hit = (Hit){.addr = addr, .paddr = paddr, .size = size, .write = write, .by = by};
    /* What happens between two instructions is to be seen after the second. */
    e->hit_stop = tt_tick(e) + (CURRENT(e) || e->retired ? 0 : 1);
    tt_reconsider(e);
}

/* An access of the running block to `size` bytes of a watched page, about to be allowed. */
void tt_watch_access(Engine *e, uint64_t addr, uint64_t paddr, int size, int rw, uintptr_t ra)
{
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;
    bool in_company = tb && tb->icount != 1;
    /* CMPXCHG16B stores two words, and compares anew when it is repeated: it must be alone before the
       first of them, even if only the second is watched. */
    uint64_t wide = ((addr & 15) + size + 15) & ~15ull;

    if (tt_own_watches(e)) {
        if (in_company && (rw == STORE ? tt_own_hits(e, addr & ~15ull, wide, true) : tt_own_hits(e, addr, size, false)))
            tt_repeat_alone(e, ra);
        int bits = tt_own_hits(e, addr, size, rw == STORE);
        if (bits)
            tt_own_hit(e, bits);
    }
    for (int i = 0; i < e->watch_count; i++) {
        Watch *w = &e->watches[i];
        if (!(w->kinds & (rw == STORE ? WATCH_WRITE : WATCH_READ)))
            continue;
        uint64_t at = w->physical ? paddr : addr;
        if (in_company && overlaps(w->addr, w->size, rw == STORE ? at & ~15ull : at, rw == STORE ? wide : (uint64_t)size))
            tt_repeat_alone(e, ra);
        if (!overlaps(w->addr, w->size, at, size))
            continue;
        hit(e, w, addr, paddr, size, rw == STORE, CURRENT(e) ? BY_INSTRUCTION : BY_DELIVERY);
    }
}

/* Does a watchpoint for stores cover any of these bytes of RAM? */
static bool watches(Engine *e, const Watch *w, uint64_t paddr, uint64_t size)
{
    if (!(w->kinds & WATCH_WRITE))
        return false;
    if (w->physical)
        return overlaps(w->addr, w->size, paddr, size);
    for (uint64_t done = 0, piece; done < w->size; done += piece) {
        uint64_t at = w->addr + done;
        piece = PAGE_SIZE - (at & (PAGE_SIZE - 1));
        if (piece > w->size - done)
            piece = w->size - done;
        if (tt_translate(e, at, &at) && overlaps(at, piece, paddr, size))
            return true;
    }
    return false;
}

/* Would a store that does not come from an instruction hit? */
bool tt_watches_physical(Engine *e, uint64_t paddr, uint64_t size)
{
    for (int i = 0; i < e->watch_count; i++)
        if (watches(e, &e->watches[i], paddr, size))
            return true;
    return false;
}

/* Such a store is about to be made, by a device or a page walk. */
void tt_watch_physical(Engine *e, uint64_t paddr, uint64_t size, int by)
{
    for (int i = 0; i < e->watch_count; i++)
        if (watches(e, &e->watches[i], paddr, size))
            hit(e, &e->watches[i], e->watches[i].addr, paddr, size, true, by);
}

/* An exception or a system call is about to happen at this tick: stop before it, if it is waited for.
 * If it will not happen `again` when the instruction at RIP is executed anew, stop right after it. */
void tt_catch(Engine *e, bool is_call, uint32_t number, bool again)
{
    const Catches *c = &e->catches;
    bool wanted = is_call ? c->every_call : number < 256 && c->vectors[number / 64] >> number % 64 & 1;

    for (int i = 0; is_call && i < c->call_count; i++)
        wanted |= c->calls[i] == number;
    if (!wanted || tt_tick(e) == e->no_catch_at)
        return;
    e->no_catch_at = tt_tick(e);
    e->caught = true;
    e->caught_call = is_call;
    e->caught_number = number;
    if (again) {
        ENV(e, tt_layout.old_exception, int32_t) = -1;
        tt_leave(e, R_CATCH);
    }
    e->hit_stop = tt_tick(e);
    tt_reconsider(e);
}

/* Wait for these from the next tick on; what comes at this one does not count. */
void tt_set_catches(Engine *e, const Catches *catches)
{
    e->catches = *catches;
    e->no_catch_at = tt_tick(e);
}
