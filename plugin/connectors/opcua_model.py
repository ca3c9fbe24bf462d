"""The VisionSystem of OPC 40100-1 for each line: its nodes, its states, its events (hop 10, in the server's process).

The verdict stands in ResultContent, never in ResultState; what is sent past its part's deadline says NOT_INSPECTED.
"""

from __future__ import annotations

import collections
import dataclasses
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from asyncua import Server, ua
from asyncua.common.events import Event
from asyncua.common.manage_nodes import delete_nodes
from asyncua.server.address_space import AttributeValue
from asyncua.ua.uaerrors import UaError

from contract.event import LineCode
from plugin.connectors.base import LineOutput
from plugin.connectors.opcua_guard import Fields, Rules

URI = "http://opcfoundation.org/UA/MachineVision"
OWN_URI = "urn:flawline:opcua"
VISION_SYSTEM = 1003
STATE_MACHINE, AUTOMATIC_MODE = 1017, 1021
EVENTS = {
    "ResultReady": 1024,
    "StateChanged": 1018,
    "Error": 1019,
    "ErrorResolved": 1020,
    "RecipePrepared": 1022,
    "Ready": 1023,
    "JobStarted": 1013,
}
SUBTYPES = {
    "RecipeIdInternalDataType": (3013, 5268),
    "RecipeIdExternalDataType": (3002, 5002),
    "ConfigurationIdDataType": (3008, 5090),
}
"""Data type and binary encoding of the subtypes without fields, which asyncua takes for their base type."""

BASE_ID = 3019
LEFT_OUT = (
    "ConfigurationManagement",
    "DiagnosticLevel",
    "SafetyStateManagement",
    "ResultManagement",
    "RecipeManagement/AddRecipe",
    "RecipeManagement/PrepareProduct",
    "RecipeManagement/Products",
    "RecipeManagement/Recipes",
    "RecipeManagement/RecipeTransfer",
    "RecipeManagement/ReleaseRecipeHandle",
    "RecipeManagement/RemoveRecipe",
    "RecipeManagement/UnlinkProduct",
    "RecipeManagement/UnprepareProduct",
    "VisionStateMachine/ErrorStepModel",
    "VisionStateMachine/HaltedStepModel",
    "VisionStateMachine/PreoperationalStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/ContinuousExecutionStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/InitializedStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/ReadyStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/SingleExecutionStepModel",
    "VisionStateMachine/AutomaticModeStateMachine/SimulationMode",
)
"""Optional parts of a VisionSystem that nothing stands behind here."""

EVALUATION = {LineCode.PASS: 1, LineCode.REJECT: 2, LineCode.REVIEW: 3, LineCode.NOT_INSPECTED: 0}
"""ResultEvaluation of OPC 40001-101: 0 Undefined, 1 OK, 2 NotOK, 3 NotDecidable."""

COMPLETED, FAILED = 1, 4
SEVERITY = 300
"""Of every result: a severity that told verdicts apart would tell them past the deadline as well."""

JOB_S = 10.0
"""How long beyond the line's deadline a single job is waited for."""

STOPPED_BY_REQUEST = "inspection is stopped by request"
Top = Literal["Preoperational", "Operational", "Halted", "Error"]
Mode = Literal["Initialized", "Ready", "SingleExecution", "ContinuousExecution"]
V = ua.VariantType

VARIABLES: dict[str, tuple[ua.VariantType, Any]] = {
    "Heartbeat": (V.UInt32, 0),
    "Inspected": (V.Boolean, False),
    "Trouble": (V.String, "starting"),
    "Drift": (V.String, ""),
    "Head": (V.UInt64, 0),
    "Committed": (V.UInt64, 0),
    "Session": (V.String, ""),
    "DeadlineMs": (V.UInt32, 0),
    "RecipeNumber": (V.UInt16, 0),
    "Model": (V.UInt32, 0),
    "Refusal": (V.String, ""),
    "Results": (V.UInt64, 0),
    "Passed": (V.UInt64, 0),
    "Rejected": (V.UInt64, 0),
    "Review": (V.UInt64, 0),
    "NotInspected": (V.UInt64, 0),
}
"""Variables of our own under ``Flawline``, each with its type and first value. None can be written by a client."""

COUNTED = {
    LineCode.PASS: "Passed",
    LineCode.REJECT: "Rejected",
    LineCode.REVIEW: "Review",
    LineCode.NOT_INSPECTED: "NotInspected",
}


_MACHINE, _RECIPES = "VisionStateMachine", "RecipeManagement"
_AUTOMATIC = f"{_MACHINE}/AutomaticModeStateMachine"
METHODS: dict[str, tuple[str, str, bool]] = {
    "Reset": (_MACHINE, "_on_reset", True),
    "Halt": (_MACHINE, "_on_halt", True),
    "SelectModeAutomatic": (_MACHINE, "_on_automatic", True),
    "ConfirmAll": (_MACHINE, "_on_confirm", True),
    "StartSingleJob": (_AUTOMATIC, "_on_single", True),
    "StartContinuous": (_AUTOMATIC, "_on_continuous", True),
    "Stop": (_AUTOMATIC, "_on_stop", True),
    "Abort": (_AUTOMATIC, "_on_stop", True),
    "PrepareRecipe": (_RECIPES, "_on_prepare", True),
    "UnprepareRecipe": (_RECIPES, "_on_unprepare", True),
    "GetRecipeListFiltered": (_RECIPES, "_on_list", False),
}
"""Where each stands, what does it, and whether only users that may control call it."""


class Facts(NamedTuple):
    """What the host says of a line several times a second; ``held``: ``trouble`` is only that masters are due."""

    trouble: str | None
    recipe: int
    model: int
    committed: int
    held: bool
    drift: str | None = None

    @property
    def inspected(self) -> bool:
        """The belt has to move for the masters, and single jobs take their pictures."""
        return self.trouble is None or self.held


class Job(NamedTuple):
    """A part that a client asked for; ``measured`` and ``part`` are the client's own names."""

    id: str
    measured: str
    part: str


class Reply(NamedTuple):
    """What became of something asked of the host: ``refusal`` None, it was done; and the parts that came of it."""

    refusal: str | None
    parts: tuple[str, ...] = ()


Ask = Callable[[str, str, "int | str | None", float], Awaitable["Reply | None"]]
"""Line, what, recipe number or part, seconds to wait; None: no answer yet."""


async def register_subtypes(server: Server, index: int) -> None:
    """Give the subtypes without fields classes, encodings and definitions of their own, once the nodeset is imported.

    Without the definition a client that asks for it, as it must for a type that it does not know, reads nothing.
    """
    base = server.get_node(ua.NodeId(BASE_ID, index))
    for name, (data_type, encoding) in SUBTYPES.items():
        kind: type = dataclasses.dataclass(
            type(name, (ua.BinaryIdBaseDataType,), {"data_type": ua.NodeId(data_type, index)})
        )
        if hasattr(ua, name):
            delattr(ua, name)  # the alias of the base type, which would stay
        ua.register_extension_object(name, ua.NodeId(encoding, index), kind, ua.NodeId(data_type, index))
        definition = dataclasses.replace(
            await base.read_data_type_definition(),
            DefaultEncodingId=ua.NodeId(encoding, index),
            BaseDataType=base.nodeid,
        )
        value = ua.DataValue(ua.Variant(definition, V.ExtensionObject))
        attributes = server.iserver.aspace[ua.NodeId(data_type, index)].attributes
        attributes[ua.AttributeIds.DataTypeDefinition] = AttributeValue(value)


class Notice(Event):
    """One event, its fields made once and shared by all who want them."""

    def __init__(self, fields: dict[str, ua.Variant]) -> None:
        super().__init__()
        self._named = fields
        self.internal_properties += ["_named", "listeners"]
        self.listeners = 0
        for name, value in fields.items():
            self.add_property(name, value.Value, value.VariantType)

    def to_event_fields(self, select_clauses: list[ua.SimpleAttributeOperand]) -> Fields:
        self.listeners += 1
        fields = Fields()
        for clause in select_clauses:
            name = "NodeId" if not clause.BrowsePath else self.browse_path_to_attribute_name(clause.BrowsePath)
            fields.append(self._named.get(name, ua.Variant()))
        return fields


class ResultNotice(Notice):
    """A result; ``told`` is called when it first leaves for a client, with whether that was in time."""

    def __init__(
        self, fields: dict[str, ua.Variant], content: Callable[[], ua.Variant], told: Callable[[], None]
    ) -> None:
        super().__init__({**fields, "ResultContent": content()})
        self.internal_properties += ["_content", "_told"]
        self._content = content
        self._told = told

    def to_event_fields(self, select_clauses: list[ua.SimpleAttributeOperand]) -> Fields:
        fields = super().to_event_fields(select_clauses)
        at = [n for n, clause in enumerate(select_clauses) if [p.Name for p in clause.BrowsePath] == ["ResultContent"]]

        def renew(mine: Fields) -> None:
            for position in at:
                mine[position] = self._content()
            self._told()

        fields.renew = renew
        return fields


class VisionSystem:
    """One line as clients see it."""

    def __init__(
        self,
        server: Server,
        line: str,
        deadline_ms: int,
        session: str,
        single: bool,
        ask: Ask,
        told: Callable[[str, int], None],
    ) -> None:
        self.line = line
        self.facts = Facts("starting", 0, 0, 0, False)
        self.top: Top = "Preoperational"
        self.mode: Mode = "Initialized"
        self._productive = False
        self._server = server
        self._session = session
        self._single = single
        self._ask = ask
        self._told = told
        self._deadline_ms = deadline_ms
        self._values = {name: first for name, (_, first) in VARIABLES.items()}
        self._states: dict[str, ua.NodeId] = {}
        self._halted: Literal["no", "asked", "yes"] = "no"
        self._reset = True
        self._jobs: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._running: str | None = None
        self._running_until = 0.0
        self._recipes: dict[int, int] = {}

    async def build(self, index: int, own: int, rules: Rules) -> None:
        """Make the nodes, leave out what nothing stands behind, link the methods."""
        objects = self._server.nodes.objects
        self._index, self._own = index, own
        self.node = await objects.add_object(
            ua.NodeId(self.line, own), ua.QualifiedName(self.line, own), ua.NodeId(VISION_SYSTEM, index)
        )
        await self._leave_out([await self._at(path) for path in LEFT_OUT])
        await self.node.set_event_notifier([ua.EventNotifier.SubscribeToEvents])
        await self._server.nodes.server.set_event_notifier([ua.EventNotifier.SubscribeToEvents])
        await self._server.nodes.server.add_reference(self.node.nodeid, ua.ObjectIds.HasNotifier)
        for kind in (STATE_MACHINE, AUTOMATIC_MODE):
            for child in await self._server.get_node(ua.NodeId(kind, index)).get_children():
                self._states[(await child.read_browse_name()).Name] = child.nodeid
        folder = await self.node.add_object(ua.NodeId(f"{self.line}.Flawline", own), ua.QualifiedName("Flawline", own))
        for name, (kind, first) in VARIABLES.items():
            await folder.add_variable(
                ua.NodeId(f"{self.line}.{name}", own), ua.QualifiedName(name, own), first, varianttype=kind
            )
        await self._link(rules)
        await self._put("Session", self._session)
        await self._put("DeadlineMs", self._deadline_ms)
        await self._write("SystemState", ua.Variant(_system_state(0), V.ExtensionObject))
        await self._show_states()

    async def _leave_out(self, nodes: list[Any]) -> None:
        """Delete nodes with all below them, and what refers to them in one pass: asyncua's own makes one for each."""
        deleted, _ = await delete_nodes(self._server.iserver.isession, nodes, True, delete_target_references=False)
        gone = {node.nodeid for node in deleted}
        space = self._server.iserver.aspace
        for node_id in list(space.keys()):
            references = space[node_id].references
            references[:] = [each for each in references if each.NodeId not in gone]

    async def _at(self, path: str) -> Any:
        names = [ua.QualifiedName(name, self._index) for name in path.split("/")]
        return await self.node.get_child(names)

    async def _link(self, rules: Rules) -> None:
        for name, (place, work, changes) in METHODS.items():
            node = await self._at(f"{place}/{name}")
            if changes:
                rules.controls.add(node.nodeid)
            self._server.link_method(node, _method(getattr(self, work)))

    # What the host says

    async def beat(self, facts: Facts) -> None:
        """The host is there, and so is the line where it has no trouble, or only masters due."""
        self.facts = facts
        if facts.model and facts.recipe:
            self._recipes[facts.model] = facts.recipe
        if facts.inspected:
            await self._put("Heartbeat", self._values["Heartbeat"] + 1 & 0xFFFFFFFF)
        await self._put("Inspected", facts.trouble is None)
        await self._put("Trouble", facts.trouble or "")
        await self._put("Drift", facts.drift or "")
        await self._put("RecipeNumber", facts.recipe & 0xFFFF)
        await self._put("Model", facts.model & 0xFFFFFFFF)
        await self._put("Committed", facts.committed)
        if self._running is not None and time.monotonic() > self._running_until:
            await self._end_job(None)  # its part was lost before anybody numbered it
        await self._settle()

    async def silent(self) -> None:
        """The host has said nothing for too long: nothing is known of the line."""
        self.facts = self.facts._replace(trouble="the host has fallen silent", held=False)
        await self._put("Inspected", False)
        await self._put("Trouble", self.facts.trouble)
        await self._settle()

    async def emit(self, output: LineOutput) -> bool:
        """Tell one result to whoever listens; False where nobody does."""
        now, now_ns = datetime.now(UTC), time.monotonic_ns()
        # Variables first: a client that hears of the result finds it counted.
        await self._put("Head", output.number)
        await self._put("Results", self._values["Results"] + 1)
        await self._put(COUNTED[output.code], self._values[COUNTED[output.code]] + 1)
        job = self._jobs.pop(f"{output.edge_id}/{output.part_id}", None)
        fields = self._result_fields(output, job, now, now_ns)
        notice = ResultNotice(
            {**self._base("ResultReady", f"Result {output.number} of {self.line}", now), **fields},
            lambda: self._content(output, now, now_ns),
            lambda: self._told(output.line, output.number),
        )
        await self._trigger(notice)
        if job is not None and job.id == self._running:
            await self._end_job(job.id)
        return notice.listeners > 0

    def _result_fields(self, output: LineOutput, job: Job | None, now: datetime, now_ns: int) -> dict[str, ua.Variant]:
        model = output.model or 0
        recipe = ua.RecipeIdInternalDataType(Id=str(self._recipes.get(model, 0)))
        if model:
            recipe.Hash, recipe.HashAlgorithm = model.to_bytes(4), "first 32 bits of the SHA-256 of the model"
        began = now - timedelta(microseconds=(now_ns - output.captured_ns) / 1e3) if output.captured_ns else now
        done = output.code is not LineCode.NOT_INSPECTED
        fields: dict[str, Any] = {
            "ResultId": ua.ResultIdDataType(Id=f"{output.line}/{output.number}"),
            "MeasId": ua.MeasIdDataType(Id=job.measured if job else ""),
            "PartId": ua.PartIdDataType(Id=job.part if job and job.part else output.part_id),
            "ExternalRecipeId": ua.RecipeIdExternalDataType(Id=recipe.Id),
            "InternalRecipeId": recipe,
            "ProductId": ua.ProductIdDataType(Id=""),
            "ExternalConfigurationId": ua.ConfigurationIdDataType(Id=f"{model:08x}"),
            "InternalConfigurationId": ua.ConfigurationIdDataType(Id=f"{model:08x}"),
            "JobId": ua.JobIdDataType(Id=f"{output.edge_id}/{output.part_id}"),
            "ProcessingTimes": ua.ProcessingTimesDataType(StartTime=began, EndTime=now),
        }
        return {name: ua.Variant(value, V.ExtensionObject) for name, value in fields.items()} | {
            "IsPartial": ua.Variant(False, V.Boolean),
            "IsSimulated": ua.Variant(False, V.Boolean),
            "ResultState": ua.Variant(COMPLETED if done else FAILED, V.Int32),
            "CreationTime": ua.Variant(now, V.DateTime),
        }

    def _content(self, output: LineOutput, now: datetime, now_ns: int) -> ua.Variant:
        """What the part is at this moment, as KeyValuePairs."""
        at_ns = time.monotonic_ns()
        stale = at_ns > output.due_ns
        code = LineCode.NOT_INSPECTED if stale else output.code
        reason = "its deadline is over" if stale else output.reason or ""
        deadline = now + timedelta(microseconds=(output.due_ns - now_ns) / 1e3)
        age_ms = (at_ns - output.captured_ns) // 1_000_000 if output.captured_ns else 0
        pairs: list[tuple[str, Any, ua.VariantType]] = [
            ("ResultEvaluation", EVALUATION[code], V.Int32),
            ("Verdict", code.name, V.String),
            ("Number", output.number, V.UInt64),
            ("Session", self._session, V.String),
            ("Line", output.line, V.String),
            ("EdgeId", output.edge_id, V.String),
            ("PartId", output.part_id, V.String),
            ("CameraId", output.camera_id, V.String),
            ("TriggerId", output.trigger_id, V.UInt64),
            ("Reason", reason, V.String),
            ("AgeMs", max(age_ms, 0), V.UInt32),
            ("ValidForMs", max(0, (output.due_ns - at_ns) // 1_000_000), V.UInt32),
            ("Deadline", deadline, V.DateTime),
            ("Stale", stale, V.Boolean),
        ]
        if output.counter is not None:
            pairs.append(("Counter", output.counter, V.UInt32))
        if output.ratio is not None:
            pairs.append(("Ratio", float(output.ratio), V.Double))
        if output.model is not None:
            pairs.append(("Model", output.model, V.UInt32))
        named = [
            ua.KeyValuePair(ua.QualifiedName(key, self._own), ua.Variant(value, kind)) for key, value, kind in pairs
        ]
        return ua.Variant(named, V.ExtensionObject)

    # States

    async def _settle(self) -> None:
        """The states that follow from what is known; events where they change."""
        before, was, shown = self.top, self.mode, self._productive
        self.top, self.mode = self._next_top(), self._next_mode()
        self._productive = self.facts.trouble is None
        if (before, was, shown) == (self.top, self.mode, self._productive):
            return
        await self._show_states()
        if self.top != before:
            await self._transition(before, self.top)
        if self.mode != was and self.top == "Operational":
            await self._transition(was, self.mode)
        if self.top == "Error":
            await self._announce("Error", self.facts.trouble or "")
        elif before == "Error":
            await self._announce("ErrorResolved", "the line is inspected again")

    def _next_top(self) -> Top:
        trouble = self.facts.trouble
        stopped = trouble is not None and trouble.endswith(STOPPED_BY_REQUEST)
        if self._halted != "no":
            if not self.facts.inspected:
                self._halted = "yes"
            elif self._halted == "yes":
                self._halted = "no"
            if self._halted != "no":
                return "Halted"
        if self.facts.inspected or stopped:
            self._reset = False
            return "Operational"
        return "Preoperational" if self._reset and self.facts.recipe == 0 else "Error"

    def _next_mode(self) -> Mode:
        if self._running is not None:
            return "SingleExecution"
        if not self.facts.inspected:
            return "Ready" if self.facts.recipe else "Initialized"
        return "Ready" if self._single or self.facts.held else "ContinuousExecution"

    async def _show_states(self) -> None:
        machine = f"{self.line}.VisionStateMachine"
        await self._show(f"{machine}.CurrentState", self.top)
        inner = self.mode if self.top == "Operational" else None
        await self._show(f"{machine}.AutomaticModeStateMachine.CurrentState", inner)
        number = 5 if self.top != "Operational" else 1 if self._productive else 2
        await self._write("SystemState", ua.Variant(_system_state(number), V.ExtensionObject))

    async def _show(self, name: str, state: str | None) -> None:
        node = self._server.get_node(ua.NodeId(name, self._own))
        await node.write_value(ua.Variant(ua.LocalizedText(state or ""), V.LocalizedText))
        where = self._states[state] if state else ua.NodeId()
        await self._server.get_node(ua.NodeId(f"{name}.Id", self._own)).write_value(ua.Variant(where, V.NodeId))

    async def _transition(self, before: str, after: str) -> None:
        texts = {"FromState": before, "ToState": after, "Transition": f"{before} to {after}"}
        fields = {name: ua.Variant(ua.LocalizedText(text), V.LocalizedText) for name, text in texts.items()}
        fields["FromState/Id"] = ua.Variant(self._states[before], V.NodeId)
        fields["ToState/Id"] = ua.Variant(self._states[after], V.NodeId)
        await self._announce("StateChanged", texts["Transition"], fields)

    async def _announce(self, kind: str, message: str, fields: dict[str, ua.Variant] | None = None) -> None:
        if kind in ("Error", "ErrorResolved"):
            before, after = ("Operational", "Error") if kind == "Error" else ("Error", "Operational")
            fields = {
                "FromState": ua.Variant(ua.LocalizedText(before), V.LocalizedText),
                "ToState": ua.Variant(ua.LocalizedText(after), V.LocalizedText),
                "Transition": ua.Variant(ua.LocalizedText(f"{before} to {after}"), V.LocalizedText),
            }
        await self._trigger(Notice({**self._base(kind, message, datetime.now(UTC)), **(fields or {})}))

    def _base(self, kind: str, message: str, now: datetime) -> dict[str, ua.Variant]:
        zone = now.astimezone()
        offset = int((zone.utcoffset() or timedelta()).total_seconds() // 60)
        return {
            "EventId": ua.Variant(uuid.uuid4().bytes, V.ByteString),
            "EventType": ua.Variant(ua.NodeId(EVENTS[kind], self._index), V.NodeId),
            "SourceNode": ua.Variant(self.node.nodeid, V.NodeId),
            "SourceName": ua.Variant(self.line, V.String),
            "Time": ua.Variant(now, V.DateTime),
            "ReceiveTime": ua.Variant(now, V.DateTime),
            "LocalTime": ua.Variant(ua.TimeZoneDataType(offset, bool(time.localtime().tm_isdst)), V.ExtensionObject),
            "Message": ua.Variant(ua.LocalizedText(message), V.LocalizedText),
            "Severity": ua.Variant(600 if kind == "Error" else SEVERITY, V.UInt16),
        }

    async def _trigger(self, notice: Notice) -> None:
        """To those who listen to the server, and to those who listen to this line's object."""
        subscriptions = self._server.iserver.subscription_service
        for node in (ua.NodeId(ua.ObjectIds.Server), self.node.nodeid):
            notice.emitting_node = node
            await subscriptions.trigger_event(notice)

    async def _put(self, name: str, value: Any) -> None:
        if self._values[name] != value:
            self._values[name] = value
            variant = ua.Variant(value, VARIABLES[name][0])
            stamped = ua.DataValue(variant, SourceTimestamp=datetime.now(UTC))
            await self._server.write_attribute_value(ua.NodeId(f"{self.line}.{name}", self._own), stamped)

    async def _write(self, path: str, value: ua.Variant) -> None:
        await (await self._at(path)).write_value(value)

    # What clients ask

    async def _on_reset(self, cause: int = 0, why: str = "") -> tuple[ua.Variant, ...]:
        reply = await self._ask(self.line, "start", None, 3.0) if self._is_stopped() else Reply(None)
        if not await self._was_done(reply):
            return (_error(-1),)
        self._halted, self._reset = "no", True
        before, self.top = self.top, "Preoperational"
        if before != self.top:
            await self._show_states()
            await self._transition(before, self.top)
        return (_error(0),)

    async def _on_halt(self, cause: int = 0, why: str = "") -> tuple[ua.Variant, ...]:
        if not await self._was_done(await self._ask(self.line, "stop", None, 3.0)):
            return (_error(-1),)
        self._halted = "asked"
        await self._settle()
        return (_error(0),)

    async def _on_automatic(self) -> tuple[ua.Variant, ...] | ua.StatusCode:
        if self.top != "Operational":
            await self._put("Refusal", f"it is {self.top}: {self.facts.trouble or 'Reset first'}")
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        return (_error(0),)

    async def _on_confirm(self, comment: object = None) -> tuple[ua.Variant, ...]:
        """Errors here end when their cause does; there is nothing to confirm."""
        return ()

    async def _on_continuous(
        self, measured: Any = None, part: Any = None, recipe: Any = None, product: Any = None, parameters: Any = None
    ) -> tuple[ua.Variant, ...] | ua.StatusCode:
        if self._single or self.top != "Operational" or self.facts.inspected:
            why = "this line takes single jobs" if self._single else f"it is {self.top}, {self.mode}"
            await self._put("Refusal", why)
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        done = await self._was_done(await self._ask(self.line, "start", None, 3.0))
        return _job_id(f"{self._session}/continuous"), _error(0 if done else -1)

    async def _on_stop(self, cause: int = 0, why: str = "") -> tuple[ua.Variant, ...] | ua.StatusCode:
        if self.top != "Operational" or not self.facts.inspected:
            await self._put("Refusal", f"it is {self.top}, {self.mode}")
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        done = await self._was_done(await self._ask(self.line, "stop", None, 3.0))
        return (_error(0 if done else -1),)

    async def _on_single(
        self, measured: Any = None, part: Any = None, recipe: Any = None, product: Any = None, parameters: Any = None
    ) -> tuple[ua.Variant, ...] | ua.StatusCode:
        """A software trigger: a picture of the part that is in view now."""
        wanted = _id(recipe)
        trouble = None if self.facts.inspected else self.facts.trouble
        if not self._single or self.top != "Operational" or self.mode != "Ready" or trouble is not None:
            why = trouble or ("another job runs" if self._single else "the line triggers by itself: jobs=1")
            await self._put("Refusal", why)
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        if wanted and wanted != str(self.facts.recipe):
            await self._put("Refusal", f"recipe {wanted[:40]} is not prepared")
            return ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
        self._running, self._running_until = "asked", time.monotonic() + self._deadline_ms / 1e3 + JOB_S
        await self._settle()
        reply = await self._ask(self.line, "trigger", _id(part) or None, 5.0)
        if not await self._was_done(reply) or reply is None or not reply.parts:
            await self._end_job(None)
            return _job_id(""), _error(-1)
        return await self._begin_job(reply.parts, _id(measured), _id(part))

    async def _begin_job(self, parts: Sequence[str], measured: str, part: str) -> tuple[ua.Variant, ...]:
        self._running = parts[0]
        for each in parts:
            self._jobs[each] = Job(each, measured, part)
        while len(self._jobs) > 64:
            self._jobs.popitem(last=False)
        await self._announce("JobStarted", f"Job {parts[0]}", {"JobId": _job_id(parts[0])})
        return _job_id(parts[0]), _error(0)

    async def _end_job(self, job: str | None) -> None:
        self._running = None
        await self._settle()
        if job is not None:
            await self._announce("Ready", f"Job {job} is done", {"JobId": _job_id(job)})

    async def _on_prepare(self, external: Any = None, internal: Any = None) -> tuple[ua.Variant, ...] | ua.StatusCode:
        number = _recipe_number(_id(internal) or _id(external))
        if number is None:
            await self._put("Refusal", "a recipe is named by its number, 1 to 65535")
            return ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
        reply = await self._ask(self.line, "recipe", number, 2.0)
        named = ua.Variant(ua.RecipeIdInternalDataType(Id=str(number)), V.ExtensionObject)
        if reply is None:  # it goes on; the event RecipePrepared, or Refusal, says how it ended
            return named, ua.Variant(False, V.Boolean), _error(0)
        done = reply.refusal is None
        return named, ua.Variant(done, V.Boolean), _error(0 if done else -1)

    async def recipe_answered(self, number: int, refusal: str | None) -> None:
        """How a PrepareRecipe ended, whenever that was."""
        if refusal is not None:
            await self._put("Refusal", f"recipe {number}: {refusal}"[:500])
            return
        recipe = ua.Variant(ua.RecipeIdInternalDataType(Id=str(number)), V.ExtensionObject)
        product = ua.Variant(ua.ProductIdDataType(Id=""), V.ExtensionObject)
        outer = ua.Variant(ua.RecipeIdExternalDataType(Id=str(number)), V.ExtensionObject)
        fields = {"InternalId": recipe, "ExternalId": outer, "ProductId": product}
        await self._announce("RecipePrepared", f"Recipe {number} judges", fields)

    async def _on_unprepare(self, external: Any = None, internal: Any = None) -> ua.StatusCode:
        await self._put("Refusal", "an edge always has a recipe; prepare another one")
        return ua.StatusCode(ua.StatusCodes.BadNotSupported)

    async def _on_list(self, *_filter: Any) -> tuple[ua.Variant, ...]:
        """The recipe that judges now; the host knows no others."""
        found = [ua.RecipeIdInternalDataType(Id=str(self.facts.recipe))] if self.facts.recipe else []
        return (
            ua.Variant(True, V.Boolean),
            ua.Variant(len(found), V.UInt32),
            ua.Variant(0, V.UInt32),
            ua.Variant(found, V.ExtensionObject, is_array=True),
            _error(0),
        )

    def _is_stopped(self) -> bool:
        trouble = self.facts.trouble
        return self._halted != "no" or (trouble is not None and trouble.endswith(STOPPED_BY_REQUEST))

    async def _was_done(self, reply: Reply | None) -> bool:
        refusal = "no answer from the edge" if reply is None else reply.refusal
        await self._put("Refusal", (refusal or "")[:500])
        return refusal is None


def _method(work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """As asyncua calls it: the object first, then Variants."""

    async def call(_parent: ua.NodeId, *arguments: ua.Variant) -> Any:
        try:
            outcome = await work(*(argument.Value for argument in arguments))
        except UaError as error:
            return ua.StatusCode(getattr(error, "code", ua.StatusCodes.BadInternalError))
        except TypeError:
            return ua.StatusCode(ua.StatusCodes.BadTooManyArguments)
        return outcome if isinstance(outcome, ua.StatusCode) else list(outcome)

    return call


def _error(number: int) -> ua.Variant:
    return ua.Variant(number, V.Int32)


def _job_id(text: str) -> ua.Variant:
    return ua.Variant(ua.JobIdDataType(Id=text), V.ExtensionObject)


def _id(value: Any) -> str:
    """The Id of an id structure that a client sent; empty where it sent none."""
    found = getattr(value, "Id", None)
    return str(found) if found else ""


def _recipe_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text[:6]) <= 65535 else None


def _system_state(number: int) -> Any:
    """SEMI E10's states as the standard has them: productive, standby and so on; 6 is not scheduled."""
    return ua.SystemStateDescriptionDataType(State=ua.SystemStateDataType(number or 6))
