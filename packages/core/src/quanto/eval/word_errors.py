# SPDX-License-Identifier: Apache-2.0
"""Word error rate of transcripts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["WordErrors", "plain_words", "word_error_rate"]

_LOOSE = re.compile(r"(?<!\S)'+|'+(?!\S)|''+")
_JOINING = "Cf"  # category of characters that say how letters join or where lines may end
_WRITTEN = "LMN"  # categories of characters that words consist of: letters, marks on them, numbers


@dataclass(frozen=True)
class WordErrors:
    """A word error rate, and what it is made of.

    Attributes:
        value: errors over words of the references; above 1 where much was made up.
        substitutions, deletions, insertions: in the alignment with the fewest errors.
        words: of the references.
        convention: how texts became words.
    """

    value: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    convention: str

    def __str__(self) -> str:
        errors = self.substitutions + self.deletions + self.insertions
        return f"WER {self.value:.2%} ({errors:,} errors in {self.words:,} words; {self.convention})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def plain_words(text: str) -> list[str]:
    """Words in lower case, without punctuation but for the apostrophe within a word.

    Letters and the marks on them count as one however they are composed (NFC).
    """
    text = unicodedata.normalize("NFC", text.lower().replace("’", "'"))
    kinds = ((c, unicodedata.category(c)) for c in text)
    kept = "".join(c if c == "'" or kind[0] in _WRITTEN else " " for c, kind in kinds if kind != _JOINING)
    return _LOOSE.sub(" ", kept).split()


def word_error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    words: Callable[[str], list[str]] = plain_words,
) -> WordErrors:
    """Counts the words that must be replaced, dropped or added to make the references of the hypotheses.

    The rate is that of all texts together, not the mean of their rates.

    Args:
        references: what was said.
        hypotheses: what the model wrote, one for each reference.
        words: cuts a text; numbers and spellings are not made alike by the default.

    Raises:
        ValueError: if the lengths differ, or the references have no words.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: give one for each")
    substitutions = deletions = insertions = count = 0
    for said, heard in zip(references, hypotheses, strict=True):
        reference = words(said)
        count += len(reference)
        s, d, n = _errors(reference, words(heard))
        substitutions, deletions, insertions = substitutions + s, deletions + d, insertions + n
    if not count:
        raise ValueError("the references hold no words")
    what = "lower case, no punctuation" if words is plain_words else getattr(words, "__name__", "own words")
    errors = substitutions + deletions + insertions
    return WordErrors(errors / count, substitutions, deletions, insertions, count, what)


def _errors(reference: list[str], heard: list[str]) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions of the Levenshtein alignment; of equals, the fewest insertions."""
    row = [(j, 0, 0, j) for j in range(len(heard) + 1)]  # errors, substitutions, deletions, insertions
    for i, word in enumerate(reference, 1):
        above, row = row, [(i, 0, i, 0)]
        for j, other in enumerate(heard, 1):
            e, s, d, n = above[j - 1]
            best = (e, s, d, n) if word == other else (e + 1, s + 1, d, n)
            e, s, d, n = above[j]
            best = min(best, (e + 1, s, d + 1, n), key=lambda c: (c[0], c[3]))
            e, s, d, n = row[j - 1]
            row.append(min(best, (e + 1, s, d, n + 1), key=lambda c: (c[0], c[3])))
    return row[-1][1:]
