"What else gives a dance away: sound, figure, scene, joints, and what is put together from them."
import json
from fractions import Fraction
import av, numpy as np, pandas as pd, pytest, torch
from kinetics_dance.loading.sound import RATE, SoundStore, build_sound, read_sound
from kinetics_dance.synthetic import uploads
from conftest import tiny_study

TINY = dict(study='tiny', seeds=[0], epochs=1, lr=[.002], clip_frames=4, batch_size=4, jobs=1)


def file_with(path, sound=None, rate=22050, layout='mono', frames=30):
    "A black video of 15 frames a second; `sound (channels, n)` in [-1, 1]"
    with av.open(str(path), 'w', format='mp4') as out:
        v = out.add_stream('libx264', rate=15)
        v.width = v.height = 32
        v.pix_fmt, v.time_base = 'yuv420p', Fraction(1, 15)
        a = None if sound is None else out.add_stream('aac', rate=rate, layout=layout)
        for i in range(frames):
            f = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), 'rgb24')
            f.pts = i
            out.mux(v.encode(f))
        out.mux(v.encode())
        if a is not None:
            f = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound, np.float32), 'fltp', layout)
            f.sample_rate, f.pts = rate, 0
            out.mux(a.encode(f))
            out.mux(a.encode())
    return path


def tone(seconds, rate, hertz=440): return .5*np.sin(2*np.pi*hertz*np.arange(int(seconds*rate))/rate)


def pitch(x): return np.abs(np.fft.rfft(x.astype(float)))[1:].argmax() + 1      # Hz, of a second


@pytest.mark.parametrize('rate, layout, channels', [(22050, 'mono', 1), (48000, 'stereo', 2), (44100, '5.1', 6), (16000, 'mono', 1)])
def test_any_rate_and_any_number_of_channels(tmp_path, rate, layout, channels):
    sound = np.repeat(tone(2, rate)[None], channels, 0)
    x, said = read_sound(file_with(tmp_path/'a.mp4', sound, rate, layout), 2.)
    assert said == 'ok' and len(x) == 2*RATE
    assert abs(pitch(x[8000:24000]) - 440) <= 2 and abs(x).max() > 5000


def test_what_lacks_is_a_condition_and_no_error(tmp_path):
    mute, hiss = np.zeros((1, 44100)), np.random.default_rng(0).normal(0, 1e-5, (1, 44100))
    assert read_sound(file_with(tmp_path/'a.mp4', mute), 2.)[1] == 'silent'
    assert read_sound(file_with(tmp_path/'b.mp4', hiss), 2.)[1] == 'silent'
    assert read_sound(file_with(tmp_path/'c.mp4'), 2.)[1] == 'no track'
    x, said = read_sound(file_with(tmp_path/'d.mp4', tone(1, 22050)[None]), 2.)
    assert said == 'short' and len(x) == 2*RATE and not x[int(1.2*RATE):].any()
    x, said = read_sound(file_with(tmp_path/'e.mp4', tone(5, 22050)[None]), 2.)     # longer than the pictures
    assert said == 'ok' and len(x) == 2*RATE
    (tmp_path/'f.mp4').write_text('<!doctype html>')
    assert read_sound(tmp_path/'f.mp4', 2.)[1] == 'unreadable'
    whole = (tmp_path/'e.mp4').read_bytes()
    (tmp_path/'g.mp4').write_bytes(whole[:len(whole)//3])
    assert read_sound(tmp_path/'g.mp4', 2.)[1] in ('unreadable', 'short', 'silent')


def test_a_store_that_was_stopped_ends_in_the_same_bytes(tmp_path):
    for k in range(3): file_with(tmp_path/f'{k}.mp4', tone(2, 22050, 300 + 200*k)[None])
    clips = pd.DataFrame([(f'c{k}', f'{k}.mp4', 2.) for k in range(3)], columns=['clip_id', 'path', 'seconds'])
    build_sound(clips, tmp_path/'whole', jobs=1, log=None)
    files = {p.name: p.read_bytes() for p in (tmp_path/'whole').iterdir()}
    build_sound(clips[:1], tmp_path/'part', jobs=1, log=None)
    (tmp_path/'part'/'.c1.99.npy').write_bytes(b'half')         # of a worker that was killed
    said = []
    build_sound(clips, tmp_path/'part', jobs=1, log=said.append)
    assert {p.name: p.read_bytes() for p in (tmp_path/'part').iterdir()} == files
    assert '2 clips to decode' in said[0] and said[1] == 'sound: 3 ok'
    said.clear()
    build_sound(clips, tmp_path/'part', jobs=1, log=said.append)
    assert not said                                             # nothing to do, nothing to say
    file_with(tmp_path/'1.mp4', tone(2, 22050, 900)[None])      # another video: its sound is decoded again
    build_sound(clips, tmp_path/'part', jobs=1, log=said.append)
    assert '1 clips to decode' in said[0]


def test_the_copy_that_runs_backwards_is_heard_backwards(tmp_path):
    from kinetics_dance.clips.arrow import both_ways
    from kinetics_dance.loading.sound import store_sound
    rows = pd.DataFrame([dict(clip_id='c', label='x', group='g', split='test', path='a.mp4', youtube_id='c', time_start=0, time_end=2, source='folder')])
    ids = both_ways(rows).clip_id.tolist()
    file_with(tmp_path/'a.mp4', tone(1, 22050)[None])
    for c in ids: store_sound(c, tmp_path/'a.mp4', tmp_path, 2.)
    there, back = (np.load(tmp_path/f'{c}.npy') for c in ids)
    assert np.array_equal(there, back[::-1]) and there[:RATE//2].any() and not back[:RATE//2].any()


def test_tunes_tell_nothing_unless_they_should():
    "Without bias the tunes are those of version 0.2; with it the share of uploads that tell is the bias"
    plain = uploads.plan_uploads(40, 20)
    assert all('tune' not in c for s in plain for c in s['clips'])
    told = [all('tune' in c for c in s['clips']) for s in uploads.plan_uploads(40, 20, sound_bias=.7)]
    assert abs(np.mean(told) - .7) < .1
    assert all('tune' in c for s in uploads.plan_uploads(3, 2, sound_bias=1.) for c in s['clips'])


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Two dances with a tone each"
    from kinetics_dance.clips.table import ClipTable
    runs = tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'bounce'))
    table = ClipTable(runs/'tiny'/'clips.sqlite')
    table.update([dict(clip_id=c, path=f'videos/{c}.mp4') for c in table.frame().clip_id])
    for p in sorted((runs/'tiny'/'videos').glob('*.mp4')):
        file_with(p, tone(3, 22050, 300 if '_000000_' in p.name else 1500)[None], frames=45)
    return runs


def test_sound_is_trained_and_fused_like_any_model(tiny):
    from kinetics_dance.comparison import compare
    from kinetics_dance.models.config import find_model, read_model
    from kinetics_dance.training.runs import train_run, train_seeds
    s = TINY | dict(runs=str(tiny))
    run = tiny/'tiny'
    config = train_run('sound', s | dict(epochs=20), 0)
    assert config['input'] == 'sound' and config['pretraining'] == 'none'
    again = train_run('sound', s | dict(epochs=20), 0)
    assert again['seconds'] == config['seconds']                # up to date
    said = pd.read_parquet(run/'predictions/sound/seed0.parquet')
    test = said[said.split == 'test']
    p = test.filter(regex='^p_')
    assert (p.columns[p.to_numpy().argmax(1)].str[2:] == test.label).mean() >= .75
    model, _ = read_model(run/'models/sound/seed0')
    assert not [*(run/'predictions/sound').glob('*/')]          # nobody shuffles what is heard
    both = train_seeds('sound+per_frame', s)[0]
    assert 0 <= both['weight'] <= 1
    fused = pd.read_parquet(run/'predictions/sound+per_frame/seed0.parquet')
    assert np.allclose(fused.filter(regex='^p_').sum(axis=1), 1) and set(fused.split) == {'valid', 'test'}
    # the question stays with the models of frames, and so do the commands
    train_run('cnn_lstm', s, 0)
    assert set(compare(run, n_resamples=20).predictions.probs) == {'per_frame', 'cnn_lstm'}
    assert find_model(run/'models/sound/seed0')
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.inference import Predictor
    with pytest.raises(StudyError, match='trained on sound'): Predictor.load(run/'models/sound/seed0')


@pytest.fixture()
def known(monkeypatch):
    "The dancers of the tiny study, as the demo would know them"
    from kinetics_dance.loading import bodies
    def dancers_of(settings, table):
        return {c: ('windmill' if '_000000_' in c else 'bounce', 0, int(g[6:]), None) for c, g in zip(table.clip_id, table['group'])}
    monkeypatch.setattr(bodies, '_dancers_of', dancers_of)


def test_figure_scene_and_joints_are_trained_and_tested(tiny, known):
    from kinetics_dance.evaluation.ladder import follow_figure_or_scene, ladder
    from kinetics_dance.loading.bodies import SHOWN_KINDS
    from kinetics_dance.training.runs import train_run
    s, run = TINY | dict(runs=str(tiny), bodies='known', source='demo'), tiny/'tiny'
    train_run('per_frame', s, 0)
    assert {p.parent.name for p in (run/'predictions/per_frame').glob('*/seed0.parquet')} >= {*SHOWN_KINDS, 'shuffled'}
    configs = {m: train_run(m, s, 0) for m in ('joints_lstm', 'per_frame-figure', 'per_frame-scene')}
    assert {m: c['input'] for m, c in configs.items()} == {'joints_lstm': 'joints', 'per_frame-figure': 'figure', 'per_frame-scene': 'scene'}
    assert len({c['key'] for c in configs.values()}) == 3
    assert not [*(run/'predictions/joints_lstm').glob('*/')]
    again = train_run('per_frame-figure', s, 0)
    assert again['seconds'] == configs['per_frame-figure']['seconds']
    rows, by_class = ladder(run, n_resamples=20)
    assert {'without sound', 'figure only', 'skeleton', 'scene only', 'one frame'} <= set(rows.rung)
    follow = follow_figure_or_scene(run, n_resamples=20).set_index('model').loc['per_frame']
    assert abs(follow.figure + follow.scene - 1) < 1e-6         # two classes: it is one or the other


def test_bodies_that_were_stopped_end_in_the_same_bytes(tiny, known):
    from kinetics_dance.loading.bodies import build_bodies
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.training.study_files import study_clips
    run, s, said = tiny/'tiny', dict(bodies='known', source='demo'), []
    clips, frames = study_clips(run), FrameStore(run/'frames')
    build_bodies(clips, frames, run/'again', s)
    files = {p.name: p.read_bytes() for p in (run/'again').iterdir()}
    for gone in ('store.json', f'{clips.clip_id[0]}.npz'): (run/'again'/gone).unlink()
    build_bodies(clips, frames, run/'again', s, log=said.append)
    assert '1 clips to look at' in said[0]
    assert {p.name: p.read_bytes() for p in (run/'again').iterdir()} == files


def test_a_dying_estimator_costs_one_clip(tmp_path, monkeypatch):
    "It crashes on the second of three clips and hangs on the fourth; the others are there"
    from kinetics_dance.loading import pose
    fake = tmp_path/'worker.py'
    fake.write_text("""
import json, os, sys, time, numpy as np
for source, target in json.load(open(sys.argv[2])):
    x = np.load(source)
    if x.max() == 1: os._exit(9)
    if x.max() == 3: time.sleep(60)
    np.savez(target, joints=np.ones((len(x), 13, 3)), mask=x[..., 0])
""")
    monkeypatch.setattr(pose.pose_worker, '__file__', str(fake))
    monkeypatch.setattr(pose, 'START', 8)
    out = pose.run_estimator('mediapipe', [np.full((2, 8, 8, 3), k, np.uint8) for k in (0, 1, 2, 3)], timeout=.1)
    assert [x is not None for x in out] == [True, False, True, False]


def test_an_estimator_that_is_not_there_is_one_line():
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.loading.pose import check_estimator
    from kinetics_dance.study.settings import check_study
    with pytest.raises(StudyError, match='cannot be imported by'): check_estimator('mediapipe')
    with pytest.raises(StudyError, match="did you mean|is none of none, known"): check_study(dict(bodies='mediapip'))
    with pytest.raises(StudyError, match='only for the sources demo and motion'): check_study(dict(bodies='known', source='folder', folder='.'))


def test_a_name_that_is_none(tiny):
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.training.runs import train_run
    for name in ('sound+cnn_lsdm', 'cnn_lsdm-figure', 'sounds'):
        with pytest.raises(StudyError, match='is none of'): train_run(name, TINY | dict(runs=str(tiny)), 0)
