"""Seals as files: how one is written, signed and read, and its keys (contract §17)."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from stat import S_ISREG
from tempfile import mkstemp
from typing import TYPE_CHECKING, Final, Literal

import click
from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_NAME: Final = re.compile(r"[0-9]{8,18}\.seal", re.ASCII)
_LARGEST: Final = 256 * 1024 * 1024
_READ_ONLY: Final = 0o444


class NotASeal(ValueError):
    """A file has a seal's name, but is none, or is not what its key has signed."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal says: the last event of each work order that has one from `after` to `to` in the feed.

    `previous` is the SHA-256 of the file of the seal before. A head is order, seq and hash.
    """

    number: int
    tenant_id: str
    sealed_at: str
    key: str
    previous: str | None
    after: int
    to: int
    heads: tuple[tuple[str, int, str], ...]
    format: Literal["selene-core seal 1"] = "selene-core seal 1"

    def line(self) -> bytes:
        """Return the first line of the file, which is what is signed."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True, slots=True)
class SealFile:
    """A seal that its key has signed, and the SHA-256 of its file."""

    seal: Seal
    digest: str


def name_of(number: int) -> str:
    """Return the name of a seal's file."""
    return f"{number:08}.seal"


def seals_in(folder: Path) -> dict[int, Path]:
    """Return the files of a folder that have a seal's name, by number, in order."""
    found = ((int(path.stem), path) for path in folder.iterdir() if _NAME.fullmatch(path.name))
    return dict(sorted((number, path) for number, path in found if path.name == name_of(number)))


def read_seal(path: Path) -> SealFile:
    """Read a seal, and check its signature by the key that it names; raises NotASeal."""
    try:
        place = path.stat()
    except OSError as exc:  # a link to nowhere
        raise NotASeal("is not a seal: it cannot be read") from exc
    if not S_ISREG(place.st_mode):
        raise NotASeal("is not a seal: it is not a file")
    if place.st_size > _LARGEST:
        raise NotASeal("is not a seal: it is too long")
    data = path.read_bytes()
    line, _, signature = data.partition(b"\n")
    try:
        seal = TypeAdapter(Seal).validate_json(line, strict=True)
        key, signed = bytes.fromhex(seal.key), bytes.fromhex(signature.decode("ascii"))
        datetime.fromisoformat(seal.sealed_at)
    except (ValidationError, ValueError) as exc:
        raise NotASeal("is not a seal, or is damaged") from exc
    if data != line + b"\n" + signed.hex().encode("ascii") + b"\n" or line != seal.line():
        raise NotASeal("is not a seal, or is damaged")
    if not _is_signed(key, signed, line):
        raise NotASeal("is forged: its signature is not that of its content")
    return SealFile(seal, sha256(data).hexdigest())


def write_seal(folder: Path, seal: Seal, key: Ed25519PrivateKey) -> None:
    """Write a seal as a whole or not at all; raises FileExistsError if there is one of its number."""
    line = seal.line()
    data = line + b"\n" + key.sign(line).hex().encode("ascii") + b"\n"
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _unnamed(folder) as (file, source):
            with os.fdopen(file, "wb", closefd=False) as writer:
                writer.write(data)
            os.fsync(file)
            # Named at once, and never over another file. With dir_fd it is linkat(), which follows /proc.
            os.link(source, name_of(seal.number), dst_dir_fd=place, follow_symlinks=True)
        os.fsync(place)
    finally:
        os.close(place)


@contextmanager
def _unnamed(folder: Path) -> Iterator[tuple[int, str]]:
    """Open a file that vanishes unless it is linked; yield it and its path until then."""
    source = None
    try:
        file = os.open(folder, os.O_WRONLY | os.O_TMPFILE, _READ_ONLY)  # Linux: nothing is left by a kill
    except (AttributeError, OSError):
        file, source = mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.fchmod(file, _READ_ONLY)
    try:
        yield file, source or f"/proc/self/fd/{file}"
    finally:
        os.close(file)
        if source is not None:
            os.unlink(source)


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read the key that signs, an Ed25519 key in PEM without a passphrase."""
    with _library():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        raise click.ClickException(f"{path} has a passphrase: a seal is made unattended") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise click.ClickException(f"{path} is not a private Ed25519 key in PEM")
    return key


def public_key(path: Path) -> str:
    """Read the key that checks, an Ed25519 key in PEM; return it as a seal names it."""
    with _library():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise click.ClickException(f"{path} is not a public Ed25519 key in PEM")
    return shown(key)


def shown(key: Ed25519PublicKey) -> str:
    """Return a key as a seal names it: its 32 bytes in hexadecimal digits."""
    return key.public_bytes_raw().hex()


def _is_signed(key: bytes, signature: bytes, line: bytes) -> bool:
    with _library():
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, line)
    except (InvalidSignature, ValueError):
        return False
    return True


@contextmanager
def _library() -> Iterator[None]:
    """Say in a sentence that the library for the keys is missing."""
    try:
        yield
    except ModuleNotFoundError as exc:
        raise click.ClickException("seals need a library: pip install 'selene-os-core[seal]'") from exc
