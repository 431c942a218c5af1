/* A Multiboot kernel that finds network cards by PCI: virtio-net (legacy) and e1000.
 *
 * It writes to the serial port where they are, what an e1000's registers hold after a reset, sends a frame by
 * each of them and prints the frame that comes back.  "quiet" on its command line: no frames. */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

__asm__(".section .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1BADB002, 2, -(0x1BADB002 + 2)\n"
        ".text\n"
        ".globl _start\n"
        "_start: mov $stack + 8192, %esp\n"
        "push %ebx\n"
        "call kernel\n"
        "1: cli\n hlt\n jmp 1b\n");

u8 stack[8192];

static void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static void out16(u16 port, u16 v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static u16 in16(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static void put(char c)
{
    while (!(in8(0x3fd) & 0x20))
        ;
    out8(0x3f8, c);
}

static void text(const char *s) { while (*s) put(*s++); }

static void hex(u32 n, int digits)
{
    while (digits--)
        put("0123456789abcdef"[n >> 4 * digits & 15]);
}

static void bytes(const u8 *data, u32 size) { while (size--) hex(*data++, 2); }

/* ---- PCI, by ports (configuration mechanism 1) -------------------------------- */

static u32 pci_read(u32 slot, u32 at)
{
    out32(0xcf8, 0x80000000u | slot << 11 | at);
    return in32(0xcfc);
}

static void pci_enable(u32 slot)
{
    u32 command = pci_read(slot, 4);
    out32(0xcfc, (command & 0xffff) | 7); /* ports, memory, bus master */
}

static u8 frame[60], received[4096] __attribute__((aligned(16)));

static void make_frame(const u8 *mac)
{
    for (int i = 0; i < 6; i++)
        frame[i] = 0xff, frame[6 + i] = mac[i];
    frame[12] = 0x88, frame[13] = 0xb5;
    for (u32 i = 14; i < sizeof frame; i++)
        frame[i] = (u8)i;
}

static void came(const u8 *data, u32 size) { text("got "); bytes(data, size); put('\n'); }

/* ---- e1000 ---------------------------------------------------------------------- */

struct descriptor { u64 address; u16 length; u8 a, b, status, c; u16 special; };
static volatile struct descriptor in_ring[8] __attribute__((aligned(128)));
static volatile struct descriptor out_ring[8] __attribute__((aligned(128)));
static volatile u32 *e1000;

static const u16 REGISTERS[] = {
    0x0000, 0x0008, 0x0010, 0x0014, 0x0018, 0x0028, 0x002c, 0x0030, 0x0038, 0x00c4, 0x00d0, 0x0100, 0x0170,
    0x0178, 0x0180, 0x0400, 0x0410, 0x0458, 0x0e00, 0x1000, 0x2160, 0x2168, 0x2800, 0x2804, 0x2808, 0x2810,
    0x2818, 0x2820, 0x2828, 0x282c, 0x2c00, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3820, 0x3828, 0x382c,
    0x3830, 0x4000, 0x4074, 0x40d0, 0x5000, 0x5200, 0x5400, 0x5404, 0x5408, 0x540c, 0x5600, 0x5800, 0x5808,
    0x5820,
};

static void e1000_show(const char *tag)
{
    for (u32 i = 0; i < sizeof REGISTERS / 2; i++) {
        text(tag); put(' '); hex(REGISTERS[i], 4); put(' '); hex(e1000[REGISTERS[i] / 4], 8); put('\n');
    }
    for (u32 i = 0; i < 64; i++) {
        e1000[0x14 / 4] = i << 8 | 1;
        u32 v;
        while (!((v = e1000[0x14 / 4]) & 0x10))
            ;
        text("eeprom "); hex(i, 2); put(' '); hex(v >> 16, 4); put('\n');
    }
    for (u32 i = 0; i < 32; i++) {
        e1000[0x20 / 4] = 1u << 21 | i << 16 | 2u << 26;
        u32 v;
        while (!((v = e1000[0x20 / 4]) & 0x10000000))
            ;
        text("phy "); hex(i, 2); put(' '); hex(v & 0xffff, 4); put(v & 0x40000000 ? '!' : ' '); put('\n');
    }
}

static void e1000_talk(void)
{
    for (int i = 0; i < 8; i++)
        in_ring[i].address = (u32)received;
    e1000[0x2800 / 4] = (u32)in_ring; e1000[0x2808 / 4] = sizeof in_ring; e1000[0x2818 / 4] = 7;
    e1000[0x3800 / 4] = (u32)out_ring; e1000[0x3808 / 4] = sizeof out_ring;
    e1000[0x0100 / 4] = 0x04008002; /* receive, broadcasts too, without the checksum */
    e1000[0x0400 / 4] = 0x0000000a;
    out_ring[0].address = (u32)frame;
    out_ring[0].length = sizeof frame;
    out_ring[0].a = 0, out_ring[0].b = 0x0b;
    e1000[0x3818 / 4] = 1;
    while (!(in_ring[0].status & 1))
        ;
    came(received, in_ring[0].length);
}

static void e1000_found(u32 slot, int talks)
{
    u32 memory = pci_read(slot, 0x10), ports = pci_read(slot, 0x18);
    text("memory "); hex(memory & 15, 1); text(" ports "); hex(ports & 3, 1); put('\n');
    e1000 = (volatile u32 *)(memory & ~15u);
    u8 mac[6];
    for (int i = 0; i < 6; i++)
        mac[i] = e1000[(0x5400 + i / 4 * 4) / 4] >> 8 * (i % 4);
    text("mac "); bytes(mac, 6); put('\n');
    out32(ports & ~3u, 0x5400);
    text("by ports "); hex(in32((ports & ~3u) + 4), 8); put('\n');
    e1000_show("at power-on");
    e1000[0] = e1000[0] | 1u << 26;
    for (volatile u32 i = 0; i < 100000; i++)
        ;
    while (e1000[0] & 1u << 26)
        ;
    e1000_show("after a reset");
    make_frame(mac);
    if (talks)
        e1000_talk();
}

/* ---- virtio-net, legacy ----------------------------------------------------------- */

struct part { u64 address; u32 size; u16 flags, next; };
static u8 rings[2][16384] __attribute__((aligned(4096)));
static u8 header[10];

static void queue(u16 at, u16 index, u8 *ring)
{
    out16(at + 14, index);
    out32(at + 8, (u32)ring >> 12);
}

static void virtio_found(u32 slot, int talks)
{
    u16 at = pci_read(slot, 0x10) & ~3u;
    text("ports "); hex(pci_read(slot, 0x10) & 3, 1); put('\n');
    out8(at + 18, 0);
    out8(at + 18, 3);
    u32 offered = in32(at);
    text("features "); hex(offered & 0x00018020, 8); put('\n'); /* MAC, STATUS, MRG_RXBUF */
    out32(at + 4, offered & 0x20);
    u8 mac[6];
    for (int i = 0; i < 6; i++)
        mac[i] = in8(at + 20 + i);
    text("mac "); bytes(mac, 6); put('\n');
    if (!talks)
        return;
    make_frame(mac);
    for (u32 i = 0; i < sizeof rings; i++)
        ((u8 *)rings)[i] = 0;
    for (int i = 0; i < 2; i++)
        queue(at, i, rings[i]);
    out16(at + 14, 0);
    u16 count = in16(at + 12);
    u32 used = (16 * count + 6 + 2 * count + 4095) & ~4095u;
    volatile struct part *in = (void *)rings[0], *out = (void *)rings[1];
    in[0].address = (u32)received, in[0].size = sizeof received, in[0].flags = 2;
    *(volatile u16 *)(rings[0] + 16 * count + 2) = 1;
    out8(at + 18, 7);
    out16(at + 16, 0);
    out[0].address = (u32)header, out[0].size = 10, out[0].flags = 1, out[0].next = 1;
    out[1].address = (u32)frame, out[1].size = sizeof frame;
    *(volatile u16 *)(rings[1] + 16 * count + 2) = 1;
    out16(at + 16, 1);
    volatile u16 *filled = (void *)(rings[0] + used + 2);
    while (!*filled)
        ;
    came(received + 10, *(volatile u32 *)(rings[0] + used + 8) - 10);
}

static int starts(const char *s, const char *with)
{
    while (*with)
        if (*s++ != *with++)
            return 0;
    return 1;
}

void kernel(const u32 *told)
{
    int talks = 1;
    if (told[0] & 4)
        for (const char *s = (const char *)told[4]; *s; s++)
            if (starts(s, "quiet"))
                talks = 0;
    text("@begin\n");
    for (u32 slot = 0; slot < 32; slot++) {
        u32 id = pci_read(slot, 0);
        if (id != 0x10001af4 && id != 0x100e8086)
            continue;
        pci_enable(slot);
        text("card "); hex(id & 0xffff, 4); put(':'); hex(id >> 16, 4);
        text(" class "); hex(pci_read(slot, 8) >> 8, 6); text(" interrupt pin "); hex(pci_read(slot, 0x3c) >> 8 & 255, 2);
        text(" line "); text((pci_read(slot, 0x3c) & 255) - 1 < 14 ? "set" : "not set"); put('\n');
        if (id == 0x10001af4)
            virtio_found(slot, talks);
        else
            e1000_found(slot, talks);
    }
    text("@end\n");
    out8(0x64, 0xfe); /* a reset, which ends both emulators */
}
