"""The comparison from outside: files that are wrong, the shape of report.json, same inputs same bytes, the corner cases of a study, and size."""
import json, tracemalloc
import numpy as np, pandas as pd, pytest
from sklearn.metrics import f1_score
from kinetics_dance.comparison import compare, write_report
from kinetics_dance.core.base import StudyError
from kinetics_dance.evaluation.figures import save_figure
from kinetics_dance.evaluation.analysis import confusion, crowd
from kinetics_dance.evaluation.intervals import bootstrap, upload_weights
from kinetics_dance.evaluation.predictions import (
    Predictions, load_predictions, read_predictions, stack_predictions)
from kinetics_dance.evaluation.significance import paired_differences

PAIRS = [{'classes': ['left dancing', 'right dancing'], 'differs': 'order'}, {'classes': ['fast dancing', 'slow dancing'], 'differs': 'tempo'}]
CLASSES = sorted(c for p in PAIRS for c in p['classes'])

def table(accuracy=.8, seed=0, uploads=24, classes=CLASSES, clips=2, path=None):
    "Predictions of one run, right on about `accuracy` of the clips; wrong means: the next class"
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(uploads), clips)
    y = np.arange(len(group)) % len(classes)
    said = np.where(rng.random(len(y)) < accuracy, y, (y + 1) % len(classes))
    probs = .1/len(classes) + .9*np.eye(len(classes))[said]
    df = pd.DataFrame({'clip_id': [f'-u_{g}_{i % clips*5:06d}_{i % clips*5 + 5:06d}' for i, g in enumerate(group)], 'group': [f'-u_{g}' for g in group],
                       'label': np.array(classes)[y], 'split': 'test', **{f'p_{c}': probs[:, k] for k, c in enumerate(classes)}})
    if path: path.parent.mkdir(parents=True, exist_ok=True); df.to_parquet(path)
    return df

@pytest.fixture
def study(tmp_path):
    "Folder of a finished study: two models, two seeds, two probes"
    for m, a in (('per_frame', .5), ('cnn_lstm', .9)):
        for s in (0, 1):
            for probe in ('', 'shuffled', 'reversed'): table(a if not probe else .5, 10*s + len(m), path=tmp_path/'predictions'/m/probe/f'seed{s}.parquet')
    (tmp_path/'known.json').write_text(json.dumps({'scene_bias': 0., 'pairs': PAIRS, 'ceiling': .5}))
    (tmp_path/'stages').mkdir()
    (tmp_path/'stages'/'00_data.json').write_text('{"seconds": 12.5, "cells": 3}')
    return tmp_path

# --- files that are wrong: one line that names the file and the clip or column

def spoil(**cols): return lambda df: df.assign(**cols)
WRONG = {
    'duplicate': (lambda d: pd.concat([d, d.iloc[[3]]]), "clip '-u_1_000005_000010' occurs more than once"),
    'nan': (lambda d: d.assign(**{'p_slow dancing': d['p_slow dancing'].where(d.index != 2)}), "clip '-u_1_000000_000005' has nan in column 'p_slow dancing'"),
    'sum': (lambda d: d.assign(**{'p_slow dancing': d['p_slow dancing'] + .01*(d.index == 0)}), "clip '-u_0_000000_000005' has probabilities that sum to 1.01"),
    'negative': (lambda d: d.assign(**{'p_slow dancing': -.5, 'p_fast dancing': 1.5, 'p_left dancing': 0., 'p_right dancing': 0.}), 'negative'),
    'unknown label': (lambda d: d.assign(label=d.label.where(d.index != 0, 'waltz')), "is labelled 'waltz', but there is no column 'p_waltz'"),
    'no label': (lambda d: d.drop(columns='label'), "column 'label' is missing"),
    'empty label': (lambda d: d.assign(label=d.label.where(d.index != 0)), "column 'label' has an empty cell"),
    'no probabilities': (lambda d: d[['clip_id', 'label']], 'nothing to compare'),
    'no test clips': (spoil(split='valid'), 'nothing to compare'),
    'text': (spoil(**{'p_slow dancing': 'much'}), "column 'p_slow dancing' is not numeric"),
}

@pytest.mark.parametrize('case', WRONG)
@pytest.mark.parametrize('kind', ['parquet', 'csv'])
def test_wrong_file(case, kind, tmp_path):
    change, message = WRONG[case]
    f, df = tmp_path/f'their.{kind}', change(table()).reset_index(drop=True)
    df.to_csv(f, index=False) if kind == 'csv' else df.to_parquet(f)
    with pytest.raises(StudyError) as e: read_predictions(f)
    assert str(f) in str(e.value) and message in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('name,content', [('gone.parquet', None), ('broken.parquet', b'PAR1 no'), ('empty.csv', b'')])
def test_unreadable_file(name, content, tmp_path):
    if content is not None: (tmp_path/name).write_bytes(content)
    with pytest.raises(StudyError, match=name): read_predictions(tmp_path/name)

def test_group_from_name_and_valid_rows_left_out(tmp_path):
    df = table()
    df.loc[:3, 'split'] = 'valid'
    df.drop(columns='group').to_csv(tmp_path/'a.csv', index=False)
    got = read_predictions(tmp_path/'a.csv')
    assert len(got) == len(df) - 4 and set(got.group) == set(df.group[4:])

def test_different_tables():
    a = table()
    for other, message in ((a.iloc[2:], '2 missing'), (table(classes=CLASSES[:3]), r"other classes than a \(seed 0\): 1 missing \['slow dancing'\]"),
                           (a.assign(label=a.label.where(a.index != 0, CLASSES[1])), '1 clips have another label'),
                           (a.assign(group=a.group.where(a.index != 0, 'x')), '1 clips have another group')):
        with pytest.raises(StudyError, match=message): compare({'a': {0: a}, 'b': {0: other}})
    with pytest.raises(StudyError, match='no model'): compare({})
    with pytest.raises(StudyError, match='more than once'): compare({'a': {0: pd.concat([a, a])}})

def test_probe_of_other_clips(study):
    table(uploads=23, path=study/'predictions'/'cnn_lstm'/'shuffled'/'seed0.parquet')
    with pytest.raises(StudyError, match='shuffled/seed0.parquet.*2 missing'): compare(study)

def test_empty_folder(tmp_path):
    with pytest.raises(StudyError, match='no predictions'): load_predictions(tmp_path)
    assert load_predictions(tmp_path, 'shuffled') == {}

# --- report.json

def triple(x): return {'mean', 'low', 'high'} <= set(x) and 0 <= x['low'] <= x['mean'] <= x['high'] <= 1

def test_report(study):
    r = write_report(compare(study, n_resamples=300), study, 'toy')
    assert r == json.loads((study/'report.json').read_text())
    assert r['study'] == 'toy' and r['n_test'] == 48 and r['n_uploads'] == 24 and r['classes'] == CLASSES and r['ceiling'] == .5
    assert r['seconds'] == {'00_data': 12.5}
    assert list(r['models']) and all(all(triple(m[k]) for k in ('accuracy', 'top3', 'macro_f1', 'balanced_accuracy')) and m['log_loss']['mean'] > 0 and m['seeds'] == [0, 1] for m in r['models'].values())
    assert all(set(m['probes']) == {'shuffled', 'reversed'} and all(triple(x) for x in m['probes'].values()) for m in r['models'].values())
    assert all(set(m['within_pairs']) == {'order', 'other'} and triple(m['pair_accuracy']) for m in r['models'].values())
    (pair,) = r['pairs']
    assert (pair['a'], pair['b']) == ('per_frame', 'cnn_lstm') and pair['low'] <= pair['diff'] <= pair['high'] and pair['p'] < .05
    assert pair['diff'] == pytest.approx(r['models']['cnn_lstm']['accuracy']['mean'] - r['models']['per_frame']['accuracy']['mean'], abs=2e-6)
    assert len(r['verdicts']) == 1 and 'cnn_lstm is better than per_frame' in r['verdicts'][0]
    assert {f.stem for f in (study/'tables').iterdir() if f.name[0] != '.'} == {'scores', 'pairs', 'per_class', 'seeds', 'confusion', 'probes', 'agreement', 'together', 'gains', 'heterogeneity'}
    # a table of an earlier run goes; what the user put there, or another's line in the list names, stays
    mark, gone, mine, outside = study/'tables'/'.kinetics_dance', study/'tables'/'old.csv', study/'tables'/'mine.csv', study/'x.csv'
    for f in (gone, mine, outside): f.write_text('x')
    mark.write_text(mark.read_text() + '\nold\n../x\n')
    write_report(compare(study, n_resamples=50), study, 'toy')
    assert not gone.exists() and mine.exists() and outside.exists()

def test_same_inputs_same_bytes(study, tmp_path_factory):
    def write(c): out = tmp_path_factory.mktemp('out'); write_report(c, out, 'toy'); return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob('*.*')}
    first = write(compare(study, n_resamples=200))
    for f in study.rglob('*.parquet'): pd.read_parquet(f).sample(frac=1, random_state=1).to_parquet(f)
    assert write(compare(study, n_resamples=200)) == first
    assert write(compare(study, n_resamples=200, seed=1)) != first

def test_figures_same_bytes(tmp_path):
    from matplotlib.figure import Figure
    def draw(d):
        fig = Figure(figsize=(2, 1)); fig.subplots().errorbar([1, 2], [1, 2], yerr=[.1, .2]); save_figure(fig, tmp_path/d/'f')
        return [(tmp_path/d/f'f.{k}').read_bytes() for k in ('png', 'svg')]
    assert draw('a') == draw('b') and all(draw('a')) and b'<dc:date>' not in draw('a')[1]

# --- the corners

@pytest.mark.parametrize('kw', [dict(uploads=1), dict(uploads=1, clips=1), dict(classes=['tap dancing']), dict(uploads=2)])
@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('seeds', [1, 2])
@pytest.mark.filterwarnings('error::RuntimeWarning', 'ignore:A single label:UserWarning')
def test_corners(kw, models, seeds, tmp_path):
    "One upload, one clip, one class, one seed, one model: a report with nulls, never a crash"
    c = compare({f'm{i}': {s: table(seed=s + i, **kw) for s in range(seeds)} for i in range(models)}, {'pairs': PAIRS, 'scene_bias': .5}, n_resamples=50)
    r = write_report(c, tmp_path, 'corner')
    assert len(r['pairs']) == len(r['verdicts']) == models - 1
    if kw.get('uploads') == 1:
        assert r['models']['m0']['accuracy']['low'] is None
        if models == 2: assert r['pairs'][0]['p'] is None
    if 'classes' in kw: assert r['ceiling'] is None and r['models']['m0']['accuracy']['mean'] == 1 and r['models']['m0']['pair_accuracy'] is None

def test_different_numbers_of_seeds():
    c = compare({'ours': {s: table(.9, s) for s in range(3)}, 'theirs': table(.6, 9)}, n_resamples=100)
    assert c.predictions.seeds == {'ours': [0, 1, 2], 'theirs': [0]} and c.pairs.p[0] < .05
    assert any('theirs: a single training run' in n for n in c.notes)

def test_two_files(tmp_path):
    table(.5, path=tmp_path/'a.parquet')
    table(.9).to_csv(tmp_path/'b.csv', index=False)
    c = compare({'ours': tmp_path/'a.parquet', 'theirs': tmp_path/'b.csv'}, n_resamples=100)
    assert c.ceiling is None and list(c.predictions.probs) == ['ours', 'theirs']

def test_identical_models_do_not_differ():
    p = stack_predictions({'a': {0: table()}, 'b': {0: table()}})
    row = paired_differences(p, bootstrap(p, 200)).iloc[0]
    assert row['diff'] == 0 and row.p == row.p_mcnemar == 1 and row.low < 0 < row.high # 24 uploads cannot rule out a small difference

# --- against a second implementation, resample by resample

def test_bootstrap_against_a_loop():
    "Every resample written out: repeat the clips of each drawn upload, score each run with scikit-learn"
    from sklearn.metrics import balanced_accuracy_score, log_loss
    from kinetics_dance.evaluation.predictions import calibration_error
    p, n = stack_predictions({'m': {s: table(.7, s, clips=3) for s in range(3)}}), 30
    got, w = bootstrap(p, n, seed=5, block=7)['m'], upload_weights(24, n, 5)
    for r in range(n + 1):
        i = np.concatenate([np.repeat(np.flatnonzero(p.group == g), int(w[g, r])) for g in range(24)])
        y, prob = p.y_true[i], p.probs['m'][:, i]
        by_hand = {'accuracy': [(x == y).mean() for x in prob.argmax(-1)], 'macro_f1': [f1_score(y, x, average='macro') for x in prob.argmax(-1)],
                   'balanced_accuracy': [balanced_accuracy_score(y, x) for x in prob.argmax(-1)], 'log_loss': [log_loss(y, x) for x in prob],
                   'calibration_error': [calibration_error(x, y) for x in prob]}
        for key, scores in by_hand.items(): assert next(iter(got[key].parts.values()))[:, r] == pytest.approx(scores, abs=1e-5), key

def test_confusion_counts_every_clip_and_seed():
    p = stack_predictions({'m': {s: table(.7, s) for s in range(3)}})
    m = confusion(p, 'm')
    assert m.to_numpy().sum() == 3*48 and (m.sum(axis=1) == 3*12).all()

# --- size

def test_large_is_vectorised():
    "10 models, 3 seeds, 5,000 clips, 500 resamples: memory stays far below one number a clip, run and resample (600 MB)"
    rng, n, k = np.random.default_rng(0), 5000, 15
    y = rng.integers(0, k, n)
    probs = {f'm{i}': (np.eye(k, dtype=np.float32)[np.where(rng.random((3, n)) < .6 + .02*i, y, rng.integers(0, k, (3, n)))]) for i in range(10)}
    p = Predictions([f'c{i:02d}' for i in range(k)], np.arange(n).astype(str), np.arange(n)//2, y, probs, {m: [0, 1, 2] for m in probs})
    tracemalloc.start()
    boot = bootstrap(p, 500)
    d = paired_differences(p, boot)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 and len(d) == 45 and all(0 < np.std(b['accuracy'].draws) < .02 for b in boot.values())

# --- anybody's files

def test_anybody(tmp_path):
    "The sentence of the docs: a parquet of ours and a csv of theirs with names of their own and no uploads"
    ours, theirs = table(.9), table(.6, 3)
    ours.attrs['pretraining'] = 'imagenet'
    ours.to_parquet(tmp_path/'a.parquet')
    theirs.drop(columns=['group', 'split']).assign(pretraining='kinetics-400').sample(frac=1, random_state=0).to_csv(tmp_path/'b.csv', index=False)
    c = compare({'ours': tmp_path/'a.parquet', 'theirs': tmp_path/'b.csv'}, n_resamples=200)
    assert c.predictions.pretraining == {'ours': 'imagenet', 'theirs': 'kinetics-400'} and c.predictions.group.max() == 23
    assert 'theirs †' in c.verdicts[0] and any('†' in n for n in c.notes)
    r = write_report(c, tmp_path/'out', 'toy')
    assert r['models']['theirs']['pretraining'] == 'kinetics-400'
    for name in ('scores', 'pairs', 'seeds', 'per_class', 'together'): assert 'theirs †' in (tmp_path/'out/tables'/f'{name}.csv').read_text(), name

def test_other_names(tmp_path):
    "Clips that are not named like ours are uploads of their own"
    df = table().drop(columns='group').assign(clip_id=[f'clip_1_{i}' for i in range(48)])
    assert read_predictions(df).group.nunique() == 48

def test_shared_clips_only_when_asked():
    a, b = table(.9), table(.6, 3).iloc[6:]
    extra = table(.6, 3, uploads=26).iloc[6:]
    with pytest.raises(StudyError, match=r"6 missing .*clips='shared'"): compare({'a': a, 'b': b})
    c = compare({'a': a, 'b': extra}, n_resamples=50, clips='shared')
    assert len(c.predictions.clips) == 42 and 'Only the 42 clips that every file has' in c.notes[0] and '10 others' in c.notes[0]
    with pytest.raises(StudyError, match='share no clip'): compare({'a': a.iloc[:4], 'b': b}, clips='shared')
    with pytest.raises(StudyError, match='neither'): compare({'a': a}, clips='some')

def test_labels_disagree_on_shared_clips():
    a = table()
    with pytest.raises(StudyError, match='1 clips have another label'):
        compare({'a': a, 'b': a.iloc[2:].assign(label=a.label.where(a.index != 8, CLASSES[1]))}, clips='shared')

@pytest.mark.parametrize('kw, said', [(dict(uploads=1, clips=1), 'There is one clip'), (dict(uploads=1), 'come from one upload'),
                                      (dict(classes=['tap dancing']), 'All clips are of one class (tap dancing)'), ({}, 'a single training run')])
def test_one_of_something_is_said(kw, said):
    notes = compare({'a': table(**kw)}, n_resamples=20).notes
    assert any(said in n for n in notes) and not any('\n' in n for n in notes)

def test_a_probe_with_fewer_runs_or_models(study):
    "Older or foreign predictions: probes that only some runs have, and frames curves that only one model has"
    (study/'predictions/cnn_lstm/shuffled/seed1.parquet').unlink()
    for k in (1, 4): table(.6, k, path=study/f'predictions/cnn_lstm/frames_{k}/seed0.parquet')
    table(.6, path=study/'predictions/cnn_lstm/over_time/seed0.parquet')
    c = compare(study, n_resamples=50)
    t = c.tables['probes']
    assert t[t.probe == 'frames_4'].model.tolist() == ['cnn_lstm']*3 and t[t.probe == 'frames_4'].frames.tolist() == [4]*3 and 'over_time' not in set(t.probe)
    assert t[(t.probe == 'shuffled') & (t.model == 'cnn_lstm')].change.notna().all()

def test_average_and_oracle():
    p = stack_predictions({'a': {s: table(.6, s) for s in range(3)}, 'b': {s: table(.7, 9 + s) for s in range(2)}})
    q = crowd(p)
    assert q.probs['average'].shape[0] == 2 and q.probs['average'] == pytest.approx((p.probs['a'][:2] + p.probs['b'])/2)
    any_right = np.any([p.y_pred(m)[:2] == p.y_true for m in 'ab'], axis=0)
    assert ((q.y_pred('oracle') == q.y_true) == any_right).all()
