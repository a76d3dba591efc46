"""What a backbone must offer to a method is asked before anything is built."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import backbone_zoo as zoo
import module_models as models
import pytest

from everclip.config import MethodConfig
from everclip.contracts import Needs
from everclip.data.pictures.images import ImageStore
from everclip.errors import ConfigError
from everclip.methods import build
from everclip.methods.base import Method
from everclip.models.backbone import Backbone
from everclip.run import execute
from presets import settings

REAL = build.method_class


class Growing(Method):
    needs = Needs(transformer=True)


@pytest.mark.parametrize("name", list(models.OTHERS))
def test_a_tower_without_blocks_is_refused_with_the_reason_and_what_fits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "method_class", lambda name: Growing if name == "growing" else REAL(name))
    backbone = cast(Any, SimpleNamespace(clip=models.build(name)))
    with pytest.raises(
        ConfigError, match=r"growing grows modules .*is not open_clip's own transformer"
    ) as caught:
        build.build_method(MethodConfig(name="growing"), backbone)
    assert "finetune" in str(caught.value).partition("Methods that fit: ")[2].rstrip(".").split(", ")


CONVNEXT = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": zoo.TEXT,
}
TOWERS = {"ModifiedResNet": zoo.MODELS["resnet"], "TimmModel": CONVNEXT}
"""What open_clip calls an image tower -> a small model that has it."""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    for tower, model in TOWERS.items():
        zoo.write(folder / tower, model)
    return folder


@pytest.mark.parametrize("method", ["moe-adapters", "coleclip"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_run_on_another_tower_is_refused_before_a_picture_is_read(
    tower: str,
    method: str,
    towers: Path,
    micro_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    monkeypatch.setattr(ImageStore, "get", lambda *given: read.append("picture"))
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(Backbone, name, lambda *given, name=name: read.append(name))
    config = micro_config("classes", *settings(method), f"backbone={towers / tower}")
    with pytest.raises(ConfigError) as caught:
        execute(config)
    said = str(caught.value)
    assert tower in said
    assert method in said
    fitting = set(re.findall(r"[\w-]+", said.partition("ethods that fit")[2]))
    assert {"rail", "zscl"} <= fitting
    assert not {"moe-adapters", "coleclip"} & fitting
    assert read == []
    assert not Path(config.output).exists()


def test_a_method_that_is_said_to_fit_another_tower_does(
    towers: Path, micro_config: Callable[..., Any]
) -> None:
    results = execute(
        micro_config(
            "classes",
            *settings("rail"),
            f"backbone={towers / 'TimmModel'}",
            "scenario.per_task=3",
            "evaluation.examples=0",
        )
    )
    assert results.status == "finished"
