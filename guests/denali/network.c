/* Network cards of the Denali machine, for guests in C; denali.h says what each function is for.
 *
 * A card of the model `denali` needs one virtual instruction a frame.  The driver
 * of the model `classic` makes the accesses that Linux's driver for the same card
 * makes: 10 for an event, and 2 more to send a frame.
 */
#include "denali.h"

#define PAGES_LOG 6
#define PAGES (1 << PAGES_LOG) /* receive buffers of a card, and entries of each ring of a classic card */

/* ---- the registers of a classic card --------------------------------------- */

#define RDP 0x10 /* the register that RAP names */
#define RAP 0x14
#define RESET 0x18

#define CSR0_INIT 0x0001
#define CSR0_STRT 0x0002
#define CSR0_TDMD 0x0008
#define CSR0_IENA 0x0040
#define CSR0_IDON 0x0100
#define CSR0_EVENTS 0x8600 /* errors, receive, send */
#define CSR0_ALL_ELSE 0x7900

#define OWN 0x8000 /* of a descriptor: it is the card's */
#define ERR 0x4000
#define WHOLE 0x0300 /* the frame begins and ends in this buffer */

struct descriptor {
    u32 buffer;
    unsigned short minus_size, status;
    u32 message; /* received: the frame's length and 4 */
    u32 ours;
};

struct init_block {
    unsigned short mode, lengths;
    u8 address[6];
    unsigned short zero;
    u8 filter[8];
    u32 receive_ring, send_ring;
};

/* ---- the cards -------------------------------------------------------------- */

static u8 buffers[NETWORK_CARDS][PAGES][DENALI_PAGE] __attribute__((aligned(4096)));

static struct card {
    bool classic;
    u64 longest;
    u64 page;              /* denali: of the frame that the guest looks at, or DENALI_NO_PAGE */
    bool last;             /* denali: the machine said that it was the last one */
    u64 next_in, next_out; /* classic: places in the rings */
    bool looks;            /* classic: the guest looks at the frame before next_in */
    struct init_block block __attribute__((aligned(4)));
    struct descriptor in[PAGES] __attribute__((aligned(16))), out[PAGES] __attribute__((aligned(16)));
} cards[NETWORK_CARDS];

static u64 card_count;
static void (*frame_handler)(void);

static u64 read_csr(u64 card, u64 number)
{
    net_port_write(card, RAP, number);
    return net_port_read(card, RDP);
}

static void write_csr(u64 card, u64 number, u64 value)
{
    net_port_write(card, RAP, number);
    net_port_write(card, RDP, value);
}

static void start_classic(u64 number)
{
    struct card *card = &cards[number];
    for (u64 i = 0; i < PAGES; i++)
        card->in[i] =
            (struct descriptor){(u32)(u64)buffers[number][i], (unsigned short)-DENALI_PAGE, OWN, 0, 0};
    card->block.lengths = PAGES_LOG << 4 | PAGES_LOG << 12;
    network_address(number, card->block.address);
    card->block.receive_ring = (u32)(u64)card->in;
    card->block.send_ring = (u32)(u64)card->out;
    net_port_read(number, RESET);
    write_csr(number, 1, (u64)&card->block & 0xffff);
    write_csr(number, 2, (u64)&card->block >> 16);
    write_csr(number, 0, CSR0_INIT);
    if (!(read_csr(number, 0) & CSR0_IDON))
        panic("network card %lu does not start", number);
    write_csr(number, 0, CSR0_IDON | CSR0_IENA | CSR0_STRT);
}

/* What an interrupt handler does: learn why and acknowledge it, until there is nothing more, and let
 * the card interrupt again.  The frames are fetched by network_receive. */
static void classic_events(u64 card)
{
    u64 before = net_port_read(card, RAP), csr0;
    while ((csr0 = read_csr(card, 0)) & CSR0_EVENTS)
        write_csr(card, 0, csr0 & ~0x4ful);
    write_csr(card, 0, CSR0_ALL_ELSE | CSR0_IENA);
    net_port_write(card, RAP, before);
}

static void network_events(void)
{
    for (u64 i = 0; i < card_count; i++) {
        cards[i].last = false;
        if (cards[i].classic)
            classic_events(i);
    }
    if (frame_handler)
        frame_handler();
}

u64 network_start(void (*handler)(void))
{
    frame_handler = handler;
    on_network(network_events);
    u64 count = net_cards();
    count = count < NETWORK_CARDS ? count : NETWORK_CARDS;
    for (u64 i = 0; i < count; i++) {
        cards[i].classic = net_info(i, DENALI_CARD_MODEL) == 1;
        cards[i].longest = net_info(i, DENALI_CARD_LONGEST);
        cards[i].page = DENALI_NO_PAGE;
        if (cards[i].classic)
            start_classic(i);
        else
            for (u64 page = 0; page < PAGES; page++)
                net_give(i, (u64)buffers[i][page]);
    }
    card_count = count;
    return count;
}

void network_address(u64 card, u8 address[6])
{
    u64 value = net_info(card, DENALI_CARD_ADDRESS);
    memcpy(address, &value, 6);
}

bool network_link(u64 card) { return net_info(card, DENALI_CARD_LINK) == 1; }

u64 network_longest(u64 card) { return card < card_count ? cards[card].longest : 0; }

static bool send_classic(u64 number, const void *frame, u64 size)
{
    struct card *card = &cards[number];
    struct descriptor *out = &card->out[card->next_out];
    out->buffer = (u32)(u64)frame;
    out->minus_size = (unsigned short)-size;
    out->message = 0;
    *(volatile unsigned short *)&out->status = OWN | WHOLE;
    card->next_out = (card->next_out + 1) % PAGES;
    write_csr(number, 0, CSR0_IENA | CSR0_TDMD);
    /* This card has taken the frame by now; a real one would still be at it. */
    return !(*(volatile unsigned short *)&out->status & (OWN | ERR));
}

bool network_send(u64 card, const void *frame, u64 size)
{
    if (card >= card_count || size < NETWORK_LEAST || size > cards[card].longest)
        return false;
    if (!cards[card].classic)
        return net_send(card, frame, size) == size;
    u64 enabled = denali.enabled;
    events_off(); /* the card's RAP is one for all */
    bool good = send_classic(card, frame, size);
    denali.enabled = enabled;
    return good;
}

static void *receive_classic(u64 number, u64 *size)
{
    struct card *card = &cards[number];
    if (card->looks) {
        struct descriptor *last = &card->in[(card->next_in + PAGES - 1) % PAGES];
        last->minus_size = (unsigned short)-DENALI_PAGE;
        *(volatile unsigned short *)&last->status = OWN;
        card->looks = false;
    }
    for (;;) {
        struct descriptor *in = &card->in[card->next_in];
        unsigned short status = *(volatile unsigned short *)&in->status;
        if (status & OWN)
            return NULL;
        u64 place = card->next_in;
        card->next_in = (place + 1) % PAGES;
        if (!(status & ERR)) {
            card->looks = true;
            *size = (in->message & 0xfff) - 4;
            return buffers[number][place];
        }
        *(volatile unsigned short *)&in->status = OWN;
    }
}

void *network_receive(u64 card, u64 *size)
{
    if (card >= card_count)
        return NULL;
    if (cards[card].classic)
        return receive_classic(card, size);
    if (cards[card].last) { /* a loop until NULL needs no instruction to learn that there is no more */
        cards[card].last = false;
        return NULL;
    }
    u64 got = net_receive(card, cards[card].page);
    cards[card].page = DENALI_NO_PAGE;
    if (!got)
        return NULL;
    cards[card].page = got & 0xfffffffff000ul;
    cards[card].last = !(got & DENALI_MORE);
    *size = got >> 48 & 0x7fff;
    return (void *)cards[card].page;
}
