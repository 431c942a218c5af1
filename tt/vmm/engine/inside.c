/*
 * QEMU's functions inside libunicorn: found by name, and some of them interposed.
 *
 * Functions are found in libunicorn's dynamic symbols.  Calls that QEMU makes between
 * its own files are redirected to the engine by rewriting their slots in the library's
 * procedure linkage table, as any dynamic linker would have done with a library loaded
 * earlier:
 *
 *   tcg_gen_code         -> to give each new block the engine's tick counter
 *   cpu_loop_exit_noexc  -> a block that rewrote itself is left half way: settle its ticks
 *   tb_htable_lookup     -> to know the instruction limit of the block looked up
 *   tlb_flush            -> to know when no translation is cached
 *   cpu_watchpoint_insert -> to take the page of the guest's own data breakpoint out of the TLB
 *   tb_gen_code, gen_intermediate_code -> to begin blocks at bit tests
 *   tlb_reset_dirty_by_vaddr -> to nothing: page classes do its work
 *
 * The functions that translated code calls for loads and stores without a TLB entry are
 * replaced in the tables that the translator takes their addresses from (access.c).
 *
 * The library is one for the process, so this is done once, and the functions below see
 * every Unicorn engine in it: those of other threads, and those of a user's own.  `tt_current`,
 * which each thread has for itself, says which engine a call is for.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "layout.h"

Inside tt_inside;
_Thread_local Engine *tt_current;
_Thread_local Probe *tt_probe;

enum { PROBED_CONTEXT = 1024 }; /* bytes of QEMU's TCGContext, which has 30 KB */

static int gen_code(void *tcg_ctx, Block *tb)
{
    if (tt_current && tt_current->tr.tcg_ctx == tcg_ctx && tt_current->tr.revival.reviving)
        return tt_revived_size(tt_current, tb);
    if (unlikely(tt_probe != NULL)) {
        tt_probe->tcg_ctx = tcg_ctx;
        tt_probe->block = tb;
        tt_probe->first = tt_probe->first ? tt_probe->first : tb;
        tt_probe->code_end = tt_find_once(tcg_ctx, 0, PROBED_CONTEXT, (uint64_t)tb->code);
    }
    int size = tt_inside.tcg_gen_code(tcg_ctx, tb);
    if (tt_current && tt_current->tr.tcg_ctx == tcg_ctx && size > 0)
        tt_patch_block(tt_current, tb);
    return size;
}

static __attribute__((noreturn)) void loop_exit_noexc(void *cpu)
{
    if (tt_current && tt_current->tr.cpu == cpu)
        tt_settle(tt_current);
    tt_inside.cpu_loop_exit_noexc(cpu);
}

static Block *htable_lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cf_mask)
{
    if (likely(tt_current != NULL))
        tt_current->tr.lookup_count = cf_mask & 0x7fff;
    else if (tt_probe)
        tt_probe->cpu = cpu;
    return tt_inside.tb_htable_lookup(cpu, pc, cs_base, flags, cf_mask);
}

/* BT, BTS, BTR and BTC leave AF and OF undefined, and QEMU makes them depend on what
 * it knows of the flags within the block: on where the block begins, then, which is
 * nothing that a guest may see (in the flags that an interrupt pushes, say).  So such
 * an instruction is always the first of its block, where QEMU knows nothing. */
static _Thread_local int block_limit;

static void translate(void *cpu, Block *tb, int max_instructions)
{
    if (tt_current && tt_current->tr.cpu == cpu && tt_reviving(tt_current, tb))
        return;
    if (block_limit && block_limit < max_instructions)
        max_instructions = block_limit;
    block_limit = 0;
    tt_inside.gen_intermediate_code(cpu, tb, max_instructions);
}

static Block *make_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags)
{
    Engine *e = tt_current && tt_current->tr.cpu == cpu ? tt_current : NULL;
    Block *tb = e ? tt_revive_block(e, pc, cs_base, flags, cflags) : NULL;

    if (tb)
        return tb;
    tb = tt_inside.tb_gen_code(cpu, pc, cs_base, flags, cflags);
    if (!e)
        return tb;
    int first = tt_first_bit_test(e, tb);
    if (first > 0 && first < tb->icount) {
        tt_inside.tb_phys_invalidate(e->tr.tcg_ctx, tb, -1);
        block_limit = first;
        tb = tt_inside.tb_gen_code(cpu, pc, cs_base, flags, cflags);
    }
    tt_note_block(e, tb);
    return tb;
}

/* Unicorn marks store rights on a page that gets translated code as "look first",
 * with a walk over the whole TLB for each new block.  Page classes (mmu.c) leave no
 * such rights to be found. */
static void no_reset_dirty(void *cpu, uint64_t start, uint64_t size)
{
    (void)cpu, (void)start, (void)size;
}

/* The guest set a data breakpoint (Unicorn's own function does nothing): what the TLB holds of its
 * page would let accesses pass.  debug.c reads the registers themselves. */
static int watchpoint_insert(void *cpu, uint64_t addr, uint64_t size, int flags, void **watchpoint)
{
    (void)flags, (void)watchpoint;
    if (tt_current && tt_current->tr.cpu == cpu)
        tt_drop_page(tt_current, addr & ~(size - 1) & PAGE_MASK);
    return 0;
}

/* The guest loaded CR3, say: nothing in the TLB comes from any table now. */
static void flush_tlb(void *cpu)
{
    if (tt_current && tt_current->tr.cpu == cpu)
        tt_flush_tlb(tt_current);
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
        __atomic_store_n(slot, to, __ATOMIC_RELEASE); /* other threads may be calling through it */
        return true;
    }
    return false;
}

/* Put `to` into every table of libunicorn's that holds the address of `name`; keep that in `*from`. */
static bool replace(struct link_map *map, const char *name, void *to, void **from)
{
    const ElfW(Sym) *symtab = NULL;
    const char *strtab = NULL;
    const ElfW(Rela) *rela = NULL;
    size_t size = 0, found = 0;

    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_SYMTAB: symtab = (const void *)d->d_un.d_ptr; break;
        case DT_STRTAB: strtab = (const void *)d->d_un.d_ptr; break;
        case DT_RELA: rela = (const void *)d->d_un.d_ptr; break;
        case DT_RELASZ: size = d->d_un.d_val; break;
        }
    }
    if (!symtab || !strtab || !rela)
        return false;
    for (size_t i = 0; i < size / sizeof *rela; i++) {
        if (ELF64_R_TYPE(rela[i].r_info) != R_X86_64_64
            || strcmp(strtab + symtab[ELF64_R_SYM(rela[i].r_info)].st_name, name))
            continue;
        void **slot = (void **)(map->l_addr + rela[i].r_offset);
        uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
        if (mprotect((void *)page, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE))
            return false;
        *from = *slot;
        __atomic_store_n(slot, to, __ATOMIC_RELEASE);
        found++;
    }
    return found == 1;
}

/* Find and redirect; NULL, or what is missing.  Once a process. */
const char *tt_find_functions(void)
{
    Dl_info info;
    struct link_map *map;
    void *lib;

    if (!dladdr1((void *)uc_open, &info, (void **)&map, RTLD_DL_LINKMAP))
        return "the library cannot be located";
    lib = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!lib)
        return "the library cannot be opened";
#define FIND(field, symbol)                                     \
    if (!(*(void **)&tt_inside.field = dlsym(lib, symbol "_x86_64"))) \
    return "it lacks " symbol
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
    FIND(page_addr_code, "get_page_addr_code");
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
        || !redirect(map, "cpu_watchpoint_insert_x86_64", watchpoint_insert)
        || !redirect(map, "tb_gen_code_x86_64", make_block)
        || !redirect(map, "gen_intermediate_code_x86_64", translate)
        || !redirect(map, "tlb_reset_dirty_by_vaddr_x86_64", no_reset_dirty))
        return "its internal calls cannot be redirected";
    static const char *const loads[] = {"ret_ldub", "le_lduw", "le_ldul", "le_ldq"};
    static const char *const stores[] = {"ret_stb", "le_stw", "le_stl", "le_stq"};
    for (int i = 0; i < 4; i++) {
        char load[64], store[64];
        snprintf(load, sizeof load, "helper_%s_mmu_x86_64", loads[i]);
        snprintf(store, sizeof store, "helper_%s_mmu_x86_64", stores[i]);
        if (!replace(map, load, tt_loads[i], &tt_inside.load[i]) || !replace(map, store, tt_stores[i], &tt_inside.store[i]))
            return "its functions for loads and stores cannot be replaced";
    }
    return NULL;
}
