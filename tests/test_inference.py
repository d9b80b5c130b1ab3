"One video in, dances over time out: the seed's form, every kind of bad input, safe weights, and what a user of the library relies on."
import contextlib, csv, io, json, os, pickle, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from conftest import ROOT
from kinetics_dance import inference
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.base import Unavailable
from kinetics_dance.video.decoding import numbered_clip, probe, read_numbers
from kinetics_dance.inference import Predictor, watch_videos
from kinetics_dance.video.odd_files import odd_file
from kinetics_dance.video.reading import read_frames

MEDIA = ROOT.parent/'shared'/'data'/'media'
CLASSES = ['jumpstyle dancing', 'tango dancing', 'tap dancing']


def make_model(folder, spec='kinetics_dance.cnn_lstm:CNNLSTM', classes=CLASSES, seconds=1., **arguments):
    "An untrained model in a folder"
    import importlib, torch
    from safetensors.torch import save_file
    module, name = spec.split(':')
    torch.manual_seed(0)
    net = getattr(importlib.import_module(module), name)(n_classes=len(classes), **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder/'model.safetensors')
    (folder/'config.json').write_text(json.dumps(dict(format=1, model=spec, arguments=arguments, classes=classes, frames=4, crop=[44, 60],
                                                    stored=dict(height=48, width=64), clip_seconds=seconds)))
    return folder


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inference')
    make_model(folder/'model')
    numbered_clip(folder/'clip.mp4', 60, 15, (96, 128))
    return folder


@pytest.fixture(scope='module')
def predictor(here):
    p = Predictor.load(here/'model')
    yield p
    p.close()


def cli(*args, main=inference.main):
    "(exit code, standard output, standard error) of a command, in this process"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main([str(a) for a in args])
        except SystemExit as e: return e.code, out.getvalue(), err.getvalue()


def one_line(err): return len(err.strip().splitlines()) == 1 and 'Traceback' not in err


# ---- the seed's form

def test_the_old_form_to_the_letter(here, tmp_path):
    "`python3 inference.py --videopath inference.mp4`: a part is saved as <name>_cut.mp4, frames are really kept"
    video = tmp_path/'inference.mp4'
    video.write_bytes((here/'clip.mp4').read_bytes())
    p = subprocess.run([sys.executable, 'inference.py', '--videopath', str(video), '--model-path', str(here/'model'), '--start-time', '1.2', '--end-time', '3.2',
                        '--save-frames-path', str(tmp_path/'frames'), '--rm-frames', 'False'], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (p.returncode, p.stderr) == (0, '')
    assert any(c in p.stdout.splitlines()[1] for c in CLASSES) and '%' in p.stdout
    numbers = read_numbers(read_frames(tmp_path/'inference_cut.mp4'))
    assert abs(numbers[0]-18) <= 1 and abs(numbers[-1]-47) <= 1 and (np.diff(numbers) == 1).all(), 'frames 18 to 47, give or take one'
    assert probe(tmp_path/'inference_cut.mp4')['audio']
    kept = sorted((tmp_path/'frames').glob('*.jpg'))
    assert len(kept) == 8 and set(tmp_path.iterdir()) == {video, tmp_path/'frames', tmp_path/'inference_cut.mp4'}
    script = lambda *a: cli('--videopath', video, '--model-path', here/'model', *a, main=inference.script)
    code, out, err = script('--save-frames-path', tmp_path/'frames')
    assert (code, err) == (0, '') and sorted((tmp_path/'frames').glob('*')) == kept, 'by default they are removed; those of before are not'
    code, out, err = script('--start-time', '1')
    assert code == 2 and one_line(err) and 'where it ends' in err
    assert script('--rm-frames', 'maybe')[0] == 2 and cli('--model-path', here/'model', main=inference.script)[0] == 2
    code, out, err = script('--duration', '2', '--json')
    assert code == 2 and one_line(err) and '--overwrite' in err, 'what is there stays'
    assert script('--duration', '2', '--json', '--overwrite')[0] == 0 and len(read_frames(tmp_path/'inference_cut.mp4')) == 30


def test_avi_too(here):
    code, out, err = cli('--videopath', odd_file('MPEG-4, AVI', here), '--model-path', here/'model')
    assert (code, err) == (0, '') and CLASSES[0] in out


def test_what_a_start_loads():
    "No fastai, no pandas, and PyTorch only with a model: half a second would become four"
    code = ("import sys\nfrom kinetics_dance.study.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nimport kinetics_dance.inference\n"
            "print('loaded:', *[m for m in ('torch', 'fastai', 'pandas', 'matplotlib', 'av', 'sklearn', 'scipy') if m in sys.modules])")
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert p.returncode == 0 and p.stdout.rstrip().endswith('loaded:'), p.stdout[-200:]+p.stderr
    for word in ('predict', 'models', 'download', 'frames', 'train', 'report', 'status', 'export', 'demo-video'): assert f' {word} ' in p.stdout


def test_what_a_prediction_loads(here):
    "Neither fastai nor pandas nor torchvision, nor the training code"
    code = (f"import sys\nfrom kinetics_dance.inference import Predictor\np = Predictor.load({str(here/'model')!r})\np.predict({str(here/'clip.mp4')!r})\n"
            "print(*[m for m in ('fastai', 'pandas', 'torchvision', 'matplotlib', 'kinetics_dance.training.learner', 'torch._dynamo') if m in sys.modules])")
    p = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)        # and no `if __name__ == '__main__':`
    assert p.returncode == 0 and not p.stdout.split(), p.stdout+p.stderr


# ---- what comes out

def test_over_time_with_sound_and_picture(here, tmp_path):
    code, out, err = cli('predict', here/'clip.mp4', '--model-path', here/'model', '--over-time', '--step', '.5', '--picture', tmp_path/'p.png', '--save-video', tmp_path/'v.mp4', '--json')
    assert (code, err) == (0, '')
    row = json.loads(out)
    assert row['starts'] == [0, .5, 1, 1.5, 2, 2.5, 3] and row['ends'][-1] == 4 and all(abs(sum(w.values())-1) < 1e-6 for w in row['windows'])
    assert row['label'] == row['top'][0][0] and row['probability'] == row['top'][0][1] and row['warnings'] == []
    assert (tmp_path/'p.png').stat().st_size > 5000
    got = probe(tmp_path/'v.mp4')
    assert got['audio'] and got['frames'] == 60 and got['constant']
    import av
    with av.open(str(tmp_path/'v.mp4')) as c: tone = np.concatenate([f.to_ndarray()[0] for f in c.decode(audio=0)])
    pitch = np.abs(np.fft.rfft(tone[:44100])).argmax()
    assert abs(pitch-440) <= 2 and len(tone)/44100 > 3.9, 'the tone of the original, as long'
    assert np.abs(read_frames(tmp_path/'v.mp4')[:, 70:].astype(int)-read_frames(here/'clip.mp4')[:, 70:]).mean() < 4
    assert {p.name for p in tmp_path.iterdir()} == {'p.png', 'v.mp4'}


def test_folders_and_patterns(here, tmp_path):
    "One row a file; a bad one is a row with its reason, and the rest goes on"
    for n in ('a.mp4', 'b/c.mp4'):
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).write_bytes((here/'clip.mp4').read_bytes())
    (tmp_path/'bad.mp4').write_text('no video')
    code, out, err = cli('predict', tmp_path, '--model-path', here/'model', '--top', 2)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 2 and one_line(err) and [Path(r['video']).name for r in rows] == ['a.mp4', 'c.mp4', 'bad.mp4'] or sorted(Path(r['video']).name for r in rows) == ['a.mp4', 'bad.mp4', 'c.mp4']
    assert {Path(r['video']).name: r['error'][:11] for r in rows if r['error']} == {'bad.mp4': 'not a video'}
    code, out, err = cli('predict', tmp_path/'*.mp4', here/'gone.mp4', '--model-path', here/'model', '--json')
    rows = json.loads(out)
    assert code == 2 and [('label' in r, 'error' in r) for r in rows] == [(True, False), (False, True), (False, True)]
    for name in ('rows.csv', 'rows.json'): assert cli('predict', tmp_path/'a.mp4', tmp_path/'b', '--model-path', here/'model', '--out', tmp_path/name)[:2] == (0, '')
    assert len(json.loads((tmp_path/'rows.json').read_text())) == 2 == len((tmp_path/'rows.csv').read_text().splitlines())-1


def test_the_newest_model_is_the_default(here, tmp_path, monkeypatch):
    (tmp_path/'settings.ini').touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = cli('predict', here/'clip.mp4')
    assert code == 2 and one_line(err) and 'make report' in err and '--model-path' in err
    for age, seed in ((100, 'seed1'), (50, 'seed0')):
        f = make_model(tmp_path/'runs/mine/models/cnn_lstm'/seed)
        os.utime(f/'config.json', (1e9-age, 1e9-age))
    code, out, err = cli('predict', here/'clip.mp4', '--json')
    assert code == 0 and err.startswith('model: ') and err.rstrip().endswith('seed0')
    assert [r['path'][-5:] for r in json.loads(cli('models', '--json')[1])] == ['seed1', 'seed0']


def test_a_study_clip_gets_the_numbers_of_the_study(predictor, here):
    "The window of a clip shows the model the very frames that the study's store keeps, cut alike"
    import torch
    from kinetics_dance.loading.reader import normalise
    from kinetics_dance.video.samplers import spread, uniform
    from kinetics_dance.video.encoding import normalise_clip
    normalise_clip(here/'clip.mp4', here/'second.mp4', 1., 2.)
    stored = uniform(15, 12)
    frames = read_frames(here/'second.mp4', stored[spread(12, 4, [.5])[0]], size=(48, 64))
    with torch.inference_mode(): right = predictor.model(normalise(torch.from_numpy(frames[None, :, 2:46, 2:62].copy()))).softmax(-1)
    assert np.allclose(predictor.predict(here/'second.mp4').windows, right.numpy(), atol=1e-5)


@pytest.mark.parametrize('args, wanted', [(['--study', 's', '--model', 'cnn_lstm', '--seed', '1', '--runs', 'r'], ('s', 'cnn_lstm', 1, 'r')), (['--study', 's'], ('s', None, None, None))])
def test_train_hands_over(monkeypatch, args, wanted):
    from kinetics_dance.study import cli as command_line, launch
    asked = []
    monkeypatch.setattr(launch, 'train_study', lambda study, model=None, seed=None, runs=None, log=print, packed=None: asked.append((study, model, seed, runs)) or [])
    assert cli('train', *args, '--json', main=command_line.main)[:2] == (0, '[]\n') and asked == [wanted]


# ---- bad input

@pytest.mark.parametrize('name, says', [
    ('text', 'not a video'), ('nothing', 'truncated'), ('cut short, index last', 'truncated'), ('sound only', 'no video stream'), ('encrypted', 'encrypted'),
    ('first segment only', 'truncated')])
def test_what_is_no_video(predictor, here, name, says):
    with pytest.raises(Unavailable, match=says): predictor.predict(odd_file(name, here))


@pytest.mark.parametrize('name', ['1 frame', '3 frames', 'variable rate', 'turned by 90', 'H.264, 10 bits', 'HEVC', 'AV1', 'edit list', 'H.264, open GOP', 'late start', 'no duration'])
def test_odd_videos_show_the_right_frames(predictor, here, name, tmp_path):
    "The numbers in the frames that the model saw are those on screen at these times"
    from kinetics_dance.video.odd_files import ODD_FILES
    from kinetics_dance.video.reading import frame_times
    try: video = odd_file(name, here)
    except LookupError as e: pytest.skip(f'no encoder: {e}')
    p = predictor.predict(video, save_frames=tmp_path)
    assert p.warnings == [] and np.allclose(p.windows.sum(1), 1)
    shown, times = ODD_FILES[name].shown, frame_times(video)
    from PIL import Image
    for f in tmp_path.glob('*.jpg'):
        picture = np.rot90(np.asarray(Image.open(f)), -ODD_FILES[name].turn//90)
        number = shown[int(np.abs(times-float(f.stem)).argmin())]
        assert read_numbers(picture[None])[0] == number
    assert len(list(tmp_path.glob('*.jpg'))) >= min(4, len(shown))


def test_less_than_half_is_a_warning(predictor, here):
    short = here/'short'/'short.mp4'
    short.parent.mkdir(exist_ok=True)
    whole = odd_file('index first', here).read_bytes()
    short.write_bytes(whole[:int(len(whole)*.65)])
    p = predictor.predict(short)
    assert 'less than half' in p.warnings[0] and 0 < p.span[1] < 1.6
    assert 'not all of it' in predictor.predict(odd_file('cut short, index first', here)).warnings[0]
    code, out, err = cli('predict', short, '--model-path', here/'model', '--json')
    assert code == 0 and 'less than half' in json.loads(out)['warnings'][0] and err.startswith('warning: ') and one_line(err)


@pytest.mark.parametrize('args, says', [
    (['--start-time', '9', '--end-time', '10'], 'lies beyond its end'), (['--end-time', '9'], 'lies beyond its end'), (['--start-time', '3', '--end-time', '1'], 'not after'),
    (['--start-time', '-1', '--end-time', '1'], '-1 is not'), (['--end-time', 'nan'], 'nan is not'), (['--duration', 'inf'], 'inf is not'), (['--start-time', '1'], 'where it ends'),
    (['--duration', '0'], 'not after'), (['--end-time', 'soon'], 'end-time'), (['--step', '0'], 'step'), (['--step', 'nan'], 'step'), (['--top', '0'], '--top'),
    (['--save-video', '/proc/no/x.mp4'], 'cannot write'), (['--save-video', '{clip}'], 'is the video itself'), (['--save-video', 'x.txt'], 'does not end in'),
    (['--over-time', '--picture', '/proc/no/x.png'], 'cannot write'), (['--save-frames-path', '/proc/no'], 'cannot write'), (['--out', '/proc/no/x.csv'], 'cannot write'),
    (['--timeout', '.001'], 'timeout'), (['--model-path', '/no/model'], 'no such model')])
def test_bad_wishes_are_one_line(here, args, says):
    before = sorted(here.iterdir())
    code, out, err = cli('predict', here/'clip.mp4', '--model-path', here/'model', *[a.format(clip=here/'clip.mp4') for a in args])
    assert code == 2 and one_line(err) and err.startswith('error: ') and says in err, err
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize('name, says', [('gone.mp4', 'no such file'), ('', 'a folder, not a video'), ('no*.mp4', 'no file has such a name')])
def test_files_that_are_none(here, name, says, tmp_path):
    code, out, err = cli('predict', tmp_path/name, '--model-path', here/'model')
    assert code == 2 and one_line(err) and (says in err or 'no video below' in err)


def test_a_hanging_file_is_given_up_and_the_next_one_read(predictor, here):
    with pytest.raises(Unavailable, match='timeout'): predictor.predict(here/'clip.mp4', timeout=.001)
    assert len(predictor.predict(here/'clip.mp4').starts) == 4
    predictor.reader.process.kill()     # as a crash in a decoder would
    predictor.reader.process.wait()
    assert len(predictor.predict(here/'clip.mp4').starts) == 4


def test_a_fault_of_ours_is_code_1(here, monkeypatch):
    monkeypatch.setattr(inference.Predictor, 'predict', lambda *a, **k: {}['x'])
    code, out, err = cli('predict', here/'clip.mp4', '--model-path', here/'model')
    assert code == 1 and one_line(err) and 'KeyError' in err
    assert 'Traceback' in cli('predict', here/'clip.mp4', '--model-path', here/'model', '--debug')[2]


@pytest.mark.skipif(not MEDIA.exists(), reason='the odd videos (shared/data/media) are not beside this checkout')
def test_real_odd_videos(here):
    rows = {Path(r['video']).name: r for r in watch_videos([MEDIA], here/'model')}
    bad = {'bipbop_480wp_1001kbps-cenc-video-key1-init.mp4', 'invalid_userdata.mp4', 'sine-3s-xhe-aac-44khz-mono.mp4'}
    assert {n for n, r in rows.items() if 'error' in r} == bad and len(rows) >= 20
    assert all(r['warnings'] == [] and r['frames'] >= 1 for n, r in rows.items() if n not in bad)


# ---- weights and cards

class Trap:
    "Unpickled, it leaves a folder behind"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def test_nothing_of_a_model_is_run(here, tmp_path):
    trap, model = pickle.dumps(Trap(tmp_path/'sprung')), make_model(tmp_path/'m', 'kinetics_dance.per_frame:PerFrame')
    pickle.loads(pickle.dumps(Trap(tmp_path/'proof')))
    assert (tmp_path/'proof').exists(), 'the trap works'
    good = (model/'model.safetensors').read_bytes()
    (tmp_path/'weights.pth').write_bytes(trap)
    def says():
        code, out, err = cli('predict', here/'clip.mp4', '--model-path', model)
        assert code == 2 and one_line(err), err
        return err
    for wrong in (trap, good[:len(good)//2], good[:7], b'', (here/'model'/'model.safetensors').read_bytes()):
        (model/'model.safetensors').write_bytes(wrong)
        assert 'not the weights of this model' in says()
    (model/'model.safetensors').write_bytes(good)
    card = json.loads((model/'config.json').read_text())
    for change, why in (({'format': 2}, 'newer version'), ({'model': 'os:system'}, 'is none of'), ({'arguments': {'backbone': 'nothing'}}, 'make no PerFrame'),
                        ({'frames': 10**9}, 'frames'), ({'classes': ['one']}, 'classes'), ({'clip_seconds': float('inf')}, 'clip_seconds'), ({'crop': [4, 5, 6]}, 'crop')):
        (model/'config.json').write_text(json.dumps(card | change))
        assert why in says()
    (model/'config.json').write_text(json.dumps(card | {'arguments': {'weights': str(tmp_path/'weights.pth')}}))
    assert cli('predict', here/'clip.mp4', '--model-path', model)[0] == 0, 'a card cannot have a file opened'
    (model/'config.json').write_bytes(b'\x80')
    assert 'not JSON' in says()
    model = tmp_path/'weights.pth'
    assert 'a pickle can run code' in says()
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('spec, arguments', [('kinetics_dance.per_frame:PerFrame', {}), ('kinetics_dance.video_transformer:VideoTransformer', {'frames': 4}),
                                             ('kinetics_dance.video_transformer:VideoTransformer', {'frames': 4, 'tokens': 'tubelet', 'pool': 'token'}),
                                             ('kinetics_dance.cnn_lstm:CNNLSTM', {'layers': 2})])
def test_every_model_comes_back(tmp_path, spec, arguments):
    "Built without memory, then filled: the same numbers as the network that was saved"
    import importlib, torch
    from kinetics_dance.models.config import load_model
    folder, x = make_model(tmp_path/'m', spec, **arguments), torch.randn(1, 4, 3, 44, 60)
    module, name = spec.split(':')
    torch.manual_seed(0)
    net = getattr(importlib.import_module(module), name)(n_classes=3, **arguments).eval()
    with torch.no_grad(): assert torch.allclose(load_model(folder)(x), net(x), atol=1e-5)


def test_export_to_onnx(tmp_path):
    "Through the command; frames in, probabilities out, to 1e-4"
    onnxruntime = pytest.importorskip('onnxruntime')
    from kinetics_dance.study.cli import main
    folder = make_model(tmp_path/'m', 'kinetics_dance.video_transformer:VideoTransformer', frames=4)
    code, out, err = cli('export', '--format', 'onnx', '--model-path', folder, '--out', tmp_path/'m.onnx', '--json', main=main)
    assert code == 0 and json.loads(out)['path'] == str(tmp_path/'m.onnx')
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 44, 60, 3), dtype=np.uint8)
    got, = onnxruntime.InferenceSession(tmp_path/'m.onnx', providers=['CPUExecutionProvider']).run(None, {'frames': frames})
    assert np.abs(got-Predictor.load(folder).probabilities(frames)).max() < 1e-4
    assert cli('export', '--format', 'tflite', '--model-path', folder, main=main)[0] == 2
