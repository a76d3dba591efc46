"""What requests hold: their schemas, and how they are read from JSON or a form."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from everclip.serve.refusal import Refusal, invalid
from everclip.serve.settings import ServeSettings

A = TypeVar("A", bound="Asked")
Format = Literal["floats", "base64"]
_IMAGES = "Images (PNG, JPEG, WebP, GIF, BMP, TIFF), each as base64; a `data:` URI is accepted."
_VERSION = "A version in memory; default: the one that serves."
MOST_FIELDS = 4000
"""Fields of a form."""


class Asked(BaseModel):
    """A request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str | None = Field(None, description=_VERSION, max_length=40)


class EmbedAsked(Asked):
    """Texts and images to embed."""

    texts: list[str] = Field(default_factory=list, description="Texts, embedded as they are.")
    images: list[str] = Field(default_factory=list, description=_IMAGES)
    format: Format = Field("floats", description="`base64`: little-endian float32 of each embedding.")


class ClassifyAsked(Asked):
    """Images, and the names to choose from."""

    images: list[str] = Field(description=_IMAGES, min_length=1)
    names: list[str] = Field(description="Names to choose from.", min_length=1)
    templates: list[str] = Field(
        default=["{}"],
        description="Texts around a name, with {} in its place; several are averaged.",
        min_length=1,
    )
    top: int = Field(5, ge=1, le=1000, description="Names per image.")


class SearchAsked(Asked):
    """Texts and images to search for, each on its own."""

    texts: list[str] = Field(default_factory=list, description="Texts to search for.")
    images: list[str] = Field(default_factory=list, description=_IMAGES)
    top: int = Field(10, ge=1, le=1000, description="Results per query.")
    where: list[str] = Field(
        default_factory=list,
        description="Conditions on metadata, all of which hold: `year>=2024`, `tag=cat`.",
    )
    exact: bool = Field(False, description="Compare with every image.")


class PromoteAsked(BaseModel):
    """The version that shall serve."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str = Field(max_length=40, examples=["v0003"])


async def read(request: Request, kind: type[A], settings: ServeSettings) -> tuple[A, list[bytes]]:
    """Read a request with images from JSON or `multipart/form-data`, within its limits.

    Returns:
        The request, and the encoded bytes of its images.

    Raises:
        Refusal: if it is of another type (415), not well-formed (400), or does not fit its schema (422) or limits.
    """
    sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if sort == "application/json":
            asked = kind.model_validate_json(await request.body())
            images = [_decoded(image, place) for place, image in enumerate(getattr(asked, "images", []))]
        elif sort == "multipart/form-data":
            asked, images = await _form(request, kind, settings)
        else:
            raise Refusal(
                415, "wrong-type", "Content-Type: expected application/json or multipart/form-data."
            )
    except ValidationError as error:
        raise invalid(error) from None
    _require_few("images", len(images), settings.images)
    return asked, images


async def _form(request: Request, kind: type[A], settings: ServeSettings) -> tuple[A, list[bytes]]:
    try:
        form = await request.form(
            max_files=settings.images + 1, max_fields=MOST_FIELDS, max_part_size=settings.body_bytes
        )
    except HTTPException as error:  # of the parser: too many parts, or damaged
        raise Refusal(400, "wrong-form", f"The form cannot be read ({error.detail}).") from None
    images: list[bytes] = []
    document: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "images":
                raise Refusal(422, "invalid", "Only `images` may be files.")
            images.append(await value.read())
        elif name == "images":
            raise Refusal(422, "invalid", "images: expected files; base64 belongs into JSON.")
        elif name in ("texts", "names", "templates", "where"):
            document.setdefault(name, []).append(value)
        elif name in document:
            raise Refusal(422, "invalid", "A field that is no list is given twice.")
        else:
            document[name] = _typed(name, value)
    if images and "images" in kind.model_fields:
        document["images"] = [""] * len(images)
    return kind.model_validate(document), images


def _typed(name: str, value: str) -> Any:
    """Return a field of a form as JSON would hold it; what does not fit is left for the schema to refuse."""
    if name == "top" and value.isascii() and value.isdecimal() and len(value) < 9:
        return int(value)
    if name == "exact" and value in ("true", "false"):
        return value == "true"
    return value


def _decoded(image: str, place: int) -> bytes:
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, "not-base64", f"images.{place}: is not base64.") from None


def _require_few(what: str, count: int, most: int) -> None:
    if count > most:
        raise Refusal(413, f"too-many-{what}", f"{what}: {count} given; at most {most} in one request.")


def check_texts(what: str, texts: Sequence[str], settings: ServeSettings, most: int | None = None) -> None:
    """Check the number and length of texts.

    Raises:
        Refusal: if there are too many, one is too long (413), or one is not Unicode text (422).
    """
    _require_few(what, len(texts), settings.texts if most is None else most)
    for place, text in enumerate(texts):
        if len(text) > settings.text_length:
            raise Refusal(
                413,
                "text-too-long",
                f"{what}.{place}: {len(text):,} characters; at most {settings.text_length:,}.",
            )
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a pair of surrogates
            raise Refusal(422, "not-text", f"{what}.{place}: is not valid Unicode.") from None


def body_schema(kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """Return how OpenAPI describes a request that comes as JSON or as a form."""
    schema = kind.model_json_schema()
    form = {**schema, "properties": {k: dict(v) for k, v in schema["properties"].items()}}
    if "images" in form["properties"]:
        file = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
        form["properties"]["images"] = {"type": "array", "items": file}
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    if "images" in form["properties"]:
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}
