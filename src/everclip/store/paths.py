"""Names of the files and folders of a store; `everclip.store.versions` says what they hold."""

SETTINGS, CURRENT, JOURNAL, LOCK = "store.json", "current", "journal.sqlite", ".lock"
BASE, PROBES, VERSIONS, OBJECTS = "base", "probes", "versions", "objects"
MANIFEST, LEARNER, HELD_OUT = "version.json", "learner", "held_out.parquet"
