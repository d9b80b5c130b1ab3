"""Intervals that behave: more errors never raise an end, nothing hangs on the luck of the resampling, and no rule jumps."""
from dataclasses import replace
import numpy as np, pytest
from kinetics_dance.evaluation.intervals import Estimate, bootstrap, half_widths, joined
from kinetics_dance.evaluation.predictions import Predictions, simulate


def estimate(wrong, group, confidence=.95):
    "Accuracy of one run that is wrong on these clips, with the variance that the bootstrap estimates"
    m = np.bincount(group).astype(float)
    G, N, x = len(m), m.sum(), 1 - wrong.mean()
    z = np.bincount(group, weights=~wrong) - x*m
    e = Estimate({0: np.array([[x]])}, G, len(group), uneven=(m**2).sum()/N**2)
    e._spread = G/(G - 1)*(z**2).sum()/N**2, 0., 0., 0.
    return e


def orders(rng, group, way):
    "In which order clips become wrong"
    if way == 'anywhere': return rng.permutation(len(group))
    if way == 'upload by upload': return np.argsort(rng.permutation(group.max() + 1)[group], kind='stable')
    return np.argsort(group + 3*rng.normal(size=len(group)))     # mostly upload by upload


@pytest.mark.parametrize('way', ['anywhere', 'upload by upload', 'mostly'])
@pytest.mark.parametrize('confidence', [.8, .95, .995])
def test_more_errors_never_raise_an_end(way, confidence):
    "Uploads of equal or of unequal size, few or many: from no error to all wrong"
    rng = np.random.default_rng(len(way))
    for trial in range(12):
        G = int(rng.integers(4, 90))
        group = np.repeat(np.arange(G), rng.integers(1, 8, G) if trial % 2 else int(rng.integers(1, 8)))
        wrong, last = np.zeros(len(group), bool), (1., 1.)
        for k in orders(rng, group, way):
            now = estimate(wrong, group).interval(confidence)
            assert now[0] <= last[0] + 1e-12 and now[1] <= last[1] + 1e-12, (G, wrong.sum(), last, now)
            last, wrong[k] = now, True


def errors(n, uploads=94, clips=2, runs=3):
    "Two classes; n errors on as many uploads, each in another run"
    y = np.tile([0, 1], uploads*clips//2)
    said = np.tile(y, (runs, 1))
    for i in range(n): said[i % runs, i*clips] ^= 1
    return Predictions(['a', 'b'], np.arange(len(y)).astype(str), np.repeat(np.arange(uploads), clips), y, {'m': np.eye(2)[said]}, {'m': list(range(runs))})


def test_few_errors_of_three_runs():
    "94 uploads of two clips, three runs: one error must not make the interval three times as wide as none (it did: 88.5 to 100)"
    ends = np.array([bootstrap(errors(n), 500)['m']['accuracy'].interval() for n in (0, 1, 3, 6, 12, 24)])
    assert (np.diff(ends, axis=0) <= 1e-3).all() and ends[1, 0] > .95, ends


def test_uneven_uploads_count_as_fewer():
    "One upload of 50 clips and 50 of one: all right says less than with 51 alike"
    one = lambda m: estimate(np.zeros(sum(m), bool), np.repeat(np.arange(len(m)), m)).interval()[0]
    assert one([50] + [1]*50) < one([2]*50) - .05 and one([2]*50) == pytest.approx(one([1]*50))


# --- no verdict by luck of the resampling, and no rule that jumps


def test_accuracy_does_not_hang_on_the_seed_of_the_resampling():
    "p of one pair ran from .0487 to .0501 over bootstrap seeds"
    p = simulate(np.random.default_rng(1), dict(a=.8, b=.84))
    found = [(d.p_value(), d.interval(), b['a']['recall'][p.classes[0]].interval(), b['a']['log_loss'].interval())
             for seed in range(4) for b in [bootstrap(p, 50, seed)] for d in [b['b']['accuracy'] - b['a']['accuracy']]]
    assert all(x == found[0] for x in found)
    f1 = [b['a']['macro_f1'] for seed in range(2) for b in [bootstrap(p, 50, seed)]]
    assert f1[0].interval() != f1[1].interval() and f1[0].monte_carlo_error() > 0


def test_the_closed_form_is_the_limit_of_the_bootstrap():
    "Uploads of unequal size, three runs: variances by 4,000 resamples and by the formula"
    p = simulate(np.random.default_rng(2), dict(a=.8, b=.7), uploads=80, clips=5, run=.1)
    p = p.take(np.random.default_rng(0).random(400) < .6)
    b = bootstrap(p, 4000)
    for e in (b['a']['accuracy'], b['b']['accuracy'] - b['a']['accuracy'], b['a']['recall'][p.classes[1]], b['b']['log_loss']):
        assert np.array(e.spread()) == pytest.approx(replace(e, pulls=None).spread(), rel=.1)


@pytest.mark.parametrize('both', [0., .3, .8])
def test_the_rule_does_not_jump(both):
    "An infinitesimal change of the degrees of freedom changed the half-width from 1.63 to 1.27"
    df = np.arange(1, 6, .001)
    w = joined(*half_widths(1., 1., both, df, 100))
    assert (abs(np.diff(w)) < .02*w[:-1]).all()
    assert joined(*half_widths(1., 1., both, 3, 100)) == pytest.approx(np.hypot(*half_widths(1., 1., both, 3, 100)[:2]))
    assert joined(*half_widths(1., 1., both, 2, 100)) == max(half_widths(1., 1., both, 2, 100)[:2])


def test_the_norm_of_two_distances():
    for a, b, order, want in ((3., 4., 2, 5), (3., 4., np.inf, 4), (4., 4., np.inf, 4), (0., 4., 2, 4), (0., 0., np.inf, 0), (1., 1., 2, 2**.5)):
        assert joined(a, b, order) == pytest.approx(want)
