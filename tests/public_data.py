"""Tiny copies of public data sets in their usual layouts: a few drawn pictures per class, every one different."""

from __future__ import annotations

import io
import itertools
import json
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from everclip.data.catalog.cards import Card, cards
from everclip.data.reading.sources import read
from everclip.data.reading.spec import DataSpec
from everclip.data.table import Table

_NUMBERS = itertools.count(1)
WNIDS = [f"n{i:08d}" for i in range(1000)]
COUNTS = {"train": 3, "val": 1, "test": 2}


def pixels(side: int = 8) -> np.ndarray:
    """Return different pixels at every call."""
    number = next(_NUMBERS)
    found = np.full((side, side, 3), 200, np.uint8)
    found[0, :4] = [[number >> shift & 255] * 3 for shift in (0, 8, 16, 24)]
    found[2:, 2:] = [number * 7 % 256, number * 31 % 256, 90]
    return found


def draw(path: Path) -> str:
    """Write a picture without loss, whatever its ending; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels()).save(path, "PNG")
    return path.name


def png() -> bytes:
    """Return a different picture at every call, encoded."""
    file = io.BytesIO()
    Image.fromarray(pixels()).save(file, "PNG")
    return file.getvalue()


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def matlab(path: Path, **variables: object) -> None:
    """Write numbers or lists of structs of (numbers, texts) as an uncompressed MATLAB file of version 5."""
    body = b"".join(_matrix(name, value) for name, value in variables.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + body)


def part(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _matrix(name: str, value: object) -> bytes:
    if isinstance(value, str):
        kind, shape, rest = 4, (1, len(value)), part(4, value.encode("utf-16-le"))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        fields = list(value[0])
        names = b"".join(f.encode().ljust(32, b"\0") for f in fields)
        rest = struct.pack("<HHi", 5, 4, 32) + part(1, names)
        rest += b"".join(_matrix("", row[f]) for row in value for f in fields)
        kind, shape = 2, (1, len(value))
    else:
        numbers = np.asarray(value, np.float64).reshape(1, -1)
        kind, shape, rest = 6, numbers.shape, part(9, numbers.tobytes())
    head = part(6, struct.pack("<II", kind, 0)) + part(5, struct.pack("<ii", *shape)) + part(1, name.encode())
    return part(14, head + rest)


SHARED = {"forest", "river", "sunflower", "lotus"}
"""Names that several data sets have; small copies have them, too."""


def classes(name: str, most: int | None = None) -> list[tuple[int, str]]:
    """Return labels of a data set and what its folders call them: all, or the first few and the shared names."""
    card: Card = cards()[name]
    own = card.labels or [text.replace(" ", "_") for text in card.names]
    held = list(enumerate(own))
    few = held if most is None else held[:most] + [h for h in held[most:] if card.names[h[0]] in SHARED]
    return few


def class_folders(folder: Path, names: Sequence[str], each: int = 5) -> None:
    for name in names:
        for i in range(1, each + 1):
            draw(folder / name / f"{Path(name).name}_{i:04d}.jpg")


def caltech101(root: Path, most: int | None = None) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    held = classes("caltech101", most)
    class_folders(folder, [*(name for _, name in held), "BACKGROUND_Google"])
    zhou = [(f"{n}/{n}_{i:04d}.jpg", max(0, k - 1), n.lower()) for k, n in held if n != "Faces_easy"
            for i in range(1, 6)]  # fmt: skip
    write_zhou(root / "caltech101" / "split_zhou_Caltech101.json", zhou)


def write_zhou(path: Path, rows: Sequence[tuple[str, int, str]]) -> None:
    sides = {s: [r for i, r in enumerate(rows) if i % 5 in at] for s, at in
             (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,)))}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sides))


def eurosat(root: Path, most: int | None = None) -> None:
    held = classes("eurosat", most)
    class_folders(root / "eurosat" / "2750", [name for _, name in held])
    write_zhou(
        root / "eurosat" / "split_zhou_EuroSAT.json",
        [(f"{n}/{n}_{i:04d}.jpg", k, n) for k, n in held for i in range(1, 6)],
    )


def sun397(root: Path, most: int | None = None) -> None:
    rows = []
    for k, name in classes("sun397", most):
        for i in range(5):
            file = draw(root / "SUN397" / name[0] / name / f"sun_{k:03d}{i}.jpg")
            rows.append((f"{name[0]}/{name}/{file}", k, name))
    write_zhou(root / "SUN397" / "split_zhou_SUN397.json", rows)


def dtd(root: Path, most: int | None = None) -> None:
    folder, rows, held = root / "dtd" / "dtd", [], classes("dtd", most)
    for side, count in COUNTS.items():
        files = [f"{n}/{n}_{side}{i}.jpg" for _, n in held for i in range(count)]
        for file in files:
            draw(folder / "images" / file)
        write_lines(folder / "labels" / f"{side}1.txt", files)
    for k, n in held:
        rows += [(f"{n}/{n}_{f}.jpg", k, n) for f in ("train0", "train1", "train2", "val0", "test0")]
    write_zhou(root / "dtd" / "split_zhou_DescribableTextures.json", rows)


def food101(root: Path, most: int | None = None) -> None:
    folder, names = root / "food-101", classes("food101", most)
    for side in ("train", "test"):
        held = {n: [f"{n}/{side}{i}" for i in range(COUNTS[side])] for _, n in names}
        for files in held.values():
            for file in files:
                draw(folder / "images" / f"{file}.jpg")
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{side}.json").write_text(json.dumps(held))
    rows = [(f"{n}/{f}.jpg", k, n) for k, n in names
            for f in ("train0", "train1", "train2", "test0", "test1")]  # fmt: skip
    write_zhou(folder / "split_zhou_Food101.json", rows)


def aircraft(root: Path, most: int | None = None) -> None:
    folder, number = root / "fgvc-aircraft-2013b" / "data", itertools.count(1_000_000)
    names = [cards()["aircraft"].names[k] for k, _ in classes("aircraft", most)]
    for side, count in COUNTS.items():
        rows = [f"{next(number)} {name}" for name in names for _ in range(count)]
        for row in rows:
            draw(folder / "images" / f"{row.split()[0]}.jpg")
        write_lines(folder / f"images_variant_{side}.txt", rows)


def pets(root: Path, most: int | None = None) -> None:
    folder, names = root / "oxford-iiit-pet", classes("pets", most)
    for side, name in (("train", "trainval"), ("test", "test")):
        start = 0 if side == "train" else 100
        rows = [(f"{n}_{start + i}", k + 1) for k, n in names for i in range(COUNTS[side])]
        for file, _ in rows:
            draw(folder / "images" / f"{file}.jpg")
        write_lines(
            folder / "annotations" / f"{name}.txt", ["# a comment", *(f"{f} {k} 1 1" for f, k in rows)]
        )
    rows5 = [(f"{n}_{i}.jpg", k, n) for k, n in names for i in (0, 1, 2, 100, 101)]
    write_zhou(folder / "split_zhou_OxfordPets.json", rows5)


def flowers(root: Path, most: int | None = None) -> None:
    folder = root / "flowers-102"
    labels, sides, rows = [], {"train": [], "val": [], "test": []}, []
    for k, _ in classes("flowers", most):
        start = len(labels)
        for side, count in COUNTS.items():
            for _ in range(count):
                labels.append(k + 1)
                sides[side].append(len(labels))
                file = draw(folder / "jpg" / f"image_{len(labels):05d}.jpg")
                if len(labels) - start <= 5:
                    rows.append((file, k, "name"))
    matlab(folder / "imagelabels.mat", labels=labels)
    matlab(folder / "setid.mat", trnid=sides["train"], valid=sides["val"], tstid=sides["test"])
    write_zhou(folder / "split_zhou_OxfordFlowers.json", rows)


def cars(root: Path, most: int | None = None) -> None:
    folder, zhou = root / "stanford_cars", []
    held: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for k, _ in classes("cars", most):
        for side in held:
            for _ in range(COUNTS[side]):
                name = f"{len(held[side]) + 1:05d}.jpg"
                held[side].append({"bbox_x1": 3, "class": k + 1, "fname": name})
                draw(folder / f"cars_{side}" / name)
                zhou.append((f"cars_{side}/{name}", k, "2012 a car"))
    matlab(folder / "devkit" / "cars_train_annos.mat", annotations=held["train"])
    matlab(folder / "cars_test_annos_withlabels.mat", annotations=held["test"])
    write_zhou(folder / "split_zhou_StanfordCars.json", zhou)


def mnist(root: Path, most: int | None = None) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, each in (("train", 20 if most is None else 3), ("t10k", 2)):
        images = np.stack([np.pad(pixels(8)[..., 0], 10) for _ in range(10 * each)])
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        head = struct.pack(">4I", 0x803, len(images), 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">2I", 0x801, len(labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def cifar100(root: Path, most: int | None = None) -> None:
    folder = root / "cifar-100-binary"
    folder.mkdir()
    for side in ("train", "test"):
        rows = [bytes([0, k]) + pixels(32).transpose(2, 0, 1).tobytes() for k, _ in classes("cifar100", most)
                for _ in range(COUNTS[side])]  # fmt: skip
        (folder / f"{side}.bin").write_bytes(b"".join(rows))


def tinyimagenet(root: Path, classes: int = 200) -> None:
    folder, wnids = root / "tiny-imagenet-200", WNIDS[:200][::-1]
    write_lines(folder / "wnids.txt", wnids)
    notes = []
    for k, wnid in enumerate(wnids[:classes]):
        for i in range(2):
            draw(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        notes.append(f"{draw(folder / 'val' / 'images' / f'val_{k}.JPEG')}\t{wnid}\t0\t0\t62\t62")
    write_lines(folder / "val" / "val_annotations.txt", notes)


def imagenet(root: Path, classes: int = 1000) -> None:
    folder = root / "imagenet"
    for wnid in WNIDS[:classes]:
        draw(folder / "train" / wnid / f"{wnid}_1.JPEG")
        draw(folder / "val" / wnid / f"ILSVRC_{wnid}.JPEG")
    if classes < len(WNIDS):
        write_lines(folder / "wnids.txt", WNIDS)


def shifts(root: Path) -> None:
    """Write the five ImageNet shifts, and the list of wnids that three of them need."""
    write_lines(root / "imagenet" / "wnids.txt", WNIDS)
    class_folders(root / "imagenetv2-matched-frequency-format-val", [str(k) for k in range(0, 1000, 250)], 2)
    class_folders(root / "imagenet-r", WNIDS[1:9:2], 2)
    class_folders(root / "imagenet-a", WNIDS[2:9:2], 2)
    class_folders(root / "imagenet-sketch", WNIDS[:5], 2)
    folder = root / "objectnet-1.0"
    class_folders(folder / "images", ["air_freshener", "banana", "dog_bed", "backpack"], 2)
    called = {
        "air_freshener": "Air freshener",
        "banana": "Banana",
        "dog_bed": "Dog bed",
        "backpack": "Backpack",
    }
    (folder / "mappings").mkdir()
    (folder / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(called))
    shared = {"Banana": "banana", "Backpack": "backpack, back pack"}
    (folder / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))


def core50(root: Path, things: int = 50) -> None:
    for session in range(1, 12):
        for thing in range(1, things + 1):
            draw(
                root / "core50_128x128" / f"s{session}" / f"o{thing}" / f"C_{session:02d}_{thing:02d}_000.png"
            )


MTIL = (aircraft, caltech101, cifar100, dtd, eurosat, flowers, food101, mnist, pets, cars, sun397)


def load(root: Path, source: str, **settings: object) -> Table:
    """Return what `catalog:SOURCE` holds below a root, complete or not."""
    return read(DataSpec(source=f"catalog:{source}", root=str(root), counts="noted", **settings)).table  # type: ignore[arg-type]


def sides(table: Table) -> Counter[str]:
    """Return how many rows stand on each side."""
    return Counter(table.column("split"))
