"""The word on slow bfloat16: where it is said, and that the processor's own instructions decide."""

import sys
from pathlib import Path

import pytest
import torch

from megatron_alum.compat import precision


@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="the processor's own word is Linux's")
def test_bf16_instructions_are_those_that_the_system_reports():
    reported = set(Path("/proc/cpuinfo").read_text().split())
    assert precision.has_bf16_instructions() == bool({"avx512_bf16", "amx_tile"} & reported)


@pytest.mark.parametrize(
    ("bf16", "fast", "avx512", "said"),
    [
        (True, False, False, "a step is up to a hundred times slower than in float32. Leave --bf16 out."),
        (True, False, True, "a step is slower than in float32. Leave --bf16 out."),
        (True, True, True, ""),
        (False, False, False, ""),
    ],
)
def test_a_run_says_where_bf16_is_slow(bf16, fast, avx512, said, monkeypatch, capsys):
    monkeypatch.setattr(precision, "has_bf16_instructions", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    precision.warn_where_bf16_is_slow(bf16)
    out, err = capsys.readouterr()
    assert out == "" and err == (f"--bf16: this CPU has no bfloat16 instructions; {said}\n" if said else "")
