"""Nothing in the background is without a bound: a table of operations and drivers, and what each is tried with."""
