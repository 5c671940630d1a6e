"""Measurements. Every speed claim is a ratio of two things measured in the same run, turn by turn."""
