"""Names of folders that are not classes: folders of all images, and folders of masks and similar files."""

from __future__ import annotations

from collections.abc import Sequence

OF_PICTURES = (
    "data", "image", "images", "img", "imgs", "jpeg", "jpegimages", "jpg", "photos", "pictures", "pics", "png", "rgb",
)  # fmt: skip
"""Folders with these names hold images of any class; in lower case."""

OF_MASKS = (
    "annotations", "depth", "labels", "mask", "masks", "segmentation", "segmentationclass", "segmentationobject",
    "segmentations", "thumbnails", "trimaps",
)  # fmt: skip
"""Folders with these names hold masks or thumbnails if a folder of images is beside them; in lower case."""


def without_masks(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (folders of data, folders of masks and similar files of the one folder of images)."""
    whole = [name for name in names if name.lower() in OF_PICTURES]
    beside = [name for name in names if name.lower() in OF_MASKS]
    if len(whole) == 1 and len(whole) + len(beside) == len(names):
        return whole, beside
    return list(names), []
