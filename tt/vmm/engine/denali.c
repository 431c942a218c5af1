/*
 * The Denali architecture's half of the CPU: a software-loaded TLB, upcalls
 * instead of an interrupt table, virtual instructions.  The guest's side of all
 * this is in docs/denali-machine.md.
 */
#include <string.h>

#include "core.h"

enum { REGISTERS = 0x1000 }; /* physical address of the virtual register page */
enum {
    VR_ENABLED = 0x28, VR_EVENT_HANDLER = 0x30, VR_EXCEPTION_HANDLER = 0x38,
    VR_EVENT = 0x100, VR_EVENT_MASK = 0x120,
    VR_EXCEPTION = 0x140, VR_VECTOR = 0x160, VR_ERROR = 0x168, VR_ADDR = 0x170, VR_ACTIVE = 0x178,
};
enum { V_RETURN_EVENT = 2, V_RETURN_EXCEPTION, V_TLB_LOAD, V_TLB_FLUSH, V_TLB_ENABLE };
enum { SOFT_WIRED = 8 };

static uint64_t get(Engine *e, int reg)
{
    uint64_t v;
    tt_read_ram(e, REGISTERS + reg, &v, 8);
    return v;
}

static void put(Engine *e, int reg, uint64_t v)
{
    tt_fresh(e, REGISTERS, PAGE_SIZE);
    if (unlikely(e->watch_count))
        tt_watch_physical(e, REGISTERS + reg, 8, e->retired ? BY_INSTRUCTION : BY_DELIVERY);
    memcpy(tt_at(&e->mem, REGISTERS) + reg, &v, 8);
    tt_notify_write(e, REGISTERS + reg, 8);
}

/* Frames hold rip, rflags, rsp, rax. */
static void save_frame(Engine *e, int frame)
{
    put(e, frame, EIP(e));
    put(e, frame + 8, tt_flags(e));
    put(e, frame + 16, REG(e, RSP));
    put(e, frame + 24, REG(e, RAX));
}

static void load_frame(Engine *e, int frame)
{
    uint64_t flags = get(e, frame + 8) & (FLAGS_ARITH | FLAG_DF | FLAG_TF);
    EIP(e) = get(e, frame);
    tt_set_flags(e, flags);
    REG(e, RSP) = get(e, frame + 16);
    REG(e, RAX) = get(e, frame + 24);
}

bool tt_soft_lookup(Engine *e, uint64_t addr, uint64_t *paddr, int *rights)
{
    uint64_t vpage = (addr & PAGE_MASK) | 1;
    SoftEntry *set;

    *paddr = addr;
    *rights = RIGHT_R | RIGHT_W | RIGHT_X;
    if (!e->cpu.soft_tlb)
        return true;
    set = e->cpu.soft[(addr / PAGE_SIZE) % SOFT_SETS];
    for (int i = 0; i < SOFT_WAYS; i++) {
        if (set[i].vpage == vpage) {
            *paddr = (set[i].ppage & PAGE_MASK) | (addr & (PAGE_SIZE - 1));
            *rights = set[i].ppage & 7;
            return true;
        }
    }
    *rights = 0;
    return false;
}

static uint64_t soft_load(Engine *e, uint64_t vaddr, uint64_t paddr, uint64_t rights)
{
    uint64_t index = (vaddr / PAGE_SIZE) % SOFT_SETS;
    SoftEntry *set = e->cpu.soft[index], *victim = NULL;

    if ((vaddr | paddr) & (PAGE_SIZE - 1) || rights & ~15ull || paddr >= e->mem.size)
        return ~0ull;
    for (int i = 0; i < SOFT_WAYS; i++)
        if (set[i].vpage == (vaddr | 1) || (!victim && !set[i].vpage))
            victim = &set[i];
    for (int i = 0; i < SOFT_WAYS; i++)
        if (set[i].vpage == (vaddr | 1))
            victim = &set[i];
    for (int tries = 0; !victim && tries < SOFT_WAYS; tries++) { /* the oldest that is not wired */
        SoftEntry *oldest = &set[e->cpu.soft_next[index]++ % SOFT_WAYS];
        if (!(oldest->ppage & SOFT_WIRED))
            victim = oldest;
    }
    if (!victim)
        return ~0ull;
    if (victim->vpage)
        tt_flush_tlb(e);
    *victim = (SoftEntry){vaddr | 1, paddr | rights};
    return 0;
}

static uint64_t soft_flush(Engine *e, uint64_t vaddr)
{
    for (int s = 0; s < SOFT_SETS; s++)
        for (int i = 0; i < SOFT_WAYS; i++)
            if (vaddr == ~0ull ? !(e->cpu.soft[s][i].ppage & SOFT_WIRED) : e->cpu.soft[s][i].vpage == ((vaddr & PAGE_MASK) | 1))
                e->cpu.soft[s][i] = (SoftEntry){0, 0};
    tt_flush_tlb(e);
    return 0;
}

/* Hand a batch of events to the guest's handler. */
void tt_denali_upcall(Engine *e, uint64_t mask)
{
    e->entered_at = tt_tick(e);
    save_frame(e, VR_EVENT);
    put(e, VR_EVENT_MASK, mask);
    put(e, VR_ENABLED, 0);
    EIP(e) = get(e, VR_EVENT_HANDLER);
}

/* Deliver an exception; false when the guest cannot take it. */
bool tt_denali_exception(Engine *e, int vector, uint64_t error, uint64_t addr)
{
    if (!get(e, VR_EXCEPTION_HANDLER) || get(e, VR_ACTIVE))
        return false;
    save_frame(e, VR_EXCEPTION);
    put(e, VR_VECTOR, vector);
    put(e, VR_ERROR, error);
    put(e, VR_ADDR, addr);
    put(e, VR_ACTIVE, 1);
    EIP(e) = get(e, VR_EXCEPTION_HANDLER);
    return true;
}

/* Carry out the virtual instruction at RIP; false when there is none. */
bool tt_denali_vmcall(Engine *e)
{
    static const uint8_t vmcall[3] = {0x0f, 0x01, 0xc1};
    uint64_t number = REG(e, RAX);

    for (int i = 0; i < 3; i++) {
        uint64_t paddr;
        uint8_t byte;
        if (!tt_translate(e, EIP(e) + i, &paddr) || paddr >= e->mem.size)
            return false;
        tt_read_ram(e, paddr, &byte, 1);
        if (byte != vmcall[i])
            return false;
    }
    EIP(e) += 3;
    tt_set_tick(e, tt_tick(e) + 1); /* it retires, unlike the invalid instruction that it looks like */
    e->retired = true;
    switch (number) {
    case V_RETURN_EVENT:
        load_frame(e, VR_EVENT);
        put(e, VR_ENABLED, 1);
        break;
    case V_RETURN_EXCEPTION:
        load_frame(e, VR_EXCEPTION);
        put(e, VR_ACTIVE, 0);
        break;
    case V_TLB_LOAD:
        REG(e, RAX) = soft_load(e, REG(e, RDI), REG(e, RSI), REG(e, RDX));
        break;
    case V_TLB_FLUSH:
        REG(e, RAX) = soft_flush(e, REG(e, RDI));
        break;
    case V_TLB_ENABLE:
        e->cpu.soft_tlb = REG(e, RDI) & 1;
        tt_flush_tlb(e);
        REG(e, RAX) = 0;
        break;
    default:
        e->calls.virtual_instruction(e->self, number);
        tt_effort_of_call(e);
    }
    e->retired = false;
    return true;
}
