"""Two hosts of one cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.hosts.sides import Side, Sides, sides


@pytest.fixture
def make_side() -> Iterator[Sides]:
    with sides() as make:
        yield make


@pytest.fixture
def here(make_side: Sides) -> Side:
    return make_side("here", {"a@192.0.2.1": "192.0.2.1"})


@pytest.fixture
def there(make_side: Sides, here: Side) -> Side:
    return make_side("there", {"b@192.0.2.2": "192.0.2.2", "b6@192.0.2.2": "2001:db8::2"}, ca=here)
