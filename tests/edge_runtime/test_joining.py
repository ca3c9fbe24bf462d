"""Several cameras and one part: one verdict, the worst view's, and none where a view is missing."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from contract.bundle import Bundle, open_bundle, write_manifest
from contract.control import Part
from contract.errors import ConfigError
from contract.event import Attachment, Result, Verdict
from contract.recipe import View
from edge_runtime.recipes import refuse_unfit
from edge_runtime.settings import CameraSettings, EdgeSettings
from tests.edge_runtime.asked import LONG_S, Asked, ends
from tests.processes import freeze, until

FPS = 25
LEAD, FOLLOW = {"trigger": "software", "within_ms": 2000}, {"trigger": "follow"}


@pytest.fixture(scope="module")
def joined(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with two views of two cameras, each held to the bounds of the one view that it was made of."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("joined") / "bundle")
    manifest = open_bundle(folder).manifest
    recipe = manifest.recipe.model_copy(update={"views": [View(name=f"of {c}", camera=c) for c in ("top", "side")]})
    assert manifest.quality is not None
    of_main, thumb = manifest.quality.views["main"], manifest.quality.likeness_thumb["main"]
    names = [view.name for view in recipe.views]
    quality = manifest.quality.model_copy(
        update={"views": dict.fromkeys(names, of_main), "likeness_thumb": dict.fromkeys(names, thumb)}
    )
    write_manifest(folder, manifest.model_copy(update={"recipe": recipe, "quality": quality}))
    return open_bundle(folder)


class Pictures:
    """Cameras that show one picture over and over: a good part, a defective one, or nothing that is one."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self.good = sorted((data / "test" / "good").iterdir())[0]
        defective = [
            path for each in sorted((data / "test").iterdir()) if each.name != "good" for path in each.iterdir()
        ]
        self.defective = max(defective, key=lambda path: path.stat().st_size)
        self.black = folder / "black.png"
        self.black.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(self.black), 0 * cv2.imread(str(self.good)))

    def camera(self, name: str, picture: Path, frames: int = 1500, **more: Any) -> dict[str, Any]:
        shown = self._folder / name
        shown.mkdir()
        for number in range(frames):
            (shown / f"{number:05d}.png").symlink_to(picture)
        height, width = cv2.imread(str(picture)).shape[:2]
        url = f"file://{shown}?fps={FPS}"
        return {"id": name, "url": url, "fixture": "region", "region": (0, 0, width, height)} | more


@pytest.fixture
def pictures(tmp_path: Path, synthetic_data: Path) -> Pictures:
    return Pictures(tmp_path / "pictures", synthetic_data)


@pytest.fixture
def start(joined: Bundle, tmp_path: Path) -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def make(*cameras: dict[str, Any], offset_ms: float = 0, within_ms: float = 50, **more: Any) -> Asked:
        groups = [{"lead": "top", "followers": [{"camera": "side", "offset_ms": offset_ms, "within_ms": within_ms}]}]
        made.append(Asked(tmp_path, joined, list(cameras), **{"groups": groups, **more}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_two_good_views_are_one_part_that_passes_with_pictures_of_both(
    start: Callable[..., Asked], pictures: Pictures
) -> None:
    edge = start(
        pictures.camera("top", pictures.good, **LEAD), pictures.camera("side", pictures.good, **FOLLOW), images="all"
    )
    edge.sees()
    replies = [edge.ask(Part(serial=f"SN-{n}")) for n in range(3)]
    results = edge.wait_results(3)
    assert [len(reply.part_ids) for reply in replies] == [1, 1, 1], "one part, however many cameras see it"
    assert {(each.verdict, each.reason, each.camera_id) for each in results} == {(Verdict.PASS, None, "top")}
    assert {name.partition(".")[0] for name in results[0].quality} == {"of top", "of side"}
    headers = edge.end()
    triggered, ended = ends(headers)
    assert triggered == ended
    shown = [part for each in headers if isinstance(each, Attachment) for part in each.parts]
    assert sorted({(part.role, part.view) for part in shown}) == [
        ("image", "of side"), ("image", "of top"), ("map", "of side"), ("map", "of top")
    ]  # fmt: skip


@pytest.mark.parametrize("bad", ["top", "side"])
def test_the_worst_view_makes_the_verdict(start: Callable[..., Asked], pictures: Pictures, bad: str) -> None:
    shown = {"top": pictures.good, "side": pictures.good} | {bad: pictures.defective}
    edge = start(pictures.camera("top", shown["top"], **LEAD), pictures.camera("side", shown["side"], **FOLLOW))
    edge.sees()
    edge.ask()
    (result,) = edge.wait_results(1)
    assert result.verdict in (Verdict.REJECT, Verdict.REVIEW), result
    assert result.regions[0].view == f"of {bad}"


def test_a_view_that_the_gate_refuses_makes_no_verdict(start: Callable[..., Asked], pictures: Pictures) -> None:
    edge = start(pictures.camera("top", pictures.good, **LEAD), pictures.camera("side", pictures.black, **FOLLOW))
    edge.sees()
    edge.ask()
    (result,) = edge.wait_results(1)
    assert (result.verdict, "of view 'of side' is" in (result.reason or "")) == (Verdict.NOT_INSPECTED, True)


def test_a_blind_follower_is_named_and_its_part_has_no_verdict(start: Callable[..., Asked], pictures: Pictures) -> None:
    edge = start(pictures.camera("top", pictures.good, **LEAD), pictures.camera("side", pictures.good, **FOLLOW))
    edge.sees()
    pid = edge.station._cameras[1].pid
    assert pid is not None
    freeze(pid)
    reply = edge.ask(Part(serial="SN-1"))
    (result,) = edge.wait_results(1)
    os.kill(pid, signal.SIGKILL)
    assert reply.part_ids == (result.part_id,)
    assert (result.verdict, result.serial) == (Verdict.NOT_INSPECTED, "SN-1")
    assert (result.reason or "").startswith(
        "view 'of side': camera side: trigger 1 has no picture: no frame within 50 ms"
    )


def test_frames_are_joined_by_their_time(start: Callable[..., Asked], pictures: Pictures) -> None:
    edge = start(
        pictures.camera("top", pictures.good, **LEAD),
        pictures.camera("side", pictures.good, **FOLLOW),
        offset_ms=120,
        within_ms=500 / FPS + 1,
    )
    taken = []
    join = edge.station._joining.ready

    def noted(last: bool = False) -> list[Any]:
        found = join(last)
        taken.extend(found)
        return found

    edge.station._joining.ready = noted  # type: ignore[method-assign]
    edge.sees()
    for _ in range(4):
        edge.ask()
    edge.wait_results(4)
    assert [each.verdict for each in edge.results] == [Verdict.PASS] * 4
    for part in taken:
        ((camera, seen),) = part.others
        apart_ms = (seen.t_capture_ns - part.trigger.t_capture_ns) / 1e6
        assert camera.settings.id == "side"
        assert abs(apart_ms - 120) <= 500 / FPS + 1e-3, "the nearest of frames that come every 40 ms"


def test_a_frame_that_was_given_up_is_not_replaced_by_another(start: Callable[..., Asked], pictures: Pictures) -> None:
    edge = start(
        pictures.camera("top", pictures.good, **LEAD),
        pictures.camera("side", pictures.good, slots=3, **FOLLOW),
        offset_ms=-2000,
        within_ms=10_000,
    )
    until(lambda: edge.station._cameras[1].status().frames > 8, "there were frames that are not kept any more", LONG_S)
    edge.ask()
    (result,) = edge.wait_results(1)
    assert result.verdict is Verdict.NOT_INSPECTED
    assert "its frame was given up before it could be taken: raise `slots` of the camera" in (result.reason or "")


def test_each_frame_of_a_leading_camera_is_a_part_and_the_end_of_the_line_ends_all(
    start: Callable[..., Asked], pictures: Pictures
) -> None:
    edge = start(
        pictures.camera("top", pictures.good, 12, trigger="every-frame"),
        pictures.camera("side", pictures.good, 60, **FOLLOW),
        within_ms=30_000,  # the two processes do not begin at the same time
    )
    until(lambda: not edge._threads[0].is_alive(), "both have been played", LONG_S)
    headers = edge.end()
    triggered, ended = ends(headers)
    # One that found every slot taken, on a busy machine, is told of in one message: missed, without a trigger.
    assert set(triggered) <= set(ended) and len(ended) == len(set(ended)) == 12
    assert sum(each.verdict is Verdict.PASS for each in edge.results) >= 1
    assert not [each for each in headers if isinstance(each, Result) and each.camera_id != "top"]


def cameras(**triggers: str) -> list[CameraSettings]:
    return [
        CameraSettings.model_validate({"id": name, "url": "synthetic://line", "trigger": trigger})
        for name, trigger in triggers.items()
    ]


@pytest.mark.parametrize(
    ("triggers", "groups", "says"),
    [
        (
            {"top": "presence"},
            [{"lead": "top", "followers": [{"camera": "side"}]}],
            "names camera 'side'; there are: top",
        ),
        (
            {"top": "presence", "side": "presence"},
            [{"lead": "top", "followers": [{"camera": "side"}]}],
            "if, and only if",
        ),
        (
            {"top": "presence", "side": "follow"},
            [],
            "camera 'side': trigger = 'follow'; a camera is among the followers",
        ),
        ({"top": "follow"}, [{"lead": "top", "followers": [{"camera": "top"}]}], "names camera 'top' twice"),
    ],
)
def test_groups_that_cannot_be_are_refused(triggers: dict[str, str], groups: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EdgeSettings(edge_id="e", bundle=Path("b"), cameras=cameras(**triggers), groups=groups)  # type: ignore[arg-type]


def test_a_recipe_that_needs_a_camera_which_no_group_brings_is_refused(joined: Bundle) -> None:
    alone = EdgeSettings(edge_id="e", bundle=joined.root, cameras=cameras(top="presence", side="presence"))
    with pytest.raises(ConfigError, match=r"seen by cameras side, top, and those that camera top triggers by top only"):
        refuse_unfit(joined, alone)
