"""Packets and answers, with no gdb: a session over the demo's recording, asked by hand, and by chance."""

from __future__ import annotations

import random
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tt.errors import UsageError
from tt.gdb.guest import Guest
from tt.gdb.link import Gone, Link
from tt.gdb.monitor import COMMANDS, Monitor
from tt.gdb.motion import Motion
from tt.gdb.packets import Decoder, Packet, frame, unescape
from tt.gdb.server import Server, parse_listen
from tt.gdb.session import Session
from tt.gdb.target import X86_64
from tt.log import Trace
from tt.travel import Timeline


class Client:
    """The other end of a session, which runs in the same thread."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        theirs, self.socket = socket.socketpair()
        self.socket.settimeout(10)
        self.link = Link(theirs)
        self.link.no_ack = True
        self.motion = Motion(timeline)
        monitor = Monitor(timeline, self.motion)
        self.said: list[str] = []
        self.session = Session(
            self.link, timeline, self.motion, Guest(timeline).files, monitor, self.said.append
        )
        self.decoder = Decoder()

    def close(self) -> None:
        self.motion.close()
        self.link.close()
        self.socket.close()

    def all(self, payload: bytes) -> list[bytes]:
        """Return the packets that answer one: console output, and at the end the answer."""
        self.socket.sendall(frame(payload))
        self.session.serve_one()
        self.socket.sendall(b"")
        found = []
        self.socket.setblocking(False)
        try:
            while data := self.socket.recv(1 << 20):
                found += [item.payload for item in self.decoder.feed(data) if isinstance(item, Packet)]
        except BlockingIOError:
            pass
        self.socket.settimeout(10)
        return found

    def __call__(self, payload: bytes) -> bytes:
        """Return the answer itself."""
        return self.all(payload)[-1]

    def monitor(self, command: str) -> str:
        """Return what a monitor command prints."""
        *lines, last = self.all(b"qRcmd," + command.encode().hex().encode())
        assert last == b"OK"
        return b"".join(bytes.fromhex(line[1:].decode()) for line in lines).decode()


@pytest.fixture(scope="module")
def timeline(demo_trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timeline]:
    with Trace.open(
        shutil.copy(demo_trace, tmp_path_factory.mktemp("gdb"))
    ) as trace:  # bookmarks are written into it
        yield Timeline(trace)


@pytest.fixture
def gdb(timeline: Timeline) -> Iterator[Client]:
    timeline.seek(1000)
    client = Client(timeline)
    yield client
    client.close()


def test_what_is_offered(gdb: Client) -> None:
    features = gdb(b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+").split(b";")
    for feature in (b"ReverseStep+", b"ReverseContinue+", b"QStartNoAckMode+", b"qXfer:features:read+"):
        assert feature in features
    assert b"qXfer:exec-file:read+" in features
    assert gdb(b"vCont?") == b"vCont;c;C;s;S;t;r"
    assert gdb(b"vMustReplyEmpty") == b""
    assert gdb(b"qSomethingElse") == b""
    assert gdb(b"") == b""


def test_threads(gdb: Client) -> None:
    assert gdb(b"qfThreadInfo") == b"m1"
    assert gdb(b"qsThreadInfo") == b"l"
    assert gdb(b"qC") == b"QC1"
    assert gdb(b"Hg0") == gdb(b"T1") == b"OK"
    assert gdb(b"T2") == b"E01"
    assert gdb(b"qAttached") == b"1"


def test_description_in_pieces(gdb: Client) -> None:
    text, offset = b"", 0
    while True:
        answer = gdb(b"qXfer:features:read:target.xml:%x,100" % offset)
        text += unescape(answer[1:])
        offset = len(text)
        if answer[:1] == b"l":
            break
    assert text == X86_64.xml
    assert gdb(b"qXfer:features:read:other.xml:0,100") == b"E00"
    assert gdb(b"qXfer:auxv:read::0,100") == b""


def test_registers(gdb: Client, timeline: Timeline) -> None:
    everything = bytes.fromhex(gdb(b"g").decode())
    values = timeline.registers()
    assert int.from_bytes(everything[:8], "little") == values["rax"]
    assert gdb(b"p10") == values["rip"].to_bytes(8, "little").hex().encode()
    assert gdb(b"p%x" % X86_64.numbers["tick"]) == (1000).to_bytes(8, "little").hex().encode()
    assert gdb(b"pff") == gdb(b"p") == b"E01"


def test_memory(gdb: Client, timeline: Timeline) -> None:
    assert bytes.fromhex(gdb(b"m100000,20").decode()) == timeline.read(0x100000, 32)
    answer = gdb(b"x100000,20")
    assert answer[:1] == b"b" and unescape(answer[1:]) == timeline.read(0x100000, 32)
    assert gdb(b"mffffffffffff0000,8") == b"E14"
    assert gdb(b"m100000,0") == b""
    assert gdb(b"m100000") == b"E01"
    size = timeline.machine.engine.size
    timeline.seek(0)  # no translation yet: all of RAM is there
    assert len(gdb(b"m%x,20" % (size - 16))) == 32
    assert len(gdb(b"m0,ffffffff")) <= 1 << 16


def test_history_is_not_changed(gdb: Client, timeline: Timeline) -> None:
    before = timeline.digest()
    for packet in (b"M100000,1:00", b"X100000,1:a", b"P0=0000000000000000", b"G00", b"c100000", b"s100000"):
        assert gdb(packet).startswith(b"E.history is not changed")
    assert gdb(b"X100000,0:") == b"OK"
    assert timeline.digest() == before and timeline.tick == 1000
    assert len(gdb.said) == 1
    console, _stop = gdb.all(b"vCont;s:1")
    assert b"history is not changed" in bytes.fromhex(console[1:].decode())


def test_steps_both_ways(gdb: Client, timeline: Timeline) -> None:
    digests = {timeline.tick: timeline.digest()}
    for _ in range(20):
        assert gdb(b"vCont;s:1").startswith(b"T05")
        digests[timeline.tick] = timeline.digest()
    for _ in range(20):
        assert gdb(b"bs").startswith(b"T05")
        assert digests.get(timeline.tick, timeline.digest()) == timeline.digest()
    assert timeline.tick == 1000


def test_the_two_ends(gdb: Client, timeline: Timeline) -> None:
    timeline.seek(1)
    assert b"replaylog" not in gdb(b"bs")
    assert timeline.tick == 0
    for packet in (b"bs", b"bc"):
        assert b"replaylog:begin;" in gdb(packet)
    assert b"replaylog:end;" in gdb(b"vCont;c")
    assert timeline.tick == timeline.end_tick
    for packet in (b"s", b"c", b"S05", b"C05", b"vCont;s:1", b"vCont;r0,ffffffff:1"):
        assert b"replaylog:end;" in gdb(packet)
    assert b"replaylog:begin;" in gdb(b"bc")
    assert timeline.tick == 0


def test_breakpoints_both_ways(gdb: Client, timeline: Timeline) -> None:
    gdb(b"qSupported:swbreak+;hwbreak+")
    timeline.seek(0)
    gdb(b"vCont;s")
    pc = timeline.registers()["rip"]
    timeline.seek(0)
    assert gdb(b"Z0,%x,1" % pc) == gdb(b"Z0,%x,1" % pc) == b"OK"
    assert b"swbreak:;" in gdb(b"vCont;c")
    assert timeline.tick == 1
    timeline.seek(500)
    assert b"swbreak:;" in gdb(b"bc")
    assert timeline.tick == 1
    assert gdb(b"z0,%x,1" % pc) == gdb(b"z0,%x,1" % pc) == b"OK"
    assert gdb(b"Z1,%x,1" % pc) == b"OK"
    timeline.seek(500)
    assert b"hwbreak:;" in gdb(b"bc")
    assert gdb(b"z1,%x,1" % pc) == b"OK"
    assert gdb(b"Z5,1,1") == b""
    assert gdb(b"Z0,1") == b"E01"
    assert gdb(b"Z2,1,0").startswith(b"E.")


def test_too_many_breakpoints(gdb: Client) -> None:
    answers = [gdb(b"Z0,%x,1" % addr) for addr in range(300)]
    assert answers[0] == b"OK" and answers[-1].startswith(b"E.there are")


def test_a_range_is_stepped_through(gdb: Client, timeline: Timeline) -> None:
    first = timeline.registers()["rip"]
    assert gdb(b"vCont;r%x,%x:1" % (first, first + 1)).startswith(b"T05")
    assert timeline.tick == 1001
    timeline.seek(1000)
    assert gdb(b"vCont;r%x,%x" % (first - 64, first + 64)).startswith(b"T05")
    assert gdb(b"vCont;r1:1") == b"E01"


def test_a_client_without_swbreak_is_told_none(gdb: Client, timeline: Timeline) -> None:
    gdb(b"qSupported:xmlRegisters=i386")
    pc = timeline.registers()["rip"]
    timeline.seek(1010)
    gdb(b"Z0,%x,1" % pc)
    answer = gdb(b"bc")
    assert answer.startswith(b"T05") and b"break" not in answer


def test_own_stops_are_put_aside(gdb: Client, timeline: Timeline) -> None:
    gdb(b"Z0,1000,1")
    assert len(timeline.stops) == 1
    gdb.motion.close()
    assert len(timeline.stops) == 0


def test_run_goes_to_a_position(gdb: Client, timeline: Timeline) -> None:
    assert gdb(b"!") == b"OK"
    assert gdb(b"vRun;;%s" % b"50%".hex().encode()).startswith(b"T05")
    assert timeline.tick == timeline.end_tick // 2
    assert gdb(b"vRun;").startswith(b"T05")
    assert timeline.tick == 0
    assert gdb(b"vRun;;%s" % b"nonsense".hex().encode()).startswith(b"E.")
    assert gdb(b"vRun;;xyz") == b"E01"
    assert gdb(b"vKill;1") == b"OK" and not gdb.session.over


def test_leaving(gdb: Client) -> None:
    assert gdb(b"D") == b"OK"
    assert gdb.session.over


def test_killing_ends_the_session(gdb: Client) -> None:
    assert gdb(b"vKill;1") == b"OK"
    assert gdb.session.over


def test_monitor_commands(gdb: Client, timeline: Timeline) -> None:
    assert gdb.monitor("when").startswith("tick 1,000 of ")
    assert "tick 2,000 of" in gdb.monitor("seek 2_000")
    assert "flush" not in gdb.monitor("seek 2_000")
    assert gdb.monitor("bookmark here") == "@here is tick 2,000\n"
    gdb.monitor("seek start")
    assert "tick 2,000 of" in gdb.monitor("seek @here")
    assert "2,000  @here" in gdb.monitor("bookmarks")
    assert timeline.digest().hex() in gdb.monitor("digest")
    assert "rip" in gdb.monitor("registers")
    assert gdb.monitor("events 3").count("\n") == 3
    assert "0x" in gdb.monitor("backtrace")
    assert "board" not in gdb.monitor("devices clock")
    gdb.monitor("seek end")
    assert "done:" in gdb.monitor("console 5")
    assert "nothing is recorded" in gdb.monitor("events") or "#" in gdb.monitor("events")


def test_monitor_help_names_every_command(gdb: Client) -> None:
    text = gdb.monitor("help")
    for name, command in COMMANDS.items():
        assert f"monitor {name}" in text
        assert command.about in gdb.monitor(f"help {name}")
    assert gdb.monitor("") == text


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("frobnicate", "no command"),
        ("se nowhere", "not a position"),
        ("seek", "it is: monitor seek POS"),
        ("seek 99999999999999", "past the end"),
        ("b", "several commands"),
        ("last-write", "it is: monitor last-write"),
        ("last-write 0x1000 0", "give a number"),
        ("handlers perhaps", "it is: monitor handlers skip, or monitor handlers show"),
        ("fork x *0x200000=abc", "'abc': give the bytes in hex"),
        ("console x", "give a number"),
        ("devices nothing", "no device"),
        ("fork ../x", "plain file name"),
        ("fork /tmp/x", "plain file name"),
        ("fork x frob=", "an expression is wanted"),
        ("fork x frob", "give rax=5"),
        ("seek 'open", "quotation"),
        ("bookmark 'a b'", "not a name for a bookmark"),
        ("memory sideways", "it is: monitor memory"),
    ],
)
def test_monitor_errors_are_one_line(gdb: Client, timeline: Timeline, command: str, says: str) -> None:
    answer = gdb.monitor(command)
    assert says in answer.lower() or says in answer, answer
    assert answer.startswith("tt: ") and answer.count("\n") == 1
    assert timeline.tick == 1000


def test_a_branch_changes_history_elsewhere(
    gdb: Client, timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = timeline.digest()
    answer = gdb.monitor("fork what-if rax=5 *0x200000=0102 run=1_000")
    assert "what-if.tt" in answer, answer
    assert timeline.digest() == before
    with Trace.open(tmp_path / "what-if.tt") as trace:
        branch = Timeline(trace)
        branch.seek(trace.end_tick)
        assert branch.machine.engine.read(0x200000, 2) == b"\1\2"
    assert "what-if.tt" in gdb.monitor("fork what-if")  # it exists already: said, not overwritten


def test_physical_memory(gdb: Client, timeline: Timeline) -> None:
    assert "physical" in gdb.monitor("memory physical")
    top = timeline.machine.engine.size - 16
    assert bytes.fromhex(gdb(b"m%x,10" % top).decode()) == timeline.machine.engine.read(top, 16)
    assert gdb(b"m%x,10" % (top + 16)) == b"E14"
    gdb.monitor("memory virtual")


# ---- whatever comes

_WORDS = st.sampled_from(
    b"qSupported QStartNoAckMode qXfer:features:read:target.xml: qXfer:exec-file:read: qRcmd, qC vCont; "
    b"vCont;r vCont;s:1 vFile:open: vFile:pread: vFile:fstat: vRun; vRun;; vKill;1 Z0, Z2, z3, m M X x g p P "
    b"G H T ? ! bs s S C , : ; ffffffff 100000 10 0 -1 1,1 2f7474 3 E01 $ # }".split()
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.lists(st.lists(st.one_of(_WORDS, st.binary(max_size=4)), max_size=5).map(b"".join), max_size=8))
def test_any_packets_get_an_answer(timeline: Timeline, payloads: list[bytes]) -> None:
    timeline.seek(1000)
    digest = timeline.digest()
    client = Client(timeline)
    try:
        for payload in payloads:
            if payload.startswith((b"c", b"bc", b"vCont;c", b"C")):
                continue  # they work, and take long
            answer = client.session.answer(payload)
            assert answer is None or isinstance(answer, bytes)
    finally:
        client.close()
    timeline.seek(1000)
    assert timeline.digest() == digest


def test_a_client_that_vanishes_in_a_packet(timeline: Timeline) -> None:
    client = Client(timeline)
    client.socket.sendall(b"$vCont;s")
    client.socket.close()
    with pytest.raises(Gone):
        client.session.serve_one()
    client.motion.close()
    client.link.close()


def test_a_client_that_sends_without_end_is_cut_off(timeline: Timeline) -> None:
    client = Client(timeline)
    client.socket.sendall(frame(b"?") * 200)
    with pytest.raises(Gone):
        for _ in range(201):
            client.link.poll()
            client.session.serve_one()
    client.close()


def test_interrupts_keep_their_place(timeline: Timeline) -> None:
    timeline.seek(1000)
    client = Client(timeline)
    client.socket.sendall(b"\x03" + frame(b"vCont;s") + b"\x03")
    client.session.serve_one()
    assert timeline.tick == 1000  # it came while the guest stood still, so the guest does not even begin
    assert client.link.poll()
    assert not client.link.poll()
    assert client(b"vCont;s").startswith(b"T05")
    assert timeline.tick == 1001
    client.close()


def test_acknowledgements(timeline: Timeline) -> None:
    client = Client(timeline)
    client.link.no_ack = False
    client.socket.sendall(b"$?#00" + frame(b"qC"))
    client.session.serve_one()
    assert client.socket.recv(100) == b"-+" + frame(b"QC1")
    client.socket.sendall(b"-" + frame(b"QStartNoAckMode"))
    client.session.serve_one()
    assert client.socket.recv(100) == frame(b"QC1") + b"+" + frame(b"OK")
    client.socket.sendall(b"+" + frame(b"qC"))
    client.session.serve_one()
    assert client.socket.recv(100) == frame(b"QC1")
    client.close()


# ---- where it listens


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:1234", ":1234"),
        (":9000", ":9000"),
        ("9000", ":9000"),
        ("[::1]:77", "[::1]:77"),
        ("localhost:5", "localhost:5"),
        ("unix:/tmp/x", "/tmp/x"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert parse_listen(text).for_gdb == shown


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", ":x", ":70000", ":-1", "unix:", "a:b:c", ":١"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--listen"):
        parse_listen(text)


def test_only_this_machine_may_connect(timeline: Timeline) -> None:
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(UsageError, match="--allow-remote|cannot listen"):
            Server(timeline, parse_listen(address))
    server = Server(timeline, parse_listen("0.0.0.0:0"), allow_remote=True)
    assert server.address.port
    server.close()


def test_a_port_in_use_is_said(timeline: Timeline) -> None:
    first = Server(timeline, parse_listen("127.0.0.1:0"))
    with pytest.raises(UsageError, match="in use"):
        Server(timeline, parse_listen(f":{first.address.port}"))
    first.close()


def test_a_socket_file_comes_and_goes(timeline: Timeline, tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    server = Server(timeline, parse_listen(f"unix:{path}"))
    assert path.is_socket() and path.stat().st_mode & 0o77 == 0
    server.close()
    assert not path.exists()


def test_random_walk_changes_nothing(timeline: Timeline) -> None:
    """Two hundred packets in one session: wherever they lead, a tick's state is a tick's state."""
    chance = random.Random(20)
    timeline.seek(9_000_000)
    client = Client(timeline)
    digests: dict[int, bytes] = {}
    addresses = [0x1010B0, 0x100820, 0x1010DC]
    for _ in range(200):
        addr = chance.choice(addresses)
        packet = chance.choice(
            [b"bs", b"vCont;s", b"g", b"m100000,40", b"?", b"vCont;r%x,%x" % (addr, addr + 40)]
            + [b"Z0,%x,1" % addr, b"z0,%x,1" % addr, b"Z2,13b0d0,8", b"z2,13b0d0,8", b"vCont;c", b"bc"]
        )
        assert re.match(rb"T05|OK|[0-9a-f]+$", client(packet)), packet
        tick = timeline.tick
        assert digests.setdefault(tick, timeline.digest()) == timeline.digest()
    client.close()
    fresh = Timeline(timeline.trace)
    for tick in chance.sample(sorted(digests), min(10, len(digests))):
        fresh.seek(tick)
        assert fresh.digest() == digests[tick]


def test_a_fault_of_ours_is_not_taken_for_a_bad_packet(
    gdb: Client, timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(addr: int, size: int) -> bytes:
        raise ValueError("a fault of the server")

    monkeypatch.setattr(gdb.session._motion, "read", broken)
    with pytest.raises(ValueError, match="a fault of the server"):
        gdb.session.answer(b"m1000,10")
    assert gdb.session.answer(b"m1000,zz") == b"E01"
    assert gdb.session.answer(b"qRcmd,0g") == b"E01"
    assert gdb.session.answer(b"qRcmd,ff") == b"E01"


def test_who_wrote(gdb: Client, timeline: Timeline) -> None:
    gdb.monitor("seek 50%")
    tick = timeline.tick
    told = gdb.monitor("last-write $rsp")
    assert re.match(r"tick [\d,]+: the instruction at 0x[0-9a-f]+", told)
    assert "\nold " in told and "\nnew " in told
    before = int(re.findall(r"monitor seek (\d+) ", told)[0])
    assert before < tick == timeline.tick
    gdb.monitor("memory physical")
    assert gdb.monitor("last-write 0xe00000 16").startswith("nothing wrote to 16 bytes at ")
    gdb.monitor("memory virtual")
    assert timeline.tick == tick


def test_handlers_are_gone_into_or_past(gdb: Client) -> None:
    assert "goes into" in gdb.monitor("handlers show")
    assert "goes past" in gdb.monitor("handlers skip")
    assert gdb.motion.skips_handlers
    gdb.monitor("handlers show")
