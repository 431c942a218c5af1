/* A web server on the kit's network stack: several visitors at once, none of them waited for.
 *
 * It asks for an address by DHCP, and takes 10.1.0.1 where nobody answers.  GET / tells
 * who asks, and GET /bytes/N sends N bytes whose crc is known to whoever made them the
 * same way; GET /end ends the guest.  What comes to port 7 by UDP is sent back (RFC 862).
 */
#include "net.h"

#define VISITORS 16

static struct visitor {
    int socket; /* -1: nobody */
    char request[1024];
    u64 size;
    bool answered;
    char head[160];
    u64 head_size, head_sent;
    u64 left, at; /* bytes of the body: still to send, and sent */
} visitors[VISITORS];

static int listener, echo;
static u64 served;
static bool ends;

static void put_text(struct visitor *v, const char *text)
{
    while (*text && v->head_size < sizeof v->head)
        v->head[v->head_size++] = *text++;
}

static void put_number(struct visitor *v, u64 n)
{
    char digits[20];
    int i = 0;
    do
        digits[i++] = (char)('0' + n % 10);
    while (n /= 10);
    while (i)
        put_text(v, (char[]){digits[--i], 0});
}

static bool begins(const char *text, const char *with)
{
    return !memcmp(text, with, strlen(with));
}

static u64 number_at(const char *text)
{
    u64 n = 0;
    while (*text >= '0' && *text <= '9' && n < 1000000000)
        n = n * 10 + (u64)(*text++ - '0');
    return n;
}

static void put_head(struct visitor *v, const char *status, u64 length)
{
    put_text(v, "HTTP/1.0 "), put_text(v, status);
    put_text(v, "\r\nContent-Length: "), put_number(v, length);
    put_text(v, "\r\nConnection: close\r\n\r\n");
}

/* Answer a request that is there to its end. */
static void answer(struct visitor *v)
{
    v->answered = true;
    served++;
    if (begins(v->request, "GET /bytes/")) {
        v->left = number_at(v->request + 11);
        put_head(v, "200 OK", v->left);
        return;
    }
    if (begins(v->request, "GET /end"))
        ends = true;
    if (!begins(v->request, "GET / ") && !ends) {
        put_head(v, "404 Not Found", 0);
        return;
    }
    u32 ip, port;
    peer_of(v->socket, &ip, &port);
    put_head(v, "200 OK", ends ? 8 : 33);
    put_text(v, ends ? "It ends\n" : "Denali serves you, visitor ");
    if (!ends) { /* six characters, whatever the number */
        for (u64 n = 10000; n > served && n > 1; n /= 10)
            put_text(v, " ");
        put_number(v, served % 100000);
        put_text(v, "\n");
    }
}

static u8 byte_at(u64 i)
{
    return (u8)(i * 7 + (i >> 8) * 13);
}

/* Do for a visitor what can be done without waiting; false when it is over. */
static bool serve(struct visitor *v)
{
    if (!v->answered) {
        long got = recv(v->socket, v->request + v->size, sizeof v->request - 1 - v->size);
        if (got == NET_AGAIN)
            return true;
        if (got <= 0)
            return false;
        v->size += (u64)got;
        for (u64 i = 0; i + 3 < v->size; i++)
            if (!memcmp(v->request + i, "\r\n\r\n", 4))
                answer(v);
        if (!v->answered)
            return v->size < sizeof v->request - 1;
    }
    while (v->head_sent < v->head_size) {
        long sent = send(v->socket, v->head + v->head_sent, v->head_size - v->head_sent);
        if (sent < 0)
            return sent == NET_AGAIN;
        v->head_sent += (u64)sent;
    }
    while (v->left) {
        u8 piece[1024];
        u64 size = v->left < sizeof piece ? v->left : sizeof piece;
        for (u64 i = 0; i < size; i++)
            piece[i] = byte_at(v->at + i);
        long sent = send(v->socket, piece, size);
        if (sent < 0)
            return sent == NET_AGAIN;
        v->at += (u64)sent, v->left -= (u64)sent;
        if ((u64)sent < size)
            return true;
    }
    return false;
}

static bool something_to_do(void *unused)
{
    (void)unused;
    if (ready(listener) & CAN_RECEIVE || ready(echo) & CAN_RECEIVE)
        return true;
    for (struct visitor *v = visitors; v < visitors + VISITORS; v++)
        if (v->socket >= 0 && ready(v->socket) & (v->answered ? CAN_SEND : CAN_RECEIVE))
            return true;
    return false;
}

/* Send back every datagram that is there. */
static void send_back(void)
{
    u8 data[1472];
    u32 ip, port;
    long size;
    while ((size = recvfrom(echo, data, sizeof data, &ip, &port)) >= 0)
        sendto(echo, data, (u64)size, ip, port);
}

int main(void)
{
    if (!net_start_dhcp(5000000000ul) && !net_start(ip4(10, 1, 0, 1), 0xffffff00u, 0))
        panic("no network card");
    print("web: " IP_FORMAT " port 80\n", IP_PARTS(net_address()));
    for (u64 i = 0; i < VISITORS; i++)
        visitors[i].socket = -1;
    listener = socket(STREAM);
    if (bind(listener, 80) || listen(listener))
        panic("port 80 is not to be had");
    wait_at_most(listener, 0);
    echo = socket(DATAGRAM);
    if (bind(echo, 7))
        panic("port 7 is not to be had");
    wait_at_most(echo, 0);
    while (!ends) {
        wait_until(something_to_do, NULL, DENALI_FOREVER);
        send_back();
        for (struct visitor *v = visitors; v < visitors + VISITORS; v++) {
            if (v->socket < 0) {
                int s = accept(listener);
                if (s < 0)
                    continue;
                memset(v, 0, sizeof *v);
                v->socket = s;
                wait_at_most(s, 0);
            }
            if (!serve(v)) {
                close(v->socket);
                v->socket = -1;
            }
        }
    }
    sleep_until(now_ns() + 1000000000); /* what is on its way still goes out */
    print("web: %lu served\n", served);
    return 0;
}
