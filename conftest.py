"""Which modules pytest leaves alone: those that import a package of an extra, where it is not installed."""

from importlib.util import find_spec

IMPORTED = {
    "breakhis_pl/launchers.py": "submitit",
    "breakhis_pl/tuning/reporting.py": "optuna",
    "breakhis_pl/tuning/study.py": "optuna",
    "breakhis_pl/tuning/worker.py": "optuna",
}
collect_ignore = [module for module, package in IMPORTED.items() if find_spec(package) is None]
