"""Arithmetic for a run before it starts: operations and memory of a step, on any number of devices."""
