"""Searching a history for the write after which a probe gives another answer."""
