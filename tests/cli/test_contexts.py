"""`verbena contexts`: both full meshes, as the adapters count them (document 003:519, 544)."""

from __future__ import annotations

import pytest

from verbena import QPType, VirtualNetwork
from verbena.cli import main as cli
from verbena.runtime.meshes import connection_mesh, datagram_mesh, talk_by_connections, talk_by_datagrams


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The table's cells, line by line."""
    assert cli.execute(["contexts", *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.mark.requirement("TRN-05", "TRN-15")
@pytest.mark.parametrize(("nodes", "processes"), [(2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("where", [(), ("--fabric",)])
def test_both_meshes_are_counted(
    where: tuple[str, ...],
    nodes: int,
    processes: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    rc, rd, ee = rows(capsys, "--nodes", str(nodes), "--processes", str(processes), *where)
    pairs = nodes * (nodes - 1) * processes**2
    assert rc[2] == str(processes**2 * (nodes - 1))
    assert rd[2] == str(processes)
    assert ee[2] == str(nodes - 1)
    assert rc[4] == rd[4] == f"{pairs} of {pairs}"
    assert [rc[3].split("= ")[1], rd[3].split("= ")[1], ee[3].split("= ")[1]] == [rc[2], rd[2], ee[2]]


@pytest.mark.requirement("TRN-05")
def test_a_mesh_of_connections() -> None:
    """N = 3, M = 2: eight queue pairs on each node, and all pairs talk."""
    net = VirtualNetwork()
    adapters = [net.open_device(f"10.0.0.{i}") for i in (1, 2, 3)]
    mesh = connection_mesh(adapters, 2)
    for ctx in adapters:
        counts = ctx.count_contexts()
        assert counts.queue_pairs[QPType.RC] == 8
        assert (counts.queue_pairs[QPType.RD], counts.ee_contexts) == (0, 0)
    assert talk_by_connections(mesh) == 3 * 2 * 2 * 2
    # Measured, not computed: one closed is one less, and its pair no longer talks.
    mesh[0][0].ends[1, 0].close()
    assert adapters[0].count_contexts().queue_pairs[QPType.RC] == 7


@pytest.mark.requirement("TRN-15")
def test_a_mesh_of_datagrams() -> None:
    """N = 3, M = 2: two queue pairs and two contexts on each node, and all pairs talk."""
    net = VirtualNetwork()
    adapters = [net.open_device(f"10.0.0.{i}") for i in (1, 2, 3)]
    nodes = datagram_mesh(adapters, 2)
    for ctx in adapters:
        counts = ctx.count_contexts()
        assert counts.queue_pairs == {service: 2 if service is QPType.RD else 0 for service in QPType}
        assert counts.ee_contexts == 2
    assert talk_by_datagrams(nodes) == 3 * 2 * 2 * 2
    assert all(ctx.count_contexts().ee_contexts == 2 for ctx in adapters), "talking made no more of them"
    nodes[0].contexts[1].close()
    assert adapters[0].count_contexts().ee_contexts == 1


def test_meshes_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--nodes", "1"], ["--processes", "0"], ["--nodes", "many"]):
        assert cli.execute(["contexts", *arguments]) == 2
        assert "verbena contexts" in capsys.readouterr().err
    assert cli.execute(["contexts", "-N", "64", "-M", "32"]) == 1
    assert "20,000 at most" in capsys.readouterr().err
