"""The root command, the table of all commands, and the exit codes: 0 done, 2 bad input, 1 failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]  # documented, not listed
from typer.core import TyperCommand, TyperGroup

from weighbridge import __version__
from weighbridge.cli.terminal import LOG_LEVEL, LOG_LEVELS, fail, take_log_level
from weighbridge.errors import BadInput, WeighbridgeError

#: Set by a shell that wants to know how a line may go on.
COMPLETES = "_WEIGHBRIDGE_COMPLETE"
#: What an installation that runs no models itself may do without (`deploy/README.md`).
LEFT_OUT = ("torch", "transformers")
HELP = "LLM serving that weighs each request once, in tokens, and decides by that weight."


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command's function is, and the line that lists show of it: the first of the function's own words."""

    target: str
    help: str


@dataclass(frozen=True, slots=True)
class Group:
    """Commands below a word of their own."""

    help: str
    commands: Mapping[str, Command]
    alone: str | None = None  # the command that the word by itself is; None: its help


#: Every command. A module is loaded when one of its commands is run or asked for help, and not before.
COMMANDS: dict[str, Command | Group] = {
    "doctor": Command(
        "weighbridge.cli.machine.doctor:doctor",
        "Look at this machine and this installation, and say what is lost here and what to do about it.",
    ),
    "init": Command(
        "weighbridge.cli.machine.init:init",
        "Write a weighbridge.yaml for what is found here: engines that run, models, keys in the environment.",
    ),
    "completion": Command(
        "weighbridge.cli.machine.completion:completion",
        'Print what makes a shell complete commands and flags: eval "$(weighbridge completion bash)".',
    ),
    "serve": Command(
        "weighbridge.cli.serve.command:serve", "Serve a model over the OpenAI API until SIGTERM or Ctrl-C."
    ),
    "epp": Command(
        "weighbridge.cli.serve.picker:epp",
        "Pick endpoints for Envoy (Gateway API inference extension): our policy, queue and limits; Envoy carries.",
    ),
    "chat": Command(
        "weighbridge.cli.chat.command:chat",
        "Chat in the terminal, streaming. Ctrl-C stops an answer, Ctrl-D or /bye leaves, /help lists the commands.",
    ),
    "calibrate": Command(
        "weighbridge.cli.calibrate:calibrate",
        "Measure iterations of every size on this machine and store the step cost that fits them.",
    ),
    "ticket": Command(
        "weighbridge.cli.ticket:ticket",
        "Show a request's ticket, or list the most recent tickets of a running server.",
    ),
    "audit": Command(
        "weighbridge.cli.state.audit:audit",
        "Show what operators changed on a fleet while it ran: when, who, what, from and to.",
    ),
    "plan": Command(
        "weighbridge.cli.plan:plan",
        "Work out memory, speed and cost of serving MODEL, and the smallest change that makes it fit.",
    ),
    "replica": Command(
        "weighbridge.cli.serve.simulated:replica",
        "Serve the OpenAI API from a simulated engine: real HTTP, real scheduler, no model.",
    ),
    "simulate": Command(
        "weighbridge.cli.simulate.command:simulate",
        "Run a workload through a simulated fleet: the real scheduler, policies and queue in virtual time.",
    ),
    "models": Group(
        "List, pull and show models.",
        {
            "list": Command(
                "weighbridge.cli.models:list_models",
                "The catalogue, and which of its models are in the cache.",
            ),
            "pull": Command(
                "weighbridge.cli.models:pull_model",
                "Bring a model into the cache, checked against its pinned hash.",
            ),
            "show": Command(
                "weighbridge.cli.models:show_model",
                "A model's shape: layers, heads, context, and what a token costs in KV memory.",
            ),
        },
        alone="list",
    ),
    "keys": Group(
        "Keys that servers ask for.",
        {
            "new": Command(
                "weighbridge.cli.serve.keys:new",
                "Make a key for a client, and the hash for the server's configuration; neither is kept anywhere.",
            ),
            "hash": Command(
                "weighbridge.cli.serve.keys:hash_key",
                "Read a key from standard input, so that no history of commands keeps it, and print its hash.",
            ),
        },
    ),
    "moe": Group(
        "Make, measure, place and offload mixtures of experts.",
        {
            "stats": Command(
                "weighbridge.cli.moe.stats:stats",
                "Show which experts a server's tokens use: a heat map, balance, hot and cold experts, coverage.",
            ),
            "curve": Command(
                "weighbridge.cli.moe.curve:curve",
                "Measure step time and experts touched against batch size, and show where the cliff is.",
            ),
            "simulate": Command(
                "weighbridge.cli.moe.simulate:simulate",
                "Run an expert-parallel group under skewed, drifting loads: the slowest GPU sets each step.",
            ),
            "upcycle": Command(
                "weighbridge.cli.moe.upcycle:upcycle_model",
                "Turn a dense model into a mixture of experts by copying its feed-forward blocks.",
            ),
            "params": Command(
                "weighbridge.cli.moe.upcycle:parameters",
                "Count total and active parameters of a mixture of experts from its config.json.",
            ),
            "place": Command(
                "weighbridge.cli.moe.place:place_experts",
                "Place experts on GPUs so that measured loads spread evenly.",
            ),
            "offload": Command(
                "weighbridge.cli.moe.offload:offload_experts",
                "Choose which experts to keep on the fast device, and the flags that say so to other engines.",
            ),
        },
    ),
    "bench": Group(
        "Measure a running OpenAI-compatible server.",
        {
            "serve": Command(
                "weighbridge.cli.bench:bench_serve",
                "Throughput, TTFT, ITL, TPOT and goodput under a closed loop, Poisson arrivals or a trace.",
            ),
            "interference": Command(
                "weighbridge.cli.bench:bench_interference",
                "What a long prompt does to the gaps of the streams that decode beside it.",
            ),
        },
    ),
    "config": Group(
        "Check, show and modernise the configuration of a fleet.",
        {
            "check": Command(
                "weighbridge.cli.config:check",
                "Read the file and say what is wrong, line by line; exit 2 when anything is.",
            ),
            "show": Command(
                "weighbridge.cli.config:show",
                "The configuration with every default filled in; keys are not shown.",
            ),
            "migrate": Command(
                "weighbridge.cli.config:migrate",
                "Write settings that were renamed as they are now, and show the difference; comments keep their place.",
            ),
            "diff": Command(
                "weighbridge.cli.state.difference:diff",
                "Show where a running gateway is not as its file says: replicas, policies, keys and limits of tenants.",
            ),
        },
    ),
    "usage": Group(
        "What was used and what it cost.",
        {
            "export": Command(
                "weighbridge.cli.state.usage:export",
                "Print what was used and what it cost, by tenant, model and day or month, from a ledger or a server.",
            ),
        },
    ),
    "state": Group(
        "Files that outlive a process: ledgers, journals, tickets, what was learned.",
        {
            "check": Command(
                "weighbridge.cli.state.command:check",
                "Read every file and say what it is, of which version, and whether it is well; exit 1 if one is not.",
            ),
            "backup": Command(
                "weighbridge.cli.state.command:backup",
                "Copy every file as it is at one moment, and check the copies; servers and flows go on meanwhile.",
            ),
            "migrate": Command(
                "weighbridge.cli.state.command:migrate",
                "Bring every file to this version, a copy of what it was beside it; a server does the same when it "
                "begins.",
            ),
        },
    ),
    "fleet": Group(
        "The replicas behind a running gateway.",
        {
            "list": Command(
                "weighbridge.cli.fleet:list_replicas", "All replicas, how they are, and what they have done."
            ),
            "top": Command(
                "weighbridge.cli.fleet_top:top",
                "A live table of the fleet: load, standing and speed of every replica.",
            ),
            "explain": Command(
                "weighbridge.cli.fleet:explain_ticket",
                "Why a request went where it went: what it weighed, every try, and what stood against the other "
                "replicas.",
            ),
            "probe": Command(
                "weighbridge.cli.fleet:probe",
                "Say what a server is and can, and the entry of weighbridge.yaml for it.",
            ),
            "add": Command(
                "weighbridge.cli.fleet:add", "Add a replica; it gets requests as soon as it answers."
            ),
            "drain": Command(
                "weighbridge.cli.fleet:drain",
                "Send nothing more to a replica; what runs there goes on.",
            ),
            "remove": Command(
                "weighbridge.cli.fleet:remove", "Drain a replica and take it out of the fleet."
            ),
            "reload": Command(
                "weighbridge.cli.fleet:reload",
                "Have the gateway read its weighbridge.yaml again, as SIGHUP does; open requests go on.",
            ),
        },
    ),
    "flow": Group(
        "Speculative pipelines: run, look at, replay.",
        {
            "run": Command("weighbridge.cli.flow:run", "Run a flow with a journal; print its result."),
            "runs": Command("weighbridge.cli.flow:runs", "List the runs of a journal."),
            "timeline": Command(
                "weighbridge.cli.flow:timeline",
                "Show a run: what was committed, shadow or cancelled, the critical path, and every bet.",
            ),
            "prune": Command(
                "weighbridge.cli.flow:prune",
                "Forget runs that are done: their results, steps and records; runs that can go on are kept.",
            ),
            "replay": Command(
                "weighbridge.cli.flow:replay",
                "Replay a workload through the real runtime and gate, in virtual time unless told otherwise.",
            ),
        },
    ),
    "route": Group(
        "Edge or cloud: train, measure and serve routes.",
        {
            "explain": Command(
                "weighbridge.cli.route.tickets:explain",
                "Say in words where a request went, why, what left the machine, and what it cost.",
            ),
            "report": Command(
                "weighbridge.cli.route.tickets:report",
                "Share local, money saved, quality, latency; drift since training; better thresholds, if there are.",
            ),
            "serve": Command(
                "weighbridge.cli.route.serve:serve",
                "Serve the routes of a configuration by themselves, over sides that run elsewhere.",
            ),
            "train": Command(
                "weighbridge.cli.route.difficulty:train",
                "Learn from your own labels which prompts need the cloud, and which local answers are right.",
            ),
            "eval": Command(
                "weighbridge.cli.route.difficulty:evaluate",
                "Measure a router: APGR and CPT beside random, prompt length and an oracle, with 95 % intervals.",
            ),
            "calibrate": Command(
                "weighbridge.cli.route.difficulty:calibrate",
                "Set the pre-router's threshold so that a given share of the traffic goes to the cloud.",
            ),
        },
    ),
    "privacy": Group(
        "What would be kept back, or replaced, before a request leaves.",
        {
            "scan": Command(
                "weighbridge.cli.privacy:scan",
                "List the sensitive values in FILE: type, line, place and detector.",
            ),
        },
    ),
}


class CommandWithHelp(TyperCommand):
    """A command whose help shows the names of flags whole, also on a narrow terminal: one copies them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.table import Table  # loaded for help alone
        from rich.text import Text
        from typer import rich_utils

        class WholeNames(Table):
            def add_row(self, *cells: Any, **options: Any) -> None:
                names = [place for place, cell in enumerate(cells) if str(cell).startswith("--")]
                if names:  # one below the other: a line for each spelling, and for its opposite
                    told = Text("\n").join([word for place in names for word in cells[place].split(",")])
                    cells = tuple(Text() if place in names else cell for place, cell in enumerate(cells))
                    cells = (*cells[: names[0]], told, *cells[names[0] + 1 :])
                super().add_row(*cells, **options)
                for place in names[:1]:
                    self.columns[place].no_wrap = True  # the others give room
                for part in getattr(cells[-1], "renderables", ()):  # words of the help
                    if isinstance(part, Text):
                        part.overflow = "fold"

        setattr(rich_utils, "Table", WholeNames)  # noqa: B010  # it offers no other way
        super().format_help(ctx, formatter)


class LazyCommand(TyperCommand):
    """A command as lists show it. Its module is loaded when it is called, and then the real command takes over."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(name, help=command.help)
        self._target = command.target

    def load(self) -> Any:
        """The command itself."""
        module, _, function = self._target.partition(":")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(self.name, cls=CommandWithHelp)(getattr(import_module(module), function))
        return typer.main.get_command(single)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)


class Root(TyperGroup):
    """All commands of the table."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update({name: _listed(name, entry) for name, entry in COMMANDS.items()})


class GroupWithDefault(TyperGroup):
    """Commands below a word, one of which the word by itself means."""

    def __init__(self, alone: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._alone = alone

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or [self._alone])


def _listed(name: str, entry: Command | Group) -> Any:
    if isinstance(entry, Command):
        return LazyCommand(name, entry)
    commands: Any = {word: LazyCommand(word, command) for word, command in entry.commands.items()}
    if entry.alone is None:
        return TyperGroup(name=name, help=entry.help, commands=commands, no_args_is_help=True)
    return GroupWithDefault(entry.alone, name=name, help=entry.help, commands=commands)


app = typer.Typer(
    name="weighbridge",
    help=HELP,
    cls=Root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"weighbridge {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
    log_level: str = typer.Option(
        "info",
        help=f"What is logged, before or behind any command: {', '.join(LOG_LEVELS)}.",
        envvar=LOG_LEVEL,
    ),
) -> None:
    """Do nothing but take the options that belong to no command; the level was taken from the words before."""


def _told(error: WeighbridgeError) -> str:
    """The error's words and what was noted about it on the way."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def main() -> None:
    """Run the command line; errors raised on purpose become one line on standard error."""
    if COMPLETES in os.environ:  # a shell asks: see `weighbridge completion`
        completion_init()
    try:
        app(take_log_level(sys.argv[1:]))
    except BadInput as error:
        fail(_told(error), code=2)
    except WeighbridgeError as error:
        fail(_told(error), code=1)
    except ModuleNotFoundError as error:
        if error.name not in LEFT_OUT:
            raise
        fail(
            f"this takes {error.name}, which is not installed here: pip install {' '.join(LEFT_OUT)}", code=1
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
