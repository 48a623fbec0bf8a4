"""A sealed job's key survives a restart, opens for its account alone, and goes with its job."""

import threading
from pathlib import Path

import pytest
from kit.memory_party import key

from hansa.node.faults import ConfigError
from hansa.node.storage.job_keys import JobKeys
from hansa.node.storage.sealing import new_content_key

JOB, OTHER = b"j" * 32, b"o" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sealing"


def test_a_key_is_found_again_after_a_restart(folder: Path) -> None:
    content = new_content_key()
    JobKeys(folder, key(1)).keep(JOB, content)
    found = JobKeys(folder, key(1))
    assert found.find(JOB) == content
    assert found.find(OTHER) is None


def test_what_lies_on_the_disk_is_private_and_opens_for_nobody_else(folder: Path) -> None:
    content = new_content_key()
    JobKeys(folder, key(1)).keep(JOB, content)
    (file,) = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert content.secret() not in file.read_bytes()
    assert content.secret().hex().encode() not in file.read_bytes()
    assert JobKeys(folder, key(2)).find(JOB) is None


def test_a_key_is_that_of_one_job_and_is_never_overwritten(folder: Path) -> None:
    keys = JobKeys(folder, key(1))
    keys.keep(JOB, new_content_key())
    with pytest.raises(ConfigError, match="exists already"):
        keys.keep(JOB, new_content_key())
    (folder / f"{JOB.hex()}.key").rename(folder / f"{OTHER.hex()}.key")
    assert JobKeys(folder, key(1)).find(OTHER) is None


@pytest.mark.parametrize("content", [b"", b"short", bytes(60), bytes(200)])
def test_a_file_that_was_spoilt_is_a_key_that_is_lost(folder: Path, content: bytes) -> None:
    keys = JobKeys(folder, key(1))
    file = folder / f"{JOB.hex()}.key"
    file.write_bytes(content)
    file.chmod(0o600)
    assert keys.find(JOB) is None


def test_a_key_goes_with_its_job_and_not_before_its_job_is_known(folder: Path) -> None:
    keys = JobKeys(folder, key(1))
    keys.keep(JOB, new_content_key())
    keys.keep_only([])
    assert keys.find(JOB) is not None
    keys.keep_only([JOB])
    keys.keep_only([OTHER])
    assert keys.find(JOB) is None
    assert list(folder.iterdir()) == []


def test_a_key_whose_job_never_came_into_the_journal_is_gone_after_the_next_start(folder: Path) -> None:
    JobKeys(folder, key(1)).keep(JOB, new_content_key())
    keys = JobKeys(folder, key(1))
    keys.keep_only([])
    assert list(folder.iterdir()) == []


def test_what_a_crash_left_half_written_is_cleared_away(folder: Path) -> None:
    JobKeys(folder, key(1)).keep(JOB, new_content_key())
    (folder / f".{OTHER.hex()}.key.0123").write_bytes(b"half")
    JobKeys(folder, key(1))
    assert [path.name for path in folder.iterdir()] == [f"{JOB.hex()}.key"]


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        JobKeys(folder, key(1))


def test_a_key_that_is_being_kept_is_not_cleared_away_by_another_thread(folder: Path) -> None:
    keys, over = JobKeys(folder, key(1)), threading.Event()

    def clear() -> None:
        while not over.is_set():
            keys.keep_only([])

    thread = threading.Thread(target=clear)
    thread.start()
    jobs = [number.to_bytes(32, "big") for number in range(100)]
    try:
        for job in jobs:
            keys.keep(job, new_content_key())
    finally:
        over.set()
        thread.join()
    assert {path.stem for path in folder.iterdir()} == {job.hex() for job in jobs}


def test_a_key_that_could_not_be_kept_is_no_key_of_a_new_job(folder: Path) -> None:
    JobKeys(folder, key(1)).keep(JOB, new_content_key())
    keys = JobKeys(folder, key(1))
    with pytest.raises(ConfigError, match="exists already"):
        keys.keep(JOB, new_content_key())
    keys.keep_only([])
    assert list(folder.iterdir()) == []
