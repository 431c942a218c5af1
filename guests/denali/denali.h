/* The Denali guest kit: the machine's interface, and a small library over it.
 *
 * docs/denali-machine.md is the manual; the names here are the manual's names.
 * Everything the library touches lies in the guest's image, which it maps one
 * to one, so that a pointer into the image is also a physical address.
 */
#ifndef DENALI_H
#define DENALI_H

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/* ---- the virtual registers ------------------------------------------------ */

struct denali_registers {
    u64 magic;             /* 0x00 "DENALI1" */
    u64 cpu_hz;            /* 0x08 instructions per guest second */
    u64 mem_bytes;         /* 0x10 size of RAM */
    u64 time_ns;           /* 0x18 guest time at the last hand-over */
    u64 pending;           /* 0x20 events waiting, as of the last hand-over */
    u64 enabled;           /* 0x28 not 0: events may be delivered */
    u64 event_handler;     /* 0x30 */
    u64 exception_handler; /* 0x38 */
    u64 timer_ns;          /* 0x40 guest time of the next timer event, 0: none */
    u64 quantum_ticks;     /* 0x48 length of a quantum in instructions */
    u64 wall_ns;           /* 0x50 ns since 1970 at the last hand-over */
    u64 reserved0[21];
    struct {
        u64 rip, rflags, rsp, rax; /* 0x100 */
        u64 mask;                  /* 0x120 the events being delivered */
    } event;
    u64 reserved1[3];
    struct {
        u64 rip, rflags, rsp, rax; /* 0x140 */
        u64 vector;                /* 0x160 */
        u64 error;                 /* 0x168 */
        u64 address;               /* 0x170 faulting virtual address */
        u64 active;                /* 0x178 1 while an exception is handled */
    } exception;
};

#define DENALI_PAGE 4096ul
#define DENALI_REGISTERS 0x1000ul
#define DENALI_MAGIC 0x31494c414e4544ul
#define denali (*(volatile struct denali_registers *)DENALI_REGISTERS)

#define DENALI_EVENT_TIMER 1ul
#define DENALI_EVENT_INPUT 2ul
#define DENALI_EVENT_DISK 4ul
#define DENALI_EVENT_NETWORK 8ul

#define DENALI_READ 1ul
#define DENALI_WRITE 2ul
#define DENALI_EXECUTE 4ul
#define DENALI_WIRED 8ul

#define DENALI_REFUSED (~0ul)      /* returned by a virtual instruction for arguments that make no sense */
#define DENALI_FOREVER (~0ul)      /* the timeout of an idle without one */
#define DENALI_ALL (~0ul)          /* tlb_flush: every unwired entry */
#define DENALI_FAILED (1ul << 63)  /* disk_done: the request failed */
#define DENALI_READ_ONLY (1ul << 63) /* disk_info: the disk cannot be written */
#define DENALI_NO_PAGE (~0ul)        /* net_receive: give no page in exchange */
#define DENALI_MORE (1ul << 63)      /* net_receive: another frame is there */

/* What net_info tells of a card. */
#define DENALI_CARD_MODEL 0    /* 0 denali, 1 classic */
#define DENALI_CARD_ADDRESS 1  /* six bytes, the first one lowest */
#define DENALI_CARD_LINK 2     /* 1 up, 0 down */
#define DENALI_CARD_LONGEST 3  /* bytes of the longest frame, without its checksum */
#define DENALI_CARD_RECEIVED 4 /* frames put into the guest's memory */
#define DENALI_CARD_SENT 5     /* frames that went out */
#define DENALI_CARD_DROPPED 6  /* frames lost, in either direction */

/* ---- the virtual instructions --------------------------------------------- */

#define DENALI_TERMINATE 0
#define DENALI_IDLE_WITH_TIMEOUT 1
#define DENALI_RETURN_FROM_EVENT 2
#define DENALI_RETURN_FROM_EXCEPTION 3
#define DENALI_TLB_LOAD 4
#define DENALI_TLB_FLUSH 5
#define DENALI_TLB_ENABLE 6
#define DENALI_CONSOLE_WRITE 7
#define DENALI_CONSOLE_READ 8
#define DENALI_DISK_INFO 9
#define DENALI_DISK_READ 10
#define DENALI_DISK_WRITE 11
#define DENALI_DISK_DONE 12
#define DENALI_NET_INFO 13
#define DENALI_NET_GIVE 14
#define DENALI_NET_SEND 15
#define DENALI_NET_RECEIVE 16
#define DENALI_NET_PORT_READ 17
#define DENALI_NET_PORT_WRITE 18

static inline u64 denali_call(u64 number, u64 a, u64 b, u64 c)
{
    u64 result;
    __asm__ volatile("vmcall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "memory");
    return result;
}

static inline __attribute__((noreturn)) void terminate(u64 status)
{
    denali_call(DENALI_TERMINATE, status, 0, 0);
    __builtin_trap(); /* not reached; it keeps the return address inside this function */
}

static inline u64 idle_with_timeout(u64 timeout_ns)
{
    return denali_call(DENALI_IDLE_WITH_TIMEOUT, timeout_ns, 0, 0);
}

static inline u64 tlb_load(u64 virtual_page, u64 physical_page, u64 rights)
{
    return denali_call(DENALI_TLB_LOAD, virtual_page, physical_page, rights);
}

static inline u64 tlb_flush(u64 virtual_page)
{
    return denali_call(DENALI_TLB_FLUSH, virtual_page, 0, 0);
}

static inline u64 tlb_enable(u64 on)
{
    return denali_call(DENALI_TLB_ENABLE, on, 0, 0);
}

static inline u64 console_write(const void *physical, u64 size)
{
    return denali_call(DENALI_CONSOLE_WRITE, (u64)physical, size, 0);
}

static inline u64 console_read(void *physical, u64 size)
{
    return denali_call(DENALI_CONSOLE_READ, (u64)physical, size, 0);
}

static inline u64 disk_info(u64 disk)
{
    return denali_call(DENALI_DISK_INFO, disk, 0, 0);
}

static inline u64 disk_read(u64 disk, u64 block, u64 physical_page)
{
    return denali_call(DENALI_DISK_READ, disk, block, physical_page);
}

static inline u64 disk_write(u64 disk, u64 block, u64 physical_page)
{
    return denali_call(DENALI_DISK_WRITE, disk, block, physical_page);
}

static inline u64 disk_done(void)
{
    return denali_call(DENALI_DISK_DONE, 0, 0, 0);
}

static inline u64 net_info(u64 card, u64 item)
{
    return denali_call(DENALI_NET_INFO, card, item, 0);
}

static inline u64 net_cards(void) /* how many cards there are */
{
    u64 count = net_info(DENALI_ALL, 0);
    return count == DENALI_REFUSED ? 0 : count;
}

static inline u64 net_give(u64 card, u64 physical_page)
{
    return denali_call(DENALI_NET_GIVE, card, physical_page, 0);
}

static inline u64 net_send(u64 card, const void *physical, u64 size)
{
    return denali_call(DENALI_NET_SEND, card, (u64)physical, size);
}

static inline u64 net_receive(u64 card, u64 physical_page) /* DENALI_NO_PAGE, or a page to give in exchange */
{
    return denali_call(DENALI_NET_RECEIVE, card, physical_page, 0);
}

static inline u64 net_port_read(u64 card, u64 port)
{
    return denali_call(DENALI_NET_PORT_READ, card, port, 0);
}

static inline u64 net_port_write(u64 card, u64 port, u64 value)
{
    return denali_call(DENALI_NET_PORT_WRITE, card, port, value);
}

/* ---- the library (denali.c, start.S) -------------------------------------- */

/* The registers a stub has saved, as a handler sees them; RIP, RFLAGS, RSP and
 * RAX are in the frame in the register page. */
struct saved_registers {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx;
};

int main(void); /* the guest; what it returns is the status of terminate */

/* Memory.  gcc calls these by itself, so they are always there. */
void *memcpy(void *to, const void *from, u64 size);
void *memmove(void *to, const void *from, u64 size);
void *memset(void *to, int byte, u64 size);
int memcmp(const void *a, const void *b, u64 size);
u64 strlen(const char *s);
u32 crc32(u32 crc, const void *data, u64 size);

/* Console: %s %c %d %u %x %lu %ld %lx, with 0 and a width, and %%.  One call is
 * one console_write, at most 256 bytes. */
__attribute__((format(printf, 1, 2))) void print(const char *format, ...);

/* Print a line and end the machine with status 1. */
__attribute__((noreturn, format(printf, 1, 2))) void panic(const char *format, ...);

/* Events.  A handler runs with events off, on the event stack (in an upcall) or
 * on the caller's (in wait_until). */
void on_timer(void (*handler)(void));
void on_input(void (*handler)(void));
void on_network(void (*handler)(void)); /* not with network_start, which has a handler of its own */
static inline void events_on(void) { denali.enabled = 1; }
static inline void events_off(void) { denali.enabled = 0; }

/* Count of hand-overs of events to this guest, and of those with several bits. */
extern volatile u64 denali_batches, denali_full_batches;

/* Exceptions: return true to go on at the frame's RIP (which may be changed).
 * Without a handler, or when it returns false, the guest panics. */
void on_exception(bool (*handler)(struct saved_registers *registers));

/* Time.  now_ns is exact (it makes the machine hand over, so event handlers may
 * run within it: do not call it in one); denali.time_ns is free, and as old as
 * the last hand-over. */
u64 now_ns(void);
void sleep_until(u64 time_ns);
/* Idle until done(argument), false if `deadline_ns` came first.  Nothing that
 * happens between the check and the idling is missed. */
bool wait_until(bool (*done)(void *), void *argument, u64 deadline_ns);

/* Disk: start a request; `done` is called from the event handler. False if the
 * machine refused it. `page` is a physical page. */
typedef void (*disk_callback)(void *argument, bool good);
bool disk_start(bool write, u64 disk, u64 block, void *page, disk_callback done, void *argument);

/* Network (network.c, which a guest that uses it is linked with): frames by
 * cards of either model, with buffers of the driver's own.  A frame begins with
 * the destination's address and has no checksum.  Cards are numbered from 0. */

#define NETWORK_CARDS 4    /* most cards that the driver serves */
#define NETWORK_LEAST 14ul /* bytes of the shortest frame: its header */

/* Start all cards and return how many there are, 0 on a machine without.
 * `handler` (or NULL) is called like the others, with events off, when frames
 * have arrived or a link has changed: call network_receive until NULL. */
u64 network_start(void (*handler)(void));

/* The card's address; whether its cable is plugged in; the longest frame it
 * sends and receives, header included: 4096 bytes, of a classic card 1518. */
void network_address(u64 card, u8 address[6]);
bool network_link(u64 card);
u64 network_longest(u64 card);

/* Send a frame.  `frame` is a physical address (any in the image); its bytes are
 * taken at once, so it may be used again at once.  False if it was not sent: no
 * such card, a size that no frame has, or no link. */
bool network_send(u64 card, const void *frame, u64 size);

/* Take the oldest frame that was received, NULL if there is none.  It may be read
 * and written until the next network_receive of the same card. */
void *network_receive(u64 card, u64 *size);

/* TLB: wire the register page and the whole image one to one, then switch
 * translation on.  Everything else is up to the exception handler. */
void tlb_start(void);

extern u8 image_start[], data_start[], image_end[]; /* page-aligned; code is before data_start */

#endif
