/* A client on the kit's network stack: fetches a page, a line of it typed: ADDRESS PORT PATH. */
#include "net.h"

static char line[256];
static u64 typed;

/* A whole line is there.  What was typed behind it stays with the console until the next. */
static bool has_line(void *unused)
{
    (void)unused;
    char c;
    while (console_read(&c, 1) == 1)
        if (c != '\r' && c != '\n') {
            if (typed < sizeof line - 1)
                line[typed++] = c;
        } else if (typed) {
            line[typed] = 0;
            return true;
        }
    return false;
}

static u32 number(const char **text)
{
    u32 n = 0;
    while (**text >= '0' && **text <= '9')
        n = n * 10 + (u32)(*(*text)++ - '0');
    if (**text == '.' || **text == ' ')
        (*text)++;
    return n;
}

static bool send_text(int s, const char *text)
{
    return send(s, text, strlen(text)) == (long)strlen(text);
}

struct page {
    u64 head, size; /* bytes of the head and of the body */
    u32 status, crc;
    u32 seen; /* how much of the empty line that ends the head: 4 is all of it */
};

static void take(struct page *page, const u8 *data, u64 size)
{
    while (size && page->seen < 4) {
        if (page->head >= 9 && page->head < 12) /* HTTP/1.0 404 Not Found */
            page->status = page->status * 10 + (*data - '0');
        page->seen = *data == "\r\n\r\n"[page->seen] ? page->seen + 1 : *data == '\r';
        page->head++, data++, size--;
    }
    page->crc = crc32(page->crc, data, size);
    page->size += size;
}

static void fetch(void)
{
    const char *at = line;
    u32 a = number(&at), b = number(&at), c = number(&at), d = number(&at), port = number(&at);
    int s = socket(STREAM);
    wait_at_most(s, 30000000000ul);
    int failed = connect(s, ip4(a, b, c, d), port);
    if (failed) {
        print("fetch: cannot connect (%d)\n", failed);
    } else if (send_text(s, "GET ") && send_text(s, at) && send_text(s, " HTTP/1.0\r\nHost: denali\r\n\r\n")) {
        struct page page = {0};
        u8 piece[1024];
        long got;
        while ((got = recv(s, piece, sizeof piece)) > 0)
            take(&page, piece, (u64)got);
        print("fetch: status %u, %lu bytes, crc %08x%s\n", page.status, page.size, page.crc, got ? ", cut off" : "");
    } else {
        print("fetch: cannot send\n");
    }
    close(s);
}

int main(void)
{
    if (!net_start_dhcp(5000000000ul) && !net_start(ip4(10, 1, 0, 2), 0xffffff00u, 0))
        panic("no network card");
    print("fetch: " IP_FORMAT "\n", IP_PARTS(net_address()));
    for (;;) {
        print("> ");
        wait_until(has_line, NULL, DENALI_FOREVER);
        if (!memcmp(line, "quit", 4))
            return 0;
        fetch();
        typed = 0;
    }
}
