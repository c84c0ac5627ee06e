"""What a developer would write first: one view, one transaction per order, the ORM row by row. It is correct."""
