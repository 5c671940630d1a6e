"""Small pure decisions: the numbers of now in, a decision out. No clock, no lock, no I/O."""
