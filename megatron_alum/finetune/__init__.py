"""Fine-tuning and evaluation of any Hugging Face encoder on the paper's benchmarks, plain or adversarial.

Reading order: `trainer.py` (AlumTrainer) with `methods.py`, `embeddings.py`, `divergence.py`, `freelb.py`,
`bregman.py`; then `tasks.py` (the table), `loading.py`, `features.py`, `decoding.py`, `metrics.py`, `squad.py`; then
`runs.py` (grids) and `attack.py`. Needs neither megatron-core nor a GPU.
"""

from megatron_alum.finetune.methods import METHODS, FreeLbConfig, Method, method
from megatron_alum.finetune.tasks import TASKS, Task
from megatron_alum.finetune.trainer import AlumTrainer

__all__ = ["METHODS", "TASKS", "AlumTrainer", "FreeLbConfig", "Method", "Task", "method"]
