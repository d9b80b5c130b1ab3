"""Right frames, and a store that survives anything: what cannot be shown in a cell."""
import json, os, pty, shutil, signal, subprocess, sys, threading, time
import numpy as np, pandas as pd, pickle, psutil, pytest
from hypothesis import given, settings, strategies as st
import preloaded
from conftest import things
from kinetics_dance import frames
from kinetics_dance.video import reading
from kinetics_dance.clips.annotations import folder_name
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.base import Unavailable
from kinetics_dance.video.decoding import numbered_clip, read_numbers
from kinetics_dance.video.encoding import normalise_clip
from kinetics_dance.video.reading import frame_times, has_decord, read_frames, regular
from kinetics_dance.frames import export_frames
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.loading.store import build_store
from kinetics_dance.video.film_strip import film_strip
from kinetics_dance.video.samplers import (
    SAMPLERS, every_kth, segments, spread, strided, uniform, views)

@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "A numbered upload of 6 s at 15 fps with one key frame, and seconds 1 to 4 of it in our plain form"
    folder = tmp_path_factory.mktemp('videos')
    numbered_clip(folder/'upload.mp4', n=90, size=(96, 128), options={'g': '250'})
    normalise_clip(folder/'upload.mp4', folder/'clip.mp4', 1, 4)
    return folder

def ffmpeg(*args):
    import imageio_ffmpeg
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', *map(str, args)], check=True)

few = st.integers(1, 64)

@given(st.integers(1, 400), few, st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_samplers(n, t, k, seed):
    "In range, sorted, as many as asked for, the same for the same seed; and never twice the same frame where there are enough"
    phase = lambda: np.random.default_rng(seed).random(1)
    rules = dict(SAMPLERS, segments=lambda n, t: segments(n, t, np.random.default_rng(seed)), strided=lambda n, t: strided(n, t, k),
                 spread=lambda n, t: spread(n, t, phase())[0], start=lambda n, t: strided(n, t, k, seed))
    for name, f in rules.items():
        i = f(n, t)
        assert i.shape == (t,) and i.dtype.kind == 'i' and i.min() >= 0 and i.max() < n and (np.diff(i) >= 0).all(), name
        assert (i == f(n, t)).all(), name
        if name in ('uniform', 'spread', 'consecutive') and n >= t: assert len(set(i)) == t, name

@given(st.integers(1, 400), few, st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_views_and_every_kth(n, t, clips, k):
    v = views(n, t, clips, k)
    assert v.shape == (clips, t) and v.min() >= 0 and v.max() < n and (np.diff(v, axis=1) >= 0).all() and (np.diff(v, axis=0) >= 0).all()
    if (t-1)*k < n: assert (np.diff(v, axis=1) == k).all()
    i = every_kth(n, k, limit=t)
    assert len(i) == min(-(-n//k), t) and i[0] == 0 and i[-1] < n and (np.diff(i) == k).all()

@pytest.mark.parametrize('reader', ['pyav', pytest.param('decord', marks=pytest.mark.skipif(not has_decord(), reason='decord is not installed'))])
def test_readers_return_the_frames_asked_for(videos, reader):
    i = np.random.default_rng(0).integers(0, 45, 30)
    for size in (None, (48, 64), (96, 96)):
        assert (read_numbers(read_frames(videos/'clip.mp4', uniform(45, 9), size=(48, 64), reader=reader)) == 15 + uniform(45, 9)).all()
        x = read_frames(videos/'clip.mp4', i, size=(48, 64), reader=reader)
        assert x.shape == (30, 48, 64, 3) and x.dtype == np.uint8 and (read_numbers(x) == 15 + i).all()
    assert read_frames(videos/'clip.mp4', [0], size=(96, 64), reader=reader).shape == (1, 96, 64, 3)

def test_without_decord(videos, monkeypatch):
    monkeypatch.setattr(reading, 'has_decord', lambda: False)
    monkeypatch.setattr(reading, '_read_decord', None)
    assert (read_numbers(read_frames(videos/'clip.mp4', [3, 40])) == [18, 55]).all()

def test_only_our_own_files_are_read_the_fast_way(videos, tmp_path):
    "A copied cut keeps the comment that marks our files, but hides frames behind an edit list"
    ffmpeg('-ss', '1.4', '-i', videos/'clip.mp4', '-c', 'copy', tmp_path/'cut.mp4')
    assert regular(videos/'clip.mp4') and regular(tmp_path/'cut.mp4') is None
    t = frame_times(tmp_path/'cut.mp4')
    assert (read_numbers(read_frames(tmp_path/'cut.mp4', np.arange(len(t)))) == read_numbers(read_frames(tmp_path/'cut.mp4')))[0]
    shown = read_numbers(read_frames(tmp_path/'cut.mp4', times=[0, 1.0]))
    assert abs(shown - [15 + 21, 15 + 36]).max() <= 1
    (tmp_path/'half.mp4').write_bytes((videos/'clip.mp4').read_bytes()[:(videos/'clip.mp4').stat().st_size*6//10])
    n = len(frame_times(tmp_path/'half.mp4'))
    assert regular(tmp_path/'half.mp4') is None and 15 < n < 45
    assert (read_numbers(read_frames(tmp_path/'half.mp4')) == 15 + np.arange(n)).all()

def test_irregular_rate_and_turned_pictures(videos, tmp_path):
    ffmpeg('-i', videos/'upload.mp4', '-vf', "select='not(mod(n,3))+lt(n,30)'", '-fps_mode', 'vfr', '-an', tmp_path/'vfr.mp4')
    t = frame_times(tmp_path/'vfr.mp4')
    kept = np.array([i for i in range(90) if i < 30 or i % 3 == 0])
    assert (read_numbers(read_frames(tmp_path/'vfr.mp4')) == kept).all() and abs(t - kept/15).max() < .01
    assert read_numbers(read_frames(tmp_path/'vfr.mp4', times=[5.0]))[0] in (72, 75)
    ffmpeg('-display_rotation', '90', '-i', videos/'clip.mp4', '-c', 'copy', tmp_path/'turned.mp4')
    x = read_frames(tmp_path/'turned.mp4', [0, 9])
    assert x.shape == (2, 128, 96, 3) and (read_numbers(np.rot90(x, -1, axes=(1, 2))) == [15, 24]).all()

def test_bad_files_have_a_reason(tmp_path):
    (tmp_path/'empty.mp4').write_bytes(b'')
    (tmp_path/'text.mp4').write_text('hello\n'*999)
    for name, reason in (('empty', 'truncated'), ('text', 'not a video')):
        with pytest.raises(Unavailable, match=reason): read_frames(tmp_path/f'{name}.mp4')
    with pytest.raises(FileNotFoundError): read_frames(tmp_path/'nowhere.mp4')

def contents(folder): return {p.name: p.read_bytes() for p in sorted(things(folder))}

def many(folder, videos, n):
    for i in range(n): shutil.copy(videos/'clip.mp4', folder/f'c{i:02}.mp4')
    return pd.DataFrame([(f'c{i:02}', f'c{i:02}.mp4') for i in range(n)], columns=['clip_id', 'path'])

KILL = """
import os, random, signal, sys, time
import pandas as pd, simplejpeg
from kinetics_dance.loading.store import build_store
NESTED = 'preloaded' in sys.modules
if NESTED: import preloaded
if __name__ == '__main__':
    folder, form, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
    clips, rng, done = pd.read_csv(folder + '/clips.csv'), random.Random(form), 0
    def build(name):
        start, pid = time.monotonic(), os.fork()
        if not pid:
            os.setsid()
            if NESTED: preloaded.nested()
            build_store(clips, f'{folder}/{name}', n_frames=6, size=(48, 64), jobs=1, compression=form, log=lambda s: None)
            os._exit(0)
        return pid, start
    def stored(): return len([p for p in os.listdir(f'{folder}/killed') if p.endswith('.json')]) if os.path.exists(f'{folder}/killed') else 0
    pid, start = build('whole')
    os.waitpid(pid, 0)
    whole = time.monotonic() - start
    for k in range(kills):
        if not os.path.exists(f'{folder}/killed') or os.path.exists(f'{folder}/killed/index.parquet'):
            os.system(f'rm -rf {folder}/killed')      # it had been finished: begin again
        pid, start = build('killed')
        # some kills fall anywhere, before a worker is there, too; most into the work, some clips on from where it stood
        if not k % 4: time.sleep(whole*rng.random())
        else:
            goal = stored() + rng.randint(1, 9)
            while stored() < goal and not os.path.exists(f'{folder}/killed/index.parquet') and time.monotonic() < start + 30: time.sleep(.001)
            time.sleep(.02*rng.random())
        # now the process with its workers, as when the power goes, now the process alone, which leaves workers behind
        (os.killpg if k % 2 else os.kill)(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(stored(), flush=True)
    os.waitpid(build('killed')[0], 0)
"""

@pytest.mark.parametrize('form, kills', [('none', 14), ('jpeg', 6)])
def test_killed_at_twenty_moments_ends_with_the_same_bytes(videos, tmp_path, form, kills):
    many(tmp_path, videos, 40).to_csv(tmp_path/'clips.csv', index=False)
    (tmp_path/'run.py').write_text(KILL)
    p = preloaded.run([sys.executable, tmp_path/'run.py', tmp_path, form, str(kills)], libraries='light', capture_output=True, text=True, timeout=200)
    assert p.returncode == 0, p.stderr
    seen = [int(n) for n in p.stdout.split()]
    assert len(seen) == kills and len(set(seen)) > 2, seen      # at different moments
    assert contents(tmp_path/'whole') == contents(tmp_path/'killed') and len(contents(tmp_path/'whole')) == 82
    assert len(FrameStore(tmp_path/'killed')) == 40

def test_unfinished_store_is_not_opened(videos, tmp_path):
    build_store(many(tmp_path, videos, 1), tmp_path/'frames', n_frames=4, size=(48, 64), jobs=1)
    head = json.loads((tmp_path/'frames/store.json').read_text())
    (tmp_path/'frames/store.json').write_text(json.dumps(head | dict(format=1)))
    with pytest.raises(StudyError, match='another version'): FrameStore(tmp_path/'frames')
    (tmp_path/'frames/index.parquet').unlink()
    with pytest.raises(StudyError, match='no finished frame store'): FrameStore(tmp_path/'frames')

def test_a_hang_costs_its_own_clip_only(videos, tmp_path):
    clips = many(tmp_path, videos, 3)
    (tmp_path/'c01.mp4').unlink(); os.mkfifo(tmp_path/'c01.mp4')  # whoever opens it waits for ever
    (tmp_path/'c02.mp4').unlink()
    start = time.monotonic()
    out = build_store(clips, tmp_path/'frames', n_frames=4, size=(48, 64), timeout=6, rebuild=True)
    assert out.reason.fillna('ok').tolist() == ['ok', 'timeout', 'file gone'] and time.monotonic() - start < 30
    assert FrameStore(tmp_path/'frames').clip_ids == ['c00']

@pytest.mark.new_processes
def test_a_crash_costs_its_own_clip_only(videos, tmp_path):
    clips = many(tmp_path, videos, 3)
    (tmp_path/'c01.mp4').unlink(); os.mkfifo(tmp_path/'c01.mp4')  # the worker waits there until it is shot
    def shoot():
        limit = time.monotonic() + 60
        while not (tmp_path/'frames/c00.json').exists() and time.monotonic() < limit: time.sleep(.05)
        time.sleep(.5)
        for p in psutil.Process().children(recursive=True):
            if 'spawn_main' in ' '.join(p.cmdline()): p.kill()
    t = threading.Thread(target=shoot); t.start()
    out = build_store(clips, tmp_path/'frames', n_frames=4, size=(48, 64), jobs=1)
    t.join()
    assert out.status.tolist() == ['ok', 'failed', 'ok'] and 'died' in out.detail[1]

@pytest.mark.new_processes
def test_memory_stays_flat_over_three_thousand_files(tmp_path):
    for name, options in (('ours', None), ('foreign', {'g': '250'})):
        numbered_clip(tmp_path/f'{name}.mp4', n=5, size=(48, 64), sound=False, options=options)
    normalise_clip(tmp_path/'ours.mp4', tmp_path/'clip.mp4')
    clips = pd.DataFrame([(f'c{i}', ('clip.mp4', 'foreign.mp4')[i % 2]) for i in range(3000)], columns=['clip_id', 'path'])
    me, seen, stop = psutil.Process(), [], threading.Event()
    def watch():
        while not stop.wait(.25):
            try: workers = [p.memory_info().rss for p in me.children(recursive=True) if 'spawn_main' in ' '.join(p.cmdline())]
            except psutil.Error: continue
            done = sum(e.name.endswith('.json') for e in os.scandir(tmp_path/'frames')) if (tmp_path/'frames').exists() else 0
            if workers: seen.append((done, max(workers), me.memory_info().rss))
    t = threading.Thread(target=watch); t.start()
    try: out = build_store(clips, tmp_path/'frames', n_frames=4, size=(48, 64), compression='jpeg', log=lambda s: None)
    finally: stop.set(); t.join()
    assert out.status.eq('ok').all()
    seen = np.array(seen)
    first, last = seen[(seen[:, 0] > 150) & (seen[:, 0] < 600)], seen[seen[:, 0] > 2400]
    assert len(first) and len(last)
    assert (last[:, 1:].max(0) - first[:, 1:].max(0) < 50e6).all(), (first.max(0), last.max(0))
    store, before = FrameStore(tmp_path/'frames'), me.memory_info().rss
    for c in store.clip_ids: store[c]                        # and reading them all again
    assert me.memory_info().rss - before < 50e6 and len(store._open) <= 512

NEWS = "import sys, pandas as pd; from kinetics_dance.loading.store import build_store\nif __name__ == '__main__': build_store(pd.read_csv(sys.argv[1] + '/clips.csv'), sys.argv[1] + '/frames', n_frames=4, size=(48, 64), rebuild=True)"

def test_news_on_a_terminal_and_in_a_log(videos, tmp_path):
    "A log gets whole lines and no more; a terminal gets a bar, and nothing is left of it"
    many(tmp_path, videos, 6).to_csv(tmp_path/'clips.csv', index=False)
    (tmp_path/'run.py').write_text(NEWS)
    p = subprocess.run([sys.executable, tmp_path/'run.py', tmp_path], capture_output=True, text=True, env=os.environ | {'FORCE_COLOR': '1'})
    lines = p.stdout.splitlines()
    assert p.returncode == 0 and not p.stderr and len(lines) == 1 and '\r' not in p.stdout and '\x1b' not in p.stdout
    assert lines[0].startswith('frames: 6 clips to store, about 0.2 MB; the disk has ')
    ours, theirs = pty.openpty()
    p = preloaded.Popen([sys.executable, tmp_path/'run.py', tmp_path], libraries='light', stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {'TERM': 'xterm', 'COLUMNS': '80'})
    os.close(theirs); shown = b''
    while True:
        try: part = os.read(ours, 65536)
        except OSError: break
        if not part: break
        shown += part
    os.close(ours)
    assert p.wait() == 0 and b'6 of 6 clips' in shown and p.stdout.read().count(b'\n') == 1

def test_nothing_old_is_reused_silently(videos, tmp_path):
    clips, lines = many(tmp_path, videos, 2), []
    build = lambda n: build_store(clips, tmp_path/'frames', n_frames=n, size=(48, 64), jobs=1, log=lines.append)
    build(4)
    first = contents(tmp_path/'frames')
    build(4)
    assert len(lines) == 1 and 'frames: 2 clips to store' in lines[0]      # nothing was to be done the second time
    build(5)
    assert [l for l in lines if 'clips to store' not in l] == ['frames: made anew, the store had n_frames=4'] and FrameStore(tmp_path/'frames')['c00'].shape[0] == 5
    build(4)
    assert contents(tmp_path/'frames') == first
    normalise_clip(videos/'upload.mp4', tmp_path/'c01.mp4', 2, 5)           # another video under the same name
    build(4)
    again = contents(tmp_path/'frames')
    assert again['c00.npy'] == first['c00.npy'] and read_numbers(FrameStore(tmp_path/'frames')['c01'])[0] == 30 + uniform(45, 4)[0]
    assert not [n for n in again if n.startswith('.')]

def test_mistakes_are_named(videos, tmp_path):
    with pytest.raises(StudyError, match='becomes a file name'): build_store(pd.DataFrame([('../x', 'a.mp4')], columns=['clip_id', 'path']), tmp_path/'f')
    with pytest.raises(StudyError, match='listed twice'): build_store(pd.DataFrame([('x', 'a'), ('x', 'b')], columns=['clip_id', 'path']), tmp_path/'f')
    with pytest.raises(StudyError, match='run 01_frames'): FrameStore(tmp_path/'nowhere')
    with pytest.raises(StudyError, match='keep fewer'): build_store(many(tmp_path, videos, 1), tmp_path/'f', n_frames=10**9)

@pytest.mark.parametrize('form', ['none', 'jpeg'])
def test_batches_are_the_frames_asked_for(videos, tmp_path, form):
    build_store(many(tmp_path, videos, 4), tmp_path/'frames', n_frames=12, size=(48, 64), jobs=1, compression=form)
    store = pickle.loads(pickle.dumps(FrameStore(tmp_path/'frames')))
    rng = np.random.default_rng(0)
    ids, index = rng.choice(store.clip_ids, 7), rng.integers(0, 12, (7, 5))
    top, left, flip = rng.integers(0, 48-40, 7), rng.integers(0, 64-50, 7), rng.random(7) < .5
    x = store.batch(ids, index, top, left, (40, 50), flip)
    for b in range(7):
        want = store[ids[b]][index[b]][:, top[b]:top[b]+40, left[b]:left[b]+50]
        assert (x[b] == (want[:, :, ::-1] if flip[b] else want)).all()
    assert (read_numbers(store.batch(['c02'])[0]) == 15 + uniform(45, 12)).all()
    store.threads = 1
    assert (store.batch(ids, index, top, left, (40, 50), flip) == x).all()      # however many threads decode
    with pytest.raises(ValueError, match='outside'): store.batch(['c00'], top=[9], size=(40, 50))
    with pytest.raises(StudyError, match='c99'): store.batch(['c99'])
    path = next((tmp_path/'frames').glob('c03.[nm]*'))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StudyError, match='c03.* is damaged'): FrameStore(tmp_path/'frames').batch(['c03'])

def test_changing_the_compression_leaves_nothing_behind(videos, tmp_path):
    clips = many(tmp_path, videos, 3)
    first = {}
    for form in ('none', 'jpeg', 'none', 'jpeg'):
        build_store(clips, tmp_path/'frames', n_frames=6, size=(48, 64), jobs=1, compression=form)
        assert contents(tmp_path/'frames') == first.setdefault(form, contents(tmp_path/'frames'))
    assert len(first['jpeg']) == len(first['none']) == 8 and FrameStore(tmp_path/'frames').nbytes == sum(len(b) for n, b in first['jpeg'].items() if 'mjpeg' in n)

def test_a_packed_clip_is_a_video_and_its_pictures_are_files(videos, tmp_path):
    import av
    build_store(many(tmp_path, videos, 1), tmp_path/'frames', n_frames=6, size=(48, 64), jobs=1, compression='jpeg')
    with av.open(str(tmp_path/'frames/c00.mjpeg')) as c: x = np.stack([f.to_ndarray(format='rgb24') for f in c.decode(video=0)])
    assert (read_numbers(x) == 15 + uniform(45, 6)).all()
    clips = pd.DataFrame([('c00', 'tap/../dancing ..', 'train')], columns=['clip_id', 'label', 'split'])
    assert export_frames(FrameStore(tmp_path/'frames'), clips, tmp_path/'out') == 6
    assert sorted(str(p.relative_to(tmp_path)) for p in (tmp_path/'out').rglob('*') if p.is_file()) == [f'out/train/{folder_name(clips.label[0])}/c00/{k:05d}.jpg' for k in range(6)]

def test_same_batches_whoever_fetches_them(videos, tmp_path):
    from kinetics_dance.loading.dataloader import ClipDataLoaders
    clips = many(tmp_path, videos, 11).assign(label=list('abababababa'), split=['train']*9 + ['valid']*2)
    build_store(clips, tmp_path/'frames', n_frames=12, size=(48, 64), compression='jpeg')
    def epochs(n=2, **how):
        dls = ClipDataLoaders.from_store(FrameStore(tmp_path/'frames'), clips.sample(frac=1, random_state=len(how)), n_frames=4, bs=2, flip=True, seed=5, **how)
        return [t for _ in range(n) for dl in dls for b in dl for t in b]
    want = epochs()
    assert len(want) == 2*2*(4 + 1)
    for how in (dict(num_workers=1, start='fork'), dict(num_workers=2, start='fork'), dict(num_workers=3), dict(num_workers=2, start='spawn')):
        got = epochs(1 if how.get('start') == 'spawn' else 2, **how)
        assert all((a == b).all() for a, b in zip(want, got)) and len(got) in (10, 20), how

def test_film_strip_tiles_everything():
    import matplotlib; matplotlib.use('agg')
    x = np.random.default_rng(0).integers(0, 255, (5, 12, 16, 3), dtype=np.uint8)
    ax = film_strip(x, labels='abcde', ncols=3, title='t')
    assert ax.images[0].get_array().shape == (2*(12+2)-2, 3*(16+2)-2, 4) and len(ax.texts) == 5
