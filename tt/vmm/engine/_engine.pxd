# cython: language_level=3
"""What the Cython wrapper uses of the C engine (core.h)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "core.h" nogil:
    ctypedef struct Callbacks:
        uint32_t (*port_read)(void *self, uint32_t port, int size) noexcept
        void (*port_write)(void *self, uint32_t port, int size, uint32_t value) noexcept
        int (*acknowledge)(void *self) noexcept
        uint64_t (*tsc)(void *self) noexcept
        void (*virtual_instruction)(void *self, uint64_t number) noexcept
        uint64_t (*memory_read)(void *self, uint64_t addr, int size) noexcept
        void (*memory_write)(void *self, uint64_t addr, int size, uint64_t value) noexcept
        bint (*fetch_page)(void *self, uint64_t page, uint8_t *into) noexcept
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
    ctypedef struct Span:
        uint64_t addr, size
    ctypedef struct CSegment "Segment":
        uint32_t selector
        uint64_t base
        uint32_t limit
        uint32_t flags
    ctypedef struct Translator:
        uint8_t *env
    ctypedef struct Cpu:
        bint intr, host_tsc
        uint64_t period_ns, idle_ns
        CpuidLeaf *cpuid
        int cpuid_count
    ctypedef struct Memory:
        uint64_t size, stale
        uint64_t *hash
        uint64_t digest[2]
    ctypedef struct CEngine "Engine":
        Translator tr
        Cpu cpu
        Memory mem
        uint64_t limit
        bint failed, double_bookkeeping
        Callbacks calls
        void *self
        Watch *watches
        int watch_count
        Hit hit
        uint64_t entered_at
        bint caught, caught_call
        uint32_t caught_number
        uint64_t fills, slow_blocks, blocks_made, blocks_revived, blocks_unpatched, class_flips, io_exits, counted, aborted
        char error[256]
    ctypedef struct Layout:
        int state_size, efer, xmm
    Layout tt_layout
    int ENV_CR, ENV_SEGS
    int R_STOP, R_HALT, R_SHUTDOWN, R_CALLBACK, R_DOUBLE, R_FAIL, R_BREAK, R_WATCH, R_CATCH
    int WATCH_READ, WATCH_WRITE
    int DIRTY_CHECKPOINT
    int START_REAL16, START_PROTECTED32, START_LONG64
    const uint64_t TT_FOREVER

    # engine.c
    const char *tt_open(CEngine *e, uint64_t ram_size, bint denali, uint32_t code_buffer)
    void tt_close(CEngine *e)
    void tt_write_flags(CEngine *e, uint64_t flags)
    int tt_code_bits(CEngine *e)
    uint32_t tt_register_checksum(CEngine *e)
    void tt_start(CEngine *e, int mode, uint64_t rip, uint64_t cr3, uint64_t gdt_base, uint32_t gdt_limit)
    size_t tt_own_size(const CEngine *e)
    void tt_save_own(const CEngine *e, uint8_t *to)
    bint tt_load(CEngine *e, const uint8_t *state)
    # layout.c
    int tt_layout_probes()
    # cpu.c, blocks.c, state.c
    int tt_run(CEngine *e, uint64_t stop)
    uint64_t tt_tick(const CEngine *e)
    void tt_set_tick(CEngine *e, uint64_t tick)
    void tt_reconsider(CEngine *e)
    bint tt_count_instructions(CEngine *e)
    uint64_t tt_flags(CEngine *e)
    void tt_copy_state(CEngine *e, uint8_t *to)
    # memory.c, walk.c, tlb.c, mmu.c
    uint64_t tt_count_pages(const Memory *m, uint8_t any)
    const uint8_t *tt_quick_look(const CEngine *e, uint64_t paddr, uint64_t size)
    void tt_read_ram(CEngine *e, uint64_t paddr, void *to, uint64_t size)
    void tt_write_ram(CEngine *e, uint64_t paddr, const void *data, uint64_t size)
    bint tt_read_virtual(CEngine *e, uint64_t addr, uint8_t *to, uint64_t size, uint64_t *bad)
    uint64_t tt_restore_ram(CEngine *e, const uint8_t *ram)
    void tt_take_changes(CEngine *e, uint32_t *pages, uint8_t *contents)
    void tt_fresh(CEngine *e, uint64_t paddr, uint64_t size)
    bint tt_translate(CEngine *e, uint64_t addr, uint64_t *paddr)
    uint64_t tt_tlb_entries(CEngine *e, int mode)
    void tt_flush_tlb(CEngine *e)
    void tt_forget_code(CEngine *e)
    # digest.c, revert.c
    void tt_digest_update(CEngine *e)
    int tt_architectural_state(CEngine *e, uint8_t *out)
    uint64_t tt_page_names(CEngine *e, const uint8_t *pages, uint64_t count, uint8_t *names)
    void tt_revert(CEngine *e, const uint8_t *changed, const uint64_t *digest)
    # watch.c, denali.c
    bint tt_set_breaks(CEngine *e, const uint64_t *addrs, int count)
    bint tt_set_devices(CEngine *e, const Span *spans, int count)
    bint tt_set_watches(CEngine *e, const Watch *watches, int count)
    void tt_set_catches(CEngine *e, const Catches *catches)
    void tt_denali_upcall(CEngine *e, uint64_t mask)
