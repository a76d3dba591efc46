"""The web page, and the pages of versions."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

from everclip.serve.model_routes import refusals
from everclip.serve.page import page
from everclip.serve.pages import POLICY, page_file
from everclip.serve.refusal import Refusal
from everclip.serve.service import Service


def add(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""

    @app.get("/", include_in_schema=False)
    async def web_page() -> Response:
        return HTMLResponse(page().document, headers={"Content-Security-Policy": page().policy})

    @app.get(
        "/versions/{version}/{name}",
        summary="A page of a version: diagnosis or blind-pairs",
        tags=["store"],
        response_class=Response,  # refusals are JSON
        responses={200: {"content": {"text/html": {}}, "description": "The page."}, **refusals(404, 422)},
    )
    def version_page(version: str, name: str) -> Response:
        file = page_file(service.store, version, name)
        if file is None:
            raise Refusal(404, "no-page", "This version has no such page; see /versions.")
        return HTMLResponse(
            file.read_bytes(), headers={"Content-Security-Policy": POLICY, "X-Frame-Options": "SAMEORIGIN"}
        )
