# cython: language_level=3, boundscheck=False, wraparound=False
"""Pages of RAM on their way into a trace and out of it; the documentation is in _pages.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from *:
    int __builtin_popcountll(unsigned long long) nogil
    int __builtin_ctzll(unsigned long long) nogil

cdef enum:
    SIZE = 4096  # bytes of a page
    WORDS = 512
    MAP = 64  # bytes of a bit for each word
    HEAD = 4 + MAP
    MOST_WORDS = 128  # that may differ, before a page is stored whole again
    MOST_DELTA = HEAD + 8 * MOST_WORDS
    SLOTS = 64  # pages in a pack
    PLACES = 16  # bits of the hash that are used
    MOST_PAGES = 1 << 28

cdef uint32_t DELTA = 0x80000000, ZEROS = 0xFFFFFFFF

# The last contents of a page that the packer named.  They are still stored: the newest contents of
# a page are never dropped, and neither are those that they are stored as a delta on.
cdef struct Known:
    uint8_t *base  # contents stored whole; NULL: none, the page held zeros
    uint32_t base_ref
    uint8_t *delta  # what the page held last, as a delta on them; NULL: those
    uint32_t delta_ref, delta_size


cdef bint _is_zero(const uint64_t *words) noexcept nogil:
    cdef int i
    cdef uint64_t some = 0
    if words[0] | words[WORDS // 2]:
        return False
    for i in range(0, WORDS, 8):
        some = (words[i] | words[i + 1] | words[i + 2] | words[i + 3]
                | words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7])
        if some:
            return False
    return True


cdef int _differing(const uint64_t *a, const uint64_t *b, uint64_t *bits) noexcept nogil:
    """Set a bit for each word that differs; return how many do, or more than MOST_WORDS."""
    cdef int i, k, count = 0
    cdef uint64_t some
    for i in range(8):
        some = 0
        for k in range(64):
            some |= <uint64_t>(a[64 * i + k] != b[64 * i + k]) << k
        bits[i] = some
        count += __builtin_popcountll(some)
        if count > MOST_WORDS:
            break
    return count


cdef uint64_t _hash(const uint64_t *words) noexcept nogil:
    """Where to look for equal contents; what is found there is compared."""
    cdef uint64_t a = 1, b = 2, c = 3, d = 4, k = 0x9e3779b97f4a7c15
    cdef int i
    for i in range(0, WORDS, 4):
        a = (a ^ words[i]) * k
        b = (b ^ words[i + 1]) * k
        c = (c ^ words[i + 2]) * k
        d = (d ^ words[i + 3]) * k
        a, b, c, d = a ^ a >> 32, b ^ b >> 32, c ^ c >> 32, d ^ d >> 32
    return (((a * 31 + b) * 31 + c) * 31 + d) * k


cdef struct Gathered:
    uint8_t *whole
    uint8_t *deltas
    uint32_t *offsets  # of the deltas
    uint32_t whole_count, delta_count, delta_size


cdef class PagePacker:
    """Names the contents of pages, and gathers those that are new."""

    cdef Known *known
    cdef uint32_t room
    cdef uint32_t[1 << PLACES] like  # by hash: the page that was given such contents last, plus 1
    cdef uint32_t next_whole, next_delta  # packs

    def __cinit__(self):
        self.known = NULL
        self.room = self.next_whole = self.next_delta = 0
        memset(self.like, 0, sizeof(self.like))

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.room):
            free(self.known[i].base)
            free(self.known[i].delta)
        free(self.known)

    cdef int _make_room(self, uint32_t number) except -1:
        cdef uint32_t room = self.room or 1024
        while room <= number:
            room *= 2
        if room != self.room:
            known = <Known *>realloc(self.known, room * sizeof(Known))
            if known == NULL:
                raise MemoryError
            memset(known + self.room, 0, (room - self.room) * sizeof(Known))
            self.known = known
            self.room = room
        return 0

    def pack(self, const uint8_t[::1] pages, const uint8_t[::1] contents):
        cdef uint32_t count = pages.shape[0] // 4, at, i, size
        cdef const uint32_t *numbers
        cdef const uint8_t *page
        cdef uint32_t *refs
        cdef Gathered new
        cdef bint done = True
        if pages.shape[0] % 4 or contents.shape[0] != <Py_ssize_t>count * SIZE:
            raise ValueError(f"{pages.shape[0]} bytes of page numbers with {contents.shape[0]} of contents")
        if not count:
            return b"", []
        numbers = <const uint32_t *>&pages[0]
        page = &contents[0]
        for i in range(count):
            if numbers[i] >= MOST_PAGES or (i and numbers[i] <= numbers[i - 1]):
                raise ValueError("page numbers that do not rise")
        self._make_room(numbers[count - 1])
        cdef bytes result = PyBytes_FromStringAndSize(NULL, 4 * count)
        refs = <uint32_t *>PyBytes_AS_STRING(result)
        memset(&new, 0, sizeof(new))
        new.whole = <uint8_t *>malloc(<size_t>count * SIZE)
        new.deltas = <uint8_t *>malloc(<size_t>count * MOST_DELTA)
        new.offsets = <uint32_t *>malloc(4 * <size_t>(count + 1))
        try:
            if new.whole == NULL or new.deltas == NULL or new.offsets == NULL:
                raise MemoryError
            with nogil:
                for i in range(count):
                    done = done and self._name(numbers[i], page + <size_t>i * SIZE, &refs[i], &new)
            if not done:
                raise MemoryError
            new.offsets[new.delta_count] = new.delta_size
            packs = []
            for at in range(0, new.whole_count, SLOTS):
                size = min(<uint32_t>SLOTS, new.whole_count - at)
                packs.append((self.next_whole, size, PyBytes_FromStringAndSize(
                    <char *>new.whole + <size_t>at * SIZE, <Py_ssize_t>size * SIZE)))
                self.next_whole += 1
            for at in range(0, new.delta_count, SLOTS):
                size = min(<uint32_t>SLOTS, new.delta_count - at)
                packs.append((DELTA // SLOTS + self.next_delta, size, PyBytes_FromStringAndSize(
                    <char *>new.deltas + new.offsets[at], new.offsets[at + size] - new.offsets[at])))
                self.next_delta += 1
            return result, packs
        finally:
            free(new.whole)
            free(new.deltas)
            free(new.offsets)

    cdef bint _name(self, uint32_t number, const uint8_t *page, uint32_t *ref, Gathered *to) noexcept nogil:
        """Find what to call a page's contents, gathering them if they are new; false: no memory."""
        cdef Known *known = &self.known[number]
        cdef const uint64_t *words = <const uint64_t *>page
        cdef uint64_t bits[8]
        cdef uint64_t some
        cdef uint8_t *delta = to.deltas + to.delta_size
        cdef uint8_t *end
        cdef uint32_t size
        cdef uint32_t *place
        cdef Known *other
        cdef int i, differ = WORDS

        if _is_zero(words):
            free(known.base)
            free(known.delta)
            known.base = known.delta = NULL
            ref[0] = ZEROS
            return True
        if known.base != NULL:
            differ = _differing(words, <const uint64_t *>known.base, bits)
        if not differ:
            free(known.delta)
            known.delta = NULL
            ref[0] = known.base_ref
            return True
        if differ > MOST_WORDS:
            if known.base == NULL:
                known.base = <uint8_t *>malloc(SIZE)
            if known.base == NULL:
                return False
            free(known.delta)
            known.delta = NULL
            memcpy(known.base, page, SIZE)
            place = &self.like[_hash(words) >> (64 - PLACES)]
            other = &self.known[place[0] - 1] if place[0] else NULL
            place[0] = number + 1
            if other != NULL and other != known and other.base != NULL and not memcmp(other.base, page, SIZE):
                known.base_ref = ref[0] = other.base_ref
                return True
            memcpy(to.whole + <size_t>to.whole_count * SIZE, page, SIZE)
            known.base_ref = ref[0] = self.next_whole * SLOTS + to.whole_count
            to.whole_count += 1
            return True
        memcpy(delta, &known.base_ref, 4)
        memcpy(delta + 4, bits, MAP)
        end = delta + HEAD
        for i in range(8):
            some = bits[i]
            while some:
                memcpy(end, &words[64 * i + __builtin_ctzll(some)], 8)
                end += 8
                some &= some - 1
        size = end - delta
        if known.delta != NULL and known.delta_size == size and not memcmp(known.delta, delta, size):
            ref[0] = known.delta_ref
            return True
        free(known.delta)
        known.delta = <uint8_t *>malloc(size)
        if known.delta == NULL:
            return False
        memcpy(known.delta, delta, size)
        known.delta_size = size
        known.delta_ref = ref[0] = DELTA | (self.next_delta * SLOTS + to.delta_count)
        to.offsets[to.delta_count] = to.delta_size
        to.delta_count += 1
        to.delta_size += size
        return True


cdef class DeltaPack:
    """Deltas of a pack: see `tt.log.checkpoints`."""

    cdef const uint8_t[::1] _raw
    cdef uint32_t[SLOTS + 1] _offsets
    cdef readonly int count

    def __init__(self, const uint8_t[::1] raw, int count):
        cdef Py_ssize_t at = 0
        cdef uint64_t bits[8]
        cdef int i, k, words
        if not 0 < count <= SLOTS:
            raise ValueError(f"a pack of {count} deltas")
        for i in range(count):
            if at + HEAD > raw.shape[0]:
                raise ValueError("a delta is cut off")
            memcpy(bits, &raw[at + 4], MAP)
            words = 0
            for k in range(8):
                words += __builtin_popcountll(bits[k])
            self._offsets[i] = at
            at += HEAD + 8 * words
        if at != raw.shape[0]:
            raise ValueError("its deltas do not fill it")
        self._offsets[count] = at
        self._raw = raw
        self.count = count

    def base(self, int slot):
        cdef uint32_t ref
        if not 0 <= slot < self.count:
            raise IndexError(f"no delta {slot}")
        memcpy(&ref, &self._raw[self._offsets[slot]], 4)
        return ref

    @property
    def size(self):
        return self._raw.shape[0]

    @property
    def bases(self):
        return {self.base(slot) for slot in range(self.count)}

    def page(self, int slot, const uint8_t[::1] base):
        cdef uint64_t bits[8]
        cdef uint64_t some
        cdef const uint8_t *from_
        cdef uint64_t *to
        cdef int i
        if not 0 <= slot < self.count or base.shape[0] != SIZE:
            raise IndexError(f"no delta {slot} of {base.shape[0]} bytes")
        cdef bytes page = PyBytes_FromStringAndSize(<const char *>&base[0], SIZE)
        to = <uint64_t *>PyBytes_AS_STRING(page)
        from_ = &self._raw[self._offsets[slot]] + 4
        memcpy(bits, from_, MAP)
        from_ += MAP
        for i in range(8):
            some = bits[i]
            while some:
                memcpy(<uint8_t *>to + 8 * (64 * i + __builtin_ctzll(some)), from_, 8)
                from_ += 8
                some &= some - 1
        return page


cdef struct Changes:
    uint32_t count, room
    uint32_t *at  # rising: which maps have the page


cdef class ChangeIndex:
    """Which of some bitmaps, one after the other in time, have a page."""

    cdef list _maps
    cdef Changes *_pages
    cdef uint32_t _count

    def __cinit__(self):
        self._pages = NULL
        self._count = 0

    def __init__(self, maps, uint32_t pages):
        cdef uint32_t at, number
        cdef Py_ssize_t i, size
        cdef const uint8_t *map_
        cdef uint64_t some
        cdef Changes *page
        if pages > MOST_PAGES:
            raise ValueError(f"{pages} pages")
        self._maps = list(maps)
        self._pages = <Changes *>calloc(pages or 1, sizeof(Changes))
        if self._pages == NULL:
            raise MemoryError
        self._count = pages
        for at in range(len(self._maps)):
            map_ = <const uint8_t *>PyBytes_AS_STRING(self._maps[at])
            size = len(self._maps[at])
            for i in range(0, size, 8):
                some = 0
                memcpy(&some, map_ + i, min(<Py_ssize_t>8, size - i))
                while some:
                    number = 8 * i + __builtin_ctzll(some)
                    some &= some - 1
                    if number >= pages:
                        continue
                    page = &self._pages[number]
                    if page.count == page.room:
                        page.room = max(<uint32_t>4, 2 * page.room)
                        more = <uint32_t *>realloc(page.at, 4 * page.room)
                        if more == NULL:
                            raise MemoryError
                        page.at = more
                    page.at[page.count] = at
                    page.count += 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._count):
            free(self._pages[i].at)
        free(self._pages)

    def last(self, uint32_t number, int upto):
        cdef int low = 0, high, middle
        if number >= self._count:
            return -1
        high = self._pages[number].count
        while low < high:
            middle = (low + high) // 2
            if <int>self._pages[number].at[middle] <= upto:
                low = middle + 1
            else:
                high = middle
        return <int>self._pages[number].at[low - 1] if low else -1

    def rank(self, int at, uint32_t number):
        return rank(self._maps[at], number)


def rank(bytes bitmap, uint32_t number):
    """Return how many bits below `number` are set."""
    cdef const uint8_t *map_ = <const uint8_t *>PyBytes_AS_STRING(bitmap)
    cdef Py_ssize_t size = len(bitmap), whole = min(<Py_ssize_t>(number // 64) * 8, size // 8 * 8), i
    cdef uint64_t some
    cdef uint32_t count = 0, left
    for i in range(0, whole, 8):
        memcpy(&some, map_ + i, 8)
        count += __builtin_popcountll(some)
    some = 0
    memcpy(&some, map_ + whole, min(<Py_ssize_t>8, size - whole))
    left = number - 8 * <uint32_t>whole
    if left < 64:
        some &= (<uint64_t>1 << left) - 1
    return count + __builtin_popcountll(some)
