/* COM1, a 16550: output by polling, input by interrupts, with echo and lines. */

#include "hobby.h"

#define COM1 0x3F8
#define DATA (COM1 + 0)
#define INTERRUPT_ENABLE (COM1 + 1)
#define FIFO_CONTROL (COM1 + 2)
#define LINE_CONTROL (COM1 + 3)
#define MODEM_CONTROL (COM1 + 4)
#define LINE_STATUS (COM1 + 5)

static char typed[128];
static volatile size_t typed_length;
static volatile bool typed_whole;

void console_init(void)
{
    out8(INTERRUPT_ENABLE, 0);
    out8(LINE_CONTROL, 0x80); /* the divisor: 115200 baud */
    out8(DATA, 1);
    out8(COM1 + 1, 0);
    out8(LINE_CONTROL, 0x03); /* 8 bits, no parity, 1 stop bit */
    out8(FIFO_CONTROL, 0x07);
    out8(MODEM_CONTROL, 0x0B); /* OUT2 lets interrupts through */
    out8(INTERRUPT_ENABLE, 0x01);
    unmask(4);
}

static void put(char c)
{
    if (c == '\n')
        put('\r');
    while (!(in8(LINE_STATUS) & 0x20))
        ;
    out8(DATA, (uint8_t)c);
}

void console_interrupt(void)
{
    while (in8(LINE_STATUS) & 1) {
        char c = (char)in8(DATA);
        if (c == '\r')
            c = '\n';
        if (typed_whole)
            continue; /* nobody has taken the last line yet */
        if (c == '\n') {
            typed[typed_length] = 0;
            typed_whole = true;
        } else if (typed_length < sizeof typed - 1) {
            typed[typed_length++] = c;
        } else {
            continue;
        }
        put(c);
    }
}

bool console_line(char *line, size_t size)
{
    if (!typed_whole)
        return false;
    size_t i = 0;
    for (; i < typed_length && i + 1 < size; i++)
        line[i] = typed[i];
    line[i] = 0;
    typed_length = 0;
    typed_whole = false;
    return true;
}

static void put_number(uint32_t value, uint32_t base, int digits)
{
    char text[12];
    int n = 0;
    do {
        text[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value || n < digits);
    while (n)
        put(text[--n]);
}

void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = __builtin_va_arg(arguments, const char *); *s; s++)
                put(*s);
            break;
        case 'c': put((char)__builtin_va_arg(arguments, int)); break;
        case 'u': put_number(__builtin_va_arg(arguments, uint32_t), 10, 1); break;
        case '2': put_number(__builtin_va_arg(arguments, uint32_t), 10, 2); break;
        case 'x': put_number(__builtin_va_arg(arguments, uint32_t), 16, 1); break;
        default: put(*format);
        }
    }
    __builtin_va_end(arguments);
}
