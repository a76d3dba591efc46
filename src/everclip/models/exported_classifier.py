"""Classify images with the exported CLIP in this folder and its class head. Needs only open_clip.

    python FOLDER/classify.py photo.jpg more.jpg

    from PIL import Image
    from classify import Classifier
    print(Classifier("FOLDER").classify([Image.open("photo.jpg")]))

`everclip export` copies this file as `classify.py` beside a class head; it does not import everclip.
"""

import json
import math
import pathlib
import sys
from collections.abc import Sequence

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file  # open_clip depends on it


class Classifier:
    """A frozen CLIP whose zero-shot answers are fused with a ridge regression (RAIL, arXiv 2406.18868)."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        folder = pathlib.Path(folder).resolve()
        self.rule = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        self.head = load_file(folder / "head.safetensors")
        self.clip, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.clip.eval()
        if (folder / "merges.txt.gz").is_file():  # open_clip does not look for a vocabulary in the folder
            merges, length = str(folder / "merges.txt.gz"), self.rule["context_length"]
            self.tokenizer = open_clip.SimpleTokenizer(merges, context_length=length)
        else:
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.columns = {entry["name"]: i for i, entry in enumerate(self.rule["classes"])}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the regression features `(N, rows)` of unit image embeddings `(N, D)`."""
        kind, x = self.rule["features"], x.double()
        if kind == "kernel":
            y = self.head["samples"].double()
            squares = (x @ y.T) * -2 + (x**2).sum(dim=1)[:, None] + (y**2).sum(dim=1)
            return torch.exp(-self.rule["gamma"] * squares.clamp(min=0))
        if kind == "relu":
            return torch.relu(x @ self.head["matrix"].double().T)
        if kind == "fourier":
            angles = x @ self.head["matrix"].double().T + self.head["phase"]
            return torch.cos(angles) * math.sqrt(2 / angles.shape[1])
        return x

    @torch.no_grad()
    def bank(self, names: Sequence[str]) -> torch.Tensor:
        """Return unit class embeddings `(C, D)`: the mean over the templates of each class."""
        rows = []
        for name in names:
            known = name in self.columns
            templates = (
                self.rule["classes"][self.columns[name]]["templates"] if known else self.rule["templates"]
            )
            texts = self.tokenizer([template.replace("{}", name) for template in templates])
            rows.append(self.clip.encode_text(texts, normalize=True).mean(dim=0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image], names: Sequence[str] = ()) -> torch.Tensor:
        """Return scores `(N, C)` over `names` (default: the learned classes); the largest is the answer."""
        offered = list(names or self.columns)
        pixels = torch.stack([self.preprocess(image) for image in images])
        x = self.clip.encode_image(pixels, normalize=True)
        p = torch.softmax(self.clip.logit_scale.exp() * (x @ self.bank(offered).T).double(), dim=1)
        learned = torch.tensor([name in self.columns for name in offered])
        outputs = torch.zeros_like(p)
        wanted = [self.columns[name] for name in offered if name in self.columns]
        outputs[:, learned] = self.features(x) @ self.head["weights"][:, wanted]
        share = self.rule["fusion"]
        # If the best zero-shot class was never learned, zero-shot decides alone.
        return torch.where(learned[p.argmax(dim=1)][:, None], (1 - share) * p + share * outputs, p)

    def classify(self, images: Sequence[Image.Image], names: Sequence[str] = ()) -> list[str]:
        """Return the best name for each image."""
        offered = list(names or self.columns)
        return [offered[int(i)] for i in self.scores(images, offered).argmax(dim=1)]


if __name__ == "__main__":
    paths = sys.argv[1:]
    names = Classifier(pathlib.Path(__file__).parent).classify([Image.open(path) for path in paths])
    for path, name in zip(paths, names, strict=True):
        print(f"{path}\t{name}")
