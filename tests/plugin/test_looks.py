"""Second opinions, known parts and arbiters: who is shown what, what stands, and that nothing tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from contract.event import Verdict
from plugin import looks
from plugin import tables as t
from plugin.database import Place
from plugin.errors import ReviewError
from plugin.looks import Follow, Known, Pair, open_for
from plugin.models import Review
from plugin.queries import Reader
from plugin.reviews import JOURNAL, verify
from plugin.store import Store
from tests.plugin import synthetic as s
from tests.plugin.people import Browser, Site
from tests.plugin.synthetic import Dealer
from tests.plugin.test_store import put

NUMBERS = {"draw": lambda: 0.0}


@pytest.fixture
def store(tmp_path: Path, where: Place) -> Iterator[Store]:
    with closing(Store(tmp_path, where=where)) as store:
        store.follow = Follow(1.0, 1.0, lambda: 0.0)
        for n in range(3):
            put(store, *untriggered(n + 1, seed=n))
        yield store


def untriggered(n: int, seed: int = 0) -> list[list[bytes]]:
    """A part and its pictures; without a trigger before it rows are numbered from 1 in either database."""
    return s.flagged(10 * n, f"part-{n}", Verdict.REJECT, 2.0, seed)[1:]


def open_to(store: Store, name: str) -> list[tuple[int, str]]:
    return sorted((each.part, each.purpose) for each in store.run(lambda c: open_for(c, name)))


@pytest.fixture
def reader(store: Store, where: Place) -> Iterator[Reader]:
    with closing(Reader(where)) as reader:
        yield reader


def review_of(reader: Reader, part: int) -> tuple[str | None, str | None]:
    row = reader.part(part) or {}
    page = reader.verdicts(0, 100)
    exported = next(each.judged for each in page.parts if each.row == part)
    return row["review"], exported


def whole(store: Store) -> str | None:
    return store.run(lambda c: verify(c, store.path.parent / JOURNAL).broken)


def test_a_second_opinion_is_asked_of_anybody_but_the_first(store: Store, reader: Reader) -> None:
    store.review(1, "good", "Ada")
    assert open_to(store, "Ada") == []
    assert open_to(store, "Ben") == [(1, "second")]
    store.review(1, "good", "Ben", purpose="second")
    assert open_to(store, "Cem") == []
    assert review_of(reader, 1) == ("good", "good")
    assert store.run(lambda c: looks.pairs(c, 0, 2**62)) == [Pair(1, "Ada", "good", "Ben", "good")]
    assert whole(store) is None


def test_nobody_is_drawn_where_the_share_is_nothing_and_the_same_ones_are_always(tmp_path: Path) -> None:
    def drawn(folder: str, share: float, parts: int = 60) -> list[int]:
        with closing(Store(tmp_path / folder)) as store:
            store.follow = Follow(share, 0.0)
            put(store, *(message for n in range(1, parts + 1) for message in untriggered(n)))
            for n in range(1, parts + 1):
                store.review(n, "good", "Ada")
            return sorted(each.part for each in store.run(lambda c: _all_open(c)))

    assert drawn("off", 0.0, 10) == []
    some = drawn("some", 0.1)
    assert some == drawn("again", 0.1) and 1 <= len(some) <= 15
    assert set(some) < set(drawn("more", 0.4))


def _all_open(connection: Any) -> list[Any]:
    return list(connection.execute(sa.select(t.looks).where(t.looks.c.purpose == "second")))


def test_what_two_disagree_about_is_no_truth_until_an_arbiter_says(store: Store, reader: Reader) -> None:
    store.review(1, "good", "Ada")
    store.review(1, "defect", "Ben", purpose="second")
    assert review_of(reader, 1) == ("disputed", None)
    for decision in ("good", "defect", "undo"):
        with pytest.raises(ReviewError, match="an arbiter settles it"):
            store.review(1, decision, "Ada")  # type: ignore[arg-type]
    assert reader.reviewed_rates()["REJECT"].total == 0  # nobody has decided it
    (row,) = store.run(lambda c: looks.disputed(c, 10))
    assert [(call.inspector, call.decision) for call in row["calls"]] == [("Ada", "good"), ("Ben", "defect")]
    assert whole(store) is None
    store.review(1, "defect", "Eve", purpose="arbiter", defect_class="dent")
    assert review_of(reader, 1) == ("defect", "defect")
    with pytest.raises(ReviewError, match="an arbiter settles it"):
        store.review(1, "good", "Ada")
    # The two opinions are still what they were, for kappa.
    assert store.run(lambda c: looks.pairs(c, 0, 2**62)) == [Pair(1, "Ada", "good", "Ben", "defect")]
    assert whole(store) is None


def test_a_second_opinion_that_is_unsure_decides_nothing(store: Store, reader: Reader) -> None:
    store.review(1, "good", "Ada")
    store.review(1, "unsure", "Ben", purpose="second")
    assert review_of(reader, 1) == ("good", "good")
    assert store.run(lambda c: looks.pairs(c, 0, 2**62)) == []


def test_two_cannot_give_the_same_second_opinion_and_one_may_correct_it(store: Store, reader: Reader) -> None:
    store.review(1, "good", "Ada")
    store.review(1, "defect", "Ben", purpose="second")
    with pytest.raises(ReviewError, match="given meanwhile"):
        store.review(1, "good", "Cem", purpose="second")
    store.review(1, "good", "Ben", purpose="second")
    assert review_of(reader, 1) == ("good", "good")
    assert whole(store) is None


def test_a_known_part_needs_a_settled_verdict_and_a_picture(store: Store) -> None:
    with pytest.raises(ReviewError, match="no settled verdict"):
        store.run(lambda c: looks.register(c, 1, "eve"))
    store.review(1, "good", "Ada")
    store.review(1, "defect", "Ben", purpose="second")
    with pytest.raises(ReviewError, match="no settled verdict"):
        store.run(lambda c: looks.register(c, 1, "eve"))
    put(store, s.frames(s.result(90, "bare", verdict=Verdict.REJECT)))
    store.review(4, "good", "Ada")
    with pytest.raises(ReviewError, match="no picture"):
        store.run(lambda c: looks.register(c, 4, "eve"))
    with pytest.raises(ReviewError, match="no known part"):
        store.run(lambda c: looks.retire(c, 1))


def test_known_parts_measure_an_inspector_and_are_no_production(store: Store, reader: Reader) -> None:
    store.follow = Follow(0.0, 1.0, lambda: 0.0)
    store.review(1, "defect", "Eve")
    store.run(lambda c: looks.register(c, 1, "Eve"))
    assert open_to(store, "Ben") == []
    store.review(2, "good", "Ben")
    assert open_to(store, "Ben") == [(1, "known")] and open_to(store, "Ada") == []
    store.review(3, "good", "Ben")
    assert open_to(store, "Ben") == [(1, "known")]  # one at a time
    store.review(1, "good", "Ben", purpose="known")
    assert open_to(store, "Ben") == []
    assert store.run(lambda c: looks.known_answers(c, 0, 2**62)) == [Known("Ben", "defect", "good")]
    assert review_of(reader, 1) == ("defect", "defect")
    assert [row["inspector"] for row in reader.reviews(1)] == ["Eve"]
    assert sum(row["n"] for row in reader.counts()["reviews"]) == 3
    assert whole(store) is None
    store.run(lambda c: looks.retire(c, 1))
    store.review(2, "undo", "Ben")
    store.review(2, "good", "Ben")
    assert open_to(store, "Ben") == []


def test_a_master_part_is_given_no_look(store: Store) -> None:
    def mark(part: int) -> None:
        store.run(lambda c: c.execute(sa.update(t.parts).where(t.parts.c.id == part).values(master="dent")))

    mark(1)
    store.review(1, "good", "Ada")
    store.review(2, "good", "Ada")
    assert open_to(store, "Ben") == [(2, "second")]
    mark(2)
    assert open_to(store, "Ben") == []
    with pytest.raises(ReviewError, match="is a master part"):
        store.run(lambda c: looks.register(c, 1, "Eve"))


def test_who_judged_a_part_is_not_measured_by_it(store: Store) -> None:
    store.follow = Follow(0.0, 1.0, lambda: 0.0)
    store.review(1, "defect", "Ben")
    store.run(lambda c: looks.register(c, 1, "Eve"))
    store.review(2, "good", "Ben")
    assert open_to(store, "Ben") == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.service.app.state.host.quality.settings.second_share = 1.0
    site.service.app.state.host.write(follow)
    dealer = Dealer(site.service.endpoint)
    for n in range(3):
        for message in s.flagged(10 * n + 1, f"telltale-{n}", Verdict.REJECT, 2.125 + n, seed=n, serial=f"SN-{n}"):
            dealer.send(message)
        dealer.wait_acked(10 * n + 1, 10 * n + 2, 10 * n + 3)
    dealer.close()
    yield site
    site.stop()


def follow(store: Store) -> None:
    store.follow = Follow(1.0, 0.0)
    store.decoy_share = 1.0


def judge(browser: Browser, number: int, decision: str) -> None:
    answer = browser.post(
        f"/api/parts/{number}/verdict",
        json={"decision": decision, "comment": "looks like a shadow"},
        headers={"x-csrf-token": browser.token()},
    )
    assert answer.status_code == 201, answer.text


def telling(text: str) -> list[str]:
    """What of a part's identity, its scores or what was said of it stands in a text."""
    words = [
        r"telltale",
        r"SN-\d",
        r"2\.125",
        "shadow",
        "ivan",
        "REJECT",
        "PASS",
        "edge-1",
        r"cam-1",
        "washer",
        "2026-",
        "part-",
    ]
    return [word for word in words if re.search(word, text)]


def test_a_blind_page_tells_nothing_and_looks_like_any_other(site: Site) -> None:
    ivan, olga = site.signed_in("ivan"), site.signed_in("olga")
    judge(ivan, 1, "good")
    production = olga.get("/parts/2")
    assert production.status_code == 303 and production.headers["location"].startswith("/looks/")
    sent = olga.submit(production.headers["location"], decision="good", dwell_ms="900")
    assert site.service.reader.part(2)["review"] == "good"
    second = sent.headers["location"]
    pages = []
    for at in (production.headers["location"], olga.get("/parts/1").headers["location"]):
        answer = olga.get(at)
        assert answer.status_code == 200
        body = re.sub(r'name="csrf" value="\w+"', "", answer.text.split("<main>")[1].split("</main>")[0])
        pages.append(body.replace(at, "HERE"))
        assert telling(body) == []
        urls = re.findall(r"/looks/[\w-]+/pictures/\d+", body)
        assert urls
        shown = olga.get(urls[0])
        assert shown.status_code == 200 and not {"etag", "last-modified", "content-disposition"} & set(shown.headers)
        assert site.signed_in("eve").get(at).status_code == 303  # a slip is for one person
    assert pages[0] == pages[1]
    assert second.startswith(("/parts/", "/looks/", "/queue"))


def keys_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and what stands under it, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


FORBIDDEN = {
    "verdict", "reason", "score", "threshold", "severity", "audited", "audit_share", "review", "review_by",
    "review_class", "tallied", "header", "line", "reviews", "inspector", "decision", "defect_class", "comment",
}  # fmt: skip


def test_the_api_tells_an_inspector_nothing_of_a_part_that_waits_for_a_second_opinion(site: Site) -> None:
    ivan, olga, eve = site.signed_in("ivan"), site.signed_in("olga"), site.signed_in("eve")
    judge(ivan, 1, "good")
    for answer in (olga.get("/api/parts/1"), olga.get("/api/queue"), olga.get("/api/parts/2")):
        assert answer.status_code == 200
        found = list(keys_of(answer.json()))
        assert found and not {key for key, _ in found} & FORBIDDEN, answer.text
        assert "shadow" not in answer.text and "ivan" not in answer.text
    told = eve.get("/api/parts/1").json()
    assert told["review"] == "good" and "tallied" not in told
    maps = [each["id"] for each in told["attachments"] if each["role"] == "map"]
    assert [olga.get(f"/api/attachments/{each}").status_code for each in maps] == [403]
    assert ivan.get("/api/parts/1").json()["review"] == "good"  # who said it may see it
    found = olga.get("/find?serial=SN-0").text
    assert "to judge" in found and "reject" not in found.lower().split("<table")[1]
    for path in ("/api/parts", "/api/export/verdicts", "/known"):
        assert olga.get(path).status_code == 403


def test_the_api_for_programs_tells_an_inspector_nothing_either(site: Site) -> None:
    ivan, olga, eve = site.signed_in("ivan"), site.signed_in("olga"), site.signed_in("eve")
    judge(ivan, 1, "good")
    shown = olga.get("/api/v1/parts/1")
    assert shown.status_code == 200 and shown.json()["blind"] and shown.json()["images"]
    told = {key for key, value in keys_of(shown.json()) if value not in (None, [])}
    assert not told & (FORBIDDEN - {"line"}) and "shadow" not in shown.text and "ivan" not in shown.text
    assert olga.get("/api/v1/parts/1/verdicts").json()["items"] == []
    assert [each["inspector"] for each in ivan.get("/api/v1/parts/1/verdicts").json()["items"]] == ["ivan"]
    assert eve.get("/api/v1/parts/1").json()["review"] == "good"


def test_programs_hear_what_decides_and_read_every_record_with_its_purpose(site: Site) -> None:
    ivan, olga, eve = site.signed_in("ivan"), site.signed_in("olga"), site.signed_in("eve")
    feed = site.service.feed
    cursor = feed.head()
    judge(ivan, 1, "good")
    assert olga.submit(olga.get("/parts/1").headers["location"], decision="defect").status_code == 303
    judge(ivan, 2, "good")
    news, cursor = feed.read(cursor, 100)
    heard = [each.item for each in news if each.kind == "review"]
    assert [(each.part, each.inspector, each.purpose) for each in heard if isinstance(each, Review)] == [
        (1, "ivan", None),
        (2, "ivan", None),
    ]
    assert olga.submit(olga.get("/parts/2").headers["location"], decision="good").status_code == 303
    after, further = feed.read(cursor, 100)
    assert after == [] and further.review == cursor.review + 1  # not asked for again and again
    records = eve.get("/api/v1/verdicts").json()["items"]
    assert [(each["inspector"], each["purpose"]) for each in records] == [
        ("ivan", None),
        ("olga", "second"),
        ("ivan", None),
        ("olga", "second"),
    ]
    assert [each["id"] for each in eve.get("/api/v1/parts?review=disputed").json()["items"]] == [1]


def test_an_arbiter_who_called_neither_settles(site: Site) -> None:
    ivan, olga, eve = site.signed_in("ivan"), site.signed_in("olga"), site.signed_in("eve")
    judge(ivan, 1, "good")
    at = olga.get("/parts/1").headers["location"]
    assert olga.submit(at, decision="defect").status_code == 303
    assert olga.get("/disputed").headers["location"] == "/queue"
    assert olga.submit("/disputed/1", decision="defect").status_code == 403
    assert "/disputed" in eve.get("/queue").text and "/disputed" not in olga.get("/queue").text
    shown = eve.get("/disputed").text
    assert "telltale-0" in shown and "ivan" not in shown.split("<main>")[1]
    exported = eve.get("/api/export/verdicts").json()
    assert [part["judged"] for part in exported["parts"] if part["row"] == 1] == [None]
    assert eve.submit("/disputed/1", decision="defect", comment="a dent").status_code == 303
    assert eve.submit("/disputed/1", decision="good").status_code == 409
    exported = eve.get("/api/export/verdicts").json()
    assert [part["judged"] for part in exported["parts"] if part["row"] == 1] == ["defect"]
    ada = site.signed_in("ada")
    judge(ada, 3, "good")
    assert olga.submit(olga.get("/parts/3").headers["location"], decision="defect").status_code == 303
    assert ada.submit("/disputed/3", decision="good").status_code == 403  # ada gave one of the two calls


def test_a_known_part_is_registered_by_an_engineer_and_shown_unannounced(site: Site) -> None:
    eve, olga = site.signed_in("eve"), site.signed_in("olga")
    site.service.app.state.host.write(only_known)
    assert eve.submit("/known", part="1", change="register").status_code == 409
    judge(eve, 1, "defect")
    assert eve.submit("/known", part="1", change="register").status_code == 303
    assert "telltale-0" in eve.get("/known").text
    at = olga.get("/parts/2").headers["location"]
    onward = olga.submit(at, decision="good").headers["location"]
    look = re.search(r"/looks/[\w-]+", olga.get("/queue").text)
    assert look is not None and onward.startswith(("/parts/3", "/looks/"))
    assert telling(olga.get(look[0]).text.split("<main>")[1]) == []
    assert olga.submit(look[0], decision="good").status_code == 303
    answers = site.service.app.state.host.quality.ask(lambda c: looks.known_answers(c, 0, 2**62))
    assert answers == [Known("olga", "defect", "good")]
    assert json.loads(eve.get("/api/parts/1").text)["review"] == "defect"
    assert olga.get("/parts/1").status_code == 403


def only_known(store: Store) -> None:
    store.follow = Follow(0.0, 1.0, lambda: 0.0)
