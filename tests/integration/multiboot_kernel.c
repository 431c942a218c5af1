/* A kernel with headers of both Multiboot versions, which writes all that it is told to the serial port.
 *
 * Compiled with DROPS it takes the first word off its command line, unless its boot loader is GRUB 2, as Xen
 * does: GRUB 0.97 and QEMU put the file name there. */

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

__asm__(".section .multiboot, \"a\"\n"
        ".align 8\n"
        "one: .long 0x1BADB002, 3, -(0x1BADB002 + 3)\n"
        ".align 8\n"
        "two: .long 0xE85250D6, 0, end - two, -(0xE85250D6 + (end - two))\n"
        ".word 1, 0\n .long 24, 1, 3, 6, 9\n" /* required: command line, modules, map, sections */
        ".word 6, 0\n .long 8\n"
        ".word 77, 1\n .long 12, 5\n .align 8\n" /* optional, of no known type */
        ".word 0, 0\n .long 8\n"
        "end:\n"
        ".text\n"
        ".globl _start\n"
        "_start: mov $stack + 8192, %esp\n"
        "push %ebx\n"
        "push %eax\n"
        "call kernel\n"
        "1: cli\n hlt\n jmp 1b\n");

u8 stack[8192];
u32 zeros[5000];

static void out(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static u8 in(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static void put(char c)
{
    while (!(in(0x3fd) & 0x20))
        ;
    out(0x3f8, c);
}

static void text(const char *s) { while (*s) put(*s++); }

static void number(u32 n)
{
    if (n > 9)
        number(n / 10);
    put('0' + n % 10);
}

static void field(const char *name, u32 n) { put(' '); text(name); put('='); number(n); }

static int starts(const char *s, const char *with)
{
    while (*with)
        if (*s++ != *with++)
            return 0;
    return 1;
}

static void command_line(const char *s, const char *loader)
{
#ifdef DROPS
    if (!starts(loader, "GRUB ") || loader[5] == '0') {
        while (*s && *s != ' ')
            s++;
        while (*s == ' ')
            s++;
    }
#endif
    text("line <"); text(s); text("> of "); text(starts(loader, "GRUB ") ? "GRUB" : loader); put('\n');
}

static void module(u32 start, u32 end, const char *words)
{
    text("module ["); text(words); put(']');
    field("size", end - start); field("page", start & 4095);
    if (end > start) {
        text(" begins ");
        put(*(char *)start);
    }
    put('\n');
}

struct shdr { u32 name, type, flags, addr, offset, size, link, info, align, entsize; };
struct sym { u32 name, value, size; u8 info, other; u16 shndx; };

static void sections(u32 count, u32 size, struct shdr *h, u32 names)
{
    text("sections"); field("size", size);
    for (u32 i = 1; i < count; i++) {
        put(' '); text((char *)h[names].addr + h[i].name);
        if (h[i].type == 2) {  /* symbols: find one of this kernel's own */
            struct sym *s = (struct sym *)h[i].addr;
            for (u32 k = 0; k < h[i].size / 16; k++)
                if (starts((char *)h[h[i].link].addr + s[k].name, "zeros") && s[k].value == (u32)zeros)
                    text("(zeros is there)");
        }
    }
    put('\n');
}

static void memory(u32 lower, u32 upper) { text("memory"); field("lower", lower); field("upper", upper); put('\n'); }

static void area(u64 start, u64 size, u32 type)
{
    if (type == 1) {
        text("ram"); field("from", start >> 10); field("kb", size >> 10); put('\n');
    }
}

static void first(u32 *i)
{
    text("flags"); field("now", i[0] & 0x26d); put('\n');
    command_line((char *)i[4], (char *)i[16]);
    for (u32 k = 0; k < i[5]; k++) {
        u32 *m = (u32 *)i[6] + 4 * k;
        module(m[0], m[1], (char *)m[2]);
    }
    if (i[0] & 32)
        sections(i[7], i[8], (struct shdr *)i[9], i[10]);
    memory(i[1], i[2]);
    for (u32 at = i[12]; at < i[12] + i[11]; at += *(u32 *)at + 4)
        area(*(u64 *)(at + 4), *(u64 *)(at + 12), *(u32 *)(at + 20));
}

static void second(u32 *info)
{
    char *line = "", *loader = "";
    text("aligned"); field("by8", !((u32)info & 7)); field("reserved", info[1]); put('\n');
    for (u32 at = (u32)info + 8; ; at += (((u32 *)at)[1] + 7) & ~7u) {
        u32 *tag = (u32 *)at;
        switch (tag[0]) {
        case 0: text("total"); field("right", at + tag[1] == (u32)info + info[0]); put('\n');
            command_line(line, loader); return;
        case 1: line = (char *)(tag + 2); break;
        case 2: loader = (char *)(tag + 2); break;
        case 3: module(tag[2], tag[3], (char *)(tag + 4)); break;
        case 4: memory(tag[2], tag[3]); break;
        case 6:
            for (u32 e = at + 16; e < at + tag[1]; e += tag[2])
                area(*(u64 *)e, *(u64 *)(e + 8), *(u32 *)(e + 16));
            break;
        case 9: sections(tag[2], tag[3], (struct shdr *)(tag + 5), tag[4]); break;
        case 21: text("base"); field("at", tag[2]); put('\n'); break;
        }
    }
}

void kernel(u32 magic, u32 *info)
{
    u32 sum = 0;
    for (u32 i = 0; i < 5000; i++)
        sum |= zeros[i];
    text("@begin"); field("bss", sum); put('\n');
    if (magic == 0x2BADB002)
        first(info);
    else if (magic == 0x36D76289)
        second(info);
    else
        text("nobody's magic\n");
    text("@end\n");
    out(0x501, 0);
}
