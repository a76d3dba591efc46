"""Write a model's tokenizer for programs without open_clip: `tokenizer.json` and the older files of transformers.

open_clip's tokenizer is byte-pair encoding of lower-case words (as in arXiv 2103.00020). The package `tokenizers` does
the same from `tokenizer.json`. open_clip repairs texts first (ftfy); of that, curved quotes and ligatures are here,
while wrongly decoded and full-width characters have no equivalent.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from everclip.errors import ConfigError
from everclip.models.backbone import Backbone
from everclip.models.tokenizers import HF_FILES
from everclip.models.vocabulary import END_OF_WORD

START, END = "<|startoftext|>", "<|endoftext|>"
"""transformers' names of the tokens that open_clip calls `<start_of_text>` and `<end_of_text>`."""

JSON = "tokenizer.json"

NOTE = "Texts with wrongly decoded or full-width characters become other tokens than in open_clip, which repairs them."
"""Limit of `tokenizer.json`, for the model card."""

_REPAIRS = (
    *(("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"')),
    *(("ﬀ", "ff"), ("ﬁ", "fi"), ("ﬂ", "fl"), ("ﬃ", "ffi"), ("ﬄ", "ffl")),
)
"""What ftfy writes instead of some characters."""

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def write_tokenizer(backbone: Backbone, folder: Path) -> None:
    """Write the files of a tokenizer.

    Raises:
        ConfigError: if it has no such form; says what was found.
    """
    tokenizer = backbone.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        assert backbone.layout is not None
        for file in backbone.layout.tokenizer_files:
            if file.name in HF_FILES:
                shutil.copyfile(file, folder / file.name)
        if not (folder / JSON).is_file():
            raise ConfigError(
                f"export: the tokenizer of {backbone.name} ({type(tokenizer).__name__}) has no {JSON}, which this "
                "layout needs; --format open_clip takes its files as they are."
            )
        return
    if getattr(tokenizer, "reduction_fn", None) is not None:
        raise ConfigError(
            "export: the tokenizer drops words of long texts (tokenizer_kwargs.reduction_mask), which only open_clip "
            "does; use --format open_clip."
        )
    vocabulary = _vocabulary(tokenizer)
    merges = [list(pair) for pair in tokenizer.bpe_ranks]
    length = int(tokenizer.context_length or 77)
    _write_json(folder / JSON, _document(vocabulary, merges))
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", names)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", {**settings, **names})


def _vocabulary(tokenizer: SimpleTokenizer) -> dict[str, int]:
    names = {tokenizer.sot_token_id: START, tokenizer.eot_token_id: END}
    ids = sorted(tokenizer.encoder.items(), key=lambda item: item[1])
    return {names.get(number, token): number for token, number in ids}


def _document(vocabulary: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """Return the content of `tokenizer.json`."""
    start, end = vocabulary[START], vocabulary[END]
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    repairs = [{"type": "Replace", "pattern": {"Regex": a}, "content": b} for a, b in _REPAIRS]
    blanks = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    words = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": start, "content": START, **marks, "normalized": True},
            {"id": end, "content": END, **marks},
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*repairs, {"type": "NFC"}, blanks, {"type": "Lowercase"}],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, bytes_]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, end],
            "cls": [START, start],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tokens(folder: Path, texts: list[str], length: int, pad: int) -> torch.Tensor:
    """Return the ids `(N, length)` of texts by the package `tokenizers`, from the `tokenizer.json` of a folder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / JSON))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


def pad_id(backbone: Backbone) -> int:
    """Return the id behind the end of a text."""
    inner = getattr(backbone.tokenizer, "tokenizer", None)
    return int(getattr(inner, "pad_token_id", None) or 0)
