"""The log of disk writes: of traces with an index, and of those from before there was one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tt.chronus.store.history import History
from tt.log.disk_log import OldDiskLog, StoredDiskLog
from tt.log.sectors import BLOCK_SECTORS, SECTOR

TRACES = Path(__file__).parents[3] / "traces"


@pytest.mark.parametrize(("name", "kind"), [("v1", OldDiskLog), ("v2", OldDiskLog), ("v4", StoredDiskLog)])
def test_every_instant_is_what_the_writes_make(tmp_path: Path, name: str, kind: type) -> None:
    path = Path(shutil.copy(TRACES / f"denali-demo-{name}.tt", tmp_path))
    with History.open(path) as history:
        log, trace = history.trace.disk_log, history.trace
        assert isinstance(log, kind)
        writes = list(trace.disk_writes())
        assert log.count == history.count == len(writes) == 18
        contents = bytearray(history.at(0).read(0, history.sectors))
        for write, entry in zip(writes, log.entries(), strict=True):
            assert entry == log.entry(write.number)
            assert (entry.tick, entry.lba, entry.sectors) == (write.tick, write.lba, write.sectors)
            data = write.data()
            contents[write.lba * SECTOR : write.lba * SECTOR + len(data)] = data
            block = write.lba // BLOCK_SECTORS
            assert log.touched(0, block)
            if write.number % 5 == 0 or write is writes[-1]:
                assert history.at(write.number).read(0, history.sectors) == contents
        blocks = {
            at for write in writes for at in range(write.lba // 8, (write.lba + write.sectors - 1) // 8 + 1)
        }
        assert set(log.blocks_in(0, 0, history.sectors)) == blocks
        assert set(log.blocks_in(0, 2, 4)) == blocks & {2, 3, 4}
        middle = writes[len(writes) // 2].tick
        assert log.first_at("tick", middle) == sum(write.tick < middle for write in writes)
        rhythm = list(log.rhythm(0, 3, 9))
        assert [row[:2] for row in rhythm] == [(write.number, write.tick) for write in writes[2:9]]
        assert list(log.rhythm(1, 1, log.count)) == []
