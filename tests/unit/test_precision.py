"""The number format of training: what `auto` takes, what is said of slow ones, and that a run keeps its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from doctor_fixtures import only

import everclip
from everclip import processor, registry
from everclip.cli.plan import plan, print_plan
from everclip.config import BackboneConfig, MethodConfig, TrainingConfig, resolve_config
from everclip.evaluation.results import Results
from everclip.learner.core import Learner
from everclip.methods.build import build_method
from everclip.models.backbone import Backbone, load_backbone
from everclip.prepare.doctor import machine
from everclip.prepare.doctor.child import ChildResult
from everclip.running import precision as running
from everclip.training import precision
from everclip.training.precision import Precision, chosen_precision, slow_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def gpu_with_bf16(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """Let torch say of a GPU that it has bf16 units or emulates them."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: there or including_emulation
    )


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_instructions", lambda: False)


# -- the processor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("model name\t: something\n", None),
    ],
)
def test_the_system_is_asked_where_torch_does_not_say(
    text: str, found: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setitem(processor.sys.modules, "torch", SimpleNamespace())
    assert processor.bf16_instructions() is found
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    assert processor.bf16_instructions() is None


def test_torch_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(known: dict[str, Any], kernels: bool) -> bool | None:
        ops = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: kernels))
        cpu = SimpleNamespace(get_capabilities=lambda: known)
        monkeypatch.setitem(processor.sys.modules, "torch", SimpleNamespace(ops=ops, cpu=cpu))
        return processor.bf16_instructions()

    assert asked({"avx512_bf16": True, "l1d_cache_size": 1}, kernels=True) is True
    assert asked({"avx512_bf16": False, "amx_bf16": True}, kernels=True) is True
    assert asked({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, kernels=True) is False
    # ONEDNN_MAX_CPU_ISA=AVX2 on a processor that could
    assert asked({"avx512_bf16": True}, kernels=False) is False


# -- what auto takes ------------------------------------------------------------------------------------------


def test_auto_is_fp32_on_every_cpu_and_bf16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False, None):
        monkeypatch.setattr(precision, "bf16_instructions", lambda there=there: there)
        assert chosen_precision("auto", CPU) == "fp32"
    gpu_with_bf16(monkeypatch, True)
    assert chosen_precision("auto", GPU) == "bf16"
    gpu_with_bf16(monkeypatch, False)
    assert chosen_precision("auto", GPU) == "fp32"
    for name in ("fp32", "bf16", "fp16"):
        assert chosen_precision(name, CPU) == name
    with Precision("auto", CPU).autocast():
        assert not torch.is_autocast_enabled("cpu")
    with Precision("bf16", CPU).autocast():
        assert torch.is_autocast_enabled("cpu")


def test_a_format_that_is_emulated_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, said in ((True, False), (False, True), (None, False)):
        monkeypatch.setattr(precision, "bf16_instructions", lambda there=there: there)
        found = slow_precision("bf16", CPU)
        assert (found is not None) is said
        assert found is None or ("avx512_bf16" in found and "training.precision=auto" in found)
        assert slow_precision("fp32", CPU) is None
    gpu_with_bf16(monkeypatch, False)
    assert "GPU has no bf16 units" in str(slow_precision("bf16", GPU))
    gpu_with_bf16(monkeypatch, True)
    assert slow_precision("bf16", GPU) is None


@pytest.mark.parametrize("name", [name for name in registry.benchmarks() if "@" not in name])
def test_no_recipe_depends_on_bf16(name: str) -> None:
    assert resolve_config(name).training.precision == "auto"


@pytest.mark.parametrize("name", list(registry.methods()))
def test_no_preset_depends_on_bf16(name: str) -> None:
    assert resolve_config("emoji-time", [f"method={name}"]).training.precision in ("auto", "fp32")


# -- runs -----------------------------------------------------------------------------------------------------


def recorded(config: Any) -> tuple[str, str]:
    """Return the format in a run folder's configuration and in its result."""
    folder = Path(config.output)
    document = yaml.safe_load((folder / "config.yaml").read_text())
    return document["training"]["precision"], Results.read(folder).provenance["precision"]


def test_auto_on_a_cpu_gives_the_bits_of_fp32(micro_config: Callable[..., Any]) -> None:
    one, two = (
        micro_config("single", *more, output=f"run{number}")
        for number, more in enumerate(([], ["training.precision=fp32"]))
    )
    results = [everclip.execute(config) for config in (one, two)]
    assert recorded(one) == recorded(two) == ("fp32", "fp32")
    assert results[0].rows == results[1].rows
    assert not [event for event in results[0].events if event.kind == "precision"]


def test_slow_bf16_is_said_before_and_after(
    micro_config: Callable[..., Any], without_bf16: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = micro_config("single", "training.precision=bf16")
    planned = plan(config)
    (slow,) = [note for note in planned["notes"] if note.startswith("bf16: ")]
    assert planned["precision"] == "bf16"
    print_plan(planned)
    assert "note: bf16: this processor has no bf16 instructions" in capsys.readouterr().out
    results = everclip.execute(config)
    said = [event.message for event in results.events if event.kind == "precision"]
    assert said == [slow]
    assert "has no bf16 instructions" in capsys.readouterr().err


def test_a_run_goes_on_in_the_format_that_it_began_with(
    micro_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it began on a GPU, where auto takes bf16."""
    config, whole = (micro_config("time", output=name) for name in ("stopped", "whole"))
    monkeypatch.setattr(running, "chosen_precision", lambda name, device: "bf16")
    expected = everclip.execute(whole)

    class Stop(Exception):
        pass

    passed = []

    def stop_in_the_second_task(point: str) -> None:
        passed.append(point)
        if passed.count("after step") == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("everclip.run.crash_point", stop_in_the_second_task)
        with pytest.raises(Stop):
            everclip.execute(config)
    monkeypatch.undo()
    assert resolve_config("emoji-time").training.precision == config.training.precision == "auto"
    results = everclip.execute(config)
    assert recorded(config) == recorded(whole) == ("bf16", "bf16")
    assert results.rows == expected.rows
    said = [event.message for event in results.events if event.kind == "precision"]
    assert [m for m in said if "bf16, as this run began; auto would choose fp32 on this machine" in m]


def test_a_run_from_before_there_was_a_choice_goes_on(micro_config: Callable[..., Any]) -> None:
    config = micro_config("single")
    results = everclip.execute(config)
    file = Path(config.output) / "config.yaml"
    assert "precision: fp32" in file.read_text()  # as older versions wrote their default
    assert everclip.execute(config).rows == results.rows


def test_a_learner_keeps_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner.create("builtin:tiny", training={"device": "cpu"})
    assert learner.training.precision == "fp32"
    learner.save(tmp_path)
    assert "precision: fp32" in (tmp_path / "config.yaml").read_text()
    assert TrainingConfig(steps=1).precision == "auto"


# -- doctor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "state"), [(True, "ok"), (None, "ok"), (False, "note")])
def test_the_doctor_says_whether_the_processor_has_bf16(
    there: bool | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        machine, "run_child", lambda *given: ChildResult({"stage": "done", "devices": [], "bf16": there})
    )
    found = only(machine.check_machine(), "bf16 on the CPU")
    assert found.state == state
    if state == "note":
        assert "14 times" in found.found
        assert "auto" in found.remedy
    assert json.dumps(vars(found))


def test_a_learner_from_a_gpu_predicts_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Learner.create("builtin:tiny", training={"device": "cpu"}).save(tmp_path)
    file = tmp_path / "config.yaml"
    text = (
        file.read_text().replace("precision: fp32", "precision: fp16").replace("device: cpu", "device: cuda")
    )
    file.write_text(text)
    learner = Learner.load(tmp_path)
    assert (learner.training.precision, learner.accelerator.device.type) == ("fp32", "cpu")
    assert "training.device=cuda, training.precision=fp16 needs a GPU" in caplog.text


def test_precision_may_differ_between_runs_of_one_process(micro_config: Callable[..., Any]) -> None:
    for number, form in enumerate(("fp32", "bf16", "fp32")):
        config = micro_config("single", f"training.precision={form}", output=f"run{number}")
        assert everclip.execute(config).status == "finished"


@pytest.mark.gpu
def test_the_scaler_comes_back_with_its_state() -> None:
    first, again = (Precision("fp16", torch.device("cuda")) for _ in range(2))
    assert first.scaler is not None
    assert again.scaler is not None
    first.scaler.scale(torch.ones((), device="cuda"))
    first.scaler.update(128.0)
    again.load(first.tensors())
    assert again.scaler.get_scale() == 128.0


# -- attention ------------------------------------------------------------------------------------------------


def kernel() -> tuple[bool, bool]:
    """Return whether torch may use its fused attention, and whether the unfused one may compute in bf16."""
    switches: Any = torch.backends.cuda
    return switches.flash_sdp_enabled(), switches.fp16_bf16_reduction_math_sdp_allowed()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_only_bf16_on_a_cpu_leaves_the_fused_attention() -> None:
    usual = kernel()
    assert usual[0]
    for form in ("fp32", "auto"):
        with Precision(form, CPU).autocast():
            assert kernel() == usual
    with Precision("bf16", GPU).autocast():
        assert kernel() == usual
    with Precision("bf16", CPU).autocast():
        assert kernel() == (False, True)
    assert kernel() == usual
    with pytest.raises(RuntimeError), Precision("bf16", CPU).autocast():
        raise RuntimeError
    assert kernel() == usual


def step_of(model: Backbone, form: str) -> tuple[float, torch.Tensor]:
    """Return loss and gradients of one contrastive step in a format."""
    precision, clip = Precision(form, CPU), model.clip.train()
    clip.zero_grad()
    draw = torch.Generator().manual_seed(0)
    side = model.pixels.size
    images, tokens = (
        torch.rand(8, 3, side, side, generator=draw),
        model.tokenise([f"a {i}" for i in range(8)]),
    )
    with precision.autocast():
        logits = 10 * model.encode_image(images) @ model.encode_text(tokens).T
    loss = torch.nn.functional.cross_entropy(logits.float(), torch.arange(8))
    precision.backward(loss)
    return loss.item(), torch.cat([p.grad.flatten() for p in clip.parameters() if p.grad is not None])


def test_a_step_in_bf16_is_close_to_one_in_fp32() -> None:
    model = load_backbone(BackboneConfig(name="builtin:tiny"), 0)
    (exact, wanted), (loss, found) = (step_of(model, form) for form in ("fp32", "bf16"))
    assert loss == pytest.approx(exact, rel=0.01)
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.05


def test_checkpointed_blocks_train_in_bf16() -> None:
    model = load_backbone(BackboneConfig(name="builtin:tiny"), 0)
    plain = step_of(model, "bf16")
    model.clip.set_grad_checkpointing()
    again = step_of(model, "bf16")
    assert again[0] == plain[0]
    assert torch.equal(again[1], plain[1])


def test_a_teacher_equals_its_student_at_the_start_in_bf16() -> None:
    settings = {"penalties": {"feature-distill": {"reference": "task-start"}}}
    config = MethodConfig(name="finetune", settings=settings)
    method = build_method(config, load_backbone(BackboneConfig(name="builtin:tiny"), 0))
    method.teachers.begin_task(method.backbone)
    side, student = method.backbone.pixels.size, method.backbone.train()
    images, tokens = torch.rand(4, 3, side, side), student.tokenise(["a cat", "two dogs"])
    with Precision("bf16", CPU).autocast():
        assert torch.equal(method.teachers.image("task-start", images, student), student.encode_image(images))
        assert torch.equal(method.teachers.text("task-start", tokens, student), student.encode_text(tokens))
