"""A vocabulary, and sentences made of it: faker makes some hundred words once, rows are put together from those."""

from __future__ import annotations

import random
from collections.abc import Callable

COUNT = 200
"""Of each kind: enough for eight million different memories."""

ASKED = (
    "asked about the {}",
    "wants the {} reviewed again",
    "agreed to postpone the {}",
    "found a mistake in the {}",
    "is waiting for the {}",
    "sent new figures for the {}",
    "prefers the earlier version of the {}",
    "explained how the {} works",
)
PLACES = (
    "during the meeting in {}",
    "on the phone from {}",
    "at the workshop in {}",
    "while visiting {}",
    "before leaving for {}",
    "in the video call with {}",
)
TAGS = (
    *("work", "idea", "travel", "family", "health", "reading", "meeting", "todo", "decision", "recipe", "music"),
    *("finance", "garden", "language", "question", "quote", "project", "research", "shopping", "sport"),
)


class Words:
    """The words of a seed. The same seed and version of faker give the same words."""

    def __init__(self, seed: int) -> None:
        from faker import Faker

        fake = Faker("en_US", use_weighting=False)
        fake.seed_instance(seed)
        pick = random.Random(f"words {seed}")

        def some(make: Callable[[], object]) -> list[str]:
            return [str(make()).replace("\n", ", ") for _ in range(COUNT)]

        self.first_names = some(fake.first_name)
        self.last_names = some(fake.last_name)
        self.cities = some(fake.city)
        self.countries = some(fake.country)
        self.companies = some(fake.company)
        self.jobs = some(fake.job)
        self.phrases = some(lambda: fake.catch_phrase().lower())
        self.streets = some(fake.street_address)
        self.words = some(fake.word)
        who = [f"{pick.choice(self.first_names)} {pick.choice(self.last_names)}" for _ in range(COUNT)]
        self.who = [f"{name} from {pick.choice(self.companies)}" if pick.random() < 0.5 else name for name in who]
        self.what = [pick.choice(ASKED).format(phrase) for phrase in self.phrases]
        self.where = [pick.choice(PLACES).format(city) for city in self.cities]

    @property
    def fragments(self) -> list[str]:
        """All parts of sentences, in the order of their numbers."""
        return [*self.who, *self.what, *self.where]
