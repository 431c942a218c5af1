"""Backtraces: who called whom, from the registers and the stack of a machine that stands still.

Kernel code goes by ORC where the kernel has it, other code by DWARF call frame information
where an ELF file was loaded that has some, the rest by frame pointers.  The rules of
the ORC steps are those of the kernel's arch/x86/kernel/unwind_orc.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tt.symbols.orc import BP, BP_INDIRECT, DI, DX, PREV_SP, R10, R13, SP, SP_INDIRECT, Orc, Rule
from tt.symbols.table import OrcPlace, SymbolTable
from tt.vmm.denali.registers import REGISTER_PAGE, Register

Read = Callable[[int, int], bytes]

MOST_FRAMES = 256
_TOP = 1 << 64
_LONG_MODE, _PROTECTED = 1 << 10, 1
_USER_CS32 = 0x23  # Linux's selector of 32-bit code in a 64-bit system
# Linux's code selectors, of 64-bit and of 32-bit kernels, and of their programs.
_CODE_SELECTORS = (0x10, 0x23, 0x33, 0x60, 0x73)
_KERNEL64 = 0xFFFF_8000_0000_0000
_FARTHEST_FRAME = 1 << 20  # bytes from a frame pointer to the next
_GUESS_WORDS = 128
# struct pt_regs: arch/x86/include/asm/ptrace.h.
_PT_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss"),
)
_IRET_OFFSET = 8 * _PT_REGS.index("rip")
_PT_REGS32 = (
    *("rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax", "ds", "es", "fs", "gs", "orig_rax"),
    *("rip", "cs", "rflags", "rsp", "ss"),
)
# Functions without a caller: entry points, and those where Linux's stacks begin.
_OUTERMOST = (
    *("_start", "ret_from_fork", "ret_from_fork_asm", "startup_32_smp", "secondary_startup_64"),
    *("secondary_startup_64_no_verify", "startup_64"),
)
# The Denali kit's entries for upcalls (guests/denali/start.S): where the machine put RIP, RFLAGS, RSP and
# RAX, and the stack on which the kit saves the rest, RBP as the sixth.
_UPCALLS = {
    "event_upcall": (REGISTER_PAGE + Register.EVENT_RIP, "event_stack_top"),
    "exception_upcall": (REGISTER_PAGE + Register.EXCEPTION_RIP, "exception_stack_top"),
}
_ENTRIES = ("entry_", "asm_", "error_", "syscall_", "swapgs_")
_STACK_SIZE = 16 << 10  # THREAD_SIZE of a 64-bit kernel, and what it is aligned to
_THUNKS = ("__x86_indirect_thunk", "__x86_return_thunk")
_ORC_REGISTERS = {R10: "r10", R13: "r13", DI: "rdi", DX: "rdx"}


@dataclass(frozen=True)
class Frame:
    """One function that has not returned yet: it goes on at `pc`, with its stack pointer at `sp`.

    `name` is `pc` in words.  `how` says what it was found by: `registers`, `orc`, `dwarf`, `frame pointer`,
    `upcall frame` (of the Denali machine), or `return address guess`.
    """

    pc: int
    sp: int
    fp: int | None
    name: str
    how: str


@dataclass(frozen=True)
class Stack:
    """The frames from the innermost out, why there are no more, and whether that is the real end."""

    frames: list[Frame]
    end: str
    complete: bool


@dataclass
class _State:
    pc: int
    sp: int
    bp: int
    how: str
    user: bool
    exact: bool  # pc is where it stopped, not behind a call
    regs: dict[str, int] = field(default_factory=dict)  # what is known of the others


class _EndError(Exception):
    """There are no more frames; `complete` if it is because this was the outermost."""

    def __init__(self, why: str, complete: bool = False) -> None:
        super().__init__(why)
        self.complete = complete


def unwind(
    registers: dict[str, int], read: Read, symbols: SymbolTable | None = None, limit: int = MOST_FRAMES
) -> list[Frame]:
    """Return the frames from the innermost out, at least one: see `walk`."""
    return walk(registers, read, symbols, limit).frames


def walk(
    registers: dict[str, int], read: Read, symbols: SymbolTable | None = None, limit: int = MOST_FRAMES
) -> Stack:
    """Return the frames of a CPU with these registers, at most `limit`, and why they end.

    `read(addr, size)` reads virtual memory and raises `IndexError` where there is none.
    From the kernel the frames go on into the program that called it.  A stack
    that makes no sense ends the walk; nothing is raised.
    """
    return _Walk(registers, read, SymbolTable() if symbols is None else symbols).run(
        max(1, min(limit, MOST_FRAMES))
    )


class _Walk:
    def __init__(self, registers: dict[str, int], read: Read, symbols: SymbolTable) -> None:
        self._registers = registers
        self._raw_read = read
        self._symbols = symbols
        self._orcs: dict[OrcPlace | None, Orc | None] = {None: kernel_orc(symbols, self._read)}
        cs = registers.get("cs", 0)
        self._long = bool(registers.get("efer", 0) & _LONG_MODE) and cs != _USER_CS32
        self._width = 8 if self._long else 4

    def run(self, limit: int) -> Stack:
        get = self._registers.get
        pc, sp, bp = get("rip", 0), get("rsp", 0), get("rbp", 0)
        protected = bool(get("cr0", 0) & _PROTECTED)
        user = protected and get("cs", 0) & 3 == 3
        state = _State(pc, sp, bp, "registers", user, True, dict(self._registers))
        frames: list[Frame] = []
        seen: set[tuple[int, int]] = set()
        try:
            while True:
                frames.append(Frame(state.pc, state.sp, state.bp or None, self._name(state), state.how))
                seen.add((state.pc, state.sp))
                if not protected:
                    raise _EndError("the CPU is in real mode", complete=True)
                if len(frames) >= limit:
                    raise _EndError(f"{limit} frames are enough")
                was_user = state.user
                state = self._step(state)
                if (state.pc, state.sp) in seen:
                    raise _EndError("the frames repeat themselves")
                if not state.pc:
                    raise _EndError("a return address of 0", complete=was_user)
        except _EndError as e:
            return Stack(frames, str(e), e.complete)
        except IndexError:
            return Stack(frames, "the stack leads to where no memory is", state.user)

    def _name(self, state: _State) -> str:
        # A call may be a function's last instruction: what it returns to is another function then.
        if state.exact:
            return self._symbols.describe(state.pc)
        found = self._symbols.at((state.pc - 1) % _TOP)
        return self._symbols.describe(state.pc) if found is None else f"{found[0]}+{found[1] + 1:#x}"

    def _step(self, state: _State) -> _State:
        """Return the caller's state; raises `_EndError`, and `IndexError` where memory is missing."""
        at = state.pc if state.exact else (state.pc - 1) % _TOP
        if self._long and not state.user and at >= _KERNEL64:
            rule = self._orc_rule(at)
            if rule is not None and rule.kind != "undefined":
                return self._by_orc(state, rule)
        caller = self._symbols.call_frames.caller(at, self._known(state), self._word)
        if caller is not None:
            regs = caller.registers
            if caller.outermost:
                raise _EndError("the outermost function", complete=True)
            if regs["rsp"] <= state.sp:
                raise _EndError("the stack pointer does not rise")
            return _State(regs["rip"], regs["rsp"], regs.get("rbp", 0), "dwarf", state.user, False, regs)
        return self._other(state, at)

    def _other(self, state: _State, at: int) -> _State:
        """Do without tables: by the code, the frame pointer, or what is on the stack."""
        found = self._symbols.at(at)
        if found is not None and found[0] in _UPCALLS:
            return self._by_upcall(state, *_UPCALLS[found[0]])
        if found is not None and found[0] in _OUTERMOST:
            raise _EndError(f"{found[0]} is the outermost function", complete=True)
        return self._by_frame_pointer(state)

    def _by_upcall(self, state: _State, frame: int, stack: str) -> _State:
        """Return what an upcall of the Denali machine interrupted."""
        pc, _flags, sp, rax = (self._word(frame + 8 * number) for number in range(4))
        if self._symbols.at(pc) is None:
            raise _EndError("an upcall from unknown code", complete=True)
        top = self._symbols.find(stack)
        bp = self._word(top - 48) if top is not None and not state.exact else state.bp
        return _State(pc, sp, bp, "upcall frame", state.user, True, {"rax": rax, "rip": pc, "rsp": sp})

    # ---- ORC

    def _orc_rule(self, at: int) -> Rule | None:
        """Return the rule of the kernel's own table, or of the module's that the code belongs to."""
        source = self._symbols.source_of(at)
        if source is None:
            return None
        place = source.orc
        if place not in self._orcs:
            self._orcs[place] = None if place is None else Orc(self._read, *place)
        orc = self._orcs[place]
        return None if orc is None else orc.lookup(at)

    def _by_orc(self, state: _State, rule: Rule) -> _State:
        entered = self._entered(state, rule) if state.exact else None
        if entered is not None:
            return entered
        if rule.kind == "end":
            raise _EndError("the stack begins here", complete=True)
        sp = self._orc_sp(state, rule)
        if rule.kind == "call":
            pc, new_sp = self._word(sp - 8), sp
            if new_sp <= state.sp and rule.sp_reg == SP:
                raise _EndError("the stack pointer does not rise")
            after = _State(pc, new_sp, state.bp, "orc", False, False)
        elif rule.kind == "regs":
            words = [self._word(sp + 8 * number) for number in range(len(_PT_REGS))]
            regs = dict(zip(_PT_REGS, words, strict=True))
            after = _State(regs["rip"], regs["rsp"], regs["rbp"], "orc", bool(regs["cs"] & 3), True, regs)
        else:
            pc, cs, _flags, new_sp = (self._word(sp + 8 * number) for number in range(4))
            regs = {**state.regs, "rip": pc, "cs": cs, "rsp": new_sp}
            after = _State(pc, new_sp, state.bp, "orc", bool(cs & 3), True, regs)
        if rule.bp_reg == PREV_SP:
            after.bp = self._word(sp + rule.bp_offset)
        elif rule.bp_reg == BP:
            after.bp = self._word(state.bp + rule.bp_offset)
        if after.regs:
            after.regs["rbp"] = after.bp
        if after.user:
            self._width = 4 if after.regs.get("cs") == _USER_CS32 else 8
        return after

    def _entered(self, state: _State, rule: Rule) -> _State | None:
        """Return the caller where ORC is wrong: in a retpoline, and in the first steps of a system call."""
        name = self._symbols.at(state.pc)
        if name is None:
            return None
        if name[0].startswith(_THUNKS):
            # On top of the caller's return address may be one into the thunk itself, or where it leads to.
            for at in (state.sp, state.sp + 8):
                pc = self._word(at)
                found = self._symbols.at(pc)
                inside = found is not None and found[1] and not found[0].startswith(_THUNKS)
                if inside and self._is_return_address(pc):
                    return _State(pc, at + 8, state.bp, "orc", False, False)
        if name[0] == "entry_SYSCALL_64" and state.sp < _KERNEL64 and state.regs.get("rcx", _TOP) < _KERNEL64:
            # SYSCALL left the program's pc in RCX; its stack pointer is in place for some instructions more.
            return _State(state.regs["rcx"], state.sp, state.bp, "orc", True, True, dict(state.regs))
        if rule.kind == "end" and name[0].startswith(_ENTRIES):
            # ORC has no rule while the entry code saves registers; they are at the top of the task's stack.
            top = (state.sp + _STACK_SIZE - 1) // _STACK_SIZE * _STACK_SIZE
            pc, cs, _flags, sp, ss = (self._word(top - 40 + 8 * number) for number in range(5))
            if (cs, ss) in ((0x33, 0x2B), (_USER_CS32, 0x2B)):
                return _State(pc, sp, state.bp, "return address guess", True, True)
        return None

    def _orc_sp(self, state: _State, rule: Rule) -> int:
        """Return the stack pointer the rule speaks of: that of the caller, or of the saved registers."""
        if rule.sp_reg == SP:
            return state.sp + rule.sp_offset
        if rule.sp_reg == BP:
            return state.bp + rule.sp_offset
        if rule.sp_reg == SP_INDIRECT:
            return self._word(state.sp) + rule.sp_offset
        if rule.sp_reg == BP_INDIRECT:
            return self._word(state.bp + rule.sp_offset)
        name = _ORC_REGISTERS.get(rule.sp_reg, "")
        if name not in state.regs:
            raise _EndError("the stack is in a register that is not known here")
        return state.regs[name]

    # ---- everything else

    def _known(self, state: _State) -> dict[str, int]:
        return {**state.regs, "rip": state.pc, "rsp": state.sp, "rbp": state.bp}

    def _by_frame_pointer(self, state: _State) -> _State:
        """Take RBP as the head of a list of frames, if it looks like one."""
        width = self._width
        regs = self._encoded_regs(state)
        if regs is not None:
            user = bool(regs["cs"] & 3)
            return _State(regs["rip"], regs["rsp"], regs["rbp"], "frame pointer", user, True, regs)
        if state.exact:
            at = self._return_address_at(state)
            if at is not None:
                pc = self._word(at)
                if self._is_return_address(pc):
                    bp = self._word(state.sp) if at != state.sp else state.bp
                    return _State(pc, at + width, bp, "frame pointer", state.user, False)
        bp = state.bp
        near = state.sp <= bp < state.sp + _FARTHEST_FRAME
        # The frames of a kernel go on in another stack where an interrupt has one of its own.
        elsewhere = not state.user and state.how == "frame pointer"
        if bp % width == 0 and (near or elsewhere):
            try:
                pc, next_bp = self._word(bp + width), self._word(bp)
            except IndexError:
                pc = next_bp = 0
            if self._is_return_address(pc) and (near or self._symbols.at(pc) is not None):
                return _State(pc, bp + 2 * width, next_bp, "frame pointer", state.user, False)
            if not pc and not next_bp and state.how == "frame pointer":
                raise _EndError("the outermost frame", complete=True)
        if not state.user and len(self._symbols):
            return self._by_guess(state)
        raise _EndError(
            "the program keeps no frame pointers" if state.user else "no frame pointer and no unwind table",
            complete=state.user,
        )

    def _encoded_regs(self, state: _State) -> dict[str, int] | None:
        """Return the registers that a kernel with frame pointers saved on entry, if RBP says where.

        arch/x86/include/asm/frame.h, ENCODE_FRAME_POINTER: the lowest bit is set, in a 32-bit kernel
        the highest cleared.
        """
        width = self._width
        at = state.bp - 1 if width == 8 else state.bp | 1 << 31
        if state.user or at == state.bp or at % width or not state.sp <= at < state.sp + _FARTHEST_FRAME:
            return None
        names = _PT_REGS if width == 8 else _PT_REGS32
        try:
            regs = {name: self._word(at + width * number) for number, name in enumerate(names)}
        except IndexError:
            return None
        plausible = regs["cs"] & 0xFFFF in _CODE_SELECTORS and regs["rip"]
        return regs if plausible else None

    def _return_address_at(self, state: _State) -> int | None:
        """Return where the return address is, if the code at pc shows it: in a prologue, at a return."""
        code = self._code(state.pc - 1, 5)
        if code[1:2] in (b"\x55", b"\xc3") or code[1:5] == b"\xf3\x0f\x1e\xfa":  # push rbp; ret; endbr64
            return state.sp
        if code[0:1] == b"\x55" and code[1:4] in (b"\x48\x89\xe5", b"\x48\x8b\xec"):  # mov rbp, rsp
            return state.sp + self._width
        if code[0:1] == b"\x55" and code[1:3] in (b"\x89\xe5", b"\x8b\xec"):
            return state.sp + self._width
        return None

    def _by_guess(self, state: _State) -> _State:
        """Take the next word on the stack that can only be the return address of a known function."""
        for number in range(_GUESS_WORDS):
            at = state.sp + self._width * number
            pc = self._word(at)
            if self._symbols.at(pc - 1 if pc else 0) is not None and self._is_return_address(pc):
                return _State(pc, at + self._width, state.bp, "return address guess", False, False)
        raise _EndError("no return address is in sight")

    def _is_return_address(self, pc: int) -> bool:
        """Whether a call is right before `pc`."""
        code = self._code(pc - 7, 7)
        if len(code) < 7:
            return False
        if code[2] == 0xE8:  # call rel32
            return True
        # FF /2: call through a register or memory, by the length that its ModRM byte gives.
        for length in (2, 3, 4, 6, 7):
            opcode, modrm = code[7 - length], code[8 - length]
            if opcode == 0xFF and modrm >> 3 & 7 == 2 and _modrm_length(code[8 - length :]) == length - 1:
                return True
        return False

    def _code(self, addr: int, size: int) -> bytes:
        try:
            return self._read(addr, size)
        except IndexError:
            return b""

    def _word(self, addr: int) -> int:
        return int.from_bytes(self._read(addr, self._width), "little")

    def _read(self, addr: int, size: int) -> bytes:
        if not 0 <= addr <= _TOP - size:
            raise IndexError(f"{addr:#x} is no address")
        data = self._raw_read(addr, size)
        if len(data) != size:
            raise IndexError(f"{addr:#x}: not all there")
        return data


def _modrm_length(code: bytes) -> int:
    """Return the length of a ModRM byte with its SIB byte and displacement (SDM volume 2, table 2-2)."""
    mod, rm = code[0] >> 6, code[0] & 7
    if mod == 3:
        return 1
    sib = 1 if rm == 4 else 0
    if mod == 0:
        wide = rm == 5 or (sib and len(code) > 1 and code[1] & 7 == 5)
        return 1 + sib + (4 if wide else 0)
    return 1 + sib + (1 if mod == 1 else 4)


def kernel_orc(symbols: SymbolTable, read: Read) -> Orc | None:
    """Return the kernel's ORC table, where the symbols say there is one."""
    ips, stop = symbols.find("__start_orc_unwind_ip"), symbols.find("__stop_orc_unwind_ip")
    entries = symbols.find("__start_orc_unwind")
    if ips is None or entries is None or stop is None or stop <= ips:
        return None
    return Orc(read, ips, entries, (stop - ips) // 4)
