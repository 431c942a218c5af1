/*
 * An engine as its owner sees it: made, started, its registers set, its state saved.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"

/* ---- life ----------------------------------------------------------------- */

static uint64_t pages_size(const Engine *e)
{
    return e->tr.page_count * sizeof(Page);
}

/* Make an engine in `e`, which is all zeros, with RAM of zeros; NULL, or why there is none, in e->error.
 * tt_close() takes it back in either case. */
const char *tt_open(Engine *e, uint64_t ram_size, bool denali, uint32_t code_buffer)
{
    enum { SMALLEST = 1 << 20 };
    const uint64_t largest = 1ull << 40;
    const char *why;

    e->cpu.denali = denali;
    e->cpu.period_ns = 4;
    e->stop = e->limit = e->hit_stop = e->entered_at = e->no_catch_at = TT_FOREVER;
    if (ram_size < SMALLEST || ram_size % PAGE_SIZE || ram_size > largest) {
        snprintf(e->error, sizeof e->error,
                 "cannot make a machine with %llu bytes of RAM: give 1 MB to 1 TB, whole 4 KB pages",
                 (unsigned long long)ram_size);
        return e->error;
    }
    e->tr.page_count = ram_size / PAGE_SIZE;
    if (!tt_memory_open(&e->mem, ram_size) || !(e->tr.pages = tt_zeros(pages_size(e))))
        snprintf(e->error, sizeof e->error, "no memory for a machine with %llu MB of RAM: give it less with --mem",
                 (unsigned long long)ram_size >> 20);
    else if (tt_open_unicorn(&e->tr.uc, code_buffer, e->mem.pool, ram_size))
        snprintf(e->error, sizeof e->error, "Unicorn cannot open an x86-64 engine with that much RAM");
    else if ((why = tt_layout_prepare(e)))
        snprintf(e->error, sizeof e->error, "%s - install unicorn==2.1.4", why);
    else if (!tt_open_hooks(e))
        snprintf(e->error, sizeof e->error, "Unicorn refused a hook that tt needs: install unicorn==2.1.4");
    else
        tt_set_tick(e, 0);
    return *e->error ? e->error : NULL;
}

void tt_close(Engine *e)
{
    if (e->tr.uc)
        uc_close(e->tr.uc);
    tt_memory_close(&e->mem);
    if (e->tr.pages)
        munmap(e->tr.pages, pages_size(e));
    tt_forget_noted(e);
    free(e->cpu.cpuid);
    free(e->breaks);
    free(e->marks);
    free(e->watches);
    free(e->devices);
}

/* ---- registers ------------------------------------------------------------ */

enum { FLAGS_WRITABLE = 0x3f7fd7 };

/* Set RFLAGS between two runs. */
void tt_write_flags(Engine *e, uint64_t flags)
{
    flags = (flags & FLAGS_WRITABLE) | 2;
    tt_set_flags(e, flags);
    EFLAGS(e) = flags; /* between runs QEMU keeps all of them here too, and begins the next run from that */
    tt_update_hflags(e);
}

/* The size of the code that runs: 64, 32 or 16. */
int tt_code_bits(Engine *e)
{
    if ((EFER(e) & EFER_LMA) && (SEG(e, SEG_CS).flags & 1 << 21))
        return 64;
    return SEG(e, SEG_CS).flags & 1 << 22 ? 32 : 16;
}

/* Four bytes that stand for the general registers, RIP and RFLAGS. */
uint32_t tt_register_checksum(Engine *e)
{
    const uint64_t factor = 0xff51afd7ed558ccdull;
    uint64_t a = 0x9e3779b97f4a7c15ull;

    for (int i = 0; i < 17; i++) { /* RIP follows the sixteen */
        a = (a ^ REG(e, i)) * factor;
        a ^= a >> 32;
    }
    return ((a ^ tt_flags(e)) * factor) >> 32;
}

/* Put the CPU at `rip` in one of the modes that a boot loader leaves it in, with flat segments, interrupts
 * off, the FPU as FNINIT leaves it and general registers of 0.  CR3 of 0 in long mode: no paging (Denali). */
void tt_start(Engine *e, enum StartMode mode, uint64_t rip, uint64_t cr3, uint64_t gdt_base, uint32_t gdt_limit)
{
    static const struct { uint32_t code, data; uint64_t cr0, cr4, efer; } modes[] = {
        [START_REAL16] = {0x9b00, 0x9300, 0x10, 0, 0},
        [START_PROTECTED32] = {0xc09b00, 0xc09300, 0x10 | CR0_PE, 0, 0},
        [START_LONG64] = {0xa09b00, 0xc09300, 0x10 | CR0_PE | CR0_PG, CR4_PAE, EFER_LME | EFER_LMA},
    };
    bool real = mode == START_REAL16;
    uint32_t mxcsr = 0x1f80;
    uint16_t fpcw = 0x37f, fptag = 0xffff;

    memset(&REG(e, 0), 0, 16 * 8);
    EIP(e) = rip;
    EFLAGS(e) = 2;
    tt_canonical_flags(e);
    CR(e, 0) = modes[mode].cr0;
    if (mode == START_LONG64 && !cr3)
        CR(e, 0) &= ~(uint64_t)CR0_PG;
    CR(e, 2) = 0;
    CR(e, 3) = cr3;
    CR(e, 4) = modes[mode].cr4;
    EFER(e) = modes[mode].efer;
    uc_reg_write(e->tr.uc, UC_X86_REG_FPCW, &fpcw);
    uc_reg_write(e->tr.uc, UC_X86_REG_FPTAG, &fptag);
    uc_reg_write(e->tr.uc, UC_X86_REG_MXCSR, &mxcsr);
    for (int i = SEG_ES; i <= SEG_GS; i++) {
        uint32_t selector = real ? 0 : i == SEG_CS ? 0x10 : 0x18;
        SEG(e, i) = (Segment){selector, 0, real ? 0xffff : 0xffffffff, i == SEG_CS ? modes[mode].code : modes[mode].data};
    }
    SEG(e, SEG_LDT) = (Segment){0, 0, 0xffff, 0x8200};
    SEG(e, SEG_TR) = (Segment){0, 0, 0xffff, 0x8b00};
    SEG(e, SEG_GDT) = (Segment){0, gdt_base, gdt_limit, 0};
    SEG(e, SEG_IDT) = (Segment){0, 0, real ? 0x3ff : 0, 0};
    tt_update_hflags(e);
    tt_forget_code(e);
}

/* ---- state ---------------------------------------------------------------- */

/* Bytes of the Denali TLB, which no x86 CPU has; 0 on a pc. */
size_t tt_own_size(const Engine *e)
{
    return e->cpu.denali ? sizeof e->cpu.soft + sizeof e->cpu.soft_next + 1 : 0;
}

void tt_save_own(const Engine *e, uint8_t *to)
{
    if (!e->cpu.denali)
        return;
    memcpy(to, e->cpu.soft, sizeof e->cpu.soft);
    memcpy(to + sizeof e->cpu.soft, e->cpu.soft_next, sizeof e->cpu.soft_next);
    to[sizeof e->cpu.soft + sizeof e->cpu.soft_next] = e->cpu.soft_tlb;
}

/* Put back what tt_copy_state and tt_save_own gave, one behind the other; false if that state is
 * impossible. */
bool tt_load(Engine *e, const uint8_t *from)
{
    bool fine = tt_load_state(e, from);

    from += tt_layout.state_size;
    if (fine && e->cpu.denali) {
        memcpy(e->cpu.soft, from, sizeof e->cpu.soft);
        memcpy(e->cpu.soft_next, from + sizeof e->cpu.soft, sizeof e->cpu.soft_next);
        e->cpu.soft_tlb = from[sizeof e->cpu.soft + sizeof e->cpu.soft_next];
    }
    if (fine)
        tt_flush_tlb(e);
    return fine;
}
