"""The clients of the exchange tests."""

from tests.exchange.conftest import alice, anonymous, bob, no_cached_readiness, operator

__all__ = ["alice", "anonymous", "bob", "no_cached_readiness", "operator"]
