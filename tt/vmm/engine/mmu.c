/*
 * Memory: page walks, the software-filled TLB, and which pages hold code.
 *
 * Every TLB miss comes here, with the exact address, kind and privilege of the
 * access.  Walks follow the Intel SDM, volume 3, chapter 4, and AMD APM volume 2,
 * chapter 5.
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
#include <string.h>

#include "core.h"

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define PTE_RSVD 0x000ff00000000000ull /* above the 44 physical address bits that CPUID tells of */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };
enum { TLB_LEAST = 1024 };
enum { FLIPS_ALLOWED = 8, TABLE_STORES_ALLOWED = 4096 };

typedef struct Walk {
    uint64_t paddr; /* of the 4 KB page */
    uint64_t size;  /* of the mapping: 4 KB, 2 MB, 4 MB, 1 GB */
    int rights;
    int vector;     /* 0: fine; else the exception */
    int error;
    uint64_t dirty_at; /* physical address of an entry that needs D for this store; 0: none */
    int tables;     /* how many page tables were used */
    uint64_t table[4], covers[4];
} Walk;

static void touched(Engine *e, uint64_t paddr, uint64_t size);

static uint64_t read_entry(Engine *e, uint64_t paddr, int size)
{
    uint64_t v = 0;
    if (paddr + size > e->ram_size)
        return ~0ull >> (64 - 8 * size); /* a bus with nobody on it */
    tt_fresh(e, paddr, size);
    memcpy(&v, e->ram + paddr, size);
    return v;
}

/* Put D into a page-table entry, as a store by the CPU. */
static void set_dirty_bit(Engine *e, uint64_t paddr, uint64_t entry, int size)
{
    if (paddr + size > e->ram_size)
        return;
    if (unlikely(e->watch_count))
        tt_watch_physical(e, paddr, size, BY_WALK);
    entry |= PTE_D | PTE_A;
    memcpy(e->ram + paddr, &entry, size);
    touched(e, paddr, size);
}

static void fault(Walk *w, int error, int rw, bool user, const Engine *e)
{
    bool tells_fetch = ((EFER(e) & EFER_NXE) && (CR(e, 4) & CR4_PAE)) || (CR(e, 4) & CR4_SMEP);
    w->vector = EXC_PF;
    w->error = error | (rw == STORE ? PF_W : 0) | (user ? PF_U : 0) | (rw == FETCH && tells_fetch ? PF_I : 0);
}

static void used_table(Walk *w, uint64_t at, uint64_t covers)
{
    w->table[w->tables] = at & PAGE_MASK;
    w->covers[w->tables++] = covers;
}

/* Translate `addr`.  With `commit`, sets D as the access would. */
static Walk walk(Engine *e, uint64_t addr, int rw, int mmu_idx, bool commit)
{
    Walk w = {.size = PAGE_SIZE};
    uint64_t cr0 = CR(e, 0), cr4 = CR(e, 4), rights = PTE_W | PTE_U, entry, at;
    bool user = mmu_idx == MMU_USER, nx = false, is_long = HFLAGS(e) & HF_LMA;
    uint64_t reserved = PTE_RSVD | (EFER(e) & EFER_NXE ? 0 : PTE_NX);
    int width = 8, leaf_shift = 12;

    if (!(cr0 & CR0_PG)) {
        w.paddr = (is_long ? addr : (uint32_t)addr) & PAGE_MASK;
        w.rights = RIGHT_R | RIGHT_W | RIGHT_X;
        return w;
    }
    if (cr4 & CR4_PAE) {
        int shift = 39;
        at = CR(e, 3) & PTE_ADDR;
        if (is_long) {
            int64_t top = (int64_t)addr >> 47;
            if (top != 0 && top != -1) {
                w.vector = EXC_GP;
                return w;
            }
        } else {
            addr = (uint32_t)addr;
            at = CR(e, 3) & 0xffffffe0;
            shift = 30;
        }
        for (;; shift -= 9) {
            uint64_t index_mask = !is_long && shift == 30 ? 3 : 511;
            at += ((addr >> shift) & index_mask) * 8;
            used_table(&w, at, shift == 12 ? (addr & ~0x1fffffull) | TABLE_LEAF : addr & ~((512ull << shift) - 1));
            entry = read_entry(e, at, 8);
            if (!(entry & PTE_P)) {
                fault(&w, 0, rw, user, e);
                return w;
            }
            bool pdpte32 = !is_long && shift == 30; /* no rights in these: SDM 4.4.1 */
            if (entry & (pdpte32 ? PTE_RSVD | PTE_NX : reserved)) {
                fault(&w, PF_P | PF_RSVD, rw, user, e);
                return w;
            }
            if (!pdpte32) {
                rights &= entry;
                nx |= entry >> 63;
            }
            if (shift == 12)
                break;
            if ((entry & PTE_PS) && shift < 39 && !pdpte32) {
                leaf_shift = shift;
                break;
            }
            if ((entry & PTE_PS) && shift == 39) {
                fault(&w, PF_P | PF_RSVD, rw, user, e);
                return w;
            }
            at = entry & PTE_ADDR;
        }
        w.size = 1ull << leaf_shift;
        if (leaf_shift > 12 && (entry & PTE_ADDR & (w.size - 1) & ~0x1000ull)) { /* bit 12 is PAT */
            fault(&w, PF_P | PF_RSVD, rw, user, e);
            return w;
        }
        w.paddr = (entry & PTE_ADDR & ~(w.size - 1)) | (addr & (w.size - 1) & PAGE_MASK);
    } else {
        width = 4;
        addr = (uint32_t)addr;
        at = (CR(e, 3) & 0xfffff000) + (addr >> 22) * 4;
        used_table(&w, at, TABLE_NARROW);
        entry = read_entry(e, at, 4);
        if (!(entry & PTE_P)) {
            fault(&w, 0, rw, user, e);
            return w;
        }
        rights &= entry;
        if ((entry & PTE_PS) && (cr4 & CR4_PSE)) { /* 4 MB, PSE-36 */
            if (entry & (1 << 21)) {
                fault(&w, PF_P | PF_RSVD, rw, user, e);
                return w;
            }
            w.size = 4 << 20;
            w.paddr = (entry & 0xffc00000) | ((entry & 0x1fe000) << 19) | (addr & 0x3ff000);
        } else {
            at = (entry & 0xfffff000) + ((addr >> 12) & 1023) * 4;
            used_table(&w, at, (addr & 0xffc00000) | TABLE_LEAF | TABLE_NARROW);
            entry = read_entry(e, at, 4);
            if (!(entry & PTE_P)) {
                fault(&w, 0, rw, user, e);
                return w;
            }
            rights &= entry;
            w.paddr = entry & 0xfffff000;
        }
    }

    if (rights & PTE_U) {
        if (user || mmu_idx == MMU_KNOSMAP || !(cr4 & CR4_SMAP))
            w.rights |= RIGHT_R;
    } else if (!user) {
        w.rights |= RIGHT_R;
    }
    if ((w.rights & RIGHT_R) && ((rights & PTE_W) || (!user && !(cr0 & CR0_WP))))
        w.rights |= RIGHT_W;
    if (!nx && (user ? (rights & PTE_U) != 0 : !((cr4 & CR4_SMEP) && (rights & PTE_U))))
        w.rights |= RIGHT_X;
    if (!(w.rights & (1 << rw))) {
        fault(&w, PF_P, rw, user, e);
        return w;
    }
    if (!(entry & PTE_D)) {
        w.dirty_at = rw == STORE ? at : 0;
        if (rw == STORE && commit)
            set_dirty_bit(e, at, entry, width);
        else
            w.rights &= ~RIGHT_W; /* D must be set when the store comes */
    }
    return w;
}

bool tt_translate(Engine *e, uint64_t addr, uint64_t *paddr)
{
    if (e->denali) {
        int rights;
        return tt_soft_lookup(e, addr, paddr, &rights);
    }
    Walk w = walk(e, addr, LOAD, MMU_KNOSMAP, false);
    *paddr = w.paddr | (addr & (PAGE_SIZE - 1));
    return !w.vector;
}

/* ---- the TLB's entries, one by one ------------------------------------- */

static TlbFast *tlb_of(Engine *e, int mode)
{
    return (TlbFast *)(e->env + tt_layout.tlb_fast) + mode;
}

/* How many entries QEMU gives the TLB of a mode at present. */
uint64_t tt_tlb_entries(Engine *e, int mode)
{
    return tlb_of(e, mode)->mask / sizeof(TlbEntry) + 1;
}

static TlbEntry *victims_of(Engine *e, int mode)
{
    return (TlbEntry *)(e->env + tt_layout.tlb_desc + mode * tt_layout.tlb_desc_size + tt_layout.tlb_victims);
}

static void drop_entry(TlbEntry *t, uint64_t paddr, bool code)
{
    if (t->paddr == paddr && (code ? t->addr_code : t->addr_write) != ~0ull)
        memset(t, 0xff, sizeof *t);
}

/* Take W (or X, with `code`) on a physical page away, wherever it was granted. */
static void drop_rights(Engine *e, uint64_t paddr, bool code)
{
    Page *p = &e->pages[paddr / PAGE_SIZE];
    uint64_t addr = code ? p->x_addr : p->w_addr;
    bool many = p->marks & (code ? MANY_X : MANY_W);

    if (!addr)
        return;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        if (many) {
            for (size_t i = 0; i <= f->mask / sizeof(TlbEntry); i++)
                drop_entry(&f->table[i], paddr, code);
        } else {
            drop_entry((TlbEntry *)((uint8_t *)f->table + ((addr >> 12) * sizeof(TlbEntry) & f->mask)), paddr, code);
        }
        for (int i = 0; i < VICTIMS; i++)
            drop_entry(&victims_of(e, mode)[i], paddr, code);
    }
    *(code ? &p->x_addr : &p->w_addr) = 0;
    p->marks &= code ? ~MANY_X : ~MANY_W;
}

static void granted(Page *p, uint64_t vpage, bool code)
{
    uint64_t *addr = code ? &p->x_addr : &p->w_addr, mark = vpage | 1;
    if (*addr && *addr != mark)
        p->marks |= code ? MANY_X : MANY_W;
    *addr = mark;
}

/* Empty the TLB.  QEMU sizes it then by how much of it was used in the last 100 ms of host
 * time.  A small one, mapped directly, makes two hot pages that share an entry cost five
 * times the run, so it is kept from shrinking below TLB_LEAST entries. */
void tt_drop_tlb(Engine *e)
{
    e->epoch++;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        uint64_t entries = tt_tlb_entries(e, mode), least = entries < TLB_LEAST ? entries : TLB_LEAST / 2;
        uint8_t *desc = e->env + tt_layout.tlb_desc + mode * tt_layout.tlb_desc_size;
        uint64_t *most_used = (uint64_t *)(desc + TLB_WINDOW_MOST);
        if (*most_used < least) /* all used: it doubles; half: it stays */
            *most_used = least;
    }
    tt_inside.tlb_flush(e->cpu);
}

/* Have every page's next store come here. */
void tt_revoke_stores(Engine *e)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        for (size_t i = 0; i <= f->mask / sizeof(TlbEntry); i++)
            f->table[i].addr_write = ~0ull;
        for (int i = 0; i < VICTIMS; i++)
            victims_of(e, mode)[i].addr_write = ~0ull;
    }
}

/* Empty the TLB, and forget where rights were granted. */
void tt_flush_tlb(Engine *e)
{
    tt_drop_tlb(e);
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++) {
        Page *p = &e->pages[i];
        p->w_addr = p->x_addr = 0;
        p->marks &= STALE;
    }
}

void tt_forget_code(Engine *e)
{
    tt_inside.tb_flush(e->cpu);
    tt_flush_tlb(e);
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++)
        e->pages[i].cls = e->pages[i].flips = 0;
}

static void drop_code(Engine *e, uint64_t paddr, uint64_t size)
{
    tt_inside.tb_invalidate_page_range(e->uc, paddr, paddr + size);
}

static bool is_table(const Engine *e, const Page *p)
{
    return p->table_epoch == e->epoch;
}

/* RAM was stored to other than through the TLB: by a device or a person. */
void tt_notify_write(Engine *e, uint64_t paddr, uint64_t size)
{
    for (uint64_t page = paddr & PAGE_MASK; page < paddr + size; page += PAGE_SIZE) {
        if (is_table(e, &e->pages[page / PAGE_SIZE])) {
            tt_drop_tlb(e);
            e->refetch = true;
            break;
        }
    }
    touched(e, paddr, size);
}

/* ... or by a page walk, which changes no translation. */
static void touched(Engine *e, uint64_t paddr, uint64_t size)
{
    uint64_t end = paddr + size;
    while (paddr < end) {
        uint64_t next = (paddr & PAGE_MASK) + PAGE_SIZE, stop = next < end ? next : end;
        Page *p = &e->pages[paddr / PAGE_SIZE];
        p->dirty = DIRTY_ALL;
        if (p->cls == CLASS_X)
            drop_code(e, paddr, stop - paddr);
        paddr = stop;
    }
}

static bool on_running_block(Engine *e, uint64_t paddr, uintptr_t ra)
{
    Block *tb = ra ? tt_inside.tb_lookup(e->tcg_ctx, ra) : NULL;
    return tb && (tb->page_addr[0] == paddr || tb->page_addr[1] == paddr);
}

/* ---- page tables -------------------------------------------------------- */

/* The tables of a walk whose result goes into the TLB. */
static void remember_tables(Engine *e, const Walk *w)
{
    for (int i = 0; i < w->tables; i++) {
        Page *p = &e->pages[w->table[i] / PAGE_SIZE];
        if (w->table[i] >= e->ram_size)
            continue;
        if (!is_table(e, p)) {
            p->table_epoch = e->epoch;
            p->table_covers = w->covers[i];
            p->table_stores = 0;
            if (p->cls == CLASS_W) {
                drop_rights(e, w->table[i], false);
                p->cls = CLASS_NONE;
            }
        } else if (p->table_covers != w->covers[i]) {
            p->table_covers = TABLE_SHARED;
        }
    }
}

/* Take one virtual page out of the TLB. */
static void drop_page(Engine *e, uint64_t vpage)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        TlbEntry *t = (TlbEntry *)((uint8_t *)f->table + ((vpage >> 12) * sizeof(TlbEntry) & f->mask));
        for (int i = -1; i < VICTIMS; i++) {
            TlbEntry *entry = i < 0 ? t : &victims_of(e, mode)[i];
            if ((entry->addr_read & PAGE_MASK) == vpage || (entry->addr_write & PAGE_MASK) == vpage
                || (entry->addr_code & PAGE_MASK) == vpage)
                memset(entry, 0xff, sizeof *entry);
        }
    }
    tt_inside.tb_flush_jmp_cache(e->cpu, vpage);
}

/* The running block's code may be elsewhere once this store is done: the store must be
 * the last instruction of its block, and the next block be looked up anew. */
static void refetch_after(Engine *e, uintptr_t ra)
{
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tcg_ctx, ra) : NULL;
    if (tb && tb->icount != 1)
        tt_repeat_alone(e, ra);
    e->refetch = true;
    tt_reconsider(e);
}

/* A store by the CPU to a table, about to happen: what it changes leaves the TLB. */
static void store_to_table(Engine *e, uint64_t paddr, int size, uintptr_t ra)
{
    Page *p = &e->pages[paddr / PAGE_SIZE];
    int width = p->table_covers & TABLE_NARROW ? 4 : 8;
    uint64_t page = paddr & PAGE_MASK, last = paddr + (size > 0 ? size : 1) - 1;
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tcg_ctx, ra) : NULL;
    uint64_t code = tb ? tb->pc & PAGE_MASK : ~0ull, code_end = tb ? (tb->pc + tb->size - 1) & PAGE_MASK : ~0ull;

    if (++p->table_stores > TABLE_STORES_ALLOWED) { /* a table no longer, probably */
        tt_drop_tlb(e);
        return;
    }
    if (last > page + PAGE_SIZE - 1)
        last = page + PAGE_SIZE - 1;
    for (uint64_t at = paddr & ~(uint64_t)(width - 1); at <= last; at += width) {
        if (!(read_entry(e, at, width) & PTE_P)) /* nothing came from it */
            continue;
        if (!(p->table_covers & TABLE_LEAF)) {
            refetch_after(e, ra);
            tt_drop_tlb(e);
            return;
        }
        uint64_t vpage = (p->table_covers & PAGE_MASK) + (at - page) / width * PAGE_SIZE;
        if (vpage == code || vpage == code_end)
            refetch_after(e, ra);
        drop_page(e, vpage);
    }
}

/* Decide what the TLB may hold for this page, and keep the classes. */
static int grant(Engine *e, uint64_t vpage, uint64_t paddr, int rights, int rw, uintptr_t ra)
{
    Page *p = &e->pages[paddr / PAGE_SIZE];

    switch (rw) {
    case FETCH:
        if (p->cls == CLASS_W)
            drop_rights(e, paddr, false);
        p->cls = CLASS_X;
        granted(p, vpage, true);
        return (rights & RIGHT_R) | RIGHT_X;
    case STORE:
        p->dirty = DIRTY_ALL;
        if (is_table(e, p))
            return (rights & RIGHT_R) | RIGHT_W | RIGHT_W_ONCE;
        if (p->cls == CLASS_X) {
            if (p->flips >= FLIPS_ALLOWED || on_running_block(e, paddr, ra))
                return (rights & RIGHT_R) | RIGHT_W | RIGHT_W_ONCE;
            drop_code(e, paddr, PAGE_SIZE);
            drop_rights(e, paddr, true);
            p->flips++;
            e->class_flips++;
        }
        p->cls = CLASS_W;
        granted(p, vpage, false);
        return (rights & RIGHT_R) | RIGHT_W;
    default:
        if ((rights & RIGHT_W) && p->cls == CLASS_W && p->dirty == DIRTY_ALL) {
            granted(p, vpage, false);
            return RIGHT_R | RIGHT_W;
        }
        return RIGHT_R;
    }
}

/* If the store will set a D that is watched, the store must be alone in its block. */
static void watch_dirty_bit(Engine *e, uint64_t addr, int mmu_idx, uintptr_t ra)
{
    uint64_t at = walk(e, addr, STORE, mmu_idx, false).dirty_at;
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tcg_ctx, ra) : NULL;
    if (at && tb && tb->icount != 1 && tt_watches_physical(e, at, 8))
        tt_repeat_alone(e, ra);
}

/* QEMU's tlb_fill: called on every TLB miss of a load, store or fetch. */
bool tt_fill(void *cpu, uint64_t addr, int size, int rw, int mmu_idx, bool probe, uintptr_t ra)
{
    Engine *e = tt_current;
    Walk w = {.size = PAGE_SIZE};
    uint64_t vpage = addr & PAGE_MASK;

    e->fills++;
    tt_effort(e, EFFORT_FILL);
    if (e->denali && e->soft_tlb) {
        if (!tt_soft_lookup(e, addr, &w.paddr, &w.rights) || !(w.rights & (1 << rw))) {
            w.vector = EXC_PF;
            w.error = (w.rights ? PF_P : 0) | (rw == STORE ? PF_W : 0) | (rw == FETCH ? PF_I : 0);
        }
        w.paddr &= PAGE_MASK;
    } else {
        if (unlikely(e->watch_count) && rw == STORE)
            watch_dirty_bit(e, addr, mmu_idx, ra);
        w = walk(e, addr, rw, mmu_idx, true);
    }
    if (unlikely(rw == FETCH && !w.vector && w.paddr >= e->ram_size)) {
        /* Code where nothing is: all ones, which are no instruction. */
        w.vector = e->denali ? EXC_PF : EXC_UD;
        w.error = e->denali ? PF_I : 0;
    }
    if (likely(!w.vector)) {
        int rights = w.rights;
        if (rw == STORE && w.paddr < e->ram_size && is_table(e, &e->pages[w.paddr / PAGE_SIZE]))
            store_to_table(e, w.paddr | (addr & (PAGE_SIZE - 1)), size, ra);
        remember_tables(e, &w);
        if (likely(w.paddr < e->ram_size))
            tt_fresh(e, w.paddr, PAGE_SIZE);
        if (likely(w.paddr < e->ram_size))
            rights = grant(e, vpage, w.paddr, rights, rw, ra);
        else
            w.paddr = VOID_ADDR;
        if (unlikely(e->watch_count) && !probe && tt_page_watched(e, vpage, w.paddr)) {
            if (rw == FETCH) {
                rights = RIGHT_X; /* reads must come here */
            } else {
                tt_watch_access(e, addr, w.paddr | (addr & (PAGE_SIZE - 1)), size, rw, ra);
                w.size = 1; /* QEMU's word for "ask again at the next access" */
            }
        }
        tt_inside.tlb_set_page(cpu, vpage, w.paddr, rights, mmu_idx, w.size);
        return true;
    }
    if (probe)
        return false;
    if (rw == FETCH) {
        /* Nothing is running: the block before this one is complete. */
        uint64_t pc = EIP(e) + SEG(e, SEG_CS).base;
        CURRENT(e) = 0;
        if ((pc & PAGE_MASK) != vpage && e->lookup_count != 1) {
            /* A block that would cross into a missing page: the instructions
             * before the crossing come first, one at a time. */
            CPU32(e, tt_layout.cpu_cflags_next_tb) = 1;
            tt_inside.cpu_loop_exit(cpu);
        }
    }
    if (w.vector == EXC_PF)
        CR(e, 2) = HFLAGS(e) & HF_LMA ? addr : (uint32_t)addr;
    tt_inside.raise_exception_err_ra(e->env, w.vector, w.error, ra);
}
