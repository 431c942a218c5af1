"""The Gregorian calendar in integers, defined for all of them: any numbers give some date.

The arithmetic is Howard Hinnant's ("chrono-compatible low-level date
algorithms", days_from_civil and civil_from_days); unlike `datetime` it never
refuses a date that a guest made up.
"""

from __future__ import annotations

_DAY = 86_400


def to_seconds(year: int, month: int, day: int) -> int:
    """Return seconds from 1970-01-01 to midnight of a date; months and days out of range carry over."""
    year += (month - 1) // 12
    month = (month - 1) % 12 + 1
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    days = era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return (days - 719_468) * _DAY


def from_seconds(seconds: int) -> tuple[int, int, int, int, int, int, int]:
    """Return (year, month, day, weekday, hour, minute, second); weekday 1 is Sunday."""
    days, rest = divmod(seconds, _DAY)
    weekday = (days + 4) % 7 + 1
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (month <= 2)
    return year, month, day, weekday, rest // 3600, rest // 60 % 60, rest % 60
