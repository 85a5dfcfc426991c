# SPDX-License-Identifier: Apache-2.0
"""Word error rate: alignments counted by hand, and its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quanto.eval import plain_words, word_error_rate

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("the cat sat", "the cat sat", (0, 0, 0)),
        ("the cat sat", "the bat sat", (1, 0, 0)),
        ("the cat sat", "the sat", (0, 1, 0)),
        ("the cat sat", "the cat that sat", (0, 0, 1)),
        ("a b c d", "b c x d", (0, 1, 1)),
        ("one two", "", (0, 2, 0)),
        ("one", "two three", (1, 0, 1)),
        ("a b", "b c", (2, 0, 0)),  # not one dropped and one added
    ],
)
def test_errors_are_those_of_the_best_alignment(said: str, heard: str, errors: tuple[int, int, int]) -> None:
    result = word_error_rate([said], [heard])
    assert (result.substitutions, result.deletions, result.insertions) == errors
    assert result.value == sum(errors) / len(said.split())


def test_texts_count_by_their_words() -> None:
    result = word_error_rate(["a", "a b c d e f g h i"], ["x", "a b c d e f g h i"])
    assert result.value == pytest.approx(0.1)
    assert "1 errors in 10 words" in str(result)
    assert result.to_dict()["words"] == 10


def test_punctuation_and_case_do_not_count_and_apostrophes_do() -> None:
    assert plain_words("'Don’t',  she said -- it’s e_mail.") == ["don't", "she", "said", "it's", "e", "mail"]
    assert word_error_rate(["It's HERE!"], ["it's here"]).value == 0
    assert word_error_rate(["It's"], ["its"]).value == 1


def test_own_words() -> None:
    assert word_error_rate(["ab"], ["ac"], words=list).value == 0.5


@given(WORDS.filter(bool), WORDS)
def test_bounds(said: list[str], heard: list[str]) -> None:
    result = word_error_rate([" ".join(said)], [" ".join(heard)])
    errors = result.substitutions + result.deletions + result.insertions
    assert abs(len(said) - len(heard)) <= errors <= max(len(said), len(heard))
    assert len(said) - result.deletions + result.insertions == len(heard)
    assert (errors == 0) == (said == heard)


@pytest.mark.parametrize(("said", "heard", "message"), [(["a"], [], "one for each"), (["..."], ["a"], "no words")])
def test_bad_input(said: list[str], heard: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        word_error_rate(said, heard)


def test_marks_belong_to_their_letters() -> None:
    assert plain_words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert plain_words("Cafe\u0301 noir") == plain_words("café noir") == ["café", "noir"]
    assert plain_words("می\u200cخواهم co\u00adoperate") == ["میخواهم", "cooperate"]
    words = plain_words("rock 'n' roll, dogs’ don''t it's a_b")
    assert words == ["rock", "n", "roll", "dogs", "don", "t", "it's", "a", "b"]
