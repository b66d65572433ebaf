"""Foreign state dictionaries: what is read, what is refused, and what the refusal names."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from avfuse.schema import UsageError
from avfuse.weights import check_state, file_digest, read_state

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.zeros(2)}


@pytest.mark.parametrize("wrapper", [None, "net", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_read_state(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {prefix + name: value for name, value in STATE.items()}
    path = tmp_path / "file.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    read = read_state(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("score", [np.float64(0.715), np.float32(0.7), np.int64(3), np.array(0.5), 0.7])
def test_numbers_beside_the_weights_are_not_read(tmp_path: Path, score: object) -> None:
    path = tmp_path / "file.pt"
    torch.save({"net": STATE, "best_score": score}, path)
    assert read_state(path).keys() == STATE.keys()


@pytest.mark.parametrize("wrappers", [("net", "state_dict"), ("state_dict", "net")])
def test_wrappers_in_any_order(tmp_path: Path, wrappers: tuple[str, str]) -> None:
    path = tmp_path / "file.pt"
    torch.save({wrappers[0]: {wrappers[1]: STATE}}, path)
    assert read_state(path).keys() == STATE.keys()


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({**STATE, "module.layer.bias": torch.ones(2)}, path)
    with pytest.raises(UsageError, match=r"holds parameters twice, with and without 'module\.'"):
        read_state(path)


def test_read_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(STATE, path)
    assert torch.equal(read_state(path)["layer.weight"], STATE["layer.weight"])
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


class Rogue:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"net": {"layer.weight": Rogue()}}, "never pickled objects"),
        ({"net": {**STATE, "note": "text"}}, "holds no state dictionary"),
        ({"net": {}}, "holds no state dictionary"),
        ([STATE], "holds no state dictionary"),
        (torch.zeros(3), "holds no state dictionary"),
    ],
)
def test_what_is_no_state_is_refused(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(UsageError, match=message) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer.bias": None}, r"parameter 'layer\.bias' is missing"),
        ({"layer.bias": torch.zeros(3)}, r"'layer\.bias' is \(3,\), expected \(2,\)"),
        ({"layer.scale": torch.zeros(3)}, r"parameter 'layer\.scale' is unexpected"),
        ({"layer.weight": torch.full((2, 3), torch.nan)}, r"'layer\.weight' holds values that are not finite"),
        ({"layer.weight": torch.zeros(2, 3, dtype=torch.complex64)}, r"'layer\.weight' holds complex64 numbers"),
        ({"layer.weight": torch.zeros(2, 3, dtype=torch.int64)}, r"'layer\.weight' holds int64 numbers"),
        (
            {"layer.weight": torch.full((2, 3), 1e300, dtype=torch.float64)},
            r"'layer\.weight' holds values that are not finite",
        ),
        ({"layer.weight": torch.zeros(2, 3, device="meta")}, r"'layer\.weight' is no plain tensor"),
        ({"layer.weight": torch.zeros(2, 3).to_sparse()}, r"'layer\.weight' is no plain tensor"),
        ({"layer\nweight": torch.zeros(1)}, r"parameter 'layer\\nweight' is unexpected"),
    ],
)
def test_check_state(changes: dict[str, torch.Tensor | None], message: str) -> None:
    state = {name: value for name, value in {**STATE, **changes}.items() if value is not None}
    with pytest.raises(UsageError, match=message):
        check_state(state, STATE, Path("file.pt"))
    check_state(STATE, {**STATE, "norm.num_batches_tracked": torch.tensor(0)}, Path("file.pt"))
