/*
 * Ticks, and stopping at exactly the right one.
 *
 * Each translated block begins with Unicorn's two calls, "block hook"
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

uint64_t tt_tick(const Engine *e)
{
    return e->cpu.horizon - (uint64_t)LEFT(e);
}

void tt_set_tick(Engine *e, uint64_t tick)
{
    LEFT(e) = (int64_t)(e->cpu.horizon - tick);
}

void tt_set_horizon(Engine *e, uint64_t horizon)
{
    uint64_t tick = tt_tick(e);
    e->cpu.horizon = horizon;
    tt_set_tick(e, tick);
}

/* The tick at which the run ends, unless something comes in between. */
uint64_t tt_next_stop(const Engine *e)
{
    uint64_t next = e->stop < e->limit ? e->stop : e->limit;
    return e->hit_stop < next ? e->hit_stop : next;
}

/* A stop, the interrupt line or a request of the engine's own has changed: move the horizon to the next tick at
 * which the run has to be interrupted. */
void tt_reconsider(Engine *e)
{
    uint64_t next = tt_next_stop(e), now = tt_tick(e);
    tt_set_horizon(e, e->cpu.intr || e->failed || e->tr.refetch || OWN_TRAP(e) || next < now ? now : next);
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

Block *tt_running_block(const Engine *e)
{
    return (Block *)(e->tr.code_base + CURRENT(e) - 1 - tt_layout.block_distance);
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

/* Read a row of the table behind a block's code: where its next instruction starts. */
static uint64_t next_start(const uint8_t **p, uint64_t pc)
{
    pc += sleb128(p);
    sleb128(p); /* cc_op */
    sleb128(p); /* host code offset */
    return pc;
}

/* The index of the block's instruction at RIP; the number of its instructions if RIP is at none of them, for then all
 * have retired. */
int tt_index_in_block(const Engine *e, const Block *tb)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc, want = EIP(e) + tb->cs_base;
    for (int i = 0; i < tb->icount; i++) {
        pc = next_start(&p, pc);
        if (pc == want)
            return i;
    }
    return tb->icount;
}

static bool is_bit_test(const uint8_t *code, const uint8_t *end, bool is_long)
{
    for (; code < end; code++) {
        switch (*code) {
        case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: /* segments */
        case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
            continue;
        case 0x0f:
            return code + 1 < end
                   && (code[1] == 0xa3 || code[1] == 0xab || code[1] == 0xb3 || code[1] == 0xbb || code[1] == 0xba);
        default:
            if (is_long && (*code & 0xf0) == 0x40) /* REX */
                continue;
            return false;
        }
    }
    return false;
}

/* The index of the block's first BT, BTS, BTR or BTC, not counting instruction 0; the number of its instructions if
 * there is none. */
int tt_first_bit_test(const Engine *e, const Block *tb)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc, first_page = tb->pc & PAGE_MASK;

    for (int i = 0; i < tb->icount; i++) {
        uint8_t code[15];
        int size = 0;
        pc = next_start(&p, pc);
        for (uint64_t at = pc; i > 0 && size < (int)sizeof code && at < tb->pc + tb->size; at++) {
            uint64_t page = tb->page_addr[(at & PAGE_MASK) != first_page];
            if (page >= e->tr.page_count * PAGE_SIZE)
                break;
            code[size++] = e->mem.pool[page + (at & (PAGE_SIZE - 1))];
        }
        if (size && is_bit_test(code, code + size, tb->flags & HF_CS64))
            return i;
    }
    return tb->icount;
}

/* RIP of a block's last instruction. */
uint64_t tt_last_in_block(const Block *tb)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        pc = next_start(&p, pc);
    }
    return pc - tb->cs_base;
}

/* The running block is left early, before the instruction at RIP: take back the ticks of those that did not retire. */
void tt_settle(Engine *e)
{
    if (!CURRENT(e))
        return;
    Block *tb = tt_running_block(e);
    int retired = tt_index_in_block(e, tb);
    LEFT(e) += tb->icount - retired;
    CURRENT(e) = 0;
    e->aborted += retired < tb->icount;
}

/* Leave the running block before the instruction that host code at `ra` belongs to (at RIP,
 * if `ra` is 0), and come back to it alone in a block. */
void tt_repeat_alone(Engine *e, uintptr_t ra)
{
    if (ra)
        tt_inside.restore_state(e->tr.cpu, ra, false);
    tt_settle(e);
    CPU32(e, tt_layout.cpu_cflags_next_tb) = 1;
    tt_inside.cpu_loop_exit(e->tr.cpu);
}

void tt_leave(Engine *e, enum Reason reason)
{
    e->reason = reason;
    CURRENT(e) = 0;
    CPU32(e, tt_layout.cpu_exception_index) = EXC_HLT;
    tt_inside.cpu_loop_exit(e->tr.cpu);
}

void tt_next_block(Engine *e)
{
    CURRENT(e) = 0;
    tt_inside.cpu_loop_exit(e->tr.cpu);
}

/* A guest can arrange that the CPU enters handlers for ever and executes nothing (a
 * handler whose first instruction faults, on an IST stack).  No tick would pass, and
 * nothing could stop it: end the machine.  The count is part of the CPU's state, so
 * that the end does not depend on where the machine was stopped or restored. */
void tt_count_entry(Engine *e)
{
    enum { ENTRIES_ALLOWED = 10000 };
    uint64_t now = tt_tick(e);

    e->entered_at = now;
    if (ENTRY_TICK(e) != now) {
        ENTRY_TICK(e) = now;
        ENTRY_COUNT(e) = 0;
    }
    if (unlikely(++ENTRY_COUNT(e) > ENTRIES_ALLOWED)) {
        snprintf(e->error, sizeof e->error, "%d exceptions in a row and not one instruction executed, at rip %#llx",
                 ENTRIES_ALLOWED, (unsigned long long)EIP(e));
        tt_leave(e, R_SHUTDOWN);
    }
}

/* QEMU clears RF at the end of a block.  A guest must not see where the engine cuts blocks, so one with RF runs its
 * instructions one by one. */
static bool one_by_one(const Block *tb)
{
    return (tb->flags & FLAG_RF) && tb->icount > 1;
}

/* The index of the block's first instruction with a breakpoint; the number of its instructions if there is none. */
static int first_break(const Engine *e, const Block *tb, bool not_the_first)
{
    const uint8_t *p = tb->code + tb->code_size;
    uint64_t pc = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        pc = next_start(&p, pc);
        if (!(i == 0 && not_the_first) && tt_is_break(e, pc))
            return i;
    }
    return tb->icount;
}

/* The running block would pass the horizon.  It has not run yet. */
static void block_slow(uint8_t *env)
{
    Engine *e = tt_current;
    Block *tb = tt_running_block(e);
    uint64_t now = tt_tick(e) - tb->icount, next = tt_next_stop(e);
    (void)env;

    e->slow_blocks++;
    if (tt_own_due(e) && !e->failed) {
        tt_set_tick(e, now);
        EIP(e) = tb->pc - tb->cs_base;
        tt_own_trap(e);
    }
    if (e->failed || now >= next || (e->cpu.intr && (EFLAGS(e) & FLAG_IF) && !(HFLAGS(e) & HF_INHIBIT_IRQ))) {
        tt_set_tick(e, now);
        EIP(e) = tb->pc - tb->cs_base;
        CURRENT(e) = 0;
        if (e->failed)
            tt_leave(e, R_CALLBACK);
        if (now >= next)
            tt_leave(e, e->caught ? R_CATCH : now >= e->hit_stop ? R_WATCH : R_STOP);
        int vector = e->calls.acknowledge(e->self);
        if (vector >= 0) {
            tt_count_entry(e);
            tt_inside.do_interrupt_hard(e->tr.env, vector, 1);
        }
        tt_reconsider(e);
        tt_next_block(e);
    }
    if (e->tr.refetch) {
        e->tr.refetch = false;
        tt_set_tick(e, now);
        tt_set_horizon(e, e->cpu.intr ? now : next);
        EIP(e) = tb->pc - tb->cs_base;
        tt_next_block(e);
    }
    if (unlikely(e->break_count)) {
        int at = first_break(e, tb, now == e->no_break_at && tb->pc == e->no_break_pc);
        if (at == 0) {
            tt_set_tick(e, now);
            EIP(e) = tb->pc - tb->cs_base;
            tt_pass_break(e);
            tt_leave(e, R_BREAK);
        }
        if (now + at < next)
            next = now + at;
    }
    if (now + tb->icount > next || one_by_one(tb)) { /* cut the block */
        tt_set_tick(e, now);
        tt_set_horizon(e, OWN_TRAP(e) ? now : next);
        EIP(e) = tb->pc - tb->cs_base;
        CPU32(e, tt_layout.cpu_cflags_next_tb) = one_by_one(tb) ? 1 : (int32_t)(next - now);
        tt_next_block(e);
    }
    tt_set_horizon(e, e->cpu.intr || OWN_TRAP(e) ? now : next);
}

/* Unicorn's block hook: runs only in blocks that could not be patched. */
static void on_block(uc_engine *uc, uint64_t pc, uint32_t size, void *user)
{
    Engine *e = user;
    Block *tb = tt_inside.tb_lookup(e->tr.tcg_ctx, (uintptr_t)__builtin_return_address(0));
    (void)uc, (void)pc, (void)size;

    if (!tt_current)
        return;
    LEFT(e) -= tb->icount;
    CURRENT(e) = (uint32_t)(tb->code - e->tr.code_base) + 1;
    if (LEFT(e) < 0 || one_by_one(tb) || tt_block_has_break(e, tb))
        block_slow(e->tr.env);
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
    if (unlikely(!e->tr.code_base)) /* the first block: none lies before it */
        e->tr.code_base = (uint8_t *)((uintptr_t)code & ~0xfffffull);
    uint32_t words[4] = {tt_layout.left, tb->icount, tt_layout.current, (uint32_t)(code - e->tr.code_base) + 1};
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

bool tt_hook_blocks(Engine *e)
{
    uc_hook h;
    return uc_hook_add(e->tr.uc, &h, UC_HOOK_BLOCK, (void *)on_block, e, 1, 0) == UC_ERR_OK;
}

/* Count every instruction in a second, slow way, to check the ticks against. */
bool tt_count_instructions(Engine *e)
{
    uc_hook h;
    e->counted = e->aborted = 0;
    tt_inside.tb_flush(e->tr.cpu);
    return uc_hook_add(e->tr.uc, &h, UC_HOOK_CODE, (void *)on_code, e, 1, 0) == UC_ERR_OK;
}
