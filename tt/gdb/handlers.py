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
from tt.travel.code import LONGEST, decode, here
from tt.travel.stops import Breakpoint
from tt.vmm.denali.registers import PAGE, REGISTER_PAGE, Call, Register
from tt.vmm.linear import linear_pc, linear_sp, readable

LONGEST_TICKS = 20_000_000
"""How far to follow a handler; after that the step ends inside of it."""

_MOST_INTERRUPTS = 32  # that are looked at: a handler of many others is passed by
_FRAME_WORDS = 24  # of stack that are searched: a handler may have pushed something already
_PROTECTED = 1  # in CR0
_DENALI_RETURNS = (Call.RETURN_FROM_EVENT, Call.RETURN_FROM_EXCEPTION)  # in RAX
_DENALI_UPCALLS = (  # where the register page says the handler is, and what was interrupted
    (Register.EVENT_HANDLER, Register.EVENT_RIP),
    (Register.EXCEPTION_HANDLER, Register.EXCEPTION_RIP),
)


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
        """Return the context of the current place."""
        values = timeline.registers()
        bits = timeline.machine.engine.bits
        return cls(linear_pc(timeline.machine.engine), values["rip"], values["rsp"], values["cs"], bits)

    def breakpoint(self) -> Breakpoint:
        """Return a breakpoint for coming back here: the same instruction with the same stack."""
        return Breakpoint(self.pc, condition=lambda timeline: timeline.registers()["rsp"] == self.rsp)


def broke_in(timeline: Timeline, before: Context) -> bool:
    """Whether the step from `before` went into a handler and not to the instruction's own successor."""
    pc = linear_pc(timeline.machine.engine)
    if before.pc <= pc <= before.pc + LONGEST:
        return False
    if timeline.trace.meta.get("machine") == "denali":
        return _denali_frame(timeline, pc, before)
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
    code = here(timeline)
    if code is not None and code.is_machine_call:
        return timeline.registers()["rax"] in _DENALI_RETURNS
    return code is not None and code.is_interrupt_return


def successor(timeline: Timeline, context: Context) -> int | None:
    """Return the address after the instruction at `context`: a handler may have done its work instead."""
    code = decode(readable(timeline.read, context.pc, LONGEST), context.pc, context.bits)
    return None if code is None else code.following


def _denali_frame(timeline: Timeline, pc: int, before: Context) -> bool:
    page = timeline.machine.engine.read(REGISTER_PAGE, PAGE)
    for handler_at, frame_at in _DENALI_UPCALLS:
        (handler,) = struct.unpack_from("<Q", page, handler_at)
        rip, _flags, rsp = struct.unpack_from("<3Q", page, frame_at)
        if handler <= pc <= handler + LONGEST and (rip, rsp) == (before.rip, before.rsp):
            return True
    return False


def _stack_frame(timeline: Timeline, before: Context) -> bool:
    """Look for RIP, CS, RFLAGS, RSP (in 64-bit mode and where the privilege changed) on top of the stack."""
    engine, values = timeline.machine.engine, timeline.registers()
    wide, real = engine.bits == 64, not values["cr0"] & _PROTECTED
    size, letter = (8, "Q") if wide else (2, "H") if real else (4, "I")
    data = readable(timeline.read, linear_sp(engine), size * _FRAME_WORDS)
    words = struct.unpack(f"<{len(data) // size}{letter}", data[: len(data) // size * size])
    for at in range(len(words) - 2):
        if words[at] == before.rip and words[at + 1] & 0xFFFF == before.cs:
            same_level = not wide and (real or before.cs & 3 == values["cs"] & 3)
            if same_level or words[at + 3 : at + 4] == (before.rsp,):
                return True
    return False
