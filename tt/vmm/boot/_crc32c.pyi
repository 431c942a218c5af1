"""The checksum of ext4's journal and of its fast commits, in C."""

def crc32c(data: bytes | memoryview, crc: int) -> int:
    """Return CRC-32C (Castagnoli) of `data`, going on from `crc`, with no inversion at either end.

    That is the kernel's `crc32c(crc, data)`: reflected, polynomial 0x82F63B78.
    """
