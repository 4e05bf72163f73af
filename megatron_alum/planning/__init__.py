"""Arithmetic of a run that has not begun: operations and memory of a step, on any number of devices."""
