"""The parts of benchmarks/gpu_check.py: how they are run, what they measure, what they must achieve."""
