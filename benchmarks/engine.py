"""The bare engine: M instructions a second of tight loops, and of a Debian boot.

The loops run in 64-bit mode with paging on (2 MB pages, identity), interrupts
off, for a fixed number of instructions.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import side_by_side as bench

from tt.vmm.engine import Engine

CODE, PML4, PDPT, PD, STACK, DATA = 0x10000, 0x1000, 0x2000, 0x3000, 0x80000, 0x200000
RAM = 8 << 20

# Machine code, assembled by hand; each ends with a jump to its beginning.  RSI points to data.
LOOPS = {
    # 1: add rax, rbx; xor rcx, rax; lea rdx, [rdx+rax*2+1]; rol rcx, 7; sub rbx, rdx; imul rdi, rax; jmp 1b
    "alu": "4801d8 4831c1 488d544201 48c1c107 4829d3 480faff8",
    # add rax, [rsi]; add rbx, [rsi+8]; add rcx, [rsi+4096]; add rdx, [rsi+8192]
    "load": "480306 48035e08 48038e00100000 48039600200000",
    # mov [rsi], rax; mov [rsi+8], rbx; mov [rsi+4096], rcx; inc rax
    "store": "488906 48895e08 48898e00100000 48ffc0",
    # call 1f; call 1f; jmp (over the next); 1: push rax; pop rax; ret
    "calls": "e807000000 e802000000 eb03 50 58 c3",
    # add rax, [rsi]; mov [rsi+64], rax; test al, 1; jz +3; inc rcx; push rcx; pop rdx
    "mixed": "480306 48894640 a801 7403 48ffc1 51 5a",
    # a load from another page each time, 512 pages: and rdi, 0x1ff000; mov rax, [rsi+rdi]; add rdi, 0x1000
    "pages": "4881e700f01f00 488b043e 4881c700100000",
}


def looping(hexes: str) -> bytes:
    """Return the loop's machine code, with the jump back."""
    body = bytes.fromhex(hexes)
    return body + b"\xe9" + (-(len(body) + 5)).to_bytes(4, "little", signed=True)


def engine_with(code: bytes) -> Engine:
    """Return an engine about to execute `code`."""
    engine = Engine(RAM)
    engine.write(PML4, (PDPT | 3).to_bytes(8, "little"))
    engine.write(PDPT, (PD | 3).to_bytes(8, "little"))
    engine.write(PD, b"".join((at << 21 | 0x83).to_bytes(8, "little") for at in range(RAM >> 21)))
    engine.write(CODE, code)
    engine.start("long64", CODE, {"rsi": DATA, "rsp": STACK}, cr3=PML4)
    return engine


def go(engine: Engine, tick: int) -> None:
    """Run to `tick`; the engine returns before it now and then, for its caller to check for input."""
    while engine.tick < tick:
        engine.run(tick)


def timed(hexes: str, ticks: int) -> Callable[[], bench.Run]:
    """Return the run of one loop."""

    def run() -> bench.Run:
        engine = engine_with(looping(hexes))
        go(engine, 10_000)  # so that the code is translated before it is timed
        begin, cpu = time.perf_counter(), time.process_time()
        go(engine, 10_000 + ticks)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        facts = {"ticks": ticks, "mips": ticks / wall / 1e6, **engine.statistics}
        return bench.Run(wall, cpu, facts)

    return run


def main() -> None:
    """Run the benchmark."""
    options = bench.arguments(__doc__ or "", rounds=5).parse_args()
    ticks = options.ticks or 100_000_000
    loops = bench.take_turns(
        {name: timed(code, ticks // (10 if name == "pages" else 1)) for name, code in LOOPS.items()},
        options.rounds,
    )
    image = bench.debian_guest(options.guest) / "debian.img"
    command = bench.tt_run("boot", guest=image, ticks=options.ticks, epoch=bench.EPOCH)

    def boot() -> bench.Run:
        run = bench.run_process(command)
        mips = run.facts["ticks"] / run.facts["wall"] / 1e6
        facts = {"ticks": run.facts["ticks"], "mips": mips, **run.facts["statistics"]}
        return bench.Run(run.facts["wall"], run.facts["cpu"], facts)

    runs = {**loops, **bench.take_turns({"Debian boot": boot}, options.rounds)}
    table = bench.Table(
        "The engine", ("guest", "instructions", "M instructions/s", "TLB fills", "blocks made", "port exits")
    )
    for name, these in runs.items():
        facts = these[0].facts
        numbers = [f"{facts[key]:,}" for key in ("ticks", "tlb_fills", "blocks_made", "io_exits")]
        table.add(name, numbers[0], bench.spread(these, "mips").show(0), *numbers[1:])
    bench.report(options.json, [table], {"runs": runs})


if __name__ == "__main__":
    main()
