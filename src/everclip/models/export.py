"""Write a backbone in open_clip's folder layout and verify it: plain open_clip must give the same embeddings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file

from everclip.contracts import ClassHead, TextCorrection
from everclip.errors import ConfigError, EverclipError
from everclip.files import folder_atomic
from everclip.models.backbone import Backbone
from everclip.models.export_correction import (
    CORRECTION_FILES,
    README,
    correction_distance,
    correction_usage,
    is_readme,
    write_correction,
    write_readme,
)
from everclip.models.export_head import HEAD_FILES, head_distance, head_usage, write_head
from everclip.models.layout import CONFIG, MERGES, WEIGHTS
from everclip.models.modules.grow import grown, merge_into
from everclip.models.modules.token_rows import has_rows, put_rows_back
from everclip.models.quiet import offline, quiet
from everclip.models.tokenizers import HF_FILES
from everclip.models.vocabulary import GrownTokenizer

CARD = "card.json"

HALF_LIMIT = 0.01
"""Largest difference in a number of a unit embedding that half precision may cause."""

ROUNDING_LIMIT = 1e-6
"""Largest difference in a number of a unit embedding from rounding: threads and memory decide the order of sums."""

TEXTS = ("a photo of a dog", "Two red squares, one blue circle!", "", "naïve 東京 🎈", "word " * 200)

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between a model and its export as plain open_clip loads it.

    Attributes:
        pixels: of preprocessed images.
        images, texts: of unit embeddings.
        logit_scale: of the factor on cosines.
        tokens: whether the tokens of every text are equal.
        head: of the scores of a class head; `None` without a head.
        correction: of corrected unit embeddings of texts; `None` without a correction.
    """

    pixels: float
    images: float
    texts: float
    logit_scale: float
    tokens: bool
    head: float | None = None
    correction: float | None = None

    def within(self, limit: float) -> bool:
        """Return whether tokens, pixels and scale are equal and embeddings differ by at most `limit`.

        The scores of a class head and corrected texts may differ by ten times as much, because they amplify differences
        of embeddings.
        """
        same = self.tokens and self.pixels == self.logit_scale == 0
        amplified = max(self.head or 0, self.correction or 0)
        return same and max(self.images, self.texts) <= limit and amplified <= 10 * limit


@dataclass(frozen=True)
class Exported:
    """The result of an export: folder, size, merged kinds of modules, and parity."""

    folder: Path
    bytes: int
    merged: tuple[str, ...]
    parity: Parity


def probes() -> list[Image.Image]:
    """Return images of several shapes: noise, a ramp, a flat colour."""
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((97, 160), (300, 211), (64, 64))]
    ramp = np.linspace(0, 255, 256 * 192 * 3).reshape(192, 256, 3).astype(np.uint8)
    return [Image.fromarray(a) for a in (*noise, ramp, np.full((50, 50, 3), 255, np.uint8))]


def export_backbone(
    backbone: Backbone,
    folder: Path,
    card: Mapping[str, Any],
    *,
    half: bool = False,
    force: bool = False,
    encode_images: Encode | None = None,
    encode_texts: Encode | None = None,
    beside: ClassHead | TextCorrection | None = None,
) -> Exported:
    """Write a backbone in open_clip's layout, atomically, load it with plain open_clip, and compare the embeddings.

    Args:
        backbone: the model, on the CPU; its LoRA is merged in place.
        folder: the folder to create; must be absent, empty, or with `force` an earlier export.
        card: provenance; stored as `card.json` together with the parity and the lines that load the model.
        half: store float16.
        force: replace an earlier export.
        encode_images, encode_texts: pixels or tokens to unit embeddings, if the method changes those of the backbone;
            default: those of the backbone. With a text correction, those of texts are those before it.
        beside: what was learned beside the backbone, to be written and compared as well: a classifier
            (`head.safetensors`, `head.json`, `classify.py`) or a text correction (`correction.safetensors`,
            `correction.json`, `corrected.py`). The scripts need only open_clip.

    Raises:
        ConfigError: if the layout cannot hold the model, or `folder` holds something else.
        EverclipError: if plain open_clip does not give the model's embeddings; then nothing is written.
    """
    check_target(folder, force)
    if backbone.layout is None:
        raise ConfigError("export: this model was made by hand: its configuration is not known.")
    backbone.eval()
    pixels = torch.stack([backbone.preprocess(image) for image in probes()])
    tokens = backbone.tokenise(list(TEXTS))
    with torch.inference_mode():
        images = (encode_images or backbone.encode_image)(pixels)
        texts = (encode_texts or backbone.encode_text)(tokens)
    merged = tuple(sorted(grown(backbone.clip)))
    _merge(backbone)
    if has_rows(backbone.clip):
        put_rows_back(backbone.clip)
    with folder_atomic(folder) as aside:
        _write_files(backbone, aside, half)
        with torch.inference_mode():
            parity = _compare(backbone, aside, (pixels, tokens, images, texts))
            parity = _put_beside(beside, backbone, aside, images, parity)
        _require_parity(parity, HALF_LIMIT if half else ROUNDING_LIMIT)
        document = {**card, "precision": "fp16" if half else "fp32", "merged": list(merged)}
        lines = usage(folder, backbone, beside)
        document |= {"towers": backbone.fingerprints(), "parity": asdict(parity), "usage": lines}
        if isinstance(beside, TextCorrection):
            write_readme(beside, aside, card.get("source", {}), lines)
        (aside / CARD).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        size = sum(file.stat().st_size for file in aside.iterdir())
        old = _set_aside(folder)
    if old is not None:
        shutil.rmtree(old)
    return Exported(folder, size, merged, parity)


def _put_beside(
    beside: ClassHead | TextCorrection | None,
    backbone: Backbone,
    folder: Path,
    images: torch.Tensor,
    parity: Parity,
) -> Parity:
    """Write what was learned beside the backbone, and return the parity with that of its own loader."""
    if isinstance(beside, ClassHead):
        write_head(beside, backbone, folder)
        return replace(parity, head=head_distance(beside, backbone, folder, images, probes()))
    if isinstance(beside, TextCorrection):
        write_correction(beside, backbone, folder)
        return replace(parity, correction=correction_distance(beside, backbone, folder, TEXTS))
    return parity


def _require_parity(parity: Parity, limit: float) -> None:
    if not parity.within(limit):
        raise EverclipError(
            f"export: plain open_clip does not give the model's embeddings: {describe(parity)} (allowed: "
            f"{limit:g}). Nothing was written. The method may use more than the weights of its backbone to predict."
        )


def describe(parity: Parity) -> str:
    """Describe a parity in one line."""
    tokens = "equal tokens" if parity.tokens else "different tokens"
    head = "" if parity.head is None else f", class scores {parity.head:g}"
    corrected = "" if parity.correction is None else f", corrected text embeddings {parity.correction:g}"
    return (
        f"{tokens}, largest difference of pixels {parity.pixels:g}, image embeddings {parity.images:g}, text "
        f"embeddings {parity.texts:g}, logit scale {parity.logit_scale:g}{head}{corrected}"
    )


def usage(folder: Path, backbone: Backbone, beside: ClassHead | TextCorrection | None = None) -> list[str]:
    """Return the lines of Python that load an export, and what is beside its towers, with open_clip alone."""
    if isinstance(beside, ClassHead):
        return head_usage(folder)
    if isinstance(beside, TextCorrection):
        return correction_usage(folder, classes=bool(beside.rule["classes"]))
    has_merges = backbone.layout is not None and any(
        f.name == MERGES for f in backbone.layout.tokenizer_files
    )
    has_merges = has_merges or isinstance(backbone.tokenizer, GrownTokenizer)
    length = backbone.tokenizer.context_length
    tokenizer = (
        f"tokenizer = open_clip.SimpleTokenizer('{folder / MERGES}', context_length={length})"
        if has_merges  # open_clip does not look for a vocabulary in the folder
        else f"tokenizer = open_clip.get_tokenizer('local-dir:{folder}')"
    )
    return [
        "import open_clip",
        f"model, _, preprocess = open_clip.create_model_and_transforms('local-dir:{folder}')",
        tokenizer,
    ]


def check_target(folder: Path, force: bool) -> None:
    """Check that an export may be written to a folder.

    Raises:
        ConfigError: if the path is a file, the folder holds other files, or it holds an export and `force` is off.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ConfigError(f"export: {folder} is a file; give the name of a new folder.")
    ours = {CONFIG, WEIGHTS, CARD, MERGES, *HF_FILES, *HEAD_FILES, *CORRECTION_FILES, "__pycache__"} - {
        README
    }
    others = sorted(p.name for p in folder.iterdir() if p.name not in ours and not is_readme(p))
    if others or not (folder / CONFIG).is_file():
        listed = ", ".join(others[:5]) or ", ".join(sorted(p.name for p in folder.iterdir()))
        raise ConfigError(
            f"export: {folder} is not an earlier export (it holds {listed}); give another folder."
        )
    if not force:
        raise ConfigError(f"export: {folder} exists already; --force replaces it.")


def _merge(backbone: Backbone) -> None:
    try:
        merge_into(backbone.clip)
    except ConfigError as error:
        raise ConfigError(
            f"export: open_clip's layout can only hold a plain CLIP: {error} Use the model from its run folder "
            "(Learner.load, everclip eval), or train LoRA or parts of the towers instead, which can be merged."
        ) from error


def _write_files(backbone: Backbone, folder: Path, half: bool) -> None:
    assert backbone.layout is not None
    document = {"model_cfg": backbone.layout.model_cfg, "preprocess_cfg": backbone.layout.preprocess_cfg}
    state = {k: v.detach().cpu() for k, v in backbone.clip.state_dict().items()}
    if isinstance(backbone.tokenizer, GrownTokenizer):
        merges, ids = backbone.tokenizer.plain()
        document["model_cfg"] = _plain_vocabulary(backbone.layout.model_cfg, state, ids)
        (folder / MERGES).write_bytes(merges)
    (folder / CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    # Clones, because safetensors refuses tensors that share memory.
    state = {k: v.contiguous().clone() for k, v in state.items()}
    if half:
        # The logit scale is a single number, up to 100: keep it exact.
        state = {k: v.half() if v.is_floating_point() and v.numel() > 1 else v for k, v in state.items()}
        lost = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if lost:
            raise ConfigError(
                f"export: {lost[0]!r} holds numbers too large for half precision (65,504); leave out --half."
            )
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    for file in () if (folder / MERGES).is_file() else backbone.layout.tokenizer_files:
        name = file.name if file.name in HF_FILES else MERGES
        shutil.copyfile(file, folder / name)


def _plain_vocabulary(
    model_cfg: dict[str, Any], state: dict[str, torch.Tensor], ids: list[int]
) -> dict[str, Any]:
    """Sort rows, in place, by the ids of open_clip's own tokenizer; return the configuration."""
    name = next(key for key in state if key.endswith("token_embedding.weight"))
    state[name] = state[name][ids]
    text_cfg = {**model_cfg["text_cfg"], "vocab_size": len(ids), "pool_type": "argmax"}
    return {**model_cfg, "text_cfg": {k: v for k, v in text_cfg.items() if k != "eos_id"}}


def _compare(
    backbone: Backbone, folder: Path, expected: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> Parity:
    """Load a folder with open_clip's own functions, encode the probes, and compare."""
    pixels, tokens, images, texts = expected
    try:
        with quiet(), offline():
            clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            if (folder / MERGES).is_file():
                tokenizer: Any = SimpleTokenizer(str(folder / MERGES), context_length=tokens.shape[1])
            else:
                tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (OSError, RuntimeError, ValueError) as error:
        raise EverclipError(f"export: plain open_clip cannot load the written folder ({error}).") from error
    clip.eval()
    prepared = torch.stack([preprocess(image) for image in probes()])
    ids = tokenizer(list(TEXTS))
    if isinstance(backbone.tokenizer, GrownTokenizer):  # the same tokens in another order of ids
        new_id = {old: new for new, old in enumerate(backbone.tokenizer.plain()[1])}
        tokens = torch.tensor([[new_id[i] for i in row] for row in tokens.tolist()])
    scale = clip.logit_scale.exp().squeeze()
    return Parity(
        pixels=_distance(prepared, pixels),
        images=_distance(clip.encode_image(prepared, normalize=True), images),
        texts=_distance(clip.encode_text(ids, normalize=True), texts),
        logit_scale=_distance(scale, backbone.logit_scale),
        tokens=torch.equal(ids, tokens),
    )


def _distance(one: torch.Tensor, two: torch.Tensor) -> float:
    if one.shape != two.shape:
        return float(torch.finfo(torch.float32).max)
    return float((one.double() - two.double()).abs().max())


def _set_aside(folder: Path) -> Path | None:
    """Rename an earlier export; the caller removes it when the new one is in place."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    return old
