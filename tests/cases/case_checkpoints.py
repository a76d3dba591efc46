"""A picture and texts, and their embeddings by a model: what two loadings of it are compared by."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from everclip.models.backbone import Backbone

State = dict[str, torch.Tensor]
TEXTS = ["a red car", "two dogs"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def embeddings(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        images = backbone.encode_image(backbone.preprocess(PICTURE)[None])
        return torch.cat([images, backbone.encode_text(backbone.tokenise(TEXTS))])
