/* IP (RFC 791) without options and fragments, and ICMP (RFC 792): echo, and ports that nobody has. */
#include "net_inside.h"

#define ICMP 1
#define UDP 17
#define TCP 6

u32 sum_of(const u8 *data, u64 size, u32 sum)
{
    for (; size > 1; size -= 2, data += 2) {
        sum += get16(data);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return size ? sum + ((u32)data[0] << 8) : sum;
}

u32 checksum(u32 sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum & 0xffff;
}

u32 pseudo_sum(u32 from, u32 to, u32 protocol, u64 size)
{
    return (from >> 16) + (from & 0xffff) + (to >> 16) + (to & 0xffff) + protocol + (u32)size;
}

void ip_output(u8 *packet, u64 size, u32 from, u32 to, u32 protocol)
{
    static u32 number;
    u8 *ip = packet - 20;
    ip[0] = 0x45, ip[1] = 0;
    put16(ip + 2, 20 + (u32)size);
    put16(ip + 4, number++);
    put16(ip + 6, 0x4000); /* do not fragment */
    ip[8] = 64, ip[9] = (u8)protocol;
    put16(ip + 10, 0);
    put32(ip + 12, from), put32(ip + 16, to);
    put16(ip + 10, checksum(sum_of(ip, 20, 0)));
    bool near = !((to ^ net.own) & net.mask) || to == 0xffffffffu || !net.gateway;
    link_output(ip - ETHERNET, ETHERNET + 20 + size, near ? to : net.gateway);
}

static void icmp_output(const u8 *message, u64 size, u32 to)
{
    u8 buffer[IP_ROOM + MTU - 20];
    u8 *out = buffer + IP_ROOM;
    memcpy(out, message, size);
    put16(out + 2, 0);
    put16(out + 2, checksum(sum_of(out, size, 0)));
    ip_output(out, size, net.own, to, ICMP);
}

static void icmp_input(const u8 *data, u64 size, u32 from)
{
    if (size < 8 || size > MTU - 20 || checksum(sum_of(data, size, 0)) || data[0] != 8)
        return;
    u8 reply[MTU - 20];
    memcpy(reply, data, size);
    reply[0] = 0; /* echo reply: the rest as it came */
    icmp_output(reply, size, from);
}

/* Tell the sender of a datagram that no socket has its port. */
static void unreachable(const u8 *ip, u32 header, u64 size, u32 to)
{
    u8 message[8 + 60 + 8] = {3, 3};
    u64 quoted = least(header + 8, size);
    memcpy(message + 8, ip, quoted);
    icmp_output(message, 8 + quoted, to);
}

static bool has_port(u32 port)
{
    for (u32 i = 0; i < UDP_SOCKETS; i++)
        if (udps[i].used && udps[i].port == port)
            return true;
    return false;
}

void ip_input(const u8 *frame, u64 size)
{
    const u8 *ip = frame + ETHERNET;
    size -= ETHERNET;
    u32 header = size ? (ip[0] & 15u) * 4 : 0;
    if (size < 20 || ip[0] >> 4 != 4 || header < 20 || header > size || checksum(sum_of(ip, header, 0)) ||
        get16(ip + 2) < header || get16(ip + 2) > size || get16(ip + 6) & 0x3fff) {
        net.dropped++;
        return;
    }
    size = get16(ip + 2);
    u32 from = get32(ip + 12), to = get32(ip + 16);
    bool ours = net.own && to == net.own;
    bool all = to == 0xffffffffu || (net.mask && !((to ^ net.own) & net.mask) && (to | net.mask) == 0xffffffffu);
    const u8 *data = ip + header;
    u64 length = size - header;
    if (from >> 28 >= 14 || (net.own && from == net.own))
        return; /* no machine sends from there */
    if (ip[9] == UDP && length >= 8 && get16(data + 2) == 68 && dhcp_input(data, length))
        return;
    if (!ours && !all)
        return;
    if (ip[9] == TCP && ours)
        tcp_input(from, to, data, length);
    else if (ip[9] == ICMP && ours)
        icmp_input(data, length, from);
    else if (ip[9] == UDP && ours && length >= 8 && !has_port(get16(data + 2)))
        unreachable(ip, header, size, from);
    else if (ip[9] == UDP)
        udp_input(from, to, data, length);
}
