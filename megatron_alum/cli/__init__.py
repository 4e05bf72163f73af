"""The commands: one module each, whose `main` parses sys.argv and lets the library do the work.

`megatron-alum NAME` (main.py) and the scripts in tools/ call them. What `--help` does not need is imported after
parsing, so that it answers at once.
"""
