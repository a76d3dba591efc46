"""Names of folders that are no classes: those of any pictures, and those of masks and the like of the pictures."""

from __future__ import annotations

from collections.abc import Sequence

OF_PICTURES = (
    "data", "image", "images", "img", "imgs", "jpeg", "jpegimages", "jpg", "photos", "pictures", "pics", "png", "rgb",
)  # fmt: skip
"""Folders that are called so hold pictures of any class; in small letters."""

OF_MASKS = (
    "annotations", "depth", "labels", "mask", "masks", "segmentation", "segmentationclass", "segmentationobject",
    "segmentations", "thumbnails", "trimaps",
)  # fmt: skip
"""Folders that are called so hold pictures of the pictures, where a folder of pictures lies beside them."""


def without_masks(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders, and those that hold masks and the like of the pictures in the one other folder."""
    whole = [name for name in names if name.lower() in OF_PICTURES]
    beside = [name for name in names if name.lower() in OF_MASKS]
    if len(whole) == 1 and len(whole) + len(beside) == len(names):
        return whole, beside
    return list(names), []
