"""Fabric files: what a right one gives, and that a wrong one names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenario.fabrics import ALL, EXAMPLES, HOSTS
from verbena.errors import FabricFileError
from verbena.scenario.load import load_fabric, parse_fabric
from verbena.scenario.schema import KINDS, MODELS, AtomicCounter, FileTransfer


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_right(path: Path) -> None:
    assert load_fabric(str(path)).name == path.stem


def test_values_and_defaults() -> None:
    fabric = parse_fabric(ALL)
    file, _, counter, _ = fabric.workloads
    assert isinstance(file, FileTransfer)
    assert isinstance(counter, AtomicCounter)
    assert (file.source, file.to, file.bytes, file.depth) == ("a0", "b0", 100_001, 16)
    assert counter.clients == ("b0", "b0")
    assert fabric.adapters()["b0"].address.at("virtual") == "10.0.0.2"
    assert fabric.host_of("b0") == "b"
    assert fabric.wire.rate_bps == 100e9
    assert fabric.capture.enabled


@pytest.mark.parametrize(
    "text, value",
    [("4096", 4096), ("64 KiB", 65_536), ("1MiB", 1 << 20), ("2 kB", 2000), ("7 B", 7), ("0", 0)],
)
def test_numbers_of_bytes(text: str, value: int) -> None:
    transfer = f"workloads:\n  - {{kind: file-transfer, name: f, from: a0, to: b0, bytes: {text}}}\n"
    fabric = parse_fabric(HOSTS + transfer)
    assert isinstance(fabric.workloads[0], FileTransfer)
    assert fabric.workloads[0].bytes == value


def test_a_number_with_an_exponent() -> None:
    assert parse_fabric(ALL + "wire: {rate_bps: 25e9}\n").wire.rate_bps == 25e9
    assert not parse_fabric(ALL + "capture: false\n").capture.enabled


def test_the_known_keys_are_told_for_every_model() -> None:
    assert set(MODELS.values()) >= set(KINDS.values())


# Each: the wrong text, which stands in a line of its own; a part of the message.
WRONG_LINES = [
    ("wrie: {}", "unknown key 'wrie': did you mean wire?"),
    ("zzz: 1", "unknown key 'zzz': known here are name, hosts"),
    ("seed: -1", "seed: -1 is too small: at least 0"),
    ("seed: 18446744073709551616", "too large: below 18446744073709551616"),
    ("seed: 1.5", "seed: 1.5 is not a whole number"),
    ("seed: yes", "seed: True is not a whole number"),
    ("wire: 3", "wire: 3 is not a mapping"),
    ("wire: {rate_bps: fast}", "rate_bps: 'fast' is not a number"),
    ("wire: {rate_bps: .nan}", "rate_bps: nan is not a finite number"),
    ("wire: {udp_port: 65536}", "udp_port: 65536 is too large: at most 65535"),
    ("wire: {faults: {loss: 1.5}}", "loss: 1.5 is too large: at most 1"),
    ("wire: {faults: {los: 0.5}}", "unknown key 'los': did you mean loss?"),
    ("capture: 7", "capture: 7 is neither true nor false"),
    ("capture: {packets: 0}", "packets: 0 is too small: at least 1"),
    ("name: again", "'name' stands here twice: the first is in line 2"),
    ("seed: *anchor", "aliases"),
    ("seed: [1", "this is no YAML"),
    ("seed: " + "9" * 5000, "is no value"),
    ("? [a]\n: b", "a key is a word"),
]


@pytest.mark.parametrize("wrong, message", WRONG_LINES, ids=[w[:30] for w, _ in WRONG_LINES])
def test_a_wrong_key_names_its_line(wrong: str, message: str) -> None:
    with pytest.raises(FabricFileError) as caught:
        parse_fabric(ALL + wrong + "\n", "some.yaml")
    line = ALL.count("\n") + 1
    assert message in str(caught.value)
    if "YAML" not in message:
        assert str(caught.value).startswith(f"some.yaml:{line}: ")
        assert caught.value.line == line


# Each: a workload that is wrong, a part of the message.
WRONG_WORKLOADS = [
    ("{kind: file-transfer, name: f, from: a0, to: c0}", "there is no adapter c0: one of a0, b0"),
    ("{kind: file-transfer, name: f, from: a, to: b0}", "a is a host, its adapters are a0"),
    ("{kind: file-transfer, name: f, from: a0, to: a0}", "name two different adapters"),
    ("{kind: file-transfer, name: f, from: a0}", "the key to is missing"),
    ("{kind: file-transfer, name: file, from: a0, to: b0}", "file stands here a second time"),
    ("{kind: file-transfer, name: f, from: a0, to: b0, bytes: 3 parsec}", "is no number of bytes"),
    (
        "{kind: file-transfer, name: f, from: a0, to: b0, message_bytes: 2 GiB}",
        "too large: at most 2147483647",
    ),
    ("{kind: file-transfr, name: f}", "there is no kind 'file-transfr'"),
    ("{name: f}", "a workload needs a kind"),
    ("{kind: ud-burst, name: 'a b', from: a0, to: b0}", "'a b' is no name"),
    ("{kind: ud-burst, name: f, from: a0, to: b0, bytes: 1025}", "does not fit the MTU of b0, 1024"),
    ("{kind: atomic-counter, name: f, server: a0, clients: []}", "at least one is needed"),
    ("{kind: atomic-counter, name: f, server: a0, clients: b0}", "'b0' is not a list"),
    ("{kind: atomic-counter, name: f, server: a0, clients: [b0, x]}", "there is no adapter x"),
    ("just text", "is not a mapping"),
]


@pytest.mark.parametrize("wrong, message", WRONG_WORKLOADS, ids=[w[:60] for w, _ in WRONG_WORKLOADS])
def test_a_wrong_workload_names_its_line(wrong: str, message: str) -> None:
    with pytest.raises(FabricFileError) as caught:
        parse_fabric(ALL + f"  - {wrong}\n", "some.yaml")
    assert str(caught.value).startswith(f"some.yaml:{ALL.count(chr(10)) + 1}: ")
    assert message in str(caught.value)


def test_several_mistakes_are_told_at_once() -> None:
    text = (
        ALL.replace("mtu: 1024", "mtu: 1500")
        .replace("name: a0", "name: b0")
        .replace("iterations: 20", "x: 1")
    )
    with pytest.raises(FabricFileError) as caught:
        parse_fabric(text, "f")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "mtu: 1500 is not one of 256, 512, 1024, 2048 or 4096" in lines[0]
    assert "unknown key 'x'" in lines[1]


def test_names_and_addresses_that_are_used_twice() -> None:
    text = (
        ALL.replace("name: b\n", "name: a\n").replace("name: b0", "name: a0").replace("10.0.0.2", "10.0.0.1")
    )
    with pytest.raises(FabricFileError) as caught:
        parse_fabric(text)
    for what in ("host a", "adapter a0", "address 10.0.0.1"):
        assert f"{what} stands here a second time" in str(caught.value)


def test_ends_speak_one_kind_of_ip() -> None:
    with pytest.raises(FabricFileError, match="IPv4 and IPv6"):
        parse_fabric(ALL.replace("virtual: 10.0.0.2", "virtual: 'fd00::2'"))


def test_an_address_in_many_wrong_ways() -> None:
    for address in (
        "10.1",
        "nowhere",
        "[1]",
        "{real: 127.0.0.1}",
        "{real: 1, virtual: 10.0.0.1}",
        "300.0.0.1",
    ):
        text = ALL.replace("{real: ", "{rael: ", 1).split("address:", 1)
        rest = text[1].split("\n", 1)[1]
        with pytest.raises(FabricFileError) as caught:
            parse_fabric(f"{text[0]}address: {address}\n{rest}", "f")
        assert caught.value.line == 7, address


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "# nothing\n", "\x01", "a: [" * 3000, "name: x\n---\nname: y"]
)
def test_no_fabric_file_at_all(text: str) -> None:
    with pytest.raises(FabricFileError, match=r"f:[12]: "):
        parse_fabric(text, "f")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FabricFileError, match="No such file"):
        load_fabric(str(tmp_path / "missing.yaml"))
    with pytest.raises(FabricFileError, match="directory"):
        load_fabric(str(tmp_path))
    binary = tmp_path / "binary"
    binary.write_bytes(b"name: x\n\xff\n")
    with pytest.raises(FabricFileError, match=":2: this is no text in UTF-8"):
        load_fabric(str(binary))
    large = tmp_path / "large"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(FabricFileError, match="larger than 1 MiB"):
        load_fabric(str(large))
