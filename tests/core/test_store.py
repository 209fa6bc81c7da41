"Checkpoints: bit by bit, whole or not at all, and never code"

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deffi_lab.core.store import StoreError, load_state, save_state

leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)
)
tree = st.recursive(
    leaf,
    lambda t: st.one_of(
        st.lists(t, max_size=3),
        st.tuples(t, t),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), t, max_size=3),
    ),
    max_leaves=12,
)


def same(a, b):
    return type(a) is type(b) and (repr(a) == repr(b))


@given(tree)
@settings(max_examples=150, deadline=None)
def test_any_state_comes_back(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("s") / "x"
    save_state(path, {"state": state})
    assert same(load_state(path)["state"], state)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_keep_type_shape_and_bits(tmp_path, dtype):
    t = (torch.randn(3, 4) * 5).to(dtype)
    views = {"a": t, "b": t.t(), "same": t, "none": t[:0], "scalar": t[0, 0]}
    save_state(tmp_path / "x", views)
    back = load_state(tmp_path / "x")
    for k, v in views.items():
        assert back[k].dtype == dtype and torch.equal(back[k], v) and back[k].shape == v.shape


def test_every_truncation_is_one_clear_error(tmp_path):
    whole = save_state(tmp_path / "x", {"a": torch.randn(20), "b": [1, 2]}).read_bytes()
    for n in range(0, len(whole) - 1, 7):
        (tmp_path / "cut").write_bytes(whole[:n])
        with pytest.raises(StoreError, match="cut: not a whole checkpoint"):
            load_state(tmp_path / "cut")
        with pytest.raises(StoreError, match="left as it is"):
            save_state(tmp_path / "cut", {})
        assert (tmp_path / "cut").read_bytes() == whole[:n]


def test_foreign_files_are_left_alone(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "weights")
    torch.save({"a": 1}, tmp_path / "pickle")
    for name, text in (("weights", "another kind"), ("pickle", "not a whole checkpoint")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StoreError, match=text):
            load_state(tmp_path / name)
        with pytest.raises(StoreError, match=text):
            save_state(tmp_path / name, {})
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(StoreError, match="no such file"):
        load_state(tmp_path / "none")


@pytest.mark.parametrize("state", [{"f": print}, {"o": object()}, {(1, 2): 3}, {"c": 1j}])
def test_code_is_refused_and_nothing_is_written(tmp_path, state):
    with pytest.raises(StoreError):
        save_state(tmp_path / "x", state)
    assert not list(tmp_path.iterdir())


def test_a_kill_while_saving_leaves_a_whole_file(tmp_path):
    code = (
        "import sys, torch; from deffi_lab.core.store import save_state; i = 0\n"
        "while True:\n i += 1; save_state(sys.argv[1], {'i': i, 't': torch.full((300_000,), "
        "float(i))})\n"
        " print(i, flush=True)"
    )
    path = tmp_path / "x"
    for wait in (0.03, 0.11, 0.2):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        s = load_state(path)
        assert (s["t"] == s["i"]).all()


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.exists("/dev/full"), reason="no full device here"
)
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    path = save_state(tmp_path / "x", {"i": 1})

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deffi_lab.core.store.save_file", full)
    with pytest.raises(StoreError, match="No space left on device; nothing was changed"):
        save_state(path, {"i": 2})
    monkeypatch.undo()
    assert load_state(path) == {"i": 1} and [p.name for p in tmp_path.iterdir()] == ["x"]
