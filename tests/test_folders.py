"Folders as people have them: what is no video file is left out with a reason, is never opened, and ends nothing."
import os, socket, sqlite3, subprocess, sys
import pandas as pd, pytest
from conftest import ROOT
from kinetics_dance.clips.annotations import read_folder
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.sources import YouTube


@pytest.fixture
def folder(tmp_path):
    for label in 'ab':
        (tmp_path/label).mkdir()
        for i in range(3): (tmp_path/label/f'{i}.mp4').write_bytes(b'a video')
    return tmp_path


def pipe(p): os.mkfifo(p)
def dangling(p): p.symlink_to('/nowhere/at/all')
def device(p): p.symlink_to('/dev/zero')
def directory(p): p.mkdir()
def listening(p):
    here = os.getcwd(); os.chdir(p.parent)
    try: socket.socket(socket.AF_UNIX).bind(p.name)
    finally: os.chdir(here)


@pytest.mark.parametrize('make, says', [(pipe, 'a pipe'), (dangling, 'leads nowhere'), (device, 'a device'), (directory, 'a folder'), (listening, 'a socket')], ids=lambda x: getattr(x, '__name__', x))
def test_no_file(folder, make, says):
    "Left out and named; the others are there. A list that names it gets one line"
    make(folder/'a/x.mp4')
    with pytest.warns(UserWarning, match=f"left out of the folder: 'x.mp4': .*{says}"): found = read_folder(folder)
    assert len(found) == 6
    (folder/'list.csv').write_text('path,label\na/x.mp4,a\n')
    with pytest.raises(StudyError, match=f'line 2: a/x.mp4: .*{says}'): read_folder(folder, csv=folder/'list.csv')


def test_names_that_are_not_utf8(folder):
    (folder/'a'/os.fsdecode(b'bad\xff.mp4')).write_bytes(b'a video')
    (folder/os.fsdecode(b'c\xfe')).mkdir(); (folder/os.fsdecode(b'c\xfe/1.mp4')).write_bytes(b'a video')
    with pytest.warns(UserWarning, match='not UTF-8') as w: found = read_folder(folder)
    assert set(found.label) == set('ab') and len(found) == 6
    str(w[0].message).encode()


def test_an_empty_class_is_named(folder):
    (folder/'c').mkdir()
    with pytest.warns(UserWarning, match="'c': no video in this class"): read_folder(folder)


def test_links_that_go_round(folder):
    (folder/'a/again').symlink_to('..')
    assert len(read_folder(folder)) == 6


@pytest.mark.parametrize('template', ['https://example.org/one.mp4', 'https://x/{id.__class__}', 'https://x/{id}/{0}', 'https://x/{id!r}'])
def test_a_template_without_a_place_for_the_id(template):
    with pytest.raises(StudyError, match='url_template'): YouTube(template)


# --- the table

def clips(): return pd.DataFrame([dict(label='a', youtube_id=f'{i:011}', time_start=0., time_end=3., split='train') for i in range(3)])


def test_a_damaged_table_is_one_line(tmp_path):
    path = tmp_path/'runs/s/clips.sqlite'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'no database'*1000)
    with pytest.raises(StudyError, match='clips.sqlite: it is damaged'): ClipTable(path)
    p = subprocess.run([sys.executable, '-m', 'kinetics_dance.study.cli', 'status', '--study', 's', '--runs', str(tmp_path/'runs')], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 2 and len(p.stderr.splitlines()) == 1 and 'damaged' in p.stderr


def test_a_table_that_another_process_writes(tmp_path, monkeypatch):
    table = ClipTable(tmp_path/'clips.sqlite')
    table.set(clips())
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, 'connect', lambda path, timeout: real(path, timeout=.1))
    other = real(tmp_path/'clips.sqlite', isolation_level=None)
    other.execute('BEGIN EXCLUSIVE')
    with pytest.raises(StudyError, match='another process is writing it'): table.update([dict(clip_id=table_id(), status='ok')])
    other.execute('ROLLBACK'); other.close()
    assert len(table.frame()) == 3


def table_id(): return f'{0:011}_000000_000003'


def test_frames_are_made_by_one_process(tmp_path):
    from filelock import FileLock
    from kinetics_dance.loading.store import build_store
    with FileLock(tmp_path/'.frames.lock'), pytest.raises(StudyError, match='another process is making these frames'):
        build_store(pd.DataFrame(dict(clip_id=['a'], path=['a.mp4'])), tmp_path/'frames')
