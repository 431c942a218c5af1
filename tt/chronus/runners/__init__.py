"""Where a guest is booted for a probe: tt's own machine, or QEMU."""
