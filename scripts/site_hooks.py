"""Hooks of MkDocs (mkdocs.yml): add the written pages and those outside docs/, complete the navigation, mend links."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import site_links
import site_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from everclip import registry

ALL_PRESETS = "presets/*"
ALL_MEASURED = "measured/*"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a line per preset, and per page of measurements, in place of the patterns of the navigation."""
    config.nav = expanded(config.nav)
    return config


def expanded(nav: Any) -> Any:
    """Return a navigation without patterns."""
    if isinstance(nav, list):
        items: list[Any] = []
        for item in nav:
            if item == ALL_PRESETS:
                items += [{name: f"presets/{name}.md"} for name in registry.methods()]
            elif item == ALL_MEASURED:
                items += [
                    page for page in site_links.outside().values() if re.fullmatch(r"measured/.*\.md", page)
                ]
            else:
                items.append(expanded(item))
        return items
    if isinstance(nav, dict):
        return {title: expanded(item) for title, item in nav.items()}
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written at build time, and copies of those outside docs/."""
    for path, text in site_pages.pages().items():
        files.append(File.generated(config, path, content=text))
    for repository, path in site_links.outside().items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(site_links.ROOT / repository)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend the links and the code in tables of a page."""
    target = page.file.src_uri
    copied = page.file.generated_by is not None and page.file.abs_src_path is not None
    origins = {path: repository for repository, path in site_links.outside().items()}
    origin = origins[target] if copied else f"docs/{target}"
    try:
        return site_links.table_code(site_links.relinked(markdown, origin, target))
    except site_links.BrokenLink as error:
        raise PluginError(str(error)) from error


REMOTE_WORKER = "https://unpkg.com/iframe-worker/shim"
LOCAL_WORKER = "site_worker.js"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the file docs/site_worker.js in place of the one that the theme would load from a network."""
    return output.replace(REMOTE_WORKER, get_relative_url(LOCAL_WORKER, page.url))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same for pages that are no page of docs/, such as 404.html, which a server shows at any depth."""
    path = urlsplit(config.site_url or "/").path
    return output_content.replace(REMOTE_WORKER, f"{path.rstrip('/')}/{LOCAL_WORKER}")
