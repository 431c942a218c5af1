"""Histories of disks: every instant of one, its names, and how writes come in and go out."""
