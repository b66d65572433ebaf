"""The feature cache: the only bridge from stage 1 to stage 2. A recording is read by
`avfuse.cached` and written by `avfuse.writer`.

A cache is one hierarchy, plain Zarr 3 wherever it is made of files (docs/cache-format.md has every array)::

    <home>/features/<dataset>-<fingerprint>.zarr/
      zarr.json                        attributes: the CacheSpec and its fingerprint
      recordings/<name>/zarr.json      attributes: source, digests of every array and of every file below
      recordings/<name>/video, audio, target, ...
      failures/<name>/zarr.json        attributes: why a recording could not be used (`avfuse.ledger`)

Arrays are little-endian bytes with a CRC-32C behind every chunk; uncompressed, a chunk file is its array's memory, and
stage 2 maps it instead of reading it. The name of a store carries the fingerprint of its `CacheSpec`; another setting
is another store, so a stale feature can never be read.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from avfuse import atomic, registry
from avfuse.cached import RECORDINGS, CachedRecording, group_of
from avfuse.ledger import FAILURES, Ledger
from avfuse.options import local_home
from avfuse.schema import UsageError
from avfuse.sealed import read_attributes, read_sealed, seal
from avfuse.spec import FORMAT_VERSION, CacheSpec, Source, tell_differences
from avfuse.stores import METADATA, Store, quote

log = logging.getLogger(__name__)

LOCAL_STORES = ("directory", "hdf5")  # paths lead to these; to the others, addresses that begin with their name
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # another place would be no remedy
FEATURES = "features"  # the folder of the stores below a home


def open_store(location: Path | str) -> Store:
    """Return the store at a location: ``s3://...``, a file ``.h5`` or ``.hdf5``, or a folder.

    Raises
    ------
    UsageError
        If it is an address of a kind that is not known.
    """
    if "://" in str(location):
        kind = str(location).partition("://")[0]
        known = [f"{name}://" for name in registry.STORES if name not in LOCAL_STORES]
        if f"{kind}://" not in known:
            raise UsageError(f"{location}: there are no stores at {kind}://; give a path, or {' or '.join(known)}...")
    else:
        kind = "hdf5" if Path(location).suffix in (".h5", ".hdf5") else "directory"
    store: Store = registry.load("store", kind)(location)
    return store


def holds_recordings(store: Store) -> bool:
    """Whether there is a recording with metadata that are unaltered, whatever became of the root."""
    return any(map(read_sealed, store.metadata_below(RECORDINGS).values()))


@contextmanager
def asking() -> Iterator[None]:
    """Refuse a place on a server that does not answer, or says no: nobody can tell what it holds."""
    try:
        yield
    except ConnectionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error


@asking()
def locate(place: Path | str) -> Store:
    """Return the store at `place`, damaged as it may be, or the only one in the cache folder `place`.

    Raises
    ------
    UsageError
        If there is none, more than one to choose from, or its server cannot be asked.
    """
    place = place if "://" in str(place) else Path(place)
    here = open_store(place)
    if here.metadata("") is not None:
        return here
    stores = type(here).find(features_folder(place))
    if not stores and holds_recordings(here):
        return here
    if not stores:
        raise no_features(place)
    if len(stores) > 1:
        raise UsageError(f"{place} holds several feature stores; give one of: {', '.join(map(str, stores))}")
    return open_store(stores[0])


def no_features(place: Path | str) -> UsageError:
    """Return the error about a place that is no home of stores; where they lie in it directly, it says what to give.

    Raises
    ------
    UsageError
        If nothing can be a store there.
    ConnectionError
        If its server cannot be asked.
    """
    stores = find_directly(place)
    if not stores:
        return UsageError(f"{place} holds no features; make them with: avfuse extract ROOT --cache {quote(place)}")
    parent = place.parent if isinstance(place, Path) else place.rstrip("/").rpartition("/")[0]
    home = f"{parent}, or " if _is_named_features(place) else ""
    return UsageError(f"{place} is a folder of stores itself; give {home}one of: {', '.join(map(str, stores))}")


def find_directly(place: Path | str) -> list[Path | str]:
    """Return the feature stores that lie directly in a place, which is then no home but the folder in one."""
    found = [open_store(location) for location in type(open_store(place)).find(place)]
    return [store.location for store in found if _is_of_features(store)]


def _is_named_features(place: Path | str) -> bool:
    """Whether a place is named as the folder in a home, and no bucket."""
    parts = PurePosixPath(str(place)).parts
    return parts[-1:] == (FEATURES,) and not (len(parts) == 2 and parts[0].endswith(":"))


def _is_of_features(store: Store) -> bool:
    return "spec" in (read_attributes(store.metadata("")) or {}) or holds_recordings(store)


class FeatureCache:
    """One store of features. Open an existing one with `open`, or make one with `create`.

    Attributes
    ----------
    store : Store
    spec : CacheSpec
    compress : str
        What is added from now on is compressed like this; see `avfuse.encoding.COMPRESSIONS`.
    """

    def __init__(self, store: Store, spec: CacheSpec, compress: str = "none") -> None:
        self.store = store
        self.spec = spec
        self.compress = compress

    @classmethod
    def create(
        cls,
        home: Path | str,
        spec: CacheSpec,
        provenance: Mapping[str, Any],
        compress: str = "none",
        knob: str = "--cache or $AVFUSE_CACHE",
    ) -> FeatureCache:
        """Open the store of `spec` under `home`, making it when there is none; left-overs of dead writers go.

        `knob` is what another home is given with, for messages.

        Raises
        ------
        UsageError
            If the place cannot be written to, or what is there was made with other settings.
        OSError
            If its disk is full, or fails.
        """
        try:
            store = store_for(home, spec)
            for leftover in store.prepare():
                log.info("removed what a killed writer left: %s", leftover)
            if store.metadata("") is None:
                _make_root(store, spec, provenance)
            for group in (RECORDINGS, FAILURES):  # which somebody may have removed, with what was in it
                if store.metadata(group) is None:
                    store.write_metadata(group, seal({}))
        except OSError as error:
            if error.errno in _OF_THE_MACHINE:
                raise
            raise UsageError(
                f"the cache {home} cannot be written to ({error.strerror or error}); "
                f"give a folder that can be, with {knob}"
            ) from error
        opened = cls.open(store.location)
        if opened.spec.fingerprint != spec.fingerprint:
            told = tell_differences(opened.spec.to_json(), spec.to_json())
            raise UsageError(
                f"{store.location} was renamed, it holds features of other settings ({told}); move it away"
            )
        return cls(store, opened.spec, compress)  # whose note says that it is at work

    @classmethod
    @asking()
    def open(cls, location: Path | str) -> FeatureCache:
        """Open a store for reading.

        Raises
        ------
        UsageError
            If there is no store, one whose format this version does not know, or its server cannot be asked.
        """
        store = open_store(location)
        content = store.metadata("")
        attributes = read_attributes(content)
        again = "; then extract again" if store.is_writable else ""
        if attributes is None or not isinstance(attributes.get("spec"), dict):
            if holds_recordings(store):
                raise UsageError(f"the settings of {location} are damaged; {store.remedy}{again}")
            raise UsageError(f"{location} is not a feature store of avfuse; make one with: avfuse extract")
        version = attributes["spec"].get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{location} has format version {version!r}; this avfuse reads {FORMAT_VERSION}: read it with the "
                "avfuse that made it, or make its features again with: avfuse extract"
            )
        if read_sealed(content) is None:
            raise UsageError(
                f"the settings of {location} were altered after it was made and are damaged; {store.remedy}{again}"
            )
        return cls(store, CacheSpec.from_json(attributes["spec"]))

    @classmethod
    def find(cls, place: Path | str) -> FeatureCache:
        """Open the store at `place`, or the only one in the cache folder `place`.

        Raises
        ------
        UsageError
            If there is none, more than one to choose from, or it cannot be opened.
        """
        return cls.open(locate(place).location)

    @property
    def path(self) -> Path | str:
        """Where it is, as the user names it."""
        return self.store.location

    @property
    def name(self) -> str:
        """Name of the store without its suffix, ending in the fingerprint; runs are kept under it."""
        stem = PurePosixPath(str(self.path)).stem
        return stem if stem.endswith(self.spec.fingerprint) else f"{stem}-{self.spec.fingerprint}"

    @property
    def home(self) -> Path:
        """The folder of `features` and `runs`: the one that holds the store, else the one of the user's choice."""
        if isinstance(self.path, Path) and self.path.resolve().parent.name == FEATURES:
            return self.path.resolve().parent.parent
        return local_home()

    @property
    def ledger(self) -> Ledger:
        """Why recordings could not be used."""
        return Ledger(self.store)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the encoders' weights came from, and which avfuse made the store."""
        return dict((read_attributes(self.store.metadata("")) or {}).get("provenance", {}))

    def recordings(self, partition: str | None = None) -> list[CachedRecording]:
        """Return the recordings, sorted by name; of one partition if given.

        Raises
        ------
        UsageError
            If one of them is damaged: something is missing, cut short or altered, as far as that can be told from the
            metadata and the lengths of files. Values are compared with their digests when they are read.
        """
        surveyed = self.store.survey(RECORDINGS)
        found = [CachedRecording(self.store, group, known) for group, known in surveyed.items()]
        # One that shows half of it may have been replaced, or taken away, while they were listed.
        found = [item if item.is_whole else CachedRecording(self.store, item.group) for item in found]
        found = [item for item in found if item.is_whole or item.group in self.store.groups(RECORDINGS)]
        for item in found:
            if not item.is_whole:
                raise UsageError(f"{item.path} is damaged; {self.store.remedy}")
            if item.fingerprint != self.spec.fingerprint:
                raise UsageError(
                    f"{item.path} was made with other settings ({item.fingerprint}) and is not of this store"
                )
        chosen = [item for item in found if partition in (None, item.source.partition)]
        return sorted(chosen, key=lambda item: item.name)

    def digest(self, partitions: Collection[str], recordings: Sequence[CachedRecording] | None = None) -> str:
        """Return a digest of what the recordings of some partitions hold, in whatever store and compression.

        `recordings` are those of the store, where they are known.
        """
        known = self.recordings() if recordings is None else recordings
        held = [item for item in known if item.source.partition in partitions]
        return atomic.digest_json({item.name: item.digest for item in held})

    def names(self) -> list[str]:
        """Return the names of the recordings, damaged ones included as far as they have one, sorted."""
        found = map(read_attributes, self.store.metadata_below(RECORDINGS).values())
        return sorted(str(attributes["recording"]) for attributes in found if attributes and "recording" in attributes)

    def recording(self, name: str) -> CachedRecording:
        """Return a recording by its name; it need not be there."""
        return CachedRecording(self.store, group_of(name))

    def holds(self, name: str, source: Source) -> bool:
        """Whether the recording is here, whole, and made from these very files."""
        cached = self.recording(name)
        return cached.is_whole and cached.source == source

    def relabel(self, name: str, source: Source) -> bool:
        """Give a recording made from these very files another partition and subject; tell whether that could be."""
        cached = self.recording(name)
        if not cached.is_whole or source != replace(cached.source, partition=source.partition, subject=source.subject):
            return False
        self.store.write_metadata(cached.group, seal({**cached.attributes, "source": asdict(source)}))
        return True

    def remove(self, name: str) -> None:
        """Take a recording out of the store, in one step."""
        self.store.remove(group_of(name))


def features_folder(home: Path | str) -> Path | str:
    """Return the folder of the stores below a home."""
    return f"{home.rstrip('/')}/{FEATURES}" if isinstance(home, str) and "://" in home else Path(home) / FEATURES


def store_for(home: Path | str, spec: CacheSpec) -> Store:
    """Return the store of a spec below a home, or at it, if it is that very store.

    Raises
    ------
    UsageError
        If the home is named like a file, is another store, or the folder of stores in a home.
    """
    if isinstance(home, Path) and home.suffix in (".h5", ".hdf5"):
        raise UsageError(f"{home} is named like a file; give the folder, or the place, that holds features/")
    with asking():
        here = open_store(home)
        is_store = here.metadata("") is not None
        is_folder = not is_store and _is_named_features(home) and bool(find_directly(home))
    if is_folder:
        raise UsageError(f"{home} is a folder of stores itself; give the one that holds it")
    if is_store:
        if PurePosixPath(str(home)).name == spec.store_name:
            return here
        raise UsageError(f"{home} is a store of other features than these; give the folder that holds its features/")
    folder = features_folder(home)
    return open_store(f"{folder}/{spec.store_name}" if isinstance(folder, str) else folder / spec.store_name)


def _make_root(store: Store, spec: CacheSpec, provenance: Mapping[str, Any]) -> None:
    """Write the root of a store, with its empty groups; a root that another process wrote meanwhile stays."""
    attributes = {"spec": asdict(spec), "fingerprint": spec.fingerprint, "provenance": dict(provenance)}
    plain = json.loads(json.dumps(attributes))
    aside = store.aside()
    try:
        for group, content in {"": seal(plain), RECORDINGS: seal({}), FAILURES: seal({})}.items():
            (aside / group).mkdir(parents=True)
            (aside / group / METADATA).write_bytes(content)
        atomic.flush_tree(aside)
        is_ours = store.put(aside, "")
    finally:
        atomic.remove_tree(aside)
    if not is_ours and store.metadata("") is None:  # what was repaired has its recordings, but no root
        store.write_metadata("", seal(plain))
