/* A guest with a bug, to be found with tt: docs/tutorial.md is the hunt.
 *
 * Twelve jobs go round in a work queue: the oldest is taken, given a slice of
 * work, and put back at the end.  A watchdog, driven by the timer, looks at one
 * job after the other and stamps it.  In every second run the queue breaks, never
 * at the same moment, and the guest notices only later, when what it takes from the
 * queue is not a job.
 */
#include "denali.h"

#define MS 1000000ul
#define JOBS 12ul
#define BEAT_NS 3700000ul
#define SLICES 5000ul
#define TRAIL 64ul
#define KEPT __attribute__((noinline)) /* a function of its own, which a debugger can name */
#define JOB_MAGIC 0x21626f6aul /* "job!" */

struct job {
    u64 magic;
    u64 slices;       /* how often it had its turn */
    u32 id, sum;      /* what it computes: a checksum */
    char stamp[8];    /* by the watchdog: how late it came, in ns, as text. It is never
                       * a quantum late: a plus, six digits and the NUL will do */
    struct job *next; /* in the queue */
};

static struct job jobs[JOBS];
static struct {
    struct job *first, *last;
    u64 length;
} queue;

static u8 trail[TRAIL]; /* which jobs had their turn, newest first */
static u64 dice;
static u64 next_beat;
static volatile u64 beats;

static u64 roll(u64 sides)
{
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
    return dice % sides;
}

/* ---- the watchdog: runs in the timer event, between any two instructions ------ */

/* Write a plus and a number, and end it with a NUL. */
KEPT static void write_stamp(char *to, u64 number)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    *to++ = '+';
    while (n)
        *to++ = digits[--n];
    *to = 0;
}

static void watchdog(void)
{
    struct job *job = &jobs[beats++ % JOBS];
    write_stamp(job->stamp, denali.time_ns - next_beat);
    next_beat += BEAT_NS;
    denali.timer_ns = next_beat;
}

/* ---- the queue: the watchdog must not see it half changed ----------------------- */

KEPT static void put_job(struct job *job)
{
    events_off();
    job->next = NULL;
    if (queue.length++)
        queue.last->next = job;
    else
        queue.first = job;
    queue.last = job;
    events_on();
}

KEPT static struct job *take_job(void)
{
    events_off();
    struct job *job = queue.first;
    if (job->magic != JOB_MAGIC)
        panic("the queue of %lu holds %lx, which is no job", queue.length, (u64)job);
    queue.first = job->next;
    queue.length--;
    memmove(trail + 1, trail, TRAIL - 1);
    trail[0] = (u8)job->id;
    events_on();
    return job;
}

/* ---- work ------------------------------------------------------------------------ */

KEPT static void work(struct job *job)
{
    u64 rounds = 100 + roll(200);
    for (u64 i = 0; i < rounds; i++)
        job->sum = crc32(job->sum, trail, TRAIL);
    job->slices++;
}

int main(void)
{
    dice = denali.wall_ns | 1; /* each run is different */
    print("bug: %lu jobs, a watchdog each %lu us\n", JOBS, BEAT_NS / 1000);
    for (u32 id = 0; id < JOBS; id++) {
        jobs[id].magic = JOB_MAGIC;
        jobs[id].id = id;
        put_job(&jobs[id]);
    }
    on_timer(watchdog);
    next_beat = denali.timer_ns = now_ns() + BEAT_NS;
    for (u64 slice = 1; slice <= SLICES; slice++) {
        struct job *job = take_job();
        work(job);
        put_job(job);
        if (slice % 1000 == 0)
            print("%5lu slices of work, %lu looks of the watchdog, at %lu ms\n", slice, beats,
                  denali.time_ns / MS);
    }
    print("done: all %lu slices, and all is well\n", SLICES);
    return 0;
}
