"""The documentation site: written pages name what registries hold, links lead somewhere, the navigation is whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from everclip import registry
from everclip.metrics import PACKAGE, metrics

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="pip install 'everclip[docs]'")


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    """The modules `site_pages`, `site_links`, `site_hooks` and `site_settings`."""
    from types import SimpleNamespace

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import site_hooks
        import site_links
        import site_pages
        import site_settings

        yield SimpleNamespace(hooks=site_hooks, links=site_links, pages=site_pages, settings=site_settings)
        for name in ("site_hooks", "site_links", "site_pages", "site_settings"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def written(site: Any) -> dict[str, str]:
    """The pages that are written at build time."""
    pages: dict[str, str] = site.pages.pages()
    return pages


@pytest.fixture(scope="module")
def rows(site: Any) -> dict[str, list[Any]]:
    """The settings of every preset."""
    return {entry.name: site.pages.method_rows(entry) for entry in registry.methods().values()}


def navigation() -> Any:
    """Return `nav` of mkdocs.yml; its tags for Python objects are no part of it."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]  # noqa: S506


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(item)


def test_every_command_has_a_section_with_its_options(site: Any, written: dict[str, str]) -> None:
    page = written["reference/commands.md"]
    verbs = site.pages.verbs()
    sections = dict(re.findall(r"(?ms)^### everclip (\S+) \{ #\1 \}$(.*?)(?=^##|\Z)", page))
    assert sorted(sections) == sorted(verbs)
    for name, command in verbs.items():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in sections[name], f"{name} {option}"
        assert "everclip " + name in sections[name]


def test_commands_that_stand_in_no_group_come_last(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Further commands" not in dict(site.pages.grouped_verbs()), "put the verb into VERB_GROUPS"
    monkeypatch.setattr(site.pages, "VERB_GROUPS", (("Some", ("ls",)),))
    groups = site.pages.grouped_verbs()
    assert groups[0] == ("Some", ["ls"])
    assert groups[1][0] == "Further commands"
    assert len(groups[1][1]) == len(site.pages.verbs()) - 1


def test_every_preset_has_a_page_with_all_of_its_settings(
    site: Any, written: dict[str, str], rows: dict[str, list[Any]]
) -> None:
    assert {name for name in written if name.startswith("presets/")} == {
        "presets/index.md",
        *(f"presets/{name}.md" for name in registry.methods()),
    }
    for entry in registry.methods().values():
        page = written[f"presets/{entry.name}.md"]
        assert site.settings.words(entry.summary) in page
        assert all(f"`{alias}`" in page for alias in entry.aliases)
        assert f"[`{entry.name}`]({entry.name}.md)" in written["presets/index.md"]
        for row in rows[entry.name]:
            assert f"`method.{row.key}`" in page


def test_every_setting_of_a_method_has_a_meaning(rows: dict[str, list[Any]]) -> None:
    assert sum(map(len, rows.values())) > 500
    assert [f"{name}: {row.key}" for name, of in rows.items() for row in of if not row.meaning] == []


def test_what_a_preset_changes_is_bold(written: dict[str, str]) -> None:
    page = written["presets/safe.md"]
    assert "| `method.merge.kind` | **`wise-ft`** (default `none`) |" in page
    assert "| `method.loss` | `auto` |" in page
    assert "| `method.penalties.feature-distill.weight` | **`3.0`** (default `1.0`) |" in page
    assert "max_drop: 3.0" in page


@pytest.mark.parametrize(
    ("preset", "page"),
    [
        ("zscl-mtil", "methods/zscl.md"),
        ("lwf-vr-mtil", "methods/lwf-vr.md"),
        ("lwf-tic", "methods/lwf.md"),
        ("cumulative-exp", "methods/time.md"),
        ("safe", "keeping.md"),
        ("rail-dual", "methods/rail.md"),
        ("wise-ft-mtil", "keeping.md"),
        ("finetune", ""),
    ],
)
def test_a_preset_leads_to_the_page_that_explains_it(site: Any, preset: str, page: str) -> None:
    assert site.pages.explaining_page(preset) == page


def test_every_benchmark_has_a_section_with_its_protocols(site: Any, written: dict[str, str]) -> None:
    page = written["reference/benchmarks.md"]
    for entry in registry.benchmarks().values():
        section = page.partition(f"## {entry.tag} {{ #{entry.name} }}")[2].partition("\n## ")[0]
        assert site.settings.words(entry.summary) in section
        assert f"src/everclip/scenarios/benchmarks/{entry.name}.yaml" in section
        assert "| protocol `" in section
    mtil = page.partition("## mtil@1")[2].partition("\n## ")[0]
    assert "| protocol `own` | a test item chooses among the answers of its own set |" in mtil
    assert "`scenario.shots`" in mtil


def test_every_metric_has_a_row_with_its_formula() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    found = [entry for entry in metrics().values() if entry.function.__module__.startswith(PACKAGE)]
    assert len(found) > 40
    for entry in found:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{entry.name}`"))
        assert entry.formula.replace("|", "\\|") in row
        assert entry.meaning in row


def test_every_setting_of_a_run_is_listed(written: dict[str, str]) -> None:
    from everclip.schema import RunConfig, setting_keys

    page = written["reference/settings.md"]
    keys = [key for key in setting_keys(RunConfig) if key.partition(".")[0] not in ("scenario", "method")]
    last = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    inner = "backbone.preprocess."  # named in the row of `backbone.preprocess`
    assert len(last) > 80
    assert [key for key in last if f"`{key}`" not in page and not key.startswith(inner)] == []


def test_the_navigation_holds_every_page_once(site: Any, written: dict[str, str]) -> None:
    listed = list(leaves(site.hooks.expanded(navigation())))
    own = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    copied = [path for path in site.links.outside().values() if path.endswith(".md")]
    assert sorted(listed) == sorted({*own, *written, *copied}), "mkdocs.yml: nav"


def test_links_between_pages_lead_to_what_the_site_holds(site: Any, written: dict[str, str]) -> None:
    """Strict building finds broken links, too; this names them without building."""
    pages = {f"docs/{name}": (name, text) for name, text in written.items()}
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        pages[f"docs/{name}"] = (name, path.read_text(encoding="utf-8"))
    for repository, name in site.links.outside().items():
        if name.endswith(".md") and repository != "README.md":
            pages[repository] = (name, (ROOT / repository).read_text(encoding="utf-8"))
    held = {name for name, _ in pages.values()} | set(site.links.outside().values())
    for origin, (name, text) in pages.items():
        relinked = site.links.relinked(text, origin, name)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", site.links.CODE.sub("", relinked)):
            if "://" not in target:
                here = (Path(name).parent / target).as_posix()
                assert _normal(here) in held, f"{origin}: {target}"


def _normal(path: str) -> str:
    import posixpath

    return posixpath.normpath(path)


def test_links_of_a_code_host_become_links_of_the_site(site: Any) -> None:
    text = "[a](../benchmarks/SAFE.md#x) `[b](../no.md)` [c](own-model.md) [d](#e) [f](https://g.h)"
    text += "\n```\n[i](../no.md)\n```\n[j](../CONTRIBUTING.md)"
    assert site.links.relinked(text, "docs/keeping.md", "keeping.md") == (
        "[a](measured/SAFE.md#x) `[b](../no.md)` [c](own-model.md) [d](#e) [f](https://g.h)"
        "\n```\n[i](../no.md)\n```\n[j](contributing.md)"
    )
    with pytest.raises(site.links.BrokenLink, match=r"docs/keeping.md: link to \.\./src"):
        site.links.relinked("[a](../src/everclip/run.py)", "docs/keeping.md", "keeping.md")


def test_code_in_tables_shows_no_backslash(site: Any) -> None:
    assert site.links.table_code("| `a \\| b_c` | `d` |\n`e \\| f`") == (
        "| <code>a &#124; b&#95;c</code> | `d` |\n`e \\| f`"
    )


def test_the_site_loads_nothing_from_a_network(site: Any) -> None:
    from types import SimpleNamespace

    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    assert "http" not in config
    page = SimpleNamespace(url="api/learner.html")
    script = f'<script src="{site.hooks.REMOTE_WORKER}"></script>'
    assert site.hooks.on_post_page(script, page, None) == '<script src="../site_worker.js"></script>'
    where = SimpleNamespace(site_url=None)
    assert site.hooks.on_post_template(script, "404.html", where) == '<script src="/site_worker.js"></script>'
    where = SimpleNamespace(site_url="https://clip.example/docs/")
    assert '"/docs/site_worker.js"' in site.hooks.on_post_template(script, "404.html", where)
    assert (ROOT / "docs" / site.hooks.LOCAL_WORKER).is_file()


@pytest.mark.slow
def test_the_site_builds_strictly_and_offline(tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?https?:", text) == [], page
