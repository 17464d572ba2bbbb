"""The URL of a database: hosts as libpq takes them; what cannot be read is refused, and not repeated."""

from typing import Any

import pytest

from selene_core.store.engines import psycopg_url


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://u@h1:5432,h2:5433/d", "h1,h2", "5432,5433"),
        ("postgres://u@h1:5432,h2:5433/d", "h1,h2", "5432,5433"),
        ("postgresql+psycopg://u@h1:5432,h2:5433/d", "h1,h2", "5432,5433"),
        ("postgresql://u@h1,h2,h3/d", "h1,h2,h3", ",,"),
        ("postgresql://u@h1,h2:5433/d", "h1,h2", ",5433"),
        ("postgresql://u@h1:5432,h2/d", "h1,h2", "5432,"),
        ("postgresql://u@[::1]:5432,[fe80::1%25eth0]/d", "::1,fe80::1%eth0", "5432,"),
        ("postgresql://u@[::1]:5432/d", "::1", 5432),
        ("postgresql://u@%2Ftmp/d", "/tmp", None),
        ("postgresql://u@%2Ftmp:5433/d", "/tmp", "5433"),
        ("postgresql://u@%2Ftmp,h2:5433/d", "/tmp,h2", ",5433"),
        ("postgresql://u@/d?host=/tmp", "/tmp", None),
        ("postgresql://u@/d?host=h1:1&host=h2:2", "h1,h2", "1,2"),
        ("postgresql://u@/d?host=h1,h2&port=1,2", "h1,h2", "1,2"),
        ("postgresql://u@db%2Da:5432/d", "db-a", "5432"),
        ("postgresql://u@h:/d", "h", None),
        ("postgresql://u@h:5432/d\n", "h", 5432),
        ("postgresql://u@h/d", "h", None),
    ],
)
@pytest.mark.parametrize("more", ["", "target_session_attrs=read-write"])
def test_psycopg_url__hosts(url: str, host: str, port: Any, more: str) -> None:
    if more:
        url = url.rstrip() + ("&" if "?" in url else "?") + more
    parsed = psycopg_url(url)
    # Also after it was written out, as between processes.
    for each in (parsed, psycopg_url(parsed.render_as_string(hide_password=False))):
        assert each.drivername == "postgresql+psycopg"
        _, given = each.get_dialect()().create_connect_args(each)
        assert (given["user"], given["dbname"], given["host"]) == ("u", "d", host)
        assert given.get("port") == port or str(given.get("port")) == str(port)
        assert given.get("target_session_attrs") == ("read-write" if more else None)


@pytest.mark.parametrize("user", ["u:p%40%2Fw", "u:p,w", "u:p%2Cw"])
def test_psycopg_url__a_password_beside_several_hosts(user: str) -> None:
    _, given = (
        (parsed := psycopg_url(f"postgresql://{user}@h1,h2/d")).get_dialect()().create_connect_args(parsed)
    )
    assert given["password"] in ("p@/w", "p,w")
    assert given["host"] == "h1,h2"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hu,sh@ed@h/d",
        "postgresql://u:hush@h1:x,h2/d",
        "postgresql://u:hush@h1:123456,h2/d",
        "postgresql://u:hush@h1,h2/d?host=h3",
        "postgresql://u:hush@h1,h2/d?port=1",
        "postgresql://u:hush@h1,[h2/d",
        "hush",
    ],
)
def test_psycopg_url__what_it_refuses_names_the_rule(url: str) -> None:
    with pytest.raises(ValueError, match="several hosts as host1:port1,host2:port2") as raised:
        psycopg_url(url)
    assert "hu" not in str(raised.value)
