"""Whatever the API's description allows: a running host answers as it says, and never with a mistake of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from contract.event import Verdict
from plugin.review import openapi
from tests.plugin import synthetic as s
from tests.plugin.people import TEST, Site
from tests.plugin.synthetic import Dealer

EXAMPLES = int(os.environ.get("FLAWLINE_FUZZ", "12"))
ENDLESS = {"/api/v1/stream"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(openapi.make_api().openapi())
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A host that has parts, pictures, a gap and a decision to be asked about."""
    site = Site(tmp_path_factory.mktemp("site"))
    dealer = Dealer(site.service.endpoint)
    for message in s.flagged(1, "bad", Verdict.REJECT, 4.0, seed=1):
        dealer.send(message)
    dealer.send(s.frames(s.result(4, serial="0", lot="0", recipe="0")))
    dealer.send(s.frames(s.missed(5)))
    dealer.send(s.frames(s.gap(6)))
    dealer.wait_acked(*range(1, 7))
    dealer.close()
    yield site
    site.stop()


def test_every_route_is_tried() -> None:
    described = {(each.method.upper(), each.path) for each in OPERATIONS}
    assert len(described) > 20
    assert {path for _, path in described} >= ENDLESS


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method.upper()} {each.path}")
def test_no_request_provokes_the_host_s_own_mistake(site: Site, operation: Any) -> None:
    if operation.path in ENDLESS:
        pytest.skip("it answers for ever; tests/plugin/test_stream.py asks it")
    token = site.accounts.make_token("ada", 1, TEST, "administer")
    with site.browser() as web:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        def ask(case: Any) -> None:
            answer = case.call(session=None, base_url=site.service.url, headers={"authorization": f"Bearer {token}"})
            case.validate_response(answer, checks=CHECKS)

        ask()
        assert web.get("/healthz").json()["ok"]
