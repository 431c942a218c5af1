/*
 * Memory: what the software-filled TLB may hold, and which pages hold code.
 *
 * Every TLB miss comes here, with the exact address, kind and privilege of the
 * access.
 *
 * Stale code.  Unicorn notices a store to translated code only while the TLB
 * entry of the store is marked "not dirty", and it clears that mark after the
 * first such store.  So each physical page is in one class: W (stores are fast,
 * no translated code) or X (translated code, no store rights anywhere).  A store
 * to an X page drops its code and moves it to W; a fetch from a W page takes the
 * store rights away.  A page that the running block itself lies on, or that
 * thrashes between the classes, stays X and its stores get a right that is good
 * for one access: then QEMU's own exact check sees every store.
 *
 * Page tables.  A page whose entries were used to fill the TLB is remembered as a
 * table until the TLB is flushed; stores to it are good for one access too, and an
 * entry that was present and changes takes its translation out of the TLB.  So the
 * TLB never holds what the tables no longer say, and a guest that forgets INVLPG
 * does not depend on what the TLB happens to hold.
 *
 * Nothing a guest can see depends on when a fill happens (QEMU resizes its TLB
 * by host time): D is set exactly when a store first needs it, and A is not set.
 */
#include "mmu.h"

enum { FLIPS_ALLOWED = 8, TABLE_STORES_ALLOWED = 4096 };

void tt_forget_code(Engine *e)
{
    tt_inside.tb_flush(e->tr.cpu);
    tt_flush_tlb(e);
    e->tr.code_epoch++; /* with that, no page has code: see tt_page() */
}

static void drop_code(Engine *e, uint64_t host, uint64_t size)
{
    tt_inside.tb_invalidate_page_range(e->tr.uc, host, host + size);
}

static Page *page_at(const Engine *e, uint64_t paddr)
{
    return tt_page(e, tt_host(&e->mem, paddr));
}

/* RAM was stored to other than through the TLB: by a device, or by a user's edit. */
void tt_notify_write(Engine *e, uint64_t paddr, uint64_t size)
{
    for (uint64_t page = paddr & PAGE_MASK; page < paddr + size; page += PAGE_SIZE) {
        if (page_at(e, page)->marks & TABLE) {
            tt_flush_tlb(e);
            e->tr.refetch = true;
            break;
        }
    }
    tt_touched(e, paddr, size);
}

/* RAM was stored to by any means but the TLB; no translation changes by it (a page walk has set D, say). */
void tt_touched(Engine *e, uint64_t paddr, uint64_t size)
{
    uint64_t end = paddr + size;
    while (paddr < end) {
        uint64_t next = (paddr & PAGE_MASK) + PAGE_SIZE, stop = next < end ? next : end;
        uint64_t host = tt_host(&e->mem, paddr);
        *tt_flags_of(&e->mem, paddr) |= DIRTY_ALL;
        if (tt_page(e, host)->cls == CLASS_X)
            drop_code(e, host, stop - paddr);
        paddr = stop;
    }
}

static bool on_running_block(Engine *e, uint64_t host, uintptr_t ra)
{
    Block *tb = ra ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;
    return tb && (tb->page_addr[0] == host || tb->page_addr[1] == host);
}

/* ---- page tables -------------------------------------------------------- */

/* Mark the tables of a walk whose result goes into the TLB: from now on stores to them must be seen. */
static void remember_tables(Engine *e, const Walk *w)
{
    for (int i = 0; i < w->tables; i++) {
        if (w->table[i] >= e->mem.size)
            continue;
        uint64_t host = tt_host(&e->mem, w->table[i]);
        Page *p = tt_page(e, host);
        if (!(p->marks & TABLE)) {
            p->marks |= TABLE;
            p->table_covers = w->covers[i];
            p->table_stores = 0;
            if (p->cls == CLASS_W) {
                tt_drop_rights(e, host, false);
                p->cls = CLASS_NONE;
            }
        } else if (p->table_covers != w->covers[i]) {
            p->table_covers = TABLE_SHARED;
        }
    }
}

/* The running block's code may be elsewhere once this store is done: the store must be
 * the last instruction of its block, and the next block be looked up anew. */
static void refetch_after(Engine *e, uintptr_t ra)
{
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;
    if (tb && tb->icount != 1)
        tt_repeat_alone(e, ra);
    e->tr.refetch = true;
    tt_reconsider(e);
}

/* The CPU is about to store to a page table: take the translations that the store changes out of the TLB. */
static void store_to_table(Engine *e, uint64_t paddr, int size, uintptr_t ra)
{
    Page *p = page_at(e, paddr);
    int width = p->table_covers & TABLE_NARROW ? 4 : 8;
    uint64_t page = paddr & PAGE_MASK, last = paddr + (size > 0 ? size : 1) - 1;
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;
    uint64_t code = tb ? tb->pc & PAGE_MASK : ~0ull, code_end = tb ? (tb->pc + tb->size - 1) & PAGE_MASK : ~0ull;

    if (++p->table_stores > TABLE_STORES_ALLOWED) { /* a table no longer, probably */
        tt_flush_tlb(e);
        return;
    }
    if (last > page + PAGE_SIZE - 1)
        last = page + PAGE_SIZE - 1;
    for (uint64_t at = paddr & ~(uint64_t)(width - 1); at <= last; at += width) {
        if (!(tt_read_entry(e, at, width) & PTE_P)) /* nothing came from it */
            continue;
        if (!(p->table_covers & TABLE_LEAF)) {
            refetch_after(e, ra);
            tt_flush_tlb(e);
            return;
        }
        uint64_t vpage = (p->table_covers & PAGE_MASK) + (at - page) / width * PAGE_SIZE;
        if (vpage == code || vpage == code_end)
            refetch_after(e, ra);
        tt_drop_page(e, vpage);
    }
}

/* Decide what the TLB may hold for this page, and keep the classes. */
static int grant(Engine *e, uint64_t vpage, uint64_t paddr, int rights, int rw, uintptr_t ra)
{
    uint64_t host = tt_host(&e->mem, paddr);
    uint8_t *flags = tt_flags_of(&e->mem, paddr);
    Page *p = tt_page(e, host);

    switch (rw) {
    case FETCH:
        if (p->cls == CLASS_W)
            tt_drop_rights(e, host, false);
        p->cls = CLASS_X;
        tt_granted(p, vpage, true);
        return (rights & RIGHT_R) | RIGHT_X;
    case STORE:
        *flags |= DIRTY_ALL;
        if (p->marks & TABLE)
            return (rights & RIGHT_R) | RIGHT_W | RIGHT_W_ONCE;
        if (p->cls == CLASS_X) {
            if (p->flips >= FLIPS_ALLOWED || on_running_block(e, host, ra))
                return (rights & RIGHT_R) | RIGHT_W | RIGHT_W_ONCE;
            drop_code(e, host, PAGE_SIZE);
            tt_drop_rights(e, host, true);
            p->flips++;
            e->class_flips++;
        }
        p->cls = CLASS_W;
        tt_granted(p, vpage, false);
        return (rights & RIGHT_R) | RIGHT_W;
    default:
        if ((rights & RIGHT_W) && p->cls == CLASS_W && (*flags & DIRTY_ALL) == DIRTY_ALL) {
            tt_granted(p, vpage, false);
            return RIGHT_R | RIGHT_W;
        }
        return RIGHT_R;
    }
}

/* If the store will set a D that is watched, the store must be alone in its block. */
static void watch_dirty_bit(Engine *e, uint64_t addr, int mmu_idx, uintptr_t ra)
{
    uint64_t at = tt_walk(e, addr, STORE, mmu_idx, false).dirty_at;
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;
    if (at && tb && tb->icount != 1 && tt_watches_physical(e, at, 8))
        tt_repeat_alone(e, ra);
}

/* An access to a page with a device or watched bytes. */
static void look_at(Engine *e, uint64_t addr, uint64_t ppage, int size, int rw, uintptr_t ra, bool watched, bool device)
{
    int length;
    uint64_t start;

    if (device)
        tt_alone_for_device(e, rw, ra);
    start = tt_part_on_page(e, addr, size, rw, ra, &length);
    if (watched)
        tt_watch_access(e, start, ppage | (start & (PAGE_SIZE - 1)), length, rw, ra);
    if (device) {
        e->device_page = ppage;
        e->device_vpage = addr & PAGE_MASK;
        e->part_start = start;
        e->part_length = length;
    }
}

/* QEMU's tlb_fill: called on every TLB miss of a load, store or fetch. */
bool tt_fill(void *cpu, uint64_t addr, int size, int rw, int mmu_idx, bool probe, uintptr_t ra)
{
    Engine *e = tt_current;
    Walk w = {.size = PAGE_SIZE};
    uint64_t vpage = addr & PAGE_MASK;

    e->fills++;
    tt_effort(e, EFFORT_FILL);
    if (e->cpu.denali && e->cpu.soft_tlb) {
        if (!tt_soft_lookup(e, addr, &w.paddr, &w.rights) || !(w.rights & (1 << rw))) {
            w.vector = EXC_PF;
            w.error = (w.rights ? PF_P : 0) | (rw == STORE ? PF_W : 0) | (rw == FETCH ? PF_I : 0);
        }
        w.paddr &= PAGE_MASK;
    } else {
        if (unlikely(e->watch_count) && rw == STORE)
            watch_dirty_bit(e, addr, mmu_idx, ra);
        w = tt_walk(e, addr, rw, mmu_idx, true);
    }
    if (unlikely(rw == FETCH && !w.vector && w.paddr >= e->mem.size)) {
        /* Code outside RAM: it reads as all ones, which is not a valid instruction. */
        w.vector = e->cpu.denali ? EXC_PF : EXC_UD;
        w.error = e->cpu.denali ? PF_I : 0;
    }
    if (likely(!w.vector)) {
        int rights = w.rights;
        if (rw == STORE && w.paddr < e->mem.size && (page_at(e, w.paddr)->marks & TABLE))
            store_to_table(e, w.paddr | (addr & (PAGE_SIZE - 1)), size, ra);
        remember_tables(e, &w);
        uint64_t host = VOID_ADDR;
        if (likely(w.paddr < e->mem.size)) {
            tt_fresh(e, w.paddr, PAGE_SIZE);
            rights = grant(e, vpage, w.paddr, rights, rw, ra);
            host = tt_host(&e->mem, w.paddr);
        }
        bool watched = unlikely(e->watch_count || tt_own_watches(e)) && tt_page_watched(e, vpage, w.paddr);
        bool device = unlikely(e->device_count) && host == VOID_ADDR && tt_is_device(e, w.paddr);
        if (unlikely(watched || device)) {
            if (rw == FETCH) {
                rights = RIGHT_X; /* reads must come here */
            } else {
                w.size = 1; /* QEMU's word for "ask again at the next access" */
                if (!probe)
                    look_at(e, addr, w.paddr, size, rw, ra, watched, device);
            }
            if (device)
                host = DEVICE_ADDR;
        }
        tt_inside.tlb_set_page(cpu, vpage, host, rights, mmu_idx, w.size);
        return true;
    }
    if (probe)
        return false;
    if (rw == FETCH && tt_own_due(e))
        tt_own_trap(e); /* a trap of the instruction before comes first */
    if (rw == FETCH) {
        /* Nothing is running: the block before this one is complete. */
        uint64_t pc = EIP(e) + SEG(e, SEG_CS).base;
        CURRENT(e) = 0;
        if ((pc & PAGE_MASK) != vpage && e->tr.lookup_count != 1) {
            /* A block that would cross into a missing page: the instructions
             * before the crossing come first, one at a time. */
            CPU32(e, tt_layout.cpu_cflags_next_tb) = 1;
            tt_inside.cpu_loop_exit(cpu);
        }
    }
    if (w.vector == EXC_PF)
        CR(e, 2) = HFLAGS(e) & HF_LMA ? addr : (uint32_t)addr;
    tt_inside.raise_exception_err_ra(e->tr.env, w.vector, w.error, ra);
}
