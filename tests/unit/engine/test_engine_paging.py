"""Page walks: every kind of page, every error code, exact CR2, and rights that change under way."""

from __future__ import annotations

import pytest
from engine_rig import GP, NX, PS, A, D, G, Guest, P, U, W, check_every_stop
from paging_rig import (
    CR0,
    CR4_PAE,
    CR4_SMEP,
    EFER_LONG,
    PAGE,
    PAGE2,
    PD,
    Fault,
    LongPaging,
    ShortPaging,
    page_fault,
)

ADDR = 0x7F12_3456_7000
PRESENT, WRITE, USER, RESERVED, FETCH = 1, 2, 4, 8, 16


@pytest.fixture(scope="module")
def shared() -> LongPaging:
    return LongPaging()


@pytest.fixture
def guest(shared: LongPaging) -> LongPaging:
    """Give a long-mode guest without mappings from before."""
    shared.put64(PD, P | W | U | PS | D | A)
    shared.unmap()
    return shared


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("rights", [W | U, W, U, 0, W | U | NX, U | NX])
@pytest.mark.parametrize("op", ["read", "write", "fetch", "rmw"])
def test_rights(guest: LongPaging, op: str, rights: int, user: bool) -> None:
    """QEMU reads first for a read-modify-write: where reading fails, the error code says so, not W."""
    guest.map(ADDR, 0, 0, 0, PAGE | P | A | D | rights)
    store, fetch = op in ("write", "rmw"), op == "fetch"
    denied = (user and not rights & U) or (store and not rights & W) or (fetch and bool(rights & NX))
    store &= op == "write" or not user or bool(rights & U)
    error = PRESENT | WRITE * store | USER * user | FETCH * fetch
    assert guest.touch(op, ADDR + 0x123, user=user) == (page_fault(error, ADDR + 0x123) if denied else None)


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("op", ["read", "write", "fetch", "rmw"])
def test_not_present(guest: LongPaging, op: str, level: int, user: bool) -> None:
    if level:
        guest.map(ADDR, *[0] * level)
    error = WRITE * (op == "write") | USER * user | FETCH * (op == "fetch")
    assert guest.touch(op, ADDR, user=user) == page_fault(error, ADDR)


def test_fetch_is_told_only_with_nx_or_smep(guest: LongPaging) -> None:
    guest.put64(PD, P | W | PS | D | A)  # the kernel in a supervisor's page
    assert guest.touch("fetch", ADDR, efer=EFER_LONG) == page_fault(0, ADDR)
    assert guest.touch("fetch", ADDR) == page_fault(FETCH, ADDR)
    assert guest.touch("fetch", ADDR, efer=EFER_LONG, cr4=CR4_PAE | CR4_SMEP) == page_fault(FETCH, ADDR)


def test_supervisor_execution_prevention(guest: LongPaging) -> None:
    guest.put64(PD, P | W | PS | D | A)
    guest.map(ADDR, 0, 0, 0, PAGE | P | U | A | D)
    assert guest.touch("fetch", ADDR) is None
    assert guest.touch("fetch", ADDR, cr4=CR4_PAE | CR4_SMEP) == page_fault(PRESENT | FETCH, ADDR)
    assert guest.touch("read", ADDR, cr4=CR4_PAE | CR4_SMEP) is None
    guest.map(ADDR, 0, 0, 0, PAGE | P | A | D)
    assert guest.touch("fetch", ADDR, cr4=CR4_PAE | CR4_SMEP) is None


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_rights_are_those_of_all_levels(guest: LongPaging, level: int) -> None:
    for missing, op, user, error in (
        (W, "write", False, PRESENT | WRITE),
        (U, "read", True, PRESENT | USER),
        (NX, "fetch", False, PRESENT | FETCH),
    ):
        entries = [0x60000 | P | W | U, 0x61000 | P | W | U, 0x62000 | P | W | U, PAGE | P | W | U | A | D]
        entries[level] ^= missing
        guest.map(ADDR, *entries)
        assert guest.touch(op, ADDR, user=user) == page_fault(error, ADDR)
        entries[level] ^= missing
        guest.map(ADDR, *entries)
        assert guest.touch(op, ADDR, user=user) is None


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("bit", [44, 51])
def test_reserved_bits(guest: LongPaging, level: int, bit: int) -> None:
    entries = [0x60000 | P | W | U, 0x61000 | P | W | U, 0x62000 | P | W | U, PAGE | P | W | U | A | D]
    entries[level] |= 1 << bit
    guest.map(ADDR, *entries[: level + 1])
    assert guest.touch("read", ADDR) == page_fault(PRESENT | RESERVED, ADDR)
    assert guest.touch("write", ADDR, user=True) == page_fault(PRESENT | RESERVED | WRITE | USER, ADDR)


def test_more_reserved_bits(guest: LongPaging) -> None:
    guest.map(ADDR, 0, 0, 0, PAGE | P | W | U | NX)
    assert guest.touch("read", ADDR, efer=EFER_LONG) == page_fault(PRESENT | RESERVED, ADDR)  # no NXE
    guest.map(ADDR, 0x60000 | P | W | U | PS)
    assert guest.touch("read", ADDR) == page_fault(PRESENT | RESERVED, ADDR)  # PS in a PML4 entry
    guest.map(ADDR, 0, 0x0010_0000 | P | W | PS)
    assert guest.touch("read", ADDR) == page_fault(PRESENT | RESERVED, ADDR)  # a 1 GB page at 1 MB
    guest.unmap()
    guest.map(ADDR, 0, 0, 0x0010_0000 | P | W | PS)
    assert guest.touch("read", ADDR) == page_fault(PRESENT | RESERVED, ADDR)  # a 2 MB page at 1 MB
    guest.map(ADDR, 0, 0, 0x1000 | P | W | PS)  # bit 12 is PAT, not reserved
    assert guest.touch("read", ADDR & ~0x1FFFFF) is None


def test_large_pages(guest: LongPaging) -> None:
    guest.write(0xFFFF0, b"2 MB and 1 GB...")
    for base, entries in (
        (0x7F40_0000_0000, (0, P | W | U | PS)),
        (0x7F12_3440_0000, (0, 0, P | W | U | PS)),
    ):
        guest.map(base, *entries)
        assert guest.touch("read8", base + 0xFFFF0) is None
        assert guest.engine.registers()["rax"].to_bytes(8, "little") == b"2 MB and"
        assert guest.touch("fetch", base + PAGE + 7) is None
        assert guest.touch("write8", base + PAGE + 3, value=0x1122334455667788) is None
        assert guest.u64(PAGE + 3) == 0x1122334455667788
        level = len(entries) - 1
        assert guest.u64(guest.slot(base, level)) == P | W | U | PS | D | A
        assert guest.engine.translate(base + 0x12345) == 0x12345
        guest.unmap()


def test_cr2_is_the_first_byte_that_failed(guest: LongPaging) -> None:
    """An access across two pages: CR2 is its address where the first page fails, else the second page's."""
    guest.map(ADDR, 0, 0, 0, PAGE | P | W | U | A | D)
    for op in ("read8", "write8"):
        error = WRITE * (op == "write8")
        for back in (1, 4, 7):
            assert guest.touch(op, ADDR + 0x1000 - back) == page_fault(error, ADDR + 0x1000)
            assert guest.touch(op, ADDR - back) == page_fault(error, ADDR - back)
        assert guest.touch(op, ADDR + 0xFF8) is None
    assert guest.touch("write8", ADDR + 0xFFD, value=0) is not None
    assert guest.engine.read(PAGE + 0xFFD, 3) == b"\xf4" * 3, (
        "a store that faults in its second half wrote the first"
    )


def test_a_store_across_pages_sets_both_dirty_bits(guest: LongPaging) -> None:
    guest.map(ADDR, 0, 0, 0, PAGE | P | W | U)
    guest.put64(guest.slot(ADDR + 0x1000, 3), PAGE2 | P | W | U)
    assert guest.touch("write8", ADDR + 0xFFC, value=0x1122334455667788) is None
    assert guest.u64(PAGE + 0xFFC) == 0x1122334455667788
    assert guest.u64(guest.slot(ADDR, 3)) & D
    assert guest.u64(guest.slot(ADDR + 0x1000, 3)) & D


def test_dirty_is_set_at_the_first_store_and_nothing_at_a_read(guest: LongPaging) -> None:
    """The documented rule: D (and A with it) exactly at a store that needs it, never A at a read."""
    guest.map(ADDR, 0, 0, 0, PAGE | P | W | U)
    slots = [guest.slot(ADDR, level) for level in range(4)]
    before = [guest.u64(slot) for slot in slots]
    assert guest.touch("read", ADDR) is None
    assert guest.touch("fetch", ADDR) is None
    assert [guest.u64(slot) for slot in slots] == before
    assert guest.touch("write", ADDR) is None
    assert [guest.u64(slot) for slot in slots] == [*before[:3], before[3] | D | A]
    guest.map(ADDR, 0, 0, 0, PAGE | P | U)
    assert guest.touch("write", ADDR) == page_fault(PRESENT | WRITE, ADDR)
    assert guest.u64(slots[3]) == PAGE | P | U


def test_dirty_bit_to_the_tick() -> None:
    guest = Guest("""
        mov rbx, 0x40000000
        mov al, [rbx]           # tick 2: fills the TLB for reading
        mov rcx, [0x63000]      # the leaf
        mov [rbx], al           # the store
        mov rdx, [0x63000]
        and byte ptr [0x63000], 0x9f # clear A and D
        invlpg [rbx]
        mov sil, [rbx]
        mov [rbx], al
        mov rdi, [0x63000]
        hlt
    """)
    guest.put64(0x2008, 0x62000 | P | W | U)
    guest.put64(0x62000, 0x63000 | P | W | U)
    guest.put64(0x63000, PAGE | P | W | U)
    check_every_stop(guest)
    registers = guest.engine.registers()
    clean = PAGE | P | W | U
    assert [registers[name] for name in ("rcx", "rdx", "rdi")] == [clean, clean | D | A, clean | D | A]


def test_table_changes_without_invlpg_are_deterministic() -> None:
    """A guest that clears D (or P) and does not say so sees what the TLB still holds.

    The architecture allows either; a recording must always choose the same one.
    """
    guest = Guest("""
        mov rbx, 0x40000000
        mov [rbx], al
        and byte ptr [0x63000], 0x9f
        mov [rbx], al
        hlt
    """)
    guest.put64(0x2008, 0x62000 | P | W | U)
    guest.put64(0x62000, 0x63000 | P | W | U)
    guest.put64(0x63000, PAGE | P | W | U)
    check_every_stop(guest)


def test_write_protect(guest: LongPaging) -> None:
    guest.map(ADDR, 0, 0, 0, PAGE | P | U | A | D)
    assert guest.touch("write", ADDR) == page_fault(PRESENT | WRITE, ADDR)
    assert guest.touch("write", ADDR, cr0=CR0) is None
    assert guest.touch("write", ADDR, cr0=CR0, user=True) == page_fault(PRESENT | WRITE | USER, ADDR)


def test_non_canonical_addresses(guest: LongPaging) -> None:
    for addr in (0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFF0, 0x1234_0000_0000_0000):
        for op in ("read", "write", "rmw"):
            assert guest.touch(op, addr) == Fault(GP, 0)
        assert guest.touch("read", addr, user=True) == Fault(GP, 0)
    assert guest.touch("read8", 0x0000_7FFF_FFFF_FFFC) == page_fault(0, 0x0000_7FFF_FFFF_FFFC)
    assert guest.touch("read", 0xFFFF_8000_0000_0000) == page_fault(0, 0xFFFF_8000_0000_0000)
    assert guest.touch("read", 0xFFFF_FFFF_FFFF_FFFF) == page_fault(0, 0xFFFF_FFFF_FFFF_FFFF)


def test_outside_ram_is_a_floating_bus(guest: LongPaging) -> None:
    guest.map(ADDR, 0, 0, 0, 0x0800_0000_0000 | P | W | U | A | D)
    assert guest.touch("read8", ADDR) is None
    assert guest.engine.registers()["rax"] == (1 << 64) - 1
    assert guest.touch("write8", ADDR, value=7) is None
    assert guest.touch("read8", ADDR) is None
    assert guest.engine.registers()["rax"] == (1 << 64) - 1
    # A page table outside RAM: all ones, so a reserved bit
    guest.map(ADDR, 0, 0, 0x0800_0000_0000 | P | W | U)
    assert guest.touch("read", ADDR) == page_fault(PRESENT | RESERVED, ADDR)


def test_rights_gained_need_no_invlpg() -> None:
    """More rights than the TLB holds: the walk at the would-be fault finds them (Intel SDM 3, 4.10.4.3)."""
    guest = Guest("""
        mov rbx, 0x40000000
        mov al, [rbx]
        or byte ptr [0x63000], 2
        mov [rbx], al
        hlt
    """)
    guest.put64(0x2008, 0x62000 | P | W | U)
    guest.put64(0x62000, 0x63000 | P | W | U)
    guest.put64(0x63000, PAGE | P | U)
    check_every_stop(guest)
    assert guest.vector is None
    assert guest.u64(0x63000) == PAGE | P | W | U | A | D


@pytest.mark.parametrize("entry", [0x62000 | P | W, PS | P | W | A | D])
def test_invlpg_of_any_page_of_a_large_page(entry: int) -> None:
    guest = Guest("""
        mov rbx, 0x40050000
        mov al, [rbx]
        mov al, [rbx + 0x1000]
        mov rcx, [0x62000]
        mov qword ptr [0x62000], 0
        invlpg [rbx + 0x3000]   # another 4 KB of the same 2 MB
        mov al, [rbx + 0x1000]
        hlt
    """)
    guest.put64(0x2008, 0x62000 | P | W | U)
    guest.put64(0x62000, PS | P | W | A | D)
    frame = guest.frame()
    assert (frame.vector, frame.error) == (14, 0)
    assert guest.engine.registers()["cr2"] == 0x40051000


def test_cr3_keeps_nothing() -> None:
    guest = Guest("""
        mov rbx, 0x40050000
        mov al, [rbx]
        mov qword ptr [0x62000], 0
        mov rax, cr3
        mov cr3, rax
        mov al, [rbx]
        hlt
    """)
    guest.put64(0x2008, 0x62000 | P | W | U)
    guest.put64(0x62000, PS | P | W | G | A | D)
    frame = guest.frame()  # CR4.PGE is off, so G means nothing
    assert (frame.vector, frame.error) == (14, 0)


# ---- 32 bits


@pytest.fixture(scope="module")
def short() -> ShortPaging:
    return ShortPaging(pae=False)


@pytest.fixture(scope="module")
def pae() -> ShortPaging:
    return ShortPaging(pae=True)


SHORT = 0x8123_4000


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("rights", [W | U, W, U, 0])
@pytest.mark.parametrize("op", ["read", "write", "fetch", "rmw"])
@pytest.mark.parametrize("kind", ["short", "pae"])
def test_rights_32(kind: str, op: str, rights: int, user: bool, request: pytest.FixtureRequest) -> None:
    guest: ShortPaging = request.getfixturevalue(kind)
    guest.put(SHORT, *([0] if guest.pae else []), 0, PAGE | P | rights)
    store = op in ("write", "rmw")
    denied = (user and not rights & U) or (store and not rights & W)
    store &= op == "write" or not user or bool(rights & U)
    error = PRESENT | WRITE * store | USER * user
    assert guest.touch(op, SHORT + 0x123, user=user) == (page_fault(error, SHORT + 0x123) if denied else None)
    leaf = 0x60000 + (SHORT >> 12 & 1023) * 4 if not guest.pae else 0x61000 + (SHORT >> 12 & 511) * 8
    assert guest.u32(leaf) == PAGE | P | rights | ((D | A) if store and not denied else 0)


def test_4_mb_pages(short: ShortPaging) -> None:
    short.put(0x8000_0000, P | W | U | PS)
    assert short.touch("fetch", 0x8000_0000 + PAGE + 5) is None
    assert short.touch("write", 0x8000_0000 + PAGE) is None
    assert short.u32(0x1000 + 0x200 * 4) == P | W | U | PS | D | A
    # without CR4.PSE the bit says nothing, and the entry names a table: at 0, where an IVT would be
    assert short.touch("read", 0x8000_0000, cr4=0) == page_fault(0, 0x8000_0000)
    short.put(0x8000_0000, 1 << 21 | P | PS)
    assert short.touch("read", 0x8000_0000) == page_fault(PRESENT | RESERVED, 0x8000_0000)


def test_not_present_32(short: ShortPaging, pae: ShortPaging) -> None:
    for guest in (short, pae):
        assert guest.touch("read", 0xC000_0004) == page_fault(0, 0xC000_0004)
        assert guest.touch("write", 0xC000_0004, user=True) == page_fault(WRITE | USER, 0xC000_0004)
        guest.put(0xC000_0000, *([0] if guest.pae else []), 0)
        assert guest.touch("read", 0xC000_0004) == page_fault(0, 0xC000_0004)


def test_pae_pages(pae: ShortPaging) -> None:
    pae.put(0x8000_0000, 0, P | W | U | PS)
    assert pae.touch("fetch", 0x8000_0000 + PAGE + 5) is None
    assert pae.touch("write", 0x8000_0000 + PAGE) is None
    pae.put(0x8000_0000, 0, P | W | U | PS | NX)
    assert pae.touch("fetch", 0x8000_0000 + PAGE, efer=0x800) == page_fault(
        PRESENT | FETCH, 0x8000_0000 + PAGE
    )
    assert pae.touch("read", 0x8000_0000, efer=0) == page_fault(PRESENT | RESERVED, 0x8000_0000)
    pae.put(0x8000_0000, 0, P | W | U | PS | 1 << 50)
    assert pae.touch("read", 0x8000_0000) == page_fault(PRESENT | RESERVED, 0x8000_0000)


def test_addresses_wrap_at_4_gb(short: ShortPaging) -> None:
    """Without paging an access past 4 GB comes back at 0; with it CR2 has 32 bits."""
    assert short.touch("read", 0xFFFF_FFFE) == page_fault(0, 0xFFFF_FFFE)
    assert short.touch("read8", 0xFFFF_FFFC, cr0=0x11) is None
