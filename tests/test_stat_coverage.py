"""The second simulator: what it takes for the truth is true, its estimates are those of the library, and its page is the one that it wrote."""
import importlib.util, re
import numpy as np, pytest
from conftest import ROOT
from kinetics_dance.evaluation.intervals import bootstrap
from kinetics_dance.evaluation.predictions import Predictions
spec = importlib.util.spec_from_file_location('coverage_studies', ROOT/'bench/coverage.py')
cov = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cov)


@pytest.mark.parametrize('name', ['3 runs', '3 runs, one in six collapses', '3 runs, uneven classes'])
def test_the_truth_is_what_studies_average_to(name):
    w, rng = cov.World(**cov.CONDITIONS[name]), np.random.default_rng(0)
    found = [np.mean([x.mean() for x in w.study(rng, (w.base, w.base))[2]]) for _ in range(300)]
    assert np.mean(found) == pytest.approx(w.mean(w.base), abs=4*np.std(found)/300**.5)
    effects = [np.zeros((2, w.classes))]
    assert w.mean_of(w.base, effects[0]) > .5


def test_estimates_are_those_of_the_library():
    w = cov.World()
    y, g, (right, _), _ = w.study(np.random.default_rng(1), (w.base, w.base))
    said = np.where(right, y, (y + 1) % w.classes)
    p = Predictions([f'{k:02d}' for k in range(w.classes)], np.arange(len(y)).astype(str), g, y, {'m': np.eye(w.classes)[said]}, {'m': [0, 1, 2]})
    ours, theirs = bootstrap(p, 2)['m']['accuracy'], cov.estimate('m', right, g)
    assert theirs.interval() == pytest.approx(ours.interval(), abs=1e-9) and theirs.spread() == pytest.approx(ours.spread(), abs=1e-9)


def test_the_page_is_the_one_that_was_written():
    "Every condition has its row, the text is that of the script, and what lies outside of the bars is bold"
    text = (ROOT/'nbs/pages/coverage.md').read_text()
    rows = re.findall(r'^\| ([^|]+) \| (\*\*)?([\d.]+) %(?:\*\*)? \|', text, re.M)
    assert [r[0] for r in rows] == 2*list(cov.CONDITIONS)
    assert all(bool(bold) == (not 91.6 <= float(x) <= 98.4) or float(x) in (91.6, 98.4) for _, bold, x in rows)
    studies = int(re.search(r'--studies (\d+)', text)[1])
    made = cov.page([], studies, 0, text.partition(cov.AGAIN)[2].strip())
    assert studies >= 1000 and text.split('\n*Coverage*')[1] == made.split('\n*Coverage*')[1]


def test_another_seed_has_a_table_of_its_own(tmp_path, monkeypatch):
    "Writing one leaves the other, and what is outside of the bars is named"
    (tmp_path/'nbs/pages').mkdir(parents=True)
    monkeypatch.setattr(cov, 'ROOT', tmp_path)
    good = dict(name='good', effect=.1, planned=.8, covered=.95, alarms=.05, cautions=0., found=.79, equivalent=0.)
    bad = good | dict(name='bad', covered=.5, found=.6)
    cov.write([good], 1000, 0)
    text = (tmp_path/'nbs/pages/coverage.md').read_text()
    assert 'has not been done yet' in text
    cov.write([good, bad], 1000, 1)
    cov.write([good | dict(name='better')], 1000, 0)
    text = (tmp_path/'nbs/pages/coverage.md').read_text()
    assert '| better |' in text and text.count('| good |') == 1 and 'standard errors: bad.' in text and 'bad (+20.0)' in text and 'not been done' not in text


def test_a_condition_in_small():
    r = cov.condition('3 runs', 12)
    assert 0 <= r['covered'] <= 1 and 0 < r['planned'] < 1 and set(r) == {'name', 'effect', 'planned', 'covered', 'alarms', 'cautions', 'found', 'equivalent'}
