"Motion of joints as a source: drawn, cut, stored and trained on like any other video; and the results on real motion that are kept here."
import json
import numpy as np, pandas as pd
import pytest
from conftest import ROOT
from kinetics_dance.synthetic import dancers
from kinetics_dance.clips.splits import rooted
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.loading.store import build_store
from kinetics_dance.video.reading import read_frames
from kinetics_dance.synthetic.motion import (
    COLOURS, MOTION_FPS, BODY_JOINTS, PARTS, made_up_motion, place_body, render_motion, resample)
from kinetics_dance.download.motion_source import (
    Motion, MotionFile, joint_reference, sequence_id, write_motion)
from kinetics_dance.data import collect, prepare
from kinetics_dance.study.settings import check_study, read_settings
from kinetics_dance.training.runs import train_run

PENN = ROOT.parent/'shared'/'data'/'motion'/'penn_action_2d_joints.npz'
penn = pytest.mark.skipif(not PENN.exists(), reason='the labels of Penn Action are not on this machine (../shared/data/motion)')
RESULTS = ROOT/'results'/'motion'
published = pytest.mark.skipif(not (RESULTS/'report.json').exists(), reason='the study of real motion has not been published (results/motion)')


def settings(tmp_path, **more):
    return read_settings(ROOT/'studies'/'smoke.yaml', runs=str(tmp_path/'runs'), source='motion', contains='', n_train=0, n_valid=2, n_test=0,
                         short_side=64, n_frames=8, frame_height=32, frame_width=32, crop_height=28, crop_width=28, epochs=1, lr_epochs=1, lr=[.002], batch_size=8,
                         jobs=2, **more) | dict(study='bodies')


def test_a_file_of_joints_becomes_a_study(tmp_path):
    "From numbers to a trained model, by the same functions as videos"
    write_motion(tmp_path/'m.npz', made_up_motion(9))
    p = settings(tmp_path, motion=str(tmp_path/'m.npz'))
    clips, gone, version = prepare(p)
    assert len(clips) == 27 and not len(gone) and set(clips.source) == {'motion'}
    table = collect(p, clips, version)
    assert (table.status == 'ok').all(), table[['clip_id', 'reason', 'detail']]
    assert table.groupby('group').split.nunique().max() == 1
    assert table.split.value_counts().to_dict() == {'train': 12, 'test': 9, 'valid': 6}      # the test part as the file says, valid out of train
    want = MotionFile(tmp_path/'m.npz').table.set_index('youtube_id')
    assert all((want.train[r.youtube_id] == -1) == (r.split == 'test') and want.action[r.youtube_id] == r.label for r in table.itertuples())
    assert table.clip_id.str.fullmatch(r'[\w-]{11}_\d{6}(-\d+)?_\d{6}(-\d+)?').all() and (table.fps == MOTION_FPS).all() and (table.width == 64).all()
    # what is on disk is what was drawn
    run, r = tmp_path/'runs'/'bodies', table.iloc[3]
    drawn = MotionFile(tmp_path/'m.npz').frames(list(want.index).index(r.youtube_id), 64)
    got = read_frames(run/r.path).astype(float)
    assert len(got) == len(drawn) == r.frames and np.abs(got-drawn).mean() < 6
    stored = build_store(table, run/'frames', 8, (32, 32), base=run, log=lambda s: None)
    assert (stored.status == 'ok').all()
    card = train_run('per_frame', p, 0)
    assert card['classes'] == sorted(want.action.unique())
    # again: nothing is drawn; another file: everything is
    stamps = {f: f.stat().st_mtime_ns for f in (run/'videos').glob('*.mp4')}
    collect(p, *prepare(p)[::2])
    assert stamps == {f: f.stat().st_mtime_ns for f in (run/'videos').glob('*.mp4')}
    write_motion(tmp_path/'m.npz', made_up_motion(9, seed=1))
    assert prepare(p)[2] != version


@pytest.mark.parametrize('change, says', [
    (dict(offsets=np.array([0, 5])), 'do not divide'), (dict(xy=np.zeros((9, 12, 2))), 'are not (rows, 13, 2)'), (dict(meta='{'), 'not a file of sequences'),
    (dict(parts=json.dumps(dict(tail=['hip_l', 'tail']))), "'tail', which is not a joint"), (dict(meta=None), 'not a file of sequences'),
    (dict(twice=True), 'is there twice')])
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, says):
    sequences = made_up_motion(3)
    if change.pop('twice', False): sequences[1] = sequences[1] | dict(id=sequences[0]['id'])
    write_motion(tmp_path/'m.npz', sequences)
    with np.load(tmp_path/'m.npz') as f: arrays = dict(f)
    np.savez(tmp_path/'m.npz', **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(StudyError) as e: MotionFile(tmp_path/'m.npz')
    assert says in str(e.value) and len(str(e.value).splitlines()) == 1 and 'm.npz' in str(e.value)


def test_what_is_wrong_with_a_study_is_said(tmp_path):
    write_motion(tmp_path/'m.npz', made_up_motion(3))
    for more, says in ((dict(motion=None), 'name the file of joints'), (dict(motion='no.npz'), 'no.npz: no such file'),
                       (dict(motion=str(tmp_path/'m.npz'), short_side=33), 'not an even number'),
                       (dict(motion=str(tmp_path/'m.npz'), classes=['rond']), "did you mean 'round'")):
        with pytest.raises(StudyError, match=says): check_study(dict(source='motion', contains='', n_train=0, n_valid=1, n_test=0) | dict(short_side=64) | more)
    (tmp_path/'m.npz').write_bytes(b'not an archive')
    with pytest.raises(StudyError, match='not a file of sequences'): MotionFile(tmp_path/'m.npz')
    assert not list((tmp_path/'runs').glob('*'))


def body():
    "An upright body of 100 units, for 30 rows"
    J, _, _ = dancers.pose('rest', np.zeros(30))
    return J[..., :2]*[100, -100]


def covered(frames, part): return (np.abs(frames.astype(int)-COLOURS[part]).sum(-1) < 40).sum()


def test_hidden_is_behind_and_missing_is_not_drawn():
    xy = body(); xy[:, 5] = xy[:, 9] = [0, -45]; xy[:, 3] = [-20, -60]          # the left arm before the body
    seen = np.ones((30, 13)); front = covered(render_motion(xy, visible=seen), 'arm_l')
    seen[:, [1, 3, 5]] = 0; behind = covered(render_motion(xy, visible=seen), 'arm_l')
    assert 0 < behind < .8*front
    xy[:, 3] = np.nan; assert covered(render_motion(xy), 'arm_l') < .7*front     # what hangs on it is not drawn
    xy[:] = np.nan
    with pytest.raises(StudyError, match='without a single known joint'): render_motion(xy)


def test_left_and_right_can_be_told_apart():
    frames = render_motion(body(), size=96)
    x = lambda part: np.nonzero(np.abs(frames[0].astype(int)-COLOURS[part]).sum(-1) < 40)[1].mean()
    assert x('leg_l') < 48 < x('leg_r') and x('arm_l') < x('leg_l') and x('arm_r') > x('leg_r')
    assert (frames == frames[0]).all()                                            # who stands still, stands still


def test_one_wrong_label_does_not_make_the_body_small():
    xy = np.repeat(body(), 3, 0); wrong = xy.copy(); wrong[7, 4] = [5000, 5000]
    assert np.abs(place_body(wrong)[0]-place_body(xy)[0]).max() < .1


@pytest.mark.parametrize('n, fps, want', [(60, 30, 30), (60, 60, 24), (200, 120, 25), (10, 30, 24), (1, 30, 24), (30, 15, 30), (24, 10, 36), (3000, 30, 600)])
def test_any_rate_and_length(n, fps, want):
    x = resample(np.linspace(0, 1, n)[:, None, None]*np.ones((13, 2)), fps)
    assert len(x) == want and (np.diff(x[:, 0, 0]) >= 0).all() and x[0, 0, 0] == 0
    if n < 1200: assert x[-1, 0, 0] == (1 if n > 1 else 0)


def test_ids():
    names = ['0001', 'a_b', 'gBR_sBM_cAll_d04_mBR0_ch01', 'gBR_sBM_cAll_d04_mBR0_ch02', '86/01', 'ä', '-x']
    ids = [sequence_id(n) for n in names]
    assert len(set(ids)) == len(names) and all(Motion.id_rule.fullmatch(i) and i[0] in 'mx' for i in ids)


@penn
def test_penn_action_is_read_whole():
    f = MotionFile(PENN)
    assert len(f) == 2326 and len(f.xy) == 163_841 and f.table.action.nunique() == 15 and f.joints == BODY_JOINTS and f.parts == PARTS
    assert f.table.train.value_counts().to_dict() == {1: 1258, -1: 1068} and f.table.youtube_id.is_unique
    missing = np.isnan(f.xy).all(-1).mean()
    assert .05 < missing < .12                                                    # the corner is no place for a joint
    for k in range(0, len(f), 60):
        xy = place_body(f[k][0].astype(float)); inside = xy[np.isfinite(xy)]
        assert (np.abs(inside-.5) < .5).mean() > .95 and (f[k][0].size and np.ptp(inside) > .5)
    assert f.frames(0, 32).shape == (76, 32, 32, 3)


@penn
def test_order_helps_on_the_joints_themselves():
    r = joint_reference(MotionFile(PENN), trees=60)
    assert r['set'] > r['vote']+.01 and abs(r['ordered']-r['set']) < .025, r       # nearly all of it is the set of moments
    assert .85 < r['vote'] < .93 and r['ordered'] > r['vote']+.01 and r['shuffled'] < r['ordered']-.03 and r['probe'] < r['shuffled'] and .15 < r['missing'] < .35


@published
def test_published_numbers_are_those_of_the_predictions():
    report = json.loads((RESULTS/'report.json').read_text())
    assert set(report['models']) == {'per_frame', 'cnn_lstm', 'video_transformer'} and len(report['classes']) == 15
    for name, m in report['models'].items():
        assert len(m['seeds']) >= 3
        right = []
        for s in m['seeds']:
            t = pd.read_parquet(RESULTS/'predictions'/name/f'seed{s}.parquet').query("split == 'test'")
            assert len(t) == report['n_test']
            p = t.filter(regex='^p_')
            right.append((p.columns[p.to_numpy().argmax(1)].str.removeprefix('p_') == t.label).mean())
        assert np.mean(right) == pytest.approx(m['accuracy']['mean'], abs=1e-6)


@published
def test_the_page_says_what_order_is_worth_to_trees():
    "One permutation is no training without order: the page says what it said before, and what is right"
    from rehearsal.motion import PAGE, corrected, shares_table
    f = (ref := json.loads((RESULTS/'reference.json').read_text()))['forests']
    assert f['steps']['together']['low'] > 0 and f['steps']['order']['mean'] < f['steps']['together']['mean']/2
    few, some, many = (f['shuffled'][k] for k in ('1', '4', '16'))
    assert few < some <= many+.01 and many < f['accuracy']['set']['mean']
    assert ref['shares']['0.25']['both']['mean'] > ref['shares']['1']['both']['mean']
    text = PAGE.read_text()
    assert corrected(ref) in text and shares_table(ref) in text


def test_a_page_without_controls_says_so():
    from rehearsal.motion import steps
    rows = [dict(question='all classes', ladder='set_transformer', step=s, gain=.01*k, low=0., high=.05) for k, s in enumerate(('more frames', 'seen together', 'in order'))]
    assert 'have not been run yet' in steps({}) and 'set transformer' in steps(dict(decomposition=rows)) and '+2.0' in steps(dict(decomposition=rows))


@published
def test_published_effect_has_the_sign_of_the_reference():
    "Those who see order beat the vote, and lose when frames are shuffled; the best is right at least four times in five"
    m = json.loads((RESULTS/'report.json').read_text())['models']
    acc = {k: v['accuracy']['mean'] for k, v in m.items()}
    time = ('cnn_lstm', 'video_transformer')
    assert max(acc.values()) >= .80 and all(acc[k] > acc['per_frame'] for k in time), acc
    for k in time: assert m[k]['probes']['shuffled']['high'] < m[k]['accuracy']['low'], k


@published
def test_twice_the_epochs_say_the_same():
    "What is between the models has settled: with twice the training it lies in the interval of the study"
    from rehearsal.motion import HEADS, scores
    def less_vote(folder):
        boot, seeds = scores(folder, 500)
        assert list(seeds) == list(HEADS) and all(len(s) >= 3 for s in seeds.values())
        return [boot[m]-boot['per_frame'] for m in HEADS[1:]]
    for short, long in zip(less_vote(RESULTS), less_vote(RESULTS/'longer')):
        low, high = short.interval(.95)
        assert low < long.value < high and long.interval(.95)[0] > 0


@published
def test_page_says_what_the_results_say():
    from rehearsal.motion import PAGE, numbers
    text = PAGE.read_text()
    models = json.loads((RESULTS/'report.json').read_text())['models']
    for m in models.values(): assert f"on {100*m['accuracy']['mean']:.1f} %" in (ROOT/'README.md').read_text(), 'nbs/index.ipynb: numbers of real motion are out of date'
    for name, block in numbers().items(): assert block.strip() in text, f'{PAGE.name}: {name} is out of date: python -m rehearsal.motion publish'


@pytest.mark.skipif(not (ROOT/'results'/'motion_transfer'/'transfer.csv').exists(), reason='the study of transfer has not been published (results/motion_transfer)')
def test_pretrained_weights_buy_something():
    from rehearsal.motion import accuracy, transfer_summary
    folder = ROOT/'results'/'motion_transfer'
    t = pd.read_csv(folder/'transfer.csv')
    for r in t.itertuples(): assert accuracy(folder/'predictions'/r.weights.lower()/r.model/f'seed{r.seed}.parquet') == pytest.approx(r.test, abs=1e-6)
    assert set(t.model) == {'per_frame', 'cnn_lstm', 'video_transformer'} and (t.groupby(['weights', 'model']).seed.nunique() >= 3).all()
    for _, d in t.groupby('model'): assert d[d.weights == 'ImageNet'].test.min() > d[d.weights == 'random'].test.max()
    said = json.loads((folder/'summary.json').read_text())
    again = transfer_summary(folder)
    assert said['verdicts'] == again['verdicts'] and said['n_test'] == again['n_test'] == 1068
    for m, a in again['gained'].items():
        assert a == pytest.approx(said['gained'][m], abs=1e-5) and a['low'] > 0
        assert again['accuracy']['imagenet'][m]['mean'] == pytest.approx(t[(t.model == m) & (t.weights == 'ImageNet')].test.mean(), abs=1e-5)
    assert set(pd.read_csv(folder/'curves.csv').weights) == {'ImageNet', 'random'}
