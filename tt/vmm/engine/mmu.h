/*
 * What walk.c, tlb.c and mmu.c share.
 */
#ifndef TT_MMU_H
#define TT_MMU_H

#include "core.h"

enum { PTE_P = 1 };
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 }; /* a page fault's error code */

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

/* walk.c */
uint64_t tt_read_entry(Engine *e, uint64_t paddr, int size);
Walk tt_walk(Engine *e, uint64_t addr, int rw, int mmu_idx, bool commit);
/* tlb.c */
void tt_drop_rights(Engine *e, uint64_t host, bool code);
void tt_granted(Page *p, uint64_t vpage, bool code);
/* mmu.c */
void tt_touched(Engine *e, uint64_t paddr, uint64_t size);

#endif
