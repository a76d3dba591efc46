"""Checks torch, torchvision and devices in a child process, since importing a mismatched pair may crash."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from everclip.memory import available_memory
from everclip.prepare.doctor.child import ChildResult, run_child
from everclip.prepare.doctor.finding import Finding
from everclip.processor import EMULATED

PROBE = """
import json, sys
said = {"stage": "import torch"}
def tell(): print(json.dumps(said)); sys.stdout.flush()
try:
    import torch
    said |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    said["stage"] = "import torchvision"
    import torchvision
    said |= {"torchvision": torchvision.__version__, "stage": "torchvision::nms"}
    boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.], [5., 5., 6., 6.]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise RuntimeError(f"torchvision::nms kept {kept} instead of [0, 2]")
    try:
        from everclip.processor import bf16_instructions
        said["bf16"] = bf16_instructions()
    except ImportError:
        pass
    said |= {"stage": "devices", "devices": []}
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        x = torch.eye(8, device=f"cuda:{i}")
        said["devices"].append({"name": torch.cuda.get_device_name(i), "free": free, "total": total,
                                "works": bool(((x @ x).sum() == 8).item())})
    said["stage"] = "done"
except BaseException as error:
    said["error"] = f"{type(error).__name__}: {error}"
tell()
"""

_PAIR = ("torchvision::nms", "undefined symbol", "custom C++ ops", "_C.so", "torchvision")


def check_machine(seconds: float = 180) -> list[Finding]:
    """Test torch, torchvision and every device; check cores, threads and memory."""
    result = run_child(["-c", PROBE], seconds)
    found = [_pair(result)]
    if result.document.get("stage") in ("devices", "done"):
        found += _devices(result.document)
        found.append(_bf16(result.document.get("bf16")))
    found += [_threads(result.document.get("threads")), _memory()]
    return found


def _pair(result: ChildResult) -> Finding:
    document, name = result.document, "torch and torchvision"
    stage, error = document.get("stage", "import torch"), document.get("error")
    versions = f"torch {_version('torch')}, torchvision {_version('torchvision')}"
    if result.code is None:
        return Finding(
            name, "fail", f"{versions}: {stage} did not end", "check whether the driver hangs: nvidia-smi"
        )
    if not error and stage == "done":
        return _cuda_versions(versions)
    if not error:  # the process died without a message
        last = result.errors.splitlines()[-1] if result.errors else ""
        error = f"the process ended with {result.code} {last}".strip()
    if stage == "devices":
        return Finding(name, "ok", versions)
    first = str(error).splitlines()[0]
    if stage == "import torch":
        return Finding(name, "fail", f"{versions}: torch cannot be imported ({first})", _reinstall())
    broken = "do not match" if any(word in str(error) for word in _PAIR) else "do not work"
    return Finding(name, "fail", f"{versions} {broken}: {stage} failed ({first})", _reinstall())


def _cuda_versions(versions: str) -> Finding:
    """Compare the CUDA versions: different ones import without error, and fail at the first operation on a GPU."""
    one, two = (_version(n).partition("+")[2] for n in ("torch", "torchvision"))
    if one and two and one != two:
        found = f"{versions}: built for {one} and {two}"
        return Finding("torch and torchvision", "fail", found, _reinstall())
    return Finding("torch and torchvision", "ok", f"{versions}: import together, torchvision::nms works")


def _reinstall() -> str:
    return (
        "install both in one command from the same index: pip install --force-reinstall torch torchvision (for a GPU, "
        "with the --index-url that pytorch.org names)"
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices(document: dict[str, Any]) -> list[Finding]:
    if document["stage"] == "devices":
        error = str(document.get("error", "the process died")).splitlines()[0]
        remedy = (
            "this torch was not built for the GPU or its driver: nvidia-smi shows the driver, pytorch.org the right "
            "build; until then, use training.device=cpu"
        )
        return [Finding("GPU", "fail", error, remedy)]
    found = [_device(device) for device in document["devices"]]
    if found:
        return found
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        build = f"built for CUDA {document['cuda']}" if document.get("cuda") else "built for CPU only"
        remedy = (
            "install a torch with CUDA (pytorch.org names the command), or repair the driver (nvidia-smi)"
        )
        return [
            Finding("GPU", "note", f"an NVIDIA driver is installed, but torch ({build}) sees no GPU", remedy)
        ]
    return [Finding("GPU", "ok", "none; the CPU is used")]


def _device(device: dict[str, Any]) -> Finding:
    text = f"{device['name']}, {device['free'] / 2**30:.1f} of {device['total'] / 2**30:.1f} GiB free"
    if not device["works"]:
        return Finding(
            "GPU", "fail", f"{text}: the product of two matrices is wrong", "the GPU or its driver is broken"
        )
    if device["free"] < 0.1 * device["total"]:
        return Finding("GPU", "note", text, "another process uses its memory: nvidia-smi shows which")
    return Finding("GPU", "ok", text)


def _bf16(supported: bool | None) -> Finding:
    if supported is None:
        return Finding(
            "bf16 on the CPU", "ok", "not known on this system; training.precision=auto takes fp32"
        )
    if supported:
        return Finding(
            "bf16 on the CPU", "ok", "the processor has instructions for it (training.precision=bf16)"
        )
    remedy = "leave training.precision at auto, which takes fp32 on a CPU"
    return Finding("bf16 on the CPU", "note", EMULATED, remedy)


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    try:
        share, period = quota.read_text(encoding="utf-8").split()
        if share != "max":
            cores = min(cores, max(1, round(int(share) / int(period))))
    except (OSError, ValueError):
        pass  # no container, or one without a limit
    return cores


def _threads(threads: int | None) -> Finding:
    cores = usable_cores()
    text = f"{cores} cores, torch uses {threads if threads is not None else '?'} threads"
    if threads is not None and threads > cores:
        remedy = f"more threads than cores slow each other down: set OMP_NUM_THREADS={cores}"
        return Finding("threads", "note", text, remedy)
    return Finding("threads", "ok", text)


def _memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding("memory", "ok", "not known on this system")
    text = f"{free / 2**30:.1f} GiB free"
    if free < 2 * 2**30:
        return Finding("memory", "note", text, "reduce training.batch_size and evaluation.batch_size")
    return Finding("memory", "ok", text)
