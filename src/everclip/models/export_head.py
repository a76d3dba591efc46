"""Write a class head beside an exported backbone, load it with its own loader, and compare."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from everclip.contracts import ClassHead
from everclip.errors import ConfigError, EverclipError
from everclip.models import exported_classifier
from everclip.models.backbone import Backbone
from everclip.models.quiet import offline, quiet

TENSORS, RULE, LOADER = HEAD_FILES = ("head.safetensors", "head.json", "classify.py")


def head_usage(folder: Path) -> list[str]:
    """Return the lines of Python that load an export with a class head."""
    return [
        f"import sys; sys.path.insert(0, '{folder}')",
        "from PIL import Image",
        "from classify import Classifier",
        f"names = Classifier('{folder}').classify([Image.open('photo.jpg')])",
    ]


def write_head(head: ClassHead, backbone: Backbone, folder: Path) -> None:
    """Write a class head into the folder of an exported backbone.

    Raises:
        ConfigError: if two learned classes have the same name, because the loader answers with names.
    """
    twins = [name for name, count in Counter(e.name for e in head.entries).items() if count > 1]
    if twins:
        raise ConfigError(
            f"export: {len(twins)} names stand for several learned classes ({twins[0]!r}); the exported class head "
            "answers with names. Give these classes different names, or keep the run folder."
        )
    rule = {**head.rule, "context_length": backbone.tokenizer.context_length}
    text = json.dumps(rule, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / RULE).write_text(text, encoding="utf-8")
    shutil.copyfile(exported_classifier.__file__, folder / LOADER)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in head.tensors.items()}, folder / TENSORS)
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / TENSORS).chmod((folder / RULE).stat().st_mode)


def head_distance(
    head: ClassHead, backbone: Backbone, folder: Path, images: torch.Tensor, probes: list[Image.Image]
) -> float:
    """Return the largest difference between the scores of the written loader and those of the method.

    Args:
        head: the head that was written.
        backbone: the model.
        folder: of the export.
        images: the method's unit embeddings of the probes `(N, D)`.
        probes: PIL images.

    Raises:
        EverclipError: if the loader cannot load the folder.
    """
    try:
        with quiet(), offline():
            scores = exported_classifier.Classifier(folder).scores(probes)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise EverclipError(f"export: {LOADER} cannot load the written folder ({error}).") from error
    return float((scores - head.answers(images, _bank(head, backbone)).cpu()).abs().max())


def _bank(head: ClassHead, backbone: Backbone) -> torch.Tensor:
    """Return the method's unit class embeddings `(C, D)`: the mean over the templates of each class."""
    rows = []
    for entry in head.entries:
        texts = backbone.encode_text(backbone.tokenise(list(entry.prompts())))
        rows.append(torch.nn.functional.normalize(texts.mean(dim=0), dim=0))
    return torch.stack(rows)
