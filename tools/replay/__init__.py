"""Real order flow, sent to a running exchange as its brokers would."""
