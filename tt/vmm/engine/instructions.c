/*
 * Instructions that Unicorn leaves to its user: system calls, CPUID, the time-stamp
 * counter, port I/O; and addresses where there is nothing.
 */
#include <string.h>

#include "core.h"

enum { ACCESSED = 1 << 8, PRESENT = 1 << 15, IS_CODE_DATA = 1 << 12, BIG = 1 << 22, LONG_CODE = 1 << 21, GRANULAR = 1 << 23 };

/* CS and SS as SYSCALL and SYSENTER load them: flat, from a selector only. */
static void flat_segments(Engine *e, uint32_t selector, int cs_size)
{
    uint32_t common = ACCESSED | IS_CODE_DATA | PRESENT | GRANULAR;
    SEG(e, SEG_CS) = (Segment){selector & 0xfffc, 0, 0xffffffff, common | 0xa << 8 | cs_size};
    SEG(e, SEG_SS) = (Segment){(selector & 0xfffc) + 8, 0, 0xffffffff, common | 0x2 << 8 | BIG};
    tt_update_hflags(e);
}

/* ---- system calls (AMD APM volume 3, "SYSCALL"; Intel SDM volume 2, "SYSENTER") ---- */

/* Stop if this system call is to be caught, with the state as it is before the instruction. */
static void catch_call(Engine *e)
{
    uint64_t tick = tt_tick(e);
    uint32_t current = CURRENT(e);

    tt_settle(e);
    tt_catch(e, true, REG(e, RAX), true);
    e->aborted -= tick != tt_tick(e);
    tt_set_tick(e, tick);
    CURRENT(e) = current;
}

static void on_syscall(uc_engine *uc, void *user)
{
    Engine *e = user;
    bool from64 = HFLAGS(e) & HF_CS64;
    uint32_t selector = ENV(e, tt_layout.star, uint64_t) >> 32;
    uint64_t flags;
    (void)uc;

    if (unlikely(e->catches.any))
        catch_call(e);
    if (!(EFER(e) & EFER_SCE))
        tt_inside.raise_exception_err_ra(e->tr.env, EXC_UD, 0, 0);
    flags = tt_flags(e);
    if (HFLAGS(e) & HF_LMA) {
        REG(e, RCX) = EIP(e) + 2;
        REG(e, 11) = flags & ~(uint64_t)FLAG_RF;
        tt_set_flags(e, flags & ~ENV(e, tt_layout.fmask, uint64_t) & ~(uint64_t)FLAG_RF);
        flat_segments(e, selector, LONG_CODE);
        EIP(e) = from64 ? ENV(e, tt_layout.lstar, uint64_t) : ENV(e, tt_layout.cstar, uint64_t);
    } else {
        REG(e, RCX) = (uint32_t)(EIP(e) + 2);
        tt_set_flags(e, flags & ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM));
        flat_segments(e, selector, BIG);
        EIP(e) = (uint32_t)ENV(e, tt_layout.star, uint64_t);
    }
    tt_next_block(e);
}

static void on_sysenter(uc_engine *uc, void *user)
{
    Engine *e = user;
    uint32_t selector = ENV(e, tt_layout.sysenter_cs, uint32_t);
    (void)uc;

    if (unlikely(e->catches.any))
        catch_call(e);
    if (!(selector & 0xfffc))
        tt_inside.raise_exception_err_ra(e->tr.env, EXC_GP, 0, 0);
    tt_set_flags(e, tt_flags(e) & ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF));
    flat_segments(e, selector, HFLAGS(e) & HF_LMA ? LONG_CODE : BIG);
    REG(e, RSP) = ENV(e, tt_layout.sysenter_esp, uint64_t);
    EIP(e) = ENV(e, tt_layout.sysenter_eip, uint64_t);
    tt_next_block(e);
}

/* ---- CPUID and the time-stamp counter ----------------------------------- */

static int on_cpuid(uc_engine *uc, void *user)
{
    Engine *e = user;
    uint32_t leaf = REG(e, RAX), subleaf = REG(e, RCX);
    const CpuidLeaf *found = &(CpuidLeaf){0};
    (void)uc;

    for (int i = 0; i < e->cpu.cpuid_count; i++)
        if (e->cpu.cpuid[i].leaf == leaf && (e->cpu.cpuid[i].subleaf == ~0u || e->cpu.cpuid[i].subleaf == subleaf))
            found = &e->cpu.cpuid[i];
    REG(e, RAX) = found->eax;
    REG(e, RBX) = found->ebx;
    REG(e, RCX) = found->ecx;
    REG(e, RDX) = found->edx;
    if (found->leaf == 1 && !(CR(e, 4) & 1 << 18))
        REG(e, RCX) &= ~(1u << 27); /* OSXSAVE mirrors CR4 */
    return 1;
}

static int on_rdtsc(uc_engine *uc, void *user)
{
    Engine *e = user;
    Block *tb = tt_running_block(e);
    uint64_t now = tt_tick(e) - tb->icount + tt_index_in_block(e, tb), tsc;
    (void)uc;

    if (e->cpu.host_tsc) {
        uint64_t end = tt_tick(e);
        uint32_t current = CURRENT(e);
        tt_set_tick(e, now);
        CURRENT(e) = 0;
        tsc = e->calls.tsc(e->self);
        if (unlikely(e->failed)) { /* as if it had not begun */
            e->aborted++;
            tt_leave(e, R_CALLBACK);
        }
        tt_set_tick(e, end);
        CURRENT(e) = current;
        tt_effort_of_call(e);
    } else {
        tsc = now * e->cpu.period_ns + e->cpu.idle_ns;
    }
    REG(e, RAX) = (uint32_t)tsc;
    REG(e, RDX) = tsc >> 32;
    return 1;
}

static int on_rdtscp(uc_engine *uc, void *user)
{
    on_rdtsc(uc, user);
    REG((Engine *)user, RCX) = 0;
    return 1;
}

/* ---- port I/O ----------------------------------------------------------- */

/* A device access is the last instruction of its block, so that its interrupt is
 * taken right after it: if it is not, end the block before it and come back.
 * Returns with the tick before the access; the caller adds the access. */
static void begin_access(Engine *e, uint32_t port, int size)
{
    Block *tb = tt_running_block(e);

    if (((HFLAGS(e) & HF_PE) && (HFLAGS(e) & HF_CPL) > ((EFLAGS(e) >> 12) & 3)) || (HFLAGS(e) & HF_VM))
        tt_inside.check_io[size >> 1](e->tr.env, port);
    if (e->cpu.denali)
        tt_inside.raise_exception_err_ra(e->tr.env, EXC_GP, 0, 0);
    if (tb->icount != 1) {
        e->io_exits++;
        tt_repeat_alone(e, 0); /* Unicorn has restored the state already */
    }
    tt_set_tick(e, tt_tick(e) - 1);
}

static uint32_t on_in(uc_engine *uc, uint32_t port, int size, void *user)
{
    Engine *e = user;
    uint32_t value, current = CURRENT(e);
    (void)uc;

    begin_access(e, port, size);
    CURRENT(e) = 0;
    value = e->calls.port_read(e->self, port, size);
    CURRENT(e) = current;
    tt_set_tick(e, tt_tick(e) + 1);
    tt_reconsider(e);
    tt_effort_of_call(e);
    return value;
}

static void on_out(uc_engine *uc, uint32_t port, int size, uint32_t value, void *user)
{
    Engine *e = user;
    uint32_t current = CURRENT(e);
    (void)uc;

    begin_access(e, port, size);
    CURRENT(e) = 0;
    e->calls.port_write(e->self, port, size, value);
    CURRENT(e) = current;
    tt_set_tick(e, tt_tick(e) + 1);
    tt_reconsider(e);
    tt_effort_of_call(e);
}

/* Guest-physical addresses with nothing behind them: a floating bus. */
static uint64_t void_read(uc_engine *uc, uint64_t offset, unsigned size, void *user)
{
    (void)uc, (void)offset, (void)size, (void)user;
    return ~0ull;
}

static void void_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user)
{
    (void)uc, (void)offset, (void)size, (void)value, (void)user;
}

bool tt_hook_instructions(Engine *e)
{
    static const struct { int instruction; void *hook; } hooks[] = {
        {UC_X86_INS_IN, on_in},           {UC_X86_INS_OUT, on_out},     {UC_X86_INS_SYSCALL, on_syscall},
        {UC_X86_INS_SYSENTER, on_sysenter}, {UC_X86_INS_CPUID, on_cpuid}, {UC_X86_INS_RDTSC, on_rdtsc},
        {UC_X86_INS_RDTSCP, on_rdtscp},
    };
    uc_hook h;

    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++)
        if (uc_hook_add(e->tr.uc, &h, UC_HOOK_INSN, hooks[i].hook, e, 1, 0, hooks[i].instruction))
            return false;
    return uc_mmio_map(e->tr.uc, VOID_ADDR, PAGE_SIZE, void_read, NULL, void_write, NULL) == UC_ERR_OK
           && tt_hook_devices(e);
}
