"""Do intervals and tests keep what they promise (in simulated studies with a known truth), and does each formula agree with a second
implementation or a published number?"""
import numpy as np, pandas as pd, pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize
from kinetics_dance.evaluation.leakage import confirm_twins, frame_hash, hash_clips, near_duplicates
from kinetics_dance.evaluation.intervals import Estimate, bootstrap, upload_weights
from kinetics_dance.evaluation.predictions import (
    Predictions, calibration_error, rank_of_truth, reliability, seed_scores, simulate)
from kinetics_dance.evaluation.significance import (
    claim_of, clips_to_tell_apart, marked, paired_differences, verdict)

# --- the promise


def estimates(p, resamples=200, seed=0):
    "Accuracy of each model as `bootstrap` makes it, and nothing else: a hundred times as fast"
    g = p.group.max() + 1
    w = upload_weights(g, resamples, seed).astype(float)
    size = np.bincount(p.group) @ w
    return {m: Estimate({m: np.stack([np.bincount(p.group, y == p.y_true, g) for y in p.y_pred(m)]) @ w/size}, g, len(p.clips)) for m in p.probs}


def test_the_short_way_is_the_long_way():
    p = simulate(np.random.default_rng(0), {'a': .8, 'b': .7}, clips=3)
    short, long = estimates(p, 50), bootstrap(p, 50)
    for m in 'ab': assert next(iter(short[m].parts.values())) == pytest.approx(next(iter(long[m]['accuracy'].parts.values())), abs=1e-6)


STUDIES = {'2 runs alike': dict(seeds=2, run=0), '2 runs': dict(seeds=2, run=.03), '2 runs that differ': dict(seeds=2, run=.07), '3 runs alike': dict(run=0), '3 runs': {},
           '3 runs that differ': dict(run=.1), '3 runs of a good model': dict(a=.93, uploads=150), '5 runs, 4 clips an upload': dict(seeds=5, clips=4, run=.05)}


@pytest.mark.parametrize('kind', STUDIES)
def test_coverage_and_false_alarms(kind, n=1200):
    """1,200 simulated studies of each kind: 93 to 97 % of the intervals contain the truth and at most 6 % of the tests call two equal models
    different, but for the chance of the simulation itself (two standard errors; the draws are the same each time)"""
    kw, rng, inside, alarms = dict(STUDIES[kind]), np.random.default_rng(7), 0, 0
    a = kw.pop('a', .8)
    for i in range(n):
        e = estimates(simulate(rng, {'a': a, 'b': a}, **kw), 150, i)
        low, high = e['a'].interval()
        inside += low <= a <= high
        alarms += (e['a'] - e['b']).interval()[0]*(e['a'] - e['b']).interval()[1] > 0      # as p < .05: see below
    error = 2*(.05*.95/n)**.5
    assert .93 - error <= inside/n <= .97 + error, inside/n
    assert alarms/n <= .06 + error, alarms/n


def test_p_value_goes_with_the_interval():
    rng = np.random.default_rng(1)
    for i in range(60):
        e = estimates(simulate(rng, {'a': .75, 'b': .8}, seeds=1 + i % 4, run=.03), 100, i)
        d = e['b'] - e['a']
        low, high = d.interval()
        assert (d.p_value() < .05) == (low > 0 or high < 0)


def test_an_estimate_of_the_same_runs_is_paired_by_run():
    "The same weights on tampered frames: what the runs have in common cancels out"
    p = simulate(np.random.default_rng(0), {'m': .8}, run=.2)
    e = bootstrap(p, 200)['m']['accuracy']
    assert (e - e).value == 0 and (e - e).spread()[1] == 0 and not (e - e).draws.any()
    other = Estimate({'other runs': next(iter(e.parts.values()))}, e.n, e.clips)
    assert (e - other).spread()[1] == pytest.approx(2*e.spread()[1])


def test_more_runs_narrow_the_interval_and_one_run_is_silent():
    p = simulate(np.random.default_rng(0), {'m': .8}, seeds=6, run=.1)
    width = [np.ptp(bootstrap(Predictions(p.classes, p.clips, p.group, p.y_true, {'m': p.probs['m'][:s]}, {'m': list(range(s))}), 200)['m']['accuracy'].interval()) for s in (1, 3, 6)]
    assert width[1] > width[2] > 0 and width[0] < width[1]


# --- second implementations and published numbers


def toy(n=400, k=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.dirichlet(np.ones(k), n)
    return x, np.array([rng.choice(k, p=p) for p in x])


def test_scores_against_scikit_learn():
    x, y = toy()
    assert (rank_of_truth(x, y) < 3).mean() == top_k_accuracy_score(y, x, k=3)
    p = Predictions([f'c{i}' for i in range(6)], np.arange(400).astype(str), np.arange(400), y, {'m': x[None]}, {'m': [0]})
    assert seed_scores(p).log_loss[0] == pytest.approx(log_loss(y, x))
    for s in ('accuracy', 'top3', 'macro_f1', 'balanced_accuracy', 'log_loss', 'calibration_error'):
        assert bootstrap(p, 10)['m'][s].value == pytest.approx(seed_scores(p)[s][0], abs=1e-7), s


def test_calibration_error_by_a_loop():
    "Naeini et al. 2015, equation by equation"
    x, y = toy()
    sure, right, total = x.max(1), x.argmax(1) == y, 0
    for b in range(15):
        inside = (sure > b/15) & (sure <= (b + 1)/15)
        if inside.any(): total += inside.sum()/400*abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(x, y) == pytest.approx(total)
    assert reliability(x, y).clips.sum() == 400
    assert calibration_error(np.eye(4), np.arange(4)) == 0 and calibration_error(np.eye(4), np.array([1, 2, 3, 0])) == 1


def test_spread_is_the_analysis_of_variance():
    "One clip an upload: the components are the mean squares of a two-way table without replication (Searle et al. 1992), here by statsmodels"
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm
    p = simulate(np.random.default_rng(3), {'m': .75}, uploads=60, clips=1, seeds=4, run=.3)
    x = (p.y_pred('m') == p.y_true).astype(float)
    long = pd.DataFrame([(s, g, x[s, g]) for s in range(4) for g in range(60)], columns=['run', 'upload', 'right'])
    ms = anova_lm(smf.ols('right ~ C(run) + C(upload)', long).fit()).mean_sq
    want = np.array([ms['C(upload)'], ms['C(run)'], ms['Residual']])/(4*60)
    assert np.array(bootstrap(p, 4000)['m']['accuracy'].spread()[:3]) == pytest.approx(want, rel=.08)


def test_wilson():
    "27 of 34 (0.632 to 0.897), Brown, Cai and DasGupta's 0 of 50, and statsmodels at any count"
    assert [round(claim_of(27, 34)[k], 3) for k in ('low', 'high')] == [.632, .897]
    assert [round(claim_of(1589, 1912)[k], 3) for k in ('low', 'high')] == [.814, .847]
    for k, n in ((0, 50), (50, 50), (3, 7)): assert (claim_of(k, n)['low'], claim_of(k, n)['high']) == pytest.approx(proportion_confint(k, n, method='wilson'))
    w = upload_weights(2000, 3000, 0).astype(float)
    for k in (20, 1000, 1900):
        x = np.r_[np.ones(k), np.zeros(2000 - k)]
        assert Estimate({0: (x @ w/2000)[None]}, 2000, 2000).interval() == pytest.approx(proportion_confint(k, 2000, method='wilson'), abs=2e-3)


def test_one_run_of_independent_clips_is_a_paired_t_test():
    p = simulate(np.random.default_rng(5), {'a': .8, 'b': .82}, uploads=800, clips=1, seeds=1, run=0)
    e = estimates(p, 4000)
    d, x = e['b'] - e['a'], np.subtract(*((p.y_pred(m)[0] == p.y_true).astype(float) for m in 'ba'))
    assert d.p_value() == pytest.approx(stats.ttest_1samp(x, 0).pvalue, rel=.25) # two more clips make it a little larger
    assert d.detectable() == pytest.approx(TTestPower().solve_power(nobs=800, alpha=.05, power=.8)*x.std(ddof=1), rel=.05)
    times, runs = d.variances().needed(.02)
    assert runs is None and 800*times == pytest.approx(TTestPower().solve_power(effect_size=.02/x.std(ddof=1), alpha=.05, power=.8), rel=.05)


def test_mcnemar_published():
    "Agresti (2013), table 11.1: approval of the prime minister, 86 and 150 changed their minds; and the exact test by hand where few did"
    def pair(only_a, only_b, both, none):
        right = np.array([[1, 1]]*both + [[1, 0]]*only_a + [[0, 1]]*only_b + [[0, 0]]*none).T
        p = Predictions(['x', 'y'], np.arange(right.shape[1]).astype(str), np.arange(right.shape[1]), np.zeros(right.shape[1], int),
                        {m: np.stack([r, 1 - r], -1)[None]*1. for m, r in zip('ab', right)}, {'a': [0], 'b': [0]})
        return paired_differences(p, bootstrap(p, 300)).iloc[0]
    r = pair(86, 150, 794, 570)
    assert (r.only_a, r.only_b) == (86, 150) and r.p_mcnemar == pytest.approx(3.7e-5, rel=.05) and r.p < .001
    assert pair(0, 5, 30, 5).p_mcnemar == pytest.approx(2*.5**5) and pair(1, 7, 30, 5).p_mcnemar == pytest.approx(2*9/2**8)
    assert pair(0, 4, 200, 5).p > .05, 'four clips, all for one side, prove nothing'


def test_holm_by_hand():
    "Holm (1979): smallest p times the number of tests, and so on, never falling"
    p = simulate(np.random.default_rng(2), {'a': .6, 'b': .7, 'c': .8, 'd': .82})
    t = paired_differences(p, bootstrap(p, 300))
    assert len(t) == 6
    want, last = {}, 0
    for k, i in enumerate(t.p_unadjusted.sort_values().index): last = want[i] = max(last, min(1, (6 - k)*t.p_unadjusted[i]))
    assert [t.p[i] for i in range(6)] == pytest.approx([want[i] for i in range(6)])
    assert multipletests([.01, .04, .03, .005], method='holm')[1] == pytest.approx([.03, .06, .06, .02])


def test_two_shares():
    "0.6 against 0.7 at 80 % takes 356 each (R: power.prop.test(p1=.6, p2=.7, power=.8)); statsmodels, too"
    assert clips_to_tell_apart(.6, .7) == 356 and clips_to_tell_apart(27/34, 1589/1912) == 1750
    for a, b in ((.5, .6), (.79, .83)): assert clips_to_tell_apart(a, b) == pytest.approx(NormalIndPower().solve_power(proportion_effectsize(a, b), power=.8, alpha=.05), rel=.01)


def test_brier_is_not_needed_but_probabilities_are_honest():
    "The simulated truth is drawn from the probabilities: calibration error is small, as is scikit-learn's Brier score of the top answer"
    x, y = toy(20000)
    assert calibration_error(x, y) < .02 and brier_score_loss(x.argmax(1) == y, x.max(1)) < .25


# --- sentences


ROW = dict(a='one', b='two', diff=.008, low=-.019, high=.034, p=.61, p_equivalent=.18, margin=.02, clips_for_margin=1200., runs_for_margin=7.)
OPEN = 'against {} is undecided on 741 clips: the difference of +0.8 points lies in [-1.9, 3.4], p = 0.61 after Holm for 3 pairs; a difference of 2 points, the margin, would take '


@pytest.mark.parametrize('change, said', [
    ({}, 'two ' + OPEN.format('one') + 'about 1,200 clips or 7 training runs each to be found in four of five studies.'),
    (dict(diff=-.008, low=-.034, high=.019), 'one ' + OPEN.format('two') + 'about 1,200 clips or 7 training runs each'),
    (dict(clips_for_margin=np.nan), 'would take 7 training runs each to be found'), (dict(runs_for_margin=None), 'would take about 1,200 clips to be found'),
    (dict(clips_for_margin=None, runs_for_margin=np.nan), 'the margin, is out of reach of more clips or of more runs alone.'),
    (dict(diff=0., low=-.01, high=.01, p=1., p_equivalent=.001), 'two and one are equivalent within 2 points on 741 clips: the difference of +0.0 points lies in [-1.0, 1.0].'),
    (dict(diff=.01, low=.005, high=.015, p=.001, p_equivalent=.001), 'equivalent within 2 points on 741 clips: the difference of +1.0 points lies in [0.5, 1.5], though not 0 (p = 0.001 after Holm'),
    (dict(diff=.2, low=.1, high=.3, p=1e-9, p_equivalent=1.), 'two is better than one on 741 clips: the difference of +20.0 points lies in [10.0, 30.0], p < 0.0001 after Holm for 3 pairs.'),
    (dict(p=None), 'one upload, which allow no test'), (dict(p=np.nan), 'one upload, which allow no test')])
def test_verdicts(change, said): assert said in verdict(ROW | change, 741, tests=3)


def test_the_mark():
    assert marked({'a': 'imagenet', 'b': 'kinetics-400', 'c': None}) == {'b': 'b †'}
    assert verdict(ROW, 741, names={'two': 'two †'}).startswith('two † against one')


# --- leaks


def test_near_duplicates_at_size():
    "14,072 clips, three frames each: blocks of a matrix product's speed, and planted copies are found"
    rng, n = np.random.default_rng(0), 14_072
    h = rng.integers(0, 2**64, (n, 3), dtype=np.uint64)
    split = np.array(['train']*12_600 + ['valid']*731 + ['test']*741)
    h[-1], h[-2], h[-3] = h[5], h[7] ^ np.uint64(3), 0      # a copy, nearly a copy, a black clip
    h[9] = 0
    assert near_duplicates(h, split, np.arange(n))[['a', 'b', 'bits']].values.tolist() == [[n - 1, 5, 0], [n - 2, 7, 2]]
    assert len(near_duplicates(h, split, np.zeros(n))) == 0 and len(near_duplicates(h[:10], split[:10], np.arange(10))) == 0


def test_a_copy_in_disguise_is_found():
    import io
    from PIL import Image
    from kinetics_dance.synthetic.dancers import render_clip
    clips = [render_clip('round', 0, seed=s)[::5] for s in range(4)]
    def disguise(x):
        buf = io.BytesIO(); Image.fromarray((x*.85 + 20).astype(np.uint8)).resize((160, 120)).save(buf, 'jpeg', quality=50)
        return np.asarray(Image.open(buf))
    clips.append(np.stack([disguise(x) for x in clips[2]]))
    h = hash_clips(range(5), clips.__getitem__)
    twins = confirm_twins(near_duplicates(h, np.array(['train']*4 + ['test']), np.arange(5)), list(range(5)), clips.__getitem__)
    assert twins[['a', 'b']].values.tolist() == [[4, 2]] and np.bitwise_count(frame_hash(clips[0][0]) ^ frame_hash(clips[0][0])) == 0
