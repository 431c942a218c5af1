/*
 * The TLB's entries, one by one: QEMU keeps them in tables that its translated code
 * reads, one for each privilege, and a few that lately left those, the "victims".
 */
#include <string.h>

#include "mmu.h"

enum { TLB_LEAST = 1024 };

static TlbFast *tlb_of(Engine *e, int mode)
{
    return (TlbFast *)(e->tr.env + tt_layout.tlb_fast) + mode;
}

/* How many entries QEMU gives the TLB of a mode at present. */
uint64_t tt_tlb_entries(Engine *e, int mode)
{
    return tlb_of(e, mode)->mask / sizeof(TlbEntry) + 1;
}

static TlbEntry *victims_of(Engine *e, int mode)
{
    return (TlbEntry *)(e->tr.env + tt_layout.tlb_desc + mode * tt_layout.tlb_desc_size + tt_layout.tlb_victims);
}

static void drop_entry(TlbEntry *t, uint64_t host, bool code)
{
    if (t->paddr == host && (code ? t->addr_code : t->addr_write) != ~0ull)
        memset(t, 0xff, sizeof *t);
}

/* Take W (or X, with `code`) on a page of the pool away, wherever it was granted. */
void tt_drop_rights(Engine *e, uint64_t host, bool code)
{
    Page *p = tt_page(e, host);
    uint64_t addr = code ? p->x_addr : p->w_addr;
    bool many = p->marks & (code ? MANY_X : MANY_W);

    if (!addr)
        return;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        if (many) {
            for (size_t i = 0; i <= f->mask / sizeof(TlbEntry); i++)
                drop_entry(&f->table[i], host, code);
        } else {
            drop_entry((TlbEntry *)((uint8_t *)f->table + ((addr >> 12) * sizeof(TlbEntry) & f->mask)), host, code);
        }
        for (int i = 0; i < VICTIMS; i++)
            drop_entry(&victims_of(e, mode)[i], host, code);
    }
    *(code ? &p->x_addr : &p->w_addr) = 0;
    p->marks &= code ? ~MANY_X : ~MANY_W;
}

void tt_granted(Page *p, uint64_t vpage, bool code)
{
    uint64_t *addr = code ? &p->x_addr : &p->w_addr, mark = vpage | 1;
    if (*addr && *addr != mark)
        p->marks |= code ? MANY_X : MANY_W;
    *addr = mark;
}

/* Empty the TLB.  QEMU sizes it then by how much of it was used in the last 100 ms of host
 * time.  A small one, mapped directly, makes two hot pages that share an entry cost five
 * times the run, so it is kept from shrinking below TLB_LEAST entries. */
void tt_flush_tlb(Engine *e)
{
    e->tr.tlb_epoch++; /* from now on no page counts as having granted rights, or as a table in use: see tt_page() */
    for (int mode = 0; mode < MMU_MODES; mode++) {
        uint64_t entries = tt_tlb_entries(e, mode), least = entries < TLB_LEAST ? entries : TLB_LEAST / 2;
        uint8_t *desc = e->tr.env + tt_layout.tlb_desc + mode * tt_layout.tlb_desc_size;
        uint64_t *most_used = (uint64_t *)(desc + TLB_WINDOW_MOST);
        if (*most_used < least) /* all used: it doubles; half: it stays */
            *most_used = least;
    }
    tt_inside.tlb_flush(e->tr.cpu);
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

/* Take one virtual page out of the TLB. */
void tt_drop_page(Engine *e, uint64_t vpage)
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
    tt_inside.tb_flush_jmp_cache(e->tr.cpu, vpage);
}
