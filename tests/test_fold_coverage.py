"Intervals of cross-validated accuracies are neither far too wide nor too narrow, and folds can be dealt anew for each training run."
import importlib.util
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from conftest import ROOT, tiny_study
from kinetics_dance.clips.folds import check_repeats, deal_again, fold_numbers, read_folds, write_folds
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.comparison import compare
from kinetics_dance.core.base import StudyError
from kinetics_dance.data import prepare
from kinetics_dance.evaluation.intervals import Estimate, bootstrap
from kinetics_dance.evaluation.predictions import Predictions, load_predictions
from kinetics_dance.training.runs import train_seeds
from test_folds import TINY, in_folds, listed, people
spec = importlib.util.spec_from_file_location('fold_studies', ROOT/'bench/folds.py')
studies = importlib.util.module_from_spec(spec)
spec.loader.exec_module(studies)


@pytest.mark.parametrize('name', ['9 people, once in each of 10 classes, leave one out', '20 people, 6 classes, 5 folds'])
def test_the_interval_of_one_accuracy_misses_now_and_then(name):
    "It caught the truth in 1,000 of 1,000 studies, because nine people who do everything counted as nine clips"
    r = studies.kind(name, 200)
    assert .91 <= r['ours'][0] < .995 and .91 <= r['ours'][1] < .995


def answers(label, group, right, k):
    said = np.eye(k)[np.where(right, label, (label + 1) % k)][None]
    return Predictions([f'{i:03}' for i in range(k)], np.arange(len(label)).astype(str), group, label, {'m': said}, {'m': [0]})


def test_uploads_of_one_class_have_the_interval_that_they_had():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 3)
    e = bootstrap(answers(group % 5, group, rng.random(120) < .8, 5), 2)['m']['accuracy']
    assert e.cells == pytest.approx(e.uneven) == pytest.approx(1/40) and e.interval() == replace(e, cells=None).interval()


@pytest.mark.parametrize('k', [6, 70])     # counts are a matrix, or a sparse one
def test_clips_of_an_upload_and_class(k):
    rng = np.random.default_rng(1)
    group, label = rng.integers(0, 12, 300), rng.integers(0, k, 300)
    e = bootstrap(answers(label, group, rng.random(300) < .7, k), 2)['m']['accuracy']
    of = pd.Series(1, index=[group, label]).groupby(level=[0, 1]).size()
    assert e.cells == pytest.approx((of**2).sum()/300**2) and e.uneven == pytest.approx((np.bincount(group)**2).sum()/300**2)
    assert np.ptp(e.interval()) < np.ptp(replace(e, cells=None).interval())


def test_a_person_who_fails_as_a_whole_still_counts_as_one():
    "Start from clips of a person and class, but believe the errors: three of twelve people who fail in everything"
    group, label = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    whole, anywhere = (bootstrap(answers(label, group, right, 8), 2)['m']['accuracy'].interval() for right in (group > 2, np.random.default_rng(0).permutation(96) > 23))
    assert np.ptp(whole) > 1.8*np.ptp(anywhere)
    nothing = Estimate({0: np.array([[1.]])}, 12, 96, uneven=1/12, cells=1/96, pulls={0: np.zeros((1, 12))}).interval()
    assert nothing[1] == 1 and .9 < nothing[0] < .97


# --- a new deal for each training run

@pytest.fixture(scope='module')
def repeated(tmp_path_factory):
    "Three folds, two training runs, each with a deal of its own"
    runs = tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'round'))
    clips = in_folds(runs/'tiny')
    write_folds(runs/'tiny', clips, True)
    settings = TINY | dict(runs=str(runs), epochs=1, lr=.002)
    train_seeds('per_frame', settings)
    return runs/'tiny', settings


def test_each_run_has_its_own_deal_and_every_clip_is_tested_once_in_each(repeated):
    run, _ = repeated
    a, b = (pd.read_parquet(run/f'predictions/per_frame/seed{s}.parquet').set_index('clip_id').fold for s in (0, 1))
    assert sorted(a.index) == sorted(b.index) == sorted(ClipTable(run/'clips.sqlite').frame().clip_id)
    assert (a != b.reindex(a.index)).any()
    assert sorted(p.name for p in (run/'folds').iterdir()) == ['fold0', 'fold0_deal1', 'fold1', 'fold1_deal1', 'fold2', 'fold2_deal1']
    t = ClipTable(run/'folds/fold1_deal1/clips.sqlite').frame()
    assert t.groupby('group').split.nunique().max() == 1 and set(t.clip_id[t.split == 'test']) == set(b.index[b == 1])
    assert (run/'folds/fold1_deal1/frames').resolve() == (run/'frames').resolve()


def test_a_study_of_repeated_folds_is_compared_and_not_trained_again(repeated):
    run, settings = repeated
    before = {p: p.stat().st_mtime_ns for p in run.rglob('history.csv')}
    train_seeds('per_frame', settings)
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob('history.csv')} and len(before) == 2*(3 + 1)
    c = compare(run, n_resamples=50)
    assert c.predictions.folds == dict(per_frame=3) and len(c.predictions.clips) == 18
    assert len(load_predictions(run, 'shuffled')['per_frame']) == 2


def test_repeats_that_cannot_be_are_one_line(tmp_path):
    p = listed(tmp_path, people())
    clips, *_ = prepare(p | dict(folds=3, repeat_folds=True))
    write_folds(tmp_path, clips, True)
    assert read_folds(tmp_path)['repeated'] and (deal_again(clips, 3, 1) == deal_again(clips, 3, 1)).all()
    for folds, says in (('group', 'only one deal'), (6, 'only one deal'), (None, 'without folds')):
        with pytest.raises(StudyError, match='^repeat_folds: ') as e: prepare(p | dict(folds=folds, repeat_folds=True))
        assert says in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(StudyError, match='only one deal'): check_repeats(clips.assign(fold=fold_numbers(clips, 'group')))
