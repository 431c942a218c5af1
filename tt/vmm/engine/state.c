/*
 * The CPU's registers as QEMU keeps them: flags, segments, and which bytes of its
 * structure are the guest's state.
 */
#include <string.h>

#include "core.h"

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

void tt_set_flags(Engine *e, uint64_t flags)
{
    ENV(e, ENV_CC_SRC, uint64_t) = flags & FLAGS_ARITH;
    ENV(e, ENV_CC_DST, uint64_t) = ENV(e, ENV_CC_SRC2, uint64_t) = 0;
    ENV(e, ENV_CC_OP, int32_t) = 1;
    ENV(e, ENV_DF, int32_t) = flags & FLAG_DF ? -1 : 1;
    EFLAGS(e) = (flags & ~(uint64_t)(FLAGS_ARITH | FLAG_DF)) | 2;
}

static bool has_port_breakpoint(const Engine *e)
{
    uint64_t dr7 = DEBUG_REGISTER(e, 7);

    for (int i = 0; i < 4; i++)
        if ((dr7 >> (2 * i) & 3) && (dr7 >> (16 + 4 * i) & 3) == 2)
            return true;
    return false;
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
    h |= has_port_breakpoint(e) ? HF_IOBPT : 0;
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

/* ---- state -------------------------------------------------------------- */

/* Parts of env that are not state: two words of ours, QEMU's breakpoint pointers,
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
    memcpy(to, e->tr.env, tt_layout.state_size);
    for (int at = next_hole(0, &size); at < tt_layout.state_size; at = next_hole(at + size, &size))
        memset(to + at, 0, size);
    memcpy(to + tt_layout.left + MTRR_SAVED, e->tr.env + tt_layout.mtrr, MTRR_SIZE);
}

/* QEMU's float_status: tininess, rounding, exceptions, precision, four flags. */
static bool sound_float_status(const uint8_t *s)
{
    return s[0] <= 1 && s[1] <= 3 && (s[3] == 0 || s[3] == 32 || s[3] == 64 || s[3] == 80)
        && ((s[4] | s[5] | s[6] | s[7]) & ~1) == 0;
}

/* Would QEMU, which trusts its own structure, stay inside of it with this state?
 * The state may come from a file that was forged. */
static bool sound(const Engine *e, const uint8_t *from)
{
    const uint8_t *tags = from + ENV_FPSTT + 8;
    int32_t op, df;
    uint32_t top;
    bool fine = true;

    memcpy(&op, from + ENV_CC_OP, 4);
    memcpy(&df, from + ENV_DF, 4);
    memcpy(&top, from + ENV_FPSTT, 4);
    for (int i = 0; i < 8; i++)
        fine &= tags[i] <= 1;
    return fine && op == 1 && (df == 1 || df == -1) && top < 8
        && !memcmp(from + ENV_HFLAGS2, e->tr.env + ENV_HFLAGS2, 4) && !memcmp(from + ENV_A20, e->tr.env + ENV_A20, 4)
        && sound_float_status(from + ENV_FP_STATUS) && sound_float_status(from + ENV_MMX_STATUS)
        && sound_float_status(from + ENV_MMX_STATUS + 8);
}

/* Put a copied state back; the holes keep what they hold.  QEMU's breakpoints
 * follow DR7: they are taken out before and put in after.  False if the state is
 * impossible: then it was not loaded, or must not be run. */
bool tt_load_state(Engine *e, const uint8_t *from)
{
    uint32_t hflags, derived, ignored;
    if (!sound(e, from))
        return false;
    int size, done = 0;
    uint64_t *dr7 = &ENV(e, tt_layout.dr + 56, uint64_t), wanted;
    tt_inside.update_dr7(e->tr.env, *dr7 & ~0xffull);
    for (int at; done < tt_layout.state_size; done = at + size) {
        at = next_hole(done, &size);
        memcpy(e->tr.env + done, from + done, at - done);
    }
    memcpy(e->tr.env + tt_layout.mtrr, from + tt_layout.left + MTRR_SAVED, MTRR_SIZE);
    wanted = *dr7;
    *dr7 &= ~0xffull;
    tt_inside.update_dr7(e->tr.env, wanted);
    hflags = HFLAGS(e);
    tt_update_hflags(e);
    derived = HFLAGS(e);
    HFLAGS(e) = hflags;
    /* QEMU adds what comes from EFLAGS when it looks, and in 64-bit code lets SS32 follow
     * a stack segment that is not used there. */
    ignored = FLAG_TF | FLAG_RF | FLAG_VM | 3 << 12 | (hflags & HF_CS64 ? HF_SS32 : 0);
    return !((hflags ^ derived) & ~ignored);
}
