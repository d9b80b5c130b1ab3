"Forwards or backwards: each clip both ways, from any source, and single frames are right on one half by construction."
import json
import numpy as np, pandas as pd, pytest
from kinetics_dance.clips.arrow import BACKWARDS_MARK, is_backwards
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.comparison import compare
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.settings import defaults
from kinetics_dance.data import collect, prepare
from kinetics_dance.evaluation.positive_control import check_known
from kinetics_dance.loading.reader import FrameStore
from kinetics_dance.loading.store import build_store
from kinetics_dance.synthetic import dancers, uploads
from kinetics_dance.training.runs import train_run

PEOPLE = 'ann', 'bob', 'cy', 'dee'


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Four people, two steps: a list with groups, its clips and their frames, both ways"
    at = tmp_path_factory.mktemp('arrow')
    rows = []
    for k, who in enumerate(PEOPLE):
        for step in ('windmill', 'round'):
            uploads.write_video(at/f'{who}_{step}.mp4', dancers.render_clip(step, 0, k))
            rows.append((f'{who}_{step}.mp4', step, who))
    pd.DataFrame(rows, columns=['path', 'label', 'group']).to_csv(at/'list.csv', index=False)
    p = defaults() | dict(study='mine', runs=str(at/'runs'), source='folder', annotations=[str(at/'list.csv')], contains='', n_train=0, n_valid=0, n_test=0, folds='group', task='arrow', jobs=1,
                          short_side=48, n_frames=12, frame_height=48, frame_width=64, clip_frames=4, crop_height=44, crop_width=60, seeds=[0], epochs=1, lr=[.002], batch_size=4, train='head')
    run = at/'runs'/'mine'
    clips, gone, version = prepare(p)
    collect(p, clips, version)
    table = ClipTable(run/'clips.sqlite')
    out = build_store(table.frame(), run/'frames', n_frames=12, size=(48, 64), jobs=1)
    assert (out.status == 'ok').all()
    for m in ('per_frame', 'cnn_lstm'): train_run(m, p, 0)
    return run, p, table.frame(), clips, version


def test_each_clip_is_there_both_ways_in_one_group(study):
    run, p, table, *_ = study
    assert table.label.value_counts().to_dict() == {'forwards': 8, 'backwards': 8}
    assert (table.groupby('group').label.value_counts() == 2).all() and (table.groupby('group').split.nunique() == 1).all()
    assert set(json.loads((run/'folds.json').read_text())['groups']) == set(PEOPLE)
    assert 'backwards' in pd.read_csv(run/'clips.csv').label.to_numpy()


def test_the_copies_have_the_same_frames_in_reverse_order_and_times_that_rise(study):
    run, _, table, *_ = study
    store = FrameStore(run/'frames')
    for c in table.clip_id[table.label == 'backwards']:
        other = c.replace(BACKWARDS_MARK, '')
        assert is_backwards(c) and not is_backwards(other)
        assert (store[c] == store[other][::-1]).all() and not (store[c] == store[other]).all()
        assert (np.diff(store.seconds(c)) > 0).all()


def test_a_vote_says_the_same_of_a_clip_and_its_reverse(study):
    run, *_ = study
    t = pd.read_parquet(run/'predictions/per_frame/seed0.parquet').set_index('clip_id')
    for c in (c for c in t.index if is_backwards(c)):
        assert t.p_forwards[c] == pytest.approx(t.p_forwards[c.replace(BACKWARDS_MARK, '')], abs=1e-5)
    c = compare(run, n_resamples=20)
    assert c.ceiling == .5 and c.score('per_frame').value == .5
    checks = check_known(c)
    assert set(checks.model) == {'per_frame', 'cnn_lstm'} and not checks.check.str.contains('at least 0.8').any()


def test_to_collect_again_changes_nothing_and_another_task_takes_it_back(study):
    run, p, table, clips, version = study
    collect(p, clips, version)
    pd.testing.assert_frame_equal(ClipTable(run/'clips.sqlite').frame().drop(columns='updated'), table.drop(columns='updated'))
    collect(p | dict(task='classes'), clips, version)
    assert set(ClipTable(run/'clips.sqlite').frame().label) == {'windmill', 'round'} and not (run/'known.json').exists()
    collect(p, clips, version)
    known = (run/'known.json').read_text()
    (run/'known.json').write_text('{"pairs": []}') # somebody's own
    with pytest.raises(StudyError, match='known.json: is about other classes than forwards and backwards; move it away'): collect(p, clips, version)
    collect(p | dict(task='classes'), clips, version)
    assert (run/'known.json').read_text() == '{"pairs": []}'
    (run/'known.json').unlink()
    collect(p, clips, version)
    assert (run/'known.json').read_text() == known
