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
    runs = tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'bounce'))
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


def test_a_name_that_is_none(tiny):
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.training.runs import train_run
    for name in ('sound+cnn_lsdm', 'cnn_lsdm-figure', 'sounds'):
        with pytest.raises(StudyError, match='is none of'): train_run(name, TINY | dict(runs=str(tiny)), 0)
