"""The cache of features that runs share (`evaluation.cache`): it knows the model, and damage costs nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import everclip


def test_features_of_another_model_are_not_taken_from_the_cache(
    micro_folder: Path, micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(micro_folder / "model", other)
    document = json.loads((other / "open_clip_config.json").read_text())
    document["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (other / "open_clip_config.json").write_text(json.dumps(document))
    shared = ("method=zero-shot", f"evaluation.cache={tmp_path / 'cache'}")
    plain = micro_config("single", f"backbone={other}", "method=zero-shot", output="plain")
    everclip.execute(micro_config("single", *shared, output="first"))
    cached = everclip.execute(micro_config("single", f"backbone={other}", *shared, output="second"))
    assert cached.rows[0].representation == everclip.execute(plain).rows[0].representation


def test_damaged_features_in_the_cache_are_encoded_again_and_the_result_says_so(
    micro_config: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    settings = ("method=zero-shot", f"evaluation.cache={cache}")
    whole = everclip.execute(micro_config("single", *settings, output="first"))
    assert [event for event in whole.events if event.kind == "damaged cache"] == []
    (file,) = cache.glob("features-image-*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = everclip.execute(micro_config("single", *settings, output="second"))
    assert [event.kind for event in again.events if file.name in event.message] == ["damaged cache"]
    assert again.rows[0].scores == whole.rows[0].scores
