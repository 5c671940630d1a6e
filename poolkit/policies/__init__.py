"""Small decisions: current numbers in, a decision out. No clock, no lock, no I/O; time is an argument."""
