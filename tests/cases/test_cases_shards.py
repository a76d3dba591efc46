"""Shards as people pack them: members in any order, links, names in another case or Unicode form, other encodings."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import unicodedata
from pathlib import Path

import pytest
from build import encoded, tar

from everclip.data.reading.sources import Loaded, read
from everclip.data.reading.spec import DataSpec
from everclip.errors import DataError

CAPTIONS = ["thing 0", "thing 1", "thing 2", "thing 3"]


def photo(seed: int) -> bytes:
    return encoded("cat", (16, 16), seed)


def pairs(picture: str = "{}.png", text: str = "{}.txt") -> list[tuple[str, str | bytes]]:
    return [
        member for i in range(4) for member in ((picture.format(i), photo(i)), (text.format(i), f"thing {i}"))
    ]


def load(source: Path, **options: object) -> Loaded:
    return read(DataSpec(source=str(source), **{"quarantine_limit": 1.0, **options}))


def said(loaded: Loaded, *parts: str) -> bool:
    return any(all(part in line for part in parts) for line in loaded.guesses)


def whole(loaded: Loaded) -> bool:
    """Whether every picture has its own caption, and nothing is set aside."""
    images = loaded.table.column("image")
    captions = loaded.table.column("caption")
    return (
        sorted(captions) == CAPTIONS
        and all(images[i] == photo(int(str(captions[i])[-1])) for i in range(4))
        and loaded.quarantine.entries == ()
    )


def with_links(path: Path, first: list[tuple[str, bytes, str]]) -> Path:
    """Write members (name, kind of tar, target or content)."""
    with tarfile.open(path, "w") as file:
        for name, kind, target in first:
            info = tarfile.TarInfo(name)
            info.type = kind
            data = b""
            if kind == tarfile.REGTYPE:
                data = photo(int(target)) if name.endswith("png") else target.encode()
                info.size = len(data)
            else:
                info.linkname = target
            file.addfile(info, io.BytesIO(data))
    return path


# -- names ----------------------------------------------------------------------------------------------------


def test_b09_names_in_another_case_are_joined(tmp_path: Path) -> None:
    loaded = load(tar(tmp_path / "0.tar", pairs("Img_{}.PNG", "img_{}.TXT")))
    assert whole(loaded)
    assert said(loaded, "4 samples", "letter case or Unicode form", "'Img_0' with 'img_0'")


def test_b09_names_in_another_unicode_form_are_joined(tmp_path: Path) -> None:
    name = "M\u00fcller {}"
    loaded = load(tar(tmp_path / "0.tar", pairs(unicodedata.normalize("NFD", name) + ".png", name + ".txt")))
    assert whole(loaded)
    assert said(loaded, "4 samples", "letter case or Unicode form")


def test_names_that_differ_in_case_and_are_whole_stay_apart(tmp_path: Path) -> None:
    members = [*pairs("a{}.png", "a{}.txt")[:4], *pairs("A{}.png", "A{}.txt")[:4]]
    loaded = load(tar(tmp_path / "0.tar", members))
    assert loaded.table.column("caption") == CAPTIONS[:2] * 2
    assert not said(loaded, "letter case")


@pytest.mark.parametrize("start", ["/data/", "\\data\\", "C:\\data\\"])
def test_names_from_the_root_are_names_inside_the_archive(tmp_path: Path, start: str) -> None:
    loaded = load(tar(tmp_path / "0.tar", pairs(start + "{}.png", start + "{}.txt")))
    assert whole(loaded)
    assert said(loaded, "8 names are read as paths inside the archive")


def test_dots_inside_names_are_part_of_the_key_where_keys_would_collide(tmp_path: Path) -> None:
    loaded = load(tar(tmp_path / "0.tar", pairs("v1.0_{}.png", "v1.0_{}.txt")))
    assert whole(loaded)
    assert said(loaded, "a key ends at the last dot")


def test_the_picture_of_a_plain_ending_is_the_samples_own(tmp_path: Path) -> None:
    masks = [(f"{i}.seg.png", photo(9 + i)) for i in range(4)]
    loaded = load(tar(tmp_path / "0.tar", [*pairs("{}.png"), *masks]))
    assert loaded.table.column("caption") == CAPTIONS
    assert loaded.table.column("image") == [photo(i) for i in range(4)]


def test_masks_next_to_their_pictures_are_counted(tmp_path: Path) -> None:
    members = pairs()
    for i in (3, 2, 1, 0):
        members.insert(2 * i, (f"{i}.seg.png", photo(9 + i)))
    loaded = load(tar(tmp_path / "0.tar", members))
    assert whole(loaded)
    assert said(loaded, "images beside those of a plain ending, not read: 4 (.seg.png)")


def test_two_pictures_of_one_key_name_both_and_the_remedy(tmp_path: Path) -> None:
    members = [*pairs("{}.png"), ("x.left.png", photo(7)), ("x.right.png", photo(8)), ("x.txt", "both")]
    loaded = load(tar(tmp_path / "0.tar", members))
    (entry,) = loaded.quarantine.entries
    assert ".left.png and .right.png; keep one of them" in entry.detail


# -- links ----------------------------------------------------------------------------------------------------


def test_links_to_members_are_followed_also_to_later_ones(tmp_path: Path) -> None:
    loaded = load(
        with_links(
            tmp_path / "0.tar",
            [
                ("a/0.png", tarfile.SYMTYPE, "../b/0.png"),  # its target stands later
                ("a/0.txt", tarfile.REGTYPE, "thing 0"),
                ("b/0.png", tarfile.REGTYPE, "0"),
                ("b/0.txt", tarfile.REGTYPE, "thing 0 again"),
                ("b/1.png", tarfile.LNKTYPE, "b/0.png"),
                ("b/1.txt", tarfile.LNKTYPE, "b/0.txt"),
                ("b/2.png", tarfile.SYMTYPE, "1.png"),  # a link to a link
                ("b/2.txt", tarfile.REGTYPE, "thing 2"),
            ],
        )
    )
    assert loaded.quarantine.entries == ()
    assert loaded.table.column("caption") == ["thing 0", "thing 0 again", "thing 0 again", "thing 2"]
    assert loaded.table.column("image") == [photo(0)] * 4
    assert said(loaded, "4 links lead to members of the archive")


@pytest.mark.parametrize("target", ["/etc/hostname", "../../out.png", "9.png", "1.png"])
def test_links_that_lead_nowhere_cost_one_row_with_the_remedy(tmp_path: Path, target: str) -> None:
    loaded = load(
        with_links(
            tmp_path / "0.tar",
            [
                ("0.png", tarfile.REGTYPE, "0"),
                ("0.txt", tarfile.REGTYPE, "thing 0"),
                ("1.png", tarfile.SYMTYPE, target),  # the last target is the link itself
                ("1.txt", tarfile.REGTYPE, "thing 1"),
            ],
        )
    )
    (entry,) = loaded.quarantine.entries
    assert (entry.reason, entry.row) == ("unsafe-member", 2)
    assert target in entry.detail
    assert "tar --dereference" in entry.detail


def test_links_to_one_long_text_do_not_fill_the_memory(tmp_path: Path) -> None:
    members = [("0.png", tarfile.REGTYPE, "0"), ("0.txt", tarfile.REGTYPE, "word " * 2000)]
    members += [("1.png", tarfile.REGTYPE, "1"), ("1.txt", tarfile.LNKTYPE, "0.txt")]
    loaded = load(with_links(tmp_path / "0.tar", members))
    (entry,) = loaded.quarantine.entries
    assert (entry.reason, entry.row) == ("bad-row", 2)


# -- texts ----------------------------------------------------------------------------------------------------


def test_texts_of_another_encoding_come_with_the_remedy_which_works(tmp_path: Path) -> None:
    members = [(f"{i}.png", photo(i)) for i in range(2)]
    members += [(f"{i}.txt", f"K\u00f6ter {i}".encode("cp1252")) for i in range(2)]
    tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=r"bad-utf8(.|\n)*data\.encoding=NAME"):
        load(tmp_path / "0.tar")
    assert load(tmp_path, encoding="cp1252").table.column("caption") == ["K\u00f6ter 0", "K\u00f6ter 1"]


def test_texts_in_utf16_are_read_as_their_first_bytes_say(tmp_path: Path) -> None:
    members = [(f"{i}.png", photo(i)) for i in range(2)]
    members += [(f"{i}.txt", f"K\u00f6ter {i}".encode("utf-16")) for i in range(2)]
    assert load(tar(tmp_path / "0.tar", members)).table.column("caption") == ["K\u00f6ter 0", "K\u00f6ter 1"]


def test_a_json_list_of_texts_is_a_list_of_captions(tmp_path: Path) -> None:
    members = pairs("{}.png", "{}.json")
    members = [(n, json.dumps([t, f"{t} again"]) if isinstance(t, str) else t) for n, t in members]
    loaded = load(tar(tmp_path / "0.tar", members))
    assert loaded.table.column("caption")[:3] == ["thing 0", "thing 0 again", "thing 1"]


def test_folders_of_pictures_without_a_text_come_with_the_way_on(tmp_path: Path) -> None:
    members = [(f"{name}/{i}.png", photo(i)) for name in ("cat", "dog") for i in range(2)]
    with pytest.raises(
        DataError, match=r"nothing to learn from(.|\n)*2 folders \(cat, dog\).*unpack the archive"
    ):
        load(tar(tmp_path / "0.tar", members))


# -- files that are no archives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "It is empty: download or write it again"),
        (b"<html>404</html>" * 40, "as a web page does: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (gzip.compress(b"x" * 4000, mtime=0), "compressed by gzip; unpack it"),
        (b"x" * 4000, "download or write it again"),
    ],
    ids=["empty", "web page", "git lfs", "gzip", "noise"],  # bytes in an id differ from process to process
)
def test_a_file_that_is_no_archive_says_what_it_is(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "0.tar")


@pytest.mark.parametrize("order", [("txt", "caption.txt"), ("caption.txt", "txt")])
def test_texts_of_several_endings_never_replace_each_other(tmp_path: Path, order: tuple[str, str]) -> None:
    texts = {"txt": "raw {}", "caption.txt": "thing {}"}
    members = [
        member
        for i in range(4)
        for member in (
            (f"{i}.png", photo(i)),
            *((f"{i}.{ending}", texts[ending].format(i)) for ending in order),
        )
    ]
    found = load(tar(tmp_path / "0.tar", members))
    assert whole(found)
    assert said(found, "texts of .caption.txt members are the column 'caption', beside others")
    assert said(found, "not read as captions: 'txt'")
    both = load(tmp_path / "0.tar", columns={"caption": "caption, txt"})
    assert sorted(both.table.column("caption")) == sorted([*CAPTIONS, *(f"raw {i}" for i in range(4))])


def test_the_only_text_of_a_sample_may_have_an_ending_of_several_parts(tmp_path: Path) -> None:
    assert whole(load(tar(tmp_path / "0.tar", pairs("{}.image.png", "{}.text.txt"))))


def test_texts_under_two_unknown_endings_are_asked_about(tmp_path: Path) -> None:
    members = [
        member
        for i in range(8)
        for member in (
            (f"{i}.png", photo(i)),
            (f"{i}.llava.txt", f"one old thing {i}"),
            (f"{i}.blip.txt", f"one new thing {i}"),
        )
    ]
    with pytest.raises(DataError, match=r"columns are .*llava, blip.* may hold captions"):
        load(tar(tmp_path / "0.tar", members))
    found = load(tmp_path / "0.tar", columns={"caption": "blip"})
    assert "one new thing 3" in found.table.column("caption")
