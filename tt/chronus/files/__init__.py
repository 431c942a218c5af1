"""File systems at past instants: their files, what differs, and disks with some files exchanged."""
