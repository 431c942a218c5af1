/*
 * The digest of RAM: 128 bits, kept from dirty pages.
 *
 * digest = sum over pages of H(page number, contents), modulo 2^64 in each of
 * two words; a page of zeros contributes nothing.  So a page that changed costs
 * one subtraction and one addition.  H folds 64x64->128-bit products (the
 * "mum" construction of wyhash, public domain, by Wang Yi): fast and well mixed,
 * not meant to resist someone who forges pages on purpose.
 */
#include <string.h>

#include "core.h"

static inline uint64_t mum(uint64_t a, uint64_t b)
{
    __uint128_t p = (__uint128_t)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

void tt_hash_page(const uint8_t *page, uint64_t number, uint64_t out[2])
{
    uint64_t a = 0x9e3779b97f4a7c15ull ^ number, b = 0xd1b54a32d192ed03ull + number, any = 0;
    for (int i = 0; i < (int)PAGE_SIZE; i += 32) {
        uint64_t w[4];
        memcpy(w, page + i, 32);
        any |= w[0] | w[1] | w[2] | w[3];
        a = mum(w[0] ^ 0xa0761d6478bd642full, w[1] ^ a);
        b = mum(w[2] ^ 0xe7037ed1a0b428dbull, w[3] ^ b);
    }
    out[0] = any ? mum(a ^ 0x8ebc6af09c88c6e3ull, b ^ number) : 0;
    out[1] = any ? mum(a ^ number, b ^ 0x589965cc75374cc3ull) : 0;
}

/* Take the pages stored to since the last time into the digest; false if there were none. */
bool tt_digest_pages(Memory *m)
{
    uint64_t end = tt_page_count(m), first = tt_next_page(m, 0, end, DIRTY_DIGEST);

    for (uint64_t i = first; i < end; i = tt_next_page(m, i + 1, end, DIRTY_DIGEST)) {
        uint64_t *old = &m->hash[2 * i], new[2];
        tt_hash_page(tt_at(m, i * PAGE_SIZE), i, new);
        for (int k = 0; k < 2; k++) {
            m->digest[k] += new[k] - old[k];
            old[k] = new[k];
        }
        m->flags[i] &= ~DIRTY_DIGEST;
    }
    return first < end;
}

void tt_digest_update(Engine *e)
{
    if (tt_digest_pages(&e->mem)) /* stores to these pages must be seen again; no other page may be stored to unseen */
        tt_revoke_stores(e);
}

/* Names for what pages hold, 16 bytes each: two pages of the same number that have the same name hold the
 * same.  `pages` are numbers of 4 bytes, lowest first.  Returns how many are named: `count`, or those before
 * the first that is outside RAM. */
uint64_t tt_page_names(Engine *e, const uint8_t *pages, uint64_t count, uint8_t *names)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t number;
        memcpy(&number, pages + 4 * i, 4);
        if (number >= tt_page_count(&e->mem))
            return i;
        tt_fresh(e, (uint64_t)number * PAGE_SIZE, PAGE_SIZE);
    }
    tt_digest_update(e);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t number;
        memcpy(&number, pages + 4 * i, 4);
        memcpy(names + 16 * i, &e->mem.hash[2 * (uint64_t)number], 16);
    }
    return count;
}

/*
 * The architectural state of the CPU in a fixed form, the same whatever Unicorn's
 * layout: what the digest of a recording is made of (docs/trace-format.md).
 *
 *   u64 x 16  RAX RCX RDX RBX RSP RBP RSI RDI R8-R15
 *   u64 x 2   RIP RFLAGS
 *   10 x { u64 selector, base, limit, flags }   ES CS SS DS FS GS LDTR TR GDTR IDTR
 *   u64 x 4   CR0 CR2 CR3 CR4
 *   u64 x 9   EFER STAR LSTAR CSTAR FMASK KERNEL_GS_BASE SYSENTER_CS SYSENTER_ESP SYSENTER_EIP
 *   u64 x 6   DR0-DR3 DR6 DR7
 *   u64       1 in the shadow of STI or MOV SS
 *   u64 x 4   x87: top of stack, status, control, tags (a byte each, 1 = empty)
 *   10 x 8    x87 registers, physical order
 *   u64       MXCSR
 *   16 x 16   XMM0-XMM15
 */
int tt_architectural_state(Engine *e, uint8_t *out)
{
    const Layout *l = &tt_layout;
    uint8_t *p = out;
    uint64_t tags;

#define U64(value) do { uint64_t v = (value); memcpy(p, &v, 8); p += 8; } while (0)
    for (int i = 0; i < 16; i++)
        U64(REG(e, i));
    U64(EIP(e));
    U64(tt_flags(e));
    for (int i = 0; i < 10; i++) {
        const Segment *s = &SEG(e, i);
        bool is_table = i >= SEG_GDT;
        U64(is_table ? 0 : s->selector);
        U64(s->base);
        U64(s->limit);
        U64(is_table ? 0 : s->flags);
    }
    U64(CR(e, 0));
    U64(CR(e, 2));
    U64(CR(e, 3));
    U64(CR(e, 4));
    U64(EFER(e));
    U64(ENV(e, l->star, uint64_t));
    for (int i = 0; i < 4; i++) /* then KERNEL_GS_BASE */
        U64(ENV(e, l->lstar + 8 * i, uint64_t));
    U64(ENV(e, l->sysenter_cs, uint32_t));
    U64(ENV(e, l->sysenter_esp, uint64_t));
    U64(ENV(e, l->sysenter_eip, uint64_t));
    for (int i = 0; i < 8; i++)
        if (i != 4 && i != 5)
            U64(ENV(e, l->dr + 8 * i, uint64_t));
    U64(HFLAGS(e) & HF_INHIBIT_IRQ ? 1 : 0);
    U64(ENV(e, ENV_FPSTT, uint32_t));
    U64(ENV(e, ENV_FPSTT + 4, uint16_t));
    U64(ENV(e, ENV_FPSTT + 6, uint16_t));
    memcpy(&tags, e->tr.env + ENV_FPSTT + 8, 8);
    U64(tags);
    for (int i = 0; i < 8; i++, p += 10)
        memcpy(p, e->tr.env + ENV_FPREGS + 16 * i, 10);
    U64(ENV(e, l->xmm - 8, uint32_t));
    for (int i = 0; i < 16; i++, p += 16)
        memcpy(p, e->tr.env + l->xmm + 64 * i, 16);
#undef U64
    return (int)(p - out);
}
