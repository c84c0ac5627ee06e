"""Fixtures: clients of each kind, two brokers and one instrument."""

from collections.abc import Iterator
from decimal import Decimal

import pytest

from exchange import readiness, services
from exchange.rules import Scope
from tests.exchange.client import Client
from tests.trading import BY


@pytest.fixture
def operator(db: None) -> Client:
    return Client(services.issue_key(None, scopes=[Scope.OPERATOR], by=BY)[1])


@pytest.fixture
def alice(db: None) -> Client:
    """Broker `alice`, with 1,000.00 in cash and 100 shares of AAPL."""
    return Client(services.create_broker("alice", initial_cash=Decimal(1000), initial_holdings={"AAPL": 100}, by=BY)[1])


@pytest.fixture
def bob(db: None) -> Client:
    """Broker `bob`, without cash and shares."""
    return Client(services.create_broker("bob", initial_cash=Decimal(0), initial_holdings={}, by=BY)[1])


@pytest.fixture
def no_cached_readiness() -> Iterator[None]:
    """Clear the cached readiness before and after the test."""
    readiness._readiness = readiness.Readiness()
    yield
    readiness._readiness = readiness.Readiness()


@pytest.fixture
def anonymous(db: None) -> Client:
    return Client(None)
