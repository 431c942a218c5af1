/* A small network stack for Denali guests: ARP, IP, ICMP echo, UDP, DHCP and TCP, with sockets.
 *
 * Link a guest with network.c and all of net_*.c.  The stack takes the network and
 * the timer event for itself; main uses sockets, and idles in them.  Addresses and
 * ports are numbers: ip4(10, 0, 2, 15), 80.  There is one card, number 0.
 *
 * Not here: IP fragments, IPv6, selective acknowledgements, windows of its own above 16 KB.
 */
#ifndef NET_H
#define NET_H

#include "denali.h"

#define ip4(a, b, c, d) ((u32)(a) << 24 | (u32)(b) << 16 | (u32)(c) << 8 | (u32)(d))
#define IP_FORMAT "%u.%u.%u.%u" /* print(IP_FORMAT, IP_PARTS(ip)) */
#define IP_PARTS(ip) (ip) >> 24, (ip) >> 16 & 255, (ip) >> 8 & 255, (ip) & 255

enum { STREAM = 1, DATAGRAM = 2 };              /* socket(): TCP, UDP */
enum { CAN_RECEIVE = 1, CAN_SEND = 2, IS_OVER = 4 }; /* ready() */

/* What functions return instead of a count or a socket. */
enum {
    NET_AGAIN = -1,   /* not without waiting (a socket that does not wait, or a time-out) */
    NET_RESET = -2,   /* the other side ended the connection, or does not answer */
    NET_REFUSED = -3, /* nobody listens there */
    NET_WRONG = -4,   /* no such socket, or not one for this; a port in use; no socket is free */
};

/* Start the card with a fixed address; `gateway` 0: none.  False without a card. */
bool net_start(u32 own, u32 mask, u32 gateway);
/* Start the card and ask for an address until `deadline_ns`; true when there is one. */
bool net_start_dhcp(u64 deadline_ns);
u32 net_address(void), net_gateway(void), net_dns(void); /* 0: none */

/* Sockets.  All wait for what they do, unless `wait_at_most(s, 0)`; a time-out is NET_AGAIN. */
int socket(int kind);
int bind(int s, u32 port); /* 0: any free one */
int listen(int s);
int accept(int s);         /* a new socket for the next connection */
int connect(int s, u32 ip, u32 port);
long send(int s, const void *data, u64 size);  /* TCP: how much of it; UDP: to whom it is connected */
long recv(int s, void *data, u64 size);        /* TCP: 0 at the end of what the other side sends */
long sendto(int s, const void *data, u64 size, u32 ip, u32 port);
long recvfrom(int s, void *data, u64 size, u32 *ip, u32 *port);
int shutdown(int s);       /* TCP: nothing more will be sent; receiving goes on */
int close(int s);          /* what was sent before still goes out */
void wait_at_most(int s, u64 ns);
int ready(int s);          /* what can be done without waiting */
void peer_of(int s, u32 *ip, u32 *port);

#endif
