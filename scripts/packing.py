"""What the scripts that pack a built-in model share: half-precision weights, the record of a run, figures in words."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from everclip.cli.export import run_export
from everclip.evaluation.results import Results
from everclip.models.layout import WEIGHTS


def pack(run: Path, folder: Path) -> None:
    """Write the weights of a finished run in half precision.

    Raises:
        CheckpointError: if the run has no checkpoint.
    """
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "model"
        run_export(str(run), exported)
        weights = load_file(exported / WEIGHTS)
    pack_weights(weights, folder)


def pack_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write weights of a model in half precision."""
    # The logit scale stays exact: half precision would move it by up to 0.2 %.
    half = {k: v if k == "logit_scale" else v.to(torch.float16).contiguous() for k, v in weights.items()}
    save_file(half, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # written for the owner alone; the package is for all


def trained(run: Path, recipe: str, images: str) -> dict[str, Any]:
    """Return what a finished run says about the training, and the `targets` that it learned.

    Args:
        run: the folder; beside the weights that it started from lies `targets.json`.
        recipe, images: see `record`.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    start = Path(config["backbone"]["weights"])
    targets = json.loads((start.parent / "targets.json").read_text(encoding="utf-8"))
    return {"targets": targets, **record(run, recipe, images)}


def record(run: Path, recipe: str, images: str) -> dict[str, Any]:
    """Return what a finished run says about the training: data, steps, time, settings, versions.

    Args:
        run: the folder.
        recipe: the YAML of the run, as the repository names it.
        images: what its images are, as a key: `drawings`.
    """
    results = Results.read(run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {
        "command": f"everclip run {recipe}",
        images: results.tasks[0].samples,
        f"validation_{images}": results.tasks[0].validation_samples,
        "steps": results.rows[-1].step,
        "samples": results.rows[-1].samples,
        "minutes": round(results.cost["seconds"]["training"] / 60, 1),
        "threads": results.provenance["threads"],
        "device": results.provenance["device"],
        "settings": config["training"],
        "method": config["method"],
        "backbone": config["backbone"],
        "seed": config["seed"],
        "versions": results.provenance["versions"],
    }


def recipe_text(training: dict[str, Any]) -> str:
    """Return method, backbone and settings of a training as YAML; see `trained`."""
    parts = {"method": "method", "backbone": "backbone", "training": "settings"}
    document = {key: training[part] for key, part in parts.items()}
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text.rstrip()


def course(training: dict[str, Any]) -> dict[str, Any]:
    """Return what a page says of the course of a training: steps, samples, minutes, threads, device and recipe."""
    keys = ("steps", "samples", "minutes", "threads", "device")
    return {key: training[key] for key in keys} | {"recipe": recipe_text(training)}


def shown(value: float, interval: list[float]) -> str:
    """Return a share and its interval in percent."""
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def write_cards(folder: Path, document: dict[str, Any], page: str) -> None:
    """Write the card of a model, for programs and for readers."""
    (folder / "card.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "CARD.md").write_text(page, encoding="utf-8")
