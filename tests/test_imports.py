import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "breakhis_pl"

# from the bottom up, as docs/design.md draws it; a module may import from its own layer and from those before it
LAYERS = (
    ("errors", "files", "locks", "randomness", "cores", "data.breakhis", "network_names"),
    ("config", "run_json", "processes", "config_faults", "help_texts"),
    (
        *("data.index", "data.splits", "data.export", "data.synthetic", "data.architecture", "data.tissue"),
        *("data.staining", "data.download", "data.fetch", "data.partial", "data.archive", "data.progress"),
        *("data.lock", "data.answer", "data.png", "data.pictures", "data.resampling", "data.domain", "data.stain"),
    ),
    ("evaluation.*",),
    ("tuning.space", "tuning.trials", "tuning.figures", "tuning.page"),
    ("data.drawn", "data.store", "data.stained_store"),
    ("data.appearance", "data.augment", "data.balance", "data.row_loading", "data.datamodule"),
    ("models.*",),
    ("training.*",),
    ("composition",),
    ("resuming", "repeating"),
    ("tuning.plan", "tuning.best", "tuning.study"),
    ("prediction.*",),
    ("outcome", "engine", "guards", "frozen", "preparation", "evaluating", "run", "export_onnx"),
    ("tuning.reporting", "tuning.worker"),
    ("launchers", "jobs"),
    ("door",),
    ("command_line",),
)
WITH_TORCH = ("evaluation.gradcam", "evaluation.feature_maps", "prediction.run_network")
WITHOUT_TORCH = (
    "errors",
    "files",
    "locks",
    "randomness",
    "cores",
    "config",
    "config_faults",
    "help_texts",
    "network_names",
    "run_json",
    "processes",
    "composition",
    "resuming",
    "launchers",
    "jobs",
    "repeating",
    "door",
    "command_line",
    "evaluation.*",
    *("tuning.space", "tuning.trials", "tuning.figures", "tuning.page", "tuning.plan", "tuning.best", "tuning.study"),
    "prediction.*",
    *LAYERS[2],
)
OF_EXTRAS = ("tuning.study", "launchers")


def modules() -> list[str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths if path.name != "__init__.py"]


def layers_of(module: str) -> list[int]:
    return [rank for rank, patterns in enumerate(LAYERS) if any(fnmatchcase(module, pattern) for pattern in patterns)]


def path_of(module: str) -> Path:
    return PACKAGE / Path(*module.split(".")).with_suffix(".py")


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix("breakhis_pl.") for name in names if name.startswith("breakhis_pl.")} & set(modules())


def test_every_module_has_one_place() -> None:
    assert {module: len(layers_of(module)) for module in modules()} == dict.fromkeys(modules(), 1)


def test_imports_point_downwards() -> None:
    above = {(module, name) for module in modules() for name in imported(module) if layers_of(name) > layers_of(module)}
    assert not above


def test_no_module_needs_itself() -> None:
    TopologicalSorter({module: imported(module) for module in modules()}).prepare()


def test_init_files_are_empty() -> None:
    assert all(path.read_text().strip() == "" for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("of_extras", [False, pytest.param(True, marks=pytest.mark.extra("optuna", "submitit"))])
def test_what_needs_no_torch_imports_none(of_extras: bool) -> None:
    without = [
        module
        for module in modules()
        if any(fnmatchcase(module, pattern) for pattern in WITHOUT_TORCH)
        and module not in WITH_TORCH
        and "__main__" not in module
        and (module in OF_EXTRAS) is of_extras
    ]
    assert len(without) == len(OF_EXTRAS) if of_extras else len(without) > 40
    imports = "; ".join(f"import breakhis_pl.{module}" for module in without)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode == 0
