/*
 * The engine: one x86 CPU with exact instruction counts, on libunicorn.
 *
 * Unicorn's public interface cannot say who accessed memory with which
 * privilege, count instructions cheaply, or deliver an interrupt.  The QEMU
 * inside it can, and the library exports all of its symbols.  So the engine
 * finds those functions (inside.c) and a handful of structure offsets (layout.c)
 * when the first one is made, checks every one against behaviour, and refuses to
 * run when anything does not fit.  See docs/decisions/0001-engine-internals.md.
 *
 *   qemu.h     what is known of QEMU's structures and functions
 *   engine.c   an engine as its owner sees it: made, started, saved
 *   inside.c   find those functions; interpose some of them
 *   layout.c   find where things lie in those structures, and check it
 *   walk.c     walks of the guest's page tables
 *   tlb.c      the entries of QEMU's TLB
 *   mmu.c      what the TLB may hold: page classes W and X, page tables in use
 *   blocks.c   ticks, stopping exactly
 *   state.c    flags, segments, the bytes that are state
 *   instructions.c  system calls, CPUID, the time-stamp counter, port I/O
 *   cpu.c      exceptions and runs
 *   access.c   loads and stores looked at one by one; devices in memory
 *   watch.c    breakpoints and watchpoints
 *   debug.c    the guest's own data breakpoints
 *   denali.c   the Denali architecture's TLB, upcalls, virtual instructions
 *   memory.c   the machine's pages: their bytes, which of them changed
 *   digest.c   the 128-bit digest of RAM, kept from dirty pages
 *   revive.c   translated blocks that were dropped, taken into use again
 *   revert.c   going back: RAM fetched page by page when it is next looked at
 */
#ifndef TT_CORE_H
#define TT_CORE_H

#include <time.h>

#include "memory.h"
#include "qemu.h"

#define VOID_ADDR (1ull << 46) /* where accesses outside RAM end up */
#define DEVICE_ADDR (VOID_ADDR + PAGE_SIZE) /* ... and those to a device */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Why run() came back. */
enum Reason {
    R_NONE = 0,
    R_STOP,     /* reached the tick asked for */
    R_HALT,     /* executed HLT */
    R_SHUTDOWN, /* triple fault */
    R_CALLBACK, /* a callback failed; the Cython wrapper keeps the exception */
    R_DOUBLE,   /* Denali: a fault that cannot be delivered */
    R_FAIL,     /* Unicorn itself failed; see `error` */
    R_BREAK,    /* about to execute an instruction with a breakpoint */
    R_WATCH,    /* an instruction touched watched bytes; see `hit` */
    R_CATCH,    /* about to take an exception, or make a system call, that is to be caught; see `caught` */
};

/* What the translator knows of a page of the pool. */
enum { CLASS_NONE, CLASS_W, CLASS_X };
enum { MANY_W = 1, MANY_X = 2, TABLE = 4 };
enum { TABLE_LEAF = 1, TABLE_NARROW = 2, TABLE_SHARED = 4 };
typedef struct Page {
    uint32_t code_epoch; /* the next two count where this is that of the translator; else the page has no code */
    uint8_t cls;
    uint8_t flips;       /* how often X became W: a page that thrashes gets careful stores */
    uint8_t marks;       /* MANY_W, MANY_X: several virtual addresses hold that right; TABLE: entries of the TLB
                            came from it */
    uint32_t tlb_epoch;  /* `marks` and all that follows count where this is that of the TLB; else they are 0 */
    uint32_t table_stores;
    uint64_t w_addr, x_addr; /* the virtual page that last got W or X, | 1; 0 = none */
    uint64_t table_covers;   /* of a table: first address it maps | TABLE_LEAF, TABLE_NARROW; or TABLE_SHARED */
} Page;

typedef struct CpuidLeaf {
    uint32_t leaf, subleaf; /* subleaf ~0: any */
    uint32_t eax, ebx, ecx, edx;
} CpuidLeaf;

enum { SOFT_SETS = 256, SOFT_WAYS = 4 };
typedef struct SoftEntry {
    uint64_t vpage; /* virtual page address | 1 when valid */
    uint64_t ppage; /* physical page address | rights in the low bits */
} SoftEntry;

enum { WATCH_READ = 1, WATCH_WRITE = 2, WATCH_BEFORE = 64 };
typedef struct Watch {
    uint64_t addr, size;
    uint8_t kinds;       /* WATCH_READ, WATCH_WRITE */
    bool physical;       /* else linear */
    uint8_t seen;        /* what the current hit did to it */
    uint8_t before_size; /* 0: not known */
    uint8_t before[WATCH_BEFORE]; /* its bytes before the hit */
} Watch;

/* What touched watched bytes: an instruction; a device; the CPU as it entered a handler; the CPU as it set
 * the D bit of a page-table entry. */
enum { BY_INSTRUCTION, BY_DEVICE, BY_DELIVERY, BY_WALK };
typedef struct Hit {
    uint64_t addr, paddr, size; /* of the first access; size 0: none */
    bool write, told;           /* told: run() has come back for it */
    uint8_t by;
} Hit;

enum { CATCHES_ALLOWED = 64 };
typedef struct Catches {
    bool any, every_call;  /* any: at least one of the following */
    int call_count;
    uint32_t calls[CATCHES_ALLOWED]; /* system calls by EAX */
    uint64_t vectors[4];             /* exceptions, a bit each */
} Catches;

struct Engine;
typedef struct Callbacks {
    uint32_t (*port_read)(void *self, uint32_t port, int size);
    void (*port_write)(void *self, uint32_t port, int size, uint32_t value);
    int (*acknowledge)(void *self);                  /* vector, or -1 for none */
    uint64_t (*tsc)(void *self);                     /* only with host_tsc */
    void (*virtual_instruction)(void *self, uint64_t number); /* Denali */
    uint64_t (*memory_read)(void *self, uint64_t paddr, int size); /* of a device; 1 to 8 bytes, on one page */
    void (*memory_write)(void *self, uint64_t paddr, int size, uint64_t value);
    int (*fetch_page)(void *self, uint64_t page, uint8_t *into); /* false: it failed */
} Callbacks;

/* Guest-physical addresses. */
typedef struct Span {
    uint64_t addr, size;
} Span;

/* The access to a page with a device or watched bytes that is being made (access.c). */
typedef struct Access {
    uint64_t addr; /* linear */
    uintptr_t ra;  /* in which host code; 0: done */
    int size, rw;
    bool exact;    /* as the instruction makes it; else as QEMU's TLB was asked first */
    uint8_t seen;  /* of an unaligned load that is not exact: which half was asked for */
    uint64_t answered; /* the virtual page, | 1, whose part of a load is in `bytes` */
    uint8_t bytes[8];
} Access;

/* Blocks that may come back (revive.c). */
typedef struct Noted Noted;
typedef struct Revival {
    Noted **buckets;
    uint64_t bucket_count, count;
    uint8_t *top; /* where host code ended when a block was noted last */
    Noted *reviving;
} Revival;

/* What turns guest code into host code, and the CPU structure that this code works on. */
typedef struct Translator {
    uc_engine *uc;
    uint8_t *env;  /* CPUX86State */
    uint8_t *cpu;  /* CPUState */
    void *tcg_ctx; /* TCGContext */
    uint8_t *code_base; /* where translated code begins: block ids count from here */
    Page *pages;        /* of the pool */
    uint64_t page_count;
    uint32_t tlb_epoch, code_epoch; /* how often the whole TLB was emptied, all code dropped */
    uint32_t lookup_count; /* instruction limit of the block being looked up */
    uint64_t began_ns; /* host time when the run began */
    uint32_t effort;       /* host time spent off the fast path in this run, in units of 0.1 us */
    bool refetch;          /* the code that runs may have been mapped elsewhere: look the next block up anew */
    Revival revival;
} Translator;

/* The CPU's state beyond what is in env, and what kind of CPU it is. */
typedef struct Cpu {
    /* Ticks.  `horizon - left` is the tick at the end of the running block;
     * `left` lives inside env, where translated code can reach it. */
    uint64_t horizon;
    uint64_t period_ns, idle_ns; /* virtual TSC: 1 GHz of guest time */
    bool host_tsc;
    bool intr;                   /* level of the interrupt controller's output */
    CpuidLeaf *cpuid;
    int cpuid_count;
    bool denali, soft_tlb;
    SoftEntry soft[SOFT_SETS][SOFT_WAYS];
    uint8_t soft_next[SOFT_SETS];
} Cpu;

typedef struct Engine {
    Translator tr;
    Cpu cpu;
    Memory mem;

    uint64_t stop;      /* run() ends here */
    uint64_t limit;     /* a device wants control here */
    bool failed;        /* a callback raised: leave at the next chance */
    enum Reason reason;

    Callbacks calls;
    void *self; /* the Python object */

    uint64_t *breaks; /* linear addresses */
    Watch *watches;
    int break_count, watch_count;
    Access access;
    Span *devices;
    int device_count;
    uint64_t device_page, device_vpage; /* the TLB was last asked for this page of a device: */
    uint64_t part_start;                /* these linear addresses of the access are there */
    int part_length;
    uint64_t *marks; /* addresses at which blocks may end for a breakpoint: those of `breaks`, and earlier ones */
    int mark_count;
    uint64_t no_break_at, no_break_pc; /* tick and address where no breakpoint counts: known already */
    Hit hit;
    uint64_t hit_stop; /* run() ends here: where the instruction that hit has retired */
    Catches catches;
    uint64_t no_catch_at; /* the tick of what was caught last */
    bool caught, caught_call;
    uint32_t caught_number;
    uint64_t entered_at; /* the tick at which a handler was entered last, other than by INT n */
    bool retired;        /* the tick counts the (virtual) instruction that is being carried out */

    bool double_bookkeeping;

    /* Statistics, never seen by the guest. */
    uint64_t fills, slow_blocks, blocks_made, blocks_revived, blocks_unpatched, class_flips, io_exits;
    uint64_t counted, aborted; /* independent count: see count_instructions */
    char error[256];
} Engine;

extern _Thread_local Engine *tt_current;

#define ENV(e, off, type) (*(type *)((e)->tr.env + (off)))
#define REG(e, n) ENV(e, ENV_REGS + 8 * (n), uint64_t)
#define EIP(e) ENV(e, ENV_EIP, uint64_t)
#define EFLAGS(e) ENV(e, ENV_EFLAGS, uint64_t)
#define HFLAGS(e) ENV(e, ENV_HFLAGS, uint32_t)
#define CR(e, n) ENV(e, ENV_CR + 8 * (n), uint64_t)
#define SEG(e, n) (((Segment *)((e)->tr.env + ENV_SEGS))[n])
#define EFER(e) ENV(e, tt_layout.efer, uint64_t)
#define LEFT(e) ENV(e, tt_layout.left, int64_t)
enum { MTRR_SIZE = 8 * (11 + 1 + 16), MTRR_SAVED = -256 }; /* where in a saved state: from `left` */
#define CURRENT(e) ENV(e, tt_layout.current, uint32_t)
#define ENTRY_TICK(e) ENV(e, tt_layout.entry_tick, uint64_t)
#define ENTRY_COUNT(e) ENV(e, tt_layout.entry_tick + 8, uint64_t)
#define OWN_TRAP(e) ENV(e, tt_layout.entry_tick + 16, uint64_t) /* debug.c: after which tick, and bits of DR6; 0: none */
#define DEBUG_REGISTER(e, n) ENV(e, tt_layout.dr + 8 * (n), uint64_t)
#define CPU32(e, off) (*(int32_t *)((e)->tr.cpu + (off)))

/* How long run() may take when every instruction is slow: some 100 ms.  It comes
 * back early then, which no guest can notice. */
enum { EFFORT_LIMIT = 1000000, EFFORT_FILL = 3, EFFORT_FAULT = 10, EFFORT_ACCESS = 30, EFFORT_BLOCK = 150, EFFORT_REVIVE = 10 };

/* engine.c */
#define TT_FOREVER 0x7fffffffffffffffull /* a tick that no machine reaches */
enum StartMode { START_REAL16, START_PROTECTED32, START_LONG64 };
const char *tt_open(Engine *e, uint64_t ram_size, bool denali, uint32_t code_buffer);
void tt_close(Engine *e);
void tt_write_flags(Engine *e, uint64_t flags);
int tt_code_bits(Engine *e);
uint32_t tt_register_checksum(Engine *e);
void tt_start(Engine *e, enum StartMode mode, uint64_t rip, uint64_t cr3, uint64_t gdt_base, uint32_t gdt_limit);
size_t tt_own_size(const Engine *e);
void tt_save_own(const Engine *e, uint8_t *to);
bool tt_load(Engine *e, const uint8_t *from);
/* layout.c */
uc_err tt_open_unicorn(uc_engine **uc, uint32_t code_buffer, void *ram, uint64_t size);
const char *tt_layout_prepare(Engine *e);
int tt_layout_probes(void);
/* walk.c */
bool tt_translate(Engine *e, uint64_t addr, uint64_t *paddr);
/* tlb.c */
void tt_flush_tlb(Engine *e);
void tt_drop_page(Engine *e, uint64_t vpage);
uint64_t tt_tlb_entries(Engine *e, int mode);
void tt_revoke_stores(Engine *e);
/* memory.c */
void tt_read_ram(Engine *e, uint64_t paddr, void *to, uint64_t size);
void tt_write_ram(Engine *e, uint64_t paddr, const void *from, uint64_t size);
bool tt_read_virtual(Engine *e, uint64_t addr, uint8_t *to, uint64_t size, uint64_t *bad);
uint64_t tt_restore_ram(Engine *e, const uint8_t *ram);
void tt_take_changes(Engine *e, uint32_t *pages, uint8_t *contents);
/* mmu.c */
bool tt_fill(void *cpu, uint64_t addr, int size, int rw, int mmu_idx, bool probe, uintptr_t ra);
void tt_notify_write(Engine *e, uint64_t paddr, uint64_t size);
void tt_forget_code(Engine *e);
/* cpu.c */
bool tt_open_hooks(Engine *e);
int tt_run(Engine *e, uint64_t stop);
/* blocks.c */
bool tt_hook_blocks(Engine *e);
bool tt_count_instructions(Engine *e);
Block *tt_running_block(const Engine *e);
int tt_index_in_block(const Engine *e, const Block *tb);
uint64_t tt_last_in_block(const Block *tb);
void tt_repeat_alone(Engine *e, uintptr_t ra) __attribute__((noreturn));
void tt_leave(Engine *e, enum Reason reason) __attribute__((noreturn));
void tt_next_block(Engine *e) __attribute__((noreturn));
void tt_count_entry(Engine *e);
void tt_patch_block(Engine *e, Block *tb);
void tt_settle(Engine *e);
int tt_first_bit_test(const Engine *e, const Block *tb);
uint64_t tt_tick(const Engine *e);
void tt_set_tick(Engine *e, uint64_t tick);
void tt_set_horizon(Engine *e, uint64_t horizon);
void tt_reconsider(Engine *e);
uint64_t tt_next_stop(const Engine *e);
void tt_tired(Engine *e);
/* state.c */
void tt_set_flags(Engine *e, uint64_t flags);
uint64_t tt_flags(Engine *e);
void tt_canonical_flags(Engine *e);
void tt_update_hflags(Engine *e);
void tt_copy_state(Engine *e, uint8_t *to);
bool tt_load_state(Engine *e, const uint8_t *from);
/* instructions.c */
bool tt_hook_instructions(Engine *e);
/* revive.c */
void tt_note_block(Engine *e, Block *tb);
Block *tt_revive_block(Engine *e, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags);
bool tt_reviving(Engine *e, Block *tb);
int tt_revived_size(Engine *e, Block *tb);
void tt_forget_noted(Engine *e);
/* access.c */
extern void *const tt_loads[4], *const tt_stores[4];
uint64_t tt_part_on_page(Engine *e, uint64_t addr, int size, int rw, uintptr_t ra, int *length);
bool tt_set_devices(Engine *e, const Span *spans, int count);
bool tt_is_device(const Engine *e, uint64_t ppage);
void tt_alone_for_device(Engine *e, int rw, uintptr_t ra);
bool tt_hook_devices(Engine *e);
/* watch.c */
bool tt_set_breaks(Engine *e, const uint64_t *addrs, int count);
bool tt_set_watches(Engine *e, const Watch *watches, int count);
bool tt_block_has_break(const Engine *e, const Block *tb);
bool tt_is_break(const Engine *e, uint64_t pc);
void tt_pass_break(Engine *e);
bool tt_page_watched(const Engine *e, uint64_t vpage, uint64_t ppage);
void tt_watch_access(Engine *e, uint64_t addr, uint64_t paddr, int size, int rw, uintptr_t ra);
void tt_watch_physical(Engine *e, uint64_t paddr, uint64_t size, int by);
bool tt_watches_physical(Engine *e, uint64_t paddr, uint64_t size);
void tt_forget_hit(Engine *e);
void tt_set_catches(Engine *e, const Catches *catches);
void tt_catch(Engine *e, bool is_call, uint32_t number, bool again);
/* debug.c */
bool tt_own_page(const Engine *e, uint64_t vpage);
int tt_own_hits(const Engine *e, uint64_t at, uint64_t length, bool write);
void tt_own_hit(Engine *e, int bits);
void tt_own_forget(Engine *e);
void tt_own_tell(Engine *e);
void tt_own_trap(Engine *e) __attribute__((noreturn));
/* denali.c */
bool tt_soft_lookup(Engine *e, uint64_t addr, uint64_t *paddr, int *rights);
bool tt_denali_exception(Engine *e, int vector, uint64_t error, uint64_t addr);
bool tt_denali_vmcall(Engine *e);
void tt_denali_upcall(Engine *e, uint64_t mask);
/* revert.c */
void tt_revert(Engine *e, const uint8_t *changed, const uint64_t digest[2]);
void tt_fetch(Engine *e, uint64_t paddr, uint64_t size);
/* digest.c */
void tt_digest_update(Engine *e);
uint64_t tt_page_names(Engine *e, const uint8_t *pages, uint64_t count, uint8_t *names);
enum { ARCHITECTURAL_MAX = 2048 };
int tt_architectural_state(Engine *e, uint8_t *out);

/* What is known of the page at an address in the pool. */
static inline Page *tt_page(const Engine *e, uint64_t host)
{
    Page *p = &e->tr.pages[host / PAGE_SIZE];

    if (unlikely(p->code_epoch != e->tr.code_epoch)) {
        p->code_epoch = e->tr.code_epoch;
        p->cls = p->flips = 0;
    }
    if (p->tlb_epoch != e->tr.tlb_epoch) {
        p->tlb_epoch = e->tr.tlb_epoch;
        p->marks = 0;
        p->w_addr = p->x_addr = 0;
    }
    return p;
}

/* Does the guest have breakpoints of its own? */
static inline bool tt_own_watches(const Engine *e)
{
    return DEBUG_REGISTER(e, 7) & 0xff;
}

/* Is #DB to be raised now?  After a load of SS, only one instruction later. */
static inline bool tt_own_due(const Engine *e)
{
    return unlikely(OWN_TRAP(e)) && !(HFLAGS(e) & HF_INHIBIT_IRQ);
}

/* Bytes of RAM are about to be looked at. */
static inline void tt_fresh(Engine *e, uint64_t paddr, uint64_t size)
{
    if (unlikely(e->mem.stale))
        tt_fetch(e, paddr, size);
}

static inline uint64_t tt_host_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Bytes of RAM as they lie in the pool; NULL where they cannot be read directly: use tt_read_ram() then. */
static inline const uint8_t *tt_quick_look(const Engine *e, uint64_t paddr, uint64_t size)
{
    bool one_page = (paddr & (PAGE_SIZE - 1)) + size <= PAGE_SIZE;
    return one_page && !e->mem.stale ? tt_at(&e->mem, paddr) : NULL;
}

static inline void tt_effort(Engine *e, uint32_t units)
{
    e->tr.effort += units;
    if (unlikely(e->tr.effort > EFFORT_LIMIT))
        tt_tired(e);
}

/* After a call into Python: how long that took cannot be guessed, so ask the host's clock.
 * When a run comes back changes nothing that the guest sees. */
static inline void tt_effort_of_call(Engine *e)
{
    tt_effort(e, tt_host_ns() - e->tr.began_ns > 100000000 ? EFFORT_LIMIT : EFFORT_ACCESS);
}

#endif
