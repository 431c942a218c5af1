/*
 * The guest's own data breakpoints: DR0 to DR3, as DR7 enables them (Intel SDM volume 3, 17.2).
 *
 * Unicorn has QEMU's functions for them with empty bodies.  So a page with bytes that the guest
 * watches is treated like one that a debugger watches (watch.c), independently of the debugger's
 * own watchpoints: an access that hits is alone in its block, and #DB follows it before anything else
 * does.  What #DB will put into DR6 waits in the CPU's state, because MOV SS and POP SS put the
 * trap off by one instruction, and a machine may be saved between the two.
 *
 * Not here: DR7.GD, which traps MOV to debug registers (QEMU ignores it); breakpoints on code and
 * on ports, which QEMU does by itself.
 */
#include "core.h"

enum { TYPE_WRITE = 1, TYPE_ACCESS = 3, DEBUG_REGISTERS = 4, TRAP_BITS = 4 };

/* Is data breakpoint `i` enabled, and what does it watch? */
static bool own_watch(const Engine *e, int i, uint64_t *addr, uint64_t *size, bool *reads)
{
    static const uint8_t sizes[] = {1, 2, 8, 4};
    uint64_t dr7 = DEBUG_REGISTER(e, 7);
    int type = dr7 >> (16 + 4 * i) & 3;

    if (!(dr7 >> (2 * i) & 3) || (type != TYPE_WRITE && type != TYPE_ACCESS))
        return false;
    *size = sizes[dr7 >> (18 + 4 * i) & 3];
    *addr = DEBUG_REGISTER(e, i) & ~(*size - 1);
    if (!(HFLAGS(e) & HF_LMA))
        *addr = (uint32_t)*addr;
    *reads = type == TYPE_ACCESS;
    return true;
}

/* Does the page hold bytes that the guest watches? */
bool tt_own_page(const Engine *e, uint64_t vpage)
{
    uint64_t addr, size;
    bool reads;

    for (int i = 0; i < DEBUG_REGISTERS; i++)
        if (own_watch(e, i, &addr, &size, &reads) && (addr & PAGE_MASK) == vpage)
            return true;
    return false;
}

/* Which of the guest's breakpoints does an access hit?  Their bits in DR6. */
int tt_own_hits(const Engine *e, uint64_t at, uint64_t length, bool write)
{
    uint64_t addr, size;
    bool reads;
    int bits = 0;

    for (int i = 0; i < DEBUG_REGISTERS; i++)
        if (own_watch(e, i, &addr, &size, &reads) && (write || reads) && at < addr + size && addr < at + length)
            bits |= 1 << i;
    return bits;
}

/* The running instruction, or the CPU on its way into a handler, hit these: #DB follows. */
void tt_own_hit(Engine *e, int bits)
{
    OWN_TRAP(e) = tt_tick(e) << TRAP_BITS | (OWN_TRAP(e) & ((1 << TRAP_BITS) - 1)) | bits;
    tt_reconsider(e);
}

/* An instruction at this tick did not retire: what it hit does not count. */
void tt_own_forget(Engine *e)
{
    if (tt_tick(e) < OWN_TRAP(e) >> TRAP_BITS)
        OWN_TRAP(e) = 0;
}

/* #DB is on its way: DR6 says why. */
void tt_own_tell(Engine *e)
{
    DEBUG_REGISTER(e, 6) |= OWN_TRAP(e) & ((1 << TRAP_BITS) - 1);
    OWN_TRAP(e) = 0;
}

/* Between two instructions, the first of which hit, and did not load SS: raise #DB. */
void tt_own_trap(Engine *e)
{
    CURRENT(e) = 0;
    tt_inside.raise_exception_err_ra(e->tr.env, EXC_DB, 0, 0);
}
