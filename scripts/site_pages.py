"""Pages of the site that are written from the registries at build time, and never committed.

Commands come from the command line's own parser, presets and benchmarks from their YAML files, settings from their
models. So no page can name what does not exist, or miss what does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml
from site_settings import Setting, settings, short, table, words

from everclip import registry
from everclip.cli.main import app
from everclip.config import resolve_config, validated
from everclip.contracts import Needs
from everclip.methods.build import method_class
from everclip.methods.penalties.build import PENALTIES
from everclip.scenarios.spec import ProtocolSpec, ScenarioSpec
from everclip.schema import BUDGET_KEYS, RunConfig

ROOT = Path(__file__).resolve().parents[1]

VERB_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start", ("demo", "doctor", "ls")),
    ("Before a run", ("check", "init-config", "suggest")),
    ("Runs and results", ("run", "report", "compare", "export")),
    ("Ask a model", ("eval", "classify", "diagnose", "over-time", "blind-pairs")),
    ("A deployed model", ("init", "update", "versions", "promote", "rollback", "prune", "status", "serve")),
    ("Search", ("index", "search", "reindex")),
)
"""Verbs that belong together; verbs that stand in no group come last, under `Further commands`."""

VERB_PAGES = {
    "check": "check.md",
    "init-config": "own-stream.md",
    "suggest": "keeping.md",
    "run": "start.md",
    "report": "results.md",
    "compare": "results.md#comparing-runs",
    "export": "own-model.md#export",
    "diagnose": "diagnose.md",
    "over-time": "methods/time.md",
    "blind-pairs": "blind-pairs.md",
    "doctor": "doctor.md",
    "demo": "start.md",
    "serve": "serve.md",
    **dict.fromkeys(("index", "search", "reindex"), "search.md"),
    **dict.fromkeys(("init", "update", "versions", "promote", "rollback", "prune", "status"), "store.md"),
}
"""Verb -> the page that explains it."""


def pages() -> dict[str, str]:
    """Return the written pages: path below docs/ -> Markdown. Links are relative to that path."""
    return {
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/benchmarks.md": benchmarks_page(),
        "reference/examples.md": examples_page(),
        "presets/index.md": presets_page(),
        **{f"presets/{name}.md": preset_page(entry) for name, entry in registry.methods().items()},
    }


# Commands -------------------------------------------------------------------------------------------------------------


@cache
def verbs() -> dict[str, Any]:
    """Return the verbs of the command line: name -> command."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def grouped_verbs() -> list[tuple[str, list[str]]]:
    """Return every verb once, by group."""
    rest = list(verbs())
    groups: list[tuple[str, list[str]]] = []
    for title, names in VERB_GROUPS:
        groups.append((title, [name for name in names if name in rest]))
        rest = [name for name in rest if name not in names]
    return [*groups, ("Further commands", rest)] if rest else groups


def commands_page() -> str:
    """Return the page of all commands."""
    parts = [
        "# Commands\n",
        "Every command with its arguments and options, as `everclip COMMAND --help` prints them. "
        "`key=value` changes a [setting](settings.md); the [exit codes](../exit-codes.md) are the same for all.\n",
    ]
    found = verbs()
    for title, names in grouped_verbs():
        parts.append(f"## {title}\n")
        parts += [verb_section(name, found[name]) for name in names]
    return "\n".join(parts)


def verb_section(name: str, command: Any) -> str:
    """Return the section of one verb: what it does, how it is called, examples, arguments and options."""
    context = command.context_class(command, info_name=f"everclip {name}")
    text, examples = split_examples(command.help or "")
    usage = " ".join(["everclip", name, *command.collect_usage_pieces(context)])
    lines = [f"### everclip {name} {{ #{name} }}\n", text, ""]
    if name in VERB_PAGES:
        lines += [f"Explained in [{page_title(VERB_PAGES[name])}](../{VERB_PAGES[name]}).\n"]
    lines += ["```sh", *(examples or [usage]), "```\n"]
    if examples:
        lines += [f"Usage: `{usage}`\n"]
    records = [record for record in (p.get_help_record(context) for p in command.params) if record]
    lines += ["| argument or option | meaning |", "|---|---|"]
    lines += [f"| `{left}` | {words(right)} |".replace("[required]", "(required)") for left, right in records]
    return "\n".join(lines) + "\n"


def split_examples(help_text: str) -> tuple[str, list[str]]:
    """Return the help text without its examples, and the examples as lines of a shell."""
    prose: list[str] = []
    examples: list[str] = []
    for line in inspect.cleandoc(help_text).splitlines():
        before, colon, call = line.partition(": everclip ")
        if colon:
            if before not in ("Example", "Examples"):
                examples.append(f"# {before}")
            examples.append(f"everclip {call}")
        else:
            prose.append(line)
    return "\n".join(prose).strip(), examples


@cache
def page_title(link: str) -> str:
    """Return the first heading of a page below docs/, without code marks."""
    text = (ROOT / "docs" / link.partition("#")[0]).read_text(encoding="utf-8")
    found = re.search(r"(?m)^# (.+)$", text)
    return (found[1] if found else link).replace("`", "")


# Settings -------------------------------------------------------------------------------------------------------------

SECTIONS = {
    "backbone": "Which CLIP to start from: [a model of your own](../own-model.md).",
    "training": "How one task is trained. Its budget is one of `steps`, `epochs`, `samples` or `macs`.",
    "evaluation": "How a row is measured: [how to read a result](../results.md).",
    "checkpoint": "When checkpoints are written: [stopping and resuming](../resume.md).",
    "guard": "Watches the validation twins of the retention suite while a task trains: [keeping](../keeping.md).",
}


def settings_page() -> str:
    """Return the page of the settings of a run."""
    fields = RunConfig.model_fields
    parts = [
        "# Settings of a run\n",
        "Every setting of `everclip run`, with its default. Write `key=value` after the command, or the same keys in "
        "a YAML file. A benchmark, a stream and a method may have defaults of their own: `everclip run ... --dry-run` "
        "and `config.yaml` in the run folder show the values in use. The settings of a method stand on the page of "
        "its [preset](../presets/index.md); the keys of a stream in [a stream of your own](../own-stream.md).\n",
        "## Of the run\n",
        table(_run_rows()) + "\n",
    ]
    for name, text in SECTIONS.items():
        model: Any = fields[name].annotation
        made = (
            model.model_validate({"epochs": 1}) if name == "training" else model()
        )  # one budget must be given
        rows = [replace(row, value=row.default) for row in settings(made, f"{name}.")]
        parts.append(f"## {name}\n\n{text}\n\n{table(rows)}\n")
    return "\n".join(parts)


RUN_MEANINGS = {
    "benchmark": "A benchmark or a YAML file: the first argument of `everclip run`.",
    "trackers": "Names of trackers of accelerate (`tensorboard`, `wandb`, `mlflow`) that also get losses and scores.",
    "report": "Whether to write `report.html` and `diagnosis.html`.",
    "seed": "Enters every random draw.",
    "output": "The run folder; default: `runs/BENCHMARK-METHOD-sSEED`.",
    "directory": "The working directory in which the run began; written by the run.",
}


def _run_rows() -> list[Setting]:
    rows = []
    for name, text in RUN_MEANINGS.items():
        field = RunConfig.model_fields[name]
        default = "" if field.is_required() else short(field.default)
        rows.append(Setting(name, default, default, text))
    return rows


# Presets --------------------------------------------------------------------------------------------------------------


def presets_page() -> str:
    """Return the list of all presets."""
    lines = [
        "# All presets\n",
        "A preset is a method with settings, by name: `everclip run ... method=NAME`. [Which method for me?]"
        "(../which-method.md) chooses one; the page of a preset has all of its settings.\n",
        "| preset | what it does | also called |",
        "|---|---|---|",
    ]
    for entry in registry.methods().values():
        aliases = ", ".join(f"`{name}`" for name in entry.aliases)
        lines.append(f"| [`{entry.name}`]({entry.name}.md) | {words(entry.summary)} | {aliases} |")
    return "\n".join(lines) + "\n"


def preset_page(entry: registry.MethodEntry) -> str:
    """Return the page of one preset: summary, aliases, page, what it needs, settings, training, source."""
    kind = method_class(entry.name)
    explained = explaining_page(entry.name)
    lines = [f"# {entry.name}\n", f"{words(entry.summary)}\n", "```sh"]
    lines += [f"everclip run mine.yaml method={entry.name}", "```\n", "| | |", "|---|---|"]
    if entry.aliases:
        lines.append(f"| also called | {', '.join(f'`{name}`' for name in entry.aliases)} |")
    if explained:
        lines.append(f"| explained in | [{page_title(explained)}](../{explained}) |")
    lines += [f"| {name} | {text} |" for name, text in needs(kind.needs).items()]
    lines.append(f"| class | `{entry.target}` |")
    lines.append(f"| preset file | `src/everclip/methods/{entry.name}.yaml` |\n")
    rows = [Setting(f"method.{r.key}", r.value, r.default, r.meaning) for r in method_rows(entry)]
    if rows:
        note = (
            "Bold values differ from the defaults of the class."
            if any(r.value != r.default for r in rows)
            else ""
        )
        lines += [
            "## Settings\n",
            f"Change one with `KEY=VALUE` after the command. {note}\n",
            table(rows, "value"),
            "",
        ]
    else:
        lines += ["## Settings\n", "None: there is nothing to set.\n"]
    lines += _defaults(entry)
    return "\n".join(lines)


def method_rows(entry: registry.MethodEntry) -> list[Setting]:
    """Return all settings of a preset, those of its penalties in full."""
    model = validated(method_class(entry.name).Settings, entry.settings, "method")
    rows: list[Setting] = []
    for row in settings(model):
        rows.append(row)
        if row.key == "penalties":
            rows += [inner for name in getattr(model, "penalties", {}) for inner in _penalty(model, name)]
    return rows


def _penalty(model: Any, name: str) -> list[Setting]:
    chosen = PENALTIES[name].Settings.model_validate(model.penalties[name])
    return list(settings(chosen, f"penalties.{name}."))


SUPERVISION = {"labels": "classes", "captions": "captions"}


def needs(of: Needs) -> dict[str, str]:
    """Return what a method needs, in words."""
    found = {"learns from": " or ".join(SUPERVISION[name] for name in SUPERVISION if name in of.supervision)}
    if of.reference:
        found["needs"] = f"reference data: {' and '.join(sorted(of.reference))}"
    if of.all_tasks_at_once:
        found["learns"] = "all tasks at once: a bound to compare with, not a way to go on"
    if of.transformer:
        found["towers"] = "open_clip's own transformers"
    if of.borders:
        found["borders"] = "must know where a task begins and ends"
    return found


def explaining_page(name: str) -> str:
    """Return the page below docs/ that explains a preset; empty if there is none.

    It is the page that the table of docs/which-method.md names, else that of docs/methods/ whose name it begins with.
    """
    for line in (ROOT / "docs/which-method.md").read_text(encoding="utf-8").splitlines():
        cells = [text.strip() for text in line.strip("|").split("|")]
        if line.startswith("| `") and f"`{name}`" in cells[0]:
            links = re.findall(r"\]\(((?:methods/)?[\w-]+\.md)(?:#[\w-]+)?\)", cells[-1])
            own = [link for link in links if Path(link).stem in (name, name.partition("-tic")[0])]
            return str([*own, *links, ""][0])
    stems = sorted((p.stem for p in (ROOT / "docs/methods").glob("*.md")), key=len, reverse=True)
    for stem in stems:
        if name == stem or name.startswith(f"{stem}-"):
            return f"methods/{stem}.md"
    base = name.rpartition("-")[0]
    return explaining_page(base) if base else ""


def _defaults(entry: registry.MethodEntry) -> list[str]:
    """Return what a preset changes outside of its own settings, as YAML."""
    document: dict[str, Any] = {}
    if entry.training:
        document["training"] = _thawed(entry.training)
    if entry.guard:
        document["guard"] = _thawed(entry.guard)
    lines: list[str] = []
    if document:
        lines += [
            "## Training that it brings\n",
            "It takes the place of the benchmark's; `key=value` changes it.\n",
        ]
        lines += ["```yaml", _yaml(document), "```\n"]
    if entry.per_benchmark:
        lines += ["## Training on a benchmark\n", "```yaml", _yaml(_thawed(entry.per_benchmark)), "```\n"]
    return lines


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


def _yaml(document: Any) -> str:
    return str(
        yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None)
    ).rstrip()


# Benchmarks and examples ----------------------------------------------------------------------------------------------

SPACES = {
    "own": "the answers of its own set",
    "seen": "the answers of the tasks learned so far",
    "all": "the answers of all sets, learned or not",
    "learned": "the answers of its own set, once that was learned",
}
"""Label space of a protocol -> what a test item chooses among."""


def benchmarks_page() -> str:
    """Return the page of all declared benchmarks."""
    entries = registry.benchmarks().values()
    lines = [
        "# All benchmarks\n",
        "Every benchmark that is declared, as its file states it: `everclip run NAME`. What their data are, where they "
        "come from and what is fixed: [benchmarks](../benchmarks.md).\n",
        "| benchmark | kind | what is learned and measured |",
        "|---|---|---|",
    ]
    lines += [f"| [`{e.tag}`](#{e.name}) | `{e.document['kind']}` | {words(e.summary)} |" for e in entries]
    return "\n".join([*lines, "", *(benchmark_section(entry) for entry in entries)])


def benchmark_section(entry: registry.BenchmarkEntry) -> str:
    """Return the section of one benchmark: summary, protocols, headline, and its file."""
    config = resolve_config(entry.name)
    spec = validated(ScenarioSpec, config.scenario, "scenario")
    lines = [f"## {entry.tag} {{ #{entry.name} }}\n", f"{words(entry.summary)}\n", "```sh"]
    lines += [f"everclip run {entry.name} --dry-run", "```\n", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in _facts(entry, config, spec).items()]
    path = f"src/everclip/scenarios/benchmarks/{entry.origin}"
    source = (ROOT / path).read_text(encoding="utf-8")
    lines += [
        f'\n??? note "`{path}`"\n',
        "    ```yaml",
        *(f"    {line}" for line in source.splitlines()),
        "    ```\n",
    ]
    return "\n".join(lines)


def _facts(entry: registry.BenchmarkEntry, config: RunConfig, spec: ScenarioSpec) -> dict[str, str]:
    """Return the facts of a benchmark that its file states or its short form stands for."""
    found = {"kind of stream": f"`{spec.kind}` ([kinds](../own-stream.md#kinds))"}
    found |= {f"protocol `{protocol.name}`": protocol_text(protocol) for protocol in spec.protocols}
    found["headline"] = f"`{spec.headline.metric}` under `{spec.headline.protocol}`"
    if spec.variants:
        found["variants"] = ", ".join(f"`scenario.{name}`" for name in spec.variants)
    weights = f" with the weights `{config.backbone.weights}`" if config.backbone.weights else ""
    found["model"] = f"`{config.backbone.name}`{weights}"
    training = config.training
    unit = next(key for key in BUDGET_KEYS if getattr(training, key) is not None)
    amount = f"{getattr(training, unit):,g} {unit}"
    found["training of a task"] = f"{amount}, batch {training.batch_size}, rate {training.lr:g}"
    return found


def protocol_text(protocol: ProtocolSpec) -> str:
    """Return what a protocol asks, in words."""
    text = f"a test item chooses among {SPACES[protocol.space]}"
    if protocol.space == "seen":
        unseen = {"own": "is scored among its own answers", "skip": "is left out"}[protocol.unseen]
        text += f"; a set that was not learned yet {unseen}"
    if protocol.same_texts == "apart":
        text += "; equal names of two sets are two answers"
    return f"{text}; the method knows the task" if protocol.known_task else text


def examples_page() -> str:
    """Return the page of the files in examples/."""
    lines = ["# Examples\n", "Streams and a script in the folder `examples/` of the repository.\n"]
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix not in (".yaml", ".py"):
            continue
        kind = {".yaml": "yaml", ".py": "python"}[path.suffix]
        lines += [f"## {path.name}\n", f"```{kind}", path.read_text(encoding="utf-8").rstrip(), "```\n"]
    return "\n".join(lines)
