"""The whole chain in minutes, on two cores and without data: `make demo`, or `make demo CORPUS=<path>` for own text.

    python examples/demo.py [--corpus PATH ...] [--output demo_output]

Each stage is the tool that a user runs, printed as a command line before it starts: train a WordPiece vocabulary,
preprocess, pre-train over two tensor-parallel processes (a standard phase, then ALUM), stop half-way through the ALUM
phase and resume, convert, ask the exported model for a masked word, plot the run. Without --corpus the text is the
language reference that every CPython ships for its help() (pydoc_data.topics). A stage that fails ends the demo with
its name.
"""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron_alum.config.cli import main_guard  # noqa: E402
from megatron_alum.config.parser import Parser  # noqa: E402
from megatron_alum.config.places import Place  # noqa: E402
from megatron_alum.config.words import amount, data_size, duration  # noqa: E402

SENTENCES = {
    "embedded": "the value of the [MASK] is used as an argument of the function.",
    "given": "it was one of the first [MASK] of the new century.",
}
VOCAB_SIZE = 4096
TRAIN_ITERS, ALUM_STARTS, STOP_AFTER = 240, 0.5, 180
"""Iterations of the run, share of them before ALUM, and the iteration at which the run is stopped to be resumed."""
NUM_PROCESSES = 2
TOP_PREDICTIONS = 5
# Two layers at sequence 64 reach the corpus's word frequencies well within the demo's five minutes on two cores.
PRETRAINING = f"""
    --model-type megatron-bert --num-layers 2 --hidden-size 128 --num-attention-heads 2 --seq-length 64
    --micro-batch-size 16 --global-batch-size 32 --train-iters {TRAIN_ITERS} --lr 2e-3 --split 949,50,1
    --tensor-model-parallel-size {NUM_PROCESSES} --alum-start-fraction {ALUM_STARTS} --eval-interval {STOP_AFTER}
    --eval-iters 2 --save-interval 0 --log-interval 1
""".split()


@dataclass(frozen=True)
class Stage:
    """One step of the demo: a command of this project or a function, and the artefacts it leaves."""

    name: str
    run: Callable[[], None]
    artefacts: tuple[tuple[Path, str], ...] = ()


class Demo:
    """The stages over one output folder."""

    def __init__(self, corpus: Sequence[Path], output: Path, sentence: str | None) -> None:
        self.output = output
        self.is_embedded = not corpus
        self.corpus = list(corpus) or [output / "corpus" / "python-reference.jsonl"]
        self.sentence = sentence or SENTENCES["embedded" if self.is_embedded else "given"]
        self.tokenizer, self.shards = output / "tokenizer", output / "shards" / "corpus"
        self.run_dir, self.hf_dir, self.curves = output / "run", output / "model", output / "curves.png"

    def stages(self) -> list[Stage]:
        """All stages in order."""
        first = [
            Stage("write the embedded corpus", self.write_corpus, ((self.corpus[0], "the corpus, one article a line"),))
        ]
        return (first if self.is_embedded else []) + [
            Stage("train a vocabulary", self.train_vocabulary, ((self.tokenizer, "WordPiece tokenizer"),)),
            Stage(
                "preprocess", self.preprocess, ((self.shards.with_suffix(".bin"), "token ids in Megatron's layout"),)
            ),
            Stage("pre-train: standard, then ALUM, stopped", lambda: self.pretrain(stop=True)),
            Stage(
                "pre-train: resumed",
                lambda: self.pretrain(stop=False),
                ((self.run_dir, "checkpoints and metrics.jsonl"),),
            ),
            Stage("convert", self.convert, ((self.hf_dir, "Hugging Face model with tokenizer and model card"),)),
            Stage("predict a masked word", self.predict),
            Stage(
                "plot", self.plot, ((self.curves, "losses, symmetric KL, mask rate and learning rate over the run"),)
            ),
        ]

    def write_corpus(self) -> None:
        """pydoc_data.topics as JSON lines, one topic a document, what preprocess_data.py reads as jsonl."""
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        path = self.corpus[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": name, "title": name, "text": text}) for name, text in sorted(topics.items())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{len(topics)} articles, {data_size(path.stat().st_size)}")

    def train_vocabulary(self) -> None:
        """tools/train_tokenizer.py."""
        _tool("train_tokenizer.py", "--input", *self.corpus, "--output", self.tokenizer, "--vocab-size", VOCAB_SIZE)

    def preprocess(self) -> None:
        """tools/preprocess_data.py."""
        arguments = ("--output-prefix", self.shards, "--tokenizer", self.tokenizer, "--workers", NUM_PROCESSES)
        _tool("preprocess_data.py", "--input", *self.corpus, *arguments)

    def pretrain(self, *, stop: bool) -> None:
        """pretrain_bert_alum.py under torchrun; the second call continues where the first was stopped."""
        folders = ["--data-path", self.shards, "--save", self.run_dir]
        folders += ["--exit-interval", STOP_AFTER] if stop else ["--load", self.run_dir]
        # `python -m torch.distributed.run` is torchrun, found without a PATH; --standalone picks a free port.
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", NUM_PROCESSES]
        _python(*launcher, ROOT / "pretrain_bert_alum.py", *folders, *PRETRAINING)

    def convert(self) -> None:
        """tools/convert_checkpoint.py to-hf, verified against the Megatron network."""
        _tool("convert_checkpoint.py", "to-hf", "--load", self.run_dir, "--output", self.hf_dir, "--verify")

    def predict(self) -> None:
        """The exported folder in transformers, offline: the likeliest words at the mask."""
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # it reports the NSP head, which a masked word does not need
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.hf_dir)
        model = transformers.AutoModelForMaskedLM.from_pretrained(self.hf_dir)
        inputs = tokenizer(self.sentence.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        at_mask = inputs["input_ids"][0] == tokenizer.mask_token_id
        if int(at_mask.sum()) != 1:
            raise ValueError(f"--sentence must hold [MASK] once, but is {self.sentence!r} instead.")
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, at_mask][0].softmax(-1)
        print(self.sentence)
        for probability, index in zip(*probabilities.topk(TOP_PREDICTIONS), strict=True):
            print(f"  {probability:6.1%}  {tokenizer.decode([index])}")
        print(f"({amount(model.num_parameters())} parameters after {TRAIN_ITERS} iterations know little more")
        print("than which words are frequent; examples/ holds recipes for real runs.)")

    def plot(self) -> None:
        """The PNG of the run's metrics."""
        from megatron_alum.report.curves import plot_curves

        plot_curves(self.run_dir / "metrics.jsonl", self.curves, title=f"make demo: {TRAIN_ITERS} iterations")


def _tool(name: str, *arguments: object) -> None:
    _python(ROOT / "tools" / name, *arguments)


def _python(*arguments: object) -> None:
    """Run this interpreter on `arguments` in this terminal. Raises: CalledProcessError for a non-zero exit."""
    words = [sys.executable, *map(str, arguments)]
    print(f"$ {shlex.join([os.path.basename(words[0]), *(_relative(word) for word in words[1:])])}", flush=True)
    # Two processes need two GPUs; the demo is made for the CPU, which every machine has.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(words, check=True, env={**environment, "PYTHONPATH": path})


def _relative(word: str) -> str:
    """A path below the working directory without it, so that the printed command can be read and typed."""
    return os.path.relpath(word) if os.path.isabs(word) and Path(word).is_relative_to(Path.cwd()) else word


def _remove_old_output(output: Path) -> None:
    """A former demo's folders, and only those: --output may name a folder with other things in it."""
    for name in ("corpus", "tokenizer", "shards", "run", "model"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "curves.png").unlink(missing_ok=True)


def main() -> int:
    """Run all stages; returns the process's exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", nargs="+", type=Path, default=[], help="text that preprocess_data.py reads")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for all artefacts")
    parser.add_argument("--sentence", help="sentence with one [MASK] for the last stage")
    arguments = parser.parse_args()
    if (refusal := Place("folder", is_output=True).refusal(str(arguments.output))) is not None:
        raise ValueError(f"--output must be {refusal}.")
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may need a network
    demo = Demo(arguments.corpus, arguments.output, arguments.sentence)
    _remove_old_output(arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    stages = demo.stages()
    for number, stage in enumerate(stages, start=1):
        print(f"\n[{number}/{len(stages)}] {stage.name}", flush=True)
        try:
            stage.run()
        except subprocess.CalledProcessError as error:
            print(f'error: the stage "{stage.name}" failed with exit status {error.returncode}.', file=sys.stderr)
            return 1
        except (ValueError, OSError) as error:
            print(f'error: the stage "{stage.name}" failed: {error}', file=sys.stderr)
            return 1
    print(f"\nDone in {duration(time.perf_counter() - start)}:")
    for path, meaning in (artefact for stage in stages for artefact in stage.artefacts):
        print(f"  {path}: {meaning}")
    return 0


if __name__ == "__main__":
    main_guard(lambda: sys.exit(main()))
