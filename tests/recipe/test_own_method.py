"""A method in a file of one's own runs, and resumes, without a change to the package."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch

from everclip.config import CheckpointConfig
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.run import execute
from everclip.training.checkpoint import Checkpoints
from everclip.training.progress import Progress

MINE = Path(__file__).parent / "mine.py"
Config = Callable[..., Any]


def kill_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """End the process' work, as a kill would, inside the step that follows so many others."""
    done = itertools.count()

    def after_step(self: Method, progress: Any) -> None:
        if next(done) >= steps:
            raise KeyboardInterrupt

    patch.setattr(Method, "after_step", after_step)


def tensors(folder: str) -> dict[str, torch.Tensor]:
    found = Checkpoints(Path(folder), CheckpointConfig()).latest()
    assert found is not None
    return found.tensors


def test_the_file_is_short() -> None:
    assert len(MINE.read_text().splitlines()) <= 60


@pytest.mark.parametrize("kind", recipes.KINDS)
def test_it_runs_on_every_kind_of_scenario(micro_config: Config, kind: str) -> None:
    config = micro_config(kind, f"method={MINE}:Mine", "method.distil=5", "training.steps=2")
    results = execute(config, progress=Progress(quiet=True))
    recipes.check(results, config)
    assert results.method["settings"]["distil"] == 5
    log = (Path(config.output) / "metrics.jsonl").read_text()
    assert '"distil"' in log


def test_it_trains_layernorms_only_and_its_teacher_never(micro_config: Config, micro_folder: Path) -> None:
    from safetensors.torch import load_file

    config = micro_config("time", f"method={MINE}:Mine", "training.steps=2")
    execute(config, progress=Progress(quiet=True))
    start = load_file(micro_folder / "model" / "open_clip_model.safetensors")
    end = tensors(config.output)
    for name, value in start.items():
        same = torch.equal(end[f"model/backbone.clip.{name}"], value)
        assert same != (".ln_" in name or name.startswith("ln_")), name
        assert torch.equal(end[f"model/teacher.clip.{name}"], value)


def test_it_resumes_bit_identical(micro_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (f"method={MINE}:Mine", "training.steps=3", "checkpoint.every_steps=1")
    whole = micro_config("time", *settings, output="whole")
    expected = execute(whole, progress=Progress(quiet=True))
    # Inside the first task, at the border to the second, inside the last.
    for after in (1, 3, 7):
        broken = micro_config("time", *settings, output=f"broken{after}")
        with monkeypatch.context() as patch:
            kill_after(after, patch)
            with pytest.raises(KeyboardInterrupt):
                execute(broken, progress=Progress(quiet=True))
        found = execute(broken, progress=Progress(quiet=True))
        assert found.without_timing() == expected.without_timing()
        one, two = tensors(whole.output), tensors(broken.output)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ((f"method={MINE}:Mien",), r"has no 'Mien'\. Did you mean 'Mine'"),
        ((f"method={MINE.with_name('nine.py')}:Mine",), r"nine\.py: no such file"),
        (
            (f"method={MINE}:Mine", "method.distill=1"),
            r"method\.distill: unknown key\. Did you mean 'distil'",
        ),
        ((f"method={MINE}:Mine", "method.distil=-1"), r"method\.distil: .*found -1"),
    ],
)
def test_mistakes_are_named(micro_config: Config, settings: tuple[str, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        execute(micro_config("time", *settings), progress=Progress(quiet=True))
