/* The Denali demo: timer, disk, console, software TLB and events, about two guest seconds.
 *
 * Everything it prints follows from the machine's configuration, the disk's
 * size and what is typed; a replay must print the same.
 */
#include "denali.h"

#define MS 1000000ul
#define BEAT_NS (100 * MS)
#define LIFE_NS (2000 * MS)   /* how long the demo lasts ... */
#define LISTEN_NS (5000 * MS) /* ... or how long after the last typed line */

#define POOL 0x40000000ul   /* demand-loaded pages appear here ... */
#define POOL_RAM 0x200000ul /* ... and live here */
#define POOL_PAGES 1536ul   /* more than the TLB's 1,024 entries */
#define PRIMES_BELOW 1000000ul
#define BLOCKS 48ul /* at most 64 requests may be outstanding */

static u64 pool_pages;
static u64 checks_failed;

/* What handlers change: they run between any two instructions. */
static volatile u64 misses, divisions, bad_opcodes;
static volatile u64 next_beat, beats;
static volatile u64 blocks_written, blocks_read, blocks_failed;
static volatile u64 lines, life_ends;
static volatile bool quit;

static char typed[128];
static u64 typed_size;

static u8 block_buffers[BLOCKS][DENALI_PAGE] __attribute__((aligned(4096)));

/* ---- handlers -------------------------------------------------------------- */

static bool exception(struct saved_registers *registers)
{
    (void)registers;
    if (denali.exception.vector == 14) {
        u64 offset = (denali.exception.address & ~(DENALI_PAGE - 1)) - POOL;
        if (offset >= pool_pages * DENALI_PAGE)
            return false;
        misses++;
        return tlb_load(POOL + offset, POOL_RAM + offset, DENALI_READ | DENALI_WRITE) != DENALI_REFUSED;
    }
    if (denali.exception.vector == 0 && *(u8 *)denali.exception.rip == 0xf7) {
        divisions++;
        denali.exception.rip += 2; /* step over `div r32` */
        return true;
    }
    if (denali.exception.vector == 6 && *(u8 *)denali.exception.rip == 0x0f) {
        bad_opcodes++;
        denali.exception.rip += 2; /* step over `ud2` */
        return true;
    }
    return false;
}

static void beat(void)
{
    if (denali.time_ns < next_beat)
        return; /* the timer was set for something else: see provoke_batch */
    beats++;
    print("heartbeat %2lu at %lu ms\n", beats, denali.time_ns / MS);
    next_beat += BEAT_NS;
    denali.timer_ns = next_beat;
}

static void end_line(void)
{
    if (!typed_size)
        return;
    typed[typed_size] = 0;
    lines++;
    print("echo: %s\n", typed);
    quit |= typed_size == 4 && !memcmp(typed, "quit", 4);
    typed_size = 0;
    life_ends = denali.time_ns + LISTEN_NS;
}

static void input(void)
{
    u8 bytes[32]; /* the event stack is wired one to one, like the rest of the image */
    u64 size;
    while ((size = console_read(bytes, sizeof bytes)) != 0)
        for (u64 i = 0; i < size; i++)
            if (bytes[i] == '\n' || bytes[i] == '\r')
                end_line();
            else if (typed_size < sizeof typed - 1)
                typed[typed_size++] = (char)bytes[i];
}

static void written(void *block, bool good)
{
    (void)block;
    blocks_written++;
    blocks_failed += !good;
}

static void was_read(void *block, bool good)
{
    (void)block;
    blocks_read++;
    blocks_failed += !good;
}

static bool reached(void *counter_and_goal)
{
    volatile u64 **pair = counter_and_goal;
    return *pair[0] >= *pair[1];
}

static bool wait_for(volatile u64 *counter, u64 goal)
{
    volatile u64 *pair[2] = {counter, &goal};
    return wait_until(reached, pair, denali.time_ns + 500 * MS);
}

static void check(bool good, const char *what)
{
    if (good)
        return;
    checks_failed++;
    print("WRONG: %s\n", what);
}

/* ---- work ------------------------------------------------------------------ */

static void show_exceptions(void)
{
    __asm__ volatile("xor %%edx, %%edx; mov $1, %%eax; xor %%ecx, %%ecx; div %%ecx"
                     ::: "rax", "rcx", "rdx", "memory");
    __asm__ volatile("ud2" ::: "memory");
    check(divisions == 1 && bad_opcodes == 1, "exceptions");
    print("exceptions: division by zero and invalid opcode, both caught\n");
}

/* Count primes with a sieve of bytes in the pool: many pages, many TLB misses. */
static u64 sieve(u64 below)
{
    u8 *composite = (u8 *)POOL;
    u64 count = below > 2;
    memset(composite, 0, below / 2); /* one byte an odd number */
    for (u64 n = 3; n < below; n += 2) {
        if (composite[n / 2])
            continue;
        count++;
        for (u64 multiple = n * n; multiple < below; multiple += 2 * n)
            composite[multiple / 2] = 1;
    }
    return count;
}

/* Write to every page of the pool, read all back twice. */
static bool sweep(void)
{
    for (u64 page = 0; page < pool_pages; page++)
        *(volatile u64 *)(POOL + page * DENALI_PAGE + page % 512 * 8) = page * 0x9e3779b97f4a7c15ul;
    for (int round = 0; round < 2; round++)
        for (u64 page = 0; page < pool_pages; page++)
            if (*(volatile u64 *)(POOL + page * DENALI_PAGE + page % 512 * 8) != page * 0x9e3779b97f4a7c15ul)
                return false;
    return true;
}

static void fill(u8 *page, u64 seed)
{
    u64 x = seed * 2 + 1;
    for (u64 i = 0; i < DENALI_PAGE; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        *(u64 *)(page + i) = x;
    }
}

static u32 crc_of_blocks(u64 blocks)
{
    u32 crc = 0;
    for (u64 i = 0; i < blocks; i++)
        crc = crc32(crc, block_buffers[i], DENALI_PAGE);
    return crc;
}

/* All blocks at once, written and read back.  The writes complete while the CRC
 * is computed, so their events come in a few batches, at the ends of quanta; the
 * reads complete while the guest idles, and wake it one by one. */
static void disk_round(u64 blocks, u64 round)
{
    u64 before = blocks_written, started = denali.time_ns;
    for (u64 i = 0; i < blocks; i++) {
        fill(block_buffers[i], round << 32 | i);
        check(disk_start(true, 0, i, block_buffers[i], written, NULL), "a disk write was refused");
    }
    u32 crc = crc_of_blocks(blocks);
    check(wait_for(&blocks_written, before + blocks), "disk writes did not complete");
    for (u64 i = 0; i < blocks; i++)
        memset(block_buffers[i], 0, DENALI_PAGE);
    before = blocks_read;
    for (u64 i = 0; i < blocks; i++)
        check(disk_start(false, 0, i, block_buffers[i], was_read, NULL), "a disk read was refused");
    check(wait_for(&blocks_read, before + blocks), "disk reads did not complete");
    check(crc_of_blocks(blocks) == crc, "the disk gave back something else");
    print("disk: round %lu, %lu blocks written, read back and compared in %lu us, crc %08x\n", round, blocks,
          (denali.time_ns - started) / 1000, crc);
}

/* Let a disk completion and the timer fall into one quantum: one batch with both bits. */
static void provoke_batch(void)
{
    u64 goal = blocks_written + 1, full = denali_full_batches, both = DENALI_EVENT_TIMER | DENALI_EVENT_DISK;
    events_off();
    denali.timer_ns = now_ns() + MS / 10;
    fill(block_buffers[0], goal);
    check(disk_start(true, 0, 0, block_buffers[0], written, NULL), "a disk write was refused");
    while ((denali.pending & both) != both)
        ; /* the register page is refreshed at the end of each quantum */
    events_on();
    while (blocks_written < goal)
        idle_with_timeout(BEAT_NS);
    denali.timer_ns = next_beat; /* the timer event went into the batch */
    check(denali_full_batches > full, "no batch with two events");
    print("events: timer and disk arrived in one batch\n");
}

int main(void)
{
    if (denali.magic != DENALI_MAGIC)
        panic("this is no Denali machine");
    print("Denali demo: %lu MiB of memory, %lu MHz, quantum of %lu us\n", denali.mem_bytes >> 20,
          denali.cpu_hz / 1000000, denali.quantum_ticks * 1000000 / denali.cpu_hz);

    pool_pages = denali.mem_bytes > POOL_RAM ? (denali.mem_bytes - POOL_RAM) / DENALI_PAGE : 0;
    if (pool_pages > POOL_PAGES)
        pool_pages = POOL_PAGES;
    if (pool_pages * DENALI_PAGE < PRIMES_BELOW / 2)
        panic("too little memory: the demo wants 3 MiB at least, 8 MiB to fill the TLB");
    on_exception(exception);
    tlb_start();
    print("tlb: %lu pages wired, %lu on demand\n", 1 + (u64)(image_end - image_start) / DENALI_PAGE,
          pool_pages);
    show_exceptions();

    life_ends = now_ns() + LIFE_NS;
    on_input(input);
    on_timer(beat);
    next_beat = BEAT_NS;
    denali.timer_ns = next_beat;
    input(); /* what was typed before the guest listened */

    u64 primes = sieve(PRIMES_BELOW);
    check(primes == 78498, "the number of primes");
    print("primes: %lu below %lu\n", primes, PRIMES_BELOW);

    u64 info = disk_info(0);
    u64 blocks = info == DENALI_REFUSED || info & DENALI_READ_ONLY ? 0 : info < BLOCKS ? info : BLOCKS;
    if (!blocks)
        print("disk: none that can be written\n");
    for (u64 round = 1; blocks && round <= 3; round++) {
        sleep_until(round * 400 * MS);
        disk_round(blocks, round);
        provoke_batch();
    }
    sleep_until(1500 * MS);
    check(sweep(), "the pool");
    print("memory: %lu pages swept, %lu TLB misses so far\n", pool_pages, misses);
    while (!quit && denali.time_ns < life_ends)
        idle_with_timeout(life_ends - denali.time_ns);

    events_off();
    check(!blocks_failed, "disk requests failed");
    print("done: %lu heartbeats, %lu primes, %lu disk requests, %lu TLB misses, %lu batches (%lu of several "
          "events), %lu lines typed, %lu checks failed\n",
          beats, primes, blocks_written + blocks_read, misses, denali_batches, denali_full_batches, lines,
          checks_failed);
    return checks_failed != 0;
}
