"""Where a text ends for each kind of text tower, and how many of its tokens are needed."""

from __future__ import annotations

from typing import Any

import module_models
import pytest
import torch

from everclip.errors import ConfigError
from everclip.models.modules import insert
from everclip.models.modules.pooling import end_id, pooling
from everclip.models.modules.short_texts import needed_tokens


def test_how_a_text_tower_pools_is_asked_of_either_kind_of_model() -> None:
    class Root(torch.nn.Module):
        def __init__(self, **named: Any) -> None:
            super().__init__()
            for name, value in named.items():
                setattr(self, name, value)

    assert pooling(Root()) == "argmax"
    assert pooling(Root(pool_type="last")) == "last"
    assert pooling(Root(text_pool_type="eos", pool_type="last")) == "eos"
    assert pooling(Root(text_pool_type=None, pool_type="first")) == "first"
    assert end_id(Root()) is None
    assert end_id(Root(eos_id=7)) == 7
    assert end_id(Root(text_eos_id=5, eos_id=7)) == 5
    assert end_id(Root(text_eos_id=0, eos_id=7)) == 0
    assert end_id(Root(text_eos_id=None, eos_id=7)) == 7


@pytest.mark.parametrize("case", ["vit", "custom text", "custom text, eos"])
def test_as_many_tokens_are_needed_as_the_longest_text_has_with_its_end(case: str) -> None:
    clip = module_models.build(case)
    for words in ([3], [1, 6, 2], [0, 0]):
        assert needed_tokens(clip, module_models.tokens(words)) == max(words) + 2
    assert needed_tokens(clip, module_models.tokens([20])) == 12
    for other in ("custom text, no mask, last", "custom text, class token"):
        assert needed_tokens(module_models.build(other), module_models.tokens([3])) is None


def test_a_tower_that_names_no_end_token_takes_no_prompts() -> None:
    clip = module_models.build("custom text, eos", True)
    del clip.text.eos_id
    assert needed_tokens(clip, torch.tensor([[1, 5, 513, 0]])) is None
    with pytest.raises(
        ConfigError, match=r"method\.trainable\.prompt: TextTransformer pools the end token of a text"
    ):
        insert(clip, "prompt", {"tower": "text", "count": 2})
    other = module_models.build("custom text", True)
    del other.text.eos_id  # the end is where the highest id is
    insert(other, "prompt", {"tower": "text", "count": 2})
