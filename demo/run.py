"""The demo: a real agent does honest work and forbidden acts, first without mcpguard and then under it.

Makes a scratch home and a scratch project, a model server that makes the agent call its tools, a process with a token in
its environment, and listeners that no profile names. Prints what was done, what was refused and which rule decided.
Exits 0 when every honest act succeeded and every forbidden one was refused and recorded, 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from real_agent import VERSION, AgentUnavailableError, claude_binary, put_in_home
from rich.console import Console
from rich.table import Table
from story import Act, Json, Outside, forbidden_acts, honest_work
from world import World

HERE = Path(__file__).parent
PLACE = HERE.parent / ".cache" / "demo"
MCPGUARD = [sys.executable, "-P", "-m", "mcpguard"]
RUN_SECONDS = 120
WIDTH = 80
QUIET_AGENT = {
    "ANTHROPIC_API_KEY": "not-a-key",
    "IS_SANDBOX": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


class DemoError(Exception):
    """The demo itself could not be carried out; the message is for a person."""


@dataclass(frozen=True)
class Agent:
    """How to start the agent in a world.

    Attributes:
        title: what it is, honestly.
        profile: the profile that guards it.
        command: the words before the calls are put in.
        real: whether it is a real agent that talks to the model server.
    """

    title: str
    profile: str
    command: tuple[str, ...]
    real: bool


@functools.cache
def fetched() -> tuple[Path | None, str]:
    """The real agent's binary, or None and why not; asked for once, because a registry may take its time to refuse."""
    try:
        return claude_binary(), ""
    except AgentUnavailableError as missing:
        return None, str(missing)


def find_agent(world: World) -> Agent:
    """The real agent when npm can provide it, and the scripted stand-in otherwise."""
    binary, missing = fetched()
    if binary is None:
        script = shutil.copy(HERE / "scripted_agent.py", world.project / "agent.py")
        title = f"a scripted stand-in, not a real agent ({missing})"
        return Agent(title, "default", ("/usr/bin/python3", str(script)), real=False)
    put_in_home(binary, world.home)
    words = ("claude", "-p", "--output-format", "json", "--allowedTools", "Bash,Read,Edit", "--")
    return Agent(f"claude-code {VERSION} from the npm registry", "claude-code", words, real=True)


@dataclass(frozen=True)
class Told:
    """One run of the story: the result of each act, and the recorded denials when it was guarded."""

    world: World
    acts: list[Act]
    results: list[Json]
    denials: list[Json]

    def refused(self, act: Act) -> bool:
        return bool(self.results[self.acts.index(act)].get("error"))

    def denial(self, act: Act) -> Json | None:
        """The first recorded denial that belongs to an act."""
        belongs = act.denied_by
        return next((event for event in self.denials if belongs and belongs(event)), None)


@contextlib.contextmanager
def model_server(world: World) -> Iterator[int]:
    """The port of a model server that does what the prompt says."""
    command = [sys.executable, str(HERE / "fake_model.py"), "--log", str(world.root / "model.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise DemoError("the model server has no output")
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@contextlib.contextmanager
def outside_of(world: World) -> Iterator[Outside]:
    """A process with a token in its environment, and three listeners."""
    environment = world.environment(DATABASE_TOKEN=world.plant(world.root / "token"))
    with contextlib.ExitStack() as stack:
        sleeper = stack.enter_context(subprocess.Popen(["sleep", "600"], env=environment))
        stack.callback(sleeper.kill)
        tcp4 = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tcp6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        udp4 = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp4.bind(("127.0.0.1", 0))
        yield Outside(sleeper.pid, *(one.getsockname()[1] for one in (tcp4, udp4, tcp6)))


def tell(guarded: bool) -> tuple[Agent, Told]:
    """Run the whole story once, in a new world."""
    world = World.create(PLACE)
    agent = find_agent(world)
    with outside_of(world) as outside, model_server(world) as port:
        acts = [*honest_work(world), *forbidden_acts(world, outside)]
        environment = world.environment(**QUIET_AGENT, ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}")
        command = [*agent.command, spoken(acts) if agent.real else json.dumps([[a.tool, a.arguments] for a in acts])]
        if guarded:
            net = ["--net", f"127.0.0.1:{port}"] if agent.real else []
            command = [*MCPGUARD, "run", "--quiet", "-p", agent.profile, *net, "--", *command]
        answer = run(command, world, environment)
        results = json.loads(json.loads(answer)["result"].removeprefix("DONE "))
        if len(results) != len(acts):
            raise DemoError(f"the agent made {len(results)} of {len(acts)} calls")
        log = [*MCPGUARD, "log", "--verdict", "deny", "--format", "json"]
        denials = [json.loads(line) for line in run(log, world, environment).splitlines()] if guarded else []
    return agent, Told(world, acts, results, denials)


def spoken(acts: list[Act]) -> str:
    """The prompt that makes the model server call the tools."""
    return " ".join(f"<<call {act.tool} {json.dumps(act.arguments)}>>" for act in acts)


def run(command: list[str], world: World, environment: dict[str, str]) -> str:
    """What a program wrote; its failure is the demo's."""
    done = subprocess.run(
        command, cwd=world.project, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"{shlex.join(command[:8])} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def short_rule(event: Json | None) -> str:
    """The deciding rule as `file:line  text`."""
    rule = (event or {}).get("rule")
    if not rule:
        return ""
    place = Path(rule["file"].removeprefix("builtin:")).name + (f":{rule['line']}" if rule.get("line") else "")
    return f"{place}  {rule['text'].partition(' except ')[0]}"


def show(console: Console, free: Told, caged: Told) -> bool:
    """Print the table; True when everything is as it should be."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("the agent tries to", "without", "mcpguard", "decided by"):
        table.add_column(title, overflow="fold", no_wrap=title != "decided by")
    good = True
    for mine, other in zip(caged.acts, free.acts, strict=True):
        forbidden = mine.denied_by is not None
        right = caged.refused(mine) == forbidden and not free.refused(other)
        right = right and (not forbidden or caged.denial(mine) is not None)
        good = good and right
        verdict = "[red]refused" if caged.refused(mine) else "[green]done"
        rule = short_rule(caged.denial(mine))
        table.add_row(
            mine.title, "refused" if free.refused(other) else "done", verdict, rule if right else f"WRONG {rule}"
        )
    console.print(table)
    return good


def leaks(told: Told) -> list[str]:
    """The planted secrets that the model server was sent."""
    sent = (told.world.root / "model.jsonl").read_text() if (told.world.root / "model.jsonl").exists() else ""
    return [path.name for path, canary in told.world.canaries.items() if canary in sent]


def spelled(agent: Agent) -> str:
    """The guarded command line for a person; the acts, which are long, as one word."""
    if agent.real:
        return f"mcpguard run {agent.profile}"
    words = [str(near(Path(word))) if word.startswith(str(PLACE)) else word for word in agent.command]
    return f"mcpguard run --quiet -p {agent.profile} -- {shlex.join(words)} ACTS"


def near(path: Path) -> Path:
    """A path as seen from the current directory, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--svg", type=Path, help="also write what was shown as a picture")
    options = parser.parse_args()
    console = Console(width=WIDTH, highlight=False, record=True)
    code = play(console)
    if options.svg:
        # Without the fonts that a viewer would fetch from the net.
        options.svg.write_text(
            re.sub(r"@font-face {.*?}\s*", "", console.export_svg(title="make demo"), flags=re.DOTALL)
        )
    return code


def play(console: Console) -> int:
    """Tell the story twice and show what became of it; returns the exit code."""
    shutil.rmtree(PLACE, ignore_errors=True)
    try:
        agent, free = tell(guarded=False)
        console.print(f"[bold]agent[/]    {agent.title}")
        agent, caged = tell(guarded=True)
        console.print("[bold]command[/]  ", end="")
        console.print(f"{spelled(agent)}\n", markup=False, soft_wrap=True)
    except DemoError as failed:
        console.print(f"the demo could not be carried out: {failed}", markup=False)
        return 1
    good = show(console, free, caged) and not leaks(caged)
    if agent.real:
        console.print("\n[bold]planted secrets that the model was sent[/]")
        console.print(f"without   {', '.join(leaks(free))}")
        console.print(f"mcpguard  {', '.join(leaks(caged)) or 'none'}")
    console.print("\n[bold]the whole log[/]")
    program = near(Path(sys.executable).parent / "mcpguard")
    console.print(f"MCPGUARD_HOME={near(caged.world.state)} {program} log\n", soft_wrap=True)
    console.print("[green]every act ended as it should[/]" if good else "[red]something did not end as it should[/]")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
