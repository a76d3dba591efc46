"""Types of what everclip uses of `open_clip`, which has none of its own; read by mypy alone."""

from collections.abc import Callable
from typing import Any

from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer as SimpleTokenizer
from torch import Tensor

def list_models() -> list[str]: ...
def get_model_config(model_name: str) -> dict[str, Any] | None: ...
def create_model_and_transforms(
    model_name: str, **options: Any
) -> tuple[CLIP | CustomTextCLIP, Callable[[Any], Tensor], Callable[[Any], Tensor]]: ...
def get_tokenizer(model_name: str, **options: Any) -> Any: ...
