/* Frames of all kinds, whole and spoilt, for the kit's stack under sanitizers: fuzz SEED COUNT. */
#include <stdio.h>
#include <stdlib.h>
#undef NULL
#define main guest_main
#include "net_inside.h"
#undef main

void host_setup(const u8 *mac, u32 own, u32 mask, u32 gateway, void (*output)(const u8 *, u64));
void host_time(u64 ns);

static u64 chance_state;
static u8 last[32][ETHERNET + MTU];
static u64 last_size[32], lasts;

static u32 chance(u32 n)
{
    chance_state ^= chance_state << 13, chance_state ^= chance_state >> 7, chance_state ^= chance_state << 17;
    return n ? (u32)(chance_state >> 20) % n : 0;
}

static void keep(const u8 *frame, u64 size)
{
    if (size < ETHERNET || size > sizeof last[0])
        abort();
    memcpy(last[lasts % 32], frame, size);
    last_size[lasts++ % 32] = size;
}

/* Turn a frame of the stack round: a good answer to it, or nearly. */
static u64 answer(u8 *f, const u8 *sent, u64 size)
{
    memcpy(f, sent, size);
    memcpy(f, sent + 6, 6), memcpy(f + 6, sent, 6);
    if (get16(f + 12) == 0x0806) {
        memcpy(f + 6, "\2\0\0\0\0\7", 6), memcpy(f + 22, f + 6, 6);
        put16(f + 20, 2), put32(f + 28, get32(sent + 38)), put32(f + 38, get32(sent + 28));
        return size;
    }
    if (size < IP_ROOM + 20)
        return size;
    put32(f + 26, get32(sent + 30)), put32(f + 30, get32(sent + 26));
    u8 *t = f + IP_ROOM;
    put16(t, get16(sent + IP_ROOM + 2)), put16(t + 2, get16(sent + IP_ROOM));
    if (f[23] == 6) {
        u32 flags = sent[IP_ROOM + 13];
        put32(t + 8, get32(sent + IP_ROOM + 4) + (u32)(size - IP_ROOM - (t[12] >> 4) * 4u) + !!(flags & 3));
        put32(t + 4, flags & 16 ? get32(sent + IP_ROOM + 8) : chance(1000));
        static const u8 kinds[] = {16, 18, 24, 17, 20, 4, 2, 16, 24};
        t[13] = kinds[chance(sizeof kinds)];
    }
    return size;
}

static void mend(u8 *f, u64 size)
{
    if (size < IP_ROOM + 20 || get16(f + 12) != 0x0800)
        return;
    u32 total = get16(f + 16);
    put16(f + 24, 0), put16(f + 24, checksum(sum_of(f + 14, 20, 0)));
    if (f[23] == 6 && total >= 40 && total + 14u <= size) {
        put16(f + 50, 0);
        put16(f + 50, checksum(sum_of(f + 34, total - 20, pseudo_sum(get32(f + 26), get32(f + 30), 6, total - 20))));
    } else if (f[23] == 17) {
        put16(f + 40, 0);
    }
}

int main(int argc, char **argv)
{
    chance_state = argc > 1 ? strtoul(argv[1], 0, 10) * 0x9e3779b97f4a7c15ul + 1 : 1;
    long count = argc > 2 ? atol(argv[2]) : 1000;
    u64 now = SECOND;
    host_time(now);
    host_setup((const u8 *)"\2\0\0\0\0\1", ip4(10, 0, 0, 1), 0xffffff00u, ip4(10, 0, 0, 7), keep);
    int l = socket(STREAM), s = -1, c = -1, d = socket(DATAGRAM);
    bind(l, 80), listen(l), bind(d, 1000);
    u8 data[3000];
    for (long i = 0; i < count; i++) {
        u8 buffer[ETHERNET + MTU];
        u64 size = 0;
        if (lasts && chance(8)) {
            u64 k = (lasts - 1 - chance(lasts < 32 ? (u32)lasts : 4)) % 32;
            size = answer(buffer, last[k], last_size[k]);
        } else { /* a new connection, or a datagram */
            size = 14 + 20 + 20 + chance(60);
            memset(buffer, 0, sizeof buffer);
            memcpy(buffer, "\2\0\0\0\0\1\2\0\0\0\0\7\x08\0", 14);
            buffer[14] = 0x45, put16(buffer + 16, (u32)size - 14), buffer[22] = 64, buffer[23] = chance(3) ? 6 : 17;
            put32(buffer + 26, ip4(10, 0, 0, 7)), put32(buffer + 30, ip4(10, 0, 0, 1));
            put16(buffer + 34, 5000 + chance(3)), put16(buffer + 36, buffer[23] == 6 ? 80 : 1000);
            put16(buffer + 38, (u32)size - 34);
            if (buffer[23] == 6)
                put32(buffer + 38, chance(100000)), buffer[46] = 0x50 + 16 * (u8)chance(3), buffer[47] = 2, put16(buffer + 48, 3000);
        }
        for (u32 n = chance(4) ? 0 : chance(5); n; n--)
            buffer[chance((u32)size)] ^= (u8)(1 << chance(8));
        if (chance(4))
            mend(buffer, size);
        if (!chance(10))
            size = chance((u32)size + 1);
        u8 *exact = malloc(size ? size : 1);
        memcpy(exact, buffer, size);
        net_input(exact, size);
        free(exact);
        now += chance(20) ? chance(1000000) : chance(2000000000);
        host_time(now);
        net_tick();
        if (!chance(5)) {
            int n = accept(l);
            if (n >= 0) {
                if (s >= 0)
                    close(s);
                s = n;
            }
            if (s >= 0)
                chance(2) ? (void)send(s, data, chance(sizeof data)) : (void)recv(s, data, chance(sizeof data));
            if (!chance(30) && s >= 0)
                shutdown(s);
            if (!chance(30)) {
                if (c >= 0)
                    close(c);
                c = socket(STREAM);
                wait_at_most(c, 0);
                connect(c, ip4(10, 0, 0, 7), 7);
            }
            if (c >= 0)
                chance(2) ? (void)send(c, data, chance(sizeof data)) : (void)recv(c, data, chance(sizeof data));
            recv(d, data, sizeof data);
            sendto(d, data, chance(2000), ip4(10, 0, 0, 7), 9);
        }
        if (!chance(20000))
            dhcp_start();
    }
    printf("%lu frames sent\n", lasts);
    return 0;
}
