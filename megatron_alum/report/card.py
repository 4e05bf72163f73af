"""The evaluation section of a model card: fine-tuning results of the exported encoder, from its results.jsonl files."""

from __future__ import annotations

from pathlib import Path

from megatron_alum.convert.model_card import with_evaluation
from megatron_alum.report.results import Results, best_values, cell


def evaluated_card(folder: Path, results: Results) -> tuple[Path, str]:
    """(path, new text) of the card of the exported `folder` with the table of `results`.

    Raises: ValueError for a folder without a card, or without results.
    """
    card = folder / "README.md"
    if not card.is_file():
        raise ValueError(f"--model-card must be a folder with a README.md, but {folder} has none.")
    rows = evaluation_rows(results)
    if not rows:
        raise ValueError("--results must hold results for --model-card, but hold none.")
    note = "Fine-tuned on each task; percent, mean +- deviation over the seeds, at the settings that are best on dev."
    lines = [note, "", "| task | split | metric | value |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return card, with_evaluation(card.read_text(encoding="utf-8"), "\n".join(lines))


def evaluation_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """(task, split, metric, value) in order of the files; the system comes first if there is more than one."""
    rows = []
    for system, found in results.items():
        prefix = f"{system}: " if len(results) > 1 else ""
        for key in dict.fromkeys((row["task"], row["split"], row["metric"]) for row in found):
            rows.append((prefix + key[0], key[1], key[2], cell(best_values(found, key), None).ours))
    return rows
