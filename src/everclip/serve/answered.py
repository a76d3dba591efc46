"""What answers hold: their schemas."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Embedded(BaseModel):
    """Embeddings of unit length. Those of two versions must not be compared unless their fingerprints are equal."""

    version: str = Field(description="The version that gave the answer.", examples=["v0002"])
    towers: dict[str, str] = Field(description="Fingerprint of each tower.")
    width: int = Field(description="Numbers of an embedding.")
    texts: list[list[float] | str]
    images: list[list[float] | str]


class Named(BaseModel):
    """A name and its score: the cosine of image and text, or a method's own score on the same scale."""

    name: str
    score: float


class ImageAnswer(BaseModel):
    """The best names of one image, and the way it took through the model."""

    names: list[Named]
    route: str | None = Field(description="The task whose router it took; null if the method has no routes.")
    experts: dict[str, list[int]] = Field(
        description="Block -> the experts chosen there; empty without experts."
    )


class Classified(BaseModel):
    """The answer of `/classify`."""

    version: str
    images: list[ImageAnswer]


class Hit(BaseModel):
    """An image that a search found; `score` is the cosine of query and image."""

    id: str
    score: float
    metadata: dict[str, Any]


class Searched(BaseModel):
    """The answer of `/search`."""

    version: str = Field(description="The version that embedded the queries: the one of the index's vectors.")
    results: list[list[Hit]] = Field(
        description="Per query, texts first: the nearest images, the nearest first."
    )


class Space(BaseModel):
    """The vectors of one version's image tower."""

    key: str
    version: str
    vectors: int = Field(description="Fewer than items while the images are being embedded.")
    answers: bool
    how: str


class IndexState(BaseModel):
    """The answer of `/index`."""

    items: int
    spaces: list[Space]


class VersionFacts(BaseModel):
    """One version of the store."""

    id: str
    parent: str | None = None
    created: str = ""
    state: str = Field(description="accepted, rejected or damaged.")
    method: str = ""
    serves: bool
    loaded: bool = Field(description="Whether requests can name it.")
    data: str | None = Field(None, description="The name of the data that it learned.")
    rows: int | None = None
    held_out: int | None = None
    share: float | None = None
    seconds: float | None = None
    towers: dict[str, str] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict)
    gates: list[dict[str, Any]] = Field(default_factory=list)
    pages: list[str] = Field(default_factory=list, description="Paths of its pages: diagnosis, blind-pairs.")


class VersionsFacts(BaseModel):
    """The answer of `/versions`."""

    serves: str = Field(description="The version that answers.")
    current: str = Field(
        description="The version that the store points to; another one only during a switch."
    )
    before: list[str]
    shadow: str | None
    versions: list[VersionFacts]


class Health(BaseModel):
    """The answer of `/healthz`."""

    status: str = Field(description="`ok`, or `degraded`: an older version serves, and `reason` says why.")
    version: str
    loaded: list[str]
    reason: str | None = None
    wanted: str | None = Field(None, description="The version that should serve and cannot.")
    uptime_seconds: float
    waiting: int = Field(description="Images and texts that are not answered yet.")


class Switched(BaseModel):
    """The answer of `/promote` and `/rollback`."""

    serves: str
    before: list[str]


class LoadedFacts(BaseModel):
    """The answer of `/load`."""

    loaded: list[str]


class ShadowFacts(BaseModel):
    """What the shadow version answered otherwise."""

    shadow: str | None
    serves: str
    kinds: dict[str, dict[str, float]] = Field(
        description="Per kind of request: compared, top1_changed, dropped, failed, and the mean overlap."
    )
    recent: list[dict[str, Any]] = Field(description="The last differences; only with the token.")
