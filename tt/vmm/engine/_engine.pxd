# cython: language_level=3
"""What the skin uses of the C engine (core.h)."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t size, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t size)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

cdef extern from "core.h" nogil:
    ctypedef struct uc_engine:
        pass
    int uc_close(uc_engine *uc)
    int uc_reg_read(uc_engine *uc, int regid, void *value)
    int uc_reg_write(uc_engine *uc, int regid, const void *value)
    int UC_X86_REG_ST0, UC_X86_REG_XMM0, UC_X86_REG_FPCW, UC_X86_REG_FPSW, UC_X86_REG_FPTAG, UC_X86_REG_MXCSR

    ctypedef struct Callbacks:
        uint32_t (*port_read)(void *self, uint32_t port, int size) noexcept
        void (*port_write)(void *self, uint32_t port, int size, uint32_t value) noexcept
        int (*acknowledge)(void *self) noexcept
        uint64_t (*tsc)(void *self) noexcept
        void (*virtual_instruction)(void *self, uint64_t number) noexcept
        bint (*fetch_page)(void *self, uint64_t page, uint8_t *into) noexcept
    ctypedef struct Page:
        uint8_t cls
        uint8_t dirty
    ctypedef struct CpuidLeaf:
        uint32_t leaf, subleaf, eax, ebx, ecx, edx
    ctypedef struct Watch:
        uint64_t addr, size
        uint8_t kinds
        bint physical
        uint8_t seen, before_size
        uint8_t before[64]
    ctypedef struct Hit:
        uint64_t addr, paddr, size
        bint write
        uint8_t by
    ctypedef struct Catches:
        bint any, every_call
        int call_count
        uint32_t calls[64]
        uint64_t vectors[4]
    ctypedef struct SoftEntry:
        uint64_t vpage, ppage
    ctypedef struct CSegment "Segment":
        uint32_t selector
        uint64_t base
        uint32_t limit
        uint32_t flags
    ctypedef struct CEngine "Engine":
        uc_engine *uc
        uint8_t *env
        uint8_t *ram
        uint64_t ram_size
        Page *pages
        uint64_t stop, limit
        bint intr, failed, host_tsc, denali, soft_tlb, double_bookkeeping
        uint64_t period_ns, idle_ns
        CpuidLeaf *cpuid
        int cpuid_count
        uint64_t *breaks
        Watch *watches
        SoftEntry soft[256][4]
        uint8_t soft_next[256]
        uint64_t stale_count
        uint64_t *page_hash
        uint64_t digest[2]
        Callbacks calls
        void *self
        uint64_t *marks
        int watch_count
        Hit hit
        Catches catches
        uint64_t no_catch_at, entered_at, hit_stop
        bint caught, caught_call
        uint32_t caught_number
        uint64_t fills, slow_blocks, blocks_made, blocks_unpatched, class_flips, io_exits, counted, aborted
        char error[256]
    ctypedef struct Layout:
        int state_size, left, dr, efer, star, lstar, cstar, fmask, sysenter_cs, sysenter_esp, sysenter_eip
    Layout tt_layout
    int ENV_CR, ENV_SEGS, ENV_EIP, ENV_EFLAGS
    int R_STOP, R_HALT, R_SHUTDOWN, R_CALLBACK, R_DOUBLE, R_FAIL, R_BREAK, R_WATCH, R_CATCH
    int WATCH_READ, WATCH_WRITE, BY_DEVICE
    int DIRTY_ALL, DIRTY_CHECKPOINT

    int tt_open_unicorn(uc_engine **uc, uint32_t code_buffer, void *ram, uint64_t size)
    const char *tt_layout_prepare(CEngine *e)
    int tt_layout_probes()
    bint tt_open_hooks(CEngine *e)
    bint tt_count_instructions(CEngine *e)
    bint tt_translate(CEngine *e, uint64_t addr, uint64_t *paddr)
    uint64_t tt_tlb_entries(CEngine *e, int mode)
    void tt_notify_write(CEngine *e, uint64_t paddr, uint64_t size)
    void tt_flush_tlb(CEngine *e)
    void tt_forget_code(CEngine *e)
    uint64_t tt_tick(const CEngine *e)
    void tt_set_tick(CEngine *e, uint64_t tick)
    void tt_reconsider(CEngine *e)
    int tt_run(CEngine *e, uint64_t stop)
    bint tt_set_breaks(CEngine *e, const uint64_t *addrs, int count)
    void tt_watch_physical(CEngine *e, uint64_t paddr, uint64_t size, int by)
    bint tt_set_watches(CEngine *e, const Watch *watches, int count)
    uint64_t tt_flags(CEngine *e)
    void tt_canonical_flags(CEngine *e)
    void tt_update_hflags(CEngine *e)
    void tt_set_flags(CEngine *e, uint64_t flags)
    void tt_copy_state(CEngine *e, uint8_t *to)
    bint tt_load_state(CEngine *e, const uint8_t *state)
    void tt_denali_upcall(CEngine *e, uint64_t mask)
    void tt_digest_update(CEngine *e)
    void tt_revert(CEngine *e, const uint8_t *changed, const uint64_t *digest)
    void tt_fetch(CEngine *e, uint64_t paddr, uint64_t size)
    uint64_t tt_count_changes(const CEngine *e)
    void tt_take_changes(CEngine *e, uint32_t *pages, uint8_t *contents)
    int tt_architectural_state(CEngine *e, uint8_t *out)
