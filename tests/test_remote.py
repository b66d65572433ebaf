"""Caches on a server: nobody sees half of a recording, silence is no damage, training is that from a folder."""

import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3
import tiny
import zarr
from s3 import Server
from test_extract import face_video, files_of, write_trace
from test_stores import number_of, write_group
from test_train import assert_equal_weights
from test_train import options as train_options
from tiny import options
from toy import add_recording, toy_spec

from avfuse import cli, registry
from avfuse.cache import RECORDINGS, FeatureCache, open_store
from avfuse.cached import group_of
from avfuse.clips import ChangedError
from avfuse.extract import extract
from avfuse.ledger import FAILURES
from avfuse.schema import UsageError
from avfuse.stores import METADATA
from avfuse.train import train
from avfuse.verification import verify_store

pytest.importorskip("obstore", reason="stores on a server are read with obstore")
from avfuse.stores import _bucket
from avfuse.stores import s3 as s3_module
from avfuse.stores.s3 import S3Store

GROUP = group_of("new")
Refusal = tuple[int, str] | None


def small_cache(home: Path | str) -> FeatureCache:
    """Make a cache that can be trained on, and is soon made."""
    cache = FeatureCache.create(home, toy_spec(), {})
    for number, (name, partition) in enumerate({"one": "train", "two": "train", "three": "validation"}.items()):
        add_recording(cache, name, partition, 24, seed=number)
    return cache


def contents(store: S3Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.files("")}


def notes(store: S3Store) -> dict[str, int]:
    """Return what lies beside the store."""
    return S3Store(store.location.removesuffix(".zarr") + ".tmp").files("")


@pytest.fixture
def store(bucket: str) -> S3Store:
    """Return a store with its root, and no recording."""
    found = FeatureCache.create(f"{bucket}/home", toy_spec(), {}).store
    assert isinstance(found, S3Store)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long is waited at most before each attempt, instead of waiting."""
    longest: list[float] = []
    monkeypatch.setattr(s3_module.random, "uniform", lambda low, high: longest.append(high) or 0)
    return longest


# Nobody sees half of a recording


@pytest.mark.parametrize("before", ["nothing", "leftovers"])
def test_a_writer_may_stop_at_any_request(store: S3Store, s3_server: Server, before: str, waits: list[float]) -> None:
    if before == "leftovers":  # of a writer that had more files, and never came to its end
        stop_at(s3_server, 4)
        aside = write_group(store, 9)
        (aside / "array" / "c" / "1").write_bytes(b"9")
        with pytest.raises(ConnectionError):
            store.put(aside, GROUP)
    num_done, is_over = 0, False
    while not is_over:
        stop_at(s3_server, num_done)
        try:
            is_over = store.put(write_group(store, 1), GROUP)
        except ConnectionError:
            is_over = False
        go_on(s3_server)
        is_there = store.metadata(GROUP) is not None
        assert store.groups(RECORDINGS) == list(store.metadata_below(RECORDINGS)) == [GROUP] * is_there
        if is_there:  # it may have stopped behind the metadata: then it is all there
            assert number_of(store, GROUP) == 1
            assert (store.files(GROUP) or {}).keys() == {METADATA, f"array/{METADATA}", "array/c/0"}
        else:
            assert verify_store(store).damages == ()
        if is_there and not is_over:
            store.remove(GROUP)
        num_done += 1
    assert num_done > 8
    assert notes(store) == {}


def test_what_is_being_removed_may_stop_at_any_request(store: S3Store, s3_server: Server) -> None:
    num_done, is_over = 0, False
    while not is_over:
        if store.metadata(GROUP) is None:
            assert store.put(write_group(store, 1), GROUP)
        stop_at(s3_server, num_done)
        try:
            store.remove(GROUP)
            is_over = True
        except ConnectionError:
            pass
        go_on(s3_server)
        if store.metadata(GROUP) is not None:
            assert number_of(store, GROUP) == 1
            assert store.groups(RECORDINGS) == [GROUP]
        else:
            assert store.groups(RECORDINGS) == store.members(RECORDINGS) == []
        num_done += 1
    assert num_done > 4
    assert (store.files(GROUP), notes(store)) == ({}, {})


def stop_at(server: Server, num_answered: int) -> None:
    """Let the server answer so many requests from now on, and refuse all that come then."""
    left = iter(range(num_answered))
    lock = threading.Lock()

    def refuse(method: str, path: str, headers: dict[str, Any]) -> Refusal:
        with lock:
            return None if next(left, None) is not None else (403, "AccessDenied")

    server.refuse = refuse


def go_on(server: Server) -> None:
    server.refuse = lambda method, path, headers: None


def test_a_killed_writer_leaves_nothing_that_is_seen(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache.create(f"{bucket}/home", toy_spec(), {})
    with monkeypatch.context() as patch:

        def stop(bucket: _bucket.Bucket, key: str, content: bytes) -> bool:
            raise KeyboardInterrupt

        patch.setattr(_bucket.Bucket, "create", stop)
        with pytest.raises(KeyboardInterrupt):
            add_recording(cache, "a", "train", 30, seed=0)
    assert len(cache.store.files(group_of("a")) or {}) == 20  # two files of each array
    assert (cache.recordings(), cache.names(), cache.store.groups(RECORDINGS)) == ([], [], [])
    assert verify_store(cache.store).damages == ()
    assert FeatureCache.create(f"{bucket}/home", toy_spec(), {}).store.files(group_of("a"))  # its writer is alive
    monkeypatch.setattr(s3_module.atomic, "_is_alive", lambda process: False)
    assert cache.store.prepare() == [group_of("a")]
    assert cache.store.files(group_of("a")) == {}
    arrays = add_recording(cache, "a", "train", 20, seed=1)
    (recording,) = cache.recordings()
    np.testing.assert_array_equal(recording.array("audio"), arrays["audio"])
    assert isinstance(cache.store, S3Store)
    assert notes(cache.store) == {}


def test_the_next_writer_completes_what_a_killed_one_left(bucket: str, s3_server: Server) -> None:
    cache = FeatureCache.create(f"{bucket}/home", toy_spec(), {})
    stop_at(s3_server, 12)
    with pytest.raises(ConnectionError):
        add_recording(cache, "a", "train", 30, seed=0)
    go_on(s3_server)
    assert cache.recordings() == []
    arrays = add_recording(cache, "a", "train", 20, seed=1)
    (recording,) = cache.recordings()
    np.testing.assert_array_equal(recording.array("audio"), arrays["audio"])


# Two writers of one recording


def meet(server: Server, act: Callable[[], object], at: str = f"{GROUP}/{METADATA}", times: int = 1) -> None:
    """Let another writer act at the moment when one is about to write a key."""
    left, is_acting = iter(range(times)), threading.Event()

    def refuse(method: str, path: str, headers: dict[str, Any]) -> Refusal:
        if method == "PUT" and path.endswith(at) and not is_acting.is_set() and next(left, None) is not None:
            is_acting.set()
            act()
            is_acting.clear()
        return None

    server.refuse = refuse


@pytest.mark.parametrize("knows_conditions", ["yes", "ignores them", "refuses them"])
def test_of_two_writers_one_stands_whole(
    store: S3Store, s3_server: Server, waits: list[float], knows_conditions: str
) -> None:
    other = S3Store(store.location)
    results = []
    meet(s3_server, lambda: results.append(other.put(write_group(other, 2), GROUP)))
    met = s3_server.refuse

    def refuse(method: str, path: str, headers: dict[str, Any]) -> Refusal:
        condition = headers.pop("HTTP_IF_NONE_MATCH", None) if knows_conditions != "yes" else None
        return (
            (501, "NotImplemented") if knows_conditions == "refuses them" and condition else met(method, path, headers)
        )

    s3_server.refuse = refuse
    assert store.put(write_group(store, 1), GROUP)  # the last to end
    assert results == [True]
    assert number_of(store, GROUP) == 1
    assert notes(store) == {}
    assert waits == [0, 0, 1]  # the first attempts of both wait for nobody


def test_two_writers_of_the_same_are_one(store: S3Store, s3_server: Server, waits: list[float]) -> None:
    other = S3Store(store.location)
    meet(s3_server, lambda: other.put(write_group(other, 1), GROUP))
    assert not store.put(write_group(store, 1), GROUP)
    assert number_of(store, GROUP) == 1
    assert waits == [0, 0]
    assert notes(store) == {}


def test_what_a_writer_that_died_wrote_in_between_is_written_again(
    store: S3Store, s3_server: Server, waits: list[float]
) -> None:
    other = S3Store(store.location)

    def die() -> None:
        other._upload(GROUP, {"array/c/0": shutil.copy(__file__, Path(write_group(other, 2), "array", "c", "0"))})

    meet(s3_server, die)
    assert store.put(write_group(store, 1), GROUP)
    assert number_of(store, GROUP) == 1
    assert waits == [0, 1]


def test_writers_that_never_agree_end(store: S3Store, s3_server: Server, waits: list[float]) -> None:
    other = S3Store(store.location)
    meet(s3_server, lambda: other.write_metadata(GROUP, b"{}"), times=100)
    with pytest.raises(OSError, match="other writers keep writing the same recording"):
        store.put(write_group(store, 1), GROUP)
    assert waits == list(range(s3_module.MAX_ATTEMPTS))


def test_many_writers_at_once(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "MAX_ATTEMPTS", 50)
    monkeypatch.setattr(s3_module.random, "uniform", lambda low, high: 0.01 * high * np.random.default_rng().random())
    asides = [write_group(store, number) for number in range(5)]
    threads = [threading.Thread(target=S3Store(store.location).put, args=(aside, GROUP)) for aside in asides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number_of(store, GROUP) in range(5)
    assert store.groups(RECORDINGS) == [GROUP]


def test_what_is_set_aside_lies_where_the_page_says(store: S3Store, bucket: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "remote.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^    s3://bucket/lab(/.*<what>.*)$", page, re.MULTILINE)
    store.put(write_group(store, 1), GROUP)
    place = store.set_aside(GROUP)
    parts = {"<data set>-<fingerprint>": toy_spec().store_name.removesuffix(".zarr"), "<what>": "new"}
    parts |= {"<host>": socket.gethostname(), "<process>": str(os.getpid())}
    for name, value in parts.items():
        shown = shown.replace(name, value)
    assert re.fullmatch(re.escape(f"{bucket}/home{shown}").replace("<random>", "[0-9a-f]{8}"), place)
    assert "aws s3 rm --recursive s3://bucket/lab/features/<data set>-<fingerprint>.damaged/\n" in page
    assert S3Store(place).files("").keys() == {METADATA, f"array/{METADATA}", "array/c/0"}


# A server that says no, or nothing


def refuse_all(status: int, code: str) -> Callable[[str, str, dict[str, Any]], Refusal]:
    return lambda method, path, headers: (status, code)


def opened(place: str) -> list[Callable[[], object]]:
    """Return the ways to open a cache."""
    return [
        lambda: FeatureCache.find(place),
        lambda: FeatureCache.open(f"{place}/x.zarr"),
        lambda: FeatureCache.create(place, toy_spec(), {}),
    ]


def test_no_bucket_and_no_permission_are_said(bucket: str, s3_server: Server) -> None:
    for act in opened(f"{bucket}-of-nobody/home"):
        with pytest.raises(UsageError, match=r"-of-nobody/home.*does not exist \(NoSuchBucket\)"):
            act()
    s3_server.refuse = refuse_all(403, "AccessDenied")
    for act in opened(f"{bucket}/home"):
        with pytest.raises(UsageError, match=r"/home.*as the test wants it \(AccessDenied\)"):
            act()


def test_a_server_that_is_gone_or_silent_is_said(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with monkeypatch.context() as patch:
            patch.setattr(_bucket, "ANSWER_S", 0.2)
            patch.setattr(_bucket, "CARRY_S", 0.2)
            patch.setattr(_bucket, "RETRY_S", 0)
            for act in opened(f"{bucket}/home"):
                with pytest.raises(UsageError, match=f"{url} does not answer in time"):
                    act()
    for act in opened(f"{bucket}/home"):
        with pytest.raises(UsageError, match=rf"{url} cannot be reached \(Connection refused\)"):
            act()
    for command, asked in {"ls": "/features", "info": "", "verify": "", "repair": ""}.items():
        told = f"Error: {bucket}/home{asked} cannot be read: {url} cannot be reached (Connection refused)\n"
        assert run(monkeypatch, capsys, "cache", command, f"{bucket}/home") == (2, told)


def test_a_refusal_that_passes_is_no_refusal(bucket: str, s3_server: Server) -> None:
    cache = small_cache(f"{bucket}/home")
    seen: set[tuple[str, str]] = set()

    def refuse(method: str, path: str, headers: dict[str, Any]) -> Refusal:
        is_first = (method, path) not in seen
        seen.add((method, path))
        return (503, "SlowDown") if is_first else None

    s3_server.refuse = refuse
    assert [item.name for item in FeatureCache.find(cache.path).recordings()] == ["one", "three", "two"]


def test_an_empty_place_is_told_from_a_server_that_cannot_be_asked(bucket: str, s3_server: Server) -> None:
    with pytest.raises(UsageError, match=r"home holds no features; make them with: avfuse extract ROOT --cache s3://"):
        FeatureCache.find(f"{bucket}/home")
    cache = small_cache(f"{bucket}/home")
    told = f"^{bucket}/home/features/ is a folder of stores itself; give {bucket}/home, or one of: {cache.path}$"
    with pytest.raises(UsageError, match=told):
        FeatureCache.find(f"{bucket}/home/features/")
    with pytest.raises(UsageError, match="/features is a folder of stores itself; give the one that holds it"):
        FeatureCache.create(f"{bucket}/home/features", toy_spec(), {})
    s3_server.refuse = refuse_all(500, "InternalError")
    asked: list[Callable[[], object]] = [
        cache.recordings,
        cache.names,
        cache.ledger.failures,
        lambda: cache.recording("one").is_whole,
        lambda: cache.recording("one").video,
        lambda: cache.store.files(RECORDINGS),
        lambda: cache.store.read(METADATA),
        lambda: cache.remove("one"),
        lambda: cache.store.set_aside(group_of("one")),
        lambda: cache.store.write_metadata("", b""),
        lambda: verify_store(cache.store),
    ]
    for ask in asked:
        with pytest.raises(ConnectionError, match=r"as the test wants it|says 500 Internal Server Error"):
            ask()
    go_on(s3_server)
    recording = cache.recordings()[0]
    s3_server.refuse = refuse_all(403, "ExpiredToken")
    reads: list[Callable[[], object]] = [lambda: recording.array("audio"), lambda: recording.check(0)]
    for read in reads:
        with pytest.raises(ConnectionError, match="ExpiredToken"):
            read()


@pytest.mark.parametrize("place", ["s3://", "s3:///home", "s3://bucket/../home", "s3://bucket//home"])
def test_what_is_no_place_on_a_server_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="is no place on a server; give s3://BUCKET or s3://BUCKET/PREFIX"):
        open_store(place)


def test_a_bucket_itself_is_no_store(bucket: str) -> None:
    with pytest.raises(UsageError, match="give a place in it, such as s3://"):
        open_store(bucket).prepare()
    assert FeatureCache.create(bucket, toy_spec(), {}).path == FeatureCache.find(f"{bucket}/").path


def test_credentials_and_endpoint_are_those_of_the_aws_tools(
    bucket: str, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = small_cache(f"{bucket}/home").path
    signed: list[str] = []

    def note(method: str, path: str, headers: dict[str, Any]) -> None:
        signed.append(headers.get("HTTP_AUTHORIZATION", ""))

    s3_server.refuse = note
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL=nonsense is no address of a server; give one such as http"):
        FeatureCache.open(location)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=r"no credentials for s3://bucket-.*set AWS_ACCESS_KEY_ID and .* AWS_PROFILE"):
        FeatureCache.open(location)
    (tmp_path / "config").write_text(
        "[profile lab]\nregion = eu-west-1\naws_access_key_id = from-a-profile\naws_secret_access_key = x\n"
        f"endpoint_url = {s3_server.url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    FeatureCache.open(location)
    assert "Credential=from-a-profile/" in signed[-1]
    assert "/eu-west-1/s3/" in signed[-1]
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UsageError, match=r"settings of AWS cannot be used: .*profile \(nobody\) could not be found"):
        FeatureCache.open(location)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(UsageError, match=f"{s3_server.url} says 403 Forbidden"):  # it is not open to everybody
        FeatureCache.open(location)
    assert signed[-1] == ""


def test_proxies_are_not_asked_for_a_server_that_is_exempt(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert small_cache(f"{bucket}/home").names() == ["one", "three", "two"]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avfuse.stores.s3", "avfuse.stores._bucket"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"install them with: pip install 'avfuse\[s3\]'"):
        open_store("s3://bucket/home")


# What is read there


def test_few_requests_open_a_cache(bucket: str, s3_server: Server) -> None:
    cache = small_cache(f"{bucket}/home")
    for ask, num_others in ((cache.recordings, 3), (cache.names, 2)):
        s3_server.asked.clear()
        ask()
        assert len(s3_server.asked) == 3 + num_others  # one per recording, and those
    s3_server.asked.clear()
    FeatureCache.find(f"{bucket}/home")
    assert len(s3_server.asked) == 3
    s3_server.asked.clear()
    cache.recording("one").array("audio")
    assert len(s3_server.asked) == 3  # the recording's metadata, the array's, and its chunk


def test_metadata_are_asked_for_side_by_side(bucket: str, s3_server: Server) -> None:
    cache = small_cache(f"{bucket}/home")
    together = threading.Barrier(3, timeout=20)

    def refuse(method: str, path: str, headers: dict[str, Any]) -> Refusal:
        if path.endswith(METADATA):
            together.wait()  # of the three recordings; none is answered before all are asked for
        return None

    s3_server.refuse = refuse
    assert len(cache.recordings()) == 3


def test_a_lone_zarr_reader_sees_it(bucket: str, tmp_path: Path, s3_server: Server) -> None:
    import obstore.store
    from zarr.storage import ObjectStore

    location, folder = str(small_cache(f"{bucket}/home").path), small_cache(tmp_path)
    there = obstore.store.from_url(location, endpoint=s3_server.url, client_options={"allow_http": True})
    root = zarr.open_group(ObjectStore(there, read_only=True), mode="r")
    assert sorted(root.group_keys()) == [FAILURES, RECORDINGS]
    assert sorted(root[RECORDINGS].group_keys()) == ["one", "three", "two"]
    assert root.attrs["fingerprint"] == folder.spec.fingerprint
    for name in ("video", "audio", "target"):
        expected = zarr.open_array(Path(folder.path) / RECORDINGS / "two" / name, mode="r")[...]
        np.testing.assert_array_equal(root[RECORDINGS]["two"][name][...], expected, strict=True)


def change(store: S3Store, path: str) -> None:
    """Change a byte in the middle of what lies on the server."""
    content = bytearray(store.read(path))
    content[len(content) // 2] ^= 1
    store._bucket.write(store._key(path), bytes(content))


@pytest.mark.parametrize("file", ["video/c/0/0/0/0", "video/zarr.json", "target/c/0/0", METADATA])
def test_damage_on_the_server_is_an_error_in_training(bucket: str, file: str) -> None:
    store, path = small_cache(f"{bucket}/home").store, f"{group_of('two')}/{file}"
    assert isinstance(store, S3Store)
    content = store.read(path)
    for damage in ("changed", "cut", "deleted"):
        if damage == "changed":
            change(store, path)
        elif damage == "cut":
            store._bucket.write(store._key(path), content[:-1])
        else:
            store._bucket.delete([store._key(path)])
        with pytest.raises(UsageError, match=r"recordings/two(/(video|target))? is damaged; see what is wrong with"):
            train(train_options(f"{bucket}/home", epochs=1))
        assert {found.recording for found in verify_store(store).damages} == {"two"}
        store._bucket.write(store._key(path), content)
    assert verify_store(store).damages == ()


def test_a_chunk_that_is_lost_later_is_never_read_as_zeros(bucket: str) -> None:
    store = small_cache(f"{bucket}/home").store
    assert isinstance(store, S3Store)
    clips = store.clips(f"{group_of('one')}/video")
    assert clips.chunk(0).any()
    store._bucket.delete([store._key(group_of("one"), "video/c/0/0/0/0")])
    with pytest.raises(ChangedError, match="recordings/one/video was changed while it was being used"):
        clips.chunk(0)
    with pytest.raises(FileNotFoundError, match="recordings/one/video/c/0/0/0/0"):
        store.clips(f"{group_of('one')}/video").chunk(0)
    store.set_aside(group_of("one"))
    small_cache(f"{bucket}/home")
    clips = store.clips(f"{group_of('one')}/video")
    before = clips.chunk(0)
    other = store._bucket.read(store._key(group_of("two"), "video/c/0/0/0/0"))
    store._bucket.write(store._key(group_of("one"), "video/c/0/0/0/0"), other)
    with pytest.raises(ChangedError, match="recordings/one/video was changed"):
        clips.chunk(0)
    assert before.any()


# Extraction and training


@pytest.fixture
def _tiny_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in tiny.ENCODERS.items():
        monkeypatch.setitem(registry.ENCODERS, name, row)


def corpus(root: Path) -> Path:
    """Lay out a corpus of two recordings that can be used and one that cannot."""
    for place, beep_at_s in (("train/one", 0.1), ("validation/two", 0.2)):
        path = face_video(root / f"{place}.mp4", np.arange(17) / 25, beep_at_s=beep_at_s)
        write_trace(path, 17)
    (root / "train" / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.mark.usefixtures("_tiny_encoders")
def test_extraction_to_a_server_is_that_to_a_folder(bucket: str, tmp_path: Path) -> None:
    root = corpus(tmp_path / "root")
    folder, remote = extract(options(root)), extract(options(root, cache=f"{bucket}/home"))
    assert str(remote.store) == f"{bucket}/home/features/{Path(folder.store).name}"
    assert [failure.recording for failure in remote.failures] == ["train/broken"]
    store = open_store(remote.store)
    assert isinstance(store, S3Store)
    expected = {path.as_posix(): content for path, content in files_of(Path(folder.store)).items()}
    assert contents(store) == expected
    again = extract(options(root, cache=f"{bucket}/home"))
    assert (again.num_extracted, again.num_present, len(again.failures)) == (0, 2, 1)
    assert contents(store) == expected
    change(store, "recordings/train%2Fone/audio/c/0/0")
    assert len(verify_store(store).damages) == 1
    store.set_aside("recordings/train%2Fone")
    mended = extract(options(root, cache=f"{bucket}/home"))
    assert (mended.num_extracted, mended.num_present) == (1, 1)
    assert contents(store) == expected
    assert list(store.aside().parent.iterdir()) == []


@pytest.mark.usefixtures("_tiny_encoders")
def test_a_server_that_goes_away_ends_the_command_and_the_next_goes_on(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = corpus(tmp_path / "root")
    going = Server()
    s3.use(going, monkeypatch)
    stopping: list[threading.Thread] = []

    def refuse(method: str, path: str, headers: dict[str, Any]) -> None:
        if method == "PUT" and "two/" in path and path.endswith("/video/c/0/0/0/0") and not stopping:
            stopping.append(threading.Thread(target=going.stop))
            stopping[0].start()

    going.refuse = refuse
    arguments = ["extract", str(root), "--corpus", "folder", "--cache", f"{bucket}/home", "--device", "cpu"]
    arguments += ["--video-weights", "x", "--audio-weights", "x", "--precision", "fp32", "--num-workers", "1"]
    monkeypatch.setitem(registry.ENCODERS, "r3d", tiny.ENCODERS["tiny_video"])
    monkeypatch.setitem(registry.ENCODERS, "spectrogram_resnet", tiny.ENCODERS["tiny_audio"])
    code, said = run(monkeypatch, capsys, *arguments)
    stopping[0].join()
    assert code == 1
    why = r"\(Connection (refused|reset by peer)\)"  # as it is asked before or after it has gone
    assert re.search(rf"{re.escape(going.url)} cannot be reached {why}; what was finished is kept", said)
    staying = Server()
    s3.use(staying, monkeypatch)
    code, said = run(monkeypatch, capsys, *arguments)
    staying_store = FeatureCache.find(f"{bucket}/home")
    assert code == 3  # for the recording that is no video
    assert staying_store.names() == ["train/one", "validation/two"]
    assert verify_store(staying_store.store).damages == ()
    assert not any("train%2Fone/video" in path for method, path in staying.asked if method == "PUT")
    staying.stop()


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Call the command line; return its exit code and what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["avfuse", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(cli, "set_up_logging", lambda verbose, quiet: None)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("resident", ["no", "ram"])
def test_training_from_a_server_gives_the_weights_of_training_from_a_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: str
) -> None:
    monkeypatch.setenv("AVFUSE_CACHE", str(tmp_path / "runs-of-remote-caches"))
    small_cache(tmp_path), small_cache(f"{bucket}/home")
    runs = [train(train_options(place, epochs=2, resident=resident))[0].run for place in (tmp_path, f"{bucket}/home")]
    assert Path(runs[1]).is_relative_to(tmp_path / "runs-of-remote-caches" / "runs")
    assert_equal_weights(*runs)
