/*
 * What inside.c and layout.c share while the layout is found.
 */
#ifndef TT_LAYOUT_H
#define TT_LAYOUT_H

#include "core.h"

/* What was observed of the probing engine so far. */
typedef struct Probe {
    void *cpu, *tcg_ctx;
    Block *block, *first;          /* the one translated last; the first since this was NULL */
    int code_end;                  /* where the TCGContext said where its code would lie; -1: not in one place */
    int vector, error, index, old; /* of the last exception; -1 before any */
} Probe;

extern _Thread_local Probe *tt_probe; /* NULL in a thread that is not probing */

const char *tt_find_functions(void);

int tt_find_once(const uint8_t *from, int begin, int end, uint64_t value);

#endif
