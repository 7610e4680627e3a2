"""Text as a vector, without a model.

Words and their character n-grams are hashed into a fixed number of signed places ("feature hashing"). Texts
that share words, or parts of words, point the same way. It knows nothing of meaning: put a model's embedding here
when you need that, and re-embed what is stored.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

DIMENSIONS = 384
NGRAM_SIZES = (3, 4)
DENSE_NGRAM_SIZES = (2, 3)
"""Other scripts than Latin say more with fewer characters, some without spaces between words."""
NGRAM_SHARE = 1.0
"""How much all n-grams of a word weigh together, the word itself being 1."""
FULL_WEIGHT_LENGTH = 6
"""Characters from which on a word counts fully; shorter ones are more often "the" and "of"."""


def embed(text: str) -> list[float]:
    """``text`` as :data:`DIMENSIONS` floats of unit length, the same on every machine and in every process.

    Case and Unicode's ways to write one character don't matter. A text without any word gets a vector as
    well: the cosine of a zero vector is undefined, and pgvector's index leaves it out.
    """
    vector = [0.0] * DIMENSIONS
    for word, count in Counter(_words(text)).items():
        weight = (1 + math.log(count)) * min(1.0, len(word) / FULL_WEIGHT_LENGTH)
        for feature, share in _features(word):
            place, sign = _place(feature)
            vector[place] += sign * share * weight
    length = math.sqrt(math.fsum(x * x for x in vector))
    if length == 0.0:
        vector[_place("")[0]] = length = 1.0
    return [x / length for x in vector]


def literal(vector: list[float]) -> str:
    """The vector as pgvector reads it; 7 digits hold all that its 4-byte floats can."""
    return f"[{','.join(f'{x:.7g}' for x in vector)}]"


def _words(text: str) -> list[str]:
    # casefold can undo the normal form, so once more
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c if _in_word(c) else " " for c in folded).split() or folded.split()


def _in_word(character: str) -> bool:
    # Tamil's vowel signs, among others, are marks (M), which str.isalnum and \w leave out; So has the emoji
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc", "So")


def _features(word: str) -> Iterator[tuple[str, float]]:
    yield word, 1.0
    edged = f"<{word}>"
    sizes = NGRAM_SIZES if word.isascii() else DENSE_NGRAM_SIZES
    ngrams = [edged[i : i + n] for n in sizes for i in range(len(edged) - n + 1)]
    for ngram in ngrams:
        yield f"#{ngram}", NGRAM_SHARE / math.sqrt(len(ngrams))


def _place(feature: str) -> tuple[int, int]:
    # surrogates alone are no text, yet must not be the caller's problem
    digest = blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:7], "big") % DIMENSIONS, 1 if digest[7] & 1 else -1
