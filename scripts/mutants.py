"""Mutation testing: how many small faults in methods, evaluation and modules do the tests notice?

    python scripts/mutants.py --sample 200 --seed 0

mutmut writes the mutants (one changed operator, constant, argument or assignment each) into `mutants/`. A seeded sample
of them runs, each in a process of its own, against the tests that call its function: the fastest test first, until one
fails. What is finished is kept in `mutants/`, so an interrupted run goes on where it stopped, a larger sample contains
the smaller one, and survivors are tried again when the tests have changed. Delete `mutants/` to start over.

Left out of the population: changes of words in messages, and what mutmut does not change (decorated functions, class
bodies). Survivors that no test can kill are listed with a reason in `tests/mutants_equivalent.toml`.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from children import Job, in_children

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "mutants"
CALLS = WORK / "calls.json"
RESULTS = WORK / "results.jsonl"
EQUIVALENT = ROOT / "tests" / "mutants_equivalent.toml"
TESTS = ("tests/golden", "tests/unit", "tests/property", "tests/leak", "tests/recipe", "tests/cases")
WORDS = re.compile(r"""f?"[^"]*\s[^"]*"|f?'[^']*\s[^']*'""")


def generate() -> list[str]:
    """Write the mutated source tree; return the names of all mutants, sorted."""
    from mutmut.__main__ import create_file_mutants
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.utils.file_utils import (
        copy_also_copy_files,
        copy_src_dir,
        setup_source_paths,
        walk_mutatable_files,
        walk_source_files,
    )

    WORK.mkdir(exist_ok=True)
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
        copy_src_dir()
        copy_also_copy_files()
        # mutmut copies what is no Python file once, and never again.
        for path in (path for path in Path("src").rglob("*") if path.is_file() and path.suffix != ".py"):
            shutil.copy2(path, WORK / path)
        for path in walk_source_files():
            made = create_file_mutants(path)
            if made.error is not None:
                raise made.error
    setup_source_paths()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(WORK / "src"), os.environ.get("PYTHONPATH", "")])
    names = []
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        names += data.exit_code_by_key
    return sorted(names)


def change(name: str) -> tuple[str, list[str], list[str]]:
    """Return the function of a mutant, `module.Class.function`, and the lines before and after its change."""
    from mutmut.mutation.data import MutantLineSpans

    module, _, mangled = name.rpartition(".")
    function, _, _ = mangled.rpartition("__mutmut_")
    path = Path("src", *module.split(".")).with_suffix(".py")
    spans = MutantLineSpans.load(path if path.is_file() else Path("src", *module.split("."), "__init__.py"))
    assert spans is not None
    texts = spans.read_function_sources([mangled, f"{function}__mutmut_orig"])
    new, old = (
        text.replace(own, "").splitlines() for text, own in zip(texts, (mangled, function), strict=True)
    )
    rows = [row for row in difflib.ndiff(old, new) if "__mutmut_" not in row and "def (" not in row]
    before, after = ([row[2:].strip() for row in rows if row[0] == sign] for sign in "-+")
    return f"{module}.{function.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}", before, after


def of_words(name: str) -> bool:
    """Whether a mutant changes nothing but words in a string."""
    _, before, after = change(name)
    return [WORDS.sub('""', row) for row in before] == [WORDS.sub('""', row) for row in after]


def chosen(names: list[str], size: int, seed: int) -> list[str]:
    """Return a seeded sample without changes of words; a larger one contains a smaller one."""
    # By hash, so that a change of the code changes few of those that are chosen.
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    found: list[str] = []
    for name in order:
        if len(found) == size:
            break
        if not of_words(name):
            found.append(name)
    return found


class Calls:
    """pytest plugin: which functions each test calls, how long it takes, and whether it passes."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        test = self.tests.setdefault(item.nodeid, {"seconds": 0.0, "passes": True, "calls": []})
        test["seconds"] += call.duration
        if call.excinfo is not None:
            test["passes"] = False

    def pytest_runtest_teardown(self, item: Any) -> None:
        from mutmut.state import state

        self.tests[item.nodeid]["calls"] = sorted(state()._stats)
        state()._stats.clear()


def pytest_in_work(*args: str, plugins: Iterable[object] = ()) -> int:
    import pytest

    os.chdir(WORK)
    fixed = ["--rootdir=.", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    return int(pytest.main([*fixed, *args], plugins=list(plugins)))


def warm_up(files: Iterable[str]) -> None:
    """Import what the tests import, so that a forked process starts at once; no test runs here, nor any thread."""
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
        pytest_in_work("--collect-only", "-qq", *files)
    os.chdir(ROOT)
    gc.freeze()


def map_tests(files: list[Path], at_once: int) -> dict[str, dict[str, Any]]:
    """Return what each test calls; files that have not changed since the last time are not run again."""
    from mutmut.mutation.trampoline import set_mutant_under_test

    known = json.loads(CALLS.read_text()) if CALLS.is_file() else {}
    prints = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    stale = [name for name, found in prints.items() if known.get(name, {}).get("hash") != found]

    def part(name: str) -> Path:
        return WORK / f"part-{prints[name][:16]}.json"

    def work(name: str) -> int:
        set_mutant_under_test("stats")
        calls = Calls()
        pytest_in_work(name, plugins=[calls])
        part(name).write_text(json.dumps(calls.tests))
        return 0

    jobs = [Job(name, partial(work, name), 1800) for name in stale]
    for number, (name, _, took) in enumerate(in_children(jobs, at_once), 1):
        print(f"[{number}/{len(stale)}] {took:6.1f} s  which functions {name} calls", flush=True)
        tests = json.loads(part(name).read_text()) if part(name).is_file() else {}
        part(name).unlink(missing_ok=True)
        known[name] = {"hash": prints[name], "tests": tests}
        CALLS.write_text(json.dumps(known))
    return {
        test: {**facts, "file": known[name]["hash"]}
        for name in prints
        for test, facts in known[name]["tests"].items()
    }


def covering(name: str, tests: dict[str, dict[str, Any]], budget: float) -> tuple[list[str], float]:
    """Return the tests that call a mutant's function, the fastest first, within `budget` seconds; and their seconds."""
    function = name.rpartition("__mutmut_")[0]
    found = [
        (facts["seconds"], test)
        for test, facts in tests.items()
        if facts["passes"] and function in facts["calls"]
    ]
    total, taken = 0.0, []
    for seconds, test in sorted(found):
        if taken and total + seconds > budget:
            break
        total += seconds
        taken.append(test)
    return taken, total


def trial(name: str, tests: list[str], seconds: float) -> Job:
    """Return the job that runs tests against one mutant, which ends with 0 if it survives all of them."""
    from mutmut.mutation.trampoline import set_mutant_under_test

    def work() -> int:
        set_mutant_under_test(name)
        return pytest_in_work("-x", *tests)

    return Job(name, work, 30 + 6 * seconds)


def reason(row: dict[str, Any], kept: dict[str, Any]) -> str | None:
    """Return why no test can see a mutant: its own entry in the kept file, or that of its kind; `None` if neither."""
    own = ("function", "before", "after")
    shown = {
        "function": row["function"],
        "before": "\n".join(row["before"]),
        "after": "\n".join(row["after"]),
    }
    for entry in kept["equivalent"]:
        if all(entry[name] == shown[name] for name in own):
            return str(entry["why"])
    for kind in kept["kind"]:
        if re.sub(kind["ignore"], "", shown["before"]) == re.sub(kind["ignore"], "", shown["after"]):
            return str(kind["why"])
    return None


def finished() -> dict[str, dict[str, Any]]:
    if not RESULTS.is_file():
        return {}
    return {row["name"]: row for row in map(json.loads, RESULTS.read_text().splitlines())}


def run(
    sample: list[str], tests: dict[str, dict[str, Any]], budget: float, at_once: int
) -> list[dict[str, Any]]:
    """Return one row per mutant of the sample; what is finished is not run again unless its tests have changed."""
    done, kept = finished(), tomllib.loads(EQUIVALENT.read_text())
    rows: dict[str, dict[str, Any]] = {}
    jobs: list[Job] = []
    for name in sample:
        mine, seconds = covering(name, tests, budget)
        function, before, after = change(name)
        shown = {"name": name, "function": function, "before": before, "after": after}
        files = sorted({tests[test]["file"] for test in mine})
        key = hashlib.sha256(json.dumps([before, after, mine, files]).encode()).hexdigest()[:16]
        rows[name] = {**shown, "key": key, "status": "no tests", "tests": len(mine), "seconds": 0.0}
        row = done.get(name)
        if reason(shown, kept) is not None:
            rows[name]["status"] = "equivalent"
        elif row is not None and (
            row["key"] == key or (row["status"] == "killed" and row["before"] == before)
        ):
            rows[name] = row
        elif mine:
            jobs.append(trial(name, mine, seconds))
    for number, (name, code, took) in enumerate(in_children(jobs, at_once), 1):
        status = "timeout" if code is None else "survived" if code == 0 else "killed"
        rows[name] |= {"status": status, "seconds": round(took, 1)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[name]) + "\n")
        print(f"[{number}/{len(jobs)}] {status:9} {took:6.1f} s  {name}", flush=True)
    return list(rows.values())


def report(rows: list[dict[str, Any]], population: int) -> None:
    """Print the share of survivors, and each of them."""
    from everclip.evaluation.statistics import wilson

    counts = Counter(row["status"] for row in rows)
    survivors = [row for row in rows if row["status"] in ("survived", "no tests")]
    for row in survivors:
        print(f"\n{row['status']}: {row['name']} ({row['tests']} tests)")
        print("\n".join([f"  - {line}" for line in row["before"]] + [f"  + {line}" for line in row["after"]]))
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    )
    whole = len(rows) - counts["equivalent"]
    between = wilson(len(survivors), whole)
    share = f"{len(survivors) / whole:.1%} (95 % interval {between.low:.1%} to {between.high:.1%})"
    print(f"\n{len(rows)} mutants of {population} at {commit.stdout.strip()}: {dict(counts)}")
    print(f"survivors, equivalent ones aside: {len(survivors)} of {whole}, {share}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests per mutant at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="folders and files of tests")
    args = parser.parse_args()
    os.chdir(ROOT)
    warnings.simplefilter("ignore")
    names = generate()
    sample = chosen(names, args.sample, args.seed)
    print(f"{len(names)} mutants; {len(sample)} of them are tried", flush=True)
    import everclip.run

    assert Path(everclip.run.__file__).is_relative_to(WORK), everclip.run.__file__
    given = [ROOT / place for place in args.tests]
    files = [
        file for place in given for file in ([place] if place.is_file() else sorted(place.glob("test_*.py")))
    ]
    warm_up(str(file.relative_to(ROOT)) for file in files)
    tests = map_tests(files, args.jobs)
    failing = sorted(test for test, facts in tests.items() if not facts["passes"])
    print(
        f"{len(tests)} tests; {len(failing)} are skipped or fail without a mutant, and are left out",
        *failing[:5],
    )
    report(run(sample, tests, args.budget, args.jobs), len(names))


if __name__ == "__main__":
    main()
