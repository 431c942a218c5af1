/* Ethernet and ARP (RFC 826): who has which address on the cable. */
#include "net_inside.h"

#define ARP_SIZE (ETHERNET + 28)
#define NEIGHBOURS 16
#define TRIES 4
#define STALE (300 * SECOND)

struct interface net;

static struct neighbour {
    u32 ip;
    bool known;
    u8 mac[6];
    u64 asked, until; /* ns: known until, or ask again at */
    u32 tries;
    u16 waiting; /* bytes of the one frame that waits for the answer */
    u8 frame[ETHERNET + MTU];
} neighbours[NEIGHBOURS];

static const u8 everybody[6] = {255, 255, 255, 255, 255, 255};

void net_setup(const u8 mac[6], u32 own, u32 mask, u32 gateway)
{
    memset(&net, 0, sizeof net);
    memset(neighbours, 0, sizeof neighbours);
    dhcp_stop();
    memcpy(net.mac, mac, 6);
    net.own = own, net.mask = mask, net.gateway = gateway;
}

static void arp_send(u32 operation, u32 target, const u8 *target_mac)
{
    u8 f[ARP_SIZE];
    memcpy(f, target_mac, 6);
    memcpy(f + 6, net.mac, 6);
    put16(f + 12, 0x0806);
    put16(f + 14, 1), put16(f + 16, 0x0800), f[18] = 6, f[19] = 4, put16(f + 20, operation);
    memcpy(f + 22, net.mac, 6);
    put32(f + 28, net.own);
    memcpy(f + 32, operation == 1 ? (const u8 *)"\0\0\0\0\0\0" : target_mac, 6);
    put32(f + 38, target);
    net_output(f, sizeof f);
}

static struct neighbour *find(u32 ip)
{
    for (u32 i = 0; i < NEIGHBOURS; i++)
        if (neighbours[i].ip == ip)
            return &neighbours[i];
    return NULL;
}

/* The entry for a new neighbour: a free one, or the one that was asked for longest ago. */
static struct neighbour *fresh(u32 ip)
{
    struct neighbour *n = &neighbours[0];
    for (u32 i = 1; i < NEIGHBOURS; i++)
        if (n->ip && (!neighbours[i].ip || neighbours[i].asked < n->asked))
            n = &neighbours[i];
    n->ip = ip, n->known = false, n->tries = 0, n->waiting = 0;
    n->asked = net_clock();
    return n;
}

static void learn(struct neighbour *n, const u8 *mac)
{
    n->known = true, n->tries = 0;
    n->until = net_clock() + STALE;
    memcpy(n->mac, mac, 6);
    if (n->waiting) {
        memcpy(n->frame, mac, 6);
        net_output(n->frame, n->waiting);
        n->waiting = 0;
    }
}

static void arp_input(const u8 *f, u64 size)
{
    if (size < ARP_SIZE || get16(f + 14) != 1 || get16(f + 16) != 0x0800 || f[18] != 6 || f[19] != 4) {
        net.dropped++;
        return;
    }
    u32 sender = get32(f + 28), target = get32(f + 38);
    if (!sender || f[22] & 1)
        return;
    struct neighbour *n = find(sender);
    if (n)
        learn(n, f + 22);
    if (!net.own || target != net.own)
        return;
    if (!n)
        learn(fresh(sender), f + 22);
    if (get16(f + 20) == 1)
        arp_send(2, sender, f + 22);
}

void link_output(u8 *frame, u64 size, u32 next_hop)
{
    memcpy(frame + 6, net.mac, 6);
    put16(frame + 12, 0x0800);
    if (next_hop == 0xffffffffu || (net.mask && (next_hop | net.mask) == 0xffffffffu)) {
        memcpy(frame, everybody, 6);
        net_output(frame, size);
        return;
    }
    struct neighbour *n = find(next_hop);
    if (n && n->known) {
        n->asked = net_clock();
        memcpy(frame, n->mac, 6);
        net_output(frame, size);
        return;
    }
    if (!n) {
        n = fresh(next_hop);
        n->until = net_clock() + SECOND;
        arp_send(1, next_hop, everybody);
    }
    memcpy(n->frame, frame, size); /* the newest one waits; what is lost is sent again by those who care */
    n->waiting = (u16)size;
}

void arp_tick(u64 now)
{
    for (struct neighbour *n = neighbours; n < neighbours + NEIGHBOURS; n++) {
        if (!n->ip || now < n->until)
            continue;
        if (n->known || ++n->tries >= TRIES) {
            n->ip = 0, n->waiting = 0;
        } else {
            n->until = now + SECOND;
            arp_send(1, n->ip, everybody);
        }
    }
}

u64 arp_deadline(void)
{
    u64 next = DENALI_FOREVER;
    for (u32 i = 0; i < NEIGHBOURS; i++)
        if (neighbours[i].ip)
            next = least(next, neighbours[i].until);
    return next;
}

void net_input(const u8 *frame, u64 size)
{
    if (size < ETHERNET || (!(frame[0] & 1) && memcmp(frame, net.mac, 6)))
        return;
    if (get16(frame + 12) == 0x0806)
        arp_input(frame, size);
    else if (get16(frame + 12) == 0x0800)
        ip_input(frame, size);
}

void net_tick(void)
{
    u64 now = net_clock();
    arp_tick(now), dhcp_tick(now), tcp_tick(now);
}

u64 net_deadline(void)
{
    return least(least(arp_deadline(), dhcp_deadline()), tcp_deadline());
}
