/*
 * The CPU's life: ticks, stopping exactly, interrupts, system calls, port I/O.
 *
 * Ticks.  Each translated block begins with Unicorn's two calls, "block hook"
 * and "shall I stop?".  They are overwritten, once, with
 *
 *     sub  qword [env+left], icount       48 81 ad left icount
 *     mov  dword [env+current], id        c7 85 current id
 *     jns  end                            79 rel8
 *     mov  rdi, env                       48 89 ef
 *     mov  rax, block_slow                48 b8 address
 *     call rax                            ff d0
 *     jmp  end                            eb rel8
 *   end:
 *
 * so a block costs three instructions.  `tick = horizon - left` is the count at
 * the end of the running block.  When the horizon lies inside the block,
 * block_slow() is called before it runs: it stops, delivers an interrupt, or
 * cuts the block so that it ends exactly at the horizon.  A block that is left
 * early (fault, device access, code that rewrites itself) is settled from the
 * table that QEMU keeps to find a faulting instruction.
 */
#include <stdio.h>
#include <string.h>

#include "core.h"

/* ---- ticks -------------------------------------------------------------- */

uint64_t tt_tick(const Engine *e)
{
    return e->horizon - (uint64_t)LEFT(e);
}

void tt_set_tick(Engine *e, uint64_t tick)
{
    LEFT(e) = (int64_t)(e->horizon - tick);
}

void tt_set_horizon(Engine *e, uint64_t horizon)
{
    uint64_t tick = tt_tick(e);
    e->horizon = horizon;
    tt_set_tick(e, tick);
}

/* Something that may want attention changed: move the horizon. */
void tt_reconsider(Engine *e)
{
    uint64_t next = e->stop < e->limit ? e->stop : e->limit, now = tt_tick(e);
    tt_set_horizon(e, e->intr || e->failed || next < now ? now : next);
}

/* This run has taken long enough: end it after the next instruction that retires.
 * Not before: between a fault at this tick and its handler's first instruction
 * the tick is the same but the state is not that in which run(tick) stops. */
void tt_tired(Engine *e)
{
    uint64_t next = tt_tick(e) + 1;
    if (e->stop > next)
        e->stop = next;
    tt_reconsider(e);
}

static Block *block_of(const Engine *e)
{
    /* A block's description lies at a fixed distance before its code. */
    static ptrdiff_t distance;
    uint8_t *code = e->code_base + CURRENT(e) - 1;
    if (unlikely(!distance))
        distance = code - (uint8_t *)tt_inside.tb_lookup(e->tcg_ctx, (uintptr_t)code + 1);
    return (Block *)(code - distance);
}

static int64_t sleb128(const uint8_t **p)
{
    int64_t value = 0;
    int shift = 0;
    uint8_t byte;
    do {
        byte = *(*p)++;
        value |= (int64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (shift < 64 && (byte & 0x40))
        value |= -((int64_t)1 << shift);
    return value;
}

/* Which instruction of the block is at RIP?  Its length if none: all have retired. */
static int index_in_block(const Engine *e, const Block *tb)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc, want = EIP(e) + tb->cs_base;
    for (int i = 0; i < tb->icount; i++) {
        pc += sleb128(&p);
        if (pc == want)
            return i;
        sleb128(&p); /* cc_op */
        sleb128(&p); /* host code offset */
    }
    return tb->icount;
}

/* RIP of a block's last instruction. */
static uint64_t last_in_block(const Block *tb)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        pc += sleb128(&p);
        sleb128(&p); /* cc_op */
        sleb128(&p); /* host code offset */
    }
    return pc - tb->cs_base;
}

/* The running block ends here, before the instruction at RIP. */
void tt_settle(Engine *e)
{
    if (!CURRENT(e))
        return;
    Block *tb = block_of(e);
    int retired = index_in_block(e, tb);
    LEFT(e) += tb->icount - retired;
    CURRENT(e) = 0;
    e->aborted += retired < tb->icount;
}

static __attribute__((noreturn)) void leave(Engine *e, enum Reason reason)
{
    e->reason = reason;
    CURRENT(e) = 0;
    CPU32(e, tt_layout.cpu_exception_index) = EXC_HLT;
    tt_inside.cpu_loop_exit(e->cpu);
}

static __attribute__((noreturn)) void next_block(Engine *e)
{
    CURRENT(e) = 0;
    tt_inside.cpu_loop_exit(e->cpu);
}

/* A guest can arrange that the CPU enters handlers for ever and executes nothing (a
 * handler whose first instruction faults, on an IST stack).  No tick would pass, and
 * nothing could stop it: end the machine.  The count is part of the CPU's state, so
 * that the end does not depend on where the machine was stopped or restored. */
static void count_entry(Engine *e)
{
    enum { ENTRIES_ALLOWED = 10000 };
    uint64_t now = tt_tick(e);

    if (ENTRY_TICK(e) != now) {
        ENTRY_TICK(e) = now;
        ENTRY_COUNT(e) = 0;
    }
    if (unlikely(++ENTRY_COUNT(e) > ENTRIES_ALLOWED)) {
        snprintf(e->error, sizeof e->error, "%d exceptions in a row and not one instruction executed, at rip %#llx",
                 ENTRIES_ALLOWED, (unsigned long long)EIP(e));
        leave(e, R_SHUTDOWN);
    }
}

/* QEMU clears RF where a block ends, which must not be where we happened to cut it. */
static bool one_by_one(const Block *tb)
{
    return (tb->flags & FLAG_RF) && tb->icount > 1;
}

/* Which instruction of the block has a breakpoint?  Its length if none. */
static int first_break(const Engine *e, const Block *tb, bool not_the_first)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        pc += sleb128(&p);
        if (!(i == 0 && not_the_first) && tt_is_break(e, pc))
            return i;
        sleb128(&p); /* cc_op */
        sleb128(&p); /* host code offset */
    }
    return tb->icount;
}

/* The running block would pass the horizon.  It has not run yet. */
static void block_slow(uint8_t *env)
{
    Engine *e = tt_current;
    Block *tb = block_of(e);
    uint64_t now = tt_tick(e) - tb->icount, next = e->stop < e->limit ? e->stop : e->limit;
    (void)env;

    e->slow_blocks++;
    if (e->failed || now >= next || (e->intr && (EFLAGS(e) & FLAG_IF) && !(HFLAGS(e) & HF_INHIBIT_IRQ))) {
        tt_set_tick(e, now);
        EIP(e) = tb->pc - tb->cs_base;
        CURRENT(e) = 0;
        if (e->failed)
            leave(e, R_CALLBACK);
        if (now >= next)
            leave(e, e->hit.size ? R_WATCH : R_STOP);
        int vector = e->calls.acknowledge(e->self);
        if (vector >= 0) {
            count_entry(e);
            tt_inside.do_interrupt_hard(e->env, vector, 1);
        }
        tt_reconsider(e);
        next_block(e);
    }
    if (unlikely(e->break_count)) {
        int at = first_break(e, tb, now == e->no_break_at);
        if (at == 0) {
            tt_set_tick(e, now);
            EIP(e) = tb->pc - tb->cs_base;
            leave(e, R_BREAK);
        }
        if (now + at < next)
            next = now + at;
    }
    if (now + tb->icount > next || one_by_one(tb)) { /* cut the block */
        tt_set_tick(e, now);
        tt_set_horizon(e, next);
        EIP(e) = tb->pc - tb->cs_base;
        CPU32(e, tt_layout.cpu_cflags_next_tb) = one_by_one(tb) ? 1 : (int32_t)(next - now);
        next_block(e);
    }
    tt_set_horizon(e, e->intr ? now : next);
}

/* Unicorn's block hook: runs only in blocks that could not be patched. */
static void on_block(uc_engine *uc, uint64_t pc, uint32_t size, void *user)
{
    Engine *e = user;
    Block *tb = tt_inside.tb_lookup(e->tcg_ctx, (uintptr_t)__builtin_return_address(0));
    (void)uc, (void)pc, (void)size;

    if (!tt_current)
        return;
    LEFT(e) -= tb->icount;
    CURRENT(e) = (uint32_t)(tb->code - e->code_base) + 1;
    if (LEFT(e) < 0 || one_by_one(tb) || tt_block_has_break(e, tb))
        block_slow(e->env);
}

/* Length of one of the few instructions that a block's two calls are made of; 0: another. */
static int prologue_instruction(const uint8_t *p, bool *is_call)
{
    int rex = (*p & 0xf0) == 0x40, wide = rex && (*p & 8);
    const uint8_t *op = p + rex;

    *is_call = *p == 0xe8 || (p[0] == 0xff && p[1] == 0x15);
    if (*is_call)
        return *p == 0xe8 ? 5 : 6;
    if ((*op & 0xf8) == 0xb8) /* mov reg, imm */
        return rex + 1 + (wide ? 8 : 4);
    if (*op == 0xc7 && (op[1] & 0xf8) == 0xc0) /* mov reg, simm32 */
        return rex + 6;
    if (*op == 0x33 && (op[1] & 0xc0) == 0xc0) /* xor reg, reg */
        return rex + 2;
    if (*op == 0x8d && (op[1] & 0xc7) == 0x05) /* lea reg, [rip+disp] */
        return rex + 6;
    if (wide && (op[1] & 0xc7) == 0x85 && op[2] == ENV_EIP && !op[3] && !op[4] && !op[5]) {
        if (*op == 0xc7) /* mov [rbp+eip], simm32 */
            return rex + 10;
        if (*op == 0x89) /* mov [rbp+eip], reg */
            return rex + 6;
    }
    return 0;
}

void tt_patch_block(Engine *e, Block *tb)
{
    uint8_t *code = tb->code, *p = code, patch[64], *q = patch;
    uint32_t words[4] = {tt_layout.left, tb->icount, tt_layout.current, (uint32_t)(code - e->code_base) + 1};
    void *slow = (void *)block_slow;
    int calls = 0;

    e->blocks_made++;
    tt_effort(e, EFFORT_BLOCK);
    while (calls < 2) {
        bool is_call;
        int n = prologue_instruction(p, &is_call);
        if (!n)
            break;
        p += n;
        calls += is_call;
    }
    ptrdiff_t end = p - code;
    if (calls < 2 || end < 40 || end > 127) {
        e->blocks_unpatched++;
        return;
    }
#define PUT(bytes, size) (memcpy(q, bytes, size), q += (size))
    if (e->double_bookkeeping && end >= 61) { /* for a benchmark: what does it cost? */
        PUT("\x48\x81\xad", 3);
        PUT(words, 4);
        PUT("\0\0\0\0\xc7\x85", 6);
        PUT(words + 2, 8);
    }
    PUT("\x48\x81\xad", 3);
    PUT(words, 8);
    PUT("\xc7\x85", 2);
    PUT(words + 2, 8);
    PUT(one_by_one(tb) || tt_block_has_break(e, tb) ? "\xa8" : "\x79", 1); /* "test al, rel8" falls through to the call */
    *q = (uint8_t)(end - (q + 1 - patch)), q++;
    PUT("\x48\x89\xef\x48\xb8", 5);
    PUT(&slow, 8);
    PUT("\xff\xd0\xeb", 3);
    *q = (uint8_t)(end - (q + 1 - patch)), q++;
#undef PUT
    memcpy(code, patch, q - patch);
}

static void on_code(uc_engine *uc, uint64_t pc, uint32_t size, void *user)
{
    (void)uc, (void)pc, (void)size;
    ((Engine *)user)->counted++;
}

/* ---- flags and segments ------------------------------------------------- */

uint64_t tt_flags(Engine *e)
{
    uint64_t arith = tt_inside.compute_flags(ENV(e, ENV_CC_DST, uint64_t), ENV(e, ENV_CC_SRC, uint64_t),
                                             ENV(e, ENV_CC_SRC2, uint64_t), ENV(e, ENV_CC_OP, int32_t));
    return EFLAGS(e) | arith | (ENV(e, ENV_DF, int32_t) & FLAG_DF);
}

/* QEMU keeps flags as the operation that made them; how depends on where blocks
 * begin.  Put them into the one form that depends on their value alone. */
void tt_canonical_flags(Engine *e)
{
    uint64_t arith = tt_flags(e) & FLAGS_ARITH;
    ENV(e, ENV_CC_SRC, uint64_t) = arith;
    ENV(e, ENV_CC_DST, uint64_t) = ENV(e, ENV_CC_SRC2, uint64_t) = 0;
    ENV(e, ENV_CC_OP, int32_t) = 1; /* CC_OP_EFLAGS */
}

static void set_flags(Engine *e, uint64_t flags)
{
    ENV(e, ENV_CC_SRC, uint64_t) = flags & FLAGS_ARITH;
    ENV(e, ENV_CC_DST, uint64_t) = ENV(e, ENV_CC_SRC2, uint64_t) = 0;
    ENV(e, ENV_CC_OP, int32_t) = 1;
    ENV(e, ENV_DF, int32_t) = flags & FLAG_DF ? -1 : 1;
    EFLAGS(e) = (flags & ~(uint64_t)(FLAGS_ARITH | FLAG_DF)) | 2;
}

/* Derive QEMU's summary of the CPU's mode from the registers. */
void tt_update_hflags(Engine *e)
{
    uint32_t h = HFLAGS(e) & HF_INHIBIT_IRQ, cs = SEG(e, SEG_CS).flags, ss = SEG(e, SEG_SS).flags;

    h |= (ss >> 13) & HF_CPL;
    h |= CR(e, 0) & CR0_PE ? HF_PE : 0;
    h |= (CR(e, 0) << 8) & (7 << 9);                         /* MP EM TS */
    h |= EFLAGS(e) & (FLAG_TF | FLAG_VM | FLAG_RF | 3 << 12); /* and IOPL */
    h |= CR(e, 4) & CR4_OSFXSR ? HF_OSFXSR : 0;
    h |= CR(e, 4) & CR4_SMAP ? HF_SMAP : 0;
    h |= EFER(e) & EFER_LMA ? HF_LMA : 0;
    if ((h & HF_LMA) && (cs & 1 << 21)) {
        h |= HF_CS64 | HF_CS32 | HF_SS32;
    } else {
        h |= cs & 1 << 22 ? HF_CS32 : 0;
        h |= ss & 1 << 22 ? HF_SS32 : 0;
        if (!(h & HF_PE) || (h & HF_VM) || !(h & HF_CS32)
            || SEG(e, SEG_DS).base || SEG(e, SEG_ES).base || SEG(e, SEG_SS).base)
            h |= HF_ADDSEG;
    }
    HFLAGS(e) = h;
}

enum { ACCESSED = 1 << 8, PRESENT = 1 << 15, IS_CODE_DATA = 1 << 12, BIG = 1 << 22, LONG_CODE = 1 << 21, GRANULAR = 1 << 23 };

/* CS and SS as SYSCALL and SYSENTER load them: flat, from a selector only. */
static void flat_segments(Engine *e, uint32_t selector, int cs_size)
{
    uint32_t common = ACCESSED | IS_CODE_DATA | PRESENT | GRANULAR;
    SEG(e, SEG_CS) = (Segment){selector & 0xfffc, 0, 0xffffffff, common | 0xa << 8 | cs_size};
    SEG(e, SEG_SS) = (Segment){(selector & 0xfffc) + 8, 0, 0xffffffff, common | 0x2 << 8 | BIG};
    tt_update_hflags(e);
}

/* ---- state -------------------------------------------------------------- */

/* Parts of env that are no state: two words of ours, QEMU's breakpoint pointers,
 * what it noted of the last exception (dead once delivered, and the address
 * there is that of the block), what lies above 128 bits in SSE registers and one temporary (helpers leave
 * parts of the host's stack there, which no guest without AVX can see). */
static int next_hole(int after, int *size)
{
    const Layout *l = &tt_layout;
    int best = l->state_size;
    const int holes[][2] = {{l->left, 16}, {l->dr + 64, 32}, {l->error_code, 16}, {l->xmm + 32 * 64, 64 + 8}};

    *size = 0;
    for (size_t i = 0; i < sizeof holes / sizeof *holes; i++)
        if (holes[i][0] >= after && holes[i][0] < best)
            best = holes[i][0], *size = holes[i][1];
    for (int i = 0; i < 32; i++) {
        int at = l->xmm + 64 * i + (i < 16 ? 16 : 0);
        if (at >= after && at < best) {
            best = at, *size = i < 16 ? 48 : 64;
            break;
        }
    }
    return best;
}

/* Copy the CPU's state, `state_size` bytes, with zeros in the holes. */
void tt_copy_state(Engine *e, uint8_t *to)
{
    int size;
    tt_canonical_flags(e);
    memcpy(to, e->env, tt_layout.state_size);
    for (int at = next_hole(0, &size); at < tt_layout.state_size; at = next_hole(at + size, &size))
        memset(to + at, 0, size);
    memcpy(to + tt_layout.left + MTRR_SAVED, e->env + tt_layout.mtrr, MTRR_SIZE);
}

/* Put a copied state back; the holes keep what they hold.  QEMU's breakpoints
 * follow DR7: they are taken out before and put in after. */
void tt_load_state(Engine *e, const uint8_t *from)
{
    int size, done = 0;
    uint64_t *dr7 = &ENV(e, tt_layout.dr + 56, uint64_t), wanted;
    tt_inside.update_dr7(e->env, *dr7 & ~0xffull);
    for (int at; done < tt_layout.state_size; done = at + size) {
        at = next_hole(done, &size);
        memcpy(e->env + done, from + done, at - done);
    }
    memcpy(e->env + tt_layout.mtrr, from + tt_layout.left + MTRR_SAVED, MTRR_SIZE);
    wanted = *dr7;
    *dr7 &= ~0xffull;
    tt_inside.update_dr7(e->env, wanted);
}

/* ---- system calls (AMD APM volume 3, "SYSCALL"; Intel SDM volume 2, "SYSENTER") ---- */

static void on_syscall(uc_engine *uc, void *user)
{
    Engine *e = user;
    bool from64 = HFLAGS(e) & HF_CS64;
    uint32_t selector = ENV(e, tt_layout.star, uint64_t) >> 32;
    uint64_t flags;
    (void)uc;

    if (!(EFER(e) & EFER_SCE))
        tt_inside.raise_exception_err_ra(e->env, EXC_UD, 0, 0);
    flags = tt_flags(e);
    if (HFLAGS(e) & HF_LMA) {
        REG(e, RCX) = EIP(e) + 2;
        REG(e, 11) = flags & ~(uint64_t)FLAG_RF;
        set_flags(e, flags & ~ENV(e, tt_layout.fmask, uint64_t) & ~(uint64_t)FLAG_RF);
        flat_segments(e, selector, LONG_CODE);
        EIP(e) = from64 ? ENV(e, tt_layout.lstar, uint64_t) : ENV(e, tt_layout.cstar, uint64_t);
    } else {
        REG(e, RCX) = (uint32_t)(EIP(e) + 2);
        set_flags(e, flags & ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM));
        flat_segments(e, selector, BIG);
        EIP(e) = (uint32_t)ENV(e, tt_layout.star, uint64_t);
    }
    next_block(e);
}

static void on_sysenter(uc_engine *uc, void *user)
{
    Engine *e = user;
    uint32_t selector = ENV(e, tt_layout.sysenter_cs, uint32_t);
    (void)uc;

    if (!(selector & 0xfffc))
        tt_inside.raise_exception_err_ra(e->env, EXC_GP, 0, 0);
    set_flags(e, tt_flags(e) & ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF));
    flat_segments(e, selector, HFLAGS(e) & HF_LMA ? LONG_CODE : BIG);
    REG(e, RSP) = ENV(e, tt_layout.sysenter_esp, uint64_t);
    EIP(e) = ENV(e, tt_layout.sysenter_eip, uint64_t);
    next_block(e);
}

/* ---- CPUID and the time-stamp counter ----------------------------------- */

static int on_cpuid(uc_engine *uc, void *user)
{
    Engine *e = user;
    uint32_t leaf = REG(e, RAX), subleaf = REG(e, RCX);
    const CpuidLeaf *found = &(CpuidLeaf){0};
    (void)uc;

    for (int i = 0; i < e->cpuid_count; i++)
        if (e->cpuid[i].leaf == leaf && (e->cpuid[i].subleaf == ~0u || e->cpuid[i].subleaf == subleaf))
            found = &e->cpuid[i];
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
    Block *tb = block_of(e);
    uint64_t now = tt_tick(e) - tb->icount + index_in_block(e, tb), tsc;
    (void)uc;

    if (e->host_tsc) {
        uint64_t end = tt_tick(e);
        uint32_t current = CURRENT(e);
        tt_set_tick(e, now);
        CURRENT(e) = 0;
        tsc = e->calls.tsc(e->self);
        if (unlikely(e->failed)) { /* as if it had not begun */
            e->aborted++;
            leave(e, R_CALLBACK);
        }
        tt_set_tick(e, end);
        CURRENT(e) = current;
    } else {
        tsc = now * e->period_ns + e->idle_ns;
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
    Block *tb = block_of(e);

    if ((HFLAGS(e) & HF_PE) && (HFLAGS(e) & HF_CPL) > ((EFLAGS(e) >> 12) & 3)) /* or virtual-8086 mode: */
        tt_inside.check_io[size >> 1](e->env, port);
    else if (HFLAGS(e) & HF_VM)
        tt_inside.check_io[size >> 1](e->env, port);
    if (e->denali)
        tt_inside.raise_exception_err_ra(e->env, EXC_GP, 0, 0);
    if (tb->icount != 1) {
        tt_settle(e);
        e->io_exits++;
        CPU32(e, tt_layout.cpu_cflags_next_tb) = 1;
        tt_inside.cpu_loop_exit(e->cpu);
    }
    tt_set_tick(e, tt_tick(e) - 1);
    e->effort += EFFORT_ACCESS;
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
    tt_effort(e, 0);
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
    tt_effort(e, 0);
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

/* ---- exceptions --------------------------------------------------------- */

/* INT n, INT3, INTO: Unicorn has moved RIP past it, but if its gate refuses, the
 * fault is at the instruction, which has not retired then. */
static void deliver_int(Engine *e)
{
    uint64_t next = EIP(e);

    EIP(e) = last_in_block(block_of(e));
    CURRENT(e) = 0;
    LEFT(e)++;
    e->aborted++;
    tt_effort(e, EFFORT_FAULT);
    ENV(e, tt_layout.error_code + 8, uint64_t) = next;
    tt_inside.do_interrupt(e->cpu); /* does not return where it faults */
    LEFT(e)--;
    e->aborted--;
}

static void deliver(Engine *e, int vector)
{
    uint64_t aborted = e->aborted;

    if (ENV(e, tt_layout.error_code + 4, int32_t) && CURRENT(e) && !e->denali) {
        deliver_int(e);
        return;
    }
    if (vector == EXC_DB && CURRENT(e) && block_of(e)->icount == 1 && block_of(e)->size > 1)
        CURRENT(e) = 0; /* a single step, complete even if RIP did not move; a breakpoint's block has 1 byte */
    else
        tt_settle(e);
    e->aborted -= vector == EXC_DB && aborted != e->aborted; /* a breakpoint comes before on_code */
    count_entry(e);
    tt_effort(e, EFFORT_FAULT);
    if (!e->denali) {
        /* RF is set in the image that a fault pushes, clear in the handler. */
        tt_inside.do_interrupt(e->cpu);
        return;
    }
    ENV(e, tt_layout.old_exception, int32_t) = -1;
    if (vector == EXC_UD && tt_denali_vmcall(e)) {
        tt_reconsider(e);
        return;
    }
    if (!tt_denali_exception(e, vector, ENV(e, tt_layout.error_code, uint32_t), vector == EXC_PF ? CR(e, 2) : 0)) {
        snprintf(e->error, sizeof e->error, "exception %d at rip %#llx, address %#llx, has no handler to go to", vector,
                 (unsigned long long)EIP(e), vector == EXC_PF ? (unsigned long long)CR(e, 2) : 0ull);
        leave(e, R_DOUBLE);
    }
}

static void on_interrupt(uc_engine *uc, uint32_t vector, void *user)
{
    (void)uc;
    deliver(user, vector);
}

static bool on_invalid(uc_engine *uc, void *user)
{
    (void)uc;
    deliver(user, EXC_UD);
    return true;
}

/* ---- life --------------------------------------------------------------- */

bool tt_open_hooks(Engine *e)
{
    uc_engine *uc = e->uc;
    uc_hook h;
    uc_err err = UC_ERR_OK;

    err |= uc_hook_add(uc, &h, UC_HOOK_BLOCK, (void *)on_block, e, 1, 0);
    err |= uc_hook_add(uc, &h, UC_HOOK_INTR, (void *)on_interrupt, e, 1, 0);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN_INVALID, (void *)on_invalid, e, 1, 0);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_in, e, 1, 0, UC_X86_INS_IN);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_out, e, 1, 0, UC_X86_INS_OUT);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_syscall, e, 1, 0, UC_X86_INS_SYSCALL);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_sysenter, e, 1, 0, UC_X86_INS_SYSENTER);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_cpuid, e, 1, 0, UC_X86_INS_CPUID);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_rdtsc, e, 1, 0, UC_X86_INS_RDTSC);
    err |= uc_hook_add(uc, &h, UC_HOOK_INSN, (void *)on_rdtscp, e, 1, 0, UC_X86_INS_RDTSCP);
    err |= uc_mmio_map(uc, VOID_ADDR, PAGE_SIZE, void_read, NULL, void_write, NULL);
    return err == UC_ERR_OK;
}

/* Count every instruction in a second, slow way, to check the ticks against. */
bool tt_count_instructions(Engine *e)
{
    uc_hook h;
    e->counted = e->aborted = 0;
    tt_inside.tb_flush(e->cpu);
    return uc_hook_add(e->uc, &h, UC_HOOK_CODE, (void *)on_code, e, 1, 0) == UC_ERR_OK;
}

/* Run until tick `stop`, or until something else ends the run. */
int tt_run(Engine *e, uint64_t stop)
{
    Engine *outer = tt_current; /* of whose callback this run is a part */
    uc_err err;

    if (tt_tick(e) >= stop || tt_tick(e) >= e->limit)
        return R_STOP;
    tt_current = e;
    e->stop = stop;
    e->reason = R_NONE;
    e->failed = false;
    e->effort = 0;
    e->hit.size = 0;
    e->no_break_at = tt_tick(e);
    CURRENT(e) = 0;
    CPU32(e, tt_layout.cpu_cflags_next_tb) = -1;
    tt_reconsider(e);
    err = uc_emu_start(e->uc, EIP(e), 0, 0, 0);
    CURRENT(e) = 0;
    if (e->reason == R_NONE) {
        if (err != UC_ERR_OK) {
            snprintf(e->error, sizeof e->error, "the CPU emulator failed at rip %#llx: %s", (unsigned long long)EIP(e),
                     uc_strerror(err));
            e->reason = R_FAIL;
        } else if (ENV(e, tt_layout.old_exception, int32_t) == 8) {
            ENV(e, tt_layout.old_exception, int32_t) = -1;
            e->reason = R_SHUTDOWN;
        } else {
            e->reason = R_HALT;
        }
    }
    tt_canonical_flags(e);
    tt_current = outer;
    return e->reason;
}
