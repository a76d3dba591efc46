"""Requests made from the OpenAPI schema: no error of the server, every answer as documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import TOKEN, client, copied, two_versions

pytestmark = pytest.mark.slow
REQUESTS = 40


def test_no_request_of_the_schema_breaks_the_server(micro_folder: Path, tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, settings

    store = copied(two_versions(tmp_path / "made", micro_folder / "model"), tmp_path)
    with client(store, beside=("v0002",), hosts=("127.0.0.1", "testserver")) as found:
        schema = schemathesis.openapi.from_asgi("/openapi.json", found.app)
        checks = schemathesis.checks
        wanted = [
            checks.not_a_server_error,
            *(
                check
                for check in checks.CHECKS.get_all()
                if check.__name__
                in (
                    "status_code_conformance",
                    "content_type_conformance",
                    "response_schema_conformance",
                    "negative_data_rejection",
                    "unsupported_method",
                )
            ),
        ]
        asked: dict[str, int] = {}
        for operation in schema.get_all_operations():
            one = operation.ok()

            @settings(
                max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck)
            )
            @schemathesis_given(one)
            def ask(case: Any) -> None:
                headers = {}
                if case.operation.method.lower() == "post":
                    headers["Authorization"] = f"Bearer {TOKEN}"
                answer = case.call(headers=headers)
                asked[f"{answer.status_code}"] = asked.get(f"{answer.status_code}", 0) + 1
                case.validate_response(answer, checks=wanted)

            ask()
        assert found.get("/healthz").json()["status"] == "ok"
    assert sum(asked.values()) >= REQUESTS
    assert "500" not in asked


def schemathesis_given(operation: Any) -> Any:
    """Return a decorator that draws cases of an operation."""
    from hypothesis import given

    return given(case=operation.as_strategy())
