"""`/search`, `/index`, and small pictures of what was found."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import asdict

from anyio import to_thread
from fastapi import FastAPI, Request
from PIL import Image
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response

from everclip.data.pictures.images import decode
from everclip.data.pictures.picture_error import PictureError
from everclip.serve.answered import IndexState, Searched
from everclip.serve.asked import SearchAsked, body_schema, check_texts, read
from everclip.serve.model_routes import refusals
from everclip.serve.refusal import Refusal
from everclip.serve.search_service import SearchService

_SIDE = 256
_PICTURES = 512
_MOST_CONDITIONS = 20


def add(app: FastAPI, search: SearchService) -> None:
    """Add the endpoints."""
    settings, pictures = search.service.settings, SmallPictures()
    example = {"texts": ["a red kettle"], "top": 5, "where": ["year>=2024"]}

    @app.post(
        "/search",
        summary="Search the images of the store's index by text or image",
        tags=["search"],
        responses={
            200: {"model": Searched, "description": "The nearest images."},
            **refusals(400, 404, 408, 409, 413, 415, 422, 503),
        },
        openapi_extra=body_schema(SearchAsked, example),
        response_class=JSONResponse,
    )
    async def searched(request: Request) -> Response:
        asked, images = await read(request, SearchAsked, settings)
        check_texts("texts", asked.texts, settings, settings.images)
        check_texts("where", asked.where, settings, _MOST_CONDITIONS)
        if not all(map(str.strip, asked.texts)) or not (asked.texts or images):
            raise Refusal(422, "nothing", "texts, images: nothing to search for.")
        found = await search.search(asked, images)
        document = {
            "version": found.version.id,
            "results": [[asdict(hit) for hit in hits] for hits in found.results],
        }
        return JSONResponse(document, background=BackgroundTask(search.shadow, found))

    @app.get("/index", summary="The state of the search index", tags=["search"], responses=refusals(404, 503))
    async def index() -> IndexState:
        return IndexState.model_validate(asdict(await to_thread.run_sync(search.facts)))

    @app.get(
        "/images/{id:path}",
        summary="A small picture of an indexed image",
        tags=["search"],
        responses={200: {"content": {"image/png": {}}, "description": "PNG."}, **refusals(404, 422, 503)},
        response_class=Response,
    )
    async def image(id: str) -> Response:
        data = await to_thread.run_sync(search.image, id)
        try:
            small = None if data is None else await to_thread.run_sync(pictures.small, data)
        except PictureError:
            small = None
        if small is None:
            raise Refusal(404, "no-image", "The index has no such image, or it cannot be read any more.")
        return Response(small, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


class SmallPictures:
    """The last small pictures that were asked for, by the hash of their images: an image itself may be large."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def small(self, data: bytes) -> bytes:
        """Return an encoded image as a small PNG. Any thread may call it.

        Raises:
            PictureError: if it cannot be read.
        """
        key = hashlib.sha256(data).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = decode(data, "image")
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        picture.save(out, "PNG")
        with self._lock:
            self._kept[key] = out.getvalue()
            while len(self._kept) > _PICTURES:
                self._kept.popitem(last=False)
        return out.getvalue()
