from datetime import UTC, datetime

import pytest

from breakhis_pl.data.answer import retry_after_s

NOW = datetime(2022, 10, 1, 10, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Sat, 01 Oct 2022 10:02:00 GMT", 120.0),
        ("Saturday, 01-Oct-22 10:02:00 GMT", 120.0),
        ("Sat Oct  1 10:02:00 2022", 120.0),
        ("Sat, 01 Oct 2022 10:02:00 -0000", 120.0),
        ("Sat, 01 Oct 2022 09:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_dates_are_both_understood(header: str, wait_s: float) -> None:
    assert retry_after_s(header, now=NOW) == wait_s


@pytest.mark.parametrize(
    "header",
    [None, "", "soon", "-1", "1.5", "1e3", "٣", "9" * 5000, "Sat, 99 Oct 2022 10:02:00 GMT", "1 Jan 99999 00:00:00"],
)
def test_what_is_neither_is_as_if_it_were_not_there(header: str | None) -> None:
    assert retry_after_s(header, now=NOW) is None
