"""Loads libunicorn into the process, for the extension to bind to.

The library is the one in the package `unicorn`, whose Python modules are of no use here and take a
tenth of a second to load on a busy machine.  Code that imports them gets the same copy of the library.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path


def _load() -> ctypes.CDLL:
    spec = find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("tt needs the package `unicorn`, which is not installed: run pip install unicorn")
    for folder in spec.submodule_search_locations:
        for path in sorted((Path(folder) / "lib").glob("libunicorn.so*")):
            return ctypes.CDLL(str(path))
    raise ImportError(f"there is no libunicorn.so in {spec.submodule_search_locations[0]}/lib")


LIBRARY = _load()
"""Kept, so that the library stays loaded."""
