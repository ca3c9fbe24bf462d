"""An edge in production: released bundles alone run, at the start, when a recipe is selected, and as doctor says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.bundle import MANIFEST, PictureSizes, open_bundle, write_manifest
from contract.camera import CameraControls
from contract.errors import BundleError, ConfigError, FlawlineError, KeyFileError
from contract.event import Result, Trigger, Verdict
from edge_runtime.doctor import Status, Subject, check_release
from edge_runtime.recipes import (
    cut_doubts,
    faults_of_others,
    load_judge,
    open_fit,
    refuse_uneven,
    unset_controls,
)
from edge_runtime.settings import BundleSettings, CameraSettings, EdgeSettings, RecipeSettings, load_settings
from flawline import main
from tests.edge_runtime.test_control import LONG_S, Edge, Host, there
from tests.processes import TOUCHING, Line, Process, until
from tests.signed import People, write_calibrated

URL = "synthetic://line?seed=2&parts=3&fps=50"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return People(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft of each product."""
    folder = tmp_path_factory.mktemp("drafts")
    for number, name in enumerate(("washer", "gasket")):
        write_calibrated(folder / name, name, seed=50 * number)
    return folder


@pytest.fixture(scope="module")
def released(drafts: Path, people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each product a released bundle."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("washer", "gasket"):
        people.sign(Path(shutil.copytree(drafts / name, folder / name)))
    return folder


def settings(bundle: Path, trusted: Path, state: Path, *recipes: Path) -> EdgeSettings:
    return EdgeSettings(
        edge_id="e1",
        bundle=bundle,
        mode="production",
        bundles=BundleSettings(trusted=trusted),
        state_dir=state,
        cameras=[CameraSettings(id="top", url=URL)],
        recipes=[RecipeSettings(number=2 + at, bundle=path) for at, path in enumerate(recipes)],
    )


def test_a_released_bundle_judges_and_says_so(released: Path, people: People, tmp_path: Path) -> None:
    judge = load_judge(settings(released / "washer", people.trusted, tmp_path), 1)
    assert judge.names()["bundle_state"] == "released"
    judge.engine.close()


def test_on_trial_every_bundle_runs_and_no_state_is_claimed(drafts: Path, people: People, tmp_path: Path) -> None:
    made = settings(drafts / "washer", people.trusted, tmp_path).model_copy(update={"mode": "trial"})
    judge = load_judge(made, 1)
    assert judge.names()["bundle_state"] is None
    judge.engine.close()


def test_signatures_are_looked_at_when_a_bundle_is_loaded_and_only_in_production(
    released: Path, people: People, tmp_path: Path
) -> None:
    """What a trial never uses it never imports, and a part never waits for it."""
    script = (
        "import sys; from pathlib import Path; from edge_runtime.recipes import load_judge; import edge_runtime.run;"
        "from edge_runtime.settings import load_settings; load_judge(load_settings(Path(sys.argv[1])), 1);"
        "print('cryptography' in sys.modules)"
    )
    production = f'mode = "production"\n[bundles]\ntrusted = "{people.trusted}"'
    for more, loaded in (("", "False"), (production, "True")):
        (tmp_path / "edge.toml").write_text(CONFIG.format(bundle=released / "washer", url=URL, more=more))
        words = [sys.executable, "-c", script, str(tmp_path / "edge.toml")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [loaded]


def validated(bundle: Path, people: People) -> None:
    assert people.validate(bundle) == 0


def retired(bundle: Path, people: People) -> None:
    people.sign(bundle)
    assert people.retire(bundle) == 0


def recalibrated(bundle: Path, people: People) -> None:
    manifest = open_bundle(people.sign(bundle)).manifest
    assert manifest.thresholds is not None
    again = manifest.thresholds.model_copy(update={"reject": 7.0})
    write_manifest(bundle, manifest.model_copy(update={"thresholds": again}))


def reformatted(bundle: Path, people: People) -> None:
    path = people.sign(bundle) / MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")


def tampered(bundle: Path, people: People) -> None:
    path = people.sign(bundle) / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def by_strangers(bundle: Path, people: People) -> None:
    People(bundle.parent / "strangers").sign(bundle)


def nothing(bundle: Path, people: People) -> None:
    """A draft as it was calibrated."""


UNFIT: list[tuple[Callable[[Path, People], None], str]] = [
    (nothing, "is a draft; expected a released one"),
    (validated, "is validated; expected a released one"),
    (retired, r"was retired by grace .*\(escapes\)"),
    (recalibrated, "is a draft; expected a released one"),
    (reformatted, "not byte for byte as it was signed"),
    (tampered, "sha256"),
    (by_strangers, "does not trust to validate"),
]


@pytest.mark.parametrize(("how", "says"), UNFIT, ids=[how.__name__ for how, _ in UNFIT])
def test_every_other_bundle_is_refused(
    how: Callable[[Path, People], None], says: str, drafts: Path, released: Path, people: People, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(drafts / "gasket", tmp_path / "gasket"))
    how(bundle, people)
    with pytest.raises(BundleError, match=says):
        load_judge(settings(bundle, people.trusted, tmp_path), 1)
    as_second = settings(released / "washer", people.trusted, tmp_path, bundle)
    with pytest.raises(BundleError, match=says):
        load_judge(as_second, 2)
    (fault,) = faults_of_others(as_second, 1)
    assert fault.startswith("recipe 2 would be refused: ") and re.search(says, fault)


def test_a_content_that_is_retired_here(released: Path, people: People, tmp_path: Path) -> None:
    made = settings(released / "washer", people.trusted, tmp_path)
    made.bundles.retired = [open_bundle(released / "washer").content[:16]]
    with pytest.raises(BundleError, match="retired on this edge"):
        load_judge(made, 1)


def test_trust_that_is_missing_or_open_to_others(released: Path, people: People, tmp_path: Path) -> None:
    made = settings(released / "washer", tmp_path / "nowhere", tmp_path)
    with pytest.raises(KeyFileError, match="no folder of trusted signing keys"):
        load_judge(made, 1)
    shutil.copytree(people.trusted, tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(KeyFileError, match="others could put keys there"):
        load_judge(settings(released / "washer", tmp_path / "open", tmp_path), 1)
    with pytest.raises(ConfigError, match="nobody's signature counts"):
        load_judge(made.model_copy(update={"bundles": BundleSettings()}), 1)


CONFIG = """edge_id = "edge-1"
bundle = "{bundle}"
{more}
[[cameras]]
id = "top"
url = "{url}"
"""


def test_the_settings_name_the_folder_and_production_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(CONFIG.format(bundle="b", url=URL, more='mode = "production"'))
    with pytest.raises(ConfigError, match=r"trusted = 'signers' under \[bundles\]"):
        load_settings(path)
    path.write_text(CONFIG.format(bundle="b", url=URL, more='mode = "production"\n[bundles]\ntrusted = "signers"'))
    assert load_settings(path).bundles.trusted == tmp_path / "signers"
    path.write_text(CONFIG.format(bundle="b", url=URL, more=""))
    assert load_settings(path).mode == "trial"


def test_a_process_does_not_start_with_a_draft_and_does_with_a_release(
    drafts: Path, released: Path, people: People, tmp_path: Path
) -> None:
    production = f'mode = "production"\n[bundles]\ntrusted = "{people.trusted}"'
    path = tmp_path / "edge.toml"
    path.write_text(CONFIG.format(bundle=drafts / "washer", url=URL, more=production))
    refused = Process(tmp_path / "refused.log", "edge", "run", str(path))
    assert refused.wait(60) == 2
    assert "is a draft; expected a released one: flawline bundle validate" in refused.text()
    assert "Traceback" not in refused.text()
    line = Line(tmp_path, released / "washer", URL, edge=production, camera=TOUCHING)
    try:
        line.start_host()
        edge = line.start_edge()
        assert edge.wait(90) == 0, edge.text()[-2000:]
        assert "released by grace on " in edge.text()
        until(lambda: line.results() == 3, "three results")
    finally:
        line.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(f"ipc://{tmp_path}/control")
    yield made
    made.close()


def test_a_draft_is_refused_when_it_is_selected_and_the_released_one_goes_on(
    host: Host, drafts: Path, released: Path, people: People, tmp_path: Path
) -> None:
    recipes = [RecipeSettings(number=2, bundle=drafts / "gasket"), RecipeSettings(number=3, bundle=released / "gasket")]
    trusted = BundleSettings(trusted=people.trusted)
    edge = Edge(tmp_path, open_bundle(released / "washer"), recipes, 400, mode="production", bundles=trusted)
    try:
        there(host)
        reply = host.server.select_recipe("edge", 2, LONG_S).result(LONG_S)
        assert reply.outcome == "refused"
        assert "is a draft; expected a released one" in (reply.reason or "")
        assert reply.status is not None
        assert (reply.status.recipe_number, reply.status.bundle_state) == (1, "released")
        assert host.server.select_recipe("edge", 3, LONG_S).result(LONG_S).outcome == "ok"
        before = edge.wait_results(2)
        assert {(each.recipe_number, each.bundle_state) for each in edge.results[before:]} == {(3, "released")}
    finally:
        edge.close()


def with_cameras(bundle: Path, **controls: float) -> Path:
    manifest = open_bundle(bundle).manifest
    cameras = {"any": CameraControls.model_validate(controls)}
    write_manifest(bundle, manifest.model_copy(update={"cameras": cameras}))
    return bundle


def test_a_recipe_s_camera_settings_come_with_it_and_are_read_back(host: Host, drafts: Path, tmp_path: Path) -> None:
    """No part that was seen with the settings before is judged by the recipe after, and each part has one end."""
    right, wrong = (Path(shutil.copytree(drafts / "gasket", tmp_path / name)) for name in ("right", "wrong"))
    with_cameras(right, width=640, height=480, fps=50)
    with_cameras(wrong, width=1280)
    recipes = [RecipeSettings(number=2, bundle=right), RecipeSettings(number=3, bundle=wrong)]
    edge = Edge(tmp_path, open_bundle(drafts / "washer"), recipes, 400)
    try:
        there(host)
        edge.wait_results(2)
        camera = edge.station._cameras[0]
        first = camera.pid
        assert host.server.select_recipe("edge", 2, LONG_S).result(LONG_S).outcome == "ok"
        until(lambda: camera.pid not in (None, first), "another capture process", LONG_S)
        since = camera._controls_ns
        edge.wait_results(3)
        for each in edge.results:
            if each.recipe_number == 2 and each.timing.t_capture_ns < since:
                assert each.verdict is Verdict.NOT_INSPECTED
                assert "camera settings of the recipe before" in (each.reason or "")
        assert host.server.select_recipe("edge", 3, LONG_S).result(LONG_S).outcome == "ok"
        says = "settings of the bundle do not read back: width asked 1280, found 640"
        until(lambda: says in camera.status().detail, "the camera that is refused", LONG_S)
        assert camera.status().state == "failed"
        before = len(edge.results)
        assert host.server.select_recipe("edge", 1, LONG_S).result(LONG_S).outcome == "ok"
        until(lambda: len(edge.results) > before + 2, "parts are seen again", LONG_S)
        assert edge.results[-1].recipe_number == 1
        headers = edge.end()
        triggers = sorted(header.part_id for header in headers if isinstance(header, Trigger))
        assert triggers == sorted(header.part_id for header in headers if isinstance(header, Result))
    finally:
        edge.close()


def test_settings_of_a_camera_that_is_not_there_and_of_another_region(
    drafts: Path, people: People, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(drafts / "washer", tmp_path / "washer"))
    made = settings(bundle, people.trusted, tmp_path).model_copy(update={"mode": "trial"})
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, manifest.model_copy(update={"cameras": {"side": CameraControls(width=640)}}))
    with pytest.raises(FlawlineError, match=r"settings of camera\(s\) \['side'\], and edge.toml has \['top'\]"):
        load_judge(made, 1)
    write_manifest(bundle, manifest.model_copy(update={"cameras": {"top": CameraControls(region=(8, 8, 200, 200))}}))
    with pytest.raises(FlawlineError, match=r"made with region = \[8, 8, 200, 200\], edge.toml has none"):
        load_judge(made, 1)
    camera = CameraSettings(id="top", url=URL, fixture="region", region=(8, 8, 200, 200))
    load_judge(made.model_copy(update={"cameras": [camera]}), 1).engine.close()


def test_recipes_that_leave_a_camera_as_another_set_it(
    drafts: Path, people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused at the start of an edge in production and when selected; on trial, and where nothing is set, not."""
    washer, gasket = (Path(shutil.copytree(drafts / name, tmp_path / name)) for name in ("washer", "gasket"))
    with_cameras(washer, width=640, exposure=156)
    with_cameras(gasket, width=640)
    for bundle in (washer, gasket):
        people.sign(bundle)
    recorded = settings(washer, people.trusted, tmp_path, gasket)
    assert unset_controls(recorded) == {}, "nothing can be set at a recording"
    cameras = [CameraSettings(id="top", url="usb://0")]
    made = recorded.model_copy(update={"cameras": cameras})
    said = rf"recipe 2 \({gasket}\) does not ask camera top for exposure, which recipe 1 sets.*bundle camera {gasket}"
    with pytest.raises(ConfigError, match=said):
        refuse_uneven(made)
    with pytest.raises(ConfigError, match=said):
        open_fit(made, 2)
    open_fit(made, 1)
    trial = made.model_copy(update={"mode": "trial"})
    refuse_uneven(trial)
    assert re.search(said, caplog.text)
    open_fit(trial, 2)
    path = tmp_path / "edge.toml"
    recipe = f'[[recipes]]\nnumber = 2\nbundle = "{gasket}"'
    path.write_text(CONFIG.format(bundle=washer, url="usb://0", more=recipe))
    assert [(each.name, each.status) for each in check_release(Subject(None, path))] == [
        ("mode", Status.WARN),
        ("recipe 2", Status.WARN),
    ]
    more = f'mode = "production"\n[bundles]\ntrusted = "{people.trusted}"\n{recipe}'
    path.write_text(CONFIG.format(bundle=washer, url="usb://0", more=more))
    assert main(["doctor", "--config", str(path)]) == 1
    with_cameras(gasket, width=640, exposure=20)
    assert unset_controls(made) == {}


def test_an_edge_in_production_does_not_start_with_such_recipes(
    drafts: Path, people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    washer = people.sign(with_cameras(Path(shutil.copytree(drafts / "washer", tmp_path / "washer")), gain=3))
    gasket = people.sign(Path(shutil.copytree(drafts / "gasket", tmp_path / "gasket")))
    path = tmp_path / "edge.toml"
    more = f'mode = "production"\n[bundles]\ntrusted = "{people.trusted}"\n[[recipes]]\nnumber = 2\nbundle = "{gasket}"'
    path.write_text(CONFIG.format(bundle=washer, url="usb://0", more=more))
    assert main(["edge", "run", str(path)]) == 2
    assert "does not ask camera top for gain, which recipe 1 sets" in capsys.readouterr().err


def test_a_cut_that_is_not_that_of_the_calibration(
    drafts: Path, people: People, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Path(shutil.copytree(drafts / "washer", tmp_path / "washer"))
    manifest = open_bundle(bundle).manifest
    sizes = PictureSizes(width=(80, 80), height=(80, 80))
    write_manifest(bundle, manifest.model_copy(update={"pictures": sizes}))
    made = settings(people.sign(bundle), people.trusted, tmp_path)

    def cut(mode: str, *region: int) -> EdgeSettings:
        camera = CameraSettings(id="top", url=URL, fixture="region", region=region)  # type: ignore[arg-type]
        return made.model_copy(update={"mode": mode, "cameras": [camera]})

    open_fit(cut("production", 8, 8, 82, 78), 1)
    with pytest.raises(BundleError, match=r"region = \[8, 8, 200, 80\] has width over height 2.5 above 1.25.*no part"):
        open_fit(cut("trial", 8, 8, 200, 80), 1)
    with pytest.raises(BundleError, match=r"camera top cuts 200 x 200 px out of its frame.*pictures of 80 x 80 px"):
        open_fit(cut("production", 8, 8, 200, 200), 1)
    load_judge(cut("trial", 8, 8, 200, 200), 1).engine.close()
    assert "camera top cuts 200 x 200 px" in caplog.text
    caplog.clear()
    load_judge(made, 1).engine.close()
    assert "every picture it was calibrated with is 80 x 80 px" in caplog.text
    spread = PictureSizes(width=(70, 90), height=(80, 80))
    varied = open_bundle(bundle)
    varied.manifest.pictures = spread
    assert cut_doubts(varied, made) == []
    varied.manifest.pictures = None
    assert cut_doubts(varied, cut("production", 8, 8, 200, 200)) == [], "a bundle of before"


def test_doctor_says_what_a_plant_should_set_and_what_would_be_refused(
    drafts: Path, released: Path, people: People, tmp_path: Path
) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(CONFIG.format(bundle=drafts / "washer", url=URL, more=""))
    (finding,) = check_release(Subject(None, path))
    assert finding.status is Status.WARN
    assert 'mode = "production"' in finding.way_out
    recipe = f'[[recipes]]\nnumber = 2\nbundle = "{drafts / "gasket"}"'
    more = f'mode = "production"\n[bundles]\ntrusted = "{people.trusted}"\n{recipe}'
    path.write_text(CONFIG.format(bundle=released / "washer", url=URL, more=more))
    mode, first, second = check_release(Subject(None, path))
    assert (mode.status, mode.found) == (Status.OK, "production: ada may validate; grace may release")
    assert first.status is Status.OK and "released by grace" in first.found
    assert second.status is Status.FAIL and "is a draft" in second.found
    path.write_text(path.read_text().replace(str(people.trusted), "nowhere"))
    (mode,) = check_release(Subject(None, path))
    assert mode.status is Status.FAIL and "sign-trust" in mode.found


def test_validation_asks_for_limits_and_for_agreement_with_training(
    drafts: Path, people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar, raw, neither = (Path(shutil.copytree(drafts / "washer", tmp_path / name)) for name in ("liar", "raw", "none"))
    manifest = open_bundle(liar).manifest
    golden = manifest.golden.model_copy(update={"scores": [score + 1 for score in manifest.golden.scores]})
    write_manifest(liar, manifest.model_copy(update={"golden": golden}))
    assert people.validate(liar) == 2
    assert "disagrees with training" in capsys.readouterr().err
    write_manifest(raw, manifest.model_copy(update={"thresholds": None}))
    assert people.validate(raw) == 2
    assert "is not calibrated" in capsys.readouterr().err
    assert manifest.thresholds is not None
    strange = manifest.thresholds.model_copy(update={"engine": "by hand"})
    write_manifest(neither, manifest.model_copy(update={"thresholds": strange}))
    assert people.validate(neither) == 2
    assert "none of its graphs is calibrated" in capsys.readouterr().err
    for bundle in (liar, raw, neither):
        assert open_bundle(bundle).state == "draft"


def test_calibrating_again_makes_a_draft(
    bundle: Path, synthetic_data: Path, people: People, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real way round: trained, calibrated, released, calibrated anew."""
    folder = people.sign(Path(shutil.copytree(bundle, tmp_path / "bundle")))
    assert main(["bundle", "verify", str(folder), "--trusted", str(people.trusted)]) == 0
    again = ["calibrate", "thresholds", str(folder), "--data", str(synthetic_data), "--false-reject-rate", "0.2"]
    capsys.readouterr()
    assert main([*again, "--preview"]) == 0
    assert "draft" not in capsys.readouterr().out and open_bundle(folder).state == "released"
    assert main(again) == 0
    assert f"{folder}: was released, is a draft again" in capsys.readouterr().out
    assert main(["bundle", "verify", str(folder), "--trusted", str(people.trusted)]) == 2
    assert "is a draft; expected a released one" in capsys.readouterr().err
    assert "thresholds" in open_bundle(folder).manifest.history[-1].why
    assert main(again) == 0
    assert "draft" not in capsys.readouterr().out, "it was one before"
