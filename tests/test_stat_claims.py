"""No sentence is stronger than its evidence: what is said where a model was trained once, in the three verdicts and in the cautions."""
import numpy as np, pytest
from kinetics_dance.comparison import compare
from kinetics_dance.evaluation.intervals import Estimate, bootstrap
from kinetics_dance.evaluation.predictions import Predictions, as_table, simulate
from kinetics_dance.evaluation.significance import paired_differences, verdict


def tables(runs, truth=dict(ours=.9, theirs=.6), seed=0, **kw):
    "As many runs of each model as are asked for, as predictions files hold them"
    p = simulate(np.random.default_rng(seed), truth, seeds=max(runs), **kw)
    return {m: {s: as_table(p, m, s) for s in range(n)} for m, n in zip(truth, runs)}


# --- one run is no claim about a recipe


@pytest.mark.parametrize('runs', [(1, 1), (3, 1), (1, 2)])
def test_one_run_compares_trained_models(runs):
    c = compare(tables(runs), n_resamples=100)
    assert c.pairs.about.tolist() == ['these trained models'] and c.pairs.p[0] < .05
    assert 'is better' not in c.verdicts[0] and 'these two trained models' in c.verdicts[0]
    assert any('nothing is claimed about recipes' in n for n in c.notes)
    assert not any('is better' in v for v in c.report('x')['verdicts'])


def test_two_runs_each_compare_recipes():
    c = compare(tables((2, 2), uploads=120), n_resamples=100)
    assert c.pairs.about.tolist() == ['recipes'] and 'these two trained models' not in c.verdicts[0]


def test_one_run_on_a_side_takes_all_runs_as_given():
    "The interval of 3 runs against 1 is about these models: the spread of the three is not half an answer about the other side"
    p = simulate(np.random.default_rng(0), dict(a=.8, b=.8), seeds=3, run=.3)
    b = bootstrap(p, 200)['a']['accuracy']
    one = Estimate({'other': next(iter(bootstrap(Predictions(p.classes, p.clips, p.group, p.y_true, {'b': p.probs['b'][:1]}, {'b': [0]}), 200)['b']['accuracy'].parts.values()))}, b.n, b.clips)
    assert (b - one).spread()[1:] == (0, 0, 0) and b.spread()[1] > 0 and not (b - one).about_recipes


def test_the_answer_in_readme_with_one_run():
    from report.answer import caption, sentence
    x = dict(mean=.8, low=.7, high=.9)
    a = dict(study='toy', n_test=9, n_uploads=9, ceiling=None, failed=[], checks=0, finished='', machine='', models={m: dict(seeds=1, accuracy=x) for m in ('per_frame', 'cnn_lstm')})
    assert 'these trained models' in sentence(a) and 'training runs)' not in sentence(a) and 'these trained models' in caption(a)
    for m in a['models'].values(): m['seeds'] = 3
    assert 'over uploads and training runs' in sentence(a) and 'these trained models' not in sentence(a) + caption(a)


def test_the_page_of_results_with_one_run():
    from report.results import scope
    assert 'not between recipes' in scope({'per_frame': dict(seeds=[0])}) and 'over uploads and runs' in scope({'per_frame': dict(seeds=[0, 1])})
