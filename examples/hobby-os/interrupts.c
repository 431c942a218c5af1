/* Segments, the interrupt table, the two PICs and the timer. */

#include "hobby.h"

#define PIC1 0x20
#define PIC2 0xA0
#define FIRST_IRQ 32 /* vectors 0 to 31 are the CPU's own */
#define PIT_HZ 1193182
#define TIMER_HZ 100

extern char interrupt_stubs[], system_call_stub[], interrupt_stack_top[];
void load_gdt(const void *gdtr);
void interrupt(struct frame *frame);

volatile uint32_t timer_ticks;

static struct { uint32_t link, esp0, ss0, rest[23]; } __attribute__((packed)) tss;
static uint64_t gdt[6] = {
    0,
    0x00CF9A000000FFFF, /* 0x08: ring 0 code */
    0x00CF92000000FFFF, /* 0x10: ring 0 data */
    0x00CFFA000000FFFF, /* 0x18: ring 3 code */
    0x00CFF2000000FFFF, /* 0x20: ring 3 data */
};
static uint64_t idt[129];
static uint16_t mask = 0xFFFF & ~(1 << 2); /* all but the cascade */

struct __attribute__((packed)) table { uint16_t limit; const void *base; };

void segments_init(void)
{
    uint32_t base = (uint32_t)&tss;
    tss.esp0 = (uint32_t)interrupt_stack_top;
    tss.ss0 = 0x10;
    tss.rest[22] = sizeof tss << 16; /* no I/O permission map */
    gdt[5] = 0x0000890000000000 | (uint64_t)(base >> 24) << 56 | (uint64_t)(base & 0xFFFFFF) << 16 | (sizeof tss - 1);
    struct table gdtr = {sizeof gdt - 1, gdt};
    load_gdt(&gdtr);
    __asm__ volatile("ltr %w0" : : "r"(0x28));
}

static void set_gate(int vector, const char *stub, uint32_t kind)
{
    uint32_t entry = (uint32_t)stub;
    idt[vector] = (uint64_t)(entry & 0xFFFF0000) << 32 | (uint64_t)kind << 40 | 0x08 << 16 | (entry & 0xFFFF);
}

static void pic_mask(void)
{
    out8(PIC1 + 1, (uint8_t)mask);
    out8(PIC2 + 1, (uint8_t)(mask >> 8));
}

void unmask(int irq)
{
    mask &= (uint16_t)~(1 << irq);
    pic_mask();
}

void interrupts_init(void)
{
    for (int vector = 0; vector < 48; vector++)
        set_gate(vector, interrupt_stubs + 16 * vector, 0x8E);
    set_gate(0x80, system_call_stub, 0xEE); /* ring 3 may call this one */
    struct table idtr = {sizeof idt - 1, idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));

    out8(PIC1, 0x11); /* ICW1 to ICW4: both PICs, in a cascade on line 2 */
    out8(PIC2, 0x11);
    out8(PIC1 + 1, FIRST_IRQ);
    out8(PIC2 + 1, FIRST_IRQ + 8);
    out8(PIC1 + 1, 1 << 2);
    out8(PIC2 + 1, 2);
    out8(PIC1 + 1, 1);
    out8(PIC2 + 1, 1);
    pic_mask();
}

void timer_init(void)
{
    out8(0x43, 0x34); /* channel 0, rate generator */
    out8(0x40, (PIT_HZ / TIMER_HZ) & 0xFF);
    out8(0x40, (PIT_HZ / TIMER_HZ) >> 8);
    unmask(0);
}

static void system_call(struct frame *frame)
{
    switch (frame->eax) {
    case 0:
        print("kernel: ring 3 program ends, its CS was 0x%x\n", frame->ebx);
        leave_user();
        break;
    case 1:
        print("%s", (const char *)frame->ebx);
        break;
    }
}

static void device_interrupt(int irq)
{
    if (irq == 0)
        timer_ticks++;
    else if (irq == 4)
        console_interrupt();
    else if (irq == disk_irq)
        disk_interrupt();
    if (irq >= 8)
        out8(PIC2, 0x20); /* end of interrupt */
    out8(PIC1, 0x20);
}

void interrupt(struct frame *frame)
{
    uint32_t vector = frame->vector;
    if (vector == 0x80) {
        system_call(frame);
    } else if (vector >= FIRST_IRQ) {
        device_interrupt((int)vector - FIRST_IRQ);
    } else if (vector != 14 || !page_fault(frame)) {
        print("kernel: exception %u (error 0x%x) at 0x%x: halting\n", vector, frame->error, frame->eip);
        for (;;)
            __asm__ volatile("cli; hlt");
    }
}
