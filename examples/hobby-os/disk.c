/* PCI by configuration mechanism 1, and the legacy virtio disk on it (Virtio 0.9.5). */

#include "hobby.h"

#define QUEUE_MOST 256
#define NEXT 1
#define DEVICE_WRITES 2

struct descriptor { uint64_t addr; uint32_t length; uint16_t flags, next; };
struct used { uint16_t flags, index; struct { uint32_t id, length; } ring[QUEUE_MOST]; };

int disk_irq = -1;
static uint16_t disk_port;
static uint16_t queue_size;
static volatile bool disk_done;

/* Descriptors and the available ring, then the used ring on a page of its own. */
static uint8_t queue[3 * 4096 + 4096] __attribute__((aligned(4096)));
static volatile uint16_t *available;
static volatile struct used *used;

static uint32_t pci_read(uint32_t slot, uint32_t offset)
{
    out32(0xCF8, 0x80000000 | slot << 11 | offset);
    return in32(0xCFC);
}

static bool disk_init(uint32_t slot)
{
    disk_port = (uint16_t)(pci_read(slot, 0x10) & ~3u);
    out8(disk_port + 0x12, 0);     /* reset */
    out8(disk_port + 0x12, 1 | 2); /* I see you, I can drive you */
    out32(disk_port + 0x04, 0);    /* with no extra features */
    out16(disk_port + 0x0E, 0);
    queue_size = in16(disk_port + 0x0C);
    if (queue_size > QUEUE_MOST || queue_size < 4)
        return false;
    available = (uint16_t *)(queue + 16 * queue_size);
    uint32_t end = 16u * queue_size + 2 * (3u + queue_size);
    used = (struct used *)(queue + ((end + 4095) & ~4095u));
    out32(disk_port + 0x08, (uint32_t)queue >> 12);
    out8(disk_port + 0x12, 1 | 2 | 4); /* ready */
    disk_irq = (int)(pci_read(slot, 0x3C) & 0xFF);
    unmask(disk_irq);
    return true;
}

void pci_scan(void)
{
    for (uint32_t slot = 0; slot < 32; slot++) {
        uint32_t id = pci_read(slot, 0);
        if (id == 0xFFFFFFFF)
            continue;
        print("pci: slot %u is %x:%x, class %x", slot, id & 0xFFFF, id >> 16, pci_read(slot, 8) >> 8);
        if (id == 0x10011AF4 && disk_irq < 0 && disk_init(slot))
            print(", a disk of %u sectors at port 0x%x, irq %u", in32(disk_port + 0x14), disk_port, disk_irq);
        print("\n");
    }
}

void disk_interrupt(void)
{
    if (in8(disk_port + 0x13) & 1) /* reading it lowers the line */
        disk_done = true;
}

/* Read one sector of 512 bytes and sleep until it is there. */
bool disk_read(uint64_t sector, void *data)
{
    static struct { uint32_t type, priority; uint64_t sector; } request;
    static volatile uint8_t status;
    volatile struct descriptor *descriptors = (struct descriptor *)queue;

    if (disk_irq < 0)
        return false;
    request.sector = sector;
    status = 0xFF;
    descriptors[0] = (struct descriptor){(uint32_t)&request, sizeof request, NEXT, 1};
    descriptors[1] = (struct descriptor){(uint32_t)data, 512, NEXT | DEVICE_WRITES, 2};
    descriptors[2] = (struct descriptor){(uint32_t)&status, 1, DEVICE_WRITES, 0};
    available[2 + available[1] % queue_size] = 0;
    __asm__ volatile("" : : : "memory");
    available[1]++;
    disk_done = false;
    out16(disk_port + 0x10, 0);
    interrupts_off();
    while (!disk_done)
        sleep();
    interrupts_on();
    return status == 0;
}
