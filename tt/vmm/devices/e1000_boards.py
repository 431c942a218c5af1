"""What else is on a board with an 82540EM: the EEPROM and the PHY, each behind serial lines.

Source: Intel 317453-006, sections 5.2 to 5.6 (EEPROM), 13.4.3 (EECD), 13.4.4 (EERD), 13.4.6 and 11.2 (MDIC);
Microchip 93C46B data sheet (its instructions); Marvell 88E1011S (the PHY in the 82540EM), registers
as of IEEE 802.3 clause 22.
"""

from __future__ import annotations

from dataclasses import dataclass

from tt.vmm.state import U8, U16, U32

_SK, _CS, _DI, _DO, _REQ, _GNT, _PRES = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 7, 1 << 8
_START, _DONE = 1 << 0, 1 << 4
_WORDS = 64
_READY, _INTERRUPT, _ERROR = 1 << 28, 1 << 29, 1 << 30
_WRITE, _READ = 1, 2
_OUR_PHY = 1
_LINK, _NEGOTIATED = 1 << 2, 1 << 5


def eeprom_words(mac: bytes) -> list[int]:
    """Return the 64 words of the EEPROM of a card with the address `mac`, with their checksum."""
    words = [0] * _WORDS
    words[0:3] = [int.from_bytes(mac[i : i + 2], "little") for i in (0, 2, 4)]
    words[0x0A] = 0x4408  # initialization control word 1: signature, load subsystem ids
    words[0x0B], words[0x0C], words[0x0D], words[0x0E] = 0x1E, 0x8086, 0x100E, 0x8086
    words[0x0F] = 0x3040
    words[_WORDS - 1] = (0xBABA - sum(words)) & 0xFFFF
    return words


@dataclass(slots=True)
class EepromState:
    """The serial lines, and how far an instruction has come.

    `got` are the bits of an instruction so far, with a leading 1 that counts them; `out` are
    those to be shifted out, in the same way.
    """

    lines: U8 = 0
    got: U32 = 1
    out: U32 = 1
    data_out: bool = False
    eerd: U32 = 0


class Eeprom:
    """A 93C46 with 64 words, reached by EECD bit by bit or by EERD word by word."""

    def __init__(self, mac: bytes) -> None:
        self.state = EepromState()
        self._words = eeprom_words(mac)

    def read_eecd(self) -> int:
        """Return EECD: the EEPROM is there, and is granted to whoever asks."""
        s = self.state
        granted = _GNT if s.lines & _REQ else 0
        return s.lines | granted | _PRES | (_DO if s.data_out else 0)

    def write_eecd(self, value: int) -> None:
        """Drive the lines."""
        s = self.state
        before, s.lines = s.lines, value & (_SK | _CS | _DI | _REQ)
        if not s.lines & _CS:
            s.got = s.out = 1
            s.data_out = True  # ready
        elif s.lines & _SK and not before & _SK:
            self._clock(bool(s.lines & _DI))

    def write_eerd(self, value: int) -> None:
        """Read a word."""
        if value & _START:
            at = value >> 8 & 0xFF
            word = self._words[at] if at < _WORDS else 0
            self.state.eerd = word << 16 | value & 0xFF00 | _DONE
        else:
            self.state.eerd = value & 0xFF00

    def _clock(self, bit: bool) -> None:
        s = self.state
        if s.out > 1:
            top = s.out.bit_length() - 2
            s.data_out = bool(s.out >> top & 1)
            s.out = 1 << top | s.out & (1 << top) - 1
            if s.out == 1:
                s.got = 1  # a further clock would read on; drivers deselect first
            return
        if s.got == 1 and not bit:
            return  # the start bit is a 1
        s.got = s.got << 1 | bit
        if s.got.bit_length() == 10:  # start, two bits of opcode, six of address
            opcode, at = s.got >> 6 & 3, s.got & 63
            if opcode == 2:
                s.out = 1 << 16 | self._words[at]
                s.data_out = False  # a 0 comes before the word
            s.got = 1


@dataclass(slots=True)
class PhyState:
    """The registers that software can write."""

    control: U16 = 0x1140
    advertised: U16 = 0x0DE1
    gigabit: U16 = 0x0E00
    specific: U16 = 0x0360
    extended: U16 = 0x0D60
    mdic: U32 = 0


class Phy:
    """The registers of the PHY, reached by MDIC; negotiation takes no time."""

    def __init__(self) -> None:
        self.state = PhyState()

    def mdic(self, value: int, link: bool) -> bool:
        """Carry out what is written to MDIC; return whether it wants an interrupt."""
        register, phy, operation = value >> 16 & 31, value >> 21 & 31, value >> 26 & 3
        done = value & 0x3FFFFFFF | _READY
        if phy != _OUR_PHY or operation not in (_READ, _WRITE):
            done |= _ERROR
        elif operation == _READ:
            done = done & ~0xFFFF | self.read(register, link)
        else:
            self._write(register, value & 0xFFFF)
        self.state.mdic = done
        return bool(value & _INTERRUPT)

    def read(self, register: int, link: bool) -> int:
        """Return a register."""
        s = self.state
        up = _LINK | _NEGOTIATED if link else 0
        fixed = {
            1: 0x7949 | up,
            2: 0x0141,
            3: 0x0C20,
            5: 0x45E1 if link else 0,  # the partner takes whatever there is
            6: 0x000D if link else 0,
            10: 0x3C00 if link else 0,
            15: 0x3000,
            17: 0xAC00 | 0x0400 if link else 0x8000,  # 1000 Mb/s, full duplex, resolved, link
        }
        kept = {0: s.control, 4: s.advertised, 9: s.gigabit, 16: s.specific, 20: s.extended}
        return kept.get(register, fixed.get(register, 0))

    def _write(self, register: int, value: int) -> None:
        s = self.state
        match register:
            case 0:
                if value & 0x8000:
                    self.reset()
                else:
                    s.control = value & ~0x0200  # a restart of the negotiation is over at once
            case 4:
                s.advertised = value
            case 9:
                s.gigabit = value
            case 16:
                s.specific = value
            case 20:
                s.extended = value

    def reset(self) -> None:
        """Become as after a reset."""
        self.state = PhyState(mdic=self.state.mdic)
