"""Engines in several threads at once: each does what it does alone; the library is looked into once."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from engine_rig import MB, Guest

from tt.vmm.engine import _engine

TICKS = 30_000

# Writes a page in four, rewrites its own code, takes faults, and asks a port now and then.
PROGRAM = """
    mov rsi, 0x100000
    mov edi, {seed}
1:  imul rdi, rdi, 0x19660d
    add rdi, 0x3c6ef35f
    mov rax, rdi
    shr rax, 13
    and eax, 0x7fff8
    mov [rsi + rax], rdi
    bt edi, 3
    adc rdi, 0
    mov byte ptr [rip + 2f + 1], dil        # the immediate below
2:  mov al, 0
    add r8, rax
    inc ecx
    test cl, 63
    jnz 1b
    in al, 0x40
    add r9, rax
    jmp 1b
"""


def story(seed: int, pieces: int) -> list[bytes]:
    """Return the digests of a guest's RAM and CPU after each of `pieces` equal runs."""
    guest = Guest(PROGRAM.format(seed=seed), ram=4 * MB)
    engine = guest.engine
    engine.port_read = lambda port, size: (engine.tick * 7 + seed) & 0xFF
    told = []
    for piece in range(1, pieces + 1):
        while engine.tick < TICKS * piece // pieces:
            engine.run(TICKS * piece // pieces)
        told.append(engine.ram_digest() + engine.architectural_state())
    return told


def test_engines_in_threads_do_what_they_do_alone() -> None:
    seeds = range(1, 7)
    alone = [story(seed, 5) for seed in seeds]
    assert len({told[-1] for told in alone}) == len(alone)
    together = threading.Barrier(3)

    def at_once(seed: int) -> list[bytes]:
        together.wait(60)
        return story(seed, 5)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(at_once, seeds)) == alone


def test_threads_that_make_the_first_engines_look_into_the_library_once() -> None:
    """In a process of its own, where no engine was made before."""
    program = """
import threading
from tt.vmm.engine import Engine, _engine
assert _engine.layout_probes() == 0
together, states = threading.Barrier(4), []
def make():
    together.wait(60)
    engine = Engine(1 << 20)
    engine.start("long64", 0x1000, {})
    states.append(engine.save())
threads = [threading.Thread(target=make) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(states) == 4 and len(set(states)) == 1
assert _engine.layout_probes() == 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_second_engine_does_not_look_again() -> None:
    first = Guest("hlt").engine
    seen = _engine.layout_probes()
    second = Guest("hlt").engine
    assert (seen, _engine.layout_probes()) == (1, 1)
    assert second.save() == first.save()
