"""A checker of seals as anybody can write one from the contract's page: without the package."""

import json
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.support.raw import Connection


def findings(folder: Path, public_key: Path, tenant_id: str, conn: Connection) -> set[str]:
    """Name the seals, by their files' names, and the work orders that are not as they were sealed."""
    key = load_pem_public_key(public_key.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    found, previous, after = set(), None, 0
    for number, path in enumerate(sorted(folder.glob("*.seal")), start=1):
        line, signature, _ = path.read_bytes().split(b"\n")
        seal = json.loads(line)
        try:
            key.verify(bytes.fromhex(signature.decode()), line)
        except InvalidSignature:
            found.add(path.name)
            continue
        expected = ("selene-core seal 1", tenant_id, number, previous, after)
        if tuple(seal[name] for name in ("format", "tenant_id", "number", "previous", "after")) != expected:
            found.add(path.name)
        previous, after = sha256(path.read_bytes()).hexdigest(), seal["to"]
        for work_order_id, seq, event_hash in seal["heads"]:
            row = conn.execute(
                "SELECT encode(event_hash, 'hex') FROM os_core.work_order_ledger"
                " WHERE tenant_id = %s AND work_order_id = %s AND work_order_seq = %s",
                (tenant_id, work_order_id, seq),
            ).fetchone()
            if row != (event_hash,):
                found.add(work_order_id)
    return found
