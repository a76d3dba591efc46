"""Write a backbone in open_clip's folder layout and verify it: plain open_clip must give the same embeddings."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file

from everclip.contracts import ClassHead, TextCorrection
from everclip.errors import ConfigError, EverclipError
from everclip.files import folder_atomic
from everclip.models.backbone import Backbone
from everclip.models.export_card import is_readme, limits_of, write_model_card
from everclip.models.export_correction import (
    CORRECTION_FILES,
    README,
    correction_distance,
    correction_usage,
    write_correction,
    write_readme,
)
from everclip.models.export_head import HEAD_FILES, head_distance, head_usage, write_head
from everclip.models.export_parity import (
    HALF_LIMIT,
    TEXTS,
    Expected,
    ExportLayout,
    Parity,
    describe,
    distance,
    probes,
)
from everclip.models.layout import CONFIG, MERGES, WEIGHTS
from everclip.models.modules.grow import grown, merge_into
from everclip.models.modules.token_rows import has_rows, put_rows_back
from everclip.models.quiet import offline, quiet
from everclip.models.tokenizers import HF_FILES
from everclip.models.vocabulary import GrownTokenizer

CARD = "card.json"

OTHER_LAYOUTS = {
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    *("image.onnx", "text.onnx", "preprocess.json", "usage.py"),
    *("onnx_weights.json", "onnx_rest.safetensors"),
    *("adapter_config.json", "adapter_model.safetensors"),
}
"""Files of exports in other layouts than open_clip's."""

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """The result of an export: folder, size, merged kinds of modules, and parity."""

    folder: Path
    bytes: int
    merged: tuple[str, ...]
    parity: Parity


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
    layout: ExportLayout | None = None,
) -> Exported:
    """Write a backbone in a layout, atomically, load it without the model, and compare the embeddings.

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
            `correction.json`, `corrected.py`). The scripts need only open_clip, and no other layout has a place for
            it.
        layout: see `everclip.models.export_layouts`; default: open_clip's, compared with what plain open_clip loads.

    Raises:
        ConfigError: if the layout cannot hold the model, or `folder` holds something else.
        EverclipError: if what was written does not give the model's embeddings; then nothing is written.
    """
    layout = layout or OPEN_CLIP
    check_target(folder, force)
    _require_fitting(backbone, layout, beside)
    backbone.eval()
    expected = expected_of(backbone, encode_images, encode_texts)
    merged = tuple(sorted(grown(backbone.clip)))
    _merge(backbone, layout)
    if has_rows(backbone.clip):
        put_rows_back(backbone.clip)
    with folder_atomic(folder) as aside:
        layout.write(backbone, aside, half)
        with torch.inference_mode():
            parity = layout.compare(backbone, aside, expected)
            parity = _put_beside(beside, backbone, aside, expected.images, parity)
        _require_parity(parity, layout, half)
        lines = layout.usage(folder, backbone) if beside is None else usage(folder, backbone, beside)
        document = {**card, "precision": "fp16" if half else "fp32", "merged": list(merged)}
        document |= {"layout": layout.name, "limits": limits_of(backbone), "more_limits": list(layout.notes)}
        document |= {"towers": backbone.fingerprints(), "parity": asdict(parity), "usage": lines}
        put_card(document, aside, beside)
        size = sum(file.stat().st_size for file in aside.iterdir())
        old = set_aside(folder)
    if old is not None:
        shutil.rmtree(old)
    return Exported(folder, size, merged, parity)


def _require_fitting(
    backbone: Backbone, layout: ExportLayout, beside: ClassHead | TextCorrection | None
) -> None:
    if backbone.layout is None:
        raise ConfigError("export: this model was made by hand: its configuration is not known.")
    layout.check(backbone)
    if beside is not None and layout.name != OPEN_CLIP.name:
        what = "class head" if isinstance(beside, ClassHead) else "text correction"
        raise ConfigError(
            f"export: the model learned a {what} beside its towers, for which --format {layout.name} has no place; "
            f"--format {OPEN_CLIP.name} writes it with a script that reads it."
        )


def expected_of(
    backbone: Backbone, encode_images: Encode | None = None, encode_texts: Encode | None = None
) -> Expected:
    """Return what a model makes of the probes."""
    pixels = torch.stack([backbone.preprocess(image) for image in probes()])
    tokens = backbone.tokenise(list(TEXTS))
    with torch.inference_mode():
        images = (encode_images or backbone.encode_image)(pixels)
        texts = (encode_texts or backbone.encode_text)(tokens)
    return Expected(pixels, tokens, images, texts)


def put_card(
    document: dict[str, Any], folder: Path, beside: ClassHead | TextCorrection | None = None
) -> None:
    """Write `card.json` and the model card into the folder of an export."""
    if isinstance(beside, TextCorrection):
        write_readme(beside, folder, document.get("source", {}), document["usage"])
    write_model_card(document, folder / README)
    (folder / CARD).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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


def _require_parity(parity: Parity, layout: ExportLayout, half: bool) -> None:
    limit = HALF_LIMIT if half else layout.limit
    if not parity.within(limit, layout.pixel_limit):
        raise EverclipError(
            f"export: {layout.program} does not give the model's embeddings: {describe(parity)} (allowed: "
            f"{limit:g}). Nothing was written. The method may use more than the weights of its backbone to predict."
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
    if (folder / CARD).is_file():  # else it may be the folder of somebody's model
        ours |= OTHER_LAYOUTS
    others = sorted(p.name for p in folder.iterdir() if p.name not in ours and not is_readme(p))
    if others or not ((folder / CONFIG).is_file() or (folder / CARD).is_file()):
        listed = ", ".join(others[:5]) or ", ".join(sorted(p.name for p in folder.iterdir()))
        raise ConfigError(
            f"export: {folder} is not an earlier export (it holds {listed}); give another folder."
        )
    if not force:
        raise ConfigError(f"export: {folder} exists already; --force replaces it.")


def _merge(backbone: Backbone, layout: ExportLayout) -> None:
    try:
        merge_into(backbone.clip)
    except ConfigError as error:
        raise ConfigError(
            f"export: the layout of --format {layout.name} can only hold a plain CLIP: {error} Use the model from its "
            "run folder (Learner.load, everclip eval), or train LoRA or parts of the towers, which can be merged."
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


def _compare(backbone: Backbone, folder: Path, expected: Expected) -> Parity:
    """Load a folder with open_clip's own functions, encode the probes, and compare."""
    tokens = expected.tokens
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
        pixels=distance(prepared, expected.pixels),
        images=distance(clip.encode_image(prepared, normalize=True), expected.images),
        texts=distance(clip.encode_text(ids, normalize=True), expected.texts),
        logit_scale=distance(scale, backbone.logit_scale),
        tokens=torch.equal(ids, tokens),
    )


def set_aside(folder: Path) -> Path | None:
    """Rename an earlier export; the caller removes it when the new one is in place."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    return old


OPEN_CLIP = ExportLayout("open_clip", "plain open_clip", lambda backbone: None, _write_files, _compare, usage)
