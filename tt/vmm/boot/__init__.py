"""Finding and loading kernels with no firmware, as direct-boot virtual machine monitors do.

`loader.plan_boot` goes from a file to a `plan.BootPlan`.  On the way: `images`
finds the volumes of a disk, `filesystems` looks into them, `bootconfig` reads
the image's own boot menu, `linux` and `multiboot` lay out RAM and the CPU.
"""
