"""Everything in the background has a limit: a table of operations and drivers."""
