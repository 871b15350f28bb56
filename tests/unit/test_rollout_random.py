"""A fleet under random events: what the operator decides, from nothing but what lies in the resources."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from podgraft_api.livepatch import LivePatchSpec
from podgraft_api.nodepatch import BundleRef, ContainerRef, Desired, Item, ItemReport, LivePatchRef, Phase, PodRef
from podgraft_api.progress import RESUME, REVERT, RolloutStatus
from podgraft_operator import pace
from podgraft_operator.census import Census, count
from podgraft_operator.change import Change, Wish
from podgraft_operator.health import Measurement
from podgraft_operator.placement import Placed, Target, holds_slot, settled, share
from podgraft_operator.problem import Problem
from podgraft_operator.progress import advance
from podgraft_operator.rollout import plan

LP = LivePatchRef(namespace="shop", name="fix", uid="lp")
QUERY = {"url": "http://prometheus", "query": "errors", "atMost": 1}
BUNDLES = {
    # The third one takes the place of the first.
    name: BundleRef(
        digest="sha256:" + name * 64, chunks=1, name=name, build_id="ab" * 20, replaces=("a",) if name == "c" else ()
    )
    for name in "abc"
}
NAMES = {one.digest: name for name, one in BUNDLES.items()}
STEPS: list[list[dict[str, Any]]] = [
    [],
    [{"pods": 1}, {"pause": {}}],
    [{"pods": 1}, {"pause": {"seconds": 60}}, {"pods": "50%"}],
    [{"pause": {"seconds": 20}}, {"pods": 2}, {"pause": {}}, {"pods": "100%"}, {"pause": {"seconds": 60}}],
]
HEALTH: list[dict[str, Any] | None] = [None, {"ready": True, "maxRestarts": 0}, {"maxRestarts": 2, "prometheus": QUERY}]


class Fleet(RuleBasedStateMachine):
    """Pods come, go and restart; agents answer late, twice or not at all; the operator is killed between two writes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.strategy: dict[str, Any] = {"maxParallel": 2}
        self.spec = self.parsed(paused=False)
        self.named = BUNDLES["a"]
        self.bundle: BundleRef | None = self.named
        self.asked: dict[str, str] = {}
        self.leaving = False
        # The resources: status of the LivePatch, items of the NodePatches and the reports on them.
        self.memory: RolloutStatus | None = None
        self.items: dict[str, tuple[str, Item]] = {}
        self.reports: dict[str, ItemReport] = {}
        self.late: list[ItemReport] = []
        # The world: pods, what really is in their processes (pod uid -> bundle names; two while
        # one replaces the other), nodes that do not answer.
        self.pods: dict[str, Target] = {}
        self.selected: set[str] = set()
        self.inside: dict[str, set[str]] = {}
        self.dead: set[str] = set()
        self.errors = 0.0
        self.version = 0
        # What must not happen, kept apart from what the operator remembers.
        self.shut = False
        self.reverting: str | None = None
        self.pause: tuple[str, int, datetime, str | None] | None = None

    def parsed(self, *, paused: bool) -> LivePatchSpec:
        source = {"bundle": {"inline": "QUJD"}, "selector": {"matchLabels": {"a": "b"}}}
        return LivePatchSpec.model_validate(source | {"strategy": self.strategy, "paused": paused})

    def placed(self) -> list[Placed]:
        found = []
        for node, item in self.items.values():
            report = self.reports.get(item.id)
            one = Placed(node, item, report if report is not None and report.version == item.version else None)
            found.append(Placed(node, item, one.report, silent=node in self.dead and not settled(one)))
        return found

    def targets(self) -> list[Target]:
        return [one for uid, one in self.pods.items() if uid in self.selected]

    def decide(self) -> tuple[RolloutStatus | None, Wish]:
        """Do what the controller does before it writes."""
        body = {"metadata": {"annotations": dict(self.asked)}}
        taken_back = self.memory.withdrawn if self.memory is not None else None
        census = count(Wish(LP, bundle=self.bundle, withdrawn=taken_back), self.targets(), self.placed())
        self.note_gate(census)
        problem = Problem("MetricOutOfBounds", "too many") if self.errors > 1 else None
        measured = Measurement(self.now, passed=problem is None, problem=problem)
        fresh = self.memory is not None and self.memory.failure is None
        orders = pace.orders(body, self.spec, self.bundle)
        memory = advance(self.memory, orders, census, measured if fresh else None, self.now)
        return memory, pace.wish(LP, self.spec, self.bundle, memory, census.matched)

    def note_gate(self, census: Census) -> None:
        """Remember by ourselves that something was wrong while a rollout was under way."""
        health = self.spec.strategy.health
        known = self.memory is not None and self.bundle is not None and self.memory.digest == self.bundle.digest
        if not known or self.memory is None or self.memory.complete or health is None or self.memory.failure:
            return
        if self.asked.get(RESUME) != self.memory.handled_resume or self.asked.get(REVERT) != self.memory.handled_revert:
            return
        restarts = census.restarts - self.memory.forgiven_restarts
        bad = (health.ready and bool(census.unready)) or (self.errors > 1 and health.prometheus is not None)
        bad = bad or (health.max_restarts is not None and restarts > health.max_restarts)
        self.shut = self.shut or (bad and census.begun > 0)

    @rule(crash=st.sampled_from(["no", "no", "no", "before", "between", "half"]))
    def look(self, crash: str = "no") -> None:
        """The operator looks once; killed before it wrote, between memory and items, or among the items."""
        if self.leaving:
            wish = Wish(LP, leaving="Revert", max_parallel=2)
        else:
            memory, wish = self.decide()
            if crash == "before":
                return
            self.check_steps(memory)
            self.memory = memory
            if memory is not None and memory.failure is not None and memory.failure.reverting:
                self.reverting = memory.digest
        if crash == "between":
            return
        before = self.placed()
        decided = plan(wish, self.targets(), before, set(self.pods))
        written = decided.changes[: len(decided.changes) // 2] if crash == "half" else decided.changes
        begun = self.begun() + self.making_room()
        for change in written:
            self.check(change)
            self.write(change)
        held = sum(map(holds_slot, self.placed()))
        assert held <= max(decided.limit, sum(map(holds_slot, before))), "more than maxParallel in transition"
        self.check_cap(begun)

    def check(self, change: Change) -> None:
        """No pod is begun behind a shut gate or with a bundle that is taken back; nothing is dropped unreverted."""
        if change.item is None:
            gone = self.items[change.id][1].pod.uid
            assert gone not in self.pods or gone not in self.inside, "an item was dropped with its patch in the process"
            return
        if change.item.desired is Desired.REVERTED:
            return
        begun = change.id in self.items and self.items[change.id][1].bundle.digest == change.item.bundle.digest
        current = self.bundle is not None and change.item.bundle.digest == self.bundle.digest
        assert not (self.shut and current and not begun), "a pod was begun behind a failed gate"
        assert change.item.bundle.digest != self.reverting, "a revert was forgotten"

    def write(self, change: Change) -> None:
        self.version += 1
        if change.item is None:
            del self.items[change.id]
        else:
            self.items[change.id] = (change.node, change.item.model_copy(update={"version": self.version}))

    def check_steps(self, after: RolloutStatus | None) -> None:
        """A pause is left when its time is over, or somebody resumed, and not before; none is left out."""
        if after is None or after.complete:
            self.pause = None
            return
        if after.failure is not None:
            return  # nothing is begun; what was known of the pause counts when somebody resumes
        key, steps = after.digest + after.steps, self.spec.strategy.steps
        rollout, step, since, resume = self.pause or ("", 0, self.now, None)
        before = self.memory.failure if self.memory is not None else None
        again = before is not None and before.reverting and after.failure is None
        if rollout != key or after.step < step or again:
            # Also when somebody resumes after a revert: at the first step, whatever the memory says.
            step, since, resume = 0, self.now, self.asked.get(RESUME)
        for index in range(step, after.step):
            pause = steps[index].pause
            if pause is not None:
                waited = pause.seconds is not None and self.now - since >= timedelta(seconds=pause.seconds)
                resumed = self.asked.get(RESUME) != resume
                assert index == step, "a pause was left out"
                assert waited or resumed, "a pause was cut short"
        if rollout != key or after.step != step:
            since, resume = self.now, self.asked.get(RESUME)
        self.pause = (key, after.step, since, resume)

    def begun(self) -> int:
        """Pods of the selector with the bundle that is rolled out, but for other builds and silent nodes."""
        wanted = self.bundle.digest if self.bundle is not None else None
        return sum(
            one.item.desired is Desired.APPLIED
            and one.item.bundle.digest == wanted
            and one.item.pod.uid in self.selected
            and not one.silent
            and not (
                one.report is not None
                and one.report.phase is Phase.NOT_APPLICABLE
                and self.pods[one.item.pod.uid].containers == one.item.containers
            )
            for one in self.placed()
        )

    def making_room(self) -> int:
        """Pods that give back another bundle; if that is for the one that is rolled out, they have been begun."""
        wanted = self.bundle.digest if self.bundle is not None else None
        return sum(
            one.item.desired is Desired.REVERTED and one.item.bundle.digest not in {wanted, self.reverting}
            for one in self.placed()
        )

    def check_cap(self, before: int) -> None:
        """No more pods than the step allows have the bundle."""
        memory, steps = self.memory, self.spec.strategy.steps
        if memory is None or memory.complete or memory.failure or memory.step >= len(steps) or self.leaving:
            return
        allowed = [share(one.pods, len(self.targets())) for one in steps[: memory.step + 1] if one.pods is not None]
        assert self.begun() <= max([before, *allowed]), "more pods than the step allows"

    @initialize(count=st.integers(2, 6), steps=st.sampled_from(STEPS), health=st.sampled_from(HEALTH))
    def start(self, count: int, steps: list[dict[str, Any]], health: dict[str, Any] | None) -> None:
        for number in range(count):
            self.come(number)
        self.pace(2, steps, "Pause", health)

    @rule(number=st.integers(0, 7))
    def come(self, number: int) -> None:
        ref = PodRef(namespace="shop", name=f"p{number}", uid=f"u{number}")
        containers = (ContainerRef(name="c", id=f"{number:02x}00" * 16),)
        self.pods.setdefault(ref.uid, Target(f"n{number % 3}", ref, containers))
        self.selected.add(ref.uid)

    @rule(answered=st.booleans(), seconds=st.integers(1, 40))
    def round(self, answered: bool, seconds: int) -> None:
        """The usual: a look, and every agent does its work."""
        self.now += timedelta(seconds=seconds)
        self.look()
        for key in sorted(self.items) if answered else ():
            self.obey(key)

    @rule(times=st.integers(1, 5), seconds=st.sampled_from([5, 30, 90]))
    def sail(self, times: int, seconds: int) -> None:
        """Nothing happens for a while."""
        self.bundle = self.bundle or self.named
        for _ in range(times):
            self.round(answered=True, seconds=seconds)

    @precondition(lambda self: self.begun())
    @rule(data=st.data(), metric=st.booleans())
    def spoil(self, data: st.DataObject, metric: bool) -> None:
        """What was patched is not well, and the operator sees it."""
        if metric:
            self.measure(2.0)
        else:
            uids = {one.item.pod.uid for one in self.placed()} & self.pods.keys()
            one = self.pods[data.draw(st.sampled_from(sorted(uids)))]
            self.pods[one.pod.uid] = Target(one.node, one.pod, one.containers, ready=False, restarts=one.restarts + 1)
        self.look()

    @rule(seconds=st.integers(1, 700))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        del self.pods[uid]
        self.inside.pop(uid, None)
        self.selected.discard(uid)

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), restart=st.integers(1, 200), down=st.booleans(), ready=st.booleans())
    def restart(self, data: st.DataObject, restart: int, down: bool, ready: bool) -> None:
        """A container ends, and comes again or not yet."""
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        one = self.pods[uid]
        fresh = () if down else (ContainerRef(name="c", id=f"{int(uid[1:]):02x}{restart:02x}" * 16),)
        self.pods[uid] = Target(one.node, one.pod, fresh, ready=ready and not down, restarts=one.restarts + 1)
        self.inside.pop(uid, None)

    @precondition(lambda self: self.pods)
    @rule(data=st.data(), ready=st.booleans())
    def become(self, data: st.DataObject, ready: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.pods)))
        one = self.pods[uid]
        self.pods[uid] = Target(one.node, one.pod, one.containers, ready=ready, restarts=one.restarts)

    @rule(errors=st.sampled_from([0.0, 0.0, 2.0]))
    def measure(self, errors: float) -> None:
        self.errors = errors

    @rule(node=st.sampled_from(["n0", "n1"]))
    def lose_or_find_a_node(self, node: str) -> None:
        self.dead ^= {node}

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """An agent does what its item asks for, and says so."""
        self.obey(data.draw(st.sampled_from(sorted(self.items))))

    def obey(self, key: str) -> None:
        node, item = self.items[key]
        if node in self.dead:
            return
        uid = item.pod.uid
        current = uid in self.pods and self.pods[uid].containers == item.containers
        phase = Phase.NOT_APPLICABLE
        if current and item.desired is Desired.APPLIED:
            self.begin_to_apply(item)
            self.inside[uid], phase = {item.bundle.name}, Phase.APPLIED
        elif current:
            left = self.inside.pop(uid, set()) - {*item.bundle.names}
            assert not left, "a bundle that nobody takes back"
            phase = Phase.REVERTED
        self.reports[key] = ItemReport(id=key, version=item.version, phase=phase)
        self.late.append(self.reports[key])

    def begin_to_apply(self, item: Item) -> None:
        """Both are in the process until the new one has taken the place of the old one, which must be whole."""
        inside = self.inside.setdefault(item.pod.uid, set())
        others = inside - {item.bundle.name}
        assert others <= {*item.bundle.replaces}, "a second bundle beside the first"
        assert item.bundle.name in inside or len(others) <= 1, "a bundle on top of one that is not in yet"
        inside.add(item.bundle.name)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def half(self, data: st.DataObject) -> None:
        """An agent is stopped in the middle of applying."""
        key = data.draw(st.sampled_from(sorted(self.items)))
        node, item = self.items[key]
        uid = item.pod.uid
        current = uid in self.pods and self.pods[uid].containers == item.containers
        report = self.reports.get(key)
        done = report is not None and report.version == item.version and report.phase is Phase.APPLIED
        if node not in self.dead and current and item.desired is Desired.APPLIED and not done:
            self.begin_to_apply(item)
            self.reports[key] = ItemReport(id=key, version=item.version, phase=Phase.APPLYING)

    @precondition(lambda self: self.items)
    @rule(data=st.data(), phase=st.sampled_from([Phase.APPLYING, Phase.REFUSED, Phase.FAILED, Phase.PENDING]))
    def trouble(self, data: st.DataObject, phase: Phase) -> None:
        key = data.draw(st.sampled_from(sorted(self.items)))
        self.reports[key] = ItemReport(id=key, version=self.items[key][1].version, phase=phase)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def late_report(self, data: st.DataObject) -> None:
        """A report arrives again, after newer ones."""
        one = data.draw(st.sampled_from(self.late))
        self.reports[one.id] = one

    @rule(name=st.sampled_from("abc"), paused=st.sampled_from([False, False, True]))
    def edit(self, name: str, paused: bool) -> None:
        """The user names another bundle, or the same again."""
        if self.bundle != BUNDLES[name] and self.memory is not None and self.memory.digest != BUNDLES[name].digest:
            self.shut, self.reverting = False, self.reverting if self.reverting != BUNDLES[name].digest else None
        self.bundle = self.named = BUNDLES[name]
        self.spec = self.parsed(paused=paused)

    @rule(
        parallel=st.sampled_from([1, 2, "50%"]),
        steps=st.sampled_from(STEPS),
        on_failure=st.sampled_from(["Pause", "Revert"]),
        health=st.sampled_from(HEALTH),
    )
    def pace(
        self, parallel: int | str, steps: list[dict[str, Any]], on_failure: str, health: dict[str, Any] | None
    ) -> None:
        """The user edits how fast."""
        self.strategy = {"maxParallel": parallel, "steps": steps, "onFailure": on_failure}
        self.strategy |= {"health": health} if health is not None else {}
        self.spec = self.parsed(paused=self.spec.paused)

    @rule()
    def lose_the_bundle(self) -> None:
        self.bundle = None

    @rule()
    def resume(self) -> None:
        self.asked[RESUME] = f"r{self.now}{len(self.late)}"
        self.shut, self.reverting = False, None

    @rule()
    def revert(self) -> None:
        self.asked[REVERT] = f"r{self.now}{len(self.late)}"

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def unselect(self, data: st.DataObject) -> None:
        self.selected.discard(data.draw(st.sampled_from(sorted(self.pods))))

    @precondition(lambda self: self.version > 12)
    @rule(sure=st.sampled_from([False, False, False, True]))
    def delete(self, sure: bool) -> None:
        self.leaving = self.leaving or sure

    def anew(self, parallel: int, steps: list[dict[str, Any]], health: dict[str, Any] | None) -> str:
        """Begin to roll out a bundle that is in no pod, with nothing in its way; return its name."""
        self.dead, self.errors = set(), 0.0
        stable = self.memory.stable.digest if self.memory is not None and self.memory.stable is not None else None
        old = {self.named.digest, stable}
        name = next(one for one in "abc" if BUNDLES[one].digest not in old)
        for uid, one in self.pods.items():
            self.pods[uid] = Target(one.node, one.pod, one.containers, restarts=one.restarts)
        self.pace(parallel, steps, "Pause", health)
        self.edit(name, paused=False)
        return name

    @precondition(lambda self: not self.leaving)
    @rule(rounds=st.integers(2, 6))
    def sour(self, rounds: int) -> None:
        """The metric goes bad when some pods are patched and others are not."""
        self.anew(1, [], HEALTH[2])
        self.sail(rounds, 5)
        self.spoil_metric()
        self.sail(3, 5)

    def spoil_metric(self) -> None:
        self.measure(2.0)
        self.look()

    @precondition(lambda self: not self.leaving)
    @rule(rounds=st.integers(1, 3))
    def change_of_mind(self, rounds: int) -> None:
        """A bundle is taken back; before that is done the user names the third one, and holds it back."""
        name = self.anew(4, [], None)
        self.sail(3, 5)
        self.pace(1, [], "Pause", None)
        self.revert()
        for _ in range(rounds):
            self.round(answered=True, seconds=5)
        taken_back = self.memory is not None and self.memory.withdrawn == BUNDLES[name].digest
        others = {name, self.named.name}
        self.edit(next(one for one in "abc" if one not in others), paused=True)
        self.sail(2 * len(self.pods) + 2, 5)
        assert not taken_back or all(name not in one for one in self.inside.values()), (
            "an edit made the operator forget a revert"
        )

    @precondition(lambda self: not self.leaving)
    @rule(steps=st.sampled_from(STEPS[1:]))
    def back_and_forth(self, steps: list[dict[str, Any]]) -> None:
        """A rollout that stands behind its first step is taken back, and begun again."""
        self.anew(2, steps, None)
        self.sail(4, 30)
        self.revert()
        self.sail(3, 5)
        self.resume()
        self.sail(2, 5)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """Every patched process of a living pod has an item that knows it."""
        assert self.inside.keys() <= {item.pod.uid for _, item in self.items.values()}

    def settle(self) -> None:
        """No more events: agents obey, containers are back, time passes."""
        self.dead = set()
        for uid, one in self.pods.items():
            back = one.containers or (ContainerRef(name="c", id=f"{int(uid[1:]):02x}ff" * 16),)
            self.pods[uid] = Target(one.node, one.pod, back, ready=one.ready, restarts=one.restarts)
        for _ in range(40):
            self.now += timedelta(seconds=45)
            self.look()
            for key in sorted(self.items):
                self.obey(key)
        assert all(settled(one) for one in self.placed()), "something never comes to rest"

    def teardown(self) -> None:
        """When events stop, reverts are done; when people have resumed what is paused, all have what is wanted."""
        self.bundle = self.named
        self.settle()
        if self.reverting is not None:
            assert NAMES[self.reverting] not in self.inside.values(), "a revert was forgotten"
        if not self.leaving:
            self.errors = 0.0
            for uid, one in self.pods.items():
                self.pods[uid] = Target(one.node, one.pod, one.containers, restarts=one.restarts)
            self.spec = self.parsed(paused=False)
            for number in range(4):
                self.asked[RESUME] = f"at last {number}"
                self.shut, self.reverting = False, None
                self.settle()
        wanted = set() if self.leaving else self.selected & self.pods.keys()
        name = self.bundle.name if self.bundle is not None else ""
        assert self.inside == {uid: {name} for uid in wanted}
        assert {item.pod.uid for _, item in self.items.values()} == wanted
        assert self.leaving or not wanted or (self.memory is not None and self.memory.complete)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)
