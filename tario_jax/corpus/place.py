"""A file or a folder of a corpus, on a local disk or in a bucket (`gs://`, `s3://`): the same calls for both.

Objects in a bucket go through TensorStore's key-value stores, arrays everywhere through `kvstore`. A written file is
whole or absent. An S3 server of one's own is named by AWS_ENDPOINT_URL; keys come from the environment or the cloud's
own files.
"""

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import tensorstore as ts

from tario_jax.config import InputError
from tario_jax.whole_file import PARTIAL, write_whole

_CLOUD = re.compile(r"(gs|s3):/{1,2}([^/]+)/?(.*)")

_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}  # half a minute, not the default's many


class Place:
    """A place, by path or URL. `place / "name"` goes down, `str(place)` is what a user would type."""

    def __init__(self, at: "str | Path | Place"):
        self._at = str(at)
        cloud = _CLOUD.fullmatch(self._at)
        self._bucket = (cloud[1], cloud[2]) if cloud else ("file", "")
        if cloud:
            self._key = cloud[3].strip("/")
            self._at = f"{cloud[1]}://{cloud[2]}/{self._key}"
        else:
            self._key = os.path.abspath(self._at).lstrip("/")

    def __truediv__(self, name: str) -> "Place":
        below = object.__new__(Place)  # it goes down only: nothing is to be resolved again
        below._at, below._bucket = f"{self._at.rstrip('/')}/{name}", self._bucket
        below._key = f"{self._key}/{name}".strip("/")
        return below

    def __str__(self) -> str:
        return self._at

    def __repr__(self) -> str:
        return f"Place({self._at!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self._bucket, self._key) == (other._bucket, other._key)

    def __hash__(self) -> int:
        return hash((self._bucket, self._key))

    @property
    def name(self) -> str:
        return self._key.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The path on a local disk; None in a bucket."""
        return Path("/" + self._key) if self._bucket[0] == "file" else None

    @property
    def kvstore(self) -> dict[str, Any]:
        """The TensorStore spec of the key-value store below this folder."""
        return _store_spec(*self._bucket) | {"path": f"{'/' if self.local else ''}{self._key}/"}

    def read(self) -> bytes:
        """The whole file. Raises `FileNotFoundError` where there is none, `InputError` where it cannot be read."""
        if self.local is not None:
            return self.local.read_bytes()
        found = self._ask(lambda store: store.read(self._key))
        if found.state != "value":
            raise FileNotFoundError(str(self))
        return found.value

    def write(self, content: bytes) -> None:
        """Writes the whole file or nothing. Raises `OSError` or `InputError` where disk or bucket refuse it."""
        if self.local is None:
            self._ask(lambda store: store.write(self._key, content))
            return
        self.local.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.local, content, synced=True)

    def exists(self) -> bool:
        """Whether there is a file here; of a folder on a local disk, whether it is there."""
        if self.local is not None:
            return self.local.exists()
        return bool(self._ask(lambda store: store.list(ts.KvStore.KeyRange(self._key, self._key + "\0"))))

    def below(self) -> list[str]:
        """Paths of all files below this folder, in order, relative to it; what a killed write left is not one."""
        if self.local is not None:
            found = (path.relative_to(self.local).as_posix() for path in self.local.rglob("*") if path.is_file())
            return sorted(name for name in found if not name.endswith(PARTIAL))
        prefix = f"{self._key}/"
        keys = self._ask(lambda store: store.list(_range(prefix), strip_prefix_length=len(prefix.encode())))
        return sorted(key.decode() for key in keys)

    def remove(self) -> None:
        """Removes the file, if there is one."""
        if self.local is not None:
            self.local.unlink(missing_ok=True)
        else:
            self._ask(lambda store: store.write(self._key, None))

    def remove_below(self) -> None:
        """Removes everything below this folder."""
        if self.local is None:
            self._ask(lambda store: store.delete_range(_range(f"{self._key}/")))
        elif self.local.exists():
            shutil.rmtree(self.local)

    def sha256(self) -> str:
        """Checksum of the file's bytes."""
        if self.local is not None:
            with self.local.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.read()).hexdigest()

    def _ask(self, request) -> Any:
        try:
            return request(_store(os.getpid(), *self._bucket)).result()
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            raise InputError(f"{self}: {plainly(error)}") from None


def plainly(error: Exception) -> str:
    """What TensorStore says, in one line and without the places in its sources."""
    text = re.sub(r"\s*\[(?:source locations|tensorstore_spec|http_response)=.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.replace("\0", "/").split())


def _range(prefix: str) -> ts.KvStore.KeyRange:
    return ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))


def _store_spec(scheme: str, bucket: str) -> dict[str, Any]:
    if scheme == "file":
        return {"driver": "file"}
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "gcs_request_retries": _RETRIES}
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "s3_request_retries": _RETRIES}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec |= {"aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        spec |= {"aws_credentials": {"type": "environment"}}
    return spec


@functools.cache
def _store(process: int, scheme: str, bucket: str) -> ts.KvStore:
    """One store a bucket. It does not survive a fork, hence `process`."""
    return ts.KvStore.open(_store_spec(scheme, bucket)).result()
