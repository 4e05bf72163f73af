"""Measure how a fine-tuned classifier withstands attacks: PGD on its embeddings, word substitution through TextAttack.

    megatron-alum attack --model out/none/model out/alum/model --task sst2 --data-dir glue --output out/attack

Writes OUTPUT/attack.jsonl (one row per model and radius) and OUTPUT/attack.png (accuracy against radius).
"""

from __future__ import annotations

import json
from pathlib import Path

from megatron_alum.config.cli import parse_config
from megatron_alum.config.extras import EXTRAS, require
from megatron_alum.config.finetune import AttackConfig
from megatron_alum.config.places import check_places


def main() -> None:
    """Attack every model, write each row as soon as it is known, draw the plot."""
    config = parse_config(AttackConfig, description=__doc__ or "")
    check_places(config)
    require(*EXTRAS["finetune"], *EXTRAS["report"])
    from megatron_alum.finetune.runs.attack import check_word_attack
    from megatron_alum.finetune.runs.attacked import attack_model, attacked_task, labelled_examples
    from megatron_alum.finetune.runs.models import check_finetuned
    from megatron_alum.finetune.runs.records import write_at_once
    from megatron_alum.report.robustness import plot_robustness

    task = attacked_task(config)
    if config.word_attack:
        check_word_attack(task)
    for folder in config.model:
        check_finetuned(folder, task)
    examples = labelled_examples(config, task)
    output, rows = Path(config.output), []
    output.mkdir(parents=True, exist_ok=True)
    for folder in config.model:
        for row in attack_model(config, task, examples, folder):
            rows.append(row)
            write_at_once(output / "attack.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    plot_robustness(rows, output / "attack.png")
    for row in rows:
        accuracies = {name: value for name, value in row.items() if "accuracy" in name}
        figures = "  ".join(f"{name} {value:.4f}" for name, value in accuracies.items())
        print(f"{row['model']}  {row['attack']} {row.get('radius', '')}  {figures}")
    print(f"rows: {output / 'attack.jsonl'}   plot: {output / 'attack.png'}")
