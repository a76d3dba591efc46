"""Write a text correction beside an exported backbone, load it with its own loader, and compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from everclip.contracts import TextCorrection
from everclip.errors import EverclipError
from everclip.models import exported_correction
from everclip.models.backbone import Backbone
from everclip.models.quiet import offline, quiet

TENSORS, RULE, LOADER, README = CORRECTION_FILES = (
    "correction.safetensors",
    "correction.json",
    "corrected.py",
    "README.md",
)

TITLE = "# A CLIP with corrected texts, exported by everclip"
"""First line of the README."""

COMPARED = 100
"""Number of learned texts whose embeddings are compared."""

_README = (
    TITLE
    + """

From {source}.

* `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer: the CLIP. Learning did not change it, so
  open_clip alone loads a model that knows nothing of what was learned.
* `correction.safetensors` and `correction.json`: what was learned, corrections of text embeddings. Texts: {texts}.
* `corrected.py`: loads both. Needs torch, open_clip and safetensors.
* `card.json`: where the model comes from, and how closely this folder was compared with it.

```python
{usage}
```

`python corrected.py photo.jpg --name cat --name dog` names images in the shell{default}.

## What it changes

* **Images: nothing.** Their embeddings are those of the CLIP. An index of images that this CLIP made stays valid.
* **Texts that are close to a learned one** move to where the images of the learned text lie.
* **All other texts** keep their embeddings, to the bit.
* Of embeddings that another program computes with this CLIP: `model.correct(texts)`, unit embeddings `(N, D)`.

## Limits

* Only `corrected.py` reads the correction. Other programs that load this folder use the CLIP without it.
* The correction belongs to the text tower in this folder. With other weights it is wrong; `corrected.py` refuses them.
* Things that the image tower does not tell apart are not told apart.
* everclip puts transparent images on white or black before it encodes them; `corrected.py` does not.
* `correction.json` lists the learned texts, and `correction.safetensors` tells where their images lie. Keep both
  private if the data are.
"""
)


def correction_usage(folder: Path, classes: bool) -> list[str]:
    """Return the lines of Python that load an export with a text correction."""
    names = "" if classes else ", ['a name', 'another name']"
    return [
        f"import sys; sys.path.insert(0, '{folder}')",
        "from PIL import Image",
        "from corrected import CorrectedClip",
        f"model = CorrectedClip('{folder}')",
        f"names = model.classify([Image.open('photo.jpg')]{names})",
        "rows = model.search(['a text'], model.encode_images([Image.open('photo.jpg')]))",
    ]


def write_correction(correction: TextCorrection, backbone: Backbone, folder: Path) -> None:
    """Write a text correction and its loader into the folder of an exported backbone."""
    rule = {**correction.rule, "context_length": backbone.tokenizer.context_length}
    text = json.dumps(rule, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / RULE).write_text(text, encoding="utf-8")
    shutil.copyfile(exported_correction.__file__, folder / LOADER)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in correction.tensors.items()}
    save_file(tensors, folder / TENSORS)
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / TENSORS).chmod((folder / RULE).stat().st_mode)


def write_readme(
    correction: TextCorrection, folder: Path, source: Mapping[str, Any], usage: Sequence[str]
) -> None:
    """Write what the folder holds, what the correction does and what it does not do.

    Args:
        correction: that was written.
        folder: of the export.
        source: of the card.
        usage: the lines of Python that load the export.
    """
    kind, name = source.get("kind", "model"), source.get("name", "")
    classes = len(correction.rule["classes"])
    learned = f"{len(correction.texts):,} learned" + (f" (of {classes:,} classes)" if classes else "")
    held = len(correction.tensors["support"]) - len(correction.texts)
    text = _README.format(
        source=f"the {kind} `{name}`" if name else f"a {kind}",
        texts=learned + (f", and {held:,} that are held where they are" if held > 0 else ""),
        usage="\n".join(usage),
        default="; without `--name`, among the learned classes" if classes else "",
    )
    (folder / README).write_text(text, encoding="utf-8")


def correction_distance(
    correction: TextCorrection, backbone: Backbone, folder: Path, texts: Sequence[str]
) -> float:
    """Return the largest difference between the text embeddings of the written loader and those of the method.

    Args:
        correction: that was written.
        backbone: the model.
        folder: of the export.
        texts: any; some of the learned ones are compared as well.

    Raises:
        EverclipError: if the loader cannot load the folder.
    """
    compared = [*texts, *correction.texts[:COMPARED]]
    try:
        with quiet(), offline():
            found = exported_correction.CorrectedClip(folder).encode_texts(compared)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise EverclipError(f"export: {LOADER} cannot load the written folder ({error}).") from error
    expected = correction.encode(backbone.tokenise(compared))
    return float((found.double() - expected.double().cpu()).abs().max())
