"""`/versions`, `/healthz`, `/metrics`, `/shadow`; and, behind the token, `/promote`, `/rollback`, `/load`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.responses import Response

from everclip.errors import CheckpointError
from everclip.serve.answered import (
    Health,
    LoadedFacts,
    ShadowFacts,
    Switched,
    VersionFacts,
    VersionsFacts,
)
from everclip.serve.asked import PromoteAsked, body_schema
from everclip.serve.model_routes import refusals
from everclip.serve.pages import page_names
from everclip.serve.refusal import Refusal, invalid
from everclip.serve.service import Service
from everclip.serve.token import require_token
from everclip.store.records import Current

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_BEARER: dict[str, Any] = {"security": [{"token": []}]}
_CHANGES = (400, 401, 403, 404, 408, 409, 413, 415, 422)


def add(app: FastAPI, service: Service, token: str | None) -> None:
    """Add the endpoints."""
    _add_reading(app, service, token)
    _add_changing(app, service, token)


def _add_reading(app: FastAPI, service: Service, token: str | None) -> None:
    @app.get("/versions", summary="The versions of the store, with their gates", tags=["store"])
    def versions() -> VersionsFacts:
        return versions_of(service)

    @app.get(
        "/healthz",
        summary="Does it serve, and what?",
        tags=["service"],
        responses=refusals(503),
    )
    async def health() -> Health:
        if not service.batcher.works:
            raise Refusal(503, "no-encoder", "The thread that encodes has ended; restart the server.")
        trouble = service.live.trouble
        return Health(
            status="ok" if trouble is None else "degraded",
            version=service.live.current.id,
            loaded=service.live.ids(),
            reason=None if trouble is None else trouble.reason,
            wanted=None if trouble is None else trouble.version,
            uptime_seconds=round(time.monotonic() - service.started, 1),
            waiting=service.batcher.admitted,
        )

    @app.get(
        "/metrics",
        summary="Numbers for Prometheus",
        tags=["service"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
    )
    async def metrics() -> Response:
        return Response(service.measured.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/shadow", summary="What the shadow version answered otherwise", tags=["service"])
    async def shadow(request: Request) -> ShadowFacts:
        try:
            require_token(token, request.headers.get("authorization"))
        except Refusal:
            return service.shadow.facts(with_recent=False)
        return service.shadow.facts(with_recent=True)


def _add_changing(app: FastAPI, service: Service, token: str | None) -> None:
    def allowed(request: Request) -> None:
        require_token(token, request.headers.get("authorization"))

    async def named(request: Request) -> str:
        """Return the version that a request names, if its token lets it."""
        allowed(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "wrong-type", "Content-Type: expected application/json.")
        try:
            return PromoteAsked.model_validate_json(await request.body()).version
        except ValidationError as error:
            raise invalid(error) from None

    def changing(path: str, summary: str) -> Callable[[Endpoint], Endpoint]:
        """Add an endpoint whose body names a version."""
        return app.post(
            path,
            summary=summary,
            tags=["change"],
            responses=refusals(*_CHANGES),
            openapi_extra=body_schema(PromoteAsked, {"version": "v0002"}) | _BEARER,
        )

    @changing("/promote", "Let a version serve")
    async def promote(request: Request) -> Switched:
        return _switched(await service.promote(await named(request)))

    @app.post(
        "/rollback",
        summary="Let the version serve that served before",
        tags=["change"],
        responses=refusals(401, 403, 408, 409, 413, 415),
        openapi_extra=_BEARER,
    )
    async def rollback(request: Request) -> Switched:
        allowed(request)
        return _switched(await service.rollback())

    @changing("/load", "Load a version beside the one that serves, to compare both")
    async def load(request: Request) -> LoadedFacts:
        return LoadedFacts(loaded=await service.load(await named(request)))

    add_security(app)


def add_security(app: FastAPI) -> None:
    """Let OpenAPI describe the token."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        document = plain()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        return document

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI's documentation does


def _switched(pointer: Current) -> Switched:
    return Switched(serves=pointer.version, before=pointer.before)


def versions_of(service: Service) -> VersionsFacts:
    """Return all versions, oldest first."""
    store, live = service.store, service.live
    try:
        pointer = store.current
    except CheckpointError:  # /healthz says so
        pointer = Current(version=live.current.id)
    return VersionsFacts(
        serves=live.current.id,
        current=pointer.version,
        before=pointer.before,
        shadow=service.settings.shadow,
        versions=[_facts(service, version) for version in store.ids()],
    )


def _facts(service: Service, version: str) -> VersionFacts:
    serves, loaded = version == service.live.current.id, version in service.live.ids()
    try:
        of = service.store.version(version)
    except CheckpointError:
        return VersionFacts(id=version, state="damaged", serves=serves, loaded=loaded)
    learned = of.data
    return VersionFacts(
        id=of.id,
        parent=of.parent,
        created=of.created,
        state=of.state,
        method=of.method,
        serves=serves,
        loaded=loaded,
        data=None if learned is None else learned.name,
        rows=None if learned is None else learned.rows,
        held_out=None if learned is None else learned.held_out,
        share=of.share,
        seconds=of.seconds,
        towers=of.towers,
        numbers=of.numbers,
        gates=[gate.model_dump(mode="json") for gate in of.gates],
        pages=page_names(service.store, version),
    )
