"""Make a dated table of your own copy of YFCC15M or RedCaps, for a stream in time that everclip splits by hash.

Run: python examples/tic_metadata.py yfcc15m.csv images/ -o yfcc.parquet
     python examples/tic_metadata.py annotations/ images/ -o redcaps.parquet

Then: everclip init-config yfcc.parquet -o yfcc.yaml     (kind: time, every: year)

Reads what the code of TiC-CLIP (github.com/apple/ml-tic-clip) reads: the columns `key`, `title`, `description`,
`usertags` and `dateuploaded` (seconds since 1970) of one CSV; or RedCaps' `SUBREDDIT_YEAR.json` files. Captions are
made in the published way: title, description and tags, HTML removed, cut at 500 characters. Unlike that code, times are
UTC on every machine, all years are kept, a missing image is counted, and no row is set aside here: everclip holds out
by a hash of each image, so that later rows move none.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[str, str, str, str]
"""Id, path of the image below the folder of images, caption, time."""

MOST = 500
"""Characters of a caption of YFCC."""


def yfcc_caption(title: str, description: str, tags: str) -> str:
    """Return the published caption of YFCC: `title. description. tags`, without HTML, of 500 characters at most."""
    text = html.unescape(unquote_plus(f"{title}. {description}. {tags}"))
    return re.sub(r"<.*?>", "", text)[:MOST]


def utc(seconds: str | float) -> str:
    """Return seconds since 1970 as ISO text in UTC."""
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=int(float(seconds)))
    return moment.isoformat()


def yfcc(table: Path) -> Iterator[Row]:
    """Yield the rows of `yfcc15m.csv`; a row without a date keeps an empty one."""
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key, date = row["key"], (row.get("dateuploaded") or "").strip()
            caption = yfcc_caption(*(row.get(name) or "" for name in ("title", "description", "usertags")))
            yield key, f"{key[:3]}/{key[3:6]}/{key}.jpg", caption, utc(date) if date else ""


def redcaps(folder: Path) -> Iterator[Row]:
    """Yield the rows of all `SUBREDDIT_YEAR.json` files."""
    for file in sorted(folder.glob("*_[0-9][0-9][0-9][0-9].json")):
        for one in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            created = one.get("created_utc")
            time = utc(created) if created is not None else file.stem[-4:]
            yield one["image_id"], f"{one['subreddit']}/{one['image_id']}.jpg", one["caption"], time


def write_table(rows: Iterator[Row], images: Path, output: Path) -> tuple[int, int]:
    """Write the rows whose image exists; return how many there are, and how many have none."""
    kept, missing = [], 0
    for name, path, caption, time in rows:
        if (images / path).is_file():
            kept.append((name, str((images / path).resolve()), caption, time or None))
        else:
            missing += 1
    columns = list(zip(*kept, strict=True)) or [()] * 4
    pq.write_table(
        pa.table(
            {
                n: pa.array(v, pa.string())
                for n, v in zip(("id", "image", "caption", "time"), columns, strict=True)
            }
        ),
        output,
    )
    return len(kept), missing


def main() -> None:
    """Read the arguments and write the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("metadata", type=Path, help="yfcc15m.csv, or the folder of RedCaps' annotations")
    words.add_argument("images", type=Path, help="the folder of the images")
    words.add_argument("-o", "--output", type=Path, required=True)
    given = words.parse_args()
    rows = redcaps(given.metadata) if given.metadata.is_dir() else yfcc(given.metadata)
    kept, missing = write_table(rows, given.images, given.output)
    print(f"{given.output}: {kept:,} rows; left out because their image is missing: {missing:,}")
    if not kept:
        sys.exit(f"no image of {given.metadata} lies below {given.images}")


if __name__ == "__main__":
    main()
