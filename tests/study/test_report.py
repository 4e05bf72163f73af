"""The report's first section against tables made by hand."""

from megatron_alum.report.pages import Section, Table
from megatron_alum.study.report import summary_sections


def section(title, *cells, after=()):
    return Section(title, table=Table(("arm", *"abc"[: len(cells)]), (("textbook", *cells),)), after=after)


def test_the_summary_repeats_the_sentences_and_counts_the_stars():
    made = [
        section("Loss", "5.1 +- 0.2 (2 runs)"),
        section(
            "Loss: differences from standard",
            "-0.1* [-0.2, -0.1] (2 runs)",
            "+0.0 [-0.2, +0.2] (2 runs)",
            after=("a", "b"),
        ),
        section("Score: differences from none", "+1.0 (1 run)", "", "+2.0 [-1.0, +5.0] (3 runs)", after=("c",)),
    ]
    (found,) = summary_sections(made)
    assert found.table is not None and found.table.rows == (("Loss", "a"), ("Loss", "b"), ("Score", "c"))
    assert found.before == ("1 of 3 intervals exclude 0; if nothing made a difference, about 0 of so many would.",)
    assert not list(summary_sections([section("Loss", "5.1 (1 run)")]))
