"""The images that a history was imported from: each is many writes, between which are no instants.

An image shows the state of a disk, not in which order it was written.  Its blocks are logged as writes, like
all others, but the disk never was in a state with only some of them.  The key `images` of the trace's `meta`
lists [bookmark, first write, last write] of each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from tt.log import Trace

META_KEY = "images"
DESCRIPTION = "imported images"


class ImageSpan(NamedTuple):
    """The writes `first` to `last` brought in one image, bookmarked as `name`."""

    name: str
    first: int
    last: int

    @property
    def before(self) -> int:
        """The instant before the image."""
        return self.first - 1


def image_spans(trace: Trace) -> list[ImageSpan]:
    """Return the images that a trace was imported from, in order; those that changed nothing are left out.

    Raises `BadInput` where the list of them makes no sense.
    """
    spans = _listed(trace) if META_KEY in trace.meta else _from_bookmarks(trace)
    oldest = trace.squashed_before
    return [ImageSpan(name, max(first, oldest + 1), last) for name, first, last in spans if last > oldest]


def span_around(spans: Sequence[ImageSpan], instant: int) -> ImageSpan | None:
    """Return the image in the middle of which an instant lies, None where the disk once had that state."""
    at = bisect_left(spans, instant, key=lambda span: span.last)
    return spans[at] if at < len(spans) and spans[at].first <= instant < spans[at].last else None


def _listed(trace: Trace) -> list[ImageSpan]:
    listed = trace.meta[META_KEY]
    found: list[ImageSpan] = []
    for entry in listed if isinstance(listed, list) else [None]:
        match entry:
            case [str(name), int(first), int(last)] if (found[-1].last if found else 0) < first <= last:
                found.append(ImageSpan(name, first, last))
            case _:
                raise trace.damaged("its list of imported images makes no sense")
    return found


def _from_bookmarks(trace: Trace) -> list[ImageSpan]:
    """Return the images of a history that was imported before they were listed: up to each bookmark."""
    config = trace.meta.get("config")
    if not isinstance(config, dict) or DESCRIPTION not in (config.get("description") or ()):
        return []
    found: list[ImageSpan] = []
    for name, instant in sorted(trace.bookmarks.items(), key=lambda item: item[1]):
        first = (found[-1].last if found else 0) + 1
        if first <= instant:
            found.append(ImageSpan(name, first, instant))
    return found
