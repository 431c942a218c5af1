/*
 * Exceptions on their way to the guest, and runs from tick to tick.
 */
#include <stdio.h>
#include <string.h>

#include "core.h"

/* ---- exceptions --------------------------------------------------------- */

/* INT n, INT3, INTO: Unicorn has moved RIP past it, but if its gate does not allow it, the
 * fault is at the instruction, which has not retired then. */
static void deliver_int(Engine *e, int vector)
{
    uint64_t next = EIP(e);

    EIP(e) = tt_last_in_block(tt_running_block(e));
    CURRENT(e) = 0;
    LEFT(e)++;
    e->aborted++;
    tt_effort(e, EFFORT_FAULT);
    if (unlikely(e->catches.any))
        tt_catch(e, vector == 0x80, vector == 0x80 ? (uint32_t)REG(e, RAX) : (uint32_t)vector, true);
    ENV(e, tt_layout.error_code + 8, uint64_t) = next;
    tt_inside.do_interrupt(e->tr.cpu); /* does not return where it faults */
    LEFT(e)--;
    e->aborted--;
}

static void deliver(Engine *e, int vector)
{
    uint64_t aborted = e->aborted;

    if (ENV(e, tt_layout.error_code + 4, int32_t) && CURRENT(e) && !e->cpu.denali) {
        deliver_int(e, vector);
        return;
    }
    if (vector == EXC_DB && CURRENT(e) && tt_running_block(e)->icount == 1 && tt_running_block(e)->size > 1)
        CURRENT(e) = 0; /* a single step, complete even if RIP did not move; a breakpoint's block has 1 byte */
    else
        tt_settle(e);
    if (unlikely(e->hit.size) && e->hit.by == BY_INSTRUCTION && tt_tick(e) < e->hit_stop)
        tt_forget_hit(e); /* the instruction did not retire */
    if (unlikely(OWN_TRAP(e)) && vector == EXC_DB)
        tt_own_tell(e);
    else if (unlikely(OWN_TRAP(e)))
        tt_own_forget(e);
    e->aborted -= vector == EXC_DB && aborted != e->aborted; /* a breakpoint comes before on_code */
    if (unlikely(e->catches.any) && !(e->cpu.denali && vector == EXC_UD))
        tt_catch(e, false, vector, vector != EXC_DB && vector != EXC_DF);
    tt_count_entry(e);
    tt_effort(e, EFFORT_FAULT);
    if (!e->cpu.denali) {
        /* RF is set in the image that a fault pushes, clear in the handler. */
        tt_inside.do_interrupt(e->tr.cpu);
        return;
    }
    ENV(e, tt_layout.old_exception, int32_t) = -1;
    if (vector == EXC_UD && tt_denali_vmcall(e)) {
        tt_reconsider(e);
        return;
    }
    if (unlikely(e->catches.any) && vector == EXC_UD)
        tt_catch(e, false, vector, true);
    if (!tt_denali_exception(e, vector, ENV(e, tt_layout.error_code, uint32_t), vector == EXC_PF ? CR(e, 2) : 0)) {
        snprintf(e->error, sizeof e->error, "exception %d at rip %#llx, address %#llx, has no handler to go to", vector,
                 (unsigned long long)EIP(e), vector == EXC_PF ? (unsigned long long)CR(e, 2) : 0ull);
        tt_leave(e, R_DOUBLE);
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
    uc_hook h;
    return tt_hook_blocks(e) && tt_hook_instructions(e)
           && !uc_hook_add(e->tr.uc, &h, UC_HOOK_INTR, (void *)on_interrupt, e, 1, 0)
           && !uc_hook_add(e->tr.uc, &h, UC_HOOK_INSN_INVALID, (void *)on_invalid, e, 1, 0);
}

/* Run until tick `stop`, or until something else ends the run. */
int tt_run(Engine *e, uint64_t stop)
{
    Engine *outer = tt_current; /* the engine whose callback made this run */
    uc_err err;

    if (tt_tick(e) >= stop || tt_tick(e) >= e->limit)
        return R_STOP;
    if (unlikely(e->hit.size)) {
        if (!e->hit.told && tt_tick(e) >= e->hit_stop) { /* the last run had to end for something else */
            e->hit.told = true;
            return R_WATCH;
        }
        if (e->hit.told)
            tt_forget_hit(e);
    } else {
        e->hit_stop = ~0ull;
    }
    tt_current = e;
    e->stop = stop;
    e->reason = R_NONE;
    e->failed = false;
    e->tr.effort = 0;
    e->tr.began_ns = tt_host_ns();
    e->caught = e->retired = false;
    CURRENT(e) = 0;
    CPU32(e, tt_layout.cpu_cflags_next_tb) = -1;
    tt_reconsider(e);
    err = uc_emu_start(e->tr.uc, EIP(e), 0, 0, 0);
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
    e->hit.told = e->reason == R_WATCH;
    tt_canonical_flags(e);
    tt_current = outer;
    return e->reason;
}
