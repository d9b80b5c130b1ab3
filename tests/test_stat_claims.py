"""No sentence is stronger than its evidence: what is said where a model was trained once, in the three verdicts and in the cautions."""
import numpy as np, pytest
from statsmodels.stats.multitest import multipletests
from conftest import ROOT
from kinetics_dance.comparison import compare
from kinetics_dance.core.base import StudyError
from kinetics_dance.core.settings import check_settings
from kinetics_dance.evaluation.analysis import heterogeneity, shrunken, temporal_gain
from kinetics_dance.evaluation.intervals import Estimate, bootstrap
from kinetics_dance.evaluation.predictions import Predictions, as_table, load_predictions, simulate, stack_predictions
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


# --- a margin, and three verdicts


def pair(diff, clips, runs=5, seed=0, margin=.02):
    "The row of two models of known difference"
    p = simulate(np.random.default_rng(seed), dict(a=.8, b=.8 + diff), seeds=runs, uploads=clips//2, run=.00005, luck=.1)
    return paired_differences(p, bootstrap(p, 20), margin=margin).iloc[0]


def test_three_verdicts():
    assert pair(.1, 2000).verdict == 'better' and pair(0, 200).verdict == 'undecided'
    row = pair(0, 12_000)
    assert row.verdict == 'equivalent within the margin' and row.p_equivalent < .05
    assert pair(0, 12_000, margin=.001).verdict == 'undecided'


def test_equivalence_is_the_interval_of_90_percent():
    for seed in range(8):
        p = simulate(np.random.default_rng(seed), dict(a=.8, b=.8), uploads=400)
        b = bootstrap(p, 20)
        d = b['b']['accuracy'] - b['a']['accuracy']
        low, high = d.interval(.9)
        for margin in (.01, .02, .04, .08): assert (d.p_equivalent(margin) < .05) == (-margin < low and high < margin)


def test_two_models_that_differ_by_the_margin_are_rarely_called_equivalent():
    "TOST's promise: at most 5 %"
    rng, n = np.random.default_rng(0), 300
    called = 0
    for i in range(n):
        p = simulate(rng, dict(a=.8, b=.83), uploads=500, seeds=2, run=.001)
        b = bootstrap(p, 1)
        called += (b['b']['accuracy'] - b['a']['accuracy']).p_equivalent(.03) < .05
    assert called/n <= .05 + 2*(.05*.95/n)**.5


@pytest.mark.parametrize('margin', [0, -.1, .51, 2])
def test_a_margin_that_cannot_be(margin):
    with pytest.raises(StudyError, match='margin: .* above 0 and at most 0.5'): compare(tables((2, 2)), n_resamples=20, margin=margin)
    with pytest.raises(StudyError, match='margin: .* is too'): check_settings(dict(margin=float(margin)))


def test_nothing_is_planned_for_what_was_seen_by_chance():
    "Under no difference the clips for the margin stay of one size; for the difference seen they went from 1,100 to 340,000"
    need = [pair(0, 600, runs=1, seed=s).clips_for_margin for s in range(8)]
    assert max(need) < 4*min(need), need


# --- which classes need time


def test_motion_says_what_holds():
    "Real motion, kept predictions: the classes differ, and how much"
    p = stack_predictions(load_predictions(ROOT/'results/motion'))
    h = heterogeneity(bootstrap(p, 2), 'per_frame').set_index('model').loc['video_transformer']
    assert h.df == 14 and h.Q > 24 and 0 < h.tau < .08


def test_random_effects_of_the_textbook():
    "By hand: with equal variances tau is the spread beyond them"
    g = np.array([.1, .2, .3, .8])
    whole, each = shrunken(g, [.01]*4)
    assert whole['Q'] == pytest.approx(((g - g.mean())**2).sum()/.01) and whole['df'] == 3
    assert whole['tau']**2 == pytest.approx(g.var(ddof=1) - .01, rel=1e-3)
    keep = whole['tau']**2/(whole['tau']**2 + .01)
    assert each.shrunken.to_numpy() == pytest.approx(g.mean() + keep*(g - g.mean()), rel=1e-3)


def test_the_demo_finds_all_twelve():
    from test_stat_control import demo
    for seed in range(6):
        p = demo(np.random.default_rng(seed))
        p.probs['time'], p.seeds['time'] = np.eye(12)[np.tile(p.y_true, (3, 1))], [0, 1, 2]
        assert temporal_gain(bootstrap(p, 2), 'per_frame').found.sum() == 12


def test_false_discoveries_are_rare():
    "15 classes, ten of them with no gain at all: of what is found at most about 5 % is false, and shrunken intervals contain the truth"
    rng, truth, v, false, inside = np.random.default_rng(0), np.r_[np.zeros(10), .05, .08, .1, .12, .15], np.full(15, .03**2), [], []
    for _ in range(400):
        whole, each = shrunken(truth + rng.normal(size=15)*.03, v)
        found = multipletests(each.p, .05, 'fdr_bh')[0]
        false.append((found & (truth == 0)).sum()/max(found.sum(), 1))
        inside.append(((each.shrunken_low <= truth) & (truth <= each.shrunken_high)).mean())
    assert np.mean(false) < .07 and np.mean(inside) > .92, (np.mean(false), np.mean(inside))


# --- cautions, and what has no interval


def test_calibration_error_has_no_interval():
    "That of a perfectly calibrated model contained 0 in 0 to 2 % of studies"
    p = simulate(np.random.default_rng(0), dict(a=.8))
    e = bootstrap(p, 50)['a']['calibration_error']
    assert e.value > 0 and np.isnan(e.interval()).all()
    r = compare(tables((2, 2)), n_resamples=20).report('x')
    assert r['models']['ours']['calibration_error']['mean'] > 0 and np.isnan(r['models']['ours']['calibration_error']['low'])


def test_runs_of_two_studies_are_not_paired(tmp_path):
    "Seed 0 of one study and seed 0 of another are two runs; the same run on tampered frames is one"
    p = simulate(np.random.default_rng(0), dict(m=.8), run=.1)
    found = {}
    for study in 'ab':
        for probe in ('', 'shuffled'):
            for s in range(3):
                f = tmp_path/study/'predictions/m'/probe/f'seed{s}.parquet'
                f.parent.mkdir(parents=True, exist_ok=True)
                as_table(p, 'm', s).to_parquet(f)
            found[study, probe] = bootstrap(stack_predictions(load_predictions(tmp_path/study, probe or None)), 20)['m']['accuracy']
    same, other = found['a', 'shuffled'] - found['a', ''], found['b', ''] - found['a', '']
    assert same.spread()[1] == 0 and len(same.parts) == 1
    assert len(other.parts) == 2 and other.spread()[1] == pytest.approx(2*found['a', ''].spread()[1])


def cautions(*accuracies, seed=0, n=400, uploads=None, keep=None):
    "What is said of runs with these accuracies"
    uploads = uploads or n//2
    p, rng = simulate(np.random.default_rng(seed), {f'm{i}': .8 for i in range(len(accuracies))}, uploads=uploads, clips=n//uploads, seeds=len(accuracies[0])), np.random.default_rng(1)
    for m, a in zip(p.probs, accuracies):
        for s, x in enumerate(a): p.probs[m][s] = np.eye(4)[np.where(rng.random(n) < x, p.y_true, (p.y_true + 1) % 4)]
    runs = {m: {s: as_table(p, m, s) for s in p.seeds[m]} for m in p.probs}
    return ' '.join(x for x in compare(runs, n_resamples=10).notes if x.startswith('Caution'))


def test_cautions():
    assert cautions((.8, .81, .79), (.82, .8, .81)) == ''
    assert 'one run of m0 reaches' in cautions((.85, .84, .4)) and 'collapse' in cautions((.85, .84, .4))
    assert 'runs of m1 differ much more' in cautions((.8, .8, .8), (.72, .8, .88), n=2000)
    assert '40 uploads.' in cautions((.8, .81, .79), uploads=40) and cautions((.8, .81, .79), uploads=50) == ''
    sure = cautions((.97, .96, .97), (.8, .81, .79))
    assert 'm0: right on about 95 % or more' in sure.replace('95%', '95 %') and 'm1' not in sure


def test_cautions_reach_the_report():
    "What the comparison warns of stands in report.json"
    r = compare(tables((3, 3), uploads=30), n_resamples=10).report('toy')
    assert any(n.startswith('Caution: 30 uploads') for n in r['notes'])


@pytest.mark.parametrize('sizes, said', [([3, 40, 40], True), ([8, 40, 40], False)])
def test_uneven_classes(sizes, said):
    from kinetics_dance.comparison import cautions
    assert any('uneven' in x for x in cautions(dict(m=[.8, .8, .81]), np.array(sizes))) == said


@pytest.mark.parametrize('p, want', [([.01, .02, .04], [.03, .02, .04]), ([.2, .01, .03], [.2, .03, .03]), ([.02, .9, .9], [.06, .9, .9])])
def test_shaffer_for_three(p, want):
    "If one of three pairs differs, at most one other can be equal: after the first no correction is needed"
    from kinetics_dance.evaluation.significance import corrected
    want = np.array(want)
    assert corrected(p, 3) == pytest.approx(np.maximum.accumulate(want[np.argsort(p)])[np.argsort(np.argsort(p))]) and (corrected(p, 3) <= multipletests(p, method='holm')[1] + 1e-12).all()
    assert corrected(p, 4) == pytest.approx(multipletests(p, method='holm')[1])
