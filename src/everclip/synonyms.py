"""Hints for unknown keys, also from names of settings in other programs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from everclip.errors import did_you_mean

NAMES: Mapping[str, str] = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "max_lr": "lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_epochs": "epochs",
    "epoch": "epochs",
    "num_steps": "steps",
    "n_steps": "steps",
    "max_steps": "steps",
    "iterations": "steps",
    "iters": "steps",
    "step": "steps",
    "optimizer": "optimiser",
    "optim": "optimiser",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_schedule": "schedule",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "warmup_epochs": "warmup",
    "grad_clip": "clip_norm",
    "grad_clip_norm": "clip_norm",
    "gradient_clip_val": "clip_norm",
    "max_grad_norm": "clip_norm",
    "amp": "precision",
    "dtype": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "mixed_precision": "precision",
    "num_workers": "workers",
    "dataloader_num_workers": "workers",
    "num_threads": "threads",
    "augmentation": "augment",
    "transforms": "augment",
    "prompts": "templates",
    "prompt_templates": "templates",
    "model": "backbone",
    "model_name": "backbone",
    "base_model": "backbone",
    "arch": "backbone",
    "pretrained": "backbone.weights",
    "checkpoint_path": "backbone.weights",
    "out": "output",
    "out_dir": "output",
    "output_dir": "output",
    "outdir": "output",
    "save_dir": "output",
    "logdir": "output",
    "log_dir": "output",
    "run_dir": "output",
    "random_seed": "seed",
    "random_state": "seed",
    "dataset": "data",
    "data_dir": "data",
    "data_path": "data",
    "train_data": "data",
    "image_column": "columns.image",
    "img_key": "columns.image",
    "csv_img_key": "columns.image",
    "caption_column": "columns.caption",
    "csv_caption_key": "columns.caption",
    "label_column": "columns.class_name",
    "val": "validation",
    "valid": "validation",
    "val_size": "validation",
    "test_size": "test",
    "top_k": "top_k",
    "topk": "top_k",
    "image_resolution": "image_size",
    "img_size": "image_size",
    "resolution": "image_size",
    "crop_scale": "crop_min",
    "color": "colour",
    "color_jitter": "colour",
    "hflip": "flip",
    "gray": "grey",
    "log": "trackers",
    "tracker": "trackers",
    "wandb": "trackers",
}
"""Name in other programs -> name in everclip: a key of the same section, or the end of a key elsewhere."""


def hint(key: str, siblings: Iterable[str], known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for an unknown key.

    Args:
        key: the unknown key, with dots.
        siblings: the known names of its last part.
        known: all known keys, with dots.
    """
    fields, keys = sorted(set(siblings)), sorted(set(known))
    path = key.split(".")
    if difflib.get_close_matches(path[0], fields, cutoff=0.8):  # a misspelt section
        return did_you_mean(path[0], fields)
    last = NAMES.get(path[-1].lower().replace("-", "_"), path[-1])
    if last in fields and last != path[-1]:
        return f" Did you mean {last!r}?"
    # A word of a key of the same section: `checkpoint.every` for `checkpoint.every_steps`.
    if own := [name for name in fields if name != last and last in name.split("_")]:
        return f" Did you mean {' or '.join(repr('.'.join([*path[:-1], name])) for name in own[:3])}?"
    # The same key under another section: `split.test` for `scenario.split.test`, `lr` for `training.lr`.
    tails = [".".join([*path[:-1], last]), last]
    for tail in tails:
        found = [name for name in keys if name == tail or name.endswith(f".{tail}")]
        shortest = min((name.count(".") for name in found), default=0)
        near = [name for name in found if name.count(".") == shortest]
        if near and key not in near:
            return f" Did you mean {' or '.join(map(repr, near[:3]))}?"
    # A user-defined key below a section that is elsewhere: `columns.caption`.
    owners = [name for name in keys if len(path) > 1 and name.endswith(f".{path[0]}")]
    if owners and not difflib.get_close_matches(path[-1], fields, cutoff=0.75):
        return f" Did you mean {'.'.join([min(owners, key=len), *path[1:]])!r}?"
    return did_you_mean(path[-1], fields)
