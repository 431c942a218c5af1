"""A bare guest for tests of the engine: assembled by gcc's binutils, with tables laid out from Python.

Memory of a guest, all of it guest-physical (and virtual, where paging is the
identity):

    0x0600  GDT            0x1000  page tables     0x9000  TSS
    0x4000  IDT            0x8000  vector stubs    0x10000 code (real mode: 0xc000)
    stacks grow down from 0x20000 (kernel), 0x22000 (ring change), 0x24000, 0x26000 (IST 1, 2), 0x30000 (user)

Every vector's stub is a HLT (one that Python can tell by its address), so an
exception ends the run with its frame on the stack, to be read from here.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tt.vmm.engine import FOREVER, HALT, STOP, Engine

MB = 1 << 20
CODE = 0x10000
REAL_CODE = 0xC000  # in real mode
GDT, IDT, STUBS, TSS = 0x600, 0x4000, 0x8000, 0x9000
PML4, PDPT, PD = 0x1000, 0x2000, 0x3000
KERNEL_STACK, RING_STACK, IST1, IST2, USER_STACK = 0x20000, 0x22000, 0x24000, 0x26000, 0x30000
KERNEL_CS32, KERNEL_CS64, KERNEL_DS, USER_CS32, USER_DS, USER_CS64, TSS_SELECTOR = (
    0x08, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x38,
)  # fmt: skip
P, W, U, A, D, PS, G, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
CF, ZF, TF, IF, DF, RF = 1, 0x40, 0x100, 0x200, 0x400, 0x10000
DE, DB, UD, DOUBLE, TS, NP, SS, GP, PF = 0, 1, 6, 8, 10, 11, 12, 13, 14
WITH_ERROR = {8, 10, 11, 12, 13, 14, 17}

# What every program may use: its tables are where the rig puts them.
_EQUATES = "".join(
    f".set {name}, {value}\n"
    for name, value in {
        "GDT": GDT, "IDT": IDT, "TSS": TSS, "PML4": PML4, "PDPT": PDPT, "PD": PD,
        "KCS32": KERNEL_CS32, "KCS64": KERNEL_CS64, "KDS": KERNEL_DS, "UCS32": USER_CS32,
        "UDS": USER_DS, "UCS64": USER_CS64, "USTACK": USER_STACK, "KSTACK": KERNEL_STACK,
    }.items()
)  # fmt: skip


@functools.cache
def assemble(source: str, bits: int = 64, org: int = CODE) -> bytes:
    """Return the machine code of GNU assembler text (Intel syntax), as it lies at `org`."""
    head = f".intel_syntax noprefix\n.code{bits}\n.text\n.globl _start\n_start:\n{_EQUATES}"
    kind, target = ("--64", "elf_x86_64") if bits == 64 else ("--32", "elf_i386")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for command, text in (
            (["as", kind, "-o", f"{out}.o", "-"], head + source + "\n"),
            (["ld", "-m", target, "-Ttext", hex(org), "--oformat", "binary", "-o", str(out), f"{out}.o"], ""),
        ):
            done = subprocess.run(command, input=text, text=True, capture_output=True)
            if done.returncode:
                pytest.fail(f"{command[0]}: {done.stderr}")
        return out.read_bytes()


def descriptor(base: int, limit: int, flags: int) -> bytes:
    """Return a segment descriptor; `flags` is its second word's bits 8-23 (limit 16-19 left out)."""
    high = (base >> 16) & 0xFF | flags | limit & 0xF0000 | base & 0xFF000000
    return struct.pack("<II", (base & 0xFFFF) << 16 | limit & 0xFFFF, high)


def gate64(offset: int, selector: int = KERNEL_CS64, dpl: int = 0, ist: int = 0, kind: int = 0xE) -> bytes:
    word = 0x8000 | dpl << 13 | kind << 8 | ist
    return struct.pack("<HHHHII", offset & 0xFFFF, selector, word, offset >> 16 & 0xFFFF, offset >> 32, 0)


def gate32(offset: int, selector: int = KERNEL_CS32, dpl: int = 0, kind: int = 0xE) -> bytes:
    return struct.pack("<HHHH", offset & 0xFFFF, selector, 0x8000 | dpl << 13 | kind << 8, offset >> 16)


_GDT = b"".join(
    [
        bytes(8),
        descriptor(0, 0xFFFFF, 0xC09B00),  # 0x08 kernel code, 32 bits
        descriptor(0, 0xFFFFF, 0xA09B00),  # 0x10 kernel code, 64 bits
        descriptor(0, 0xFFFFF, 0xC09300),  # 0x18 kernel data
        descriptor(0, 0xFFFFF, 0xC0FB00),  # 0x20 user code, 32 bits
        descriptor(0, 0xFFFFF, 0xC0F300),  # 0x28 user data
        descriptor(0, 0xFFFFF, 0xA0FB00),  # 0x30 user code, 64 bits
        descriptor(TSS, 0xFFF, 0x8900),  # 0x38 TSS, free; its second half in long mode
        bytes(8),
    ]
)


@dataclass(frozen=True)
class Frame:
    """What an exception or an interrupt left on the handler's stack."""

    vector: int
    error: int | None
    rip: int
    cs: int
    flags: int
    rsp: int
    ss: int
    at: int  # stack pointer at the handler's entry


class Guest:
    """A guest in `mode` with `source` at `CODE`, its tables ready; `boot` puts it at power-on."""

    def __init__(
        self, source: str, mode: str = "long64", *, ram: int = MB, registers: Mapping[str, int] | None = None
    ) -> None:
        self.mode = mode
        self.bits = {"long64": 64, "protected32": 32, "real16": 16}[mode]
        self.engine = Engine(ram, code_buffer=1 << 20)
        self.io: list[tuple[int, str, int, int, int]] = []  # (tick, "in"/"out", port, size, value)
        self.inputs: Callable[[int, int], int] = lambda port, size: 0
        self.on_out: Callable[[int, int, int], None] = lambda port, size, value: None
        self.line = False
        self.engine.port_read = self._read
        self.engine.port_write = self._write
        self.engine.set_cpuid([(0, None, 1, 2, 3, 4)])
        self._tables()
        code = REAL_CODE if mode == "real16" else CODE
        self.engine.write(code, assemble(source, self.bits, code))
        self.engine.start(
            mode,
            code,
            {"rsp": KERNEL_STACK, **(registers or {})},
            PML4 if mode == "long64" else 0,
            GDT,
            len(_GDT) - 1,
        )
        if mode != "real16":
            self.run_head()
        self.start_state = self.engine.save()
        self.start_ram = self.engine.read(0, ram)

    def set_intr(self, level: bool) -> None:
        """Drive the interrupt line, which belongs to the devices: `line` is their state."""
        self.line = level
        self.engine.set_intr(level)

    def _read(self, port: int, size: int) -> int:
        value = self.inputs(port, size)
        self.io.append((self.engine.tick, "in", port, size, value))
        return value

    def _write(self, port: int, size: int, value: int) -> None:
        self.io.append((self.engine.tick, "out", port, size, value))
        self.on_out(port, size, value)

    def _tables(self) -> None:
        e = self.engine
        e.write(STUBS, b"\xf4" * 0x1000)
        if self.mode == "real16":
            e.write(0, b"".join(struct.pack("<HH", i * 4, STUBS >> 4) for i in range(256)))
            return
        e.write(GDT, _GDT)
        if self.mode == "long64":
            e.write(IDT, b"".join(gate64(STUBS + i * 4) for i in range(256)))
            e.write(TSS + 4, struct.pack("<Q", RING_STACK))
            e.write(TSS + 36, struct.pack("<QQ", IST1, IST2))
            e.write(TSS + 102, struct.pack("<H", 0x1000))  # no I/O bitmap
            e.write(PML4, struct.pack("<Q", PDPT | P | W | U))
            e.write(PDPT, struct.pack("<Q", PD | P | W | U))
            e.write(PD, b"".join(struct.pack("<Q", i << 21 | P | W | U | PS | D | A) for i in range(512)))
        else:
            e.write(IDT, b"".join(gate32(STUBS + i * 4) for i in range(256)))
            e.write(TSS + 4, struct.pack("<II", RING_STACK, KERNEL_DS))
            e.write(TSS + 102, struct.pack("<H", 0x1000))

    def run_head(self) -> None:
        """Load IDTR and TR as a kernel would, then go back to tick 0 at `CODE`."""
        head = assemble(
            "lidt [0xa800]\n mov ax, 0x38\n ltr ax\n hlt",
            self.bits,
            0xA000,
        )
        e = self.engine
        before = e.registers()
        e.write(0xA800, struct.pack("<HQ", 0xFFF, IDT))
        e.write(0xA000, head)
        e.set_register("rip", 0xA000)
        assert e.run(100) == HALT
        e.set_register("rip", CODE)
        e.set_register("rax", before["rax"])
        e.write(0xA000, bytes(0x1000))
        e.tick = 0

    def reset(self) -> None:
        """Go back to tick 0, everything dropped."""
        e = self.engine
        e.restore_ram(self.start_ram)
        e.load(self.start_state)
        e.forget_code()
        self.set_intr(False)
        e.limit = FOREVER
        e.tick = 0
        e.idle_ns = 0
        self.io.clear()

    def write(self, addr: int, data: bytes) -> None:
        """Put bytes into the guest as it is at power-on, which it goes back to."""
        self.start_ram = self.start_ram[:addr] + data + self.start_ram[addr + len(data) :]
        self.engine.restore_ram(self.start_ram)

    def put64(self, addr: int, *values: int) -> None:
        self.write(addr, struct.pack(f"<{len(values)}Q", *values))

    def run(self, stop: int = 1_000_000) -> int:
        """Run to `stop` or to what ends the run: on a busy host the engine may come back before."""
        while (reason := self.engine.run(stop)) == STOP and self.engine.tick < min(stop, self.engine.limit):
            pass
        return reason

    def halt(self, stop: int = 1_000_000) -> dict[str, int]:
        """Run until HLT; return the registers."""
        reason = self.run(stop)
        assert reason == HALT, (reason, self.engine.last_error, self.engine.registers())
        return self.engine.registers()

    def state(self) -> tuple[int, bytes, bytes]:
        """Return all there is at this boundary."""
        return self.engine.tick, self.engine.save(), self.engine.ram_digest()

    @property
    def vector(self) -> int | None:
        """The vector whose stub stopped the guest."""
        offset = self.engine.segment("cs")[1] + self.engine.registers()["rip"] - 1 - STUBS
        return offset // 4 if 0 <= offset < 1024 and offset % 4 == 0 else None

    def frame(self, stop: int = 1_000_000) -> Frame:
        """Run into an exception; return its frame.  `tick` is then one (the stub's HLT) too many."""
        self.halt(stop)
        return self.frame_here()

    def frame_here(self) -> Frame:
        """Return the frame of the exception whose stub stopped the guest."""
        vector = self.vector
        assert vector is not None, self.engine.registers()
        at = sp = self.engine.registers()["rsp"]
        has_error = vector in WITH_ERROR and self.bits != 16
        width = {64: 8, 32: 4, 16: 2}[self.bits]
        words = [
            int.from_bytes(self.engine.read(self._stack(sp) + i * width, width), "little") for i in range(6)
        ]
        error = words.pop(0) if has_error else None
        return Frame(vector, error, words[0], words[1], words[2], words[3], words[4], at)

    def _stack(self, sp: int) -> int:
        return sp + self.engine.segment("ss")[1]

    def u64(self, addr: int) -> int:
        return int.from_bytes(self.engine.read(addr, 8), "little")

    def u32(self, addr: int) -> int:
        return int.from_bytes(self.engine.read(addr, 4), "little")


def trail(
    guest: Guest, last: int, drive: Callable[[Guest], None] = lambda guest: None
) -> list[tuple[int, bytes, bytes]]:
    """Return the states at ticks 0 ... `last`, by single steps; `drive` acts at each boundary."""
    guest.reset()
    states = [guest.state()]
    while guest.engine.tick < last:
        drive(guest)
        guest.run(guest.engine.tick + 1)
        states.append(guest.state())
    return states


def check_every_stop(guest: Guest, *, most: int = 400) -> int:
    """Run to the HLT at once and in steps, and to each tick at once: the same states.  Return the ticks.

    Also: the independent count agrees at the end; saving, going on and coming
    back changes nothing; the devices saw the same accesses at the same ticks.
    """
    guest.reset()
    guest.halt()
    end, end_io = guest.state(), list(guest.io)
    last = end[0]
    assert 0 < last <= most, f"{last} ticks are more than this program was thought to have"
    by_steps = trail(guest, last)
    assert [state[0] for state in by_steps] == list(range(last + 1))
    assert (by_steps[-1], guest.io) == (end, end_io)
    for tick in range(last + 1):
        guest.reset()
        guest.run(tick)
        assert guest.state() == by_steps[tick], f"tick {tick}: reached at once and by single steps differ"
    for tick in range(0, last, max(1, last // 20)):
        guest.reset()
        guest.run(tick)
        state, ram = guest.engine.save(), guest.engine.read(0, guest.engine.size)
        io, line = len(guest.io), guest.line
        guest.run(min(last, tick + 7))
        guest.engine.restore_ram(ram)
        guest.engine.load(state)
        guest.engine.tick = tick
        guest.set_intr(line)
        if tick & 1:
            guest.engine.forget_code()
        del guest.io[io:]
        guest.run(last)
        assert (guest.state(), guest.io) == (end, end_io), f"tick {tick}: not the same after save and load"
    return last


def check_count(guest: Guest) -> int:
    """Run to the HLT: the independent count agrees with the tick, which is returned.  Comes last."""
    guest.reset()
    guest.engine.count_instructions()
    guest.halt()
    assert guest.engine.counted == guest.engine.tick
    return guest.engine.tick
