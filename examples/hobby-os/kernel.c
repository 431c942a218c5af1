/* The kernel: starts everything once, then a small shell.  Its command line may hold
       run=COMMAND,COMMAND,...   commands to run first, such as run=sleep,halt */

#include "hobby.h"

struct multiboot {
    uint32_t flags, lower_kb, upper_kb, boot_device;
    const char *command_line;
};

static uint32_t *volatile not_mapped = (uint32_t *)4; /* no page is mapped at 0 */

extern char user_program[], user_stack_top[];
void kernel_main(uint32_t magic, const struct multiboot *information);

static bool starts_with(const char *text, const char *word)
{
    while (*word)
        if (*text++ != *word++)
            return false;
    return true;
}

static uint32_t cmos(uint8_t index)
{
    out8(0x70, index);
    uint8_t bcd = in8(0x71);
    return (bcd >> 4) * 10u + (bcd & 15);
}

static void show_clock(void)
{
    do
        out8(0x70, 0x0A);
    while (in8(0x71) & 0x80); /* not while it counts */
    print("clock: %2%2-%2-%2 %2:%2:%2\n", cmos(0x32), cmos(9), cmos(8), cmos(7), cmos(4), cmos(2), cmos(0));
}

static void show_sector(uint32_t sector)
{
    static char data[513] __attribute__((aligned(1024)));
    if (!disk_read(sector, data)) {
        print("disk: sector %u cannot be read\n", sector);
        return;
    }
    print("disk: sector %u: ", sector);
    for (int i = 0; i < 64 && data[i] >= ' ' && data[i] < 127; i++)
        print("%c", data[i]);
    print("\n");
}

static void sleep_a_second(void)
{
    interrupts_off();
    for (uint32_t until = timer_ticks + 100; (int32_t)(timer_ticks - until) < 0;)
        sleep();
    interrupts_on();
    print("timer: %u ticks\n", timer_ticks);
}

static void touch(volatile uint32_t *addr)
{
    *addr = 42;
    print("memory: 0x%x now holds %u\n", (uint32_t)addr, *addr);
}

static void triple_fault(void)
{
    static const uint8_t no_idt[6];
    __asm__ volatile("lidt %0; int3" : : "m"(no_idt));
}

static void obey(const char *command)
{
    if (starts_with(command, "clock"))
        show_clock();
    else if (starts_with(command, "sleep"))
        sleep_a_second();
    else if (starts_with(command, "sector")) {
        uint32_t number = 0;
        for (const char *c = command + 6; *c == ' ' || (*c >= '0' && *c <= '9'); c++)
            number = *c == ' ' ? number : number * 10 + (uint32_t)(*c - '0');
        show_sector(number);
    } else if (starts_with(command, "fault"))
        touch((uint32_t *)0xD0001234);
    else if (starts_with(command, "crash"))
        touch(not_mapped);
    else if (starts_with(command, "user"))
        run_user(user_program, user_stack_top);
    else if (starts_with(command, "spin"))
        for (interrupts_off();;)
            ;
    else if (starts_with(command, "halt"))
        for (;;)
            __asm__ volatile("cli; hlt");
    else if (starts_with(command, "triple"))
        triple_fault();
    else if (starts_with(command, "reset"))
        out8(0x64, 0xFE); /* the keyboard controller pulls the reset line */
    else if (starts_with(command, "cf9"))
        out8(0xCF9, 0x06); /* the chipset does */
    else if (*command)
        print("commands: clock sleep sector fault crash user; halt triple reset cf9 spin end the machine\n");
}

static void run_from_command_line(const char *line)
{
    while (*line && !starts_with(line, "run="))
        line++;
    for (line += *line ? 4 : 0; *line && *line != ' ';) {
        char command[32];
        size_t n = 0;
        for (; *line && *line != ' ' && *line != ','; line++)
            if (n < sizeof command - 1)
                command[n++] = *line;
        command[n] = 0;
        line += *line == ',';
        obey(command);
    }
}

void kernel_main(uint32_t magic, const struct multiboot *information)
{
    static char line[256];
    uint32_t upper_kb = information->upper_kb;
    /* The boot loader's memory is not mapped once paging is on: keep what is needed of it. */
    for (size_t i = 0; i < sizeof line - 1 && information->command_line[i]; i++)
        line[i] = information->command_line[i];

    segments_init();
    interrupts_init();
    console_init();
    print("hobby: magic 0x%x, %u KB above 1 MB, command line \"%s\"\n", magic, upper_kb, line);
    paging_init((upper_kb + 1024) << 10);
    timer_init();
    pci_scan();
    interrupts_on();

    show_clock();
    show_sector(0);
    touch((uint32_t *)0xD0000000);
    run_user(user_program, user_stack_top);
    run_from_command_line(line);

    for (;;) {
        print("> ");
        interrupts_off();
        while (!console_line(line, sizeof line))
            sleep();
        interrupts_on();
        obey(line);
    }
}
