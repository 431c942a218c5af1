"""From what the user names to a plan: disk images and kernels, told apart by their contents."""

from __future__ import annotations

from pathlib import Path

from tt.errors import BadInput
from tt.vmm.boot import elf, linux, multiboot, multiboot2
from tt.vmm.boot.filetree import printable
from tt.vmm.boot.kinds import MULTIBOOT, companion, kernel_kind
from tt.vmm.boot.linux_checks import check_bzimage, foreign_kernel
from tt.vmm.boot.plan import BootPlan
from tt.vmm.disk import refuse_special

PC_CMDLINE = (
    "console=ttyS0",
    "nolapic",
    "noapic",
    "acpi=off",
    "pci=conf1",
    "nokaslr",
    "tsc=reliable",
    "tsc_early_khz=1000000",  # it counts nanoseconds; measured with --clock host it would come out wrong
    "lpj=1000000",
    "no_timer_check",
    "reboot=pci",  # by port 0xCF9: at once, and a recording says "reset"
)
"""What the pc machine tells every Linux guest: no APIC, no ACPI, and no clocks to measure."""

# Options that add up: another of the same name does not stand in for ours.
_CUMULATIVE = ("console", "pci")

_SNIFF = 64 << 10


def plan_boot(
    guest: Path | None,
    *,
    mem_bytes: int,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
) -> BootPlan:
    """Plan the boot of `guest`: a disk image, or a bzImage, vmlinux, Multiboot or Multiboot2 kernel.

    `kernel` and `initrd` are host files that replace what the guest brings,
    `append` is added to the command line; `mem_bytes` is the size of RAM.  With
    `kernel`, `guest` may be None.  An image's own kernel and initrd belong
    together, so `kernel` alone drops the image's initrd.  Raises `BadInput`
    for anything that is missing, damaged, or does not fit.
    """
    # A replay needs none of what reads disk images: they are loaded here.
    from tt.vmm.boot import bootconfig, images

    notes: list[str] = []
    cmdline = ""
    kernel_bytes = initrd_bytes = kind = None
    if kernel is not None:
        kernel_bytes = read_file(kernel, bootconfig.MAX_KERNEL)
        kind = kernel_kind(kernel_bytes)
        if guest is not None and kind not in MULTIBOOT:
            cmdline = f"root=/dev/{bootconfig.root_volume(images.open_image(guest))} rw"
    elif guest is None:
        raise BadInput("nothing to boot: give a disk image or --kernel")
    elif _kind_of_file(guest) is not None:
        kernel_bytes = read_file(guest, bootconfig.MAX_KERNEL)
        kind = kernel_kind(kernel_bytes)
    elif (foreign := foreign_kernel(_read_head(guest))) is not None:
        raise BadInput(
            f"{guest} is {foreign}: tt boots bzImage, ELF, Multiboot and Multiboot2 kernels for x86"
        )
    else:
        entry = bootconfig.find_boot_entry(images.open_image(guest))
        kernel_bytes, initrd_bytes, cmdline, kind = entry.kernel, entry.initrd, entry.cmdline, entry.kind
        notes.append(f"boots {entry.description}")
        if kind is None:
            what = foreign_kernel(kernel_bytes) or "no kernel"
            raise BadInput(
                f"{printable(entry.kernel_path)} in {guest} is {what}, which tt cannot boot: give --kernel"
            )
    if kind is None:
        what = foreign_kernel(kernel_bytes) or "no kernel"
        raise BadInput(
            f"{kernel or guest} is {what}: tt boots bzImage, ELF, Multiboot and Multiboot2 kernels for x86"
        )
    if initrd is not None:
        initrd_bytes = companion(kind, read_file(initrd, bootconfig.MAX_INITRD))
    cmdline = full_cmdline(kind, cmdline, append)
    plan = plan_new(kind, kernel_bytes, initrd_bytes, cmdline, mem_bytes)
    plan.description[:0] = notes
    return plan


def plan_new(kind: str, kernel: bytes, initrd: bytes | None, cmdline: str, mem_bytes: int) -> BootPlan:
    """Plan the boot of a guest that was not recorded before: what cannot end well is refused by name."""
    if kind == linux.BZIMAGE:
        check_bzimage(kernel, initrd, cmdline, mem_bytes)
    return plan_boot_from_parts(kind, kernel, initrd, cmdline, mem_bytes)


def plan_boot_from_parts(
    kind: str, kernel: bytes, initrd: bytes | None, cmdline: str, mem_bytes: int
) -> BootPlan:
    """Make a plan from what a trace keeps of it; a pure function of its arguments.

    `kind` and the parts are those of an earlier `BootPlan`.  Raises `BadInput`
    for an unknown `kind`, and as the loaders of each kind do.
    """
    planners = {
        linux.BZIMAGE: linux.plan_bzimage,
        linux.ELF: linux.plan_elf,
        multiboot.KIND: multiboot.plan_multiboot,
        multiboot.OLD_KIND: multiboot.plan_old,
        multiboot2.KIND: multiboot2.plan_multiboot2,
    }
    if kind not in planners:
        raise BadInput(f"unknown kind of kernel {kind!r}: the trace is damaged, or from a newer tt")
    return planners[kind](kernel, initrd, cmdline, mem_bytes)


def full_cmdline(kind: str, cmdline: str, append: str) -> str:
    """Return the image's command line with the user's words; only Linux gets words for this machine."""
    if kind in (*MULTIBOOT, multiboot.OLD_KIND):
        return " ".join(part for part in (cmdline, append) if part)
    return with_pc_defaults(cmdline, append)


def with_pc_defaults(cmdline: str, append: str = "") -> str:
    """Return a Linux command line with the options that the pc machine needs.

    What `cmdline` (the image's) and `append` (the user's) already give is left
    alone.  Later options win in Linux, so the order is: image, machine, user.
    Everything behind ` -- ` goes to init and stays last.
    """
    options, init = split_init(cmdline)
    extra, extra_init = split_init(append)
    given = [*options, *extra]
    missing = [option for option in PC_CMDLINE if not _is_given(option, given)]
    return join_init([*options, *missing, *extra], [*init, *extra_init])


def join_init(options: list[str], init: list[str]) -> str:
    """Return a command line of words for the kernel and words for init."""
    return " ".join([*options, "--", *init] if init else options)


def _is_given(option: str, given: list[str]) -> bool:
    name, _, value = option.partition("=")
    for word in given:
        other, _, other_value = word.partition("=")
        if other.replace("-", "_") != name.replace("-", "_"):
            continue
        if name not in _CUMULATIVE or value in other_value.split(","):
            return True
    return False


def split_init(cmdline: str) -> tuple[list[str], list[str]]:
    """Split a command line into words, those for the kernel and those for init; double quotes hold spaces."""
    words = [""]
    quoted = False
    for c in cmdline:
        quoted ^= c == '"'
        if c.isspace() and not quoted:
            words.append("")
        else:
            words[-1] += c
    words = [word for word in words if word]
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _kind_of_file(path: Path) -> str | None:
    """Tell what kernel a host file is by its beginning; None for what may be a disk image."""
    head = _read_head(path)
    kind = kernel_kind(head)
    # The boot code of a disk could hold the Multiboot numbers; its signature decides.
    if kind in MULTIBOOT and head[510:512] == b"\x55\xaa" and not head.startswith(elf.MAGIC):
        return None
    return kind


def _read_head(path: Path) -> bytes:
    refuse_special(path)
    try:
        with path.open("rb") as f:
            return f.read(_SNIFF)
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}") from None


def read_file(path: Path, limit: int) -> bytes:
    """Return a kernel or an initrd of the host, of `limit` bytes at most; raises `BadInput`."""
    try:
        with path.open("rb") as f:
            data = f.read(limit + 1)
    except OSError as e:
        raise BadInput(f"cannot read {path}: {e.strerror or e}") from None
    if len(data) > limit:
        raise BadInput(
            f"{path} is over {limit >> 20} MB: strip its debug information, or is it a disk image?"
        )
    if not data:
        raise BadInput(f"{path} is empty")
    return data


def is_kernel(path: Path) -> bool:
    """Tell whether a file is a kernel itself, not a disk image; raises `BadInput` if it cannot be read."""
    return _kind_of_file(path) is not None
