"""Mining of blind pairs against a plain blocked Gram product in NumPy: processor time, memory, and the same pairs?

The features are made: groups of about eight images that a CLIP hardly tells apart (cosines around 0.95), whose
features of the reference are random. Both compare all pairs in tiles of the same side, one thread each. The baseline
scales all features once, multiplies two blocks, takes the positions above the bound, and multiplies the rows of these
pairs for the reference, in float32 throughout. `flat` is the same, but finds the positions by `np.flatnonzero`, which
is faster than `np.nonzero`. `mine` bounds cosines by 64 directions before it computes them, decides pairs near a bound
in float64, and keeps the largest gaps in order. Memory is the growth of the peak of a process of its own beyond the
features.

Run: python benchmarks/mining.py --output benchmarks/MINING.md     (about ten minutes)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import processor_seconds, ratio, table
from numpy.typing import NDArray

from everclip.diagnosis.mining import ABOVE, BELOW, TILE, mine
from everclip.files import write_text_atomic

Floats = NDArray[np.float32]
CASES = ((5_000, 512, 5), (20_000, 512, 3), (20_000, 256, 3), (100_000, 512, 1))
"""Images, width of both features, rounds."""
GROUP, NEAR, SEED = 8, 0.226, 0
"""Images per group; length of their random parts beside a common one of length 1: a cosine of 0.951 on average."""
EXACT = 5_000  # images up to which the pairs are compared with all cosines in float64


def features(count: int, width: int) -> tuple[Floats, Floats]:
    """Return features of a CLIP and of a reference `(N, D)`, made block by block."""
    draw = np.random.default_rng(SEED)
    centres = draw.standard_normal((count // GROUP, width), dtype=np.float32)
    found = np.empty((2, count, width), dtype=np.float32)
    for start in range(0, count, TILE):
        stop = min(start + TILE, count)
        own = draw.standard_normal((2, stop - start, width), dtype=np.float32)
        found[0, start:stop] = centres[draw.integers(len(centres), size=stop - start)] + NEAR * own[0]
        found[1, start:stop] = own[1]
    return found[0], found[1]


def plain(clip: Floats, reference: Floats, flat: bool) -> set[tuple[int, int]]:
    """Return the blind pairs by a blocked Gram product."""
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (clip, reference))
    found = []
    for top in range(0, len(x), TILE):
        for side in range(top, len(x), TILE):
            within = x[top : top + TILE] @ x[side : side + TILE].T > ABOVE
            if flat:
                left, right = np.divmod(np.flatnonzero(within), within.shape[1])
            else:
                left, right = np.nonzero(within)
            left, right = left + top, right + side
            left, right = left[left < right], right[left < right]
            blind = np.einsum("nd,nd->n", y[left], y[right]) < BELOW
            found += list(zip(left[blind].tolist(), right[blind].tolist(), strict=True))
    return set(found)


def ours(clip: Floats, reference: Floats, tile: int = TILE) -> set[tuple[int, int]]:
    """Return the blind pairs of `mine`."""
    pairs = mine(torch.from_numpy(clip), torch.from_numpy(reference), limit=10**9, tile=tile)
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


WAYS: dict[str, Callable[[Floats, Floats], set[tuple[int, int]]]] = {
    "plain": lambda clip, reference: plain(clip, reference, flat=False),
    "flat": lambda clip, reference: plain(clip, reference, flat=True),
    "everclip": ours,
}


def exact(clip: Floats, reference: Floats) -> set[tuple[int, int]]:
    """Return the blind pairs by all cosines at once, in float64."""
    x, y = (
        s.astype(np.float64) / np.linalg.norm(s.astype(np.float64), axis=1)[:, None]
        for s in (clip, reference)
    )
    left, right = np.nonzero(np.triu((x @ x.T > ABOVE) & (y @ y.T < BELOW), 1))
    return set(zip(left.tolist(), right.tolist(), strict=True))


def status(field: str) -> int:
    """Return a field of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def grown(way: str, count: int, width: int) -> float:
    """Return by how many MiB the peak of a process grows."""
    words = [sys.executable, __file__, "--memory", way, str(count), str(width)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)) / 2**20


def one_memory(way: str, count: int, width: int) -> None:
    """Print by how many bytes the peak of this process grows while it mines."""
    torch.set_num_threads(1)
    made = features(count, width)
    WAYS[way](made[0][:64], made[1][:64])  # what libraries take once
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = status("VmRSS")
    WAYS[way](*made)
    print(json.dumps(status("VmHWM") - before))


def agreement(count: int, clip: Floats, reference: Floats, found: dict[str, set[tuple[int, int]]]) -> str:
    """Say whether the pairs are those of the baseline, and of float64; and of other tiles."""
    mine_, base = found["everclip"], found["flat"]
    odd = mine_ ^ base
    words = "the same" if not odd else f"{len(odd)} of {len(mine_):,} differ (float32 near a bound)"
    if count > EXACT:
        return words
    others = [ours(clip, reference, tile) == mine_ for tile in (257, 1024, count)]
    truth = exact(clip, reference)
    return (
        f"{words}; float64: {'the same' if mine_ == truth else f'{len(mine_ ^ truth)} differ'}; "
        f"tiles of 257, 1,024 and {count:,}: {'the same' if all(others) else 'others'}"
    )


def measured(count: int, width: int, rounds: int) -> tuple[str, ...]:
    """Return one row of the table."""
    clip, reference = features(count, width)
    found: dict[str, set[tuple[int, int]]] = {}

    def act(name: str) -> Callable[[], object]:
        return lambda: found.__setitem__(name, WAYS[name](clip, reference))

    times = processor_seconds({name: act(name) for name in WAYS}, rounds)
    spent = {name: sorted(times[name])[len(times[name]) // 2] for name in WAYS}
    cells = []
    for base in ("plain", "flat"):
        if rounds > 1:
            middle, low, high = ratio(times[base], times["everclip"])
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        else:
            cells.append(f"{spent[base] / spent['everclip']:.2f}")
    memory = {name: grown(name, count, width) for name in ("flat", "everclip")}
    return (
        f"{count:,} x {width}",
        f"{len(found['everclip']):,}",
        *(f"{spent[name]:.2f}" for name in WAYS),
        *cells,
        f"{memory['flat']:,.0f}",
        f"{memory['everclip']:,.0f}",
        agreement(count, clip, reference, found),
    )


def main() -> None:
    """Print the table, or measure the memory of one way."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--output", type=Path, help="write the page to this file")
    words.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.memory:
        one_memory(given.memory[0], *map(int, given.memory[1:]))
        return
    torch.set_num_threads(1)
    header = (
        "images x width",
        "blind pairs",
        "plain, s",
        "flat, s",
        "everclip, s",
        "plain / everclip",
        "flat / everclip",
        "flat, MiB",
        "everclip, MiB",
        "pairs against the baseline",
    )
    rows = [measured(*case) for case in CASES]
    assert __doc__ is not None
    intro = __doc__.split("\n\nRun:")[0]
    text = f"# {intro}\n\n" + table(
        "Processor seconds, median; ratios above 1: everclip is faster", rows, header
    )
    print(text)
    if given.output is not None:
        write_text_atomic(given.output, text)


if __name__ == "__main__":
    main()
