"""The clients of the exchange tests."""

from tests.exchange.conftest import alice, anonymous, bob, nothing_remembered, operator

__all__ = ["alice", "anonymous", "bob", "nothing_remembered", "operator"]
