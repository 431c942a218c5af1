"""An NBD server: it gives this program's disks to machines and tools that speak that protocol."""

from tt.chronus.nbd.exports import Export, RawFileExport
from tt.chronus.nbd.instants import InstantExport
from tt.chronus.nbd.server import Server, serving

__all__ = ["Export", "InstantExport", "RawFileExport", "Server", "serving"]
