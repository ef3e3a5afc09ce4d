"""What has a name is whole, whoever writes it meanwhile and however the writing ends."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from yolo_lat.data.new_folder import new_folder
from yolo_lat.errors import UserError
from yolo_lat.run_lock import hold_folder, lock_folder
from yolo_lat.unfinished import new_folder_of_run, unfinished_folder, whole_file, write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not lock folders")

# Writes half of a file, and waits to be killed.
HALF = """
import sys, time
from pathlib import Path
from yolo_lat.unfinished import whole_file
with whole_file(Path(sys.argv[1])) as partial:
    partial.write_text("ha")
    print("half", flush=True)
    time.sleep(60)
"""


def half(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HALF, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "half\n"
    return process


class TestWholeFile:
    def test_appears_at_the_end_in_place_of_another(self, tmp_path) -> None:
        (tmp_path / "a.txt").write_text("old")
        with whole_file(tmp_path / "a.txt") as partial:
            partial.write_text("new")
            assert (tmp_path / "a.txt").read_text() == "old"
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "new"}

    def test_a_failure_leaves_what_was_there(self, tmp_path) -> None:
        (tmp_path / "a.txt").write_text("old")

        def write() -> None:
            with whole_file(tmp_path / "a.txt") as partial:
                partial.write_text("ne")
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            write()
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "old"}

    def test_what_a_killed_process_left_goes_and_what_another_is_at_stays(self, tmp_path) -> None:
        killed, at_work = half(tmp_path / "a.txt"), half(tmp_path / "a.txt")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        try:
            assert len(list(tmp_path.iterdir())) == 2
            with whole_file(tmp_path / "a.txt") as partial:
                partial.write_text("new")
            left = [path for path in tmp_path.iterdir() if path.name != "a.txt"]
            assert [(path / "a.txt").read_text() for path in left] == ["ha"]
        finally:
            at_work.kill()
            at_work.wait()
        assert (tmp_path / "a.txt").read_text() == "new"
        with whole_file(tmp_path / "b.txt") as partial:  # another file: what it left is not ours
            partial.write_text("b")
        assert len(list(tmp_path.iterdir())) == 3

    def test_many_at_once_give_one_of_their_files(self, tmp_path) -> None:
        def write(number: int) -> None:
            with whole_file(tmp_path / "a.txt") as partial:
                partial.write_text(str(number) * 10_000)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, [number % 10 for number in range(64)]))
        content = (tmp_path / "a.txt").read_text()
        assert (len(content), len(set(content))) == (10_000, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


class TestWriteWhole:
    def test_writes_text_and_bytes_that_others_may_read(self, tmp_path) -> None:
        write_whole(tmp_path / "a.json", "ü\n")
        write_whole(tmp_path / "b.bin", b"\0\1")
        assert (tmp_path / "a.json").read_bytes() == "ü\n".encode()
        assert (tmp_path / "b.bin").read_bytes() == b"\0\1"
        (tmp_path / "c").touch()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1

    def test_a_failure_leaves_what_was_there(self, tmp_path, monkeypatch) -> None:
        write_whole(tmp_path / "a.json", "old")

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            write_whole(tmp_path / "a.json", "new")
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.json": "old"}


class TestUnfinishedFolder:
    def test_one_that_is_not_held_yet_may_be_taken_away(self, tmp_path, monkeypatch) -> None:
        """Between making a folder and holding it another process may remove it, as if it had been left behind."""
        calls: list[Path] = []

        def hold(folder: Path) -> int | None:
            calls.append(folder)
            if len(calls) == 1:
                folder.rmdir()
            return hold_folder(folder)

        monkeypatch.setattr("yolo_lat.unfinished.hold_folder", hold)
        with unfinished_folder(tmp_path / "a") as folder:
            assert folder.is_dir()
        assert len(calls) == 2
        assert list(tmp_path.iterdir()) == []

    def test_a_new_folder_is_held_until_it_has_its_name(self, tmp_path) -> None:
        """Else another one who begins at that moment takes it for one that was left behind, and empties it."""
        with new_folder(tmp_path / "new") as folder:
            (folder / "file").write_text("content")
            assert hold_folder(folder) is None
        assert (tmp_path / "new/file").read_text() == "content"

    def test_the_faster_one_wins(self, tmp_path) -> None:

        def make() -> None:
            with new_folder(tmp_path / "new"):
                (tmp_path / "new").mkdir()
                (tmp_path / "new/theirs").touch()

        with pytest.raises(UserError, match="new: exists and is not empty"):
            make()
        assert [path.name for path in tmp_path.rglob("*")] == ["new", "theirs"]


class TestFolders:
    def test_each_run_gets_a_folder_of_its_own(self, tmp_path) -> None:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: new_folder_of_run(tmp_path / "run"), range(40)))
        assert sorted(made) == sorted([tmp_path / "run", *(tmp_path / f"run-{n}" for n in range(2, 41))])
        assert new_folder_of_run(tmp_path / "run-7") == tmp_path / "run-41"
        assert new_folder_of_run(tmp_path / "run", exist_ok=True) == tmp_path / "run"

    def test_a_folder_is_held_by_one(self, tmp_path) -> None:
        let_go = lock_folder(tmp_path)
        with pytest.raises(UserError, match="another process is at this run; wait for it"):
            lock_folder(tmp_path)
        let_go()
        lock_folder(tmp_path)()
        assert hold_folder(tmp_path / "nowhere") is None

    def test_a_fork_does_not_hold_what_its_parent_does(self, tmp_path) -> None:
        """A worker that loads data may outlive a training that was killed."""
        code = (
            "import os, sys, time\nfrom pathlib import Path\nfrom yolo_lat.run_lock import lock_folder\n"
            f"lock_folder(Path({str(tmp_path)!r}))\n"
            "if os.fork():\n    print('held', flush=True)\n    os.kill(os.getpid(), 9)\n"
            "os.close(1)\ntime.sleep(5)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE)
        lock_folder(tmp_path)()

    def test_a_process_that_ends_lets_go(self, tmp_path) -> None:
        code = (
            f"from pathlib import Path; from yolo_lat.run_lock import lock_folder; lock_folder(Path({str(tmp_path)!r}))"
        )
        subprocess.run([sys.executable, "-c", code + "; import os; os._exit(1)"], check=False, env=os.environ)
        lock_folder(tmp_path)()
