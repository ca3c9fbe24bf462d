"""Pictures in a real server of the S3 protocol: acknowledged at once, carried later, never lost on the way."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import s3fs

from contract.errors import ConfigError
from contract.event import Verdict
from plugin.backup import back_up, restore
from plugin.blob_places import open_blobs
from plugin.bucket import Bucket
from plugin.datasets import Wanted, files, write_folder
from plugin.finder import Finder
from plugin.retention import Retention
from plugin.settings import RetentionSettings, load_settings
from plugin.store import Store
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.test_retention import Kept
from tests.processes import free_port

CREDENTIALS = ("key-of-tests", "secret-of-tests")
URL = "s3://pictures/line-1"


class S3:
    """A moto server as a process of its own; ``stop`` and ``cont`` freeze it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        s.until(self._answers, 60)

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.endpoint}/moto-api/data.json", timeout=5).read())
        except OSError:
            return False

    def files(self) -> Any:
        key, secret = CREDENTIALS
        return s3fs.S3FileSystem(
            key=key, secret=secret, endpoint_url=self.endpoint, use_listings_cache=False, skip_instance_cache=True
        )

    def names(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.files().find("pictures")}

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    made = S3()
    yield made
    made.close()


@pytest.fixture
def s3(server: S3) -> S3:
    files = server.files()
    if files.exists("pictures"):
        files.rm("pictures", recursive=True)
    files.mkdir("pictures")
    return server


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def settings_at(s3: S3, folder: Path) -> str:
    secret = folder / "s3.secret"
    secret.write_text("\n".join(CREDENTIALS) + "\n")
    secret.chmod(0o600)
    return f'[store]\npictures = "{URL}"\npictures_endpoint = "{s3.endpoint}"\npictures_credentials = "s3.secret"\n'


def test_a_picture_is_safe_at_once_carried_later_and_read_from_wherever_it_is(tmp_path: Path, s3: S3) -> None:
    bucket = Bucket(tmp_path, URL, s3.endpoint, CREDENTIALS)
    name = sha(b"one")
    bucket.put(name, b"one")
    assert (bucket.read(name), s3.names()) == (b"one", set())
    bucket.carry()
    assert not list((tmp_path / "blobs").glob("*/*"))
    assert (bucket.read(name), s3.names()) == (b"one", {name})
    assert s3.files().cat_file(f"pictures/line-1/{name[:2]}/{name}") == b"one"
    assert [names for names in bucket.groups() if names] == [[name]]
    bucket.remove(name)
    assert [names for names in bucket.groups() if names] == []
    bucket.carry()
    assert (bucket.read(name), s3.names()) == (None, set())


def test_what_is_wanted_again_before_its_removal_was_carried_stays(tmp_path: Path, s3: S3) -> None:
    bucket = Bucket(tmp_path, URL, s3.endpoint, CREDENTIALS)
    name = sha(b"one")
    bucket.put(name, b"one")
    bucket.carry()
    bucket.remove(name)
    bucket.put(name, b"one")
    bucket.carry()
    bucket.carry()
    assert (bucket.read(name), s3.names()) == (b"one", {name})


def test_a_host_acknowledges_while_the_bucket_is_away_and_carries_when_it_is_back(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer], tmp_path: Path, s3: S3
) -> None:
    s3.close()
    try:
        host = make_host(http=settings_at(s3, tmp_path))
        dealer = make_dealer(host.endpoint)
        for message in s.flagged(1, "bad", Verdict.REJECT, 2.0, seed=1):
            dealer.send(message)
        dealer.wait_acked(1, 2, 3)
        s.until(lambda: b"the bucket does not take them" in host.log.read_bytes(), 30)
        staged = {path.name: path.read_bytes() for path in (tmp_path / "state" / "blobs").glob("*/*")}
        assert len(staged) == 3
        host.end(signal.SIGKILL)
    finally:
        s3.start()
    s3.files().mkdir("pictures")
    host.start()
    s.until(lambda: s3.names() == set(staged) and not list((tmp_path / "state" / "blobs").glob("*/*")), 30)
    for each in host.get("/api/parts/1")["attachments"]:
        with urllib.request.urlopen(f"{host.url}api/attachments/{each['id']}") as answer:
            assert sha(answer.read()) == each["sha256"]
    assert s.until(lambda: host.get("/healthz")["ok"], 30)


def test_retention_and_backup_know_the_bucket(tmp_path: Path, s3: S3) -> None:
    state = tmp_path / "state"
    state.mkdir()
    where = state / "store.sqlite"
    kept = Kept(state, where)
    bucket = Bucket(state, URL, s3.endpoint, CREDENTIALS)
    kept.store.blobs = bucket
    kept.part("old", Verdict.PASS, 31, b"old")
    kept.part("young", Verdict.PASS, 1, b"young")
    bucket.put(sha(b"left over"), b"left over")
    bucket.carry()
    made = Retention(RetentionSettings(pass_days=30), state, kept.reader, bucket, lambda job: job(kept.store))
    made.remove_by_age()
    made.remove_unnamed()
    bucket.carry()
    assert s3.names() == {sha(b"young")}
    assert back_up(state, where, bucket, tmp_path / "backup").pictures == 1
    kept.reader.close()
    kept.store.close()
    s3.files().rm("pictures/line-1", recursive=True)
    other = tmp_path / "other"

    def again() -> Bucket:
        return Bucket(other, URL, s3.endpoint, CREDENTIALS)

    restore(tmp_path / "backup", other, other / "store.sqlite", again, {})
    again().carry()
    assert s3.names() == {sha(b"young")}
    Store(other, blobs=again()).close()


def test_a_data_set_is_exported_from_the_bucket_or_not_at_all(tmp_path: Path, s3: S3) -> None:
    state = tmp_path / "state"
    state.mkdir()
    kept = Kept(state, state / "store.sqlite")
    bucket = Bucket(state, URL, s3.endpoint, CREDENTIALS)
    kept.store.blobs = bucket
    kept.part("one", Verdict.REJECT, 1, b"one")
    kept.store.review(1, "good", "eve")
    bucket.carry()
    kept.reader.close()
    kept.store.close()
    (tmp_path / "host.toml").write_text('state_dir = "state"\n' + settings_at(s3, tmp_path))
    settings = load_settings(tmp_path / "host.toml")
    with closing(Finder(state / "store.sqlite")) as finder:

        def export(name: str) -> dict[str, Any]:
            wanted = Wanted("mvtec", test_share=0.0)
            return write_folder(files(finder, open_blobs(settings).read, wanted), tmp_path / name)

        (picture,) = export("out")["files"]
        assert (tmp_path / "out" / picture["file"]).read_bytes() == b"one" and picture["sha256"] == sha(b"one")
        s3.close()
        try:
            with pytest.raises(ConfigError, match="the bucket does not answer"):
                export("away")
        finally:
            s3.start()
    assert not [path for path in tmp_path.iterdir() if "away" in path.name]


def test_secrets_stay_out_of_the_configuration(tmp_path: Path, s3: S3) -> None:
    config = tmp_path / "host.toml"
    text = settings_at(s3, tmp_path)
    config.write_text(text.replace("s3://", "s3://key:secret@"))
    with pytest.raises(ConfigError):
        load_settings(config)
    config.write_text(text + "[retention]\nfree_gb = 1\n")
    with pytest.raises(ConfigError, match="free_gb"):
        load_settings(config)
    config.write_text(text)
    (tmp_path / "s3.secret").chmod(0o644)
    from plugin.blob_places import open_blobs

    with pytest.raises(ConfigError, match="chmod 600"):
        open_blobs(load_settings(config))
    assert "secret-of-tests" not in json.dumps(load_settings(config).model_dump(mode="json"))
