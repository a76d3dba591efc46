"""Settings of the method `text-ridge`. No torch here."""

from __future__ import annotations

from pydantic import Field

from everclip.methods.settings import MethodSettings


class TextRidgeSettings(MethodSettings):
    """Settings of the regression from texts to images.

    Attributes:
        gamma: of the Gaussian kernel `exp(-gamma |a - b|^2)` between unit text embeddings: how far the correction of a
            text reaches. A larger value moves fewer other texts.
        ridge: the penalty on the corrections.
        level: the score that a learned text gets on further images of its own, relative to the best score that another
            text has there. Higher: more new images find their text, and more known ones find a new text. It needs a
            direction that images hardly use, estimated from images of the tasks and of `scenario.reference` (else
            of the base); without it, learned texts have full length.
        shrinkage: a text points to the mean of its images, weighted by the inverse of the covariance of images within a
            text; this share of that covariance is replaced by a multiple of the identity. 1: the mean itself.
        anchors: whether the texts of `scenario.reference` are held where they are.
        limit: the largest number of texts, anchors included; the solution takes 8 bytes times its square.
    """

    gamma: float = Field(16.0, gt=0, allow_inf_nan=False)
    ridge: float = Field(0.1, gt=0, allow_inf_nan=False)
    level: float = Field(0.9, gt=0, allow_inf_nan=False)
    shrinkage: float = Field(0.5, gt=0, le=1)
    anchors: bool = True
    limit: int = Field(20_000, ge=1)
