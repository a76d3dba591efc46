"""Write the LoRA of a model alone, in PEFT's layout, for its start model as a `CLIPModel` of transformers.

PEFT (`adapter_config.json`, `adapter_model.safetensors`) adapts linear layers by name. open_clip's attention has one
fused weight for query, key and value, transformers' has three: only there every update has a layer of its own. The
update of a layer is `scaling * B A` (LoRA, arXiv 2106.09685) in both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from everclip.errors import ConfigError, EverclipError
from everclip.files import folder_atomic
from everclip.models.adapter import LOG_SCALE, merge_adapter
from everclip.models.adapter_config import CONFIG, PREFIX, WEIGHTS
from everclip.models.backbone import Backbone, load_backbone
from everclip.models.export import CARD, Encode, Exported, check_target, expected_of, put_card, set_aside
from everclip.models.export_card import limits_of
from everclip.models.export_parity import LORA_LIMIT, TEXTS, Expected, Parity, describe, distance
from everclip.models.export_transformers import check, new_name
from everclip.models.modules.grow import grown
from everclip.models.modules.lora import SHARED, LowRank, adapted, merge, unmerge
from everclip.models.modules.token_rows import has_rows

_WHOLE = "; leave out --adapter-only to export the merged model"


def export_adapter(
    backbone: Backbone,
    folder: Path,
    card: Mapping[str, Any],
    *,
    force: bool = False,
    encode_images: Encode | None = None,
    encode_texts: Encode | None = None,
) -> Exported:
    """Write the LoRA of a backbone, apply what was written to the start model, and compare with the model.

    Args:
        backbone: the model, on the CPU, with its LoRA not merged.
        folder, card, force: as in `export_backbone`.
        encode_images, encode_texts: pixels or tokens to unit embeddings, if the method changes those of the backbone.

    Raises:
        ConfigError: if PEFT's layout cannot hold what the model learned; names it.
        EverclipError: if the start model with the adapter does not give the model's embeddings.
    """
    check_target(folder, force)
    if backbone.layout is None:
        raise ConfigError("export: this model was made by hand: its configuration is not known.")
    if backbone.config.adapter is not None:
        raise ConfigError(
            f"export: --adapter-only: the start model is {backbone.config.name} with the adapter "
            f"{backbone.config.adapter} merged, which a folder of PEFT's cannot name{_WHOLE}."
        )
    check(backbone)
    _require_lora(backbone)
    base = load_backbone(backbone.config, directory=backbone.directory)
    scale = _require_base(backbone, base)
    backbone.eval()
    expected = expected_of(backbone, encode_images, encode_texts)
    updates = _updates(backbone)
    with folder_atomic(folder) as aside:
        _write(backbone, updates, aside)
        start: dict[str, Any] = {"base_towers": base.fingerprints()}
        if scale is not None:
            start[LOG_SCALE] = float(backbone.clip.logit_scale.detach())
        (aside / CARD).write_text(
            json.dumps(start), encoding="utf-8"
        )  # what a reader needs of the whole card
        with torch.inference_mode():
            parity = _compare(backbone, base, aside, expected)
        if not parity.within(LORA_LIMIT):
            raise EverclipError(
                f"export: the start model with the adapter does not give the model's embeddings: {describe(parity)} "
                f"(allowed: {LORA_LIMIT:g}). Nothing was written."
            )
        document = {
            **card,
            "precision": "fp32",
            "merged": [],
            "layout": "peft",
            "limits": limits_of(backbone),
        }
        document |= {"towers": backbone.fingerprints(), **start}
        document |= {"parity": asdict(parity), "usage": _usage(folder, backbone)}
        document["more_limits"] = _notes(backbone, scale)
        put_card(document, aside)
        size = sum(file.stat().st_size for file in aside.iterdir())
        old = set_aside(folder)
    if old is not None:
        shutil.rmtree(old)
    return Exported(folder, size, (), parity)


def _require_lora(backbone: Backbone) -> None:
    kinds = grown(backbone.clip)
    others = [f"{count} x {name}" for name, count in kinds.items() if name != "lora"]
    if others:
        raise ConfigError(
            f"export: --adapter-only writes LoRA in PEFT's layout; the model holds {', '.join(others)}, which has no "
            "place there. Keep the run folder (Learner.load, everclip eval)."
        )
    if has_rows(backbone.clip):
        raise ConfigError(f"export: --adapter-only has no place for trained token rows{_WHOLE}.")
    if not kinds:
        raise ConfigError(
            "export: --adapter-only: the model holds no LoRA (it learned in its own weights, or its LoRA was merged); "
            "leave out --adapter-only."
        )


def _require_base(backbone: Backbone, base: Backbone) -> float | None:
    """Check that all but LoRA is the start model's; return the logit scale if that differs."""
    records = merge(backbone.clip)
    originals = {id(record.owner): {record.name: record.original} for record in records}
    names = {id(module): path for path, module in backbone.clip.named_modules()}
    plain = {key: value.detach() for key, value in backbone.clip.state_dict().items()}
    for owner, held in originals.items():
        plain |= {f"{names[owner]}.{name}": value for name, value in held.items()}
    start = base.clip.state_dict()
    changed = sorted(key for key in plain if key not in start or not torch.equal(plain[key], start[key]))
    unmerge(records)
    others = [key for key in changed if key != "logit_scale"]
    if others:
        raise ConfigError(
            f"export: --adapter-only: {len(others)} weights outside LoRA differ from the start model "
            f"{backbone.config.name} ({others[0]}...), so LoRA alone is not what was learned{_WHOLE}."
        )
    return float(backbone.logit_scale.detach()) if changed else None


def _updates(backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return A `(rank, in)`, B `(out, rank)` and the scaling of each adapted layer, by transformers' name."""
    names = {id(module): path for path, module in backbone.clip.named_modules()}
    result = {}
    for owner, _, update in adapted(backbone.clip):
        path = names[id(owner)].removeprefix("text.")
        for target in update.up:
            layer = _layer(path, target)
            result[layer] = _factors(update, target)
    return result


def _layer(path: str, target: str) -> str:
    if target in "qkv":
        return new_name(path.removesuffix("attn")) + f"self_attn.{target}_proj"
    return new_name(path + ".").removesuffix(".")


def _factors(update: LowRank, target: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    down = update.down[SHARED if SHARED in update.down else target].detach()
    up = update.up[target].detach()
    if target in update.scale:  # a factor that trained becomes part of B
        return down, up * update.scale[target].detach(), 1.0
    return down, up, float(update.scaling)


def _write(
    backbone: Backbone, updates: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]], folder: Path
) -> None:
    ranks = {layer: len(down) for layer, (down, _, _) in updates.items()}
    alphas = {layer: scaling * ranks[layer] for layer, (_, _, scaling) in updates.items()}
    rank, alpha = max(ranks.values()), max(alphas.values())
    document = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone.config.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(updates),
        "rank_pattern": {layer: r for layer, r in ranks.items() if r != rank},
        "alpha_pattern": {layer: a for layer, a in alphas.items() if a != alpha},
        "modules_to_save": None,
    }
    (folder / CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    tensors = {}
    for layer, (down, up, _) in updates.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = down.cpu().contiguous().clone()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = up.cpu().contiguous().clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors creates files that only their owner can read; others must be able to read an export.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)


def _compare(backbone: Backbone, base: Backbone, folder: Path, expected: Expected) -> Parity:
    """Merge what was written into the start model, as everclip reads it back, and compare."""
    merge_adapter(base.clip, str(folder), backbone.config.name, base.fingerprints())
    base.eval()
    return Parity(
        pixels=0.0,  # those of the start model
        images=distance(base.encode_image(expected.pixels), expected.images),
        texts=distance(base.encode_text(expected.tokens), expected.texts),
        logit_scale=distance(base.logit_scale, backbone.logit_scale),
        tokens=torch.equal(base.tokenise(list(TEXTS)), expected.tokens),
    )


def _usage(folder: Path, backbone: Backbone) -> list[str]:
    return [
        f"# START: the start model as a CLIPModel folder: everclip export {backbone.config.name} START --format "
        "transformers",
        "from peft import PeftModel",
        "from transformers import CLIPModel",
        f"model = PeftModel.from_pretrained(CLIPModel.from_pretrained('START'), '{folder}')",
    ]


def _notes(backbone: Backbone, scale: float | None) -> list[str]:
    notes = [f"This is no model: it changes the start model {backbone.config.name}, and no other."]
    if scale is not None:
        notes.append(
            f"The logit scale was learned too, for which PEFT has no place: it is {scale:.6g} (everclip reads it from "
            "card.json). Embeddings and the order of answers do not depend on it, probabilities do."
        )
    return notes
