import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakhis_pl.evaluation.texts import named, one_line, quoted, visible

ANY_TEXT = st.text(st.characters(), max_size=300)


@given(text=ANY_TEXT)
def test_no_text_breaks_a_line_or_turns_its_direction(text: str) -> None:
    for shown in (quoted(text), named(text), one_line(text)):
        assert shown.isprintable()
        assert len(shown) < 700
    assert len(one_line(text)) <= 40


@given(text=ANY_TEXT)
def test_what_is_made_visible_holds_no_character_that_cannot_be_seen(text: str) -> None:
    shown = visible(text)

    shown.encode("utf-8")
    assert not {"\r", "\0", "\x1b", "\u202e", "\u2066", "\u2028", "\ufeff"} & set(shown)
    assert shown.count("\n") == text.count("\n")


def test_names_that_differ_in_unseen_characters_look_different() -> None:
    names = ["a", "a\u200b", "a\u202e", "a\x07", "a\udcff", "a\r"]

    assert len({visible(name) for name in names}) == len(names)
    assert len({named(name) for name in names}) == len(names)


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (None, "None"), ([1] * 100, f"{'[' + '1, ' * 19}1,…")])
def test_values_are_quoted_short(value: object, shown: str) -> None:
    assert quoted(value)[:60] == shown[:60]
    assert len(quoted(value)) <= 61


def test_a_long_name_keeps_both_ends() -> None:
    assert one_line("first" + "x" * 100 + "last", longest=15) == "firstxx…xxxlast"
