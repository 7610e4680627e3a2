"""The vectors: the same everywhere, of unit length, and near where words are shared."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import pytest

from api.embedding import DIMENSIONS, embed, literal
from tests.conftest import ROOT

TEXTS = ["", " ", "\0", "!!!", "a", "the cat", "🐈", "நினைவலைகள்", "\ud800", "\u0301", "word " * 4000, "ß", "ﬁne"]


def cosine(one: str, other: str) -> float:
    return math.fsum(a * b for a, b in zip(embed(one), embed(other), strict=True))


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_has_unit_length(text: str) -> None:
    vector = embed(text)
    assert len(vector) == DIMENSIONS
    assert math.sqrt(math.fsum(x * x for x in vector)) == pytest.approx(1)
    assert embed(text) == vector


def test_every_process_gives_the_same_vector() -> None:
    program = "from api.embedding import embed, literal; print(literal(embed('The cat, நினைவு 🐈')))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {literal(embed("The cat, நினைவு 🐈"))}


def test_stored_vectors_stay_comparable() -> None:
    # a change of these numbers needs a migration that embeds every memory again
    vector = embed("The cat sleeps")
    places = sorted(range(DIMENSIONS), key=lambda i: -abs(vector[i]))[:3]
    assert [(i, round(vector[i], 4)) for i in places] == [(182, -0.5774), (280, 0.2887), (314, -0.2887)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Cat", "the cat"),
        ("cafe\u0301", "CAFÉ"),
        ("ﬁne", "fine"),
        ("STRASSE", "straße"),
        ("cat, dog!", "cat dog"),
        ("１２３", "123"),
    ],
)
def test_ways_to_write_the_same_are_the_same(one: str, other: str) -> None:
    assert embed(one) == pytest.approx(embed(other))


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("sleeping cats", "the cat sleeps", "the dog barks"),
        ("database migration", "migrating databases", "baking bread"),
        ("நினைவலைகள்", "நினைவுகள்", "மழை"),
        ("猫が眠る", "猫が寝る", "電車に乗る"),
        ("🐈 🐈", "🐈", "🚲"),
    ],
)
def test_shared_words_and_stems_are_near(text: str, near: str, far: str) -> None:
    assert cosine(text, near) > cosine(text, far) + 0.1


def test_the_longest_content_is_embedded_quickly() -> None:
    text = " ".join(f"{n}th-word" for n in range(2500))[:20_000]
    began = time.perf_counter()
    embed(text)
    assert time.perf_counter() - began < 1
