"""The training loop: state, step, loop, and their surroundings.

Reading order: loop.py (the run), step.py (one iteration), then state.py, optimizer.py, resume.py, control.py,
metrics.py, validation.py. What a step minimises is `objective`.
"""

from megatron_alum.compat import silence_fallback_warnings

silence_fallback_warnings()
