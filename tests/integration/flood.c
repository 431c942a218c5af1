/* A guest that means no good: frames of every length, then a flood, by a raw socket.  flood CARD SECONDS */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static unsigned char frame[1 << 16];

int main(int argc, char **argv)
{
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_halen = 6};
    to.sll_ifindex = if_nametoindex(argv[1]);
    memset(to.sll_addr, 0xff, 6);
    memset(frame, 0xff, 12);
    frame[12] = 8; /* IPv4, and nothing in it is right */
    long sent = 0, refused = 0;
    for (int size = 0; size <= 65535; size += size < 100 ? 1 : 1000) {
        for (int i = 14; i < size; i++)
            frame[i] = rand();
        if (sendto(fd, frame, size, 0, (void *)&to, sizeof to) == size)
            sent++;
        else
            refused++;
    }
    printf("sizes: %ld sent, %ld refused\n", sent, refused);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    time_t end = now.tv_sec + atoi(argv[2]);
    long flooded = 0;
    while (now.tv_sec < end) {
        for (int i = 0; i < 64; i++) {
            int size = 60 + rand() % 1400;
            frame[12] = rand();
            frame[14 + rand() % (size - 14)] = rand();
            flooded += sendto(fd, frame, size, 0, (void *)&to, sizeof to) == size;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
    printf("flooded: %ld\n", flooded);
    return 0;
}
