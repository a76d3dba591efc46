"""`everclip classify`: name images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from everclip.cli.options import Json, Weights, on_this_machine
from everclip.cli.printing import json_text
from everclip.errors import ConfigError, DataError


def classify(
    model: Annotated[
        str, typer.Argument(help="A run folder, a saved learner, a store, an export, or a backbone.")
    ],
    images: Annotated[list[str], typer.Argument(help="Images, or folders of images.")],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="A name to choose from; repeat it for each name.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--names",
            help="A text file with one name per line, such as classnames.txt.",
            callback=on_this_machine,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="Text around a name, with {} in its place; several are averaged."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Names to show per image.")] = 1,
    weights: Weights = None,
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA in PEFT's layout, merged into MODEL, a backbone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Name images.

    Prints the best names of each image, each with the cosine similarity of image and text: from -1 to 1, no
    probability. A method with a head of its own (`rail`) gives its scores on the same scale. Without --name or --names,
    a run or store chooses from the classes that it learned.

    Example: everclip classify runs/shop new.jpg --name kettle --name chair --template "a photo of a {}"

    Example: everclip classify builtin:photo photos/ --names classnames.txt --top 3 --json
    """
    from everclip.templates import templates_of

    choices = [*(name or []), *lines_of(names, "--names")]
    templates = templates_of(template or ("{}",), "--template")
    files = [file for image in images for file in _files(image)]
    from everclip.store.loading import learned_names_of, load_any

    given = {"weights": weights, "adapter": adapter}
    learner = load_any(model, {key: value for key, value in given.items() if value is not None})
    if not choices:
        choices = learned_names_of(model, learner)
        if not choices:
            raise ConfigError(
                "classify: no names to choose from; give --name NAME for each name, or --names FILE.txt."
            )
        typer.echo(f"note: choosing from the {len(choices)} classes that {model} learned", err=True)
    found = learner.classify(files, choices, templates, top=top)
    if as_json:
        document = [
            {"image": file, "names": [{"name": n, "cosine": round(score, 6)} for n, score in best]}
            for file, best in zip(files, found, strict=True)
        ]
        typer.echo(json_text(document))
        return
    for file, best in zip(files, found, strict=True):
        typer.echo(f"{file}: {', '.join(f'{n} {score:.3f}' for n, score in best)} (cosine similarity)")


_MOST_BYTES = 16 * 1024 * 1024


def lines_of(file: Path | None, option: str) -> list[str]:
    """Return the lines of a text file that hold something; none without a file.

    Raises:
        ConfigError: if it cannot be read or holds nothing; names `option`.
    """
    if file is None:
        return []
    from everclip.data.reading.formats.text_file import small_text

    try:
        lines = small_text(file, _MOST_BYTES).splitlines()
    except (OSError, DataError) as error:
        raise ConfigError(f"{option}: {file}: cannot be read as UTF-8 text ({error}).") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"{option}: {file}: nothing in it; expected one per line.")
    return found


def _files(given: str) -> list[str]:
    """Return an image, or all images in a folder and its subfolders in order of their names."""
    from everclip.data.reading.formats.listing import pictures_below

    folder = Path(os.path.expanduser(given))
    if not folder.is_dir():
        return [given]
    found = sorted(str(folder / name) for name in pictures_below(folder))
    if not found:
        raise ConfigError(f"{given}: the folder holds no images.")
    return found
