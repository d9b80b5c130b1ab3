"""Names of classes are drawn as they are, whatever they are, and however many."""
import io, time, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from kinetics_dance.clips.audit import plot_audit
from kinetics_dance.core import text
from kinetics_dance.core.text import for_figure
from kinetics_dance.evaluation.figures import Look, plot_confusion, plot_gain, save_figure
from kinetics_dance.evaluation.predictions import simulate
from kinetics_dance.training.tracking import draw_confusion

@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(text, '_FAMILIES', {})
    with plt.rc_context(): yield
    plt.close('all')

def drawn(fig): fig.canvas.draw(); return [t.get_text() for a in fig.axes for t in a.get_yticklabels()]

def missing(fig):
    "Letters for which matplotlib draws a box"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        fig.savefig(io.BytesIO())
    return [str(w.message) for w in said if 'Glyph' in str(w.message)]

@pytest.mark.parametrize('name', ['Ca$$h', 'win $5_ or lose $6_x', r'back\slash \alpha', 'a_b^c', '100 %', '#1', '_hidden', '{x}'])
def test_a_name_is_no_formula(name):
    fig, ax = plt.subplots()
    ax.set(yticks=[0], yticklabels=[for_figure(name)])
    fig.canvas.draw()
    plain, formula = ax.get_yticklabels()[0]._preprocess_math(for_figure(name))
    assert not formula and plain.removeprefix('\u200c') == name

def test_another_script_gets_a_font_that_has_it():
    "As Chinese does where a font has it: here a sign that matplotlib's own letters lack and its mathematical ones have"
    from matplotlib import font_manager as fm
    from matplotlib.ft2font import FT2Font
    own, other = (FT2Font(fm.findfont(f)).get_charmap() for f in ('DejaVu Sans', 'STIXGeneral'))
    sign = next(chr(c) for c in sorted(other.keys() - own.keys()) if c > 0x24f and chr(c).isprintable() and text.unicodedata.category(chr(c))[0] in 'LS')
    fig = plt.figure()
    fig.text(.5, .5, sign)
    assert missing(fig)
    fig = plt.figure()
    fig.text(.5, .5, for_figure(sign))
    assert not missing(fig)

def test_a_script_that_no_font_has_is_one_warning(monkeypatch):
    monkeypatch.setattr(text, 'font_with', lambda c: None)
    with pytest.warns(UserWarning, match='no font here has the letter .*Noto Sans CJK') as said:
        for name in ('跳舞', '走路', '跳舞'): assert for_figure(name) == name
    assert len(said) == 1

@pytest.mark.parametrize('classes', [['dancing', 'not dancing'], ['tango dancing', 'dancing tango'], ['salsa dancing', 'salsa'], ['dancing ', 'x']])
def test_a_name_is_shortened_only_where_that_is_clear(classes):
    assert [Look(['m'], classes=classes)(k) for k in classes] == classes
    assert Look(['m'], classes=['salsa dancing', 'dancing ballet'])('dancing ballet') == 'ballet'

def test_long_names_are_shortened_in_one_way():
    long = 'a sentence that describes what is done ' * 6
    m = pd.DataFrame([[1, 0], [0, 1]], [long, 'b'], [long, 'b'])
    names = {for_figure(long), Look(['m'], classes=[long, 'b']).drawn(long), draw_confusion(m).axes[0].get_yticklabels()[0].get_text()}
    assert len(names) == 1 and len(names.pop()) == 60

@pytest.fixture(scope='module')
def thousand():
    p = simulate(np.random.default_rng(0), {'a': .5, 'b': .7})
    k = 1000
    p.classes = [f'class {i:04}' for i in range(k)]
    p.y_true = np.arange(k)
    rng = np.random.default_rng(1)
    p.probs = {m: rng.dirichlet(np.ones(k)*.05, (1, k)) for m in ('a', 'b')}
    return p

def test_a_thousand_classes_are_a_figure(thousand, tmp_path, monkeypatch):
    monkeypatch.setattr('kinetics_dance.evaluation.figures.confusion',
                        lambda p, m: pd.DataFrame(np.eye(1000), p.classes, p.classes))
    fig = plot_confusion(thousand, 'a', 'b', Look(['a', 'b'], classes=thousand.classes))
    save_figure(fig, tmp_path/'confusion')
    assert (tmp_path/'confusion.svg').stat().st_size < 3e6 and max(fig.get_size_inches()) < 20
    named = [n for n in drawn(fig) if n.startswith('class')]
    assert 60 <= len(named) <= 100 and 'class 0000' in named
    gains = pd.DataFrame([dict(model='b', gain=.5 - i/1000, low=.4 - i/1000, high=.6 - i/1000, clips=9) for i in range(1000)])
    gains.insert(1, 'class', thousand.classes)
    fig = plot_gain(gains[['model', 'class', 'gain', 'low', 'high', 'clips']], Look(['a', 'b'], classes=thousand.classes), 'a')
    assert max(fig.get_size_inches()) < 25 and {'class 0000', 'class 0999'} < set(drawn(fig))
    df = pd.DataFrame(dict(label=np.repeat(thousand.classes, 2), split='train', time_start=0., time_end=10.))
    assert len(plot_audit(df)[0].get_yticklabels()) == 60
    assert max(draw_confusion(pd.DataFrame(np.eye(1000), thousand.classes, thousand.classes)).get_size_inches()) < 25
