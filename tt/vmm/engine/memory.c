/*
 * A machine's memory: its pages as bytes, and as a list of those that changed.
 */
#include <string.h>
#include <sys/mman.h>

#include "core.h"

/* ---- pages ---------------------------------------------------------------- */

/* Zeros that take no memory before they are written to, or NULL. */
void *tt_zeros(uint64_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void give_back(void *at, uint64_t size)
{
    if (at)
        munmap(at, size);
}

/* The flags are looked at 32 pages at a time. */
static uint64_t flags_size(const Memory *m)
{
    return (tt_page_count(m) + 31) & ~31ull;
}

/* Make `size` bytes of zeros; false where the host has no room. */
bool tt_memory_open(Memory *m, uint64_t size)
{
    m->size = size;
    m->pool = tt_zeros(size);
    m->flags = tt_zeros(flags_size(m));
    m->hash = tt_zeros(tt_page_count(m) * 16);
    return m->pool && m->flags && m->hash;
}

void tt_memory_close(Memory *m)
{
    give_back(m->pool, m->size);
    give_back(m->flags, flags_size(m));
    give_back(m->hash, tt_page_count(m) * 16);
}

/* The first page from `from` on, before `end`, that has `any` of these flags; `end` if none has. */
uint64_t tt_next_page(const Memory *m, uint64_t from, uint64_t end, uint8_t any)
{
    const uint64_t wanted = 0x0101010101010101ull * any;
    uint64_t words[4];

    while (from < end) {
        if (!(from % 32)) {
            memcpy(words, m->flags + from, 32);
            if (!((words[0] | words[1] | words[2] | words[3]) & wanted)) {
                from += 32;
                continue;
            }
        }
        if (m->flags[from] & any)
            return from;
        from++;
    }
    return end;
}

/* How many pages have `any` of these flags. */
uint64_t tt_count_pages(const Memory *m, uint8_t any)
{
    uint64_t count = 0, end = tt_page_count(m);
    for (uint64_t i = tt_next_page(m, 0, end, any); i < end; i = tt_next_page(m, i + 1, end, any))
        count++;
    return count;
}

/* ---- bytes ---------------------------------------------------------------- */

/* Bytes from `paddr` on that lie on its page, at most `size`. */
static uint64_t on_page(uint64_t paddr, uint64_t size)
{
    uint64_t room = PAGE_SIZE - (paddr & (PAGE_SIZE - 1));
    return size < room ? size : room;
}

/* Copy out what lies at `paddr`; all of it is in RAM. */
void tt_read_ram(Engine *e, uint64_t paddr, void *to, uint64_t size)
{
    tt_fresh(e, paddr, size);
    for (uint64_t piece; size; paddr += piece, size -= piece) {
        piece = on_page(paddr, size);
        memcpy(to, tt_at(&e->mem, paddr), piece);
        to = (uint8_t *)to + piece;
    }
}

/* Copy in, as a device does: watchpoints see it, and code and translations made of what was there go. */
void tt_write_ram(Engine *e, uint64_t paddr, const void *from, uint64_t size)
{
    uint64_t piece;

    if (!size)
        return;
    tt_fresh(e, paddr, size);
    if (unlikely(e->watch_count))
        tt_watch_physical(e, paddr, size, BY_DEVICE);
    for (uint64_t done = 0; done < size; done += piece) {
        piece = on_page(paddr + done, size - done);
        memcpy(tt_at(&e->mem, paddr + done), (const uint8_t *)from + done, piece);
    }
    tt_notify_write(e, paddr, size);
}

/* Copy out what virtual addresses from `addr` on are mapped to, as the supervisor sees them; false where
 * one is not mapped to RAM, and that is `*bad`.  Where `to` is NULL, only look whether they are. */
bool tt_read_virtual(Engine *e, uint64_t addr, uint8_t *to, uint64_t size, uint64_t *bad)
{
    for (uint64_t piece, paddr; size; addr += piece, size -= piece) {
        piece = on_page(addr, size);
        if (!tt_translate(e, addr, &paddr) || paddr >= e->mem.size || piece > e->mem.size - paddr) {
            *bad = addr;
            return false;
        }
        if (to) {
            tt_read_ram(e, paddr, to, piece);
            to += piece;
        }
    }
    return true;
}

/* Make all of RAM what `ram` holds; how many pages differed. */
uint64_t tt_restore_ram(Engine *e, const uint8_t *ram)
{
    uint64_t changed = 0;

    tt_fresh(e, 0, e->mem.size);
    for (uint64_t paddr = 0; paddr < e->mem.size; paddr += PAGE_SIZE) {
        uint8_t *page = tt_at(&e->mem, paddr);
        if (!memcmp(page, ram + paddr, PAGE_SIZE))
            continue;
        memcpy(page, ram + paddr, PAGE_SIZE);
        tt_notify_write(e, paddr, PAGE_SIZE);
        changed++;
    }
    return changed;
}

/* The pages stored to since the last time, and what they hold; the digest counts them in. */
void tt_take_changes(Engine *e, uint32_t *pages, uint8_t *contents)
{
    Memory *m = &e->mem;
    uint64_t end = tt_page_count(m), i = 0;

    tt_digest_update(e);
    for (; (i = tt_next_page(m, i, end, DIRTY_CHECKPOINT)) < end; i++) {
        m->flags[i] &= ~DIRTY_CHECKPOINT;
        *pages++ = i;
        memcpy(contents, tt_at(m, i * PAGE_SIZE), PAGE_SIZE);
        contents += PAGE_SIZE;
    }
}
