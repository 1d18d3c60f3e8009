import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "breakhis_pl"

# from the bottom up, as docs/design.md draws it; a module may import what stands before it, never what stands after
LAYERS = (
    ("errors", "files", "randomness"),
    ("data.breakhis",),
    ("config", "data.index", "data.tissue", "data.partial", "data.progress"),
    ("data.splits", "data.architecture", "data.staining", "data.archive"),
    ("data.export", "data.synthetic", "data.fetch"),
    ("data.download",),
    ("evaluation.published", "evaluation.confusion", "evaluation.student", "evaluation.siblings"),
    ("evaluation.scores", "evaluation.predictions", "evaluation.figures", "evaluation.run_summary"),
    ("evaluation.case_table", "evaluation.score_figures", "evaluation.comparison_tables"),
    ("evaluation.intervals", "evaluation.comparison"),
    ("evaluation.metrics",),
    ("evaluation.results", "evaluation.__main__"),
    ("data.drawn", "data.store", "data.augment"),
    ("data.datamodule",),
    ("models.backbones",),
    ("models.classifier",),
    ("training.tensorboard", "training.provenance", "training.checkpoints"),
    ("training.history",),
    ("training.progress",),
    ("composition",),
    ("run",),
    ("command_line",),
)
RANKS = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
WITHOUT_TORCH = sorted(
    module
    for module in RANKS
    if module.startswith(("evaluation.", "errors", "files", "randomness", "config", "composition", "command_line"))
    or module in {"data.breakhis", "data.index", "data.splits", "data.export", "data.download", "data.synthetic"}
)


def modules() -> list[str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths if path.name != "__init__.py"]


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    inside = {name.removeprefix("breakhis_pl.") for name in names if name.startswith("breakhis_pl.")}
    return inside & RANKS.keys()


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(RANKS)


@pytest.mark.parametrize("module", modules())
def test_imports_point_downwards(module: str) -> None:
    path = PACKAGE / Path(*module.split(".")).with_suffix(".py")
    above = {name for name in imported(path) if RANKS[name] >= RANKS[module]}
    assert not above


def test_init_files_import_nothing() -> None:
    assert all(path.read_text().strip() == "" for path in PACKAGE.rglob("__init__.py"))


def test_what_needs_no_torch_imports_none() -> None:
    imports = "; ".join(f"import breakhis_pl.{module}" for module in WITHOUT_TORCH if "__main__" not in module)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode == 0
