"""What a backbone must offer to a method is asked before anything is built."""

from types import SimpleNamespace
from typing import Any, cast

import module_models as models
import pytest

from everclip.config import MethodConfig
from everclip.contracts import Needs
from everclip.errors import ConfigError
from everclip.methods import build
from everclip.methods.base import Method

REAL = build.method_class


class Growing(Method):
    needs = Needs(transformer=True)


@pytest.mark.parametrize("name", list(models.OTHERS))
def test_a_tower_without_blocks_is_refused_with_the_reason_and_what_fits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "method_class", lambda name: Growing if name == "growing" else REAL(name))
    backbone = cast(Any, SimpleNamespace(clip=models.build(name)))
    with pytest.raises(ConfigError, match=r"growing grows modules .*is no transformer of") as caught:
        build.build_method(MethodConfig(name="growing"), backbone)
    assert "finetune" in str(caught.value).partition("Methods that fit: ")[2].rstrip(".").split(", ")
