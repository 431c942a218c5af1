"""What an image would boot: each kind of boot configuration, on real file systems."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from boot_disks import MIB, join_gpt, join_mbr, make_ext, make_fat
from boot_kernels import (
    PACKERS,
    make_bzimage,
    make_elf,
    make_multiboot2_elf,
    make_multiboot_elf,
    make_uki,
)

from tt.errors import BadInput
from tt.vmm.boot.bootconfig import BootEntry, find_boot_entry, root_volume, version_key
from tt.vmm.boot.images import open_image
from tt.vmm.boot.modules import Module, unpack
from tt.vmm.boot.syslinux import parse_syslinux
from tt.vmm.boot.target import Target
from tt.vmm.boot.uki import split_uki

K1, K2, I1, I2 = b"kernel one", b"kernel two", b"initrd one.", b"initrd two"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def boot(path: Path) -> BootEntry:
    return find_boot_entry(open_image(path))


def ext(path: Path, files: dict[str, bytes | str], *options: str) -> Path:
    return make_ext(path, files, *options, size="4M", kind="ext2")


def test_grub_on_one_partition(tmp_path: Path) -> None:
    config = b"""
    set default="1"
    menuentry 'wrong' { linux /boot/vmlinuz-1 wrong }
    menuentry 'right' { linux /boot/vmlinuz-2 root=UUID=x ro quiet
        initrd /boot/initrd.img-1 /boot/initrd.img-2 }
    """
    files = {
        "boot/grub/grub.cfg": config, "boot/vmlinuz-1": K1, "boot/vmlinuz-2": K2,
        "boot/initrd.img-1": I1, "boot/initrd.img-2": I2,
    }  # fmt: skip
    entry = boot(join_mbr(tmp_path / "disk", [ext(tmp_path / "fs", dict(files))]))
    assert entry == BootEntry(
        kernel=K2,
        initrd=I1 + b"\0" + I2,
        cmdline="root=UUID=x ro quiet",
        description="/boot/grub/grub.cfg on vda1: 'right'",
        kernel_path="/boot/vmlinuz-2",
        initrd_path="/boot/initrd.img-1 /boot/initrd.img-2",
    )


def test_grub_with_a_separate_boot_partition_and_esp(tmp_path: Path) -> None:
    stub = f"search.fs_uuid {UUID} root hd0,gpt2\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n"
    config = f"""
    if [ -s $prefix/grubenv ]; then load_env; fi
    set default="${{saved_entry}}"
    menuentry 'one' --id one {{ search --fs-uuid --set=root {UUID}
        linux /vmlinuz-1 root=/dev/mapper/x ro
        initrd /initrd-1 }}
    menuentry 'two' --id two {{ search --fs-uuid --set=root {UUID}
        linux /vmlinuz-2 root=/dev/mapper/x ro
        initrd /initrd-2 }}
    """
    esp = make_fat(tmp_path / "esp", {"EFI/debian/grub.cfg": stub.encode()}, bits=12, size=2 * MIB)
    boot_files: dict[str, bytes | str] = {
        "grub/grub.cfg": config.encode(), "grub/grubenv": b"# GRUB Environment Block\nsaved_entry=two\n###",
        "vmlinuz-1": K1, "vmlinuz-2": K2, "initrd-1": I1, "initrd-2": I2,
    }  # fmt: skip
    boot_part = ext(tmp_path / "boot", boot_files, "-U", UUID)
    root = ext(tmp_path / "root", {"etc/": b"", "boot/": b"", "vmlinuz-2": b"a trap"})
    entry = boot(join_gpt(tmp_path / "disk", [esp, root, boot_part]))
    assert (entry.kernel, entry.initrd, entry.cmdline) == (K2, I2, "root=/dev/mapper/x ro")
    # The stub on the ESP alone leads there too.
    (tmp_path / "boot.tree/grub/grub.cfg").rename(tmp_path / "boot.tree/grub/other.cfg")
    stub2 = stub.replace("grub.cfg", "other.cfg")
    esp = make_fat(tmp_path / "esp", {"EFI/debian/grub.cfg": stub2.encode()}, bits=12, size=2 * MIB)
    boot_part = make_ext(tmp_path / "boot", {}, "-U", UUID, size="4M", kind="ext2")
    entry = boot(join_gpt(tmp_path / "disk", [esp, root, boot_part]))
    assert entry.kernel in (K1, K2)
    assert "/EFI/debian/grub.cfg on vda1" in entry.description


def test_grub_devices_by_label_number_and_file(tmp_path: Path) -> None:
    for line in ("search --label BOOT --set=root", "set root=hd0,msdos2", "search --file --set=root /mark"):
        config = f"{line}\nmenuentry m {{ linux /kernel root=/dev/vda1 }}".encode()
        first = ext(tmp_path / "a", {"grub/grub.cfg": config, "kernel": K1})
        second = ext(tmp_path / "b", {"kernel": K2, "mark": b""}, "-L", "BOOT")
        assert boot(join_mbr(tmp_path / "disk", [first, second])).kernel == K2, line


def test_missing_files_go_on_to_the_next_entry(tmp_path: Path) -> None:
    config = b"""
    menuentry 'gone' { linux /boot/gone }
    menuentry 'no initrd' { linux /boot/k1 ; initrd /boot/gone }
    menuentry 'good' { linux /boot/k1 root=/dev/vda good }
    """
    entry = boot(ext(tmp_path / "fs", {"boot/grub/grub.cfg": config, "boot/k1": K1}))
    assert entry.cmdline == "root=/dev/vda good"


def test_a_configuration_without_root_gets_one(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "boot/grub/grub.cfg": b"menuentry m { linux /k quiet }",
        "k": K1,
        "etc/": b"",
    }
    assert boot(ext(tmp_path / "fs", files)).cmdline == "quiet root=/dev/vda"
    files["boot/grub/grub.cfg"] = b"menuentry m { linux /k quiet\ninitrd /i }"
    assert boot(ext(tmp_path / "fs2", files | {"i": I1})).cmdline == "quiet"  # the initrd knows


@pytest.mark.parametrize(
    "place",
    [
        "boot/extlinux/extlinux.conf",
        "extlinux/extlinux.conf",
        "boot/syslinux/syslinux.cfg",
        "boot/extlinux.conf",
    ],
)
def test_extlinux(tmp_path: Path, place: str) -> None:
    config = b"""
    # comment
    DEFAULT two
    LABEL one
      KERNEL /vm1
    LABEL two
      MENU LABEL The second
      LINUX /vm2
      APPEND root=/dev/sda1 quiet
      INITRD /in2
    """
    entry = boot(ext(tmp_path / "fs", {place: config, "vm1": K1, "vm2": K2, "in2": I2}))
    assert (entry.kernel, entry.initrd, entry.cmdline) == (K2, I2, "root=/dev/sda1 quiet")


def test_extlinux_paths_are_relative_to_the_configuration(tmp_path: Path) -> None:
    config = b"default l0\nlabel l0\nlinux ../vmlinuz\ninitrd initrd.gz\nappend -\nfdt x\n"
    files = {"boot/extlinux/extlinux.conf": config, "boot/vmlinuz": K1, "boot/extlinux/initrd.gz": I1}
    entry = boot(ext(tmp_path / "fs", dict(files)))
    assert (entry.kernel, entry.initrd, entry.kernel_path) == (K1, I1, "/boot/vmlinuz")


def test_syslinux_on_fat_with_an_included_file(tmp_path: Path) -> None:
    files = {
        "syslinux/syslinux.cfg": b"UI vesamenu.c32\nMENU INCLUDE more.cfg\nINCLUDE gone.cfg\n",
        "syslinux/more.cfg": b"LABEL a\nKERNEL memdisk.c32\n"
        b"LABEL b\nMENU DEFAULT\nKERNEL vmlinuz\nAPPEND initrd=i.img x\n",
        "syslinux/VMLINUZ": K1,
        "syslinux/i.img": I1,
    }
    entry = boot(make_fat(tmp_path / "fs", files, bits=12, size=2 * MIB))
    assert (entry.kernel, entry.initrd, entry.cmdline) == (K1, I1, "x")


def syslinux(text: str) -> list[Target]:
    return parse_syslinux(text, lambda name: text, "")


def test_syslinux_details() -> None:
    text = "default a extra\nappend global\nlabel a\nkernel k\nlabel b\nkernel c\nappend own initrd=x,y\n"
    assert syslinux(text) == [
        Target("a", "k", "global extra", []),
        Target("a", "k", "global", []),
        Target("b", "c", "own", ["x", "y"]),
    ]
    assert syslinux("default linux root=/dev/sda1") == [Target("linux", "linux", "root=/dev/sda1", [])]
    assert syslinux("default vesamenu.c32\nlabel L\nlinux k\ninitrd i")[0] == Target("L", "k", "", ["i"])
    assert syslinux("include x") == []
    assert syslinux("") == []


def test_boot_loader_specification(tmp_path: Path) -> None:
    def entry_for(version: str, extra: str = "") -> bytes:
        text = f"title Linux {version}\nversion {version}\nlinux /k-{version}\ninitrd /i\n"
        text += f"options root=/dev/x {version}\n"
        return (text + extra).encode()

    files: dict[str, bytes | str] = {
        "loader/entries/a-6.1.0-9.conf": entry_for("6.1.0-9"),
        "loader/entries/a-6.1.0-13.conf": entry_for("6.1.0-13", "options more\ninitrd /i2\n# x\n"),
        "loader/entries/a-6.1.0-13.conf.bak": entry_for("9"),
        "loader/entries/efi.conf": b"title shell\nefi /shell.efi\n",
        "k-6.1.0-9": K1, "k-6.1.0-13": K2, "i": I1, "i2": I2,
    }  # fmt: skip
    entry = boot(ext(tmp_path / "fs", dict(files)))
    assert (entry.kernel, entry.initrd) == (K2, I1 + b"\0" + I2)
    assert entry.cmdline == "root=/dev/x 6.1.0-13 more"
    files["loader/loader.conf"] = b"timeout 3\ndefault a-6.1.0-9*\n"
    assert boot(ext(tmp_path / "fs2", dict(files))).kernel == K1
    del files["loader/loader.conf"]
    files["grub2/grubenv"] = b"saved_entry=a-6.1.0-9\nkernelopts=root=/dev/y\n"
    files["grub2/grub.cfg"] = b"load_env\nset default=$saved_entry\ninsmod blscfg\nblscfg\n"
    assert boot(ext(tmp_path / "fs3", dict(files))).kernel == K1


@pytest.mark.parametrize(
    ("files", "kernel", "initrd"),
    [
        ({"vmlinuz": "boot/vmlinuz-2", "boot/vmlinuz-2": K2, "initrd.img": I2, "boot/vmlinuz-3": K1}, K2, I2),
        ({"boot/vmlinuz-6.1.0-9-amd64": K1, "boot/initrd.img-6.1.0-9-amd64": I1,
          "boot/vmlinuz-6.1.0-13-amd64": K2, "boot/initrd.img-6.1.0-13-amd64": I2}, K2, I2),
        ({"boot/vmlinuz-virt": K1, "boot/initramfs-virt": I1}, K1, I1),
        ({"boot/vmlinuz-linux": K1, "boot/initramfs-linux.img": I1}, K1, I1),
        ({"boot/vmlinuz-5.4": K1, "boot/initrd-5.4": I1, "boot/vmlinuz-6.0.old": K2}, K1, I1),
        ({"boot/bzImage": K1}, K1, None),
        ({"boot/kernel-6.1": K1, "boot/config-6.1": b"", "boot/initramfs-6.1.img": I1}, K1, I1),
        ({"boot/vmlinux": K1}, K1, None),
        ({"vmlinuz": "boot/gone", "boot/vmlinuz-1": K1}, K1, None),
    ],
)  # fmt: skip
def test_plain_kernels(
    tmp_path: Path, files: dict[str, bytes | str], kernel: bytes, initrd: bytes | None
) -> None:
    entry = boot(ext(tmp_path / "fs", files | {"etc/fstab": b""}))
    assert (entry.kernel, entry.initrd, entry.cmdline) == (kernel, initrd, "root=/dev/vda rw")


def test_plain_kernel_on_a_boot_partition(tmp_path: Path) -> None:
    boot_part = ext(tmp_path / "boot", {"vmlinuz-1": K1})
    swap = tmp_path / "swap"
    swap.write_bytes(bytes(4086) + b"SWAPSPACE2" + bytes(MIB - 4096))
    root = ext(tmp_path / "root", {"etc/": b"", "sbin/": b""})
    disk = join_mbr(tmp_path / "disk", [boot_part, swap, root])
    assert boot(disk).cmdline == "root=/dev/vda3 rw"
    assert root_volume(open_image(disk)) == "vda3"


def test_nothing_to_boot_says_what_was_there(tmp_path: Path) -> None:
    xfs = tmp_path / "xfs"
    xfs.write_bytes(b"XFSB".ljust(MIB, b"\0"))
    empty = ext(tmp_path / "fs", {"boot/grub/grub.cfg": b"menuentry m { linux /gone }"})
    with pytest.raises(
        BadInput, match=r"no kernel found in .*vda1: xfs; vda2: ext2; .*no /gone.*give --kernel"
    ):
        boot(join_mbr(tmp_path / "disk", [xfs, empty]))
    blank = tmp_path / "blank"
    blank.write_bytes(bytes(MIB))
    with pytest.raises(BadInput, match="no file system and no partition table"):
        boot(blank)
    assert root_volume(open_image(blank)) == "vda"


def test_damaged_places_are_noted(tmp_path: Path) -> None:
    broken = ext(tmp_path / "a", {})
    data = bytearray(broken.read_bytes())
    data[1024 + 24] = 9
    broken.write_bytes(data)
    text = "\n".join(["default x", "label x", "kernel k"])
    files: dict[str, bytes | str] = {
        "boot/grub/grub.cfg": b"if true; then " * 100, "boot/extlinux/extlinux.conf": text.encode(),
        "boot/extlinux/k/": b"", "boot/syslinux/syslinux.cfg": b"x" * (MIB + 1),
    }  # fmt: skip
    with pytest.raises(BadInput) as error:
        boot(join_mbr(tmp_path / "disk", [broken, ext(tmp_path / "b", files)]))
    message = str(error.value)
    for part in ("block size", "nests too deeply", "no /boot/extlinux/k", "over the bound"):
        assert part in message
    assert "\n" not in message


def test_names_from_an_image_are_safe_to_print(tmp_path: Path) -> None:
    config = b"menuentry '\x1b[31mred\n' { linux /gone; }\nmenuentry 'b\x1b[0m' { linux '/k\n' }"
    files: dict[str, bytes | str] = {"boot/grub/grub.cfg": config}
    with pytest.raises(BadInput) as error:
        boot(ext(tmp_path / "a", files))
    assert str(error.value).isprintable()
    assert boot(ext(tmp_path / "b", files | {"k\n": K1})).description.isprintable()


def test_version_order() -> None:
    versions = ["0-rescue", "5.10", "6.1-rc1", "6.1", "6.1.0-9-amd64", "6.1.0-13-amd64", "6.2.0", "6.10"]
    assert sorted(sorted(versions), key=version_key) == versions


def test_real_images_of_kernels_go_through(tmp_path: Path) -> None:
    image = make_bzimage(PACKERS["xz"](make_elf(64)))
    entry = boot(ext(tmp_path / "fs", {"boot/vmlinuz-1": image}))
    assert entry.kernel == image


def bls(version: str, extra: str = "") -> bytes:
    return f"title L {version}\nlinux /k-{version}\noptions root=/dev/x {version}\n{extra}".encode()


def test_entries_on_the_esp_and_on_xbootldr_are_one_menu(tmp_path: Path) -> None:
    """UAPI.1: both directories are read and merged; files are those of an entry's own volume."""
    esp = {
        "loader/loader.conf": b"timeout 3\n", "loader/entries/l-5.conf": bls("5"), "k-5": K1,
        "loader/entries/l-7+0-3.conf": bls("7"), "k-7": K1, "k-6": b"a trap",
    }  # fmt: skip
    boot_part: dict[str, bytes | str] = {
        "loader/entries/l-6+2-1.conf": bls("6", "initrd /i\n"), "k-6": K2, "i": I2,
        "loader/loader.conf": b"default l-5*\n",  # not the ESP's: systemd-boot does not read it
    }  # fmt: skip
    root = ext(tmp_path / "root", {"etc/": b""})

    def entry() -> BootEntry:
        volumes = [
            make_fat(tmp_path / "esp", dict(esp), bits=12, size=2 * MIB),
            ext(tmp_path / "boot", dict(boot_part)),
            root,
        ]
        return boot(join_gpt(tmp_path / "disk", volumes))

    esp["loader/loader.conf"] += b"default l-6.conf\n"
    found = entry()
    assert (found.kernel, found.initrd, found.cmdline) == (K2, I2, "root=/dev/x 6")
    assert found.description == "boot loader entry 'L 6' on vda2"
    esp["loader/loader.conf"] = b"default l-7*\n"  # a bad entry, and named: still the default
    assert entry().cmdline == "root=/dev/x 7"
    esp["loader/loader.conf"] = b"timeout 3\n"
    assert entry().cmdline == "root=/dev/x 6"  # the newest that is not bad


def test_blscfg_reads_entries_of_the_boot_volume(tmp_path: Path) -> None:
    stub = f"search --no-floppy --fs-uuid --set=dev {UUID}\nset prefix=($dev)/grub2\nexport prefix\n"
    stub += "configfile $prefix/grub.cfg\n"
    esp = make_fat(tmp_path / "esp", {"EFI/fedora/grub.cfg": stub.encode()}, bits=12, size=2 * MIB)
    files: dict[str, bytes | str] = {
        "grub2/grub.cfg": b'load_env\nset default="${saved_entry}"\nkernelopts="root=/dev/y ro"\nblscfg',
        "grub2/grubenv": b"# GRUB Environment Block\nsaved_entry=m-5\n###",
        "loader/entries/m-5.conf": b"title F 5\nversion 5\nlinux /k-5\noptions $kernelopts five\n",
        "loader/entries/m-6.conf": b"title F 6\nversion 6\nlinux /k-6\noptions $kernelopts six\n",
        "k-5": K1, "k-6": K2,
    }  # fmt: skip
    disk = join_gpt(tmp_path / "disk", [esp, ext(tmp_path / "boot", dict(files), "-U", UUID)])
    found = boot(disk)
    assert (found.kernel, found.cmdline) == (K1, "root=/dev/y ro five")
    assert found.description == "/EFI/fedora/grub.cfg on vda1: 'F 5'"


def test_multiboot_kernel_and_modules_from_several_volumes(tmp_path: Path) -> None:
    config = f"""
    insmod gzio
    menuentry 'no header' {{ multiboot2 /kernel }}
    menuentry 'os' {{
        search --fs-uuid --set=root {UUID}
        multiboot /kernel 'a b' c
        module /one.gz first 'm n'
        module --nounzip /one.gz
        module (hd0,msdos1)/grub/two
    }}
    """
    kernel = make_multiboot_elf()
    first = ext(tmp_path / "a", {"grub/grub.cfg": config.encode(), "grub/two": b"2", "kernel": kernel})
    packed = gzip.compress(b"one")
    second = ext(tmp_path / "b", {"kernel": gzip.compress(kernel), "one.gz": packed}, "-U", UUID)
    found = boot(join_mbr(tmp_path / "disk", [first, second]))
    assert (found.kernel, found.kind, found.cmdline) == (kernel, "multiboot1", '"a b" c')
    assert unpack(found.initrd) == [Module('first "m n"', b"one"), Module("", packed), Module("", b"2")]
    assert found.initrd_path == "/one.gz /one.gz /grub/two"


def test_multiboot_by_the_header_that_its_command_names(tmp_path: Path) -> None:
    both = make_multiboot2_elf(one=True)
    for command, kernel, kind in (
        ("multiboot", both, "multiboot1"), ("multiboot2", both, "multiboot2"), ("linux", both, "multiboot1"),
        ("multiboot2", make_multiboot2_elf(), "multiboot2"), ("linux", make_multiboot2_elf(), "multiboot2"),
    ):  # fmt: skip
        files: dict[str, bytes | str] = {"boot/grub/grub.cfg": f"menuentry m {{ {command} /k x }}".encode()}
        found = boot(ext(tmp_path / "fs", files | {"k": kernel}))
        assert (found.kind, found.cmdline) == (kind, "x"), command
    files = {"boot/grub/grub.cfg": b"menuentry m { multiboot /k x }", "k": make_multiboot2_elf()}
    with pytest.raises(BadInput, match="/k has no header of the kind that multiboot looks for"):
        boot(ext(tmp_path / "fs", files))


def test_syslinux_with_mboot(tmp_path: Path) -> None:
    config = b"default xen\nlabel xen\nkernel mboot.c32\nappend ../k a b --- m1 x y --- /m2\n"
    files: dict[str, bytes | str] = {
        "boot/syslinux/syslinux.cfg": config, "boot/k": make_multiboot_elf(),
        "boot/syslinux/m1": b"1", "m2": gzip.compress(b"2"),
    }  # fmt: skip
    found = boot(ext(tmp_path / "fs", files))
    assert (found.kind, found.cmdline) == ("multiboot1", "a b")
    assert unpack(found.initrd) == [Module("x y", b"1"), Module("", b"2")]


def test_unified_kernel_images(tmp_path: Path) -> None:
    """UAPI.1, "Type #2": images in EFI/Linux of the ESP and of XBOOTLDR are entries, with counters."""
    kernel = make_bzimage(PACKERS["gzip"](make_elf(64)))
    parts = {".osrel": b"ID=x", ".cmdline": b"root=/dev/x\nquiet\0", ".ucode": b"micro", ".linux": kernel}
    parts |= {".initrd": I1, ".profile": b"ID=other", ".cmdline\0": b"never"}
    esp = {"EFI/Linux/os-7+0-2.efi": make_uki({".linux": K1}), "EFI/Linux/note.txt": b""}
    files: dict[str, bytes | str] = {"EFI/Linux/os-6+3.efi": make_uki(parts)}

    def entry() -> BootEntry:
        volumes = [
            make_fat(tmp_path / "esp", dict(esp), bits=12, size=2 * MIB), ext(tmp_path / "boot", dict(files)),
        ]  # fmt: skip
        return boot(join_gpt(tmp_path / "disk", volumes))

    found = entry()
    assert (found.kernel, found.cmdline, found.kind) == (kernel, "root=/dev/x quiet", "linux-bzimage")
    assert found.initrd == b"micro\0\0\0" + I1
    assert found.description == "boot loader entry 'os-6' on vda2"
    files["loader/entries/z.conf"] = b"uki /EFI/Linux/os-6+3.efi\noptions root=/dev/y\ninitrd /i\n"
    files["i"] = b"more"
    found = entry()
    assert (found.cmdline, found.initrd) == ("root=/dev/y", b"micro\0\0\0" + I1 + b"\0" + b"more")
    assert split_uki(make_uki({".text": b"x"}), "x") is None
    with pytest.raises(BadInput, match="x is cut short: its section .linux"):
        split_uki(make_uki({".linux": bytes(5000)})[:-1000], "x")
