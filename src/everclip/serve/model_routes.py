"""`/embed` and `/classify`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response

from everclip.errors import ConfigError
from everclip.serve.answered import Classified, Embedded
from everclip.serve.asked import ClassifyAsked, EmbedAsked, body_schema, check_texts, read
from everclip.serve.loaded import space_of
from everclip.serve.refusal import Refusal, Refused
from everclip.serve.service import Service, plain
from everclip.templates import templates_of

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEUlEQVR42mM4YWQERAwQCgAfmgQNVo4rjgAAAABJRU5ErkJggg=="
"""An image of 2 x 2 pixels, for the examples of OpenAPI."""


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of an endpoint's refusals."""
    said = {
        400: "The body is not well-formed.",
        401: "The token is missing or wrong.",
        403: "This server has no token, so nobody may do this.",
        404: "There is no such thing.",
        408: "The body did not arrive in time.",
        409: "The store does not allow it now.",
        413: "Larger than a limit.",
        415: "A type of content that is not read.",
        422: "Does not fit its schema, or is not what it should be.",
        503: "The queue is full; `Retry-After` says when to try again.",
    }
    return {code: {"model": Refused, "description": said[code]} for code in codes}


_OF_A_BODY = (400, 404, 408, 413, 415, 422, 503)


def add(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    settings = service.settings
    example = {"texts": ["a red kettle"], "images": [PIXEL]}

    @app.post(
        "/embed",
        summary="Embed texts and images",
        tags=["model"],
        responses={200: {"model": Embedded, "description": "Embeddings."}, **refusals(*_OF_A_BODY)},
        openapi_extra=body_schema(EmbedAsked, example),
        response_class=JSONResponse,
    )
    async def embed(request: Request) -> Response:
        asked, images = await read(request, EmbedAsked, settings)
        check_texts("texts", asked.texts, settings)
        if not asked.texts and not images:
            raise Refusal(422, "nothing", "texts, images: nothing to embed.")
        found = await service.embed(asked.version, asked.texts, images, asked.format)
        return JSONResponse(
            {
                "version": found.version.id,
                "towers": found.version.towers,
                "width": found.version.width,
                "texts": found.texts,
                "images": found.images,
            }
        )

    choice: dict[str, Any] = {
        "images": [PIXEL],
        "names": ["kettle", "lamp"],
        "templates": ["a photo of a {}"],
        "top": 2,
    }

    @app.post(
        "/classify",
        summary="Name images, choosing from your own names",
        tags=["model"],
        responses={200: {"model": Classified, "description": "The best names."}, **refusals(*_OF_A_BODY)},
        openapi_extra=body_schema(ClassifyAsked, choice),
        response_class=JSONResponse,
    )
    async def classify(request: Request) -> Response:
        asked, images = await read(request, ClassifyAsked, settings)
        for what in ("names", "templates"):
            check_texts(what, getattr(asked, what), settings, settings.prompts)
        if len(asked.names) * len(asked.templates) > settings.prompts:
            raise Refusal(
                413, "too-many-names", f"names x templates: more than {settings.prompts:,} in one request."
            )
        try:
            space = space_of(asked.names, templates_of(asked.templates, "templates"))
        except ConfigError as error:
            raise Refusal(422, "wrong-template", str(error)) from error
        found = await service.classify(asked.version, space, images, asked.top)
        task = BackgroundTask(
            service.shadow.classify, found.version.id, found.space, found.pixels, found.answers
        )
        return JSONResponse({"version": found.version.id, "images": plain(found.answers)}, background=task)
