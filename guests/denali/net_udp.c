/* UDP (RFC 768), and a DHCP client on it (RFC 2131, options of RFC 2132). */
#include "net_inside.h"

struct udp udps[UDP_SOCKETS];

void udp_output(const void *data, u64 size, u32 from, u32 from_port, u32 to, u32 to_port)
{
    u8 buffer[IP_ROOM + 8 + UDP_MOST];
    u8 *out = buffer + IP_ROOM;
    put16(out, from_port), put16(out + 2, to_port), put16(out + 4, 8 + (u32)size), put16(out + 6, 0);
    memcpy(out + 8, data, size);
    u32 sum = checksum(sum_of(out, 8 + size, pseudo_sum(from, to, 17, 8 + size)));
    put16(out + 6, sum ? sum : 0xffff); /* 0 would mean: none */
    ip_output(out, 8 + size, from, to, 17);
}

/* The length of a sound datagram, 0 for another one. */
static u64 sound(u32 from, u32 to, const u8 *data, u64 size)
{
    u64 length = size < 8 ? 0 : get16(data + 4);
    if (length < 8 || length > size)
        return 0;
    if (get16(data + 6) && checksum(sum_of(data, length, pseudo_sum(from, to, 17, length))))
        return 0;
    return length;
}

void udp_input(u32 from, u32 to, const u8 *data, u64 size)
{
    u64 length = sound(from, to, data, size);
    if (!length || length - 8 > UDP_MOST) {
        net.dropped++;
        return;
    }
    for (struct udp *u = udps; u < udps + UDP_SOCKETS; u++) {
        if (!u->used || u->port != get16(data + 2) || u->count == UDP_QUEUE)
            continue;
        if (u->peer && (u->peer != from || u->peer_port != get16(data)))
            continue;
        struct datagram *d = &u->queue[(u->first + u->count++) % UDP_QUEUE];
        d->ip = from, d->port = get16(data), d->size = (u16)(length - 8);
        memcpy(d->data, data + 8, length - 8);
        return;
    }
}

/* ---- DHCP ------------------------------------------------------------------- */

#define FIXED 240 /* bytes before the options: those of BOOTP, and the magic number */
#define MAGIC 0x63825363u

enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6 };

static struct {
    enum { OFF, ASKING, CHOSEN, BOUND } state;
    u32 transaction, offered, server, tries;
    u64 next, renew, expires;
} dhcp;

static void dhcp_send(u32 kind)
{
    u8 m[FIXED + 32];
    memset(m, 0, sizeof m);
    m[0] = 1, m[1] = 1, m[2] = 6;
    put32(m + 4, dhcp.transaction);
    bool renews = dhcp.state == BOUND;
    if (renews)
        put32(m + 12, net.own);
    else
        put16(m + 10, 0x8000); /* answer by broadcast: there is no address yet */
    memcpy(m + 28, net.mac, 6);
    put32(m + 236, MAGIC);
    u8 *o = m + FIXED;
    *o++ = 53, *o++ = 1, *o++ = (u8)kind;
    if (kind == REQUEST && !renews) {
        *o++ = 50, *o++ = 4, put32(o, dhcp.offered), o += 4;
        *o++ = 54, *o++ = 4, put32(o, dhcp.server), o += 4;
    }
    *o++ = 55, *o++ = 3, *o++ = 1, *o++ = 3, *o++ = 6; /* mask, router, DNS, please */
    *o = 255;
    udp_output(m, sizeof m, renews ? net.own : 0, 68, 0xffffffffu, 67);
    u64 wait = SECOND << (dhcp.tries < 4 ? dhcp.tries : 4);
    dhcp.tries++;
    dhcp.next = net_clock() + wait;
}

void dhcp_stop(void) { dhcp.state = OFF; }

void dhcp_start(void)
{
    memset(&dhcp, 0, sizeof dhcp);
    dhcp.transaction = get32(net.mac + 2) ^ (u32)net_clock() ^ 0x5a5a5a5a;
    dhcp.state = ASKING;
    dhcp_send(DISCOVER);
}

bool dhcp_input(const u8 *data, u64 size)
{
    u64 length = dhcp.state == OFF ? 0 : size < 8 ? 0 : get16(data + 4);
    if (length < 8 + FIXED || length > size)
        return false;
    const u8 *m = data + 8, *end = data + length;
    if (m[0] != 2 || get32(m + 4) != dhcp.transaction || memcmp(m + 28, net.mac, 6) || get32(m + 236) != MAGIC)
        return false;
    u32 kind = 0, mask = 0, router = 0, dns = 0, server = 0, lease = 0;
    for (const u8 *o = m + FIXED; o < end && *o != 255;) {
        if (*o == 0) {
            o++;
            continue;
        }
        if (end - o < 2 || end - o - 2 < o[1])
            return false;
        u32 value = o[1] >= 4 ? get32(o + 2) : 0;
        switch (*o) {
        case 53: kind = o[1] ? o[2] : 0; break;
        case 1: mask = value; break;
        case 3: router = value; break;
        case 6: dns = value; break;
        case 54: server = value; break;
        case 51: lease = value; break;
        }
        o += 2 + o[1];
    }
    u32 offered = get32(m + 16);
    if (kind == OFFER && dhcp.state == ASKING && offered) {
        dhcp.offered = offered, dhcp.server = server;
        dhcp.state = CHOSEN, dhcp.tries = 0;
        dhcp_send(REQUEST);
    } else if (kind == ACK && dhcp.state >= CHOSEN && offered) {
        u64 seconds = lease ? lease : 3600;
        net.own = offered, net.mask = mask ? mask : 0xffffff00u, net.gateway = router, net.dns = dns;
        dhcp.state = BOUND, dhcp.tries = 0;
        dhcp.renew = dhcp.next = net_clock() + seconds * SECOND / 2;
        dhcp.expires = net_clock() + seconds * SECOND;
    } else if (kind == NAK && dhcp.state >= CHOSEN) {
        net.own = net.mask = net.gateway = 0;
        dhcp_start();
    }
    return true;
}

void dhcp_tick(u64 now)
{
    if (dhcp.state == OFF || now < dhcp.next)
        return;
    if (dhcp.state == BOUND && now >= dhcp.expires) {
        net.own = net.mask = net.gateway = 0;
        dhcp_start();
    } else if (dhcp.state == CHOSEN && dhcp.tries > 4) {
        dhcp_start(); /* the server has forgotten its offer */
    } else {
        dhcp_send(dhcp.state == ASKING ? DISCOVER : REQUEST);
    }
}

u64 dhcp_deadline(void)
{
    return dhcp.state == OFF ? DENALI_FOREVER : dhcp.next;
}
