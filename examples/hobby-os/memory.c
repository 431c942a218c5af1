/* 32-bit paging: the kernel's memory is mapped one to one, a hole of it on demand. */

#include "hobby.h"

#define PRESENT 1
#define WRITE 2
#define USER 4
#define TABLES 4 /* 4 MB each */
#define DEMAND_START 0xD0000000u
#define DEMAND_PAGES 4

extern char user_start[], user_end[];

static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t tables[TABLES][1024] __attribute__((aligned(4096)));
static uint32_t demand_table[1024] __attribute__((aligned(4096)));
static char demand_pages[DEMAND_PAGES][4096] __attribute__((aligned(4096)));
static uint32_t demand_used;

void paging_init(uint32_t bytes)
{
    for (uint32_t addr = 0; addr < TABLES << 22 && addr < bytes; addr += 4096) {
        uint32_t user = addr >= (uint32_t)user_start && addr < (uint32_t)user_end ? USER : 0;
        tables[addr >> 22][addr >> 12 & 1023] = addr | user | WRITE | PRESENT;
    }
    tables[0][0] = 0; /* null pointers fault */
    for (int i = 0; i < TABLES; i++)
        directory[i] = (uint32_t)tables[i] | USER | WRITE | PRESENT;
    directory[DEMAND_START >> 22] = (uint32_t)demand_table | WRITE | PRESENT;
    __asm__ volatile(
        "mov %0, %%cr3\n\t"
        "mov %%cr0, %%eax\n\t"
        "or $0x80010000, %%eax\n\t" /* paging, and write protection for the kernel too */
        "mov %%eax, %%cr0"
        : : "r"(directory) : "eax", "memory");
}

/* Give the hole a page where it is touched; false for any other fault. */
bool page_fault(struct frame *frame)
{
    uint32_t addr;
    __asm__ volatile("mov %%cr2, %0" : "=r"(addr));
    print("kernel: page fault at 0x%x, error 0x%x", addr, frame->error);
    if (addr < DEMAND_START || addr >= DEMAND_START + (1 << 22) || frame->error & PRESENT || demand_used == DEMAND_PAGES) {
        print("\n");
        return false;
    }
    uint32_t page = (uint32_t)demand_pages[demand_used++];
    demand_table[addr >> 12 & 1023] = page | WRITE | PRESENT;
    print(": mapped a page there\n");
    return true;
}
