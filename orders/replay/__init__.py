"""Real order flow, sent again: LOBSTER messages over HTTP to a running exchange, its book compared after each."""
