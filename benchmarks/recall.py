"""Recall in both directions over 25,000 captions and 5,000 images: peak memory and time, against the full matrix.

The embeddings are random unit rows of 512 dimensions, five captions near each image. Each way runs in a process of its
own: *blocks* is what everclip does, *full matrix* is the plain way (all scores at once, float32, sorted), as evaluation
scripts do it. Both print the same recall. Memory is the peak of the whole process, libraries included; the line
*libraries* is the same process without any recall.

Run: python benchmarks/recall.py              prints a table
     python benchmarks/recall.py --way WAY    prints seconds, peak MB and recall of one way
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from itertools import chain

import torch
from common import table

from everclip.evaluation.retrieval import Positives, hits_at_k, positive_ranks

IMAGES, EACH, WIDTH = 5_000, 5, 512
CUTS = (1, 5, 10)
LIMIT_MB = 2_000


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images `(5000, 512)` and captions `(25000, 512)`, unit rows; captions of an image follow each other."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, WIDTH, generator=draw)
    captions = images.repeat_interleave(EACH, 0) + 4.5 * torch.randn(IMAGES * EACH, WIDTH, generator=draw)
    return torch.nn.functional.normalize(images, dim=1), torch.nn.functional.normalize(captions, dim=1)


def blocks(images: torch.Tensor, captions: torch.Tensor) -> list[float]:
    """Return recall at 1, 5 and 10 from images to captions, then from captions to images."""
    owner = [i // EACH for i in range(len(captions))]
    both = (
        positive_ranks(images, captions, Positives.from_keys(range(len(images)), owner)),
        positive_ranks(captions, images, Positives.from_keys(owner, range(len(images)))),
    )
    return [float(hits_at_k(ranks, k).double().mean()) for ranks in both for k in CUTS]


def full_matrix(images: torch.Tensor, captions: torch.Tensor) -> list[float]:
    """Return the same from one matrix `(5000, 25000)` that is sorted along each side."""
    scores = images @ captions.T
    right = torch.arange(len(captions)) // EACH == torch.arange(len(images))[:, None]
    found = []
    for side, truth in ((scores, right), (scores.T, right.T)):
        order = side.argsort(dim=1, descending=True)
        hits = truth.gather(1, order)
        found += [float(hits[:, :k].any(dim=1).double().mean()) for k in CUTS]
    return found


def libraries(images: torch.Tensor, captions: torch.Tensor) -> list[float]:
    """Return nothing: the process holds libraries and embeddings."""
    return []


WAYS = {"blocks": blocks, "full matrix": full_matrix, "libraries": libraries}


def one(way: str) -> None:
    """Run one way and print what it took."""
    pair = embeddings()
    started = time.process_time()
    recall = WAYS[way](*pair)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "recall": recall}))


def main() -> None:
    """Run each way once in a process of its own, then print the table."""
    if sys.argv[1:2] == ["--way"]:
        one(sys.argv[2])
        return
    found = {
        way: json.loads(
            subprocess.run(
                [sys.executable, __file__, "--way", way], capture_output=True, text=True, check=True
            ).stdout
        )
        for way in WAYS
    }
    ours, plain, none = (found[way] for way in ("blocks", "full matrix", "libraries"))
    worst = max(abs(a - b) for a, b in zip(ours["recall"], plain["recall"], strict=True))
    shown = ", ".join(f"{100 * value:.1f}" for value in chain(ours["recall"]))
    rows = [
        ("peak memory of the process", f"{ours['peak_mb']:,.0f} MB", f"< {LIMIT_MB:,} MB"),
        ("of that before recall (libraries, embeddings)", f"{none['peak_mb']:,.0f} MB", ""),
        ("peak memory with the full matrix", f"{plain['peak_mb']:,.0f} MB", ""),
        ("processor time", f"{ours['seconds']:.1f} s", ""),
        ("speed against the full matrix", f"{plain['seconds'] / ours['seconds']:.1f}", ">= 1"),
        ("R@1, 5, 10, images to captions and back, percent", shown, ""),
        ("largest difference of recall, points", f"{100 * worst:.2f}", "0"),
    ]
    title = (
        "Recall over 25,000 captions x 5,000 images (benchmarks/recall.py): 512 dimensions, both directions"
    )
    print(table(title, rows, ("what", "measured", "aim")))


if __name__ == "__main__":
    main()
