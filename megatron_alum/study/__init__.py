"""A study: does adversarial pre-training help, at what radius, and how much of that is the ascent? One YAML file
defines it.

plan.py          what is compared: arms, seeds, probes, tasks; read from the YAML and checked
cells.py         the pieces that the plan falls into, in the order in which they run
rows.py          the results: one JSON object per line, added one cell at a time
corpora.py       shards of the training text and of text of another kind
pretraining.py   the common start, and every arm that continues from it
pilot.py         the radius
probes.py        held-out loss: clean, under random noise, under attack, on other text
downstream.py    fine-tuning of the arms' encoders, and attacks on the results
run.py           all cells that are not done yet
statistics.py    paired differences, intervals, and the conclusion that they allow
report.py        tables and curves from the rows
"""
