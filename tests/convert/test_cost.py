"""Time and memory of converting a model of BERT-base's size, both directions, measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 20.0
MAX_MEMORY_RATIO = 2.5
"""Peak memory of the whole process, interpreter and libraries included, over the size of the weights file."""
MEASURE = """
import sys, time
from pathlib import Path
from megatron_alum.convert import commands
def peak():  # VmHWM, in kB: ru_maxrss would start at what the parent held when it forked
    return 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
start = time.process_time()
direction, source, target = sys.argv[1:]
(commands.from_hf if direction == "from-hf" else commands.to_hf)(source, Path(target))
print(peak(), time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_bert_base_converts_quickly_and_in_little_memory(tmp_path):
    transformers.BertForPreTraining(transformers.BertConfig()).save_pretrained(tmp_path / "hf")
    weights = (tmp_path / "hf" / "model.safetensors").stat().st_size
    steps = [("from-hf", tmp_path / "hf", tmp_path / "run"), ("to-hf", tmp_path / "run", tmp_path / "again")]
    for step in steps:
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, *map(str, step)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        memory, seconds = map(float, done.stdout.splitlines()[-1].split())
        print(f"{step[0]}: {seconds:.1f} s of processor time, {memory / weights:.2f} times the weights")
        assert seconds < MAX_SECONDS and memory < MAX_MEMORY_RATIO * weights, (step[0], seconds, memory / weights)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "hf" / "model.safetensors"
    ).read_bytes()
