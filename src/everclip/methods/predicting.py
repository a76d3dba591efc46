"""How a method predicts: encode, build class banks, and score with the current backbone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from everclip.contracts import ClassHead, Features, LabelSpace, TextCorrection
from everclip.data.sampling.order import key_of
from everclip.evaluation.classification import ensemble_banks
from everclip.features.encoding import encode_prompts
from everclip.models.backbone import Backbone
from everclip.models.fingerprint import tensors_hash

_ENCODES = {"image": ("encode_images",), "text": ("encode_texts", "class_bank", "bank_from")}
"""Tower -> the functions by which a method encodes with it."""


class Predicting(nn.Module):
    """The part of a method that predicts.

    Args:
        backbone: the CLIP; it belongs to the method from now on.

    Class attributes:
        wide: features whose size grows with the learned tasks; evaluation scores them batch by batch without storing
            them.
    """

    wide: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_images(self, pixels: torch.Tensor, known_task: int | None = None) -> Features:
        """Encode images `(N, 3, S, S)`; the result of an image must not depend on the rest of the batch."""
        return {"embedding": self.backbone.encode_image(pixels)}

    def encode_texts(self, tokens: torch.Tensor) -> Features:
        """Encode token ids `(N, L)`."""
        return {"embedding": self.backbone.encode_text(tokens)}

    def class_bank(self, space: LabelSpace) -> Features:
        """Return one text embedding per class `(C, D)`: `bank_from` the features of the prompts."""
        return self.bank_from(space, encode_prompts(self, space.prompts()))

    def bank_from(self, space: LabelSpace, prompts: Features) -> Features:
        """Return class embeddings `(C, D)`: the normalised mean over the templates of each class.

        Args:
            space: the classes.
            prompts: the features of `space.prompts()`, by `encode_texts`.
        """
        parts = torch.split(prompts["embedding"], [len(entry.templates) for entry in space.entries])
        return {"embedding": ensemble_banks(parts)}

    @property
    def own_bank(self) -> bool:
        """Whether `class_bank` encodes in a way of its own: features of prompts then do not replace it."""
        return getattr(self.class_bank, "__func__", None) is not Predicting.class_bank

    def similarity(self, images: Features, texts: Features) -> torch.Tensor:
        """Return cosines `(N, M)`."""
        return images["embedding"] @ texts["embedding"].T

    def class_scores(self, images: Features, space: LabelSpace, bank: Features) -> torch.Tensor:
        """Return scores `(N, C)`: cosines with the class embeddings."""
        return self.similarity(images, bank)

    def encoder_keys(self) -> dict[str, str]:
        """Return, for caches, one key per tower that covers everything that its encodings depend on.

        Where a class encodes in its own way, the key covers its settings and all its tensors outside the backbone.
        """
        keys = self.backbone.fingerprints()
        for side, names in _ENCODES.items():
            if any(getattr(type(self), name) is not getattr(Predicting, name) for name in names):
                outside = [kv for kv in self.state_dict().items() if not kv[0].startswith("backbone.")]
                keys[side] += tensors_hash(outside) + f"{key_of(repr(getattr(self, 'settings', None))):032x}"
        return keys

    @property
    def uses_known_task(self) -> bool:
        """Whether `encode_images` uses the known task of a protocol."""
        return False

    @property
    def batch_dependent(self) -> str | None:
        """Why predictions depend on the batch (under an option for a published method); `None`: they do not."""
        return None

    @property
    def prediction_batch(self) -> int | None:
        """The number of images that are predicted together if `batch_dependent`; `None`: `evaluation.batch_size`."""
        return None

    @property
    def outside_towers(self) -> str | None:
        """The learned parts outside the towers, which an export of the towers would lack; `None`: there are none."""
        return None

    def class_head(self) -> ClassHead | None:
        """Return the head that an export writes for what `outside_towers` names; `None` if that is no head."""
        return None

    def text_correction(self) -> TextCorrection | None:
        """Return the correction that an export writes for what `outside_towers` names; `None` if that is none."""
        return None

    def routes(self) -> tuple[str, ...]:
        """Return the names of the routes that an image can take (feature `route`); none by default."""
        return ()

    def expert_places(self) -> tuple[str, ...]:
        """Return the names of the blocks that choose experts (feature `experts`), in order; none by default."""
        return ()
