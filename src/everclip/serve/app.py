"""The HTTP application: every endpoint, its errors, and what OpenAPI says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from everclip import __version__
from everclip.data.pictures.picture_error import PictureError
from everclip.serve import indexed, model_routes, page_routes, search_routes, store_routes
from everclip.serve.guard import LOOPBACK, Guard
from everclip.serve.refusal import Refusal
from everclip.serve.search_service import SearchService
from everclip.serve.service import Service

_ABOUT = (
    "A CLIP model in service. Every answer names the version that gave it. Requests beyond a limit get a status of "
    '4xx, requests beyond the queue 503 with `Retry-After`; the body is then {"error": {"code", "message"}}.'
)


def create_app(service: Service, token: str | None) -> FastAPI:
    """Return the application.

    Args:
        service: the store in service; started and stopped with the application.
        token: of those who may change what serves; `None`: nobody may.
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="everclip",
        version=__version__,
        description=_ABOUT,
        lifespan=running,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    _add_errors(app)
    model_routes.add(app, service)
    store_routes.add(app, service, token)
    settings = service.settings
    counted = indexed.hits_of(service.store) if settings.hits else None
    search_routes.add(
        app, SearchService(service, indexed.open_index, indexed.key_of, indexed.marked, counted)
    )
    page_routes.add(app, service)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    hosts = settings.hosts or (LOOPBACK if settings.host in LOOPBACK else ())
    app.add_middleware(
        Guard,
        hosts=hosts,
        body_bytes=settings.body_bytes,
        body_seconds=settings.body_seconds,
        counted=service.measured.request,
    )
    return app


def _add_errors(app: FastAPI) -> None:
    handlers: dict[type[Exception], Any] = {
        Refusal: _refused,
        PictureError: _unreadable,
        RequestValidationError: _wrong_parameter,
        HTTPException: _other,
        Exception: _failed,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _refused(request: Request, error: Refusal) -> Response:
    return JSONResponse(error.document(), error.status, error.headers)


async def _unreadable(request: Request, error: PictureError) -> Response:
    return refusal(413 if error.reason == "too-large" else 422, f"image-{error.reason}", str(error))


async def _wrong_parameter(request: Request, error: RequestValidationError) -> Response:
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3]]
    return refusal(422, "invalid", "; ".join(faults))


async def _other(request: Request, error: HTTPException) -> Response:
    document = Refusal(error.status_code, "http", str(error.detail)).document()
    return JSONResponse(document, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    # The log has the traceback; an answer never holds more than this.
    return refusal(500, "internal", "An error of the server; its log says more.")


def refusal(status: int, code: str, message: str) -> Response:
    """Return the answer to a request that is refused."""
    return JSONResponse(Refusal(status, code, message).document(), status)
