"""Every bad file gets the reason that a person would give, none hangs or kills, and the good ones are read."""

import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from bad_files import FILES, NUM_FRAMES, Judge, judge, picture, record, write_files
from conftest import frames_of

from avfuse.inspection import inspect_media
from avfuse.media import Losses

NUM_BAD = 34  # at least
GOOD = [name for name, (reason, _) in FILES.items() if reason is None]
NUM_SHOWN = {"eight_frames.mp4": 8, "begins_before_zero.mp4": NUM_FRAMES - 13}  # 0.5 s are 12.5 frames
LUMA = (0.299, 0.587, 0.114)
every_file = pytest.mark.parametrize("name", list(FILES), ids=ascii)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | None]]:
    folder = tmp_path_factory.mktemp("bad")
    return folder, write_files(folder)


@pytest.fixture(scope="module")
def ask(written: tuple[Path, dict[str, str | None]]) -> Iterator[Judge]:
    with Judge(written[0]) as asked:
        yield asked


def existing(name: str, written: tuple[Path, dict[str, str | None]]) -> Path:
    if name not in written[1]:
        pytest.skip("it cannot be made here: its encoder is missing, or root may read everything")
    return written[0] / name


def test_there_are_enough_of_them() -> None:
    assert len(FILES) - len(GOOD) >= NUM_BAD
    assert {reason for reason, _ in FILES.values() if reason} >= {
        *("missing_file", "unreadable", "truncated", "corrupt_packets", "over_limit"),
        *("no_video_stream", "no_audio_stream", "too_short", "too_slow"),
    }


@every_file
def test_every_file_gets_its_reason_in_time(name: str, written: tuple[Path, dict[str, str | None]], ask: Judge) -> None:
    path = existing(name, written)
    found = ask(name)
    assert found["reason"] == written[1][name], found
    if found["reason"] is None:
        lost = 1 if name == "one_bad_packet.mp4" else 0
        assert found["losses"] == asdict(Losses()) | {
            "num_video_packets": 8 if name == "eight_frames.mp4" else NUM_FRAMES,
            "num_video_lost": lost,
            "num_audio_packets": found["losses"]["num_audio_packets"],
        }
        assert found["num_clips"] >= 1
    elif found["reason"] in {"missing_file", "unreadable", "over_limit"}:
        assert str(path) in found["message"]


@every_file
def test_the_audit_agrees(name: str, written: tuple[Path, dict[str, str | None]], ask: Judge) -> None:
    """Of packets that are lost it has its own limit; it does not refuse a file for them."""
    path = existing(name, written)
    expected = ask(name)["reason"]  # where a file hangs, it hangs there
    reasons = [error.reason for error in inspect_media(path).errors]
    if expected in {None, "corrupt_packets"}:
        assert reasons == []
    else:
        assert reasons[0] == expected


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_good_files_show_what_was_recorded(name: str, written: tuple[Path, dict[str, str | None]]) -> None:
    frames = frames_of(existing(name, written))
    lost = [NUM_FRAMES // 2] if name == "one_bad_packet.mp4" else []
    assert list(frames) == [index for index in range(NUM_SHOWN.get(name, NUM_FRAMES)) if index not in lost]
    if name == "rotated.mp4":
        assert {image_YXC.shape for image_YXC in frames.values()} == {(96, 64, 3)}
        return
    first = NUM_FRAMES - NUM_SHOWN[name] if name == "begins_before_zero.mp4" else 0
    for index in (0, len(frames) - 1):
        # In grey, as one of them is; lossy coding leaves a likeness.
        height_px, width_px = frames[index].shape[:2]
        pair = [
            (image_YXC @ LUMA).ravel() for image_YXC in (frames[index], picture(first + index, width_px, height_px))
        ]
        assert np.corrcoef(*pair)[0, 1] > 0.9


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n", "ffconcat version 1.0\nfile {url}\n"]
)
def test_no_list_makes_a_connection(text: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        path = tmp_path / "list.mp4"
        path.write_text(text.format(url=f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"))
        assert judge(path)["reason"] == "unreadable"
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


def test_a_list_would_be_followed_if_it_were_not_refused(tmp_path: Path) -> None:
    """The test of lists is one: FFmpeg by itself opens the file that this one names."""
    record(tmp_path / "named.mp4")
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile named.mp4\n")
    with av.open(str(path)) as container:
        assert container.format.name == "concat"
        assert next(container.decode(video=0)).width == 64
    assert judge(path)["reason"] == "unreadable"


def test_a_file_that_hangs_is_told(tmp_path: Path) -> None:
    with Judge(tmp_path, limit_s=0.0) as ask, pytest.raises(AssertionError, match=r"'any\.mp4' took more than 0\.0 s"):
        ask("any.mp4")
