"""What `tt info` tells of a trace: as plain data, and as lines to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tt.cli.output import cell, format_ns, format_size, frame_counts, kind_name
from tt.log import Trace
from tt.position import format_tick


def trace_facts(trace: Trace) -> dict[str, Any]:
    """Return what there is to know of a trace; reads all its events."""
    kinds = Counter(kind_name(event.kind) for event in trace.events())
    return {
        "trace": str(trace.path),
        "size": trace.path.stat().st_size,
        "sealed": trace.sealed,
        "reason": trace.reason,
        "end_tick": trace.end_tick,
        "guest_ns": trace.ns_at_tick(trace.end_tick),
        "events": trace.event_count,
        "event_log_bytes": trace.event_log_size,
        "kinds": dict(sorted(kinds.items())),
        "disk_writes": trace.disk_write_count,
        "digests": trace.digest_count,
        "bookmarks": trace.bookmarks,
        "files": trace.files,
        "summary": trace.summary,
        "meta": trace.meta,
    }


def trace_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `trace_facts` as (name, text) to print."""
    ticks, log = facts["end_tick"], facts["event_log_bytes"]
    density = f", {log * 1000 / ticks:.3f} B per 1000 ticks" if ticks else ""
    kinds = [f"{count:,} {kind}" for kind, count in facts["kinds"].items()]
    cut = "not sealed: the recording was cut off, or still runs"
    yield "trace", f"{facts['trace']}, {format_size(facts['size'])}"
    yield "recorded", f"{format_tick(ticks)} ticks, {format_ns(facts['guest_ns'])} of guest time"
    yield "ended", cell(facts["reason"] or "closed") if facts["sealed"] else cut
    yield "events", f"{facts['events']:,}" + (f": {', '.join(kinds)}" if kinds else "")
    yield "event log", format_size(log) + density
    yield "disk writes", f"{facts['disk_writes']:,}"
    yield "digests", f"{facts['digests']:,}"
    for name, size in facts["files"].items():
        yield f"file {cell(name)}", format_size(size)
    for name, tick in facts["bookmarks"].items():
        yield f"bookmark @{cell(name)}", format_tick(tick)
    meta = dict(facts["meta"])
    if isinstance(meta.get("config"), dict):
        networks = meta.pop("networks", None)
        yield from _machine(
            meta.pop("config"), facts["files"], networks if isinstance(networks, list) else []
        )
        meta.pop("machine", None)
        meta.pop("period_ns", None)
    for number, counts in enumerate(frame_counts(facts["summary"].get("network"))):
        yield f"frames of card {number}", counts
    yield from _flat("", meta)
    yield from _flat("", {key: value for key, value in facts["summary"].items() if key not in _TOLD})
    if "problems" in facts:
        yield "damage", "none"


_TOLD = {"at", "ended", "guest_ns", "network"}  # parts of the summary that other lines tell


def _machine(config: dict[str, Any], files: dict[str, int], networks: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield what a trace says of its machine.  A trace from elsewhere may hold anything there."""
    memory, epoch = config.get("mem_bytes"), config.get("epoch")
    size = format_size(memory) if isinstance(memory, int) else cell(str(memory))
    yield "machine", f"{cell(str(config.get('machine')))}, {size} of memory"
    since = f" from {_utc(epoch)}" if isinstance(epoch, int) else ""
    yield "clock", f"{cell(str(config.get('clock')))}, {cell(str(config.get('period_ns')))} ns a tick,{since}"
    description = config.get("description")
    for line in description if isinstance(description, list) else []:
        if not str(line).startswith("command line"):  # told below
            yield "boot", cell(str(line))
    if config.get("cmdline"):
        yield "command line", cell(str(config["cmdline"]))
    disks = config.get("disks")
    for number, disk in enumerate(disks if isinstance(disks, list) else []):
        if isinstance(disk, dict) and isinstance(disk.get("size"), int):
            where = "in the trace" if f"disk{number}" in files else "not in the trace"
            image = f"{cell(str(disk['path']))} ({where})" if disk.get("path") else "blank"
            yield f"disk {number}", f"{format_size(disk['size'])}, {image}"
    nets = config.get("nets")
    for number, net in enumerate(nets if isinstance(nets, list) else []):
        if isinstance(net, dict):
            told = f", connected to {cell(str(networks[number]))}" if number < len(networks) else ""
            yield (
                f"network card {number}",
                f"{cell(str(net.get('model')))}, {cell(str(net.get('mac')))}{told}",
            )


def _utc(seconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield nested plain data as dotted names and texts."""
    for key, value in values.items():
        name = cell(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            yield from _flat(f"{name}.", value)
        else:
            yield name, cell(str(value))
