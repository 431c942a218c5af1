/*
 * What the engine knows of the QEMU inside libunicorn: its structures, its functions, its numbers.
 *
 * Nothing here is taken on trust.  layout.c confirms each of these by behaviour, once a process,
 * and refuses to go on with a library that does not fit.
 */
#ifndef TT_QEMU_H
#define TT_QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unicorn/unicorn.h>

/* QEMU's CPUX86State, as far as it is used: byte offsets from `env`.  Those
 * that no register access can confirm are checked by behaviour in layout.c. */
enum {
    ENV_REGS = 0,
    ENV_EIP = 128,
    ENV_EFLAGS = 136,
    ENV_CC_DST = 144,
    ENV_CC_SRC = 152,
    ENV_CC_SRC2 = 160,
    ENV_CC_OP = 168,
    ENV_DF = 172,
    ENV_HFLAGS = 176,
    ENV_HFLAGS2 = 180,
    ENV_SEGS = 184, /* ES CS SS DS FS GS, then LDT TR GDT IDT */
    ENV_CR = 424,   /* CR0..CR4 */
    ENV_A20 = 464,
    ENV_FPSTT = 604, /* then status, control, tags */
    ENV_FPREGS = 624,
    ENV_FP_STATUS = 776,
    ENV_MMX_STATUS = 800, /* and SSE's after it */
};

typedef struct Segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags; /* the descriptor's second word, bits 8-23 */
} Segment;

enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDT, SEG_TR, SEG_GDT, SEG_IDT };

/* QEMU's TranslationBlock. */
typedef struct Block {
    uint64_t pc; /* linear address */
    uint64_t cs_base;
    uint32_t flags;
    uint16_t size;
    uint16_t icount;
    uint32_t cflags;
    uint32_t trace_state;
    uint8_t *code;
    size_t code_size;
    void *orig;
    uintptr_t page_next[2];
    uint64_t page_addr[2]; /* guest-physical pages holding the block's code */
} Block;

/* What follows in QEMU's TranslationBlock: where its code jumps to other blocks, of which there are up to two. */
typedef struct Jumps {
    uint16_t reset[2]; /* 0xffff: none */
    uint8_t pad[4];
    uint64_t target[2];
} Jumps;

enum { CF_COUNT = 0x7fff, CF_NOCACHE = 0x10000, CF_INVALID = 0x40000, CF_CLUSTER = 0xff << 24 }; /* in cflags */

/* QEMU's CPUTLBEntry. */
typedef struct TlbEntry {
    uint64_t addr_read, addr_write, addr_code, paddr;
    uintptr_t addend;
    uint8_t pad[64 - 40];
} TlbEntry;

typedef struct TlbFast {
    uintptr_t mask; /* (entries - 1) * sizeof(TlbEntry) */
    TlbEntry *table;
} TlbFast;

enum { MMU_MODES = 3, MMU_KSMAP = 0, MMU_USER = 1, MMU_KNOSMAP = 2 };
enum { VICTIMS = 8, TLB_WINDOW_MOST = 24 /* in QEMU's CPUTLBDesc: the most entries used of late */ };

/* Access kinds, and rights in a TLB entry, as QEMU numbers them. */
enum { LOAD = 0, STORE = 1, FETCH = 2 };
enum { RIGHT_R = 1, RIGHT_W = 2, RIGHT_X = 4, RIGHT_W_ONCE = 0x40 };

/* Offsets found at start-up (layout.c). */
typedef struct Layout {
    int efer, star, lstar, cstar, fmask, sysenter_cs, sysenter_esp, sysenter_eip;
    int dr, error_code, old_exception;
    int xmm; /* 32 registers of 64 bytes and a temporary; the guest sees 16 bytes of 16 of them */
    int left, current; /* where `left` and the running block's id live in env */
    int entry_tick;    /* ... and, saved with the state: the last exception's tick, how many since; a #DB to come */
    int state_size;    /* bytes of env that are the CPU's state */
    int mtrr;          /* memory type registers: 11 fixed, the default, 8 pairs; outside of those bytes */
    int uc_cpu, uc_tcg_ctx;        /* in uc_struct: pointers to CPUState and TCGContext */
    int uc_no_exit_request;        /* ... and a flag; 0: not found */
    int cpu_env, cpu_env_ptr, cpu_uc, cpu_class; /* in CPUState: env, and three pointers */
    int cpu_exception_index, cpu_halted, cpu_cflags_next_tb;
    int class_fill;    /* in the CPU's class: the function that fills the TLB */
    int ctx_code_end;  /* in TCGContext: where the next block's host code will lie */
    int block_distance; /* a block's description lies this far before its code */
    int tlb_fast;      /* from env, negative */
    int tlb_desc, tlb_desc_size, tlb_victims;
} Layout;
extern Layout tt_layout;

/* QEMU's functions inside libunicorn (layout.c). */
typedef struct Inside {
    void (*tlb_set_page)(void *cpu, uint64_t vaddr, uint64_t paddr, int prot, int mmu_idx, uint64_t size);
    void (*tlb_flush)(void *cpu);
    void (*cpu_loop_exit)(void *cpu) __attribute__((noreturn));
    void (*raise_exception_err_ra)(void *env, int vector, int error, uintptr_t ra) __attribute__((noreturn));
    void (*do_interrupt)(void *cpu);
    void (*do_interrupt_hard)(void *env, int vector, int is_hw);
    void (*tb_invalidate_page_range)(uc_engine *uc, uint64_t start, uint64_t end);
    Block *(*tb_lookup)(void *tcg_ctx, uintptr_t host_pc);
    void (*tb_flush)(void *cpu);
    uint64_t (*compute_flags)(uint64_t dst, uint64_t src1, uint64_t src2, int op);
    void (*check_io[3])(void *env, uint32_t port);
    void *fill_tlb; /* what tt_fill replaces */
    void (*update_dr7)(void *env, uint32_t dr7);
    void (*tb_flush_jmp_cache)(void *cpu, uint64_t addr);
    bool (*restore_state)(void *cpu, uintptr_t host_pc, bool will_exit);
    void (*tb_phys_invalidate)(void *tcg_ctx, Block *tb, uint64_t page_addr);
    uint64_t (*page_addr_code)(void *env, uint64_t pc);
    /* The originals of what is interposed. */
    Block *(*tb_gen_code)(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags);
    void (*gen_intermediate_code)(void *cpu, Block *tb, int max_instructions);
    int (*tcg_gen_code)(void *tcg_ctx, Block *tb);
    void (*cpu_loop_exit_noexc)(void *cpu) __attribute__((noreturn));
    void *load[4], *store[4]; /* what translated code calls where its TLB has no entry; 1, 2, 4, 8 bytes */
    Block *(*tb_htable_lookup)(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t cf_mask);
} Inside;
extern Inside tt_inside;

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };
enum {
    FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_DF = 1 << 10, FLAG_RF = 1 << 16, FLAG_VM = 1 << 17,
    FLAGS_ARITH = 0x8d5,
};
enum {
    HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6,
    HF_PE = 1 << 7, HF_TF = 1 << 8, HF_LMA = 1 << 14, HF_CS64 = 1 << 15, HF_RF = 1 << 16, HF_VM = 1 << 17,
    HF_OSFXSR = 1 << 22, HF_SMAP = 1 << 23, HF_IOBPT = 1 << 24,
};
enum { EFER_SCE = 1, EFER_LME = 1 << 8, EFER_LMA = 1 << 10, EFER_NXE = 1 << 11 };
enum { CR4_PSE = 1 << 4, CR4_PAE = 1 << 5, CR4_OSFXSR = 1 << 9, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };
enum { CR0_PE = 1, CR0_WP = 1 << 16, CR0_PG = 1u << 31 };
enum { EXC_DB = 1, EXC_UD = 6, EXC_DF = 8, EXC_GP = 13, EXC_PF = 14, EXC_HLT = 0x10001 };

#endif
