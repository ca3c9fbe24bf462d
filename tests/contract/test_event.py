"""The wire: what decodes, what is refused, and that old messages stay readable."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.errors import EventError
from contract.event import (
    HEADER,
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_PARTS,
    Attachment,
    Chunk,
    Drift,
    DriftMeasure,
    DriftTest,
    Envelope,
    Gap,
    Header,
    Missed,
    Result,
    Shadow,
    ShadowScore,
    State,
    Trigger,
    Verdict,
    chunk_of,
    encode_header,
    from_frames,
    identity_of,
    json_schema,
    part_ref,
    to_frames,
)

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden_events"
BASE = {"edge_id": "edge-1", "spool_id": "spool", "seq": 7, "run_id": "run", "t_wall_ns": 1_700_000_000_000_000_000}
PART = BASE | {"part_id": "top-run-000001", "camera_id": "top", "trigger_id": 1, "frame_no": 12}
ENVELOPE = Envelope(age_ms=3.5)


def result(**changes: object) -> Result:
    fields = PART | {
        "verdict": Verdict.REJECT,
        "reason": "score 2 above 1",
        "score": 2.0,
        "threshold": 1.0,
        "recipe": "part",
        "bundle_id": "b" * 12,
        "model_sha256": "0" * 64,
        "engine": "onnxruntime fp32",
    }
    return Result(**(fields | changes))  # type: ignore[arg-type]


SCORE = ShadowScore(
    part_id="top-run-000001", camera_id="top", result_seq=7, live=Verdict.PASS, verdict=Verdict.REJECT, score=2.0
)
HEADERS: list[Header] = [
    Trigger(**PART),
    result(),
    Missed(**PART, reason="overrun"),
    Attachment(**BASE, part_id="top-run-000001", result_seq=7),
    Shadow(**BASE, recipe="part", recipe_number=1, scores=(SCORE,), offered=4, scored=1, dropped=2, unseen=1),
    Chunk(**BASE, sha256="0" * 64, offset=4, length=2, size=6),
    Gap(**BASE, reason="down", from_wall_ns=1, to_wall_ns=2, duration_ns=1),
    Drift(
        **BASE,
        camera_id="top",
        inspected=1500,
        of_parts=12,
        flagged=1,
        tests=(DriftTest(name="picture", evidence=0.4, alarm=True, alarms=1), DriftTest(name="rejects", evidence=-3.0)),
        measures=(
            DriftMeasure(
                name="main.mean", camera_id="top", what="brightness", now=90.0, usual=110.0, spread=4.0, shift=-5.0
            ),
        ),
        suspect="lamp",
        since_part_id="top-run-001472",
        last_part_id="top-run-001500",
        rejects_at_most=0.12,
        defect_share=0.05,
        false_alarms_per_month=1.0,
        baseline_parts=40,
        recipe="part",
        bundle_id="b" * 12,
    ),
    State(**BASE, state="running"),
]


BODY = b"123456"
WHOLE = Attachment(**BASE, part_id="p", result_seq=7, parts=(part_ref("image", BODY, codec="png", shape=(1, 1)),))


def piece(offset: int = 4, size: int = len(BODY)) -> tuple[Chunk, tuple[bytes, ...]]:
    header, parts = chunk_of(encode_header(WHOLE), size, offset, BODY[offset:])
    return Chunk.model_validate_json(header), parts


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.kind)
def test_every_kind_survives_the_wire(header: Header) -> None:
    header, parts = piece() if isinstance(header, Chunk) else (header, ())
    message = from_frames(to_frames(encode_header(header), parts, ENVELOPE))
    assert message.header == header
    assert message.envelope == ENVELOPE


def test_reading_headers_keeps_nothing_of_them() -> None:
    trigger = next(header for header in HEADERS if isinstance(header, Trigger))
    data = [encode_header(trigger.model_copy(update={"part_id": f"part-{n:06d}"})) for n in range(2000)]
    HEADER.validate_json(data[0])
    gc.collect()
    tracemalloc.start()
    try:
        for each in data:
            HEADER.validate_json(each)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 20_000, "ids of parts that never come again"
    finally:
        tracemalloc.stop()


def test_kinds_listed_here_are_all_there_are() -> None:
    mapping = json_schema()["discriminator"]["mapping"]
    assert sorted(mapping) == sorted(header.kind for header in HEADERS)


def test_binary_parts_come_back_byte_for_byte() -> None:
    data = bytes(range(200)) * 2
    reference = part_ref("map", data, codec="raw", dtype="float16", shape=(10, 20))
    header = result(parts=(reference,))
    assert from_frames(to_frames(encode_header(header), (data,), ENVELOPE)).parts == (data,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_never_leaves(value: float) -> None:
    with pytest.raises(ValidationError):
        result(score=value)


def test_a_field_of_a_newer_minor_version_is_ignored() -> None:
    data = json.loads(encode_header(HEADERS[0])) | {"schema": "flawline.event/1.9", "colour": "mauve"}
    assert from_frames([MAGIC, ENVELOPE.model_dump_json().encode(), json.dumps(data).encode()]).header.seq == 7


def test_another_major_version_is_refused_by_name() -> None:
    data = json.loads(encode_header(HEADERS[0])) | {"schema": "flawline.event/2.0"}
    with pytest.raises(EventError, match=r"flawline.event/2.0.*reads flawline.event/1") as caught:
        from_frames([MAGIC, ENVELOPE.model_dump_json().encode(), json.dumps(data).encode()])
    assert caught.value.code == "version"


def frames_of(header: Header, *parts: bytes) -> list[bytes]:
    return to_frames(encode_header(header), parts, ENVELOPE)


BLOB = b"12345678"
REFERENCE = part_ref("map", BLOB, codec="raw", dtype="float16", shape=(2, 2))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "version"),
        ([b"HELLO"], "version"),
        ([MAGIC, b"{}", b"{}"], "schema"),
        ([MAGIC, b'{"age_ms": 1}', b"not json"], "schema"),
        ([MAGIC, b'{"age_ms": -1}', encode_header(HEADERS[0])], "schema"),
        ([MAGIC, b'{"age_ms": 1}', b"[" * 100_000], "schema"),
        ([MAGIC, b'{"age_ms": 1}', b" " * (MAX_HEADER_BYTES + 1)], "size"),
        ([MAGIC, b"x" * 5000, encode_header(HEADERS[0])], "size"),
        (frames_of(HEADERS[0], *[b""] * (MAX_PARTS + 1)), "size"),
        (frames_of(HEADERS[0], b"unannounced"), "parts"),
        (frames_of(result(parts=(REFERENCE,))), "parts"),
        (frames_of(result(parts=(REFERENCE,)), BLOB[:-1]), "size"),
        (frames_of(result(parts=(REFERENCE,)), b"8765432x"), "parts"),
        (frames_of(result(parts=(REFERENCE.model_copy(update={"shape": (2, 3)}),)), BLOB), "size"),
        (frames_of(result(parts=(REFERENCE.model_copy(update={"shape": (-2, -2)}),)), BLOB), "size"),
    ],
)
def test_what_does_not_follow_the_contract_is_refused(frames: list[bytes], code: str) -> None:
    with pytest.raises(EventError) as caught:
        from_frames(frames)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "frames", "code"),
    [
        ({}, (), "parts"),
        ({}, (encode_header(WHOLE),), "parts"),
        ({"sha256": "0" * 64}, None, "parts"),
        ({}, (b"{}", BODY[4:]), "parts"),
        ({"length": 1}, None, "size"),
        ({"offset": 5}, None, "size"),
        ({"size": 7}, None, "size"),
        ({"seq": 8}, None, "identity"),
        ({"edge_id": "another"}, None, "identity"),
    ],
)
def test_a_chunk_that_does_not_belong_to_its_attachment_is_refused(
    changes: dict[str, object], frames: tuple[bytes, ...] | None, code: str
) -> None:
    chunk, parts = piece()
    with pytest.raises(EventError) as caught:
        from_frames(frames_of(chunk.model_copy(update=changes), *(parts if frames is None else frames)))
    assert caught.value.code == code


def test_a_claim_of_two_gigabytes_is_refused_before_memory_is_taken() -> None:
    data = json.loads(encode_header(result(parts=(REFERENCE,))))
    data["parts"][0] |= {"size": 2 << 30, "shape": [1 << 30]}
    with pytest.raises(EventError, match="less than or equal to"):
        from_frames([MAGIC, ENVELOPE.model_dump_json().encode(), json.dumps(data).encode(), BLOB])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_garbage_never_raises_anything_else(frames: list[bytes], with_magic: bool) -> None:
    frames = [MAGIC, *frames] if with_magic else frames
    with pytest.raises(EventError):
        from_frames(frames)
    identity_of(frames)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 400))
def test_one_damaged_spot_in_a_header_is_decoded_or_refused(noise: bytes, at: int) -> None:
    data = bytearray(encode_header(result()))
    data[at : at + len(noise)] = noise
    try:
        message = from_frames([MAGIC, ENVELOPE.model_dump_json().encode(), bytes(data)])
    except EventError:
        return
    assert HEADER.validate_python(message.header) is not None


def test_identity_of_a_refused_message_is_found_where_it_has_one() -> None:
    header = json.loads(encode_header(HEADERS[0])) | {"kind": "mystery"}
    assert identity_of([MAGIC, b"{}", json.dumps(header).encode()]) == ("spool", 7)
    assert identity_of([MAGIC, b"{}", b'{"spool_id": "x", "seq": true}']) is None
    assert identity_of([MAGIC, b"{}", b'{"spool_id": 5, "seq": 1}']) is None
    assert identity_of([b"x"]) is None


def test_published_schema_is_the_code_s() -> None:
    published = json.loads((ROOT / "docs" / "event.schema.json").read_text())
    assert published == json.loads(json.dumps(json_schema())), "run: python -m contract.event > docs/event.schema.json"


def test_results_of_before_audits_were_drawn_by_nobody() -> None:
    header = HEADER.validate_json((GOLDEN / "1.0-result.json").read_bytes())
    assert isinstance(header, Result) and (header.audit_share, header.audited) == (0.0, False)


def test_golden_messages_of_every_version_stay_decodable() -> None:
    files = sorted(GOLDEN.glob("*.json"))
    assert {path.stem.partition("-")[2] for path in files} == {header.kind for header in HEADERS}
    for path in files:
        beside = sorted(path.parent.glob(f"{path.stem}.frame-*"))
        frames = [
            MAGIC,
            ENVELOPE.model_dump_json().encode(),
            path.read_bytes(),
            *(each.read_bytes() for each in beside),
        ]
        header = from_frames(frames).header
        assert header.kind == path.stem.partition("-")[2]
