"The real notebooks end to end: a small study from rendered uploads to the site, interrupted, repeated, and given bad input."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd
import pytest
import yaml
import preloaded
from kinetics_dance.evaluation.perturbations import list_perturbations
from kinetics_dance.models.registry import CONTROLS, MODELS
from kinetics_dance.synthetic import uploads, dancers
from kinetics_dance.clips.annotations import read_annotations, select_classes
from kinetics_dance.clips.splits import list_clips, assign_splits, official_splits
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent/'shared'/'data'/'kinetics'


# the notebooks of the wings have no part in a study; their cells have a test of their own
NUMBERED = sorted(p.stem for p in (ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))


def run(study, runs, *args, **kw):
    if '--only' not in args: args = *args, '--only', *NUMBERED
    return preloaded.run([sys.executable, '-m', 'report.run', str(study), '--runs', str(runs), *args], cwd=ROOT, capture_output=True, text=True, timeout=900, **kw)


def results(folder):
    "What a study found, without what differs from run to run"
    report = json.loads((folder/'report.json').read_text()); [report.pop(k) for k in ('seconds', 'costs')]
    files = sorted((folder/'predictions').rglob('*.parquet'))
    return report, {str(f.relative_to(folder)): f.read_bytes() for f in files}, (folder/'clips.csv').read_bytes(), {f.name: f.read_bytes() for f in (folder/'frames').glob('*.npy')}


def test_report(smoke):
    r = json.loads((smoke/'report.json').read_text())
    assert r['study'] == 'smoke' and r['classes'] == dancers.CLASSES and 0 < r['n_test'] <= 48
    assert set(r['models']) == {'per_frame', 'cnn_lstm', 'video_transformer'}
    for m in r['models'].values():
        for s in (m['accuracy'], m['macro_f1']): assert 0 <= s['low'] <= s['mean'] <= s['high'] <= 1
        assert m['seeds'] == [0] and set(m['probes']) == {'shuffled', 'reversed', 'frozen', 'halved', 'double_speed', 'one_replaced', 'mixed', 'frames_1', 'frames_2', 'frames_4'}
    assert len(r['pairs']) == 3 and all({'a', 'b', 'diff', 'low', 'high', 'p'} <= set(p) for p in r['pairs'])
    assert .5 <= r['ceiling'] < .6       # one half, and a little more where one member of a pair was lost
    assert {'00_data', '01_frames', '02_per_frame', '05_comparison', '06_inference'} <= set(r['seconds'])


def test_rot_is_told(smoke):
    t = ClipTable(smoke/'clips.sqlite').frame()
    assert {'removed', 'truncated', 'not a video'} <= set(t.reason.dropna())
    assert (t.status == 'ok').sum() > .8*len(t) and t.groupby('group').split.nunique().max() == 1
    ok = t[t.status == 'ok']
    assert (ok.seconds-3).abs().max() <= 1.01/dancers.FPS and all((smoke/p).exists() for p in ok.path)


def test_clips_are_cut_where_the_list_says(smoke):
    "A clip cut a second late would show the other class of its pair"
    from kinetics_dance.video.reading import read_frames
    t = ClipTable(smoke/'clips.sqlite').frame().query("status == 'ok' and split == 'test'").sort_values('clip_id').groupby('label').first()
    specs = {s['id']: s for s in uploads.plan_uploads(5, 4)}
    for label,c in t.iterrows():
        spec = specs[c.youtube_id]; clip = next(x for x in spec['clips'] if x['label'] == label)
        want = dancers.render_clip(spec['step'], clip['member'], spec['seed'], clip['family']).astype(float)
        got = read_frames(smoke/c.path).astype(float); n = min(len(got), len(want))
        right = np.abs(got[:n]-want[:n]).mean((1, 2, 3))
        assert right.max() < 6, f'{label}: frames differ by up to {right.max():.1f} levels'


def test_predictions_are_of_the_same_clips(smoke):
    tables = [pd.read_parquet(f) for f in sorted((smoke/'predictions').rglob('*.parquet')) if f.parent.name != 'over_time']
    tables = [t[t.split == 'test'] for t in tables]
    # three models, as they are and under every perturbation; controls, as they are
    assert len(tables) == 3*len(list_perturbations(8, 8)) + len(CONTROLS)
    for t in tables:
        assert t.clip_id.tolist() == tables[0].clip_id.tolist() and np.allclose(t.filter(regex='^p_').sum(axis=1), 1)
    per_frame = [pd.read_parquet(smoke/'predictions/per_frame'/p/'seed0.parquet').query("split == 'test'").filter(regex='^p_') for p in ('', 'shuffled')]
    assert np.allclose(*per_frame, atol=1e-5)       # a vote does not know the order


def test_models_hold_no_code(smoke):
    folders = sorted((smoke/'models').glob('*/seed0')); assert {f.parent.name for f in folders} == {*MODELS, *CONTROLS}
    for f in folders:
        assert {p.name for p in f.iterdir()} == {'model.safetensors', 'config.json', 'history.csv'}
        card = json.loads((f/'config.json').read_text()); assert card['classes'] == dancers.CLASSES and card['stored']['n_frames'] == 8
    assert not [p for p in smoke.rglob('*') if p.suffix in ('.pkl', '.pth', '.pt')]


def test_command_line_reads_a_model(smoke, tmp_path):
    video = next(iter((smoke/'videos').glob('*.mp4')))
    cli = lambda *a: subprocess.run([sys.executable, '-m', 'kinetics_dance.inference', *map(str, a)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    p = cli('predict', video, '--model-path', smoke/'models/video_transformer/seed0', '--json')
    assert p.returncode == 0, p.stderr
    top = json.loads(p.stdout)['top']; assert len(top) == 5 and top[0][0] in dancers.CLASSES
    (tmp_path/'no.mp4').write_text('text'); p = cli('predict', tmp_path/'no.mp4', '--model-path', smoke/'models/video_transformer/seed0')
    assert p.returncode == 2 and len(p.stderr.strip().splitlines()) == 1 and 'no.mp4' in p.stderr


def test_repeated_runs_nothing(smoke):
    before = results(smoke); p = run(ROOT/'studies/smoke.yaml', smoke.parent)
    assert p.returncode == 0 and ': starts' not in p.stdout, p.stdout
    assert results(smoke) == before


def test_killed_and_run_again_ends_with_the_same(smoke, tmp_path):
    "Killed while it renders, while it trains, and while it compares; the result is that of the undisturbed run"
    cmd = [sys.executable, '-m', 'report.run', str(ROOT/'studies/smoke.yaml'), '--runs', str(tmp_path), '--only', *NUMBERED]
    def kill_when(seen, timeout=300):
        p = preloaded.Popen(cmd, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True); end = time.time()+timeout
        try:
            while not seen(tmp_path/'smoke'):
                assert p.poll() is None, 'finished before it could be killed'; assert time.time() < end; time.sleep(.05)
        finally:
            if p.poll() is None: os.kill(p.pid, signal.SIGKILL)
            p.wait()
    kill_when(lambda f: len(list((f/'videos').glob('*.mp4'))) > 20)
    kill_when(lambda f: any((f/'predictions').rglob('seed0.parquet')))
    p = run(ROOT/'studies/smoke.yaml', tmp_path)
    assert p.returncode == 0, p.stdout+p.stderr
    for a,b in zip(results(smoke), results(tmp_path/'smoke')): assert a == b


def test_folder_of_videos(tmp_path):
    "`root/<class>/<video>` and a CSV with groups go the same road"
    for step,number,member in ((s, n, m) for s in ('round', 'bounce') for n in range(6) for m in (0, 1)):
        f = tmp_path/'mine'/dancers.PAIRS[step][member]/f'{number}.mp4'; f.parent.mkdir(parents=True, exist_ok=True)
        uploads.write_video(f, dancers.render_clip(step, member, number)[::3], fps=5)
    study = yaml.safe_load((ROOT/'studies/smoke.yaml').read_text()) | dict(study='mine', source='folder', folder=str(tmp_path/'mine'), contains='', n_train=0, n_valid=1, n_test=0, epochs=1, batch_size=4)
    rows = [dict(path=str(f.relative_to(tmp_path/'mine')), label=f.parent.name, group=f'person{f.stem}', split='test' if f.stem in '05' else 'train') for f in sorted((tmp_path/'mine').rglob('*.mp4'))]
    pd.DataFrame(rows).to_csv(tmp_path/'mine.csv', index=False)
    (tmp_path/'mine.yaml').write_text(yaml.safe_dump(study | dict(annotations=[str(tmp_path/'mine.csv')])))
    p = run(tmp_path/'mine.yaml', tmp_path/'runs'); assert p.returncode == 0, p.stdout+p.stderr
    t = ClipTable(tmp_path/'runs/mine/clips.sqlite').frame()
    assert (t.status == 'ok').all() and t.groupby('group').split.nunique().max() == 1 and set(t[t.split == 'test'].group) == {'person0', 'person5'}
    r = json.loads((tmp_path/'runs/mine/report.json').read_text()); assert r['n_test'] == 8 and r['ceiling'] is None
    # without a CSV the folders are the classes and the split is drawn
    clips,gone = assign_splits(list_clips('folder', [], tmp_path/'mine', ''), n_valid=1)
    assert set(clips.split) == {'train', 'valid', 'test'} and not len(gone) and set(clips.label) == {c for s in ('round', 'bounce') for c in dancers.PAIRS[s][:2]}


@pytest.mark.parametrize('change,says', [
    ({'epochz': 3}, "unknown key 'epochz'"),
    ({'source': 'utube'}, "did you mean 'youtube'"),
    ({'classes': ['left spin dansing']}, "'left spin dansing' is not a class"),
    ({'contains': 'yodelling'}, "no class name contains 'yodelling'"),
    ({'source': 'folder', 'folder': 'no/such/folder'}, 'is not a folder'),
    ({'source': 'youtube', 'annotations': ['nothing.csv']}, 'nothing.csv: no such file'),
    ({'source': 'youtube', 'annotations': ['{tmp}/bad.csv']}, 'bad.csv, line 3: time_start is not a time'),
    ({'source': 'folder', 'annotations': ['{tmp}/mine.csv']}, 'mine.csv, line 2: a.mp4 does not exist'),
    ({'scene_bias': 3.0}, 'scene_bias: 3.0 is too large'),
    ({'n_train': -1}, 'n_train: -1'),
    ({'epochs': 'many'}, 'epochs')])
def test_bad_input_is_one_line(change, says, tmp_path):
    (tmp_path/'bad.csv').write_text('label,youtube_id,time_start,time_end,split\ntap dancing,aaaaaaaaaaa,3,13,val\ntap dancing,ccccccccccc,soon,13,val\n')
    (tmp_path/'mine.csv').write_text('path,label\na.mp4,tap dancing\n')
    change = {k: [str(x).format(tmp=tmp_path) for x in v] if isinstance(v, list) else v for k,v in change.items()}
    (tmp_path/'bad.yaml').write_text(yaml.safe_dump({'study': 'bad'} | change))
    p = run(tmp_path/'bad.yaml', tmp_path/'runs')
    assert p.returncode == 2 and says in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stdout+p.stderr
    assert not (tmp_path/'runs').exists()


# ---- the real lists

real = pytest.mark.skipif(not SHARED.exists(), reason='the Kinetics lists (shared/data/kinetics) are not beside this checkout')


@real
def test_fifteen_classes_and_no_upload_on_two_sides():
    lists = pd.concat([read_annotations(SHARED/f'k700_2020_dancing_{s}.csv') for s in ('train', 'validate')])
    assert len(lists) == 13331+741 and select_classes(lists).label.nunique() == 15
    clips,gone = assign_splits(official_splits(select_classes(lists)), n_valid=20)
    assert clips.groupby('group').split.nunique().max() == 1 and set(clips.split) == {'train', 'valid', 'test'}
    assert set(gone[gone.why == 'upload is in the test list'].youtube_id) == {'q1dsdpBtCJw'}
    assert (clips[clips.split == 'valid'].groupby('label').size() == 20).all()
    assert clips.split.eq('test').sum()+gone.split.eq('test').sum() == 741


@real
def test_the_rule_finds_the_fifteen_among_seven_hundred():
    names = pd.DataFrame({'label': (SHARED/'k700_2020_classes.txt').read_text().splitlines()})
    found = select_classes(names).label.tolist()
    assert len(found) == 15 and 'breakdancing' in found and 'krumping' not in found


@real
def test_a_list_without_labels():
    assert read_annotations(SHARED/'kinetics-700_2020_test.csv').label.isna().all()


def test_youtube_source_from_a_list(tmp_path):
    "The real study's road, with a loopback server in YouTube's place: a Kinetics list, ids, yt-dlp, trimmed clips, frames"
    specs = uploads.plan_uploads(4, 2, steps=('round', 'bounce')); uploads.make_uploads(tmp_path/'far', specs, 1)
    uploads.annotations(specs).to_csv(tmp_path/'list.csv', index=False)
    keys = ('short_side', 'n_frames', 'frame_height', 'frame_width')
    with uploads.serve_uploads(tmp_path/'far') as url:
        study = dict(study='tube', source='youtube', annotations=[str(tmp_path/'list.csv')], url_template=url, n_train=0, n_valid=1, n_test=0, **dict(zip(keys, (96, 12, 48, 64))))
        (tmp_path/'tube.yaml').write_text(yaml.safe_dump(study))
        for stage in ('00_data', '01_frames'):
            p = run(tmp_path/'tube.yaml', tmp_path/'runs', '--only', stage); assert p.returncode == 0, p.stdout+p.stderr
    t = ClipTable(tmp_path/'runs/tube/clips.sqlite').frame(); ok = t[t.status == 'ok']
    assert len(t) == 24 and len(ok) >= 14 and (ok[['width', 'height']].min(axis=1) == 96).all() and not (tmp_path/'runs/tube/known.json').exists()
    assert set(pd.read_parquet(tmp_path/'runs/tube/frames/index.parquet').clip_id) == set(ok.clip_id)


def test_clips_are_made_anew_when_their_uploads_change(tmp_path):
    "A clip that was cut from an older version of its upload, or at another size, is not reused"
    from kinetics_dance.download.downloader import download
    from kinetics_dance.video.reading import read_frames
    spec = uploads.upload_spec('round', 0, 'train'); (tmp_path/'far').mkdir(); uploads.render_upload(spec, tmp_path/'far'/f"{spec['id']}.mp4")
    table = ClipTable(tmp_path/'clips.sqlite'); table.set(uploads.annotations([spec]).assign(source='demo', split='train'))
    def fetch(version, short_side=96):
        with uploads.serve_uploads(tmp_path/'far') as url: return download(table, tmp_path, url_template=url, jobs=1, short_side=short_side, version=version)
    first = fetch('a'); assert (first.status == 'ok').all() and fetch('a').attempts.tolist() == [1, 1]
    other = spec | dict(seed=spec['seed']+1); uploads.render_upload(other, tmp_path/'far'/f"{spec['id']}.mp4")
    again = fetch('b'); assert (again.status == 'ok').all() and set(again.sha256).isdisjoint(first.sha256)
    assert fetch('b', 64).height.tolist() == [64, 64] and read_frames(tmp_path/again.path[0], [0]).shape[1] == 64
    (tmp_path/'far'/f"{spec['id']}.mp4").unlink()
    assert fetch('c').status.tolist() == ['missing']*2        # what is there is of an older version: not used


@pytest.mark.parametrize('backbone', ['small', 'resnet18', 'mobilenet_v2'])
def test_models_on_other_backbones(backbone):
    import torch
    from kinetics_dance.cnn_lstm import CNNLSTM
    from kinetics_dance.per_frame import PerFrame
    from kinetics_dance.video_transformer import VideoTransformer
    x = torch.zeros(2, 4, 3, 64, 64)
    assert PerFrame(15, backbone)(x).shape == (2, 4, 15) and CNNLSTM(15, backbone, state='last')(x).shape == (2, 15) and VideoTransformer(15, backbone, frames=4)(x).shape == (2, 15)
