/*
 * Page walks: Intel SDM volume 3, chapter 4, and AMD APM volume 2, chapter 5.
 */
#include <string.h>

#include "mmu.h"

enum { PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define PTE_RSVD 0x000ff00000000000ull /* above the 44 physical address bits that CPUID tells of */

/* A page-table entry, as the CPU reads it. */
uint64_t tt_read_entry(Engine *e, uint64_t paddr, int size)
{
    uint64_t v = 0;
    if (paddr + size > e->mem.size)
        return ~0ull >> (64 - 8 * size); /* nothing is there: the bus reads as all ones */
    tt_fresh(e, paddr, size);
    memcpy(&v, tt_at(&e->mem, paddr), size);
    return v;
}

/* Put D into a page-table entry, as a store by the CPU. */
static void set_dirty_bit(Engine *e, uint64_t paddr, uint64_t entry, int size)
{
    if (paddr + size > e->mem.size)
        return;
    if (unlikely(e->watch_count))
        tt_watch_physical(e, paddr, size, BY_WALK);
    entry |= PTE_D | PTE_A;
    memcpy(tt_at(&e->mem, paddr), &entry, size);
    tt_touched(e, paddr, size);
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
Walk tt_walk(Engine *e, uint64_t addr, int rw, int mmu_idx, bool commit)
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
            entry = tt_read_entry(e, at, 8);
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
        entry = tt_read_entry(e, at, 4);
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
            entry = tt_read_entry(e, at, 4);
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
    if (e->cpu.denali) {
        int rights;
        return tt_soft_lookup(e, addr, paddr, &rights);
    }
    Walk w = tt_walk(e, addr, LOAD, MMU_KNOSMAP, false);
    *paddr = w.paddr | (addr & (PAGE_SIZE - 1));
    return !w.vector;
}

