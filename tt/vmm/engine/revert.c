/*
 * Going back in time: RAM becomes what it was without being copied.
 *
 * tt_revert names the pages that may differ from the past that is wanted and
 * marks them stale.  A stale page is fetched, through a callback, when anything
 * first looks at it: a page walk, a fill of the TLB, a device.  So going back
 * costs what is looked at next, not what has changed since.
 *
 * A stale page is never dirty, the TLB never holds it, and the digest of RAM is
 * already that of the past; only its own entry in page_hash waits for the fetch.
 */
#include <string.h>

#include "core.h"

/* `changed` has a bit for each page, lowest first.  Pages stored to since the last
 * tt_take_changes are stale as well; what changed before it must be in `changed`. */
void tt_revert(Engine *e, const uint8_t *changed, const uint64_t digest[2])
{
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++) {
        Page *p = &e->pages[i];
        p->flips = 0; /* those of another time tell nothing of this one */
        if (!((changed[i / 8] >> (i % 8)) & 1) && !p->dirty)
            continue;
        e->stale_count += !(p->marks & STALE);
        p->marks |= STALE;
        p->dirty = 0;
    }
    e->digest[0] = digest[0];
    e->digest[1] = digest[1];
    tt_flush_tlb(e);
}

static void fetch_page(Engine *e, uint64_t number)
{
    uint8_t content[PAGE_SIZE], *page = e->ram + number * PAGE_SIZE;
    Page *p = &e->pages[number];

    if (!e->calls.fetch_page(e->self, number, content))
        return;
    p->marks &= ~STALE;
    e->stale_count--;
    if (memcmp(page, content, PAGE_SIZE)) {
        if (p->cls == CLASS_X) /* blocks were made of what it held */
            tt_inside.tb_invalidate_page_range(e->uc, number * PAGE_SIZE, (number + 1) * PAGE_SIZE);
        memcpy(page, content, PAGE_SIZE);
    }
    tt_hash_page(page, number, &e->page_hash[2 * number]);
}

void tt_fetch(Engine *e, uint64_t paddr, uint64_t size)
{
    uint64_t last = paddr + size - 1;
    for (uint64_t i = paddr / PAGE_SIZE; size && i <= last / PAGE_SIZE && i < e->ram_size / PAGE_SIZE; i++)
        if (e->pages[i].marks & STALE)
            fetch_page(e, i);
}

uint64_t tt_count_changes(const Engine *e)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++)
        count += (e->pages[i].dirty & DIRTY_CHECKPOINT) != 0;
    return count;
}

/* The pages stored to since the last time, and what they hold; the digest counts them in. */
void tt_take_changes(Engine *e, uint32_t *pages, uint8_t *contents)
{
    tt_digest_update(e);
    for (uint64_t i = 0; i < e->ram_size / PAGE_SIZE; i++) {
        if (!(e->pages[i].dirty & DIRTY_CHECKPOINT))
            continue;
        e->pages[i].dirty = 0;
        *pages++ = i;
        memcpy(contents, e->ram + i * PAGE_SIZE, PAGE_SIZE);
        contents += PAGE_SIZE;
    }
}
