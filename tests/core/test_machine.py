"What a number depends on besides its seed"

import json
import os
import subprocess
import sys

import pytest
import torch

from deffi_lab import __version__
from deffi_lab.core.machine import differences, in_words, machine, processor, threads
from deffi_lab.core.step import bf16_is_fast


def test_the_record_is_plain_data_that_says_what_is_so():
    with threads(1):
        one = machine()
    with threads(2):
        two = machine()
    assert json.loads(json.dumps(one)) == one
    assert differences(one, two) == "threads: 1, 2" and differences(one, dict(one)) == ""
    assert one["torch"] == torch.__version__ and one["deffi_lab"] == __version__
    assert one["bf16"] == bf16_is_fast() and one["processor"] == processor() != ""
    assert one["kernels"] == torch.backends.cpu.get_cpu_capability() and one["device"] == "cpu"


def test_other_kernels_are_another_machine():
    code = "import json; from deffi_lab.core.machine import machine; print(json.dumps(machine()))"
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    there = json.loads(run.stdout)
    assert there["limits"] == "ATEN_CPU_CAPABILITY=default"
    assert there["kernels"] not in ("AVX2", "AVX512")
    assert "limits" in differences(machine(), there)


def test_one_line_names_a_machine():
    record = machine() | {"processor": "Some 9000", "threads": 3, "bf16": True, "limits": ""}
    text = in_words(record)
    assert (
        text.startswith("Some 9000, bfloat16 by default")
        and "threads 3" in text
        and "limits" not in text
    )
    assert "float32" in in_words(record | {"bf16": False})
    assert in_words(record | {"device": "Card 7"}).startswith("Card 7 beside Some 9000")
    assert in_words({}) == "unknown"


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads=0: at least 1"), threads(0):
        pass
