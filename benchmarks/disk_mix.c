/* A guest's disk workload, as fio would mix one: sequential writes and reads of 64 KB, then random
   4 KB reads (30%) and writes (70%) with an fsync each 32, all bypassing the page cache (O_DIRECT). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 8 << 20, LARGE = 64 << 10, SMALL = 4 << 10, OPS = 3000 };

static uint32_t seed = 1;

static uint32_t chance(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static void fill(unsigned char *buffer, size_t size)
{
    for (size_t at = 0; at < size; at += 64) {   /* half random: compresses to about a half */
        uint32_t word = chance();
        memset(buffer + at, (int)(word & 15), 64);
        for (int i = 0; i < 8; i++, word = chance())
            memcpy(buffer + at + 4 * i, &word, 4);
    }
}

int main(int argc, char **argv)
{
    unsigned char *buffer;
    int file = open(argc > 1 ? argv[1] : "/root/mix.dat", O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (file < 0 || posix_memalign((void **)&buffer, 4096, LARGE))
        return 1;
    puts("MIX BEGIN");
    fflush(stdout);
    for (off_t at = 0; at < SIZE; at += LARGE) {
        fill(buffer, LARGE);
        if (pwrite(file, buffer, LARGE, at) != LARGE)
            return 1;
    }
    fsync(file);
    for (off_t at = 0; at < SIZE; at += LARGE)
        if (pread(file, buffer, LARGE, at) != LARGE)
            return 1;
    for (int op = 0; op < OPS; op++) {
        off_t at = (off_t)(chance() % (SIZE / SMALL)) * SMALL;
        if (chance() % 10 < 3) {
            if (pread(file, buffer, SMALL, at) != SMALL)
                return 1;
        } else {
            fill(buffer, SMALL);
            if (pwrite(file, buffer, SMALL, at) != SMALL)
                return 1;
        }
        if (op % 32 == 31)
            fsync(file);
    }
    puts("MIX END");
    return 0;
}
