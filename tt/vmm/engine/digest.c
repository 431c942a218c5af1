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

static void hash_page(const uint8_t *page, uint64_t number, uint64_t out[2])
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

void tt_digest_update(Engine *e)
{
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++) {
        uint64_t *old = &e->page_hash[2 * i], new[2];
        if (!(e->pages[i].dirty & DIRTY_DIGEST))
            continue;
        hash_page(e->ram + i * PAGE_SIZE, i, new);
        for (int k = 0; k < 2; k++) {
            e->digest[k] += new[k] - old[k];
            old[k] = new[k];
        }
        e->pages[i].dirty &= ~DIRTY_DIGEST;
    }
    /* Stores to these pages must be seen again: take all store rights back. */
    tt_flush_tlb(e);
}
