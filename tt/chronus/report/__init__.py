"""Telling what a search found: on a terminal, and as a page."""
