"What a result depends on: code that is reached by name, and the lists, folders and files that settings name."
import json, os
from pathlib import Path
import pytest
from kinetics_dance.core.dependencies import closure, fingerprint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def package(tmp_path):
    def write(name, text):
        path = tmp_path/'toy'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write('__init__.py', '')
    return tmp_path, write


def keep_time(path, data):
    "Write other bytes and set the time back"
    s = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))


@pytest.mark.parametrize('use', [
    'from toy.video.decoding import decode\ndecode(1)',
    'import toy.video.decoding\ntoy.video.decoding.decode(1)',
    'import toy.video.decoding as d\nd.decode(1)',
    'from toy.video import decoding\ndecoding.decode(1)',
    'from toy.a import f\nf(1)',
    'from toy.video.b import g\ng(1)',
    "import importlib\nimportlib.import_module('toy.video.decoding').decode(1)",
    "spec = 'toy.video.decoding:decode'",
    "name = 'x'\nspec = f'toy.{name}'",
])
def test_every_way_to_import_a_nested_module(package, use):
    root, write = package
    write('video/__init__.py', '')
    write('video/decoding.py', 'def decode(x): return x')
    write('a.py', 'def f(x):\n    from .video.decoding import decode as d\n    return d(x)')
    write('video/b.py', 'from . import decoding\nfrom ..a import f\ndef g(x): return decoding.decode(f(x))')
    before = closure([use], root, 'toy')
    assert 'toy.video.decoding.decode' in before
    write('video/decoding.py', 'def decode(x):\n    "Frames"\n    return x  # as they are\n')
    assert fingerprint(closure([use], root, 'toy')) == fingerprint(before)
    write('video/decoding.py', 'def decode(x): return x + 1')
    assert fingerprint(closure([use], root, 'toy')) != fingerprint(before)


def test_effects_of_an_imported_module_count(package):
    root, write = package
    write('base.py', 'KNOWN = {}\ndef get(n): return KNOWN[n]')
    write('more.py', "from .base import KNOWN\ndef f(): return 1\ndef unused(): pass\nKNOWN['f'] = f")
    found = closure(['from toy.base import get\nimport toy.more\nget(1)'], root, 'toy')
    assert 'toy.more.f' in found and 'toy.more.unused' not in found
    assert not any('more' in k for k in closure(['from toy.base import get\nget(1)'], root, 'toy'))


def test_the_key_of_a_model_counts_weights_and_no_trackers():
    from kinetics_dance.models import registry
    from kinetics_dance.training import runs
    from kinetics_dance.models.weights import read_weights
    from kinetics_dance.training.tracking import make_tracker
    ours = [f'{runs.__name__}:{n}' for n in ('_train', '_predict_all', '_start', 'make_model')]
    found = closure([*ours, *(e.spec for e in registry.MODELS.values())], ROOT, 'kinetics_dance', runs._without())
    assert f'{read_weights.__module__}.read_weights' in found
    assert not any(k.startswith(make_tracker.__module__ + '.') for k in found)


def test_inputs_of_the_data(tmp_path):
    from report.run import folder_state, input_state
    folder = tmp_path/'videos'
    (folder/'a').mkdir(parents=True)
    (folder/'a/0.mp4').write_bytes(b'one')
    lines = tmp_path/'list.csv'
    lines.write_text('path,label\na/0.mp4,a\n')
    was, listed, text = folder_state(folder), folder_state(folder, lines), input_state('list.csv', tmp_path, None, print)
    keep_time(folder/'a/0.mp4', b'two')
    assert folder_state(folder) != was and folder_state(folder, lines) != listed
    was = folder_state(folder)
    (folder/'a/1.mp4').write_bytes(b'one')
    assert folder_state(folder) != was
    keep_time(lines, b'path,label\na/0.mp4,b\n')
    assert input_state('list.csv', tmp_path, None, print) != text


def test_a_list_on_a_server_that_cannot_be_reached_is_taken_as_unchanged(tmp_path):
    from report.run import input_state
    said = []
    assert input_state('http://127.0.0.1:9/list.csv', tmp_path, {'ETag': 'x'}, said.append) == {'ETag': 'x'}
    assert len(said) == 1 and 'taken as unchanged' in said[0]


def test_a_list_makes_its_notebook_stale(toy):
    toy.nb('00_data', "#| default_exp data", ('parameters', "study = 'demo'\nn = 2\nscale = 1.5\nannotations = []"), "#| export\ndef double(x): return x",
           "#| study\nopen(f'../runs/{study}/log', 'a').write('00\\n')", "#| study\nopen(f'../runs/{study}/clips.csv', 'w').write('1')")
    (toy.root/'list.csv').write_text('a')
    toy.study('study: toy\nannotations: [list.csv]\n')
    toy.run('--only', '00_')
    assert toy.ran() == ['00']
    toy.run('--only', '00_')
    assert toy.ran() == []
    (toy.root/'list.csv').write_text('b')
    assert 'inputs changed: annotations: list.csv' in toy.run('--only', '00_').stdout
    assert toy.ran() == ['00']


def test_a_video_that_was_replaced_is_another(tmp_path):
    from kinetics_dance.download.downloader import _made_of
    path = tmp_path/'a.mp4'
    path.write_bytes(b'one')
    row = dict(source='folder', url=str(path), made_of=None)
    row['made_of'] = _made_of(row, '', 192, None)
    assert _made_of(row, '', 192, None) == row['made_of']
    os.utime(path)                                       # touched, not changed
    assert _made_of(row, '', 192, None) == row['made_of']
    keep_time(path, b'two')
    assert _made_of(row, '', 192, None) != row['made_of']


def test_a_stored_clip_whose_bytes_changed_is_found(tmp_path):
    from kinetics_dance.loading.store import _valid_note
    from kinetics_dance.video.encoding import file_digest
    path = tmp_path/'c.mp4'
    path.write_bytes(b'one')
    source, params = file_digest(path), dict(compression='none')
    (tmp_path/'c.npy').write_bytes(b'x')
    (tmp_path/'c.json').write_text(json.dumps(dict(params=params, source=source, array=dict(bytes=1))))
    assert _valid_note(tmp_path, 'c', path, source, params)
    keep_time(path, b'two')
    assert _valid_note(tmp_path, 'c', path, source, params) is None
