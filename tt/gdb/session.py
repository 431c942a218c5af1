"""One gdb at the other end: what each packet asks for, and the answer.

The packets are those of the gdb manual, appendix E.  Nothing that gdb sends
changes the recorded history; writes are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tt.errors import TTError
from tt.gdb.files import Files
from tt.gdb.link import Link
from tt.gdb.monitor import Monitor
from tt.gdb.motion import SIGINT, Halt, Motion
from tt.gdb.packets import MAX_PACKET, BadPacket, escape, parse_hex, parse_pair, parse_text
from tt.gdb.target import target_of
from tt.travel import Timeline

_PAGE = 4096
_MOST_BYTES = MAX_PACKET // 2 - 16  # of memory in one answer
_THREAD = b"1"
_BAD_REQUEST = b"E01"
_NO_MEMORY = b"E14"  # EFAULT
_REFUSED = b"E.history is not changed; `monitor fork` makes a branch of it that may be"
_KEPT_REGISTERS = ("rip", "rsp", "rbp")  # sent with each stop: gdb asks for them anyway
_LISTENING = (
    b"vCont;",
    b"s",
    b"c",
    b"S",
    b"C",
    b"bs",
    b"bc",
    b"qRcmd,",
)  # while these run it takes O packets

Answer = bytes | None
"""What is sent back; None: nothing."""


class Session:
    """Serve one client on `link` until it detaches, kills or goes.

    `motion` moves the timeline; `files` are what the client may read; `say` is told
    what the server's user should know.
    """

    def __init__(
        self,
        link: Link,
        timeline: Timeline,
        motion: Motion,
        files: Files,
        monitor: Monitor,
        say: Callable[[str], None],
    ) -> None:
        self.target = target_of(timeline.machine.engine)
        self.over = False
        self.packets = 0
        self._address_mask = (1 << 64 if self.target.is_64bit else 1 << 32) - 1
        self.extended = False
        self._link = link
        self._timeline = timeline
        self._motion = motion
        self._files = files
        self._monitor = monitor
        self._say = say
        self._break_reasons: set[bytes] = set()  # which of swbreak and hwbreak the client understands
        self._listens = False
        self._told_mode = False
        self._told_refusal = False
        self._notes: list[str] = []  # for the client's console, when it listens again
        self._by_letter: dict[bytes, Callable[[bytes], Answer]] = {
            b"?": lambda _: self._stop_reply(Halt()),
            b"!": self._extend,
            b"g": lambda _: b"".join(self._registers()).hex().encode(),
            b"p": self._one_register,
            b"G": self._refuse,
            b"P": self._refuse,
            b"m": self._read_memory,
            b"x": self._read_binary,
            b"M": self._refuse,
            b"X": self._write_binary,
            b"Z": self._insert,
            b"z": self._remove,
            # `s` and `c` may carry an address, that is, change RIP; `S` and `C` a signal.
            b"s": lambda at: _REFUSED if at else self._resume(self._motion.step),
            b"S": lambda _: self._resume(self._motion.step),
            b"c": lambda at: _REFUSED if at else self._resume(self._motion.go),
            b"C": lambda _: self._resume(self._motion.go),
            b"b": self._backward,
            b"H": lambda _: b"OK",
            b"T": lambda thread: b"OK" if parse_hex(thread) == 1 else _BAD_REQUEST,
            b"D": self._detach,
            b"k": self._kill,
        }
        self._by_name: dict[bytes, Callable[[bytes], Answer]] = {
            b"qSupported": self._supported,
            b"QStartNoAckMode": self._no_ack,
            b"qXfer": self._transfer,
            b"qRcmd,": self._command,
            b"qAttached": lambda _: b"1",
            b"qC": lambda _: b"QC" + _THREAD,
            b"qfThreadInfo": lambda _: b"m" + _THREAD,
            b"qsThreadInfo": lambda _: b"l",
            b"qThreadExtraInfo,": lambda _: self._where().encode().hex().encode(),
            b"qSymbol": lambda _: b"OK",
            b"vCont?": lambda _: b"vCont;c;C;s;S;t;r",
            b"vCont": self._continue,
            b"vKill": self._kill,
            b"vRun": self._run,
            b"vFile:": self._files.answer,
        }

    def serve_one(self) -> None:
        """Answer the next packet; raises `Gone` when the client is."""
        payload = self._link.receive()
        self.packets += 1
        self._listens = payload.startswith(_LISTENING)
        answer = self.answer(payload)
        self._listens = False
        if answer is not None:
            self._link.send(answer)

    def keep_alive(self) -> None:
        """Let the client know, in the middle of a long answer, that there will be one."""
        # Outside of packets `+` means nothing: it only starts the client's time-out again.
        self._link.send_raw(b"+")

    def tell(self, line: str) -> None:
        """Show a line on the client's console, if it listens now."""
        if self._listens:
            self._link.send(b"O" + f"{line}\n".encode().hex().encode())

    def answer(self, payload: bytes) -> Answer:
        """Return the answer to one packet; "" says that it is not known, as the protocol wants it."""
        name = next((name for name in self._by_name if payload.startswith(name)), payload[:1])
        ask = self._by_name.get(name) or self._by_letter.get(name)
        if ask is None:
            return b""
        try:
            return ask(payload[len(name) :])
        except BadPacket:
            return _BAD_REQUEST

    # ---- what the target is

    def _supported(self, features: bytes) -> Answer:
        wanted = features.removeprefix(b":").split(b";")
        self._break_reasons = {name for name in (b"swbreak", b"hwbreak") if name + b"+" in wanted}
        offered = [
            b"PacketSize=%x" % MAX_PACKET,
            *(b"QStartNoAckMode+", b"qXfer:features:read+", b"vContSupported+"),
            *(b"ReverseStep+", b"ReverseContinue+", b"swbreak+", b"hwbreak+", b"binary-upload+"),
        ]
        if self._files.executable:
            offered.append(b"qXfer:exec-file:read+")
        return b";".join(offered)

    def _no_ack(self, _rest: bytes) -> Answer:
        self._link.send(b"OK")
        self._link.no_ack = True
        return None

    def _extend(self, _rest: bytes) -> Answer:
        self.extended = True
        return b"OK"

    def _transfer(self, rest: bytes) -> Answer:
        """Answer `qXfer:OBJECT:read:ANNEX:OFFSET,SIZE`: a piece of a document."""
        parts = rest.split(b":")
        if len(parts) != 5 or parts[2] != b"read":
            return b""
        kind, annex = parts[1], parts[3]
        if kind == b"features":
            if annex != b"target.xml":
                return b"E00"
            document = self.target.xml
        elif kind == b"exec-file" and self._files.executable:
            document = self._files.executable.encode()
        else:
            return b""
        offset, size = parse_pair(parts[4])
        piece = document[offset : offset + min(size, _MOST_BYTES)]
        return (b"l" if offset + len(piece) >= len(document) else b"m") + escape(piece)

    # ---- registers and memory

    def _registers(self) -> list[bytes]:
        return self.target.values(self._timeline.machine.engine)

    def _one_register(self, rest: bytes) -> Answer:
        number = parse_hex(rest, len(self.target.registers))
        return self._registers()[number].hex().encode()

    def _memory(self, rest: bytes) -> bytes | None:
        """Return the bytes at ADDR,SIZE that there are up to the first missing one; None: no bytes."""
        addr, size = parse_pair(rest)
        size = min(size, _MOST_BYTES)
        data = bytearray()
        while len(data) < size:
            at = (addr + len(data)) & self._address_mask
            try:
                data += self._motion.read(at, min(size - len(data), _PAGE - at % _PAGE))
            except IndexError:
                break
        return bytes(data) if data or not size else None

    def _read_memory(self, rest: bytes) -> Answer:
        data = self._memory(rest)
        return _NO_MEMORY if data is None else data.hex().encode()

    def _read_binary(self, rest: bytes) -> Answer:
        data = self._memory(rest)
        return _NO_MEMORY if data is None else b"b" + escape(data)

    def _write_binary(self, rest: bytes) -> Answer:
        head, colon, _data = rest.partition(b":")
        if not colon:
            return _BAD_REQUEST
        # gdb asks with 0 bytes whether there is such a packet.
        return self._refuse(rest) if parse_pair(head)[1] else b"OK"

    def _refuse(self, _rest: bytes) -> Answer:
        if not self._told_refusal:
            self._told_refusal = True
            self._say("gdb wanted to change the guest: refused, for history is not changed")
            self._notes.append(
                "tt: history is not changed: memory and registers stay as they were; see `monitor help fork`"
            )
        return _REFUSED

    # ---- breakpoints and watchpoints

    def _insert(self, rest: bytes) -> Answer:
        kind, addr, size = _point(rest)
        if kind > 4:
            return b""
        try:
            self._motion.insert(kind, addr, size)
        except TTError as e:
            return b"E." + _one_line(str(e))
        return b"OK"

    def _remove(self, rest: bytes) -> Answer:
        kind, addr, size = _point(rest)
        if kind > 4:
            return b""
        self._motion.remove(kind, addr, size)
        return b"OK"

    # ---- motion

    def _continue(self, rest: bytes) -> Answer:
        """Answer `vCont;ACTION[:THREAD];...`: the first action that names our one thread counts."""
        for action in rest.removeprefix(b";").split(b";"):
            what, _, thread = action.partition(b":")
            if thread not in (b"", b"-1", b"0", _THREAD):
                continue
            match what[:1]:
                case b"c" | b"C":
                    return self._resume(self._motion.go)
                case b"s" | b"S":
                    return self._resume(self._motion.step)
                case b"r":
                    return self._resume(partial(self._motion.step_range, *parse_pair(what[1:])))
                case b"t":
                    return self._stop_reply(Halt(signal=0))
                case _:
                    return _BAD_REQUEST
        return _BAD_REQUEST

    def _backward(self, rest: bytes) -> Answer:
        if rest == b"s":
            return self._resume(self._motion.reverse_step)
        if rest == b"c":
            return self._resume(self._motion.reverse_go)
        return b""

    def _run(self, rest: bytes) -> Answer:
        """Answer `vRun;FILE;ARGUMENT`: gdb's `run POS` goes there, `run` to the recording's beginning."""
        words = [parse_text(word) for word in rest.removeprefix(b";").split(b";")]
        where = " ".join(word for word in words[1:] if word) or "start"
        try:
            tick = self._motion.resolve(where)
        except TTError as e:
            return b"E." + _one_line(str(e))
        return self._resume(lambda: self._motion.seek(tick))

    def _resume(self, move: Callable[[], Halt]) -> Answer:
        self._tell_notes()
        if self._link.was_interrupted:
            self._link.was_interrupted = False
            return self._stop_reply(Halt(signal=SIGINT))
        try:
            halt = move()
        except TTError as e:
            self._notes.append(f"tt: {e}")
            halt = Halt()
        return self._stop_reply(halt)

    def _stop_reply(self, halt: Halt) -> bytes:
        self._notes += halt.notes
        fits = target_of(self._timeline.machine.engine) is self.target
        if not fits and not self._told_mode:
            self._notes.append(
                f"tt: the CPU is in another mode here than when gdb connected ({self.target.architecture}): "
                "disconnect and connect again to see it right"
            )
        self._told_mode = not fits
        self._tell_notes()
        reason = halt.reason
        if reason in (b"swbreak", b"hwbreak") and reason not in self._break_reasons:
            reason = b""
        values = self._registers()
        reply = b"T%02x" % halt.signal
        if self.target.is_64bit:
            for name in _KEPT_REGISTERS:
                number = self.target.numbers[name]
                reply += b"%02x:%s;" % (number, values[number].hex().encode())
        reply += b"thread:%s;" % _THREAD
        if reason:
            reply += b"%s:%s;" % (reason, halt.detail)
        return reply

    def _tell_notes(self) -> None:
        """Show what there is to tell on the client's console; it listens only while something runs."""
        if self._listens:
            for note in self._notes:
                self.tell(note)
            self._notes.clear()

    # ---- the rest

    def _command(self, rest: bytes) -> Answer:
        text = parse_text(rest)
        self._tell_notes()
        for line in self._monitor.run(text):
            data = f"{line}\n".encode()
            for at in range(0, len(data), _MOST_BYTES):
                self._link.send(b"O" + data[at : at + _MOST_BYTES].hex().encode())
        return b"OK"

    def _where(self) -> str:
        return f"tick {self._timeline.tick:,} of {self._timeline.end_tick:,}"

    def _detach(self, _rest: bytes) -> Answer:
        self.over = True
        return b"OK"

    def _kill(self, rest: bytes) -> Answer:
        """End the session, not the history; in extended mode gdb stays, and may `run` again."""
        if not rest:
            self.over = True
            return None
        self.over = not self.extended
        return b"OK"


def _point(rest: bytes) -> tuple[int, int, int]:
    """Return the kind, address and size in `Z` and `z` packets; conditions and commands are not offered."""
    kind, comma, place = rest.partition(b",")
    if not comma:
        raise BadPacket("no address")
    addr, size = parse_pair(place.partition(b";")[0])
    return parse_hex(kind, 256), addr, size


def _one_line(text: str) -> bytes:
    return escape(" ".join(text.split()).encode(errors="replace"))
