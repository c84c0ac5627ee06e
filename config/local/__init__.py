"""The whole exchange on one machine: PostgreSQL, Valkey and every process of ours, for `make run` and the tests."""
