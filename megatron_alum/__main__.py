"""`python -m megatron_alum COMMAND`: the console command without a script on PATH."""

from megatron_alum.cli.main import main

if __name__ == "__main__":
    main()
