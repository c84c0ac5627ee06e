"""Measures the exchange against two baselines: what a C client reaches with one commit per order, and a plain ORM."""
