"""Branches of a recording: forks, their tree, and where two timelines differ."""
