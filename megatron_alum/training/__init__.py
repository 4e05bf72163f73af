"""The training loop: state, step, loop, and what surrounds them.

Reading order: loop.py (the run), step.py (one iteration), objective.py (the losses of a micro-batch), then state.py,
optimizer.py, schedule.py, resume.py, control.py, metrics.py, validation.py.
"""

from megatron_alum.compat import silence_fallback_warnings

silence_fallback_warnings()
