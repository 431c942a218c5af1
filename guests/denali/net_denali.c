/* The network stack on a Denali machine: frames by network.c, time and events by denali.c. */
#include "net_inside.h"

static void arm(void)
{
    u64 next = net_deadline();
    denali.timer_ns = next == DENALI_FOREVER ? 0 : next ? next : 1;
}

static void frames(void)
{
    u8 *frame;
    u64 size;
    while ((frame = network_receive(0, &size)) != NULL)
        net_input(frame, size);
    net_tick();
    arm();
}

static void timer(void)
{
    net_tick();
    arm();
}

u64 net_clock(void) { return denali.time_ns; }
u64 denali_seed(void) { return denali.wall_ns; }
bool net_output(const u8 *frame, u64 size) { return network_send(0, frame, size); }

u64 net_lock(void)
{
    u64 before = denali.enabled;
    events_off();
    return before;
}

void net_unlock(u64 before)
{
    arm();
    denali.enabled = before;
}

bool net_wait(bool (*done)(void *), void *argument, u64 deadline_ns)
{
    return wait_until(done, argument, deadline_ns);
}

bool net_start(u32 own, u32 mask, u32 gateway)
{
    u8 mac[6];
    u64 before = net_lock();
    bool found = network_start(frames) > 0;
    if (found) {
        network_address(0, mac);
        net_setup(mac, own, mask, gateway);
        on_timer(timer);
    }
    net_unlock(before);
    return found;
}

static bool has_address(void *unused)
{
    (void)unused;
    return net.own != 0;
}

bool net_start_dhcp(u64 deadline_ns)
{
    if (!net_start(0, 0, 0))
        return false;
    u64 before = net_lock();
    dhcp_start();
    net_unlock(before);
    return wait_until(has_address, NULL, deadline_ns);
}
