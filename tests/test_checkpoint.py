from pathlib import Path

import pytest
import torch

from avfuse import checkpoint, registry
from avfuse.runs import HEAD_FILE
from avfuse.schema import UsageError

SIZES = {"targets": ["valence", "arousal"], "audio_size": 8, "video_size": 8, "map_size": 2, "num_clips": 4}


@pytest.mark.parametrize("name", registry.HEADS)
def test_a_head_comes_back_as_it_went(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    head = checkpoint.build_head(name, SIZES)
    constants = (torch.randn(8), torch.rand(8) + 1, torch.randn(8, 2, 2), torch.rand(8, 2, 2) + 1)
    head.standardise(*constants)
    checkpoint.save_head(tmp_path / HEAD_FILE, name, SIZES, head)
    audio, video = torch.randn(2, 4, 8), torch.randn(2, 4, 8, 2, 2)
    expected = head.eval()(audio, video)
    for place in (tmp_path, tmp_path / HEAD_FILE, str(tmp_path)):
        read = checkpoint.load_head(place)
        assert read.targets == ("valence", "arousal")
        assert not read.training
        torch.testing.assert_close(read(audio, video), expected, rtol=0, atol=0)


class Rogue:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (print, ("this must not run",))


def test_what_is_no_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / HEAD_FILE
    with pytest.raises(UsageError, match=r"head\.pt does not exist"):
        checkpoint.load_head(tmp_path)
    torch.save({"format_version": 1, "head": Rogue()}, path)
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        checkpoint.load_head(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(b"text")
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        checkpoint.load_head(path)
    torch.save({"format_version": 2}, path)
    with pytest.raises(UsageError, match="not a checkpoint of format version 1"):
        checkpoint.load_head(path)
    checkpoint.save_state(path, {"epoch": 1})
    with pytest.raises(UsageError, match="holds no fusion head"):
        checkpoint.load_head(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    head = checkpoint.build_head("concat", SIZES)
    checkpoint.save_head(tmp_path / HEAD_FILE, "concat", {**SIZES, "audio_size": 16}, head)
    with pytest.raises(UsageError, match="does not fit the head 'concat'"):
        checkpoint.load_head(tmp_path)


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown head 'sum'; known: recursive_joint_attention"):
        checkpoint.build_head("sum", SIZES)


def test_a_head_file_with_foreign_arguments_is_refused(tmp_path: Path) -> None:
    head = checkpoint.build_head("concat", SIZES)
    checkpoint.save_head(tmp_path / HEAD_FILE, "concat", {**SIZES, "depth": 3}, head)
    with pytest.raises(UsageError, match=r"does not fit the head 'concat': .*'depth'"):
        checkpoint.load_head(tmp_path)
