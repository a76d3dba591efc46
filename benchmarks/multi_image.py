"""Questions about several emoji: what the built-in models know, and what the demo's runs know after they learned.

Run: everclip demo; python benchmarks/multi_image.py builtin:tiny runs/demo/finetune runs/demo/text-ridge builtin:photo
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import machine

from everclip.evaluation.results import Score
from everclip.files import write_text_atomic
from everclip.learner.evaluate import Measured, evaluate_model, load_model

SET = "emoji-multi-image"


def shown(score: Score) -> str:
    """Return a score in percent with its interval."""
    return f"{100 * (score.value or 0):.1f} ({100 * (score.low or 0):.1f}-{100 * (score.high or 0):.1f})"


def row(part: Measured) -> dict[str, Any]:
    """Return the scores of one model."""
    assert part.questions is not None
    tasks = part.questions.tasks
    found: dict[str, Any] = {name: shown(task.score) for name, task in tasks.items()}
    found["everything"] = shown(part.scores["multi_image_accuracy"])
    found["category mean"] = f"{100 * (part.scores['multi_image_category_mean'].value or 0):.1f}"
    cut = tasks["same group"].threshold
    found["threshold"] = None if cut is None else round(cut.value, 4)
    return found


def main() -> None:
    """Measure and write."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("models", nargs="*", default=["builtin:tiny", "builtin:photo"])
    words.add_argument("--output", type=Path, default=Path(__file__).parent / "multi_image.json")
    given = words.parse_args()
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    for name in given.models:
        evaluation = evaluate_model(load_model(name), name, [SET])
        part = evaluation.sets[0]
        models[name] = row(part) | {"seconds": round(evaluation.seconds, 1)}
        print(name, json.dumps(models[name]), flush=True)
        assert part.questions is not None
        tasks = part.questions.tasks
        guessing = {task: f"{100 * tasks[task].guessing:.1f}" for task in tasks}
        guessing["everything"] = f"{100 * part.guessing['multi_image_accuracy']:.1f}"
        guessing["category mean"] = f"{100 * part.guessing['multi_image_category_mean']:.1f}"
        counts = {task: tasks[task].score.n for task in tasks}
    document = {
        "command": f"benchmarks/multi_image.py {' '.join(given.models)}",
        "set": SET,
        "machine": machine(),
        "questions": counts,
        "guessing": guessing,
        "models": models,
    }
    write_text_atomic(given.output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
