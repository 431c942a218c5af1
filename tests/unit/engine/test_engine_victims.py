"""Pages that QEMU keeps in its victim TLB: their rights are taken away like any others."""

from __future__ import annotations

import pytest
from engine_rig import MB, Guest

from tt.vmm.engine import HALT


@pytest.mark.parametrize("entries", [64, 128, 256, 512])
def test_code_stored_to_through_a_victim(entries: int) -> None:
    """The entry that may store to a page is evicted, the page runs elsewhere, the store finds the entry."""
    guest = Guest(
        f"""
        mov rbx, 0x40000000                 # maps 0x50000
        mov rsi, 0x50000
        mov rdi, 0x50000 + {entries} * 4096
        mov dword ptr [rsi], 0xc300b0       # mov al, 0; ret
        mov ecx, 20
    1:  inc byte ptr [rsi + 1]
        mov [rdi], ecx                      # takes the other's place
        call rbx
        add edx, eax
        inc byte ptr [rsi + 1]
        call rbx
        add ebp, eax
        loop 1b
        hlt
    """,
        ram=4 * MB,
    )
    guest.put64(0x2008, 0x62007)
    guest.put64(0x62000, 0x63007)
    guest.put64(0x63000, 0x50067)
    assert guest.engine.run(10_000) == HALT
    registers = guest.engine.registers()
    assert (registers["rdx"], registers["rbp"]) == (sum(range(1, 41, 2)), sum(range(2, 41, 2)))


@pytest.mark.parametrize("entries", [64, 128, 256, 512])
def test_a_store_through_a_victim_reaches_the_digest(entries: int) -> None:
    guest = Guest(
        f"""
        mov rbx, 0x40000
        mov rsi, 0x40000 + {entries} * 4096
        mov ecx, 20
    1:  inc byte ptr [rbx]
        mov [rsi], ecx
        loop 1b
        hlt
    """,
        ram=4 * MB,
    )
    seen = set()
    for stop in range(5, 80, 3):
        guest.engine.run(stop)
        guest.engine.ram_digest()
        seen.add(guest.engine.ram_digest())
        fresh = Guest("hlt", ram=4 * MB).engine
        fresh.write(0, guest.engine.read(0, 4 * MB))
        assert fresh.ram_digest() == guest.engine.ram_digest()
    assert len(seen) > 15
