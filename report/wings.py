"""Notebooks of the wings show how something is built, and that does not depend on a study: they are executed once for all
studies and kept by content, in a folder beside the studies that is safe to delete."""
import json, platform, sys
from pathlib import Path
from kinetics_dance.core.ownership import MARKER, remove_ours
from .common import read_json, sha, write_atomic, write_json
from .record import versions

FOLDER = '.wings'
NAME = r'[\w-]+\.[0-9a-f]{20}\.(ipynb|json)'     # of a file in it
KEPT = 3                                         # executions of one notebook that stay, the newest first


def environment(root):
    "{what: version} that an output may depend on, as installed"
    return {'python': platform.python_version(), 'platform': f'{sys.platform} {platform.machine()}'} | versions(root)[0]


class Wings:
    "Executed notebooks of the wings with their records, by what they depend on"
    def __init__(self, runs):
        self.folder = Path(runs)/FOLDER
        self.pages = self.folder/'pages'         # as the site wants them

    def files(self, stem, key):
        "The executed notebook and its record; names of modules do not count, definitions do"
        parts = {**key, 'library': sorted(key['library'].values())}
        name = f"{stem.replace('/', '-')}.{sha(json.dumps(parts, sort_keys=True))}"
        return self.folder/f'{name}.ipynb', self.folder/f'{name}.json'

    def get(self, stem, key):
        "(bytes of the executed notebook, record), or None; a file that is damaged counts as absent"
        nb, note = self.files(stem, key)
        record = read_json(note)
        try: data = nb.read_bytes()
        except OSError: return None
        return (data, record['record']) if isinstance(record, dict) and record.get('sha') == sha(data) else None

    def put(self, stem, key, executed, record):
        "Keep an execution. The record comes last: without it the notebook does not count"
        if not self.ours(): return
        nb, note = self.files(stem, key)
        if note.exists() and nb.exists(): return
        write_atomic(nb, data := executed.read_bytes())
        write_json(note, dict(sha=sha(data), record=record))
        old = sorted(self.folder.glob(f"{stem.replace('/', '-')}.*.json"), key=lambda p: p.stat().st_mtime)[:-KEPT]
        remove_ours(self.folder, [n for p in old for n in (p.name, f'{p.stem}.ipynb')], NAME)

    def ours(self):
        "Make the folder; one that holds files of somebody else is left alone, and nothing is kept"
        if (self.folder/MARKER).exists(): return True
        if self.folder.exists() and any(self.folder.iterdir()): return False
        write_atomic(self.folder/MARKER, 'made by kinetics_dance: executed notebooks; safe to delete\n')
        return True
