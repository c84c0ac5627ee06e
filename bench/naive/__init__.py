"""A first implementation of the exchange: one transaction per order, the ORM row by row. It is correct."""
