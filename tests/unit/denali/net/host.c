/* The kit's network stack on this computer, for tests: time and frames are the test's. */
#include "net_inside.h"

static u64 now;
static void (*out)(const u8 *frame, u64 size);

void host_setup(const u8 *mac, u32 own, u32 mask, u32 gateway, void (*output)(const u8 *, u64))
{
    out = output;
    memset(udps, 0, sizeof udps);
    memset(tcps, 0, sizeof tcps);
    net_setup(mac, own, mask, gateway);
}

void host_time(u64 ns) { now = ns; }
u64 net_clock(void) { return now; }
u64 denali_seed(void) { return 4711; }
u64 net_lock(void) { return 0; }
void net_unlock(u64 before) { (void)before; }
u64 host_dropped(void) { return net.dropped; }

bool net_output(const u8 *frame, u64 size)
{
    u8 *exact = __builtin_malloc(size); /* so that a sanitizer sees a byte too many */
    memcpy(exact, frame, size);
    out(exact, size);
    __builtin_free(exact);
    return true;
}

bool net_wait(bool (*done)(void *), void *argument, u64 deadline_ns)
{
    (void)deadline_ns;
    return done(argument); /* nothing happens while this waits */
}

u32 crc32(u32 crc, const void *data, u64 size)
{
    const u8 *p = data;
    while (size--)
        crc = (crc ^ *p++) * 16777619u;
    return crc;
}

int host_used(void) /* sockets that are not free */
{
    int n = 0;
    for (u32 i = 0; i < TCP_SOCKETS; i++)
        n += tcps[i].used;
    return n;
}
