# cython: language_level=3, boundscheck=False, wraparound=False
"""The thin skin over the C engine: types, errors and callbacks; the documentation is in _engine.pyi."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from tt.errors import EngineError

STOP = R_STOP
HALT = R_HALT
SHUTDOWN = R_SHUTDOWN
DOUBLE_FAULT = R_DOUBLE
BREAK = R_BREAK
WATCH = R_WATCH
CATCH = R_CATCH
FOREVER = <uint64_t>0x7fffffffffffffff

_GPR = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
        "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
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
    cdef uint64_t *regs = <uint64_t *>engine.c.env
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
    cdef public object port_read, port_write, acknowledge, tsc, virtual_instruction, fetch_page

    def __cinit__(self, uint64_t ram_size, *, bint denali=False, uint32_t code_buffer=0):
        cdef const char *why
        memset(&self.c, 0, sizeof(self.c))
        if ram_size < (1 << 20) or ram_size % 4096 or ram_size > (<uint64_t>1 << 40):
            raise EngineError(f"cannot make a machine with {ram_size} bytes of RAM: give 1 MB to 1 TB, whole 4 KB pages")
        self.c.ram_size = ram_size
        self.c.ram = <uint8_t *>mmap(NULL, ram_size, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        self.c.pages = <Page *>mmap(NULL, ram_size // 4096 * sizeof(Page), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        self.c.page_hash = <uint64_t *>mmap(NULL, ram_size // 4096 * 16, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if self.c.ram == MAP_FAILED or self.c.pages == MAP_FAILED or self.c.page_hash == MAP_FAILED:
            raise EngineError(f"no memory for a machine with {ram_size >> 20} MB of RAM: give it less with --mem")
        if tt_open_unicorn(&self.c.uc, code_buffer, self.c.ram, ram_size):
            raise EngineError("Unicorn cannot open an x86-64 engine with that much RAM")
        why = tt_layout_prepare(&self.c)
        if why != NULL:
            raise EngineError(f"{why.decode()} - install unicorn==2.1.4")
        if not tt_open_hooks(&self.c):
            raise EngineError("Unicorn refused a hook that tt needs: install unicorn==2.1.4")
        self.c.self = <void *>self
        self.c.calls.port_read = _port_read
        self.c.calls.port_write = _port_write
        self.c.calls.acknowledge = _acknowledge
        self.c.calls.tsc = _tsc
        self.c.calls.virtual_instruction = _virtual_instruction
        self.c.calls.fetch_page = _fetch_page
        self.c.denali = denali
        self.c.period_ns = 4
        self.c.limit = FOREVER
        self.c.stop = FOREVER
        self.c.hit_stop = FOREVER
        self.c.entered_at = self.c.no_catch_at = FOREVER
        tt_set_tick(&self.c, 0)

    def __dealloc__(self):
        if self.c.uc != NULL:
            uc_close(self.c.uc)
        if self.c.ram != NULL:
            munmap(self.c.ram, self.c.ram_size)
        if self.c.pages != NULL:
            munmap(self.c.pages, self.c.ram_size // 4096 * sizeof(Page))
        if self.c.page_hash != NULL:
            munmap(self.c.page_hash, self.c.ram_size // 4096 * 16)
        free(self.c.cpuid)
        free(self.c.breaks)
        free(self.c.marks)
        free(self.c.watches)

    cdef int _fresh(self, uint64_t addr, uint64_t size) except -1:
        if self.c.stale_count:
            tt_fetch(&self.c, addr, size)
            self._raise()
        return 0

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
        return self.c.period_ns

    @period_ns.setter
    def period_ns(self, uint64_t value):
        self.c.period_ns = value

    @property
    def idle_ns(self):
        return self.c.idle_ns

    @idle_ns.setter
    def idle_ns(self, uint64_t value):
        self.c.idle_ns = value

    @property
    def host_tsc(self):
        return self.c.host_tsc

    @host_tsc.setter
    def host_tsc(self, bint value):
        self.c.host_tsc = value

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
        self.c.intr = level
        tt_reconsider(&self.c)

    @property
    def interruptible(self):
        cdef uint64_t *flags = <uint64_t *>(self.c.env + ENV_EFLAGS)
        return bool(flags[0] & 0x200)

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
        self.c.catches = c
        self.c.no_catch_at = tt_tick(&self.c)

    @property
    def caught(self):
        if not self.c.caught:
            return None
        return ("syscall" if self.c.caught_call else "exception"), self.c.caught_number

    @property
    def entered_at(self):
        return self.c.entered_at

    def take_changes(self):
        cdef uint64_t count = tt_count_changes(&self.c)
        cdef bytes pages = PyBytes_FromStringAndSize(NULL, 4 * count)
        cdef bytes contents = PyBytes_FromStringAndSize(NULL, 4096 * count)
        tt_take_changes(&self.c, <uint32_t *><char *>pages, <uint8_t *><char *>contents)
        return pages, contents

    def revert(self, const uint8_t[::1] changed, const uint8_t[::1] digest):
        cdef uint64_t[2] words
        if <uint64_t>changed.shape[0] != (self.c.ram_size // 4096 + 7) // 8 or digest.shape[0] != 16:
            raise EngineError("a checkpoint of a machine with another size of RAM cannot be restored")
        memcpy(words, &digest[0], 16)
        tt_revert(&self.c, &changed[0], words)

    @property
    def stale_pages(self):
        return self.c.stale_count

    def set_cpuid(self, leaves):
        cdef CpuidLeaf *table = <CpuidLeaf *>calloc(len(leaves) or 1, sizeof(CpuidLeaf))
        for i, (leaf, subleaf, eax, ebx, ecx, edx) in enumerate(leaves):
            table[i] = CpuidLeaf(leaf, 0xffffffff if subleaf is None else subleaf, eax, ebx, ecx, edx)
        free(self.c.cpuid)
        self.c.cpuid = table
        self.c.cpuid_count = len(leaves)

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
            "blocks_unpatched": self.c.blocks_unpatched, "class_flips": self.c.class_flips,
            "io_exits": self.c.io_exits,
            "kernel_tlb": tt_tlb_entries(&self.c, 2), "user_tlb": tt_tlb_entries(&self.c, 1),
        }

    # ---- memory

    @property
    def size(self):
        return self.c.ram_size

    cdef _check(self, uint64_t addr, uint64_t size):
        if size > self.c.ram_size or addr > self.c.ram_size - size:
            raise IndexError(f"guest-physical {addr:#x}+{size:#x} is outside RAM ({self.c.ram_size:#x} bytes)")

    def read(self, uint64_t addr, uint64_t size):
        self._check(addr, size)
        self._fresh(addr, size)
        return PyBytes_FromStringAndSize(<char *>self.c.ram + addr, size)

    def write(self, uint64_t addr, const uint8_t[::1] data):
        cdef uint64_t size = data.shape[0]
        self._check(addr, size)
        self._fresh(addr, size)
        if size:
            if self.c.watch_count:
                tt_watch_physical(&self.c, addr, size, BY_DEVICE)
            memcpy(self.c.ram + addr, &data[0], size)
            tt_notify_write(&self.c, addr, size)

    def translate(self, uint64_t addr):
        cdef uint64_t paddr
        return paddr if tt_translate(&self.c, addr, &paddr) else None

    def read_virtual(self, uint64_t addr, uint64_t size):
        cdef uint64_t paddr, piece
        parts = []
        while size:
            piece = min(size, 4096 - addr % 4096)
            if not tt_translate(&self.c, addr, &paddr) or paddr >= self.c.ram_size or piece > self.c.ram_size - paddr:
                raise IndexError(f"guest address {addr:#x} is not mapped to RAM")
            self._fresh(paddr, piece)
            parts.append(PyBytes_FromStringAndSize(<char *>self.c.ram + paddr, piece))
            addr = (addr + piece) & 0xffffffffffffffff
            size -= piece
        return b"".join(parts)

    def restore_ram(self, const uint8_t[::1] ram):
        cdef uint64_t i, changed = 0
        if <uint64_t>ram.shape[0] != self.c.ram_size:
            raise EngineError("a saved RAM of another size cannot be restored")
        self._fresh(0, self.c.ram_size)
        for i in range(0, self.c.ram_size, 4096):
            if memcmp(self.c.ram + i, &ram[i], 4096):
                memcpy(self.c.ram + i, &ram[i], 4096)
                tt_notify_write(&self.c, i, 4096)
                changed += 1
        return changed

    def ram_digest(self):
        tt_digest_update(&self.c)
        return PyBytes_FromStringAndSize(<char *>self.c.digest, 16)

    def page_hashes(self):
        self._fresh(0, self.c.ram_size)
        tt_digest_update(&self.c)
        return PyBytes_FromStringAndSize(<char *>self.c.page_hash, self.c.ram_size // 4096 * 16)

    def forget_code(self):
        tt_forget_code(&self.c)

    def flush_tlb(self):
        tt_flush_tlb(&self.c)

    # ---- registers

    cdef CSegment *_segment(self, int i):
        return <CSegment *>(self.c.env + ENV_SEGS) + i

    def registers(self):
        cdef uint64_t *regs = <uint64_t *>self.c.env
        cdef uint64_t *cr = <uint64_t *>(self.c.env + ENV_CR)
        values = {name: regs[i] for i, name in enumerate(_GPR)}
        values["rip"] = regs[16]
        values["rflags"] = tt_flags(&self.c)
        for i in range(10):
            values[_SEGMENTS[i]] = self._segment(i).selector
        for i in (0, 2, 3, 4):
            values[f"cr{i}"] = cr[i]
        values["efer"] = (<uint64_t *>(self.c.env + tt_layout.efer))[0]
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
        cdef uint64_t *regs = <uint64_t *>self.c.env
        cdef uint64_t a = 0x9e3779b97f4a7c15
        cdef int i
        for i in range(17):
            a = (a ^ regs[i]) * <uint64_t>0xff51afd7ed558ccd
            a ^= a >> 32
        a = (a ^ tt_flags(&self.c)) * <uint64_t>0xff51afd7ed558ccd
        return (<uint32_t>(a >> 32)).to_bytes(4, "little")

    def segment(self, name):
        cdef CSegment *s = self._segment(_SEGMENTS.index(name))
        return s.selector, s.base, s.limit, s.flags

    @property
    def bits(self):
        cdef CSegment *cs = self._segment(1)
        cdef uint64_t efer = (<uint64_t *>(self.c.env + tt_layout.efer))[0]
        if efer & 0x400 and cs.flags & (1 << 21):
            return 64
        return 32 if cs.flags & (1 << 22) else 16

    def set_register(self, str name, uint64_t value):
        cdef uint64_t *regs = <uint64_t *>self.c.env
        if name in _GPR:
            regs[_GPR.index(name)] = value
        elif name == "rip":
            regs[16] = value
        elif name == "rflags":
            value = (value & 0x3f7fd7) | 2
            tt_set_flags(&self.c, value)
            # Between runs QEMU keeps all of them here too, and begins the next run from that.
            (<uint64_t *>(self.c.env + ENV_EFLAGS))[0] = value
            tt_update_hflags(&self.c)
        elif name == "fs_base" or name == "gs_base":
            self._segment(4 if name == "fs_base" else 5).base = value
        elif name == "cr2":
            (<uint64_t *>(self.c.env + ENV_CR))[2] = value
        elif name == "cr3":
            (<uint64_t *>(self.c.env + ENV_CR))[3] = value
            tt_flush_tlb(&self.c)
        else:
            raise EngineError(f"register {name} cannot be set: only the general registers, rip, rflags, "
                              "fs_base, gs_base, cr2 and cr3 can")

    def xmm(self):
        values = []
        cdef uint64_t pair[2]
        for i in range(16):
            uc_reg_read(self.c.uc, UC_X86_REG_XMM0 + i, pair)
            values.append(pair[0] | (int(pair[1]) << 64))
        return values

    def start(self, str mode, uint64_t rip, registers, uint64_t cr3=0, uint64_t gdt_base=0, uint32_t gdt_limit=0):
        cdef uint64_t *regs = <uint64_t *>self.c.env
        cdef uint64_t *cr = <uint64_t *>(self.c.env + ENV_CR)
        cdef uint64_t *efer = <uint64_t *>(self.c.env + tt_layout.efer)
        cdef uint32_t code, data, mxcsr = 0x1f80
        cdef uint16_t fpcw = 0x37f, fptag = 0xffff  # as FNINIT leaves the FPU
        cdef int i
        if mode not in ("real16", "protected32", "long64"):
            raise EngineError(f"a CPU cannot start in {mode!r}: use real16, protected32 or long64")
        memset(regs, 0, 16 * 8)
        regs[16] = rip
        cr[2] = 0
        (<uint64_t *>(self.c.env + ENV_EFLAGS))[0] = 2
        tt_canonical_flags(&self.c)
        for i in range(10):
            self._segment(i)[0] = CSegment(0, 0, 0xffff, 0)
        if mode == "real16":
            code, data = 0x9b00, 0x9300
            cr[0], cr[4], efer[0] = 0x10, 0, 0
        elif mode == "protected32":
            code, data = 0xc09b00, 0xc09300
            cr[0], cr[4], efer[0] = 0x11, 0, 0
        else:
            code, data = 0xa09b00, 0xc09300
            cr[0], cr[4], efer[0] = 0x80000011, 0x20, 0x500
            if not cr3:  # Denali: no page tables; long mode all the same
                cr[0] = 0x11
        cr[3] = cr3
        uc_reg_write(self.c.uc, UC_X86_REG_FPCW, &fpcw)
        uc_reg_write(self.c.uc, UC_X86_REG_FPTAG, &fptag)
        uc_reg_write(self.c.uc, UC_X86_REG_MXCSR, &mxcsr)
        for i in range(6):
            self._segment(i)[0] = CSegment(0 if mode == "real16" else 0x10 if i == 1 else 0x18, 0,
                                           0xffff if mode == "real16" else 0xffffffff, code if i == 1 else data)
        self._segment(7)[0] = CSegment(0, 0, 0xffff, 0x8b00)
        self._segment(6)[0] = CSegment(0, 0, 0xffff, 0x8200)
        self._segment(8)[0] = CSegment(0, gdt_base, gdt_limit, 0)
        self._segment(9)[0] = CSegment(0, 0, 0x3ff if mode == "real16" else 0, 0)
        for name, value in registers.items():
            self.set_register(name, value)
        tt_update_hflags(&self.c)
        tt_forget_code(&self.c)

    # ---- state

    cdef bytes _env(self):
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, tt_layout.state_size)
        tt_copy_state(&self.c, <uint8_t *><char *>copy)
        return copy

    def own_state(self):
        if not self.c.denali:
            return b""
        return (PyBytes_FromStringAndSize(<char *>self.c.soft, sizeof(self.c.soft))
                + PyBytes_FromStringAndSize(<char *>self.c.soft_next, sizeof(self.c.soft_next))
                + bytes([self.c.soft_tlb]))

    def save(self):
        return self._env() + self.own_state()

    def load(self, bytes state):
        cdef const char *p = state
        cdef int size = tt_layout.state_size, own = sizeof(self.c.soft) + sizeof(self.c.soft_next) + 1
        if len(state) != size + (own if self.c.denali else 0):
            raise EngineError("a CPU state of another build of Unicorn or another machine cannot be restored")
        if not tt_load_state(&self.c, <const uint8_t *>p):
            raise EngineError("a CPU state that no CPU was ever in cannot be restored: it is damaged")
        if self.c.denali:
            memcpy(self.c.soft, p + size, sizeof(self.c.soft))
            memcpy(self.c.soft_next, p + size + sizeof(self.c.soft), sizeof(self.c.soft_next))
            self.c.soft_tlb = p[size + own - 1]
        tt_flush_tlb(&self.c)
