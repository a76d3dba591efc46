"""Types of what everclip uses of `open_clip.tokenizer`; read by mypy alone."""

from collections.abc import Callable
from re import Pattern
from typing import Any

from torch import Tensor

class SimpleTokenizer:
    byte_encoder: dict[int, str]
    encoder: dict[str, int]
    decoder: dict[int, str]
    bpe_ranks: dict[tuple[str, ...], int]
    cache: dict[str, str]
    pat: Pattern[str]
    vocab_size: int
    all_special_ids: list[int]
    sot_token_id: int
    eot_token_id: int
    context_length: int | None
    clean_fn: Callable[[str], str]

    def __init__(self, bpe_path: str = ..., **options: Any) -> None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...
    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor: ...

class HFTokenizer:
    tokenizer: Any
    context_length: int | None

    def __init__(self, tokenizer_name: str, **options: Any) -> None: ...
    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor: ...
