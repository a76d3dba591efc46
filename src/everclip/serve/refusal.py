"""What a request is refused with: a status and one clear message as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError


class Problem(BaseModel):
    """What is wrong with a request."""

    code: str = Field(description="A short name that a program can test.", examples=["too-many-texts"])
    message: str = Field(examples=["texts: 300 given; at most 256 in one request."])


class Refused(BaseModel):
    """The answer to a request that is refused."""

    error: Problem


class Refusal(Exception):
    """A request is refused.

    Args:
        status: of HTTP.
        code: a short name that a program can test.
        message: what was found, and what was expected; never a path of the server.
        headers: further headers.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


def invalid(error: ValidationError) -> Refusal:
    """Return the refusal of a document that does not fit its schema: the first three faults, without their values."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:3]]
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return Refusal(422, "invalid", "; ".join(told) + more)
