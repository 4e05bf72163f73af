"""What lets megatron-core run here: CPU redirects (`enable_cpu`), gradients of a GPU through gloo, and the detection of
accelerators (`environment_report`).
"""

from megatron_alum.compat.cpu import enable_cpu, silence_fallback_warnings
from megatron_alum.compat.gloo import reduce_one_bucket_at_a_time

__all__ = ["enable_cpu", "reduce_one_bucket_at_a_time", "silence_fallback_warnings"]
