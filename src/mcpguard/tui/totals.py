"""What the tabs show, added up from the portions of the feed. Pure state; bounded."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mcpguard.events.activity import MAX_PATHS, Reached, RuleUse, Spoken, Started, Sum, Touched, Uncovered, with_bytes
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.session.questions import key_of

# Events a second, for this many seconds.
REMEMBERED_S = 60
# The first ones stay: a flood of new ones pushes none of them away.
MAX_QUESTIONS = 500
_ADDED = ("times", "denied", "answered", "failed", "took_ns")


@dataclass(slots=True)
class Place:
    """A path: what happened to itself, and how many refusals lie below."""

    name: str
    read: int = 0
    written: int = 0
    executed: int = 0
    denied: int = 0
    denied_below: int = 0
    touched_below: int = 0
    children: dict[str, Place] = field(default_factory=lambda: _NONE)

    @property
    def marks(self) -> str:
        """Words for what happened: `read`, `written`, `executed`, `denied`, with how often."""
        words = (
            ("denied", self.denied),
            ("written", self.written),
            ("executed", self.executed),
            ("read", self.read),
        )
        return "  ".join(f"{word} {count}" if count > 1 else word for word, count in words if count)


# Of most places, which are files: a dictionary each would be half of what Python's collector has to look through.
_NONE: dict[str, Place] = {}


@dataclass(slots=True)
class Use:
    """A rule and how often it decided."""

    origin: Origin
    because: str
    allowed: int = 0
    denied: int = 0
    audited: int = 0


@dataclass(slots=True)
class Question:
    """The same refusal, however often; `event` is the newest.

    Attributes:
        held: how many ask for this name and wait for the answer. Until they are refused they are not in `count`.
    """

    key: str
    event: Event
    count: int
    held: int = 0


class Totals:
    """Sums of one session."""

    def __init__(self) -> None:
        self.verdicts: Counter[Verdict] = Counter()
        # Refusals that programs do without: not among the denied ones, as in the summary of a run.
        self.routine = 0
        self.lost = 0
        # Losses that are no events, as nobody could write them down.
        self.unwritten = 0
        self.paths = Place("/")
        self.path_count = 0
        self.paths_left_out = 0
        self.destinations: dict[tuple[str, ...], Reached] = {}
        self.programs: dict[tuple[str, Verdict], Started] = {}
        self.spoken: dict[tuple[str, ...], Spoken] = {}
        self.uses: dict[int, Use] = {}
        # In the order of their first times, which never changes: a row does not move away under a key.
        self.questions: dict[str, Question] = {}
        self.questions_left_out = 0
        # None: the session does not ask.
        self.answers: dict[str, str] | None = None
        self.rates: deque[int] = deque([0] * REMEMBERED_S, maxlen=REMEMBERED_S)
        self._second = 0
        self._counted = 0

    def add_sums(self, sums: Iterable[Sum]) -> None:
        for found in sums:
            if found.kind is Kind.LOSS:
                self.lost += found.times
            else:
                self.verdicts[found.verdict] += found.times - found.routine
                self.routine += found.routine

    def add_touched(self, touched: Iterable[Touched]) -> None:
        for found in touched:
            place = self._place(found.path, found.verdict is Verdict.DENY, found.times)
            if place is None:
                self.paths_left_out += 1
            elif found.verdict is Verdict.DENY:
                place.denied += found.times
            else:
                words = found.access.split("+")
                place.read += found.times if "read" in words else 0
                place.written += found.times if "write" in words else 0
                place.executed += found.times if "execute" in words else 0

    def add_reached(self, reached: Iterable[Reached]) -> None:
        for found in reached:
            key = (found.kind, found.op, found.host, found.address, str(found.port), found.protocol, found.verdict)
            before = self.destinations.get(key)
            times = found.times + (before.times if before else 0)
            if before or len(self.destinations) < MAX_PATHS:
                self.destinations[key] = found._replace(
                    times=times,
                    bytes_sent=_sum(before and before.bytes_sent, found.bytes_sent),
                    bytes_received=_sum(before and before.bytes_received, found.bytes_received),
                )

    def add_started(self, started: Iterable[Started]) -> None:
        for found in started:
            key = (found.path, found.verdict)
            before = self.programs.get(key)
            if before or len(self.programs) < MAX_PATHS:
                self.programs[key] = found._replace(times=found.times + (before.times if before else 0))

    def add_spoken(self, spoken: Iterable[Spoken]) -> None:
        for found in spoken:
            key = (found.server, found.sender, found.method, found.tool)
            before = self.spoken.get(key)
            if before is not None:
                found = found._replace(
                    **{name: getattr(before, name) + getattr(found, name) for name in _ADDED},
                    transport=before.transport,
                )
            elif len(self.spoken) >= MAX_PATHS:
                continue
            self.spoken[key] = found

    def set_rules(self, rules: dict[int, tuple[Origin, str]]) -> None:
        for number, (origin, because) in rules.items():
            self.uses.setdefault(number, Use(origin, because))

    def add_uses(self, uses: Iterable[RuleUse]) -> None:
        for found in uses:
            use = self.uses.get(found.rule)
            if use is None:
                continue
            if found.verdict is Verdict.ALLOW:
                use.allowed += found.times
            elif found.verdict is Verdict.AUDIT:
                use.audited += found.times
            else:
                use.denied += found.times

    def add_uncovered(self, found: Iterable[Uncovered]) -> None:
        for event, times in found:
            key = key_of(event)
            if key is None:
                continue
            known = self.questions.get(key)
            if known is not None:
                known.event, known.count = event, known.count + times
            elif len(self.questions) < MAX_QUESTIONS:
                self.questions[key] = Question(key, event, times)
            else:
                self.questions_left_out += 1

    def set_held(self, held: Iterable[Event]) -> None:
        """All that is held now; what was and is no more stays as the question that it is, if it was refused."""
        for question in self.questions.values():
            question.held = 0
        for event in held:
            key = key_of(event)
            if key is None:
                continue
            question = self.questions.setdefault(key, Question(key, event, 0))
            question.event, question.held = event, event.count

    def open_questions(self) -> list[Question]:
        """Those without an answer; none where the session does not ask."""
        answers = self.answers
        if answers is None:
            return []
        return [one for one in self.questions.values() if one.key not in answers and (one.count or one.held)]

    def tick(self, second: int, last: int) -> None:
        """Note how many events there were when `second` of any clock began."""
        for _ in range(min(second - self._second, REMEMBERED_S) if self._second else 0):
            self.rates.append(0)
        if self._second:
            self.rates[-1] += max(0, last - self._counted)
        self._second, self._counted = second, last

    def places(self) -> Iterator[Reached]:
        """Destinations, refused ones first, then the busiest."""
        return iter(
            sorted(with_bytes(self.destinations.values()), key=lambda one: (one.verdict is Verdict.ALLOW, -one.times))
        )

    def _place(self, path: str, denied: bool, count: int) -> Place | None:
        place = self.paths
        way = [place]
        for name in path.strip("/").split("/"):
            following = place.children.get(name)
            if following is None:
                if self.path_count >= MAX_PATHS:
                    return None
                if place.children is _NONE:
                    place.children = {}
                following = place.children[name] = Place(name)
                self.path_count += 1
            place = following
            way.append(place)
        for above in way[:-1]:
            above.touched_below += count
            above.denied_below += count if denied else 0
        return place


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)
