"""Builders of guests to record: a small Debian, and the Denali demo."""
