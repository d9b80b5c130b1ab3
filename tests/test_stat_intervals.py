"""Intervals that behave: more errors never raise an end, nothing hangs on the luck of the resampling, and no rule jumps."""
import numpy as np, pytest
from kinetics_dance.evaluation.intervals import Estimate, bootstrap
from kinetics_dance.evaluation.predictions import Predictions


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
