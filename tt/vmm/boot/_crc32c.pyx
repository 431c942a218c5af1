# cython: language_level=3, boundscheck=False, wraparound=False
"""The checksum of ext4's journal and of its fast commits; the documentation is in _crc32c.pyi."""

from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t table[256]


cdef void fill() noexcept:
    cdef uint32_t value
    cdef int i, bit
    for i in range(256):
        value = i
        for bit in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table[i] = value


fill()


def crc32c(const uint8_t[::1] data not None, uint32_t crc):
    cdef Py_ssize_t i
    for i in range(data.shape[0]):
        crc = (crc >> 8) ^ table[(crc ^ data[i]) & 0xFF]
    return crc
