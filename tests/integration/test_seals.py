"""Seals: what was sealed cannot be cut, deleted or written anew without being named (contract §17)."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from selene_core import create_selene_engine
from selene_core.cli import sealing
from selene_core.cli.seal_files import private_key, write_seal
from selene_core.store import feed
from tests.support import chain
from tests.support.calls import Tenant
from tests.support.commands import selene_core
from tests.support.factories import new_id, wire
from tests.support.seal_checker import findings
from tests.support.servers import Database
from tests.support.sessions import Sessions

LEDGER = "os_core.work_order_ledger"


@dataclass(frozen=True, slots=True)
class Notary:
    """A key pair, a folder of seals of one tenant, and the two commands."""

    tenant: Tenant
    url: str
    key: Path
    public_key: Path
    folder: Path

    def seal(self, **more: Path) -> subprocess.CompletedProcess[str]:
        """Run `selene-core seal`."""
        given = {"key": self.key, "out": self.folder, **more}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return selene_core("seal", self.tenant.id, *options, "--json", "--url", self.url)

    def sealed(self) -> list[int]:
        """Seal; return the numbers of the new seals."""
        done = self.seal()
        assert done.returncode == 0, done.stderr
        return [each["seal"] for each in json.loads(done.stdout)["seals"]]

    def check(self, *options: str) -> dict[str, Any]:
        """Run `selene-core check-seals`; return what it says."""
        arguments = [self.tenant.id, str(self.folder), "--public-key", str(self.public_key), *options]
        done = selene_core("check-seals", *arguments, "--json", "--url", self.url)
        told: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (not told["clean"])
        return told

    def orders(self, *options: str) -> dict[str, str]:
        """Check; return what is wrong with which work order, where every seal is sound."""
        told = self.check(*options)
        assert told["seal_problems"] == []
        return {each["work_order_id"]: each["problem"] for each in told["order_problems"]}

    def seals(self, *options: str) -> dict[int, str]:
        """Check; return what is wrong with which seal, where every order is as it was sealed."""
        told = self.check(*options)
        assert told["order_problems"] == []
        return {each["seal"]: each["problem"] for each in told["seal_problems"]}

    def by_anybody(self) -> set[str]:
        """Check without the package."""
        return findings(self.folder, self.public_key, self.tenant.id, self.tenant.admin)


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a pair of keys as `openssl genpkey -algorithm ed25519` does."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / "seal.key", folder / "seal.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def notary_of(shared_database: Database, tmp_path: Path) -> Callable[[Tenant], Notary]:
    """Return a notary for a tenant, with a key and a folder of its own."""

    def make(tenant: Tenant) -> Notary:
        place = tmp_path / new_id("notary")
        (place / "seals").mkdir(parents=True)
        url = shared_database.app_url.render_as_string(hide_password=False)
        return Notary(tenant, url, *make_keys(place), place / "seals")

    return make


@pytest.fixture
def notary(acme: Tenant, notary_of: Callable[[Tenant], Notary]) -> Notary:
    """Return a notary for the test's tenant."""
    return notary_of(acme)


def history(acme: Tenant, events: int = 5) -> str:
    """Append some events; return their work order."""
    order = acme.order()
    acme.append(*(wire("FIELD_SET", order, payload={"field_key": "f", "value": n}) for n in range(1, events)))
    return order


# --- what is sealed


def test_seal__holds_the_last_event_of_each_order_that_changed(notary: Notary, acme: Tenant) -> None:
    one, two = sorted(history(acme) for _ in range(2))
    assert notary.sealed() == [1]
    acme.append(wire("FIELD_SET", two))
    three = history(acme, 2)
    assert notary.sealed() == [2]
    assert notary.sealed() == []
    hashes = {(e["work_order_id"], e["work_order_seq"]): e["event_hash"].hex() for e in acme.ledger()}
    first, second = (
        json.loads((notary.folder / f"0000000{n}.seal").read_bytes().split(b"\n")[0]) for n in (1, 2)
    )
    assert first["heads"] == [[order, 5, hashes[order, 5]] for order in (one, two)]
    assert second["heads"] == [
        [order, seq, hashes[order, seq]] for order, seq in sorted([(two, 6), (three, 2)])
    ]
    assert (first["after"], first["to"], second["after"], second["to"]) == (0, 10, 10, 13)
    assert notary.check() | {"seals": 2, "heads": 4} == notary.check()
    assert notary.orders() == {}
    assert notary.by_anybody() == set()


def test_seal__of_a_long_history_is_several(
    notary: Notary, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "MAX_POSITIONS", 4)
    monkeypatch.setattr(sealing, "_HEADS_AT_ONCE", 1)
    for _ in range(3):
        history(acme, 3)
    assert notary.sealed() == [1, 2, 3]
    assert notary.orders() == {}
    assert notary.by_anybody() == set()


def test_seal__of_a_tenant_without_events_is_none(notary: Notary) -> None:
    assert notary.sealed() == []
    assert notary.seals() == {1: "seal 1 is left out"}


def test_seal__of_a_busy_tenant_ends(notary: Notary, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event comes at every step, and a consumer gives it a position at once."""
    order, write, give = history(acme), write_seal, feed.give_positions

    def write_and_go_on(*arguments: Any) -> None:
        write(*arguments)
        acme.append(wire("FIELD_SET", order))
        acme.app.execute("SELECT os_core.advance_feed(%s)", (acme.id,))

    def give_and_go_on(*arguments: Any) -> int | None:
        given = give(*arguments)
        acme.append(wire("FIELD_SET", order))
        return given

    monkeypatch.setattr(sealing, "write_seal", write_and_go_on)
    monkeypatch.setattr(feed, "give_positions", give_and_go_on)
    monkeypatch.setattr(sealing, "MAX_POSITIONS", 2)
    assert notary.sealed() == [1, 2, 3]
    assert notary.orders() == {}


def test_seal__gives_up_on_a_feed_that_is_locked(
    notary: Notary, acme: Tenant, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(acme)
    notary.sealed()
    history(acme)
    other = sessions.open(autocommit=False)
    other.conn.execute("SELECT os_core.advance_feed(%s)", (acme.id,))
    monkeypatch.setattr(sealing, "_PATIENCE", 0)
    done = notary.seal()
    assert (done.returncode, done.stdout.count("another session has been at the feed")) == (1, 1)
    other.conn.commit()
    assert notary.sealed() == [2]


def test_seal__seals_a_transaction_that_commits_late_with_the_next(
    notary: Notary, acme: Tenant, sessions: Sessions
) -> None:
    early, late = history(acme), history(acme)
    writer = sessions.open(autocommit=False)
    writer.append(acme.id, wire("FIELD_SET", late))
    acme.append(wire("FIELD_SET", early))
    assert notary.sealed() == [1]
    writer.conn.commit()
    assert notary.sealed() == [2]
    chain.tamper(acme.admin, f"DELETE FROM {LEDGER} WHERE work_order_id = '{late}' AND work_order_seq = 6")
    assert notary.orders() == {late: "was cut after event 5"}


# --- what the ledger's seals name, where verify_chain names nothing


def test_check__names_the_order_that_was_cut(notary: Notary, acme: Tenant) -> None:
    order, _ = history(acme), history(acme)
    notary.sealed()
    chain.tamper(acme.admin, f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}' AND work_order_seq > 3")
    assert acme.verify_chain() == {}
    assert notary.orders() == {order: "was cut after event 3"}
    assert notary.by_anybody() == {order}


def test_check__names_the_order_that_was_deleted(notary: Notary, acme: Tenant) -> None:
    order, _ = history(acme), history(acme)
    notary.sealed()
    chain.tamper(acme.admin, f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}'")
    assert acme.verify_chain() == {}
    assert notary.orders() == {order: "was deleted"}
    assert notary.by_anybody() == {order}


@pytest.mark.parametrize("seq", range(1, 6))
def test_check__names_the_order_that_was_changed_and_hashed_anew(
    notary: Notary, acme: Tenant, seq: int
) -> None:
    order, _ = history(acme), history(acme)
    notary.sealed()
    acme.append(wire("FIELD_SET", order))
    notary.sealed()
    chain.tamper(
        acme.admin,
        f"UPDATE {LEDGER} SET turn_id = 99 WHERE work_order_id = '{order}' AND work_order_seq = {seq}",
    )
    assert acme.verify_chain().keys() == {(order, seq)}
    chain.rehash(acme.admin, order)
    assert acme.verify_chain() == {}
    assert notary.orders() == {order: "was written anew after it was sealed"}
    assert notary.by_anybody() == {order}
    # What goes on after that is sealed as it is; the older seal still says so.
    acme.append(wire("FIELD_SET", order, turn_id=99))
    assert notary.sealed() == [3]
    assert notary.orders() == {order: "was written anew after it was sealed"}


@pytest.mark.parametrize(
    "column", ["payload", "tenant_id", "work_order_id", "created_at", "work_order_event_id"]
)
def test_check__names_a_change_of_any_kind_that_was_hashed_anew(
    notary: Notary, acme: Tenant, column: str
) -> None:
    order = history(acme)
    notary.sealed()
    changes = {
        "payload": "'{}'",
        "tenant_id": "'somebody-else'",
        "work_order_id": "work_order_id || '.moved'",
        "created_at": "created_at - interval '1 day'",
        "work_order_event_id": "work_order_event_id + 1000000",
    }
    whole = column in ("tenant_id", "work_order_id")
    where = f"WHERE work_order_id = '{order}'" + ("" if whole else " AND work_order_seq = 2")
    chain.tamper(acme.admin, f"UPDATE {LEDGER} SET {column} = {changes[column]} {where}")
    chain.rehash(acme.admin, f"{order}.moved" if column == "work_order_id" else order)
    assert acme.verify_chain() == {}
    assert notary.orders().keys() == {order}


def test_check__names_two_orders_whose_events_were_swapped_and_hashed_anew(
    notary: Notary, acme: Tenant
) -> None:
    one, two = history(acme), history(acme)
    notary.sealed()
    chain.tamper(
        acme.admin,
        f"UPDATE {LEDGER} SET work_order_id = '{one}.x' WHERE work_order_id = '{one}'",
        f"UPDATE {LEDGER} SET work_order_id = '{one}' WHERE work_order_id = '{two}'",
        f"UPDATE {LEDGER} SET work_order_id = '{two}' WHERE work_order_id = '{one}.x'",
    )
    for order in (one, two):
        chain.rehash(acme.admin, order)
    assert acme.verify_chain() == {}
    assert notary.orders() == dict.fromkeys((one, two), "was written anew after it was sealed")


def test_check__names_an_order_that_lost_the_sealed_event_alone(notary: Notary, acme: Tenant) -> None:
    order = history(acme)
    notary.sealed()
    acme.append(wire("FIELD_SET", order))
    chain.tamper(acme.admin, f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}' AND work_order_seq = 5")
    assert notary.orders() == {order: "has lost event 5"}
    assert acme.verify_chain().keys() == {(order, 6)}


def test_check__tells_what_is_not_sealed_yet(notary: Notary, acme: Tenant) -> None:
    history(acme)
    notary.sealed()
    history(acme, 3)
    acme.app.execute("SELECT os_core.advance_feed(%s)", (acme.id,))
    assert notary.check()["not_sealed"] == 3


def remove(acme: Tenant, *orders: str) -> None:
    """Record that the tenant is removed, and delete these orders of it."""
    with acme.admin.transaction():
        acme.admin.execute("SELECT set_config('selene.tenant_id', %s, TRUE)", (acme.id,))
        acme.admin.execute(
            "INSERT INTO os_core.tenant_removals (tenant_id, removal_state) VALUES (%s, 'CLOSED')", (acme.id,)
        )
    chain.tamper(acme.admin, *(f"DELETE FROM {LEDGER} WHERE work_order_id = '{order}'" for order in orders))


def test_check__says_what_was_removed_with_the_tenant(notary: Notary, acme: Tenant) -> None:
    one, two = sorted((history(acme), history(acme)))
    notary.sealed()
    remove(acme, one, two)
    told = notary.check()
    assert told["clean"]
    assert [each["work_order_id"] for each in told["removed"]] == [one, two]
    # The tenant comes again: what is sealed after the removal has no excuse.
    three = history(acme)
    notary.sealed()
    assert notary.orders() == {}
    chain.tamper(acme.admin, f"DELETE FROM {LEDGER} WHERE work_order_id = '{three}'")
    assert notary.orders() == {three: "was deleted"}


def test_check__takes_no_record_of_a_removal_that_did_not_happen(notary: Notary, acme: Tenant) -> None:
    one, _ = history(acme), history(acme)
    notary.sealed()
    remove(acme, one)
    assert notary.orders() == {one: "was deleted"}


# --- the seals themselves


@pytest.fixture
def three(notary: Notary, acme: Tenant) -> Notary:
    """Return a notary with three seals; no order may be named."""
    for _ in range(3):
        history(acme)
        notary.sealed()
    assert notary.seals("--newest", "3") == {}
    return notary


def path_of(notary: Notary, number: int) -> Path:
    return notary.folder / f"{number:08}.seal"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_check__names_a_seal_that_was_left_out(three: Notary, number: int) -> None:
    path_of(three, number).unlink()
    # The newest one only whoever noted its number misses.
    assert three.seals("--newest", "3") == {number: f"seal {number} is left out"}
    assert three.seals() == ({} if number == 3 else {number: f"seal {number} is left out"})


def test_check__names_all_seals_that_were_left_out(three: Notary) -> None:
    for number in (1, 2):
        path_of(three, number).unlink()
    assert three.seals("--newest", "5") == {1: "seals 1 to 2 are left out", 4: "seals 4 to 5 are left out"}


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "a head": lambda data: data.replace(b'",5,"', b'",4,"', 1),
    "a hash": lambda data: data.replace(b"a", b"b", 1),
    "the number": lambda data: re.sub(rb'"number":[0-9]', b'"number":9', data),
    "the signature": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "a blank": lambda data: data.replace(b":", b": ", 1),
    "cut": lambda data: data[: len(data) // 2],
    "without its signature": lambda data: data.split(b"\n")[0] + b"\n",
    "longer": lambda data: data + b"\n",
    "empty": lambda _: b"",
    "no JSON": lambda _: b"\xff\xfe\n00\n",
    "other JSON": lambda _: b"[]\n00\n",
    "a key twice": lambda data: data.replace(b'{"after"', b'{"after":0,"after"', 1),
    "deep": lambda _: b"[" * 100_000 + b"\n00\n",
}


@pytest.mark.parametrize("kind", FORGERIES)
@pytest.mark.parametrize("number", [2, 3])
def test_check__names_a_seal_that_was_forged(three: Notary, kind: str, number: int) -> None:
    path = path_of(three, number)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(FORGERIES[kind](data))
    named = three.seals()
    assert named.keys() == {number}
    assert named[number].startswith(f"seal {number} is ")


def test_check__names_a_seal_that_was_made_anew_with_the_key(three: Notary) -> None:
    """Whoever has the key can sign anything; the seal after it tells."""
    line = path_of(three, 2).read_bytes().split(b"\n")[0]
    told = json.loads(line)
    told["heads"] = []
    again = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    path_of(three, 2).chmod(0o644)
    signature = private_key(three.key).sign(again).hex().encode()
    path_of(three, 2).write_bytes(again + b"\n" + signature + b"\n")
    assert three.seals() == {3: "seal 3 does not follow from the one before: one of the two was made anew"}


@pytest.mark.parametrize("kind", ["pipe", "folder", "dead link"])
def test_check__names_a_seal_that_is_no_file(three: Notary, kind: str) -> None:
    path = path_of(three, 3)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.with_name("nowhere"))
    (problem,) = three.seals().values()
    assert problem.startswith("seal 3 is not a seal")
    done = three.seal()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_check__names_the_seals_of_another_key(three: Notary, tmp_path: Path) -> None:
    _, other = make_keys(tmp_path)
    shutil.copy(other, three.public_key)
    assert three.seals() == {number: f"seal {number} is signed by another key" for number in (1, 2, 3)}


def test_check__names_the_seal_of_another_tenant(
    three: Notary, sessions: Sessions, notary_of: Callable[[Tenant], Notary]
) -> None:
    other = notary_of(sessions.tenant(new_id("other")))
    for _ in range(2):
        history(other.tenant)
        done = other.seal(key=three.key)
        assert done.returncode == 0, done.stderr
    path_of(three, 2).unlink()
    shutil.copy(path_of(other, 2), path_of(three, 2))
    assert three.seals() == {2: f"seal 2 is of tenant {other.tenant.id}"}


def test_check__names_a_seal_under_another_number(three: Notary) -> None:
    path_of(three, 3).unlink()
    shutil.copy(path_of(three, 2), path_of(three, 3))
    assert three.seals() == {3: "seal 3 is seal 2 under another name"}


@pytest.mark.parametrize("kind", ["a tenant", "a key", "a forgery"])
def test_seal__does_not_go_on_from_what_is_not_its_own(
    three: Notary, kind: str, tmp_path: Path, sessions: Sessions, notary_of: Callable[[Tenant], Notary]
) -> None:
    history(three.tenant)
    key, folder = three.key, three.folder
    if kind == "a key":
        key, _ = make_keys(tmp_path)
    elif kind == "a tenant":
        other = notary_of(sessions.tenant(new_id("other")))
        history(other.tenant)
        assert other.seal(key=key).returncode == 0
        folder = other.folder
    else:
        path_of(three, 3).chmod(0o644)
        path_of(three, 3).write_bytes(path_of(three, 3).read_bytes().replace(b"a", b"b", 1))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = three.seal(key=key, out=folder)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_seal__refuses_a_database_that_is_older_than_its_last_seal(three: Notary, acme: Tenant) -> None:
    with acme.admin.transaction():
        acme.admin.execute("SET LOCAL session_replication_role = replica")
        acme.admin.execute(
            "UPDATE os_core.work_order_feed_heads SET last_position = last_position - 1 WHERE tenant_id = %s",
            (acme.id,),
        )
    done = three.seal()
    assert done.returncode == 1
    assert "was an older database restored?" in done.stderr


def pems(kind: str) -> tuple[bytes, bytes]:
    """Return a private and a public key in PEM that cannot seal."""
    own: Any
    match kind:
        case "rsa":
            own = rsa.generate_private_key(65537, 2048)
        case "x25519":
            own = X25519PrivateKey.generate()
        case "unknown curve":  # SM2, which the library refuses in a way of its own
            own = "301306072a8648ce3d020106082a811ccf5501822d"
            body = bytes.fromhex(f"3059{own}034200") + b"\x04" + bytes(64)
            coded = base64.encodebytes(body)
            pem = b"-----BEGIN PUBLIC KEY-----\n" + coded + b"-----END PUBLIC KEY-----\n"
            secret = bytes.fromhex(f"3041020100{own}0427302502010104" + "20" + "01" * 32)
            coded = base64.encodebytes(secret)
            return b"-----BEGIN PRIVATE KEY-----\n" + coded + b"-----END PRIVATE KEY-----\n", pem
        case _:
            return (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",) * 2 if kind else (b"", b"")
    public = own.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), public


@pytest.mark.parametrize("kind", ["", "no content", "rsa", "x25519", "unknown curve"])
def test_keys__that_are_none_are_one_line(notary: Notary, kind: str) -> None:
    private, public = pems(kind)
    notary.key.write_bytes(private)
    notary.public_key.write_bytes(public)
    check = ("check-seals", "acme", str(notary.folder), "--public-key", str(notary.public_key))
    for done in (notary.seal(), selene_core(*check, "--url", notary.url)):
        assert done.returncode == 1
        assert "Ed25519 key in PEM" in done.stderr
        assert done.stderr.count("\n") == 1


# --- interrupted, and two at once


@pytest.mark.slow
@pytest.mark.parametrize("place", ["os.fsync", "os.link"])
def test_seal__killed_at_any_point_leaves_nothing_half(notary: Notary, acme: Tenant, place: str) -> None:
    history(acme)
    killed = (
        f"import os, signal, sys; {place} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL);"
        " from selene_core.cli import main; main()"
    )
    arguments = ["seal", acme.id, "--key", str(notary.key), "--out", str(notary.folder), "--url", notary.url]
    done = subprocess.run([sys.executable, "-c", killed, *arguments], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in notary.folder.iterdir() if not path.name.startswith(".")] == []
    assert notary.sealed() == [1]
    assert notary.orders() == {}


def test_seal__without_unnamed_files_leaves_nothing_half(
    notary: Notary, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system, or a system, that has no O_TMPFILE."""
    history(acme)
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with monkeypatch.context() as patched:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(os, "fsync", full)
        assert notary.seal().returncode == 1
    assert [*notary.folder.iterdir()] == []
    assert notary.sealed() == [1]
    assert [path.name for path in notary.folder.iterdir()] == ["00000001.seal"]
    assert notary.orders() == {}


@pytest.mark.parametrize("unnamed", [True, False])
def test_seal__two_at_once_make_one_seal(
    notary: Notary, acme: Tenant, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    history(acme)
    barrier, link = Barrier(2, timeout=60), os.link
    waiting = [True, True]

    def meet(*arguments: Any, **options: Any) -> None:
        if waiting and waiting.pop():
            barrier.wait()
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", meet)
    made: list[list[int]] = []

    def run() -> None:
        engine = create_selene_engine(notary.url)
        try:
            seals = sealing.make_seals(engine, acme.id, private_key(notary.key), notary.folder)
        finally:
            engine.dispose()
        made.append([each.number for each in seals])

    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(made) == [[], [1]]
    assert [path.name for path in notary.folder.iterdir()] == ["00000001.seal"]
    assert notary.orders() == {}
