/* Sockets: numbers from 0 for TCP, from TCP_SOCKETS on for UDP. */
#include "net_inside.h"

u32 net_address(void) { return net.own; }
u32 net_gateway(void) { return net.gateway; }
u32 net_dns(void) { return net.dns; }

static struct tcp *stream(int s)
{
    return s >= 0 && s < TCP_SOCKETS && tcps[s].used && !tcps[s].ours ? &tcps[s] : NULL;
}

static struct udp *datagrams(int s)
{
    int n = s - TCP_SOCKETS;
    return n >= 0 && n < UDP_SOCKETS && udps[n].used ? &udps[n] : NULL;
}

bool port_in_use(int kind, u32 port)
{
    if (kind == STREAM) {
        for (u32 i = 0; i < TCP_SOCKETS; i++) /* a connection whose owner has closed it keeps nobody out */
            if (tcps[i].used && tcps[i].port == port && !tcps[i].peer)
                return true;
    } else {
        for (u32 i = 0; i < UDP_SOCKETS; i++)
            if (udps[i].used && udps[i].port == port)
                return true;
    }
    return false;
}

static bool port_known(int kind, u32 port)
{
    if (kind == STREAM)
        for (u32 i = 0; i < TCP_SOCKETS; i++)
            if (tcps[i].used && tcps[i].port == port)
                return true;
    return port_in_use(kind, port);
}

u32 free_port(int kind)
{
    static u32 last;
    do
        last = 49152 + (last + 1 - 49152) % 16384;
    while (last < 49152 || port_known(kind, last));
    return last;
}

int socket(int kind)
{
    u64 before = net_lock();
    int s = NET_WRONG;
    if (kind == STREAM) {
        struct tcp *t = tcp_open();
        if (t)
            s = (int)(t - tcps);
    } else if (kind == DATAGRAM) {
        for (int i = 0; i < UDP_SOCKETS && s < 0; i++)
            if (!udps[i].used) {
                memset(&udps[i], 0, __builtin_offsetof(struct udp, queue));
                udps[i].used = true;
                udps[i].patience = DENALI_FOREVER;
                s = TCP_SOCKETS + i;
            }
    }
    net_unlock(before);
    return s;
}

int bind(int s, u32 port)
{
    struct tcp *t = stream(s);
    struct udp *u = datagrams(s);
    int kind = t ? STREAM : DATAGRAM;
    if ((!t && !u) || port > 65535 || (port && port_in_use(kind, port)) || (t && t->state != CLOSED))
        return NET_WRONG;
    *(t ? &t->port : &u->port) = port ? port : free_port(kind);
    return 0;
}

int listen(int s)
{
    struct tcp *t = stream(s);
    if (!t || !t->port || t->state != CLOSED || t->error)
        return NET_WRONG;
    t->state = LISTEN;
    return 0;
}

/* ---- waiting --------------------------------------------------------------------- */

struct wait {
    struct tcp *t;
    struct udp *u;
    int what;
};

static struct tcp *arrived(const struct tcp *listener)
{
    int number = (int)(listener - tcps);
    for (u32 i = 0; i < TCP_SOCKETS; i++)
        if (tcps[i].used && tcps[i].listener == number && tcps[i].state >= ESTABLISHED)
            return &tcps[i];
    return NULL;
}

static int tcp_ready(struct tcp *t)
{
    if (t->state == LISTEN)
        return arrived(t) ? CAN_RECEIVE : 0;
    int what = 0;
    if (t->rcv - t->read || t->fin_received || t->error || t->state == CLOSED)
        what |= CAN_RECEIVE;
    if (t->error || t->state == CLOSED || t->fin || (t->state >= ESTABLISHED && t->size < BUFFER))
        what |= CAN_SEND;
    if (t->error || t->state == CLOSED)
        what |= IS_OVER;
    return what;
}

static bool is_ready(void *argument)
{
    struct wait *w = argument;
    return w->t ? tcp_ready(w->t) & w->what : w->u->count != 0;
}

static bool wait_for(struct tcp *t, struct udp *u, int what, u64 patience)
{
    struct wait w = {t, u, what};
    if (is_ready(&w))
        return true;
    if (!patience)
        return false;
    u64 now = net_clock();
    return net_wait(is_ready, &w, patience > DENALI_FOREVER - now ? DENALI_FOREVER : now + patience);
}

int ready(int s)
{
    struct tcp *t = stream(s);
    struct udp *u = datagrams(s);
    return t ? tcp_ready(t) : u ? CAN_SEND | (u->count ? CAN_RECEIVE : 0) : NET_WRONG;
}

void wait_at_most(int s, u64 ns)
{
    if (stream(s))
        stream(s)->patience = ns;
    else if (datagrams(s))
        datagrams(s)->patience = ns;
}

/* ---- connections ------------------------------------------------------------------ */

int accept(int s)
{
    struct tcp *t = stream(s);
    if (!t || t->state != LISTEN)
        return NET_WRONG;
    if (!wait_for(t, NULL, CAN_RECEIVE, t->patience))
        return NET_AGAIN;
    struct tcp *found = arrived(t);
    if (!found)
        return NET_AGAIN;
    found->listener = -1;
    return (int)(found - tcps);
}

int connect(int s, u32 ip, u32 port)
{
    struct udp *u = datagrams(s);
    if (u) {
        u->peer = ip, u->peer_port = port;
        return 0;
    }
    struct tcp *t = stream(s);
    if (!t || t->state > SYN_SENT || t->state == LISTEN || !ip || !port || port > 65535)
        return NET_WRONG;
    u64 before = net_lock();
    if (t->state == CLOSED && !t->error)
        tcp_connect(t, ip, port);
    net_unlock(before);
    bool done = wait_for(t, NULL, CAN_SEND, t->patience);
    return t->error ? t->error : done ? 0 : NET_AGAIN;
}

long send(int s, const void *data, u64 size)
{
    struct udp *u = datagrams(s);
    if (u)
        return u->peer ? sendto(s, data, size, u->peer, u->peer_port) : NET_WRONG;
    struct tcp *t = stream(s);
    if (!t || t->state < SYN_SENT || t->fin)
        return t && t->error ? t->error : NET_WRONG;
    u64 done = 0;
    while (done < size) {
        if (!wait_for(t, NULL, CAN_SEND, t->patience))
            break;
        if (t->error || t->state == CLOSED)
            return t->error ? t->error : NET_RESET;
        u64 before = net_lock();
        done += tcp_put(t, (const u8 *)data + done, size - done);
        net_unlock(before);
    }
    return done || !size ? (long)done : NET_AGAIN;
}

long recv(int s, void *data, u64 size)
{
    if (datagrams(s))
        return recvfrom(s, data, size, NULL, NULL);
    struct tcp *t = stream(s);
    if (!t || t->state == LISTEN)
        return NET_WRONG;
    if (!wait_for(t, NULL, CAN_RECEIVE, t->patience))
        return NET_AGAIN;
    u64 before = net_lock();
    u64 got = tcp_get(t, data, size);
    net_unlock(before);
    if (got || !size || t->fin_received)
        return (long)got;
    return t->error ? t->error : NET_WRONG; /* never connected */
}

int shutdown(int s)
{
    struct tcp *t = stream(s);
    if (!t)
        return NET_WRONG;
    u64 before = net_lock();
    tcp_finish(t);
    net_unlock(before);
    return 0;
}

int close(int s)
{
    struct udp *u = datagrams(s);
    struct tcp *t = stream(s);
    if (u) {
        u->used = false;
        return 0;
    }
    if (!t)
        return NET_WRONG;
    u64 before = net_lock();
    for (u32 i = 0; i < TCP_SOCKETS; i++) /* connections that nobody took go with their listener */
        if (t->state == LISTEN && tcps[i].used && tcps[i].listener == s) {
            tcps[i].ours = true;
            tcp_abort(&tcps[i]);
        }
    t->ours = true;
    if (t->state == CLOSED || t->state == LISTEN || t->state == SYN_SENT) {
        t->state = CLOSED;
        t->used = false;
    } else if (t->rcv - t->read - (t->fin_received ? 1 : 0)) {
        tcp_abort(t); /* something that was sent is never read (RFC 2525, 2.17) */
    } else {
        tcp_finish(t);
    }
    net_unlock(before);
    return 0;
}

/* ---- datagrams --------------------------------------------------------------------- */

long sendto(int s, const void *data, u64 size, u32 ip, u32 port)
{
    struct udp *u = datagrams(s);
    if (!u || size > UDP_MOST || !ip || !port || port > 65535)
        return NET_WRONG;
    u64 before = net_lock();
    if (!u->port)
        u->port = free_port(DATAGRAM);
    udp_output(data, size, net.own, u->port, ip, port);
    net_unlock(before);
    return (long)size;
}

long recvfrom(int s, void *data, u64 size, u32 *ip, u32 *port)
{
    struct udp *u = datagrams(s);
    if (!u)
        return NET_WRONG;
    if (!wait_for(NULL, u, CAN_RECEIVE, u->patience))
        return NET_AGAIN;
    u64 before = net_lock();
    struct datagram *d = &u->queue[u->first];
    u64 got = least(size, d->size);
    memcpy(data, d->data, got);
    if (ip)
        *ip = d->ip;
    if (port)
        *port = d->port;
    u->first = (u->first + 1) % UDP_QUEUE;
    u->count--;
    net_unlock(before);
    return (long)got;
}

void peer_of(int s, u32 *ip, u32 *port)
{
    struct tcp *t = stream(s);
    struct udp *u = datagrams(s);
    *ip = t ? t->peer : u ? u->peer : 0;
    *port = t ? t->peer_port : u ? u->peer_port : 0;
}
