"""The serial port, from the PC16550D data sheet's and Linux's 8250 driver's points of view."""

from __future__ import annotations

import pytest
from device_rig import Rig
from hypothesis import given
from hypothesis import strategies as st

from tt.vmm.devices.uart16550 import DATA, IER, IIR, LCR, LSR, MCR, MSR, SCR, Uart16550

FCR = IIR


class Port:
    """A UART, its wire, and what it sent."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.sent = bytearray()
        self.uart = Uart16550("com1", self.rig.clock, self.rig.door, self.rig.wire(), self.sent.extend)

    def get(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def put(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    @property
    def interrupting(self) -> bool:
        levels = self.rig.levels()
        return bool(levels) and levels[-1]


@pytest.fixture
def port() -> Port:
    return Port()


def test_power_on(port: Port) -> None:
    """Table I: registers after a master reset."""
    assert [port.get(r) for r in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 1, 0, 0, 0x60, 0xB0]


def test_sending(port: Port) -> None:
    for byte in b"hello":
        port.put(DATA, byte)
        assert port.get(LSR) == 0x60
    assert port.sent == b"hello"
    assert port.rig.edges == []


def test_divisor_latch(port: Port) -> None:
    """LCR bit 7: offsets 0 and 1 are the divisor."""
    port.put(LCR, 0x83)
    port.put(DATA, 0x34)
    port.put(IER, 0x12)
    assert (port.get(DATA), port.get(IER)) == (0x34, 0x12)
    port.put(LCR, 0x03)
    assert (port.get(IER), port.uart.state.divisor) == (0, 0x1234)
    assert port.sent == b""


def test_linux_autoconfig(port: Port) -> None:
    """8250_port.c autoconfig(): IER exists, loopback works, and it is a 16550A and nothing fancier."""
    port.put(IER, 0)
    assert port.get(IER) & 0x0F == 0
    port.put(IER, 0x0F)
    assert port.get(IER) == 0x0F
    port.put(IER, 0)
    port.put(MCR, 0x10 | 0x0A)
    assert port.get(MSR) & 0xF0 == 0x90
    port.put(MCR, 0)
    port.put(LCR, 0xBF)
    port.put(FCR, 0)
    port.put(LCR, 0)
    port.put(FCR, 1)
    assert port.get(IIR) >> 6 == 3, "16550A"
    port.put(LCR, 0x80)
    assert port.get(2) != 0, "no EFR: not a 16C650"
    port.put(LCR, 0)
    port.put(IER, 0x40)
    assert not port.get(IER) & 0x40, "no UUE: not an XScale"
    port.put(SCR, 0xA5)
    assert port.get(SCR) == 0xA5


def test_linux_startup_finds_no_bugs(port: Port) -> None:
    """8250_port.c serial8250_do_startup(): THRE is asserted again, and TXEN works at once."""
    port.put(FCR, 7)
    port.put(IER, 2)
    first = port.get(IIR)
    port.put(IER, 0)
    port.put(IER, 2)
    second = port.get(IIR)
    port.put(IER, 0)
    assert (first, second) == (0xC2, 0xC2), "else UART_BUG_THRE"
    port.put(IER, 2)
    assert port.get(LSR) & 0x40
    assert not port.get(IIR) & 1, "else UART_BUG_TXEN"


def test_transmitter_empty_interrupt(port: Port) -> None:
    """Table V: THRE is reset by reading IIR when it is the source, or by writing THR."""
    port.put(IER, 2)
    assert port.interrupting
    assert port.get(IIR) == 0x02
    assert not port.interrupting
    assert port.get(IIR) == 0x01
    port.put(DATA, 0x41)
    assert port.interrupting
    edges = len(port.rig.edges)
    port.put(DATA, 0x42)
    assert port.rig.levels()[edges:] == [False, True], "each byte that leaves is an edge of its own"
    port.put(IER, 0)
    assert not port.interrupting
    assert port.get(IIR) == 0x01


def test_receive_without_fifo(port: Port) -> None:
    """16450 mode: one byte at a time, each an interrupt."""
    port.put(IER, 1)
    port.uart.receive(b"ab")
    assert port.interrupting
    assert (port.get(LSR), port.get(IIR)) == (0x61, 0x04)
    assert port.get(DATA) == ord("a")
    assert port.interrupting
    assert port.get(DATA) == ord("b")
    assert not port.interrupting
    assert (port.get(LSR), port.get(DATA)) == (0x60, 0)


@pytest.mark.parametrize(("bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_levels(port: Port, bits: int, level: int) -> None:
    """FCR bits 7-6: the receive interrupt comes when the FIFO holds that many."""
    port.put(FCR, bits << 6 | 1)
    port.put(IER, 1)
    for count in range(1, level + 1):
        assert not port.interrupting
        port.uart.receive(b"x")
        assert port.interrupting == (count == level)
    assert port.get(IIR) == 0xC4
    port.get(DATA)
    assert not port.interrupting, "it is gone as soon as the FIFO falls below the level"


def test_receive_timeout(port: Port) -> None:
    """FIFO interrupt mode: four characters after the last movement, what is below the level is announced."""
    port.put(LCR, 0x83)
    port.put(DATA, 1)  # 115200 baud
    port.put(IER, 0)
    port.put(LCR, 0x03)
    port.put(FCR, 0xC1)
    port.put(IER, 1)
    port.uart.receive(b"abc")
    four_characters = 40 * 16 * 1_000_000_000 // 1_843_200
    port.rig.run(four_characters - 10)
    assert not port.interrupting
    port.rig.run(10)
    assert port.interrupting
    assert port.get(IIR) == 0xCC
    assert port.get(IIR) == 0xCC, "reading IIR does not clear it"
    assert port.get(DATA) == ord("a")
    assert not port.interrupting, "reading a byte does"
    port.rig.run(four_characters)
    assert port.interrupting
    assert bytes([port.get(DATA), port.get(DATA)]) == b"bc"
    port.rig.run(10 * four_characters)
    assert not port.interrupting


@given(st.binary(min_size=1, max_size=3000))
def test_a_long_paste_is_not_lost(data: bytes) -> None:
    """The FIFO refills as it is read: Linux's receive loop gets every byte, in order."""
    port = Port()
    port.put(FCR, 0x81)
    port.put(IER, 1)
    port.uart.receive(data)
    got = bytearray()
    while port.get(LSR) & 1:
        got.append(port.get(DATA))
        assert len(port.uart.state.fifo) <= 16
    assert got == data
    assert not port.uart.state.overrun


def test_wants_input(port: Port) -> None:
    assert not port.uart.wants_input
    port.put(IER, 1)
    assert port.uart.wants_input
    port.uart.receive(b"x")
    assert not port.uart.wants_input
    port.get(DATA)
    assert port.uart.wants_input


def test_fifo_reset(port: Port) -> None:
    """FCR bit 1 empties the receive FIFO, and so does turning FIFOs on or off."""
    port.put(FCR, 1)
    port.uart.receive(b"old")
    port.put(FCR, 3)
    assert port.get(LSR) == 0x60
    port.uart.receive(b"old")
    port.put(FCR, 0)
    assert port.get(LSR) == 0x60
    assert port.get(IIR) == 0x01


def test_loopback(port: Port) -> None:
    """MCR bit 4: what is sent is received, modem outputs are inputs, and the outside waits."""
    port.put(MSR, 0)
    port.put(MCR, 0x1F)
    assert port.get(MSR) == 0xF0 | 0x00
    port.uart.receive(b"outside")
    port.put(DATA, 0x55)
    assert port.sent == b""
    assert port.get(DATA) == 0x55
    assert port.get(LSR) == 0x60
    port.put(MCR, 0x10)
    assert port.get(MSR) == 0x0F, "CTS, DSR, DCD changed, and RI went away"
    port.put(MCR, 0)
    assert port.get(DATA) == ord("o")


def test_overrun(port: Port) -> None:
    """LSR bit 1: a byte too many; it is the highest interrupt, and reading LSR clears it."""
    port.put(MCR, 0x10)
    port.put(IER, 5)
    port.put(DATA, 1)
    port.put(DATA, 2)
    assert port.get(IIR) == 0x06
    assert port.get(LSR) == 0x63
    assert port.get(LSR) == 0x61
    assert port.get(IIR) == 0x04
    assert port.get(DATA) == 1
    assert not port.interrupting


def test_modem_status_interrupt(port: Port) -> None:
    """IER bit 3: an input changed; reading MSR clears it."""
    port.put(IER, 8)
    port.put(MCR, 0x10)
    assert port.interrupting
    assert port.get(IIR) == 0x00
    assert port.get(MSR) == 0x0B
    assert not port.interrupting
    assert port.get(IIR) == 0x01


def test_line_status_is_read_only(port: Port) -> None:
    port.put(LSR, 0)
    port.put(MSR, 0)
    assert (port.get(LSR), port.get(MSR)) == (0x60, 0xB0)
