"""The settings of a server: limits, batches, versions."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from everclip.data.pictures.images import MAX_PIXELS

LogLevel = Literal["error", "warning", "info"]


class ServeSettings(BaseModel):
    """The settings of `everclip serve`.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        hosts: values of the header `Host` that are answered; empty: only names of this machine if `host` is one of
            them (which stops pages of other sites that resolve their own name to this machine), else all.
        allow_origins: origins of other sites whose pages may read answers; `*` is all. Empty: none.
        batch: images or texts that are encoded together at most; 1 turns batching off.
        wait_ms: milliseconds that a request waits for others to be encoded with it.
        queue: images and texts that may wait; a request beyond is answered 503.
        poll_seconds: seconds between two looks at which version serves.
        shadow: a version that answers too; its answers are compared and never sent.
        beside: versions that are loaded beside the one that serves, so that requests can name them.
        loaded: versions that are in memory at a time at most.
        body_bytes: the largest body of a request.
        body_seconds: seconds in which a body must have arrived.
        images, texts: the most of one request.
        prompts: the most names times templates of one request.
        text_length: characters of one text.
        image_pixels: pixels of one image.
        hits: whether the items that searches return are counted in the index (ids and numbers, no query).
        connections: connections at a time; one beyond is answered 503.
        log_level: of the server's log on standard error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    batch: int = Field(32, ge=1)
    wait_ms: float = Field(3.0, ge=0, le=1000)
    queue: int = Field(1024, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
    shadow: str | None = None
    beside: tuple[str, ...] = ()
    loaded: int = Field(4, ge=1)
    body_bytes: int = Field(32 * 1024 * 1024, ge=1)
    body_seconds: float = Field(30.0, gt=0)
    images: int = Field(32, ge=1)
    texts: int = Field(256, ge=1)
    prompts: int = Field(2000, ge=1)
    text_length: int = Field(2000, ge=1)
    image_pixels: int = Field(MAX_PIXELS, ge=1, le=MAX_PIXELS)
    hits: bool = True
    connections: int = Field(512, ge=1)
    log_level: LogLevel = "info"
