"""Replay of real order flow through the API of a running exchange."""
