"""Two processes (gloo) against one, at the same global batch: differences of losses and weights, and efficiency.

Plain fine-tuning of `builtin:tiny` on generated pairs, batch 64, with the softmax and the sigmoid loss. Efficiency is
the processor time of one process over the sum of both: what the second process adds in work of its own (copies of the
optimiser's step, sums of gradients). Waiting does not count, so a busy machine does not change it; seconds of the wall
clock are given beside it, and show a gain only where each process has a core of its own.

Run: python benchmarks/processes.py                prints a table
     torchrun --nproc_per_node 8 benchmarks/processes.py --worker softmax    one way, on as many GPUs or cores
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import table
from PIL import Image

import everclip
from everclip.distributed import gather_objects, is_first
from everclip.learner import Learner
from everclip.training.watching import StepLog, Watcher

BATCH, STEPS, PAIRS = 64, 8, 256


class Following(Watcher):
    """Keeps the losses, and the time after the first step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.started = (0.0, 0.0)

    def report(self, logs: Sequence[StepLog]) -> None:
        """Keep the losses of steps."""
        for log in logs:
            if not self.losses:
                self.started = (time.perf_counter(), time.process_time())
            self.losses.append(sum(float(value) for value in log.losses.values()))


def worker(contrast: str) -> None:
    """Learn one task in as many processes as there are; the first prints what it found."""
    training = {"steps": STEPS, "batch_size": BATCH, "threads": 1, "workers": 0, "lr": 1e-4}
    start = os.environ["EVERCLIP_START"]
    learner = Learner.create(start, "finetune", training, contrast=contrast, trainable=["image", "text"])
    draw = np.random.default_rng(0)
    pairs = [
        {"image": Image.fromarray(draw.integers(0, 255, (32, 32, 3), np.uint8)), "caption": f"number {i}"}
        for i in range(PAIRS)
    ]
    following = Following()
    learner.learn(everclip.make_task(pairs), watcher=following)
    wall, spent = time.perf_counter() - following.started[0], time.process_time() - following.started[1]
    totals = gather_objects(spent)
    weights = {n: p.detach().flatten()[:64].tolist() for n, p in learner.method.named_parameters()}
    if is_first():
        print(json.dumps({"losses": following.losses, "wall": wall, "work": sum(totals), "weights": weights}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def started(processes: int, contrast: str, start: Path) -> dict[str, object]:
    """Return what a worker printed, on one process or several."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    call = [sys.executable, *launcher, __file__, "--worker", contrast]
    env = {**os.environ, "EVERCLIP_START": str(start), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=env)
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def with_bias(folder: Path) -> Path:
    """Write `builtin:tiny` with a logit bias, which the sigmoid loss needs."""
    from safetensors.torch import load_file, save_file

    from everclip.models.locate import locate
    from everclip.schema import BackboneConfig

    located = locate(BackboneConfig(name="builtin:tiny"), None)
    assert located.folder is not None
    assert located.weights is not None
    for file in located.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    document = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    document["model_cfg"]["init_logit_bias"] = -10.0
    (folder / "open_clip_config.json").write_text(json.dumps(document), encoding="utf-8")
    weights = {**load_file(folder / Path(located.weights).name), "logit_bias": torch.tensor(-10.0)}
    save_file(weights, folder / Path(located.weights).name)
    return folder


def main() -> None:
    """Run each way in processes of its own, then print the table."""
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        start = with_bias(Path(place))
        for contrast in ("softmax", "sigmoid"):
            one, two = (started(count, contrast, start) for count in (1, 2))
            losses = np.abs(np.array(one["losses"]) - np.array(two["losses"])) / np.array(one["losses"])
            apart = max(
                float(np.abs(np.array(one["weights"][n]) - np.array(two["weights"][n])).max())
                for n in one["weights"]
                if not n.endswith("in_proj_bias")  # rounding alone moves the biases of keys (docs/resume.md)
            )
            rows += [
                (
                    f"{contrast}: largest relative difference of {STEPS} losses",
                    f"{losses.max():.1e}",
                    "<= 1e-5",
                ),
                (f"{contrast}: largest difference of weights", f"{apart:.1e}", "<= 1e-4"),
                (f"{contrast}: efficiency in processor time", f"{one['work'] / two['work']:.2f}", ">= 0.9"),
                (f"{contrast}: wall clock of one, of two", f"{one['wall']:.1f} s, {two['wall']:.1f} s", ""),
            ]
    title = f"Two processes against one (benchmarks/processes.py): builtin:tiny, batch {BATCH}"
    print(table(title, rows, ("what", "measured", "aim")))


if __name__ == "__main__":
    main()
