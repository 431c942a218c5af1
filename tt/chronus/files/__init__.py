"""Looking into the file systems of the past: files, what differs, and disks with some files exchanged."""
