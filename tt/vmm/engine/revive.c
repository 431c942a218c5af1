/*
 * Translated blocks that come back.
 *
 * QEMU drops the blocks of a page when the page's bytes change.  Going back in time, and code
 * that patches its neighbours, bring the same bytes again soon; a block is a function of these
 * bytes and of how it is entered, so translating it anew gives what was there before.  Its host
 * code is also still in memory: QEMU frees none until its buffer is full.
 *
 * So each block is noted with a copy of its guest code.  When QEMU asks for a block that was
 * dropped and whose guest code is there again, QEMU's own tb_gen_code() makes it at the very
 * place where it lies, with a translation that writes nothing: all that QEMU keeps of a block
 * (lists of pages, jumps to others, hash table) is put in order by QEMU itself.
 *
 * Blocks on two pages and blocks cut to a number of instructions are not noted.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

struct Noted {
    struct Noted *next; /* in the same bucket */
    Block *tb;
    uint64_t hash;
    Jumps jumps;
    uint64_t code_size; /* of host code */
    uint16_t size, icount;
    uint8_t bytes[];
};

static Jumps *jumps_of(Block *tb)
{
    return (Jumps *)(tb + 1);
}

_Static_assert(sizeof(Block) == 88, "QEMU's jumps follow");

static uint8_t **code_end(const Engine *e)
{
    return (uint8_t **)((uint8_t *)e->tr.tcg_ctx + tt_layout.ctx_code_end);
}

static uint64_t hash_of(uint64_t phys, uint64_t pc, uint64_t cs_base, uint32_t flags)
{
    uint64_t h = (phys ^ pc << 20) * 0x9e3779b97f4a7c15ull;
    h = (h ^ cs_base ^ (uint64_t)flags << 32 ^ h >> 29) * 0xd1b54a32d192ed03ull;
    return h ^ h >> 32;
}

/* All code is gone: QEMU begins its buffer anew. */
void tt_forget_noted(Engine *e)
{
    Revival *r = &e->tr.revival;
    for (uint64_t i = 0; i < r->bucket_count; i++) {
        for (Noted *n = r->buckets[i], *next; n; n = next) {
            next = n->next;
            free(n);
        }
    }
    free(r->buckets);
    *r = (Revival){0};
}

/* Twice as many buckets. */
static bool grow(Revival *r)
{
    uint64_t count = r->bucket_count ? 2 * r->bucket_count : 1 << 12;
    Noted **buckets = calloc(count, sizeof *buckets);
    if (!buckets)
        return false;
    for (uint64_t i = 0; i < r->bucket_count; i++) {
        for (Noted *n = r->buckets[i], *next; n; n = next) {
            next = n->next;
            n->next = buckets[n->hash & (count - 1)];
            buckets[n->hash & (count - 1)] = n;
        }
    }
    free(r->buckets);
    r->buckets = buckets;
    r->bucket_count = count;
    return true;
}

/* QEMU has made a block: note it. */
void tt_note_block(Engine *e, Block *tb)
{
    Revival *r = &e->tr.revival;
    uint64_t at = tb->page_addr[0] | (tb->pc & (PAGE_SIZE - 1));
    Noted *n;

    r->top = *code_end(e);
    if ((tb->cflags & (CF_COUNT | CF_NOCACHE)) || tb->page_addr[1] != ~0ull || at + tb->size > e->mem.size
        || (r->count >= r->bucket_count && !grow(r)))
        return;
    n = malloc(sizeof *n + tb->size);
    if (!n)
        return;
    n->tb = tb;
    n->hash = hash_of(at, tb->pc, tb->cs_base, tb->flags);
    n->jumps = *jumps_of(tb);
    n->code_size = tb->code_size;
    n->size = tb->size;
    n->icount = tb->icount;
    memcpy(n->bytes, e->mem.pool + at, n->size);
    n->next = r->buckets[n->hash & (r->bucket_count - 1)];
    r->buckets[n->hash & (r->bucket_count - 1)] = n;
    r->count++;
}

/* The block that QEMU is about to make, if it was made before and dropped; else NULL. */
Block *tt_revive_block(Engine *e, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags)
{
    Revival *r = &e->tr.revival;
    uint8_t *end = *code_end(e);
    uint64_t phys, hash;
    Noted *n;
    Block *tb;

    if (end < r->top)
        tt_forget_noted(e);
    if (!r->count || (cflags & (CF_COUNT | CF_NOCACHE)))
        return NULL;
    phys = tt_inside.page_addr_code(e->tr.env, pc);
    if (phys >= e->mem.size)
        return NULL;
    hash = hash_of(phys, pc, cs_base, flags);
    for (n = r->buckets[hash & (r->bucket_count - 1)]; n; n = n->next) {
        tb = n->tb;
        if (n->hash == hash && (tb->cflags & CF_INVALID) && tb->pc == pc && tb->cs_base == cs_base
            && tb->flags == flags && (tb->page_addr[0] | (pc & (PAGE_SIZE - 1))) == phys
            && !((tb->cflags ^ (uint32_t)cflags) & ~(uint32_t)(CF_CLUSTER | CF_INVALID))
            && !memcmp(n->bytes, e->mem.pool + phys, n->size))
            break;
    }
    if (!n)
        return NULL;
    r->reviving = n;
    *code_end(e) = (uint8_t *)tb;
    tb = tt_inside.tb_gen_code(e->tr.cpu, pc, cs_base, flags, cflags);
    *code_end(e) = end;
    r->reviving = NULL;
    tb->icount = n->icount;
    e->blocks_revived++;
    tt_effort(e, EFFORT_REVIVE);
    return tb;
}

/* In place of a translation: QEMU asks for it, and is to write nothing. */
bool tt_reviving(Engine *e, Block *tb)
{
    if (!e->tr.revival.reviving)
        return false;
    tb->size = e->tr.revival.reviving->size;
    tb->icount = 0; /* of how many instructions QEMU writes down where they begin */
    return true;
}

/* In place of making host code: it is there. */
int tt_revived_size(Engine *e, Block *tb)
{
    *jumps_of(tb) = e->tr.revival.reviving->jumps;
    return (int)e->tr.revival.reviving->code_size;
}
