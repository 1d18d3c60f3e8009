"""Asks for known vulnerabilities of the versions in a hash-pinned list: `python audit.py requirements.lock`.

pip-audit asks the package index itself, and no other host. Where that has no advisories, as many mirrors, pip-audit
skips every package, says that it found nothing and exits with 0; here that is called what it is.

Exit status: 0 if nothing is known, or if nobody could be asked, which is said; 1 if a vulnerability is known, or if the
audit failed for another reason.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

NOBODY_ANSWERED = ("requests.exceptions.", "ConnectionError", "ServiceError")
"""What the last lines of pip-audit name when it reaches no index."""


def audit(listed: str) -> subprocess.CompletedProcess[str]:
    """What pip-audit says about a list, for this platform and Python: JSON, unless it broke off."""
    with tempfile.TemporaryDirectory() as cache:
        options = ("--disable-pip", "--vulnerability-service=pypi", "--format=json", "--progress-spinner=off")
        return subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "pip_audit", "--requirement", listed, *options, "--cache-dir", cache],
            capture_output=True,
            text=True,
            check=False,
        )


def verdict(answer: subprocess.CompletedProcess[str], listed: str) -> tuple[int, str]:
    """Exit status, and the sentence that goes with it."""
    try:
        packages: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        if any(name in answer.stderr for name in NOBODY_ANSWERED):
            reason = answer.stderr.strip().rpartition("\n")[2]
            return 0, f"{listed}: NOT AUDITED, no database of vulnerabilities could be reached ({reason})"
        return 1, f"{listed}: pip-audit failed with exit status {answer.returncode}\n{answer.stderr}"
    if not packages:
        return 1, f"{listed}: pip-audit found no package in it"
    return _verdict_on(packages, listed)


def _verdict_on(packages: list[dict[str, Any]], listed: str) -> tuple[int, str]:
    """The verdict where pip-audit went through to the end."""
    vulnerable = [package for package in packages if package.get("vulns")]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if vulnerable:
        count = f"{len(vulnerable)} of {len(packages)} packages"
        lines = "\n".join(f"  {_advisories(package)}" for package in vulnerable)
        advice = "docs/supply_chain.md says how to raise a version"
        return 1, f"{listed}: known vulnerabilities in {count}; {advice}\n{lines}"
    if len(skipped) == len(packages):
        return 0, f"{listed}: NOT AUDITED, the package index has advisories for none of its {len(packages)} packages"
    if skipped:
        count = f"{len(packages) - len(skipped)} of {len(packages)} packages"
        return 0, f"{listed}: no known vulnerability in {count}; NOT AUDITED: {', '.join(skipped)}"
    return 0, f"{listed}: no known vulnerability in {len(packages)} packages"


def _advisories(package: dict[str, Any]) -> str:
    """`pillow 9.0.0: PYSEC-2022-8 (mended in 9.0.1)`."""
    advisories = (
        f"{advisory['id']} (mended in {', '.join(advisory['fix_versions']) or 'no version yet'})"
        for advisory in package["vulns"]
    )
    return f"{package['name']} {package['version']}: {', '.join(advisories)}"


if __name__ == "__main__":
    status, sentence = verdict(audit(sys.argv[1]), sys.argv[1])
    print(sentence)  # noqa: T201 - its only output
    sys.exit(status)
