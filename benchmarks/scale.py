"""What a month of 400 million pairs costs on many GPUs, computed from measured numbers, and what breaks first.

Nothing here trains. The numbers that go in:

* a published measurement of throughput: open_clip trained ViT-B/16 for 32 epochs of 407 million pairs on 176 A100 in
  about 61 hours (docs/PRETRAINED.md of open_clip): 337 pairs per second and GPU, data included;
* the cost of a step of each method in forward passes of both towers, counted by `--count` on `builtin:tiny`;
* everclip's own measurements on a CPU (RESULTS.md): checking and decoding images, memory per row;
* assumptions, as options: price, network between machines, images per second that a core decodes.

Run: python benchmarks/scale.py            prints the tables
     python benchmarks/scale.py --count    counts the steps of the methods again (minutes)
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
from common import machine, table
from PIL import Image

from everclip.contracts import Phase, Stream
from everclip.training.traffic import traffic

PUBLISHED = 32 * 407e6 / (176 * 61 * 3600)
"""Pairs per second and GPU of open_clip's ViT-B/16."""

PARAMETERS, WIDTH, EACH = 149.6e6, 512, 192
"""Of ViT-B/16: parameters, size of an embedding; and the samples on each GPU in that run."""

STEPS = {"finetune": 3.0, "replay": 6.0, "lwf-tic": 4.0, "mod-x": 4.0, "lora": 2.2, "text-ridge": 1.0}
"""Cost of a new pair in forward passes of both towers: a backward pass is two, a teacher's pass one; LoRA computes
gradients of its own weights only (2.23 are counted); replay takes as many stored pairs as new ones; text-ridge only
encodes."""

CHECKED, DECODED, ROW = 1798 / 2, 438 / 2, 230.0
"""Images per second and core that are checked before a run, and decoded in it; bytes of memory per row that trains, of
shards with an index (RESULTS.md)."""


def paper(title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return a table without the machine: nothing of it was measured on this one."""
    return table(title, rows, header).replace(f"Machine: {machine()}.\n\n", "")


def hours(pairs: float, gpus: int, passes: float, throughput: float) -> float:
    """Return the hours of one pass over `pairs`; `throughput` is that of fine-tuning (3 forward passes)."""
    return pairs / (throughput * 3.0 / passes * gpus) / 3600


def sent(gpus: int, sigmoid: bool) -> tuple[float, float]:
    """Return the bytes that a GPU sends in a step: gradients, and what the loss over captions moves."""
    phase = Phase("pairs", {"main": Stream((), EACH * gpus)}, None)
    moved = traffic(phase, int(PARAMETERS), WIDTH, sigmoid, gpus)
    return moved.gradients, moved.embeddings


def costs(pairs: float, throughput: float, price: float, counts: list[int]) -> str:
    """Return the table of hours and prices."""
    rows = []
    for method, passes in STEPS.items():
        spent = [hours(pairs, gpus, passes, throughput) for gpus in counts]
        rows.append(
            (
                method,
                f"{passes:g}",
                *(f"{h:,.1f} h" for h in spent),
                f"{spent[0] * counts[0]:,.0f}",
                f"{price * spent[0] * counts[0]:,.0f}",
            )
        )
    header = (
        "method",
        "passes",
        *(f"{gpus} GPUs" for gpus in counts),
        "GPU hours",
        f"at {price:g} a GPU hour",
    )
    return table(
        f"One pass over {pairs / 1e6:,.0f} million pairs, ViT-B/16 (benchmarks/scale.py)", rows, header
    )


def network(throughput: float, gigabits: float, counts: list[int]) -> str:
    """Return the table of what a step sends."""
    computing = EACH / throughput
    rows = []
    for gpus in counts:
        gradients, softmax = sent(gpus, sigmoid=False)
        _, sigmoid = sent(gpus, sigmoid=True)
        speed = gigabits * 1e9 / 8
        logits = 2 * 3 * 4 * EACH * EACH * gpus
        rows.append(
            (
                str(gpus),
                f"{EACH * gpus:,}",
                f"{gradients / 1e6:,.0f} MB",
                f"{softmax / 1e6:,.0f} MB",
                f"{sigmoid / 1e6:,.0f} MB",
                f"{logits / 1e6:,.0f} MB",
                f"{(gradients + softmax) / speed / computing:.0%}",
                f"{(gradients + sigmoid) / speed / computing:.0%}",
            )
        )
    header = (
        "GPUs",
        "batch",
        "gradients",
        "softmax sends",
        "sigmoid sends",
        "softmax logits",
        f"softmax, of a step at {gigabits:g} Gbit/s",
        "sigmoid",
    )
    return paper(f"A step of {computing:.2f} s: what each GPU sends and holds", rows, header)


def limits(pairs: float, throughput: float, counts: list[int]) -> str:
    """Return the table of what the data need."""
    rows = []
    for gpus in counts:
        needed = throughput * gpus
        rows.append(
            (
                str(gpus),
                f"{needed:,.0f}",
                f"{needed / DECODED:,.0f} cores",
                f"{needed * 40e3 / 1e9:.2f} GB/s",
                f"{pairs / CHECKED / 3600 / (8 * gpus):,.1f} h",
                f"{pairs * ROW * min(8, gpus) / 1e12:.1f} TB",
            )
        )
    header = (
        "GPUs",
        "images per second",
        "to decode them",
        "to read them (40 kB each)",
        "to check them before, 8 cores a GPU",
        "to hold all rows, per machine of 8 GPUs",
    )
    return paper(f"What {pairs / 1e6:,.0f} million pairs ask of the machines", rows, header)


def count() -> None:
    """Count the multiply-accumulates of a step of each method, relative to a forward pass of both towers."""
    import torch

    import everclip
    from everclip.learner import Learner
    from everclip.training.trial import count_macs, macs_in

    ways = {
        "finetune": ("finetune", {"trainable": ["image", "text", "logit-scale"]}),
        "lwf-tic": ("lwf-tic", {}),
        "mod-x": ("mod-x", {}),
        "lora": ("finetune", {"trainable": [{"lora": {"rank": 4}}]}),
    }
    draw = np.random.default_rng(0)
    pairs = [
        {"image": Image.fromarray(draw.integers(0, 255, (48, 48, 3), np.uint8)), "caption": f"number {i}"}
        for i in range(16)
    ]
    for name, (method, settings) in ways.items():
        learner = Learner.create("builtin:tiny", method, {"steps": 1, "batch_size": 8}, **settings)
        backbone, side = learner.method.backbone, learner.method.backbone.pixels.size
        pixels, tokens = torch.zeros(8, 3, side, side), backbone.tokenise(["a text"] * 8)
        with torch.no_grad():
            images = macs_in(partial(backbone.encode_image, pixels))
            forward = images + macs_in(partial(backbone.encode_text, tokens))
        task = everclip.make_task(pairs)
        learner.method.begin_task(task, learner.past())
        step = sum(count_macs(learner.engine, learner.method, learner.plan(task)).values())
        print(f"{name}: {step / forward:.2f} forward passes (the table takes {STEPS[name]:g})", flush=True)


def main() -> None:
    """Print the tables, or count again."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", action="store_true")
    words.add_argument("--pairs", type=float, default=400e6)
    words.add_argument("--pairs-per-second", type=float, default=PUBLISHED, help="of fine-tuning, per GPU")
    words.add_argument("--price", type=float, default=2.0, help="of a GPU hour")
    words.add_argument("--gigabits", type=float, default=100.0, help="network of a machine, Gbit/s")
    words.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    chosen = words.parse_args()
    if chosen.count:
        count()
        return
    print(costs(chosen.pairs, chosen.pairs_per_second, chosen.price, chosen.gpus))
    print(network(chosen.pairs_per_second, chosen.gigabits, chosen.gpus))
    print(limits(chosen.pairs, chosen.pairs_per_second, chosen.gpus))


if __name__ == "__main__":
    main()
