"""Steps as a person counts them: over calls, over interrupts, out of functions, in both directions.

A place in a function is told from the same place in another run of it (a
recursion, another thread, a handler on the same stack) by RSP, by the CPU's
privilege and, of programs, by the address space.  Enabled stops on the way end
a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tt.errors import UsageError
from tt.travel.code import Code, calls_before, comes_back, fetch, here
from tt.travel.returns import Return, find_return, successors
from tt.travel.search import excursion, proceed, reverse_proceed
from tt.travel.stops import Arrival, Breakpoint, Condition
from tt.vmm.linear import linear_pc

if TYPE_CHECKING:
    from tt.travel.timeline import Timeline

_ARGUMENTS = 512  # bytes that a callee may take off the stack when it returns
_SPACE = ~0x1FFF  # bits of CR3 that name the address space, without its user or kernel half and the PCID


def step(timeline: Timeline, count: int = 1) -> Arrival:
    """Go `count` instructions forward, into whatever they call; a stop on the way ends it."""
    return proceed(timeline, until=min(timeline.tick + count, timeline.end_tick))


def next_instruction(timeline: Timeline) -> Arrival:
    """Go to the next instruction of this function: over calls, system calls, REP and interrupts."""
    with excursion(timeline):
        while True:
            code = here(timeline)
            if code is None or timeline.tick >= timeline.end_tick:
                return step(timeline)
            is_call = code.is_call and comes_back(timeline, code)
            if is_call or code.is_system_call or code.is_repeated:
                return proceed(timeline, [_at(timeline, code.following, _in_frame(timeline, _ARGUMENTS))])
            expected = successors(timeline, code)
            back = _at(timeline, code.addr, _in_frame(timeline, 0))
            arrival = step(timeline)
            if arrival.reason != "step" or expected is None or linear_pc(timeline.machine.engine) in expected:
                return arrival
            arrival = proceed(timeline, [back])  # a handler came first
            if arrival.reason != "step":
                return arrival


def reverse_next(timeline: Timeline) -> Arrival:
    """Go to the instruction of this function before here: over calls, system calls, REP and interrupts."""
    with excursion(timeline):
        while timeline.tick > 0:
            addr, registers = linear_pc(timeline.machine.engine), timeline.registers()
            in_frame = _in_frame(timeline, 0)
            timeline.reverse_step()
            code = here(timeline)
            entries: Sequence[int] = ()
            if code is not None and code.is_return:
                entries = calls_before(timeline, addr)
                in_frame = _in_frame(timeline, 0, registers, _taken_off(code))
            elif code is not None and code.is_system_return:
                entries = [addr, *_system_calls_before(timeline, addr)]
            elif code is not None and code.is_repeated and addr == code.following:
                return _start_of_repeat(timeline, code)
            if not entries:
                break
            before = timeline.tick
            arrival = reverse_proceed(timeline, [_at(timeline, entry, in_frame) for entry in entries])
            if arrival.reason == "start":  # the function was not entered by a call
                timeline.seek(before)
                break
            if arrival.reason != "step" or linear_pc(timeline.machine.engine) != addr:
                return arrival
            # A handler ran in between, and the timeline is before it, at the same instruction.
        reason = "step" if timeline.tick else "start"
        return Arrival(reason, timeline.tick, detail="" if timeline.tick else "the start of the recording")


def finish(timeline: Timeline, frame: tuple[int, int] | None = None) -> Arrival:
    """Run until the current function has returned.

    `frame` is (return address, RSP after the return) where the caller knows it, as a
    debugger does for a frame further up; else both are found by `find_return`.
    Raises `UsageError` where they cannot be.
    """
    back = _return(timeline, frame)
    with excursion(timeline):
        condition = _in_frame(timeline, _ARGUMENTS, sp=back.sp, any_privilege=back.of_handler)
        return proceed(timeline, [_at(timeline, back.addr, condition)])


def reverse_finish(timeline: Timeline, frame: tuple[int, int] | None = None) -> Arrival:
    """Go back to just before the call of the current function; see `finish`.

    In a handler this goes to the instruction that was interrupted.  Raises `UsageError`
    too where no call fits, as in code that changes its own return address.
    """
    back = _return(timeline, frame)
    entries = calls_before(timeline, back.addr)
    if back.of_handler:
        entries = [back.addr, *_system_calls_before(timeline, back.addr)]
    with excursion(timeline):
        condition = _in_frame(timeline, 0, sp=back.sp, any_privilege=back.of_handler)
        arrival = reverse_proceed(timeline, [_at(timeline, entry, condition) for entry in entries])
        if arrival.reason == "start":
            raise UsageError(
                f"cannot find the call that led to this function: none that returns to {back.addr:#x} fits"
            )
        return arrival


def advance(timeline: Timeline, addr: int) -> Arrival:
    """Run to linear `addr`, or to a stop before it."""
    return proceed(timeline, [Breakpoint(addr)])


# ---- inside


def _at(timeline: Timeline, addr: int, condition: Condition) -> Breakpoint:
    return Breakpoint(addr % (1 << 64), condition=condition)


def _in_frame(
    timeline: Timeline,
    slack: int,
    registers: dict[str, int] | None = None,
    taken_off: int = 0,
    *,
    sp: int | None = None,
    any_privilege: bool = False,
) -> Condition:
    """Return the condition that holds in the same call of the function as `registers` (default: those here).

    RSP may be up to `slack` bytes higher, for arguments that a callee took off.
    """
    registers = registers or timeline.registers()
    lowest = (registers["rsp"] if sp is None else sp) - taken_off
    ring, space = registers["cs"] & 3, registers["cr3"] & _SPACE

    def holds(place: Timeline) -> bool:
        now = place.registers()
        if not lowest <= now["rsp"] <= lowest + slack:
            return False
        same = now["cs"] & 3 == ring and (ring == 0 or now["cr3"] & _SPACE == space)
        return any_privilege or same

    return holds


def _return(timeline: Timeline, frame: tuple[int, int] | None) -> Return:
    if frame is not None:
        return Return(*frame)
    found = find_return(timeline)
    if found is None:
        raise UsageError(
            f"cannot tell where the function at {linear_pc(timeline.machine.engine):#x} returns to: "
            "set a breakpoint there and continue"
        )
    return found


def _taken_off(code: Code) -> int:
    """Return the bytes of arguments that `ret n` takes off."""
    return int(code.raw.operands[0].imm) if code.raw.operands else 0


def _system_calls_before(timeline: Timeline, addr: int) -> list[int]:
    code = fetch(timeline, addr - 2) if addr >= 2 else None
    return [addr - 2] if code is not None and code.size == 2 and code.is_system_call else []


def _start_of_repeat(timeline: Timeline, code: Code) -> Arrival:
    """Go to the first step of a REP whose last one comes next: RCX is one more at each tick before."""
    last, count = timeline.tick, timeline.registers()["rcx"]

    def inside(back: int) -> bool:
        timeline.seek(last - back)
        return linear_pc(timeline.machine.engine) == code.addr and timeline.registers()["rcx"] == count + back

    good, bad = 0, 1
    while bad <= last and inside(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, last + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if inside(middle) else (good, middle)
    timeline.seek(last - good)
    return Arrival("step", timeline.tick)
