"""Does the package still compute what it computed? Small runs, compared with a stored baseline.

    python scripts/same_results.py                  # compare; 0: the same, 1: something differs, 2: wrong use
    python scripts/same_results.py --only safe      # some runs: a part of the name, or a pattern with *
    python scripts/same_results.py --write          # make the baseline
    python scripts/same_results.py --list

Every preset meets a stream of each kind on a model of two layers; further runs fill each slot, and three presets meet
the emoji. Compared are results, losses, weights, the cost that a method states, the plan of `--dry-run`, what a
checkpoint holds, the files of the run folder, and the message of what is refused; not times, memory and paths.

The baseline holds hashes and key numbers. `--write` and every comparison also leave whole records in
`runs/same_results/`; where those of the baseline are there, a difference is named down to the single value. Every bit
counts where processor, instruction set and libraries are those of the baseline; elsewhere numbers may differ by the
tolerances that are printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

# Before torch is imported. AVX2 is what most processors have in common; another choice in the environment stays.
os.environ.update(
    {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)
sys.path.insert(
    0, str(Path(__file__).resolve().parents[1] / "src")
)  # this tree, wherever everclip is installed

from children import Job, fork, in_children
from same_cases import Case, all_cases, write_files
from same_compare import TOLERANCES, Difference, Record, compared, packed, summary, unpacked
from same_record import run_case

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / "benchmarks" / "same_results" / "baseline.json"
DETAILS = ROOT / "runs" / "same_results"
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "pillow")
LONGEST = 600.0
"""Seconds after which a run is ended."""
SHOWN = 8
"""Differences that are printed of one run."""


def facts() -> dict[str, str]:
    """Return what must be equal for results to be equal to the last bit."""
    import torch

    found = {"machine": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}
    found["processor"] = processor()
    installed = {entry.name.lower().replace("-", "_"): entry.version for entry in metadata.distributions()}
    return found | {name: installed.get(name, "not installed") for name in LIBRARIES}


def processor() -> str:
    """Return vendor, family and model of the processor: with equal instructions its kernels still round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(known.get(key, "?") for key in ("vendor_id", "cpu family", "model"))


def commit() -> str:
    """Return the last commit that changed the package; `+` where files of it are changed since."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return ask("log", "-1", "--format=%h", "--", "src") + ("+" if ask("status", "--porcelain", "src") else "")


def refuse(message: str) -> NoReturn:
    """Stop: the script was used in a way that has no answer."""
    print(f"same_results: {message}", file=sys.stderr)
    sys.exit(2)


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the runs whose name contains a pattern, or fits it where it has a `*`."""
    if not patterns:
        return list(cases)
    return [
        case
        for case in cases
        if any(fnmatch(case.name, p) if "*" in p or "?" in p else p in case.name for p in patterns)
    ]


# -- running --------------------------------------------------------------------------------------------------


def import_everything() -> None:
    """Import the whole package once, so that a forked process starts at once."""
    import everclip

    assert Path(str(everclip.__file__)).is_relative_to(ROOT), everclip.__file__
    for module in pkgutil.walk_packages(everclip.__path__, "everclip."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def records(cases: Sequence[Case], jobs: int, seconds: dict[str, float]) -> Iterator[tuple[str, Record]]:
    """Yield name and record of each run, in the order in which they end; progress is printed.

    Args:
        cases: the runs.
        jobs: how many at once.
        seconds: what each took when the baseline was made, for the estimate; those of this time are put in.
    """
    usual = {
        case.name: seconds.get(case.name, 25.0 if case.name.startswith("emoji") else 1.0) for case in cases
    }
    with tempfile.TemporaryDirectory(prefix="same-results-") as name:
        folder = Path(name)
        os.environ["EVERCLIP_CACHE"] = str(folder / "cache")
        (folder / "records").mkdir()
        _write_files(folder)
        files = {case.name: folder / "records" / f"{number}.json" for number, case in enumerate(cases)}
        work = [Job(case.name, partial(run_case, case, folder, files[case.name]), LONGEST) for case in cases]
        left = set(files)
        started = time.monotonic()
        for label, code, took in in_children(work, jobs):
            left.discard(label)
            seconds[label] = round(took, 1)
            done = len(files) - len(left)
            still = sum(usual[name] for name in left)
            rest = (time.monotonic() - started) / max(sum(usual.values()) - still, 0.1) * still
            print(f"[{done}/{len(files)}] {took:5.1f} s  {label}  (about {rest:.0f} s left)", flush=True)
            yield label, _read(files[label], code)


def _write_files(folder: Path) -> None:
    """Write the files of the list in a process of its own: what is forked later starts without any thread."""

    def write() -> int:
        write_files(folder)
        return 0

    code = os.waitstatus_to_exitcode(os.waitpid(fork(write), 0)[1])
    if code != 0:
        raise RuntimeError(f"the process that writes the model and the pictures ended with {code}")


def _read(file: Path, code: int | None) -> Record:
    record: Record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if code != 0 and "crash" not in record:
        ended = f"took more than {LONGEST:.0f} s" if code is None else f"ended with {code}"
        record = {"crash": f"the process {ended}"}
    return record


# -- baseline -------------------------------------------------------------------------------------------------


def read_baseline(file: Path) -> dict[str, Any]:
    """Return the stored baseline."""
    if not file.is_file():
        refuse(f"{file}: no such baseline; --write makes it.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        runs = unpacked(document["keys"], document["runs"])
        return {key: document[key] for key in ("commit", "facts", "seconds")} | {"runs": runs}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        refuse(f"{file}: not a baseline ({error!r}); --write makes it anew.")


def write_baseline(file: Path, document: dict[str, Any]) -> None:
    """Write a baseline: one line per part of a run, so that a change is a change of few lines."""
    keys, runs = packed({name: document["runs"][name] for name in sorted(document["runs"])})
    head = [f"{json.dumps(key)}: {json.dumps(document[key])}" for key in ("commit", "facts", "seconds")]
    head.append(_lines("keys", [json.dumps(names) for names in keys], "[]"))
    blocks = [
        _lines(name, [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in run.items()], "{}")
        for name, run in runs.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".tmp")
    aside.write_text("{\n" + ",\n".join([*head, _lines("runs", blocks, "{}")]) + "\n}\n", encoding="utf-8")
    aside.replace(file)


def _lines(name: str, entries: Sequence[str], brackets: str) -> str:
    return f"{json.dumps(name)}: {brackets[0]}\n" + ",\n".join(entries) + f"\n{brackets[1]}"


def details_file(folder: str, name: str) -> Path:
    """Return where the whole record of a run lies."""
    return DETAILS / folder / f"{name.replace('/', '--').replace(' ', '-').replace('.', '-')}.json"


def keep_details(folder: str, name: str, record: Record) -> None:
    """Write the whole record of a run."""
    file = details_file(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1), encoding="utf-8")


# -- the two verbs --------------------------------------------------------------------------------------------


def write(cases: Sequence[Case], file: Path, jobs: int, whole: bool) -> int:
    """Make the baseline, or that of some runs; return the exit code."""
    old: dict[str, Any] = {"seconds": {}, "runs": {}}
    if file.is_file() and not whole:
        old = read_baseline(file)
        if old["facts"] != facts():
            refuse(f"{file} was made with {old['facts']}, here is {facts()}: write all runs, without --only.")
    seconds = dict(old["seconds"])
    runs = {} if whole else dict(old["runs"])
    crashed = []
    for name, record in records(cases, jobs, seconds):
        runs[name] = summary(record)
        keep_details("baseline", name, record)
        if "crash" in record:
            crashed.append(f"{name}: {record['crash']}")
    made = commit() if whole or "commit" not in old else old["commit"]
    seconds = {name: took for name, took in seconds.items() if name in runs}
    write_baseline(file, {"commit": made, "facts": facts(), "seconds": seconds, "runs": runs})
    refused = sum("refused" in run for run in runs.values())
    print(
        f"{len(runs)} runs, {refused} of them refused, at {made}: {file} ({file.stat().st_size / 1e3:.0f} kB)"
    )
    for line in crashed:
        print(f"crashed: {line}")
    return 1 if crashed else 0


def compare(cases: Sequence[Case], file: Path, jobs: int, whole: bool) -> int:
    """Run and compare; return the exit code."""
    baseline = read_baseline(file)
    here = facts()
    exact = baseline["facts"] == here
    if exact:
        print(f"compared to the last bit with {baseline['commit']}")
    else:
        other = [
            f"{k} {baseline['facts'].get(k)} -> {v}" for k, v in here.items() if baseline["facts"].get(k) != v
        ]
        allowed = "; ".join(f"{name or 'shares'}: {limit}" for name, limit in TOLERANCES.items())
        print(f"not compared to the last bit ({', '.join(other)}). Numbers may differ by: {allowed}")
    found: dict[str, list[Difference]] = {}
    new = []
    for name, record in records(cases, jobs, dict(baseline["seconds"])):
        keep_details("now", name, record)
        before = baseline["runs"].get(name)
        if before is None:
            new.append(name)
        elif differs := compared(before, record, exact, _details(name)):
            found[name] = differs
            rounding = exact and not compared(before, record, exact=False)
            _show(name, differs, rounding)
    gone = sorted(baseline["runs"].keys() - {case.name for case in cases}) if whole else []
    for name in new:
        print(f"not in the baseline: {name}")
    for name in gone:
        print(f"only in the baseline: {name}")
    print(
        f"{len(cases)} runs: {len(found)} differ, {len(new)} new, {len(gone)} gone, the others are the same"
    )
    return 1 if found or gone else 0


def _details(name: str) -> Record | None:
    file = details_file("baseline", name)
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _show(name: str, differs: Sequence[Difference], rounding: bool) -> None:
    print(f"DIFFERS: {name}" + (" (by no more than rounding may)" if rounding else ""))
    for one in differs[:SHOWN]:
        print(f"    {one}")
    if len(differs) > SHOWN:
        print(f"    and {len(differs) - SHOWN} more; the whole record: {details_file('now', name)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, compare; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", action="store_true", help="make the baseline (with --only: those runs of it)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="some runs; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the runs and stop")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at once (default: all cores)"
    )
    parser.add_argument(
        "--baseline", type=Path, default=BASELINE, help="the file to compare with or to write"
    )
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs: expected 1 or more, found {args.jobs}")
    cases = chosen(all_cases(), args.only)
    if not cases:
        refuse(f"no run has {' or '.join(args.only)} in its name; --list prints the names.")
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not args.write:
        read_baseline(args.baseline)  # before what takes long
    import_everything()
    verb = write if args.write else compare
    return verb(cases, args.baseline, args.jobs, not args.only)


if __name__ == "__main__":
    sys.exit(main())
