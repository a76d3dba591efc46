"""Writes a proposed stream as a commented YAML file, complete and ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from everclip.data.lettering import plain
from everclip.models.builtin import PHOTO, TINY, for_photographs
from everclip.prepare.init_config.methods import RAIL, TEXT_RIDGE, methods_for
from everclip.prepare.init_config.propose import Proposal

BUILTIN = {
    PHOTO: "small, knows things in photographs; learned from research data: for trying and measuring",
    TINY: "small, knows only emoji: to try everclip",
}
OTHERS = (
    ("path/to/folder", "a folder in open_clip's layout"),
    ("{name: ViT-B-32, weights: path/to/weights.safetensors}", "an open_clip model and its weights"),
    ("hf-hub:ORGANISATION/NAME", "from the hub's cache"),
)


class _OneLine(yaml.SafeDumper):  # type: ignore[misc]  # the package has no types
    """Writes text with line breaks in double quotes; other styles would not escape them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.splitlines() == [text] else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_OneLine.add_representer(str, _text)


def flow(value: Any) -> str:
    """Return a value as YAML in one line."""
    text: str = yaml.dump(
        value,
        Dumper=_OneLine,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()


def yaml_of(proposal: Proposal, file: str) -> str:
    """Return the commented YAML of a proposed stream.

    Args:
        proposal: the stream.
        file: the name of the file.
    """
    document = proposal.document
    lines = [*_head(proposal, file), *_data(document), "", *_kind(proposal), "", *_split(document), ""]
    lines += [*_base(document), "", *_retention(document), "", *_reference(), "", *_measured(document), ""]
    lines += [*_learning(proposal, file)]
    return "\n".join(lines) + "\n"


def _head(proposal: Proposal, file: str) -> list[str]:
    document, scenario = proposal.document, proposal.scenario
    sizes = [f"{task.name} ({len(task.train):,})" for task in scenario.tasks]
    shown = ", ".join(sizes[:6]) + (f" and {len(sizes) - 6} more" if len(sizes) > 6 else "")
    return [
        f"# Plan:  everclip run {file} --dry-run",
        f"# Run:   everclip run {file}      (the same command continues a run that was stopped)",
        f"# {len(sizes)} {'task' if len(sizes) == 1 else 'tasks'} (training rows): {_comment(shown)}",
        *(f"# Set aside: {_comment(found.summary())}" for found in proposal.quarantine if found.entries),
        *(f"# Note:  {_comment(note)}" for note in proposal.notes),
        f"name: {flow(document['name'])}",
        f"version: {document['version']}",
        f"summary: {flow(document['summary'])}",
        "",
    ]


def _comment(text: str) -> str:
    """Return a text for one comment line, without line breaks and control characters, which YAML refuses."""
    return plain(text, len(text))


def _block(block: Mapping[str, Any], indent: str) -> list[str]:
    lines = [
        f"{indent}source: {flow(block['source'])}    # relative to this file or to the working directory"
    ]
    if "columns" in block:
        lines.append(f"{indent}columns: {flow(block['columns'])}    # everclip's name: name in your data")
    lines += [
        f"{indent}{key}: {flow(value)}" for key, value in block.items() if key not in ("source", "columns")
    ]
    return lines


def _data(document: Mapping[str, Any]) -> list[str]:
    if "data" in document:
        test = (
            ["test:    # separate test data", *_block(document["test"], "  ")] if "test" in document else []
        )
        return ["data:", *_block(document["data"], "  "), *test]
    lines = ["sources:    # one task each, in this order"]
    for source in document["sources"]:
        lines.append(f"  - name: {flow(source['name'])}")
        lines.append(f"    kind: {source['kind']}    # classification: by class; retrieval: by caption")
        lines += ["    data:", *_block(source["data"], "      ")]
        if "split" in source:
            lines.append(f"    split: {flow(source['split'])}    # {_how_split(source['split'])}")
        if source["kind"] == "classification":
            lines.append('    templates: ["a photo of a {}", "{}"]    # texts around a class name')
    return lines


def _kind(proposal: Proposal) -> list[str]:
    document = proposal.document
    kind = document["kind"]
    lines = [f"kind: {kind}    # {_comment(proposal.reason)}"]
    if kind == "time":
        lines.append(
            f"every: {document['every']}    # or year, quarter, month, week, day; new periods become new tasks"
        )
    elif kind == "domains":
        lines.append(f"column: {flow(document['column'])}")
        lines.append(f"order: given    # or a list: {flow([t.name for t in proposal.scenario.tasks])}")
    elif kind == "languages":
        lines.append(
            f"source_language: {flow(document['source_language'])}    # the language that captions are translations of"
        )
        lines.append(f"order: given    # or a list: {flow([t.name for t in proposal.scenario.tasks])}")
        lines.append(
            "# For languages that your model does not know: method: cll-clip, with training.augment=null."
        )
    elif kind == "classes":
        lines.append(
            f"per_task: {document['per_task']}    # new classes per task; or groups: [[a, b], [c, d]]"
        )
        if "first_task" in document:
            lines.append(f"first_task: {document['first_task']}    # so that no task has a single class")
        lines.append(f"order: {document['order']}    # or given, sorted, or a list of classes")
    elif kind == "online":
        how = "also: disjoint (percent of classes in one part only), leak, cuts, borders"
        lines.append(f"online: {flow(document['online'])}    # rows every n samples; {how}")
        lines.append(f"order_seed: {document['order_seed']}    # another seed is another stream")
    elif kind == "single":
        lines.append(
            "# To add data later (--extend), write this file with `--kind sources`: each month adds a source."
        )
    elif kind == "sources":
        lines.append("# Next month: add an entry to `sources`, then repeat `everclip run` with --extend.")
        lines.append(
            "merge_classes: true    # classes of equal name are one class; false: they stay separate"
        )
    if any(s.kind == "classification" for s in proposal.scenario.eval_sets) and kind != "sources":
        templates = document.get("class_templates")
        texts = flow(templates or ["a photo of a {}", "{}"])
        why = "from a file beside the data" if templates else "texts around a class name"
        lines.append(f"class_templates: {texts}    # {why}")
    return lines


def _split(document: Mapping[str, Any]) -> list[str]:
    return [f"split: {flow(document['split'])}    # {_how_split(document['split'])}"]


def _how_split(rule: Mapping[str, Any]) -> str:
    if rule.get("measure") == "validation":
        return "the column marks no test rows: the validation rows are measured"
    if "column" in rule:
        return "the column marks test (and val) rows"
    return "by hash of the image: new rows never move old ones"


def _base(document: Mapping[str, Any]) -> list[str]:
    if document["kind"] == "online":
        return []
    if document["kind"] == "time":
        return [
            "# Data that your model was trained on before, if they are in these data: measured as `known`, not a task.",
            "# base: {name: known, where: {time: {to: 2023}}}",
        ]
    return [
        "# Data that your model was trained on before, if you have them: measured as `known`.",
        "# base: {name: known, data: {source: path/to/it}, split: {test: 0.2, validation: 0.1}}",
    ]


def _retention(document: Mapping[str, Any]) -> list[str]:
    return [
        "# Sets that are never trained on show the loss of zero-shot ability. Any labelled folder of other images:",
        "# retention:",
        '#   - {name: everyday, kind: classification, data: {source: path/to/folder}, templates: ["a photo of a {}"]}',
    ]


def _reference() -> list[str]:
    return [
        "# Unlabelled images and texts that some methods use (zscl, the selector of moe-adapters):",
        "# reference: {images: {source: path/to/folder}, texts: {source: path/to/captions.txt}}",
    ]


def _measured(document: Mapping[str, Any]) -> list[str]:
    short = {"sources": "mtil    # or odcl-til, odcl-cil, x-tail, cil", "classes": "cil"}.get(
        document["kind"]
    )
    keep = (
        "checkpoint: {keep_rows: true}   # keep the model after each task, to measure it on tasks added later"
    )
    if document["kind"] == "online":
        return [
            "protocols:",
            "  - {name: seen, space: seen}    # test images of the classes seen so far, among these classes",
            "  - {name: all, space: all}      # all test images, among all classes",
            f"headline: {flow(document['headline'])}",
        ]
    if document["kind"] == "languages":
        return [
            "protocols:",
            "  - {name: learned, space: learned}    # a language's own captions, once it is learned",
            f"headline: {flow(document['headline'])}    # mean Recall@1 of both directions",
            keep,
        ]
    return [
        *(
            [f"# To measure like published benchmarks, replace protocols and headline by: protocol: {short}"]
            if short
            else []
        ),
        "protocols:",
        "  - {name: own}                 # answers: the classes or captions of the task",
        "  - {name: all, space: all}     # answers: those of all tasks",
        f"headline: {flow(document['headline'])}    # auto: accuracy for classes, mean Recall@1 for captions",
        "everything: true                # adds a column: the test rows of all tasks and of `base`",
        keep,
    ]


def of_emoji(document: Mapping[str, Any]) -> bool:
    """Return whether all data of a proposed stream are the built-in emoji."""
    blocks = [document["data"]] if "data" in document else [part["data"] for part in document["sources"]]
    return all(block["source"] == "builtin:emoji" for block in blocks)


def _learning(proposal: Proposal, file: str) -> list[str]:
    name = TINY if of_emoji(proposal.document) else for_photographs()
    width = max(len(name) for name, _ in OTHERS)
    training = proposal.training
    method, *others = methods_for(proposal.scenario)
    return [
        f"backbone: {name}    # {BUILTIN[name]}. Or:",
        *(f"# backbone: {other:<{width}}    # {line}" for other, line in OTHERS),
        "",
        f"method: {method.name}    # {method.why}",
        *(f"# method: {other.name}    # {other.why}" for other in others),
        "# All others: everclip ls methods. Which one suits these data: everclip suggest " + _comment(file),
        "",
        f"# {_comment(proposal.training_reason)}.",
        "# Settings of the preset take precedence over these; key=value on the command line over both.",
        "training:",
        f"  epochs: {training['epochs']}",
        f"  batch_size: {training['batch_size']}",
        *_rate(training, solved=method in (RAIL, TEXT_RIDGE)),
    ]


def _rate(training: Mapping[str, Any], solved: bool) -> list[str]:
    """Return the lines on the learning rate, and what a stream that is seen once has besides.

    Args:
        training: the settings.
        solved: whether the method is a closed form, which uses neither epochs nor rate.
    """
    rate = f"  lr: {training['lr']:.1e}"
    if "steps_per_batch" not in training:
        why = "low, as fine-tuning a CLIP needs; `everclip suggest` measures a better rate"
        unused = "; a closed form uses neither epochs nor rate" if solved else ""
        return [f"{rate}    # {why}{unused}"]
    return [
        f"{rate}    # constant over the stream; the preset sets its own",
        f"  schedule: {training['schedule']}",
        f"  warmup: {training['warmup']}",
        f"  steps_per_batch: {training['steps_per_batch']}    # steps on each batch, which is then gone",
    ]
