/*
 * Finding and checking Unicorn's insides.
 *
 * Functions are found by name in libunicorn's dynamic symbols.  Eight calls that
 * QEMU makes between its own files are redirected to the engine by rewriting
 * their slots in the library's procedure linkage table, as any dynamic linker
 * would have done with a library loaded earlier:
 *
 *   tcg_gen_code         -> to give each new block the engine's tick counter
 *   cpu_loop_exit_noexc  -> a block that rewrote itself is left half way: settle its ticks
 *   tb_htable_lookup     -> to know the instruction limit of the block looked up
 *   tlb_flush            -> to know when no translation is cached
 *   tb_gen_code, gen_intermediate_code -> to begin blocks at bit tests
 *   tlb_reset_dirty_by_vaddr -> to nothing: page classes do its work
 *
 * Offsets are found by writing known values through uc_reg_write and looking
 * for them, then checked by what they do.  Any surprise is a clear refusal.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

Layout tt_layout;
Inside tt_inside;
_Thread_local Engine *tt_current;

static char complaint[200];
static void *seen_cpu, *seen_tcg_ctx;
static Block *seen_block;

static const char *refuse(const char *what)
{
    snprintf(complaint, sizeof complaint, "this build of Unicorn (libunicorn) does not fit tt: %s", what);
    return complaint;
}

/* ---- functions ---------------------------------------------------------- */

static int gen_code(void *tcg_ctx, Block *tb)
{
    int size = tt_inside.tcg_gen_code(tcg_ctx, tb);
    seen_tcg_ctx = tcg_ctx;
    seen_block = tb;
    if (tt_current && tt_current->tcg_ctx == tcg_ctx && size > 0)
        tt_patch_block(tt_current, tb);
    return size;
}

static __attribute__((noreturn)) void loop_exit_noexc(void *cpu)
{
    if (tt_current && tt_current->cpu == cpu)
        tt_settle(tt_current);
    tt_inside.cpu_loop_exit_noexc(cpu);
}

static Block *htable_lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cf_mask)
{
    seen_cpu = cpu;
    if (tt_current)
        tt_current->lookup_count = cf_mask & 0x7fff;
    return tt_inside.tb_htable_lookup(cpu, pc, cs_base, flags, cf_mask);
}

/* BT, BTS, BTR and BTC leave AF and OF undefined, and QEMU makes them depend on what
 * it knows of the flags within the block: on where the block begins, then, which is
 * nothing that a guest may see (in the flags that an interrupt pushes, say).  So such
 * an instruction is always the first of its block, where QEMU knows nothing. */
static _Thread_local int block_limit;

static void translate(void *cpu, Block *tb, int max_instructions)
{
    if (block_limit && block_limit < max_instructions)
        max_instructions = block_limit;
    block_limit = 0;
    tt_inside.gen_intermediate_code(cpu, tb, max_instructions);
}

static Block *make_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags)
{
    Block *tb = tt_inside.tb_gen_code(cpu, pc, cs_base, flags, cflags);
    int first = tt_current ? tt_first_bit_test(tt_current, tb) : 0;
    if (first > 0 && first < tb->icount) {
        tt_inside.tb_phys_invalidate(tt_current->tcg_ctx, tb, -1);
        block_limit = first;
        tb = tt_inside.tb_gen_code(cpu, pc, cs_base, flags, cflags);
    }
    return tb;
}

/* Unicorn marks store rights on a page that gets translated code as "look first",
 * with a walk over the whole TLB for each new block.  Page classes (mmu.c) leave no
 * such rights to be found. */
static void no_reset_dirty(void *cpu, uint64_t start, uint64_t size)
{
    (void)cpu, (void)start, (void)size;
}

/* The guest loaded CR3, say: nothing in the TLB comes from any table now. */
static void flush_tlb(void *cpu)
{
    if (tt_current && tt_current->cpu == cpu)
        tt_drop_tlb(tt_current);
    else
        tt_inside.tlb_flush(cpu);
}

/* Point libunicorn's own calls of `name` at `to`. */
static bool redirect(struct link_map *map, const char *name, void *to)
{
    const ElfW(Sym) *symtab = NULL;
    const char *strtab = NULL;
    const ElfW(Rela) *rela = NULL;
    size_t size = 0;

    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB: symtab = (const void *)d->d_un.d_ptr; break;
        case DT_STRTAB: strtab = (const void *)d->d_un.d_ptr; break;
        case DT_JMPREL: rela = (const void *)d->d_un.d_ptr; break;
        case DT_PLTRELSZ: size = d->d_un.d_val; break;
        }
    }
    if (!symtab || !strtab || !rela)
        return false;
    for (size_t i = 0; i < size / sizeof *rela; i++) {
        if (strcmp(strtab + symtab[ELF64_R_SYM(rela[i].r_info)].st_name, name))
            continue;
        void **slot = (void **)(map->l_addr + rela[i].r_offset);
        uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
        if (mprotect((void *)page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE))
            return false;
        *slot = to;
        return true;
    }
    return false;
}

static const char *find_functions(void)
{
    static bool done;
    Dl_info info;
    struct link_map *map;
    void *lib;

    if (done)
        return NULL;
    if (!dladdr1((void *)uc_open, &info, (void **)&map, RTLD_DL_LINKMAP))
        return refuse("the library cannot be located");
    lib = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!lib)
        return refuse("the library cannot be opened");
#define FIND(field, symbol)                                     \
    if (!(*(void **)&tt_inside.field = dlsym(lib, symbol "_x86_64"))) \
    return refuse("it lacks " symbol)
    FIND(tlb_set_page, "tlb_set_page");
    FIND(tlb_flush, "tlb_flush");
    FIND(cpu_loop_exit, "cpu_loop_exit");
    FIND(raise_exception_err_ra, "raise_exception_err_ra");
    FIND(do_interrupt, "x86_cpu_do_interrupt");
    FIND(do_interrupt_hard, "do_interrupt_x86_hardirq");
    FIND(tb_invalidate_page_range, "tb_invalidate_phys_page_range");
    FIND(tb_lookup, "tcg_tb_lookup");
    FIND(tb_flush, "tb_flush");
    FIND(compute_flags, "helper_cc_compute_all");
    FIND(tb_flush_jmp_cache, "tb_flush_jmp_cache");
    FIND(restore_state, "cpu_restore_state");
    FIND(fill_tlb, "unicorn_fill_tlb");
    FIND(update_dr7, "cpu_x86_update_dr7");
    FIND(check_io[0], "helper_check_iob");
    FIND(check_io[1], "helper_check_iow");
    FIND(check_io[2], "helper_check_iol");
    FIND(tcg_gen_code, "tcg_gen_code");
    FIND(cpu_loop_exit_noexc, "cpu_loop_exit_noexc");
    FIND(tb_htable_lookup, "tb_htable_lookup");
    FIND(tb_gen_code, "tb_gen_code");
    FIND(gen_intermediate_code, "gen_intermediate_code");
    FIND(tb_phys_invalidate, "tb_phys_invalidate");
#undef FIND
    if (!redirect(map, "tcg_gen_code_x86_64", gen_code)
        || !redirect(map, "cpu_loop_exit_noexc_x86_64", loop_exit_noexc)
        || !redirect(map, "tb_htable_lookup_x86_64", htable_lookup)
        || !redirect(map, "tlb_flush_x86_64", flush_tlb)
        || !redirect(map, "tb_gen_code_x86_64", make_block)
        || !redirect(map, "gen_intermediate_code_x86_64", translate)
        || !redirect(map, "tlb_reset_dirty_by_vaddr_x86_64", no_reset_dirty))
        return refuse("its internal calls cannot be redirected");
    done = true;
    return NULL;
}

enum { PROBED_RAM = 1 << 20 };

/* ---- offsets ------------------------------------------------------------ */

static int find_u64(const uint8_t *from, int begin, int end, uint64_t value)
{
    int found = -1;
    for (int i = begin; i + 8 <= end; i += 8) {
        uint64_t v;
        memcpy(&v, from + i, 8);
        if (v == value) {
            if (found >= 0)
                return -1;
            found = i;
        }
    }
    return found;
}

static int find_msr(Engine *e, uint32_t msr, uint64_t value, int size)
{
    uc_x86_msr old = {.rid = msr}, probe = {.rid = msr, .value = value};
    int at;

    uc_reg_read(e->uc, UC_X86_REG_MSR, &old);
    uc_reg_write(e->uc, UC_X86_REG_MSR, &probe);
    at = find_u64(e->env, 0, size, value);
    uc_reg_write(e->uc, UC_X86_REG_MSR, &old);
    return at;
}

/* Run `code` at 0x1000, no paging, 64-bit, from a clean state. */
static void run_probe(Engine *e, const void *code, size_t size)
{
    memcpy(e->ram + 0x1000, code, size);
    if (e->cpu)
        tt_inside.tb_flush(e->cpu);
    uc_emu_start(e->uc, 0x1000, 0, 0, 0);
}

static bool probe_fill(void *cpu, uint64_t addr, int size, int rw, int mmu_idx, bool probe, uintptr_t ra)
{
    (void)size, (void)rw, (void)probe, (void)ra;
    seen_cpu = cpu;
    tt_inside.tlb_set_page(cpu, addr & PAGE_MASK, addr & PAGE_MASK & (PROBED_RAM - 1), RIGHT_R | RIGHT_W | RIGHT_X, mmu_idx, PAGE_SIZE);
    return true;
}

static int probe_vector = -1, probe_error, probe_index, probe_old;
static void probe_interrupt(uc_engine *uc, uint32_t vector, void *user)
{
    Engine *e = user;
    (void)uc;
    probe_vector = vector;
    probe_error = ENV(e, tt_layout.error_code, int32_t);
    probe_old = ENV(e, tt_layout.old_exception, int32_t);
    probe_index = CPU32(e, tt_layout.cpu_exception_index);
    ENV(e, tt_layout.old_exception, int32_t) = -1;
    CPU32(e, tt_layout.cpu_exception_index) = EXC_HLT;
    tt_inside.cpu_loop_exit(e->cpu);
}

/* Unicorn has every load and store followed by a call that asks whether to stop,
 * for hooks that the engine does not use.  A flag in uc_struct leaves these calls
 * out.  It is found by its neighbours and by what it does; without it the engine
 * is right, only slower. */
static void skip_exit_checks(Engine *e)
{
    /* mov al,[0x5123]; mov bl,[0x5123]; hlt */
    static const uint8_t loads[] = {0x8a, 0x04, 0x25, 0x23, 0x51, 0, 0, 0x8a, 0x1c, 0x25, 0x23, 0x51, 0, 0, 0xf4};
    uint8_t *uc = (uint8_t *)e->uc;
    size_t plain;

    run_probe(e, loads, sizeof loads);
    plain = seen_block->code_size;
    for (int i = 0; i < 8192; i += 4) {
        /* int cpu_context_size; uint64_t next_pc; bool hook_insert, first_tb, no_exit_request, init_done */
        uint8_t *flags = uc + i + 16; /* after four bytes of padding */
        int32_t size;
        memcpy(&size, uc + i, 4);
        if (size < tt_layout.state_size || size > tt_layout.state_size + 256 || flags[0] || flags[1] > 1 || flags[2]
            || flags[3] != 1)
            continue;
        flags[2] = 1;
        run_probe(e, loads, sizeof loads);
        if (seen_block->code_size + 20 < plain)
            return;
        flags[2] = 0;
    }
}

static TlbEntry *victim_entries(Engine *e, int mode)
{
    const Layout *l = &tt_layout;
    return (TlbEntry *)(e->env + l->tlb_desc + mode * l->tlb_desc_size + l->tlb_victims);
}

static const char *find_offsets(Engine *e)
{
    static const uint8_t just_hlt[] = {0xf4};
    Layout *l = &tt_layout;
    uint64_t magic = 0x5ab1e0ddba11f00dull, v;
    int size = 0, at;
    void **slot;

    seen_cpu = seen_tcg_ctx = NULL;
    run_probe(e, just_hlt, sizeof just_hlt);
    if (!seen_cpu || !seen_tcg_ctx)
        return refuse("translation takes another way");
    e->cpu = seen_cpu;
    e->tcg_ctx = seen_tcg_ctx;
    e->code_base = (uint8_t *)((uintptr_t)seen_block->code & ~0xfffffull);

    /* env: where RAX is, inside the CPU object */
    uc_reg_write(e->uc, UC_X86_REG_RAX, &magic);
    at = find_u64(e->cpu, 0, 1 << 17, magic);
    v = 0;
    uc_reg_write(e->uc, UC_X86_REG_RAX, &v);
    if (at < 0)
        return refuse("its CPU state cannot be found");
    e->env = e->cpu + at;
    if (find_u64(e->cpu, 0, 1024, (uint64_t)e->env) < 0)
        return refuse("its CPU state is not where its CPU says");

    size = uc_context_size(e->uc);
    if (size < 5000 || size > 8192)
        return refuse("its CPU state has an unknown size");
    l->state_size = 0;

    /* registers that uc_reg_write reaches: check the offsets assumed */
    static const struct { int reg, at; } known[] = {
        {UC_X86_REG_RCX, ENV_REGS + 8 * RCX}, {UC_X86_REG_RSP, ENV_REGS + 8 * RSP},
        {UC_X86_REG_R15, ENV_REGS + 8 * 15},  {UC_X86_REG_RIP, ENV_EIP},
        {UC_X86_REG_CR2, ENV_CR + 16},        {UC_X86_REG_FS_BASE, ENV_SEGS + 24 * SEG_FS + 8},
        {UC_X86_REG_GS_BASE, ENV_SEGS + 24 * SEG_GS + 8},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint64_t old;
        uc_reg_read(e->uc, known[i].reg, &old);
        v = 0x123456789000 + i;
        uc_reg_write(e->uc, known[i].reg, &v);
        bool fits = ENV(e, known[i].at, uint64_t) == v;
        uc_reg_write(e->uc, known[i].reg, &old);
        if (!fits)
            return refuse("its registers are laid out in another way");
    }
    uc_x86_mmr gdtr = {.base = 0x1111222233334444, .limit = 0x5678};
    uc_reg_write(e->uc, UC_X86_REG_GDTR, &gdtr);
    if (SEG(e, SEG_GDT).base != gdtr.base || SEG(e, SEG_GDT).limit != gdtr.limit)
        return refuse("its segment registers are laid out in another way");

    /* model-specific and debug registers */
    int end = size;
    l->star = find_msr(e, 0xc0000081, magic, end);
    l->lstar = find_msr(e, 0xc0000082, magic, end);
    l->cstar = find_msr(e, 0xc0000083, magic, end);
    l->fmask = find_msr(e, 0xc0000084, magic, end);
    l->sysenter_esp = find_msr(e, 0x175, magic, end);
    l->sysenter_eip = find_msr(e, 0x176, magic, end);
    if (l->star < 0 || l->lstar < 0 || l->cstar != l->lstar + 8 || l->fmask != l->lstar + 16
        || l->sysenter_esp < 0 || l->sysenter_eip != l->sysenter_esp + 8)
        return refuse("its model-specific registers are laid out in another way");
    l->sysenter_cs = l->sysenter_esp - 8;
    l->mtrr = find_msr(e, 0x2ff, magic, end + 1024) - 11 * 8;
    if (l->mtrr < end || find_msr(e, 0x250, magic, end + 1024) != l->mtrr
        || find_msr(e, 0x20f, magic, end + 1024) != l->mtrr + MTRR_SIZE - 8)
        return refuse("its memory type registers are laid out in another way");
    uc_x86_msr cs = {.rid = 0x174, .value = 0x4321};
    uc_reg_write(e->uc, UC_X86_REG_MSR, &cs);
    if (ENV(e, l->sysenter_cs, uint32_t) != 0x4321)
        return refuse("SYSENTER_CS is not where it was expected");
    cs.value = 0;
    uc_reg_write(e->uc, UC_X86_REG_MSR, &cs);
    l->efer = ENV_CR + 9 * 8 + 8 + 4 * 16 + 16 + 8; /* a20, bnd_regs, bndcs, msr_bndcfgs */
    uc_x86_msr efer = {.rid = 0xc0000080}, efer2;
    uc_reg_read(e->uc, UC_X86_REG_MSR, &efer);
    efer2 = efer;
    efer2.value ^= EFER_SCE;
    if (ENV(e, l->efer, uint64_t) != efer.value)
        return refuse("EFER is not where it was expected");
    uc_reg_write(e->uc, UC_X86_REG_MSR, &efer2);
    if (ENV(e, l->efer, uint64_t) != efer2.value)
        return refuse("EFER is not where it was expected");
    uc_reg_write(e->uc, UC_X86_REG_MSR, &efer);
    uc_reg_write(e->uc, UC_X86_REG_DR2, &magic);
    at = find_u64(e->env, 0, end, magic);
    v = 0;
    uc_reg_write(e->uc, UC_X86_REG_DR2, &v);
    if (at < 0)
        return refuse("its debug registers cannot be found");
    l->dr = at - 16;
    l->error_code = l->dr - 16;
    l->old_exception = l->dr + 64 + 32;
    uint64_t xmm[2] = {magic, ~magic}, none[2] = {0, 0};
    uc_reg_write(e->uc, UC_X86_REG_XMM1, xmm);
    at = find_u64(e->env, 0, end, magic);
    uc_reg_write(e->uc, UC_X86_REG_XMM1, none);
    if (at < 64)
        return refuse("its SSE registers cannot be found");
    l->xmm = at - 64;

    /* x87 control word and a register; MXCSR lies before the SSE registers */
    uint16_t fpcw = 0x0f3f, old_fpcw;
    uint32_t mxcsr = 0x1fa0, old_mxcsr;
    struct { uint64_t mantissa; uint16_t exponent; } __attribute__((packed)) st = {magic, 0x4123}, old_st;
    uc_reg_read(e->uc, UC_X86_REG_FPCW, &old_fpcw);
    uc_reg_read(e->uc, UC_X86_REG_MXCSR, &old_mxcsr);
    uc_reg_read(e->uc, UC_X86_REG_FP0, &old_st);
    uc_reg_write(e->uc, UC_X86_REG_FPCW, &fpcw);
    uc_reg_write(e->uc, UC_X86_REG_MXCSR, &mxcsr);
    uc_reg_write(e->uc, UC_X86_REG_FP0, &st);
    bool fits_fpu = ENV(e, ENV_FPSTT + 6, uint16_t) == fpcw && ENV(e, l->xmm - 8, uint32_t) == mxcsr
                    && ENV(e, ENV_FPREGS, uint64_t) == magic && ENV(e, ENV_FPREGS + 8, uint16_t) == st.exponent;
    uc_reg_write(e->uc, UC_X86_REG_FPCW, &old_fpcw);
    uc_reg_write(e->uc, UC_X86_REG_MXCSR, &old_mxcsr);
    uc_reg_write(e->uc, UC_X86_REG_FP0, &old_st);
    if (!fits_fpu || find_msr(e, 0xc0000102, magic, end) != l->lstar + 24)
        return refuse("its floating-point registers are laid out in another way");

    /* The state ends with the field that says how far a reset clears: after
     * SVM's registers and a host address that no guest may see. */
    l->state_size = l->old_exception + 8;

    /* A part of env that this QEMU never uses: the upper halves of the AVX
     * registers, which follow the last MMX temporary.  Four words of it are ours. */
    l->left = l->sysenter_cs - 64;
    l->current = l->left + 8;
    l->entry_tick = l->left + 16;
    for (int i = -1024; i < 64; i++)
        if (e->env[l->left + i])
            return refuse("a part of its CPU state that was thought free is in use");

    /* CPUState */
    at = find_u64(e->cpu, 0, (int)(e->env - e->cpu), (uint64_t)e->uc);
    if (at < 0)
        return refuse("its CPU object is laid out in another way");
    l->cpu_exception_index = at - 8;
    l->cpu_halted = at - 16;
    l->cpu_cflags_next_tb = 24;
    if (CPU32(e, 24) != -1)
        return refuse("its CPU object is laid out in another way");

    /* The fill function: replace Unicorn's in the CPU's class. */
    void *class = *(void **)(e->cpu + at + 8);
    if (uc_ctl_tlb_mode(e->uc, UC_TLB_VIRTUAL))
        return refuse("it has no virtual TLB");
    at = find_u64(class, 0, 512, (uint64_t)tt_inside.fill_tlb);
    if (at < 0)
        return refuse("its TLB fill function cannot be replaced");
    slot = (void **)((uint8_t *)class + at);
    *slot = probe_fill;
    uc_ctl_flush_tlb(e->uc);

    /* The TLB's tables: `f[3]` right before the 4-byte counter before env. */
    l->tlb_fast = -16 - MMU_MODES * (int)sizeof(TlbFast);
    l->tlb_desc_size = 48 + VICTIMS * 64 + VICTIMS * 16 + 8;
    l->tlb_victims = 48;
    l->tlb_desc = (l->tlb_fast - MMU_MODES * l->tlb_desc_size) & ~15; /* the tables are aligned to 16 */
    /* mov al,[0x5123]; hlt: then the entry for 0x5000 must be there, and nowhere else */
    static const uint8_t touch[] = {0x8a, 0x04, 0x25, 0x23, 0x51, 0, 0, 0xf4};
    run_probe(e, touch, sizeof touch);
    int hits = 0;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = (TlbFast *)(e->env + l->tlb_fast) + mode;
        size_t n = f->mask / sizeof(TlbEntry) + 1;
        if (f->mask % sizeof(TlbEntry) || n < 16 || n > 1 << 22 || (n & (n - 1)))
            return refuse("its TLB is laid out in another way");
        TlbEntry *t = &f->table[5 & (n - 1)];
        hits += t->addr_read == 0x5000 && t->paddr == 0x5000 && t->addend + 0x5000 == (uintptr_t)e->ram + 0x5000;
        for (int i = 0; i < VICTIMS; i++) {
            TlbEntry *victim = victim_entries(e, mode) + i;
            if (victim->addr_read != ~0ull || victim->addr_code != ~0ull)
                return refuse("its victim TLB is laid out in another way");
        }
        if (*(uint64_t *)(e->env + l->tlb_desc + mode * l->tlb_desc_size) != ~0ull)
            return refuse("its TLB descriptions are laid out in another way");
    }
    if (hits != 1)
        return refuse("its TLB entries are laid out in another way");

    /* mov al,[0x105123] and so on, until the entry for 0x5000 has to leave: it must be the first victim */
    hits = 0;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbFast *f = (TlbFast *)(e->env + l->tlb_fast) + mode;
        uint32_t addr = 0x5123 + (f->mask / sizeof(TlbEntry) + 1) * PAGE_SIZE;
        uint8_t clash[] = {0x8a, 0x04, 0x25, 0, 0, 0, 0, 0xf4};
        if (f->table[5 & (f->mask / sizeof(TlbEntry))].addr_read != 0x5000)
            continue;
        memcpy(clash + 3, &addr, 4);
        run_probe(e, clash, sizeof clash);
        TlbEntry *victim = victim_entries(e, mode);
        uint64_t *most_used = (uint64_t *)(e->env + l->tlb_desc + mode * l->tlb_desc_size + TLB_WINDOW_MOST);
        hits += victim->addr_read == 0x5000 && victim->paddr == 0x5000 && victim[1].addr_read == ~0ull
            && most_used[1] >= 2 && most_used[1] < 16 && most_used[2] == 1; /* then: entries used now, victims so far */
    }
    if (hits != 1)
        return refuse("its victim TLB is laid out in another way");

    /* Exceptions: int3-like vectors and error codes where we think they are. */
    uc_hook hook;
    uc_hook_add(e->uc, &hook, UC_HOOK_INTR, (void *)probe_interrupt, e, 1, 0);
    static const uint8_t int3[] = {0xcc};
    ENV(e, l->old_exception, int32_t) = -1;
    run_probe(e, int3, sizeof int3);
    if (probe_vector != 3 || probe_index != 3)
        return refuse("exceptions come with another layout");
    /* mov eax, 0x1234; mov ds, ax: #GP or #NP with a selector error code */
    static const uint8_t bad_selector[] = {0xb8, 0x38, 0x12, 0, 0, 0x8e, 0xd8, 0xf4};
    SEG(e, SEG_GDT).base = 0;
    SEG(e, SEG_GDT).limit = 0;
    CR(e, 0) |= CR0_PE;
    HFLAGS(e) |= HF_PE;
    run_probe(e, bad_selector, sizeof bad_selector);
    if (probe_vector != EXC_GP || probe_error != 0x1238 || probe_old != EXC_GP)
        return refuse("exceptions carry their error code elsewhere");
    uc_hook_del(e->uc, hook);

    /* cflags_next_tb: limits the next block to one instruction. */
    static const uint8_t three[] = {0x90, 0x90, 0xf4};
    tt_inside.tb_flush(e->cpu);
    CPU32(e, l->cpu_cflags_next_tb) = 1;
    memcpy(e->ram + 0x2000, three, 3);
    seen_block = NULL;
    uc_emu_start(e->uc, 0x2000, 0, 0, 0);
    if (CPU32(e, l->cpu_cflags_next_tb) != -1 || !seen_block || seen_block->pc != 0x2001
        || seen_block->size != 2 || seen_block->icount != 2 || seen_block->page_addr[0] != 0x2000
        || seen_block->page_addr[1] != ~0ull)
        return refuse("its blocks are laid out in another way");

    *slot = probe_fill;
    skip_exit_checks(e);
    *slot = tt_fill;
    tt_inside.tb_flush(e->cpu);
    tt_inside.tlb_flush(e->cpu);
    memset(e->ram, 0, 0x6000);
    return NULL;
}

/* Find and check everything the engine relies on; NULL, or why it cannot run. */
const char *tt_layout_prepare(Engine *e)
{
    const char *why = find_functions();
    return why ? why : find_offsets(e);
}
