"""Cron's way of naming moments (crontab(5)), for schedulers that have another one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice, pairwise, product

from msgspec import Struct

from devstack.errors import UsageError

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
NAMES = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "day of week": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


class Cron(Struct, frozen=True):
    """An expression of five fields; an empty tuple stands for ``*``. Moments are local time."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    """0 is Sunday."""

    def matches(self, day: datetime) -> bool:
        """Whether it runs on this day; with both kinds of days given, either is enough, as cron has it."""
        if self.months and day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.days and self.weekdays:
            return by_date or by_weekday
        return by_date if self.days else by_weekday if self.weekdays else True

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The moments that follow, for the eight years in which each date comes up."""
        first = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = first.replace(hour=0, minute=0)
        for _ in range(8 * 366):
            if self.matches(day):
                for hour, minute in product(self.hours or range(24), self.minutes or range(60)):
                    if (at := day.replace(hour=hour, minute=minute)) >= first:
                        yield at
            day += timedelta(days=1)

    def gap(self, moment: datetime) -> timedelta:
        """The longest time between two of the next 10,000 runs: those of every minute of a week, or of years."""
        return max((b - a for a, b in pairwise(islice(self.after(moment), 10_000))), default=timedelta(days=366))

    def calendar(self) -> list[str]:
        """The same for systemd, one or two expressions: https://www.freedesktop.org/software/systemd/man/systemd.time"""

        def some(values: tuple[int, ...]) -> str:
            return ",".join(map(str, values)) or "*"

        time = f"{some(self.hours)}:{some(self.minutes)}:00"
        month = some(self.months)
        weekdays = ",".join(WEEKDAYS[n] for n in self.weekdays)
        by_date, by_weekday = f"*-{month}-{some(self.days)} {time}", f"{weekdays} *-{month}-* {time}"
        if self.days and self.weekdays:
            return [by_date, by_weekday]
        return [by_weekday if self.weekdays else by_date]

    def intervals(self) -> list[dict[str, int]]:
        """The same for launchd's StartCalendarInterval (launchd.plist(5)).

        :raises UsageError: it takes too many of them.
        """
        choices = [("Minute", self.minutes), ("Hour", self.hours), ("Month", self.months)]
        given = [[*choices, ("Day", self.days)], [*choices, ("Weekday", self.weekdays)]]
        if not (self.days and self.weekdays):
            given = [[*choices, ("Day", self.days), ("Weekday", self.weekdays)]]
        found = []
        for group in given:
            named = [(key, values) for key, values in group if values]
            combined = product(*(values for _, values in named))
            found += [dict(zip((key for key, _ in named), values, strict=True)) for values in combined]
        if len(found) > 500:
            raise UsageError(f"--every {self.text!r} is too much for launchd", fix="choose fewer moments")
        return found


def parse(text: str) -> Cron:
    """Read an expression such as ``30 3 * * mon-fri``.

    :raises UsageError: it is not one, or names no moment.
    """
    words = text.lower().split()
    if len(words) != 5:
        raise _refuse(text, f"it has {len(words)} fields, not minute, hour, day of month, month and day of week")
    values = [_values(text, word, *field) for word, field in zip(words, FIELDS, strict=True)]
    if values[2] and values[4] and "*" in (words[2][0], words[4][0]):
        # crontab(5): such a field counts as *, and both must fit then; systemd and launchd have no word for that
        raise _refuse(text, f"with a day of week, {words[2]!r} means another thing to each scheduler")
    values[4] = tuple(sorted({day % 7 for day in values[4]}))
    cron = Cron(" ".join(words), *values)
    if next(cron.after(datetime(2027, 1, 1)), None) is None:
        raise _refuse(text, "no date is ever like that")
    return cron


def _values(text: str, word: str, name: str, low: int, high: int) -> tuple[int, ...]:
    found: set[int] = set()
    for part in word.split(","):
        span, slash, step = part.partition("/")
        if slash and (not step.isdigit() or int(step) == 0):
            raise _refuse(text, f"{part!r} has no step that is a number")
        if span == "*":
            if not slash:
                return ()
            first, last = low, min(high, 6) if name == "day of week" else high
        else:
            begin, dash, end = span.partition("-")
            first = _number(text, begin, name)
            last = _number(text, end, name) if dash else high if slash else first
        if not low <= first <= last <= high:
            raise _refuse(text, f"{part!r} is not within {low} to {high}, which a {name} can be")
        found.update(range(first, last + 1, int(step or 1)))
    return tuple(sorted(found))


def _number(text: str, word: str, name: str) -> int:
    if word in NAMES.get(name, ()):
        return NAMES[name].index(word) + (name == "month")
    if not (word.isascii() and word.isdigit()):
        raise _refuse(text, f"{word!r} is not a {name}")
    return int(word)


def _refuse(text: str, why: str) -> UsageError:
    return UsageError(
        f"--every {text!r} can't be used", why=why, fix="daily, hourly, or a cron expression such as '30 3 * * mon-fri'"
    )
