"""A bundle's way from draft to retired: who may do which step, and that every byte belongs to what was signed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.bundle import MANIFEST, advance, digest_of, open_bundle, refuse_unfit_for_production, write_manifest
from contract.errors import BundleError
from contract.release import MAX_STEPS, Step
from contract.signing import distrust, load_signing_pair, new_signing_pair, read_trusted, trust
from flawline import main
from tests.contract.test_bundle import make_old
from tests.signed import LIMITS, People, write_calibrated


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return People(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def _released(people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people.sign(write_calibrated(tmp_path_factory.mktemp("released") / "bundle"))


@pytest.fixture
def released(_released: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_released, tmp_path / "bundle"))


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return write_calibrated(tmp_path / "draft")


def take(bundle: Path, people: People) -> None:
    """As an edge in production does."""
    refuse_unfit_for_production(open_bundle(bundle), read_trusted(people.trusted))


def forge(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and write it as signing writes it, with a digest that is right: a careful forger."""
    path = bundle / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    del raw["digest"]
    path.write_text(json.dumps({**raw, "digest": digest_of(raw)}, indent=1) + "\n")


def test_the_whole_way(draft: Path, people: People, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_bundle(draft).state == "draft"
    with pytest.raises(BundleError, match=r"is a draft; expected a released one: flawline bundle validate"):
        take(draft, people)
    assert people.release(draft) == 2
    assert "only a validated one can be released" in capsys.readouterr().err
    assert people.validate(draft) == 0
    with pytest.raises(BundleError, match=r"is validated; expected a released one.*by a second person"):
        take(draft, people)
    assert people.release(draft) == 0
    take(draft, people)
    assert main(["bundle", "verify", str(draft), "--trusted", str(people.trusted)]) == 0
    assert main(["bundle", "show", str(draft)]) == 0
    shown = capsys.readouterr().out
    assert "released" in shown and "grace: line 3" in shown and "ada: report 17" in shown
    history = open_bundle(draft).manifest.history
    assert [(step.state, step.who) for step in history[1:]] == [("validated", "ada"), ("released", "grace")]
    assert people.retire(draft) == 0
    with pytest.raises(BundleError, match=r"retired by grace on .*\(escapes\)"):
        take(draft, people)
    assert open_bundle(draft).manifest.history[:3] == history
    for step in (people.validate, people.release, people.retire):
        assert step(draft) == 2


@pytest.mark.parametrize("state", ["validated", "released", "retired"])
def test_what_changes_the_bundle_makes_it_a_draft(draft: Path, people: People, state: str) -> None:
    assert people.validate(draft) == 0
    if state != "validated":
        assert people.release(draft) == 0
    if state == "retired":
        assert people.retire(draft) == 0
    opened = open_bundle(draft)
    write_manifest(draft, opened.manifest.model_copy(update={"thresholds": LIMITS.model_copy(update={"reject": 2.5})}))
    again = open_bundle(draft)
    assert again.state == "draft"
    assert again.manifest.history[-1].why == "thresholds changed"
    assert again.manifest.history[:-1] == opened.manifest.history
    with pytest.raises(BundleError, match="is a draft"):
        take(draft, people)
    people.sign(draft)
    take(draft, people)


def test_the_key_that_validated_does_not_release(draft: Path, people: People, tmp_path: Path) -> None:
    assert people.validate(draft) == 0
    with pytest.raises(BundleError, match=r"validated by ada and released by ada with the same key"):
        advance(open_bundle(draft), "released", load_signing_pair(people.key("ada")), "mine")
    renamed = tmp_path / "renamed" / "bob.sign_secret"
    renamed.parent.mkdir(mode=0o700)
    shutil.copy(people.key("ada"), renamed)
    with pytest.raises(BundleError, match="the same key"):
        advance(open_bundle(draft), "released", load_signing_pair(renamed), "mine, renamed")
    new_signing_pair(tmp_path / "second", "Ada")
    with pytest.raises(BundleError, match="another key of the same name"):
        advance(open_bundle(draft), "released", load_signing_pair(tmp_path / "second" / "Ada.sign_secret"), "mine too")
    assert open_bundle(draft).state == "validated"


def test_a_release_by_one_person_that_was_made_past_the_command(draft: Path, people: People) -> None:
    """A forger with one good key writes both steps; an edge that trusts the key in both roles still refuses."""
    assert people.validate(draft) == 0
    pair = load_signing_pair(people.key("ada"))

    def add(raw: dict[str, Any]) -> None:
        last = Step(**raw["history"][-1])
        step = {**raw["history"][-1], "state": "released", "previous": last.digest(), "signature": "00" * 64}
        raw["history"].append({**step, "signature": pair.sign(Step(**step).message())})

    forge(draft, add)
    with pytest.raises(BundleError, match="validated by ada and released by ada with the same key"):
        take(draft, people)


def test_keys_that_are_unknown_or_trusted_for_something_else(draft: Path, people: People, tmp_path: Path) -> None:
    strangers = People(tmp_path / "strangers")
    strangers.sign(draft)
    with pytest.raises(BundleError, match=r"validated by ada with key .* does not trust to validate; it trusts ada"):
        take(draft, people)
    swapped = tmp_path / "swapped"
    trust(swapped, strangers.keys / "ada.sign", "release")
    trust(swapped, strangers.keys / "grace.sign", "validate")
    with pytest.raises(BundleError, match=r"does not trust to validate; it trusts grace"):
        refuse_unfit_for_production(open_bundle(draft), read_trusted(swapped))
    refuse_unfit_for_production(open_bundle(draft), read_trusted(strangers.trusted))


def test_trust_that_was_taken_back(draft: Path, tmp_path: Path) -> None:
    people = People(tmp_path / "people")
    people.sign(draft)
    take(draft, people)
    distrust(people.trusted, "grace")
    with pytest.raises(BundleError, match=r"released by grace .* does not trust to release; it trusts nobody"):
        take(draft, people)


def test_a_name_that_is_not_the_key_s(draft: Path, people: People, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed" / "boss.sign_secret"
    renamed.parent.mkdir(mode=0o700)
    shutil.copy(people.key("grace"), renamed)
    assert people.validate(draft) == 0
    advance(open_bundle(draft), "released", load_signing_pair(renamed), "as the boss")
    with pytest.raises(BundleError, match="in the name of 'boss' with the key of 'grace'"):
        take(draft, people)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "golden.npy", "data.json"])
def test_a_file_that_was_exchanged_with_its_hash(released: Path, people: People, name: str) -> None:
    data = bytearray((released / name).read_bytes())
    data[len(data) // 2] ^= 1
    (released / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match="sha256"):
        open_bundle(released)

    def rehash(raw: dict[str, Any]) -> None:
        from contract.bundle import sha256_of

        entry = next(entry for entry in raw["files"].values() if entry["path"] == name)
        entry["sha256"] = sha256_of(released / name)

    forge(released, rehash)
    open_bundle(released)  # whole in itself, as a draft would be
    with pytest.raises(BundleError, match=r"ada signed it as validated with content .*changed since"):
        take(released, people)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every single value of a JSON document stands."""
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in leaves(each, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for at, each in enumerate(value) for leaf in leaves(each, (*path, at))]
    return [path]


def other(value: Any) -> Any:
    """A value that is not ``value``, of the same kind where there is one."""
    if isinstance(value, str):
        return (("1" if value[:1] == "0" else "0") + value[1:]) if value else "x"
    if isinstance(value, bool) or value is None:
        return 1
    return value + 1 if isinstance(value, int | float) else ["x"]


def test_every_value_of_the_manifest_and_of_the_history_is_signed(released: Path, people: People) -> None:
    held = (released / MANIFEST).read_bytes()
    found = leaves(json.loads(held))
    assert len(found) > 100
    for path in found:

        def change(raw: dict[str, Any], path: tuple[Any, ...] = path) -> None:
            at: Any = raw
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = other(at[path[-1]])

        if path == ("digest",):
            continue  # it is computed anew by ``forge``
        forge(released, change)
        with pytest.raises(BundleError):
            take(released, people)
    (released / MANIFEST).write_bytes(held)
    take(released, people)


def test_every_byte_of_the_manifest_counts(released: Path, people: People) -> None:
    path = released / MANIFEST
    held = path.read_bytes()
    spaces = [at for at, byte in enumerate(held) if byte in b" \n"]
    for at in {*spaces[:: max(1, len(spaces) // 40)], *range(0, len(held), max(1, len(held) // 60)), len(held) - 1}:
        for data in (held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :], held[:at] + b" " + held[at:]):
            path.write_bytes(data)
            with pytest.raises(BundleError):
                take(released, people)
    path.write_bytes(held.replace(b"\n", b"\r\n"))
    with pytest.raises(BundleError, match="byte for byte"):
        take(released, people)


HISTORIES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "nothing": lambda steps: [],
    "no release": lambda steps: steps[:2],
    "no validation": lambda steps: [steps[0], steps[2]],
    "no draft": lambda steps: steps[1:],
    "turned round": lambda steps: [steps[0], steps[2], steps[1]],
    "twice": lambda steps: [*steps, steps[2]],
    "another beginning": lambda steps: [{**steps[0], "why": "better"}, *steps[1:]],
    "unsigned": lambda steps: [*steps[:2], {**steps[2], "signature": None}],
    "another's signature": lambda steps: [*steps[:2], {**steps[2], "signature": steps[1]["signature"]}],
    "another's key": lambda steps: [*steps[:2], {**steps[2], "key": steps[1]["key"]}],
    "short signature": lambda steps: [*steps[:2], {**steps[2], "signature": "00"}],
    "huge signature": lambda steps: [*steps[:2], {**steps[2], "signature": "0" * 5_000_000}],
    "capital digits": lambda steps: [*steps[:2], {**steps[2], "signature": steps[2]["signature"].upper()}],
    "no text": lambda steps: [*steps[:2], {**steps[2], "signature": {"a": [1]}}],
    "a key of zeros": lambda steps: [*steps[:2], {**steps[2], "key": "00" * 32}],
    "long reason": lambda steps: [{**steps[0], "why": "x" * 501}, *steps[1:]],
    "further fields": lambda steps: [{**steps[0], "note": "x"}, *steps[1:]],
    "unknown state": lambda steps: [*steps[:2], {**steps[2], "state": "blessed"}],
    "too long": lambda steps: [steps[0]] * (MAX_STEPS + 1),
    "signed draft": lambda steps: [{**steps[2], "state": "draft"}, *steps[1:]],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_that_were_changed(released: Path, people: People, name: str) -> None:
    forge(released, lambda raw: raw.update(history=HISTORIES[name](raw["history"])))
    with pytest.raises(BundleError) as caught:
        take(released, people)
    assert str(released) in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_signature_of_another_bundle(released: Path, draft: Path, people: People) -> None:
    write_calibrated(draft, "other", seed=100)
    history = json.loads((released / MANIFEST).read_text())["history"]
    forge(draft, lambda raw: raw.update(history=history))
    with pytest.raises(BundleError, match="the signature is another bundle's"):
        take(draft, people)
    assert main(["bundle", "show", str(draft)]) == 2
    assert main(["bundle", "verify", str(draft)]) == 2


def test_nothing_more_is_signed_on_what_was_changed(draft: Path, people: People) -> None:
    assert people.validate(draft) == 0
    forge(draft, lambda raw: raw["thresholds"].update(reject=9.0))
    with pytest.raises(BundleError, match="changed since"):
        advance(open_bundle(draft), "released", load_signing_pair(people.key("grace")), "looks fine")


def test_a_retired_bundle_whose_copy_does_not_know_it(released: Path, people: People) -> None:
    opened = open_bundle(released)
    trusted = read_trusted(people.trusted)
    refuse_unfit_for_production(opened, trusted, ["0" * 16])
    with pytest.raises(BundleError, match=r"retired on this edge \(\[bundles\] retired\)"):
        refuse_unfit_for_production(opened, trusted, [opened.content[:16]])


def test_a_bundle_of_before_there_was_a_state_is_a_draft_and_can_be_signed(tmp_path: Path, people: People) -> None:
    folder = make_old(tmp_path)
    path = folder / MANIFEST
    content = {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("cameras", "history", "digest")
    }
    path.write_text(json.dumps({**content, "digest": digest_of(content)}))
    assert open_bundle(folder).state == "draft"
    with pytest.raises(BundleError, match="is a draft"):
        take(folder, people)
    advance(open_bundle(folder), "validated", load_signing_pair(people.key("ada")), "old but good")
    advance(open_bundle(folder), "released", load_signing_pair(people.key("grace")), "line 1")
    take(folder, people)
    assert "cameras" not in json.loads(path.read_text()), "what was signed stays as it stands"


def test_a_reason_is_asked_for_and_kept_short(draft: Path, people: People) -> None:
    pair = load_signing_pair(people.key("ada"))
    with pytest.raises(BundleError, match="--why is empty"):
        advance(open_bundle(draft), "validated", pair, "  ")
    done = advance(open_bundle(draft), "validated", pair, "x" * 2000)
    assert len(done.manifest.history[-1].why) == 500
