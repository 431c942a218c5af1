/* Two of these on one cable, or on one switch, find each other and pass a frame to and fro.
 *
 * Frames are of the type that is set aside for experiments (IEEE 802, 0x88b5).  Each
 * guest greets everybody until it hears another one.  The one with the lower address
 * then serves ROUNDS balls, one after the other, which the other one returns; what
 * is lost is sent again.  Both print how it went and end.
 */
#include "denali.h"

#define ROUNDS 1000
#define TYPE 0xb588 /* 0x88b5, its first byte first */
#define PATIENCE_NS 20000000ul

enum { HELLO, SERVE, RETURN, BYE };

struct frame {
    u8 to[6], from[6];
    unsigned short type;
    unsigned short what;
    u32 round;
    u8 filling[40];
} __attribute__((packed));

static struct frame out __attribute__((aligned(8)));
static u8 own[6], peer[6];
static bool known, serves;
static volatile bool over;
static u32 round_now, sent_again, waited;
static u64 began_ns;

static void send(u32 what, u32 round)
{
    for (u64 i = 0; i < 6; i++)
        out.to[i] = known ? peer[i] : 0xff;
    memcpy(out.from, own, 6);
    out.type = TYPE;
    out.what = (unsigned short)what;
    out.round = round;
    for (u64 i = 0; i < sizeof out.filling; i++)
        out.filling[i] = (u8)(round + i);
    network_send(0, &out, sizeof out);
    denali.timer_ns = denali.time_ns + PATIENCE_NS;
}

static void end(void)
{
    over = true;
    denali.timer_ns = 0;
}

static void meet(const struct frame *in)
{
    memcpy(peer, in->from, 6);
    known = true;
    serves = memcmp(own, peer, 6) < 0;
    began_ns = denali.time_ns;
    print("met %02x:%02x:%02x:%02x:%02x:%02x, %s\n", peer[0], peer[1], peer[2], peer[3], peer[4], peer[5],
          serves ? "serving" : "returning");
    if (serves)
        send(SERVE, round_now = 1);
    else
        send(HELLO, 0); /* it may have been away when we greeted */
}

static void take(const struct frame *in, u64 size)
{
    if (size < sizeof *in || in->type != TYPE || over)
        return;
    if (!known && in->what != BYE)
        meet(in);
    if (!known || memcmp(in->from, peer, 6))
        return;
    for (u64 i = 0; i < sizeof in->filling && in->what != HELLO; i++)
        if (in->filling[i] != (u8)(in->round + i))
            panic("frame %u is not as it was sent", in->round);
    if (in->what == SERVE && !serves) {
        round_now = in->round;
        send(RETURN, in->round);
    } else if (in->what == RETURN && serves && in->round == round_now) {
        if (round_now < ROUNDS)
            return send(SERVE, ++round_now);
        send(BYE, round_now);
        end();
    } else if (in->what == BYE && !serves) {
        end();
    }
}

static void frames(void)
{
    u64 size;
    const struct frame *in;
    while ((in = network_receive(0, &size)) != NULL)
        take(in, size);
}

static void again(void)
{
    if (!known)
        return send(HELLO, 0);
    if (serves) {
        sent_again++;
        send(SERVE, round_now);
    } else if (++waited > 100) {
        end(); /* the other one's last word was lost, or it went away */
    } else {
        denali.timer_ns = denali.time_ns + PATIENCE_NS;
    }
}

static bool is_over(void *unused)
{
    (void)unused;
    return over;
}

int main(void)
{
    on_timer(again);
    if (!network_start(frames))
        panic("there is no network card");
    network_address(0, own);
    print("card 0 of %lu, model %lu, %02x:%02x:%02x:%02x:%02x:%02x, link %s\n", net_cards(),
          net_info(0, DENALI_CARD_MODEL), own[0], own[1], own[2], own[3], own[4], own[5],
          network_link(0) ? "up" : "down");
    send(HELLO, 0);
    wait_until(is_over, NULL, DENALI_FOREVER);
    print("%u rounds in %lu us, %u sent again; %lu frames received, %lu sent, %lu dropped\n", round_now,
          (denali.time_ns - began_ns) / 1000, sent_again, net_info(0, DENALI_CARD_RECEIVED),
          net_info(0, DENALI_CARD_SENT), net_info(0, DENALI_CARD_DROPPED));
    return 0;
}
