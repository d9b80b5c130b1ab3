"Attacks that were still open when issue 20 was mended: each of these once went wrong, or nobody had tried it"
import os, signal, subprocess, sys, threading, time
import pytest
from conftest import ROOT
from kinetics_dance.core.base import StudyError
from test_loading_faults import LINUX, ClipLoader, loader, noise, run, with_shared_memory  # noqa: F401 (a fixture)


# --- workers that fetch batches

class Stopping(ClipLoader):
    def create_batch(self, idxs):
        import torch
        if torch.utils.data.get_worker_info(): os.kill(os.getpid(), signal.SIGSTOP)
        return super().create_batch(idxs)


@LINUX
def test_workers_that_were_stopped(noise, monkeypatch):  # noqa: F811
    "They were waited for, five minutes; and the process that had waited could not end"
    from kinetics_dance.loading import workers
    monkeypatch.setattr(workers, 'STOPPED', 1)
    began = time.monotonic()
    with pytest.raises(StudyError, match='stopped by a signal'): list(loader(noise, Stopping, num_workers=2))
    assert time.monotonic() - began < 100
    import multiprocessing
    assert not [p for p in multiprocessing.active_children() if 'Stopping' in str(p) or workers._is_stopped(p)]


@LINUX
def test_workers_that_go_on(noise, monkeypatch):  # noqa: F811
    "A short stop is none of anybody's business"
    dl, seen = loader(noise, Stopping, num_workers=1), []
    def awake():
        import psutil
        while len(seen) < 6:
            for p in psutil.Process().children():
                if p.status() == psutil.STATUS_STOPPED: p.send_signal(signal.SIGCONT)
            time.sleep(.05)
    other = threading.Thread(target=awake, daemon=True)
    other.start()
    for x, y in dl: seen.append(len(y))
    assert seen == [10]*6


SHM = '''
import sys, pandas as pd
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.dataloader import ClipDataLoaders
from kinetics_dance.loading import workers
if __name__ == '__main__':
    table = pd.read_csv('table.csv')
    n, why = workers.fit_workers(24*8*48*64*3, 'cuda')
    for workers in {n or 1, 2, 6}:
        dls = ClipDataLoaders.from_store(FrameStore('frames'), table, n_frames=8, crop=(48, 64), bs=24, num_workers=workers)
        try: print(sum(len(y) for _ in range(2) for x, y in dls.train))
        except StudyError as e: print('error:', e)
'''


@LINUX
@pytest.mark.parametrize('mount', ['size=64m', 'size=1m', 'ro'])
def test_a_shared_memory_of_docker(noise, tmp_path, mount):  # noqa: F811
    "64 MB, as Docker gives; less; none that can be written: all batches or one line, an end in any case, and no traceback of `__del__`"
    p = with_shared_memory(mount, SHM, noise, tmp_path)
    assert p.returncode == 0 and 'Traceback' not in p.stderr, p.stderr
    lines = p.stdout.splitlines()
    assert 2 <= len(lines) <= 3 and all(line.startswith('error: ') or line == '96' for line in lines), lines
    assert (lines == ['96']*len(lines)) == (mount == 'size=64m'), lines


# --- text that shows something else than it is

BIDI = '\u202egnp.exe\u202c \u2066a\u2069 \u200fb'


def test_tables_of_a_notebook_show_what_cannot_be_seen(tmp_path, monkeypatch):
    import pandas as pd
    from IPython.core.interactiveshell import InteractiveShell
    import builtins
    from kinetics_dance.study import settings
    shell = InteractiveShell.instance()
    monkeypatch.setattr(builtins, 'get_ipython', lambda: shell, raising=False)
    try:
        settings._show_tables_visibly()
        for thing in (pd.DataFrame({'label': [BIDI], BIDI: ['x']}), pd.Series([BIDI], name='label')):
            data, _ = shell.display_formatter.format(thing)
            for text in data.values(): assert '\\u202e' in text and not set(text) & set(BIDI) - set('gnp.exe ab'), data
    finally: InteractiveShell.clear_instance()


def test_terminal_lines_show_what_cannot_be_seen(tmp_path):
    "All commands, with a path that is written backwards"
    from test_attacks import cli
    for args in (('predict', f'{BIDI}.mp4'), ('status', '--study', BIDI), ('demo-video', '--out', f'{BIDI}.mp4'), ('download', '--study', f'{BIDI}.yaml'), ('settings', BIDI),
                 ('models',), ('export', '--model-path', BIDI), ('frames', '--study', BIDI), ('train', '--study', BIDI)):
        try: said = cli(tmp_path, *args, rc=2)
        except AssertionError as e: said = str(e)   # a demo video is made
        assert '\u202e' not in said and '\u2066' not in said, args


# --- numbers nobody can mean

HUGE = ['1e300', '-1e300', 'inf', 'nan', '9'*400, '-1', '0.5', '1e-300']


@pytest.mark.parametrize('command, option', [
    *(('predict', o) for o in ('--duration', '--start-time', '--end-time', '--step', '--timeout', '--top')),
    *(('plan', o) for o in ('--clips', '--runs', '--accuracy', '--margin', '--run-sd', '--per-upload')),
    *(('download', o) for o in ('--jobs', '--train', '--valid', '--test')), ('frames', '--jobs'), ('frames', '--shard-mb'), ('train', '--seed'), ('demo-video', '--seed')])
def test_absurd_numbers(tmp_path, command, option):
    "Each is refused in one line, or is a number that a person can mean"
    from test_attacks import cli, study
    from kinetics_dance.video.decoding import numbered_clip
    base = dict(predict=['v.mp4', '--model-path', 'nothing'], plan=['--clips', '100', '--runs', '3', '--accuracy', '.8'], download=['--study', 'mine'], frames=['--study', 'mine'],
                train=['--study', 'mine'])
    (tmp_path/'v.mp4').write_bytes(b'')
    (tmp_path/'videos/a').mkdir(parents=True)
    study(tmp_path)
    for number in HUGE:
        args = base.get(command, ['--out', 'gone/x.txt'])
        if option in args: args = args[:args.index(option)] + args[args.index(option) + 2:]
        try: said = cli(tmp_path, command, *args, option, number, rc=2)
        except AssertionError:
            assert command == 'plan' and number in ('0.5', '1e-300', '-1'), (option, number)
            continue
        assert 'a fault of' not in said and len(said) < 2000, said


@pytest.mark.parametrize('name', ['n_train', 'n_valid', 'n_test', 'seed', 'short_side', 'ratelimit', 'sleep', 'jobs', 'memory_mb', 'n_frames', 'grid', 'epochs', 'batch_size', 'lr', 'lr_epochs',
                                  'weight_decay', 'n_resamples', 'infer_step', 'workers', 'threads', 'backbone_lr', 'frame_hidden', 'scene_bias', 'margin'])
def test_absurd_numbers_in_a_study(name):
    from kinetics_dance.core.settings import check_settings
    from kinetics_dance.training.recipe import Recipe
    from kinetics_dance.core.settings import defaults
    for number in (10**300, -10**300, float('inf'), float('nan'), 1e300):
        with pytest.raises(StudyError, match=name) as e: Recipe.of(check_settings(defaults() | {name: number}))
        assert '\n' not in str(e.value) and 'expected ,' not in str(e.value)


# --- a folder that is another one

def test_a_study_folder_that_is_a_link_to_another_one(tmp_path):
    from kinetics_dance.core.base import study_folder
    (tmp_path/'runs/one/sub').mkdir(parents=True)
    (tmp_path/'disk/own').mkdir(parents=True)
    for name, to in (('two', 'one'), ('three', 'one/sub'), ('own', '../disk/own'), ('gone', 'nowhere')): (tmp_path/'runs'/name).symlink_to(to)
    for name in ('two', 'three'):
        with pytest.raises(StudyError, match=f'{name} is a link to the folder of the study one'): study_folder(name, tmp_path/'runs')
    for name in ('one', 'own', 'gone'): assert study_folder(name, tmp_path/'runs').name == name
    (tmp_path/'runs/same').symlink_to('../disk/own')
    with pytest.raises(StudyError, match='folder of the study'): study_folder('own', tmp_path/'runs')


def test_predict_a_folder_of_things_that_are_no_files(tmp_path):
    "None is opened; each has a line, and the files among them are planned"
    from kinetics_dance.deploy.output import plan_targets
    from kinetics_dance.deploy.request import check_video, find_videos
    from test_folders import dangling, device, directory, listening, pipe
    for make in (dangling, device, directory, listening, pipe): make(tmp_path/f'{make.__name__}.mp4')
    (tmp_path/'good.mp4').write_bytes(b'x')
    found = find_videos([tmp_path])
    assert str(tmp_path/'good.mp4') in found
    plan_targets(found, dict(cut=False, over_time=False, picture=None, save_video=None), True)
    for f in set(found) - {str(tmp_path/'good.mp4')}:
        with pytest.raises(StudyError, match='not a file|no such file|a folder'): check_video(f)


# --- files that claim more than they hold

def test_a_parquet_that_claims_too_much(tmp_path, monkeypatch):
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from kinetics_dance.evaluation import predictions
    n, path = 10**6, tmp_path/'bomb.parquet'
    table = pa.table({'clip_id': pa.array(['x'*1000]*n).dictionary_encode()} | {f'p_{i}': np.zeros(n) for i in range(40)})
    with pq.ParquetWriter(path, table.schema, compression='zstd') as w:
        for _ in range(3): w.write_table(table)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(StudyError, match='too large for a table of predictions: 3,000,000 rows of 41 columns'): predictions.read_predictions(path)
    for text in (b'', b'PAR1', b'PAR1' + b'\xff'*100 + b'PAR1', b'PAR1' + b'\xff\xff\xff\x7fPAR1'):
        path.write_bytes(text)
        with pytest.raises(StudyError, match='cannot be read'): predictions.read_predictions(path)


@pytest.mark.parametrize('name', ['list.parquet', 'list.csv.gz', 'list.xlsx'])
def test_a_list_of_another_kind(tmp_path, name):
    from kinetics_dance.clips.annotations import read_annotations, read_folder
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({'path': ['a.mp4'], 'label': ['x']}), tmp_path/name)
    for read in (lambda: read_annotations(tmp_path/name), lambda: read_folder(tmp_path, tmp_path/name)):
        with pytest.raises(StudyError, match=name) as e: read()
        assert len(str(e.value).splitlines()) == 1 and 'csv' in str(e.value)


def ebml(ident, data): return bytes.fromhex(ident) + (0x0800000000 | len(data)).to_bytes(5, 'big') + data
def number(ident, n): return ebml(ident, n.to_bytes(8, 'big'))


def matroska(path, width, height, codec=b'V_VP9', doc=b'webm', seconds=10., block=b'\0'*64, entries=0):
    "A file that declares a picture of any size, and an index of any length"
    import struct
    track = number('d7', 1) + number('73c5', 1) + number('83', 1) + ebml('86', codec) + ebml('e0', number('b0', width) + number('ba', height))
    info = number('2ad7b1', 1_000_000) + ebml('4489', struct.pack('>d', seconds*1000))
    cues = b''.join(ebml('bb', number('b3', i) + ebml('b7', number('f7', 1) + number('f1', 0))) for i in range(entries))
    cluster = number('e7', 0) + ebml('a3', b'\x81\0\0\x80' + block)
    path.write_bytes(ebml('1a45dfa3', ebml('4282', doc) + number('4287', 4) + number('4285', 2))
                     + ebml('18538067', ebml('1549a966', info) + ebml('1654ae6b', ebml('ae', track)) + (ebml('1c53bb6b', cues) if entries else b'') + cluster))
    return path


@LINUX
@pytest.mark.parametrize('width, height, codec, seconds', [(65535, 65535, b'V_VP9', 10.), (2**31 - 1, 2**31 - 1, b'V_VP8', 10.), (2**63, 1, b'V_AV1', 1e300), (16383, 16383, b'V_UNCOMPRESSED', 1e9),
                                                           (16384, 16384, b'V_MPEG4/ISO/AVC', float('nan')), (8192, 8192, b'V_MJPEG', -1.)])
def test_matroska_that_claims_too_much(tmp_path, width, height, codec, seconds):
    from kinetics_dance.core.processes import killable
    from test_memory import LIMIT, peak_of
    said, peak = killable(peak_of, matroska(tmp_path/'bomb.webm', width, height, codec, seconds=seconds, entries=3), memory=LIMIT)
    assert peak <= 1.05*LIMIT and said in ('too large', 'truncated', 'not a video', 'other', '0 frames'), (said, peak)


# --- what is deleted

def test_seeds_and_models_that_a_study_no_longer_names_stay(tmp_path):
    "They were deleted, hours of training, without a word"
    import warnings
    from kinetics_dance.core.base import StudyWarning
    from kinetics_dance.training import runs
    run = tmp_path/'s'
    for f in ('models/m/seed0/config.json', 'models/m/seed7/config.json', 'models/m/lr.json', 'predictions/m/seed7.parquet', 'predictions/m/shuffled/seed7.parquet',
              'models/m/notes.txt', 'predictions/other/seed0.parquet', 'models/n/seed0/config.json', 'predictions/n/seed0.parquet'):
        (run/f).parent.mkdir(parents=True, exist_ok=True)
        (run/f).write_text(f)
    kept = {p.read_text() for p in run.rglob('*') if p.is_file()}
    with pytest.warns(StudyWarning, match='models/n/left_over.seed0'): runs.forget_models(run, ['m'])
    assert kept == {p.read_text() for p in run.rglob('*') if p.is_file()}
    assert not list(run.glob('*/n/seed*')) and (run/'predictions/other/seed0.parquet').exists()
    runs._set_aside([run/'models/m/seed7', run/'predictions/m/seed7.parquet', run/'predictions/m/shuffled/seed7.parquet'])
    assert not list(run.rglob('seed7*'))
    runs._take_back(run, 'm', 7)
    assert len(list((run/'predictions/m').rglob('seed7.parquet'))) == 2 and (run/'models/m/seed7/config.json').exists()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        runs._tell_left_over(run, ['m'])


def test_clean_deletes_what_was_made_here_and_nothing_else(tmp_path):
    from report.clean import clean
    from report.common import UserError
    run = tmp_path/'runs/s'
    ours = ['clips.sqlite', 'clips.csv', 'origin.json', 'models/m/seed0/config.json', 'predictions/m/seed0.parquet', 'tables/a.csv', 'videos/a_000000_000003.mp4', 'videos/.kinetics_dance',
            'frames/a_000000_000003.npy', '.lock']
    mine = ['thesis.tex', 'notes/a.txt', 'predictions/theirs/seed0.parquet', 'videos/holiday film.mov', 'frames/labels.txt']
    for f in ours + mine:
        (run/f).parent.mkdir(parents=True, exist_ok=True)
        (run/f).write_text(f)
    (tmp_path/'far').mkdir()
    (tmp_path/'far/precious').touch()
    (run/'packs').symlink_to('../../far')
    stays = clean(tmp_path, 's')
    assert {str(p.relative_to(run)) for p in run.rglob('*') if p.is_file() and 'packs' not in p.parts} == set(mine) and (tmp_path/'far/precious').exists()
    assert {p.name for p in stays} == {'thesis.tex', 'notes', 'theirs', 'holiday film.mov', 'labels.txt', 'packs'}
    (tmp_path/'runs/photos').mkdir()
    (tmp_path/'runs/photos/a.jpg').touch()
    (tmp_path/'runs/linked').symlink_to('s')
    for name, says in (('photos', 'is not the folder of a study'), ('linked', 'is a link'), ('../far', 'is not a name')):
        with pytest.raises(UserError, match=says): clean(tmp_path, name)
    assert (tmp_path/'runs/photos/a.jpg').exists()
    clean(tmp_path, 'never_run')
