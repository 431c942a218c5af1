"""The typed interface of the engine: one x86-64 CPU and its RAM.

The engine is exact: every method that looks at the CPU sees it at an instruction
boundary, and `tick` says which one.  Nothing in here knows a device, a clock or
a trace; those talk to the engine through its callbacks.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

from typing_extensions import disjoint_base

STOP: int
"""`Engine.run` came back because it reached the tick asked for, or `limit`."""
HALT: int
"""`Engine.run` came back after an executed HLT; RIP is after it."""
SHUTDOWN: int
"""`Engine.run` came back because of a triple fault, or because faults without end kept the CPU from
executing any instruction at all; `Engine.last_error` says which."""
DOUBLE_FAULT: int
"""`Engine.run` came back because a Denali guest could not take an exception; see `Engine.last_error`."""
BREAK: int
"""`Engine.run` came back before an instruction that has a breakpoint."""
WATCH: int
"""`Engine.run` came back after an instruction that touched watched bytes; see `Engine.hit`."""
CATCH: int
"""`Engine.run` came back before an exception or a system call; see `Engine.set_catches`."""
FOREVER: int
"""A tick that no machine reaches."""

def layout_probes() -> int:
    """Return how often this process has searched libunicorn for its layout: once, for the first engine."""

@disjoint_base
class Engine:
    """Make a CPU with `ram_size` bytes of zeroed RAM at guest-physical 0.

    `ram_size` is whole 4 KB pages, 1 MB to 1 TB.  With `denali`, the CPU is one of
    the Denali architecture: software-loaded TLB, upcalls, virtual instructions, no
    port I/O (`docs/denali-machine.md`).  `code_buffer` is the size in bytes of
    the buffer for translated code; 0 takes Unicorn's own size, and 1 << 20 makes
    an engine open ten times faster.  The CPU has no sensible state before
    `start` or `load`.

    An engine belongs to one thread at a time.  Several engines may live in a process,
    and a callback of one may run another.

    Raises `EngineError` where the size is wrong, memory is short, or the installed
    libunicorn is not the one whose insides are known (`layout.c`).
    """

    port_read: Callable[[int, int], int]
    """Called as `port_read(port, size)` for IN and INS; `size` is 1, 2 or 4 bytes.

    `tick` in the callback is the tick before the instruction.  An exception in
    any callback ends the run and comes out of `run`.
    """
    port_write: Callable[[int, int, int], None]
    """Called as `port_write(port, size, value)` for OUT and OUTS; see `port_read`."""
    memory_read: Callable[[int, int], int]
    """Called as `memory_read(addr, size)` where the guest loads from an address of `map_devices`.

    The bytes are those that the instruction asks for on one page, 1 to 8 of them, aligned or
    not; each is asked for once.  An access of more than 8 bytes comes in several calls.
    `tick` is that before the instruction.  A failure is as in `port_read`.
    """
    memory_write: Callable[[int, int, int], None]
    """Called as `memory_write(addr, size, value)` where the guest stores there; see `memory_read`."""
    acknowledge: Callable[[], int]
    """Called when the CPU takes an interrupt; return its vector, or -1 for none after all.

    Without `set_intr(False)` in it, the next interrupt follows as soon as IF allows.
    """
    tsc: Callable[[], int]
    """Called by RDTSC and RDTSCP while `host_tsc` is set; return the counter, in guest nanoseconds.

    If it raises, the instruction has not happened and is the next one.
    """
    virtual_instruction: Callable[[int, int, int, int], int | None]
    """Called as `virtual_instruction(number, rdi, rsi, rdx)` by a Denali guest's VMCALL.

    The result, unless None, becomes RAX.  `tick` already counts the VMCALL.
    """

    def __new__(cls, ram_size: int, *, denali: bool = False, code_buffer: int = 0) -> Self: ...

    # ---- time

    @property
    def tick(self) -> int:
        """Return the number of instructions retired since power-on.

        An instruction that faults does not count, nor does an INT n that its gate does not allow;
        INT n, SYSCALL, IRET, HLT and a single-stepped instruction count one.
        Each iteration of a REP string instruction counts one; so a REP with RCX = n
        counts n, and one more step that finds RCX at zero and moves on where
        tests/unit/engine/test_engine_ticks.py says so.
        """

    @tick.setter
    def tick(self, value: int) -> None: ...
    @property
    def limit(self) -> int:
        """Return the tick at which `run` comes back so that devices can be attended to; `FOREVER` for none.

        May be set at any time, in a callback too: at `tick` or below it ends the run
        after the instruction that the callback belongs to.
        """

    @limit.setter
    def limit(self, tick: int) -> None: ...
    @property
    def period_ns(self) -> int:
        """Return how many guest nanoseconds a tick takes; RDTSC returns `tick * period_ns + idle_ns`."""

    @period_ns.setter
    def period_ns(self, value: int) -> None: ...
    @property
    def idle_ns(self) -> int:
        """Return the guest nanoseconds that passed while the CPU was halted."""

    @idle_ns.setter
    def idle_ns(self, value: int) -> None: ...
    @property
    def host_tsc(self) -> bool:
        """Return whether RDTSC asks the `tsc` callback instead of computing."""

    @host_tsc.setter
    def host_tsc(self, value: bool) -> None: ...

    # ---- running

    def run(self, stop: int) -> int:
        """Execute until tick `stop`, `limit`, HLT or the end of the machine; return which.

        Returns `STOP`, `HALT`, `SHUTDOWN`, `DOUBLE_FAULT`, `BREAK`, `WATCH` or `CATCH`.  At `STOP` the tick
        is at most the smaller of `stop` and `limit`; it is less where the guest made the engine
        work so hard that some 100 ms passed: then call again.  The state is that before
        the next instruction, before a fault of its own and before an interrupt that
        would be taken there; only a page fault of its fetch has been delivered
        already.  Does nothing where the tick is reached already.

        Raises what a callback raised (the port access that called it is complete, with
        all ones where a value was missing), and `EngineError` where Unicorn itself
        failed.  The engine can go on after either.
        """

    def set_breakpoints(self, addrs: Iterable[int]) -> None:
        """Replace all breakpoints by those at the virtual addresses `addrs`, at most 256.

        `run` returns `BREAK` before the instruction there, once for each time that the
        CPU comes to it; the instruction where it stands when they are set does not count.
        It may be at a handler's first instruction, at the tick of the interrupted one: see
        `entered_at`.  Breakpoints are not part of the state.  Raises `EngineError` for too many.
        """

    def map_devices(self, spans: Iterable[tuple[int, int]]) -> None:
        """Replace all places where devices answer by (guest-physical addr, size in bytes), outside RAM.

        On the 4 KB pages that they touch all accesses come to `memory_read` and `memory_write`.
        Elsewhere outside RAM loads read all ones and stores do nothing.  Not part of the state;
        may be called in a callback.  Raises `EngineError` for more than 64, or for one in RAM.
        """

    def set_watchpoints(self, watches: Iterable[tuple[int, int, bool, bool, bool]]) -> None:
        """Replace all watchpoints by (addr, size in bytes, reads, writes, physical), at most 64.

        `run` returns `WATCH` after the instruction that touched such bytes, or, of what
        happens between two instructions, after the second.  An instruction that faults
        has touched nothing.  Not part of the state.  Raises `EngineError` for too many, or one of 0 bytes.
        """

    @property
    def hit(self) -> tuple[int, int, int, bool] | None:
        """Return the access that ended the last run: (addr, guest-physical addr, size, is a write).

        Of several, the first; `hits` has them all.
        """

    @property
    def hits(self) -> list[tuple[int, bool, bool, bytes | None]]:
        """Return each watchpoint that was hit: (index, was read, was written, its bytes before).

        The bytes are None where there are more than 64, or not all are mapped.
        """

    @property
    def hit_by(self) -> str:
        """Return what did it: `instruction`, `device`, `interrupt` (the CPU, entering one) or `page walk`."""

    def set_catches(self, syscalls: Collection[int] | None, exceptions: Collection[int] | None) -> None:
        """Catch system calls by EAX (at most 64), exceptions by vector; None catches none, an empty list all.

        `run` returns `CATCH` before a SYSCALL, SYSENTER or INT 0x80, before an
        instruction that faults (CR2 is that of the fault already) and before INT n.  A double
        fault or a debug trap is caught in its handler.  What comes at the tick at which they are
        set does not count.  Not part of the state.  Raises `EngineError` for too many.
        """

    @property
    def caught(self) -> tuple[str, int] | None:
        """Return what ended the last run with `CATCH`: (`syscall` or `exception`, its number)."""

    @property
    def entered_at(self) -> int:
        """Return the tick at which the CPU last entered a handler, other than by INT n.

        Where that is `tick`, and `run` came back with `BREAK`, `WATCH` or `CATCH`, the state may differ from
        that in which `run(tick)` comes back.
        """

    @property
    def last_error(self) -> str:
        """Return one line about the last `DOUBLE_FAULT`, `SHUTDOWN` or failure of Unicorn; "" before any."""

    def set_intr(self, level: bool) -> None:
        """Drive the CPU's INTR line.

        While it is up, an interrupt is taken at the first boundary with IF set
        and no interrupt shadow.
        """

    @property
    def interruptible(self) -> bool:
        """Return whether RFLAGS.IF is set; the interrupt shadow after STI or MOV SS is not looked at."""

    def upcall(self, mask: int) -> None:
        """Hand the batch of events `mask` to a Denali guest: enter its event handler."""

    def set_cpuid(self, leaves: Sequence[tuple[int, int | None, int, int, int, int]]) -> None:
        """Set what CPUID returns: (leaf, subleaf or None for any, EAX, EBX, ECX, EDX).

        A later row wins over an earlier one; a leaf without a row reads as zeros.
        """

    def double_bookkeeping(self) -> None:
        """Count each block's instructions twice from now on: for a benchmark of what counting costs."""

    def count_instructions(self) -> None:
        """Count every instruction in `counted` too, by another mechanism; some five times slower.

        For tests: an independent check of `tick`.  Cannot be switched off again.
        """

    @property
    def counted(self) -> int:
        """Return how many instructions were begun and retired since `count_instructions`."""

    @property
    def statistics(self) -> dict[str, int]:
        """Return counters of the engine's work.  They depend on the host: never show them to a guest."""

    # ---- memory

    size: int
    """The size of RAM in bytes.  Read-only, though declared as `tt.vmm.memory.Memory` asks for it."""

    def read(self, addr: int, size: int) -> bytes:
        """Return `size` bytes from guest-physical `addr`; raise `IndexError` outside RAM."""

    def write(self, addr: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at guest-physical `addr` as a device does; raise `IndexError` outside RAM.

        Code that was there is translated anew.
        """

    def translate(self, addr: int) -> int | None:
        """Return the guest-physical address behind `addr`, or None where nothing is mapped.

        Looks as the supervisor does, whatever the current privilege.  Changes nothing.
        """

    def read_virtual(self, addr: int, size: int) -> bytes:
        """Return `size` bytes from virtual `addr`; raise `IndexError` where a byte is not mapped to RAM."""

    def restore_ram(self, ram: bytes | bytearray | memoryview) -> int:
        """Make all of RAM equal to `ram`; return the number of pages that differed.

        Raises `EngineError` where `ram` has another size.
        """

    def ram_digest(self) -> bytes:
        """Return 16 bytes that stand for the contents of RAM, however they came about.

        Costs in proportion to the pages stored to since the last call (`digest.c`).
        Not made to withstand someone who forges pages.
        """

    def page_hashes(self) -> bytes:
        """Return 16 bytes for each 4 KB page, in order; zeros for a page of zeros."""

    def take_changes(self) -> tuple[bytes, bytes]:
        """Return the pages stored to since the last call: their numbers (u32, rising), what they hold.

        Right after it `ram_digest` costs nothing.
        """

    def page_names(self, pages: bytes | bytearray | memoryview) -> bytes:
        """Return 16 bytes for each of the pages with these numbers (u32, as `take_changes` returns them).

        Two pages of one number that have the same name hold the same.  After `take_changes`
        or `ram_digest`, which make the names, it costs next to nothing.  Raises `IndexError` for a number
        outside RAM, and `EngineError` for bytes that are no numbers.
        """

    fetch_page: Callable[[int], bytes | memoryview]
    """Called with a page's number; returns the 4096 bytes it held at the time that `revert` goes back to."""

    def revert(self, changed: bytes | bytearray | memoryview, digest: bytes) -> None:
        """Make RAM what it was when its digest was `digest`, fetching each page when it is first looked at.

        `changed` has a bit for each page, lowest first: set where the page may differ from
        then.  Pages stored to since `take_changes` go back too.  `fetch_page` must be set
        before.  Raises `EngineError` for another size of RAM.
        """

    @property
    def stale_pages(self) -> int:
        """Return how many pages have not been fetched since `revert`."""

    def forget_code(self) -> None:
        """Drop every translated block and the TLB.  Nothing that a guest can see changes."""

    def flush_tlb(self) -> None:
        """Drop the TLB: page tables written from outside take effect."""

    # ---- registers

    def registers(self) -> dict[str, int]:
        """Return rax ... r15, rip, rflags, segment selectors, cr0 cr2 cr3 cr4, efer and segment bases."""

    def register_checksum(self) -> bytes:
        """Return 4 bytes that stand for the general registers, RIP and RFLAGS: cheap to compare often."""

    def architectural_state(self) -> bytes:
        """Return what a guest can see of the CPU, in the same form in every build: for digests."""

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """Return (selector, base, limit, flags) of es cs ss ds fs gs ldtr tr gdtr or idtr.

        `limit` is in bytes; `flags` is the descriptor's second word, bits 8 to 23
        (Intel SDM volume 3, figure 3-8).  Raises `ValueError` for another name.
        """

    @property
    def bits(self) -> int:
        """Return the size of the code that runs: 64, 32 or 16."""

    def set_register(self, name: str, value: int) -> None:
        """Set rax ... r15, rip, rflags, fs_base, gs_base, cr2 or cr3; raise `EngineError` for another."""

    def xmm(self) -> list[int]:
        """Return the 16 SSE registers as 128-bit numbers."""

    def start(
        self,
        mode: str,
        rip: int,
        registers: Mapping[str, int],
        cr3: int = 0,
        gdt_base: int = 0,
        gdt_limit: int = 0,
    ) -> None:
        """Put the CPU at `rip` in `real16`, `protected32` or `long64`, as a boot loader leaves it.

        `registers` names general registers; the others are 0.  Interrupts are
        off, segments are flat: CS is 0x10 and the data segments are 0x18 (0 in real mode).
        `cr3` makes long mode page; without it (Denali) addresses are physical.
        Raises `EngineError` for another mode or register.
        """

    # ---- state

    def own_state(self) -> bytes:
        """Return the Denali TLB, which no x86 CPU has; b"" for a pc."""

    def save(self) -> bytes:
        """Return the whole state of the CPU (not RAM, not `tick`): equal states give equal bytes."""

    def load(self, state: bytes) -> None:
        """Put a state from `save` back; raise `EngineError` for any other bytes, as of another build."""
