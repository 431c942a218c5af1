"""Interrupts and faults that break into a step, and the way past them.

Who steps through a function does not want to land in the timer's handler.  A live
machine holds interrupts back meanwhile (QEMU: `sstep` with NOIRQ); a recording cannot.
So the handler is run to its end, or undone as a whole, as a call is by `next`.

That one was interrupted is read from what the CPU leaves for the handler: RIP and
RSP of the interrupted instruction, on the stack (Intel SDM volume 3, 6.12.1 and
6.14.2) or in the Denali machine's register page.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from tt.events import Kind
from tt.travel import Timeline
from tt.travel.stops import Breakpoint
from tt.travel.traps import linear_pc

LONGEST_TICKS = 20_000_000
"""How far to follow a handler; after that the step ends inside of it."""

_LONGEST_INSTRUCTION = 15
_MOST_INTERRUPTS = 32  # that are looked at: a handler of many others is passed by
_FRAME_WORDS = 24  # of stack that are searched: a handler may have pushed something already
_IRETS = (b"\x48\xcf", b"\xcf")
_VMCALL = b"\x0f\x01\xc1"
_DENALI_RETURNS = (2, 3)  # RAX: return from event, return from exception
# In the Denali register page: docs/denali-machine.md.
_DENALI_PAGE = 0x1000
_EVENT_HANDLER, _EVENT_FRAME = 0x30, 0x100
_EXCEPTION_HANDLER, _EXCEPTION_FRAME = 0x38, 0x140


@dataclass(frozen=True)
class Context:
    """Where a program is: the linear address of its next instruction, RIP, RSP, CS, and the mode's bits."""

    pc: int
    rip: int
    rsp: int
    cs: int
    bits: int

    @classmethod
    def of(cls, timeline: Timeline) -> Context:
        """Return the context one stands in."""
        values = timeline.registers()
        bits = timeline.machine.engine.bits
        return cls(linear_pc(timeline), values["rip"], values["rsp"], values["cs"], bits)

    def breakpoint(self) -> Breakpoint:
        """Return a breakpoint for coming back here: the same instruction with the same stack."""
        return Breakpoint(self.pc, condition=lambda timeline: timeline.registers()["rsp"] == self.rsp)


def broke_in(timeline: Timeline, before: Context) -> bool:
    """Whether the step from `before` went into a handler and not to the instruction's own successor."""
    here = linear_pc(timeline)
    if before.pc <= here <= before.pc + _LONGEST_INSTRUCTION:
        return False
    if timeline.trace.meta.get("machine") == "denali":
        return _denali_frame(timeline, here, before)
    return _stack_frame(timeline, before)


def interrupted_at(timeline: Timeline, context: Context, until: int) -> int | None:
    """Return the last tick before here, not before `until`, at which an interrupt broke into `context`.

    A breakpoint does not find it: the instruction was not about to be executed.  Moves the timeline.
    """
    kinds = {Kind.IRQ, Kind.BATCH}
    last = deque(timeline.trace.events(until, max(timeline.tick - 1, 0), kinds), maxlen=_MOST_INTERRUPTS)
    for tick in sorted({event.tick for event in last}, reverse=True):
        timeline.seek(tick)
        if Context.of(timeline) == context:
            return tick
    return None


def is_return(timeline: Timeline) -> bool:
    """Whether the next instruction returns from a handler."""
    try:
        code = timeline.read(linear_pc(timeline), 3)
    except IndexError:
        return False
    if code == _VMCALL:
        return timeline.registers()["rax"] in _DENALI_RETURNS
    return code.startswith(_IRETS)


def successor(timeline: Timeline, context: Context) -> int | None:
    """Return the address after the instruction at `context`: a handler may have done its work instead."""
    import capstone  # type: ignore[import-untyped]

    mode = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}[context.bits]
    code = b""
    for size in range(_LONGEST_INSTRUCTION, 0, -1):
        try:
            code = timeline.read(context.pc, size)
            break
        except IndexError:
            continue
    for instruction in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, context.pc, 1):
        return context.pc + int(instruction.size)
    return None


def _denali_frame(timeline: Timeline, here: int, before: Context) -> bool:
    page = timeline.machine.engine.read(_DENALI_PAGE, 0x180)
    for handler_at, frame_at in ((_EVENT_HANDLER, _EVENT_FRAME), (_EXCEPTION_HANDLER, _EXCEPTION_FRAME)):
        (handler,) = struct.unpack_from("<Q", page, handler_at)
        rip, _flags, rsp = struct.unpack_from("<3Q", page, frame_at)
        if handler <= here <= handler + _LONGEST_INSTRUCTION and (rip, rsp) == (before.rip, before.rsp):
            return True
    return False


def _stack_frame(timeline: Timeline, before: Context) -> bool:
    """Look for RIP, CS, RFLAGS, RSP (in 64-bit mode and where the privilege changed) on top of the stack."""
    values = timeline.registers()
    wide = timeline.machine.engine.bits == 64
    size, letter = (8, "Q") if wide else (4, "I")
    stack = values["rsp"] + (0 if wide else timeline.machine.engine.segment("ss")[1])
    words: list[int] = []
    for count in (_FRAME_WORDS, 6):
        try:
            words = list(struct.unpack(f"<{count}{letter}", timeline.read(stack, size * count)))
            break
        except (IndexError, OverflowError):
            continue
    for at in range(len(words) - 3):
        rip, cs, _flags, rsp = words[at : at + 4]
        if rip == before.rip and cs & 0xFFFF == before.cs:
            same_level = not wide and before.cs & 3 == values["cs"] & 3
            if same_level or rsp == before.rsp:
                return True
    return False
