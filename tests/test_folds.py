"Cross-validation by group: every clip is a test clip once, and all that reads predictions understands it."
import shutil
import numpy as np, pandas as pd, pytest
from kinetics_dance.clips.folds import fold_lines, fold_numbers, fold_splits, read_folds, write_folds
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.comparison import compare
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.settings import check_settings, defaults
from kinetics_dance.data import choose, prepare
from kinetics_dance.evaluation.intervals import bootstrap, shared_training
from kinetics_dance.evaluation.predictions import as_table, load_predictions, simulate, stack_predictions
from kinetics_dance.training.budget import train_budgets
from kinetics_dance.training.runs import forget_models, train_run, train_seeds
from kinetics_dance.training.study_files import histories, learning_rates
from conftest import tiny_study

TINY = dict(study='tiny', n_frames=8, frame_height=48, frame_width=64, seeds=[0, 1], epochs=2, lr=[.001, .004], allow_edge_lr=True, lr_epochs=1, clip_frames=4, batch_size=4, crop_height=44, crop_width=60,
            train='head')
FOLDS = 3


def in_folds(run, folds=FOLDS):
    "Deal out the clips of a study that is there"
    table = ClipTable(run/'clips.sqlite')
    clips = table.frame()
    clips = clips.assign(fold=fold_numbers(clips, folds))
    clips = clips.assign(split=fold_splits(clips.label, clips.fold.to_numpy(), 0))
    table.set(clips)
    write_folds(run, clips)
    return clips


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Three folds, two models, two seeds, trained"
    runs = tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'round'))
    clips = in_folds(runs/'tiny')
    settings = TINY | dict(runs=str(runs))
    for m in ('per_frame', 'cnn_lstm'): train_seeds(m, settings)
    return runs/'tiny', settings, clips


def test_every_clip_is_a_test_clip_once(study):
    run, settings, clips = study
    said = load_predictions(run)['cnn_lstm']
    assert sorted(said[0].clip_id) == sorted(ClipTable(run/'clips.sqlite').frame().clip_id) and len(said) == 2
    for k in range(FOLDS):
        t = ClipTable(run/'folds'/f'fold{k}'/'clips.sqlite').frame()
        assert t.groupby('group').split.nunique().max() == 1 and set(t.split) == {'train', 'valid', 'test'}
        own = pd.read_parquet(run/'folds'/f'fold{k}'/'predictions/cnn_lstm/seed0.parquet')
        whole = pd.read_parquet(run/'predictions/cnn_lstm/seed0.parquet')
        mine = whole[whole.fold == k].drop(columns='fold').reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, own[own.split == 'test'].sort_values('clip_id', ignore_index=True))


def test_learning_rates_are_chosen_inside_the_fold_and_features_are_stored_once(study):
    run, *_ = study
    rates = learning_rates(run, 'cnn_lstm')
    assert rates.groupby('fold').chosen.sum().tolist() == [1]*FOLDS and len(rates) == 2*FOLDS
    # one folder of features for a backbone that draws its weights by the seed: those of two seeds and of the trials
    folders = [p for p in (run/'features').iterdir() if p.is_dir()]
    assert len(folders) == 3 and all((run/'folds'/f'fold{k}'/'features').is_symlink() for k in range(FOLDS))
    assert all((run/'folds'/f'fold{k}'/'frames').resolve() == (run/'frames').resolve() for k in range(FOLDS))


def test_what_is_trained_is_not_trained_again_and_what_is_lost_is(study, tmp_path):
    run, settings, _ = study
    before = {p: p.stat().st_mtime_ns for p in (run/'folds').rglob('history.csv')}
    files = {p: p.stat().st_mtime_ns for p in (run/'predictions').rglob('*.parquet')}
    config = train_run('cnn_lstm', settings, 0)
    assert config['folds'] == FOLDS
    assert before == {p: p.stat().st_mtime_ns for p in (run/'folds').rglob('history.csv')}
    assert files == {p: p.stat().st_mtime_ns for p in (run/'predictions').rglob('*.parquet')}
    gone = run/'predictions/cnn_lstm/shuffled/seed0.parquet'
    bytes_ = gone.read_bytes()
    gone.unlink()
    train_run('cnn_lstm', settings, 0)
    assert gone.read_bytes() == bytes_
    assert before == {p: p.stat().st_mtime_ns for p in (run/'folds').rglob('history.csv')}
    lost = run/'folds/fold1/predictions/cnn_lstm/seed0.parquet'
    lost.unlink()
    train_run('cnn_lstm', settings, 0)
    changed = [p for p in before if p.stat().st_mtime_ns != before[p]]
    assert changed == [run/'folds/fold1/models/cnn_lstm/seed0/history.csv']
    kept = {p.relative_to(run/'folds').parts[0] for p in (run/'folds').rglob('*.safetensors')}
    assert kept == {'fold0'} and len(list((run/'models').rglob('*.safetensors'))) == 4


def test_the_model_of_the_study_has_not_seen_the_test_clips_of_its_table(study):
    from safetensors.torch import load_file
    run, *_ = study
    test = ClipTable(run/'clips.sqlite').frame().query('split == "test"')
    first = ClipTable(run/'folds/fold0/clips.sqlite').frame()
    assert set(test.clip_id) == set(first.clip_id[first.split == 'test'])
    a, b = (load_file(p/'models/per_frame/seed0/model.safetensors') for p in (run, run/'folds/fold0'))
    assert all((a[k] == b[k]).all() for k in a) and len(histories(run, 'per_frame', [0, 1])) == 4


def test_comparison_and_perturbations_read_folds_like_any_study(study):
    run, *_ = study
    c = compare(run, n_resamples=50)
    assert len(c.predictions.clips) == 18 and c.predictions.folds == dict(per_frame=FOLDS, cnn_lstm=FOLDS)
    assert any('Cross-validated over 3 folds' in n for n in c.notes)
    assert {'shuffled', 'reversed', 'frozen'} <= set(c.tables['probes'].probe)
    plain = {m: {s: t.drop(columns='fold', errors='ignore') for s, t in r.items()} for m, r in load_predictions(run).items()}
    for r in plain.values():
        for t in r.values(): t.attrs['folds'] = 0
    naive = compare(plain, n_resamples=50)
    wide, narrow = (x.boots['normal', 'classes']['cnn_lstm']['accuracy'] for x in (c, naive))
    assert wide.value == narrow.value and wide.spread()[0] == pytest.approx(shared_training(FOLDS)*narrow.spread()[0])


def test_a_model_or_a_seed_that_the_study_lost_leaves_its_folds_too(study, tmp_path):
    run, settings, _ = study
    shutil.copytree(run, tmp_path/'tiny', symlinks=True)
    own = settings | dict(runs=str(tmp_path), seeds=[0])
    train_seeds('cnn_lstm', own)
    assert not list((tmp_path/'tiny/folds').glob('*/models/cnn_lstm/seed1')) and not list((tmp_path/'tiny/folds').glob('*/predictions/cnn_lstm/**/seed1.parquet'))
    forget_models(tmp_path/'tiny', ['cnn_lstm'])
    assert not list((tmp_path/'tiny').glob('**/models/per_frame')) and list((tmp_path/'tiny/folds').glob('*/models/cnn_lstm/seed0'))


def test_what_cannot_be_cross_validated_is_one_line(study):
    people = pd.DataFrame([dict(label=l, group=g, youtube_id=g + l, path=g + l, time_start=0., time_end=0., split=None) for g in 'abcd' for l in ('run', 'walk')])
    for folds, rows, says in ((7, people, '7 folds need as many groups, and there are 4'), ('group', people[people['group'] < 'c'], 'clips of more groups'),
                              ('group', people[(people.label == 'run') | (people['group'] == 'a')], "class 'walk' lives in one group only ('a')"),
                              (3, people[(people.label == 'run') | (people['group'] == 'a')], "lives in one group only")):
        with pytest.raises(StudyError, match='^folds: .*') as e: fold_lines(rows, folds)
        assert says in str(e.value) and '\n' not in str(e.value)
    run, *_ = study
    assert len(read_folds(run)['groups']) == 9


def test_two_models_of_which_one_is_cross_validated_take_the_wider_variance():
    p = simulate(np.random.default_rng(0), {'a': .8, 'b': .8}, seeds=1)
    tables = {m: {s: as_table(p, m, s) for s in p.seeds[m]} for m in p.probs}
    for t in tables['b'].values(): t['fold'] = np.arange(len(t)) % 5
    from kinetics_dance.evaluation.predictions import read_predictions
    q = stack_predictions({m: {s: read_predictions(t) for s, t in r.items()} for m, r in tables.items()})
    b = bootstrap(q, 20)
    assert q.folds == {'b': 5} and b['a']['accuracy'].shared == 1
    plain = bootstrap(p, 20)
    assert np.diff(b['b']['accuracy'].interval()) > np.diff(plain['b']['accuracy'].interval())
    assert np.diff((b['b']['accuracy'] - b['a']['accuracy']).interval()) > np.diff((plain['b']['accuracy'] - plain['a']['accuracy']).interval())
    assert (b['b']['accuracy'] - b['a']['accuracy']).shared == shared_training(5)


def listed(tmp_path, rows):
    "Settings of a study of a list; its videos are empty files, which nobody reads here"
    for r in rows: (tmp_path/r['path']).write_bytes(b'')
    pd.DataFrame(rows).to_csv(tmp_path/'list.csv', index=False)
    return defaults() | dict(study='mine', runs=str(tmp_path/'runs'), source='folder', annotations=[str(tmp_path/'list.csv')], contains='', n_train=0, n_valid=0, n_test=0)


def people(n=6, labels=('run', 'walk'), **more):
    return [dict(path=f'{g}_{l}.mp4', label=l, group=g) | {k: v(g) for k, v in more.items()} for g in 'abcdef'[:n] for l in labels]


def test_folds_of_a_list(tmp_path):
    p = listed(tmp_path, people())
    clips, gone, _ = prepare(p | dict(folds='group'))
    assert clips.fold.nunique() == 6 and clips.groupby('group').fold.nunique().max() == 1 and not len(gone)
    assert len(choose(p | dict(folds='group'), clips)()) == 12
    clips, *_ = prepare(p | dict(folds=3, n_train=1, n_valid=1, n_test=2)) # together four clips of a class
    assert clips.label.value_counts().tolist() == [4, 4]
    with pytest.raises(StudyError, match='^folds: 9 folds need as many groups, and there are 6'): prepare(p | dict(folds=9))


def test_a_group_on_two_sides_of_the_list_is_one_line(tmp_path):
    rows = people(split=lambda g: 'train')
    rows[1]['split'] = 'test'
    p = listed(tmp_path, rows)
    with pytest.raises(StudyError, match="^folds: group 'a' lies in test and train of the list; leave its column split out"): prepare(p | dict(folds='group'))
    p = listed(tmp_path, people(split=lambda g: 'test' if g in 'ab' else 'train'))
    assert len(prepare(p | dict(folds='group'))[0]) == 12 # a split that keeps groups together is passed over


def test_no_number_of_valid_clips_takes_all_that_the_list_names(tmp_path):
    sides = dict(a='test', b='valid', c='valid')
    p = listed(tmp_path, people(split=lambda g: sides.get(g, 'train')))
    clips, *_ = prepare(p)
    assert choose(p, clips)().split.value_counts().to_dict() == {'train': 6, 'valid': 4, 'test': 2}
    assert choose(p | dict(n_valid=1), clips)().split.value_counts().to_dict() == {'train': 6, 'valid': 2, 'test': 2}
    p = listed(tmp_path, people(split=lambda g: 'test' if g == 'a' else 'train'))
    with pytest.raises(StudyError, match='^n_valid: 0 takes all validation clips of the list, and it names none'): prepare(p)


@pytest.mark.parametrize('given, says', [(2, 'folds: 2 is too small; give at least 3'), ('person', 'folds: '), (1.5, 'folds: ')])
def test_settings_that_cannot_be(given, says):
    with pytest.raises(StudyError) as e: check_settings(dict(folds=given))
    assert str(e.value).startswith(says) and '\n' not in str(e.value)
    assert check_settings(dict(folds='group'))['folds'] == 'group' and check_settings(dict(folds=5))['folds'] == 5


def test_budgets_of_folds_are_refused(study):
    _, settings, _ = study
    with pytest.raises(StudyError, match='budgets of a study with folds are not made'): train_budgets(settings, ['per_frame'], epochs=[1])


def test_to_take_folds_and_runs_for_independent_samples_is_too_narrow():
    "`bench/folds.py` in small: the usual way misses in many studies what ours catches"
    from bench.folds import METHODS, kind, table
    r = kind('12 people, hardly more clips than features, 6 folds', 16)
    assert r['folds x runs'][1] < r['ours'][1] - .1 and r['c = 0'][1] <= r['ours'][1] <= r['c = 1'][1] and 0 < r['accuracy'] < 1
    assert table([r], 16).count('|') == 3*8 and set(METHODS) < set(r)


def test_folds_take_so_many_times_as_long():
    from report.progress import work
    one = dict(n_train=4, n_valid=1, n_test=4, seeds=[0], epochs=2, lr=[.1])
    assert work('02_per_frame', one | dict(folds=5)) == 5*work('02_per_frame', one) and work('00_data', one | dict(folds=5)) == work('00_data', one)
