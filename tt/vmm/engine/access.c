/*
 * Loads and stores that the engine handles one by one, and devices that lie in memory.
 *
 * A page with a device on it, or with watched bytes, gets TLB entries that are good for one access
 * (mmu.c), so translated code calls QEMU's slow path for each.  There, an access that is not
 * aligned is taken apart: a load reads two wider, aligned ones, a store writes bytes.  A device
 * must see neither.  So the calls of translated code come here first, where the access is known as
 * the instruction makes it.  Of accesses that QEMU makes inside its own functions (FXSAVE, say, or
 * the CPU on its way into a handler) the first request to the TLB tells address and size.
 *
 * The parts of a load are then cut from what the device answered once, for the bytes on its page;
 * the parts of a store are collected until all of those are there.  Before the first access the
 * instruction is alone in its block, so it is never begun a second time by the engine, its tick is
 * exact, and the interrupt that it causes comes right after it.  If an instruction faults after it
 * has read a device, the read has happened; when the guest repeats it, it reads again, as on hardware.
 */
#include <stdlib.h>
#include <string.h>

#include "mmu.h"

typedef uint64_t Load(void *env, uint64_t addr, uint32_t oi, uintptr_t ra);
typedef void Store(void *env, uint64_t addr, uint64_t value, uint32_t oi, uintptr_t ra);

/* ---- accesses of translated code ---------------------------------------- */

static bool is_careful(const Engine *e, const void *env)
{
    return e && e->tr.env == env && (e->watch_count || e->device_count || tt_own_watches(e));
}

/* If an access reaches onto a second page that is not there, it faults before anything is done. */
static void check_second_page(Engine *e, uint64_t addr, int size, int rw, uint32_t oi, uintptr_t ra)
{
    uint64_t second = (addr + size - 1) & PAGE_MASK;
    int mode = oi & 15;

    if (!e->device_count || (addr & PAGE_MASK) == second || e->cpu.denali || tt_walk(e, addr, rw, mode, false).vector)
        return;
    if (tt_walk(e, second, rw, mode, false).vector)
        tt_fill(e->tr.cpu, second, (int)(addr + size - second), rw, mode, false, ra);
}

static void begin(Engine *e, uint64_t addr, int size, int rw, uint32_t oi, uintptr_t ra)
{
    e->access = (Access){.addr = addr, .size = size, .rw = rw, .ra = ra, .exact = true};
    check_second_page(e, addr, size, rw, oi, ra);
}

#define LOAD_HELPER(size, number)                                                  \
    static uint64_t load##size(void *env, uint64_t addr, uint32_t oi, uintptr_t ra) \
    {                                                                              \
        Engine *e = tt_current;                                                    \
        if (likely(!is_careful(e, env)))                                           \
            return ((Load *)tt_inside.load[number])(env, addr, oi, ra);            \
        begin(e, addr, size, LOAD, oi, ra);                                        \
        uint64_t value = ((Load *)tt_inside.load[number])(env, addr, oi, ra);      \
        e->access.ra = 0;                                                          \
        return value;                                                              \
    }
#define STORE_HELPER(size, number)                                                                  \
    static void store##size(void *env, uint64_t addr, uint64_t value, uint32_t oi, uintptr_t ra)     \
    {                                                                                               \
        Engine *e = tt_current;                                                                     \
        if (likely(!is_careful(e, env))) {                                                          \
            ((Store *)tt_inside.store[number])(env, addr, value, oi, ra);                           \
            return;                                                                                 \
        }                                                                                           \
        begin(e, addr, size, STORE, oi, ra);                                                        \
        ((Store *)tt_inside.store[number])(env, addr, value, oi, ra);                               \
        e->access.ra = 0;                                                                           \
    }
LOAD_HELPER(1, 0)
LOAD_HELPER(2, 1)
LOAD_HELPER(4, 2)
LOAD_HELPER(8, 3)
STORE_HELPER(1, 0)
STORE_HELPER(2, 1)
STORE_HELPER(4, 2)
STORE_HELPER(8, 3)

void *const tt_loads[4] = {load1, load2, load4, load8};
void *const tt_stores[4] = {store1, store2, store4, store8};

/* ---- accesses from inside QEMU -------------------------------------------- */

/* Is this request to the TLB part of the access under way? */
static bool is_part(Access *a, uint64_t addr, int size, int rw, uintptr_t ra)
{
    uint64_t aligned = a->addr & ~(uint64_t)(a->size - 1);

    if (a->ra != ra || a->rw != rw)
        return false;
    if (a->exact)
        return ra != 0;
    if (a->addr == aligned)
        return false;
    if (rw == STORE) /* a byte, or the look at the page of the byte behind */
        return (size == 1 && a->size > 1 && addr - a->addr < (uint64_t)a->size)
               || (addr == ((a->addr + a->size) & PAGE_MASK) && (uint64_t)size == ((a->addr + a->size) & (PAGE_SIZE - 1)));
    for (int i = 0; i < 2; i++) {
        if (size == a->size && addr == aligned + i * a->size && !(a->seen & 1 << i)) {
            a->seen |= 1 << i;
            return true;
        }
    }
    return false;
}

/* The TLB is asked for a page of which each access counts: note the access, return which of its bytes lie there. */
uint64_t tt_part_on_page(Engine *e, uint64_t addr, int size, int rw, uintptr_t ra, int *length)
{
    Access *a = &e->access;
    uint64_t page = addr & PAGE_MASK, start, end;

    if (!is_part(a, addr, size, rw, ra)) {
        size = size < 1 ? 1 : size > (int)sizeof a->bytes ? (int)sizeof a->bytes : size;
        *a = (Access){.addr = addr, .size = size, .rw = rw, .ra = ra};
    }
    start = a->addr > page ? a->addr : page;
    end = a->addr + a->size < page + PAGE_SIZE ? a->addr + a->size : page + PAGE_SIZE;
    *length = (int)(end - start);
    return start;
}

/* ---- devices -------------------------------------------------------------- */

/* Replace all addresses at which devices answer; false: out of memory. */
bool tt_set_devices(Engine *e, const Span *spans, int count)
{
    Span *copy = malloc(sizeof *copy * (count + 1));
    if (!copy)
        return false;
    memcpy(copy, spans, sizeof *copy * count);
    free(e->devices);
    e->devices = copy;
    e->device_count = count;
    tt_flush_tlb(e);
    return true;
}

bool tt_is_device(const Engine *e, uint64_t ppage)
{
    for (int i = 0; i < e->device_count; i++)
        if (e->devices[i].addr < ppage + PAGE_SIZE && ppage < e->devices[i].addr + e->devices[i].size)
            return true;
    return false;
}

/* The running block is about to reach a device: its instruction must be alone.  A load must be in a
 * block that QEMU made for one instruction: otherwise a store of the same instruction to the block's
 * own page makes QEMU begin the instruction anew. */
void tt_alone_for_device(Engine *e, int rw, uintptr_t ra)
{
    Block *tb = ra && CURRENT(e) ? tt_inside.tb_lookup(e->tr.tcg_ctx, ra) : NULL;

    if (!tb || (rw == LOAD ? (tb->cflags & CF_COUNT) == 1 : tb->icount == 1))
        return;
    e->io_exits++;
    tt_repeat_alone(e, ra);
}

/* Call a device, at the tick before the instruction. */
static uint64_t call(Engine *e, uint64_t paddr, int size, int rw, uint64_t value)
{
    uint32_t current = CURRENT(e);
    bool counts = current && tt_running_block(e)->icount == 1;

    if (e->failed)
        return ~0ull;
    tt_set_tick(e, tt_tick(e) - counts);
    CURRENT(e) = 0;
    if (rw == LOAD)
        value = e->calls.memory_read(e->self, paddr, size);
    else
        e->calls.memory_write(e->self, paddr, size, value);
    CURRENT(e) = current;
    tt_set_tick(e, tt_tick(e) + counts);
    tt_reconsider(e);
    tt_effort_of_call(e);
    return value;
}

/* What QEMU reads and writes at DEVICE_ADDR: parts of the access under way, on the page asked for last. */
static uint64_t device_read(uc_engine *uc, uint64_t offset, unsigned size, void *user)
{
    Engine *e = user;
    Access *a = &e->access;
    uint64_t value = 0, at = e->device_vpage + offset;
    (void)uc;

    if (a->answered != (e->device_vpage | 1)) {
        value = call(e, e->device_page | (e->part_start & (PAGE_SIZE - 1)), e->part_length, LOAD, 0);
        memcpy(a->bytes + (e->part_start - a->addr), &value, e->part_length);
        a->answered = e->device_vpage | 1;
        value = 0;
    }
    for (unsigned i = 0; i < size; i++)
        if (at + i - e->part_start < (uint64_t)e->part_length)
            value |= (uint64_t)a->bytes[at + i - a->addr] << 8 * i;
    return value;
}

static void device_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t data, void *user)
{
    Engine *e = user;
    Access *a = &e->access;
    uint64_t value = 0, at = e->device_vpage + offset;
    (void)uc;

    for (unsigned i = 0; i < size; i++)
        if (at + i - e->part_start < (uint64_t)e->part_length)
            a->bytes[at + i - a->addr] = data >> 8 * i;
    if (at + size < e->part_start + e->part_length)
        return;
    memcpy(&value, a->bytes + (e->part_start - a->addr), e->part_length);
    call(e, e->device_page | (e->part_start & (PAGE_SIZE - 1)), e->part_length, STORE, value);
}

bool tt_hook_devices(Engine *e)
{
    return uc_mmio_map(e->tr.uc, DEVICE_ADDR, PAGE_SIZE, device_read, e, device_write, e) == UC_ERR_OK;
}
