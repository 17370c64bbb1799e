"""The document that the ingress tells of itself is OpenAPI 3.1, whatever the contracts are."""

from __future__ import annotations

from pathlib import Path

import pytest
from openapi_spec_validator import validate

from bridge.config.load import load
from bridge.config.specs import contract_specs
from bridge.ingress.openapi import openapi_document

BRIDGE = Path(__file__).parents[3] / "bridge"
CONFIGURATIONS = sorted([*BRIDGE.glob("recipes/*/bridge.yaml"), BRIDGE / "demo" / "bridge.yaml"])
ENVIRONMENT = {"SOURCE_DSN": "service=app", "WAREHOUSE_DSN": "service=warehouse"}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipes_contracts_make_a_valid_document(path: Path) -> None:
    config = load(path, ENVIRONMENT)
    document = openapi_document(contract_specs(config), 1 << 20, ("github",))
    validate(document)
    assert document["paths"].keys() >= {f"/v1/events/{name}" for name in config.events}
