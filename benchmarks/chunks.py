"""A batch of 1,024 in chunks of 64 against the whole batch and against a batch of 64: memory and time of a step.

The model is `builtin:tiny`, the pairs are generated; a step is forward, backward and AdamW of plain fine-tuning on
captions. Each way runs in a process of its own; memory is the growth of its peak over the process before the first
step (libraries, weights, and the batch itself). Seconds are processor time, the median of three steps.

Run: python benchmarks/chunks.py                        prints a table
     python benchmarks/chunks.py --way BATCH CHUNK      one way (CHUNK 0: whole)
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import table

from everclip.learner import Learner
from everclip.methods.losses import contrastive

BATCH, CHUNK = 1_024, 64
WAYS = {
    "batch 64": (CHUNK, 0),
    "batch 1,024, chunks of 64": (BATCH, CHUNK),
    "batch 1,024, whole": (BATCH, 0),
}


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(batch: int, chunk: int) -> None:
    """Take steps and print what they took."""
    torch.set_num_threads(1)
    backbone = Learner.create("builtin:tiny", training={"steps": 1, "chunk": chunk or None}).method.backbone
    backbone.train()
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-5)
    side = backbone.pixels.size
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    tokens = backbone.tokenise([f"a drawing of thing number {i}" for i in range(batch)])
    for (
        parameter
    ) in backbone.parameters():  # the optimiser's state and the gradients count for none of the ways
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    before, seconds, losses = peak(), [], []
    for _ in range(3):
        started = time.process_time()
        optimiser.zero_grad(set_to_none=False)
        loss = contrastive(backbone.encode_image(pixels), backbone.encode_text(tokens), backbone.logit_scale)
        loss.backward()
        optimiser.step()
        seconds.append(time.process_time() - started)
        losses.append(float(loss.detach()))
    print(json.dumps({"mb": peak() - before, "seconds": statistics.median(seconds), "losses": losses}))


def main() -> None:
    """Run each way in a process of its own, then print the table."""
    if sys.argv[1:2] == ["--way"]:
        one(int(sys.argv[2]), int(sys.argv[3]))
        return
    found = {}
    for name, (batch, chunk) in WAYS.items():
        call = [sys.executable, __file__, "--way", str(batch), str(chunk)]
        found[name] = json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    small, ours, whole = found.values()
    apart = max(abs(a - b) for a, b in zip(ours["losses"], whole["losses"], strict=True))
    rows = [(f"memory of a step, {name}", f"{one['mb']:,.0f} MB", "") for name, one in found.items()]
    rows += [
        ("chunks against the whole batch: memory", f"{ours['mb'] / whole['mb']:.2f} x", ""),
        ("chunks beyond a batch of 64", f"{ours['mb'] - small['mb']:,.0f} MB", "embeddings, logits"),
        ("chunks against the whole batch: time", f"{ours['seconds'] / whole['seconds']:.2f} x", "<= 1.4 x"),
        ("largest difference of three losses", f"{apart:.1e}", "rounding"),
    ]
    title = "A step in chunks (benchmarks/chunks.py): builtin:tiny, captions"
    print(table(title, rows, ("what", "measured", "aim")))


if __name__ == "__main__":
    main()
