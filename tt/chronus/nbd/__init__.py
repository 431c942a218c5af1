"""NBD: disks of this program for every machine and tool that speaks the network block device protocol."""

from tt.chronus.nbd.exports import Export, RawFileExport
from tt.chronus.nbd.instants import InstantExport
from tt.chronus.nbd.server import Server, serving

__all__ = ["Export", "InstantExport", "RawFileExport", "Server", "serving"]
