"""Fine-tuning with a divergence: a Trainer for alum, smart, freelb and r-drop, independent of the benchmarks."""
