"""Types of what everclip uses of `open_clip.model`, which has none of its own; read by mypy alone.

`visual` is a `VisionTransformer` wherever its parts are touched; a ResNet or timm tower is only called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.transformer import TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn

@dataclass
class CLIPVisionCfg: ...

@dataclass
class CLIPTextCfg: ...

class CLIP(nn.Module):
    visual: VisionTransformer
    transformer: Transformer
    token_embedding: nn.Embedding
    context_length: int
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor: ...
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor: ...

class CustomTextCLIP(nn.Module):
    visual: VisionTransformer
    text: TextTransformer
    context_length: int
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor: ...
    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor: ...

def convert_to_custom_text_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
def resize_pos_embed(
    state_dict: dict[str, Any], model: nn.Module, interpolation: str = ..., antialias: bool = ...
) -> None: ...
