/* What the parts of the network stack know of each other.  Addresses and ports are in host order. */
#ifndef NET_INSIDE_H
#define NET_INSIDE_H

#include "net.h"

typedef unsigned short u16;

#define ETHERNET 14u
#define MTU 1500u
#define SECOND 1000000000ul

/* ---- the host of the stack: net_denali.c, or a test ----------------------- */

u64 net_clock(void);                             /* ns */
u64 denali_seed(void);                           /* a number that others do not know */
bool net_output(const u8 *frame, u64 size);      /* send a frame */
u64 net_lock(void);                              /* no frame and no timer comes from here ... */
void net_unlock(u64 before);                     /* ... to here */
bool net_wait(bool (*done)(void *), void *argument, u64 deadline_ns);

/* ---- the stack to its host ------------------------------------------------- */

void net_setup(const u8 mac[6], u32 own, u32 mask, u32 gateway);
void net_input(const u8 *frame, u64 size);
void net_tick(void);      /* do what is due */
u64 net_deadline(void);   /* when net_tick has something to do next; DENALI_FOREVER: never */
void dhcp_start(void), dhcp_stop(void);

/* ---- between its parts ----------------------------------------------------- */

struct interface {
    u8 mac[6];
    u32 own, mask, gateway, dns;
    u64 dropped; /* frames that made no sense */
};
extern struct interface net;

static inline u32 get16(const u8 *p) { return (u32)p[0] << 8 | p[1]; }
static inline u32 get32(const u8 *p) { return get16(p) << 16 | get16(p + 2); }
static inline void put16(u8 *p, u32 v) { p[0] = (u8)(v >> 8), p[1] = (u8)v; }
static inline void put32(u8 *p, u32 v) { put16(p, v >> 16), put16(p + 2, v); }
static inline u64 least(u64 a, u64 b) { return a < b ? a : b; }

u32 sum_of(const u8 *data, u64 size, u32 sum); /* RFC 1071: add up 16-bit words */
u32 checksum(u32 sum);
u32 pseudo_sum(u32 from, u32 to, u32 protocol, u64 size);

/* A packet is built in a buffer with room for the headers before it. */
#define IP_ROOM (ETHERNET + 20)
void ip_output(u8 *packet, u64 size, u32 from, u32 to, u32 protocol); /* `packet` has IP_ROOM before it */
void link_output(u8 *frame, u64 size, u32 next_hop); /* `frame` has room for the Ethernet header */
void arp_tick(u64 now), dhcp_tick(u64 now), tcp_tick(u64 now);
u64 arp_deadline(void), dhcp_deadline(void), tcp_deadline(void);
void ip_input(const u8 *frame, u64 size);
void udp_input(u32 from, u32 to, const u8 *data, u64 size);
void tcp_input(u32 from, u32 to, const u8 *data, u64 size);
void udp_output(const void *data, u64 size, u32 from, u32 from_port, u32 to, u32 to_port);
bool dhcp_input(const u8 *data, u64 size);

/* ---- sockets of either kind -------------------------------------------------- */

#define UDP_SOCKETS 4
#define UDP_QUEUE 8
#define UDP_MOST (MTU - 28)
#define TCP_SOCKETS 32
#define BUFFER 16384u /* of a connection, each way; a power of two */
#define RANGES 8      /* pieces that came too early */

struct datagram {
    u32 ip, port;
    u16 size;
    u8 data[UDP_MOST];
};

struct udp {
    bool used;
    u32 port, peer, peer_port;
    u64 patience;
    u32 first, count;
    struct datagram queue[UDP_QUEUE];
};
extern struct udp udps[UDP_SOCKETS];

enum tcp_state {
    CLOSED, LISTEN, SYN_SENT, SYN_RECEIVED, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, CLOSING, LAST_ACK,
    TIME_WAIT,
};

struct tcp {
    bool used, ours;  /* `ours`: the guest has closed it, the stack sees to the rest */
    enum tcp_state state;
    int error;        /* NET_RESET, NET_REFUSED, or 0 */
    int listener;     /* which socket it waits in, or -1 */
    u64 patience;
    u32 port, peer, peer_port;
    /* Sending, RFC 9293's names.  out[] holds the bytes from una on (behind the SYN). */
    u32 iss, una, nxt, most, wnd, wl1, wl2, mss;
    u32 shift;        /* of the windows that the other side tells of */
    bool scales;      /* a SYN may offer to shift windows */
    u32 size;         /* bytes in out[] */
    u32 head;         /* where una is in out[] */
    bool fin, fin_sent;
    u32 cwnd, ssthresh, recover, repeated;
    bool recovering;
    u64 rto, srtt, rttvar, timed_at, resend_at, wait_over, corrected_at; /* ns; resend_at 0: the timer is off */
    u32 timed;        /* the sequence number whose acknowledgement is timed */
    bool timing, probing;
    u32 tries;
    /* Receiving.  in[] is a ring of the bytes from `read` on; up to rcv they are in order. */
    u32 rcv, read, told; /* `told`: the right edge of the window that was advertised last */
    bool fin_known, fin_received;
    u32 fin_at;
    u32 ranges;
    struct { u32 from, to; } range[RANGES];
    u8 out[BUFFER], in[BUFFER];
};
extern struct tcp tcps[TCP_SOCKETS];

struct tcp *tcp_open(void);
void tcp_connect(struct tcp *t, u32 ip, u32 port);
u64 tcp_put(struct tcp *t, const u8 *data, u64 size);
u64 tcp_get(struct tcp *t, u8 *data, u64 size);
void tcp_finish(struct tcp *t);
void tcp_abort(struct tcp *t);
u32 free_port(int kind);
bool port_in_use(int kind, u32 port);

#endif
