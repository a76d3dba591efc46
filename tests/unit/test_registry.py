"""Names to things, and that finding them costs no torch."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

import everclip
from everclip import registry
from everclip.config import resolve_config
from everclip.errors import ConfigError
from everclip.methods.base import Method
from everclip.methods.build import method_class

HEAVY = ("torch", "torchvision", "open_clip", "accelerate", "datasets", "matplotlib", "pyarrow", "numpy")


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose YAML files are the built-in presets of this test."""
    registry.methods.cache_clear()
    files = resources.files
    monkeypatch.setattr(
        resources, "files", lambda package: tmp_path if package == "everclip.methods" else files(package)
    )
    yield tmp_path
    registry.methods.cache_clear()


def write(folder: Path, file: str, **document: object) -> None:
    given = {"name": Path(file).stem, "class": "a.b:C", "summary": " one line \n", **document}
    (folder / file).write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))


def imported_after(code: str, heavy: tuple[str, ...] = tuple(HEAVY)) -> set[str]:
    """Return which of the heavy packages a fresh interpreter holds after `code`."""
    ask = f"import sys\n{code}\nprint([n for n in {heavy!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stderr.strip().splitlines()[-1].replace("'", '"')))


@pytest.mark.parametrize(
    "code",
    [
        "import everclip, everclip.config, everclip.registry, everclip.contracts, everclip.errors",
        "import everclip.cli.main, everclip.report, everclip.methods, everclip.training, everclip.evaluation",
        "from everclip.config import resolve_config; resolve_config('emoji-time', ['method=replay', 'seed=1'])",
        "sys.argv = ['everclip', 'ls']\nfrom everclip.cli.main import main\nmain()",
        "sys.argv = ['everclip', 'ls', '--json']\nfrom everclip.cli.main import main\nmain()",
    ],
)
def test_nothing_heavy_is_imported_to_list_names_and_read_settings(code: str) -> None:
    assert imported_after(code) == set()


def test_help_waits_for_no_schema() -> None:
    # `--help` answers in a fifth of a second; pydantic alone takes half of that.
    assert imported_after("import everclip, everclip.cli.main", ("pydantic", "yaml")) == set()


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert "numpy" in imported_after("import numpy")


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    import everclip

    assert everclip.Method is Method
    assert set(everclip.__all__) <= set(dir(everclip))
    with pytest.raises(AttributeError, match="no attribute 'Methd'"):
        everclip.Methd  # noqa: B018


# -- methods --------------------------------------------------------------------------------------------------


def test_every_built_in_preset_names_a_class_that_exists() -> None:
    assert {"zero-shot", "finetune", "joint", "replay", "wise-ft"} <= set(registry.methods())
    for name, entry in registry.methods().items():
        kind = method_class(name)
        kind.Settings.model_validate(dict(entry.settings))
        assert entry.summary


def test_aliases_lead_to_their_preset() -> None:
    for entry in registry.methods().values():
        for alias in entry.aliases:
            assert registry.method_entry(alias) is entry


def test_an_unknown_method_is_answered_with_close_names_aliases_included() -> None:
    with pytest.raises(
        ConfigError, match=r"method: 'continual-clipp' is not known\. Did you mean 'continual-clip'"
    ):
        registry.method_entry("continual-clipp")


def test_two_presets_may_not_share_a_name_or_alias(presets: Path) -> None:
    write(presets, "a.yaml", aliases=["twin"])
    write(presets, "b.yaml", aliases=["twin"])
    with pytest.raises(ConfigError, match=r"b\.yaml: the method name 'twin' is already taken by a\.yaml"):
        registry.methods()


@pytest.mark.parametrize("key", ["name", "class", "summary"])
def test_a_preset_without_a_needed_key_names_file_and_key(presets: Path, key: str) -> None:
    write(presets, "half.yaml", **{key: None})
    with pytest.raises(ConfigError, match=rf"half\.yaml: a method preset needs the key '{key}'"):
        registry.methods()


@pytest.mark.parametrize("given", ["batch_size: 3", {"cifar100-b0-10": 128}])
def test_a_preset_with_no_settings_per_benchmark_is_refused(presets: Path, given: Any) -> None:
    write(presets, "mine.yaml", per_benchmark=given)
    with pytest.raises(ConfigError, match=r"mine.yaml: per_benchmark: expected"):
        registry.methods()


def test_a_preset_with_an_unknown_key_is_refused(presets: Path) -> None:
    write(presets, "odd.yaml", setings={})
    with pytest.raises(
        ConfigError, match=r"odd\.yaml: unknown key 'setings' in a method preset\. .*'settings'"
    ):
        registry.methods()


def test_presets_of_installed_packages_are_found(
    presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "outside_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write(package, "far.yaml", **{"class": "outside_pkg.far:Far"})

    class Point:
        name, value = "far", "outside_pkg:far.yaml"

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [Point()])
    assert registry.methods()["far"].target == "outside_pkg.far:Far"
    assert registry.methods()["far"].origin == "far (outside_pkg)"


# -- classes --------------------------------------------------------------------------------------------------


def test_a_class_in_a_file_of_ones_own_is_found(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("from everclip import Method\nclass Mine(Method):\n    pass\n")
    assert issubclass(method_class(f"{path}:Mine"), Method)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("{folder}/none.py:Mine", r"none\.py: no such file"),
        ("{folder}/own.py:Mein", r"has no 'Mein'\. Did you mean 'Mine'"),
        ("{folder}/own.py:number", r"is 3; expected a subclass of everclip\.Method"),
    ],
)
def test_a_class_that_is_not_there_says_why(tmp_path: Path, target: str, match: str) -> None:
    (tmp_path / "own.py").write_text("class Mine: pass\nnumber = 3\n")
    with pytest.raises(ConfigError, match=match):
        method_class(target.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("everclip.nowhere:X", r"cannot import 'everclip\.nowhere'"),
        ("everclip.methods.base:Methd", r"has no 'Methd'\. Did you mean 'Method'"),
    ],
)
def test_an_unknown_module_or_class_is_named(target: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        registry.load_object(target)


# -- benchmarks -----------------------------------------------------------------------------------------------


def test_benchmarks_are_found_by_name_and_by_name_at_version() -> None:
    for name, entry in registry.benchmarks().items():
        assert registry.benchmark_entry(name) is entry
        assert registry.benchmark_entry(f"{name}@{entry.version}") is entry
        assert entry.tag == f"{name}@{entry.version}"
        assert entry.summary


@pytest.mark.parametrize("key", ["name", "version", "summary", "kind"])
def test_a_benchmark_without_a_needed_key_names_file_and_key(tmp_path: Path, key: str) -> None:
    document = {"name": "n", "version": 1, "summary": "s", "kind": "single"}
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if k != key}))
    with pytest.raises(ConfigError, match=rf"half\.yaml: a benchmark needs the key '{key}'"):
        registry.benchmark_entry(str(path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"- a\n", "expected a mapping of keys to values, found list"),
        (b"a: [1\n", "not valid YAML"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (b"", "found NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        registry.read_yaml(path)
    assert "bad.yaml" in str(caught.value)


def test_data_given_as_a_stream_are_told_from_a_misspelt_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    with pytest.raises(ConfigError, match=r"init-config 'my photos' -o stream\.yaml"):
        registry.benchmark_entry("my photos")
    for name in ("", "x" * 5_000, "\0"):
        with pytest.raises(ConfigError, match="is not known"):
            registry.benchmark_entry(name)


def test_a_syntax_error_in_a_method_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine(:\n    pass\n")
    with pytest.raises(ConfigError, match="line 1"):
        everclip.registry.load_object(f"{file}:Mine")
    with pytest.raises(ConfigError, match="add the class"):
        resolve_config("emoji-time", [f"method={file}"])
