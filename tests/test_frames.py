"""Right frames, and a store that survives anything: what cannot be shown in a cell."""
import os, shutil, signal, subprocess, sys, time
import numpy as np, pandas as pd, pickle, pytest
from hypothesis import given, settings, strategies as st
from kinetics_dance import frames, reading
from kinetics_dance.data import StudyError
from kinetics_dance.video import Unavailable, normalise_clip, numbered_clip, read_numbers
from kinetics_dance.reading import frame_times, has_decord, read_frames, regular
from kinetics_dance.frames import (FrameStore, SAMPLERS, build_store, film_strip,
                                   segments, uniform)

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

@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_samplers(n, t, seed):
    for name, f in [*SAMPLERS.items(), ('segments', lambda n, t: segments(n, t, np.random.default_rng(seed)))]:
        i = f(n, t)
        assert i.shape == (t,) and i.dtype.kind == 'i' and i.min() >= 0 and i.max() < n and (np.diff(i) >= 0).all(), name
        assert (i == f(n, t)).all(), name
        if name in ('uniform', 'segments') and n >= t: assert len(set(i)) == t or name == 'segments'

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

def contents(folder): return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}

def many(folder, videos, n):
    for i in range(n): shutil.copy(videos/'clip.mp4', folder/f'c{i:02}.mp4')
    return pd.DataFrame([(f'c{i:02}', f'c{i:02}.mp4') for i in range(n)], columns=['clip_id', 'path'])

def test_killed_build_goes_on_and_ends_the_same(videos, tmp_path):
    clips = many(tmp_path, videos, 24)
    clips.to_csv(tmp_path/'clips.csv', index=False)
    build_store(clips, tmp_path/'whole', n_frames=12, size=(48, 64))
    script = tmp_path/'run.py'
    script.write_text("import sys, pandas as pd\nfrom kinetics_dance.frames import build_store\n"
                      "if __name__ == '__main__': build_store(pd.read_csv(sys.argv[1] + '/clips.csv'), sys.argv[1] + '/killed', n_frames=12, size=(48, 64), jobs=1)\n")
    for n in (1, 8):
        p = subprocess.Popen([sys.executable, script, tmp_path])
        limit = time.monotonic() + 60
        while len(list(tmp_path.glob('killed/c*.npy'))) < n and p.poll() is None and time.monotonic() < limit: time.sleep(.002)
        p.send_signal(signal.SIGKILL); p.wait()
        with pytest.raises(StudyError, match='no finished frame store'): FrameStore(tmp_path/'killed')
    assert build_store(clips, tmp_path/'killed', n_frames=12, size=(48, 64)).status.eq('ok').all()
    assert contents(tmp_path/'whole') == contents(tmp_path/'killed')

def test_a_hang_costs_its_own_clip_only(videos, tmp_path):
    clips = many(tmp_path, videos, 3)
    (tmp_path/'c01.mp4').unlink(); os.mkfifo(tmp_path/'c01.mp4')  # whoever opens it waits for ever
    (tmp_path/'c02.mp4').unlink()
    start = time.monotonic()
    out = build_store(clips, tmp_path/'frames', n_frames=4, size=(48, 64), timeout=6, rebuild=True)
    assert out.reason.fillna('ok').tolist() == ['ok', 'timeout', 'removed'] and time.monotonic() - start < 30
    assert FrameStore(tmp_path/'frames').clip_ids == ['c00']

def test_nothing_old_is_reused_silently(videos, tmp_path):
    clips, lines = many(tmp_path, videos, 2), []
    build = lambda n: build_store(clips, tmp_path/'frames', n_frames=n, size=(48, 64), jobs=1, log=lines.append)
    build(4)
    first = contents(tmp_path/'frames')
    build(5)
    assert lines == ['frames: made anew, the store had n_frames=4'] and FrameStore(tmp_path/'frames')['c00'].shape[0] == 5
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

def test_batches_are_the_frames_asked_for(videos, tmp_path):
    build_store(many(tmp_path, videos, 4), tmp_path/'frames', n_frames=12, size=(48, 64), jobs=1)
    store = pickle.loads(pickle.dumps(FrameStore(tmp_path/'frames')))
    rng = np.random.default_rng(0)
    ids, index = rng.choice(store.clip_ids, 7), rng.integers(0, 12, (7, 5))
    top, left = rng.integers(0, 48-40, 7), rng.integers(0, 64-50, 7)
    x = store.batch(ids, index, top, left, (40, 50))
    for b in range(7): assert (x[b] == store[ids[b]][index[b]][:, top[b]:top[b]+40, left[b]:left[b]+50]).all()
    assert (read_numbers(store.batch(['c02'])[0]) == 15 + uniform(45, 12)).all()
    with pytest.raises(ValueError, match='outside'): store.batch(['c00'], top=[9], size=(40, 50))
    with pytest.raises(StudyError, match='c99'): store.batch(['c99'])

def test_film_strip_tiles_everything():
    import matplotlib; matplotlib.use('agg')
    x = np.random.default_rng(0).integers(0, 255, (5, 12, 16, 3), dtype=np.uint8)
    ax = film_strip(x, labels='abcde', ncols=3, title='t')
    assert ax.images[0].get_array().shape == (2*(12+2)-2, 3*(16+2)-2, 4) and len(ax.texts) == 5
