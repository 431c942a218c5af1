/* A kernel of a few hundred lines that does what hobby kernels do first. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a stub leaves on the stack (start.S). */
struct frame {
    uint32_t es, ds;
    uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax;
    uint32_t vector, error;
    uint32_t eip, cs, eflags;
};

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void interrupts_off(void) { __asm__ volatile("cli" : : : "memory"); }
static inline void interrupts_on(void) { __asm__ volatile("sti" : : : "memory"); }
/* Sleep until an interrupt; what it changed may be looked at with interrupts off again.  STI works after
   the next instruction only, so that no interrupt can slip in before the HLT. */
static inline void sleep(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }

/* console.c */
void console_init(void);
void console_interrupt(void);
bool console_line(char *line, size_t size); /* a line that was typed, if there is one */
void print(const char *format, ...);        /* %s %u (decimal) %x (hex) %2 (two digits) %c */

/* interrupts.c */
extern volatile uint32_t timer_ticks; /* 100 a second */
void segments_init(void);
void interrupts_init(void);
void timer_init(void);
void unmask(int irq);

/* memory.c */
void paging_init(uint32_t bytes);
bool page_fault(struct frame *frame);

/* disk.c */
extern int disk_irq; /* -1 without a disk */
void pci_scan(void);
void disk_interrupt(void);
bool disk_read(uint64_t sector, void *data);

/* start.S */
void run_user(void *entry, void *stack);
void leave_user(void);
