"""Encode, search and classify with the exported CLIP in this folder and its text correction. Needs only open_clip.

    python FOLDER/corrected.py photo.jpg more.jpg --name cat --name dog

    from PIL import Image
    from corrected import CorrectedClip
    model = CorrectedClip("FOLDER")
    print(model.classify([Image.open("photo.jpg")], ["cat", "dog"], ["a photo of a {}"]))

`everclip export` copies this file as `corrected.py` beside a text correction; it does not import everclip.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError  # open_clip depends on it
from safetensors.torch import load_file

RULE, TENSORS = "correction.json", "correction.safetensors"

BLOCK = 64
"""Number of images or texts that are encoded together."""

CHUNK = 1024
"""Number of texts that are corrected together."""

FIELDS: dict[str, tuple[type, bool]] = {
    "gamma": (float, False),
    "unchanged": (float, False),
    "context_length": (int, False),
    "texts": (list, False),
    "classes": (list, True),
    "templates": (list, False),
}
"""Field of `correction.json` that is read here -> its type, and whether it may be an empty list."""

APART = 0.1
"""Largest distance of a learned text's embedding from the stored one; half precision needs some room."""


class CorrectedClip:
    """A CLIP whose text embeddings are corrected, `t + k(t, T) alpha`; image embeddings are those of the CLIP.

    Args:
        folder: the export.
        device: where to compute.

    Raises:
        ValueError: if a file of the correction is missing, damaged, or belongs to another model.
    """

    def __init__(self, folder: str | pathlib.Path, device: str = "cpu") -> None:
        folder = pathlib.Path(folder).resolve()
        self.device = device
        self.rule = read_rule(folder / RULE)
        tensors = read_tensors(folder / TENSORS)
        self.support, self.weights, self.spare = (
            tensors[name].to(device) for name in ("support", "weights", "spare")
        )
        self.clip, _, self.preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}", device=device
        )
        self.clip.eval()
        if (folder / "merges.txt.gz").is_file():  # open_clip does not look for a vocabulary in the folder
            merges, length = str(folder / "merges.txt.gz"), self.rule["context_length"]
            self.tokenizer = open_clip.SimpleTokenizer(merges, context_length=length)
        else:
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.templates = {entry["name"]: entry["templates"] for entry in self.rule["classes"]}
        self._check_towers(folder)

    def _check_towers(self, folder: pathlib.Path) -> None:
        """Check that a learned text has the embedding that it had when the correction was learned."""
        text = self.rule["texts"][0]
        (found,) = self._plain([text])
        if found.shape != self.spare.shape:
            raise ValueError(
                f"{folder / TENSORS}: corrects embeddings of {len(self.spare)} numbers, but those of the model have "
                f"{len(found)}; the file belongs to another model. Export again."
            )
        if not float((self.support - found).norm(dim=1).min()) <= APART:
            raise ValueError(
                f"{folder}: the text tower does not give the embedding of {text!r} that the correction was learned "
                "with; the weights belong to another model. Put back those of the export, or export again."
            )

    def correct(self, texts: torch.Tensor) -> torch.Tensor:
        """Return corrected unit embeddings `(N, D)` of the CLIP's own unit embeddings `(N, D)` of texts.

        A text that would move by less than `unchanged` (correction.json) stays as it is, to the bit.
        """
        parts = [self._corrected(part) for part in torch.split(texts, CHUNK)]
        return torch.cat(parts) if parts else texts

    def _corrected(self, texts: torch.Tensor) -> torch.Tensor:
        x, y = texts.double(), self.support.double()
        squares = (x @ y.T) * -2 + (x**2).sum(dim=1)[:, None] + (y**2).sum(dim=1)
        change = torch.exp(-self.rule["gamma"] * squares.clamp(min=0)) @ self.weights
        moved = x + change
        # The rest of the length goes into a direction that images hardly use.
        rest = (1 - (moved**2).sum(dim=1)).clamp(min=0).sqrt()
        whole = torch.nn.functional.normalize(moved + rest[:, None] * self.spare, dim=1)
        moves = change.norm(dim=1) > self.rule["unchanged"]
        return torch.where(moves[:, None], whole.to(texts.dtype), texts)

    @torch.no_grad()
    def _plain(self, texts: Sequence[str]) -> torch.Tensor:
        blocks = [list(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK)]
        tokens = [self.tokenizer(block).to(self.device) for block in blocks]
        return torch.cat([self.clip.encode_text(part, normalize=True) for part in tokens])

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return corrected unit embeddings `(N, D)` of texts."""
        return self.correct(self._plain(texts))

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit embeddings `(N, D)` of images: those of the CLIP, which learning did not change."""
        blocks = [images[i : i + BLOCK] for i in range(0, len(images), BLOCK)]
        pixels = [torch.stack([self.preprocess(image) for image in b]).to(self.device) for b in blocks]
        return torch.cat([self.clip.encode_image(part, normalize=True) for part in pixels])

    def search(self, texts: Sequence[str], images: torch.Tensor, top: int = 1) -> list[list[int]]:
        """Return for each text the rows of the `top` best images, the best first.

        Args:
            texts: what to search for.
            images: an index: unit embeddings `(N, D)` of images.
            top: how many rows per text.
        """
        scores = self.encode_texts(texts) @ images.to(self.device).T
        found: list[list[int]] = scores.topk(min(top, len(images)), dim=1).indices.tolist()
        return found

    def bank(self, names: Sequence[str], templates: Sequence[str] = ()) -> torch.Tensor:
        """Return unit class embeddings `(C, D)`: the mean over the templates of each class.

        Args:
            names: of the classes.
            templates: texts around a name, with `{}` in its place; default: those that a class was learned with, and
                for other names those of the first learned class.

        Raises:
            ValueError: for a template without `{}`.
        """
        if bare := [template for template in templates if "{}" not in template]:
            raise ValueError(f"template {bare[0]!r}: expected {{}} in the place of the name.")
        rows = []
        for name in names:
            own = templates or self.templates.get(name) or self.rule["templates"]
            rows.append(self.encode_texts([template.replace("{}", name) for template in own]).mean(dim=0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def scores(
        self, images: Sequence[Image.Image], names: Sequence[str] = (), templates: Sequence[str] = ()
    ) -> torch.Tensor:
        """Return cosines `(N, C)` with the classes `names` (default: the learned classes); see `bank`.

        Raises:
            ValueError: if there are no names, and none were learned.
        """
        return self.encode_images(images) @ self.bank(self._offered(names), templates).T

    def classify(
        self, images: Sequence[Image.Image], names: Sequence[str] = (), templates: Sequence[str] = ()
    ) -> list[str]:
        """Return the best name for each image; see `scores`."""
        offered = self._offered(names)
        return [offered[int(i)] for i in self.scores(images, offered, templates).argmax(dim=1)]

    def _offered(self, names: Sequence[str]) -> list[str]:
        offered = list(names or self.templates)
        if not offered:
            raise ValueError("no names to choose from: this model learned captions, not classes. Give names.")
        return offered


def read_rule(file: pathlib.Path) -> dict[str, Any]:
    """Read `correction.json`.

    Raises:
        ValueError: if it is missing or is not one of this format.
    """
    try:
        rule = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}). Export again.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}). Export again.") from error
    if not isinstance(rule, dict) or rule.get("format") != 1:
        raise ValueError(
            f"{file}: expected a text correction of format 1. Use the corrected.py that lies beside it."
        )
    for name, (kind, empty) in FIELDS.items():
        if not isinstance(rule.get(name), kind) or (rule[name] == [] and not empty):
            raise ValueError(f"{file}: {name!r} is missing, empty or of another type. Export again.")
    return rule


def read_tensors(file: pathlib.Path) -> dict[str, torch.Tensor]:
    """Read `correction.safetensors`: `support` and `weights` `(T, D)`, `spare` `(D,)`.

    Raises:
        ValueError: if it is missing or damaged, tensors do not fit each other, or numbers are not finite.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error}). Export again.") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rows = shapes.get("support", ())
    if len(rows) != 2 or 0 in rows or shapes != {"support": rows, "weights": rows, "spare": rows[1:]}:
        raise ValueError(
            f"{file}: expected support (T, D), weights (T, D) and spare (D,), found {shapes}. Export again."
        )
    if broken := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise ValueError(f"{file}: {broken[0]} holds numbers that are not finite. Export again.")
    return tensors


def main() -> None:
    """Print the best name for each image of the command line."""
    parser = argparse.ArgumentParser(
        description="Name images with the CLIP in this folder and its text correction."
    )
    parser.add_argument("images", nargs="+", help="files of images")
    parser.add_argument(
        "--name", action="append", default=[], help="a name to choose from; default: the learned ones"
    )
    parser.add_argument(
        "--template", action="append", default=[], help="text around a name, with {} in its place"
    )
    given = parser.parse_args()
    try:
        model = CorrectedClip(pathlib.Path(__file__).parent)
        names = model.classify([Image.open(path) for path in given.images], given.name, given.template)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for path, name in zip(given.images, names, strict=True):
        print(f"{path}\t{name}")


if __name__ == "__main__":
    main()
