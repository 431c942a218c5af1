# cython: language_level=3, boundscheck=False, wraparound=False
# cython: embedsignature=True, embedsignature.format=clinic, auto_pickle=False, autotestdict=False
"""The thin wrapper around the C engine: types, errors and callbacks; the documentation is in _engine.pyi."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from tt.errors import EngineError

STOP = R_STOP
HALT = R_HALT
SHUTDOWN = R_SHUTDOWN
DOUBLE_FAULT = R_DOUBLE
BREAK = R_BREAK
WATCH = R_WATCH
CATCH = R_CATCH
FOREVER = TT_FOREVER

cdef enum:
    MUCH = 1 << 20  # bytes: for more than that, memory is taken only after all are found mapped

_GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
_MODES = {"real16": START_REAL16, "protected32": START_PROTECTED32, "long64": START_LONG64}
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")


def layout_probes():
    return tt_layout_probes()


cdef uint32_t _port_read(void *self, uint32_t port, int size) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        return engine.port_read(port, size)
    except BaseException as error:
        engine._fail(error)
        return 0xffffffff


cdef void _port_write(void *self, uint32_t port, int size, uint32_t value) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        engine.port_write(port, size, value)
    except BaseException as error:
        engine._fail(error)


cdef uint64_t _memory_read(void *self, uint64_t addr, int size) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        return engine.memory_read(addr, size)
    except BaseException as error:
        engine._fail(error)
        return <uint64_t>-1


cdef void _memory_write(void *self, uint64_t addr, int size, uint64_t value) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        engine.memory_write(addr, size, value)
    except BaseException as error:
        engine._fail(error)


cdef int _acknowledge(void *self) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        return engine.acknowledge()
    except BaseException as error:
        engine._fail(error)
        return -1


cdef uint64_t _tsc(void *self) noexcept with gil:
    cdef Engine engine = <Engine>self
    try:
        return engine.tsc()
    except BaseException as error:
        engine._fail(error)
        return 0


cdef void _virtual_instruction(void *self, uint64_t number) noexcept with gil:
    cdef Engine engine = <Engine>self
    cdef uint64_t *regs = <uint64_t *>engine.c.tr.env
    try:
        result = engine.virtual_instruction(number, regs[7], regs[6], regs[2])
        if result is not None:
            regs[0] = result & 0xffffffffffffffff
    except BaseException as error:
        engine._fail(error)


cdef bint _fetch_page(void *self, uint64_t page, uint8_t *into) noexcept with gil:
    cdef Engine engine = <Engine>self
    cdef const uint8_t[::1] content
    try:
        content = engine.fetch_page(page)
        if content.shape[0] != 4096:
            raise EngineError(f"page {page} was fetched with {content.shape[0]} bytes")
        memcpy(into, &content[0], 4096)
        return True
    except BaseException as error:
        engine._fail(error)
        return False


cdef class Engine:
    cdef CEngine c
    cdef object _error
    cdef object __weakref__
    cdef public object port_read, port_write, memory_read, memory_write
    cdef public object acknowledge, tsc, virtual_instruction, fetch_page

    def __cinit__(self, uint64_t ram_size, *, bint denali=False, uint32_t code_buffer=0):
        cdef const char *why
        memset(&self.c, 0, sizeof(self.c))
        why = tt_open(&self.c, ram_size, denali, code_buffer)
        if why != NULL:
            raise EngineError(why.decode())
        self.c.self = <void *>self
        self.c.calls = Callbacks(_port_read, _port_write, _acknowledge, _tsc, _virtual_instruction,
                                 _memory_read, _memory_write, _fetch_page)

    def __dealloc__(self):
        tt_close(&self.c)

    cdef int _raise(self) except -1:
        if self._error is not None:
            error, self._error = self._error, None
            self.c.failed = False
            raise error
        return 0

    cdef _fail(self, error):
        if self._error is None:
            self._error = error
        self.c.failed = True

    # ---- time

    @property
    def tick(self):
        return tt_tick(&self.c)

    @tick.setter
    def tick(self, uint64_t value):
        tt_set_tick(&self.c, value)

    @property
    def limit(self):
        return self.c.limit

    @limit.setter
    def limit(self, uint64_t tick):
        self.c.limit = tick
        tt_reconsider(&self.c)

    @property
    def period_ns(self):
        return self.c.cpu.period_ns

    @period_ns.setter
    def period_ns(self, uint64_t value):
        self.c.cpu.period_ns = value

    @property
    def idle_ns(self):
        return self.c.cpu.idle_ns

    @idle_ns.setter
    def idle_ns(self, uint64_t value):
        self.c.cpu.idle_ns = value

    @property
    def host_tsc(self):
        return self.c.cpu.host_tsc

    @host_tsc.setter
    def host_tsc(self, bint value):
        self.c.cpu.host_tsc = value

    # ---- running

    def run(self, uint64_t stop):
        cdef int reason
        with nogil:
            reason = tt_run(&self.c, stop)
        self._raise()
        if reason == R_FAIL:
            raise EngineError(self.c.error.decode(errors="replace"))
        return reason

    @property
    def last_error(self):
        return self.c.error.decode(errors="replace")

    def set_intr(self, bint level):
        self.c.cpu.intr = level
        tt_reconsider(&self.c)

    @property
    def interruptible(self):
        return bool(tt_flags(&self.c) & 0x200)

    def upcall(self, uint64_t mask):
        tt_denali_upcall(&self.c, mask)

    def set_breakpoints(self, addrs):
        cdef uint64_t[256] table
        addrs = list(addrs)
        if len(addrs) > 256:
            raise EngineError(f"{len(addrs)} breakpoints are too many: at most 256")
        for i, addr in enumerate(addrs):
            table[i] = addr
        if not tt_set_breaks(&self.c, table, len(addrs)):
            raise MemoryError

    def map_devices(self, spans):
        cdef Span[64] table
        spans = list(spans)
        if len(spans) > 64:
            raise EngineError(f"{len(spans)} devices in memory are too many: at most 64")
        for i, (addr, size) in enumerate(spans):
            if not 0 < size <= 1 << 40 or not self.c.mem.size <= addr <= (1 << 44) - size:
                raise EngineError(f"a device at {addr:#x}, {size:#x} bytes, does not lie between RAM "
                                  f"({self.c.mem.size:#x}) and the end of addresses")
            table[i].addr, table[i].size = addr, size
        if not tt_set_devices(&self.c, table, len(spans)):
            raise MemoryError

    def set_watchpoints(self, watches):
        cdef Watch[64] table
        watches = list(watches)
        if len(watches) > 64:
            raise EngineError(f"{len(watches)} watchpoints are too many: at most 64")
        for i, (addr, size, reads, writes, physical) in enumerate(watches):
            if not size:
                raise EngineError("a watchpoint of 0 bytes watches nothing: give a size")
            memset(&table[i], 0, sizeof(Watch))
            table[i].addr, table[i].size, table[i].physical = addr, size, physical
            table[i].kinds = (WATCH_READ if reads else 0) | (WATCH_WRITE if writes else 0)
        if not tt_set_watches(&self.c, table, len(watches)):
            raise MemoryError

    @property
    def hit(self):
        if not self.c.hit.size:
            return None
        return self.c.hit.addr, self.c.hit.paddr, self.c.hit.size, bool(self.c.hit.write)

    @property
    def hits(self):
        cdef list found = []
        cdef Watch *w
        for i in range(self.c.watch_count):
            w = &self.c.watches[i]
            if w.seen:
                before = PyBytes_FromStringAndSize(<char *>w.before, w.before_size) if w.before_size else None
                found.append((i, bool(w.seen & WATCH_READ), bool(w.seen & WATCH_WRITE), before))
        return found

    @property
    def hit_by(self):
        return ("instruction", "device", "interrupt", "page walk")[self.c.hit.by]

    def set_catches(self, syscalls, exceptions):
        cdef Catches c
        memset(&c, 0, sizeof(c))
        if syscalls is not None:
            numbers = sorted(set(syscalls))
            if len(numbers) > 64:
                raise EngineError(f"{len(numbers)} system calls are too many to catch: at most 64, or all")
            c.every_call = not numbers
            for i, number in enumerate(numbers):
                c.calls[i] = number
            c.call_count = len(numbers)
        if exceptions is not None:
            for vector in exceptions or range(256):
                c.vectors[vector // 64] |= <uint64_t>1 << (vector % 64)
        c.any = syscalls is not None or exceptions is not None
        tt_set_catches(&self.c, &c)

    @property
    def caught(self):
        if not self.c.caught:
            return None
        return ("syscall" if self.c.caught_call else "exception"), self.c.caught_number

    @property
    def entered_at(self):
        return self.c.entered_at

    def take_changes(self):
        cdef uint64_t count = tt_count_pages(&self.c.mem, DIRTY_CHECKPOINT)
        cdef bytes pages = PyBytes_FromStringAndSize(NULL, 4 * count)
        cdef bytes contents = PyBytes_FromStringAndSize(NULL, 4096 * count)
        cdef char *numbers_at = pages
        cdef char *contents_at = contents
        with nogil:
            tt_take_changes(&self.c, <uint32_t *>numbers_at, <uint8_t *>contents_at)
        return pages, contents

    def page_names(self, const uint8_t[::1] pages):
        cdef uint64_t count = pages.shape[0] // 4, bad
        cdef bytes names = PyBytes_FromStringAndSize(NULL, 16 * count)
        cdef char *at = names
        if pages.shape[0] % 4:
            raise EngineError(f"{pages.shape[0]} bytes are no page numbers: give 4 for each")
        bad = tt_page_names(&self.c, &pages[0], count, <uint8_t *>at) if count else 0
        self._raise()
        if bad != count:
            raise IndexError(f"page number {bad} of those asked for is outside RAM ({self.c.mem.size:#x} bytes)")
        return names

    def revert(self, const uint8_t[::1] changed, const uint8_t[::1] digest):
        cdef uint64_t[2] words
        if <uint64_t>changed.shape[0] != (self.c.mem.size // 4096 + 7) // 8 or digest.shape[0] != 16:
            raise EngineError("a checkpoint of a machine with another size of RAM cannot be restored")
        memcpy(words, &digest[0], 16)
        with nogil:
            tt_revert(&self.c, &changed[0], words)

    @property
    def stale_pages(self):
        return self.c.mem.stale

    def set_cpuid(self, leaves):
        cdef CpuidLeaf *table = <CpuidLeaf *>calloc(len(leaves) or 1, sizeof(CpuidLeaf))
        for i, (leaf, subleaf, eax, ebx, ecx, edx) in enumerate(leaves):
            table[i] = CpuidLeaf(leaf, 0xffffffff if subleaf is None else subleaf, eax, ebx, ecx, edx)
        free(self.c.cpu.cpuid)
        self.c.cpu.cpuid = table
        self.c.cpu.cpuid_count = len(leaves)

    def double_bookkeeping(self):
        self.c.double_bookkeeping = True
        tt_forget_code(&self.c)

    def count_instructions(self):
        if not tt_count_instructions(&self.c):
            raise EngineError("Unicorn refused the counting hook")

    @property
    def counted(self):
        return self.c.counted - self.c.aborted

    @property
    def statistics(self):
        return {
            "tlb_fills": self.c.fills, "slow_blocks": self.c.slow_blocks, "blocks_made": self.c.blocks_made,
            "blocks_revived": self.c.blocks_revived,
            "blocks_unpatched": self.c.blocks_unpatched, "class_flips": self.c.class_flips,
            "io_exits": self.c.io_exits,
            "kernel_tlb": tt_tlb_entries(&self.c, 2), "user_tlb": tt_tlb_entries(&self.c, 1),
        }

    # ---- memory

    @property
    def size(self):
        return self.c.mem.size

    cdef int _check(self, uint64_t addr, uint64_t size) except -1:
        if size > self.c.mem.size or addr > self.c.mem.size - size:
            raise IndexError(f"guest-physical {addr:#x}+{size:#x} is outside RAM ({self.c.mem.size:#x} bytes)")
        return 0

    def read(self, uint64_t addr, uint64_t size):
        cdef const uint8_t *there
        cdef bytes found
        self._check(addr, size)
        there = tt_quick_look(&self.c, addr, size)
        if there != NULL:
            return PyBytes_FromStringAndSize(<const char *>there, size)
        found = PyBytes_FromStringAndSize(NULL, size)
        tt_read_ram(&self.c, addr, <char *>found, size)
        self._raise()
        return found

    def write(self, uint64_t addr, const uint8_t[::1] data):
        cdef uint64_t size = data.shape[0]
        self._check(addr, size)
        if size:
            tt_write_ram(&self.c, addr, &data[0], size)
            self._raise()

    def translate(self, uint64_t addr):
        cdef uint64_t paddr
        return paddr if tt_translate(&self.c, addr, &paddr) else None

    def read_virtual(self, uint64_t addr, uint64_t size):
        cdef uint64_t bad
        cdef bytes found
        if size > MUCH and not tt_read_virtual(&self.c, addr, NULL, size, &bad):
            raise IndexError(f"guest address {bad:#x} is not mapped to RAM")
        found = PyBytes_FromStringAndSize(NULL, size)
        if not tt_read_virtual(&self.c, addr, <uint8_t *><char *>found, size, &bad):
            raise IndexError(f"guest address {bad:#x} is not mapped to RAM")
        self._raise()
        return found

    def restore_ram(self, const uint8_t[::1] ram):
        cdef uint64_t changed
        if <uint64_t>ram.shape[0] != self.c.mem.size:
            raise EngineError("a saved RAM of another size cannot be restored")
        with nogil:
            changed = tt_restore_ram(&self.c, &ram[0])
        self._raise()
        return changed

    def ram_digest(self):
        with nogil:
            tt_digest_update(&self.c)
        return PyBytes_FromStringAndSize(<char *>self.c.mem.digest, 16)

    def page_hashes(self):
        with nogil:
            tt_fresh(&self.c, 0, self.c.mem.size)
            tt_digest_update(&self.c)
        self._raise()
        return PyBytes_FromStringAndSize(<char *>self.c.mem.hash, self.c.mem.size // 4096 * 16)

    def forget_code(self):
        tt_forget_code(&self.c)

    def flush_tlb(self):
        tt_flush_tlb(&self.c)

    # ---- registers

    cdef CSegment *_segment(self, int i):
        return <CSegment *>(self.c.tr.env + ENV_SEGS) + i

    def registers(self):
        cdef uint64_t *regs = <uint64_t *>self.c.tr.env
        cdef uint64_t *cr = <uint64_t *>(self.c.tr.env + ENV_CR)
        values = {name: regs[i] for i, name in enumerate(_GPR)}
        values["rip"] = regs[16]
        values["rflags"] = tt_flags(&self.c)
        for i in range(10):
            values[_SEGMENTS[i]] = self._segment(i).selector
        for i in (0, 2, 3, 4):
            values[f"cr{i}"] = cr[i]
        values["efer"] = (<uint64_t *>(self.c.tr.env + tt_layout.efer))[0]
        values["fs_base"] = self._segment(4).base
        values["gs_base"] = self._segment(5).base
        values["gdtr_base"] = self._segment(8).base
        values["idtr_base"] = self._segment(9).base
        return values

    def architectural_state(self):
        cdef uint8_t buffer[2048]
        cdef int size = tt_architectural_state(&self.c, buffer)
        return PyBytes_FromStringAndSize(<char *>buffer, size)

    def register_checksum(self):
        return tt_register_checksum(&self.c).to_bytes(4, "little")

    def segment(self, name):
        cdef CSegment *s = self._segment(_SEGMENTS.index(name))
        return s.selector, s.base, s.limit, s.flags

    @property
    def bits(self):
        return tt_code_bits(&self.c)

    def set_register(self, str name, uint64_t value):
        cdef uint64_t *regs = <uint64_t *>self.c.tr.env
        if name in _GPR:
            regs[_GPR.index(name)] = value
        elif name == "rip":
            regs[16] = value
        elif name == "rflags":
            tt_write_flags(&self.c, value)
        elif name == "fs_base" or name == "gs_base":
            self._segment(4 if name == "fs_base" else 5).base = value
        elif name == "cr2":
            (<uint64_t *>(self.c.tr.env + ENV_CR))[2] = value
        elif name == "cr3":
            (<uint64_t *>(self.c.tr.env + ENV_CR))[3] = value
            tt_flush_tlb(&self.c)
        else:
            raise EngineError(f"register {name} cannot be set: only the general registers, rip, rflags, "
                              "fs_base, gs_base, cr2 and cr3 can")

    def xmm(self):
        cdef char *at = <char *>self.c.tr.env + tt_layout.xmm
        return [int.from_bytes(PyBytes_FromStringAndSize(at + 64 * i, 16), "little") for i in range(16)]

    def start(self, str mode, uint64_t rip, registers, uint64_t cr3=0, uint64_t gdt_base=0, uint32_t gdt_limit=0):
        if mode not in _MODES:
            raise EngineError(f"a CPU cannot start in {mode!r}: use real16, protected32 or long64")
        tt_start(&self.c, _MODES[mode], rip, cr3, gdt_base, gdt_limit)
        for name, value in registers.items():
            self.set_register(name, value)

    # ---- state

    def own_state(self):
        cdef bytes own = PyBytes_FromStringAndSize(NULL, tt_own_size(&self.c))
        tt_save_own(&self.c, <uint8_t *><char *>own)
        return own

    def save(self):
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, tt_layout.state_size)
        tt_copy_state(&self.c, <uint8_t *><char *>copy)
        return copy + self.own_state()

    def load(self, bytes state):
        if <size_t>len(state) != tt_layout.state_size + tt_own_size(&self.c):
            raise EngineError("a CPU state of another build of Unicorn or another machine cannot be restored")
        if not tt_load(&self.c, <const uint8_t *><const char *>state):
            raise EngineError("a CPU state that is impossible cannot be restored: it is damaged")
