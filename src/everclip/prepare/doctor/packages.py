"""Compares installed packages with the requirements of everclip."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from everclip.prepare.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OPTIONAL = {"transformers": "models with a tokenizer of transformers (SigLIP, RoBERTa...)"}
"""Optional packages outside of extras, and what needs them."""

DEVELOPMENT = frozenset({"build", "dev", "mutants"})
"""Extras for work on everclip itself; without its repository they are of no use."""


def wanted() -> tuple[str, list[str]]:
    """Return the required Python version and packages, from the installed package or its sources.

    Raises:
        LookupError: if everclip is neither installed nor run from its sources.
    """
    try:
        found = metadata.metadata("everclip")
        return found["Requires-Python"] or "", metadata.requires("everclip") or []
    except metadata.PackageNotFoundError:
        pass
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get(
                "project", {}
            )
            if project.get("name") == "everclip":
                extras = project.get("optional-dependencies", {})
                marked = [f'{line}; extra == "{extra}"' for extra, lines in extras.items() for line in lines]
                return project["requires-python"], [*project["dependencies"], *marked]
    raise LookupError("everclip is neither installed nor run from its sources")


def check_packages() -> list[Finding]:
    """Compare every required package with the installed one, and list installed extras."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return [Finding("packaging", "fail", "not installed", "pip install packaging")]
    try:
        python, lines = wanted()
    except LookupError as error:
        return [
            Finding("everclip", "fail", str(error), "pip install everclip, or run it from its repository")
        ]
    here = platform.python_version()
    fits = SpecifierSet(python).contains(here, prereleases=True)
    remedy = "" if fits else f"use Python {python} in a new virtual environment"
    found = [Finding("python", "ok" if fits else "fail", f"{here} (wanted {python})", remedy)]
    requirements = [_parsed(line) for line in lines]
    required = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    of_others = _indirect(required)
    refused = {finding.name for finding in of_others if finding.state == "fail"}
    direct = [_required(requirement) for requirement in required]
    # One package is one line: a version that fits here and not another package is a failure.
    found += [finding for finding in direct if finding.state == "fail" or finding.name not in refused]
    found += of_others
    found += _extras([r for r in requirements if r not in required])
    return found


def _parsed(line: str) -> Requirement:
    """Parse a requirement, with its canonical name: metadata say open-clip-torch or open_clip_torch."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    requirement = Requirement(line)
    requirement.name = canonicalize_name(requirement.name)
    return requirement


def _required(requirement: Requirement) -> Finding:
    requested = f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(
            requirement.name, "fail", f"not installed (wanted {requested})", f"pip install '{requested}'"
        )
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            requirement.name,
            "fail",
            f"{version} (wanted {requested})",
            f"pip install --upgrade '{requested}'",
        )
    return Finding(requirement.name, "ok", f"{version} (wanted {requirement.specifier or 'any'})")


def _indirect(required: Iterable[Requirement]) -> list[Finding]:
    """Check the requirements of the required packages, like `pip check`."""
    found, met = [], 0
    direct = {r.name for r in required if _required(r).state == "fail"}  # are told already
    for requirement in required:
        lines = metadata.requires(requirement.name) or [] if _installed(requirement.name) else []
        for inner in map(_parsed, lines):
            if inner.marker is not None and not inner.marker.evaluate({"extra": ""}):
                continue
            finding = _required(inner)
            if finding.state == "fail" and finding.name not in direct:
                text = f"{finding.found}, needed by {requirement.name}"
                found.append(Finding(finding.name, "fail", text, finding.remedy))
            met += finding.state == "ok"
    return [*found, Finding("requirements of these", "ok", f"{met} are met")]


def _extras(requirements: Iterable[Requirement]) -> list[Finding]:
    by_extra: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = str(requirement.marker).partition('extra == "')[2].partition('"')[0]
        if extra and extra not in DEVELOPMENT:
            by_extra.setdefault(extra, []).append(requirement.name)
    found = []
    for extra, names in sorted(by_extra.items()):
        missing = [name for name in names if not _installed(name)]
        text = f"lacks {', '.join(missing)}: pip install 'everclip[{extra}]'" if missing else "installed"
        found.append(Finding(f"optional: {extra}", "ok", text))
    for name, what in OPTIONAL.items():
        text = metadata.version(name) if _installed(name) else f"not installed; only for {what}"
        found.append(Finding(f"optional: {name}", "ok", text))
    return found


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
