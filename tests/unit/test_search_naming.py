"""Names of indexed files: no absolute path, one name per file whatever is indexed later, old indexes as they were."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from everclip.search.naming import is_path, name_of, named_by_path, with_roots

PART = st.sampled_from(["photos", "photos-2", "a", "b", "files"])
FILES = st.lists(st.lists(PART, min_size=1, max_size=4).map(lambda parts: "/" + "/".join([*parts, "x.png"])))


@given(st.lists(st.tuples(FILES, st.lists(PART, max_size=3).map(lambda parts: "/" + "/".join(parts)))))
@settings(max_examples=40, deadline=None)
def test_a_file_has_one_name_of_its_own_and_keeps_it(steps: list[tuple[list[str], str]]) -> None:
    roots: dict[str, str] = {}
    names: dict[str, str] = {}
    for files, folder in steps:
        roots = with_roots(files, folder, roots)
        for path in files:
            found = name_of(path, roots)
            assert found is not None
            names.setdefault(path, found)
        assert {path: name_of(path, roots) for path in names} == names
    assert len(set(names.values())) == len(names)
    assert not any(map(os.path.isabs, names.values()))
    assert all(named_by_path(name, path, roots) for path, name in names.items())


def test_names_of_folders() -> None:
    roots = with_roots(["/here/photos/a.png"], "/here/photos", {})
    assert roots == {"photos": "/here/photos"}
    roots = with_roots(["/there/photos/a.png", "/there/photos/b/c.png"], "/there/photos", roots)
    assert name_of("/there/photos/b/c.png", roots) == "photos-2/b/c.png"
    assert name_of("/here/./photos/../photos/a.png", roots) == "photos/a.png"
    assert name_of("/here/photosaurus/a.png", roots) is None
    outside = with_roots(["/data/x/1.png", "/data/y/2.png"], "/tables", roots)  # a table of files elsewhere
    assert outside == {**roots, "data": "/data"}
    assert with_roots(["/1.png"], "/", {}) == {"files": "/"}
    assert name_of("/1.png", {"files": "/"}) == "files/1.png"


def test_an_item_of_an_earlier_release_is_named_by_its_absolute_path() -> None:
    assert named_by_path("/here/a.png", "/here/a.png", {})
    assert not named_by_path("A-17", "/here/a.png", {"here": "/here"})
    assert not named_by_path("A-17", None, {})
    assert not is_path("https://host/a.png")
    assert not is_path("5e88489")
