/* The library of the Denali guest kit; denali.h says what each function is for. */
#include "denali.h"

extern u8 event_upcall[], exception_upcall[];

volatile u64 denali_batches, denali_full_batches;

static void (*timer_handler)(void);
static void (*input_handler)(void);
static void (*network_handler)(void);
static bool (*exception_handler)(struct saved_registers *);

/* ---- memory ---------------------------------------------------------------- */

void *memcpy(void *to, const void *from, u64 size)
{
    u8 *t = to;
    const u8 *f = from;
    for (; size >= 8; size -= 8, t += 8, f += 8)
        *(u64 *)t = *(const u64 *)f;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memmove(void *to, const void *from, u64 size)
{
    u8 *t = to;
    const u8 *f = from;
    if (t <= f)
        while (size--)
            *t++ = *f++;
    else
        while (size--)
            t[size] = f[size];
    return to;
}

void *memset(void *to, int byte, u64 size)
{
    u8 *t = to;
    u64 eight = (u8)byte * 0x0101010101010101ul;
    for (; size >= 8; size -= 8, t += 8)
        *(u64 *)t = eight;
    while (size--)
        *t++ = (u8)byte;
    return to;
}

int memcmp(const void *a, const void *b, u64 size)
{
    const u8 *x = a, *y = b;
    for (; size; size--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

u64 strlen(const char *s)
{
    u64 n = 0;
    while (s[n])
        n++;
    return n;
}

u32 crc32(u32 crc, const void *data, u64 size)
{
    static u32 table[256];
    if (!table[1])
        for (u32 i = 0; i < 256; i++) {
            u32 c = i;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
            table[i] = c;
        }
    crc = ~crc;
    for (const u8 *p = data; size--; p++)
        crc = crc >> 8 ^ table[(u8)(crc ^ *p)];
    return ~crc;
}

/* ---- console --------------------------------------------------------------- */

struct line {
    char text[256];
    u64 size;
};

static void put(struct line *line, char c)
{
    if (line->size < sizeof line->text)
        line->text[line->size++] = c;
}

static void put_number(struct line *line, u64 value, u64 base, bool minus, bool zeros, int width)
{
    char digits[24];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    if (minus && zeros)
        put(line, '-');
    for (int i = n + minus; i < width; i++)
        put(line, zeros ? '0' : ' ');
    if (minus && !zeros)
        put(line, '-');
    while (n)
        put(line, digits[--n]);
}

static void format_line(struct line *line, const char *format, __builtin_va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(line, *format);
            continue;
        }
        bool zeros = false, is_long = false;
        int width = 0;
        if (*++format == '0')
            zeros = true, format++;
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        if (*format == 'l')
            is_long = true, format++;
        switch (*format) {
        case 's': {
            const char *s = __builtin_va_arg(arguments, const char *);
            for (int n = (int)strlen(s); n < width; n++)
                put(line, ' ');
            while (*s)
                put(line, *s++);
            break;
        }
        case 'c':
            put(line, (char)__builtin_va_arg(arguments, int));
            break;
        case 'd': {
            long v = is_long ? __builtin_va_arg(arguments, long) : __builtin_va_arg(arguments, int);
            put_number(line, v < 0 ? -(u64)v : (u64)v, 10, v < 0, zeros, width);
            break;
        }
        case 'u':
        case 'x': {
            u64 v = is_long ? __builtin_va_arg(arguments, u64) : __builtin_va_arg(arguments, u32);
            put_number(line, v, *format == 'u' ? 10 : 16, false, zeros, width);
            break;
        }
        case '%':
            put(line, '%');
            break;
        default: /* unknown, or the format ends here */
            put(line, '?');
            if (!*format)
                return;
        }
    }
}

void print(const char *format, ...)
{
    struct line line = {.size = 0}; /* on the stack: event handlers print too */
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    format_line(&line, format, arguments);
    __builtin_va_end(arguments);
    console_write(line.text, line.size);
}

void panic(const char *format, ...)
{
    struct line line = {.size = 0};
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    format_line(&line, format, arguments);
    __builtin_va_end(arguments);
    put(&line, '\n');
    console_write("panic: ", 7);
    console_write(line.text, line.size);
    terminate(1);
}

/* ---- disk ------------------------------------------------------------------ */

static struct {
    u64 number; /* 0: free */
    disk_callback done;
    void *argument;
} requests[64];

bool disk_start(bool write, u64 disk, u64 block, void *page, disk_callback done, void *argument)
{
    u64 enabled = denali.enabled;
    bool started = false;
    events_off(); /* or the completion could come before its slot is filled in */
    for (u64 i = 0; i < 64; i++) {
        if (requests[i].number)
            continue;
        u64 number = write ? disk_write(disk, block, (u64)page) : disk_read(disk, block, (u64)page);
        if (number != DENALI_REFUSED) {
            requests[i].number = number;
            requests[i].done = done;
            requests[i].argument = argument;
            started = true;
        }
        break;
    }
    denali.enabled = enabled;
    return started;
}

static void disk_events(void)
{
    u64 done;
    while ((done = disk_done()) != 0)
        for (u64 i = 0; i < 64; i++)
            if (requests[i].number == (done & ~DENALI_FAILED)) {
                requests[i].number = 0;
                requests[i].done(requests[i].argument, !(done & DENALI_FAILED));
                break;
            }
}

/* ---- events and exceptions ------------------------------------------------- */

void on_timer(void (*handler)(void)) { timer_handler = handler; }
void on_input(void (*handler)(void)) { input_handler = handler; }
void on_network(void (*handler)(void)) { network_handler = handler; }
void on_exception(bool (*handler)(struct saved_registers *)) { exception_handler = handler; }

/* What comes from outside: one test for both of them, as they are rare. */
static void outside_events(u64 mask)
{
    if (mask & DENALI_EVENT_INPUT && input_handler)
        input_handler();
    if (mask & DENALI_EVENT_NETWORK && network_handler)
        network_handler();
}

/* Called by the event stub, and for the events that idling has taken. */
void kit_events(u64 mask)
{
    if (!mask)
        return;
    denali_batches++;
    if (mask & (mask - 1))
        denali_full_batches++;
    if (mask & DENALI_EVENT_TIMER && timer_handler)
        timer_handler();
    if (mask & (DENALI_EVENT_INPUT | DENALI_EVENT_NETWORK))
        outside_events(mask);
    if (mask & DENALI_EVENT_DISK)
        disk_events();
}

void kit_exception(struct saved_registers *registers)
{
    if (exception_handler && exception_handler(registers))
        return;
    panic("exception %lu (error %lx) at %lx, address %lx", denali.exception.vector, denali.exception.error,
          denali.exception.rip, denali.exception.address);
}

void kit_start(void)
{
    denali.event_handler = (u64)event_upcall;
    denali.exception_handler = (u64)exception_upcall;
    events_on();
}

/* ---- time ------------------------------------------------------------------ */

u64 now_ns(void)
{
    u64 enabled = denali.enabled;
    events_off(); /* else a waiting event would be delivered, which is fine too; this is cheaper */
    kit_events(idle_with_timeout(0));
    denali.enabled = enabled;
    return denali.time_ns;
}

void sleep_until(u64 time_ns)
{
    u64 now = now_ns();
    while (now < time_ns) {
        idle_with_timeout(time_ns - now); /* events are delivered to the upcall meanwhile */
        now = denali.time_ns;
    }
}

bool wait_until(bool (*done)(void *), void *argument, u64 deadline_ns)
{
    u64 now = now_ns();
    events_off();
    bool good;
    while (!(good = done(argument)) && now < deadline_ns) {
        kit_events(idle_with_timeout(deadline_ns - now)); /* events off: idling takes them */
        now = denali.time_ns;
    }
    events_on();
    return good;
}

/* ---- TLB ------------------------------------------------------------------- */

static void wire(u64 page, u64 rights)
{
    if (tlb_load(page, page, rights | DENALI_WIRED) == DENALI_REFUSED)
        panic("page %lx cannot be wired", page);
}

void tlb_start(void)
{
    wire(DENALI_REGISTERS, DENALI_READ | DENALI_WRITE);
    for (u64 page = (u64)image_start; page < (u64)image_end; page += DENALI_PAGE)
        wire(page, page < (u64)data_start ? DENALI_READ | DENALI_EXECUTE : DENALI_READ | DENALI_WRITE);
    if (tlb_enable(1) == DENALI_REFUSED)
        panic("this machine has no TLB");
}
