"What may be written over: nothing that is read, nothing whose name nobody typed, nothing at all without --overwrite."
import csv, json, os, signal, subprocess, sys, time
import pytest
import preloaded
from conftest import ROOT
from kinetics_dance import inference
from kinetics_dance.study.cli import main
from kinetics_dance.core.base import StudyError
from kinetics_dance.video.decoding import numbered_clip
from kinetics_dance.deploy.output import plan_targets
from test_inference import cli, make_model, one_line

ASKED = dict(cut=True, over_time=False, picture=None, save_video=None, save_frames_path=None, rm_frames=True)


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp('overwrite')
    make_model(folder/'model')
    numbered_clip(folder/'clip.mp4', 30, 15, (96, 128))
    return folder


def copies(here, tmp_path, *names):
    for n in names:
        (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/n).write_bytes((here/'clip.mp4').read_bytes())


def predict(here, *args): return cli('predict', *args, '--model-path', here/'model', '--top', 1)


@pytest.mark.parametrize('more', [[], ['--overwrite']])
def test_a_cut_never_goes_over_a_video_that_is_read(here, tmp_path, more):
    copies(here, tmp_path, 's/a.mp4', 's/a_cut.mp4')
    code, out, err = predict(here, tmp_path/'s', '--cut', '--start-time', 0, '--duration', 1, *more)
    assert code == 2 and one_line(err) and not out and {p.name for p in (tmp_path/'s').iterdir()} == {'a.mp4', 'a_cut.mp4'}
    assert (tmp_path/'s/a_cut.mp4').read_bytes() == (here/'clip.mp4').read_bytes()


def test_nor_through_a_link_or_another_spelling(here, tmp_path):
    copies(here, tmp_path, 'a.mp4', 'b.mp4')
    os.symlink(tmp_path/'b.mp4', tmp_path/'a_cut.mp4')
    os.link(tmp_path/'b.mp4', tmp_path/'seen.mp4')
    files = [str(tmp_path/'a.mp4'), str(tmp_path/'b.mp4')]
    with pytest.raises(StudyError, match='a video that is read'): plan_targets(files, ASKED | dict(overwrite=True), True)
    (tmp_path/'x').mkdir()
    with pytest.raises(StudyError, match='is the video itself'):
        plan_targets(files[:1], ASKED | dict(cut=False, overwrite=True, save_video=f'{tmp_path}/x/../a.mp4'), False)
    with pytest.raises(StudyError, match='is read'): plan_targets([files[0], files[1]], ASKED | dict(cut=False, overwrite=True, out=tmp_path/'seen.mp4'), True)


def test_outputs_of_one_stem_are_kept_apart(here, tmp_path):
    copies(here, tmp_path, 's/a.mp4', 's/walk/0001.mp4', 's/run/0001.mp4')
    copies(here, tmp_path, 's/a.mov')
    args = [tmp_path/'s', '--save-video', tmp_path/'films', '--save-frames-path', tmp_path/'frames', '--rm-frames', '--out', tmp_path/'r.csv']
    code, out, err = predict(here, *args)
    assert code == 0, err
    assert {str(p.relative_to(tmp_path/'films')) for p in (tmp_path/'films').rglob('*.mp4')} == {
        'a.mp4_dances.mp4', 'a.mov_dances.mp4', 'walk/0001.mp4_dances.mp4', 'run/0001.mp4_dances.mp4'}
    code, out, err = predict(here, *args)
    assert code == 2 and one_line(err) and '--overwrite' in err


def test_what_is_there_stays(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copies(here, tmp_path, 'a.mp4', 'b.mp4')
    for name in ('r.csv', 'p.png', 'v.mp4', 'a_over_time.png', 'demo.mp4'): (tmp_path/name).write_text('mine')
    for args in (['--out', 'r.csv'], ['--over-time', '--picture', 'p.png'], ['--over-time'], ['--save-video', 'v.mp4']):
        code, out, err = predict(here, 'a.mp4', *args)
        assert code == 2 and one_line(err) and '--overwrite' in err and not out, args
    code, out, err = cli('demo-video', main=main)
    assert code == 2 and one_line(err) and '--overwrite' in err
    assert all((tmp_path/n).read_text() == 'mine' for n in ('r.csv', 'p.png', 'v.mp4', 'a_over_time.png', 'demo.mp4'))
    assert predict(here, 'a.mp4', '--out', 'r.csv', '--overwrite')[0] == 0 and 'a.mp4' in (tmp_path/'r.csv').read_text()


def test_frames_that_are_there_stay(here, tmp_path):
    keep = ['--save-frames-path', tmp_path/'f', '--no-rm-frames']
    assert predict(here, here/'clip.mp4', *keep)[0] == 0
    code, out, err = predict(here, here/'clip.mp4', *keep)
    assert code == 2 and one_line(err) and '--overwrite' in err
    assert predict(here, here/'clip.mp4', *keep, '--overwrite')[0] == 0


def test_an_export_goes_over_nothing(here, tmp_path):
    (tmp_path/'m.pt2').write_text('mine')
    for out in (tmp_path/'m.pt2', here/'model'/'model.safetensors'):
        code, _, err = cli('export', '--format', 'torch_export', '--model-path', here/'model', '--out', out, main=main)
        assert code == 2 and one_line(err)
    code, _, err = cli('export', '--format', 'torch_export', '--model-path', here/'model', '--out', here/'model'/'model.safetensors', '--overwrite', main=main)
    assert code == 2 and one_line(err) and (tmp_path/'m.pt2').read_text() == 'mine'


def test_a_name_too_long_is_known_before_the_work(here, tmp_path):
    copies(here, tmp_path, 'a.mp4', 'x'*238+'.mp4')
    code, out, err = predict(here, tmp_path, '--cut', '--start-time', 0, '--duration', 1)
    assert code == 2 and one_line(err) and 'too long' in err and not list(tmp_path.glob('*_cut.mp4'))


def test_a_name_that_is_not_utf8(here, tmp_path):
    odd = os.fsdecode(b'b\xff.mp4')
    copies(here, tmp_path, 'v/a.mp4', f'v/{odd}', 'v/c.mp4')
    (tmp_path/'v'/os.fsdecode(b'd\xfe.mp4')).write_text('text')
    for name in ('r.csv', 'r.json'):
        p = subprocess.run([sys.executable, '-m', 'kinetics_dance.inference', 'predict', 'v', '--model-path', str(here/'model'), '--out', name], cwd=tmp_path,
                           env=os.environ | dict(PYTHONPATH=str(ROOT), PYTHONIOENCODING='ascii'), capture_output=True, text=True, timeout=120)
        assert p.returncode == 2 and 'Traceback' not in p.stderr and '1 of 4' in p.stderr, p.stderr
    rows = list(csv.DictReader((tmp_path/'r.csv').open(encoding='utf-8')))
    assert [r['video'] for r in rows] == ['v/a.mp4', 'v/b\\xff.mp4', 'v/c.mp4', 'v/d\\xfe.mp4'] and [bool(r['error']) for r in rows] == [False]*3+[True]
    assert [r['video'] for r in json.loads((tmp_path/'r.json').read_text())] == [r['video'] for r in rows]


def test_a_fault_in_one_file_is_a_row(here, tmp_path, monkeypatch):
    copies(here, tmp_path, 'a.mp4', 'b.mp4', 'c.mp4')
    right = inference.Predictor.predict
    def predict_(self, video, *a, **k):
        if 'b.mp4' in str(video): raise MemoryError('no')
        return right(self, video, *a, **k)
    monkeypatch.setattr(inference.Predictor, 'predict', predict_)
    code, out, err = predict(here, tmp_path)
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 2 and [bool(r['error']) for r in rows] == [False, True, False] and 'MemoryError' in rows[1]['error']


def test_rows_survive_a_kill(here, tmp_path):
    copies(here, tmp_path, *(f'v/{k:03}.mp4' for k in range(60)))
    command = [sys.executable, '-m', 'kinetics_dance.inference', 'predict', 'v', '--model-path', str(here/'model'), '--out', 'r.csv']
    p = preloaded.Popen(command, cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), stderr=subprocess.DEVNULL, start_new_session=True)
    part = tmp_path/'r.csv.part'
    while p.poll() is None and not (part.exists() and part.read_text().count('\n') > 3): time.sleep(.02)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    assert part.read_text().count('\n') > 3 and not (tmp_path/'r.csv').exists()
    code, out, err = predict(here, tmp_path/'v'/'000.mp4', '--out', tmp_path/'r.csv')
    assert code == 2 and one_line(err) and 'r.csv.part' in err, 'these rows are not thrown away either'


def test_an_empty_model_folder_is_one_line(here, tmp_path):
    (tmp_path/'m').mkdir()
    code, out, err = cli('predict', here/'clip.mp4', '--model-path', tmp_path/'m')
    assert code == 2 and one_line(err) and 'no config.json' in err


def test_a_long_label_can_be_predicted(here, tmp_path):
    from kinetics_dance.clips.annotations import check_classes
    classes = ['跳'*201, 'b']
    check_classes(classes)
    make_model(tmp_path/'m', classes=classes)
    assert cli('predict', here/'clip.mp4', '--model-path', tmp_path/'m')[0] == 0


def test_a_forged_seal_with_zeros_is_none(here, tmp_path):
    "A rate of 15/0 was a ZeroDivisionError, and ended the answers for a whole folder"
    import struct, zlib
    from kinetics_dance.video.encoding import SEAL_MARK, sealed
    text = SEAL_MARK.encode() + b' 00000000 00000030 15/0 96x128'
    data = bytearray((here/'clip.mp4').read_bytes() + struct.pack('>I4s', 8+len(text), b'free') + text)
    at = data.find(SEAL_MARK.encode()) + len(SEAL_MARK) + 1
    data[at:at+8] = b'%08x' % zlib.crc32(data[at+8:], zlib.crc32(data[:at]))
    (tmp_path/'z.mp4').write_bytes(data)
    assert sealed(tmp_path/'z.mp4') is None
