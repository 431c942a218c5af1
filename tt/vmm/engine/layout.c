/*
 * Where things lie in QEMU's structures: found once a process, and checked by what they do.
 *
 * A small engine of its own is opened for it.  Offsets are found by writing known values
 * through uc_reg_write and looking for them; those that no register access can confirm are
 * confirmed by running a few instructions and looking at what changed.  If anything is not as
 * expected, no engine opens, and the error says what.
 * Engines made after that read their pointers at the places found.
 */
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "layout.h"

Layout tt_layout;

enum { PROBED_RAM = 1 << 20, CODE_AT = 0x1000 };
static const uint64_t MAGIC = 0x5ab1e0ddba11f00dull;
static const uint8_t just_hlt[] = {0xf4};

/* ---- finding ------------------------------------------------------------ */

/* Where `value` lies in `from`, or -1; tt_find_once wants it to lie there once. */
static __attribute__((no_sanitize("address"))) int find_first(const uint8_t *from, int begin, int end, uint64_t value)
{
    for (int i = begin; i + 8 <= end; i += 8)
        if (*(const uint64_t *)(from + i) == value)
            return i;
    return -1;
}

int tt_find_once(const uint8_t *from, int begin, int end, uint64_t value)
{
    int found = find_first(from, begin, end, value);
    return found >= 0 && find_first(from, found + 8, end, value) >= 0 ? -1 : found;
}

/* Where a model-specific register lies in env. */
static int find_msr(Engine *e, uint32_t msr, int end)
{
    uc_x86_msr old = {.rid = msr}, probe = {.rid = msr, .value = MAGIC};
    int at;

    uc_reg_read(e->tr.uc, UC_X86_REG_MSR, &old);
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &probe);
    at = tt_find_once(e->tr.env, 0, end, MAGIC);
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &old);
    return at;
}

/* Run `code` with no paging, 64-bit, from a clean state. */
static void run_probe(Engine *e, const void *code, size_t size)
{
    memcpy(e->mem.pool + CODE_AT, code, size);
    if (e->tr.cpu)
        tt_inside.tb_flush(e->tr.cpu);
    uc_emu_start(e->tr.uc, CODE_AT, 0, 0, 0);
}

static bool probe_fill(void *cpu, uint64_t addr, int size, int rw, int mmu_idx, bool probe, uintptr_t ra)
{
    (void)size, (void)rw, (void)probe, (void)ra;
    tt_inside.tlb_set_page(cpu, addr & PAGE_MASK, addr & PAGE_MASK & (PROBED_RAM - 1), RIGHT_R | RIGHT_W | RIGHT_X, mmu_idx, PAGE_SIZE);
    return true;
}

static void probe_interrupt(uc_engine *uc, uint32_t vector, void *user)
{
    Engine *e = user;
    (void)uc;
    tt_probe->vector = vector;
    tt_probe->error = ENV(e, tt_layout.error_code, int32_t);
    tt_probe->old = ENV(e, tt_layout.old_exception, int32_t);
    tt_probe->index = CPU32(e, tt_layout.cpu_exception_index);
    ENV(e, tt_layout.old_exception, int32_t) = -1;
    CPU32(e, tt_layout.cpu_exception_index) = EXC_HLT;
    tt_inside.cpu_loop_exit(e->tr.cpu);
}

/* ---- one subject each: NULL, or what does not fit ------------------------ */

/* The CPU, what translates for it, and where the engine keeps its pointers to both. */
static const char *find_objects(Engine *e)
{
    Layout *l = &tt_layout;
    uint64_t rax = MAGIC;
    int uc_size = (int)malloc_usable_size(e->tr.uc), cpu_size;

    run_probe(e, just_hlt, sizeof just_hlt);
    if (!tt_probe->cpu || !tt_probe->tcg_ctx)
        return "translation takes another way";
    e->tr.cpu = tt_probe->cpu;
    e->tr.tcg_ctx = tt_probe->tcg_ctx;
    cpu_size = (int)malloc_usable_size(e->tr.cpu);
    l->uc_cpu = find_first((uint8_t *)e->tr.uc, 0, uc_size, (uint64_t)e->tr.cpu); /* parts of uc_struct have it, too */
    l->uc_tcg_ctx = tt_find_once((uint8_t *)e->tr.uc, 0, uc_size, (uint64_t)e->tr.tcg_ctx);
    if (l->uc_cpu < 0 || l->uc_tcg_ctx < 0)
        return "its engine object does not say where its CPU is";
    l->block_distance = (int)(tt_probe->block->code - (uint8_t *)tt_probe->block);

    /* env: where RAX is, inside the CPU object */
    uc_reg_write(e->tr.uc, UC_X86_REG_RAX, &rax);
    l->cpu_env = tt_find_once(e->tr.cpu, 0, cpu_size, MAGIC);
    rax = 0;
    uc_reg_write(e->tr.uc, UC_X86_REG_RAX, &rax);
    if (l->cpu_env < 0)
        return "its CPU state cannot be found";
    e->tr.env = e->tr.cpu + l->cpu_env;
    l->cpu_env_ptr = tt_find_once(e->tr.cpu, 0, 1024, (uint64_t)e->tr.env);
    if (l->cpu_env_ptr < 0)
        return "its CPU state is not where its CPU says";

    l->cpu_uc = tt_find_once(e->tr.cpu, 0, l->cpu_env, (uint64_t)e->tr.uc);
    if (l->cpu_uc < 0 || CPU32(e, 24) != -1)
        return "its CPU object is laid out in another way";
    l->cpu_exception_index = l->cpu_uc - 8;
    l->cpu_halted = l->cpu_uc - 16;
    l->cpu_class = l->cpu_uc + 8;
    l->cpu_cflags_next_tb = 24;
    return NULL;
}

/* Registers that uc_reg_write reaches: are they at the offsets assumed? */
static const char *check_registers(Engine *e)
{
    static const struct { int reg, at; } known[] = {
        {UC_X86_REG_RCX, ENV_REGS + 8 * RCX}, {UC_X86_REG_RSP, ENV_REGS + 8 * RSP},
        {UC_X86_REG_R15, ENV_REGS + 8 * 15},  {UC_X86_REG_RIP, ENV_EIP},
        {UC_X86_REG_CR2, ENV_CR + 16},        {UC_X86_REG_FS_BASE, ENV_SEGS + 24 * SEG_FS + 8},
        {UC_X86_REG_GS_BASE, ENV_SEGS + 24 * SEG_GS + 8},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint64_t old, v = 0x123456789000 + i;
        uc_reg_read(e->tr.uc, known[i].reg, &old);
        uc_reg_write(e->tr.uc, known[i].reg, &v);
        bool fits = ENV(e, known[i].at, uint64_t) == v;
        uc_reg_write(e->tr.uc, known[i].reg, &old);
        if (!fits)
            return "its registers are laid out in another way";
    }
    uc_x86_mmr gdtr = {.base = 0x1111222233334444, .limit = 0x5678};
    uc_reg_write(e->tr.uc, UC_X86_REG_GDTR, &gdtr);
    if (SEG(e, SEG_GDT).base != gdtr.base || SEG(e, SEG_GDT).limit != gdtr.limit)
        return "its segment registers are laid out in another way";
    return NULL;
}

/* Bytes that a copy of the CPU's state has in Unicorn; what tt saves lies within. */
static int context_size(Engine *e)
{
    return (int)uc_context_size(e->tr.uc);
}

static const char *find_msrs(Engine *e)
{
    Layout *l = &tt_layout;
    int end = context_size(e);

    if (end < 5000 || end > 8192)
        return "its CPU state has an unknown size";
    l->star = find_msr(e, 0xc0000081, end);
    l->lstar = find_msr(e, 0xc0000082, end);
    l->cstar = find_msr(e, 0xc0000083, end);
    l->fmask = find_msr(e, 0xc0000084, end);
    l->sysenter_esp = find_msr(e, 0x175, end);
    l->sysenter_eip = find_msr(e, 0x176, end);
    if (l->star < 0 || l->lstar < 0 || l->cstar != l->lstar + 8 || l->fmask != l->lstar + 16
        || find_msr(e, 0xc0000102, end) != l->lstar + 24 /* KERNEL_GS_BASE */
        || l->sysenter_esp < 0 || l->sysenter_eip != l->sysenter_esp + 8)
        return "its model-specific registers are laid out in another way";
    l->sysenter_cs = l->sysenter_esp - 8;
    l->mtrr = find_msr(e, 0x2ff, end + 1024) - 11 * 8;
    if (l->mtrr < end || find_msr(e, 0x250, end + 1024) != l->mtrr
        || find_msr(e, 0x20f, end + 1024) != l->mtrr + MTRR_SIZE - 8)
        return "its memory type registers are laid out in another way";
    uc_x86_msr cs = {.rid = 0x174, .value = 0x4321};
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &cs);
    if (ENV(e, l->sysenter_cs, uint32_t) != 0x4321)
        return "SYSENTER_CS is not where it was expected";
    cs.value = 0;
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &cs);
    l->efer = ENV_CR + 9 * 8 + 8 + 4 * 16 + 16 + 8; /* a20, bnd_regs, bndcs, msr_bndcfgs */
    uc_x86_msr efer = {.rid = 0xc0000080}, changed;
    uc_reg_read(e->tr.uc, UC_X86_REG_MSR, &efer);
    changed = efer;
    changed.value ^= EFER_SCE;
    if (ENV(e, l->efer, uint64_t) != efer.value)
        return "EFER is not where it was expected";
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &changed);
    if (ENV(e, l->efer, uint64_t) != changed.value)
        return "EFER is not where it was expected";
    uc_reg_write(e->tr.uc, UC_X86_REG_MSR, &efer);
    return NULL;
}

/* Debug registers; what QEMU notes of an exception lies beside them. */
static const char *find_debug_registers(Engine *e)
{
    Layout *l = &tt_layout;
    uint64_t v = MAGIC;
    int at;

    uc_reg_write(e->tr.uc, UC_X86_REG_DR2, &v);
    at = tt_find_once(e->tr.env, 0, context_size(e), MAGIC);
    v = 0;
    uc_reg_write(e->tr.uc, UC_X86_REG_DR2, &v);
    if (at < 0)
        return "its debug registers cannot be found";
    l->dr = at - 16;
    l->error_code = l->dr - 16;
    l->old_exception = l->dr + 64 + 32;
    /* The state ends with the field that says how far a reset clears: after
     * SVM's registers and a host address that no guest may see. */
    l->state_size = l->old_exception + 8;
    return NULL;
}

/* SSE registers, with MXCSR before them; the x87's control word and a register. */
static const char *find_float_registers(Engine *e)
{
    Layout *l = &tt_layout;
    uint64_t xmm[2] = {MAGIC, ~MAGIC}, none[2] = {0, 0};
    uint16_t fpcw = 0x0f3f, old_fpcw;
    uint32_t mxcsr = 0x1fa0, old_mxcsr;
    struct { uint64_t mantissa; uint16_t exponent; } __attribute__((packed)) st = {MAGIC, 0x4123}, old_st;
    int at;

    uc_reg_write(e->tr.uc, UC_X86_REG_XMM1, xmm);
    at = tt_find_once(e->tr.env, 0, context_size(e), MAGIC);
    uc_reg_write(e->tr.uc, UC_X86_REG_XMM1, none);
    if (at < 64)
        return "its SSE registers cannot be found";
    l->xmm = at - 64;
    uc_reg_read(e->tr.uc, UC_X86_REG_FPCW, &old_fpcw);
    uc_reg_read(e->tr.uc, UC_X86_REG_MXCSR, &old_mxcsr);
    uc_reg_read(e->tr.uc, UC_X86_REG_FP0, &old_st);
    uc_reg_write(e->tr.uc, UC_X86_REG_FPCW, &fpcw);
    uc_reg_write(e->tr.uc, UC_X86_REG_MXCSR, &mxcsr);
    uc_reg_write(e->tr.uc, UC_X86_REG_FP0, &st);
    bool fits = ENV(e, ENV_FPSTT + 6, uint16_t) == fpcw && ENV(e, l->xmm - 8, uint32_t) == mxcsr
                && ENV(e, ENV_FPREGS, uint64_t) == MAGIC && ENV(e, ENV_FPREGS + 8, uint16_t) == st.exponent;
    uc_reg_write(e->tr.uc, UC_X86_REG_FPCW, &old_fpcw);
    uc_reg_write(e->tr.uc, UC_X86_REG_MXCSR, &old_mxcsr);
    uc_reg_write(e->tr.uc, UC_X86_REG_FP0, &old_st);
    return fits ? NULL : "its floating-point registers are laid out in another way";
}

/* Room for four words of the engine's own, which translated code can reach: a part of env that
 * this QEMU never uses, the upper halves of the AVX registers behind the last MMX temporary. */
static const char *find_spare_words(Engine *e)
{
    Layout *l = &tt_layout;

    l->left = l->sysenter_cs - 64;
    l->current = l->left + 8;
    l->entry_tick = l->left + 16;
    for (int i = -1024; i < 64; i++)
        if (e->tr.env[l->left + i])
            return "a part of its CPU state that was thought free is in use";
    return NULL;
}

/* The function that QEMU calls where its TLB has no entry: a field of the CPU's class. */
static const char *find_fill_slot(Engine *e)
{
    uint8_t *class = *(uint8_t **)(e->tr.cpu + tt_layout.cpu_class);

    if (uc_ctl_tlb_mode(e->tr.uc, UC_TLB_VIRTUAL))
        return "it has no virtual TLB";
    tt_layout.class_fill = tt_find_once(class, 0, 512, (uint64_t)tt_inside.fill_tlb);
    if (tt_layout.class_fill < 0)
        return "its TLB fill function cannot be replaced";
    *(void **)(class + tt_layout.class_fill) = probe_fill;
    uc_ctl_flush_tlb(e->tr.uc);
    return NULL;
}

static TlbFast *tlb_of(Engine *e, int mode)
{
    return (TlbFast *)(e->tr.env + tt_layout.tlb_fast) + mode;
}

static TlbEntry *victims_of(Engine *e, int mode)
{
    const Layout *l = &tt_layout;
    return (TlbEntry *)(e->tr.env + l->tlb_desc + mode * l->tlb_desc_size + l->tlb_victims);
}

/* The TLB's tables, `f[3]` right before the 4-byte counter before env, and their descriptions. */
static const char *find_tlb(Engine *e)
{
    /* mov al,[0x5123]; hlt: then the entry for 0x5000 must be there, and nowhere else */
    static const uint8_t touch[] = {0x8a, 0x04, 0x25, 0x23, 0x51, 0, 0, 0xf4};
    Layout *l = &tt_layout;
    int hits = 0;

    l->tlb_fast = -16 - MMU_MODES * (int)sizeof(TlbFast);
    l->tlb_desc_size = 48 + VICTIMS * 64 + VICTIMS * 16 + 8;
    l->tlb_victims = 48;
    l->tlb_desc = (l->tlb_fast - MMU_MODES * l->tlb_desc_size) & ~15; /* the tables are aligned to 16 */
    run_probe(e, touch, sizeof touch);
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        size_t n = f->mask / sizeof(TlbEntry) + 1;
        if (f->mask % sizeof(TlbEntry) || n < 16 || n > 1 << 22 || (n & (n - 1)))
            return "its TLB is laid out in another way";
        TlbEntry *t = &f->table[5 & (n - 1)];
        hits += t->addr_read == 0x5000 && t->paddr == 0x5000 && t->addend + 0x5000 == (uintptr_t)e->mem.pool + 0x5000;
        for (int i = 0; i < VICTIMS; i++)
            if (victims_of(e, mode)[i].addr_read != ~0ull || victims_of(e, mode)[i].addr_code != ~0ull)
                return "its victim TLB is laid out in another way";
        if (*(uint64_t *)(e->tr.env + l->tlb_desc + mode * l->tlb_desc_size) != ~0ull)
            return "its TLB descriptions are laid out in another way";
    }
    return hits == 1 ? NULL : "its TLB entries are laid out in another way";
}

/* Load from a page that has the TLB entry of 0x5000's page: that one must be the first victim. */
static const char *check_victims(Engine *e)
{
    const Layout *l = &tt_layout;
    int hits = 0;

    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = tlb_of(e, mode);
        uint32_t addr = 0x5123 + (f->mask / sizeof(TlbEntry) + 1) * PAGE_SIZE;
        uint8_t clash[] = {0x8a, 0x04, 0x25, 0, 0, 0, 0, 0xf4}; /* mov al,[addr]; hlt */
        if (f->table[5 & (f->mask / sizeof(TlbEntry))].addr_read != 0x5000)
            continue;
        memcpy(clash + 3, &addr, 4);
        run_probe(e, clash, sizeof clash);
        const TlbEntry *victim = victims_of(e, mode);
        uint64_t *most_used = (uint64_t *)(e->tr.env + l->tlb_desc + mode * l->tlb_desc_size + TLB_WINDOW_MOST);
        hits += victim->addr_read == 0x5000 && victim->paddr == 0x5000 && victim[1].addr_read == ~0ull
            && most_used[1] >= 2 && most_used[1] < 16 && most_used[2] == 1; /* then: entries used now, victims so far */
    }
    return hits == 1 ? NULL : "its victim TLB is laid out in another way";
}

/* Exceptions: a vector and an error code where they are thought to be. */
static const char *check_exceptions(Engine *e)
{
    static const uint8_t int3[] = {0xcc};
    /* mov eax, 0x1234; mov ds, ax: #GP with a selector error code, for there is no GDT */
    static const uint8_t bad_selector[] = {0xb8, 0x38, 0x12, 0, 0, 0x8e, 0xd8, 0xf4};
    uc_hook hook;

    if (uc_hook_add(e->tr.uc, &hook, UC_HOOK_INTR, (void *)probe_interrupt, e, 1, 0))
        return "it refuses a hook for exceptions";
    ENV(e, tt_layout.old_exception, int32_t) = -1;
    run_probe(e, int3, sizeof int3);
    if (tt_probe->vector != 3 || tt_probe->index != 3)
        return "exceptions come with another layout";
    SEG(e, SEG_GDT).base = 0;
    SEG(e, SEG_GDT).limit = 0;
    CR(e, 0) |= CR0_PE;
    HFLAGS(e) |= HF_PE;
    run_probe(e, bad_selector, sizeof bad_selector);
    if (tt_probe->vector != EXC_GP || tt_probe->error != 0x1238 || tt_probe->old != EXC_GP)
        return "exceptions carry their error code elsewhere";
    uc_hook_del(e->tr.uc, hook);
    return NULL;
}

/* cflags_next_tb limits the next block to one instruction. */
static const char *check_block_limit(Engine *e)
{
    static const uint8_t three[] = {0x90, 0x90, 0xf4};
    const Block *last;

    tt_inside.tb_flush(e->tr.cpu);
    CPU32(e, tt_layout.cpu_cflags_next_tb) = 1;
    memcpy(e->mem.pool + 0x2000, three, 3);
    tt_probe->block = NULL;
    uc_emu_start(e->tr.uc, 0x2000, 0, 0, 0);
    last = tt_probe->block;
    if (CPU32(e, tt_layout.cpu_cflags_next_tb) != -1 || !last || last->pc != 0x2001 || last->size != 2
        || last->icount != 2 || last->page_addr[0] != 0x2000 || last->page_addr[1] != ~0ull
        || last->code - (uint8_t *)last != tt_layout.block_distance)
        return "its blocks are laid out in another way";
    return NULL;
}

/* Unicorn has every load and store followed by a call that asks whether to stop,
 * for hooks that the engine does not use.  A flag in uc_struct leaves these calls
 * out.  It is found by its neighbours and by what it does; without it the engine
 * is right, only slower. */
static const char *find_exit_checks(Engine *e)
{
    /* mov al,[0x5123]; mov bl,[0x5123]; hlt */
    static const uint8_t loads[] = {0x8a, 0x04, 0x25, 0x23, 0x51, 0, 0, 0x8a, 0x1c, 0x25, 0x23, 0x51, 0, 0, 0xf4};
    uint8_t *uc = (uint8_t *)e->tr.uc;
    int end = (int)malloc_usable_size(uc) - 32;
    size_t plain;

    run_probe(e, loads, sizeof loads);
    plain = tt_probe->block->code_size;
    for (int i = 0; i < end; i += 4) {
        /* int cpu_context_size; uint64_t next_pc; bool hook_insert, first_tb, no_exit_request, init_done */
        uint8_t *flags = uc + i + 16; /* after four bytes of padding */
        int32_t size;
        memcpy(&size, uc + i, 4);
        if (size < tt_layout.state_size || size > tt_layout.state_size + 256 || flags[0] || flags[1] > 1 || flags[2]
            || flags[3] != 1)
            continue;
        flags[2] = 1;
        run_probe(e, loads, sizeof loads);
        if (tt_probe->block->code_size + 20 < plain) {
            tt_layout.uc_no_exit_request = i + 18;
            return NULL;
        }
        flags[2] = 0;
    }
    return NULL;
}

/* ---- once a process ------------------------------------------------------ */
/* What revive.c builds on: where the next block's code will lie, where a block jumps, how it is dropped. */
static const char *check_revival(Engine *e)
{
    static const uint8_t jump[] = {0xeb, 0x00, 0xf4};
    const Jumps *none, *one;
    Block *last;

    tt_inside.tb_flush(e->tr.cpu);
    memcpy(e->mem.pool + 0x3000, jump, sizeof jump);
    tt_probe->first = NULL;
    uc_emu_start(e->tr.uc, 0x3000, 0, 0, 0);
    last = tt_probe->block;
    none = (const Jumps *)(last + 1);
    one = (const Jumps *)(tt_probe->first + 1);
    tt_layout.ctx_code_end = tt_probe->code_end;
    if (tt_probe->code_end < 0 || last->pc != 0x3002 || tt_probe->first->pc != 0x3000
        || *(uint8_t **)((uint8_t *)e->tr.tcg_ctx + tt_probe->code_end) < last->code + last->code_size)
        return "its translator is laid out in another way";
    if (none->reset[0] != 0xffff || none->reset[1] != 0xffff || one->reset[1] != 0xffff || !one->target[0]
        || one->reset[0] != one->target[0] + 4 || one->reset[0] > tt_probe->first->code_size)
        return "its blocks jump to others in another way";
    tt_inside.tb_phys_invalidate(e->tr.tcg_ctx, last, -1);
    if (!(last->cflags & CF_INVALID))
        return "it drops blocks in another way";
    return NULL;
}

static const char *probe(Engine *e)
{
    static const char *(*const subjects[])(Engine *) = {
        find_objects, check_registers, find_msrs, find_debug_registers, find_float_registers, find_spare_words,
        find_fill_slot, find_tlb, check_victims, check_exceptions, check_block_limit, check_revival, find_exit_checks,
    };
    const char *why = NULL;

    for (size_t i = 0; !why && i < sizeof subjects / sizeof *subjects; i++)
        why = subjects[i](e);
    return why;
}

static pthread_once_t learned = PTHREAD_ONCE_INIT;
static char complaint[200]; /* written once, before it is read */
static int probes;

static void learn(void)
{
    Engine e = {.mem.pool = MAP_FAILED}, *outer = tt_current;
    Probe seen = {.vector = -1, .error = -1, .index = -1, .old = -1};
    const char *why = tt_find_functions();

    if (!why) {
        tt_current = NULL;
        tt_probe = &seen;
        probes++;
        e.mem.pool = mmap(NULL, PROBED_RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (e.mem.pool == MAP_FAILED || tt_open_unicorn(&e.tr.uc, 1 << 20, e.mem.pool, PROBED_RAM))
            why = "an engine to try it with does not open";
        else
            why = probe(&e);
        if (e.tr.uc)
            uc_close(e.tr.uc);
        if (e.mem.pool != MAP_FAILED)
            munmap(e.mem.pool, PROBED_RAM);
        tt_probe = NULL;
        tt_current = outer;
    }
    if (why)
        snprintf(complaint, sizeof complaint, "this build of Unicorn (libunicorn) does not fit tt: %s", why);
}

/* How often the layout was looked for in this process: once, if engines were made. */
int tt_layout_probes(void)
{
    return probes;
}

/* Open Unicorn for the CPU that tt offers, with RAM at 0. */
uc_err tt_open_unicorn(uc_engine **uc, uint32_t code_buffer, void *ram, uint64_t size)
{
    uc_err err = uc_open(UC_ARCH_X86, UC_MODE_64, uc);

    if (err)
        return err;
    uc_ctl_set_cpu_model(*uc, UC_CPU_X86_WESTMERE);
    if (code_buffer)
        uc_ctl_set_tcg_buffer_size(*uc, code_buffer);
    uc_ctl_exits_enable(*uc);
    return uc_mem_map_ptr(*uc, 0, size, UC_PROT_ALL, ram);
}

/* ---- each engine ---------------------------------------------------------- */

/* Give an engine that Unicorn has opened its pointers, and QEMU the engine's own TLB fill;
 * NULL, or why it cannot run. */
const char *tt_layout_prepare(Engine *e)
{
    const Layout *l = &tt_layout;
    void **slot;

    pthread_once(&learned, learn);
    if (*complaint)
        return complaint;
    e->tr.cpu = *(uint8_t **)((uint8_t *)e->tr.uc + l->uc_cpu);
    e->tr.tcg_ctx = *(void **)((uint8_t *)e->tr.uc + l->uc_tcg_ctx);
    e->tr.env = e->tr.cpu + l->cpu_env;
    slot = (void **)(*(uint8_t **)(e->tr.cpu + l->cpu_class) + l->class_fill);
    if (*(void **)(e->tr.cpu + l->cpu_uc) != e->tr.uc || *(void **)(e->tr.cpu + l->cpu_env_ptr) != e->tr.env
        || uc_ctl_tlb_mode(e->tr.uc, UC_TLB_VIRTUAL) || *slot != tt_inside.fill_tlb)
        return "this build of Unicorn (libunicorn) does not fit tt: two of its engines differ";
    *slot = tt_fill;
    if (l->uc_no_exit_request)
        ((uint8_t *)e->tr.uc)[l->uc_no_exit_request] = 1;
    tt_inside.tb_flush(e->tr.cpu);
    tt_inside.tlb_flush(e->tr.cpu);
    return NULL;
}
