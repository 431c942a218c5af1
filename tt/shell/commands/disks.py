"""The guest's disks as they are at this very tick: partitions, folders, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tt.errors import BadInput, UsageError
from tt.inspect import Answer
from tt.log.text import printable
from tt.shell.command import Arguments, command, shorten
from tt.vmm.disk import SECTOR
from tt.vmm.streams import DiskStream

if TYPE_CHECKING:
    from tt.shell.session import Session
    from tt.vmm.boot.filesystems import FileSystem
    from tt.vmm.boot.images import DiskImage, Volume

_LARGEST_FILE = 1 << 20
_MOST_NAMES = 2000
_LETTERS = {"directory": "d", "file": "-", "symlink": "l", "other": "?"}


@command(
    "disk",
    usage="[ls|cat|stat|hex|write] [PATH]", theme="looking", most=None, completes=("disk", "file"),
    examples=(
        ("disk", "the disks, their partitions and file systems"),
        ("disk ls /etc", "a folder; `disk ls vda2:/boot` of another partition"),
        ("disk cat /etc/hostname", "a file"),
        ("disk stat /etc/passwd", "its size, mode and time"),
        ("disk hex 2048", "a sector's bytes; `disk hex vdb:2048` of another disk"),
        ("disk write 2048 'hello'", "in a live branch: at the beginning of a sector, a text or bytes in hex"),
    ),
)  # fmt: skip
def disk(session: Session, arguments: Arguments) -> Answer:
    """Look into the guest's disks as they are now.

    What the guest has not written back yet is not there.  ext2/3/4 and FAT are read; a journal that was not
    played back is looked through.  Paths are on the first file system that has them.
    """
    words = arguments.words
    if not words:
        return _summary(session)
    what, rest = words[0], words[1:]
    if what == "write":
        return _write(session, arguments)
    if len(rest) > 1:
        raise UsageError(f"disk {what}: give one path, in quotes if it holds blanks")
    target = rest[0] if rest else ""
    if what in ("ls", "dir"):
        return _list(session, target or "/")
    if what in ("cat", "read", "type", "stat", "hex") and not target:
        raise UsageError(
            f"disk {what}: of what?  `disk {what} {'2048' if what == 'hex' else '/etc/hostname'}`"
        )
    if what in ("cat", "read", "type"):
        return _cat(session, target)
    if what == "stat":
        return _stat(session, target)
    if what == "hex":
        return _sector(session, target)
    raise UsageError(f"disk {shorten(what, False)}: there are ls, cat, stat, hex and write")


def complete_path(session: Session, typed: str) -> list[str]:
    """Return the paths on the disks that begin with what is typed."""
    volume, colon, path = typed.rpartition(":") if ":" in typed else ("", "", typed)
    folder, slash, begun = path.rpartition("/")
    try:
        system, _ = _find(session, f"{volume}{colon}{folder or '/'}")
        names = [name for name in system.listdir(folder or "/") if name.startswith(begun)][:200]
        return [
            f"{volume}{colon}{folder}{slash or '/'}{name}"
            + ("/" if system.is_dir(f"{folder}/{name}") else "")
            for name in names
        ]
    except (BadInput, UsageError):
        return []


# ---- how


def _images(session: Session) -> list[DiskImage]:
    from tt.vmm.boot.images import DiskImage

    images = []
    for number, each in enumerate(session.machine.disks):
        stream = DiskStream(each)
        images.append(DiskImage(stream, stream.size, f"disk {number}"))  # type: ignore[arg-type]
    return images


def _name(number: int, volume: Volume) -> str:
    letter = chr(ord("a") + number)
    return f"vd{letter}{volume.number or ''}"


def _systems(session: Session) -> list[tuple[str, Volume, FileSystem[Any] | str]]:
    """Return (name, volume, its file system, or why there is none) of all volumes."""
    found: list[tuple[str, Volume, FileSystem[Any] | str]] = []
    for number, image in enumerate(_images(session)):
        for volume in image.volumes:
            try:
                found.append((_name(number, volume), volume, image.filesystem(volume)))
            except BadInput as e:
                found.append((_name(number, volume), volume, str(e)))
    return found


def _summary(session: Session) -> Answer:
    lines, data = [], []
    systems = _systems(session)
    written_to = _written(session)
    for number, each in enumerate(session.machine.disks):
        own = [row for row in systems if row[0].startswith(f"vd{chr(ord('a') + number)}")]
        written = written_to.get(number, 0)
        lines.append(
            f"disk {number}: {_size(each.sectors * SECTOR)}; written since power-on: {_size(written)}"
        )
        volumes = []
        for name, volume, system in own:
            kind = system if isinstance(system, str) else system.kind
            label = "" if isinstance(system, str) or not system.label else f" {printable(system.label)!r}"
            shown = (volume.type or "unknown") if isinstance(system, str) else f"{kind}{label}"
            lines.append(f"  {name:<6} {_size(volume.size):>10}  {shown}")
            volumes.append({"name": name, "offset": volume.offset, "size": volume.size, "type": kind})
        data.append({"disk": number, "size": each.sectors * SECTOR, "written": written, "volumes": volumes})
    return Answer({"disks": data}, lines or ["the machine has no disks"])


def _written(session: Session) -> dict[int, int]:
    """Return how many bytes were written to each disk before here."""
    sizes: dict[int, int] = {}
    until = session.live.fork.fork_tick if session.live is not None else session.tick
    for write in session.trace.disk_writes():
        if write.tick >= until:
            break
        sizes[write.disk] = sizes.get(write.disk, 0) + write.sectors * SECTOR
    return sizes


def _find(session: Session, target: str) -> tuple[FileSystem[Any], str]:
    """Return the file system that has a path, and the path."""
    volume, colon, path = target.partition(":")
    if not colon or "/" in volume:
        volume, path = "", target
    path = path if path.startswith("/") else f"/{path}"
    systems = _systems(session)
    if volume and volume not in [name for name, _volume, _system in systems]:
        raise UsageError(
            f"there is no {shorten(volume)}: there are {', '.join(row[0] for row in systems) or 'none'}"
        )
    readable = []
    for name, _volume, system in systems:
        if volume in ("", name):
            if isinstance(system, str):
                if volume:
                    raise BadInput(system)
                continue
            readable.append(system)
    for system in readable:
        try:
            if system.exists(path):
                return system, path
        except BadInput:
            continue
    if not readable:
        reasons = [system for _name, _volume, system in systems if isinstance(system, str)]
        raise BadInput(reasons[0] if reasons else "no disk of this machine holds a file system now")
    return readable[0], path


def _list(session: Session, target: str) -> Answer:
    system, path = _find(session, target)
    if not system.is_dir(path):
        return _stat(session, target)
    names = system.listdir(path)
    rows, data = [], []
    for name in names[:_MOST_NAMES]:
        whole = f"{path.rstrip('/')}/{name}"
        try:
            stat = system.lstat(whole)
            link = f" -> {printable(system.readlink(whole))}" if stat.kind == "symlink" else ""
        except BadInput as e:
            rows.append(f"?          {printable(name)}  ({e})")
            continue
        data.append(
            {"name": name, "kind": stat.kind, "size": stat.size, "mode": stat.mode, "mtime": stat.mtime}
        )
        slash = "/" if stat.kind == "directory" else ""
        mode = f"{_LETTERS[stat.kind]}{stat.mode & 0o7777:04o}"
        rows.append(f"{mode} {stat.size:>12,}  {printable(name)}{slash}{link}")
    if len(names) > _MOST_NAMES:
        rows.append(f"... and {len(names) - _MOST_NAMES:,} more")
    return Answer({"path": path, "names": data}, rows or ["(empty)"])


def _cat(session: Session, target: str) -> Answer:
    system, path = _find(session, target)
    data = system.read(path, _LARGEST_FILE)
    text = data.decode(errors="replace")
    lines = [printable(line.expandtabs()) for line in text.splitlines()]
    return Answer({"path": path, "size": len(data), "text": text, "bytes": data.hex()}, lines or ["(empty)"])


def _stat(session: Session, target: str) -> Answer:
    from datetime import UTC, datetime

    system, path = _find(session, target)
    stat = system.lstat(path)
    when = datetime.fromtimestamp(stat.mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    line = f"{path}: {stat.kind}, {stat.size:,} bytes, mode {stat.mode & 0o7777:04o}, changed {when}"
    facts = {"path": path, "kind": stat.kind, "size": stat.size, "mode": stat.mode, "mtime": stat.mtime}
    return Answer(facts, [printable(line)])


def _write(session: Session, arguments: Arguments) -> Answer:
    """Put bytes at the beginning of a sector of a live branch, under the guest's feet."""
    from tt.shell.commands.memory import pattern

    if session.live is None:
        raise UsageError(
            "what is recorded cannot be changed: `fork` makes a live branch here, and there it can"
        )
    parts = arguments.text.split(None, 2)
    if len(parts) < 3:
        raise UsageError("disk write: where and what?  `disk write 2048 'hello'`")
    number, lba = _where(session, parts[1])
    data = pattern(parts[2])
    disk = session.machine.disks[number]
    sectors = -(-len(data) // SECTOR)
    if lba + sectors > disk.sectors:
        raise UsageError(f"{len(data)} bytes at sector {lba}: that is past the end of the disk")
    old = disk.read(lba, sectors)
    session.live.fork.write_disk(number, lba, data + old[len(data) :])
    return Answer(
        {"disk": number, "lba": lba, "size": len(data)},
        [f"{len(data)} bytes written to disk {number} at {lba}"],
    )


def _sector(session: Session, target: str) -> Answer:
    from tt.inspect import hex_row

    number, lba = _where(session, target)
    data = session.machine.disks[number].read(lba, 1)
    lines = [hex_row(lba * SECTOR + at, data[at : at + 16]) for at in range(0, SECTOR, 16)]
    return Answer({"disk": number, "lba": lba, "bytes": data.hex()}, lines, look="memory")


def _where(session: Session, target: str) -> tuple[int, int]:
    """Return the number of a disk and a sector on it."""
    name, colon, text = target.rpartition(":")
    disks = session.machine.disks
    number = ord(name[-1]) - ord("a") if colon and name.startswith("vd") and len(name) == 3 else 0
    if not 0 <= number < len(disks):
        raise UsageError(f"{shorten(target)}: the machine has {len(disks)} disks, vda first")
    digits = text.replace("_", "").replace(",", "")
    lba = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else -1
    if not 0 <= lba < disks[number].sectors:
        raise UsageError(f"{shorten(text)} is no sector: there are 0 to {disks[number].sectors - 1:,}")
    return number, lba


def _size(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    scaled = float(size)
    for unit in ("KB", "MB", "GB"):
        scaled /= 1024
        if scaled < 1024:
            return f"{scaled:.1f} {unit}"
    return f"{scaled / 1024:.1f} TB"
