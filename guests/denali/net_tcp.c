/* TCP (RFC 9293), with the timer of RFC 6298 and the congestion control of RFC 5681 (NewReno's
 * partial acknowledgements, RFC 6582, as far as one segment a round trip). */
#include "net_inside.h"

#define FIN 1
#define SYN 2
#define RST 4
#define PSH 8
#define ACK 16
#define HEADER 20
#define OUR_MSS (MTU - 40)
#define OFFER_MSS 1
#define OFFER_SCALE 2
#define MOST_OPTIONS 8
#define MOST_SHIFT 14 /* RFC 7323, 2.3 */
#define LEAST_RTO (200 * SECOND / 1000)
#define MOST_RTO (60 * SECOND)
#define TRIES 9
#define TWO_MSL (4 * SECOND)
#define BACKLOG 8

struct tcp tcps[TCP_SOCKETS];

/* Sequence numbers go round: a comes before b. */
static inline bool before(u32 a, u32 b) { return (int)(a - b) < 0; }
static inline u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

static u32 window(const struct tcp *t)
{
    return BUFFER - (t->rcv - t->read);
}

/* ---- sending ---------------------------------------------------------------- */

/* `options` of a SYN: OFFER_MSS, and OFFER_SCALE where the window may be scaled. */
static void emit(u32 from_port, u32 to, u32 to_port, u32 seq, u32 ack, u32 flags, u32 wnd, const u8 *data,
                 u32 size, u32 options)
{
    u8 buffer[IP_ROOM + HEADER + MOST_OPTIONS + OUR_MSS];
    u8 *p = buffer + IP_ROOM;
    u32 header = HEADER + (options & OFFER_MSS ? 4 : 0) + (options & OFFER_SCALE ? 4 : 0);
    put16(p, from_port), put16(p + 2, to_port), put32(p + 4, seq), put32(p + 8, ack);
    p[12] = (u8)(header / 4 << 4), p[13] = (u8)flags;
    put16(p + 14, wnd), put16(p + 16, 0), put16(p + 18, 0);
    if (options & OFFER_MSS)
        p[20] = 2, p[21] = 4, put16(p + 22, OUR_MSS);
    if (options & OFFER_SCALE) /* our own window needs none: a shift by 0, and nothing to fill up */
        p[24] = 3, p[25] = 3, p[26] = 0, p[27] = 1;
    if (size)
        memcpy(p + header, data, size);
    size += header;
    put16(p + 16, checksum(sum_of(p, size, pseudo_sum(net.own, to, 6, size))));
    ip_output(p, size, net.own, to, 6);
}

static void send_segment(struct tcp *t, u32 seq, u32 flags, u32 size)
{
    u8 data[OUR_MSS];
    if (size) {
        u32 at = (t->head + (seq - t->una)) % BUFFER, first = smaller(size, BUFFER - at);
        memcpy(data, t->out + at, first);
        memcpy(data + first, t->out, size - first);
    }
    u32 wnd = smaller(window(t), 65535);
    if (t->state != SYN_SENT) {
        flags |= ACK;
        t->told = t->rcv + wnd;
    }
    emit(t->port, t->peer, t->peer_port, seq, flags & ACK ? t->rcv : 0, flags, wnd, data, size,
         flags & SYN ? OFFER_MSS | (t->scales ? OFFER_SCALE : 0) : 0);
    if (!t->timing && (size || flags & (SYN | FIN))) {
        t->timing = true;
        t->timed = seq + size + !!(flags & (SYN | FIN));
        t->timed_at = net_clock();
    }
}

/* Everything before `end` has been sent. */
static void note_sent(struct tcp *t, u32 end)
{
    if (before(t->nxt, end))
        t->nxt = end;
    if (before(t->most, t->nxt))
        t->most = t->nxt;
}

static void start_timer(struct tcp *t)
{
    u64 wait = t->rto;
    for (u32 i = 0; i < t->tries && wait < MOST_RTO; i++)
        wait *= 2;
    t->resend_at = net_clock() + least(wait, MOST_RTO);
}

static void acknowledge(struct tcp *t) { send_segment(t, t->nxt, 0, 0); }

/* Answer a segment that does not fit.  One without data is answered now and then only, or two sides
 * that do not understand each other would answer each other for ever (RFC 5961, 7). */
static void correct(struct tcp *t, u32 size)
{
    u64 now = net_clock();
    if (!size && t->corrected_at && now - t->corrected_at < SECOND / 2)
        return;
    t->corrected_at = now;
    acknowledge(t);
}

/* Send what may be sent: what the window and the network take. */
static void output(struct tcp *t)
{
    if (t->state < ESTABLISHED || t->state == TIME_WAIT)
        return;
    for (;;) {
        u32 sent = t->nxt - t->una;
        if (t->fin_sent && sent == t->size + 1)
            break;
        u32 room = smaller(t->wnd, t->cwnd), left = t->size - smaller(sent, t->size);
        room = room > sent ? room - sent : 0;
        u32 size = smaller(smaller(left, t->mss), room);
        bool last = t->fin && size == left && sent + size == t->size;
        if (!size && !(last && (room || !left) && !left))
            break;
        /* No small segment while others are on their way, unless it is the last (RFC 9293, 3.7.4). */
        if (size && size < t->mss && size < left)
            break;
        if (size && size < t->mss && sent && !t->fin)
            break;
        send_segment(t, t->nxt, (size == left ? PSH : 0) | (last ? FIN : 0), size);
        note_sent(t, t->nxt + size + last);
        if (last)
            t->fin_sent = true;
        if (!t->resend_at)
            start_timer(t);
        if (last)
            break;
    }
    /* A closed window is asked for now and then (3.8.6.1). */
    if (!t->resend_at && (t->size || (t->fin && !t->fin_sent)) && t->nxt == t->una) {
        t->probing = true;
        start_timer(t);
    }
}

static void reset_answer(u32 from, const u8 *s, u32 size)
{
    u32 flags = s[13];
    if (flags & RST)
        return;
    if (flags & ACK)
        emit(get16(s + 2), from, get16(s), get32(s + 8), 0, RST, 0, NULL, 0, 0);
    else
        emit(get16(s + 2), from, get16(s), 0, get32(s + 4) + size + !!(flags & SYN) + !!(flags & FIN), RST | ACK, 0,
             NULL, 0, 0);
}

/* ---- the life of a connection ------------------------------------------------- */

struct tcp *tcp_open(void)
{
    struct tcp *oldest = NULL;
    for (struct tcp *t = tcps; t < tcps + TCP_SOCKETS; t++) {
        if (!t->used) {
            oldest = t;
            break;
        }
        if (t->ours && t->state == TIME_WAIT && (!oldest || t->wait_over < oldest->wait_over))
            oldest = t; /* rather than to refuse a connection */
    }
    if (!oldest)
        return NULL;
    memset(oldest, 0, __builtin_offsetof(struct tcp, out));
    oldest->used = true;
    oldest->listener = -1;
    oldest->patience = DENALI_FOREVER;
    oldest->rto = SECOND, oldest->mss = 536;
    return oldest;
}

static void begin(struct tcp *t, u32 ip, u32 port)
{
    /* RFC 6528: a clock of 4 us, and a number that others do not know of this connection. */
    u32 mixed = ip ^ port << 16 ^ t->port;
    static u32 secret;
    if (!secret)
        secret = crc32(0, net.mac, 6) ^ (u32)denali_seed();
    mixed = crc32(secret, &mixed, 4);
    t->peer = ip, t->peer_port = port;
    t->iss = (u32)(net_clock() / 4000) + mixed;
    t->una = t->nxt = t->most = t->iss;
    t->ssthresh = 65535;
}

void tcp_connect(struct tcp *t, u32 ip, u32 port)
{
    if (!t->port)
        t->port = free_port(STREAM);
    begin(t, ip, port);
    t->scales = true;
    t->state = SYN_SENT;
    send_segment(t, t->nxt++, SYN, 0);
    t->most = t->nxt;
    start_timer(t);
}

static void free_tcp(struct tcp *t)
{
    t->state = CLOSED;
    t->resend_at = 0;
    if (t->ours)
        t->used = false;
}

static void fail(struct tcp *t, int error)
{
    t->error = error;
    if (t->listener >= 0) /* nobody has taken it yet */
        t->ours = true;
    free_tcp(t);
}

static void enter_time_wait(struct tcp *t)
{
    t->state = TIME_WAIT;
    t->resend_at = 0;
    t->wait_over = net_clock() + TWO_MSL;
}

void tcp_abort(struct tcp *t)
{
    if (t->state >= SYN_RECEIVED && t->state != TIME_WAIT)
        emit(t->port, t->peer, t->peer_port, t->nxt, t->rcv, RST | ACK, 0, NULL, 0, 0);
    free_tcp(t);
}

void tcp_finish(struct tcp *t)
{
    if (t->fin || (t->state != ESTABLISHED && t->state != CLOSE_WAIT && t->state != SYN_RECEIVED))
        return;
    t->fin = true;
    if (t->state == CLOSE_WAIT)
        t->state = LAST_ACK;
    else if (t->state == ESTABLISHED)
        t->state = FIN_WAIT_1;
    output(t);
}

u64 tcp_put(struct tcp *t, const u8 *data, u64 size)
{
    u32 room = BUFFER - t->size;
    u32 taken = (u32)least(size, room), at = (t->head + t->size) % BUFFER, first = smaller(taken, BUFFER - at);
    memcpy(t->out + at, data, first);
    memcpy(t->out, data + first, taken - first);
    t->size += taken;
    if (taken)
        output(t);
    return taken;
}

u64 tcp_get(struct tcp *t, u8 *data, u64 size)
{
    u32 taken = (u32)least(size, t->rcv - t->read - (t->fin_received ? 1 : 0));
    u32 at = t->read % BUFFER, first = smaller(taken, BUFFER - at);
    memcpy(data, t->in + at, first);
    memcpy(data + first, t->in, taken - first);
    t->read += taken;
    /* Tell of a window that has opened by a segment or by half of it (3.8.6.2.2). */
    u32 wider = t->rcv + smaller(window(t), 65535) - t->told;
    if (taken && t->state >= ESTABLISHED && t->state <= FIN_WAIT_2 && (wider >= 2 * OUR_MSS || wider >= BUFFER / 2))
        acknowledge(t);
    return taken;
}

/* ---- receiving ------------------------------------------------------------------ */

static void measure(struct tcp *t, u32 ack)
{
    if (!t->timing || before(ack, t->timed))
        return;
    t->timing = false;
    u64 r = net_clock() - t->timed_at;
    if (!t->srtt) {
        t->srtt = r, t->rttvar = r / 2;
    } else {
        u64 off = t->srtt > r ? t->srtt - r : r - t->srtt;
        t->rttvar = (3 * t->rttvar + off) / 4;
        t->srtt = (7 * t->srtt + r) / 8;
    }
    t->rto = t->srtt + (4 * t->rttvar > SECOND / 100 ? 4 * t->rttvar : SECOND / 100);
    if (t->rto < LEAST_RTO)
        t->rto = LEAST_RTO;
}

/* Send the oldest segment again. */
static void resend(struct tcp *t)
{
    u32 size = smaller(t->size, t->mss);
    t->timing = false; /* Karn: what is sent twice says nothing about time */
    if (t->state == SYN_SENT || t->state == SYN_RECEIVED)
        send_segment(t, t->iss, SYN, 0);
    else if (size || t->fin_sent) {
        bool fin = t->fin_sent && size == t->size;
        send_segment(t, t->una, PSH | (fin ? FIN : 0), size);
        note_sent(t, t->una + size + fin); /* it may be longer than the first time */
    }
    t->timing = false;
}

static void take_ack(struct tcp *t, u32 ack, u32 wnd, u32 seq, u32 size)
{
    u32 flight = t->most - t->una;
    if (t->probing) /* a window may stay closed as long as somebody says so (RFC 9293, 3.8.6.1) */
        t->tries = smaller(t->tries, 6);
    if (before(t->una, ack)) {
        u32 gone = ack - t->una, data = smaller(gone, t->size);
        measure(t, ack);
        t->head = (t->head + data) % BUFFER;
        t->size -= data;
        t->una = ack;
        if (before(t->nxt, ack))
            t->nxt = ack;
        t->tries = 0, t->probing = false;
        if (t->recovering && before(ack, t->recover)) {
            resend(t); /* a partial acknowledgement: the next one is missing too */
            t->cwnd = t->cwnd > gone ? t->cwnd - gone + t->mss : t->mss;
        } else {
            if (t->recovering)
                t->cwnd = t->ssthresh;
            else
                t->cwnd += t->cwnd < t->ssthresh ? smaller(gone, t->mss) : t->mss * t->mss / t->cwnd + 1;
            t->recovering = false;
            t->cwnd = smaller(t->cwnd, 65535);
        }
        t->repeated = 0;
        t->resend_at = 0;
        if (t->una != t->most)
            start_timer(t);
    } else if (ack == t->una && !size && flight && wnd == t->wnd && !t->recovering && ++t->repeated == 3) {
        t->ssthresh = flight / 2 > 2 * t->mss ? flight / 2 : 2 * t->mss;
        t->cwnd = t->ssthresh + 3 * t->mss;
        t->recovering = true, t->recover = t->most;
        resend(t);
    } else if (ack == t->una && t->recovering && !size) {
        t->cwnd = smaller(t->cwnd + t->mss, 65535);
    }
    if (before(t->wl1, seq) || (t->wl1 == seq && !before(ack, t->wl2))) {
        if (wnd && !t->wnd)
            t->probing = false, t->tries = 0;
        t->wnd = wnd, t->wl1 = seq, t->wl2 = ack;
    }
}

/* Put bytes where they belong in the ring, and go on as far as there is no gap. */
static void take_data(struct tcp *t, u32 seq, const u8 *data, u32 size)
{
    for (u32 done = 0; done < size;) {
        u32 at = (seq + done) % BUFFER, piece = smaller(size - done, BUFFER - at);
        memcpy(t->in + at, data + done, piece);
        done += piece;
    }
    u32 end = seq + size;
    if (before(t->rcv, seq)) { /* too early: remember where it lies */
        for (u32 i = 0; i < t->ranges; i++)
            if (!before(t->range[i].to, seq) && !before(end, t->range[i].from)) {
                if (before(seq, t->range[i].from))
                    t->range[i].from = seq;
                if (before(t->range[i].to, end))
                    t->range[i].to = end;
                return;
            }
        if (t->ranges < RANGES)
            t->range[t->ranges].from = seq, t->range[t->ranges++].to = end;
        return;
    }
    if (before(t->rcv, end))
        t->rcv = end;
    for (u32 i = 0; i < t->ranges;) {
        if (before(t->rcv, t->range[i].from)) {
            i++;
            continue;
        }
        if (before(t->rcv, t->range[i].to))
            t->rcv = t->range[i].to;
        t->range[i] = t->range[--t->ranges];
        i = 0;
    }
}

static void take_fin(struct tcp *t)
{
    if (!t->fin_known || t->fin_received || t->rcv != t->fin_at)
        return;
    t->fin_received = true;
    t->rcv++;
    if (t->state == ESTABLISHED)
        t->state = CLOSE_WAIT;
    else if (t->state == FIN_WAIT_1)
        t->state = CLOSING;
    else if (t->state == FIN_WAIT_2)
        enter_time_wait(t);
}

/* What a SYN offers: its largest segment, and by how much its later windows are shifted (RFC 7323). */
static void take_options(struct tcp *t, const u8 *s, u32 header)
{
    t->mss = 536, t->shift = 0;
    bool scales = false;
    for (u32 i = HEADER; i < header && s[i];) {
        if (s[i] == 1) {
            i++;
            continue;
        }
        if (i + 2 > header || s[i + 1] < 2 || i + s[i + 1] > header)
            break;
        if (s[i] == 2 && s[i + 1] == 4) {
            u32 mss = get16(s + i + 2);
            t->mss = mss < 64 ? 64 : smaller(mss, OUR_MSS);
        } else if (s[i] == 3 && s[i + 1] == 3) {
            scales = true;
            t->shift = smaller(s[i + 2], MOST_SHIFT);
        }
        i += s[i + 1];
    }
    t->scales = scales;
}

/* The window that a segment tells of; that of a SYN is never shifted. */
static u32 window_of(const struct tcp *t, const u8 *s)
{
    return get16(s + 14) << (s[13] & SYN ? 0 : t->shift);
}

static void establish(struct tcp *t, const u8 *s)
{
    t->state = ESTABLISHED;
    t->cwnd = 4 * t->mss;
    t->wnd = window_of(t, s), t->wl1 = get32(s + 4), t->wl2 = get32(s + 8);
}

static void listen_input(struct tcp *l, u32 from, const u8 *s, u32 header, u32 size)
{
    if (s[13] & RST)
        return;
    if (s[13] & ACK) {
        reset_answer(from, s, size);
        return;
    }
    if (!(s[13] & SYN))
        return;
    int number = (int)(l - tcps), waiting = 0;
    for (u32 i = 0; i < TCP_SOCKETS; i++)
        waiting += tcps[i].used && tcps[i].listener == number;
    struct tcp *t = waiting < BACKLOG ? tcp_open() : NULL;
    if (!t)
        return; /* it will ask again */
    t->port = l->port, t->listener = number;
    begin(t, from, get16(s));
    t->rcv = t->read = get32(s + 4) + 1;
    take_options(t, s, header);
    t->state = SYN_RECEIVED;
    send_segment(t, t->nxt++, SYN, 0);
    t->most = t->nxt;
    start_timer(t);
}

static void syn_sent_input(struct tcp *t, u32 from, const u8 *s, u32 header, u32 size)
{
    u32 flags = s[13], ack = get32(s + 8);
    if (flags & ACK && ack != t->nxt) {
        reset_answer(from, s, size);
        return;
    }
    if (flags & RST) {
        if (flags & ACK)
            fail(t, NET_REFUSED);
        return;
    }
    if (!(flags & SYN))
        return;
    t->rcv = t->read = get32(s + 4) + 1;
    take_options(t, s, header);
    if (flags & ACK) {
        measure(t, ack);
        t->una = ack;
        t->resend_at = 0, t->tries = 0;
        establish(t, s);
        acknowledge(t);
        output(t);
    } else { /* both have called each other */
        t->state = SYN_RECEIVED;
        send_segment(t, t->iss, SYN, 0);
    }
}

/* A connection that exists: RFC 9293, 3.10.7.4. */
static void segment_input(struct tcp *t, const u8 *s, u32 header, u32 size)
{
    u32 flags = s[13], seq = get32(s + 4), ack = get32(s + 8), wnd = window(t);
    const u8 *data = s + header;
    if (flags & SYN && t->state == SYN_RECEIVED && seq + 1 == t->rcv) {
        resend(t); /* our answer was lost */
        return;
    }
    u32 length = size + !!(flags & FIN);
    bool fits = length ? (wnd && before(seq, t->rcv + wnd) && before(t->rcv, seq + length)) || (!wnd && seq == t->rcv)
                       : seq == t->rcv || (wnd && !before(seq, t->rcv) && before(seq, t->rcv + wnd));
    if (!fits) {
        if (!(flags & RST)) {
            correct(t, size);
            if (t->state == TIME_WAIT)
                t->wait_over = net_clock() + TWO_MSL;
        }
        return;
    }
    if (flags & RST) { /* RFC 5961: only at the very place */
        if (seq == t->rcv)
            fail(t, t->state == SYN_RECEIVED ? NET_REFUSED : NET_RESET);
        else
            correct(t, 0);
        return;
    }
    if (flags & SYN || !(flags & ACK)) {
        if (flags & SYN)
            correct(t, 0);
        return;
    }
    if (before(t->most, ack)) {
        if (t->state == SYN_RECEIVED)
            fail(t, NET_RESET);
        else
            correct(t, 0);
        return;
    }
    if (t->state == SYN_RECEIVED) {
        if (!before(t->una, ack))
            return;
        t->una = ack, t->resend_at = 0, t->tries = 0;
        establish(t, s);
        if (t->fin)
            t->state = FIN_WAIT_1;
    } else if (!before(ack, t->una)) {
        take_ack(t, ack, window_of(t, s), seq, length);
    }
    bool all = t->fin_sent && t->una == t->most && !t->size;
    if (all && t->state == FIN_WAIT_1)
        t->state = FIN_WAIT_2;
    else if (all && t->state == CLOSING)
        enter_time_wait(t);
    else if (all && t->state == LAST_ACK) {
        free_tcp(t);
        return;
    }
    bool receives = t->state == ESTABLISHED || t->state == FIN_WAIT_1 || t->state == FIN_WAIT_2;
    if (length && receives) {
        if (t->ours && size && before(t->rcv, seq + size)) {
            tcp_abort(t); /* the guest has closed it and will not read this (RFC 2525, 2.17) */
            return;
        }
        u32 skip = before(seq, t->rcv) ? t->rcv - seq : 0;
        if (flags & FIN && !t->fin_known)
            t->fin_known = true, t->fin_at = seq + size;
        if (skip < size) {
            u32 fresh = smaller(size - skip, t->rcv + wnd - (seq + skip));
            if (fresh)
                take_data(t, seq + skip, data + skip, fresh);
        }
        take_fin(t);
    }
    if (length)
        acknowledge(t);
    output(t);
}

void tcp_input(u32 from, u32 to, const u8 *s, u64 whole)
{
    u32 header = whole < HEADER ? 0 : (u32)(s[12] >> 4) * 4;
    if (header < HEADER || header > whole || checksum(sum_of(s, whole, pseudo_sum(from, to, 6, whole)))) {
        net.dropped++;
        return;
    }
    u32 size = (u32)whole - header;
    struct tcp *listener = NULL;
    for (struct tcp *t = tcps; t < tcps + TCP_SOCKETS; t++) {
        if (!t->used || t->port != get16(s + 2) || t->state == CLOSED)
            continue;
        if (t->state == LISTEN) {
            listener = t;
        } else if (t->peer == from && t->peer_port == get16(s)) {
            if (t->state == TIME_WAIT && s[13] & SYN && before(t->rcv, get32(s + 4))) {
                free_tcp(t); /* the same ports for a new connection (RFC 9293, 3.10.7.4) */
                continue;
            }
            if (t->state == SYN_SENT)
                syn_sent_input(t, from, s, header, size);
            else
                segment_input(t, s, header, size);
            return;
        }
    }
    if (listener)
        listen_input(listener, from, s, header, size);
    else
        reset_answer(from, s, size);
}

/* ---- timers --------------------------------------------------------------------- */

static void late(struct tcp *t)
{
    if (++t->tries > TRIES) {
        bool known = t->state > SYN_RECEIVED;
        if (known)
            emit(t->port, t->peer, t->peer_port, t->nxt, t->rcv, RST | ACK, 0, NULL, 0, 0);
        fail(t, NET_RESET);
        return;
    }
    if (t->probing) {
        u32 size = smaller(smaller(t->size, t->mss), t->wnd ? t->wnd : 1); /* or what little it takes */
        send_segment(t, size ? t->una : t->una - 1, 0, size);
        note_sent(t, t->una + size);
        t->timing = false;
    } else {
        u32 flight = t->most - t->una;
        t->ssthresh = flight / 2 > 2 * t->mss ? flight / 2 : 2 * t->mss;
        t->cwnd = t->mss;
        t->recovering = false, t->repeated = 0;
        resend(t);
        if (t->state >= ESTABLISHED) { /* all the rest again, as the window opens */
            u32 first = smaller(t->size, t->mss);
            bool fin = t->fin_sent && first == t->size;
            t->fin_sent = fin;
            t->nxt = t->una + first + fin;
        }
    }
    start_timer(t);
}

void tcp_tick(u64 now)
{
    for (struct tcp *t = tcps; t < tcps + TCP_SOCKETS; t++) {
        if (!t->used)
            continue;
        if (t->state == TIME_WAIT && now >= t->wait_over)
            free_tcp(t);
        else if (t->resend_at && now >= t->resend_at)
            late(t);
    }
}

u64 tcp_deadline(void)
{
    u64 next = DENALI_FOREVER;
    for (struct tcp *t = tcps; t < tcps + TCP_SOCKETS; t++) {
        if (t->used && t->state == TIME_WAIT)
            next = least(next, t->wait_over);
        if (t->used && t->resend_at)
            next = least(next, t->resend_at);
    }
    return next;
}
