"""A bucket on an S3-compatible server: what is asked of it, how long that may take, and what its refusals mean.

Endpoint, region and credentials are those of the AWS tools: the variables ``AWS_...``, else the profile. A request that
fails for a passing reason is made again a few times. What the server says no to, or does not answer, is a
`ConnectionError` with the reason in one line; only a key that is not there is a `FileNotFoundError`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from avfuse.schema import UsageError
from avfuse.stores import open_array

try:
    import botocore.session
    import obstore
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import S3Store
except ImportError as error:
    raise UsageError(
        f"a place on a server (s3://) needs packages that are missing ({error.name}); "
        "install them with: pip install 'avfuse[s3]'"
    ) from error

CONNECT_S, ANSWER_S, CARRY_S = 5, 10, 300  # for a connection, a short answer, the content of a file
MAX_RETRIES, RETRY_S = 5, 15
_NO_CONDITIONS = ("501 Not Implemented", "<Code>NotImplemented</Code>")


class Entry(NamedTuple):
    """What a listing says of a key: the length of its content, a tag of it, and when it was written, since 1970."""

    num_bytes: int
    tag: str
    changed_s: float


class Bucket:
    """A bucket; `location` is what a message says of where it is.

    Raises
    ------
    UsageError
        If there are no credentials, or the endpoint is no address.
    """

    def __init__(self, name: str, location: str) -> None:
        self.name = name
        self.location = location
        settings = _read_settings(name)
        self._short, self._long = (_connect(name, settings, timeout_s) for timeout_s in (ANSWER_S, CARRY_S))

    def read(self, key: str, *, is_short: bool = False) -> bytes:
        """Return the content of a key.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        with self._asking(key):
            return obstore.get(self._short if is_short else self._long, key).bytes().to_bytes()

    def write(self, key: str, content: bytes) -> str:
        """Write a key, in one step; return the tag that the server gives its content."""
        with self._asking():
            return _plain(obstore.put(self._long, key, content, use_multipart=False)["e_tag"])

    def create(self, key: str, content: bytes) -> bool:
        """Write a key if it is not there; return whether it was written.

        A server that knows no conditions writes it in any case.
        """
        try:
            with self._asking():
                obstore.put(self._long, key, content, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        except ConnectionError as error:
            if not any(words in str(error.__cause__) for words in _NO_CONDITIONS):
                raise
            self.write(key, content)
        return True

    def list_below(self, prefix: str) -> dict[str, Entry]:
        """Return what there is below a prefix, by its path there."""
        with self._asking():
            found = [item for page in obstore.list(self._short, prefix) for item in page]
        start = len(prefix) + 1 if prefix else 0
        return {
            item["path"][start:]: Entry(item["size"], _plain(item["e_tag"]), item["last_modified"].timestamp())
            for item in found
        }

    def list_directly(self, prefix: str) -> tuple[list[str], list[str]]:
        """Return the names of the prefixes directly below a prefix, and of the keys, sorted."""
        with self._asking():
            found = obstore.list_with_delimiter(self._short, prefix)
        keys = [entry["path"] for entry in found["objects"]]
        prefixes, names = (
            [path.rpartition("/")[2] for path in sorted(some)] for some in (found["common_prefixes"], keys)
        )
        return prefixes, names

    def delete(self, keys: Sequence[str]) -> None:
        """Remove keys, be they there or not, in no particular order."""
        if keys:
            with self._asking():
                obstore.delete(self._short, list(keys))

    def copy(self, source: str, target: str) -> None:
        """Copy a key on the server."""
        with self._asking(source):
            obstore.copy(self._long, source, target)

    def open_array(self, key: str) -> Any:
        """Return a Zarr array; it, and reading it, raise `FileNotFoundError` for a chunk that is not there."""
        return open_array(_Keys(self), path=key, mode="r", zarr_format=3)

    @contextmanager
    def _asking(self, key: str = "") -> Iterator[None]:
        """Say of what goes wrong inside, in one line, whether a key is not there or the server gave no answer."""
        try:
            yield
        except AlreadyExistsError as error:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        except (BaseError, BotoCoreError) as error:
            raise ConnectionError(errno.EIO, _describe(error), self.location) from error
        except FileNotFoundError as error:
            if not key or "<Code>NoSuchBucket</Code>" in str(error):
                raise ConnectionError(errno.EIO, _describe(error), self.location) from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"s3://{self.name}/{key}") from error


class _Keys(ObjectStore[S3Store]):
    """The keys of a bucket for zarr, to which a chunk that is not there would be one of fill values."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._long, read_only=True)
        self._bucket = bucket

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer:
        with self._bucket._asking(key):
            found = await super().get(key, prototype, byte_range)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"s3://{self._bucket.name}/{key}")
        return found


def _read_settings(bucket: str) -> dict[str, Any]:
    """Return endpoint, region and credentials as the AWS tools have them; raises as `Bucket` does."""
    session = botocore.session.Session()
    is_anonymous = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
    try:
        profile = session.get_scoped_config()
        credentials = None if is_anonymous else session.get_credentials()
    except BotoCoreError as error:
        raise UsageError(f"the settings of AWS cannot be used: {error}") from error
    if credentials is None and not is_anonymous:
        raise UsageError(
            f"there are no credentials for s3://{bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a "
            "profile with AWS_PROFILE, or set AWS_SKIP_SIGNATURE=true where the bucket is open to everybody"
        )
    endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    if endpoint and not re.fullmatch(r"https?://[\w.:\[\]-]+/?", endpoint):
        raise UsageError(f"AWS_ENDPOINT_URL={endpoint} is no address of a server; give one such as http://HOST:PORT")
    return {
        **({"endpoint": endpoint.rstrip("/")} if endpoint else {}),
        "region": _first("AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region") or "us-east-1",
        "skip_signature": is_anonymous,
        "credential_provider": None if is_anonymous else Boto3CredentialProvider(session),
    }


def _connect(bucket: str, settings: dict[str, Any], timeout_s: float) -> S3Store:
    try:
        return S3Store(
            bucket,
            **settings,
            client_options={
                "allow_http": settings.get("endpoint", "").startswith("http:"),
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={
                "max_retries": MAX_RETRIES,
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
                "retry_timeout": timedelta(seconds=RETRY_S),
            },
        )
    except (BaseError, ValueError) as error:
        raise UsageError(f"s3://{bucket} cannot be asked: {_describe(error)}") from error


def _first(*variables: str) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)


def _describe(error: Exception) -> str:
    """Return the reason of an error in one line: what the server said, or why it said nothing."""
    text = str(error)
    said = [re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Message", "Code")]
    if said[1]:
        return f"{said[0][1] if said[0] else 'refused'} ({said[1][1]})"
    server = found[0] if (found := re.search(r"https?://[^/\s]+", text)) else "the server"
    if "kind: Timeout" in text:
        return f"{server} does not answer in time"
    if "kind: Connect" in text:
        why = re.search(r'(?:message|error): "([^"]+)"', text)
        return f"{server} cannot be reached" + (f" ({why[1]})" if why else "")
    if status := re.search(r"status code: (\d+ [A-Z][A-Za-z ]+)", text):
        return f"{server} says {status[1]}"
    return text.partition("\n")[0]


def _names(paths: Sequence[str]) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in paths)


def _plain(tag: str | None) -> str:
    return (tag or "").strip('"')
