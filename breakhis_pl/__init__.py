"""breakhis_pl for notebooks: `run = breakhis_pl.open_run("outputs/…")`. Nothing is imported before it is used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from breakhis_pl.notebook import FinishedRun, compare, open_run

__all__ = ["FinishedRun", "compare", "open_run"]


def __getattr__(name: str) -> object:
    """Import what a notebook asks for."""
    if name not in __all__:
        raise AttributeError(f"module 'breakhis_pl' has no attribute {name!r}")
    from breakhis_pl import notebook  # noqa: PLC0415 - imports torch

    return getattr(notebook, name)
