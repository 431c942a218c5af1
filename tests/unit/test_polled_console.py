"""Scripts for guests that do not take the serial port's interrupt: they poll, or sleep and look."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tt.chronus.runners import warm
from tt.chronus.runners.tt_machine import TtGuest
from tt.events import Kind
from tt.log import Trace
from tt.recording import Recording, record
from tt.replay import verify
from tt.travel import Timeline
from tt.vmm.configure import configure
from tt.vmm.live import LiveSource, seeded_entropy

# Prints a prompt, takes a line, says it, three times; `look` waits for LSR's bit 0.
KERNEL = """
    .intel_syntax noprefix
    .code32
    .text
    .long 0x1BADB002, 0, -0x1BADB002
    .globl _start
_start:
    cli
    {setup}
    mov ebp, 3
again:
    mov esi, offset prompt
    call puts
    mov edi, offset line
take:
    mov dx, 0x3fd
look:
    {wait}
    in al, dx
    test al, 1
    jz look
    mov dx, 0x3f8
    in al, dx
    stosb
    cmp al, 10
    jne take
    mov byte ptr [edi], 0
    mov esi, offset said
    call puts
    mov esi, offset line
    call puts
    dec ebp
    jnz again
    cli
    hlt
puts:
    lodsb
    test al, al
    jz 2f
    mov bl, al
    mov dx, 0x3fd
1:  in al, dx
    test al, 0x20
    jz 1b
    mov al, bl
    mov dx, 0x3f8
    out dx, al
1:  mov dx, 0x3fd
    in al, dx
    test al, 0x40
    jz 1b
    jmp puts
2:  ret
tick:
    push eax
    mov al, 0x20
    out 0x20, al
    pop eax
    iret
    .data
prompt: .asciz "> "
said:   .asciz "you said "
    .balign 8
idtr:   .word 8 * 13 - 1
        .long idt
    .bss
    .balign 8
idt:    .space 8 * 13
line:   .space 128
"""
POLLS = {"setup": "", "wait": ""}
SLEEPS = {  # the timer of the firmware wakes it, at vector 8
    "setup": """
    mov eax, offset tick
    mov word ptr [idt + 64], ax
    mov word ptr [idt + 66], 0x10
    mov word ptr [idt + 68], 0x8e00
    shr eax, 16
    mov word ptr [idt + 70], ax
    lidt [idtr]
    """,
    "wait": "sti\n hlt\n cli",
}
LISTENS = {  # the serial port wakes it, at vector 12; the clock ticks, and its interrupt is masked
    "setup": re.sub(r"idt \+ (\d+)", lambda m: f"idt + {int(m[1]) + 32}", SLEEPS["setup"])
    + """
    mov al, 0xef
    out 0x21, al
    mov dx, 0x3f9
    mov al, 1
    out dx, al
    mov dx, 0x3fc
    mov al, 0x0b
    out dx, al
    mov al, 0x0b
    out 0x70, al
    mov al, 0x42
    out 0x71, al
    """,
    "wait": "in al, dx\n test al, 1\n jnz 4f\n sti\n hlt\n cli\n 4:",
}
SLOWLY = {"setup": "", "wait": "mov ecx, 2000\n 3: dec ecx\n jnz 3b"}
SAYS = "> you said one\n> you said two\n> you said three\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, str]], Path]:
    folder = tmp_path_factory.mktemp("polled")

    def make(parts: dict[str, str]) -> Path:
        out = folder / f"{len(list(folder.iterdir()))}.elf"
        text = KERNEL.format(**parts)
        subprocess.run(["as", "--32", "-o", f"{out}.o", "-"], input=text, text=True, check=True)
        command = [
            "ld",
            "-m",
            "elf_i386",
            "-Ttext=0x100000",
            "-z",
            "noseparate-code",
            "-o",
            str(out),
            f"{out}.o",
        ]
        subprocess.run(command, check=True)
        assert struct.pack("<I", 0x1BADB002) in out.read_bytes()[:8192]
        return out

    return make


def run(guest: Path, trace: Path | None, source: LiveSource, **options: int) -> tuple[Recording, str]:
    printed = bytearray()
    recording = record(
        configure(guest, mem_bytes=4 << 20, epoch=1),
        trace,
        source,
        entropy=seeded_entropy(1),
        on_event=lambda event: printed.extend(event.data if event.kind.name == "CONSOLE" else b""),
        **options,  # type: ignore[arg-type]
    )
    return recording, printed.decode()


LINES = [b"one\n", b"two\n", b"three\n"]


@pytest.mark.parametrize("parts", [POLLS, SLEEPS, SLOWLY], ids=["polls", "sleeps", "polls slowly"])
def test_a_script_reaches_it_at_the_same_tick_each_time(
    build: Callable[[dict[str, str]], Path], parts: dict[str, str], tmp_path: Path
) -> None:
    guest = build(parts)
    ends = []
    for name in ("a", "b"):
        recording, text = run(guest, tmp_path / f"{name}.tt", LiveSource(script=LINES))
        assert text == SAYS
        assert recording.reason == "halted with interrupts off"
        with Trace.open(tmp_path / f"{name}.tt") as trace:
            assert verify(trace).good
            ends.append([(e.tick, e.kind, e.data) for e in trace.events()])
    assert ends[0] == ends[1]


def test_with_no_line_left_the_recording_ends(build: Callable[[dict[str, str]], Path]) -> None:
    for parts in (POLLS, SLEEPS):
        recording, text = run(build(parts), None, LiveSource(script=LINES[:1]))
        assert text == "> you said one\n> "
        assert recording.reason == "all 1 lines of the script are typed, and the guest waits for more"


def test_a_guest_that_polls_for_ever_runs_on(build: Callable[[dict[str, str]], Path]) -> None:
    recording, text = run(build(POLLS), None, LiveSource(forever=True), max_ticks=100_000)
    assert (text, recording.end_tick) == ("> ", 100_000)


def test_lines_fed_later_stand_still_until_then(build: Callable[[dict[str, str]], Path]) -> None:
    """While feeding, the guest's time stands still at the prompt: fed late or early, the same ticks."""
    ticks = []
    for late in (0, 2):
        source = LiveSource(script=LINES[:1], feeding=True)
        looked = 0

        def look(source: LiveSource = source, late: int = late) -> None:
            nonlocal looked
            looked += 1
            if looked == 3 + late:
                for line in LINES[1:]:
                    source.feed(line)
                source.end_feeding()

        source.looked_up = look
        recording, text = run(build(POLLS), None, source)
        assert text == SAYS
        ticks.append(recording.end_tick)
    assert ticks[0] == ticks[1]


def test_a_fork_types_lines_too(build: Callable[[dict[str, str]], Path], tmp_path: Path) -> None:
    run(build(POLLS), tmp_path / "p.tt", LiveSource(script=LINES[:1]))
    with Trace.open(tmp_path / "p.tt") as trace:
        timeline = Timeline(trace)
        timeline.seek(trace.end_tick)
        with timeline.fork(tmp_path / "f.tt", script=[b"a\n", b"b\n"]) as fork:
            stop = fork.run(timeout_s=20)
            assert stop.reason == "power"
    with Trace.open(tmp_path / "f.tt") as child:
        assert verify(child).good
        assert b"you said b" in b"".join(e.data for e in child.events() if e.kind.name == "CONSOLE")


def test_what_is_typed_at_a_tick_where_things_have_happened(
    build: Callable[[dict[str, str]], Path], tmp_path: Path
) -> None:
    """The line comes when the masked clock has ticked at that very tick; a replay has to keep the order."""
    source = LiveSource(script=[b"one\n", b"two\n", b"three\n"])
    recording, printed = run(build(LISTENS), tmp_path / "x.tt", source)
    assert printed.replace("\r", "") == SAYS, recording.reason
    with Trace.open(tmp_path / "x.tt") as trace:
        typed = [event.tick for event in trace.events(kinds={Kind.INPUT})]
        timers = {event.tick for event in trace.events(kinds={Kind.TIMER})}
        assert len(typed) == 3
        assert timers & set(typed)
        verdict = verify(trace)
        assert verdict.good, verdict


@pytest.mark.parametrize("parts", [POLLS, SLEEPS], ids=["polls", "sleeps"])
def test_chronus_talks_to_it_and_time_passes(
    build: Callable[[dict[str, str]], Path], parts: dict[str, str]
) -> None:
    """Silence costs a reader little, and however it reads, the guest does the same at the same time."""
    config = configure(build(parts), mem_bytes=4 << 20, epoch=1)
    ends = []
    for step_s in (0.3, 0.01):
        warm.forget()
        tracked = SimpleNamespace(reads=set())
        with TtGuest(config, [], tracked) as guest:  # type: ignore[arg-type]
            for line in LINES:
                begin = guest.seconds
                while guest.seconds < begin + 0.3:
                    guest.read(step_s)
                assert guest.console.endswith(b"> ")
                guest.write(line)
            while guest.ended is None:
                guest.read(step_s)
            ends.append((guest.console.decode(), guest.ended))
        warm.forget()
    assert ends == [(SAYS, "halted with interrupts off")] * 2
