"""A bundle's state and its signed history: draft, validated, released, retired, by whom, when and why (before hop 3).

Each step names the sha256 of the step before it, and a signed one that of the bundle's content, where every file's
sha256 stands: a byte changed anywhere, a step changed, left out or taken from another bundle, voids what was signed.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from contract.config import Strict
from contract.errors import BundleError
from contract.keys import fingerprint
from contract.signing import Role, SigningPair, Trusted, signed_by

State = Literal["draft", "validated", "released", "retired"]
FOLLOWS: dict[State, tuple[State, ...]] = {
    "draft": ("validated", "released", "retired"),
    "validated": ("draft",),
    "released": ("validated",),
    "retired": ("validated", "released"),
}
"""state -> those that it may follow; any change of the content goes back to draft."""

COMMANDS: dict[State, str] = {"validated": "validate", "released": "release", "retired": "retire"}
MAX_STEPS = 4096
UNSIGNED = "0" * 128
SIGNED_AS = b"flawline bundle step/1\n"  # a signature for this use can serve for no other

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex128 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Step(Strict):
    """One change of state. ``content`` and ``previous`` are sha256; a draft is not signed, all others are."""

    state: State
    who: str = Field(min_length=1, max_length=100)
    when: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC, by the signer's clock")
    why: str = Field(min_length=1, max_length=500)
    previous: Hex64 | None = Field(None, description="of the step before it; none: the first")
    content: Hex64 | None = Field(None, description="of the bundle as it was signed")
    key: Hex64 | None = Field(None, description="Ed25519 public key")
    signature: Hex128 | None = Field(None, description="Ed25519, over the rest of the step")

    @model_validator(mode="after")
    def _signed(self) -> Step:
        given = {value is not None for value in (self.content, self.key, self.signature)}
        if given != {self.state != "draft"}:
            raise ValueError(f"a step to {self.state!r} {'has no' if self.state == 'draft' else 'needs a'} signature")
        return self

    def digest(self) -> str:
        """sha256 over the whole step, signature included."""
        return digest_of(self._given())

    def message(self) -> bytes:
        """What is signed: everything but the signature itself."""
        return SIGNED_AS + canonical({name: value for name, value in self._given().items() if name != "signature"})

    def _given(self) -> dict[str, Any]:
        """Without what is not given, so that a field which a later version adds voids no older signature."""
        return self.model_dump(mode="json", exclude_none=True)


def digest_of(content: dict[str, Any]) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()


def canonical(content: dict[str, Any]) -> bytes:
    """JSON with sorted keys and no white space, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def state_of(history: Sequence[Step]) -> State:
    """The state that a history ends in; draft where there is none."""
    return history[-1].state if history else "draft"


def signed_of(history: Sequence[Step]) -> list[Step]:
    """The signed steps since the last draft: those of the content as it is now."""
    found: list[Step] = []
    for step in history:
        found = [] if step.state == "draft" else [*found, step]
    return found


def draft_again(before: State, where: str) -> str:
    """What whoever changed a bundle must be told; empty where it was a draft ``before``."""
    if before == "draft":
        return ""
    return (
        f"{where}: was {before}, is a draft again: no edge in production takes it until it is validated and released "
        f"anew: flawline bundle validate {where}"
    )


def draft(history: Sequence[Step], why: str) -> Step:
    """The unsigned step that a new or changed content begins with, in the name of whoever runs this."""
    try:
        who = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in many containers
        who = f"user {os.geteuid()}"
    return Step(state="draft", who=who[:100], when=_now(), why=why[:500], previous=_last(history))


def sign(history: Sequence[Step], content: str, state: State, pair: SigningPair, why: str, where: str) -> Step:
    """The signed step to ``state``; ``where`` names the bundle in errors.

    Raises BundleError where the state does not follow, what was signed before does not hold, or the signer of a
    release is the one who validated.
    """
    refuse_state(history, state, where)
    verify_history(history, content, where)
    if not why.strip():
        raise BundleError(f"{where}: --why is empty; say in a few words why it is {state}, for whoever reads it later")
    unsigned = Step(
        state=state,
        who=pair.name,
        when=_now(),
        why=why.strip()[:500],
        previous=_last(history),
        content=content,
        key=pair.public,
        signature=UNSIGNED,
    )
    step = unsigned.model_copy(update={"signature": pair.sign(unsigned.message())})
    if state == "released":
        _refuse_one_person(history[-1], step, where)
    return step


def refuse_state(history: Sequence[Step], state: State, where: str) -> None:
    """Raise BundleError where a bundle cannot go to ``state`` now."""
    found = state_of(history)
    if found not in FOLLOWS[state]:
        wanted = " or ".join(FOLLOWS[state])
        way_out = {
            "draft": f"flawline bundle validate {where} comes first",
            "validated": f"flawline bundle release {where} comes next",
            "released": "there is nothing to do, or retire it",
            "retired": "calibrate it anew, which makes it a draft, or train another",
        }[found]
        raise BundleError(f"{where}: the bundle is {found}, and only a {wanted} one can be {state}: {way_out}")
    if len(history) >= MAX_STEPS:
        raise BundleError(f"{where}: its history has {len(history)} steps, at most {MAX_STEPS}; train a new bundle")


def verify_history(history: Sequence[Step], content: str, where: str) -> None:
    """Raise BundleError unless every step follows the one before it, is signed by its key, and is of ``content``.

    Whose keys they are is not asked here; what was signed before the last draft was of an earlier content.
    """
    before: Step | None = None
    for number, step in enumerate(history, 1):
        name = f"{where}: step {number} of its history ({step.state} by {step.who}, {step.when})"
        if step.previous != (None if before is None else before.digest()):
            raise BundleError(f"{name} does not follow the step before it: the history was changed; copy it again")
        if not (step.state == "draft" if before is None else before.state in FOLLOWS[step.state]):
            raise BundleError(f"{name} cannot follow {before.state if before else 'nothing'}: the history was made up")
        if step.state != "draft" and not signed_by(step.key or "", step.signature or "", step.message()):
            raise BundleError(f"{name} is wrongly signed: step or signature was changed; copy the bundle again")
        before = step
    for step in signed_of(history):
        if step.content != content:
            raise BundleError(
                f"{where}: {step.who} signed it as {step.state} with content {(step.content or '')[:16]} and it has "
                f"{content[:16]}: it was changed since, or the signature is another bundle's; copy it again, or have "
                "it validated and released again"
            )


def refuse_unreleased(history: Sequence[Step], content: str, trusted: Trusted | None, where: str) -> None:
    """Raise BundleError unless the bundle is released, rightly signed by two people, and not retired.

    ``trusted``: whose signatures count; None: anybody's.
    """
    verify_history(history, content, where)
    state = state_of(history)
    if state == "retired":
        last = history[-1]
        raise BundleError(
            f"{where}: the bundle was retired by {last.who} on {last.when} ({last.why}); expected a released one: "
            "run its successor"
        )
    if state != "released":
        command = "validate" if state == "draft" else "release"
        second = "" if state == "draft" else ", by a second person"
        raise BundleError(
            f"{where}: the bundle is {'a draft' if state == 'draft' else state}; expected a released one: "
            f"flawline bundle {command} {where}{second}"
        )
    validated, released = history[-2], history[-1]
    _refuse_one_person(validated, released, where)
    if trusted is not None:
        _refuse_unknown(validated, "validate", trusted, where)
        _refuse_unknown(released, "release", trusted, where)


def _refuse_one_person(validated: Step, released: Step, where: str) -> None:
    if validated.key == released.key or validated.who.casefold() == released.who.casefold():
        raise BundleError(
            f"{where}: validated by {validated.who} and released by {released.who} with "
            f"{'the same key' if validated.key == released.key else 'another key of the same name'}; expected a second "
            f"person's: flawline bundle release {where} --key KEY-OF-ANOTHER"
        )


def _refuse_unknown(step: Step, role: Role, trusted: Trusted, where: str) -> None:
    name = trusted.roles[role].get(step.key or "")
    if name is None:
        known = ", ".join(sorted(trusted.roles[role].values())) or "nobody"
        raise BundleError(
            f"{where}: {step.state} by {step.who} with key {fingerprint(step.key or '')}, which {trusted.folder} does "
            f"not trust to {role}; it trusts {known}. Have one of them sign, or, where the key is really theirs: "
            f"flawline keys sign-trust {step.who}.sign --may {role} --dir {trusted.folder}"
        )
    if name != step.who:
        raise BundleError(
            f"{where}: {step.state} in the name of {step.who!r} with the key of {name!r}; have {name} sign it anew"
        )


def _last(history: Sequence[Step]) -> str | None:
    return history[-1].digest() if history else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
