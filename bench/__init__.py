"""Benchmark of the exchange, compared with a C client (one commit per order) and a plain ORM implementation."""
