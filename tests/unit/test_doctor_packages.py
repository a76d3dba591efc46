"""The doctor on packages, torch and GPUs: every check is broken once, and says what to do about it."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_fixtures import only, states

from everclip.prepare.doctor import machine, packages

REAL = metadata.version


# -- packages -------------------------------------------------------------------------------------------------------


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    def version(name: str) -> str:
        if name in versions:
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return str(versions[name])
        return REAL(name)

    monkeypatch.setattr(metadata, "version", version)


def test_what_is_installed_here_is_well() -> None:
    found = packages.check_packages()
    assert states(found) == {"ok"}
    assert {"python", "torch", "open-clip-torch", "timm", "datasets", "accelerate"} <= {f.name for f in found}


def test_old_and_missing_packages_fail_with_the_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, **{"open-clip-torch": "2.30.0", "accelerate": None})
    found = packages.check_packages()
    old, missing = only(found, "open-clip-torch"), only(found, "accelerate")
    assert (old.state, old.found) == ("fail", "2.30.0 (wanted open-clip-torch>=3.2)")
    assert old.remedy == "pip install --upgrade 'open-clip-torch>=3.2'"
    assert (missing.state, missing.remedy) == ("fail", "pip install 'accelerate>=1.0'")


@pytest.mark.parametrize("spelled", ["open_clip_torch>=3.2", "open-clip-torch>=3.2", "Open.Clip_Torch>=3.2"])
def test_a_package_has_one_name_however_metadata_spell_it(
    spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "wanted", lambda: (">=3.11", [spelled]))
    assert only(packages.check_packages(), "open-clip-torch").state == "ok"


def test_what_a_package_needs_in_turn_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, ftfy=None)
    found = only(packages.check_packages(), "ftfy")
    assert found.state == "fail"
    assert "needed by open-clip-torch" in found.found


def test_a_version_that_fits_here_and_not_another_package_is_one_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "wanted", lambda: (">=3.11", ["open-clip-torch", "timm"]))
    fake_versions(monkeypatch, timm="0.1.0")
    found = only(packages.check_packages(), "timm")
    assert found.state == "fail"
    assert "needed by open-clip-torch" in found.found


def test_an_old_python_and_unknown_wishes_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "wanted", lambda: (">=9.0", []))
    assert only(packages.check_packages(), "python").state == "fail"

    def unknown() -> Any:
        raise LookupError("nowhere")

    monkeypatch.setattr(packages, "wanted", unknown)
    assert states(packages.check_packages()) == {"fail"}


def test_missing_extras_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, lancedb=None, transformers=None)
    found = packages.check_packages()
    assert only(found, "optional: search").found == "lacks lancedb: pip install 'everclip[search]'"
    assert "SigLIP" in only(found, "optional: transformers").found
    assert states(found) == {"ok"}


def test_extras_for_work_on_everclip_itself_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'no-such-package; extra == "{extra}"' for extra in ("build", "dev", "mutants", "search")]
    monkeypatch.setattr(packages, "wanted", lambda: (">=3.11", lines))
    offered = [f.name for f in packages.check_packages() if "no-such-package" in f.found]
    assert offered == ["optional: search"]


# -- torch and torchvision ------------------------------------------------------------------------------------------


def fake_modules(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Put modules before the installed ones, for the processes the doctor starts."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    here = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([here] if here else [])]))


TORCH = """
__version__ = "2.9.0"
def get_num_threads(): return {threads}
def tensor(values): return values
def eye(n, device): return Square()
class version: cuda = "12.8"
class Sum:
    def __eq__(self, other): return Truth()
class Truth:
    def item(self): return {works}
class Square:
    def __matmul__(self, other): return self
    def sum(self): return Sum()
class cuda:
    is_available = staticmethod(lambda: {devices} > 0)
    device_count = staticmethod(lambda: {devices})
    get_device_name = staticmethod(lambda i: "Some GPU")
    @staticmethod
    def mem_get_info(i): {memory}
"""
VISION = """
__version__ = "0.24.0"
class ops: nms = staticmethod(lambda boxes, scores, limit: Kept())
class Kept:
    def tolist(self): return [0, 2]
"""


def fake_torch(
    devices: int = 0, works: bool = True, threads: int = 1, memory: str = "return 9 * 2**30, 10 * 2**30"
) -> str:
    return TORCH.format(devices=devices, works=works, threads=threads, memory=memory)


def test_the_pair_that_is_installed_here_works() -> None:
    found = machine.check_machine()
    assert only(found, "torch and torchvision").state == "ok"
    assert "torchvision::nms works" in only(found, "torch and torchvision").found
    assert f"torch uses {torch.get_num_threads()} threads" in only(found, "threads").found


@pytest.mark.parametrize(
    ("vision", "match"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "do not match: import torchvision",
        ),
        ("raise OSError('_C.so: undefined symbol: _ZN3c10')", "do not match"),
        (VISION.replace("Kept())", "1 / 0)"), "torchvision::nms failed (ZeroDivisionError"),
        (VISION.replace("[0, 2]", "[0, 1, 2]"), r"kept [0, 1, 2] instead of [0, 2]"),
        ("import os; os.kill(os.getpid(), 11)", "the process ended with -11"),
    ],
    ids=["other pair", "other build", "nms fails", "nms is wrong", "crash"],
)
def test_a_broken_pair_is_diagnosed(
    vision: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_modules(tmp_path, monkeypatch, torch=fake_torch(), torchvision=vision)
    found = only(machine.check_machine(), "torch and torchvision")
    assert found.state == "fail"
    assert match in found.found
    assert "pip install --force-reinstall torch torchvision" in found.remedy


def test_a_torch_that_cannot_be_imported_or_hangs_is_diagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_modules(tmp_path, monkeypatch, torch="raise ImportError('libcudart.so.12: cannot open')")
    found = only(machine.check_machine(), "torch and torchvision")
    assert "torch cannot be imported (ImportError: libcudart.so.12" in found.found
    fake_modules(tmp_path, monkeypatch, torch="import time; time.sleep(60)")
    found = only(machine.check_machine(seconds=1), "torch and torchvision")
    assert (found.state, "did not end" in found.found) == ("fail", True)


def test_builds_for_different_cuda_versions_are_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_modules(tmp_path, monkeypatch, torch=fake_torch(), torchvision=VISION)
    fake_versions(monkeypatch, torch="2.9.0+cu128", torchvision="0.24.0+cpu")
    found = only(machine.check_machine(), "torch and torchvision")
    assert (found.state, "built for cu128 and cpu" in found.found) == ("fail", True)


@pytest.mark.parametrize(
    ("torch_source", "state", "match"),
    [
        (fake_torch(1), "ok", "Some GPU, 9.0 of 10.0 GiB free"),
        (fake_torch(1, memory="return 2**29, 10 * 2**30"), "note", "0.5 of 10.0 GiB free"),
        (fake_torch(1, works=False), "fail", "the product of two matrices is wrong"),
        (
            fake_torch(1, memory="raise RuntimeError('no kernel image is available')"),
            "fail",
            "no kernel image",
        ),
        (fake_torch(0), "ok", "none; the CPU is used"),
    ],
    ids=["well", "full", "wrong", "no kernel", "none"],
)
def test_gpus_are_tried(
    torch_source: str, state: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    fake_modules(tmp_path, monkeypatch, torch=torch_source, torchvision=VISION)
    found = only(machine.check_machine(), "GPU")
    assert (found.state, match in found.found) == (state, True), found


def test_a_driver_without_a_gpu_for_torch_and_too_many_threads_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    fake_modules(tmp_path, monkeypatch, torch=fake_torch(threads=64), torchvision=VISION)
    found = machine.check_machine()
    assert "sees no GPU" in only(found, "GPU").found
    assert only(found, "threads").remedy.endswith("OMP_NUM_THREADS=4")
    assert {only(found, "GPU").state, only(found, "threads").state} == {"note"}
