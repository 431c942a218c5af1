"""The NBD server, spoken to byte by byte."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chronus_rig import lived, some_image
from nbd_rig import Client, named, request

from tt.chronus.nbd import Export, InstantExport, RawFileExport, Server, serving
from tt.chronus.nbd import protocol as nbd
from tt.chronus.store.history import History
from tt.chronus.store.live import LiveDisk
from tt.chronus.store.view import ImageView
from tt.errors import TTError, UsageError

SIZE = (3 << 20) + 1536


@pytest.fixture(params=["raw", "overlay", "live"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Export]:
    """Return an export that can be written to, of each kind, which starts out as `before`."""
    image = some_image(tmp_path / "disk.img", SIZE)
    if request.param == "raw":
        with RawFileExport(image) as raw:
            yield raw
    elif request.param == "overlay":
        with InstantExport(ImageView(image), overlay=True) as overlay:
            yield overlay
    else:
        from tt.chronus.store.live import create

        create(tmp_path / "disk.tt", image)
        with LiveDisk(tmp_path / "disk.tt") as live:
            yield live


@pytest.fixture
def before(tmp_path: Path, export: Export) -> bytes:
    """Return what is on the disk at first."""
    return (tmp_path / "disk.img").read_bytes()


@pytest.mark.parametrize("structured", [False, True])
def test_everything_that_a_client_may_do(export: Export, before: bytes, structured: bool) -> None:
    chance = random.Random(11)
    model = bytearray(before)
    with serving([export]) as server, Client.connect(server, structured=structured) as client:
        assert client.size == SIZE
        for _ in range(150):
            offset = chance.randrange(SIZE)
            length = min(chance.choice([1, 512, 4096, 5000, 65536, 600_000, 1_500_000]), SIZE - offset)
            if chance.random() < 0.7:
                offset, length = offset // 4096 * 4096, -(-length // 4096) * 4096
                length = min(length, SIZE - offset)
            fua = chance.choice([0, 0, nbd.FLAG_FUA])
            match chance.randrange(6):
                case 0:
                    assert client.ask(nbd.CMD_WRITE_ZEROES, offset, length, flags=fua | nbd.FLAG_NO_HOLE) == (
                        0,
                        b"",
                    )
                    model[offset : offset + length] = bytes(length)
                case 1:
                    assert client.ask(nbd.CMD_TRIM, offset, length, flags=fua) == (0, b"")
                    model[offset : offset + length] = client.read(offset, length)
                case 2:
                    assert client.ask(nbd.CMD_FLUSH) == (0, b"")
                case 3:
                    assert client.read(offset, length) == model[offset : offset + length]
                case _:
                    data = chance.randbytes(length)
                    assert client.ask(nbd.CMD_WRITE, offset, data=data, flags=fua) == (0, b"")
                    model[offset : offset + length] = data
        assert client.read(0, SIZE) == model
        if structured:
            at = 0
            while at < SIZE:
                for length, state in client.extents(at, SIZE - at):
                    assert state == 0 or not any(model[at : at + length])
                    at += length
            assert at == SIZE
            assert len(client.extents(0, SIZE, nbd.FLAG_REQ_ONE)) == 1
            assert client.ask(nbd.CMD_READ, 4096, 500_000, flags=nbd.FLAG_DF)[1] == model[4096:504_096]


def test_many_requests_at_once(export: Export, before: bytes) -> None:
    chance = random.Random(5)
    model, expected, sent = bytearray(before), {}, []
    at = 0
    for cookie in range(600):
        length = chance.choice([512, 4096, 4096, 65536, 300_000])
        at = at if chance.random() < 0.7 and at + length <= SIZE else chance.randrange(SIZE - length)
        if chance.random() < 0.5:
            sent.append(request(nbd.CMD_READ, at, length, cookie=cookie))
            expected[cookie] = bytes(model[at : at + length])
        else:
            data = chance.randbytes(length)
            sent.append(request(nbd.CMD_WRITE, at, length, cookie=cookie) + data)
            model[at : at + length] = data
            expected[cookie] = b""
        at += length
    with serving([export]) as server, Client.connect(server) as client:
        stream = b"".join(sent) + request(nbd.CMD_READ, SIZE, 1, cookie=1000)
        sender = threading.Thread(target=client.sock.sendall, args=(stream,))
        sender.start()
        expected[1000] = b""
        while expected:
            cookie, error, data = client.reply()
            assert error == (22 if cookie == 1000 else 0) and data == expected.pop(cookie)
        sender.join()
        assert client.read(0, SIZE) == model


def test_clients_see_what_others_wrote(export: Export) -> None:
    with serving([export], "127.0.0.1:0") as server:
        clients = [Client.connect(server) for _ in range(4)]
        assert all(client.flags & nbd.CAN_MULTI_CONN for client in clients)

        def write(number: int) -> None:
            for block in range(number, 200, 4):
                assert clients[number].ask(nbd.CMD_WRITE, block * 4096, data=bytes([block]) * 4096) == (
                    0,
                    b"",
                )

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert clients[0].ask(nbd.CMD_FLUSH) == (0, b"")
        for client in clients:
            assert client.read(0, 200 * 4096) == b"".join(bytes([block]) * 4096 for block in range(200))
            client.sock.close()


def test_what_is_served_is_told(tmp_path: Path) -> None:
    image = some_image(tmp_path / "a.img", 8192)
    with RawFileExport(image) as one, RawFileExport(image, name="täglich", readonly=True) as other:
        exports = [one, other]
        with serving(exports) as server, Client(server) as client:
            client.greet()
            listed = client.option(nbd.OPT_LIST)
            assert [kind for kind, _ in listed] == [nbd.REP_SERVER, nbd.REP_SERVER, nbd.REP_ACK]
            assert listed[1][1].startswith(named("täglich"))
            wishes = struct.pack(">HHHH", 3, nbd.INFO_NAME, nbd.INFO_DESCRIPTION, 99)
            *facts, end = client.option(nbd.OPT_INFO, named("täglich") + wishes)
            assert end == (nbd.REP_ACK, b"")
            told = {struct.unpack_from(">H", data)[0]: data[2:] for _, data in facts}
            size, flags = struct.unpack(">QH", told[nbd.INFO_EXPORT])
            assert size == 8192 and flags & nbd.READ_ONLY and not flags & (nbd.SEND_TRIM | nbd.SEND_DF)
            assert struct.unpack(">III", told[nbd.INFO_BLOCK_SIZE]) == (1, 4096, 32 << 20)
            assert told[nbd.INFO_NAME].decode() == "täglich" and b"a.img" in told[nbd.INFO_DESCRIPTION]
            assert client.option(nbd.OPT_GO, named("missing") + bytes(2))[0][0] == nbd.REP_ERR_UNKNOWN
            assert client.option(nbd.OPT_SET_META_CONTEXT, named("") + bytes(4))[0][0] == nbd.REP_ERR_INVALID
            client.option(nbd.OPT_STRUCTURED_REPLY)
            for queries, found in ([], 1), (["base:"], 1), (["base:allocation"], 1), (["qemu:"], 0):
                data = named("") + struct.pack(">I", len(queries)) + b"".join(map(named, queries))
                assert len(client.option(nbd.OPT_LIST_META_CONTEXT, data)) == found + 1
            assert client.option(nbd.OPT_ABORT) == [(nbd.REP_ACK, b"")]
            assert client.gone()


@pytest.mark.parametrize("flags", [nbd.FIXED_NEWSTYLE, nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES])
def test_the_oldest_way_to_take_an_export(tmp_path: Path, flags: int) -> None:
    with RawFileExport(some_image(tmp_path / "a.img", 8192)) as export, serving([export]) as server:
        for name in (b"", b"other"):
            with Client(server) as client:
                client.greet(flags)
                client.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, len(name)) + name)
                if name:
                    assert client.gone()
                    continue
                assert nbd.EXPORT_NAME_REPLY.unpack(client.recv(10))[0] == 8192
                if not flags & nbd.NO_ZEROES:
                    assert client.recv(124) == bytes(124)
                assert client.read(0, 8192) == (tmp_path / "a.img").read_bytes()
                client.sock.sendall(request(nbd.CMD_DISC))
                assert client.gone()


@pytest.mark.parametrize("structured", [False, True])
def test_what_cannot_be_is_refused_and_nothing_else(tmp_path: Path, structured: bool) -> None:
    image = some_image(tmp_path / "a.img", 8192)
    with (
        RawFileExport(image) as export,
        RawFileExport(image, name="ro", readonly=True) as readonly,
        serving([export, readonly]) as server,
        Client.connect(server, structured=structured) as client,
    ):
        assert client.ask(nbd.CMD_READ, 8192, 1)[0] == 22
        assert client.ask(nbd.CMD_READ, 2**64 - 1, 2)[0] == 22
        assert client.ask(nbd.CMD_WRITE, 8000, data=bytes(193))[0] == 28
        assert client.ask(nbd.CMD_WRITE_ZEROES, 1, 8192)[0] == 28
        assert client.ask(nbd.CMD_TRIM, 1, 8192)[0] == 22
        assert client.ask(nbd.CMD_WRITE, 0, data=b"x", flags=nbd.FLAG_NO_HOLE)[0] == 22
        assert client.ask(99, 0, 1)[0] == 22
        assert client.ask(nbd.CMD_BLOCK_STATUS, 0, 1)[0] == (0 if structured else 22)
        for command in (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
            assert client.ask(command, 0, 0) == (0, b"")
        assert client.read(0, 8192) == image.read_bytes()
        with Client.connect(server, "ro", structured) as other:
            for command in (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES):
                data = b"x" if command == nbd.CMD_WRITE else b""
                assert other.ask(command, 0, 1, data=data)[0] == 1
            assert other.ask(nbd.CMD_FLUSH)[0] == 0
            assert other.read(0, 8192) == image.read_bytes()


class Failing(RawFileExport):
    """A disk with a bad block, that is full, and that has a bug."""

    def read_into(self, offset: int, memory: memoryview) -> None:
        """Fail in the third block."""
        if offset < 12288 and offset + len(memory) > 8192:
            raise TTError("block 2 is damaged")
        super().read_into(offset, memory)

    def flush(self) -> None:
        """Fail."""
        raise OSError(28, "No space left on device")

    def trim(self, offset: int, size: int) -> None:
        """Fail as no export should."""
        raise IndexError("oops")


def test_errors_of_the_disk_reach_those_whom_they_concern(tmp_path: Path) -> None:
    said: list[str] = []
    image = some_image(tmp_path / "a.img", 1 << 20)
    with (
        Failing(image) as export,
        serving([export], say=said.append) as server,
        Client.connect(server) as client,
    ):
        client.sock.sendall(b"".join(request(0, at * 4096, 4096, cookie=at) for at in range(5)))
        found = [client.reply() for _ in range(5)]
        assert [(cookie, error) for cookie, error, _ in found] == [(0, 0), (1, 0), (2, 5), (3, 0), (4, 0)]
        assert (
            b"".join(data for _, _, data in found)
            == image.read_bytes()[:8192] + image.read_bytes()[12288:20480]
        )
        assert client.ask(nbd.CMD_READ, 0, 1 << 20)[0] == 5
        assert client.ask(nbd.CMD_FLUSH)[0] == 28
        assert client.ask(nbd.CMD_WRITE, 0, data=b"x", flags=nbd.FLAG_FUA)[0] == 28
        assert client.ask(nbd.CMD_TRIM, 0, 1)[0] == 5
        assert client.read(0, 1) == b"x"
    assert any("block 2 is damaged" in line for line in said) and any("IndexError" in line for line in said)


def test_an_instant_is_read_and_written_over(tmp_path: Path) -> None:
    path, model = lived(tmp_path, writes=40)
    numbers = sorted(model.then)
    with History.open(path) as history:
        lock = threading.Lock()
        exports = [
            InstantExport(history.at(number), name=f"w{number}", overlay=number == numbers[-1], lock=lock)
            for number in numbers
        ]
        with serving(exports) as server:
            for number, export in zip(numbers, exports, strict=True):
                with Client.connect(server, export.name) as client:
                    assert client.read(0, client.size) == model.then[number]
                    refused = client.ask(nbd.CMD_WRITE, 100, data=b"over")[0]
                    assert refused == (0 if number == numbers[-1] else 1)
            with Client.connect(server, exports[-1].name) as client:
                assert client.read(100, 4) == b"over"
        assert history.at(numbers[-1]).read(0, history.sectors) == model.then[numbers[-1]]
        for export in exports:
            export.close()


def test_addresses(tmp_path: Path) -> None:
    image = some_image(tmp_path / "a.img", 8192)
    with RawFileExport(image) as export, RawFileExport(image, name="a b") as other:
        for listen in ("0.0.0.0:0", "[::]:0", ":::0"):
            with pytest.raises((UsageError, TTError)):
                Server([export], listen)
        for listen in ("nonsense", "127.0.0.1:99999", "127.0.0.1:x"):
            with pytest.raises(UsageError, match="is no address"):
                Server([export], listen)
        with serving([export], "0", allow_remote=True) as server:
            assert server.url().startswith("nbd://127.0.0.1:")
            with pytest.raises(TTError, match="cannot listen"):
                Server([export], server.address)
        path = tmp_path / "s"
        with serving([export, other], f"unix:{path}") as server:
            assert server.url("a b") == f"nbd+unix:///a%20b?socket={path}"
            assert path.stat().st_mode & 0o77 == 0
            with pytest.raises(UsageError, match="another server"):
                Server([export], f"unix:{path}")
        assert not path.exists()
        with pytest.raises(UsageError, match="a name of its own"):
            Server([export, export])
        with pytest.raises(TTError, match="cannot listen"):
            Server([export], f"unix:{tmp_path}/{'x' * 200}")


def test_what_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with (
        RawFileExport(some_image(tmp_path / "a.img", 512)) as export,
        serving([export], f"unix:{path}") as server,
        Client.connect(server) as client,
    ):
        assert client.size == 512
