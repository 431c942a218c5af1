"""Registers and bits of Intel's 8254x network cards.

Source: PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (Intel
317453-006), chapter 13 (registers) and, for interrupts, section 3.1.7.
"""

from __future__ import annotations

CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC = 0x00, 0x08, 0x10, 0x14, 0x18, 0x20
FCAL, FCAH, FCT, VET, FCTTV, TXCW, RXCW = 0x28, 0x2C, 0x30, 0x38, 0x170, 0x178, 0x180
ICR, ITR, ICS, IMS, IMC = 0xC0, 0xC4, 0xC8, 0xD0, 0xD8
RCTL, TCTL, TIPG, AIFS, LEDCTL, PBA = 0x100, 0x400, 0x410, 0x458, 0xE00, 0x1000
FCRTL, FCRTH, RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2160, 0x2168, 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
RDTR, RXDCTL, RADV, RSRPD = 0x2820, 0x2828, 0x282C, 0x2C00
TDBAL, TDBAH, TDLEN, TDH, TDT, TIDV = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820
TXDCTL, TADV, TSPMT = 0x3828, 0x382C, 0x3830
RXCSUM, MTA, RAL, RAH, VFTA = 0x5000, 0x5200, 0x5400, 0x5404, 0x5600
WUC, WUFC, WUS, MANC = 0x5800, 0x5808, 0x5810, 0x5820
MPC, RNBC, ROC = 0x4010, 0x40A0, 0x40AC
GPRC, BPRC, MPRC, GPTC = 0x4074, 0x4078, 0x407C, 0x4080
GORCL, GOTCL, TORL, TOTL = 0x4088, 0x4090, 0x40C0, 0x40C8  # 64 bits each
TPR, TPT, MPTC, BPTC = 0x40D0, 0x40D4, 0x40F0, 0x40F4
PRC64, PTC64 = 0x405C, 0x40D8  # and five more of each, by size
FIRST_STATISTIC, LAST_STATISTIC = 0x4000, 0x4124  # all cleared by reading

CTRL_SLU, CTRL_RST, CTRL_VME, CTRL_PHY_RST = 1 << 6, 1 << 26, 1 << 30, 1 << 31
STATUS_LU = 1 << 1
RCTL_EN, RCTL_UPE, RCTL_MPE, RCTL_LPE, RCTL_BAM = 1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 15
RCTL_VFE, RCTL_BSEX, RCTL_SECRC = 1 << 18, 1 << 25, 1 << 26
TCTL_EN, TCTL_PSP = 1 << 1, 1 << 3
RAH_AV = 1 << 31

# Causes of interrupts.
TXDW, TXQE, LSC, RXDMT0, RXO, RXT0, MDAC = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 9
CAUSES = 0x1FFFF

PLAIN = {
    **dict.fromkeys((CTRL_EXT, FCAL, FCAH, FCT, VET, FCTTV, TXCW, RXCW, ITR, AIFS, LEDCTL, PBA), 0xFFFFFFFF),
    **dict.fromkeys((RCTL, TCTL, TIPG, FCRTL, FCRTH, RDBAH, TDBAH, RXCSUM), 0xFFFFFFFF),
    **dict.fromkeys((WUC, WUFC, WUS, MANC, RXDCTL, TXDCTL, TSPMT, RSRPD), 0xFFFFFFFF),
    **dict.fromkeys((RDBAL, TDBAL), 0xFFFFFFF0),
    **dict.fromkeys((RDLEN, TDLEN), 0xFFF80),
    **dict.fromkeys((RDH, RDT, TDH, TDT, RDTR, RADV, TIDV, TADV), 0xFFFF),
    **{RAL + 8 * i: 0xFFFFFFFF for i in range(16)},
    **{RAH + 8 * i: 0x8003FFFF for i in range(16)},
    **{table + 4 * i: 0xFFFFFFFF for table in (MTA, VFTA) for i in range(128)},
}
"""Registers that keep what is written to them: offset -> the bits that exist."""

AT_RESET = {
    CTRL: 0x0014_0241,  # full duplex, SLU, 1000 Mb/s, the software-defined pins
    PBA: 0x0010_0030,
    LEDCTL: 0x0706_0302,
    VET: 0x8100,
    RXDCTL: 1 << 16,
}
"""What registers hold after a reset, where that is not 0."""
