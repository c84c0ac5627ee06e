"""The whole exchange on one machine, with PostgreSQL and Valkey, for `make run` and the tests."""
