"""Find a model's tokenizer without a network, and check it against the model's token embedding."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from everclip.data.sampling.same_texts import Tokenise
from everclip.errors import ConfigError
from everclip.models.clip import Clip
from everclip.models.hub import fetch_command, find_snapshot, is_repository
from everclip.models.layout import MERGES
from everclip.models.quiet import offline, quiet

HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""The files that a tokenizer of transformers may consist of."""

_ENOUGH = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def default_tokenizer() -> Tokenise:
    """Return the tokenizer of most open_clip models, for use before a model is chosen."""
    tokenizer: Tokenise = SimpleTokenizer()
    return tokenizer


def build_tokenizer(text_cfg: dict[str, Any], folder: Path | None) -> tuple[Any, tuple[Path, ...]]:
    """Return a model's tokenizer and its files (none for the tokenizer inside open_clip).

    Args:
        text_cfg: open_clip's configuration of the text tower; not changed.
        folder: the model's folder; its files take precedence.

    Raises:
        ConfigError: if files are missing; names them, the places searched, and what to do.
    """
    length = text_cfg.get("context_length", 77)
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    if text_cfg.get("hf_tokenizer_name"):
        return _from_transformers(text_cfg, length, kwargs, folder)
    merges = kwargs.pop("bpe_path", None) or MERGES
    if Path(merges).is_absolute() or ".." in Path(merges).parts:
        raise ConfigError(f"backbone: tokenizer_kwargs.bpe_path {merges!r} leaves the model's folder.")
    path = None if folder is None else folder / merges
    if path is not None and path.is_file():
        try:
            return SimpleTokenizer(str(path), context_length=length, **kwargs), (path,)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ConfigError(
                f"backbone: {path}: is no readable vocabulary ({error}); expected merges in gzip. Copy it again."
            ) from error
    if merges != MERGES:
        raise ConfigError(f"backbone: text_cfg names the vocabulary {path or merges}, which does not exist.")
    return SimpleTokenizer(context_length=length, **kwargs), ()


def tokenizer_settings(folder: Path, vocabulary: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of `text_cfg` for the tokenizer of a `CLIPModel`, and the assumptions made.

    Args:
        folder: the model's folder.
        vocabulary: the number of tokens that its text tower embeds.
    """
    if (folder / MERGES).is_file():
        return {}, ()  # an export, which holds open_clip's own form as well
    standard = SimpleTokenizer()
    merges = _merges(folder)
    if merges is None and standard.vocab_size == vocabulary:
        return {}, ("tokenizer: no vocabulary beside the weights; CLIP's own is assumed",)
    if merges == list(standard.bpe_ranks) and standard.vocab_size == vocabulary:
        return {}, ()  # CLIP's own tokenizer is part of open_clip and needs no other package
    return {"hf_tokenizer_name": folder.name}, ()


def _merges(folder: Path) -> list[tuple[str, ...]] | None:
    """Return the merges of a byte-pair vocabulary in transformers' form; `None` if there is none."""
    lines: Any = None
    try:
        if (folder / "tokenizer.json").is_file():
            document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            lines = document.get("model", {}).get("merges")
        if lines is None and (folder / "merges.txt").is_file():
            text = (folder / "merges.txt").read_text(encoding="utf-8")
            lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
        if not isinstance(lines, list):
            return None
        return [tuple(line.split()) if isinstance(line, str) else tuple(line) for line in lines]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"backbone: {folder}: the tokenizer's files cannot be read ({error}).") from error


def _from_transformers(
    text_cfg: dict[str, Any], length: int, kwargs: dict[str, Any], folder: Path | None
) -> tuple[Any, tuple[Path, ...]]:
    name = str(text_cfg["hf_tokenizer_name"])
    tokenizer_folder = _tokenizer_folder(name, folder)
    if kwargs.pop("trust_remote_code", False):
        raise ConfigError(f"backbone: the tokenizer {name!r} brings its own code, which is not executed.")
    try:
        with quiet(), offline():
            tokenizer = HFTokenizer(
                str(tokenizer_folder),
                context_length=length,
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                local_files_only=True,
                trust_remote_code=False,
                **kwargs,
            )
    except ImportError as error:
        raise ConfigError(
            f"backbone: the tokenizer {name!r} needs the package transformers ({error}): pip install transformers"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"backbone: the tokenizer files in {tokenizer_folder} cannot be used ({error})."
        ) from error
    return tokenizer, tuple(p for p in (tokenizer_folder / n for n in HF_FILES) if p.is_file())


def _tokenizer_folder(name: str, folder: Path | None) -> Path:
    looked = []
    if folder is not None:
        if any((folder / n).is_file() for n in _ENOUGH):
            return folder
        looked.append(f"{folder} (no {', '.join(_ENOUGH[:3])}...)")
    if is_repository(name):
        snapshot = find_snapshot(name)
        if not isinstance(snapshot, str) and any((snapshot.folder / n).is_file() for n in _ENOUGH):
            return snapshot.folder
        looked.append(snapshot if isinstance(snapshot, str) else f"{snapshot.folder} (no tokenizer files)")
    raise ConfigError(
        f"backbone: the text tower needs the tokenizer {name!r}, which is not on this machine.\n  looked in: "
        + "\n             ".join(looked or ["(nowhere: the name is not that of a repository)"])
        + "\n  Put its tokenizer.json and tokenizer_config.json beside the model's weights, or run on a machine with a "
        f"network: {fetch_command(name)}"
    )


def size_of(tokenizer: Any) -> int:
    """Return the size of a tokenizer's vocabulary; every id is smaller."""
    inner = getattr(tokenizer, "tokenizer", None)
    if isinstance(tokenizer, SimpleTokenizer):
        # Two merges may make one token, whose first id is then unused.
        return int(max(tokenizer.encoder.values())) + 1
    return int(tokenizer.vocab_size) if inner is None else len(inner)


def check_tokenizer(tokenizer: Any, clip: Clip, text_cfg: dict[str, Any]) -> None:
    """Check a tokenizer against the model that reads its ids.

    Raises:
        ConfigError: if ids lie outside the embedding or belong to another vocabulary, or if the model looks for
            another end token.
    """
    rows, tokens = _embedding_rows(clip), size_of(tokenizer)
    simple = isinstance(tokenizer, SimpleTokenizer)
    # The simple tokenizer's last token is the end token: another size means another vocabulary.
    if rows is not None and (tokens > rows or (simple and tokens != rows and not text_cfg.get("embed_cls"))):
        raise ConfigError(
            f"backbone: the tokenizer has {tokens} tokens, but the text tower embeds {rows}. Put the vocabulary the "
            f"model was trained with beside its weights ({MERGES if simple else 'tokenizer.json'})."
        )
    length = getattr(clip, "context_length", None)
    if length and tokenizer.context_length != length and not hasattr(clip, "text_decoder"):
        hf = text_cfg.get("hf_model_name")
        if not hf or tokenizer.context_length > length:
            raise ConfigError(
                f"backbone: the tokenizer returns {tokenizer.context_length} tokens, the text tower reads {length}: "
                "model_cfg.text_cfg.context_length is wrong."
            )
    if text_cfg.get("pool_type") == "eos" and not text_cfg.get("hf_model_name"):
        end = tokenizer.eot_token_id if simple else tokenizer.tokenizer.eos_token_id
        if end != text_cfg.get("eos_id", 2):
            raise ConfigError(
                f"backbone: the tokenizer ends a text with token {end}, but the text tower looks for "
                f"{text_cfg.get('eos_id', 2)} (model_cfg.text_cfg.eos_id)."
            )


def _embedding_rows(clip: Clip) -> int | None:
    """Return the number of tokens that a text tower embeds; `None` if unknown."""
    for name in ("token_embedding.weight", "text.token_embedding.weight"):
        try:
            return int(clip.get_parameter(name).shape[0])
        except AttributeError:
            continue
    inner = getattr(getattr(clip, "text", None), "transformer", None)
    config = getattr(inner, "config", None)
    return None if config is None else int(config.vocab_size)
