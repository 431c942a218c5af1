/*
 * What inside.c and layout.c tell each other while the layout is found.
 */
#ifndef TT_LAYOUT_H
#define TT_LAYOUT_H

#include "core.h"

/* What the probing engine showed of itself so far. */
typedef struct Probe {
    void *cpu, *tcg_ctx;
    Block *block;                  /* the one translated last */
    int vector, error, index, old; /* of the last exception; -1 before any */
} Probe;

extern _Thread_local Probe *tt_probe; /* NULL in a thread that is not probing */

const char *tt_find_functions(void);

#endif
