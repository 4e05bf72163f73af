"""Makes megatron-core run here: CPU redirects (`enable_cpu`) and detection of accelerators (`environment_report`)."""

from megatron_alum.compat.cpu import enable_cpu, silence_fallback_warnings

__all__ = ["enable_cpu", "silence_fallback_warnings"]
