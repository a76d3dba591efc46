"""Runs that change their number of processes, lose one of them, or compute over four of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pair
import pytest
from safetensors.torch import load_file
from test_two_processes import PLAIN_STEPS, RUNS, SHORT, _apart, _weights_apart, biased

from everclip.errors import ConfigError, DivergedError, ProcessLostError
from everclip.evaluation.results import Results
from everclip.run import Run
from everclip.training.progress import Progress

pytestmark = pytest.mark.slow
OWN = (*SHORT, *RUNS["replay"][1], "checkpoint.every_steps=1")


@pytest.fixture
def make(micro_config: Callable[..., Any]) -> Callable[..., Any]:
    return lambda output, *own: micro_config("time", *(own or OWN), output=output)


def losses(config: Any) -> np.ndarray[Any, np.dtype[Any]]:
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["contrastive"] for line in lines])


def run_on(count: int, config: Any) -> dict[str, Any]:
    if count == 1:
        return pair.whole_run(config)
    return dict(pair.Pair((pair.whole_run, (config,)), count=count).results()[0][0])


def kill_on(count: int, config: Any) -> None:
    crashing = pair.Pair((pair.run_and_signal, (config, 0, 3, pair.SIGKILL)), count=count)
    crashing.processes[0].join(120)
    assert crashing.end(patience=20)[0] == -pair.SIGKILL


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, make: Callable[..., Any]
) -> None:
    whole, moved = make("whole"), make("moved")
    expected = pair.whole_run(whole)
    kill_on(before, moved)
    found = run_on(after, moved)
    # Bit for bit: which samples each step and the buffer hold, and scores; to a tolerance: sums of another order.
    assert found["buffer"] == expected["buffer"]
    assert found["values"] == expected["values"]
    assert _weights_apart(expected["weights"], found["weights"]) < 1e-4
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-5)
    results = Results.read(Path(moved.output))
    (event,) = [e for e in results.events if e.kind == "changed environment"]
    assert f"processes: {before} -> {after}" in event.message
    assert results.provenance["processes"] == after


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_gradients_of_four_processes_are_those_of_one(
    contrast: str, make: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    own = [*SHORT, *PLAIN_STEPS, "method.loss=captions", f"method.contrast={contrast}"]
    if contrast == "sigmoid":
        own += [f"backbone={biased(micro_folder, tmp_path)}"]
        own += ["method.trainable=[image, text, logit-scale, logit-bias]"]
    config = make(contrast, *own)
    one = pair.gradients(config)
    for count in (2, 4):
        (found,) = pair.Pair((pair.gradients, (config,)), count=count).results()
        assert [i for part in found for i in part["id"]] == one["id"]
        for part in found:
            assert _apart(one["gradients"], part["gradients"]) < 1e-6


SHARDED = {
    "finetune": (),
    "replay, guarded": (*RUNS["replay"][1], "guard.max_drop=50", "guard.every=2"),
    "recompute": ("training.recompute=true",),
    "one frozen tower": ("method.trainable=[image, logit-scale]",),
    "carried": ("training.carry_optimiser=true",),
}


def newest(config: Any) -> dict[str, Any]:
    """The tensors of a run's last checkpoint inside a task."""
    folders = sorted((Path(config.output) / "checkpoints").iterdir())
    kept = [f for f in folders if any("|exp_avg" in name for name in load_file(f / "tensors.safetensors"))]
    return {name: t.numpy() for name, t in load_file(kept[-1] / "tensors.safetensors").items()}


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_run_is_the_run_that_is_not_sharded(name: str, make: Callable[..., Any]) -> None:
    own = (*SHORT, *RUNS["finetune"][1], *SHARDED[name], "checkpoint.every_steps=3", "checkpoint.keep=50")
    plain, sharded = make("plain", *own), make("sharded", *own, "training.shard=true")
    jobs = [(pair.whole_run, (config,)) for config in (plain, sharded)]
    (expected, _), (first, second) = pair.Pair(*jobs).results()
    assert first["values"] == expected["values"]
    assert _weights_apart(expected["weights"], first["weights"]) < 1e-4
    assert all((second["weights"][k] == v).all() for k, v in first["weights"].items())
    assert losses(sharded) == pytest.approx(losses(plain), rel=1e-5)
    whole, parts = newest(plain), newest(sharded)
    assert {k: v.shape for k, v in parts.items()} == {k: v.shape for k, v in whole.items()}
    moments = {k: v for k, v in whole.items() if k.endswith("|exp_avg") and "in_proj_bias" not in k}
    assert len(moments) > 5
    assert _apart(moments, {k: parts[k] for k in moments}) < 1e-3


def diverge(config: Any) -> list[float]:
    """The means of all weights of a learner after its loss was above the limit."""
    run = Run.of(config, Progress(quiet=True))
    with pytest.raises(DivergedError, match="contrastive is"):
        run.execute()
    assert not any(hasattr(p, "to_local") for p in run.learner.method.parameters())
    return [float(p.detach().mean()) for p in run.learner.method.parameters()]


def test_a_sharded_learner_is_whole_after_it_diverged(make: Callable[..., Any]) -> None:
    config = make("diverged", *OWN, "training.shard=true", "training.loss_limit=1e-6")
    (found,) = pair.Pair((diverge, (config,))).results()
    assert np.isfinite(found[0]).all()  # the mean of weights that are not given back is NaN
    assert found[0] == found[1]


def test_a_sharded_run_goes_on_with_one_process(make: Callable[..., Any]) -> None:
    own = (*OWN, "training.shard=true")
    expected = pair.whole_run(make("whole", *own))
    moved = make("moved", *own)
    kill_on(2, moved)
    found = run_on(1, moved)
    assert found["buffer"] == expected["buffer"]
    assert found["values"] == expected["values"]
    assert _weights_apart(expected["weights"], found["weights"]) < 1e-4


def execute(config: Any) -> None:
    from everclip.run import execute

    execute(config)


def execute_and_fail(config: Any, rank: int, kill: bool) -> None:
    """Run; on one rank, a step fails or the process is killed."""
    import os

    from everclip import run as module

    left = 3

    def act(point: str) -> None:
        nonlocal left
        left -= point == "after step"
        if left == 0 and int(os.environ["RANK"]) == rank:
            if kill:
                os.kill(os.getpid(), pair.SIGKILL)
            raise ConfigError("the disk of this machine is gone.")

    module.crash_point = act
    execute(config)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_fails_the_other_stops_with_its_reason_and_the_run_resumes(
    rank: int, make: Callable[..., Any]
) -> None:
    expected = pair.whole_run(make("whole"))
    config = make("failed")
    errors = pair.Pair((execute_and_fail, (config, rank, False))).errors()
    assert isinstance(errors[rank], ConfigError)
    assert isinstance(errors[1 - rank], ProcessLostError)
    if rank == 1:  # process 0 holds the store here; under a launcher, the launcher does
        assert "process 1: ConfigError: the disk of this machine is gone" in str(errors[0])
    assert run_on(2, config)["buffer"] == expected["buffer"]


def test_when_one_is_killed_the_other_stops_and_the_run_resumes(make: Callable[..., Any]) -> None:
    expected = pair.whole_run(make("whole"))
    config = make("killed")
    crashing = pair.Pair((execute_and_fail, (config, 1, True)))
    _, _, error, _ = crashing._answers[0].get(timeout=pair.PATIENCE)
    codes = crashing.end()
    assert codes[1] == -pair.SIGKILL
    assert isinstance(error, ProcessLostError)
    assert "left no reason" in str(error)
    found = run_on(2, config)
    assert found["values"] == expected["values"]


def test_under_a_launcher_every_process_ends_when_one_is_killed(
    make: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    config = make("launched")
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, pickle\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from test_ranks import execute_and_fail\n"
        "execute_and_fail(pickle.load(open(sys.argv[1], 'rb')), 1, False)\n"
    )
    import pickle

    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    command = pair.launched([str(script), str(tmp_path / "config.pickle")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert "another process of this run ended: process 1: ConfigError" in done.stderr, done.stderr
    assert run_on(1, config)["buffer"] == pair.whole_run(make("whole"))["buffer"]


def test_two_launchers_stand_for_two_machines(
    make: Callable[..., Any], micro_folder: Path, tmp_path: Path
) -> None:
    """The walk-through of docs/scale.md; then one process goes on alone."""
    own = [*SHORT, *RUNS["finetune"][1], "training.threads=1", "training.device=cpu", "report=false"]
    words = ["-m", "everclip", "run", str(micro_folder / "time.yaml"), *own]
    words += [f"backbone={micro_folder / 'model'}", f"output={tmp_path / 'two'}"]
    where = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={pair._port()}"]
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *where, f"--node_rank={number}", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    answers = [machine.communicate(timeout=600) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], answers
    results = Results.read(tmp_path / "two")
    assert results.provenance["processes"] == 2
    assert "results:" in answers[0][0] + answers[0][1]
    assert results.matrix.values == pair.whole_run(make("one", *own))["values"]
