"""Fine-tuning and evaluation of any Hugging Face encoder on the paper's benchmarks, plain or adversarial.

Reading order: `methods/`, a library that knows no benchmark (`trainer.py` is AlumTrainer, `presets.py` its methods);
`benchmarks/` (`tasks.py` is the table; `loading.py`, `features.py`, `decoding.py`, `metrics.py`); `runs/` (`grid.py`,
`evaluation.py`, `attack.py`). Needs neither megatron-core nor a GPU.
"""

from megatron_alum.finetune.benchmarks.tasks import TASKS, Task
from megatron_alum.finetune.methods.presets import METHODS, FreeLbConfig, Method, method
from megatron_alum.finetune.methods.trainer import AlumTrainer

__all__ = ["METHODS", "TASKS", "AlumTrainer", "FreeLbConfig", "Method", "Task", "method"]
