"""Whose fault an error is, and whether it may pass."""

import errno
import os
from pathlib import Path

import av.error
import pytest
from tiny import options

from avfuse.reasons import describe_error, describe_failure, is_overruled, may_pass
from avfuse.schema import Failure, PassingError, Recording, RecordingError, UsageError


def caused(cause: BaseException, reason: str = "unreadable") -> RecordingError:
    """Return what a page makes of an error."""
    try:
        raise RecordingError(reason, f"a.mp4 cannot be read ({cause})") from cause
    except RecordingError as error:
        return error


def of_system(number: int) -> OSError:
    return OSError(number, os.strerror(number), "a.mp4")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("too much"), "out_of_memory"),
        (of_system(errno.ENOMEM), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (ZeroDivisionError("by nought"), "unexpected"),
        (caused(of_system(errno.EACCES)), "unreadable"),
        (caused(of_system(errno.ESTALE), "missing_crops"), "missing_crops"),
        (of_system(errno.EIO), None),
        (UsageError("no such codec"), None),
        (caused(of_system(errno.EMFILE)), None),
        (caused(caused(of_system(errno.ENFILE)), "annotation_invalid"), None),
        (caused(av.error.FFmpegError(errno.EMFILE, os.strerror(errno.EMFILE))), None),
        (RuntimeError("can't start new thread"), None),
    ],
)
def test_whose_fault_an_error_is(tmp_path: Path, error: Exception, reason: str | None) -> None:
    recording = Recording("a", tmp_path / "a.mp4", "train", "s")
    failure = describe_failure(recording, error)
    assert (failure.reason if failure else None) == reason


def test_what_the_machine_failed_in_is_told_whatever_was_made_of_it() -> None:
    number, told, _ = describe_error(caused(of_system(errno.EMFILE)))
    assert (number, told.partition(";")[0]) == (errno.EMFILE, os.strerror(errno.EMFILE))
    number, told, _ = describe_error(RuntimeError("can't start new thread"))
    assert (number, told.partition(";")[0]) == (errno.EAGAIN, "no thread can be started")
    assert describe_error(of_system(errno.ENOSPC)) == (errno.ENOSPC, os.strerror(errno.ENOSPC), "a.mp4")
    assert describe_error(UsageError("no such codec")) == (0, "no such codec", "")


@pytest.mark.parametrize(
    ("error", "is_passing"),
    [
        (PassingError("truncated", "it broke off"), True),
        (RecordingError("truncated", "it breaks off"), False),
        (caused(of_system(errno.ESTALE)), True),
        (caused(of_system(errno.EIO)), True),
        (caused(av.error.FFmpegError(errno.EIO, os.strerror(errno.EIO))), False),
        (caused(av.error.FFmpegError(errno.ESTALE, os.strerror(errno.ESTALE))), True),
        (caused(of_system(errno.EACCES)), False),
    ],
)
def test_what_may_succeed_another_time(error: Exception, is_passing: bool) -> None:
    assert may_pass(error) is is_passing


@pytest.mark.parametrize(
    ("failure", "changes", "is_allowed"),
    [
        (Failure("a", "no_audio_stream", ""), {"allow_missing": True}, True),
        (Failure("a", "no_audio_stream", ""), {}, False),
        (Failure("a", "corrupt_packets", "", 0.2), {"max_corrupt": 0.2}, True),
        (Failure("a", "corrupt_packets", "", 0.2), {"max_corrupt": 0.1}, False),
        (Failure("a", "no_face", "", 0.2), {"min_face_share": 0.2}, True),
        (Failure("a", "no_face", "", 0.2), {"min_face_share": 0.3}, False),
        (Failure("a", "no_face", ""), {"min_face_share": 0.0}, False),
        (Failure("a", "too_short", "", 0.2), {"min_face_share": 0.0}, False),
    ],
)
def test_options_may_allow_what_a_recording_was_set_aside_for(
    tmp_path: Path, failure: Failure, changes: dict[str, float], is_allowed: bool
) -> None:
    assert is_overruled(failure, options(tmp_path, **changes)) is is_allowed
